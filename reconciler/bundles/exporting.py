"""Making a bundle: documents from a repository, models and images from wherever they lie, straight to their places.

The index is made before the first byte of a model is read: sizes and digests follow from signed documents. So the whole
file is reserved at once, and models are fetched in parallel, piece by piece, into the archive itself.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from desired_state.acceptance import accept_snapshot
from desired_state.git_bundle import collect, write_bundle
from desired_state.load import load_candidate, load_models
from desired_state.trust import verify_first, walk
from reconciler.bundles.container import lay_out
from runtime.archive import BLOCK, header
from runtime.interfaces import Model
from runtime.models.capacity import disk_errors, free_bytes
from runtime.oci import LAYOUT, layout_index, resolve, sha256
from schemas.bundle import BRANCH, BundledSnapshot, BundleEntry, BundleIndex
from schemas.digests import digest_bytes
from schemas.errors import ImageUnavailable, NoSpace, UsageError
from schemas.node import SourcePolicy
from schemas.refusals import DigestMismatch, TrustBroken

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
    from datetime import datetime
    from pathlib import Path

    from desired_state.files import DocumentFiles
    from desired_state.git_source import GitSource
    from desired_state.snapshot import Snapshot
    from runtime.archive import Span
    from runtime.interfaces import Progress
    from runtime.oci import Image, Part
    from runtime.registry import Registry
    from schemas.ports import Ports
    from schemas.snapshot import ModelSpec, SnapshotDocument

CONNECTIONS: Final = 4
STALL_SECONDS: Final = 30


@dataclass(frozen=True, slots=True)
class Cargo:
    """What to put in beside the documents."""

    models: Callable[[ModelSpec], bool] = lambda _spec: False
    """Which models of the snapshot."""
    keys: tuple[str, ...] = ()
    """Models that were named, and must be in the snapshot."""
    platforms: tuple[str, ...] = ()
    """Images for which platforms; none for no images."""
    folder: Callable[[Model], Path | None] = lambda _model: None
    """Where this machine has a model, None where it has not."""
    policy: SourcePolicy = field(default_factory=SourcePolicy)
    """From where models may be fetched."""


@dataclass(frozen=True, slots=True)
class Exported:
    """What a bundle came to."""

    snapshot: Snapshot
    pin: str
    """Digest of the first trust document: what nodes pin."""
    models: tuple[str, ...]
    images: tuple[str, ...]
    size: int


def judge(files: DocumentFiles, network: str, *, agent: str, now: datetime) -> tuple[Snapshot, str]:
    """The snapshot, as a node would accept it that pins the repository's own first trust document.

    Raises:
        NotTrusted: no node would accept it; carrying it somewhere would be in vain.
    """
    candidate = load_candidate(files, network, trust_version=0)
    if not candidate.trust or candidate.trust[0].version != 1:
        raise TrustBroken(f"the repository has no networks/{network}/trust/1.yaml")
    pin = digest_bytes(candidate.trust[0].content)
    first = verify_first(candidate.trust[0].content, pin, network, file=candidate.trust[0].file)
    trust = walk(first, candidate.trust, network=network, now=now).trust
    snapshot = accept_snapshot(
        content=candidate.content,
        signatures=candidate.signatures,
        trust=trust,
        mark=None,
        network=network,
        now=now,
        agent_version=agent,
        file=candidate.file,
    )
    return snapshot, pin


class Exporter:
    """Makes one bundle. Used once."""

    def __init__(
        self, git: GitSource, scratch: Path, ports: Ports, progress: Progress, open_registry: Callable[[str], Registry]
    ) -> None:
        """Prepare.

        Args:
            git: the way to git.
            scratch: a folder for small files, which the caller removes.
            ports: the outside.
            progress: told about bytes.
            open_registry: the registry of an image reference.
        """
        self._git = git
        self._scratch = scratch
        self._ports = ports
        self._progress = progress
        self._open_registry = open_registry

    def export(
        self, files: DocumentFiles, network: str, cargo: Cargo, target: Path, *, agent: str, now: datetime, limit: int
    ) -> Exported:
        """Write a bundle.

        Args:
            files: the state of the repository.
            network: the network.
            cargo: what goes in beside the documents.
            target: the file; replaced when the new one is complete.
            agent: version of this agent.
            now: the time.
            limit: bytes of all documents.

        Raises:
            NotTrusted: no node would accept the snapshot.
            DownloadFailed, ModelCorrupt, ImageUnavailable: a part cannot be had.
            NoSpace: the disk cannot hold the bundle; nothing was fetched.
        """
        snapshot, pin = judge(files, network, agent=agent, now=now)
        document = snapshot.document
        _check_keys(document, cargo.keys)
        contents = collect(files, network, document, limit=limit)
        metadata = document.metadata
        documents = self._scratch / "documents.bundle"
        message = f"{network}: epoch {metadata.epoch}, sequence {metadata.sequence}"
        write_bundle(self._git.calls, contents, documents, branch=BRANCH, message=message, now=metadata.issued_at)
        chosen = [spec for spec in document.spec.models if cargo.models(spec)]
        models = {
            spec.manifest.digest: (spec, Model(loaded.digest, loaded.manifest, loaded.pieces))
            for spec in chosen
            for loaded in [load_models(files, [spec])[spec.manifest.digest]]
        }
        images = self._images(document, cargo.platforms)
        parts = _image_parts(images)
        index = BundleIndex(
            network=network,
            snapshot=BundledSnapshot(digest=snapshot.digest, epoch=metadata.epoch, sequence=metadata.sequence),
            entries=(
                _documents_entry(documents),
                *_model_entries([model for _, model in models.values()]),
                *_image_entries(images, parts),
            ),
        )
        partial = target.with_name(f".{target.name}.partial")
        with disk_errors(f"writing {target}"):
            try:
                size = self._write(index, partial, documents, list(models.values()), images, parts, cargo)
                self._ports.files.sync_file(partial)
                self._ports.files.rename(partial, target)
            finally:
                partial.unlink(missing_ok=True)
        return Exported(snapshot, pin, tuple(spec.key for spec in chosen), tuple(i.ref for i in images), size)

    def _images(self, document: SnapshotDocument, platforms: Sequence[str]) -> list[Image]:
        """The images of a snapshot for some platforms, resolved at their registries, each once."""
        found: dict[str, Image] = {}
        for runtime in document.spec.runtimes:
            for image in runtime.images:
                if image.platform in platforms and image.ref not in found:
                    found[image.ref] = resolve(image.ref, image.platform, self._open_registry(image.ref).document)
        return list(found.values())

    # --- writing --------------------------------------------------------------------------------------------------

    def _write(
        self,
        index: BundleIndex,
        partial: Path,
        documents: Path,
        models: Sequence[tuple[ModelSpec, Model]],
        images: Sequence[Image],
        parts: Mapping[str, tuple[Image, Part]],
        cargo: Cargo,
    ) -> int:
        plan = lay_out(index)
        free = free_bytes(partial.parent)
        if plan.size > free:
            raise NoSpace(f"the bundle has {plan.size} bytes, and {free} are free where it should go")
        descriptor = os.open(partial, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW, 0o644)
        try:
            os.posix_fallocate(descriptor, 0, plan.size)
            for path, span in plan.spans.items():
                _pwrite(descriptor, header(path, span.size), span.offset - BLOCK)
            _pwrite(descriptor, plan.index, next(iter(plan.spans.values())).offset)
            _pwrite(descriptor, documents.read_bytes(), plan.spans["documents.bundle"].offset)
            for image in images:
                for digest, content in image.documents.items():
                    _pwrite(descriptor, content, plan.spans[_image_path(digest)].offset)
            if images:
                _pwrite(descriptor, LAYOUT, plan.spans["images/oci-layout"].offset)
                _pwrite(descriptor, layout_index(images), plan.spans["images/index.json"].offset)
            done: set[str] = set()
            for spec, model in models:
                self._write_model(partial, spec, model, plan.spans, cargo, done)
            for image, part in parts.values():
                self._write_blob(descriptor, image, part, plan.spans[_image_path(part.digest)].offset)
        finally:
            os.close(descriptor)
        return plan.size

    def _write_model(
        self,
        archive: Path,
        spec: ModelSpec,
        model: Model,
        spans: Mapping[str, Span],
        cargo: Cargo,
        done: set[str],
    ) -> None:
        from runtime.models.spans import place  # noqa: PLC0415 - http and TLS cost 30 ms to import

        wanted = [file for file in model.manifest.spec.files if file.blake3 not in done]
        done.update(file.blake3 for file in wanted)
        first = {file.blake3: file for file in reversed(wanted)}
        places = {file.path: spans[_model_path(file.blake3)] for file in first.values()}
        total = sum(file.size for file in first.values())
        place(
            model,
            archive,
            places,
            folder=cargo.folder(model),
            sources=spec.sources,
            policy=cargo.policy,
            connections=CONNECTIONS,
            stall=STALL_SECONDS,
            ports=self._ports,
            told=lambda name, count: self._progress(name, count, total),
        )

    def _write_blob(self, descriptor: int, image: Image, part: Part, offset: int) -> None:
        import hashlib  # noqa: PLC0415 - beside its only use

        hasher, done = hashlib.sha256(), 0
        for window in self._open_registry(image.ref).blob(part.digest, part.size):
            if self._ports.stop.is_set():
                raise ImageUnavailable("stopped")
            hasher.update(window)
            _pwrite(descriptor, window, offset + done)
            done += len(window)
            self._progress(image.ref.partition("@")[0], done, part.size)
        if f"sha256:{hasher.hexdigest()}" != part.digest:
            raise DigestMismatch(f"the registry of {image.ref} sends other bytes than those of {part.digest}")


# --- the index ----------------------------------------------------------------------------------------------------


def _documents_entry(path: Path) -> BundleEntry:
    content = path.read_bytes()
    return BundleEntry(kind="documents", digest=digest_bytes(content), size=len(content))


def _model_entries(models: Iterable[Model]) -> list[BundleEntry]:
    """Every file of every model, each content once."""
    found = {
        file.blake3: BundleEntry(kind="model", digest=file.blake3, size=file.size)
        for model in models
        for file in model.manifest.spec.files
    }
    return list(found.values())


def _image_parts(images: Iterable[Image]) -> dict[str, tuple[Image, Part]]:
    """Configurations and layers, each once, with an image whose registry has it."""
    found: dict[str, tuple[Image, Part]] = {}
    for image in images:
        for part in image.parts:
            found.setdefault(part.digest, (image, part))
    return found


def _image_entries(images: Sequence[Image], parts: Mapping[str, tuple[Image, Part]]) -> Iterator[BundleEntry]:
    if not images:
        return
    index = layout_index(images)
    yield BundleEntry(kind="layout", digest=sha256(LAYOUT), size=len(LAYOUT), name="oci-layout")
    yield BundleEntry(kind="layout", digest=sha256(index), size=len(index), name="index.json")
    documents = {digest: len(content) for image in images for digest, content in image.documents.items()}
    sizes = {**documents, **{digest: part.size for digest, (_, part) in parts.items()}}
    for digest, size in sizes.items():
        yield BundleEntry(kind="image", digest=digest, size=size)


def _image_path(digest: str) -> str:
    return BundleEntry(kind="image", digest=digest, size=0).path


def _model_path(digest: str) -> str:
    return BundleEntry(kind="model", digest=digest, size=0).path


def _pwrite(descriptor: int, data: bytes, offset: int) -> None:
    view = memoryview(data)
    while view:
        count = os.pwrite(descriptor, view, offset)
        view, offset = view[count:], offset + count


def _check_keys(document: SnapshotDocument, keys: Sequence[str]) -> None:
    """Refuse names of models that the snapshot does not list.

    Raises:
        UsageError: one of them is not listed.
    """
    listed = {spec.key for spec in document.spec.models}
    for key in keys:
        if key not in listed:
            raise UsageError(f"the snapshot lists no model {key}", hint=f"it lists {', '.join(sorted(listed))}")
