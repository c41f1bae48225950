"""What a node says of itself while it is at work: readers are told what is done, not what was."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from reconciler.cli.render_status import status_text
from reconciler.executor import Outcome
from reconciler.planner import plan as make_plan
from reconciler.published import read_status
from reconciler.telemetry.metrics import Metrics
from reconciler.underway import ADVANCE_SECONDS, MOST_STEPS, Underway, planned
from schemas.errors import NoSpace
from tests.reconciler.test_pipeline import A, B
from tests.support.simulated_node import Recorder, SimulatedNode

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from schemas.plan import Action
    from schemas.status import NodeStatus, StepStatus


class Reader(Recorder):
    """Somebody who looks at the published status whenever an action begins, or has ended."""

    def __init__(self, node: SimulatedNode) -> None:
        super().__init__()
        self._node = node
        self.seen: dict[str, NodeStatus] = {}
        self.actions: dict[str, Action] = {}

    def started(self, action: Action) -> None:
        """Keep what is published as this begins."""
        seen = read_status(self._node.node.state)
        assert seen is not None
        self.seen[action.kind], self.actions[action.kind] = seen, action

    def finished(self, outcome: Outcome) -> None:
        """Nothing to look at."""


@pytest.fixture
def node(tmp_path: Path) -> SimulatedNode:
    """A fresh node."""
    return SimulatedNode(tmp_path / "state")


def watched(node: SimulatedNode) -> Reader:
    """Have a reader look at the node from now on."""
    reader = Reader(node)
    node.recorder = reader
    node.restart()
    return reader


def steps(status: NodeStatus) -> Mapping[str, StepStatus]:
    """By kind, the steps of the plan in a status."""
    assert status.plan is not None
    return {step.kind: step for step in status.plan.steps}


def reasons(status: NodeStatus) -> Mapping[str, tuple[str, str]]:
    """Status and reason of each condition."""
    return {item.type: (item.status, item.reason) for item in status.conditions}


def test_a_download_is_shown_while_it_goes_on(node: SimulatedNode) -> None:
    """The newer snapshot, what is under way and what serves meanwhile are published before the download begins."""
    node.run(A)
    reader = watched(node)
    ended = node.run(B).status
    seen = reader.seen["download-model"]
    assert seen.snapshot is not None
    assert seen.snapshot.sequence == 2
    assert seen.plan is not None
    assert seen.plan.ended_at is None
    assert steps(seen)["download-model"].state == "running"
    assert steps(seen)["start-instance"].state == "waiting"
    assert seen.wanted is not None
    assert seen.wanted.model == "b:v1"
    assert seen.serving is not None
    assert seen.serving.model == "a:v1"
    assert reasons(seen)["Ready"] == ("False", "Progressing")
    assert reasons(seen)["Reconciling"] == ("True", "Progressing")
    text = status_text(seen, node.clock.now())
    assert "Under way" in text
    assert "running  download/b:v1" in text
    assert ended.plan is not None
    assert ended.plan.ended_at is not None
    assert {step.state for step in ended.plan.steps} == {"done"}
    assert "Last plan" in status_text(ended, node.clock.now())


def test_nothing_is_said_to_serve_that_was_stopped(node: SimulatedNode) -> None:
    """Between the stop of what served and the proof of its replacement, nobody reads that something serves."""
    node.run(A)
    reader = watched(node)
    node.run(B)
    for kind in ("stop-instance", "start-instance", "validate-model"):
        seen = reader.seen[kind]
        assert seen.serving is None, kind
        assert reasons(seen)["Ready"] == ("False", "Swapping")
        assert not any(model.loaded for model in seen.models)
    metrics = Metrics()
    metrics.show(reader.seen["start-instance"])
    assert b'reconcile_condition{reason="Swapping",type="Ready"} 0.0' in metrics.text()
    assert b"reconcile_serving{" not in metrics.text()


def test_who_watches_is_told_in_the_middle_and_not_at_rest(node: SimulatedNode) -> None:
    """Metrics follow what is under way; a pass with nothing to do tells nobody anything."""
    node.run(A)
    told: list[NodeStatus] = []
    node.reconciler.shows(told.append)
    node.run()
    assert told == []
    node.run(B)
    assert [status.serving is None for status in told][-1], "the last was told while nothing served"


def test_a_retest_does_not_end_readiness(node: SimulatedNode) -> None:
    """What leaves the serving instance as it is leaves the node Ready while it is done."""
    node.run(A)
    reader = watched(node)
    node.later(days=30)
    node.run()
    seen = reader.seen["validate-model"]
    assert "start-instance" not in reader.seen
    assert reasons(seen)["Ready"] == ("True", "Serving")
    assert reasons(seen)["Reconciling"] == ("True", "Progressing")


def test_what_an_agent_was_doing_when_it_died_is_over(node: SimulatedNode) -> None:
    """A status that a killed agent left in the middle of a plan does not go on to say that it is carried out."""
    node.run(A)
    reader = watched(node)
    node.run(B)
    middle = reader.seen["start-instance"]
    node.node.state.status.write_text(middle.to_json(), encoding="utf-8")
    node.recorder = Recorder()
    node.restart()
    after = node.run().status
    assert after.plan is not None
    assert after.plan.ended_at is not None


def test_a_failure_is_in_the_last_plan(node: SimulatedNode) -> None:
    """Which step failed, and why, stays in the plan when it is over."""
    reader = watched(node)
    node.run(A)
    underway = Underway()
    underway.publishes(lambda _: None, node.clock)
    underway.begin(reader.seen["download-model"])
    action = reader.actions["download-model"]
    underway.started(action)
    underway.finished(Outcome(action, "failed", NoSpace("the disk is full"), 2.5))
    plan = underway.end(node.clock.now())
    assert plan is not None
    failed = {step.kind: step for step in plan.steps}["download-model"]
    assert (failed.state, failed.seconds, failed.error) == ("failed", 2.5, "NoSpace: the disk is full")


def test_a_status_that_somebody_removed_comes_back(node: SimulatedNode) -> None:
    """The next pass writes it again, although nothing has changed."""
    node.run(A)
    node.run()
    node.node.state.status.unlink()
    node.run()
    assert read_status(node.node.state) is not None


def test_a_full_disk_does_not_end_what_is_under_way(node: SimulatedNode, monkeypatch: pytest.MonkeyPatch) -> None:
    """That nobody can be told is no reason to end a swap (I6)."""
    node.run(A)
    node.offer(B)
    refused: list[Path] = []
    real = node.node.adapters.ports.files.write

    def write(path: Path, data: bytes, *, mode: int = 0o644) -> None:
        if path == node.node.state.status and b"Progressing" in data and b"under way" in data:
            refused.append(path)
            raise OSError(28, os.strerror(28))
        real(path, data, mode=mode)

    monkeypatch.setattr(node.node.adapters.ports.files, "write", write)
    assert node.run().exit_code == 0
    assert node.serving() == ["b:v1"]
    assert refused


def test_bytes_are_told_now_and_then(node: SimulatedNode) -> None:
    """Bytes of the step that is under way are published every few seconds, not with every piece."""
    reader = watched(node)
    node.run(A)
    published: list[NodeStatus] = []
    underway = Underway()
    underway.publishes(published.append, node.clock)
    underway.begin(reader.seen["download-model"])
    underway.started(reader.actions["download-model"])
    assert len(published) == 1
    for done in range(1, 100):
        underway.advance("a:v1", done, 1000)
    few = len(published)
    assert few < 10
    node.later(seconds=2 * ADVANCE_SECONDS)
    underway.advance("a:v1", 500, 1000)
    assert len(published) == few + 1
    assert published[-1].plan is not None
    running = published[-1].plan.running
    assert running is not None
    assert (running.done, running.total) == (500, 1000)
    assert "500 B of 1000 B" in status_text(published[-1], node.clock.now())


def test_a_long_plan_is_counted_and_not_listed(node: SimulatedNode) -> None:
    """A clean-up of a thousand things does not make a status of a thousand lines."""
    node.run(A)
    reader = watched(node)
    node.run(B)
    action = reader.actions["download-model"]
    desired, observed = node.node.look("")
    plan = make_plan(desired, observed, node.config, node.clock.now())
    shown = planned(plan.model_copy(update={"actions": (action,) * (MOST_STEPS + 5)}), node.clock.now())
    assert (len(shown.steps), shown.left_out) == (MOST_STEPS, 5)
