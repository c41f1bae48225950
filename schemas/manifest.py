"""Model manifests: the files of a model version and their digests. A manifest's own digest is the model's identity."""

from __future__ import annotations

from typing import Annotated, Final, Literal

from pydantic import Field, StringConstraints, model_validator

from schemas.base import Count, Digest, Document, FileRef, Frozen, Name, RelativePath, Sha256, Version

PIECE_SIZE: Final = 16 * 2**20
"""Bytes of one verified piece: large enough that a request's latency is noise, small enough to refetch."""

HASH_SIZE: Final = 32
"""Bytes of one BLAKE3 hash in the side file."""

MAX_FILES: Final = 10_000

_PUBLIC_KEY: Final = r"^-----BEGIN PUBLIC KEY-----\n[A-Za-z0-9+/=\n]+-----END PUBLIC KEY-----\n?$"
_CERTIFICATES: Final = r"^(-----BEGIN CERTIFICATE-----\n[A-Za-z0-9+/=\n]+-----END CERTIFICATE-----\n?)+$"


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


class ModelSignature(Frozen):
    """An OpenSSF model signature that the model has to carry: its maker's word, beside that of the network."""

    file: RelativePath
    """The signature, one of the manifest's files. It covers all others."""
    public_key: Annotated[str, StringConstraints(pattern=_PUBLIC_KEY, max_length=4096)] | None = None
    """The maker's key, PEM (elliptic curve). Either this or `certificates`."""
    certificates: Annotated[str, StringConstraints(pattern=_CERTIFICATES, max_length=65536)] | None = None
    """Certificate authorities, PEM: any certificate that they issued for code signing may have signed."""

    @model_validator(mode="after")
    def _one_of_them(self) -> ModelSignature:
        if (self.public_key is None) == (self.certificates is None):
            raise ValueError("exactly one of publicKey and certificates is needed")
        return self


class ManifestSpec(Frozen):
    """What the model consists of."""

    format: Literal["gguf", "safetensors"]
    """How the weights are stored. Pickles are refused."""
    files: Annotated[tuple[ManifestFile, ...], Field(min_length=1, max_length=MAX_FILES)]
    """Every file, sorted by path."""
    pieces: FileRef
    """Binary side file: the BLAKE3 of every piece of every file, 32 bytes each, in the order of `files`."""
    signature: ModelSignature | None = None
    """The signature that has to be right before the model is installed."""

    @model_validator(mode="after")
    def _paths_are_a_tree(self) -> ManifestSpec:
        paths = [file.path for file in self.files]
        if paths != sorted(paths):
            raise ValueError("files must be sorted by path")
        if self.signature is not None and self.signature.file not in paths:
            raise ValueError("the signature must be one of the files")
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
