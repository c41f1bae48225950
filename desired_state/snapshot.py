"""Snapshots as values: what verification made, and what is only looked at."""

from __future__ import annotations

from dataclasses import InitVar, dataclass
from typing import TYPE_CHECKING, Final, Literal, TypeAlias

from schemas.digests import digest_bytes

if TYPE_CHECKING:
    from schemas.snapshot import SnapshotDocument

SEAL: Final = object()
"""Without it no `Snapshot` can be made. Only `desired_state.acceptance` may name it: a test looks for others."""


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A snapshot that was verified (I1). Only `desired_state.acceptance.accept_snapshot` makes one.

    Raises:
        TypeError: it was made by anything else.
    """

    document: SnapshotDocument
    content: bytes
    """The exact bytes that were signed."""
    digest: str
    signers: tuple[str, ...]
    """Checksummed addresses of the current signers, sorted. Empty when it equals the mark: then it was accepted before,
    and its signatures were counted then."""
    trust_version: int
    """Version of the trust document by which it was accepted."""
    gap: bool
    """Whether snapshots between the mark and this one were not seen, so that `previous` could not be checked."""
    seal: InitVar[object]
    verified: Literal[True] = True

    def __post_init__(self, seal: object) -> None:
        if seal is not SEAL:
            raise TypeError("a Snapshot is made by verification only; what is not verified is a DraftSnapshot")

    @property
    def position(self) -> tuple[int, int]:
        """(epoch, sequence): how snapshots are ordered."""
        return (self.document.metadata.epoch, self.document.metadata.sequence)


@dataclass(frozen=True, slots=True)
class DraftSnapshot:
    """A snapshot that nobody vouched for: it can be planned and shown, never applied."""

    document: SnapshotDocument
    content: bytes
    digest: str
    verified: Literal[False] = False


AnySnapshot: TypeAlias = Snapshot | DraftSnapshot


def draft(document: SnapshotDocument, content: bytes) -> DraftSnapshot:
    """A draft of a document, read from `content`."""
    return DraftSnapshot(document, content, digest_bytes(content))
