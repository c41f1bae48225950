"""The store of models."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from datetime import datetime
    from pathlib import Path

    from runtime.interfaces.telling import Progress
    from schemas.manifest import ManifestDocument
    from schemas.observation import ModelSeen
    from schemas.ports import Stop


@dataclass(frozen=True, slots=True)
class Model:
    """A model version that may be installed: its manifest as verified, and its pieces."""

    digest: str
    """Content digest of the manifest's bytes: the identity."""
    manifest: ManifestDocument
    pieces: bytes
    """The side file: 32 bytes per piece, in the order of the manifest's files."""


@dataclass(frozen=True, slots=True)
class Scrubbed:
    """What came of looking through one model for bit rot."""

    manifest: str
    model: str
    """`name:version`."""
    bad: str = ""
    """What is wrong, for people; empty where all of it is as it was."""


class ModelStore(Protocol):
    """The node's models. Safe against a crash at any point; bytes are proven before they are published (I2, I7)."""

    def list(self) -> Mapping[str, ModelSeen]:
        """Everything in the store, by manifest digest. Costs stats only, and changes nothing (I9).

        Raises:
            OSError: the store cannot be read: what is in it is unknown, not absent.
        """
        ...

    def folder(self, digest: str) -> Path:
        """The read-only folder of a stored model, for mounting.

        Raises:
            KeyError: not stored.
        """
        ...

    def missing(self, model: Model) -> int:
        """Bytes that `acquire` would have to fetch."""
        ...

    def room(self, model: Model) -> int:
        """Bytes of the disk that `acquire` would take, beyond what it has taken already."""
        ...

    def residue(self) -> int:
        """Bytes that nothing visible needs: what a crash left lying about.

        Raises:
            OSError: the store cannot be read.
        """
        ...

    def cold_free(self) -> int | None:
        """Free bytes of the cold disk; None where it is the disk of the store."""
        ...

    def unguarded(self) -> str:
        """Why the file system cannot have the kernel refuse changed bytes (fs-verity); empty where it can."""
        ...

    def acquire(self, model: Model, sources: Sequence[str], *, progress: Progress, stop: Stop) -> Sequence[str]:
        """Fetch what is missing, verify, publish. Resumes; fine if the model is stored and intact.

        Args:
            model: what to install.
            sources: base addresses; the node's own fallback list comes after them.
            progress: told per file.
            stop: when set, returns soon with `DownloadFailed`, keeping what is verified.

        Returns:
            What is to be held against sources, although others made up for it: each a sentence for people.

        Raises:
            DownloadFailed: no source had it all; what is verified is kept.
            ModelCorrupt: the sources answered with other bytes than the manifest's, or it contradicts itself.
            Incompatible: a file is of a kind that is refused (pickles, program code), or its header is not sound.
            SignatureRefused: it does not carry the signature of its maker that its manifest asks for.
            NoSpace: the disk cannot hold it; nothing was fetched.
        """
        ...

    def verify(self, model: Model, *, progress: Progress, stop: Stop) -> None:
        """Hash a stored model again, and stamp it intact. One in doubt is read past the page cache.

        Raises:
            KeyError: not stored.
            ModelCorrupt: the bytes differ; the model has been moved to quarantine and is no longer stored.
            DownloadFailed: stopped, or the disk failed, before the end; no verdict.
        """
        ...

    def archive(self, model: Model, *, progress: Progress, stop: Stop) -> None:
        """Move a stored model to cold storage; `acquire` brings it back. Fine if it is there already.

        Raises:
            KeyError: not stored, and not in cold storage.
            ModelCorrupt: its bytes differ; it has been moved to quarantine.
            NoSpace: the cold disk cannot hold it; nothing was written.
            DownloadFailed: stopped, or a disk failed; the stored model stays.
        """
        ...

    def scrub(self, *, rate: int, every: float, stop: Stop) -> Scrubbed | None:
        """Look for bit rot in the model that was verified longest ago, as far as there is time.

        Args:
            rate: bytes a second, at most.
            every: seconds after which a verified model is due again.
            stop: ends it soon; the place is remembered.

        Returns:
            What came of a model that was looked through, None where none is due or the time was up. A bad one is no
            longer intact.

        Raises:
            DownloadFailed: the disk failed.
        """
        ...

    def scrub_due(self, *, every: float) -> tuple[str, datetime] | None:
        """The model that `scrub` looks through next, and when; None where nothing is stored that it would look at.

        Args:
            every: as `scrub`.
        """
        ...

    def remove(self, digest: str) -> None:
        """Remove a model, also from cold storage, and the blobs that no other model needs. Fine if it is gone."""
        ...

    def sweep(self) -> None:
        """Remove what a crash left lying about."""
        ...
