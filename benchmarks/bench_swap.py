"""How long a client waits for a swap, beside what the engine needs to start by itself."""

from __future__ import annotations

import http.client
import os
import statistics
import subprocess
import sys
import threading
import time
import uuid
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from model_server import serving
from telling import RECONCILE

from runtime.engines.llamacpp import PROGRAM
from tests.support.container_swapping import ContainerSwappingNode
from tests.support.containers import docker_host as docker_host  # noqa: PLC0414 - a fixture
from tests.support.containers import registry as registry  # noqa: PLC0414 - a fixture
from tests.support.containers import test_images as test_images  # noqa: PLC0414 - a fixture
from tests.support.engines import tiny_model as tiny_model  # noqa: PLC0414 - a fixture
from tests.support.front import dial, eventually
from tests.support.quiet_demo import QuietDemo
from tests.support.swapping import SwappingNode

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from typing import Self

    from benchmarks.conftest import Figure

SWAPS = 12
ADOPTIONS = 5
QUESTION = '{"content": "Hello"}'


@pytest.fixture
def swapping(tmp_path: Path, tiny_model: Callable[[int], Path]) -> Iterator[SwappingNode]:
    """A node with two models."""
    made = SwappingNode(tmp_path, (tiny_model(1), tiny_model(2)))
    yield made
    made.take_apart()


def ask(connection: http.client.HTTPConnection) -> None:
    """A short question, answered."""
    connection.request("POST", "/tokenize", QUESTION)
    response = connection.getresponse()
    assert response.read()
    assert response.status == 200


class Pulse:
    """A client that asks without a pause, and remembers its longest wait."""

    def __init__(self, address: Path) -> None:
        self.longest = 0.0
        self.failed = ""
        self._stop = threading.Event()
        self._address = address
        self._thread = threading.Thread(target=self._beat, daemon=True)

    def __enter__(self) -> Self:
        """Begin."""
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        """End."""
        self._stop.set()
        self._thread.join()
        assert not self.failed, self.failed

    def _beat(self) -> None:
        connection = http.client.HTTPConnection("localhost")
        connection.sock = dial(self._address)
        try:
            while not self._stop.is_set():
                begun = time.perf_counter()
                ask(connection)
                self.longest = max(self.longest, time.perf_counter() - begun)
        except (OSError, http.client.HTTPException, AssertionError) as error:
            self.failed = repr(error)


def native_start(model: Path, folder: Path) -> float:
    """Seconds from starting llama.cpp by hand to its first answer."""
    socket = folder / "engine.sock"
    socket.unlink(missing_ok=True)
    command = [sys.executable, "-I", str(PROGRAM), "--model", str(model), "--socket", str(socket)]
    begun = time.perf_counter()
    with subprocess.Popen([*command, "--ctx-size", "512", "--threads", "1"], stderr=subprocess.DEVNULL) as engine:
        try:
            while not answers(socket):
                assert engine.poll() is None
                time.sleep(0.001)
            return time.perf_counter() - begun
        finally:
            engine.kill()


def answers(socket: Path) -> bool:
    """Whether an engine answers yet."""
    connection = http.client.HTTPConnection("localhost")
    try:
        connection.sock = dial(socket)
        ask(connection)
    except (OSError, http.client.HTTPException, AssertionError):
        return False
    finally:
        connection.close()
    return True


@pytest.fixture
def docker_swapping(
    tmp_path: Path, tiny_model: Callable[[int], Path], docker_host: str, test_images: Mapping[str, str]
) -> Iterator[ContainerSwappingNode]:
    """The same in Docker's containers."""
    models = (tiny_model(1), tiny_model(2))
    made = ContainerSwappingNode(tmp_path, models, name="docker", host=docker_host, image=test_images["llamacpp"])
    yield made
    made.take_apart()


class PlainDocker:
    """`docker stop && docker run` of the same image by hand, without anything that a node promises."""

    def __init__(self, image: str, folder: Path) -> None:
        self.image = image
        self.folder = folder
        self.name = ""
        folder.mkdir()
        folder.chmod(0o777)

    def run(self, model: Path) -> None:
        """Start, and wait for the first answer."""
        (self.folder / "engine.sock").unlink(missing_ok=True)
        # A new name each time: the old container's removal (--rm) goes on beside.
        self.name = f"bench-{uuid.uuid4().hex[:12]}"
        mounts = ["-v", f"{model}:/model:ro", "-v", f"{self.folder}:/s"]
        engine = ["--model", "/model", "--socket", "/s/engine.sock", "--ctx-size", "512", "--threads", "1"]
        options = ["-d", "--rm", "--init", "--network", "none", "--name", self.name]
        subprocess.run(["docker", "run", *options, *mounts, self.image, *engine], check=True, capture_output=True)
        while not answers(self.folder / "engine.sock"):
            time.sleep(0.005)

    def stop(self) -> None:
        """Stop; it removes itself."""
        subprocess.run(["docker", "stop", self.name], check=True, capture_output=True)

    def swap(self, model: Path) -> float:
        """Seconds from the stop to the first answer of the next."""
        begun = time.perf_counter()
        self.stop()
        self.run(model)
        return time.perf_counter() - begun


@pytest.mark.docker
def test_swap_gap_ms(docker_swapping: ContainerSwappingNode, figure: Figure, tmp_path: Path) -> None:
    """The longest wait of a client through a container's swap, validation included, beside two peers of the same run.

    `swap_gap_ms` is that wait less the engine's own native start; `swap_gap_vs_docker_restart` the wait itself.
    """
    node = docker_swapping
    assert node.run(node.wish("a:v1")).exit_code == 0
    by_hand = PlainDocker(node.image, tmp_path / "s")
    by_hand.run(node.models["a:v1"])
    gaps, starts, restarts = [], [], []
    try:
        for number in range(SWAPS):
            key = ("b:v1", "a:v1")[number % 2]
            starts.append(native_start(node.models[key], tmp_path))
            restarts.append(by_hand.swap(node.models[key]))
            wish = node.wish(key)
            with Pulse(node.keeper.address) as pulse:
                assert node.run(wish).exit_code == 0
            gaps.append(pulse.longest)
    finally:
        by_hand.stop()
    gap = statistics.median(first - second for first, second in zip(gaps, starts, strict=True))
    figure(
        "swap_gap_ms",
        gap * 1000,
        "ms",
        goal="<= 250",
        peer="llama.cpp started by hand, to its first answer",
        peer_value=statistics.median(starts) * 1000,
    )
    figure(
        "swap_gap_vs_docker_restart",
        statistics.median(gaps) * 1000,
        "ms",
        goal="shown beside its peer",
        peer="docker stop && docker run of the same image, to the first answer, unvalidated",
        peer_value=statistics.median(restarts) * 1000,
    )


def test_adopt_seconds(tmp_path: Path, figure: Figure) -> None:
    """A daemon is killed with SIGKILL; a new agent's whole process, from its start to the end of its first pass.

    It adopts what runs: no request of a client that never pauses fails meanwhile, and the instance stays the same.
    """
    demo = QuietDemo(tmp_path, "native")
    demo.make_models()
    times = []
    with serving(tmp_path / "mirror") as demo.mirror:
        try:
            demo.found()
            (before,) = demo.instances()
            env = {**os.environ, "RECONCILE_CONFIG": str(demo.config)}
            with Pulse(Path(demo.status()["front"]["socket"])):
                for number in range(ADOPTIONS):
                    log = tmp_path / f"daemon-{number}.log"
                    command = [str(RECONCILE), "--watch", "--interval", "1h"]
                    with (
                        log.open("wb") as file,
                        subprocess.Popen(command, cwd=tmp_path, stdout=file, stderr=file, env=env) as daemon,
                    ):
                        eventually(lambda log=log: b"Ready" in log.read_bytes(), "its pass has ended")  # type: ignore[misc]
                        daemon.kill()
                    begun = time.perf_counter()
                    demo.reconcile()
                    times.append(time.perf_counter() - begun)
            assert demo.instances() == (before,)
        finally:
            demo.stop_runtime()
    figure("adopt_seconds", statistics.median(times), "s", goal="< 2")
