"""The engines that this agent knows, in one place. An engine is one file here and one line below."""

from __future__ import annotations

from typing import TYPE_CHECKING

from runtime.engines.llamacpp import LlamaCppEngine
from runtime.engines.ollama import OllamaEngine
from runtime.engines.openai import OpenAIEngine
from runtime.engines.vllm import VllmEngine

if TYPE_CHECKING:
    from runtime.interfaces import Engine


def engines() -> dict[str, Engine]:
    """Every engine, by the name that snapshots use."""
    known: tuple[Engine, ...] = (LlamaCppEngine(), VllmEngine(), OllamaEngine(), OpenAIEngine())
    return {engine.name: engine for engine in known}
