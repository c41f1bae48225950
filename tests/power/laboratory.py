"""Runs engines over the passages, once for each circumstance and fault, and keeps what they answered."""

from __future__ import annotations

import json
import pickle
import shutil
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final

from runtime.engines.llamacpp import LlamaCppEngine
from runtime.engines.vllm import VllmEngine
from runtime.validation.evidence import Platform
from schemas.errors import EngineUnreachable
from tests.power import serving, weights
from tests.power.formats import write_folder, write_gguf
from tests.power.serving import Remembered, fill
from tests.power.shape import BASE, SMALLER
from tests.power.variants import SERVERS, VARIANTS, Variant

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from runtime.connection import UnixConnection
    from schemas.probe import ProbeSpec

HONEST: Final = Variant("honest")
SETTINGS: Final[dict[str, dict[str, int]]] = {
    "one thread": {"threads": 1},
    "prompts in batches of five": {"threads": 1, "batch": 5},
    "four requests at a time": {"threads": 1, "parallel": 4},
    "seven requests at a time": {"threads": 1, "parallel": 7},
}
"""Honest circumstances of llama.cpp. The number of threads is looked at apart: see `threads_matter`."""
THREAD_CASES: Final = 12
"""Two threads wait for each other at every step, which takes a busy machine a hundred times as long."""
VLLM_SETTINGS: Final[dict[str, tuple[tuple[str, ...], int]]] = {
    "eager, one thread, one request at a time": (("--enforce-eager",), 1),
    "compiled, two threads, eight requests at a time, prefix caching off": (("--no-enable-prefix-caching",), 2),
    "eager, two threads, eight requests at a time, batches of 256 tokens": (
        ("--enforce-eager", "--max-num-batched-tokens", "256", "--enable-prefix-caching"),
        2,
    ),
}
"""Honest circumstances of vLLM: flags and threads."""


class Laboratory:
    """Model files are made as they are needed; answers are kept in a folder, so that a second run asks nothing."""

    def __init__(self, models: Path, work: Path) -> None:
        """Describe it.

        Args:
            models: what `train` wrote.
            work: for files and answers.
        """
        self.models = models
        self.work = work
        self.tokenizer: dict[str, Any] = json.loads((models / "tokenizer.json").read_text("utf-8"))
        self.passages: list[str] = json.loads((models / "passages.json").read_text("utf-8"))
        work.mkdir(parents=True, exist_ok=True)

    def has(self, variant: Variant) -> bool:
        """Whether the weights that it starts from have been trained."""
        return (self.models / f"{variant.model}.safetensors").exists()

    def gguf(self, variant: Variant, kind: str, **more: Any) -> Path:
        """Its file for llama.cpp."""
        folder = self.work / f"gguf {kind}"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        write_gguf(
            folder / "model.gguf",
            variant.change(weights.read(self.models / f"{variant.model}.safetensors")),
            variant.shape,
            more.pop("tokenizer", self.tokenizer),
            kind=variant.kind or kind,
            epsilon=variant.epsilon,
            **more,
        )
        return folder / "model.gguf"

    def folder(self, variant: Variant, name: str = "folder") -> Path:
        """Its folder for vLLM and transformers."""
        folder = self.work / name
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        changed = variant.change(weights.read(self.models / f"{variant.model}.safetensors"))
        write_folder(folder, changed, variant.shape, self.tokenizer)
        return folder

    def kept(self, name: str, engine: Remembered, ask: Callable[[], object]) -> Remembered:
        """An engine with its answers: from the folder, or else from asking."""
        path = self.work / f"{name.replace('/', ' ')}.pickle"
        if path.exists():
            engine.known = pickle.loads(path.read_bytes())
            return engine
        ask()
        path.write_bytes(pickle.dumps(engine.known))
        return engine


def remade(path: Path, make: Callable[[], Any]) -> Any:
    """A result that was kept, or else made and kept."""
    if not path.exists():
        made = make()
        path.write_bytes(pickle.dumps(made))
    return pickle.loads(path.read_bytes())


class LlamaCpp:
    """llama.cpp with files of one kind."""

    def __init__(self, laboratory: Laboratory, kind: str, architecture: str, version: str) -> None:
        """Nothing is started yet."""
        self.laboratory = laboratory
        self.kind = kind
        self.platform = Platform("llamacpp", version, architecture, kind)
        self.label = f"llama.cpp {kind}"
        self.missing: list[str] = []
        """Nothing: without llama.cpp there is no table."""

    @contextmanager
    def recording(self) -> Iterator[tuple[Remembered, UnixConnection]]:
        """What probes are recorded from."""
        with serving.llamacpp(self.laboratory.gguf(HONEST, self.kind)) as connection:
            yield Remembered(LlamaCppEngine()), connection

    def honest(self, specs: Sequence[ProbeSpec]) -> dict[str, Remembered]:
        """Each honest circumstance."""
        found = {}
        for name, setting in SETTINGS.items():
            engine = Remembered(LlamaCppEngine())

            def ask(engine: Remembered = engine, setting: dict[str, int] = setting) -> None:
                path = self.laboratory.gguf(HONEST, self.kind)
                with serving.llamacpp(path, **setting) as connection:
                    fill(engine, connection, specs, load=setting.get("parallel", 1))

            found[name] = self.laboratory.kept(f"{self.label} {name}", engine, ask)
        return found

    def threads_matter(self, honest: Remembered, spec: ProbeSpec) -> bool:
        """Whether two threads answer anything else than one does, over a few cases, bit by bit."""
        with serving.llamacpp(self.laboratory.gguf(HONEST, self.kind), threads=2) as connection:
            return any(
                LlamaCppEngine().force(connection, case.prompt, case.tokens)
                != honest.force(None, case.prompt, case.tokens)
                for case in spec.forced[:THREAD_CASES]
            )

    def faulty(self, judged: Sequence[ProbeSpec]) -> Iterator[tuple[str, Remembered]]:
        """Each fault of weights or server that can be made here."""
        for variant in VARIANTS:
            if self.laboratory.has(variant):
                yield variant.name, self._one(variant.name, variant, Remembered(LlamaCppEngine()), judged)
        for name, wrap in SERVERS.items():
            yield name, self._one(name, HONEST, wrap(LlamaCppEngine()), judged)
        smaller = Variant("a proxy that forwards to a smaller model", model="smaller", shape=SMALLER)
        if self.laboratory.has(smaller):
            yield smaller.name, self._one(smaller.name, smaller, Remembered(LlamaCppEngine()), judged)

    def _one(self, name: str, variant: Variant, engine: Remembered, judged: Sequence[ProbeSpec]) -> Remembered:
        def ask() -> None:
            path = self.laboratory.gguf(variant, self.kind)
            with serving.llamacpp(path) as connection:
                fill(engine, connection, judged)

        return self.laboratory.kept(f"{self.label} {name}", engine, ask)


class Vllm:
    """vLLM in one kind of numbers."""

    def __init__(self, laboratory: Laboratory, python: Path, dtype: str, architecture: str, version: str) -> None:
        """Nothing is started yet."""
        self.laboratory = laboratory
        self.python = python
        self.platform = Platform("vllm", version, architecture, dtype)
        self.label = f"vLLM {dtype}"
        self.missing: list[str] = []
        """Circumstances and faults under which it did not start or answer here."""
        self._flags = ("--dtype", dtype, "--load-format", "safetensors", "--max-model-len", str(BASE.context))

    @contextmanager
    def recording(self) -> Iterator[tuple[Remembered, UnixConnection]]:
        """What probes are recorded from."""
        folder = self.laboratory.folder(HONEST)
        with serving.vllm(folder, self.python, *self._flags, "--enforce-eager") as connection:
            yield Remembered(VllmEngine()), connection

    def honest(self, specs: Sequence[ProbeSpec]) -> dict[str, Remembered]:
        """Each honest circumstance."""
        found = {}
        for name, (flags, threads) in VLLM_SETTINGS.items():
            engine = Remembered(VllmEngine())

            def ask(
                engine: Remembered = engine, flags: tuple[str, ...] = flags, threads: int = threads, name: str = name
            ) -> None:
                folder = self.laboratory.folder(HONEST)
                with serving.vllm(folder, self.python, *self._flags, *flags, threads=threads) as connection:
                    fill(engine, connection, specs, load=8 if "eight" in name else 1)

            try:
                found[name] = self.laboratory.kept(f"{self.label} {name}", engine, ask)
            except EngineUnreachable:
                self.missing.append(name)
        return found

    def faulty(self, judged: Sequence[ProbeSpec]) -> Iterator[tuple[str, Remembered]]:
        """The main rows."""
        for variant in VARIANTS:
            if not variant.vllm or not self.laboratory.has(variant):
                continue
            engine = Remembered(VllmEngine())

            def ask(variant: Variant = variant, engine: Remembered = engine) -> None:
                folder = self.laboratory.folder(variant)
                with serving.vllm(folder, self.python, *self._flags, "--enforce-eager") as connection:
                    fill(engine, connection, judged, load=8)

            try:
                yield variant.name, self.laboratory.kept(f"{self.label} {variant.name}", engine, ask)
            except EngineUnreachable:
                self.missing.append(variant.name)
