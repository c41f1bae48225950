"""Where everything lies below `<state>/models/`, and how a file in there is opened without following a link.

    blobs/<2 hex>/<name>          content by digest, read-only; `blob_name` says what the name binds
    <name>/<version>@<12 hex>/    a model version: hard links to blobs, read-only; the folder that an engine mounts
    stamps/<hex>.json, .pieces    what was verified, and the files' stat when it was; makes a model visible
    partial/<hex>/                files being completed, and the journal of their verified pieces
    quarantine/<hex>/             a model whose bytes went bad, and the journal of its good pieces
    archive/                      reserved for cold storage
    trash/<token>/                on its way out

`<hex>` is the hex part of a manifest's digest.
"""

from __future__ import annotations

import errno
import os
import stat
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from schemas.digests import digest_bytes, short

if TYPE_CHECKING:
    from pathlib import Path

READ_ONLY: Final = 0o444
"""Mode of verified content: nobody, the agent included, opens it for writing by accident."""

_FOLDER_READ_ONLY: Final = 0o555
_FOLDER: Final = 0o755

_RESERVED: Final = frozenset({"archive", "blobs", "partial", "quarantine", "stamps", "trash"})


def hex_of(digest: str) -> str:
    """The hex digits of a `blake3:` digest."""
    return digest.partition(":")[2]


def blob_name(digest: str, hashes: bytes) -> str:
    """The name of a file's content in `blobs/`.

    It begins with the file's own BLAKE3, so that `b3sum` on a blob prints how its name begins, and goes on with 128
    bits of the digest of the piece hashes, because those are what this node proves as the bytes arrive (the chaining
    values of BLAKE3's tree are not exposed by its wheel, so a file's own digest cannot be had from its pieces'). A
    manifest in which the two contradict each other thus gets a blob of its own and never passes for another's.

    Args:
        digest: BLAKE3 of the whole file, as the manifest has it.
        hashes: the file's part of the side file, 32 bytes per piece.
    """
    return f"{hex_of(digest)}-{short(digest_bytes(hashes), 32)}"


def folder_name(name: str, version: str, digest: str) -> str:
    """Where a model version lies below the root. A model that is called like a folder of ours gets a trailing `_`."""
    safe = f"{name}_" if name in _RESERVED else name
    return f"{safe}/{version}@{short(digest)}"


@dataclass(frozen=True, slots=True)
class Layout:
    """Paths below the store's root."""

    root: Path

    def blob(self, name: str) -> Path:
        """Content by its `blob_name`."""
        return self.root / "blobs" / name[:2] / name

    def folder(self, name: str, version: str, digest: str) -> Path:
        """The folder of a model version."""
        return self.root / folder_name(name, version, digest)

    def folders(self) -> dict[str, str]:
        """Folders of model versions that are there, by the digits of the manifest's digest in their name.

        As text: a daemon asks for hundreds of them at every look, and a `Path` takes as long as the folder itself.

        Raises:
            OSError: the store cannot be read.
        """
        found: dict[str, str] = {}
        root = os.fspath(self.root)
        for name in _folders_in(root):
            if name in _RESERVED:
                continue
            for version in _folders_in(f"{root}/{name}"):
                _, at, digits = version.rpartition("@")
                if at:
                    found[digits] = f"{root}/{name}/{version}"
        return found

    def stamp(self, digest: str) -> Path:
        """The stamp of a stored model."""
        return self.root / f"stamps/{hex_of(digest)}.json"

    def pieces(self, digest: str) -> Path:
        """The piece hashes of a stored model."""
        return self.root / "stamps" / f"{hex_of(digest)}.pieces"

    def partial(self, digest: str) -> Path:
        """Files being completed, below `files/`."""
        return self.root / "partial" / hex_of(digest)

    def quarantine(self, digest: str) -> Path:
        """A model that went bad, below `files/`."""
        return self.root / "quarantine" / hex_of(digest)

    def trash(self, token: str) -> Path:
        """A place from which things are only ever deleted."""
        return self.root / "trash" / token


def _folders_in(base: str) -> list[str]:
    """Names of the folders in a folder, sorted; no link is followed, and nothing is there where there is no folder."""
    try:
        with os.scandir(base) as entries:
            return sorted(entry.name for entry in entries if entry.is_dir(follow_symlinks=False))
    except (FileNotFoundError, NotADirectoryError):
        return []


def open_regular(base: Path, relative: str, flags: int = os.O_RDONLY, *, mode: int = 0o600) -> int:
    """Open a regular file below a folder; no link is followed, neither the last name nor any on the way.

    Args:
        base: the folder; links in its own path are followed.
        relative: path below it, with `/`.
        flags: flags of `os.open`.
        mode: permissions if the file is created.

    Returns:
        A descriptor that the caller closes.

    Raises:
        OSError: not there, a link, not a regular file, or not permitted.
    """
    *folders, name = relative.split("/")
    folder = os.open(base, os.O_RDONLY | os.O_DIRECTORY)
    try:
        for part in folders:
            child = os.open(part, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=folder)
            os.close(folder)
            folder = child
        # O_NONBLOCK: opening a FIFO must not wait for somebody to write into it.
        file = os.open(name, flags | os.O_NOFOLLOW | os.O_NONBLOCK, mode, dir_fd=folder)
    finally:
        os.close(folder)
    if not stat.S_ISREG(os.fstat(file).st_mode):
        os.close(file)
        raise OSError(errno.EINVAL, "not a regular file", str(base / relative))
    return file


def tree(base: Path | str) -> dict[str, os.stat_result]:
    """Everything below a folder that is not itself a folder, by relative path; no link is followed.

    Raises:
        OSError: the folder cannot be read.
    """
    found: dict[str, os.stat_result] = {}
    waiting = [""]
    root = os.fspath(base)
    while waiting:
        prefix = waiting.pop()
        with os.scandir(f"{root}/{prefix}") as entries:
            for entry in entries:
                if entry.is_dir(follow_symlinks=False):
                    waiting.append(f"{prefix}{entry.name}/")
                else:
                    found[f"{prefix}{entry.name}"] = entry.stat(follow_symlinks=False)
    return found


def subfolders(base: Path) -> list[Path]:
    """A folder and every folder below it, parents first; no link is followed. Empty if there is none."""
    if not base.is_dir() or base.is_symlink():
        return []
    found = [base]
    for folder in found:  # grows while it is walked
        with os.scandir(folder) as entries:
            found.extend(folder / entry.name for entry in entries if entry.is_dir(follow_symlinks=False))
    return found


def freeze(base: Path) -> None:
    """Take the write permission from a folder and all below it: an engine finds exactly the manifest's files."""
    for folder in subfolders(base):
        folder.chmod(_FOLDER_READ_ONLY)


def give_modes_back(base: Path) -> None:
    """Take the write permission from every file below a folder to which somebody else has given another mode.

    Raises:
        OSError: refused.
    """
    for path, seen in tree(base).items():
        if stat.S_ISREG(seen.st_mode) and stat.S_IMODE(seen.st_mode) != READ_ONLY:
            descriptor = os.open(base / path, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC)
            try:
                # Through the descriptor: whoever puts a link in its place meanwhile changes nothing.
                os.chmod(f"/proc/self/fd/{descriptor}", READ_ONLY)  # noqa: PTH101 - a descriptor
            finally:
                os.close(descriptor)


def thaw(base: Path) -> None:
    """Undo `freeze`, so that the folder can be moved or removed."""
    for folder in subfolders(base):
        folder.chmod(_FOLDER)
