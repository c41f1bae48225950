"""Write the tiny model of `tiny_model.py` as a folder of safetensors, as vLLM and transformers load it.

The same weights under the names of Hugging Face's `LlamaForCausalLM`, with a tokenizer that knows one token per word.
Needs numpy and nothing of the Hugging Face libraries: the format is a length, a JSON header and the bytes
(https://github.com/huggingface/safetensors, "Format").

Usage: `python examples/tiny_safetensors.py FOLDER --seed 1`
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from examples import tiny_model as tiny

if TYPE_CHECKING:
    from collections.abc import Sequence

_NAMES = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "output": "lm_head",
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}


def write_tiny_folder(folder: Path, *, seed: int) -> None:
    """Write a tiny random Llama model into `folder` (about 2 MB), which must exist.

    Args:
        folder: receives `config.json`, `tokenizer.json`, `tokenizer_config.json` and `model.safetensors`.
        seed: any non-negative integer; equal seeds give equal bytes.

    Raises:
        OSError: a file cannot be written.
        ValueError: `seed` is negative.
    """
    for name, value in (
        ("config.json", _config()),
        ("tokenizer.json", _tokenizer()),
        ("tokenizer_config.json", _tokenizer_config()),
    ):
        (folder / name).write_text(json.dumps(value, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
    _write_weights(folder / "model.safetensors", seed)


def _config() -> dict[str, Any]:
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": len(tiny.vocabulary().tokens),
        "hidden_size": tiny.EMBEDDING,
        "intermediate_size": tiny.FEED_FORWARD,
        "num_hidden_layers": tiny.LAYERS,
        "num_attention_heads": tiny.HEADS,
        "num_key_value_heads": tiny.HEADS,
        "max_position_embeddings": tiny.CONTEXT,
        "rms_norm_eps": 1e-5,
        "hidden_act": "silu",
        "tie_word_embeddings": False,
        "bos_token_id": tiny.BEGIN,
        "eos_token_id": tiny.END_OF_TEXT,
        "torch_dtype": "float32",
    }


def _tokenizer() -> dict[str, Any]:
    tokens = tiny.vocabulary().tokens
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    # Without the mark of a leading space: words are told apart by the spaces between them.
    vocabulary = {token.removeprefix("\u2581"): number for number, token in _unique(tokens)}
    return {
        "version": "1.0",
        "added_tokens": [{"id": number, "content": token, **flags} for number, token in enumerate(tiny.CONTROL)],
        "pre_tokenizer": {"type": "WhitespaceSplit"},
        "model": {"type": "WordLevel", "vocab": vocabulary, "unk_token": tiny.CONTROL[tiny.UNKNOWN]},
    }


def _unique(tokens: Sequence[str]) -> list[tuple[int, str]]:
    """Every token once by its text: a syllable inside a word has the text of one at its start, with a mark."""
    words = {token.removeprefix("\u2581") for token in tokens if token.startswith("\u2581")}
    return [(number, f"+{token}" if token in words else token) for number, token in enumerate(tokens)]


def _tokenizer_config() -> dict[str, Any]:
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": tiny.CONTROL[tiny.BEGIN],
        "eos_token": tiny.CONTROL[tiny.END_OF_TEXT],
        "unk_token": tiny.CONTROL[tiny.UNKNOWN],
        "model_max_length": tiny.CONTEXT,
        "chat_template": tiny.CHAT_TEMPLATE,
    }


def _write_weights(path: Path, seed: int) -> None:
    tensors = {_renamed(name): tensor.astype(np.float16) for name, tensor in tiny.weights(seed).items()}
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, tensor in tensors.items():
        begin, end = end, end + tensor.nbytes
        header[name] = {"dtype": "F16", "shape": list(tensor.shape), "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    content = b"".join(tensor.tobytes() for tensor in tensors.values())
    path.write_bytes(len(text).to_bytes(8, "little") + text + content)


def _renamed(name: str) -> str:
    """llama.cpp's name of a tensor as transformers' own."""
    *layer, kind, end = name.split(".")
    prefix = f"model.layers.{layer[1]}." if layer else ""
    return f"{prefix}{_NAMES[kind]}.{end}"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; see the module's docstring."""
    parser = argparse.ArgumentParser(description="Write a tiny random language model (safetensors) for tests.")
    parser.add_argument("folder", type=Path, metavar="FOLDER")
    parser.add_argument("--seed", type=int, default=1, help="equal seeds give equal bytes (default: %(default)s)")
    options = parser.parse_args(arguments)
    try:
        options.folder.mkdir(parents=True, exist_ok=True)
        write_tiny_folder(options.folder, seed=options.seed)
    except (OSError, ValueError) as error:
        print(f"tiny_safetensors: {error}", file=sys.stderr)
        return 1
    print(f"{options.folder}: a tiny model of random weights, seed {options.seed}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
