"""Documents by digest: from a repository, from the journal, or from a candidate that is only being looked at."""

from __future__ import annotations

from typing import TYPE_CHECKING

from desired_state.document import SNAPSHOT_LIMIT, load
from desired_state.load import load_locks, load_models, parse_manifest, parse_probe, read_probes
from reconciler.journal import StoredDocument
from runtime.interfaces import Model
from schemas.refusals import MissingDocument
from schemas.snapshot import SnapshotDocument

if TYPE_CHECKING:
    from collections.abc import Mapping

    from desired_state.files import DocumentFiles
    from reconciler.journal import Journal
    from schemas.manifest import ManifestDocument
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
            # Once for each snapshot: a daemon must not remember every model that it ever saw.
            self._models = {known: model for known, model in self._models.items() if self._journal.kind(known)}
        return self._snapshots[digest]

    def model(self, digest: str) -> Model:
        """A model's manifest with its pieces."""
        if digest not in self._models:
            manifest = parse_manifest(self.content(digest), file="manifest")
            self._models[digest] = Model(digest, manifest, self.content(manifest.spec.pieces.digest))
        return self._models[digest]

    def kept_manifest(self, digest: str) -> ManifestDocument | None:
        """A manifest that was well-formed when it was kept, None where there is none of that digest."""
        try:
            return self.model(digest).manifest if self._journal.kind(digest) == "manifest" else None
        except MissingDocument:
            return None  # its pieces are gone

    def is_probe(self, digest: str) -> bool:
        """Whether a probe of that digest is kept; it was well-formed then."""
        return self._journal.kind(digest) == "probe"

    def probe(self, digest: str) -> ProbeDocument:
        """A probe."""
        return parse_probe(self.content(digest), file="probe")

    def lock(self, digest: str) -> bytes:
        """A native environment's lock."""
        return self.content(digest)


def bound_documents(
    files: DocumentFiles, document: SnapshotDocument, kept: JournalDocuments | None = None
) -> dict[str, StoredDocument]:
    """Every manifest, pieces file, probe and lock that a snapshot names: read, checked by its digest, and well-formed.

    Args:
        files: the state of the repository that holds the snapshot.
        document: the snapshot.
        kept: what this node keeps already. Most of what a new snapshot binds was bound by the one before, and parsing
            a probe's thousands of numbers takes longer than everything else that a commit costs.

    Raises:
        MissingDocument, DigestMismatch, MalformedDocument, LimitExceeded: one of them is not what it must be.
    """
    found: dict[str, StoredDocument] = {}
    specs = document.spec.models
    models = load_models(files, specs, kept=kept.kept_manifest) if kept is not None else load_models(files, specs)
    for model in models.values():
        found[model.digest] = StoredDocument("manifest", model.content)
        found[model.manifest.spec.pieces.digest] = StoredDocument("pieces", model.pieces, parent=model.digest)
    for digest, (path, content) in read_probes(files, specs).items():
        if kept is None or not kept.is_probe(digest):
            parse_probe(content, file=path)
        found[digest] = StoredDocument("probe", content)
    found.update((digest, StoredDocument("lock", lock)) for digest, lock in load_locks(files, document).items())
    return found
