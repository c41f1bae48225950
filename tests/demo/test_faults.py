"""Real engines that are killed, stopped, hung and starved, at every step; afterwards one serves, rightly, and no more.

The same on every backend: processes of this machine, containers of Docker, and of Podman.
"""

from __future__ import annotations

import re
import signal
import time
from datetime import timedelta
from typing import TYPE_CHECKING

import pytest

from reconciler.restarts import BUDGET
from runtime.engines import llamacpp
from tests.support.container_swapping import ContainerSwappingNode
from tests.support.faulting import during, events, kill, running, serves_alone
from tests.support.freezing import busiest, freeze
from tests.support.front import eventually
from tests.support.simulated_node import conditions
from tests.support.swapping import Asker, SwappingNode

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from reconciler.loop import PassResult
    from runtime.interfaces import EngineConnection

STEP = timedelta(seconds=25)
LOOKS = 6
"""At 25 s of the health watch's clock: beyond the bound of a minute."""

TOO_LITTLE = {"native": "4MiB", "docker": "10MiB", "podman": "10MiB"}
"""Memory that no engine can live with; in a container it has to do for what starts the engine."""


@pytest.fixture(
    params=[
        "native",
        pytest.param("docker", marks=pytest.mark.docker),
        pytest.param("podman", marks=pytest.mark.podman),
    ]
)
def swapping(
    tmp_path: Path, tiny_model: Callable[[int], Path], request: pytest.FixtureRequest
) -> Iterator[SwappingNode]:
    """A node with two models, of which the first serves."""
    models, backend = (tiny_model(1), tiny_model(2)), request.param
    if backend == "native":
        made = SwappingNode(tmp_path, models)
    else:
        host = request.getfixturevalue(f"{backend}_host")
        image = request.getfixturevalue("test_images")["llamacpp"]
        made = ContainerSwappingNode(tmp_path, models, name=backend, host=host, image=image)
    try:
        result = made.run(made.wish("a:v1"))
        assert result.exit_code == 0, [(outcome.action.id, outcome.error) for outcome in result.outcomes]
        yield made
    finally:
        made.take_apart()


def test_killed_while_it_serves(swapping: SwappingNode) -> None:
    """It comes back, validated, and the event names the signal."""
    (before,) = running(swapping)
    kill(swapping.engine_process(before))
    eventually(lambda: running(swapping) == [], "its end is seen")
    result = swapping.run()
    assert result.exit_code == 0, [(outcome.action.id, outcome.error) for outcome in result.outcomes]
    serves_alone(swapping, "a:v1")
    assert running(swapping) != [before]
    assert "signal 9" in events(swapping)


def test_restarts_are_spaced(swapping: SwappingNode) -> None:
    """The first comes at once; the next one waits, also for a new agent, and comes by itself when its time has come."""
    # Instances note the machine's time: to a clock that is ahead of it, they would have run for long.
    swapping.real_clock.ahead = timedelta()
    assert len(ended(swapping)) == 1
    assert ended(swapping) == []
    swapping.restart()
    assert waited(swapping).exit_code == 0
    serves_alone(swapping, "a:v1")


def test_a_crash_loop_ends_with_what_served_before(swapping: SwappingNode) -> None:
    """An engine that ends whenever it serves is given up, once, and what served before it comes back (I5)."""
    assert swapping.run(swapping.wish("b:v1")).exit_code == 0
    swapping.real_clock.ahead = timedelta()
    for _ in range(BUDGET - 1):
        if not ended(swapping):
            assert waited(swapping).exit_code == 0
    assert len(ended(swapping)) == 1
    assert conditions(swapping.run())["RolledBack"] == "True"
    serves_alone(swapping, "a:v1")
    assert events(swapping).count("CrashLooping b:v1 ended by itself 5 times in a row") == 1


def ended(swapping: SwappingNode) -> list[str]:
    """What runs after what served was killed, and a pass."""
    (before,) = running(swapping)
    kill(swapping.engine_process(before))
    eventually(lambda: running(swapping) == [], "its end is seen")
    swapping.run()
    return running(swapping)


def waited(swapping: SwappingNode) -> PassResult:
    """The pass at the moment that the journal names for the next restart."""
    result = swapping.run()
    (held,) = (item for item in result.status.held if item.reason == "Restarting")
    assert held.until is not None
    assert running(swapping) == []
    swapping.real_clock.ahead += max(held.until - swapping.real_clock.now(), timedelta()) + timedelta(seconds=1)
    return swapping.run()


def test_stopped_while_it_serves(swapping: SwappingNode, monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that is there and does nothing (SIGSTOP) is found out, killed and replaced."""
    (before,) = running(swapping)
    kill(swapping.engine_process(before), signal.SIGSTOP)
    found_out(swapping, before, monkeypatch)
    assert "does not answer" in events(swapping)


def test_hangs_behind_a_green_health_endpoint(swapping: SwappingNode, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its thread that computes stands still, the one that answers `/health` does not: found out by its tokens."""
    (before,) = running(swapping)
    process = swapping.engine_process(before)
    askers = [Asker(swapping.keeper.address, swapping.answers, stream=True) for _ in range(2)]
    clients = [asker.start() for asker in askers]
    eventually(lambda: all(asker.answered.get("a:v1", 0) > 1 for asker in askers), "it is busy")
    frozen: set[int] = set()
    while not frozen or goes_on(askers):
        # Threads of the server are busy as well: whichever it was, in the end it is the one that computes.
        thread = busiest(process, 1.0, but=frozen)
        if not freeze(thread):
            pytest.skip("this machine lets nobody trace a process")
        frozen.add(thread)
    socket = swapping.node.state.run / before / "engine.sock"
    engine = swapping.node.adapters.engines["llamacpp"]
    assert engine.ready(swapping.node.adapters.connect(swapping.backend, before, socket)), "its health is green"
    found_out(swapping, before, monkeypatch)
    for asker, client in zip(askers, clients, strict=True):
        asker.stop.set()
        client.join(60)
    assert re.search("it says that it is well, and not what it is doing|no token comes", events(swapping))


def goes_on(askers: list[Asker]) -> bool:
    """Whether any client is still answered: the busiest are, many times a second."""
    before = sum(asker.answered["a:v1"] for asker in askers)
    time.sleep(1.0)
    return sum(asker.answered["a:v1"] for asker in askers) > before


def found_out(swapping: SwappingNode, before: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Within the looks that have to agree, and by another instance."""
    with monkeypatch.context() as patched:
        # Nothing answers: whoever asks need not wait long.
        patched.setattr(llamacpp, "HEALTH_SECONDS", 1.0)
        for _ in range(LOOKS):
            swapping.health_clock.moment += STEP
            swapping.run()
            if before not in running(swapping):
                break
    serves_alone(swapping, "a:v1")
    assert running(swapping) != [before]


def test_killed_while_it_starts(swapping: SwappingNode, monkeypatch: pytest.MonkeyPatch) -> None:
    """A replacement that is killed each time before it has proven itself ends with the last known good (I5)."""
    (before,) = swapping.backend.list()
    engine = swapping.node.adapters.engines["llamacpp"]
    ready = engine.ready

    def killed_first(connection: EngineConnection) -> bool:
        for item in swapping.backend.list():
            if item.spec_digest != before.spec_digest:
                kill(swapping.engine_process(item.name))
        return ready(connection)

    # Asked before each question whether it is ready: however fast it starts, it never comes to say so.
    monkeypatch.setattr(engine, "ready", killed_first)
    result = swapping.run(swapping.wish("b:v1"))
    assert conditions(result)["RolledBack"] == "True", events(swapping)
    serves_alone(swapping, "a:v1")
    assert "the engine ended while starting (signal 9" in events(swapping)


def test_killed_while_it_drains(swapping: SwappingNode) -> None:
    """The swap goes on: its replacement serves."""
    (before,) = running(swapping)
    asker = Asker(swapping.keeper.address, swapping.answers, stream=True)
    thread = asker.start()
    eventually(lambda: asker.answered.get("a:v1", 0) > 0, "the first model answers")
    during(swapping, "stop-instance", lambda: kill(swapping.engine_process(before)))
    assert swapping.run(swapping.wish("b:v1")).exit_code == 0
    asker.stop.set()
    thread.join(60)
    serves_alone(swapping, "b:v1")


def test_starved_of_memory(swapping: SwappingNode) -> None:
    """A limit that the engine cannot live with: the kernel ends it, the event says why, the last known good serves."""
    if "memory" in swapping.backend.not_enforced():
        pytest.skip("this machine lets nobody limit memory")
    little = TOO_LITTLE[swapping.backend.name]
    result = swapping.run(swapping.wish("b:v1", resources={"memory": little}))
    assert conditions(result)["RolledBack"] == "True", events(swapping)
    serves_alone(swapping, "a:v1")
    assert "out of memory" in events(swapping)
