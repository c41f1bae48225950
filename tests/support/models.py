"""Small models that are real: a sound GGUF or safetensors file, a manifest, and the side file of piece hashes."""

from __future__ import annotations

import hashlib
import json
import random
import struct
from typing import TYPE_CHECKING

from runtime.interfaces import Model
from schemas.base import FileRef
from schemas.digests import digest_bytes, digest_text, raw_hash
from schemas.manifest import PIECE_SIZE, ManifestDocument, ManifestFile, ManifestMetadata, ManifestSpec
from schemas.node import SourcePolicy

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path
    from typing import Literal

OPEN_POLICY = SourcePolicy(allow_http=True, allow_private=True, allow_file=True)
"""What tests on loopback need."""


def noise(size: int, seed: int = 0) -> bytes:
    """Bytes of which no two pieces are alike."""
    block = random.Random(seed).randbytes(min(size, 2**16))
    parts = [struct.pack("<QQ", seed, number) + block[16:] for number in range(-(-size // max(1, len(block))))]
    return b"".join(parts)[:size]


def gguf(size: int = 4096, seed: int = 0) -> bytes:
    """A GGUF file of one tensor, `size` bytes long (ggml, docs/gguf.md)."""
    name = b"weights"
    header = struct.pack("<4sIQQ", b"GGUF", 3, 1, 1)
    key = b"general.architecture"
    header += struct.pack("<Q", len(key)) + key + struct.pack("<IQ", 8, 5) + b"llama"
    header += struct.pack("<Q", len(name)) + name + struct.pack("<IQIQ", 1, 16, 0, 0)
    header += bytes(-len(header) % 32)
    return header + noise(size - len(header), seed)


def safetensors(size: int = 4096, seed: int = 0) -> bytes:
    """A safetensors file of one tensor with `size` bytes of data."""
    entry = {"dtype": "U8", "shape": [size], "data_offsets": [0, size]}
    header = json.dumps({"__metadata__": {"format": "pt"}, "weights": entry}).encode()
    return struct.pack("<Q", len(header)) + header + noise(size, seed)


def hashes_of(data: bytes) -> bytes:
    """The part of the side file for one file."""
    view = memoryview(data)
    return b"".join(raw_hash(view[start : start + PIECE_SIZE]) for start in range(0, len(data), PIECE_SIZE))


def make_model(
    files: Mapping[str, bytes],
    *,
    name: str = "tiny",
    version: str = "v1",
    form: Literal["gguf", "safetensors"] = "gguf",
) -> Model:
    """The model that consists of exactly these files."""
    ordered = sorted(files.items())
    pieces = b"".join(hashes_of(data) for _, data in ordered)
    manifest = ManifestDocument(
        api_version="reconcile/v1alpha1",
        kind="ModelManifest",
        metadata=ManifestMetadata(name=name, version=version),
        spec=ManifestSpec(
            format=form,
            files=tuple(
                ManifestFile(
                    path=path,
                    size=len(data),
                    blake3=digest_bytes(data),
                    sha256="sha256:" + hashlib.sha256(data).hexdigest(),
                )
                for path, data in ordered
            ),
            pieces=FileRef(path=f"models/{name}/{version}.pieces", digest=digest_bytes(pieces)),
        ),
    )
    return Model(digest=digest_text(manifest.to_json()), manifest=manifest, pieces=pieces)


def lay_out(folder: Path, files: Mapping[str, bytes]) -> str:
    """Write files below a folder; its `file://` address."""
    for path, data in files.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(data)
    return f"file://{folder}"


def content(folder: Path) -> dict[str, bytes]:
    """Every file below a folder."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def silent(subject: str, done: int, total: int) -> None:
    """A progress that nobody watches."""
