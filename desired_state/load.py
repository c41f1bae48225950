"""From a repository's files to what can be judged, and from a snapshot's references to what they bind.

`load_candidate` collects bytes and believes nothing. The rest reads files that a snapshot names: each must have exactly
the digest that the snapshot binds, so that no other document can be put in its place.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from desired_state import document as reader
from desired_state import layout
from desired_state.lockfile import parse_lock
from desired_state.tally import MAX_SIGNATURES
from desired_state.trust import TrustLink
from schemas.digests import digest_bytes, short
from schemas.manifest import HASH_SIZE, ManifestDocument
from schemas.probe import ProbeDocument
from schemas.refusals import DigestMismatch, DocumentError, LimitExceeded, MalformedDocument, MissingDocument

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from desired_state.files import DocumentFiles
    from schemas.base import FileRef
    from schemas.snapshot import ModelSpec, SnapshotDocument

MAX_ROTATIONS: Final = 256
"""Trust documents that are read in one look (python-tuf's bound); a node that is further behind looks again."""
PIECES_LIMIT: Final = 2**25
"""Bytes of a pieces file: a million pieces, 16 TiB of model."""


# --- candidates ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Candidate:
    """What a repository offers, before anything is believed."""

    content: bytes
    """The exact bytes of the snapshot."""
    signatures: tuple[bytes, ...]
    """Raw signature files of the snapshot."""
    trust: tuple[TrustLink, ...]
    """Trust documents above the version asked for, ascending."""
    file: str
    """The snapshot's path, for messages."""
    timestamp: OfferedTimestamp
    """Who says that this is the newest snapshot, if anybody does."""


@dataclass(frozen=True, slots=True)
class OfferedTimestamp:
    """A timestamp as a repository has it, or why it has none."""

    file: str
    """Its path, for messages."""
    content: bytes = b""
    """Its exact bytes; empty where there is an error."""
    signatures: tuple[bytes, ...] = ()
    """Its raw signature files."""
    error: DocumentError | None = None
    """Why it could not be read: a missing or oversized timestamp must not keep the snapshot beside it from counting."""


def load_candidate(files: DocumentFiles, network: str, *, trust_version: int) -> Candidate:
    """Collect a network's snapshot with its signatures, and the trust documents that this node lacks.

    Args:
        files: a state of the repository.
        network: the network.
        trust_version: the version that the node holds; 0 to begin with version 1.

    Raises:
        MissingDocument: the repository has no snapshot of this network.
        LimitExceeded, MalformedDocument: something is larger than it may be.
    """
    path = layout.snapshot_file(network)
    try:
        content = files.read(path, reader.SNAPSHOT_LIMIT)
    except MissingDocument as error:
        error.hint = f"is {network!r} a network of this repository?"
        raise
    signatures = load_signatures(files, layout.snapshot_signatures(network))
    trust = load_trust(files, network, above=trust_version)
    return Candidate(content, signatures, trust, path, load_timestamp(files, network))


def load_timestamp(files: DocumentFiles, network: str) -> OfferedTimestamp:
    """Collect the timestamp with its signatures. Nothing that is wrong with it is raised."""
    path = layout.timestamp_file(network)
    try:
        content = files.read(path, reader.TIMESTAMP_LIMIT)
        return OfferedTimestamp(path, content, load_signatures(files, layout.timestamp_signatures(network)))
    except DocumentError as error:
        return OfferedTimestamp(path, error=error)


def load_trust(files: DocumentFiles, network: str, *, above: int) -> tuple[TrustLink, ...]:
    """The trust documents above a version, ascending, at most `MAX_ROTATIONS`.

    A missing one in between is not noticed here: the next does not follow then, and whoever walks the chain says so.
    """
    versions = sorted(layout.trust_version(name) for name in files.list(layout.trust_folder(network)))
    later = [version for version in versions if version > above][:MAX_ROTATIONS]
    paths = {version: layout.trust_file(network, version) for version in later}
    contents = files.read_many(dict.fromkeys(paths.values(), reader.TRUST_LIMIT))
    return tuple(
        TrustLink(version, contents[path], load_signatures(files, layout.trust_signatures(network, version)), file=path)
        for version, path in paths.items()
    )


def load_signatures(files: DocumentFiles, folder: str) -> tuple[bytes, ...]:
    """The signature files of a document. One that cannot be read comes as nothing, and counts as malformed.

    Args:
        files: a state of the repository.
        folder: the document's folder of signatures.
    """
    names = [name for name in files.list(folder) if layout.is_signature(name)][:MAX_SIGNATURES]
    paths = [f"{folder}/{name}" for name in names]
    try:
        return tuple(files.read_many(dict.fromkeys(paths, reader.SIGNATURE_LIMIT)).values())
    except DocumentError:
        return tuple(_signature(files, path) for path in paths)


def _signature(files: DocumentFiles, path: str) -> bytes:
    try:
        return files.read(path, reader.SIGNATURE_LIMIT)
    except DocumentError:
        return b""


# --- bound documents ----------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """What a snapshot binds for one model version, every byte of it checked."""

    digest: str
    """Content digest of the manifest: the model's identity."""
    content: bytes
    """The manifest's exact bytes."""
    manifest: ManifestDocument
    pieces: bytes
    """The side file: 32 bytes for each piece."""


@dataclass(frozen=True, slots=True)
class LoadedProbe:
    """A probe that a snapshot binds."""

    digest: str
    content: bytes
    probe: ProbeDocument


def parse_manifest(content: bytes, *, file: str) -> ManifestDocument:
    """A model manifest; errors as `desired_state.document.load`."""
    return reader.load(content, ManifestDocument, file=file, limit=reader.MANIFEST_LIMIT)


def parse_probe(content: bytes, *, file: str) -> ProbeDocument:
    """A probe; errors as `desired_state.document.load`."""
    return reader.load(content, ProbeDocument, file=file, limit=reader.PROBE_LIMIT)


def read_bound(files: DocumentFiles, ref: FileRef, limit: int) -> bytes:
    """The bytes of a file that a signed document names.

    Raises:
        MissingDocument: not there, or not a regular file.
        LimitExceeded: larger than `limit`.
        DigestMismatch: other bytes than those that were signed for.
    """
    return read_bounds(files, [(ref, limit)])[ref.digest]


def read_bounds(files: DocumentFiles, wanted: Sequence[tuple[FileRef, int]]) -> dict[str, bytes]:
    """As `read_bound`, for many files at once: contents by digest, from references with their limits in bytes."""
    limits: dict[str, int] = {}
    for ref, limit in wanted:
        limits[ref.path] = min(limit, limits.get(ref.path, limit))
    contents = files.read_many(limits)
    digests = {path: digest_bytes(content) for path, content in contents.items()}
    # Every reference is checked, not every file: two references may name one file and disagree about it.
    for ref, _ in wanted:
        found = digests[ref.path]
        if found != ref.digest:
            raise DigestMismatch(f"is {short(found)}, and {short(ref.digest)} was signed for", file=ref.path)
    return {digests[path]: content for path, content in contents.items()}


def load_model(files: DocumentFiles, spec: ModelSpec) -> LoadedModel:
    """The manifest of a model, with its pieces; errors as `load_models`."""
    return load_models(files, [spec])[spec.manifest.digest]


def load_manifests(files: DocumentFiles, specs: Iterable[ModelSpec]) -> dict[str, ManifestDocument]:
    """The manifests alone, by digest: sizes are all that a plan for another node asks of them.

    Raises:
        MissingDocument, LimitExceeded, DigestMismatch: as `read_bound`.
        MalformedDocument: not a manifest, or of another model.
    """
    wanted = list(specs)
    contents = read_bounds(files, [(spec.manifest, reader.MANIFEST_LIMIT) for spec in wanted])
    return {spec.manifest.digest: _manifest_of(spec, contents[spec.manifest.digest]) for spec in wanted}


def load_models(
    files: DocumentFiles,
    specs: Iterable[ModelSpec],
    *,
    kept: Callable[[str], ManifestDocument | None] = lambda _digest: None,
) -> dict[str, LoadedModel]:
    """The manifests that a snapshot binds, with their pieces.

    Args:
        files: the state of the repository that holds the snapshot.
        specs: models of the snapshot.
        kept: by digest, what was parsed before: such bytes are read and hashed like all others, and not parsed again.

    Returns:
        By manifest digest.

    Raises:
        MissingDocument, LimitExceeded, DigestMismatch: as `read_bound`.
        MalformedDocument: not a manifest, of another model, or with a pieces file that does not fit.
    """
    wanted = list(specs)
    contents = read_bounds(files, [(spec.manifest, reader.MANIFEST_LIMIT) for spec in wanted])
    manifests: dict[str, ManifestDocument] = {}
    for spec in wanted:
        digest = spec.manifest.digest
        manifests[digest] = _manifest_of(spec, contents[digest], kept(digest))
    pieces = read_bounds(files, [(manifest.spec.pieces, _pieces_size(manifest)) for manifest in manifests.values()])
    return {
        digest: LoadedModel(digest, contents[digest], manifest, _pieces_of(manifest, pieces))
        for digest, manifest in manifests.items()
    }


def load_probes(files: DocumentFiles, specs: Iterable[ModelSpec]) -> dict[str, LoadedProbe]:
    """The probes that a snapshot binds, by digest; errors as `load_models`."""
    return {
        digest: LoadedProbe(digest, content, parse_probe(content, file=path))
        for digest, (path, content) in read_probes(files, specs).items()
    }


def read_probes(files: DocumentFiles, specs: Iterable[ModelSpec]) -> dict[str, tuple[str, bytes]]:
    """By digest: path and bytes of the probes that a snapshot binds, not parsed; errors as `read_bound`."""
    refs = {spec.validation.probe.digest: spec.validation.probe for spec in specs}
    contents = read_bounds(files, [(ref, reader.PROBE_LIMIT) for ref in refs.values()])
    return {digest: (ref.path, contents[digest]) for digest, ref in refs.items()}


def _manifest_of(spec: ModelSpec, content: bytes, kept: ManifestDocument | None = None) -> ManifestDocument:
    path = spec.manifest.path
    manifest = kept if kept is not None else parse_manifest(content, file=path)
    named = f"{manifest.metadata.name}:{manifest.metadata.version}"
    if named != spec.key:
        raise MalformedDocument(
            f"is the manifest of {named}, and the snapshot names it for {spec.key}", file=path, field="metadata"
        )
    return manifest


def _pieces_size(manifest: ManifestDocument) -> int:
    size = manifest.piece_count * HASH_SIZE
    if size > PIECES_LIMIT:
        path = manifest.spec.pieces.path
        raise LimitExceeded(f"would have {size} bytes, and at most {PIECES_LIMIT} are read", file=path)
    return size


def _pieces_of(manifest: ManifestDocument, contents: Mapping[str, bytes]) -> bytes:
    ref = manifest.spec.pieces
    content = contents[ref.digest]
    wanted = manifest.piece_count * HASH_SIZE
    if len(content) != wanted:
        raise MalformedDocument(
            f"has {len(content)} bytes, and {manifest.piece_count} pieces need {wanted}", file=ref.path
        )
    return content


def load_locks(files: DocumentFiles, document: SnapshotDocument) -> dict[str, bytes]:
    """The locks of native environments that a snapshot binds, by digest.

    Raises:
        MissingDocument, LimitExceeded, DigestMismatch: as `read_bound`.
        MalformedDocument: not a lock, or one that is not locked by hashes throughout.
    """
    natives = [runtime.native for runtime in document.spec.runtimes if runtime.native is not None]
    refs = [native.lock for native in natives if native.lock is not None]
    contents = read_bounds(files, [(ref, reader.MANIFEST_LIMIT) for ref in refs])
    for ref in refs:
        parse_lock(contents[ref.digest], file=ref.path)
    return contents
