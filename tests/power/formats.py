"""Write the small models as engines load them: a GGUF file for llama.cpp, a folder of safetensors for the others."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Final

import gguf
import numpy as np
from gguf.quants import quantize

from tests.power.shape import BEGIN, CHAT_TEMPLATE, CONTROL, END

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

    from tests.power.shape import Shape
    from tests.power.weights import Weights

Tokenizer = dict[str, Any]
"""A `tokenizer.json`."""

TYPES: Final = {
    "F32": gguf.LlamaFileType.ALL_F32,
    "F16": gguf.LlamaFileType.MOSTLY_F16,
    "BF16": gguf.LlamaFileType.MOSTLY_BF16,
    "Q8_0": gguf.LlamaFileType.MOSTLY_Q8_0,
    "Q4_0": gguf.LlamaFileType.MOSTLY_Q4_0,
}
_GGUF_NAMES: Final = {
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "q_proj": "attn_q",
    "k_proj": "attn_k",
    "v_proj": "attn_v",
    "o_proj": "attn_output",
    "gate_proj": "ffn_gate",
    "up_proj": "ffn_up",
    "down_proj": "ffn_down",
}
EPSILON: Final = 1e-5


def write_gguf(
    path: Path,
    weights: Weights,
    shape: Shape,
    tokenizer: Tokenizer,
    *,
    kind: str = "F16",
    template: str | None = CHAT_TEMPLATE,
    add_begin: bool = True,
    epsilon: float = EPSILON,
) -> None:
    """Write a model for llama.cpp.

    Args:
        path: the file.
        weights: by the names that Hugging Face gives them.
        shape: of the model.
        tokenizer: byte-level BPE.
        kind: what matrices are stored as: one of `TYPES`.
        template: the chat template; None: none.
        add_begin: whether a text is encoded with a beginning of sequence.
        epsilon: of the norms.
    """
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_name("small")
    writer.add_file_type(TYPES[kind])
    writer.add_context_length(shape.context)
    writer.add_embedding_length(shape.width)
    writer.add_block_count(shape.layers)
    writer.add_feed_forward_length(shape.feed_forward)
    writer.add_head_count(shape.heads)
    writer.add_head_count_kv(shape.key_value_heads)
    writer.add_rope_dimension_count(shape.head)
    writer.add_rope_freq_base(shape.rope_base)
    writer.add_layer_norm_rms_eps(epsilon)
    writer.add_vocab_size(shape.vocabulary)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    vocabulary = tokenizer["model"]["vocab"]
    tokens = sorted(vocabulary, key=lambda token: int(vocabulary[token]))
    writer.add_token_list(tokens)
    writer.add_token_types(
        [gguf.TokenType.CONTROL if token in CONTROL else gguf.TokenType.NORMAL for token in tokens],
    )
    writer.add_token_merges([merge if isinstance(merge, str) else " ".join(merge) for merge in merges(tokenizer)])
    writer.add_bos_token_id(BEGIN)
    writer.add_eos_token_id(END)
    writer.add_add_bos_token(value=add_begin)
    if template is not None:
        writer.add_chat_template(template)
    quantised = getattr(gguf.GGMLQuantizationType, kind)
    for name, tensor in weights.items():
        stored = _as_llamacpp(name, tensor, shape)
        if tensor.ndim == 1:
            writer.add_tensor(_gguf_name(name), stored)
        else:
            writer.add_tensor(_gguf_name(name), quantize(stored, quantised), raw_dtype=quantised)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def merges(tokenizer: Tokenizer) -> list[Any]:
    """Its merges, the first to be made first."""
    found: list[Any] = tokenizer["model"]["merges"]
    return found


def _gguf_name(name: str) -> str:
    if name == "model.embed_tokens.weight":
        return "token_embd.weight"
    if name == "model.norm.weight":
        return "output_norm.weight"
    _, _, layer, *kind, end = name.split(".")
    return f"blk.{layer}.{_GGUF_NAMES[kind[-1]]}.{end}"


def _as_llamacpp(name: str, tensor: NDArray[np.float32], shape: Shape) -> NDArray[np.float32]:
    """llama.cpp rotates neighbours where Hugging Face rotates halves (`LlamaModel.permute` of its converter)."""
    heads = {"q_proj": shape.heads, "k_proj": shape.key_value_heads}.get(name.split(".")[-2])
    if heads is None:
        return np.ascontiguousarray(tensor)
    parts = tensor.reshape(heads, 2, tensor.shape[0] // heads // 2, tensor.shape[1])
    return np.ascontiguousarray(parts.swapaxes(1, 2).reshape(tensor.shape))


def write_folder(folder: Path, weights: Weights, shape: Shape, tokenizer: Tokenizer) -> None:
    """Write a model for vLLM and transformers, in 32 bits: engines compute in what they are told to."""
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": shape.vocabulary,
        "hidden_size": shape.width,
        "intermediate_size": shape.feed_forward,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.key_value_heads,
        "head_dim": shape.head,
        "max_position_embeddings": shape.context,
        "rms_norm_eps": EPSILON,
        "rope_theta": shape.rope_base,
        "hidden_act": "silu",
        "tie_word_embeddings": True,
        "bos_token_id": BEGIN,
        "eos_token_id": END,
        "torch_dtype": "float32",
    }
    about = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": CONTROL[BEGIN],
        "eos_token": CONTROL[END],
        "model_max_length": shape.context,
        "chat_template": CHAT_TEMPLATE,
    }
    for name, value in (("config.json", config), ("tokenizer_config.json", about), ("tokenizer.json", tokenizer)):
        (folder / name).write_text(json.dumps(value, ensure_ascii=False) + "\n", encoding="utf-8")
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, tensor in weights.items():
        begin, end = end, end + tensor.nbytes
        header[name] = {"dtype": "F32", "shape": list(tensor.shape), "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    content = b"".join(tensor.astype(np.float32).tobytes() for tensor in weights.values())
    (folder / "model.safetensors").write_bytes(len(text).to_bytes(8, "little") + text + content)
