"""Documents by digest: from the journal, or from a candidate that is only being looked at."""

from __future__ import annotations

from typing import TYPE_CHECKING

from desired_state.document import SNAPSHOT_LIMIT, load
from desired_state.load import parse_manifest, parse_probe
from runtime.interfaces import Model
from schemas.snapshot import SnapshotDocument

if TYPE_CHECKING:
    from collections.abc import Mapping

    from reconciler.journal import Journal, StoredDocument
    from schemas.probe import ProbeDocument


class JournalDocuments:
    """What accepted snapshots bind. `overlay` adds what a candidate would bring, without writing it anywhere (I9).

    Parsed documents are kept in memory: their digest is their identity, so they cannot go stale.
    """

    def __init__(self, journal: Journal, overlay: Mapping[str, StoredDocument] | None = None) -> None:
        self._journal = journal
        self._overlay = overlay or {}
        self._models: dict[str, Model] = {}
        self._snapshots: dict[str, SnapshotDocument] = {}

    def content(self, digest: str) -> bytes:
        """The exact bytes of a document.

        Raises:
            MissingDocument: it is not kept.
        """
        stored = self._overlay.get(digest)
        return stored.content if stored is not None else self._journal.document(digest)

    def snapshot(self, digest: str) -> SnapshotDocument:
        """A snapshot that was verified when it was accepted."""
        if digest not in self._snapshots:
            self._snapshots = {
                digest: load(self.content(digest), SnapshotDocument, file="snapshot", limit=SNAPSHOT_LIMIT)
            }
        return self._snapshots[digest]

    def model(self, digest: str) -> Model:
        """A model's manifest with its pieces."""
        if digest not in self._models:
            manifest = parse_manifest(self.content(digest), file="manifest")
            self._models[digest] = Model(digest, manifest, self.content(manifest.spec.pieces.digest))
        return self._models[digest]

    def probe(self, digest: str) -> ProbeDocument:
        """A probe."""
        return parse_probe(self.content(digest), file="probe")
