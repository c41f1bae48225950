"""`snapshot timestamp`, what other commands say of it, and a freeze from end to end: real git, the real commands."""

from __future__ import annotations

import json
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any

import pytest
from click.testing import CliRunner

from reconciler.cli.main import cli
from runtime.host import SystemClock
from tests.support.operators import NETWORK

if TYPE_CHECKING:
    from pathlib import Path

    from tests.support.operators import Operator

FILE = f"networks/{NETWORK}/timestamp.json"
SIGS = f"networks/{NETWORK}/timestamp.sigs"
START = datetime.fromisoformat("2026-03-02T12:00:00+00:00")


class Time:
    """The one clock of operators and nodes."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.moment = START
        monkeypatch.setattr(SystemClock, "now", lambda _self: self.moment)

    def pass_(self, **span: float) -> None:
        """Let it pass."""
        self.moment += timedelta(**span)


@pytest.fixture
def time(monkeypatch: pytest.MonkeyPatch) -> Time:
    """A clock that moves when it is told to."""
    return Time(monkeypatch)


@pytest.fixture
def network(operator: Operator, time: Time) -> Operator:
    """A signed network with an online key, number 9."""
    named = [part for number in (1, 2, 3) for part in ("--signer", operator.address(number))]
    online = ["--timestamp-signer", operator.address(9)]
    operator.run("trust", "init", "--network", NETWORK, *named, *online, "--threshold", "2")
    operator.run("snapshot", "new", "--mode", "native")
    operator.run("runtime", "set", "main", "--engine", "llamacpp", "--version", "1.0", "--mode", "native")
    operator.model()
    operator.run("snapshot", "serve", "tiny:v1", "--runtime", "main")
    operator.sign(1, 2)
    operator.commit()
    return operator


def stamp(operator: Operator, *more: str, number: int = 9, code: int = 0) -> Any:
    """Run the command with the online key."""
    return operator.run("snapshot", "timestamp", "--key", operator.key_file(number), *more, code=code)


def written(operator: Operator) -> dict[str, Any]:
    """The timestamp."""
    found: dict[str, Any] = json.loads((operator.root / FILE).read_text())
    return found


def codes(operator: Operator) -> set[str]:
    """What lint finds about the timestamp."""
    found = operator.json("snapshot", "lint")["findings"]
    return {one["code"] for one in found if one["where"] == "timestamp"}


# --- the command --------------------------------------------------------------------------------------------------


def test_cron_renews_it_without_a_question(network: Operator, time: Time) -> None:
    """One command, no input: a new document each day, with one signature; a node would believe it."""
    stamp(network)
    first = written(network)
    assert first["snapshot"]["sequence"] == 1
    assert first["metadata"] == {
        "network": NETWORK,
        "issuedAt": "2026-03-02T12:00:00Z",
        "expiresAt": "2026-03-03T13:00:00Z",
    }
    time.pass_(hours=24)
    found = json.loads(stamp(network, "--valid", "2h", "--json").stdout)
    assert (found["expiresAt"], found["missing"]) == ("2026-03-03T14:00:00Z", 0)
    assert [path.name for path in (network.root / SIGS).iterdir()] == [f"{network.address(9)}.json"]
    assert network.json("snapshot", "verify")["timestamp"]["valid"] is True


def test_twice_in_one_second_is_still_a_later_one(network: Operator) -> None:
    """Nodes take no second timestamp of one moment, so none is made."""
    stamp(network)
    stamp(network)
    assert written(network)["metadata"]["issuedAt"] == "2026-03-02T12:00:01Z"


def test_several_online_keys_sign_one_document(network: Operator, time: Time) -> None:
    """With a threshold of two, the second key adds its signature to what the first wrote."""
    network.run("trust", "add", network.address(8), "--role", "timestamp")
    network.run("trust", "threshold", "timestamp", "2")
    for number in (1, 2):
        network.run("trust", "sign", "--key", network.key_file(number), "--yes")
    network.run("snapshot", "bump")
    network.sign(1, 2)
    assert "1 of 2 needed" in stamp(network).stdout
    assert network.json("snapshot", "verify")["timestamp"]["reason"] == "SignaturesPending"
    before = (network.root / FILE).read_bytes()
    time.pass_(minutes=5)
    stamp(network, number=8)
    assert (network.root / FILE).read_bytes() == before
    assert network.json("snapshot", "verify")["timestamp"]["valid"] is True
    time.pass_(hours=24)
    stamp(network)
    assert (network.root / FILE).read_bytes() != before
    assert len(list((network.root / SIGS).iterdir())) == 1


def test_an_online_key_vouches_for_nothing_that_nodes_refuse(network: Operator) -> None:
    """I1: a snapshot short of its threshold gets no timestamp, and nothing is written."""
    network.run("snapshot", "bump")
    network.sign(1)
    assert "ThresholdNotMet" in stamp(network, code=3).stderr
    assert not (network.root / FILE).exists()


def test_a_working_copy_that_is_behind_is_noticed(network: Operator) -> None:
    """An online key never says that an older snapshot is the newest."""
    old = {path: path.read_bytes() for path in (network.root / "networks").rglob("*") if path.is_file()}
    network.run("snapshot", "bump")
    network.sign(1, 2)
    stamp(network)
    for path, content in old.items():
        path.write_bytes(content)
    refused = stamp(network, code=3)
    assert "RollbackAttack" in refused.stderr
    assert "git pull" in refused.stderr


def test_a_clock_that_is_behind_is_noticed(network: Operator, time: Time) -> None:
    """No timestamp is made that nodes would take for an older one."""
    time.pass_(hours=2)
    stamp(network)
    time.pass_(hours=-1)
    assert "ClockBehind" in stamp(network, code=1).stderr


@pytest.mark.parametrize("valid", ["0s", "31d"])
def test_a_validity_without_sense_is_refused(network: Operator, valid: str) -> None:
    """Neither over before it began, nor as long as the snapshot's own."""
    assert "between a second and 30 days" in stamp(network, "--valid", valid, code=64).stderr


def test_only_the_role_may_say_it(network: Operator) -> None:
    """I1: a snapshot signer is no timestamp signer; and a key must be given."""
    assert "UnknownSigner" in stamp(network, number=1, code=3).stderr
    assert "--key" in network.run("snapshot", "timestamp", code=64).stderr


def test_a_network_without_the_role_is_told_how_to_get_one(operator: Operator, time: Time) -> None:
    """The role is optional, and added by a rotation."""
    operator.network()
    operator.sign(1, 2)
    refused = stamp(operator, code=64)
    assert "trust add ADDRESS --role timestamp" in refused.stderr
    assert operator.json("snapshot", "verify")["timestamp"] is None
    operator.run("trust", "sign", "--key", operator.key_file(1), "--yes")
    operator.run("trust", "add", operator.address(9), "--role", "timestamp")
    for number in (1, 2):
        operator.run("trust", "sign", "--key", operator.key_file(number), "--yes")
    operator.run("snapshot", "bump")
    operator.sign(1, 2)
    stamp(operator)
    assert operator.json("snapshot", "verify")["timestamp"]["sequence"] == written(operator)["snapshot"]["sequence"]


def test_show_verify_and_lint_know_it(network: Operator, time: Time) -> None:
    """A missing, a fresh, an outdated, a long-lived and an expired one are told apart."""
    assert "is missing" in network.run("snapshot", "show").stdout
    assert codes(network) == {"NoTimestamp"}
    stamp(network)
    assert "names this snapshot as the newest" in network.run("snapshot", "show").stdout
    assert codes(network) == set()
    network.run("snapshot", "bump")
    network.sign(1, 2)
    assert "another snapshot, sequence 1" in network.run("snapshot", "verify").stdout
    stamp(network, "--valid", "20d")
    assert codes(network) == {"TimestampExpiresLate"}
    time.pass_(days=21)
    assert "does not count: Expired" in network.run("snapshot", "verify").stdout
    assert codes(network) == {"NoTimestamp"}


# --- a freeze, from end to end ------------------------------------------------------------------------------------


class Node:
    """A node at the command line."""

    def __init__(self, folder: Path, origin: Path) -> None:
        self.config = folder / "node.yaml"
        self.run(
            *("init", "--network", NETWORK, "--repository", f"file://{origin}", "--yes", "--backend", "native"),
            *("--state-dir", str(folder / "state"), "--config", str(self.config)),
            config=False,
        )

    def run(self, *arguments: str, code: int = 0, config: bool = True) -> str:
        """One command; what it printed."""
        more = ["--config", str(self.config)] if config else []
        result = CliRunner(env={"NO_COLOR": "1"}).invoke(cli, [*arguments, *more], prog_name="reconcile")
        assert result.exit_code == code, f"{arguments}: {result.exit_code}\n{result.output}\n{result.exception!r}"
        return result.output

    def source(self) -> tuple[str, str, str]:
        """Status, reason and message of the condition."""
        conditions = json.loads(self.run("status", "--json"))["conditions"]
        found = next(item for item in conditions if item["type"] == "SourceVerified")
        return found["status"], found["reason"], found["message"]


def test_a_freeze_from_end_to_end(network: Operator, time: Time, tmp_path: Path) -> None:
    """I6: a host that shows yesterday's state is named by pass, `status`, `plan`, `why` and `events`; exit code 3."""
    # A label keeps the model away: what is served is not what this is about.
    network.run("snapshot", "set", "spec.assignments[0].selector", '{"matchLabels": {"gpu": "h100"}}')
    network.run("snapshot", "bump")
    network.sign(1, 2)
    stamp(network)
    network.commit()
    hosted = tmp_path / "hosted.git"
    network.git("clone", "--quiet", "--bare", ".", str(hosted))
    node = Node(tmp_path, hosted)
    node.run(code=6)
    assert node.source()[:2] == ("True", "Verified")
    assert "newest valid snapshot" in node.run("why", "source")

    # The operators go on; the host does not show it.
    time.pass_(hours=24)
    network.run("snapshot", "bump")
    network.sign(1, 2)
    stamp(network)
    network.commit()
    time.pass_(hours=2)
    assert "FreezeSuspected" in node.run(code=3)
    status, reason, message = node.source()
    assert (status, reason) == ("False", "FreezeSuspected")
    assert "expired at 2026-03-03T13:00:00Z" in message
    assert "FreezeSuspected" in node.run("status")
    assert "FreezeSuspected" in node.run("plan", code=3)
    assert "source: FreezeSuspected" in node.run("why")
    assert node.run("events").count("FreezeSuspected") == 1
    assert (
        json.loads(node.run("status", "--json"))["snapshot"]["sequence"] == written(network)["snapshot"]["sequence"] - 1
    )

    # The host shows the timestamp, and still withholds the snapshot that it names.
    mixed = tmp_path / "mixed"
    network.git("clone", "--quiet", str(hosted), str(mixed))
    (mixed / FILE).write_bytes((network.root / FILE).read_bytes())
    for path in (network.root / SIGS).iterdir():
        (mixed / SIGS / path.name).write_bytes(path.read_bytes())
    network.git("-C", str(mixed), "commit", "--quiet", "--all", "--message=mixed")
    network.git("-C", str(mixed), "push", "--quiet", str(hosted), "main")
    node.run(code=3)
    assert "and no repository shows it" in node.source()[2]

    # The whole truth.
    network.git("push", "--quiet", "--force", str(hosted), "main")
    node.run(code=6)
    assert node.source()[:2] == ("True", "Verified")
    assert json.loads(node.run("status", "--json"))["snapshot"]["sequence"] == written(network)["snapshot"]["sequence"]
    events = node.run("events")
    assert "FreezeSuspectedOver" in events
    assert "HistoryRewritten" in events


def test_a_clock_behind_shows_in_status_and_plan(network: Operator, time: Time, tmp_path: Path) -> None:
    """With figures, as a remark: the exit code is what it would be anyway."""
    stamp(network)
    network.commit()
    node = Node(tmp_path, network.root)
    node.run("suspend", "a machine that serves nothing here")
    usual = 5
    node.run(code=usual)
    time.pass_(hours=-2)
    assert "ClockBehind" in node.run(code=usual)
    assert "7200 seconds behind" in node.run("status")
    plan = json.loads(node.run("plan", "--json"))
    assert [item["reason"] for item in plan["notices"]] == ["ClockBehind"]
    assert "Note: ClockBehind" in node.run("plan")
