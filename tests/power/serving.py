"""Starts engines on the small models, and remembers what they answered, so that thousands of draws need one run."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from copy import copy
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from runtime.connection import UnixConnection
from runtime.engines.llamacpp import PROGRAM, LlamaCppEngine
from runtime.engines.vllm import ENVIRONMENT, MODULE, VllmEngine
from runtime.interfaces import SOCKET_NAME
from runtime.validation.generation import BEYOND
from schemas.errors import EngineUnreachable

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from runtime.interfaces import Engine
    from runtime.validation.evidence import TopTokens
    from schemas.probe import ProbeSpec

START_SECONDS: Final = 600.0


@contextmanager
def _serving(engine: Engine, command: Sequence[str], environment: dict[str, str]) -> Iterator[UnixConnection]:
    with tempfile.TemporaryDirectory(prefix="power-") as name:
        folder = Path(name)
        with (folder / "log").open("wb") as log:
            process = subprocess.Popen(
                [part.replace("SOCKET", str(folder / SOCKET_NAME)) for part in command],
                cwd=folder,
                env={"PATH": os.environ["PATH"], "HOME": name, "LANG": "C.UTF-8", **environment},
                stdout=log,
                stderr=log,
            )
        connection = UnixConnection(folder / SOCKET_NAME, is_peer=lambda _pid: True)
        try:
            deadline = time.monotonic() + START_SECONDS
            while not _ready(engine, connection):
                if process.poll() is not None or time.monotonic() > deadline:
                    raise EngineUnreachable((folder / "log").read_text(errors="replace")[-2000:])
                time.sleep(0.1)
            yield connection
        finally:
            process.terminate()
            try:
                process.wait(60)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _ready(engine: Engine, connection: UnixConnection) -> bool:
    try:
        return engine.ready(connection)
    except EngineUnreachable:
        return False


@contextmanager
def llamacpp(model: Path, *, threads: int = 1, parallel: int = 1, batch: int = 2048) -> Iterator[UnixConnection]:
    """llama.cpp's server with a GGUF file.

    Raises:
        EngineUnreachable: it does not start; with the end of its log.
    """
    flags = ("--threads", str(threads), "--parallel", str(parallel), "--ctx-size", "512", "--batch-size", str(batch))
    command = (sys.executable, "-I", "-B", str(PROGRAM), "--model", str(model), "--socket", "SOCKET", *flags)
    with _serving(LlamaCppEngine(), command, {}) as connection:
        yield connection


@contextmanager
def vllm(model: Path, python: Path, *flags: str, threads: int = 1) -> Iterator[UnixConnection]:
    """VLLM with a folder of safetensors, as another environment's interpreter runs it.

    Raises:
        EngineUnreachable: it does not start; with the end of its log.
    """
    command = (str(python), "-I", "-B", "-u", "-m", MODULE, "--model", str(model), "--uds", "SOCKET", *flags)
    more = {"VLLM_RPC_BASE_PATH": ".", "VLLM_CPU_KVCACHE_SPACE": "1", "OMP_NUM_THREADS": str(threads)}
    with _serving(VllmEngine(), command, {**ENVIRONMENT, **more}) as connection:
        yield connection


class Remembered:
    """An engine of which every answer that does not vary is remembered, and that goes on answering when it is gone.

    What is drawn (`sample`) is asked anew each time: it is never remembered.
    """

    def __init__(self, engine: Engine) -> None:
        """Remember nothing yet."""
        self.engine = engine
        self.name = engine.name
        self.answers = engine.answers
        self.known: dict[Any, Any] = {}

    def __getattr__(self, name: str) -> Any:
        """Everything else is the engine's."""
        if name in {"engine", "known"}:  # while it is being copied
            raise AttributeError(name)
        return getattr(self.engine, name)

    def without_sampler(self) -> Remembered:
        """The same memory; nothing that is drawn is asked for."""
        other = copy(self)
        other.answers = self.answers - {"sample", "chat"}
        return other

    def force(self, connection: Any, prompt: Sequence[int], forced: Sequence[int]) -> tuple[TopTokens, ...]:
        """Remembered by what was asked."""
        key = ("force", tuple(prompt), tuple(forced))
        if key not in self.known:
            self.known[key] = self.engine.force(connection, prompt, forced)
        found: tuple[TopTokens, ...] = self.known[key]
        return found

    def greedy(self, connection: Any, prompt: Sequence[int], *, tokens: int) -> tuple[int, ...]:
        """Remembered by what was asked."""
        key = ("greedy", tuple(prompt), tokens)
        if key not in self.known:
            self.known[key] = self.engine.greedy(connection, prompt, tokens=tokens)
        found: tuple[int, ...] = self.known[key]
        return found

    def render(self, connection: Any, messages: Any, *, tools: Any = ()) -> tuple[int, ...]:
        """Remembered by what was asked."""
        key = ("render", repr(tuple(messages)), repr(tuple(tools)))
        if key not in self.known:
            self.known[key] = self.engine.render(connection, messages, tools=tools)
        found: tuple[int, ...] = self.known[key]
        return found

    def tokenize(self, connection: Any, text: str, *, special: bool) -> tuple[int, ...]:
        """Remembered by what was asked."""
        key = ("tokenize", text, special)
        if key not in self.known:
            self.known[key] = self.engine.tokenize(connection, text, special=special)
        found: tuple[int, ...] = self.known[key]
        return found


def fill(engine: Remembered, connection: UnixConnection, specs: Sequence[ProbeSpec], *, load: int = 1) -> Remembered:
    """Ask everything that these probes may ask once, so many forced cases at the same time."""
    for spec in specs:
        with ThreadPoolExecutor(load) as pool:
            for work in [pool.submit(engine.force, connection, case.prompt, case.tokens) for case in spec.forced]:
                work.result()
        for conversation in spec.tokenizer:
            given = {"tools": conversation.tools} if conversation.tools else {}
            engine.render(connection, conversation.messages, **given)
        for text in spec.texts:
            engine.tokenize(connection, text.text, special=text.special)
        for case in spec.greedy:
            engine.greedy(connection, case.prompt, tokens=len(case.tokens) + (BEYOND if case.ends else 0))
    return engine
