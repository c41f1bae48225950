"""Every honest circumstance and every fault of the table, by name."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from tests.power import weights as faults
from tests.power.faulty import Beheading, Prefixing, Truncating
from tests.power.shape import BASE, BEGIN

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.power.shape import Shape
    from tests.power.weights import Weights


def _same(weights: Weights) -> Weights:
    return weights


@dataclass(frozen=True)
class Variant:
    """A model file that is not what it should be."""

    name: str
    change: Callable[[Weights], Weights] = _same
    model: str = "base"
    """Which of the trained models it starts from."""
    shape: Shape = BASE
    kind: str | None = None
    """What matrices are stored as; None: as in the honest file."""
    epsilon: float = 1e-5
    vllm: bool = False
    """Whether it is a main row: run with vLLM as well."""


VARIANTS: Final = (
    Variant("another model of the same shape (other seed)", model="other", vllm=True),
    Variant("fine-tuned sibling: 50 steps at 1e-4", model="tuned-1e-4"),
    Variant("fine-tuned sibling: 50 steps at 1e-5", model="tuned-1e-5", vllm=True),
    Variant("fine-tuned sibling: 50 steps at 1e-6", model="tuned-1e-6"),
    Variant("two layers swapped", faults.swapped, vllm=True),
    Variant("a layer dropped", faults.dropped, vllm=True),
    Variant("weights of 4 bits, per channel", faults.per_channel(4), vllm=True),
    Variant("weights of 8 bits, per channel", faults.per_channel(8), vllm=True),
    Variant("llama.cpp Q4_0 file", kind="Q4_0"),
    Variant("llama.cpp Q8_0 file", kind="Q8_0"),
    Variant("rope base 20,000 instead of 10,000", shape=faults.rope(20_000.0)),
    Variant("rope base 500,000 instead of 10,000", shape=faults.rope(500_000.0), vllm=True),
    Variant("one tensor with noise of 0.3", faults.noise(0.3)),
    Variant("one tensor with noise of 0.1", faults.noise(0.1)),
    Variant("one tensor with noise of 0.03", faults.noise(0.03), vllm=True),
    Variant("one tensor with noise of 0.01", faults.noise(0.01)),
    Variant("one tensor with noise of 0.001", faults.noise(0.001)),
    Variant("highest exponent bit of one weight flipped", faults.bit_flipped(14)),
    Variant("sign of one weight flipped", faults.bit_flipped(15)),
    Variant("norms' epsilon 1e-6 instead of 1e-5", epsilon=1e-6),
)

SERVERS: Final = {
    "context cut to the last 8 tokens of the prompt": lambda engine: Truncating(engine, 8),
    "context cut to the last 14 of 16 tokens of the prompt": lambda engine: Truncating(engine, 14),
    "beginning of sequence put twice": lambda engine: Prefixing(engine, BEGIN),
    "beginning of sequence taken away": Beheading,
}
"""Servers that change what the model is given; each asks the engine anew."""
