"""The shape of the small models: what training, both file formats and the faults have to agree about."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

CONTROL: Final = ("<|begin|>", "<|end|>", "<|system|>", "<|user|>", "<|assistant|>")
"""The first ids of the vocabulary."""
BEGIN, END = 0, 1

CHAT_TEMPLATE: Final = (
    "{% for message in messages %}{{ '<|' + message['role'] + '|>' + message['content'] + '<|end|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)


@dataclass(frozen=True)
class Shape:
    """A Llama with tied embeddings."""

    layers: int
    width: int
    heads: int
    key_value_heads: int
    feed_forward: int
    vocabulary: int = 2048
    head: int = 32
    """Width of a head."""
    rope_base: float = 10000.0
    context: int = 512

    def tensors(self) -> dict[str, tuple[int, ...]]:
        """Shapes, (output features, input features), by the names that Hugging Face gives them."""
        found: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (self.vocabulary, self.width)}
        inner, key_value = self.heads * self.head, self.key_value_heads * self.head
        for layer in range(self.layers):
            place = f"model.layers.{layer}."
            found |= {
                place + "input_layernorm.weight": (self.width,),
                place + "self_attn.q_proj.weight": (inner, self.width),
                place + "self_attn.k_proj.weight": (key_value, self.width),
                place + "self_attn.v_proj.weight": (key_value, self.width),
                place + "self_attn.o_proj.weight": (self.width, inner),
                place + "post_attention_layernorm.weight": (self.width,),
                place + "mlp.gate_proj.weight": (self.feed_forward, self.width),
                place + "mlp.up_proj.weight": (self.feed_forward, self.width),
                place + "mlp.down_proj.weight": (self.width, self.feed_forward),
            }
        return found | {"model.norm.weight": (self.width,)}


BASE: Final = Shape(layers=4, width=160, heads=5, key_value_heads=1, feed_forward=416)
SMALLER: Final = Shape(layers=2, width=96, heads=3, key_value_heads=1, feed_forward=192)
