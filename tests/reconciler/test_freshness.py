"""Freezes, clocks and refusals that are remembered: real git, real signatures, a real journal (I1, I6, I11)."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import pytest

from desired_state import local_repository
from desired_state.git_source import HISTORY
from reconciler.loop import Reconciler
from reconciler.source import RepositorySource, current_timestamp, forget_mark
from schemas.digests import digest_bytes
from tests.desired_state import network
from tests.desired_state.network import ONLINE, Repository, git, snapshot_text, timestamp_text, trust_text
from tests.reconciler.test_source import LAYOUT, Fleet, fresh, successor
from tests.support.builders import node
from tests.support.simulated_node import Recorder

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from schemas.ports import Completed, Processes

TRUST = trust_text(online=(ONLINE,))
DAY = timedelta(days=1)


@pytest.fixture(autouse=True)
def _elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every look is a question: as for repositories that are not on this machine."""
    monkeypatch.setattr(local_repository, "tip", lambda *_: "")


class Counting:
    """Real processes, of which it is known what was started."""

    def __init__(self, real: Processes) -> None:
        self._real = real
        self.started: list[str] = []

    def run(self, argv: Sequence[str], **named: Any) -> Completed:
        """Run, and remember the verb."""
        self.started.append(next(word for word in argv[1:] if not word.startswith("-")))
        return self._real.run(argv, **named)


class Watched(Fleet):
    """A node whose trust names an online key, and whose processes are counted."""

    def __init__(self, folder: Path, *repositories: Repository, pinned: bytes = TRUST) -> None:
        super().__init__(folder, *repositories)
        self.simulated.config = node(
            repositories=tuple({"url": repository.url} for repository in repositories),
            trust={"digest": digest_bytes(pinned)},
            stateDir=str(self.folder),
            backends={"native": {}},
        )
        self.simulated.restart()
        self.wire()

    def wire(self) -> None:
        """A new agent, with counted processes."""
        super().wire()
        self.processes = Counting(self.node.adapters.ports.processes)
        ports = replace(self.node.adapters.ports, processes=self.processes)
        self.node = replace(self.node, adapters=replace(self.node.adapters, ports=ports))
        self.reconciler = Reconciler(self.node, RepositorySource(self.node), Recorder())

    def asked(self) -> tuple[tuple[str, str], list[str]]:
        """Status and reason after a pass, and what it started."""
        del self.processes.started[:]
        return self.source(), list(self.processes.started)

    def message(self) -> str:
        """The message of SourceVerified after a pass."""
        condition = self.run().status.condition("SourceVerified")
        assert condition is not None
        return condition.message

    def later(self, span: timedelta) -> None:
        """Let time pass."""
        self.simulated.clock.moment += span

    def reasons(self) -> list[str]:
        """Reasons of all events."""
        return [event.reason for event in self.node.journal.events()]

    def lose_journal(self) -> None:
        """The database is gone; the files beside it are there."""
        self.simulated.journal.close()
        for file in self.folder.glob("state.db*"):
            file.unlink()
        del self.simulated.journal
        self.simulated.restart()
        self.wire()


def promising(folder: Path, **timestamp: Any) -> Repository:
    """A repository whose trust names an online key, with a first timestamp."""
    made = Repository(folder)
    made.put_trust(1, TRUST, (1, 2))
    made.put_model()
    made.put_snapshot(snapshot_text())
    made.put_timestamp(timestamp_text(snapshot_text(), **timestamp))
    made.commit()
    return made


@pytest.fixture
def origin(tmp_path: Path) -> Repository:
    """The network's repository."""
    return promising(tmp_path / "origin")


def renew(repository: Repository, **fields: Any) -> bytes:
    """Commit the next timestamp."""
    content = timestamp_text((repository.folder / LAYOUT).read_bytes(), **fields)
    repository.put_timestamp(content)
    repository.commit()
    return content


# --- freezes ------------------------------------------------------------------------------------------------------


def test_a_fresh_timestamp_is_quiet_until_it_expires(tmp_path: Path, origin: Repository) -> None:
    """I6: an unmoved repository with an expired timestamp is a suspected freeze, and one event, no more."""
    fleet = Watched(tmp_path, origin)
    assert fleet.source() == ("True", "Verified")
    fleet.later(2 * DAY)
    before = fleet.run()
    assert fleet.source() == ("False", "FreezeSuspected")
    assert before.exit_code == 3
    assert "expired at 2026-03-03T12:00:00Z" in fleet.message()
    assert fleet.sequence() == 1
    assert fleet.reasons().count("FreezeSuspected") == 1
    renew(origin, issued=2, expires=3)
    assert fleet.source() == ("True", "Verified")
    assert fleet.reasons().count("FreezeSuspectedOver") == 1


def test_a_suspected_freeze_keeps_no_valid_snapshot_out(tmp_path: Path, origin: Repository) -> None:
    """An online key decides nothing: a newer snapshot with its threshold is accepted beside a stale timestamp."""
    fleet = Watched(tmp_path, origin)
    fleet.run()
    fleet.later(2 * DAY)
    successor(origin)
    assert fleet.source() == ("False", "FreezeSuspected")
    assert fleet.sequence() == 2


def test_a_missing_timestamp_is_a_suspected_freeze(tmp_path: Path) -> None:
    """Deleting it is no way to silence it."""
    bare = fresh(tmp_path / "bare")
    bare.put_trust(1, TRUST, (1, 2))
    bare.commit()
    fleet = Watched(tmp_path, bare)
    assert fleet.source() == ("False", "FreezeSuspected")
    assert "timestamp.json: is not in the repository" in fleet.message()
    assert fleet.sequence() == 1


@pytest.mark.parametrize(
    "spoil",
    [
        pytest.param(lambda made: made.put_timestamp(timestamp_text(snapshot_text()), (99,)), id="a-stranger"),
        pytest.param(lambda made: made.write("networks/testnet/timestamp.json", b"[" * 5000), id="nested"),
        pytest.param(lambda made: made.write("networks/testnet/timestamp.json", b" " * 2**20), id="large"),
        pytest.param(
            lambda made: (made.folder / "networks/testnet/timestamp.json").symlink_to("/etc/hostname"), id="a-link"
        ),
    ],
)
def test_a_bad_timestamp_keeps_the_snapshot_beside_it(tmp_path: Path, spoil: Any) -> None:
    """I11: whatever lies in its place, the snapshot is judged all the same, and the freeze is suspected."""
    made = fresh(tmp_path / "origin")
    made.put_trust(1, TRUST, (1, 2))
    spoil(made)
    made.commit()
    fleet = Watched(tmp_path, made)
    assert fleet.source() == ("False", "FreezeSuspected")
    assert fleet.sequence() == 1


def test_a_snapshot_that_nobody_shows_is_a_suspected_freeze(tmp_path: Path, origin: Repository) -> None:
    """The timestamp names sequence 2, and the host goes on showing sequence 1."""
    fleet = Watched(tmp_path, origin)
    fleet.run()
    origin.put_timestamp(timestamp_text(snapshot_text(2), issued=-0.05))
    origin.commit()
    assert fleet.source() == ("False", "FreezeSuspected")
    assert "names sequence 2" in fleet.message()
    assert fleet.sequence() == 1


def test_a_lagging_mirror_is_stale_where_another_is_up_to_date(tmp_path: Path, origin: Repository) -> None:
    """Beside a repository that has what the timestamp names, the other one merely lags: at every look."""
    lagging = promising(tmp_path / "lagging")
    content = successor(origin)
    origin.put_timestamp(timestamp_text(content, issued=-0.05))
    origin.commit()
    fleet = Watched(tmp_path, lagging, origin)
    assert fleet.source() == ("True", "StaleSource")
    assert fleet.sequence() == 2
    for _ in range(2):
        assert fleet.source() == ("True", "StaleSource")
    assert fleet.reasons() == ["SnapshotAccepted", "StaleSource"]


def test_silence_for_longer_than_a_timestamp_lives_is_a_suspected_freeze(tmp_path: Path, origin: Repository) -> None:
    """Blocking the way to the repository is a freeze as well; before the timestamp expires it is only silence."""
    fleet = Watched(tmp_path, origin)
    fleet.run()
    origin.folder.rename(tmp_path / "elsewhere")
    assert fleet.source() == ("Unknown", "SourceUnreachable")
    fleet.later(2 * DAY)
    assert fleet.source() == ("False", "FreezeSuspected")
    assert "SourceUnreachable" in fleet.message()


def test_an_older_timestamp_is_refused_and_the_newest_goes_on_speaking(tmp_path: Path, origin: Repository) -> None:
    """I1: its mark survives the loss of the journal, and of the file, as long as one of the two is there."""
    old = (origin.folder / "networks/testnet/timestamp.json").read_bytes()
    fleet = Watched(tmp_path, origin)
    renew(origin, issued=-0.05)
    fleet.run()
    mark = current_timestamp(fleet.node.state, fleet.node.journal, fleet.node.adapters.ports)
    origin.put_timestamp(old)
    origin.commit()
    assert fleet.source() == ("True", "RollbackAttack")
    fleet.lose_journal()
    assert fleet.source() == ("True", "RollbackAttack")
    fleet.node.state.timestamp.unlink()
    assert fleet.source() == ("True", "RollbackAttack")
    assert current_timestamp(fleet.node.state, fleet.node.journal, fleet.node.adapters.ports) == mark
    assert fleet.node.state.timestamp.exists()


def test_without_the_role_a_near_expiry_is_only_a_remark(tmp_path: Path) -> None:
    """Nothing newer three days before the end: said, exit code as ever; once it has expired, that is said instead."""
    plain = fresh(tmp_path / "plain")
    fleet = Watched(tmp_path, plain, pinned=network.FIRST_TRUST)
    assert fleet.source() == ("True", "Verified")
    usual = fleet.run().exit_code
    fleet.later(28 * DAY)
    assert fleet.source() == ("True", "FreezeSuspected")
    assert fleet.run().exit_code == usual
    fleet.later(5 * DAY)
    assert fleet.source() == ("True", "Expired")
    assert fleet.reasons().count("FreezeSuspected") == 1


def test_a_dry_run_suspects_what_a_pass_suspects(tmp_path: Path, origin: Repository) -> None:
    """I9: the preview names the freeze, goes on with what is in force, and starts nothing but a question."""
    fleet = Watched(tmp_path, origin)
    fleet.run()
    fleet.later(2 * DAY)
    del fleet.processes.started[:]
    seen = fleet.look()
    assert seen.refusal is not None
    assert seen.refusal.reason == "FreezeSuspected"
    accepted = fleet.node.journal.accepted()
    assert accepted is not None
    assert seen.digest == accepted.digest
    assert fleet.processes.started == ["ls-remote"]


# --- clocks -------------------------------------------------------------------------------------------------------


def test_a_clock_behind_what_was_accepted_is_said_and_loosens_nothing(tmp_path: Path, origin: Repository) -> None:
    """I1: set back by weeks, the clock is named with figures, and an expired snapshot is refused as before."""
    fleet = Watched(tmp_path, origin)
    fleet.run()
    fleet.later(-20 * DAY)
    assert fleet.source() == ("True", "ClockBehind")
    assert "2026-02-10T12:00:00Z" in fleet.message()
    assert "seconds behind" in fleet.message()
    assert [error.reason for error in fleet.look().remarks] == ["ClockBehind"]
    successor(origin, issued=-25, expires=-2)
    assert fleet.source() == ("False", "Expired")
    assert fleet.sequence() == 1
    assert fleet.reasons().count("ClockBehind") == 1
    fleet.later(20 * DAY)
    fleet.run()
    assert fleet.reasons().count("ClockBehindOver") == 1


# --- refusals that are remembered ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"numbers": (98, 99)}, "UnknownSigner"),
        ({"numbers": (11, 99)}, "SignaturesPending"),
        ({"issued": -20, "expires": -0.5}, "Expired"),
        ({"requires": ">=99"}, "AgentTooOld"),
    ],
)
def test_a_refusal_at_an_unmoved_head_costs_one_question(
    tmp_path: Path, origin: Repository, fields: dict[str, Any], reason: str
) -> None:
    """I11: what was refused is not fetched again until something changes, and is refused with the same words."""
    fleet = Watched(tmp_path, origin)
    fleet.run()
    successor(origin, **fields)
    first, started = fleet.asked()
    assert first[1] == reason
    assert "fetch" in started
    words = fleet.message()
    assert fleet.asked() == (first, ["ls-remote"])
    assert fleet.message() == words
    fleet.wire()
    assert fleet.asked() == (first, ["ls-remote"])


def test_a_refusal_is_remembered_before_anything_was_accepted(tmp_path: Path, origin: Repository) -> None:
    """A new node at a repository that it cannot believe asks, and no more."""
    origin.write(LAYOUT, b"kind: Snapshot\nkind: Snapshot\n")
    origin.commit()
    fleet = Watched(tmp_path, origin)
    first, _ = fleet.asked()
    assert first == ("False", "MalformedDocument")
    assert fleet.asked() == (first, ["ls-remote"])


def test_what_begins_later_is_looked_at_when_it_begins(tmp_path: Path, origin: Repository) -> None:
    """`NotYetValid` waits for its time, not for the next commit."""
    fleet = Watched(tmp_path, origin)
    fleet.run()
    successor(origin, issued=0.2)
    assert fleet.asked()[0] == ("False", "NotYetValid")
    assert fleet.asked() == (("False", "NotYetValid"), ["ls-remote"])
    fleet.later(0.25 * DAY)
    fleet.run()
    assert fleet.sequence() == 2


def test_a_trust_that_begins_later_is_looked_at_when_it_begins(tmp_path: Path, origin: Repository) -> None:
    """A rotation signed ahead of its time takes effect at its time, though the repository has not moved since."""
    rotated = trust_text(2, previous=TRUST, signers=(13, 14, 15), issued=0.2, online=(ONLINE,))
    origin.put_trust(2, rotated, (1, 2))
    origin.commit()
    fleet = Watched(tmp_path, origin)
    assert fleet.source() == ("True", "Verified")
    assert fleet.asked()[1] == ["ls-remote"]
    fleet.later(0.25 * DAY)
    fleet.run()
    assert fleet.node.journal.fact("trust.digest") == digest_bytes(rotated)


def test_an_expiry_judged_by_a_clock_that_was_ahead_is_judged_again(tmp_path: Path, origin: Repository) -> None:
    """A machine that boots in 2030 and is then set right must not refuse for ever."""
    fleet = Watched(tmp_path, origin)
    fleet.later(2000 * DAY)
    assert fleet.source() == ("False", "Expired")
    fleet.later(-2000 * DAY)
    assert fleet.source() == ("True", "Verified")


def test_a_rotation_beside_a_refused_snapshot_counts_at_once_and_for_ever(tmp_path: Path, origin: Repository) -> None:
    """I1: revoked signers stay revoked at later looks, when the repository that showed the rotation is not fetched."""
    withholding = promising(tmp_path / "withholding")
    fleet = Watched(tmp_path, withholding, origin)
    fleet.run()
    rotated = trust_text(2, previous=TRUST, signers=(13, 14, 15), online=(ONLINE,))
    origin.put_trust(2, rotated, (1, 2))
    successor(origin, numbers=(98, 99), trust_version=2)
    fleet.run()
    assert fleet.node.journal.fact("trust.digest") == digest_bytes(rotated)
    successor(withholding, numbers=(11, 12))
    fleet.run()
    assert fleet.sequence() == 1


def test_giving_up_the_mark_gives_up_the_refusals(tmp_path: Path, origin: Repository) -> None:
    """After `init --accept-current` everything is looked at anew."""
    first = (origin.folder / LAYOUT).read_bytes()
    fleet = Watched(tmp_path, origin)
    successor(origin)
    fleet.run()
    for old in (origin.folder / "networks/testnet/snapshot.sigs").glob("*"):
        old.unlink()
    origin.put_snapshot(first)
    origin.commit()
    assert fleet.source() == ("False", "RollbackAttack")
    forget_mark(fleet.node.state, fleet.node.journal, fleet.node.adapters.ports)
    fleet.run()
    assert fleet.sequence() == 1


def test_a_broken_mirror_named_first_does_not_stop_a_whole_one(tmp_path: Path, origin: Repository) -> None:
    """The same valid snapshot without the documents that it binds does not count; the next repository is asked.

    Once it is in force, the node holds what it binds, and what a mirror lacks of it does not matter.
    """
    broken = promising(tmp_path / "broken")
    (broken.folder / "models/m/v1.pieces").unlink()
    broken.commit()
    fleet = Watched(tmp_path, broken, origin)
    assert fleet.source() == ("True", "MissingDocument")
    assert fleet.sequence() == 1
    fleet.run()
    assert fleet.asked() == (("True", "Verified"), ["ls-remote", "ls-remote"])


def test_an_unreadable_memory_is_no_memory(tmp_path: Path, origin: Repository) -> None:
    """What an older agent left behind costs one more look, and nothing else."""
    fleet = Watched(tmp_path, origin)
    fleet.run()
    fleet.node.journal.set_fact("source.verdicts", '{"file:///x": "0123"}')
    assert fleet.source() == ("True", "Verified")


# --- rewritten histories ------------------------------------------------------------------------------------------


def test_a_rewritten_history_is_followed_and_reported(tmp_path: Path, origin: Repository) -> None:
    """A force-push is fine as long as the snapshot is valid; people hear of it, once."""
    fleet = Watched(tmp_path, origin)
    fleet.run()
    successor(origin)
    fleet.run()
    assert "HistoryRewritten" not in fleet.reasons()
    git(origin.folder, "checkout", "--quiet", "--orphan", "anew")
    origin.commit()
    git(origin.folder, "branch", "--force", "main", "anew")
    assert fleet.source() == ("True", "Verified")
    fleet.run()
    assert fleet.reasons().count("HistoryRewritten") == 1
    assert fleet.sequence() == 2


def test_several_commits_at_once_are_no_rewritten_history(tmp_path: Path, origin: Repository) -> None:
    """A push of many commits continues the history, although only the newest was asked for."""
    fleet = Watched(tmp_path, origin)
    fleet.run()
    assert HISTORY > 5
    for _ in range(5):
        origin.commit()
    successor(origin)
    assert fleet.source() == ("True", "Verified")
    assert fleet.sequence() == 2
    assert "HistoryRewritten" not in fleet.reasons()


def test_a_chain_that_another_repository_completes_is_judged_again(tmp_path: Path, origin: Repository) -> None:
    """A gap in one repository's trust is not held against it once the missing version came from elsewhere."""
    second = trust_text(2, previous=TRUST, online=(ONLINE,))
    third = trust_text(3, previous=second, online=(ONLINE,))
    gap = promising(tmp_path / "gap")
    fleet = Watched(tmp_path, gap, origin)
    fleet.run()
    gap.put_trust(3, third, (1, 2))
    successor(gap, trust_version=3)
    origin.put_trust(2, second, (1, 2))
    origin.commit()
    fleet.run()
    assert fleet.sequence() == 1
    fleet.run()
    assert fleet.sequence() == 2
