"""Retests in quiet moments or overdue, what a failing one leads to, and first validations of what does not serve."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reconciler.memory import RESTART_WINDOW, AskRetest
from reconciler.planner import plan
from schemas.digests import digest_text
from tests.reconciler.test_proof import check, remembered
from tests.support.builders import (
    NOW,
    assignment,
    converged,
    desired,
    manifest_digest,
    model,
    node,
    runtime,
    snapshot,
)
from tests.support.histories import NAMES
from tests.support.simulated_node import CrashError, Recorder, SimulatedNode, conditions, states

if TYPE_CHECKING:
    from pathlib import Path

    from reconciler.loop import PassResult

EVERY = timedelta(hours=6)
LOCK = {"path": "runtimes/main.lock", "digest": digest_text("a lock")}


def serving(*serve: str, sequence: int = 1, **spec: Any) -> Any:
    """A snapshot that assigns models, the first of them loaded."""
    models = tuple(model(name.partition(":")[0]) for name in sorted(serve))
    return snapshot(models=models, assignments=(assignment(*serve),), sequence=sequence, **spec)


ONE = serving("a:v1")


@pytest.fixture
def simulated(tmp_path: Path) -> SimulatedNode:
    """A fresh node."""
    return SimulatedNode(tmp_path / "state")


def kinds(result: PassResult) -> list[str]:
    """What a pass did."""
    return [outcome.action.kind for outcome in result.outcomes]


def busy(simulated: SimulatedNode, *, running: int) -> None:
    """What the serving engine is doing."""
    simulated.room.activities[simulated.room.running()[0].name] = (running, 0, 100)


def proof(result: PassResult) -> Any:
    """What the status says of the receipt that serves."""
    assert result.status.serving is not None
    assert result.status.serving.proof is not None
    return result.status.serving.proof


# --- when ---------------------------------------------------------------------------------------------------------


def test_a_retest_waits_for_a_quiet_moment_until_it_is_overdue(simulated: SimulatedNode) -> None:
    """Predicted by the status; made in the first quiet moment; while clients are answered only when overdue."""
    when = proof(simulated.run(ONE))
    assert NOW + EVERY * 0.8 <= when.retest_from < when.retest_by <= NOW + EVERY + timedelta(seconds=1)
    simulated.clock.moment = when.retest_from - timedelta(minutes=1)
    assert kinds(simulated.run()) == []
    busy(simulated, running=1)
    simulated.clock.moment = when.retest_from + timedelta(minutes=1)
    result = simulated.run()
    assert kinds(result) == []
    assert any("quiet moment" in step.decision for step in result.plan.trace)
    busy(simulated, running=0)
    assert kinds(simulated.run()) == ["validate-model"]
    after = proof(simulated.run())
    assert (after.number, after.retest_from > when.retest_by) == (when.number + 1, True)
    busy(simulated, running=3)
    simulated.clock.moment = after.retest_by + timedelta(minutes=1)
    assert kinds(simulated.run()) == ["validate-model"], "overdue is overdue"


def test_an_engine_that_does_not_say_is_retested_when_it_is_overdue(simulated: SimulatedNode) -> None:
    """Nobody guesses that it is quiet."""
    when = proof(simulated.run(ONE))
    engine = simulated.node.adapters.engines["llamacpp"]
    engine.activity = lambda _connection: None  # type: ignore[method-assign]
    simulated.clock.moment = when.retest_from + timedelta(minutes=1)
    assert kinds(simulated.run()) == []
    simulated.clock.moment = when.retest_by + timedelta(minutes=1)
    assert kinds(simulated.run()) == ["validate-model"]


def test_after_a_restart_of_the_engine_it_is_tested_again(simulated: SimulatedNode) -> None:
    """Whatever the schedule says: a receipt speaks for the instance that answered (I2)."""
    simulated.run(ONE)
    simulated.room.kill(simulated.room.running()[0].name)
    assert kinds(simulated.run())[-1] == "validate-model"


def test_a_doubt_is_answered_at_once_and_once(simulated: SimulatedNode) -> None:
    """A GPU fault that no receipt knows of: the next pass asks the probe, and then it is settled."""
    simulated.run(ONE)
    busy(simulated, running=5)
    simulated.journal.apply((AskRetest(manifest_digest("a:v1"), "GPU-1 reported Xid 79"),), simulated.clock.now())
    result = simulated.run()
    assert kinds(result) == ["validate-model"]
    assert result.outcomes[0].action.cause == "its answers are in doubt: GPU-1 reported Xid 79"
    assert kinds(simulated.run()) == []


# --- what a failing one leads to ----------------------------------------------------------------------------------


def lie(simulated: SimulatedNode, *names: str) -> None:
    """From now on these models answer as others would; the agent is a new process, the engine goes on."""
    simulated.lies = frozenset(manifest_digest(f"{name}:v1") for name in names)
    simulated.restart()


def test_a_failing_retest_goes_back_to_what_was_good_before(simulated: SimulatedNode) -> None:
    """What serves is the last known good itself: quarantined, remembered, and the one before it serves (I5)."""
    simulated.run(serving("a:v1"))
    simulated.run(serving("b:v1", "a:v1", sequence=2))
    lie(simulated, "b")
    simulated.later(hours=7)
    result = simulated.run()
    assert simulated.serving() == ["a:v1"]
    assert states(result) == {"a:v1": "Active", "b:v1": "Failed"}
    assert conditions(result)["RolledBack"] == "True"
    assert simulated.room.most_running == 1
    assert kinds(simulated.run()) == []
    check(simulated)


def test_what_was_good_before_and_is_gone_is_not_gone_back_to(simulated: SimulatedNode) -> None:
    """Without its bytes there is no way back: nothing unproven serves, and the node says so (I2, I5)."""
    simulated.run(serving("a:v1"))
    simulated.run(serving("b:v1", sequence=2))
    simulated.shelf.stored.pop(manifest_digest("a:v1"))
    lie(simulated, "b")
    simulated.later(hours=7)
    result = simulated.run()
    assert simulated.serving() == []
    assert conditions(result)["Stalled"] == "True"


# --- first validations --------------------------------------------------------------------------------------------

ASKED = {"validation": {"installed": True}}
SUNDAY = {"swap": ({"days": ("sun",), "from": "03:00", "to": "04:00", "zone": "UTC"},)}


def test_what_is_installed_and_does_not_serve_is_pending_and_left_alone(simulated: SimulatedNode) -> None:
    """Off unless the policy asks for it: nobody is stopped for a validation."""
    result = simulated.run(serving("a:v1", "b:v1"))
    assert states(result) == {"a:v1": "Active", "b:v1": "Pending"}
    assert simulated.serving() == ["a:v1"]
    assert kinds(simulated.run()) == []


def test_a_first_validation_is_a_swap_there_and_back(simulated: SimulatedNode) -> None:
    """Asked for: both others are proven in turn, then what serves comes back, and is what this node goes back to."""
    simulated.run(serving("a:v1", "b:v1", "c:v1"))
    result = simulated.run(serving("a:v1", "b:v1", "c:v1", sequence=2, policy=ASKED))
    assert states(result) == {"a:v1": "Active", "b:v1": "Active", "c:v1": "Active"}
    assert simulated.serving() == ["a:v1"]
    assert simulated.room.most_running == 1
    good = remembered(simulated).last_known_good
    assert good is not None
    assert good.target.model == "a:v1"
    assert kinds(result).count("start-instance") == 3
    assert kinds(simulated.run()) == []
    assert result.exit_code == 0


def test_a_first_validation_waits_for_its_window_and_a_quiet_moment(simulated: SimulatedNode) -> None:
    """Nothing is stopped outside a swap window, or while somebody is being answered; the plan says so, and its cost."""
    simulated.run(serving("a:v1", "b:v1"))
    asked = serving("a:v1", "b:v1", sequence=2, policy=ASKED | {"windows": SUNDAY})
    result = simulated.run(asked)
    assert kinds(result) == []
    assert any("waits for a swap window" in step.decision for step in result.plan.trace)
    simulated.clock.moment = NOW.replace(day=8, hour=3, minute=10)
    busy(simulated, running=1)
    result = simulated.run()
    assert "start-instance" not in kinds(result)
    assert any("first validation waits for a quiet moment" in step.decision for step in result.plan.trace)
    busy(simulated, running=0)
    looked = simulated.node.look(simulated.journal.accepted().digest)  # type: ignore[union-attr]
    made = plan(*looked, simulated.config, simulated.clock.now())
    assert (made.cost.downtime, made.cost.back) == ("swap", True)
    simulated.run()
    assert simulated.serving() == ["a:v1"]
    check(simulated)


def test_what_comes_back_does_not_wait_for_the_window(simulated: SimulatedNode) -> None:
    """The window closes in the middle: what was stopped for a validation comes back all the same (I6)."""
    simulated.run(serving("a:v1", "b:v1"))
    asked = serving("a:v1", "b:v1", sequence=2, policy=ASKED | {"windows": SUNDAY})
    simulated.clock.moment = NOW.replace(day=8, hour=3, minute=59, second=59, microsecond=990_000)
    result = simulated.run(asked)
    assert simulated.clock.moment.hour == 4
    assert simulated.serving() == ["a:v1"]
    assert result.exit_code == 0


def test_a_first_validation_that_fails_is_remembered_and_what_serves_comes_back(tmp_path: Path) -> None:
    """It is Failed, and not tried again; the last known good is what it was (I5)."""
    simulated = SimulatedNode(tmp_path / "state", lies=frozenset({manifest_digest("b:v1")}))
    result = simulated.run(serving("a:v1", "b:v1", policy=ASKED))
    assert states(result) == {"a:v1": "Active", "b:v1": "Failed"}
    assert simulated.serving() == ["a:v1"]
    assert kinds(simulated.run()) == []


@settings(max_examples=40, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.permutations(NAMES),
            st.sampled_from((512, 2048)),
            st.booleans(),
            st.sampled_from(("", "kill", "crash")),
        ),
        min_size=1,
        max_size=4,
    ),
    st.sets(st.sampled_from(NAMES), max_size=2),
    st.integers(1, 60),
)
def test_trials_never_leave_another_serving(
    tmp_path_factory: pytest.TempPathFactory, steps: list[Any], liars: set[str], crash_at: int
) -> None:
    """Any order, other runtimes, dead engines, agents that die anywhere: in the end what should serve does (I3, I7)."""
    lies = frozenset(manifest_digest(f"{name}:v1") for name in liars)
    simulated = SimulatedNode(tmp_path_factory.mktemp("trials") / "state", lies=lies)
    for number, (order, context, asked, what) in enumerate(steps, start=1):
        serve = tuple(f"{name}:v1" for name in order)
        runtimes = (runtime(engineArgs={"contextSize": context}),)
        policy = ASKED if asked else {}
        document = serving(*serve, sequence=number, runtimes=runtimes, policy=policy)
        if what == "kill" and simulated.room.running():
            simulated.room.kill(simulated.room.running()[0].name)
        if what == "crash":
            simulated.recorder = Recorder(crash_at=crash_at)
            simulated.restart()
        try:
            simulated.run(document)
        except CrashError:
            simulated.later(hours=2)
        simulated.recorder = Recorder()
        simulated.restart()
        for _ in range(4):
            result = simulated.run()
            simulated.later(hours=1)
        assert simulated.room.most_running <= 1
        if order[0] not in liars:
            assert simulated.serving() == [serve[0]]
        memory = simulated.journal.memory(starts_since=simulated.clock.now() - RESTART_WINDOW)
        if asked and order[0] not in liars and what != "crash":
            wanted = {f"{name}:v1": "Failed" if name in liars else "Active" for name in order}
            assert states(result) == wanted
        assert memory.last_known_good is None or memory.last_known_good.target.model[0] not in liars
        check(simulated)
    simulated.journal.close()


# --- compatibility ------------------------------------------------------------------------------------------------


def test_a_task_that_no_engine_here_serves_is_said_in_the_plan() -> None:
    """Before anything is fetched or stopped, with what the engine does serve."""
    wanted = snapshot(models=(model(requires={"tasks": ("chat", "transcription")}),))
    made = plan(desired(wanted), converged(), node(), NOW)
    assert made.actions == ()
    assert made.held[0].reason == "Incompatible"
    assert made.held[0].message == "m:v1 is for transcription; llamacpp serves chat, completion, json, tools here"
    called = (model(requires={"tasks": ("chat", "tools")}),)
    assert plan(desired(snapshot(models=called)), converged(), node(), NOW).held == ()


def test_vllm_calls_functions_only_where_the_snapshot_says_how() -> None:
    """It would refuse every such request, and so would its validation: known before anything is fetched."""
    called = (model(requires={"tasks": ("chat", "tools")}),)

    def held(**arguments: Any) -> list[str]:
        spec = runtime(engine="vllm", version="0.32.0", native={"lock": LOCK}, engineArgs=arguments)
        made = plan(desired(snapshot(models=called, runtimes=(spec,))), converged(), node(), NOW)
        return [item.message for item in made.held if item.reason == "Incompatible"]

    assert held() == [
        "m:v1 is for tools; vllm serves chat, completion, json here (tools: with engineArgs.toolCallParser)"
    ]
    assert held(toolCallParser="hermes") == []


def test_a_clock_that_was_ahead_stops_no_retests(simulated: SimulatedNode) -> None:
    """A receipt of the future would put the next test off until then, for years: what serves is tested now, once."""
    simulated.run(ONE)
    simulated.later(days=4000)
    assert "validate-model" in kinds(simulated.run()), "with the wrong clock, one was due"
    simulated.later(days=-4000)
    simulated.later(minutes=1)
    result = simulated.run()
    assert kinds(result) == ["validate-model"]
    assert "the clock was set back" in result.outcomes[0].action.cause
    assert proof(result).issued_at <= simulated.clock.now()
    assert kinds(simulated.run()) == []


def test_a_clock_that_is_set_right_by_minutes_is_no_doubt(simulated: SimulatedNode) -> None:
    """Every clock is; nothing is proven again because of it."""
    simulated.run(ONE)
    simulated.later(minutes=-5)
    assert kinds(simulated.run()) == []
