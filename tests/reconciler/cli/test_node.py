"""The node's commands in this process, over a real repository: what they print, and with which exit code they end."""

from __future__ import annotations

import json
import re
from contextlib import closing
from typing import TYPE_CHECKING

import pytest
from click.testing import CliRunner

from reconciler.chain import Issuer
from reconciler.cli.main import cli
from reconciler.identity import node_address
from reconciler.journal import Journal
from reconciler.memory import VoidReceipts
from reconciler.state_dir import StateDir
from runtime.host import SystemClock
from schemas.reasons import reasons
from schemas.states import CONDITIONS, HELD
from tests.desired_state.network import Repository, snapshot_text
from tests.reconciler.test_journal import issue
from tests.reconciler.test_source import fresh, successor
from tests.support.builders import NOW, target

if TYPE_CHECKING:
    from pathlib import Path

    from click.testing import Result


class Machine:
    """A machine on which one node lives."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder = folder
        self.config = folder / "node.yaml"
        self.origin: Repository = fresh(folder / "origin")
        monkeypatch.setenv("RECONCILE_CONFIG", str(self.config))

    def run(self, *arguments: str, code: int = 0) -> Result:
        """One command."""
        result = CliRunner().invoke(cli, list(arguments))
        assert result.exit_code == code, result.output
        return result

    def init(self, *more: str, code: int = 0) -> Result:
        """Make the node."""
        return self.run(
            *("init", "--network", "testnet", "--repository", self.origin.url, "--yes", "--backend", "native"),
            *("--state-dir", str(self.folder / "state"), "--config", str(self.config)),
            *more,
            code=code,
        )


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    """A machine with a network at hand, and no node yet."""
    # The documents of these tests are of early 2026.
    monkeypatch.setattr(SystemClock, "now", lambda _self: NOW)
    return Machine(tmp_path, monkeypatch)


def test_init_writes_a_configuration_that_is_read_back(machine: Machine) -> None:
    """What `init` was told stands in the configuration, and the node is named by its key."""
    result = machine.init("--account", "ops@example.org", "--label", "gpu=none", "--allow-http")
    assert "snapshots need 2 of 3 signatures" in result.output
    text = machine.config.read_text()
    assert 'account: "ops@example.org"' in text
    first = json.loads((machine.folder / "state" / "identity.json").read_text())["address"]
    assert machine.init("--account", "ops@example.org").output.count("(kept)") == 1
    assert json.loads((machine.folder / "state" / "identity.json").read_text())["address"] == first


def test_init_refuses_another_trust_than_the_one_named(machine: Machine) -> None:
    """A pin that the repository does not have is not quietly replaced (I1)."""
    result = machine.init("--trust", "blake3:" + "0" * 64, code=3)
    assert "TrustBroken" in result.output
    assert not machine.config.exists()


def test_commands_before_init_say_what_to_do(machine: Machine) -> None:
    """A newcomer who forgets `init` is told."""
    for command in ("plan", "status", "history", "events", "why"):
        assert "reconcile init" in machine.run(command, code=1).output


def test_a_pass_then_everything_that_looks_at_it(machine: Machine) -> None:
    """A node that nothing is assigned to: accepted, said why it does not serve, and every view agrees."""
    machine.init()
    plan = machine.run("plan")
    assert "No changes now." in plan.output
    assert "NoAssignment" in plan.output
    assert "Ready=False NoAssignment" in machine.run(code=6).output
    status = json.loads(machine.run("status", "--json").output)
    assert status["formatVersion"] == "1"
    assert status["snapshot"]["sequence"] == 1
    conditions = {item["type"]: item["status"] for item in status["conditions"]}
    assert (conditions["SourceVerified"], conditions["Ready"]) == ("True", "False")
    assert "SnapshotAccepted" in machine.run("events").output
    assert machine.run("history").output.strip() == "Nothing was done yet."
    assert "no assignment" in machine.run("why", "runtime").output
    assert machine.run("models").output.strip() == "No models."
    assert "Nothing was decided" in machine.run("why", "nonsense").output


def test_json_documents_carry_their_version(machine: Machine) -> None:
    """Programs can rely on a form."""
    machine.init()
    machine.run(code=6)
    for command in ("plan", "status", "history", "models", "why"):
        assert json.loads(machine.run(command, "--json").output)["formatVersion"] == "1"
    for line in machine.run("events", "--json").output.splitlines():
        assert json.loads(line)["formatVersion"] == "1"


def test_untrusted_state_ends_with_3_everywhere(machine: Machine) -> None:
    """Pass and plan both say so; the plan shows what is in force all the same (I1, I6)."""
    machine.init()
    machine.run(code=6)
    successor(machine.origin, numbers=(98, 99))
    assert "UnknownSigner" in machine.run("plan", code=3).output
    machine.run(code=3)


def test_bad_document_names_file_line_and_field(machine: Machine) -> None:
    """One clear error, exit code 3, and the last good state untouched (I11)."""
    machine.init()
    machine.run(code=6)
    text, count = re.subn(r'(sequence"?: )2', r'\1"two"', snapshot_text(2).decode())
    assert count == 1
    machine.origin.write("networks/testnet/snapshot.v1alpha1.yaml", text.encode())
    machine.origin.commit()
    output = machine.run("plan", code=3).output
    assert "MalformedDocument: networks/testnet/snapshot.v1alpha1.yaml:" in output
    assert "metadata.sequence" in output
    assert json.loads(machine.run("status", "--json").output)["snapshot"]["sequence"] == 1


def test_suspend_and_resume(machine: Machine) -> None:
    """An operator's hand is remembered, shown, and taken away."""
    machine.init()
    machine.run("suspend", "maintenance")
    machine.run(code=6)
    assert "Suspended" in machine.run("status").output
    status = json.loads(machine.run("status", "--json").output)
    assert next(item for item in status["conditions"] if item["type"] == "Suspended")["message"] == "maintenance"
    machine.run("resume")
    assert "nothing to clear" in machine.run("retry").output


def test_saved_plan_is_refused_when_it_is_not_one(machine: Machine) -> None:
    """A file that is no plan, a draft, and a plan that is no longer the same: exit code 4 each."""
    machine.init()
    machine.run(code=6)
    path = machine.folder / "plan.json"
    path.write_text("{}")
    assert "StalePlan" in machine.run("apply", str(path), code=4).output
    machine.run("plan", "--out", str(path), "--snapshot", str(machine.origin.folder))
    assert "draft" in machine.run("apply", str(path), code=4).output
    machine.run("plan", "--out", str(path))
    machine.run("suspend")
    assert "StalePlan" in machine.run("apply", str(path), code=4).output
    machine.run("resume")
    machine.run("apply", str(path), code=6)


def test_nobody_to_notify_is_said(machine: Machine) -> None:
    """Without a daemon `notify` fails, and says what looks by itself."""
    machine.init()
    assert "no daemon listens" in machine.run("notify", code=1).output


@pytest.mark.parametrize(
    ("text", "field"),
    [("network: [", "node.yaml"), ("surprise: 1", "surprise"), ("interval: soon", "interval")],
)
def test_a_bad_configuration_is_named(machine: Machine, text: str, field: str) -> None:
    """File, line and field of what is wrong; exit code 1."""
    machine.init()
    machine.config.write_text(machine.config.read_text() + text + "\n")
    output = machine.run("plan", code=1).output
    assert "ConfigError" in output
    assert field in output


def test_why_explains_every_reason_without_a_node(machine: Machine) -> None:
    """Whoever meets a reason can ask what it means and what to do, on any machine; also a program can (I11)."""
    for name, cls in reasons().items():
        said = machine.run("why", name)
        assert f"{name} (exit code {cls.exit_code};" in said.output
        assert "What to do: " in said.output
    document = json.loads(machine.run("why", "ModelCorrupt", "--json").output)
    assert document["retry"] == "backoff"
    assert document["do"]
    for name, meaning in {**HELD, **CONDITIONS}.items():
        assert machine.run("why", name).output == f"{meaning}\n"
    assert json.loads(machine.run("why", "OutsideWindow", "--json").output)["meaning"] == HELD["OutsideWindow"]


def test_audit_of_a_node_and_of_its_export_elsewhere(machine: Machine) -> None:
    """The node's own chain holds; an export holds anywhere, and what somebody changed in it is found (exit 1)."""
    machine.init()
    machine.run(code=6)
    state = StateDir(machine.folder / "state")
    node = node_address(state)
    with closing(Journal(state.journal)) as journal:
        journal.chain.issuer = Issuer("testnet", node, "0.1.0")
        journal.apply((issue(), VoidReceipts(target().manifest, "the driver is 2, not 1"), issue()), NOW)
    report = json.loads(machine.run("audit", "--json").output)["reports"][0]
    assert (report["statements"], report["signed"], report["pending"]) == (3, 0, 3)
    assert report["findings"] == []
    # The pass finds that the receipt is from another processor than this machine's, ends it, and signs everything.
    machine.run(code=6)
    text = machine.run("audit").output
    assert "4 statements: 4 signed, 0 not signed yet" in text
    assert "Nothing is proven now." in text
    file = machine.folder / "export" / "receipts.json"
    file.parent.mkdir()
    assert "The chain holds." in machine.run("audit", "--export", str(file)).output
    text = machine.run("audit", "--receipts", str(file), "--node", node.lower()).output
    assert "The chain holds." in text
    assert "claimed" not in text
    assert "claimed by the export" in machine.run("audit", "--receipts", str(file.parent)).output
    assert "WrongNode" in machine.run("audit", "--receipts", str(file), "--node", "0x" + "1" * 40, code=1).output
    file.write_text(file.read_text().replace("the driver is 2", "the driver is 3"))
    assert "WrongPrevious" in machine.run("audit", "--receipts", str(file), "--node", node, code=1).output
    file.write_text("{}")
    machine.run("audit", "--receipts", str(file), code=3)
    machine.run("audit", "--node", node, code=64)
    machine.run("audit", "--receipts", str(file), "--export", "x.json", code=64)


def test_audit_of_a_journal_that_somebody_edited(machine: Machine) -> None:
    """A row that says what no statement says is named, and so is one that is gone."""
    machine.init()
    machine.run(code=6)
    state = StateDir(machine.folder / "state")
    with closing(Journal(state.journal)) as journal:
        journal.chain.issuer = Issuer("testnet", node_address(state), "0.1.0")
        journal.apply((issue(), VoidReceipts(target().manifest, "changed"), issue(intent="b1")), NOW)
        journal._db.execute("UPDATE receipts SET voided_at = NULL, void_cause = '' WHERE number = 1")
    assert "WrongRow" in machine.run("audit", code=1).output
    with closing(Journal(state.journal)) as journal:
        journal._db.execute("DELETE FROM receipts WHERE number = 3")
    assert "WrongHead" in machine.run("audit", code=1).output
