"""The high-water mark: the newest accepted snapshot, kept twice so that rollback protection survives one loss.

One copy is a file beside the journal, the other lies in the journal. Which of them is lost, and whether there ever was
one, is decided here from plain values; who reads the journal is not our concern.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Final, Generic, TypeVar

from desired_state import document
from schemas.base import Count, Digest, Frozen, Positive
from schemas.errors import StateCorrupt
from schemas.refusals import DocumentError, MarkLost

if TYPE_CHECKING:
    from pathlib import Path

    from schemas.ports import Files

T = TypeVar("T", bound=Frozen)

_LIMIT: Final = 2**14
"""Bytes of the file: a mark takes 130, a timestamp's with its 64 signers 4000."""


class Mark(Frozen):
    """Where the newest accepted snapshot stands, and what it is."""

    epoch: Count
    """Epoch of the snapshot."""
    sequence: Positive
    """Its sequence within the epoch."""
    digest: Digest
    """Its content digest: the same position with another digest is equivocation."""

    @property
    def position(self) -> tuple[int, int]:
        """(epoch, sequence): what marks are compared by."""
        return (self.epoch, self.sequence)


class CopyFile(Generic[T]):
    """A small value that is kept in the journal too: the copy that lies beside it.

    Args:
        path: a file of the state directory.
        files: durable writes.
        kind: what it holds.
    """

    def __init__(self, path: Path, files: Files, kind: type[T]) -> None:
        self._path = path
        self._files = files
        self._kind = kind

    def read(self) -> T | None:
        """The value; None when this copy is lost: no file, or not one that was written here.

        Raises:
            StateCorrupt: the file is there and cannot be read.
        """
        try:
            descriptor = os.open(self._path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
            with os.fdopen(descriptor, "rb") as file:
                content = file.read(_LIMIT + 1)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise StateCorrupt(f"{self._path}: {error.strerror}", hint="its owner must be able to read it") from error
        try:
            return document.load_json(content, self._kind, file=str(self._path), limit=_LIMIT)
        except DocumentError:
            return None  # a damaged copy is a lost copy; whoever compares the two decides what that means

    def write(self, value: T) -> None:
        """Replace this copy, durably."""
        self._files.write(self._path, value.to_json().encode() + b"\n", mode=0o600)

    def keep(self, value: T) -> None:
        """Make this copy say what the other one says, if it does not."""
        if self.read() != value:
            self.write(value)


class MarkFile(CopyFile[Mark]):
    """The copy of the mark that lies beside the journal.

    Args:
        path: the file `mark` of the state directory.
        files: durable writes.
    """

    def __init__(self, path: Path, files: Files) -> None:
        super().__init__(path, files, Mark)


def reconcile_marks(file_mark: Mark | None, journal_mark: Mark | None, *, accepted_before: bool) -> Mark | None:
    """The mark that counts: the higher of the two copies.

    Args:
        file_mark: the copy in the file.
        journal_mark: the copy in the journal.
        accepted_before: whether anything in the state directory says that this node accepted a snapshot once.

    Returns:
        The mark, None on a node that never accepted anything. Where it differs from a copy, the caller writes it there.

    Raises:
        MarkLost: both copies are gone on a node that had them.
        StateCorrupt: both copies name the same position with different digests.
    """
    copies = [mark for mark in (file_mark, journal_mark) if mark is not None]
    if not copies:
        if accepted_before:
            raise MarkLost(
                "both copies of the high-water mark are gone: an old snapshot could not be told from a new one",
                hint="compare the newest snapshot with another node, then run `reconcile init --accept-current`",
            )
        return None
    highest = max(copies, key=lambda mark: mark.position)
    if any(mark.position == highest.position and mark.digest != highest.digest for mark in copies):
        raise StateCorrupt(
            f"the two copies of the high-water mark disagree on sequence {highest.sequence}",
            hint="compare with another node, then run `reconcile init --accept-current`",
        )
    return highest
