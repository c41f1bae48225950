"""The journal: what is remembered, all or nothing, and refused where it cannot be right."""

from __future__ import annotations

import re
import sqlite3
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from reconciler import chain
from reconciler.chain import Issuer
from reconciler.journal import Accepted, Journal, StoredDocument, book, recollection
from reconciler.journal.migrations import SCHEMA
from reconciler.journal.recollection import KEPT_HOLD
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
from schemas.errors import NotInitialised, StateCorrupt
from schemas.memory import MODEL_TRANSITIONS, Hold, Rejection
from schemas.receipt import LegacyReceipt, ReceiptDocument, ReceiptSubject
from schemas.refusals import MissingDocument
from tests.support.builders import NODE_ID, NOW, good, hardware, manifest_digest, record, target

if TYPE_CHECKING:
    from collections.abc import Iterator

    from schemas.memory import Memory
    from schemas.target import ServingTarget


ISSUER = Issuer("testnet", NODE_ID, "0.1.0")


def issue(of: ServingTarget | None = None, intent: str = "a1", **fields: Any) -> IssueReceipt:
    """A receipt of a target on the default machine."""
    subject = ReceiptSubject.of(of or target(), hardware())
    return IssueReceipt(subject, intent, digest_text("evidence"), "1 case as recorded", **fields)


@pytest.fixture
def journal(tmp_path: Path) -> Iterator[Journal]:
    """A fresh journal."""
    opened = Journal(tmp_path / "state.db")
    opened.chain.issuer = ISSUER
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
    first.chain.issuer = ISSUER
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
            issue(of),
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


def test_nothing_grows_without_end(journal: Journal, monkeypatch: pytest.MonkeyPatch) -> None:
    """Years of swaps, failures and snapshots leave bounded tables, and what serves keeps its proof (I8).

    But for the receipts, which are the node's evidence: of those a decision reads what instances can have left.
    """
    for name, bound in (("KEPT_PASSES", 6), ("KEPT_PLANS", 2), ("KEPT_ACCEPTED", 5)):
        monkeypatch.setattr(book, name, bound)
    monkeypatch.setattr(recollection, "KEPT_REJECTIONS", 4)
    of, swaps = target(), 40
    for number in range(swaps):
        now, intent = NOW + timedelta(days=number), f"a{number}"
        journal.accept(accepted(number), {}, Note("Normal", "SnapshotAccepted", "x"))
        made = journal.begin_pass(snapshot="s", sequence=number, actions=1, plan='{"long": 1}', now=now)
        journal.begin(intent, pass_number=made, action='{"long": 1}', kind="start-instance", spec_digest="d", now=now)
        rejection = Rejection(digest_text(intent), "m:v2", "ValidationFailed", "wrong", now, digest_text("snapshot"))
        hold = Hold(intent, "R", "m", 1, now + timedelta(minutes=1))
        changes = (PutModel(record(state="Pending")), PutHold(hold), Reject(rejection), issue(of, intent=intent))
        journal.finish(intent, outcome="done", error="", changes=changes, now=now)
        journal.finish_pass(made, outcome="applied", downtime_ms=0, summary="x", applied="s", now=now)
    known = memory(journal)
    last = f"a{swaps - 1}"
    assert [receipt.intent for receipt in known.receipts][-1] == last
    assert len(known.receipts) == chain.INSTANCES_OF_A_SUBJECT
    assert known.intents == {f"a{number}" for number in range(swaps - chain.INSTANCES_OF_A_SUBJECT, swaps)}
    assert last in known.holds
    assert len(known.holds) == KEPT_HOLD.days + 1
    assert sorted(known.rejections) == sorted(digest_text(f"a{number}") for number in range(swaps - 4, swaps))
    rows = {
        table: journal._db.execute(f"SELECT COUNT(*) FROM {table}").fetchone()[0]
        for table in ("accepted", "passes", "intents", "receipts")
    }
    assert rows == {"accepted": 5, "passes": 6, "intents": 6, "receipts": swaps}
    texts = journal._db.execute("SELECT COUNT(*) FROM passes WHERE plan <> ''").fetchone()
    assert texts == journal._db.execute("SELECT COUNT(*) FROM intents WHERE action <> ''").fetchone() == (2,)


def test_outcome_and_memory_are_one_transaction(journal: Journal) -> None:
    """A change that is refused takes the outcome with it: never one without the other (I7)."""
    journal.begin("a1", pass_number=0, action="{}", kind="download-model", spec_digest="", now=NOW)
    hold = PutHold(Hold("x", "R", "m", 1, NOW))
    with pytest.raises(StateCorrupt):
        journal.finish("a1", outcome="done", error="", changes=(hold, PutModel(record(state="Inactive"))), now=NOW)
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
                proof = (issue(),) if before == "Active" else ()
                journal.apply((*(PutModel(record(state=state)) for state in (*steps, before)), *proof), NOW)
            if after in allowed or after == before:
                proven = issue() if after == "Active" else VoidReceipts(manifest_digest("m:v1"), "test")
                journal.apply((proven, PutModel(record(state=after))), NOW)  # type: ignore[arg-type]
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
    """Each statement carries the digest of the one before; what is void no longer counts, and says why (I2)."""
    for number in range(3):
        journal.apply((issue(intent=f"i{number}"),), NOW)
    assert len(memory(journal).receipts) == 3
    journal.apply((VoidReceipts(target().manifest, "wrong bytes"),), NOW)
    assert memory(journal).receipts == ()
    rows = journal.chain.rows()
    assert rows[0].previous == ""
    assert [row.previous for row in rows[1:]] == [digest_text(row.content) for row in rows[:-1]]
    assert [ReceiptDocument.model_validate_json(row.content).outcome for row in rows] == ["pass"] * 3 + ["void"]
    assert ReceiptDocument.model_validate_json(rows[-1].content).message == "wrong bytes"
    assert [row.void_cause for row in rows] == ["wrong bytes"] * 3 + [""]
    assert "ReceiptVoided" in {event.reason for event in journal.events()}


def test_what_stands_for_another_subject_is_left_alone(journal: Journal) -> None:
    """A void names what it is about: the same model under another engine version keeps its own proof."""
    other = target(version="2.0")
    journal.apply((issue(), issue(other, "b1")), NOW)
    journal.apply((VoidReceipts(other.manifest, "changed", other.subject(hardware().accelerator)),), NOW)
    assert [receipt.intent for receipt in memory(journal).receipts] == ["a1"]
    journal.apply((issue(outcome="fail"),), NOW)
    assert memory(journal).receipts == ()


def test_active_is_exactly_that_a_receipt_stands(journal: Journal) -> None:
    """Whatever is written: Pending and Active follow from the receipts, each step with its cause (I2)."""
    journal.apply((PutModel(record(state="Pending")), PutModel(record(state="Active"))), NOW)
    assert memory(journal).models[manifest_digest("m:v1")].state == "Pending", "nothing stands for it"
    journal.apply((issue(),), NOW)
    assert memory(journal).models[manifest_digest("m:v1")].state == "Active"
    journal.apply((VoidReceipts(manifest_digest("m:v1"), "the driver is 2, not 1"),), NOW)
    after = memory(journal).models[manifest_digest("m:v1")]
    assert (after.state, after.cause) == ("Pending", "its receipt is void: the driver is 2, not 1")
    journal.apply((issue(), PutModel(record(state="Inactive"))), NOW)
    assert memory(journal).models[manifest_digest("m:v1")].state == "Inactive", "disabled is disabled"


def test_a_number_is_never_given_twice(journal: Journal) -> None:
    """A row that somebody took away leaves a gap, not a place."""
    journal.apply((issue(), issue()), NOW)
    journal._db.execute("DELETE FROM receipts WHERE number = 2")
    journal.apply((issue(),), NOW)
    assert [row.number for row in journal.chain.rows()] == [1, 3]


def old_journal(path: Path) -> None:
    """A journal of the first format: a served model with a receipt, and one that failed."""
    db = sqlite3.connect(path)
    for statement in SCHEMA:
        db.execute(statement)
    for key, state in (("m:v1", "Active"), ("n:v1", "Failed")):
        db.execute(
            "INSERT INTO models VALUES (?, ?, ?, '2026-03-01T00:00:00.000000Z', 'c', 0, NULL, 0, 1)",
            (manifest_digest(key), key, state),
        )
    subject = target().subject(hardware().accelerator)
    first = LegacyReceipt(
        number=1,
        subject=subject,
        manifest=target().manifest,
        intent="a1",
        evidence=digest_text("evidence"),
        previous="",
        issued_at="2026-03-01T00:00:00.000000Z",
    )
    db.execute(
        "INSERT INTO receipts (subject, manifest, intent, evidence, previous, digest, issued_at)"
        " VALUES (?, ?, 'a1', ?, '', ?, ?)",
        (subject, first.manifest, first.evidence, first.digest, first.issued_at),
    )
    db.execute("PRAGMA user_version = 1")
    db.commit()
    db.close()


def test_an_old_journal_goes_on(tmp_path: Path) -> None:
    """Receipts from before are links of the same chain and count; what had failed is doubted since then."""
    path = tmp_path / "state.db"
    old_journal(path)
    opened = Journal(path)
    opened.chain.issuer = ISSUER
    seen = memory(opened)
    assert [receipt.subject for receipt in seen.receipts] == [target().subject(hardware().accelerator)]
    assert seen.models[manifest_digest("n:v1")].doubted_at == seen.models[manifest_digest("n:v1")].since
    assert seen.models[manifest_digest("m:v1")].doubted_at is None
    opened.apply((issue(intent="a2"), VoidReceipts(target().manifest, "gone")), NOW)
    rows = opened.chain.rows()
    assert [row.previous for row in rows[1:]] == [row.digest for row in rows[:-1]]
    opened.close()
    Journal(path).close()


def test_an_old_journal_is_read_without_being_changed(tmp_path: Path) -> None:
    """A dry run after an upgrade sees what a pass would, and writes nothing (I9)."""
    path = tmp_path / "state.db"
    old_journal(path)
    before = path.read_bytes()
    reader = Journal(path, readonly=True)
    assert len(memory(reader).receipts) == 1
    reader.close()
    assert path.read_bytes() == before


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
