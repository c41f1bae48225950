"""The engine contract against every engine: simulated, llama.cpp, any OpenAI-compatible server, Ollama, vLLM."""

from __future__ import annotations

import subprocess
import sys
from typing import TYPE_CHECKING, Any, Literal

import pytest

from runtime.backends.simulated import SimulatedBackend, SimulatedEngineRoom
from runtime.connection import UnixConnection
from runtime.engines.llamacpp import PROGRAM, LlamaCppEngine
from runtime.engines.ollama import OllamaEngine
from runtime.engines.openai import OpenAIEngine
from runtime.engines.simulated import SimulatedConnection, SimulatedEngine
from runtime.engines.vllm import VllmEngine
from runtime.interfaces import SOCKET_NAME, EngineView, InstanceSpec, Launch
from schemas.errors import EngineUnreachable
from schemas.runtimes import LlamaCppArgs, OllamaArgs, OpenAIArgs, VllmArgs
from tests.contracts.engine_contract import EngineContract, ProcessContract
from tests.support.builders import IMAGE, target
from tests.support.front import eventually
from tests.support.models import make_model
from tests.support.ollama import standin
from tests.support.simulated_node import SteppingClock
from tests.support.vllm import one_vllm, vllm_runtimes

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from runtime.interfaces import Engine, EngineConnection
    from schemas.target import ServingTarget

Form = Literal["gguf", "safetensors"]
START_SECONDS = 900.0


class SimulatedBench:
    """The engine without a model, in a room without processes."""

    engine: Engine = SimulatedEngine("simulated")
    calls = True

    def __init__(self, folder: Path) -> None:
        """Run one instance.

        Args:
            folder: for what an instance is said to have; stays empty.
        """
        # A target names an engine that snapshots know; that nobody runs it is the room's secret.
        self.target = target().model_copy(update={"engine": "simulated"})
        self._room = SimulatedEngineRoom()
        backend = SimulatedBackend(self._room, network="testnet", node_id="a", clock=SteppingClock())
        spec = InstanceSpec(
            name="reconcile-testnet-a1",
            intent="a1",
            network="testnet",
            node_id="a",
            target=self.target,
            launch=Launch((), {}),
            model_folder=folder,
            socket_folder=folder,
            log_folder=folder,
            log_limit=2**16,
        )
        backend.create(spec)
        backend.start(spec.name)

    def connect(self) -> EngineConnection:
        """To the one."""
        return SimulatedConnection(self._room, "reconcile-testnet-a1")

    def nobody(self) -> EngineConnection:
        """To one that there never was."""
        return SimulatedConnection(self._room, "reconcile-testnet-b2")


class ProcessBench:
    """An engine that is started by its own launch; what it prints is shown when it does not start."""

    def __init__(self, engine: Engine, of: ServingTarget, folder: Path, *, view: EngineView, form: Form) -> None:
        """Start nothing yet.

        Args:
            engine: it.
            of: what is launched.
            folder: where it runs; must exist.
            view: where its model is, and its interpreter; the socket lies where it runs.
            form: of the model.
        """
        self.engine = engine
        self.target = of
        # llama.cpp learns from a template how functions are called; the small model's has no word of them.
        self.calls = engine.name in ("vllm", "ollama")
        self.cuts = engine.name != "vllm"
        self._folder = folder
        self._form = form
        self.content = b"GGUF"
        """Of the model's file, as its manifest has it."""
        self._view = view
        self._process: subprocess.Popen[bytes] | None = None

    def connect(self) -> EngineConnection:
        """To the instance, started if there is none that runs."""
        connection = UnixConnection(self._folder / SOCKET_NAME, is_peer=lambda _pid: True)
        if self._process is None:
            self._start()
            eventually(lambda: self._is_ready(connection), "the engine is ready", seconds=START_SECONDS)
        return connection

    def nobody(self) -> EngineConnection:
        """To a socket that is not there."""
        return UnixConnection(self._folder / "nobody.sock", is_peer=lambda _pid: True)

    def end(self, seconds: float) -> bool:
        """SIGTERM, as backends send it to its group; then SIGKILL."""
        process, self._process = self._process, None
        if process is None:
            return True
        process.terminate()
        try:
            process.wait(seconds)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            return False
        return True

    def _start(self) -> None:
        (self._folder / SOCKET_NAME).unlink(missing_ok=True)
        manifest = make_model({f"model.{self._form}": self.content}, form=self._form).manifest
        launch = self.engine.launch(self.target, manifest, self._view)
        with (self._folder / "log").open("wb") as log:
            self._process = subprocess.Popen(
                launch.argv,
                cwd=self._folder,
                env={"HOME": str(self._folder), "TMPDIR": str(self._folder), **launch.env},
                stdout=log,
                stderr=log,
            )

    def _is_ready(self, connection: EngineConnection) -> bool:
        assert self._process is not None
        assert self._process.poll() is None, (self._folder / "log").read_text(errors="replace")[-2000:]
        try:
            return self.engine.ready(connection)
        except EngineUnreachable:
            return False


@pytest.fixture(scope="module")
def gguf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The small trained model for llama.cpp."""
    pytest.importorskip("xllamacpp", reason="xllamacpp not present")
    pytest.importorskip("gguf", reason="gguf not present")
    from tests.power.laboratory import HONEST, Laboratory
    from tests.power.test_power import DATA

    laboratory = Laboratory(DATA, tmp_path_factory.mktemp("model"))
    return laboratory.gguf(HONEST, "F16").parent


@pytest.fixture(scope="module")
def simulated(tmp_path_factory: pytest.TempPathFactory) -> SimulatedBench:
    """A room with one instance."""
    return SimulatedBench(tmp_path_factory.mktemp("simulated"))


@pytest.fixture(scope="module")
def llamacpp(gguf: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ProcessBench]:
    """As a native process."""
    of = target(engine_args=LlamaCppArgs(context_size=512, threads=1))
    folder = tmp_path_factory.mktemp("llamacpp")
    made = ProcessBench(LlamaCppEngine(), of, folder, view=EngineView(str(gguf), SOCKET_NAME), form="gguf")
    yield made
    made.end(0)


@pytest.fixture(scope="module")
def openai(gguf: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ProcessBench]:
    """llama.cpp's, by a declared command."""
    flags = ("--model={model}", "--socket={socket}", "--alias={name}", "--ctx-size=512", "--threads=1")
    arguments: dict[str, Any] = {
        "command": (sys.executable, "-IB", str(PROGRAM), *flags),
        "formats": ("gguf", "safetensors"),
    }
    of = target(
        engine="openai",
        engine_args=OpenAIArgs.model_validate(arguments),
        mode="container",
        backend="docker",
        image=IMAGE,
        environment=None,
    )
    folder = tmp_path_factory.mktemp("openai")
    made = ProcessBench(OpenAIEngine(), of, folder, view=EngineView(str(gguf), SOCKET_NAME), form="gguf")
    yield made
    made.end(0)


@pytest.fixture(scope="module")
def vllm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ProcessBench]:
    """As a process of this machine, which none of its confinement keeps from anything."""
    from tests.power.laboratory import HONEST, Laboratory
    from tests.power.test_power import DATA

    (python,) = vllm_runtimes().glob("*/bin/python")
    model = Laboratory(DATA, tmp_path_factory.mktemp("model")).folder(HONEST)
    of = target(
        engine="vllm",
        engine_args=VllmArgs(dtype="float32", tool_call_parser="hermes", compact_json=True),
    )
    view = EngineView(str(model), SOCKET_NAME, str(python))
    with one_vllm():
        made = ProcessBench(VllmEngine(), of, tmp_path_factory.mktemp("vllm"), view=view, form="safetensors")
        yield made
        made.end(0)


@pytest.fixture(scope="module")
def ollama(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ProcessBench]:
    """The proxy in front of a program that implements Ollama's documented API."""
    model = tmp_path_factory.mktemp("model")
    (model / "model.gguf").write_bytes(b"GGUF")
    programs = tmp_path_factory.mktemp("bin")
    standin(programs / "ollama", python=sys.executable)
    of = target(engine="ollama", engine_args=OllamaArgs())
    view = EngineView(str(model), SOCKET_NAME)
    folder = tmp_path_factory.mktemp("ollama")
    made = ProcessBench(OllamaEngine(str(programs)), of, folder, view=view, form="gguf")
    yield made
    made.end(0)


class TestSimulated(EngineContract):
    """Which stands for all of them in the simulation."""

    @pytest.fixture
    def bench(self, simulated: SimulatedBench) -> SimulatedBench:
        """The one."""
        return simulated


class TestLlamaCpp(ProcessContract):
    """llama.cpp's server, for real."""

    @pytest.fixture
    def bench(self, llamacpp: ProcessBench) -> ProcessBench:
        """The one."""
        return llamacpp


class TestOllama(ProcessContract):
    """Its proxy for real; Ollama itself by what its documentation says."""

    @pytest.fixture
    def bench(self, ollama: ProcessBench) -> ProcessBench:
        """The one."""
        return ollama


class TestOpenAI(ProcessContract):
    """A real server of which nothing but its API is made use of."""

    @pytest.fixture
    def bench(self, openai: ProcessBench) -> ProcessBench:
        """The one."""
        return openai


@pytest.mark.vllm
@pytest.mark.slow
@pytest.mark.timeout(1800)  # two starts
class TestVllm(ProcessContract):
    """vLLM, for real, out of the environment that its lock names."""

    @pytest.fixture
    def bench(self, vllm: ProcessBench) -> ProcessBench:
        """The one."""
        return vllm
