#!/usr/bin/env python3
"""Build the container images of this folder, push them to a registry, print their references by digest.

    runtime/images/build.py [NAME ...] [--registry HOST:PORT] [--json FILE] [--force] [--unpushed]
                            [--installed NAME=FOLDER]

Nothing comes from an image registry on the internet: root file systems are made from Debian packages (mmdebstrap, with
the machine's own apt sources), Python packages from hash-locked wheels (with pip's own configuration). Each image is a
folder with a Dockerfile; what it copies is staged beside it here.

A build is keyed by the content that goes into it (recipe, staged sources, parent, Debian suite, architecture), and the
key is the image's tag: what the registry already holds under its key is not built again. The apt archive is not part of
the key; `--force` builds anew to pick up newer packages. What was pushed is removed from the engine that built it, so
that a node beside it must pull by digest like every other node. (Not so a large one, which is also built only when it
is named: fetching its gigabytes again would show nothing that a small one does not. With `--unpushed` it is not even
pushed, which would compress them for minutes: its id is printed, as for an image that came by file.)

Needs: the `docker` command and an engine, the registry, root and mmdebstrap (for `base`), busybox-static (for
`busybox`), pip (for `llamacpp`, `vllm` and `agent`), GNU tar (for `vllm`), hatchling (for `agent`: `make install`
brings it). Standard library only, so that it runs before anything is installed.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import http.client
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

# Run by its path, as it is before anything is installed.
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from runtime.images.recipes import RECIPES, key, with_given
from runtime.images.staging import HERE, BuildError, docker, run

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from runtime.images.recipes import Recipe

REPOSITORY = "reconcile"

# What a registry may answer for a tag; without these it would convert to a format of 2016 and name another digest.
_MANIFEST_TYPES = (
    "application/vnd.docker.distribution.manifest.v2+json,"
    "application/vnd.docker.distribution.manifest.list.v2+json,"
    "application/vnd.oci.image.manifest.v1+json,"
    "application/vnd.oci.image.index.v1+json"
)
_REGISTRY_SECONDS = 10
# What a processor has no use for: the compiler of another machine's kernels, headers, static libraries. A third of it.
_NEEDLESS = ("triton/backends/nvidia/bin", "triton/backends/nvidia/lib", "torch/include", "*.a")


def registry_digest(registry: str, name: str, tag: str) -> str | None:
    """Return the digest that the registry holds under a tag, `None` if it holds none.

    Raises:
        BuildError: the registry does not answer as one.

    """
    # http.client and not urllib: a proxy configured for the internet must not be asked for loopback.
    connection = http.client.HTTPConnection(registry, timeout=_REGISTRY_SECONDS)
    try:
        connection.request("HEAD", f"/v2/{REPOSITORY}/{name}/manifests/{tag}", headers={"Accept": _MANIFEST_TYPES})
        answer = connection.getresponse()
    except (OSError, http.client.HTTPException) as error:
        raise BuildError(f"registry {registry} does not answer: {error}") from error
    finally:
        connection.close()
    if answer.status == http.client.NOT_FOUND:
        return None
    digest = answer.headers.get("Docker-Content-Digest")
    if answer.status != http.client.OK or not digest:
        raise BuildError(f"registry {registry} answers {answer.status} {answer.reason} for {name}:{tag}")
    return digest


def build(recipe: Recipe, registry: str, *, force: bool, installed: Mapping[str, Path]) -> str:
    """Build an image and push it, unless the registry has it; return its reference by digest.

    Raises:
        BuildError: see the message.

    """
    tag = key(recipe)
    name = f"{registry}/{REPOSITORY}/{recipe.name}"
    digest = None if force else registry_digest(registry, recipe.name, tag)
    if digest is None:
        started = time.monotonic()
        make(recipe, registry, f"{name}:{tag}", installed)
        docker("push", "--quiet", f"{name}:{tag}")
        if not recipe.large:
            docker("rmi", f"{name}:{tag}")
        digest = registry_digest(registry, recipe.name, tag)
        print(f"{recipe.name}: built in {time.monotonic() - started:.1f} s", file=sys.stderr)
    return f"{name}@{digest}"


def build_unpushed(recipe: Recipe, registry: str, *, force: bool, installed: Mapping[str, Path]) -> str:
    """Build an image, unless the engine has it; return its id, by which an engine knows an image that came by file.

    Raises:
        BuildError: see the message.

    """
    name = f"{REPOSITORY}/{recipe.name}:{key(recipe)}"
    found = "" if force else docker("images", "--quiet", "--no-trunc", name).strip()
    if not found:
        started = time.monotonic()
        make(recipe, registry, name, installed)
        found = docker("images", "--quiet", "--no-trunc", name).strip()
        print(f"{recipe.name}: built in {time.monotonic() - started:.1f} s", file=sys.stderr)
    return found


def make(recipe: Recipe, registry: str, name: str, installed: Mapping[str, Path]) -> None:
    """Stage a recipe and build it under a name, its parent first.

    Raises:
        BuildError: see the message.

    """
    parent = ""
    arguments: list[str | Path] = ["build", "--quiet", "--network=none", f"--tag={name}"]
    if recipe.parent:
        parent = build(RECIPES[recipe.parent], registry, force=False, installed=installed)
        arguments.append(f"--build-arg=BASE={parent}")
    with tempfile.TemporaryDirectory(prefix="reconcile-image-") as folder:
        context = Path(folder, "context")
        shutil.copytree(HERE / recipe.name, context)
        given = installed.get(recipe.name)
        if given is not None and recipe.streamed:
            build_around(given, context, arguments)
        else:
            if given is not None:
                shutil.copytree(given, context / recipe.name, symlinks=True)
            recipe.stage(context, parent)
            docker(*arguments, context)


def build_around(packages: Path, context: Path, arguments: Sequence[str | Path]) -> None:
    """Build from a context that is streamed: gigabytes of packages go from where they are to the engine, not copied.

    Args:
        packages: a folder named `site-packages`.
        context: the rest of the context.
        arguments: of the docker command.

    Raises:
        BuildError: there is no such folder, or the build failed.
    """
    if packages.name != "site-packages" or not packages.is_dir():
        raise BuildError(f"'{packages}' is no folder named site-packages")
    without = [f"--exclude=site-packages/{part}" for part in _NEEDLESS]
    tar = ["tar", "--create", "--owner=0", "--group=0", "--numeric-owner", *without]
    with subprocess.Popen(
        [*tar, "-C", context, ".", "-C", packages.parent, packages.name], stdout=subprocess.PIPE
    ) as packing:
        run("docker", *arguments, "-", context="docker", stdin=packing.stdout or subprocess.DEVNULL)
    if packing.returncode != 0:
        raise BuildError(f"'{packages}' cannot be packed: tar ended with code {packing.returncode}")


@contextlib.contextmanager
def one_at_a_time() -> Iterator[None]:
    """Hold a lock of this user's on this machine: parallel test workers all ask for the same images at once."""
    path = Path(tempfile.gettempdir(), f"reconcile-images-{os.geteuid()}.lock")
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the program; see the module's docstring."""
    parser = argparse.ArgumentParser(description="Build images, push them to a registry, print references by digest.")
    parser.add_argument(
        "names",
        nargs="*",
        metavar="NAME",
        help=f"images to build: {', '.join(RECIPES)} (default: all but the large and the agent's)",
    )
    parser.add_argument(
        "--registry",
        default=os.environ.get("RECONCILE_TEST_REGISTRY", "127.0.0.1:5000"),
        metavar="HOST:PORT",
        help="registry to push to, over plain HTTP (default: $RECONCILE_TEST_REGISTRY, else 127.0.0.1:5000)",
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write {name: reference} to FILE")
    parser.add_argument(
        "--installed",
        action="append",
        default=[],
        metavar="NAME=FOLDER",
        help="take vllm's site-packages from where its lock was installed (the same Python), or ollama's bin/ and lib/",
    )
    parser.add_argument("--force", action="store_true", help="build even what the registry already holds")
    parser.add_argument(
        "--unpushed", action="store_true", help="leave what is named in the engine that built it, and print its id"
    )
    options = parser.parse_args(arguments)
    if unknown := sorted(set(options.names) - set(RECIPES)):
        parser.error(f"no such image: {', '.join(unknown)}")
    try:
        with one_at_a_time():
            names = options.names or [recipe.name for recipe in RECIPES.values() if not (recipe.large or recipe.asked)]
            installed = {name: Path(folder) for name, _, folder in (item.partition("=") for item in options.installed)}
            way = build_unpushed if options.unpushed else build
            references = {
                name: way(with_given(name, installed), options.registry, force=options.force, installed=installed)
                for name in names
            }
        document = json.dumps(references, indent=2)
        if options.json:
            options.json.write_text(document + "\n", encoding="utf-8")
    except (BuildError, OSError) as error:
        print(f"build: {error}", file=sys.stderr)
        return 1
    print(document)
    return 0


if __name__ == "__main__":
    sys.exit(main())
