"""Taking a bundle in: judged like a repository, its models and images put where a pass would put them, then shown.

    judge      the documents, fetched out of the bundle into a repository of their own, are asked like any other
    models     acquired into the store, with the bundle as their one source
    images     loaded into this node's container engines, and found there by their references
    publish    the documents become one of the node's repositories: one ref moves, and only then does a pass see it

Every step may be repeated, and a crash between two leaves a node that knows nothing of the bundle yet, and has less
to do the next time (I7).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from reconciler.documents import JournalDocuments
from reconciler.inquiry import Question, git_source, inquire
from reconciler.memory import RESTART_WINDOW, Change, Note, model_state
from reconciler.source import current_mark, current_timestamp, current_trust, imported_repository
from runtime.models.capacity import OVERHEAD, admit, disk_errors
from runtime.models.spans import SpanSource
from runtime.oci import MANIFEST_LIMIT, load_archive, resolve
from schemas.base import Frozen
from schemas.bundle import BRANCH
from schemas.errors import BackendUnavailable, ImageUnavailable, ReconcileError
from schemas.node import Repository
from schemas.observation import Present, StoredModel, Unknown
from schemas.refusals import StaleSource, WrongNetwork

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from datetime import datetime
    from pathlib import Path

    from desired_state.snapshot import Snapshot
    from reconciler.bundles.container import Bundle
    from reconciler.inquiry import Answer
    from reconciler.journal import Journal
    from reconciler.state_dir import StateDir
    from runtime.archive import Span
    from runtime.backends.loaded_images import LoadedImages
    from runtime.interfaces import Model, ModelStore, Progress
    from runtime.models.sources import Source
    from runtime.oci import Image, Part
    from schemas.node import NodeConfig
    from schemas.observation import Observation
    from schemas.ports import Ports
    from schemas.snapshot import ModelSpec


class ImageEngine(Protocol):
    """A backend that images can be loaded into."""

    @property
    def name(self) -> str:
        """`docker` or `podman`."""
        ...

    def image(self, ref: str) -> Observation[str]:
        """The id of an image that is here under exactly this digest."""
        ...

    def load(self, archive: Iterator[bytes]) -> None:
        """Load images from an archive; see `runtime.oci.load_archive`."""
        ...


@dataclass(frozen=True, slots=True)
class Site:
    """The node that a bundle is imported into, as far as importing needs it."""

    config: NodeConfig
    state: StateDir
    journal: Journal
    ports: Ports
    agent: str
    platform: str
    """`linux/amd64`: whose images are loaded."""
    engines: Sequence[ImageEngine]
    loaded: LoadedImages
    open_store: Callable[[Callable[[str], Sequence[Source]]], ModelStore]
    """The model store, with sources by manifest digest."""
    progress: Progress


class Imported(Frozen):
    """What a bundle came to on this node."""

    snapshot: str
    """The snapshot's digest."""
    epoch: int
    sequence: int
    in_force: bool
    """Whether the node follows this very snapshot already."""
    models: tuple[str, ...]
    """Models that the bundle has whole."""
    images: tuple[str, ...]
    """Images that the bundle has for this node."""
    absent: tuple[str, ...]
    """Models of the snapshot that are neither in the bundle nor on this node."""


class Import:
    """One bundle on its way in. Whoever runs it holds the state directory."""

    def __init__(self, site: Site, bundle: Bundle) -> None:
        self._site = site
        self._bundle = bundle
        self._git = git_source(site.config, site.ports)

    def check(self, scratch: Path) -> Imported:
        """Judge a bundle without taking anything in (I9).

        Args:
            scratch: an empty folder that the caller removes.

        Raises:
            NotTrusted: this node would not accept what is in it; the reason is that of a repository with the same.
        """
        _, snapshot, answer = self._judge(scratch)
        models = self._models(snapshot, answer)
        return self._summary(snapshot, models, self._images(snapshot))

    def run(self) -> Imported:
        """Take a bundle in. Fine if it was taken in before, in part or whole.

        Raises:
            NotTrusted: as `check`.
            ModelCorrupt, DownloadFailed: model bytes are not those of their manifests, or cannot be read.
            ImageUnavailable, BackendUnavailable: images are not what their references say, or cannot be loaded.
            NoSpace: the disk cannot hold the models; nothing was written.
        """
        files, work = self._site.ports.files, self._site.state.imports / "work"
        with disk_errors(f"importing {self._bundle.path}"):
            files.remove(work)
            files.make_folder(work, mode=0o700)
            try:
                staging, snapshot, answer = self._judge(work)
                models = self._models(snapshot, answer)
                images = self._images(snapshot)
                self._take_models(models)
                self._take_images(images)
                summary = self._summary(snapshot, models, images)
                self._publish(staging, summary)
            finally:
                files.remove(work)
        return summary

    # --- judging --------------------------------------------------------------------------------------------------

    def _judge(self, scratch: Path) -> tuple[Path, Snapshot, Answer]:
        """The repository of the bundle's documents, and what this node makes of it."""
        site, bundle = self._site, self._bundle
        config = site.config
        if bundle.index.network != config.network:
            raise WrongNetwork(
                f"{bundle.path} is for the network {bundle.index.network!r}, this node is of {config.network!r}"
            )
        documents = scratch / "documents.bundle"
        site.ports.files.write(documents, bundle.read(bundle.documents, config.max_repository))
        staging = scratch / "staging.git"
        self._git.fetch(str(documents), BRANCH, staging, ref=f"refs/heads/{config.branch}")
        known = imported_repository(config, site.state)
        try:
            answer = inquire(
                Question(
                    # Beside what was imported before: an older bundle must not take its place.
                    config=config.model_copy(update={"repositories": (Repository(url=str(staging)), *known)}),
                    git=self._git,
                    into=scratch / "look.git",
                    borrow=None,
                    seen={},
                    trust=current_trust(config, site.journal),
                    mark=current_mark(site.state, site.journal, site.ports),
                    timestamp=current_timestamp(site.state, site.journal, site.ports),
                    accepted=site.journal.accepted(),
                    kept=JournalDocuments(site.journal),
                    agent=site.agent,
                    now=self._now(),
                )
            )
            if answer.snapshot is None or answer.refusal is not None:
                raise answer.refusal or StaleSource(f"{staging} has no snapshot")
            verdict = answer.verdicts.get(str(staging))
            if verdict is None or verdict.refusal is not None:
                said = (one for one in answer.remarks if str(staging) in one.message)
                raise next(said, StaleSource(f"{staging} is older than what was imported before"))
        except ReconcileError as error:
            # The repository is ours and gone in a moment; people know the bundle.
            error.args = (error.message.replace(str(staging), str(bundle.path)), *error.args[1:])
            raise
        return staging, answer.snapshot, answer

    def _now(self) -> datetime:
        return self._site.ports.clock.now()

    # --- models ---------------------------------------------------------------------------------------------------

    def _models(self, snapshot: Snapshot, answer: Answer) -> dict[str, tuple[ModelSpec, Model, bool]]:
        """The snapshot's models by manifest digest, each with whether the bundle has it whole."""
        found: dict[str, tuple[ModelSpec, Model, bool]] = {}
        # What is in force already was kept when it was accepted, and is not read from the bundle again.
        documents = JournalDocuments(self._site.journal, answer.documents)
        for spec in snapshot.document.spec.models:
            digest = spec.manifest.digest
            model = documents.model(digest)
            entries = (self._bundle.entry(file.blake3) for file in model.manifest.spec.files)
            found[digest] = (spec, model, all(entry is not None and entry.kind == "model" for entry in entries))
        return found

    def _take_models(self, models: Mapping[str, tuple[ModelSpec, Model, bool]]) -> None:
        """Acquire what the bundle has, after looking whether there is room for all of it."""
        site = self._site
        carried = [(spec, model) for spec, model, whole in models.values() if whole]
        if not carried:
            return
        store = site.open_store(lambda digest: [self._source(models[digest][1])])
        missing = {model.digest: store.missing(model) for _, model in carried}
        lacking = [model for _, model in carried if missing[model.digest]]
        if lacking:
            # Models that share files need room for them once.
            sizes = {file.blake3: file.size for model in lacking for file in model.manifest.spec.files}
            room = min(sum(missing.values()), sum(sizes.values())) + OVERHEAD * len(lacking)
            site.ports.files.make_folder(site.state.models)
            admit(site.state.models, room, reserve=site.config.policy.reserve, what=f"importing {self._bundle.path}")
        for spec, model in carried:
            store.acquire(model, (), progress=site.progress, stop=site.ports.stop)
            self._record(spec, model)

    def _source(self, model: Model) -> SpanSource:
        places: dict[str, Span] = {}
        for file in model.manifest.spec.files:
            entry = self._bundle.entry(file.blake3)
            if entry is not None:
                places[file.path] = self._bundle.span(entry)
        return SpanSource(str(self._bundle.path), self._bundle.file, places)

    def _record(self, spec: ModelSpec, model: Model) -> None:
        """What a download leaves in the journal: what this node put there, it may remove one day (I8)."""
        now = self._now()
        memory = self._site.journal.memory(starts_since=now - RESTART_WINDOW)
        if model.digest in memory.models:
            return
        put: Change = model_state(
            memory,
            manifest=model.digest,
            key=spec.key,
            state="Pending",
            cause="imported from a bundle and verified",
            size=model.manifest.size,
            now=now,
        )
        note = Note("Normal", "ModelInstalled", f"{spec.key} was imported from a bundle and verified", subject=spec.key)
        self._site.journal.apply((put, note), now)

    # --- images ---------------------------------------------------------------------------------------------------

    def _images(self, snapshot: Snapshot) -> list[Image]:
        """The images of the snapshot for this machine that the bundle has, each resolved from its reference."""
        listed = [image for runtime in snapshot.document.spec.runtimes for image in runtime.images]
        refs = dict.fromkeys(image.ref for image in listed if image.platform == self._site.platform)
        carried = [ref for ref in refs if self._bundle.entry(ref.rpartition("@")[2]) is not None]
        return [resolve(ref, self._site.platform, self._image_document) for ref in carried]

    def _image_document(self, digest: str) -> bytes:
        entry = self._bundle.entry(digest)
        if entry is None:
            raise ImageUnavailable(f"{self._bundle.path} lacks the manifest {digest}")
        return self._bundle.read(entry, MANIFEST_LIMIT)

    def _take_images(self, images: Sequence[Image]) -> None:
        """Load into every engine of this node what it does not have, all in one archive: shared layers go once."""
        for engine in self._site.engines if images else ():
            wanted = [image for image in images if not self._is_there(engine, image)]
            if not wanted:
                continue
            for image in wanted:
                self._site.loaded.keep(image)
            # What is there by its id only was unknown before its manifest was kept.
            wanted = [image for image in wanted if not self._is_there(engine, image)]
            parts = {part.digest: part for image in wanted for part in image.parts}
            if parts:
                engine.load(load_archive(wanted, self._blobs(engine.name, list(parts.values()))))
            for image in wanted:
                if not self._is_there(engine, image):
                    raise ImageUnavailable(f"{image.ref} was loaded into {engine.name}, and is still not there")

    def _is_there(self, engine: ImageEngine, image: Image) -> bool:
        seen = engine.image(image.ref)
        if isinstance(seen, Unknown):
            raise BackendUnavailable(seen.reason)
        return isinstance(seen, Present)

    def _blobs(self, engine: str, parts: Sequence[Part]) -> Iterator[tuple[Part, Iterator[bytes]]]:
        total, done = sum(part.size for part in parts), 0
        for part in parts:
            entry = self._bundle.entry(part.digest)
            if entry is None or entry.size != part.size:
                raise ImageUnavailable(f"{self._bundle.path} lacks {part.digest}, which an image is made of")
            yield part, self._stoppable(self._bundle.windows(entry))
            done += part.size
            self._site.progress(f"images for {engine}", done, total)

    def _stoppable(self, windows: Iterator[bytes]) -> Iterator[bytes]:
        for window in windows:
            if self._site.ports.stop.is_set():
                raise BackendUnavailable("stopped while loading images")
            yield window

    # --- publishing -----------------------------------------------------------------------------------------------

    def _publish(self, staging: Path, summary: Imported) -> None:
        branch, state = self._site.config.branch, self._site.state
        self._git.fetch(str(staging), branch, state.imported, ref=f"refs/heads/{branch}")
        if not summary.in_force:
            message = f"sequence {summary.sequence} came with {self._bundle.path.name}; the next pass looks at it"
            note = Note("Normal", "BundleImported", message, subject=summary.snapshot)
            self._site.journal.apply((note,), self._now())

    def _summary(
        self, snapshot: Snapshot, models: Mapping[str, tuple[ModelSpec, Model, bool]], images: Sequence[Image]
    ) -> Imported:
        accepted = self._site.journal.accepted()
        stored = self._site.open_store(lambda _digest: ()).list()
        epoch, sequence = snapshot.position
        return Imported(
            snapshot=snapshot.digest,
            epoch=epoch,
            sequence=sequence,
            in_force=accepted is not None and accepted.digest == snapshot.digest,
            models=tuple(spec.key for spec, _, whole in models.values() if whole),
            images=tuple(image.ref for image in images),
            absent=tuple(
                spec.key for digest, (spec, _, whole) in models.items() if not whole and not _is_stored(stored, digest)
            ),
        )


def _is_stored(stored: Mapping[str, object], digest: str) -> bool:
    return isinstance(stored.get(digest), StoredModel)
