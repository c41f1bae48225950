"""Model manifests: the files of a model version and their digests. A manifest's own digest is the model's identity."""

from __future__ import annotations

from typing import Annotated, Final, Literal

from pydantic import Field, model_validator

from schemas.base import Count, Digest, Document, Frozen, Name, RelativePath, Sha256, Version
from schemas.snapshot import FileRef

PIECE_SIZE: Final = 16 * 2**20
"""Bytes of one verified piece: large enough that a request's latency is noise, small enough to refetch."""

HASH_SIZE: Final = 32
"""Bytes of one BLAKE3 hash in the side file."""

MAX_FILES: Final = 10_000


class ManifestFile(Frozen):
    """One file of a model."""

    path: RelativePath
    """Path below the model's folder, and below each source."""
    size: Count
    """Bytes."""
    blake3: Digest
    """BLAKE3 of the whole file."""
    sha256: Sha256
    """SHA-256 of the whole file, to compare with what hubs publish."""

    @property
    def pieces(self) -> int:
        """Number of pieces, the last one possibly short; 0 for an empty file."""
        return -(-self.size // PIECE_SIZE)


class ManifestMetadata(Frozen):
    """Which model this is."""

    name: Name
    """The model's name."""
    version: Version
    """The version, quoted."""


class ManifestSpec(Frozen):
    """What the model consists of."""

    format: Literal["gguf", "safetensors"]
    """How the weights are stored. Pickles are refused."""
    files: Annotated[tuple[ManifestFile, ...], Field(min_length=1, max_length=MAX_FILES)]
    """Every file, sorted by path."""
    pieces: FileRef
    """Binary side file: the BLAKE3 of every piece of every file, 32 bytes each, in the order of `files`."""

    @model_validator(mode="after")
    def _paths_are_a_tree(self) -> ManifestSpec:
        paths = [file.path for file in self.files]
        if paths != sorted(paths):
            raise ValueError("files must be sorted by path")
        # Case-insensitive file systems would fold two files into one.
        if len({path.lower() for path in paths}) != len(paths):
            raise ValueError("two files have the same path")
        folded = {path.lower() for path in paths}
        spelled: dict[str, str] = {}
        for path in paths:
            parts = path.split("/")
            for folder in ("/".join(parts[:depth]) for depth in range(1, len(parts))):
                if folder.lower() in folded:
                    raise ValueError(f"{path!r} lies below a path that is itself a file")
                if spelled.setdefault(folder.lower(), folder) != folder:
                    raise ValueError(f"the folders {spelled[folder.lower()]!r} and {folder!r} differ in case only")
        return self


class ManifestDocument(Document):
    """The files of one model version."""

    api_version: Literal["reconcile/v1alpha1"]
    """Version of this document's form."""
    kind: Literal["ModelManifest"]
    """`ModelManifest`."""
    metadata: ManifestMetadata
    """Which model."""
    spec: ManifestSpec
    """Which bytes."""

    @property
    def size(self) -> int:
        """Bytes of all files together."""
        return sum(file.size for file in self.spec.files)

    @property
    def piece_count(self) -> int:
        """Pieces of all files together: the side file has 32 bytes for each."""
        return sum(file.pieces for file in self.spec.files)
