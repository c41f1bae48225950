"""What becomes of a validation: on the way to Active, and when a person asks for one."""

from __future__ import annotations

import json
from contextlib import nullcontext
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
from click.testing import CliRunner

from reconciler.cli import validating, wiring
from reconciler.cli.main import cli
from reconciler.kinds import validation
from runtime.validation.run import validate
from schemas.digests import digest_text
from schemas.errors import UsageError
from tests.reconciler.test_pipeline import A, B
from tests.support.builders import manifest_digest
from tests.support.simulated_node import SimulatedNode, conditions, states

if TYPE_CHECKING:
    from pathlib import Path

    from schemas.snapshot import SnapshotDocument


@pytest.fixture
def simulated(tmp_path: Path) -> SimulatedNode:
    """A node without anything."""
    return SimulatedNode(tmp_path / "state")


def untold(monkeypatch: pytest.MonkeyPatch, key: str) -> None:
    """From now on, one model's answers cannot tell."""

    def asked(engine: Any, connection: Any, probe: Any, **given: Any) -> Any:
        verdict, evidence = validate(engine, connection, probe, **given)
        if probe.spec.recorded.manifest == manifest_digest(key):
            verdict = replace(verdict, outcome="inconclusive", message="it cannot be told")
        return verdict, evidence

    monkeypatch.setattr(validation, "validate", asked)


def rejecting(document: SnapshotDocument) -> SnapshotDocument:
    """The same with a policy that counts what cannot be told as failed."""
    told = document.spec.policy.validation.model_copy(update={"inconclusive": "reject"})
    policy = document.spec.policy.model_copy(update={"validation": told})
    return document.model_copy(update={"spec": document.spec.model_copy(update={"policy": policy})})


def test_what_cannot_be_told_waits_while_the_last_known_good_serves(
    simulated: SimulatedNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is held against it; after its backoff it is tried again, and passes when it can be told (I5, I6)."""
    simulated.run(A)
    with monkeypatch.context() as patched:
        untold(patched, "b:v1")
        result = simulated.run(B)
        assert simulated.serving() == ["a:v1"]
        assert states(result)["b:v1"] != "Failed"
        assert conditions(result)["Ready"] == "False" or result.exit_code != 0
        memory = simulated.journal.memory(starts_since=simulated.clock.now())
        assert not memory.rejections
        assert [hold.reason for hold in memory.holds.values()] == ["ValidationInconclusive"]
        assert simulated.run().outcomes == (), "it waits"
        simulated.later(seconds=20)
        simulated.run()
        assert simulated.serving() == ["a:v1"]
    simulated.later(hours=2)
    assert simulated.run().exit_code == 0
    assert simulated.serving() == ["b:v1"]


def test_a_retest_that_cannot_be_told_changes_nothing(
    simulated: SimulatedNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What served goes on serving, under the receipt that it has."""
    simulated.run(A)
    untold(monkeypatch, "a:v1")
    simulated.later(days=2)
    simulated.run()
    assert simulated.serving() == ["a:v1"]


def test_policy_may_count_it_as_failed(simulated: SimulatedNode, monkeypatch: pytest.MonkeyPatch) -> None:
    """The network's choice, signed: remembered like any other failure."""
    untold(monkeypatch, "b:v1")
    simulated.run(A)
    result = simulated.run(rejecting(B))
    assert simulated.serving() == ["a:v1"]
    assert states(result)["b:v1"] == "Failed"
    assert simulated.journal.memory(starts_since=simulated.clock.now()).rejections


def asked(simulated: SimulatedNode, monkeypatch: pytest.MonkeyPatch, *arguments: str) -> Any:
    """`reconcile validate` on a node whose world is simulated."""
    monkeypatch.setattr(wiring, "config_path", lambda given: given)
    monkeypatch.setattr(wiring, "load_config", lambda _: simulated.config)
    monkeypatch.setattr(wiring, "open_journal", lambda *_, **__: nullcontext(simulated.journal))
    monkeypatch.setattr(validating, "closing", lambda journal: journal)
    monkeypatch.setattr(wiring, "build_node", lambda *_, **__: simulated.node)
    return CliRunner().invoke(cli, ["validate", *arguments])


def test_a_person_can_ask(simulated: SimulatedNode, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """What serves is asked; the evidence's digest is that of the evidence; nothing is changed."""
    simulated.run(A)
    before = simulated.journal.memory(starts_since=simulated.clock.now())
    found = asked(simulated, monkeypatch, "--json", "--evidence", str(tmp_path / "evidence.json"))
    assert found.exit_code == 0, found.output
    said = json.loads(found.stdout)
    assert (said["model"], said["outcome"], said["strength"]) == ("a:v1", "pass", "token-ids")
    assert said["evidenceDigest"] == digest_text((tmp_path / "evidence.json").read_text())
    assert [item["test"] for item in said["findings"]] == ["tokenizer", "continuation"]
    assert simulated.journal.memory(starts_since=simulated.clock.now()) == before
    shown = asked(simulated, monkeypatch, "a")
    assert "a:v1 on llamacpp 1.0: pass" in shown.stdout


def test_asking_says_what_is_wrong(simulated: SimulatedNode, monkeypatch: pytest.MonkeyPatch) -> None:
    """Exit codes by the contract: a failure, answers that cannot tell, a model that does not serve."""
    with pytest.raises(UsageError, match="nothing serves"):
        validating.ask(simulated.node, None)
    simulated.run(A)
    with pytest.raises(UsageError, match="not b:v1"):
        validating.ask(simulated.node, "b:v1")
    simulated.node.adapters.engines["llamacpp"].lies = frozenset({manifest_digest("a:v1")})  # type: ignore[attr-defined]
    found = asked(simulated, monkeypatch)
    assert found.exit_code == 1
    assert "fail" in found.stdout
    simulated.room.kill(simulated.room.running()[0].name)
    with pytest.raises(UsageError, match="no instance of it runs"):
        validating.ask(simulated.node, None)
