"""How long a client waits for a swap, beside what the engine needs to start by itself."""

from __future__ import annotations

import http.client
import statistics
import subprocess
import sys
import threading
import time
from typing import TYPE_CHECKING

import pytest

from runtime.engines.llamacpp import PROGRAM
from tests.support.engines import tiny_model as tiny_model  # noqa: PLC0414 - a fixture
from tests.support.front import dial
from tests.support.swapping import SwappingNode

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path
    from typing import Self

    from benchmarks.conftest import Figure

SWAPS = 12
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


def test_swap_gap_ms(swapping: SwappingNode, figure: Figure, tmp_path: Path) -> None:
    """The longest wait of a client through a swap, with stop, start and validation, less the engine's own start."""
    assert swapping.run(swapping.wish("a:v1")).exit_code == 0
    gaps, starts = [], []
    for number in range(SWAPS):
        key = ("b:v1", "a:v1")[number % 2]
        starts.append(native_start(swapping.models[key], tmp_path))
        with Pulse(swapping.keeper.address) as pulse:
            assert swapping.run(swapping.wish(key)).exit_code == 0
        gaps.append(pulse.longest)
    gap = statistics.median(first - second for first, second in zip(gaps, starts, strict=True))
    figure(
        "swap_gap_ms",
        gap * 1000,
        "ms",
        goal="<= 250",
        peer="llama.cpp started by hand, to its first answer",
        peer_value=statistics.median(starts) * 1000,
    )
