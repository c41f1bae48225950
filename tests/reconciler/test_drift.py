"""What somebody else changes is seen field by field, given back, and left alone once that has not lasted."""

from __future__ import annotations

import json
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import pytest

from reconciler.cli.render_plan import plan_text
from reconciler.cli.render_status import status_text
from reconciler.drift import counted
from reconciler.memory import Note
from reconciler.planner import plan
from runtime.backends.container_drift import differences, limits, settings
from schemas.memory import Memory
from schemas.node import HealPolicy
from schemas.observation import Difference
from schemas.plan import Drift
from tests.support.builders import NOW, assignment, model, snapshot
from tests.support.simulated_node import SimulatedNode

if TYPE_CHECKING:
    from pathlib import Path

A = snapshot(models=(model("a"), model("b")), assignments=(assignment("a:v1"),))
MEMORY = Difference("memory", "8 GiB", "4 GiB", mendable=True)
NETWORK = Difference("network", '["none"]', '["bridge"]')


@pytest.fixture
def simulated(tmp_path: Path) -> SimulatedNode:
    """A node that serves a."""
    node = SimulatedNode(tmp_path)
    assert node.run(A).exit_code == 0
    return node


def change(node: SimulatedNode, one: Difference) -> str:
    """Somebody's hand on what runs."""
    (name,) = (item.name for item in node.room.running())
    node.room.change(name, one)
    return name


def said(result: Any, condition: str) -> tuple[str, str, str]:
    """A condition."""
    found = result.status.condition(condition)
    assert found is not None
    return found.status, found.reason, found.message


def test_a_limit_is_given_back_while_it_serves(simulated: SimulatedNode) -> None:
    """No restart; plan, status and events say which field it was, how it was and how it is."""
    name = change(simulated, MEMORY)
    desired, observed = simulated.node.look(simulated.journal.accepted().digest)  # type: ignore[union-attr]
    made = plan(desired, observed, simulated.node.config, simulated.clock.now())
    assert [action.kind for action in made.actions] == ["mend-instance"]
    text = plan_text(made)
    assert "Changed outside:" in text
    assert f"runtime: memory of {name}: 8 GiB -> 4 GiB" in text
    result = simulated.run()
    assert [item.action.kind for item in result.outcomes] == ["mend-instance"]
    assert [item.name for item in simulated.room.running()] == [name]
    assert said(result, "Drifted")[:2] == ("False", "Repaired")
    assert "memory" in said(result, "Drifted")[2]
    assert result.exit_code == 0
    assert [item.field for item in result.drift] == ["memory"]
    events = {event.reason: event.message for event in simulated.journal.events()}
    assert events["DriftFound"] == f"runtime: memory of {name} is 4 GiB, not 8 GiB"
    assert "InstanceMended" in events
    assert simulated.run().drift == ()


def test_what_cannot_be_given_back_is_replaced(simulated: SimulatedNode) -> None:
    """A network that an engine was given is taken by another instance, as carefully as any swap (I4, I10)."""
    name = change(simulated, NETWORK)
    result = simulated.run()
    kinds = [item.action.kind for item in result.outcomes]
    assert kinds == ["create-instance", "stop-instance", "start-instance", "validate-model"]
    assert "network is" in next(item.action.cause for item in result.outcomes if item.action.kind == "stop-instance")
    assert simulated.serving() == ["a:v1"]
    assert simulated.room.running()[0].name != name
    assert result.exit_code == 0


@pytest.mark.parametrize("one", [MEMORY, NETWORK], ids=lambda one: one.field)
def test_what_is_changed_again_and_again_is_left(simulated: SimulatedNode, one: Difference) -> None:
    """Three repairs an hour: then it serves as it is, the node is stalled, and says what keeps changing it (I11)."""
    for _ in range(3):
        change(simulated, one)
        assert simulated.run().exit_code == 0
    name = change(simulated, one)
    result = simulated.run()
    assert result.outcomes == ()
    assert [item.name for item in simulated.room.running()] == [name], "what serves goes on (I6)"
    stalled = said(result, "Stalled")
    assert stalled[:2] == ("True", "HealBudgetSpent")
    assert f"{one.field}: {one.found}, not {one.expected}" in stalled[2]
    assert said(result, "Drifted")[:2] == ("True", "NotRepaired")
    assert result.exit_code == 6
    assert "not repaired now" in status_text(result.status, simulated.clock.now())
    (held,) = (item for item in result.plan.held if item.reason == "HealBudgetSpent")
    assert held.until is not None
    again = simulated.run()
    found = [event for event in simulated.journal.events() if event.reason == "DriftFound"]
    assert (again.outcomes, len(found)) == ((), 4), "what is known is not told at each pass"
    simulated.clock.moment = held.until + timedelta(seconds=1)
    assert simulated.run().exit_code == 0, "there is room in the budget again"


def test_the_budget_is_the_owners(tmp_path: Path) -> None:
    """`policy.heal` of node.yaml."""
    node = SimulatedNode(tmp_path)
    node.run(A)
    policy = node.node.config.policy
    heal = policy.heal.model_copy(update={"repairs": 1})
    object.__setattr__(
        node.node, "config", node.node.config.model_copy(update={"policy": policy.model_copy(update={"heal": heal})})
    )
    change(node, MEMORY)
    assert node.run().exit_code == 0
    change(node, MEMORY)
    assert node.run().outcomes == ()


def test_what_has_to_be_done_anyway_is_no_repair() -> None:
    """Where nothing serves, a changed model is hashed whatever the budget says: that does not spend it (I11)."""
    found = Drift(subject="a:v1", field="mode", expected="0444", found="0644", repaired=True)
    times = tuple(NOW - timedelta(minutes=minute) for minute in (1, 2, 3))
    spent = [counted([found], Memory(heals={found.key: times[:count]}), HealPolicy(), NOW) for count in (0, 2, 3)]
    assert spent == [(found.key,), (found.key,), ()]
    assert counted([found], Memory(heals={found.key: times}), HealPolicy(), NOW + timedelta(hours=2)) == (found.key,)
    assert counted([found.model_copy(update={"repaired": False})], Memory(), HealPolicy(), NOW) == ()


def test_a_retry_opens_the_budget(simulated: SimulatedNode) -> None:
    """Whoever has found out who it was says so."""
    for _ in range(4):
        change(simulated, MEMORY)
        simulated.run()
    cleared = simulated.journal.forget_rejections(None, Note("Normal", "RetryAsked", "by hand"), simulated.clock.now())
    assert cleared
    assert [item.action.kind for item in simulated.run().outcomes] == ["mend-instance"]


def test_a_changed_file_is_told_by_its_mode(simulated: SimulatedNode) -> None:
    """It is hashed again, and the plan says what made it doubtful; not for ever while something serves."""
    (digest,) = simulated.shelf.stored
    for _ in range(3):
        simulated.shelf.touch(digest)
        result = simulated.run()
        (action,) = (item.action for item in result.outcomes)
        assert (action.kind, action.cause) == ("verify-model", "changed outside: mode is 0644, not 0444")
        assert [(item.subject, item.field, item.where) for item in result.drift] == [("a:v1", "mode", "model.gguf")]
    simulated.shelf.touch(digest)
    result = simulated.run()
    assert [item.reason for item in result.plan.held] == ["HealBudgetSpent"]
    assert simulated.serving() == ["a:v1"]
    simulated.room.kill(simulated.room.running()[0].name)
    assert simulated.run().exit_code == 0, "bytes that a start needs are hashed however often"


def test_a_periodic_retest_is_no_drift(simulated: SimulatedNode) -> None:
    """Nobody has changed anything."""
    simulated.clock.moment += timedelta(days=2)
    result = simulated.run()
    assert [item.action.kind for item in result.outcomes] == ["validate-model"]
    assert result.drift == ()
    assert said(result, "Drifted")[1] == "AsApplied"


def test_drift_is_counted_by_field(simulated: SimulatedNode) -> None:
    """`reconcile_drift_total{field}`."""
    from reconciler.telemetry.metrics import Metrics

    metrics = Metrics()
    change(simulated, MEMORY)
    metrics.passed(simulated.run(), 0.1)
    assert b'reconcile_drift_total{field="memory"} 1.0' in metrics.text()


DETAIL: dict[str, Any] = {
    "Name": "/reconcile-testnet-a1",
    "Image": "sha256:1",
    "Path": "/usr/bin/python3",
    "Args": ["-I", "engine.py"],
    "Config": {"Env": ["TOKEN=hush"], "User": "65534:65534", "Labels": {"org.inference-reconciler.spec": "blake3:1"}},
    "HostConfig": {
        "Memory": 2**33,
        "MemorySwap": 2**33,
        "PidsLimit": 100,
        "NanoCpus": 2 * 10**9,
        "NetworkMode": "none",
    },
    "NetworkSettings": {"Networks": {"none": {}}},
}


@pytest.mark.parametrize(
    ("changed", "expected"),
    [
        ({"HostConfig": {**DETAIL["HostConfig"], "Memory": 2**32}}, ("memory", "8 GiB", "4 GiB", True)),
        ({"Args": ["x"]}, ("arguments", '["/usr/bin/python3", "-I", "engine.py"]', '["/usr/bin/python3", "x"]', False)),
        ({"NetworkSettings": {"Networks": {"bridge": {}}}}, ("network", '["none"]', '["bridge", "none"]', False)),
        ({"Name": "/other"}, ("name", "reconcile-testnet-a1", "other", True)),
        ({"Config": {**DETAIL["Config"], "Labels": {}}}, ("label spec", "blake3:1", "absent", False)),
        ({"Config": {**DETAIL["Config"], "Env": ["A=b"]}}, ("environment", "as it was made", "something else", False)),
    ],
)  # fmt: skip
def test_a_container_is_compared_field_by_field(changed: dict[str, Any], expected: tuple[Any, ...]) -> None:
    """As its engine tells it; what an environment holds is not shown."""
    (one,) = differences(settings(DETAIL), settings({**DETAIL, **changed}))
    assert (one.field, one.expected, one.found, one.mendable) == expected
    assert "hush" not in repr(one)
    assert limits(settings(DETAIL))["NanoCpus"] == 2 * 10**9
    assert json.dumps(limits(settings(DETAIL)))
