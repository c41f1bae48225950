"""Stamps: what this node verified, and the stat of every file when it had done so. A stamp makes a model visible.

A hard link added to or taken from an inode changes its ctime, for every model that shares the inode. `keeping` wraps
exactly our own such changes: a stamp that spoke for a file right before follows the ctime right after, provided that
nothing else of the file's stat moved. A stamp that did not speak for the file before never does so after; a crash in
between leaves stamps behind that no longer speak, and costs one hashing, never a wrong belief (I2).
"""

from __future__ import annotations

import os
import stat
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import StringConstraints

from runtime.models.layout import READ_ONLY, hex_of, tree
from runtime.models.records import Fingerprint, load, read_small, save
from schemas.base import Digest, Frozen, Name, RelativePath, Text, Time, Version
from schemas.digests import short
from schemas.manifest import HASH_SIZE, PIECE_SIZE
from schemas.observation import Difference

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from runtime.models.layout import Layout
    from schemas.ports import Files

_MAX_PIECES = 2**26
"""Bytes of the largest pieces file that is read back: 2 million pieces, a model of 32 TiB."""

BlobName = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}-[0-9a-f]{32}$")]


class StampFile(Frozen):
    """One verified file."""

    path: RelativePath
    blob: BlobName
    seen: Fingerprint
    """Its stat when its bytes had been verified."""


class Stamp(Frozen):
    """One verified model version."""

    format_version: Literal["1"] = "1"
    manifest: Digest
    name: Name
    version: Version
    verified_at: Time
    files: tuple[StampFile, ...]
    """In the manifest's order."""
    guarded: bool = False
    """Whether the kernel refuses changed bytes of every file (fs-verity)."""
    void: Text = ""
    """Why this stamp no longer speaks for its files, although their stat may be the same; empty while it does."""

    @property
    def size(self) -> int:
        """Bytes of all files together."""
        return sum(file.seen.size for file in self.files)


class Stamps:
    """The stamps of a store."""

    def __init__(self, layout: Layout, files: Files) -> None:
        self._layout = layout
        self._stamps = f"{layout.root}/stamps/"
        self._files = files
        self._read: dict[str, tuple[tuple[int, ...], Stamp]] = {}

    def folder(self, stamp: Stamp) -> Path:
        """The folder that a stamp is about."""
        return self._layout.folder(stamp.name, stamp.version, stamp.manifest)

    def load(self, digest: str) -> Stamp | None:
        """The stamp of a manifest, None if there is none that can be believed to be ours.

        Raises:
            OSError: it is there and cannot be read.
        """
        # A daemon reads a hundred stamps at every look, of which none has changed: a stat says so in a tenth of the
        # time. It is taken before the reading, so that a stamp that is replaced meanwhile is read again.
        seen = _identity(f"{self._stamps}{hex_of(digest)}.json")
        known = self._read.get(digest)
        if known is not None and known[0] == seen:
            return known[1]
        stamp = load(self._layout.stamp(digest), Stamp)
        if stamp is None or stamp.manifest != digest:
            self._read.pop(digest, None)
            return None
        self._read[digest] = (seen, stamp)
        return stamp

    def visible(self) -> dict[str, str]:
        """The folder of every model that has a stamp, by manifest digest, sorted; as text, as `Layout.folders`.

        Raises:
            OSError: the store cannot be read.
        """
        digests = self.named()
        if not digests:
            return {}
        folders = self._layout.folders()
        return {digest: folder for digest in digests if (folder := folders.get(short(digest))) is not None}

    def named(self) -> list[str]:
        """Manifest digests that have a file in the folder of stamps, sorted; whether they are visible, folders say.

        Raises:
            OSError: the store cannot be read.
        """
        try:
            names = sorted(os.listdir(self._layout.root / "stamps"))  # noqa: PTH208 - two for each model
        except FileNotFoundError:
            return []
        return [f"blake3:{name.removesuffix('.json')}" for name in names if name.endswith(".json")]

    def stored(self) -> tuple[Stamp, ...]:
        """The readable stamps of visible models, by manifest digest.

        Raises:
            OSError: the store cannot be read.
        """
        stamps = (self.load(digest) for digest in self.visible())
        return tuple(stamp for stamp in stamps if stamp is not None)

    def pieces(self, stamp: Stamp) -> Iterator[tuple[StampFile, bytes]]:
        """A stored model's files with their piece hashes; nothing where the side file was lost."""
        with suppress(OSError):
            data = read_small(self._layout.pieces(stamp.manifest), _MAX_PIECES)
            start = 0
            for file in stamp.files:
                length = -(-file.seen.size // PIECE_SIZE) * HASH_SIZE
                yield file, data[start : start + length]
                start += length

    def save(self, stamp: Stamp, pieces: bytes | None = None) -> None:
        """Write a stamp, and before it the piece hashes where they are given. Durable.

        Raises:
            OSError: the disk refused.
        """
        self._files.make_folder(self._layout.root / "stamps")
        if pieces is not None:
            self._files.write(self._layout.pieces(stamp.manifest), pieces)
        save(self._files, self._layout.stamp(stamp.manifest), stamp)

    def drop(self, digest: str) -> None:
        """Remove a stamp: the model is no longer visible.

        Raises:
            OSError: the disk refused.
        """
        self._files.remove(self._layout.stamp(digest))
        self._files.remove(self._layout.pieces(digest))

    def intact(self, stamp: Stamp, found: Mapping[str, os.stat_result] | None = None) -> bool:
        """Whether the folder holds exactly the verified files, none of which changed since. Costs only stats.

        Args:
            stamp: what was verified.
            found: everything below its folder, where somebody has just looked (`layout.tree`).
        """
        if stamp.void:
            return False
        if found is None:
            try:
                found = tree(self.folder(stamp))
            except OSError:
                return False
        if len(found) != len(stamp.files):
            return False
        for file in stamp.files:  # no generator: a daemon comes here for each model at each look
            seen = found.get(file.path)
            if seen is None or not file.seen.matches(seen):
                return False
        return True

    def changes(self, stamp: Stamp) -> tuple[Difference, ...]:
        """What is different about the files of a model that is not intact, by file."""
        try:
            found = tree(self.folder(stamp))
        except OSError:
            return (Difference("files", "readable", "not readable"),)
        known = {file.path for file in stamp.files}
        listed = [one for file in stamp.files for one in _changes(file, found.get(file.path))]
        return (*listed, *(Difference("files", "not there", "new", path) for path in sorted(found.keys() - known)))

    def void(self, stamp: Stamp, cause: str) -> None:
        """Take back a stamp: its model has to be hashed before it is used.

        Raises:
            OSError: the disk refused.
        """
        if not stamp.void:
            self.save(stamp.model_copy(update={"void": cause}))

    def vouched(self) -> dict[str, frozenset[Fingerprint]]:
        """For every blob, with which stat stored models prove that its file holds its content.

        Raises:
            OSError: the store cannot be read.
        """
        known: dict[str, frozenset[Fingerprint]] = {}
        for stamp in self.stored():
            if not stamp.void:
                for file in stamp.files:
                    known[file.blob] = known.get(file.blob, frozenset()) | {file.seen}
        return known

    @contextmanager
    def keeping(self, inodes: frozenset[int]) -> Iterator[None]:
        """Around a change of ours that adds or removes names of these inodes: stamps that spoke for them still do.

        Raises:
            OSError: the disk refused; stamps left behind do not speak for the changed files.
        """
        speaking = [
            (stamp, kept) for stamp in self.stored() if not stamp.void and (kept := self._unchanged(stamp, inodes))
        ]
        try:
            yield
        except BaseException:
            with suppress(OSError):  # the first failure is the one to tell about
                self._follow(speaking)
            raise
        self._follow(speaking)

    def _unchanged(self, stamp: Stamp, inodes: frozenset[int]) -> frozenset[str]:
        """Paths of a stamp's files among `inodes` that are now exactly as they were when verified."""
        folder = self.folder(stamp)
        return frozenset(
            file.path
            for file in stamp.files
            if file.seen.inode in inodes and _fingerprint(folder / file.path) == file.seen
        )

    def _follow(self, speaking: list[tuple[Stamp, frozenset[str]]]) -> None:
        for before, kept in speaking:
            stamp = self.load(before.manifest)
            if stamp is None or stamp.void:
                continue  # removed or taken back meanwhile, by the change itself
            folder = self.folder(stamp)
            files = tuple(_followed(folder, file) if file.path in kept else file for file in stamp.files)
            if files != stamp.files:
                self.save(stamp.model_copy(update={"files": files}))


def _changes(file: StampFile, seen: os.stat_result | None) -> list[Difference]:
    if seen is None:
        return [Difference("files", "there", "gone", file.path)]
    if file.seen.matches(seen):
        return []
    found = []
    if seen.st_size != file.seen.size:
        found.append(Difference("size", f"{file.seen.size} bytes", f"{seen.st_size} bytes", file.path))
    if seen.st_ino != file.seen.inode:
        found.append(Difference("inode", str(file.seen.inode), str(seen.st_ino), file.path))
    mode = stat.S_IMODE(seen.st_mode)
    if mode != READ_ONLY:
        found.append(Difference("mode", f"{READ_ONLY:04o}", f"{mode:04o}", file.path))
    if seen.st_mtime_ns != file.seen.mtime_ns:
        found.append(Difference("mtime", _moment(file.seen.mtime_ns), _moment(seen.st_mtime_ns), file.path))
    # Whatever it was, the kernel counts it as a change of the file.
    return found or [Difference("ctime", _moment(file.seen.ctime_ns), _moment(seen.st_ctime_ns), file.path)]


def _moment(nanoseconds: int) -> str:
    return datetime.fromtimestamp(nanoseconds / 1e9, UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def _identity(path: str) -> tuple[int, ...]:
    """What changes whenever a file does, or is replaced; nothing, which is no stamp's, where there is none."""
    try:
        seen = os.lstat(path)
    except OSError:
        return ()
    return (seen.st_ino, seen.st_size, seen.st_mtime_ns, seen.st_ctime_ns)


def _followed(folder: Path, file: StampFile) -> StampFile:
    now = _fingerprint(folder / file.path)
    if now is None or not now.same_but_ctime(file.seen):
        return file
    return file.model_copy(update={"seen": now})


def _fingerprint(path: Path) -> Fingerprint | None:
    try:
        return Fingerprint.of(path.lstat())
    except OSError:
        return None
