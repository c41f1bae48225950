"""The front in plans and passes: requests wait, the old instance drains, and only what is proven is led to."""

from __future__ import annotations

import tempfile
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reconciler.planner import plan
from runtime.front.simulated import SimulatedFront
from schemas.errors import StartFailed
from schemas.observation import FrontSeen, Present, Unknown
from schemas.target import FrontLimits
from tests.reconciler.test_pipeline import A, B, versions
from tests.reconciler.test_planner import text
from tests.support.builders import NOW, converged, desired, instance, manifest_digest, node, stored
from tests.support.simulated_node import CrashError, Recorder, SimulatedNode

if TYPE_CHECKING:
    from runtime.front.route import Route


class Door(SimulatedFront):
    """A front that remembers which models it led to, and asks what runs whenever it is led somewhere."""

    def __init__(self, simulated: SimulatedNode) -> None:
        super().__init__()
        self.simulated = simulated
        self.wrong: list[str] = []
        """Routes to what did not run, or had no receipt."""

    def lead(self, route: Route) -> None:
        """Follow, and look."""
        super().lead(route)
        if route.state != "serving":
            return
        running = {item.name for item in self.simulated.room.running()}
        proven = {item.intent for item in self.simulated.journal.memory(starts_since=NOW).receipts}
        if route.instance not in running or route.intent not in proven:
            self.wrong.append(route.instance)


def with_front(folder: Path, **fields: Any) -> tuple[SimulatedNode, Door]:
    """A simulated node with a front."""
    simulated = SimulatedNode(folder / "state", **fields)
    door = Door(simulated)
    simulated.front = door
    simulated.restart()
    return simulated, door


def led_to(simulated: SimulatedNode, door: Door) -> str:
    """The model that a request would be answered by."""
    if not door.running or door.route.state != "serving":
        return ""
    return simulated.room.specs[door.route.instance].target.model


def test_first_pass_opens_the_door_and_the_next_has_nothing_to_do(tmp_path: Path) -> None:
    """After it `plan` is empty."""
    simulated, door = with_front(tmp_path)
    result = simulated.run(A)
    kinds = [outcome.action.kind for outcome in result.outcomes]
    assert kinds == ["download-model", "start-instance", "validate-model", "start-front", "route-front"]
    assert led_to(simulated, door) == "a:v1"
    assert simulated.run().outcomes == ()
    assert result.status.front is not None
    assert result.status.front.state == "serving"


def test_a_swap_holds_drains_stops_starts_validates_and_leads_in_that_order(tmp_path: Path) -> None:
    """The validation of the new instance does not go through the front; nothing unproven is led to (I2, I3)."""
    simulated, door = with_front(tmp_path)
    simulated.run(A)
    (old,) = (item.name for item in simulated.room.running())
    door.log.clear()
    result = simulated.run(B)
    (new,) = (item.name for item in simulated.room.running())
    assert door.log == [f"holding {old}", f"drain {old} 30", f"serving {new}"]
    kinds = [outcome.action.kind for outcome in result.outcomes]
    assert kinds[:3] == ["download-model", "create-instance", "stop-instance"]
    assert kinds[3:] == ["start-instance", "validate-model", "route-front"]
    assert (door.wrong, simulated.room.most_running) == ([], 1)


def test_a_failed_swap_leads_back_to_the_last_known_good(tmp_path: Path) -> None:
    """Requests wait through both swaps, and never meet the bad model (I5)."""
    simulated, door = with_front(tmp_path, lies=frozenset({manifest_digest("b:v1")}))
    simulated.run(A)
    door.log.clear()
    simulated.run(B)
    assert led_to(simulated, door) == "a:v1"
    assert [line.partition(" ")[0] for line in door.log] == ["holding", "drain", "drain", "serving"]
    assert door.wrong == []


def test_what_could_not_be_answered_in_time_is_said(tmp_path: Path) -> None:
    """Requests that outlast the drain are cut, and the event has their number."""
    simulated, door = with_front(tmp_path)
    simulated.run(A)
    door.busy = 3
    simulated.run(B)
    messages = [event.message for event in simulated.journal.events(limit=100)]
    assert any("3 requests had not been answered within 30 s, and were cut" in message for message in messages)


def test_a_dead_front_comes_back_and_leads_on(tmp_path: Path) -> None:
    """Even while changes are suspended: the door is kept open to what serves."""
    simulated, door = with_front(tmp_path)
    simulated.run(A)
    simulated.journal.set_fact("suspended", "maintenance")
    door.running = False
    served = simulated.room.running()
    result = simulated.run(B)
    assert [outcome.action.kind for outcome in result.outcomes] == ["start-front"]
    assert (led_to(simulated, door), simulated.room.running()) == ("a:v1", served)


def test_a_withdrawn_model_is_not_led_to(tmp_path: Path) -> None:
    """Stopped at once, without draining; then requests are refused (I6)."""
    simulated, door = with_front(tmp_path)
    simulated.run(A)
    door.log.clear()
    withdrawn = versions("a", serve="a", sequence=2, withdrawn=({"digest": manifest_digest("a:v1")},))
    simulated.run(withdrawn)
    assert simulated.serving() == []
    assert [line.partition(" ")[0] for line in door.log] == ["holding", "none"]


def test_new_limits_are_put_in_force_without_a_swap(tmp_path: Path) -> None:
    """A snapshot that changes only the bounds on requests changes only the route."""
    simulated, door = with_front(tmp_path)
    simulated.run(A)
    limits = versions("a", serve="a", sequence=2, policy={"jobs": {"maxTokens": 7}, "modes": ("native", "container")})
    result = simulated.run(limits)
    assert [outcome.action.kind for outcome in result.outcomes] == ["route-front"]
    assert door.route.max_tokens == 7
    assert led_to(simulated, door) == "a:v1"
    assert simulated.run().outcomes == ()


def test_a_front_that_cannot_be_started_stops_nothing(tmp_path: Path) -> None:
    """The runtime serves on its own socket; the front is tried again later."""
    simulated, door = with_front(tmp_path)

    def refuse() -> None:
        raise StartFailed("no room")

    door.ensure = refuse  # type: ignore[method-assign]
    simulated.run(A)
    assert simulated.serving() == ["a:v1"]
    del door.ensure  # type: ignore[method-assign]
    simulated.later(minutes=2)
    simulated.run()
    assert led_to(simulated, door) == "a:v1"


@settings(max_examples=12, deadline=None)
@given(st.lists(st.integers(1, 12), max_size=4))
def test_wherever_it_crashes_requests_are_led_to_what_serves(crashes: list[int]) -> None:
    """Killed at any steps of a swap: the next pass ends with one proven instance, and the front leads to it (I7)."""
    with tempfile.TemporaryDirectory() as folder:
        simulated, door = with_front(Path(folder))
        simulated.run(A)
        simulated.offer(B)
        for point in crashes:
            simulated.recorder = Recorder(crash_at=point)
            simulated.restart()
            try:
                simulated.reconciler.run_pass()
            except CrashError:
                continue
        simulated.recorder = Recorder()
        simulated.restart()
        simulated.run()
        assert (simulated.serving(), led_to(simulated, door)) == (["b:v1"], "b:v1")
        assert (door.wrong, simulated.room.most_running) == ([], 1)
        assert simulated.run().outcomes == ()


# --- the decision alone -------------------------------------------------------------------------------------------

LIMITS = {"max_tokens": 4096, "max_queue": 64, "timeout": 120, "hold": 30}


def seen(state: Any = "serving", intent: str = "", *, current: bool = True) -> Present[FrontSeen]:
    """A front as it is found, with the limits of the usual snapshot."""
    return Present(FrontSeen(current, state, intent, FrontLimits(**LIMITS)))


@pytest.mark.parametrize(
    ("state", "current", "wanted"),
    [
        ("serving", True, ""),
        ("holding", True, "route/m:v1"),
        ("none", True, "route/m:v1"),
        ("serving", False, "front"),
        ("none", False, "front\nroute/m:v1"),
    ],
)
def test_a_converged_node_leads_to_what_serves(state: Any, current: bool, wanted: str) -> None:
    """Whatever a crash left: a hold is lifted, a missing route made, a dead front started."""
    there = converged(front=seen(state, instance().intent, current=current))
    assert text(plan(desired(), there, node(), NOW)) == wanted


def test_an_instance_without_a_receipt_is_led_to_only_after_its_probe() -> None:
    """A route waits for the validation (I2)."""
    there = converged(front=seen("holding"), receipts=())
    assert text(plan(desired(), there, node(), NOW)) == "validate/m:v1\nroute/m:v1 <- validate/m:v1"


def test_a_model_in_doubt_is_led_to_only_after_it_was_hashed() -> None:
    """Its proof counts only if its bytes are still the proven ones: a route waits for that (I2)."""
    there = converged(front=seen("holding"))
    digest, doubtful = stored(intact=False)
    there = replace(there, state=replace(there.state, models={**there.state.models, digest: doubtful}))
    made = plan(desired(), there, node(), NOW)
    assert [action.needs for action in made.actions if action.id == "route/m:v1"] == [("verify/m:v1",)]


def test_a_front_that_cannot_be_seen_is_not_touched() -> None:
    """Unknown is not absent; the runtime's own business goes on."""
    there = converged(front=Unknown("permission denied"))
    assert text(plan(desired(), there, node(), NOW)) == "held front BackendUnavailable"
