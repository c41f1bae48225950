"""Whether a machine can run a model on a runtime at all, whatever happens on it now. Pure."""

from __future__ import annotations

import re
from functools import lru_cache
from types import MappingProxyType
from typing import TYPE_CHECKING, Final

from reconciler.gpus import driver_shortcoming

if TYPE_CHECKING:
    from collections.abc import Mapping

    from schemas.observation import Hardware
    from schemas.runtimes import EngineName, RuntimeSpec
    from schemas.snapshot import ModelSpec

TASKS: Final[Mapping[EngineName, frozenset[str]]] = MappingProxyType(
    dict.fromkeys(("llamacpp", "vllm", "ollama", "openai"), frozenset({"chat", "completion", "json", "tools"}))
)
"""What each engine is good for as this agent starts it: all generate text, none is started for anything else."""


def misfit(runtime: RuntimeSpec, model: ModelSpec, hardware: Hardware) -> str:
    """Why a machine can never run a model on a runtime, for people; empty where nothing speaks against it."""
    return _of_engine(runtime, model) or _of_machine(runtime, model, hardware)


def _of_engine(runtime: RuntimeSpec, model: ModelSpec) -> str:
    if model.requires.engines and not any(
        _engine_fits(bound, runtime.engine, runtime.version) for bound in model.requires.engines
    ):
        wanted = " or ".join(model.requires.engines)
        return f"{model.key} needs {wanted}, not {runtime.engine} {runtime.version}"
    tasks = TASKS[runtime.engine]
    if runtime.engine == "vllm" and runtime.engine_args.tool_call_parser is None:
        # It answers 400 to whoever wants a function called (vLLM 0.32, `online_renderer.py`).
        tasks -= {"tools"}
    missing = [task for task in model.requires.tasks if task not in tasks]
    if missing:
        served = ", ".join(sorted(tasks))
        how = " (tools: with engineArgs.toolCallParser)" if "tools" in missing and runtime.engine == "vllm" else ""
        return f"{model.key} is for {', '.join(missing)}; {runtime.engine} serves {served} here{how}"
    return ""


def _of_machine(runtime: RuntimeSpec, model: ModelSpec, hardware: Hardware) -> str:
    needed = model.requires.memory
    if needed > hardware.memory:
        return f"{model.key} needs {needed} bytes of memory, the machine has {hardware.memory}"
    if runtime.resources.gpus > len(hardware.gpus):
        why = f": {hardware.gpu_trouble}" if hardware.gpu_trouble else ""
        return f"{runtime.name} needs {runtime.resources.gpus} GPUs, the machine has {len(hardware.gpus)}{why}"
    if model.requires.gpu_memory and not runtime.resources.gpus:
        return f"{model.key} needs {model.requires.gpu_memory} bytes of GPU memory, {runtime.name} no GPU"
    lacking = driver_shortcoming(runtime, model.requires, hardware)
    return f"{model.key} {lacking}" if lacking else ""


@lru_cache(maxsize=256)
def _engine_fits(bound: str, engine: EngineName, version: str) -> bool:
    """Whether a version is within a bound: the models of a network, and the nodes of a fleet, ask the same things."""
    from packaging.specifiers import InvalidSpecifier, SpecifierSet  # noqa: PLC0415 - 16 ms, for models with a bound
    from packaging.version import InvalidVersion, Version  # noqa: PLC0415 - as above

    name = re.match(r"[a-z]*", bound).group()  # type: ignore[union-attr]
    if name != engine:
        return False
    try:
        return Version(version) in SpecifierSet(bound[len(name) :], prereleases=True)
    except (InvalidSpecifier, InvalidVersion):
        return False
