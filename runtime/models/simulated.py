"""A model store in memory, for faults and speed. It passes the same contract suite as the real one."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from runtime.interfaces import Scrubbed
from schemas.errors import DownloadFailed, ModelCorrupt, NoSpace
from schemas.observation import ArchivedModel, Difference, PartialModel, StoredModel

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from datetime import datetime

    from runtime.interfaces import Model, Progress
    from schemas.observation import ModelSeen
    from schemas.ports import Stop


@dataclass(slots=True)
class SimulatedShelf:
    """What a disk would hold, and the faults to come. Outlives any store object."""

    stored: dict[str, StoredModel] = field(default_factory=dict)
    contents: dict[str, Mapping[str, int]] = field(default_factory=dict)
    """Bytes of every file of a stored model, by the file's digest: shared between models, fetched once."""
    partial: dict[str, int] = field(default_factory=dict)
    quarantined: list[str] = field(default_factory=list)
    spoilt: set[str] = field(default_factory=set)
    """Those of them whose repair is still to come."""
    corrupt_sources: set[str] = field(default_factory=set)
    """Manifests of which every source sends other bytes."""
    corrupt_addresses: set[str] = field(default_factory=set)
    """Sources that send other bytes than any manifest's."""
    dead_addresses: set[str] = field(default_factory=set)
    """Sources that do not answer."""
    corrupt_disk: set[str] = field(default_factory=set)
    """Manifests whose stored bytes have changed."""
    unreachable: bool = False
    """Whether sources are out of reach; half of what is missing arrives before they fail."""
    archived: dict[str, Mapping[str, int]] = field(default_factory=dict)
    """Bytes of every file of a model in cold storage, by the file's digest; nothing is shared there."""
    rotten: set[str] = field(default_factory=set)
    """Manifests whose stored bytes went bad without a trace in their stat: only a scrub finds them."""
    capacity: int = 2**50
    """Bytes that fit."""
    fetched: int = 0
    """Bytes that were fetched in all."""

    @property
    def used(self) -> int:
        """Bytes on the shelf; what stored models share counts once."""
        hot = {digest: size for files in self.contents.values() for digest, size in files.items()}
        return sum(hot.values()) + sum(sum(files.values()) for files in self.archived.values())

    def touch(self, digest: str) -> None:
        """Change a stored model's files from outside, as its stat would show."""
        before = self.stored[digest]
        changed = (Difference("mode", "0444", "0644", "model.gguf"),)
        self.stored[digest] = StoredModel(digest, intact=False, size=before.size, changed=changed)

    def taint(self, digest: str) -> None:
        """Change a stored model's bytes from outside."""
        self.touch(digest)
        self.corrupt_disk.add(digest)


class SimulatedModelStore:
    """A store over a shelf."""

    def __init__(self, shelf: SimulatedShelf) -> None:
        self._shelf = shelf

    def list(self) -> Mapping[str, ModelSeen]:
        """Everything on the shelf."""
        shelf = self._shelf
        found: dict[str, ModelSeen] = {
            digest: PartialModel(digest, 0, quarantined=True) for digest in shelf.quarantined if digest in shelf.spoilt
        }
        for digest, done in shelf.partial.items():
            found[digest] = PartialModel(digest, done, quarantined=digest in found)
        for digest, files in shelf.archived.items():
            found[digest] = ArchivedModel(digest, sum(files.values()))
        return dict(sorted((found | shelf.stored).items()))

    def folder(self, digest: str) -> Path:
        """A path that does not exist."""
        if digest not in self._shelf.stored:
            raise KeyError(digest)
        return Path("/simulated") / digest.partition(":")[2][:12]

    def missing(self, model: Model) -> int:
        """Bytes that are not on the shelf."""
        if model.digest in self._shelf.stored or model.digest in self._shelf.archived:
            return 0
        return self._lacking(model) - self._shelf.partial.get(model.digest, 0)

    def room(self, model: Model) -> int:
        """What is fetched is what takes room here."""
        return self._lacking(model) if model.digest not in self._shelf.stored else 0

    def residue(self) -> int:
        """Memory has no crashes."""
        return 0

    def cold_free(self) -> int | None:
        """Cold storage is on the shelf."""
        return None

    def unguarded(self) -> str:
        """Memory is no file system."""
        return "simulated"

    def acquire(self, model: Model, sources: Sequence[str], *, progress: Progress, stop: Stop) -> Sequence[str]:
        """Fetch what is missing, or fail as the shelf says."""
        shelf = self._shelf
        stored = shelf.stored.get(model.digest)
        if stored is not None and stored.intact:
            return ()
        missing = self.missing(model)
        if stored is None and shelf.used + self._lacking(model) > shelf.capacity:
            raise NoSpace(f"{self._lacking(model)} bytes do not fit")
        if missing or stop.is_set():
            self._fetch(model, missing, sources, stop)
        shelf.partial.pop(model.digest, None)
        shelf.spoilt.discard(model.digest)
        shelf.archived.pop(model.digest, None)
        shelf.corrupt_disk.discard(model.digest)
        shelf.stored[model.digest] = StoredModel(model.digest, intact=True, size=model.manifest.size)
        shelf.contents[model.digest] = _files(model)
        progress(model.manifest.metadata.name, model.manifest.size, model.manifest.size)
        return ()

    def _fetch(self, model: Model, missing: int, sources: Sequence[str], stop: Stop) -> None:
        shelf = self._shelf
        alive = [source for source in sources if source not in shelf.dead_addresses]
        honest = [source for source in alive if source not in shelf.corrupt_addresses]
        if stop.is_set() or shelf.unreachable or not alive:
            arrived = missing // 2 if sources and not stop.is_set() and shelf.unreachable else 0
            shelf.fetched += arrived
            shelf.partial[model.digest] = shelf.partial.get(model.digest, 0) + arrived
            raise DownloadFailed("no source answers")
        shelf.fetched += missing
        if model.digest in shelf.corrupt_sources or not honest:
            shelf.partial.pop(model.digest, None)
            if len(alive) < len(sources):
                raise DownloadFailed("one source sent other bytes than the manifest's, one does not answer")
            raise ModelCorrupt("every source sent other bytes than the manifest's")

    def verify(self, model: Model, *, progress: Progress, stop: Stop) -> None:
        """Compare with the manifest, or quarantine."""
        shelf = self._shelf
        if model.digest not in shelf.stored:
            raise KeyError(model.digest)
        if stop.is_set():
            raise DownloadFailed("stopped")
        if model.digest in shelf.corrupt_disk:
            for other in sorted(shelf.stored):
                if _share(shelf.contents.get(other, {}), shelf.contents.get(model.digest, {})):
                    shelf.touch(other)
            del shelf.stored[model.digest]
            shelf.contents.pop(model.digest, None)
            shelf.quarantined.append(model.digest)
            shelf.spoilt.add(model.digest)
            raise ModelCorrupt("the stored bytes are not the manifest's")
        shelf.stored[model.digest] = StoredModel(model.digest, intact=True, size=model.manifest.size)
        progress(model.manifest.metadata.name, model.manifest.size, model.manifest.size)

    def archive(self, model: Model, *, progress: Progress, stop: Stop) -> None:
        """Put it aside."""
        shelf = self._shelf
        if model.digest not in shelf.stored:
            if model.digest in shelf.archived:
                return
            raise KeyError(model.digest)
        if stop.is_set():
            raise DownloadFailed("stopped")
        if model.digest in shelf.corrupt_disk:
            self.verify(model, progress=progress, stop=stop)
        if shelf.used + model.manifest.size > shelf.capacity:
            raise NoSpace(f"{model.manifest.size} bytes do not fit")
        shelf.archived[model.digest] = shelf.contents.pop(model.digest)
        del shelf.stored[model.digest]
        progress(model.manifest.metadata.name, model.manifest.size, model.manifest.size)

    def scrub(self, *, rate: int, every: float, stop: Stop) -> Scrubbed | None:
        """Look at the first intact model whose bytes have changed; with nothing changed, nothing is due."""
        if stop.is_set() or not rate or not every:
            return None
        for digest, seen in sorted(self._shelf.stored.items()):
            if digest in self._shelf.rotten and seen.intact:
                self._shelf.rotten.discard(digest)
                self._shelf.corrupt_disk.add(digest)
                cause = "the scrub found bad bytes"
                self._shelf.stored[digest] = StoredModel(digest, intact=False, size=seen.size, doubt=cause)
                return Scrubbed(digest, "m:v1", cause)
        return None

    def scrub_due(self, *, every: float) -> tuple[str, datetime] | None:  # noqa: ARG002 - it knows no time
        """At no known time."""
        return None

    def sweep(self) -> None:
        """Nothing lies about."""

    def remove(self, digest: str) -> None:
        """Forget it."""
        self._shelf.archived.pop(digest, None)
        self._shelf.spoilt.discard(digest)
        self._shelf.stored.pop(digest, None)
        self._shelf.contents.pop(digest, None)
        self._shelf.partial.pop(digest, None)
        self._shelf.corrupt_disk.discard(digest)

    def _lacking(self, model: Model) -> int:
        """Bytes of a model's files that no stored model has."""
        here = {file for files in self._shelf.contents.values() for file in files}
        return sum(size for file, size in _files(model).items() if file not in here)


def _files(model: Model) -> dict[str, int]:
    return {file.blake3: file.size for file in model.manifest.spec.files}


def _share(one: Mapping[str, int], other: Mapping[str, int]) -> bool:
    return not one.keys().isdisjoint(other.keys())
