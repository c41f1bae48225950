"""Real engines that are killed, stopped and starved, at every step; afterwards one serves, rightly, and no more."""

from __future__ import annotations

import json
import os
import signal
import threading
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import pytest

from runtime.backends import native_processes
from schemas.digests import digest_text
from tests.support.front import eventually
from tests.support.simulated_node import conditions
from tests.support.swapping import Asker, SwappingNode

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from schemas.plan import Action

STEP = timedelta(seconds=25)
LOOKS = 6
"""At 25 s of the health watch's clock: beyond the bound of a minute."""


@pytest.fixture
def swapping(tmp_path: Path, tiny_model: Callable[[int], Path]) -> Iterator[SwappingNode]:
    """A node with two models, of which the first serves."""
    made = SwappingNode(tmp_path, (tiny_model(1), tiny_model(2)))
    try:
        result = made.run(made.wish("a:v1"))
        assert result.exit_code == 0, [(outcome.action.id, outcome.error) for outcome in result.outcomes]
        yield made
    finally:
        made.take_apart()


def engine_of(swapping: SwappingNode, instance: str) -> int:
    """The engine's process, 0 where there is none yet."""
    try:
        state = (swapping.node.state.run / "instances" / instance / "state.json").read_text()
    except FileNotFoundError:
        return 0
    return int(json.loads(state)["engine"])


def running(swapping: SwappingNode) -> list[str]:
    """Names of what runs."""
    backend = swapping.node.adapters.backends["native"]
    return [item.name for item in backend.list() if item.status == "running"]


def kill(process: int, number: signal.Signals = signal.SIGKILL) -> None:
    """Signal an engine from outside."""
    if process:
        try:
            os.kill(process, number)
        except ProcessLookupError:
            return


def serves_alone(swapping: SwappingNode, model: str) -> None:
    """One instance, no process of another, and the right answers at the front."""
    swapping.real_clock.ahead += timedelta(minutes=1)
    swapping.run()
    (name,) = running(swapping)
    alive = {process.instance for process in native_processes.marked(digest_text(f"native/1|testnet|{swapping.mark}"))}
    assert alive <= {name}
    assert [item.name for item in swapping.node.adapters.backends["native"].list()] == [name]
    asker = Asker(swapping.keeper.address, swapping.answers, stream=False)
    thread = asker.start()
    eventually(lambda: bool(asker.wrong) or asker.answered.get(model, 0) > 1, f"{model} answers")
    asker.stop.set()
    thread.join(60)
    assert asker.wrong == []
    assert set(asker.answered) == {model}


def events(swapping: SwappingNode) -> str:
    """Everything that was told."""
    return "\n".join(f"{event.reason} {event.message}" for event in swapping.journal.events(after=0, limit=1000))


def during(swapping: SwappingNode, kind: str, strike: Callable[[threading.Event], None]) -> None:
    """Strike while an action of a kind is under way, from its beginning to its end."""
    recorder, over = swapping.recorder, threading.Event()
    threads: list[threading.Thread] = []
    started, finished = recorder.started, recorder.finished

    def begin(action: Action) -> None:
        if action.kind == kind and not threads:
            threads.append(threading.Thread(target=strike, args=(over,), daemon=True))
            threads[0].start()
        started(action)

    def end(outcome: Any) -> None:
        if outcome.action.kind == kind and threads:
            over.set()
            threads[0].join(60)
        finished(outcome)

    recorder.started, recorder.finished = begin, end  # type: ignore[method-assign] # for this test


def test_killed_while_it_serves(swapping: SwappingNode) -> None:
    """It comes back, validated, and the event names the signal."""
    (before,) = running(swapping)
    kill(engine_of(swapping, before))
    eventually(lambda: running(swapping) == [], "its end is seen")
    result = swapping.run()
    assert result.exit_code == 0, [(outcome.action.id, outcome.error) for outcome in result.outcomes]
    serves_alone(swapping, "a:v1")
    assert running(swapping) != [before]
    assert "signal 9" in events(swapping)


def test_stopped_while_it_serves(swapping: SwappingNode) -> None:
    """A process that is there and does nothing (SIGSTOP) is found out, killed and replaced."""
    (before,) = running(swapping)
    kill(engine_of(swapping, before), signal.SIGSTOP)
    for _ in range(LOOKS):
        swapping.health_clock.moment += STEP
        swapping.run()
        if before not in running(swapping):
            break
    serves_alone(swapping, "a:v1")
    assert running(swapping) != [before]
    assert "does not answer" in events(swapping)


def test_killed_while_it_starts(swapping: SwappingNode) -> None:
    """A replacement that is killed each time before it is ready ends with the last known good (I5)."""
    (before,) = running(swapping)

    def strike(over: threading.Event) -> None:
        while not over.wait(0.001):
            for place in (swapping.node.state.run / "instances").glob("*"):
                if place.name != before:
                    kill(engine_of(swapping, place.name))

    during(swapping, "start-instance", strike)
    result = swapping.run(swapping.wish("b:v1"))
    assert conditions(result)["RolledBack"] == "True"
    serves_alone(swapping, "a:v1")
    assert "the engine ended while starting" in events(swapping)


def test_killed_while_it_drains(swapping: SwappingNode) -> None:
    """The swap goes on: its replacement serves."""
    (before,) = running(swapping)
    asker = Asker(swapping.keeper.address, swapping.answers, stream=True)
    thread = asker.start()
    eventually(lambda: asker.answered.get("a:v1", 0) > 0, "the first model answers")
    during(swapping, "stop-instance", lambda _: kill(engine_of(swapping, before)))
    assert swapping.run(swapping.wish("b:v1")).exit_code == 0
    asker.stop.set()
    thread.join(60)
    serves_alone(swapping, "b:v1")


def test_starved_of_memory(swapping: SwappingNode) -> None:
    """A limit that the engine cannot live with: the kernel ends it, the event says why, the last known good serves."""
    if "memory" in swapping.node.adapters.backends["native"].not_enforced():
        pytest.skip("this machine lets nobody limit memory")
    result = swapping.run(swapping.wish("b:v1", resources={"memory": "4MiB"}))
    assert conditions(result)["RolledBack"] == "True"
    serves_alone(swapping, "a:v1")
    assert "out of memory" in events(swapping)
