"""Small durable records of the store: sealed with their own digest, so that a damaged one is never believed."""

from __future__ import annotations

import os
import stat
from typing import TYPE_CHECKING, TypeVar

from pydantic import ValidationError

from runtime.models.layout import open_regular
from schemas.base import Frozen
from schemas.digests import digest_text

if TYPE_CHECKING:
    from pathlib import Path

    from schemas.ports import Files

_MAX_RECORD = 2**26
"""Bytes of the largest record that is read: 10,000 files at about 300 bytes each, twenty times over."""

F = TypeVar("F", bound=Frozen)


class Fingerprint(Frozen):
    """What `stat` says of a file; while it stays the same, the bytes are taken to be the same (I2)."""

    size: int
    mtime_ns: int
    ctime_ns: int
    inode: int

    @classmethod
    def of(cls, seen: os.stat_result) -> Fingerprint | None:
        """The fingerprint of a regular file, None for anything else."""
        if not stat.S_ISREG(seen.st_mode):
            return None
        return cls(size=seen.st_size, mtime_ns=seen.st_mtime_ns, ctime_ns=seen.st_ctime_ns, inode=seen.st_ino)

    def matches(self, seen: os.stat_result) -> bool:
        """Whether a file has this fingerprint now: as `of(seen) == self`, in a fraction of its time."""
        return stat.S_ISREG(seen.st_mode) and (self.size, self.mtime_ns, self.ctime_ns, self.inode) == (
            seen.st_size,
            seen.st_mtime_ns,
            seen.st_ctime_ns,
            seen.st_ino,
        )

    def same_but_ctime(self, other: Fingerprint) -> bool:
        """Whether the two differ at most in what adding or removing a name of the file changes."""
        return (self.size, self.mtime_ns, self.inode) == (other.size, other.mtime_ns, other.inode)


def save(files: Files, path: Path, record: Frozen) -> None:
    """Write a record durably and atomically.

    Raises:
        OSError: the disk refused.
    """
    text = record.to_json()
    files.write(path, f"{digest_text(text)}\n{text}".encode())


def load(path: Path, kind: type[F]) -> F | None:
    """Read a record; None if there is none, or if it is not what was written.

    Raises:
        OSError: it is there and cannot be read.
    """
    try:
        text = read_small(path, _MAX_RECORD).decode()
    except (FileNotFoundError, NotADirectoryError, UnicodeDecodeError):
        return None
    seal, _, body = text.partition("\n")
    if digest_text(body) != seal:
        return None
    try:
        return kind.model_validate_json(body)
    except ValidationError:
        return None


def read_small(path: Path, limit: int) -> bytes:
    """At most `limit` bytes of a regular file.

    Raises:
        OSError: not there, or not a regular file.
    """
    file = open_regular(path.parent, path.name)
    try:
        with os.fdopen(file, "rb", closefd=False) as stream:
            # No more than there is: a buffer of the limit's size would be made for every record.
            return stream.read(min(limit, os.fstat(file).st_size))
    finally:
        os.close(file)
