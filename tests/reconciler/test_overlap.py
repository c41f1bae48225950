"""New beside old: only where snapshot and owner allow it and both fit provably; otherwise never two (I3)."""

from __future__ import annotations

import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reconciler.planner import plan
from runtime.front.simulated import SimulatedFront
from schemas.observation import FrontSeen, Present
from schemas.plan import StartInstance
from tests.reconciler.test_front import with_front
from tests.support.builders import (
    NOW,
    assignment,
    converged,
    desired,
    gpu,
    hardware,
    manifest_digest,
    model,
    node,
    runtime,
    snapshot,
    stored,
)
from tests.support.histories import mishap, worlds
from tests.support.simulated_node import CrashError, Recorder, SimulatedNode

GIB = 2**30
ALLOWED: dict[str, Any] = {"isolation": {"overlap": True}}
WILLING = node(policy={"overlap": True})
OWNER = node(backends={"native": {}}, policy={"overlap": True})


def second(**fields: Any) -> Any:
    """The second version of the model is wanted."""
    return desired(
        snapshot(
            models=(model(), model(version="v2", **fields.pop("model", {}))),
            runtimes=(runtime(**{**ALLOWED, **fields}),),
            assignments=(assignment("m:v2"),),
            sequence=2,
        )
    )


def serving(**fields: Any) -> Any:
    """The first version serves, with the front's requests, and the second is stored."""
    seen = converged()
    front = Present(FrontSeen(current=True, state="serving", intent="a1"))
    models = {**seen.state.models, **dict([stored("m:v2")])}
    return replace(seen, state=replace(seen.state, **{"front": front, "models": models, **fields}))


def lines(made: Any) -> list[str]:
    """A line for each action, with its needs."""
    return [f"{action.id}{' <- ' + ' '.join(action.needs) if action.needs else ''}" for action in made.actions]


def start_of(made: Any) -> StartInstance:
    """The one start of a plan."""
    (start,) = (action for action in made.actions if isinstance(action, StartInstance))
    return start


def test_the_old_one_serves_until_requests_are_led_to_the_new_one() -> None:
    """Start, ready, validate, switch, drain, stop; and nothing interrupts the service."""
    made = plan(second(), serving(), WILLING, NOW)
    assert lines(made) == [
        "start/m:v2",
        "validate/m:v2 <- start/m:v2",
        "route/m:v2 <- validate/m:v2",
        "stop/reconcile-testnet-a1 <- validate/m:v2 route/m:v2",
    ]
    assert (start_of(made).strategy, made.cost.downtime) == ("overlap", "none")


FULL = serving(hardware=hardware(memory_free=4 * GIB))
CARD = gpu(memory=80 * GIB)


@pytest.mark.parametrize(
    ("wanted", "seen", "owner", "reason"),
    [
        (second(isolation={}), serving(), WILLING, "the snapshot does not allow"),
        (second(), serving(), node(), "the node's owner does not allow"),
        (second(), FULL, WILLING, "memory does not hold both"),
        (second(model={"requires": {"memory": "31GiB"}}), serving(), WILLING, "memory does not hold both"),
        (second(), replace(serving(), memory=replace(serving().memory, receipts=())), WILLING, "has passed its probe"),
        (second(), serving(front=None), WILLING, "no front leads"),
        (
            second(resources={"gpus": 1}),
            serving(hardware=hardware(gpus=(replace(CARD, memory_free=80 * GIB),))),
            WILLING,
            "not known",
        ),
        (
            second(resources={"gpus": 1}, model={"requires": {"gpuMemory": "20GiB"}}),
            serving(hardware=hardware(gpus=(replace(CARD, memory_free=21 * GIB),))),
            WILLING,
            "GPU memory does not hold both",
        ),
    ],
)
def test_what_is_not_allowed_or_not_shown_to_fit_replaces(wanted: Any, seen: Any, owner: Any, reason: str) -> None:
    """The plan says which strategy it takes, and why not the other one."""
    made = plan(wanted, seen, owner, NOW)
    start = start_of(made)
    assert (start.strategy, made.cost.downtime) == ("replace", "swap")
    assert reason in start.strategy_reason
    assert any(need.startswith("stop/") for need in start.needs)


def test_gpu_memory_that_is_free_holds_both() -> None:
    """Headroom included."""
    card = replace(CARD, memory_free=22 * GIB)
    wanted = second(resources={"gpus": 1}, model={"requires": {"gpuMemory": "20GiB"}})
    assert start_of(plan(wanted, serving(hardware=hardware(gpus=(card,))), WILLING, NOW)).strategy == "overlap"


def serve(key: str, sequence: int, *, overlap: bool = True) -> Any:
    """One of two models."""
    return snapshot(
        models=(model("a"), model("b")),
        runtimes=(runtime(isolation={"overlap": overlap}),),
        assignments=(assignment(key),),
        sequence=sequence,
    )


def test_an_overlap_leads_over_without_holding_anything(tmp_path: Path) -> None:
    """No request waits, what the old one still answers is drained, and there is no downtime."""
    simulated, door = with_front(tmp_path, config=OWNER)
    simulated.run(serve("a:v1", 1))
    (old,) = (item.name for item in simulated.room.running())
    door.log.clear()
    door.busy = 2
    result = simulated.run(serve("b:v1", 2))
    (new,) = (item.name for item in simulated.room.running())
    assert (result.exit_code, simulated.serving(), simulated.room.most_running) == (0, ["b:v1"], 2)
    assert door.log == [f"serving {new}", f"drain {old} 0", f"drain {old} 30"]
    assert door.wrong == []
    assert simulated.journal.history()[0].downtime_ms == 0
    assert simulated.run().outcomes == ()


@pytest.mark.parametrize("bad", ["start", "answers"])
def test_a_failed_overlap_costs_nothing(tmp_path: Path, bad: str) -> None:
    """The last known good was never stopped (I5)."""
    lies = frozenset({manifest_digest("b:v1")}) if bad == "answers" else frozenset()
    simulated, door = with_front(tmp_path, config=OWNER, lies=lies)
    simulated.run(serve("a:v1", 1))
    (old,) = (item.name for item in simulated.room.running())
    door.log.clear()
    simulated.room.bad_starts = {"b:v1"} if bad == "start" else set()
    simulated.run(serve("b:v1", 2))
    assert [item.name for item in simulated.room.running()] == [old]
    assert not any(line.startswith(("holding", "serving", "none")) for line in door.log)


@pytest.mark.parametrize("point", range(1, 12))
def test_a_crash_at_any_step_ends_with_one_runtime(tmp_path: Path, point: int) -> None:
    """The next agent brings it to its end; nothing unproven is led to, and requests are led all the time (I7)."""
    simulated, door = with_front(tmp_path, config=OWNER)
    simulated.run(serve("a:v1", 1))
    door.log.clear()
    simulated.recorder = Recorder(crash_at=point)
    simulated.restart()
    try:
        simulated.run(serve("b:v1", 2))
    except CrashError:
        assert len(simulated.room.running()) <= 2
    simulated.recorder = Recorder()
    simulated.restart()
    simulated.run()
    assert simulated.serving() == ["b:v1"]
    assert door.wrong == []
    assert not any(line.startswith(("holding", "none")) for line in door.log)
    assert simulated.run().outcomes == ()


def test_a_permission_that_was_taken_back_ends_it(tmp_path: Path) -> None:
    """After a crash in mid-overlap, without permission, the next look leaves one (I3)."""
    simulated, _ = with_front(tmp_path, config=OWNER)
    simulated.run(serve("a:v1", 1))
    simulated.recorder = Recorder(crash_at=5)
    simulated.restart()
    with pytest.raises(CrashError):
        simulated.run(serve("b:v1", 2))
    assert len(simulated.room.running()) == 2
    simulated.recorder = Recorder()
    simulated.restart()
    first = simulated.run(serve("b:v1", 3, overlap=False)).outcomes[0]
    assert first.action.kind == "stop-instance"
    assert simulated.serving() == ["b:v1"]


@settings(max_examples=25, deadline=None)
@given(history=worlds(), willing=st.booleans(), offered=st.lists(st.booleans(), min_size=6, max_size=6))
def test_never_two_without_permission_and_planning_again_finds_nothing(
    history: list[tuple[str, Any]], willing: bool, offered: list[bool]
) -> None:
    """Whatever happens: two run only where both allow it, one is left, and a plan after its pass is empty."""
    with tempfile.TemporaryDirectory() as folder:
        config = OWNER if willing else node(backends={"native": {}})
        simulated = SimulatedNode(Path(folder) / "state", config=config, front=SimulatedFront())
        allowed = False
        for what, value in history:
            if what == "snapshot":
                allowed = willing and offered[value.metadata.sequence - 1]
                spec = value.spec.runtimes[0]
                loose = spec.isolation.model_copy(update={"overlap": offered[value.metadata.sequence - 1]})
                runtimes = (spec.model_copy(update={"isolation": loose}),)
                simulated.offer(value.model_copy(update={"spec": value.spec.model_copy(update={"runtimes": runtimes})}))
            else:
                mishap(simulated, what, value)
            simulated.room.most_running = 0
            simulated.run()
            assert simulated.room.most_running <= (2 if allowed else 1)
            assert len(simulated.room.running()) <= 1
            assert simulated.run().plan.actions == ()
        simulated.journal.close()
