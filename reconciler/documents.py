"""Documents by digest: from a repository, from the journal, or from a candidate that is only being looked at."""

from __future__ import annotations

from typing import TYPE_CHECKING

from desired_state.document import SNAPSHOT_LIMIT, load
from desired_state.load import load_locks, load_models, load_probes, parse_manifest, parse_probe
from reconciler.journal import StoredDocument
from runtime.interfaces import Model
from schemas.snapshot import SnapshotDocument

if TYPE_CHECKING:
    from collections.abc import Mapping

    from desired_state.files import DocumentFiles
    from reconciler.journal import Journal
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

    def lock(self, digest: str) -> bytes:
        """A native environment's lock."""
        return self.content(digest)


def bound_documents(files: DocumentFiles, document: SnapshotDocument) -> dict[str, StoredDocument]:
    """Every manifest, pieces file, probe and lock that a snapshot names: read, checked by its digest, and well-formed.

    Raises:
        MissingDocument, DigestMismatch, MalformedDocument, LimitExceeded: one of them is not what it must be.
    """
    found: dict[str, StoredDocument] = {}
    for model in load_models(files, document.spec.models).values():
        found[model.digest] = StoredDocument("manifest", model.content)
        found[model.manifest.spec.pieces.digest] = StoredDocument("pieces", model.pieces, parent=model.digest)
    for probe in load_probes(files, document.spec.models).values():
        found[probe.digest] = StoredDocument("probe", probe.content)
    found.update((digest, StoredDocument("lock", lock)) for digest, lock in load_locks(files, document).items())
    return found
