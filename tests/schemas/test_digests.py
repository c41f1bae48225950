"""Digests are those of BLAKE3's authors."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from schemas.digests import Hasher, digest_bytes, raw_hash

# The official test vectors (https://github.com/BLAKE3-team/BLAKE3, test_vectors/, CC0), as they were published.
VECTORS = json.loads(Path(__file__).with_name("vectors").joinpath("blake3.json").read_text(encoding="utf-8"))
CONTEXT = "BLAKE3 2019-12-27 16:29:52 test vectors context"


@pytest.mark.parametrize("case", VECTORS["cases"], ids=lambda case: str(case["input_len"]))
def test_official_vectors(case: dict[str, str | int]) -> None:
    """Every published input has its published hash, in all modes, at once, in parts and by several threads."""
    size = int(case["input_len"])
    data = (bytes(range(251)) * (size // 251 + 1))[:size]
    expected = bytes.fromhex(str(case["hash"]))
    assert raw_hash(data) == expected[:32]
    assert digest_bytes(data) == f"blake3:{expected[:32].hex()}"
    key = VECTORS["key"].encode()
    assert Hasher(data).digest(length=len(expected)) == expected
    assert Hasher(data, key=key).digest(length=len(expected)).hex() == case["keyed_hash"]
    assert Hasher(data, derive_key_context=CONTEXT).digest(length=len(expected)).hex() == case["derive_key"]
    parts = Hasher(max_threads=2)
    for start in range(0, size, 700):
        parts.update(memoryview(data)[start : start + 700])
    assert parts.digest() == expected[:32]
