"""The contract of fronts, against the real process and the one of simulated nodes."""

from __future__ import annotations

import os
import threading
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Protocol

import pytest

from runtime.front.keeper import FrontKeeper, FrontSettings
from runtime.front.route import Route
from runtime.front.simulated import SimulatedFront
from runtime.host import host_ports
from schemas.target import FrontLimits
from tests.support.front import STREAM, Answer, Engine, chunk, dial, eventually, question

if TYPE_CHECKING:
    import socket
    from collections.abc import Iterator
    from contextlib import AbstractContextManager
    from pathlib import Path

    from runtime.interfaces import Front

SETTINGS = FrontSettings()
ROUTE = Route("serving", "a", "intent-a", "llamacpp", "/nowhere/a", os.getpid(), models=("m:v1",))


class Bench(Protocol):
    """One front, and whoever looks at it."""

    def agent(self) -> Front:
        """The front as an agent that was just started sees it."""
        ...

    def busy(self) -> AbstractContextManager[str]:
        """An instance that is led to and has one request in flight, which ends when this does; its name."""
        ...


class SimulatedBench:
    """No process."""

    def __init__(self) -> None:
        self._front = SimulatedFront()

    def agent(self) -> Front:
        """It outlives agents by being the same."""
        return self._front

    @contextmanager
    def busy(self) -> Iterator[str]:
        """Said to be busy."""
        self._front.lead(ROUTE)
        self._front.busy = 1
        yield "a"
        self._front.busy = 0


class RealBench:
    """The process, with an instance in this one."""

    def __init__(self, folder: Path) -> None:
        self._run = folder / "run"
        self._run.mkdir()  # every state directory has one
        self._engines: list[Engine] = []

    def agent(self) -> FrontKeeper:
        """A keeper of its own."""
        return FrontKeeper(self._run, SETTINGS, uid=os.geteuid(), ports=host_ports())

    @contextmanager
    def busy(self) -> Iterator[str]:
        """A client in the middle of a stream."""
        begun, end = threading.Event(), threading.Event()

        def script(stream: socket.socket, _: bytes) -> None:
            stream.sendall(STREAM + chunk("data: 0\n\n"))
            begun.set()
            end.wait(60)
            stream.sendall(chunk(""))

        (self._run / "a").mkdir()
        engine = Engine(self._run / "a" / "engine.sock", script)
        self._engines.append(engine)
        self.agent().lead(replace(ROUTE, socket=str(engine.path)))
        answers: list[Answer] = []

        def client() -> None:
            with dial(self._run / "front.sock") as stream:
                stream.sendall(question())
                answers.append(Answer(stream))

        thread = threading.Thread(target=client)
        thread.start()
        assert begun.wait(60)
        try:
            yield "a"
        finally:
            end.set()
            thread.join(60)
        assert answers[0].whole
        eventually(lambda: (counts := self.agent().counts()) is not None and not counts.in_flight, "it has ended")

    def close(self) -> None:
        """End it, and the instances."""
        self.agent().stop()
        for engine in self._engines:
            engine.close()


@pytest.fixture(params=["simulated", "real"])
def bench(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Bench]:
    """Each of them, with nothing started."""
    if request.param == "simulated":
        yield SimulatedBench()
        return
    made = RealBench(tmp_path)
    yield made
    made.close()


def test_there_is_none_before_it_is_wanted(bench: Bench) -> None:
    """Looking starts nothing, and who does not run has no figures."""
    front = bench.agent()
    assert (front.look().current, front.look().state) == (False, "none")
    assert front.counts() is None
    assert front.drain("a", seconds=0) == 0


def test_it_is_wanted_more_than_once(bench: Bench) -> None:
    """The same agent, and the next one, find what is there."""
    front = bench.agent()
    front.ensure()
    front.ensure()
    assert front.look().current
    again = bench.agent()
    assert again.look().current
    again.ensure()
    counts = again.counts()
    assert counts is not None
    assert (counts.in_flight, counts.held) == (0, 0)


def test_a_route_is_seen_by_the_next_agent(bench: Bench) -> None:
    """Where it leads and with which bounds; also before there is a front to follow it."""
    bench.agent().lead(replace(ROUTE, max_tokens=7, max_queue=3, timeout=11.0, hold=5.0))
    seen = bench.agent().look()
    assert (seen.current, seen.state, seen.intent) == (False, "serving", "intent-a")
    assert seen.limits == FrontLimits(max_tokens=7, max_queue=3, timeout=11, hold=5)
    bench.agent().ensure()
    assert bench.agent().look() == replace(seen, current=True)
    bench.agent().lead(Route())
    assert (bench.agent().look().state, bench.agent().look().intent) == ("none", "")


def test_only_who_is_led_to_is_held(bench: Bench) -> None:
    """Holding names the instance that is about to stop: another's requests go on. Twice is as good as once."""
    front = bench.agent()
    front.ensure()
    assert not front.hold("a")
    front.lead(ROUTE)
    assert not front.hold("b")
    assert front.look().state == "serving"
    assert front.hold("a")
    assert front.hold("a")
    assert (bench.agent().look().state, bench.agent().look().intent) == ("holding", "intent-a")


def test_draining_says_how_many_are_left(bench: Bench) -> None:
    """Those of the instance that is asked about, not another's; none once they have ended."""
    front = bench.agent()
    front.ensure()
    with bench.busy() as instance:
        assert front.drain(instance, seconds=0.05) == 1
        assert front.drain("somebody-else", seconds=0.05) == 0
        counts = front.counts()
        assert counts is not None
        assert counts.in_flight == 1
    assert front.drain(instance, seconds=30) == 0
