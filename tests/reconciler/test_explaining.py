"""`reconcile why THING`: what is so and why not otherwise, also of what nothing had to be decided about."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from reconciler.explaining import facts, held_for
from reconciler.planner import plan as make_plan
from reconciler.published import read_status
from reconciler.target import choose
from tests.reconciler.test_pipeline import A, B, C, versions
from tests.support.builders import manifest_digest
from tests.support.builders import node as node_config
from tests.support.simulated_node import SimulatedNode

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def node(tmp_path: Path) -> SimulatedNode:
    """A node that has served one model, and serves another."""
    made = SimulatedNode(tmp_path / "state")
    made.run(A)
    made.run(B)
    return made


def said(node: SimulatedNode, thing: str) -> list[str]:
    """What is said of a thing, a line for each."""
    accepted = node.journal.accepted()
    assert accepted is not None
    desired, observed = node.node.look(accepted.digest)
    choice = choose(desired, observed, node.config, node.clock.now())
    found = facts(thing, desired, observed, choice, node.config, read_status(node.node.state))
    return [f"{step.subject}: {step.decision}" for step in found]


def test_a_model_that_does_not_serve(node: SimulatedNode) -> None:
    """It is listed, stored and proven: why it does not serve is the question."""
    lines = said(node, "a:v1")
    assert lines[0] == "a:v1: the snapshot lists it as active"
    assert "Active since" in lines[1]
    assert lines[2] == "a:v1: not served: no assignment that selects this node has it; b:v1 serves here"
    assert said(node, "a") == lines, "all versions of a name"


def test_the_model_that_serves(node: SimulatedNode) -> None:
    """It is what is wanted; nothing is held against it."""
    assert said(node, "b:v1")[-1] == "b:v1: it should serve: it is what the snapshot wants here"


def test_a_model_that_was_refused(node: SimulatedNode) -> None:
    """The snapshot wants it, and the reason why it does not serve is the one for which it was given up."""
    node.lies = frozenset({manifest_digest("c:v1")})
    node.restart()
    node.run(C)
    (last,) = [line for line in said(node, "c:v1") if "wants it to serve" in line]
    assert "and it does not: ValidationFailed" in last
    assert last.endswith("b:v1 serves here")
    assert said(node, "b:v1")[-1] == "b:v1: it should serve: it is the last known good"


def test_a_model_that_is_listed_no_more_and_one_that_never_was(node: SimulatedNode) -> None:
    """The first is still here for a while; the second is nowhere, and what there is is named."""
    node.run(versions("b", serve="b", sequence=3))
    assert said(node, "a:v1")[0] == "a:v1: the snapshot does not list it any more: it is removed after its grace"
    assert said(node, "x:v9") == ["x:v9: neither the snapshot nor this node knows it; listed: b:v1"]
    assert said(node, "nonsense") == []


def test_things_of_the_node(node: SimulatedNode) -> None:
    """Conditions, backends, GPUs, the front, instances: in any case of their names."""
    (instance,) = node.room.running()
    assert said(node, "ready")[0].startswith("Ready: True since")
    assert said(node, "GPU") == ["gpu: this machine has none: engines compute on the processor"]
    assert said(node, "docker") == ["docker: node.yaml names no backends.docker"]
    assert said(node, "native")[0] == f"native: it holds {instance.name} running"
    assert said(node, "front") == ["front: this node has none: front.enabled is false"]
    assert said(node, instance.name) == [f"{instance.name}: running, healthy, proven"]


def test_a_backend_that_is_turned_off(node: SimulatedNode) -> None:
    """Why nothing is started there is the first thing to know."""
    node.config = node_config(backends={"native": {"enabled": False}})
    assert said(node, "native")[0] == "native: backends.native.enabled is false: nothing is started there"


def test_it_contradicts_no_plan(node: SimulatedNode) -> None:
    """What should serve is what a plan would start."""
    accepted = node.journal.accepted()
    assert accepted is not None
    node.room.kill(node.room.running()[0].name)
    desired, observed = node.node.look(accepted.digest)
    plan = make_plan(desired, observed, node.config, node.clock.now())
    assert "start/b:v1" in [action.id for action in plan.actions]
    assert "it should serve" in said(node, "b:v1")[-1]


def test_what_holds_the_runtime_holds_the_model_that_should_serve(node: SimulatedNode) -> None:
    """Whoever asks for the model hears of the suspension or the window that keeps it from serving; others do not."""
    node.journal.set_fact("suspended", "lunch")
    node.run(C)
    accepted = node.journal.accepted()
    assert accepted is not None
    desired, observed = node.node.look(accepted.digest)
    choice = choose(desired, observed, node.config, node.clock.now())
    held = make_plan(desired, observed, node.config, node.clock.now()).held
    assert [item.reason for item in held_for("c:v1", choice, held)] == ["Suspended"]
    assert [item.reason for item in held_for("c", choice, held)] == ["Suspended"]
    assert held_for("a:v1", choice, held) == []
