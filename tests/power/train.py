"""Train the small language models that the power table is about. Needs torch, tokenizers and safetensors.

A model that is worth telling apart: a Llama with grouped-query attention, two million parameters, trained on the
sources of the Python standard library until it predicts them far better than their token frequencies do. A random model
would make every fault look easy: its distributions are flat, and what is small against them is invisible.

Everything follows from the seed, the Python version whose library is read, and the versions of torch and tokenizers,
all of which are written into what comes out. Bit by bit it is the same only on the same kind of processor, which is why
the weights that CI uses are kept in the repository (`data/`, half precision), with the digest of the text.

Usage: `python -m tests.power.train FOLDER [--only NAME]` makes, where they are not yet there:

    base.safetensors     seed 1                                     the model that everything is compared with
    other.safetensors    seed 2, the same shape and text            another model
    smaller.safetensors  seed 1, a fifth of the parameters or so          what a proxy may forward to
    tuned-RATE           base, 50 more steps at that learning rate  fine-tuned siblings
    tokenizer.json       byte-level BPE
    passages.json        passages from files that were not trained on
"""

from __future__ import annotations

import argparse
import json
import math
import platform
import random
import sys
import sysconfig
import time
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch.nn import functional

if TYPE_CHECKING:
    from collections.abc import Iterator

from tests.power.shape import BASE, CONTROL, SMALLER, Shape

TEXT_BYTES: Final = 8_000_000
HELD_OUT: Final = 0.06
SEQUENCE: Final = 96
BATCH: Final = 16
STEPS: Final = 500
RATE: Final = 3e-3
WARM_UP: Final = 50
TUNING_STEPS: Final = 50
TUNING_RATES: Final = ("1e-5", "1e-4", "1e-6")
PASSAGES: Final = 512
PASSAGE_TOKENS: Final = 52
SEED: Final = 1


@dataclass(frozen=True)
class Corpus:
    """The text, file by file, and what became of it."""

    train: list[str]
    held_out: list[str]
    digest: str


def corpus() -> Corpus:
    """The standard library's modules, without its tests, in a seeded order; a part of the files is held out."""
    root = Path(sysconfig.get_paths()["stdlib"])
    files = sorted(
        file
        for file in root.rglob("*.py")
        if not {"site-packages", "test", "tests", "idlelib"} & set(file.relative_to(root).parts)
    )
    random.Random(SEED).shuffle(files)
    train: list[str] = []
    held_out: list[str] = []
    digest, size = sha256(), 0
    for number, file in enumerate(files):
        text = file.read_text("utf-8", errors="ignore")
        size += len(text)
        if size > TEXT_BYTES:
            break
        digest.update(text.encode())
        (held_out if number % round(1 / HELD_OUT) == 0 else train).append(text)
    return Corpus(train, held_out, digest.hexdigest())


def tokenizer(text: list[str]) -> Tokenizer:
    """Byte-level BPE as GPT-2's, over the training text."""
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    made.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=BASE.vocabulary,
        special_tokens=list(CONTROL),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    made.train_from_iterator(text, trainer)
    return made


class Llama(torch.nn.Module):
    """The architecture that every engine knows as `llama`, with tied embeddings."""

    def __init__(self, shape: Shape, seed: int) -> None:
        super().__init__()
        self.shape = shape
        generator = torch.Generator().manual_seed(seed)
        self.tensors = torch.nn.ParameterDict()
        for name, size in shape.tensors().items():
            if len(size) == 1:
                value = torch.ones(size)
            else:
                gain = (
                    1.0
                    if "embed" in name
                    else (2 * shape.layers) ** -0.5
                    if "o_proj" in name or "down" in name
                    else 1.0
                )
                scale = 0.02 if "embed" in name else gain / size[1] ** 0.5
                value = torch.randn(size, generator=generator) * scale
            self.tensors[name.replace(".", "/")] = torch.nn.Parameter(value)

    def _tensor(self, name: str) -> torch.Tensor:
        return self.tensors[name.replace(".", "/")]

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        """Logits for each position."""
        shape = self.shape
        batch, length = ids.shape
        angles = torch.outer(
            torch.arange(length).float(), shape.rope_base ** (-torch.arange(0, shape.head, 2).float() / shape.head)
        )
        cos, sin = angles.cos(), angles.sin()
        hidden = functional.embedding(ids, self._tensor("model.embed_tokens.weight"))
        for layer in range(shape.layers):
            place = f"model.layers.{layer}."
            normed = _norm(hidden, self._tensor(place + "input_layernorm.weight"))
            parts = [
                functional.linear(normed, self._tensor(f"{place}self_attn.{part}_proj.weight")).view(
                    batch, length, -1, shape.head
                )
                for part in "qkv"
            ]
            query, key, value = (part.transpose(1, 2) for part in parts)
            query, key = _rotate(query, cos, sin), _rotate(key, cos, sin)
            repeat = shape.heads // shape.key_value_heads
            key, value = (part.repeat_interleave(repeat, dim=1) for part in (key, value))
            seen = functional.scaled_dot_product_attention(query, key, value, is_causal=True)
            seen = seen.transpose(1, 2).reshape(batch, length, -1)
            hidden = hidden + functional.linear(seen, self._tensor(place + "self_attn.o_proj.weight"))
            normed = _norm(hidden, self._tensor(place + "post_attention_layernorm.weight"))
            gate = functional.linear(normed, self._tensor(place + "mlp.gate_proj.weight"))
            up = functional.linear(normed, self._tensor(place + "mlp.up_proj.weight"))
            down = functional.linear(functional.silu(gate) * up, self._tensor(place + "mlp.down_proj.weight"))
            hidden = hidden + down
        return functional.linear(
            _norm(hidden, self._tensor("model.norm.weight")), self._tensor("model.embed_tokens.weight")
        )

    def state(self) -> dict[str, torch.Tensor]:
        """Tensors by the names that Hugging Face gives them."""
        return {name.replace("/", "."): value.detach() for name, value in self.tensors.items()}

    def load(self, state: dict[str, torch.Tensor]) -> None:
        """Take these weights."""
        with torch.no_grad():
            for name, value in state.items():
                self._tensor(name).copy_(value)


def _norm(hidden: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    return hidden * torch.rsqrt(hidden.pow(2).mean(-1, keepdim=True) + 1e-5) * weight


def _rotate(part: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    first, second = part.chunk(2, dim=-1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)


def batches(ids: np.ndarray[Any, Any], begin: int, seed: int) -> Iterator[torch.Tensor]:
    """Windows of the text, each behind a beginning of sequence."""
    draw = np.random.default_rng(seed)
    while True:
        starts = draw.integers(0, len(ids) - SEQUENCE, BATCH)
        rows = np.stack([np.concatenate(([begin], ids[start : start + SEQUENCE])) for start in starts])
        yield torch.from_numpy(rows.astype(np.int64))


def loss_of(model: Llama, rows: torch.Tensor) -> torch.Tensor:
    """Mean next-token loss, in natural logarithms."""
    logits = model(rows[:, :-1])
    return functional.cross_entropy(logits.flatten(0, 1), rows[:, 1:].flatten())


def train(model: Llama, data: Iterator[torch.Tensor], *, steps: int, rate: float, constant: bool = False) -> float:
    """AdamW; warm-up and cosine unless the rate is to be constant. The mean loss of the last twenty steps."""
    optimiser = torch.optim.AdamW(model.parameters(), lr=rate, betas=(0.9, 0.95), weight_decay=0.0 if constant else 0.1)
    last: list[float] = []
    for step in range(steps):
        if not constant:
            factor = min((step + 1) / WARM_UP, 0.05 + 0.95 * (1 + math.cos(math.pi * step / steps)) / 2)
            for group in optimiser.param_groups:
                group["lr"] = rate * factor
        loss = loss_of(model, next(data))
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        last = [*last[-19:], loss.item()]
        if step % 25 == 0:
            print(f"  step {step}: {loss.item():.3f}", flush=True)
    return sum(last) / len(last)


def unigram_loss(train_ids: np.ndarray[Any, Any], held_out: np.ndarray[Any, Any], size: int) -> float:
    """Loss of the training text's token frequencies on the held-out text."""
    counts = np.bincount(train_ids, minlength=size) + 1.0
    return float(-np.log(counts / counts.sum())[held_out].mean())


def held_out_loss(model: Llama, ids: np.ndarray[Any, Any], begin: int) -> float:
    """Over sixteen batches of the held-out text."""
    data = batches(ids, begin, 99)
    with torch.inference_mode():
        return sum(loss_of(model, next(data)).item() for _ in range(16)) / 16


def passages(texts: list[str], made: Tokenizer) -> list[str]:
    """Passages of the held-out text, each from a line's beginning."""
    draw = random.Random(SEED)
    found: list[str] = []
    seen: set[tuple[int, ...]] = set()
    while len(found) < PASSAGES:
        lines = draw.choice(texts).splitlines(keepends=True)
        start = draw.randrange(len(lines)) if lines else 0
        text = "".join(lines[start : start + 30])
        ids = made.encode(text).ids[:PASSAGE_TOKENS]
        # Blank and licence lines come again and again: passages are to be different from each other.
        if len(ids) == PASSAGE_TOKENS and tuple(ids[:8]) not in seen and len(set(ids)) > PASSAGE_TOKENS // 3:
            seen.add(tuple(ids[:8]))
            found.append(made.decode(ids))
    return found


def main(folder: Path, only: str | None) -> int:
    """Make what is missing; see the module."""
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(mode=True)
    folder.mkdir(parents=True, exist_ok=True)
    text = corpus()
    made = tokenizer(text.train)
    made.save(str(folder / "tokenizer.json"))
    begin = made.token_to_id(CONTROL[0])
    ids, held_out = (
        np.array([token for item in made.encode_batch(part) for token in item.ids], np.int32)
        for part in (text.train, text.held_out)
    )
    listed = json.dumps(passages(text.held_out, made), indent=0, ensure_ascii=False)
    (folder / "passages.json").write_text(listed + "\n", "utf-8")
    facts: dict[str, str] = {
        "text": f"sha256:{text.digest}",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "unigram": f"{unigram_loss(ids, held_out, BASE.vocabulary):.3f}",
    }

    def save(name: str, model: Llama, started: float, **more: str) -> None:
        about = facts | more | {"loss": f"{held_out_loss(model, held_out, begin):.3f}"}
        about["seconds"] = f"{time.monotonic() - started:.0f}"
        # What is stored is what the model is: half precision, exactly.
        state = {name: value.half().contiguous() for name, value in model.state().items()}
        save_file(state, folder / f"{name}.safetensors", metadata=about)
        print(name, about, flush=True)

    for name, shape, seed in (("base", BASE, 1), ("smaller", SMALLER, 1), ("other", BASE, 2)):
        if (folder / f"{name}.safetensors").exists() or only not in {None, name}:
            continue
        started = time.monotonic()
        model = Llama(shape, seed)
        train(model, batches(ids, begin, seed), steps=STEPS, rate=RATE)
        save(name, model, started, seed=str(seed), steps=str(STEPS))
    for rate in TUNING_RATES:
        name = f"tuned-{rate}"
        if (folder / f"{name}.safetensors").exists() or only not in {None, name}:
            continue
        started = time.monotonic()
        model = Llama(BASE, 1)
        model.load({key: value.float() for key, value in load_file(folder / "base.safetensors").items()})
        # On the text that was held out: a sibling that has learnt something new.
        train(model, batches(held_out, begin, 7), steps=TUNING_STEPS, rate=float(rate), constant=True)
        save(name, model, started, seed="1", steps=f"{TUNING_STEPS} at {rate}")
    return 0


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Train the models of the power table.")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--only")
    options = parser.parse_args()
    sys.exit(main(options.folder, options.only))
