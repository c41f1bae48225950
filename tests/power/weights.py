"""The small models' weights: read without torch, and what can be wrong with them, as functions of tensors. Pure."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import TYPE_CHECKING, Final

import numpy as np
from numpy.typing import NDArray

from tests.power.shape import BASE

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.power.shape import Shape

Weights = dict[str, NDArray[np.float32]]

NOISY: Final = "model.layers.1.mlp.down_proj.weight"
"""The one tensor that is perturbed: a twentieth of the parameters, in the middle."""


def read(path: Path) -> Weights:
    """Tensors of a safetensors file in half precision, by name, as 32-bit numbers.

    Source: https://github.com/huggingface/safetensors, "Format": a length, a JSON header, the bytes.
    """
    content = path.read_bytes()
    start = 8 + int.from_bytes(content[:8], "little")
    header = json.loads(content[8:start])
    header.pop("__metadata__", None)
    return {
        name: np.frombuffer(content[start:], np.float16, np.prod(about["shape"], dtype=int), about["data_offsets"][0])
        .reshape(about["shape"])
        .astype(np.float32)
        for name, about in sorted(header.items())
    }


def _matrices(weights: Weights, change: Callable[[NDArray[np.float32]], NDArray[np.float32]]) -> Weights:
    return {name: change(tensor) if tensor.ndim > 1 else tensor for name, tensor in weights.items()}


def per_channel(bits: int) -> Callable[[Weights], Weights]:
    """Every matrix rounded to integers of so many bits, symmetric, one scale for each output channel."""
    most = 2 ** (bits - 1) - 1

    def change(tensor: NDArray[np.float32]) -> NDArray[np.float32]:
        scale = np.maximum(np.abs(tensor).max(axis=1, keepdims=True) / most, 1e-12)
        return (np.rint(tensor / scale) * scale).astype(np.float32)

    return lambda weights: _matrices(weights, change)


def noise(scale: float, seed: int = 5) -> Callable[[Weights], Weights]:
    """Gaussian noise on one tensor, relative to its own standard deviation."""

    def fault(weights: Weights) -> Weights:
        tensor = weights[NOISY]
        drawn = np.random.default_rng(seed).standard_normal(tensor.shape, dtype=np.float32)
        return weights | {NOISY: tensor + np.float32(scale) * tensor.std() * drawn}

    return fault


def swapped(weights: Weights) -> Weights:
    """Layers 1 and 2 in each other's place."""
    turned = {"1": "2", "2": "1"}
    found: Weights = {}
    for name, tensor in weights.items():
        parts = name.split(".")
        if parts[1] == "layers":
            parts[2] = turned.get(parts[2], parts[2])
        found[".".join(parts)] = tensor
    return found


def dropped(weights: Weights) -> Weights:
    """Layer 2 adds nothing: what a model without it computes, in the same shape."""
    place = "model.layers.2."
    return weights | {
        name: np.zeros_like(tensor)
        for name, tensor in weights.items()
        if name.startswith(place) and ("o_proj" in name or "down_proj" in name)
    }


def bit_flipped(bit: int) -> Callable[[Weights], Weights]:
    """One bit of one 16-bit number of the perturbed tensor: 14 is the exponent's highest, 15 the sign."""

    def fault(weights: Weights) -> Weights:
        halves = weights[NOISY].astype(np.float16).view(np.uint16).copy()
        halves[3, 7] ^= np.uint16(1 << bit)
        return weights | {NOISY: halves.view(np.float16).astype(np.float32)}

    return fault


def rope(base: float, shape: Shape = BASE) -> Shape:
    """The same model, told another base of its rotary positions."""
    return replace(shape, rope_base=base)
