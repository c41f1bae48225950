"""Asking repositories and putting what may be believed in force: real git, real signatures, a real journal (I1, I6)."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import pytest

from reconciler import documents
from reconciler.documents import JournalDocuments
from reconciler.journal import Journal
from reconciler.loop import Reconciler
from reconciler.preview import preview
from reconciler.source import RepositorySource, current_mark, forget_mark
from runtime.host import host_ports
from schemas.digests import digest_bytes
from schemas.refusals import MarkLost
from tests.desired_state import network
from tests.desired_state.network import Repository, snapshot_text
from tests.support.builders import node
from tests.support.simulated_node import Recorder, SimulatedNode, conditions

if TYPE_CHECKING:
    from pathlib import Path

    from reconciler.loop import PassResult

LAYOUT = "networks/testnet/snapshot.v1alpha1.yaml"


def fresh(folder: Path) -> Repository:
    """A repository with trust, one model and the first snapshot, committed."""
    made = Repository(folder)
    made.put_trust(1, network.FIRST_TRUST, (1, 2))
    made.put_model()
    made.put_snapshot(snapshot_text())
    made.commit()
    return made


class Fleet:
    """A node over real repositories, on an otherwise simulated machine."""

    def __init__(self, folder: Path, *repositories: Repository) -> None:
        self.folder = folder / "state"
        urls = tuple({"url": repository.url} for repository in repositories)
        config = node(
            repositories=urls,
            trust={"digest": digest_bytes(network.FIRST_TRUST)},
            stateDir=str(self.folder),
            backends={"native": {}},
        )
        self.simulated = SimulatedNode(self.folder, config=config)
        self.wire()

    def wire(self) -> None:
        """A new agent with the real source and the real documents."""
        simulated = self.simulated
        ports = replace(simulated.node.adapters.ports, processes=host_ports().processes)
        kept = JournalDocuments(simulated.journal)
        adapters = replace(simulated.node.adapters, ports=ports, documents=kept)
        self.node = replace(simulated.node, adapters=adapters, documents=kept)
        self.reconciler = Reconciler(self.node, RepositorySource(self.node), Recorder())

    def run(self) -> PassResult:
        """One pass."""
        return self.reconciler.run_pass()

    def source(self) -> tuple[str, str]:
        """Status and reason of SourceVerified after a pass."""
        condition = self.run().status.condition("SourceVerified")
        assert condition is not None
        return condition.status, condition.reason

    def sequence(self) -> int:
        """Sequence of what is in force; 0 for nothing."""
        accepted = self.node.journal.accepted()
        return accepted.sequence if accepted else 0

    def look(self) -> Any:
        """A dry run."""
        return preview(
            self.node.config,
            self.node.journal,
            ports=self.node.adapters.ports,
            scratch=self.folder.parent / "scratch.git",
            agent=self.node.agent,
            now=self.simulated.clock.now(),
        )


@pytest.fixture
def origin(tmp_path: Path) -> Repository:
    """The network's repository."""
    return fresh(tmp_path / "origin")


def successor(repository: Repository, sequence: int = 2, numbers: tuple[int, ...] = (11, 12), **fields: Any) -> bytes:
    """Commit the next snapshot."""
    before = (repository.folder / LAYOUT).read_bytes()
    content = snapshot_text(sequence, previous=before, **fields)
    for old in (repository.folder / "networks/testnet/snapshot.sigs").glob("*"):
        old.unlink()
    repository.put_snapshot(content, numbers)
    repository.commit()
    return content


def test_first_and_next_snapshot_are_put_in_force(tmp_path: Path, origin: Repository) -> None:
    """A valid snapshot is accepted with every document that it binds, and the next after it (I1)."""
    fleet = Fleet(tmp_path, origin)
    assert fleet.source() == ("True", "Verified")
    assert fleet.node.documents.model(digest_bytes(network.manifest_text())).pieces == network.PIECES
    successor(origin)
    fleet.run()
    assert fleet.sequence() == 2
    reasons = [event.reason for event in fleet.node.journal.events()]
    assert reasons.count("SnapshotAccepted") == 2


def test_what_is_kept_is_not_parsed_again_and_still_has_to_be_what_was_signed_for(
    tmp_path: Path, origin: Repository, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A new snapshot costs what is new in it; a repository whose documents have other bytes does not count (I1)."""
    fleet = Fleet(tmp_path, origin)
    fleet.run()
    parsed: list[str] = []
    parse = documents.parse_probe
    monkeypatch.setattr(
        documents, "parse_probe", lambda content, file: parsed.append(file) or parse(content, file=file)
    )
    successor(origin)
    fleet.run()
    assert (fleet.sequence(), parsed) == (2, [])
    origin.write("probes/m.yaml", network.probe_text() + b"# changed")
    successor(origin, 3)
    assert fleet.source() == ("False", "DigestMismatch")
    assert fleet.sequence() == 2


def test_unmoved_repository_is_neither_fetched_nor_verified_again(tmp_path: Path, origin: Repository) -> None:
    """A poll without news is one question: the mirror may even be gone."""
    fleet = Fleet(tmp_path, origin)
    fleet.run()
    import shutil

    shutil.rmtree(fleet.node.state.mirror)
    assert fleet.source() == ("True", "Verified")
    assert not fleet.node.state.mirror.exists()


def test_unreachable_repository_is_said_and_changes_nothing(tmp_path: Path, origin: Repository) -> None:
    """The last accepted snapshot stays in force (I6)."""
    fleet = Fleet(tmp_path, origin)
    fleet.run()
    origin.folder.rename(tmp_path / "elsewhere")
    assert fleet.source() == ("Unknown", "SourceUnreachable")
    assert fleet.sequence() == 1


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (lambda origin: successor(origin, numbers=(11, 99)), "SignaturesPending"),
        (lambda origin: successor(origin, numbers=(98, 99)), "UnknownSigner"),
        (lambda origin: successor(origin, expires=-0.5), "Expired"),
        (lambda origin: successor(origin, requires=">=99"), "AgentTooOld"),
        (lambda origin: successor(origin, models=[{"name": "m"}]), "MalformedDocument"),
    ],
)
def test_refused_snapshot_leaves_the_last_one_in_force(
    tmp_path: Path, origin: Repository, spoil: Any, reason: str
) -> None:
    """Whatever is wrong with a newer snapshot, the last good one stays, and the reason is said (I1, I6)."""
    fleet = Fleet(tmp_path, origin)
    fleet.run()
    try:
        spoil(origin)
    except Exception:  # noqa: BLE001 - a malformed document cannot be signed; it is committed as it is
        content = (origin.folder / LAYOUT).read_bytes().replace(b"sequence: 1", b"sequence: 2") + b"\nspec: {}\n"
        origin.write(LAYOUT, content)
        origin.commit()
    assert fleet.source()[1] == reason
    assert fleet.sequence() == 1


def test_bound_document_with_other_bytes_is_refused(tmp_path: Path, origin: Repository) -> None:
    """A manifest that was exchanged under a validly signed snapshot is not accepted (I1)."""
    fleet = Fleet(tmp_path, origin)
    origin.write("models/m/v1.yaml", network.manifest_text() + b"# changed\n")
    origin.commit()
    assert fleet.source()[1] == "DigestMismatch"
    assert fleet.sequence() == 0


def test_rollback_is_refused_also_by_a_new_agent(tmp_path: Path, origin: Repository) -> None:
    """The mark outlives the process (I1)."""
    fleet = Fleet(tmp_path, origin)
    fleet.run()
    first = (origin.folder / LAYOUT).read_bytes()
    successor(origin)
    fleet.run()
    for old in (origin.folder / "networks/testnet/snapshot.sigs").glob("*"):
        old.unlink()
    origin.put_snapshot(first)
    origin.commit()
    fleet.simulated.restart()
    fleet.wire()
    assert fleet.source()[1] == "RollbackAttack"
    assert fleet.sequence() == 2


def test_the_mark_survives_the_loss_of_the_journal(tmp_path: Path, origin: Repository) -> None:
    """A lost journal does not reopen the way back: the mark file still refuses the older snapshot (I1)."""
    fleet = Fleet(tmp_path, origin)
    fleet.run()
    first = (origin.folder / LAYOUT).read_bytes()
    newest = successor(origin)
    fleet.run()
    fleet.simulated.journal.close()
    for file in fleet.folder.glob("state.db*"):
        file.unlink()
    del fleet.simulated.journal
    fleet.simulated.restart()
    fleet.wire()
    for old in (origin.folder / "networks/testnet/snapshot.sigs").glob("*"):
        old.unlink()
    origin.put_snapshot(first)
    origin.commit()
    assert fleet.source()[1] == "RollbackAttack"
    origin.put_snapshot(newest)
    origin.commit()
    assert fleet.source() == ("True", "Verified")
    assert fleet.node.documents.model(digest_bytes(network.manifest_text())).pieces == network.PIECES


def test_both_copies_lost_is_loud_and_needs_a_person(tmp_path: Path, origin: Repository) -> None:
    """Without any memory of what was accepted nothing is accepted, until a person says so (I1)."""
    fleet = Fleet(tmp_path, origin)
    fleet.run()
    fleet.simulated.journal.close()
    for file in fleet.folder.glob("state.db*"):
        file.unlink()
    fleet.node.state.mark.unlink()
    del fleet.simulated.journal
    fleet.simulated.restart()
    fleet.wire()
    assert fleet.source()[1] == "MarkLost"
    with pytest.raises(MarkLost):
        current_mark(fleet.node.state, fleet.node.journal, fleet.node.adapters.ports)
    forget_mark(fleet.node.state, fleet.node.journal, fleet.node.adapters.ports)
    assert fleet.source() == ("True", "Verified")


def test_a_lost_mark_file_is_written_again(tmp_path: Path, origin: Repository) -> None:
    """Two copies are two copies only while both are there."""
    fleet = Fleet(tmp_path, origin)
    fleet.run()
    before = fleet.node.state.mark.read_bytes()
    fleet.node.state.mark.unlink()
    fleet.run()
    assert fleet.node.state.mark.read_bytes() == before


def test_the_highest_valid_snapshot_of_several_repositories_wins(tmp_path: Path, origin: Repository) -> None:
    """A lagging mirror is named as stale, and holds nothing up."""
    lagging = fresh(tmp_path / "lagging")
    successor(origin)
    fleet = Fleet(tmp_path, lagging, origin)
    assert fleet.source() == ("True", "StaleSource")
    assert fleet.sequence() == 2


def test_a_hostile_mirror_does_not_stop_a_good_one(tmp_path: Path, origin: Repository) -> None:
    """Rubbish in one repository is reported while another is followed (I6)."""
    hostile = fresh(tmp_path / "hostile")
    hostile.write(LAYOUT, b"kind: Snapshot\nkind: Snapshot\n")
    hostile.commit()
    fleet = Fleet(tmp_path, hostile, origin)
    assert fleet.source() == ("True", "MalformedDocument")
    assert fleet.sequence() == 1


def test_two_valid_snapshots_of_one_sequence_are_equivocation(tmp_path: Path, origin: Repository) -> None:
    """Signers who say different things to different nodes are found out by whoever asks twice (I1)."""
    other = fresh(tmp_path / "other")
    fleet = Fleet(tmp_path, origin, other)
    fleet.run()
    successor(origin, note="one")
    successor(other, note="other")
    assert fleet.source() == ("False", "Equivocation")
    assert fleet.sequence() == 1


def test_a_mirror_that_withholds_a_rotation_does_not_revive_the_revoked(tmp_path: Path, origin: Repository) -> None:
    """Trust is settled over all repositories first: signers whom one of them shows as revoked count nowhere (I1)."""
    withholding = fresh(tmp_path / "withholding")
    fleet = Fleet(tmp_path, withholding, origin)
    fleet.run()
    rotated = network.trust_text(2, previous=network.FIRST_TRUST, signers=(13, 14, 15))
    origin.put_trust(2, rotated, (1, 2))
    successor(origin, numbers=(13, 14), trust_version=2)
    successor(withholding, sequence=3, numbers=(11, 12))
    fleet.run()
    assert fleet.sequence() == 2


def test_expired_snapshot_in_force_is_said_and_goes_on(tmp_path: Path, origin: Repository) -> None:
    """Time passing changes what is said, not what serves (I6)."""
    fleet = Fleet(tmp_path, origin)
    fleet.run()
    fleet.simulated.clock.moment += timedelta(days=60)
    assert fleet.source() == ("True", "Expired")
    assert conditions(fleet.run())["SourceVerified"] == "True"


def _tree(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        # SQLite's shared memory is a cache that any reader may touch; it holds no data.
        if path.is_file() and not path.name.endswith(("-shm", "-wal"))
    }


def test_a_dry_run_writes_nothing_and_sees_what_a_pass_would(tmp_path: Path, origin: Repository) -> None:
    """Previewing a newer snapshot leaves every file of the node as it was, and the pass then accepts just that (I9)."""
    fleet = Fleet(tmp_path, origin)
    fleet.run()
    content = successor(origin)
    before = _tree(fleet.folder)
    reader = Journal(fleet.node.state.journal, readonly=True)
    fleet.node = replace(fleet.node, journal=reader)
    seen = fleet.look()
    reader.close()
    assert (seen.digest, seen.refusal) == (digest_bytes(content), None)
    assert _tree(fleet.folder) == before
    fleet.wire()
    fleet.run()
    accepted = fleet.node.journal.accepted()
    assert accepted is not None
    assert accepted.digest == seen.digest


def test_a_dry_run_says_what_it_would_refuse(tmp_path: Path, origin: Repository) -> None:
    """A refusal is part of the preview, which goes on with what is in force."""
    fleet = Fleet(tmp_path, origin)
    fleet.run()
    successor(origin, numbers=(98, 99))
    seen = fleet.look()
    assert seen.refusal is not None
    assert seen.refusal.reason == "UnknownSigner"
    accepted = fleet.node.journal.accepted()
    assert accepted is not None
    assert seen.digest == accepted.digest


def test_a_commit_beside_the_snapshot_in_force_changes_nothing(
    tmp_path: Path, origin: Repository, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A branch that moved while its snapshot stayed: nothing is accepted again, and no manifest is read again."""
    fleet = Fleet(tmp_path, origin)
    fleet.run()
    origin.write("README.md", b"a commit that has nothing to do with the snapshot\n")
    origin.commit()
    with monkeypatch.context() as patched:
        patched.setattr("reconciler.documents.load_models", None)
        assert fleet.source() == ("True", "Verified")
    events = [event.reason for event in fleet.node.journal.events()]
    assert events.count("SnapshotAccepted") == 1
    assert fleet.node.documents.model(digest_bytes(network.manifest_text())).pieces == network.PIECES
