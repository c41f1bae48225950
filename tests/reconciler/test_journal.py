"""The journal: what is remembered, all or nothing, and refused where it cannot be right."""

from __future__ import annotations

import re
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from reconciler.journal import Accepted, Journal, StoredDocument
from reconciler.memory import (
    CommitGood,
    DropHold,
    ForgetModel,
    IssueReceipt,
    Note,
    PutHold,
    PutModel,
    Reject,
    VoidReceipts,
)
from schemas.digests import digest_bytes, digest_text
from schemas.errors import MissingDocument, NotInitialised, StateCorrupt
from schemas.observation import MODEL_TRANSITIONS, Hold, Rejection
from tests.support.builders import NOW, good, manifest_digest, record, target

if TYPE_CHECKING:
    from collections.abc import Iterator

    from schemas.observation import Memory


@pytest.fixture
def journal(tmp_path: Path) -> Iterator[Journal]:
    """A fresh journal."""
    opened = Journal(tmp_path / "state.db")
    yield opened
    opened.close()


def memory(journal: Journal) -> Memory:
    """What it remembers now."""
    return journal.memory(starts_since=NOW - timedelta(minutes=10))


def accepted(sequence: int = 1) -> Accepted:
    """A snapshot in force."""
    digest = digest_bytes(f"snapshot {sequence}".encode())
    return Accepted(digest, 1, sequence, ("0xA",), 1, NOW, NOW + timedelta(days=1), NOW)


def test_memory_survives_reopening(tmp_path: Path) -> None:
    """Everything that a decision needs is there again after a restart (I7)."""
    path = tmp_path / "state.db"
    first = Journal(path)
    hold = Hold("image", "ImageUnavailable", "refused", 2, NOW + timedelta(minutes=1))
    rejection = Rejection(digest_text("s"), "m:v2", "ValidationFailed", "wrong", NOW, digest_text("snapshot"))
    of = target()
    first.begin("a1", pass_number=0, action="{}", kind="start-instance", spec_digest=of.spec_digest, now=NOW)
    first.finish(
        "a1",
        outcome="done",
        error="",
        changes=(
            PutModel(record(state="Pending")),
            PutHold(hold),
            Reject(rejection),
            IssueReceipt("subject", of.manifest, "a1", digest_text("evidence")),
            CommitGood(good()),
        ),
        now=NOW,
    )
    first.set_fact("suspended", "maintenance")
    before = memory(first)
    first.close()
    second = Journal(path)
    assert memory(second) == before
    assert before.holds == {"image": hold}
    assert before.rejections == {rejection.subject: rejection}
    assert before.last_known_good == good()
    assert before.recent_starts == {of.spec_digest: (NOW,)}
    assert before.intents == {"a1"}
    assert before.suspended == "maintenance"
    second.close()


def test_outcome_and_memory_are_one_transaction(journal: Journal) -> None:
    """A change that is refused takes the outcome with it: never one without the other (I7)."""
    journal.begin("a1", pass_number=0, action="{}", kind="download-model", spec_digest="", now=NOW)
    hold = PutHold(Hold("x", "R", "m", 1, NOW))
    with pytest.raises(StateCorrupt):
        journal.finish("a1", outcome="done", error="", changes=(hold, PutModel(record(state="Active"))), now=NOW)
    assert memory(journal).holds == {}
    row = journal._db.execute("SELECT outcome FROM intents WHERE id = 'a1'").fetchone()
    assert row == ("running",)


def test_only_the_transitions_of_the_table_are_written(journal: Journal) -> None:
    """A model goes from state to state as the table says, from nowhere included, and each step is an event."""
    for before, allowed in MODEL_TRANSITIONS.items():
        for after in ("Pending", "Active", "Inactive", "Failed", "Archived"):
            journal.apply((ForgetModel(manifest_digest("m:v1")),), NOW)
            if before is not None:
                steps = {"Active": ("Pending",), "Inactive": ("Pending",), "Archived": ("Pending",)}.get(before, ())
                journal.apply(tuple(PutModel(record(state=state)) for state in (*steps, before)), NOW)
            if after in allowed or after == before:
                journal.apply((PutModel(record(state=after)),), NOW)  # type: ignore[arg-type]
                assert memory(journal).models[manifest_digest("m:v1")].state == after
            else:
                with pytest.raises(StateCorrupt):
                    journal.apply((PutModel(record(state=after)),), NOW)  # type: ignore[arg-type]
    assert any(event.reason == "ModelActive" for event in journal.events(limit=1000))


def test_the_table_of_states_is_the_one_that_is_documented() -> None:
    """docs/models.md has a line for every step that the journal takes, and for no other."""
    text = (Path(__file__).parents[2] / "docs" / "models.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (\w+) \| (Pending|Active|Inactive|Failed|Archived) \| \S.* \|$", text, re.MULTILINE)
    steps = {(None if before == "absent" else before, after) for before, after in rows}
    assert len(steps) == len(rows), "no step twice"
    assert steps == {(before, after) for before, allowed in MODEL_TRANSITIONS.items() for after in allowed}


def test_receipts_form_a_chain_and_are_voided(journal: Journal) -> None:
    """Each receipt carries the digest of the one before; a voided one no longer counts (I2)."""
    for number in range(3):
        journal.apply((IssueReceipt(f"subject {number}", "manifest", f"i{number}", "evidence"),), NOW)
    rows = journal._db.execute("SELECT previous, digest FROM receipts ORDER BY number").fetchall()
    assert rows[0][0] == ""
    assert [row[0] for row in rows[1:]] == [row[1] for row in rows[:-1]]
    assert len(memory(journal).receipts) == 3
    journal.apply((VoidReceipts("manifest", "wrong bytes"),), NOW)
    assert memory(journal).receipts == ()


def test_hold_is_dropped(journal: Journal) -> None:
    """What worked no longer waits."""
    journal.apply((PutHold(Hold("x", "R", "m", 1, NOW)),), NOW)
    journal.apply((DropHold("x"),), NOW)
    assert memory(journal).holds == {}


def test_documents_live_as_long_as_something_needs_them(journal: Journal) -> None:
    """A new snapshot drops documents of the old one, except those of the last known good and of stored models."""
    of = good()
    pieces = digest_bytes(b"pieces")
    documents = {
        accepted(1).digest: StoredDocument("snapshot", b"1"),
        of.target.manifest: StoredDocument("manifest", b"manifest"),
        pieces: StoredDocument("pieces", b"pieces", parent=of.target.manifest),
        of.target.probe.digest: StoredDocument("probe", b"probe"),
        digest_bytes(b"other"): StoredDocument("manifest", b"other"),
    }
    journal.accept(accepted(1), documents, Note("Normal", "SnapshotAccepted", "1"))
    journal.apply((CommitGood(of),), NOW)
    journal.accept(accepted(2), {accepted(2).digest: StoredDocument("snapshot", b"2")}, Note("Normal", "A", "2"))
    assert journal.document(pieces) == b"pieces"
    assert journal.document(of.target.probe.digest) == b"probe"
    with pytest.raises(MissingDocument):
        journal.document(digest_bytes(b"other"))
    assert journal.accepted() == accepted(2)


def test_interrupted_passes_are_closed(journal: Journal) -> None:
    """A pass whose process died is not shown as running for ever."""
    number = journal.begin_pass(snapshot="s", sequence=1, actions=2, plan="{}", now=NOW)
    assert journal.history()[0].outcome == "running"
    assert journal.close_interrupted(NOW) == 1
    assert journal.history()[0].number == number
    assert journal.history()[0].outcome == "interrupted"


def test_running_time_of_unlisted_models(journal: Journal) -> None:
    """Time counts while a model is unlisted, and is forgotten when it is listed again (I8)."""
    journal.apply((PutModel(record(state="Pending")),), NOW)
    journal.count_unlisted(frozenset(), 30.0)
    journal.count_unlisted(frozenset(), 30.0)
    assert memory(journal).models[manifest_digest("m:v1")].unlisted_for == 60.0
    journal.count_unlisted(frozenset({manifest_digest("m:v1")}), 30.0)
    assert memory(journal).models[manifest_digest("m:v1")].unlisted_for == 0.0


def test_read_only_journal_creates_and_writes_nothing(tmp_path: Path) -> None:
    """A dry run cannot write, and does not make a journal where there is none (I9)."""
    path = tmp_path / "state.db"
    with pytest.raises(NotInitialised):
        Journal(path, readonly=True)
    assert not path.exists()
    Journal(path).close()
    reader = Journal(path, readonly=True)
    with pytest.raises(Exception, match="readonly"):
        reader.set_fact("x", "y")
    reader.close()


def test_a_newer_journal_is_refused(tmp_path: Path) -> None:
    """An older agent does not write into a journal that it does not understand."""
    path = tmp_path / "state.db"
    opened = Journal(path)
    opened._db.execute("PRAGMA user_version = 99")
    opened.close()
    with pytest.raises(StateCorrupt, match="99"):
        Journal(path)


def test_a_file_that_is_no_journal_is_refused(tmp_path: Path) -> None:
    """Rubbish is named, not overwritten."""
    path = tmp_path / "state.db"
    path.write_bytes(b"rubbish" * 1000)
    with pytest.raises(StateCorrupt):
        Journal(path)
    assert path.read_bytes().startswith(b"rubbish")


def test_rejections_are_forgotten_by_name_or_all(journal: Journal) -> None:
    """A signed retry clears what it names; a person's retry clears everything (I5)."""
    base = Rejection(digest_text("1"), "m:v1", "ValidationFailed", "m", NOW, "s")
    journal.apply((Reject(base), Reject(replace(base, subject=digest_text("2")))), NOW)
    note = Note("Normal", "Retry", "asked for")
    assert journal.forget_rejections([digest_text("1")], note, NOW) == 1
    assert set(memory(journal).rejections) == {digest_text("2")}
    assert journal.forget_rejections(None, note, NOW) == 1
    assert memory(journal).rejections == {}


def test_unchanged_fact_is_not_written(journal: Journal) -> None:
    """An idle pass writes nothing to the disk."""
    journal.set_fact("x", "y")
    before = journal._db.total_changes
    journal.set_fact("x", "y")
    assert journal._db.total_changes == before
