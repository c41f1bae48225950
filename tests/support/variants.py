"""Tiny models that are honest, and siblings of them with one fault each, as GGUF files.

The model's own weights answer with certainty: one token has all the probability, and nothing finer can be told by it.
Here its output matrix is scaled down, so that twenty tokens are likely enough to be compared.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any
from unittest.mock import patch

import numpy as np

from examples import tiny_model

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from numpy.typing import NDArray

    Tensors = dict[str, NDArray[np.float32]]

SOFTNESS = 1 / 48
"""Of the output matrix: the likeliest token is then ahead by a few natural logarithms."""


def write_variant(
    folder: Path,
    *,
    seed: int = 1,
    change: Callable[[Tensors], None] = lambda _: None,
    swap_words: bool = False,
    template: str | None = None,
    bos: bool = True,
) -> Path:
    """Write a soft tiny model into a new folder.

    Args:
        folder: made here.
        seed: of the weights.
        change: of the tensors, in place, after they were softened.
        swap_words: whether two syllables have each other's ids: a tokenizer of another model of the family.
        template: chat template instead of the model's own.
        bos: whether texts begin with a beginning of sequence.
    """
    folder.mkdir(parents=True)
    drawn, words = tiny_model.weights, tiny_model.vocabulary()

    def weights(seed: int) -> Tensors:
        tensors = drawn(seed)
        tensors["output.weight"] *= np.float32(SOFTNESS)
        change(tensors)
        return tensors

    if swap_words:
        tokens = list(words.tokens)
        tokens[-1], tokens[-2] = tokens[-2], tokens[-1]
        words = replace(words, tokens=tuple(tokens))
    patches: dict[str, Any] = {"weights": weights, "vocabulary": lambda: words}
    if template is not None:
        patches["CHAT_TEMPLATE"] = template
    with (
        patch.multiple(tiny_model, **patches),
        patch.object(
            tiny_model.gguf.GGUFWriter,
            "add_add_bos_token",
            _bos(tiny_model.gguf.GGUFWriter.add_add_bos_token, given=bos),
        ),
    ):
        tiny_model.write_tiny_model(folder / "tiny.gguf", seed=seed)
    return folder


def _bos(add: Callable[..., None], *, given: bool) -> Callable[..., None]:
    def changed(writer: Any, *, value: bool) -> None:
        add(writer, value and given)

    return changed


def perturbed(name: str, scale: float) -> Callable[[Tensors], None]:
    """Noise on one tensor, relative to its own size."""

    def change(tensors: Tensors) -> None:
        tensor = tensors[name]
        noise = np.random.Generator(np.random.PCG64(7)).standard_normal(tensor.shape, dtype=np.float32)
        tensor += noise * np.float32(scale * float(tensor.std()))

    return change


def swapped_layers(tensors: Tensors) -> None:
    """Layer 0 where layer 1 should be, and the other way round."""
    for name in [name for name in tensors if name.startswith("blk.0.")]:
        other = name.replace("blk.0.", "blk.1.")
        tensors[name], tensors[other] = tensors[other], tensors[name]


def rounded(bits: int) -> Callable[[Tensors], None]:
    """Matrices rounded to so many bits, one scale per output channel."""

    def change(tensors: Tensors) -> None:
        levels = 2 ** (bits - 1) - 1
        for name, tensor in tensors.items():
            if tensor.ndim == 1 or name in ("output.weight", "token_embd.weight"):
                continue
            scale = np.abs(tensor).max(axis=1, keepdims=True) / levels
            tensors[name] = (np.round(tensor / scale) * scale).astype(np.float32)

    return change
