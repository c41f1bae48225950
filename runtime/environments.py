"""Native environments: one folder per lock and interpreter, installed whole or not at all, compared before each start.

    <runtimes>/<digest>/            the environment
    <runtimes>/<digest>.json        says that it is whole: written last, removed first
    <runtimes>/<digest>.files       what every file of it was when it had been installed
    <runtimes>/building/<digest>/   an attempt: wheels that were fetched, kept for the next one, and the tree so far

pip does the fetching and unpacking, with this machine's own pip configuration (index, mirror, certificates): it runs in
the agent's interpreter and installs into the other. Only wheels whose hashes the lock names are taken; nothing is built
from source, no program of a package runs while it is installed, and nothing is resolved: the lock is the whole list.
"""

from __future__ import annotations

import ctypes
import errno
import json
import mmap
import os
import re
import stat
import sys
from typing import TYPE_CHECKING, Final

from runtime.models.records import load, save
from schemas.base import Digest, Frozen, Size, Text, Time
from schemas.digests import digest_bytes, digest_text
from schemas.errors import EnvironmentChanged, EnvironmentUnavailable, NoSpace
from schemas.observation import StoredEnvironment

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

    from schemas.ports import Completed, Ports, Stop

FETCH_SECONDS: Final = 2 * 3600.0
"""For all wheels: 5 GB of vLLM with CUDA take that at 6 Mbit/s."""
INSTALL_SECONDS: Final = 3600.0
"""For unpacking and compiling them: two minutes for vLLM on two processors."""
OUTPUT_LIMIT: Final = 2**24
WORDS: Final = 900
"""Characters of pip's last words that go into a message."""

# What pip may know of this machine: where wheels come from, how to get there, and nothing of what the agent is.
_PASSED_ON: Final = re.compile(
    r"PIP_[A-Z_]+|(https?|no|all|HTTPS?|NO|ALL)_(proxy|PROXY)|SSL_CERT_(FILE|DIR)|REQUESTS_CA_BUNDLE|HOME|PATH"
    r"|XDG_CONFIG_(HOME|DIRS)|NETRC"
)
# Settings of a person's that would change what is installed, or where.
_NOT_PASSED_ON: Final = frozenset(
    {"PIP_TARGET", "PIP_PREFIX", "PIP_ROOT", "PIP_USER", "PIP_PYTHON", "PIP_NO_BINARY", "PIP_REQUIREMENT"}
    | {"PIP_CONSTRAINT", "PIP_EDITABLE", "PIP_REPORT", "PIP_LOG", "PIP_REQUIRE_VIRTUALENV", "PIP_DRY_RUN", "PIP_DEST"}
)
_FLAGS: Final = ("--no-input", "--disable-pip-version-check", "--no-cache-dir", "--progress-bar=off")
_LOCKED: Final = ("--require-hashes", "--only-binary=:all:", "--no-deps")


class EnvironmentRecord(Frozen):
    """An environment that is whole."""

    format_version: Text = "1"
    environment: Digest
    lock: Digest
    installed_at: Time
    size: Size
    """Bytes of its files."""
    files: Digest
    """Of the list of its files."""
    packages: dict[Text, Text]
    """Versions by normalised name."""


class DiskEnvironments:
    """The locked environments of a node, below one folder."""

    def __init__(self, folder: Path, *, ports: Ports) -> None:
        """Attach to a folder; nothing is touched yet.

        Args:
            folder: where environments live; made when the first is installed.
            ports: durable writes, subprocesses and the clock.
        """
        self._folder = folder
        self._ports = ports
        version = ".".join(map(str, sys.version_info[:3]))
        self.interpreter = f"{sys.implementation.name} {version} {sys.platform} {os.uname().machine}"

    # --- looking --------------------------------------------------------------------------------------------------

    def list(self) -> dict[str, StoredEnvironment]:
        """The environments that are whole."""
        try:
            names = sorted(entry.name for entry in self._folder.iterdir() if entry.suffix == ".json")
        except FileNotFoundError:
            return {}
        records = (self._record(name.removesuffix(".json")) for name in names)
        whole = [StoredEnvironment(one.environment, one.lock, one.size) for one in records if one is not None]
        return {one.environment: one for one in whole}

    def packages(self, environment: str) -> dict[str, str]:
        """Versions of what it has."""
        record = self._record(_hex(environment))
        return dict(record.packages) if record is not None else {}

    def python(self, environment: str) -> Path:
        """Its interpreter."""
        return self._place(environment) / "bin" / "python"

    def verify(self, environment: str) -> None:
        """Compare with what was installed: quick where nothing moved, by hash where something did."""
        record = self._record(_hex(environment))
        try:
            known = self._files(environment, record)
            found = _seen(self._place(environment)) if record is not None else {}
        except (OSError, ValueError) as error:
            self._forget(environment)
            raise EnvironmentChanged(f"{_name(environment)} cannot be compared: {error}") from error
        if record is None:
            raise EnvironmentChanged(f"{_name(environment)} is not installed")
        moved = [path for path in sorted(known.keys() | found.keys()) if _stat(known, path) != _stat(found, path)]
        for path in moved:
            if path not in known or path not in found or self._content(environment, path) != known[path][-1]:
                self._forget(environment)
                what = "was added to" if path not in known else "is missing from" if path not in found else "changed in"
                raise EnvironmentChanged(f"{path} {what} {_name(environment)}")
        if moved:
            self._write(environment, record.lock, dict(record.packages))

    # --- changing -------------------------------------------------------------------------------------------------

    def install(self, environment: str, lock: bytes, *, stop: Stop) -> None:
        """Fetch, unpack, look at every file, and only then give it its name."""
        if self._record(_hex(environment)) is not None:
            return
        files, building = self._ports.files, self._folder / "building" / _hex(environment)
        try:
            self._sweep(keep=building)
            files.make_folder(building, mode=0o700)
            files.write(building / "requirements.lock", lock)
            tree = self._build(building, self._place(environment), stop)
            files.remove(self._place(environment))
            files.rename(tree, self._place(environment))
            self._write(environment, digest_bytes(lock), _packages(self._place(environment)))
            files.remove(building)
        except OSError as error:
            if error.errno == errno.ENOSPC:
                raise NoSpace(f"the disk is full: {_name(environment)} cannot be installed") from error
            raise EnvironmentUnavailable(f"{_name(environment)} cannot be installed: {error}") from error

    def remove(self, environment: str) -> None:
        """Remove it: first what says that it is whole, so that half of one is never taken for one."""
        self._forget(environment)
        files = self._ports.files
        files.remove(self._folder / f"{_hex(environment)}.files")
        files.remove(self._place(environment))
        files.remove(self._folder / "building" / _hex(environment))

    # --- building -------------------------------------------------------------------------------------------------

    def _build(self, building: Path, place: Path, stop: Stop) -> Path:
        """A whole tree beside the place where it will be, on the disk to the last byte."""
        tree, wheels, temporary = building / "tree", building / "wheels", building / "tmp"
        for folder in (tree, temporary):
            self._ports.files.remove(folder)
        temporary.mkdir()
        wheels.mkdir(exist_ok=True)
        lock = ("-r", str(building / "requirements.lock"))
        agent = (sys.executable, "-I")
        self._run((*agent, "-m", "venv", "--without-pip", str(tree)), "python's venv", temporary, INSTALL_SECONDS, stop)
        fetch = (*agent, "-m", "pip", "download", *_FLAGS, *_LOCKED, "--dest", str(wheels), *lock)
        self._run(fetch, "pip", temporary, FETCH_SECONDS, stop)
        python = str(tree / "bin" / "python")
        offline = ("--no-index", "--find-links", str(wheels), "--no-compile", "--no-warn-script-location")
        install = (*agent, "-m", "pip", "--python", python, "install", *_FLAGS, *_LOCKED, *offline, *lock)
        self._run(install, "pip", temporary, INSTALL_SECONDS, stop)
        self._ports.files.remove(temporary)
        temporary.mkdir()
        _settle(tree, place)
        # Hash-based and never checked again: the files are, all of them, and start-up is spared the compilation.
        compile_ = (python, "-I", "-m", "compileall", "-q", "-q", "-j", "0", "--invalidation-mode", "unchecked-hash")
        moved = ("-s", str(tree), "-p", str(place))
        # Packages carry files of other Python versions, as templates: what does not compile is left as it is.
        self._run((*compile_, *moved, str(tree / "lib")), "compileall", temporary, INSTALL_SECONDS, stop, needed=False)
        _sync(tree)
        return tree

    def _run(
        self, argv: Sequence[str], what: str, temporary: Path, seconds: float, stop: Stop, *, needed: bool = True
    ) -> Completed:
        env = {name: value for name, value in os.environ.items() if _PASSED_ON.fullmatch(name)}
        env = {name: value for name, value in env.items() if name not in _NOT_PASSED_ON}
        env |= {"TMPDIR": str(temporary), "LANG": "C.UTF-8"}
        try:
            done = self._ports.processes.run(
                argv, timeout=seconds, max_output=OUTPUT_LIMIT, env=env, cwd=temporary, stop=stop
            )
        except (TimeoutError, OverflowError, InterruptedError) as error:
            raise EnvironmentUnavailable(str(error)) from error
        if done.returncode and needed:
            words = " ".join((done.stdout + b"\n" + done.stderr).decode(errors="replace").split())
            if "No space left on device" in words:
                raise NoSpace(f"the disk is full: {words[-WORDS:]}")
            raise EnvironmentUnavailable(f"{what} ended with code {done.returncode}: {words[-WORDS:]}")
        return done

    def _sweep(self, *, keep: Path) -> None:
        """Remove attempts at environments that are no longer wanted: one is installed at a time."""
        if keep.parent.is_dir():
            for folder in keep.parent.iterdir():
                if folder != keep:
                    self._ports.files.remove(folder)

    # --- records --------------------------------------------------------------------------------------------------

    def _place(self, environment: str) -> Path:
        return self._folder / _hex(environment)

    def _record(self, name: str) -> EnvironmentRecord | None:
        record = load(self._folder / f"{name}.json", EnvironmentRecord)
        return record if record is not None and _hex(record.environment) == name else None

    def _forget(self, environment: str) -> None:
        self._ports.files.remove(self._folder / f"{_hex(environment)}.json")

    def _write(self, environment: str, lock: str, packages: dict[str, str]) -> None:
        """Hash every file, and then say that the environment is whole."""
        found = _seen(self._place(environment))
        rows = [(path, *found[path][:-1], self._content(environment, path)) for path in sorted(found)]
        text = json.dumps(rows)
        self._ports.files.write(self._folder / f"{_hex(environment)}.files", text.encode())
        record = EnvironmentRecord(
            environment=environment,
            lock=lock,
            installed_at=self._ports.clock.now().replace(microsecond=0),
            size=sum(int(found[path][0]) for path in found),
            files=digest_text(text),
            packages=packages,
        )
        save(self._ports.files, self._folder / f"{_hex(environment)}.json", record)

    def _files(self, environment: str, record: EnvironmentRecord | None) -> dict[str, tuple[int | str, ...]]:
        """What every file was: size, times and inode, then the digest of its content."""
        if record is None:
            return {}
        text = (self._folder / f"{_hex(environment)}.files").read_bytes()
        if digest_bytes(text) != record.files:
            raise ValueError("the list of its files is damaged")
        return {path: tuple(rest) for path, *rest in json.loads(text)}

    def _content(self, environment: str, path: str) -> str:
        """What stands for a file: the digest of its bytes, or where a link leads."""
        file = self._place(environment) / path
        if file.is_symlink():
            return f"-> {file.readlink()}"
        return _digest(file)


# --- files --------------------------------------------------------------------------------------------------------


def _hex(environment: str) -> str:
    return environment.partition(":")[2]


def _name(environment: str) -> str:
    return f"environment {_hex(environment)[:12]}"


def _walk(folder: str) -> Iterator[os.DirEntry[str]]:
    """Everything below a folder that is not a folder. Links are not followed."""
    with os.scandir(folder) as entries:
        for entry in sorted(entries, key=lambda item: item.name):
            if entry.is_dir(follow_symlinks=False):
                yield from _walk(entry.path)
            else:
                yield entry


def _seen(place: Path) -> dict[str, tuple[int | str, ...]]:
    """By path: what stat says now, as `_files` has it, with the digest left open."""
    found: dict[str, tuple[int | str, ...]] = {}
    for entry in _walk(str(place)):
        status = entry.stat(follow_symlinks=False)
        path = entry.path[len(str(place)) + 1 :]
        found[path] = (status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino, status.st_mode, "")
    return found


def _stat(rows: Mapping[str, tuple[int | str, ...]], path: str) -> tuple[int | str, ...]:
    """A row without its digest."""
    return rows.get(path, ())[:-1]


def _digest(path: Path) -> str:
    """Of a regular file's bytes."""
    with path.open("rb") as file:
        status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode):
            raise ValueError(f"{path} is no regular file")
        if not status.st_size:
            return digest_bytes(b"")
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            return digest_bytes(content)


def _settle(tree: Path, place: Path) -> None:
    """Scripts name the interpreter that they were installed for: where it will be, not where it is being built."""
    before, after = os.fsencode(tree), os.fsencode(place)
    for path in (tree / "bin").iterdir():
        if path.is_symlink() or not path.is_file():
            continue
        with path.open("rb") as file:
            head = file.read(2**12)
        if before in head:
            path.write_bytes(path.read_bytes().replace(before, after))


def _packages(place: Path) -> dict[str, str]:
    """Versions by normalised name, from the folders' names (Recording installed projects, packaging.python.org)."""
    found: dict[str, str] = {}
    for info in sorted(place.glob("lib/python*/site-packages/*.dist-info")):
        name, _, version = info.name.removesuffix(".dist-info").partition("-")
        found[re.sub(r"[-_.]+", "-", name).lower()] = version
    return found


def _sync(folder: Path) -> None:
    """Everything below a folder to the disk. One call for its file system: fifty thousand files would each wait."""
    libc = ctypes.CDLL(None, use_errno=True)
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        if libc.syncfs(descriptor) != 0:
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number), str(folder))
    finally:
        os.close(descriptor)
