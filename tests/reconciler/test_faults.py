"""What a node makes of engines that hang, loop and fall, on the simulated node."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.reconciler.test_pipeline import A, B
from tests.support.simulated_node import SimulatedNode, conditions

if TYPE_CHECKING:
    from pathlib import Path

LOOKS = 5
"""At 25 s from one to the next: beyond the bound of a minute."""


@pytest.fixture
def simulated(tmp_path: Path) -> SimulatedNode:
    """A node that has never run."""
    return SimulatedNode(tmp_path)


def events(simulated: SimulatedNode, reason: str) -> list[str]:
    """Messages of events."""
    found = simulated.journal.events(after=0, limit=1000)
    return [event.message for event in found if event.reason == reason]


def test_a_hang_behind_a_green_health_endpoint_is_replaced(simulated: SimulatedNode) -> None:
    """Requests run and no token comes: restarted, validated, with the reason in an event; nothing runs twice (I3)."""
    simulated.run(A)
    (before,) = simulated.room.running()
    simulated.room.activities[before.name] = (1, 0, 10)
    results = []
    for _ in range(LOOKS):
        simulated.later(seconds=25)
        results.append(simulated.run())
    (after,) = simulated.room.running()
    assert after.name != before.name
    assert simulated.room.most_running == 1
    assert results[-1].exit_code == 0
    (message,) = events(simulated, "InstanceFailed")
    assert "no token comes for 60 s" in message


def test_a_busy_engine_is_left_alone(simulated: SimulatedNode) -> None:
    """Tokens come, slowly: whatever the load, nothing is restarted."""
    simulated.run(A)
    (before,) = simulated.room.running()
    for tokens in range(LOOKS):
        simulated.room.activities[before.name] = (8, 100, tokens)
        simulated.later(seconds=50)
        assert simulated.run().status.serving.health == "healthy"  # type: ignore[union-attr] # it serves
    assert [item.name for item in simulated.room.running()] == [before.name]


def test_an_end_is_named(simulated: SimulatedNode) -> None:
    """Exit code, signal and lack of memory reach the events."""
    simulated.run(A)
    for code, detail in ((3, "exit code 3"), (137, "out of memory, signal 9")):
        simulated.room.kill(simulated.room.running()[0].name, exit_code=code, detail=detail)
        simulated.run()
        assert detail in events(simulated, "InstanceFailed")[-1]


def test_a_replacement_that_falls_at_once_ends_with_the_last_known_good(simulated: SimulatedNode) -> None:
    """The way back is taken although the last known good itself falls once on the way."""
    simulated.run(A)
    simulated.room.bad_starts.add("b:v1")
    simulated.run(B)
    simulated.room.kill(simulated.room.running()[0].name)
    result = simulated.run()
    assert simulated.serving() == ["a:v1"]
    assert conditions(result)["RolledBack"] == "True"
    assert simulated.room.most_running == 1


def test_hangs_count_towards_the_budget(simulated: SimulatedNode) -> None:
    """An engine that hangs again and again is crash-looping: nothing serves, and the node says so loudly."""
    simulated.run(A)
    for _ in range(30):
        for item in simulated.room.running():
            simulated.room.activities[item.name] = (1, 0, 10)
        simulated.later(seconds=21)
        result = simulated.run()
        if conditions(result)["Stalled"] == "True":
            break
    assert conditions(result)["Stalled"] == "True"
    assert result.status.held[0].reason == "CrashLooping"
    assert simulated.serving() == []
