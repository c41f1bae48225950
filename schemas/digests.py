"""Content digests: BLAKE3, written `blake3:<64 hex digits>`. The one place that imports the blake3 SDK."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from blake3 import blake3

if TYPE_CHECKING:
    from typing_extensions import Buffer

PREFIX: Final = "blake3:"

Hasher = blake3
"""An incremental BLAKE3 hasher: `Hasher(max_threads=n)`, `update(data)`, `digest()`, `hexdigest()`."""


def digest_bytes(data: Buffer) -> str:
    """The content digest of exact bytes."""
    return PREFIX + blake3(data).hexdigest()


def digest_text(text: str) -> str:
    """The content digest of a text's UTF-8 bytes."""
    return digest_bytes(text.encode())


def short(digest: str, length: int = 12) -> str:
    """The first hex digits of a digest, for people and for names."""
    return digest.partition(":")[2][:length]


def raw_hash(data: Buffer) -> bytes:
    """The 32 bytes of a BLAKE3 hash, as they stand in a pieces file."""
    return blake3(data).digest()
