"""An audit finds whatever was changed, taken away or put in, from an export and an address alone."""

from __future__ import annotations

import json
import random
from dataclasses import fields, replace
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import pytest

from desired_state.receipt_signing import typed
from desired_state.signatures import recover, sign
from reconciler.audit import audit_export, audit_journal, entry_of, forks
from reconciler.chain import ChainRow, Issuer
from reconciler.journal import Journal
from reconciler.memory import VoidReceipts
from schemas.receipt import ChainHead, ReceiptChain
from tests.desired_state.network import address, key
from tests.reconciler.test_journal import issue, old_journal
from tests.support.builders import NOW, target

if TYPE_CHECKING:
    from pathlib import Path

    from schemas.receipt import AuditReport

NODE = address(7)
OTHER = target(version="2.0")


@lru_cache(maxsize=4096)
def recovered(content: str, signature: str) -> str:
    """Who signed, by the real curve; what was asked before is remembered."""
    return recover(typed(content.encode()), signature)


@lru_cache(maxsize=64)
def signed(content: str, number: int = 7) -> str:
    """The signature of a key."""
    return sign(typed(content.encode()), key(number))


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> tuple[ChainRow, ...]:
    """A life: a receipt of the old form, passes of two subjects, a void, a failure; all signed but the old one."""
    path = tmp_path_factory.mktemp("journal") / "state.db"
    old_journal(path)
    journal = Journal(path)
    journal.chain.issuer = Issuer("testnet", NODE, "0.1.0")
    journal.apply((issue(intent="a2"), issue(OTHER, "b1")), NOW)
    journal.apply((VoidReceipts(OTHER.manifest, "the driver is 2, not 1"),), NOW)
    journal.apply((issue(intent="a3"), issue(OTHER, "b2", outcome="inconclusive"), issue(OTHER, "b2")), NOW)
    journal.apply((issue(OTHER, "b2", outcome="fail"),), NOW)
    journal.put_signatures({number: signed(text) for number, text in journal.chain.unsigned(limit=100)}, None, NOW)
    found = journal.chain.rows()
    journal.close()
    return found


def exported(rows: tuple[ChainRow, ...], number: int = 7) -> ReceiptChain:
    """An export with a signed end."""
    head = ChainHead(
        api_version="reconcile/v1alpha1",
        kind="ReceiptHead",
        network="testnet",
        node=NODE,
        number=rows[-1].number,
        digest=rows[-1].digest,
        issued_at=NOW,
        agent="0.1.0",
    ).to_json()
    return ReceiptChain(
        network="testnet",
        node=NODE,
        entries=tuple(entry_of(row) for row in rows),
        head=head,
        head_signature=signed(head, number),
    )


def audited(chain: ReceiptChain, node: str | None = NODE) -> AuditReport:
    """Its audit."""
    return audit_export(chain, source="export", node=node, recover=recovered)


def here(rows: tuple[ChainRow, ...], last: int | None = None) -> AuditReport:
    """The audit of a journal."""
    last = rows[-1].number if last is None else last
    return audit_journal(rows, last_number=last, network="testnet", node=NODE, recover=recovered)


def test_an_honest_chain_holds(rows: tuple[ChainRow, ...]) -> None:
    """From the export and the node's address alone: all signatures, all links, and what is proven now."""
    report = audited(exported(rows))
    assert report.findings == ()
    assert (report.statements, report.signed, report.legacy, report.pending) == (9, 8, 1, 0)
    assert report.head_signed
    assert [(item.model, item.number) for item in report.standing] == [("m:v1", 6)]
    assert here(rows).findings == ()
    assert here(rows).standing == report.standing


def leaves(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Paths of all scalars of a JSON value."""
    if isinstance(value, dict):
        return [leaf for name, item in value.items() for leaf in leaves(item, (*path, name))]
    if isinstance(value, list):
        return [leaf for at, item in enumerate(value) for leaf in leaves(item, (*path, at))]
    return [path]


def changed(value: Any, path: tuple[Any, ...], old: Any = None) -> Any:
    """A copy with one scalar changed."""
    copy = json.loads(json.dumps(value))
    *way, last = path
    place = copy
    for step in way:
        place = place[step]
    old = place[last]
    place[last] = (not old) if isinstance(old, bool) else old + 1 if isinstance(old, int | float) else twisted(old)
    return copy


def twisted(text: str) -> str:
    """The same text with its last letter or digit changed to another of its kind."""
    at = next((at for at in range(len(text) - 1, -1, -1) if text[at].isalnum()), None)
    if at is None:
        return text + "x"
    letter = text[at]
    other = str((int(letter) + 1) % 10) if letter.isdigit() else ("b" if letter != "b" else "c")
    return text[:at] + other + text[at + 1 :]


def is_found(text: str) -> bool:
    """Whether an auditor who holds the node's address finds that something is wrong."""
    try:
        chain = ReceiptChain.model_validate_json(text)
    except ValueError:
        return True
    return bool(audited(chain).findings)


def test_every_field_of_every_statement_is_bound(rows: tuple[ChainRow, ...]) -> None:
    """A change of any field, of a statement of each kind, of the head or of the export around them, is found."""
    whole = json.loads(exported(rows).to_json())
    found = 0
    for path in leaves(whole):
        if path[-1] not in ("content", "head"):
            assert is_found(json.dumps(changed(whole, path))), path
            found += 1
    texts = [("entries", at, "content") for at, entry in enumerate(whole["entries"]) if "content" in entry]
    for place in (*texts, ("head",)):
        text = whole
        for step in place:
            text = text[step]
        inner = json.loads(text)  # type: ignore[arg-type]
        for path in leaves(inner):
            copy = json.loads(json.dumps(whole))
            around = copy
            for step in place[:-1]:
                around = around[step]
            around[place[-1]] = json.dumps(changed(inner, path), separators=(",", ":"))
            assert is_found(json.dumps(copy)), (place, path)
            found += 1
    assert found > 200


def test_any_other_byte_is_found(rows: tuple[ChainRow, ...]) -> None:
    """Drawn bytes of the export, changed: each is either no export any more, or found, or means the same as before."""
    text = exported(rows).to_json()
    draw = random.Random(6)
    for at in draw.sample(range(len(text)), 300):
        other = text[:at] + chr((ord(text[at]) - 32 + draw.randrange(1, 95)) % 95 + 32) + text[at + 1 :]
        assert is_found(other), (at, text[at - 20 : at + 20])


def test_what_was_taken_away_or_moved_is_found(rows: tuple[ChainRow, ...]) -> None:
    """Any statement missing, the end cut off, two exchanged, one doubled."""
    chain = exported(rows)
    entries = chain.entries
    variants = [entries[:at] + entries[at + 1 :] for at in range(len(entries))]
    variants += [entries[:at] for at in range(len(entries))]
    variants += [(*entries[:at], entries[at + 1], entries[at], *entries[at + 2 :]) for at in range(len(entries) - 1)]
    variants += [(*entries[: at + 1], *entries[at:]) for at in range(len(entries))]
    for variant in variants:
        assert audited(chain.model_copy(update={"entries": variant})).findings


def test_signatures_that_were_taken_away_are_found_or_said(rows: tuple[ChainRow, ...]) -> None:
    """One missing before others is found; all missing, with the head's, is a chain that proves nothing, and says so."""
    chain = exported(rows)
    bare = [entry.model_copy(update={"signature": None}) for entry in chain.entries]
    for at, entry in enumerate(chain.entries):
        if entry.signature is not None:
            entries = (*chain.entries[:at], bare[at], *chain.entries[at + 1 :])
            reasons = {item.reason for item in audited(chain.model_copy(update={"entries": entries})).findings}
            assert reasons == {"NotSigned"}
    report = audited(chain.model_copy(update={"entries": tuple(bare), "head_signature": None}))
    assert (report.signed, report.pending, report.head_signed) == (0, 8, False)
    assert not any(item.signed for item in report.standing)


def test_another_nodes_chain_is_not_this_ones(rows: tuple[ChainRow, ...]) -> None:
    """A whole chain, honestly signed by another key, is found by whoever knows the address; else it is a claim."""
    other = ReceiptChain.model_validate_json(exported(rows).to_json())
    assert {"WrongNode"} <= {item.reason for item in audited(other, address(8)).findings}
    assert audited(other, None).claimed
    assert {"WrongSignature"} == {item.reason for item in audited(exported(rows, number=8)).findings}


def test_two_histories_of_one_node_are_found(rows: tuple[ChainRow, ...], tmp_path: Path) -> None:
    """Of two exports, the shorter must be the beginning of the longer."""
    chain = exported(rows)
    shorter = exported(rows[:5])
    assert audited(shorter).findings == ()
    assert forks((("new", chain), ("old", shorter))) == ()
    journal = Journal(tmp_path / "state.db")
    journal.chain.issuer = Issuer("testnet", NODE, "0.1.0")
    journal.apply((issue(intent="other"),), NOW)
    journal.put_signatures({number: signed(text) for number, text in journal.chain.unsigned(limit=9)}, None, NOW)
    fork = exported(journal.chain.rows())
    journal.close()
    assert audited(fork).findings == ()
    assert [(name, item.reason, item.number) for name, item in forks((("new", chain), ("fork", fork)))] == [
        ("fork", "Forked", 1)
    ]


def test_any_column_of_any_row_is_found(rows: tuple[ChainRow, ...]) -> None:
    """What decisions are made from is compared with the statements: a row that was edited is named."""
    for at, row in enumerate(rows):
        for column in fields(ChainRow):
            value = getattr(row, column.name)
            others = {value + 1 if isinstance(value, int) else twisted(value), "" if isinstance(value, str) else 0}
            for other in others - {value}:
                edited = (*rows[:at], replace(row, **{column.name: other}), *rows[at + 1 :])
                if column.name == "signature" and other == "" and at == len(rows) - 1:
                    assert here(edited).pending == 1, "the last one may still be waiting for it"
                    continue
                report = here(edited)
                assert report.findings, (at, column.name, other)


def test_a_row_that_is_gone_is_found(rows: tuple[ChainRow, ...]) -> None:
    """The last one too: its number was given out."""
    for at in range(len(rows)):
        assert here(rows[:at] + rows[at + 1 :], last=rows[-1].number).findings
