"""The timestamp, the clock and the absence of news: pure decisions over real signatures (I1, I6)."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

import pytest

from desired_state.freshness import (
    TimestampMark,
    accept_timestamp,
    clock_behind,
    counted,
    doubt,
    newest,
)
from desired_state.trust import CLOCK_SKEW, TrustState, advance, verify_first
from schemas.digests import digest_bytes, digest_text
from schemas.errors import SourceUnreachable
from schemas.refusals import Expired, NotTrusted, NotYetValid
from tests.desired_state.network import (
    NETWORK,
    NOW,
    ONLINE,
    address,
    signature_file,
    signed,
    snapshot_text,
    timestamp_text,
    trust_text,
    twin,
)
from tests.desired_state.network import signature as signature_of

FIRST = trust_text(online=(ONLINE, 22))
SNAPSHOT = snapshot_text(7)
TIMESTAMP = timestamp_text(SNAPSHOT)


def trust(content: bytes = FIRST) -> TrustState:
    """Trust in force."""
    return verify_first(content, digest_bytes(content), NETWORK)


def accept(
    content: bytes = TIMESTAMP,
    signatures: tuple[bytes, ...] | None = None,
    *,
    mark: TimestampMark | None = None,
    state: TrustState | None = None,
    now: datetime = NOW,
) -> TimestampMark:
    """The decision, with everything right but what a test changes."""
    return accept_timestamp(
        content=content,
        signatures=signed(content, ONLINE) if signatures is None else signatures,
        trust=state or trust(),
        mark=mark,
        network=NETWORK,
        now=now,
        file="timestamp.json",
    )


def reason(**arguments: Any) -> str:
    """Why it is refused."""
    with pytest.raises(NotTrusted) as caught:
        accept(**arguments)
    return caught.value.reason


# --- accepting a timestamp ----------------------------------------------------------------------------------------


def test_a_signed_timestamp_is_taken_for_what_it_says() -> None:
    """The mark holds the snapshot that it names, its validity, and who signed."""
    mark = accept()
    assert (mark.position, mark.snapshot) == ((1, 7), digest_bytes(SNAPSHOT))
    assert mark.signers == (address(ONLINE),)
    assert mark.issued_at < NOW < mark.expires_at


def test_the_same_timestamp_again_needs_no_signature() -> None:
    """What was accepted once is not verified at every look."""
    mark = accept()
    assert accept(signatures=(), mark=mark) is mark


@pytest.mark.parametrize(
    ("signatures", "expected"),
    [
        pytest.param((), "ThresholdNotMet", id="nobody"),
        pytest.param(signed(TIMESTAMP, 99), "UnknownSigner", id="a-stranger"),
        pytest.param(signed(TIMESTAMP, 11, 12), "UnknownSigner", id="snapshot-signers-hold-another-role"),
        pytest.param((b"{",), "InvalidSignature", id="not-a-signature"),
        pytest.param(
            (signature_file(TIMESTAMP, ONLINE, signature=twin(signature_of(TIMESTAMP, ONLINE))),),
            "InvalidSignature",
            id="malleable",
        ),
        pytest.param(
            (signature_file(TIMESTAMP, ONLINE, signature=signature_of(SNAPSHOT, ONLINE)),),
            "InvalidSignature",
            id="over-the-snapshot",
        ),
    ],
)
def test_who_may_not_say_it_is_refused(signatures: tuple[bytes, ...], expected: str) -> None:
    """I1: only the role's own signers count, over exactly these bytes, in the one form allowed."""
    assert reason(signatures=signatures) == expected


def test_one_signer_twice_is_one_signer() -> None:
    """I1: a threshold of two is not reached by one key, however often it signs."""
    content = FIRST.replace(b'"threshold": 1', b'"threshold": 2')
    twice = (*signed(TIMESTAMP, ONLINE), *signed(TIMESTAMP, ONLINE))
    assert reason(signatures=twice, state=trust(content)) == "SignaturesPending"
    assert len(accept(signatures=signed(TIMESTAMP, ONLINE, 22), state=trust(content)).signers) == 2


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        pytest.param(timestamp_text(SNAPSHOT, network="othernet"), "WrongNetwork", id="another-network"),
        pytest.param(timestamp_text(SNAPSHOT, issued=-2, expires=-1), "Expired", id="expired"),
        pytest.param(timestamp_text(SNAPSHOT, issued=0.1, expires=1), "NotYetValid", id="not-yet"),
        pytest.param(timestamp_text(SNAPSHOT, epoch=2), "TrustBroken", id="an-epoch-that-root-did-not-declare"),
        pytest.param(timestamp_text(SNAPSHOT, epoch=0), "RollbackAttack", id="an-epoch-that-ended"),
    ],
)
def test_what_may_not_be_said_is_refused(content: bytes, expected: str) -> None:
    """I1: of this network, valid now, of the declared epoch."""
    assert reason(content=content) == expected


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        pytest.param(b"", "MalformedDocument", id="empty"),
        pytest.param(TIMESTAMP[:-10], "MalformedDocument", id="truncated"),
        pytest.param(TIMESTAMP + b"{}", "MalformedDocument", id="extended"),
        pytest.param(TIMESTAMP.replace(b'"kind"', b'"kind": "x", "kind"'), "MalformedDocument", id="duplicate-key"),
        pytest.param(TIMESTAMP.replace(b'"sequence"', b'"note": 1, "sequence"'), "MalformedDocument", id="unknown"),
        pytest.param(TIMESTAMP.replace(b"v1alpha1", b"v9"), "AgentTooOld", id="a-newer-form"),
        pytest.param(TIMESTAMP + b" " * 2**14, "LimitExceeded", id="large"),
    ],
)
def test_bytes_that_are_no_timestamp_are_refused(content: bytes, expected: str) -> None:
    """I11: strict and bounded, before any signature is looked at."""
    assert reason(content=content, signatures=()) == expected


def test_no_role_no_timestamp() -> None:
    """Where trust has no such role nobody can say it."""
    assert reason(state=trust(trust_text())) == "UnknownSigner"


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        pytest.param(timestamp_text(SNAPSHOT, issued=-0.2), "RollbackAttack", id="older"),
        pytest.param(timestamp_text(snapshot_text(6), issued=0), "RollbackAttack", id="names-an-older-snapshot"),
        pytest.param(timestamp_text(SNAPSHOT, expires=2), "Equivocation", id="two-of-one-moment"),
        pytest.param(
            timestamp_text(SNAPSHOT, issued=0, digest=digest_text("x")), "Equivocation", id="another-of-that-sequence"
        ),
    ],
)
def test_a_timestamp_never_goes_back(content: bytes, expected: str) -> None:
    """I1: its mark is its own: neither its time nor the snapshot that it names goes back, and it does not waver."""
    assert reason(content=content, mark=accept()) == expected


def test_a_later_one_moves_the_mark_on() -> None:
    """The daily renewal, and a newer snapshot."""
    mark = accept()
    renewed = accept(timestamp_text(SNAPSHOT, issued=0), mark=mark)
    later = accept(timestamp_text(snapshot_text(8), issued=0.001), mark=renewed)
    assert mark.issued_at < renewed.issued_at < later.issued_at
    assert newest((mark, None, later, renewed)) == later
    assert newest((None, None)) is None


def test_a_clock_that_was_set_back_does_not_revive_an_expired_timestamp() -> None:
    """Time never counts as earlier than the beginning of the snapshot in force."""
    stale = timestamp_text(SNAPSHOT, issued=-1, expires=-0.5)
    back = NOW - timedelta(days=0.7)
    assert accept(stale, now=back).sequence == 7
    with pytest.raises(Expired):
        accept_timestamp(
            content=stale,
            signatures=signed(stale, ONLINE),
            trust=trust(),
            mark=None,
            network=NETWORK,
            now=back,
            floor=NOW - timedelta(days=0.1),
        )
    mark = accept(stale, now=back)
    assert doubts(InForce(issued_at=NOW - timedelta(days=0.1)), mark=mark, now=back) == ("FreezeSuspected", True)


def test_not_yet_valid_says_when_to_look_again() -> None:
    """A poll before that time has nothing to find out."""
    with pytest.raises(NotYetValid) as caught:
        accept(timestamp_text(SNAPSHOT, issued=0.5, expires=1))
    assert caught.value.begins == NOW + timedelta(days=0.5) - CLOCK_SKEW


def test_a_rotation_of_the_online_key_undoes_what_a_thief_said() -> None:
    """TUF 5.3.11: a mark whose signers lost the role no longer counts; while they hold it, it does."""
    thief = accept(timestamp_text(snapshot_text(2**50), issued=0))
    state = trust()
    assert counted(thief, state) == thief
    rotated = trust_text(2, previous=FIRST, online=(22,))
    after = advance(state, rotated, signed(rotated, 1, 2), network=NETWORK, now=NOW)
    assert counted(thief, after) is None
    assert counted(thief, trust(trust_text())) is None
    assert accept(signatures=signed(TIMESTAMP, 22), mark=counted(thief, after), state=after).sequence == 7


def test_an_epoch_raised_by_root_undoes_an_absurd_sequence() -> None:
    """A fast-forward of the timestamp ends as that of a snapshot does."""
    absurd = accept(timestamp_text(snapshot_text(2**50), issued=-0.05))
    raised = trust_text(2, previous=FIRST, epoch=2, online=(ONLINE,))
    after = advance(trust(), raised, signed(raised, 1, 2), network=NETWORK, now=NOW)
    content = timestamp_text(snapshot_text(1, epoch=2), issued=0)
    assert accept(content, mark=absurd, state=after).position == (2, 1)


# --- what follows from it -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class InForce:
    """The snapshot in force."""

    digest: str = digest_bytes(SNAPSHOT)
    epoch: int = 1
    sequence: int = 7
    issued_at: datetime = NOW - timedelta(days=1)
    expires_at: datetime = field(default=NOW + timedelta(days=29))


def doubts(in_force: InForce | None = None, **fields: Any) -> tuple[str, bool] | None:
    """Reason of the doubt, and whether a promise was broken."""
    given = {"trust": trust(), "mark": accept(), "problem": None, "now": NOW, **fields}
    found = doubt(in_force or InForce(), **given)
    return (found.error.reason, found.promised) if found is not None else None


def test_a_valid_timestamp_leaves_no_doubt() -> None:
    """It names what is in force, or something older: then the newer snapshot is simply newer."""
    assert doubts() is None
    assert doubts(InForce(sequence=8, digest=digest_text("8"))) is None


@pytest.mark.parametrize(
    "fields",
    [
        pytest.param({"mark": None}, id="never-seen"),
        pytest.param({"now": NOW + timedelta(days=1)}, id="expired"),
        pytest.param({"mark": accept(timestamp_text(snapshot_text(8)))}, id="names-a-newer-snapshot"),
        pytest.param({"mark": accept(timestamp_text(snapshot_text(8))), "now": NOW + timedelta(days=40)}, id="both"),
    ],
)
def test_what_a_freeze_looks_like(fields: dict[str, Any]) -> None:
    """No valid timestamp, a stale one, or one that names what nobody shows."""
    assert doubts(**fields) == ("FreezeSuspected", True)


def test_the_reason_why_there_is_none_is_repeated() -> None:
    """Whoever reads the alarm sees what is wrong with the timestamps that are there."""
    found = doubt(InForce(), trust=trust(), mark=None, problem=SourceUnreachable("no answer"), now=NOW)
    assert found is not None
    assert "SourceUnreachable: no answer" in found.error.message


def test_a_timestamp_for_another_snapshot_of_this_sequence_is_equivocation() -> None:
    """Two snapshots of one position exist, and this node was shown one of them."""
    assert doubts(InForce(digest=digest_text("other"))) == ("Equivocation", True)


@pytest.mark.parametrize(
    ("validity", "left", "near"),
    [
        pytest.param(30, 3.1, False, id="a-month-with-more-than-three-days"),
        pytest.param(30, 3, True, id="a-month-with-three-days"),
        pytest.param(300, 4, False, id="long-validity-is-capped-at-three-days"),
        pytest.param(1, 0.2, False, id="a-day-with-a-fifth"),
        pytest.param(1, 0.1, True, id="a-day-with-a-tenth"),
        pytest.param(30, 0, False, id="expired-is-said-as-expired"),
    ],
)
def test_without_the_role_a_near_expiry_is_a_guess(validity: float, left: float, near: bool) -> None:
    """Nothing newer so close to the end: worth a remark, no broken promise."""
    expires = NOW + timedelta(days=left)
    in_force = InForce(issued_at=expires - timedelta(days=validity), expires_at=expires)
    assert doubts(in_force, trust=trust(trust_text()), mark=None) == (("FreezeSuspected", False) if near else None)


# --- clocks -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("behind", "said"), [(timedelta(0), False), (CLOCK_SKEW, False), (timedelta(hours=2), True)])
def test_a_clock_behind_what_was_accepted_is_said_with_figures(behind: timedelta, said: bool) -> None:
    """Beyond what clocks may differ it is wrong for certain; the message has both times and the difference."""
    found = clock_behind(NOW - behind, NOW)
    assert (found is not None) == said
    if found is not None:
        assert "2026-03-02T10:00:00Z" in found.message
        assert "2026-03-02T12:00:00Z" in found.message
        assert "7200 seconds" in found.message
    assert clock_behind(NOW, None) is None
