"""Every parser, fed with what nobody would write: only typed errors come out (I11)."""

from __future__ import annotations

import importlib.util
import os
import platform
import random
from typing import TYPE_CHECKING

import pytest

from tests.fuzz.__main__ import fuzz
from tests.fuzz.targets import TARGETS

if TYPE_CHECKING:
    from pathlib import Path

INPUTS = int(os.environ.get("FUZZ_INPUTS", "5000"))
"""For each target, the same ones in every run of the same code; `make fuzz SECONDS=600` finds what nobody knows yet."""
SECONDS = 120
"""Time for them on a very busy machine; an idle one needs two."""
DAMAGED = 150


def damaged(seed: bytes, chance: random.Random) -> bytes:
    """A sound input with some bytes changed, and sometimes cut, repeated or doubled."""
    content = bytearray(seed)
    for _ in range(chance.randint(1, 6)):
        position = chance.randrange(len(content) + 1)
        match chance.randrange(4):
            case 0:
                content[position : position + 1] = bytes([chance.randrange(256)])
            case 1:
                del content[position : position + chance.randint(1, 8)]
            case 2:
                content[position:position] = chance.choice([b"\xff", b"\0", b"-", b"{", b"[", b'"', b"\n", b"9" * 30])
            case _:
                content[position:position] = content[: chance.randint(0, 64)]
    return bytes(content)


@pytest.mark.parametrize("name", TARGETS)
def test_sound_and_damaged_inputs(name: str) -> None:
    """Each seed, and each in many damaged forms, the same ones in every run."""
    target, chance = TARGETS[name], random.Random(name)
    for content in (b"", *target.seeds):
        target(content)
    for _ in range(DAMAGED):
        target(damaged(chance.choice(target.seeds), chance))


@pytest.mark.parametrize("name", TARGETS)
def test_guided_by_coverage(name: str, tmp_path: Path) -> None:
    """Some thousand inputs of a fuzzer that sees which lines an input reaches."""
    if importlib.util.find_spec("atheris") is None and platform.machine() != "x86_64":
        pytest.skip("atheris not present: it has no wheel for this machine")
    tried, words = fuzz(name, SECONDS, tmp_path, inputs=INPUTS)
    assert not words, words
    assert tried > len(TARGETS[name].seeds)
