"""Restarts of what ends by itself: how they are spaced, when they end, and what is remembered of them."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING, Any

import pytest

from reconciler import restarts
from reconciler.cli.render_status import status_text
from reconciler.planner import plan
from schemas.memory import Hold
from schemas.plan import StopInstance
from tests.reconciler.test_pipeline import A, B
from tests.support.builders import NOW, converged, desired, good, instance, node, observed, stored, target
from tests.support.simulated_node import SimulatedNode, conditions

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from schemas.observation import Observed
    from schemas.plan import Plan

OF = target()


@pytest.fixture
def simulated(tmp_path: Path) -> Iterator[SimulatedNode]:
    """A node that has never run."""
    made = SimulatedNode(tmp_path)
    yield made
    made.journal.close()


# --- pure ---------------------------------------------------------------------------------------------------------


def ended(
    before: int, *, ran: timedelta = timedelta(minutes=1), ago: timedelta | None = None, **memory: Any
) -> Observed:
    """A node whose instance has ended, after so many others."""
    since = NOW - (ran + timedelta(seconds=1) if ago is None else ago)
    subject = restarts.key(OF.spec_digest)
    holds = {subject: Hold(subject, restarts.RESTARTING, "why", before, since)} if before else {}
    gone = instance(OF, status="exited", exit_code=1, detail="exit code 1", started_at=NOW - ran)
    memory = {"last_known_good": good(OF), "holds": holds, **memory}
    return observed(instances=(gone,), models=(stored(), stored("m:v2")), **memory)


def stop_of(made: Plan) -> StopInstance:
    """The plan's only stop."""
    (found,) = (action for action in made.actions if isinstance(action, StopInstance))
    return found


def starts(made: Plan) -> bool:
    """Whether the plan starts something."""
    return any(action.kind == "start-instance" for action in made.actions)


def test_the_first_end_costs_no_time() -> None:
    """An accident is mended in the same plan."""
    made = plan(desired(), ended(0), node(), NOW)
    assert starts(made)
    assert not made.held
    assert stop_of(made).failures == 1


@pytest.mark.parametrize(("before", "seconds"), [(1, 10), (2, 20), (3, 40), (4, 80), (5, 160), (6, 300), (60, 300)])
def test_waits_double_up_to_a_bound(before: int, seconds: int) -> None:
    """What ends again is cleared away at once and started later: 10 s, doubled, 5 min at most."""
    made = plan(desired(), ended(before), node(), NOW)
    assert not starts(made)
    assert stop_of(made).failures == before + 1
    (held,) = made.held
    assert held.until == NOW + timedelta(seconds=seconds)
    assert held.reason == ("CrashLooping" if before + 1 >= restarts.BUDGET else "Restarting")
    assert "exit code 1" in held.message


def test_what_has_run_for_long_enough_starts_from_the_beginning() -> None:
    """Ten minutes of running were well: the next end is the first again, and no sooner."""
    assert starts(plan(desired(), ended(4, ran=restarts.WELL), node(), NOW))
    assert not starts(plan(desired(), ended(4, ran=restarts.WELL - timedelta(seconds=1)), node(), NOW))


def test_what_was_long_ago_counts_for_nothing() -> None:
    """Ends of last week say nothing about what is started today."""
    assert starts(plan(desired(), ended(4, ago=timedelta(hours=2)), node(), NOW))


def test_a_remembered_wait_holds_the_start() -> None:
    """It is the journalled time, with its chance, that counts; one that no clock of today can have set does not."""
    subject, until = restarts.key(OF.spec_digest), NOW + timedelta(seconds=17)
    for end, waits in ((until, True), (NOW + timedelta(minutes=50), False), (NOW, False)):
        holds = {subject: Hold(subject, restarts.RESTARTING, "why", 3, end)}
        made = plan(desired(), observed(models=(stored(),), holds=holds, last_known_good=good(OF)), node(), NOW)
        assert [(held.reason, held.until) for held in made.held] == ([("Restarting", end)] if waits else [])
        assert starts(made) is not waits


def test_what_is_well_is_left_alone() -> None:
    """A wait that is remembered for what runs now changes nothing."""
    subject = restarts.key(OF.spec_digest)
    holds = {subject: Hold(subject, restarts.RESTARTING, "why", 3, NOW + timedelta(seconds=5))}
    made = plan(desired(), converged(OF, holds=holds), node(), NOW)
    assert (made.actions, made.held) == ((), ())


def test_it_is_given_up_only_for_something_else() -> None:
    """With a way back the budget ends it; without one it is tried on, and with one that is not stored any more."""
    before = good(target("m:v2"))
    assert stop_of(plan(desired(), ended(4, earlier_good=before), node(), NOW)).gives_up == OF
    assert stop_of(plan(desired(), ended(3, earlier_good=before), node(), NOW)).gives_up is None
    assert stop_of(plan(desired(), ended(4), node(), NOW)).gives_up is None
    gone = good(target("m:v3"))
    assert stop_of(plan(desired(), ended(4, earlier_good=gone), node(), NOW)).gives_up is None


# --- a whole node -------------------------------------------------------------------------------------------------


def fall(simulated: SimulatedNode) -> None:
    """What serves ends by itself, and its end is seen."""
    simulated.later(seconds=1)
    simulated.room.kill(simulated.room.running()[0].name)
    simulated.run()


def fall_until_waiting(simulated: SimulatedNode) -> None:
    """Twice: the second time it waits."""
    fall(simulated)
    assert simulated.serving() == ["a:v1"]
    fall(simulated)
    assert simulated.serving() == []


def test_a_restart_waits_for_its_time_through_a_new_agent(simulated: SimulatedNode) -> None:
    """The wait is the journal's: an agent that is started anew neither forgets it nor begins it again."""
    simulated.run(A)
    fall_until_waiting(simulated)
    simulated.restart()
    result = simulated.run()
    (held,) = [item for item in result.status.held if item.subject == "runtime"]
    assert held.reason == "Restarting"
    assert held.until is not None
    left = (held.until - simulated.clock.now()).total_seconds()
    assert 8 < left <= 11, "ten seconds, more or less"
    assert f"next restart in {round(left)}" in status_text(result.status, simulated.clock.now()).replace(".0", "")
    assert conditions(result)["Stalled"] == "False"
    simulated.later(seconds=left + 1)
    result = simulated.run()
    assert (result.exit_code, simulated.serving()) == (0, ["a:v1"])
    assert simulated.room.most_running == 1


def test_a_person_can_have_it_restarted_now(simulated: SimulatedNode) -> None:
    """`reconcile retry` ends the wait."""
    from reconciler.verbs import record
    from schemas.control import Retry

    simulated.run(A)
    fall_until_waiting(simulated)
    record(Retry(subjects=()), simulated.journal, simulated.clock.now())
    simulated.run()
    assert simulated.serving() == ["a:v1"]


def test_the_budget_ends_with_what_served_before(simulated: SimulatedNode) -> None:
    """What was good before serves, the other one is remembered as bad, and the event says it (I5)."""
    simulated.run(A)
    simulated.run(B)
    assert simulated.serving() == ["b:v1"]
    for _ in range(200):
        if simulated.serving() == ["b:v1"]:
            fall(simulated)
        simulated.later(seconds=5)
        result = simulated.run()
        if simulated.serving() == ["a:v1"]:
            break
    assert simulated.serving() == ["a:v1"]
    assert conditions(result)["RolledBack"] == "True"
    assert conditions(result)["Stalled"] == "False"
    assert simulated.room.most_running == 1
    said = [event.message for event in simulated.journal.events(after=0, limit=1000) if event.reason == "CrashLooping"]
    assert len(said) == 1
    assert "b:v1 ended by itself 5 times in a row" in said[0]
    simulated.later(hours=3)
    simulated.run()
    assert simulated.serving() == ["a:v1"], "it is not tried again by itself"


def test_with_nothing_to_go_back_to_it_is_tried_on(simulated: SimulatedNode) -> None:
    """Stalled, loudly and once, and yet brought back whenever a wait is over."""
    simulated.run(A)
    came_back = 0
    for _ in range(400):
        if simulated.serving():
            came_back += 1
            fall(simulated)
        simulated.later(seconds=30)
        result = simulated.run()
        if came_back > 8:
            break
    assert came_back > 8
    if simulated.serving():
        fall(simulated)
        result = simulated.run()
    assert conditions(result)["Stalled"] == "True"
    assert "next restart" in status_text(result.status, simulated.clock.now())
    said = [event for event in simulated.journal.events(after=0, limit=1000) if event.reason == "CrashLooping"]
    assert len(said) == 1


def test_what_has_served_is_not_given_up_for_one_start_that_fails(simulated: SimulatedNode) -> None:
    """A proven model whose start fails once, as after a restart of the machine, comes back by itself."""
    simulated.run(A)
    simulated.room.bad_starts.add("a:v1")
    simulated.room.kill(simulated.room.running()[0].name)
    result = simulated.run()
    assert simulated.serving() == []
    assert conditions(result)["Ready"] == "False"
    simulated.room.bad_starts.clear()
    for _ in range(5):
        simulated.later(minutes=1)
        simulated.run()
    assert simulated.serving() == ["a:v1"]
