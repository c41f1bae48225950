"""Whether an instance is well, over several looks."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import timedelta
from typing import TYPE_CHECKING, Any, cast

import pytest

from runtime.health import HealthWatch
from runtime.interfaces import Activity
from schemas.errors import EngineUnreachable
from schemas.observation import Instance
from tests.support.simulated_node import SteppingClock

if TYPE_CHECKING:
    from runtime.interfaces import Engine

STALL = 60.0


@dataclass
class Scripted:
    """An engine that says what it is told to, and the looks at it."""

    well: bool | None = True
    """None does not answer."""
    doing: Activity | None = field(default_factory=lambda: Activity(0, 0, 0))
    mute: bool = False
    """Does not say what it is doing."""
    clock: SteppingClock = field(default_factory=SteppingClock)

    def __post_init__(self) -> None:
        self.watch = HealthWatch(self.clock)

    def ready(self, _: object) -> bool:
        """As told."""
        if self.well is None:
            raise EngineUnreachable("no answer")
        return self.well

    def activity(self, _: object) -> Activity | None:
        """As told."""
        if self.mute:
            raise EngineUnreachable("no answer")
        return self.doing

    def look(self, after: float = 0, **item: Any) -> tuple[str, str]:
        """Health and detail, some seconds later."""
        self.clock.moment += timedelta(seconds=after)
        seen = Instance(
            **{"name": "i", "intent": "a", "backend": "native", "spec_digest": "s", "status": "running", **item}
        )
        found = self.watch.look(seen, cast("Engine", self), cast("Any", None), stall=STALL)
        return found.health, found.detail


def test_requests_without_a_token_are_a_fault_whatever_health_says() -> None:
    """The endpoint is green all the time; the third look after the bound says what is wrong, and goes on saying it."""
    engine = Scripted(doing=Activity(2, 0, 100))
    assert [engine.look(19)[0] for _ in range(4)] == ["healthy"] * 4
    bad = engine.look(19)
    assert bad == ("unhealthy", "it has requests, and no token comes for 60 s")
    assert engine.look(19) == bad
    engine.doing = Activity(2, 0, 101)
    assert engine.look(1)[0] == "healthy"


def test_what_waits_counts_and_what_rests_does_not() -> None:
    """An engine that begins none of its requests hangs too; one without requests rests, for days."""
    engine = Scripted(doing=Activity(0, 3, 7))
    assert [engine.look(20)[0] for _ in range(5)][-1] == "unhealthy"
    engine.doing = Activity(0, 0, 7)
    assert [engine.look(1000)[0] for _ in range(5)] == ["healthy"] * 5
    engine.doing = Activity(1, 0, 7)
    assert engine.look(1000)[0] == "healthy", "the request came since the last look"


@pytest.mark.parametrize(
    ("state", "words"),
    [({"well": None}, "does not answer"), ({"well": False}, "not ready"), ({"mute": True}, "not what it is doing")],
)
def test_no_answer_is_unknown_first_and_bad_in_the_end(state: dict[str, Any], words: str) -> None:
    """One lost answer condemns nobody."""
    engine = Scripted(**state)
    seen = [engine.look(20) for _ in range(5)]
    assert [health for health, _ in seen] == ["unknown"] * 3 + ["unhealthy"] * 2
    assert all(words in detail for _, detail in seen)
    engine.well, engine.mute = True, False
    assert engine.look(1) == ("healthy", "")


def test_an_engine_that_stops_answering_while_it_has_requests_does_not_begin_anew() -> None:
    """Standing still and not saying so are one standstill."""
    engine = Scripted(doing=Activity(1, 0, 5))
    engine.look()
    engine.look(20)
    engine.look(20)
    engine.mute = True
    assert engine.look(20)[0] == "unhealthy"


def test_an_agent_that_slept_has_seen_nothing() -> None:
    """An hour between two looks (a suspended machine) is no hour without tokens."""
    engine = Scripted(doing=Activity(1, 0, 5))
    engine.look()
    assert engine.look(3600)[0] == "healthy"
    assert engine.look(3600)[0] == "healthy"
    assert engine.look(3600)[0] == "unhealthy"


def test_another_instance_of_the_same_name_begins_anew() -> None:
    """And what its backend already knows stays so, without a question."""
    engine = Scripted(doing=Activity(1, 0, 5))
    for _ in range(3):
        engine.look(20)
    assert engine.look(20, intent="b")[0] == "healthy"
    engine.well = None
    assert engine.look(health="unhealthy", detail="its own check") == ("unhealthy", "its own check")
    assert engine.look(status="exited", detail="signal 9") == ("unknown", "signal 9")


def test_an_engine_that_cannot_say_is_well_as_long_as_it_answers() -> None:
    """There is nothing to hold against it."""
    engine = Scripted(doing=None)
    assert [engine.look(1000)[0] for _ in range(5)] == ["healthy"] * 5
