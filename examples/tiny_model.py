"""Write a tiny but real language model as a GGUF file: random weights, a tokenizer, a chat template.

The model is for demonstrations and tests. It knows nothing and says so: it answers every prompt with pronounceable
gibberish. What it has is what a reconciler needs of a model: an architecture that every llama.cpp loads (`llama`), a
file of 3 MB, and greedy output that is the same on every run, differs clearly between two seeds, depends on the
prompt, and never sticks on one token.

How random weights are kept from looping: plain random transformers fall into "ba ba ba". Here the seed draws one cycle
through all syllables, and the output row of each syllable *is* the embedding of the syllable before it on that cycle,
so each syllable votes for its successor with a margin that rounding on another CPU cannot overturn. Control tokens have
near-zero embeddings and no successor: the first syllable of an answer is chosen by attention over the whole prompt, and
the walk goes on from there without a repeat for `len(SYLLABLES)` tokens.

No matrix product is used in making the weights, so the file does not depend on the linear algebra library, only on
numpy's random stream.

Usage: `python examples/tiny_model.py OUT.gguf --seed 1 --name tiny-a`
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import gguf
import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

EMBEDDING = 256
HEADS = 4
FEED_FORWARD = 512
LAYERS = 2
CONTEXT = 2048

CONTROL = ("<unk>", "<s>", "</s>", "<|system|>", "<|user|>", "<|assistant|>", "<|end|>")
UNKNOWN, BEGIN, END_OF_TEXT, END_OF_TURN = 0, 1, 2, CONTROL.index("<|end|>")

_STEMS = tuple(consonant + vowel for consonant in "bdfgklmnprstvz" for vowel in "aeiou")
# SentencePiece writes a word's leading space as U+2581. Its merges need every intermediate piece: "b" + "a" gives "ba",
# then U+2581 + "ba" gives the start of a word.
SYLLABLES = tuple("\u2581" + stem for stem in _STEMS) + _STEMS

CHAT_TEMPLATE = (
    "{% for message in messages %}{{ '<|' + message['role'] + '|>' + message['content'] + '<|end|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)

# Residual contribution of each block, relative to a syllable's unit-variance embedding: enough for attention to choose
# where an answer starts, too little to overturn a syllable's successor (over 500 walks of 48 tokens none was).
_BLOCK_GAIN = 0.5
_CONTROL_SCALE = 0.02


@dataclass(frozen=True)
class Vocabulary:
    """The tokens by id, with their SentencePiece scores and GGUF token types."""

    tokens: tuple[str, ...]
    scores: tuple[float, ...]
    types: tuple[gguf.TokenType, ...]
    first_syllable: int


def vocabulary() -> Vocabulary:
    """Return the vocabulary: control tokens, the 256 bytes as fallback, the syllables."""
    byte_tokens = tuple(f"<0x{value:02X}>" for value in range(256))
    first = len(CONTROL) + len(byte_tokens)
    # A higher score merges first: stems before word starts, since a word start is made from its stem.
    syllable_scores = tuple(-2.0 if piece.startswith("\u2581") else -1.0 for piece in SYLLABLES)
    return Vocabulary(
        tokens=CONTROL + byte_tokens + SYLLABLES,
        scores=(0.0,) * first + syllable_scores,
        types=(gguf.TokenType.UNKNOWN,)
        + (gguf.TokenType.CONTROL,) * (len(CONTROL) - 1)
        + (gguf.TokenType.BYTE,) * len(byte_tokens)
        + (gguf.TokenType.NORMAL,) * len(SYLLABLES),
        first_syllable=first,
    )


def weights(seed: int) -> dict[str, NDArray[np.float32]]:
    """Draw the tensors of the model, named as llama.cpp names them.

    Args:
        seed: selects the syllable cycle and every weight; equal seeds give equal tensors.

    Returns:
        Tensor by name; matrices are (output features, input features), float32.
    """
    random = np.random.Generator(np.random.PCG64(seed))
    vocab = vocabulary()
    size, first = len(vocab.tokens), vocab.first_syllable

    def matrix(rows: int, columns: int, gain: float) -> NDArray[np.float32]:
        return random.standard_normal((rows, columns), dtype=np.float32) * np.float32(gain / columns**0.5)

    embedding = random.standard_normal((size, EMBEDDING), dtype=np.float32)
    embedding[: len(CONTROL)] *= np.float32(_CONTROL_SCALE)
    cycle = first + random.permutation(len(SYLLABLES))
    output = np.zeros_like(embedding)
    output[np.roll(cycle, -1)] = embedding[cycle]

    tensors = {
        "token_embd.weight": embedding,
        "output_norm.weight": np.ones(EMBEDDING, np.float32),
        "output.weight": output,
    }
    for layer in range(LAYERS):
        prefix = f"blk.{layer}."
        tensors |= {
            prefix + "attn_norm.weight": np.ones(EMBEDDING, np.float32),
            prefix + "attn_q.weight": matrix(EMBEDDING, EMBEDDING, 1.0),
            prefix + "attn_k.weight": matrix(EMBEDDING, EMBEDDING, 1.0),
            prefix + "attn_v.weight": matrix(EMBEDDING, EMBEDDING, 1.0),
            prefix + "attn_output.weight": matrix(EMBEDDING, EMBEDDING, _BLOCK_GAIN),
            prefix + "ffn_norm.weight": np.ones(EMBEDDING, np.float32),
            prefix + "ffn_gate.weight": matrix(FEED_FORWARD, EMBEDDING, 1.0),
            prefix + "ffn_up.weight": matrix(FEED_FORWARD, EMBEDDING, 1.0),
            prefix + "ffn_down.weight": matrix(EMBEDDING, FEED_FORWARD, _BLOCK_GAIN),
        }
    return tensors


def write_tiny_model(path: Path, *, seed: int, name: str = "tiny") -> None:
    """Write a tiny random Llama model to `path` (about 3 MB), replacing what is there.

    Args:
        path: the GGUF file to write; its folder must exist.
        seed: any non-negative integer; equal arguments give equal bytes.
        name: the model's name in the file's metadata (``general.name``).

    Raises:
        OSError: the file cannot be written.
        ValueError: `seed` is negative.
    """
    vocab = vocabulary()
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_name(name)
    writer.add_description(f"Random weights (seed {seed}) for demonstrations and tests; it knows nothing.")
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_F16)
    writer.add_context_length(CONTEXT)
    writer.add_embedding_length(EMBEDDING)
    writer.add_block_count(LAYERS)
    writer.add_feed_forward_length(FEED_FORWARD)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(HEADS)
    writer.add_rope_dimension_count(EMBEDDING // HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(len(vocab.tokens))
    writer.add_tokenizer_model("llama")
    writer.add_tokenizer_pre("default")
    writer.add_token_list(vocab.tokens)
    writer.add_token_scores(vocab.scores)
    writer.add_token_types(vocab.types)
    writer.add_unk_token_id(UNKNOWN)
    writer.add_bos_token_id(BEGIN)
    writer.add_eos_token_id(END_OF_TEXT)
    writer.add_eot_token_id(END_OF_TURN)
    writer.add_add_bos_token(value=True)
    writer.add_add_space_prefix(value=True)
    writer.add_chat_template(CHAT_TEMPLATE)
    for tensor_name, tensor in weights(seed).items():
        # llama.cpp wants vectors (norms) in float32; matrices are stored at half size.
        writer.add_tensor(tensor_name, tensor if tensor.ndim == 1 else tensor.astype(np.float16))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; see the module's docstring."""
    parser = argparse.ArgumentParser(description="Write a tiny random language model (GGUF) for demos and tests.")
    parser.add_argument("out", type=Path, metavar="OUT.gguf")
    parser.add_argument("--seed", type=int, default=1, help="equal seeds give equal bytes (default: %(default)s)")
    parser.add_argument("--name", default="tiny", help="name in the file's metadata (default: %(default)s)")
    options = parser.parse_args(arguments)
    try:
        write_tiny_model(options.out, seed=options.seed, name=options.name)
    except (OSError, ValueError) as error:
        print(f"tiny_model: {error}", file=sys.stderr)
        return 1
    print(f"{options.out}: {options.out.stat().st_size} bytes, random weights, seed {options.seed}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
