"""A reference implementation's distributions: transformers on a processor or GPU, in 32 bits.

A program of its own, because it imports torch, which an agent must not: `python reference_transformers.py < question`.
Standalone: it imports the standard library, torch and transformers, and nothing of this project. torch and
transformers are no dependencies of the agent: any environment that has them will do (`--reference-python`).

Question, as JSON on standard input: `{"model": folder, "pairs": [[prompt, tokens], ...], "top": 64}`.
Answer, as JSON on standard output: for each pair, for each of its tokens, `[ids, logprobs]`, the likeliest first.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any


def answer(question: dict[str, Any]) -> list[Any]:
    """Distributions for each pair; see the module."""
    import torch  # noqa: PLC0415 - only this program has it
    from transformers import AutoModelForCausalLM  # noqa: PLC0415 - as above

    folder = Path(question["model"])
    packed = sorted(folder.glob("*.gguf"))
    given: dict[str, Any] = {"gguf_file": packed[0].name} if packed else {}
    model = AutoModelForCausalLM.from_pretrained(folder, torch_dtype=torch.float32, local_files_only=True, **given)
    model = model.to("cuda" if torch.cuda.is_available() else "cpu").eval()
    found = []
    with torch.inference_mode():
        for prompt, tokens in question["pairs"]:
            ids = torch.tensor([[*prompt, *tokens]], device=model.device)
            logits = model(ids).logits[0, len(prompt) - 1 : -1].double()
            best = torch.log_softmax(logits, dim=-1).topk(min(int(question["top"]), logits.shape[-1]), dim=-1)
            rows = zip(best.indices.tolist(), best.values.tolist(), strict=True)
            found.append([[ids_, [min(value, 0.0) for value in values]] for ids_, values in rows])
    return found


if __name__ == "__main__":
    json.dump(answer(json.load(sys.stdin)), sys.stdout)
