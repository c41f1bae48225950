"""Whom to believe: the chain of trust, the steps of acceptance, and that nothing else makes a `Snapshot`."""

from __future__ import annotations

import dataclasses
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import desired_state
from desired_state import document
from desired_state.acceptance import accept_snapshot
from desired_state.snapshot import DraftSnapshot, Snapshot, draft
from desired_state.tally import MAX_SIGNATURES
from desired_state.trust import CLOCK_SKEW, TrustLink, TrustState, advance, recall, verify_first, walk
from desired_state.watermark import Mark
from schemas.digests import digest_bytes
from schemas.errors import ReconcileError
from schemas.refusals import (
    BrokenChain,
    Equivocation,
    Expired,
    InvalidSignature,
    LimitExceeded,
    MalformedDocument,
    NotTrusted,
    NotYetValid,
    RollbackAttack,
    SignaturesPending,
    ThresholdNotMet,
    TrustBroken,
    UnknownSigner,
    WrongNetwork,
)
from schemas.snapshot import SnapshotDocument
from tests.desired_state.network import (
    AGENT,
    NETWORK,
    NOW,
    SIGNERS,
    STRANGER,
    address,
    signature,
    signature_file,
    signed,
    snapshot_text,
    trust_text,
    twin,
)

FIRST = trust_text()


def first() -> TrustState:
    """The pinned trust."""
    return verify_first(FIRST, digest_bytes(FIRST), NETWORK)


def link(version: int, content: bytes, *numbers: int) -> TrustLink:
    """A later trust document with signatures."""
    return TrustLink(version, content, signed(content, *numbers), f"trust/{version}.yaml")


def mark_of(content: bytes) -> Mark:
    """The mark after a snapshot was accepted."""
    metadata = document.load(content, SnapshotDocument, file="s").metadata
    return Mark(epoch=metadata.epoch, sequence=metadata.sequence, digest=digest_bytes(content))


def accept(content: bytes, signatures: tuple[bytes, ...] | None = None, **changes: Any) -> Snapshot:
    """Judge a snapshot as an up-to-date node without a mark would, except for what is changed."""
    given: dict[str, Any] = {
        "content": content,
        "signatures": signed(content, 11, 12) if signatures is None else signatures,
        "trust": first(),
        "mark": None,
        "network": NETWORK,
        "now": NOW,
        "agent_version": AGENT,
        **changes,
    }
    return accept_snapshot(**given)


# --- the first document -------------------------------------------------------------------------------------------


def test_the_pinned_document_is_trusted() -> None:
    """The pin is what trust begins with."""
    state = first()
    assert (state.version, state.epoch, state.digest) == (1, 1, digest_bytes(FIRST))


def test_another_first_document_is_not() -> None:
    """I1: a repository cannot bring its own beginning."""
    with pytest.raises(TrustBroken):
        verify_first(trust_text(signers=(STRANGER,), threshold=1), digest_bytes(FIRST), NETWORK)


def test_the_first_document_is_version_1_of_this_network() -> None:
    """A pin on anything else is a mistake that is named."""
    second = trust_text(2, previous=FIRST)
    with pytest.raises(TrustBroken, match="version 2"):
        verify_first(second, digest_bytes(second), NETWORK)
    with pytest.raises(WrongNetwork):
        verify_first(FIRST, digest_bytes(FIRST), "othernet")


def test_a_mistyped_signer_is_refused() -> None:
    """ERC-55: a signer with a wrong checksum is nobody."""
    swapped = address(12).swapcase().replace("0X", "0x")
    content = FIRST.replace(address(12).encode(), swapped.encode())
    with pytest.raises(MalformedDocument, match=r"spec.roles.snapshot.signers\[1\].*checksum"):
        verify_first(content, digest_bytes(content), NETWORK)


def test_recalled_trust_is_what_was_recorded() -> None:
    """What this node verified before is taken back by digest, of any version, and by nothing else."""
    second = trust_text(2, previous=FIRST)
    assert recall(second, digest_bytes(second), NETWORK).version == 2
    with pytest.raises(TrustBroken):
        recall(second + b" ", digest_bytes(second), NETWORK)


# --- rotation -----------------------------------------------------------------------------------------------------

NEW_ROOTS = (2, 3, 4)
"""Key 1 goes, key 4 comes."""
SECOND = trust_text(2, previous=FIRST, roots=NEW_ROOTS)


@pytest.mark.parametrize("numbers", [(2, 3), (1, 2, 4), (1, 2, 3, 4)])
def test_rotation_takes_both_thresholds(numbers: tuple[int, ...]) -> None:
    """Two of the old and two of the new signers agree; one person may be counted in both."""
    state = advance(first(), SECOND, signed(SECOND, *numbers), network=NETWORK, now=NOW)
    assert (state.version, state.digest) == (2, digest_bytes(SECOND))


@pytest.mark.parametrize(
    ("numbers", "reason"),
    [
        ((), SignaturesPending),
        ((2,), SignaturesPending),
        ((1, 2), SignaturesPending),  # the old threshold, one of the new
        ((4, 3), SignaturesPending),  # the new threshold, one of the old
        ((4,), UnknownSigner),
        ((STRANGER,), UnknownSigner),
    ],
)
def test_rotation_short_of_a_threshold(numbers: tuple[int, ...], reason: type[NotTrusted]) -> None:
    """I1: either threshold alone is not enough; without any of the old signers it is no rotation at all."""
    with pytest.raises(reason):
        advance(first(), SECOND, signed(SECOND, *numbers), network=NETWORK, now=NOW)


def test_a_takeover_is_refused() -> None:
    """I1: new signers who sign for themselves, threshold and all, are strangers."""
    content = trust_text(2, previous=FIRST, roots=(97, 98, 99))
    with pytest.raises(UnknownSigner):
        advance(first(), content, signed(content, 97, 98, 99), network=NETWORK, now=NOW)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        pytest.param(trust_text(3, previous=FIRST), TrustBroken, id="skipped-version"),
        pytest.param(FIRST, TrustBroken, id="same-version"),
        pytest.param(trust_text(2, previous=b"other"), TrustBroken, id="other-predecessor"),
        pytest.param(trust_text(2, previous=FIRST, epoch=0), TrustBroken, id="lower-epoch"),
        pytest.param(trust_text(2, previous=FIRST, network="othernet"), WrongNetwork, id="other-network"),
        pytest.param(trust_text(2, previous=FIRST, issued=1), NotYetValid, id="begins-later"),
        pytest.param(b"x", MalformedDocument, id="not-a-document"),
        pytest.param(snapshot_text(), MalformedDocument, id="another-kind"),
        pytest.param(SECOND + b"#" * 2**18, LimitExceeded, id="oversized"),
    ],
)
def test_a_step_that_does_not_fit_is_refused(content: bytes, reason: type[ReconcileError]) -> None:
    """I1: whoever signed it."""
    numbers = (1, 2, 3) if reason in {TrustBroken, WrongNetwork, NotYetValid} else ()
    with pytest.raises(reason) as caught:
        advance(first(), content, signed(content, *numbers), network=NETWORK, now=NOW)
    assert caught.value.reason == reason.__name__


def test_a_node_far_behind_walks_the_chain() -> None:
    """Step by step, through documents that have expired in the meantime."""
    second = trust_text(2, previous=FIRST, roots=NEW_ROOTS, expires=-10)
    third = trust_text(3, previous=second, roots=(4, 5, 6))
    links = [link(2, second, 2, 3), link(3, third, 3, 4, 5)]
    walked = walk(first(), links, network=NETWORK, now=NOW)
    assert (walked.trust.version, walked.pending) == (3, None)


def test_the_walk_does_not_skip() -> None:
    """I1: version 3 counts for nothing without version 2, even if the signers of 1 signed it."""
    third = trust_text(3, previous=SECOND)
    with pytest.raises(TrustBroken):
        walk(first(), [link(3, third, 1, 2, 3)], network=NETWORK, now=NOW)


def test_a_rotation_under_way_changes_nothing_yet() -> None:
    """I6: while a rotation collects signatures, the present trust goes on; that is no alarm."""
    walked = walk(first(), [link(2, SECOND, 2)], network=NETWORK, now=NOW)
    assert walked.trust == first()
    assert isinstance(walked.pending, SignaturesPending)


def test_a_rotation_that_begins_later_changes_nothing_yet() -> None:
    """I6: a signed rotation may lie ready before its time; until then the present trust goes on."""
    later = trust_text(2, previous=FIRST, roots=NEW_ROOTS, issued=1)
    walked = walk(first(), [link(2, later, 2, 3)], network=NETWORK, now=NOW)
    assert walked.trust == first()
    assert isinstance(walked.pending, NotYetValid)
    assert walk(first(), [link(2, later, 2, 3)], network=NETWORK, now=NOW + timedelta(days=1)).trust.version == 2


def test_known_versions_are_passed_over() -> None:
    """A mirror that offers what the node has already says nothing new."""
    state = advance(first(), SECOND, signed(SECOND, 2, 3), network=NETWORK, now=NOW)
    assert walk(state, [link(1, FIRST), link(2, SECOND)], network=NETWORK, now=NOW).trust == state


# --- acceptance ---------------------------------------------------------------------------------------------------

ONE = snapshot_text(1)
TWO = snapshot_text(2, previous=ONE)


def test_a_good_snapshot_is_accepted() -> None:
    """I1: the whole way, with who signed and by which trust."""
    snapshot = accept(TWO, signed(TWO, 13, 11), mark=mark_of(ONE))
    assert snapshot.document.metadata.sequence == 2
    assert snapshot.content == TWO
    assert snapshot.digest == digest_bytes(TWO)
    assert snapshot.signers == tuple(sorted((address(11), address(13))))
    assert (snapshot.trust_version, snapshot.gap, snapshot.position) == (1, False, (1, 2))


def test_the_same_snapshot_again_is_quiet() -> None:
    """I1, I6: what was accepted stays accepted, though it has expired and its signatures are gone."""
    later = NOW + timedelta(days=1000)
    assert accept(ONE, (), mark=mark_of(ONE), now=later).digest == digest_bytes(ONE)


def test_a_gap_is_recorded() -> None:
    """`previous` is checked where the snapshot follows directly; elsewhere the gap is known."""
    assert accept(snapshot_text(5, previous=b"never seen"), mark=mark_of(ONE)).gap
    assert not accept(snapshot_text(5, previous=b"never seen")).gap


def reasons() -> list[Any]:
    """Each refusal of a snapshot: content, signatures, what else is different, and the reason."""
    at_two = mark_of(TWO)
    behind = snapshot_text(1)
    forked = snapshot_text(2, previous=ONE, note="fork")
    future = snapshot_text(1, issued=1)
    old = snapshot_text(1, issued=-20, expires=-1)
    other = snapshot_text(1, network="othernet")
    unchained = snapshot_text(3, previous=b"else")
    orphan = snapshot_text(3)
    third = snapshot_text(3, previous=TWO)
    ahead = snapshot_text(1, trust_version=2)
    high = snapshot_text(1, epoch=2)
    return [
        pytest.param(b"\0", (), {}, MalformedDocument, id="not-text"),
        pytest.param(ONE + b"#" * 2**24, (), {}, LimitExceeded, id="oversized"),
        pytest.param(ONE[:200], (), {}, MalformedDocument, id="truncated"),
        pytest.param(trust_text(), (), {}, MalformedDocument, id="another-kind"),
        pytest.param(other, signed(other, 11, 12), {}, WrongNetwork, id="other-network"),
        pytest.param(behind, signed(behind, 11, 12), {"mark": at_two}, RollbackAttack, id="lower-sequence"),
        pytest.param(forked, signed(forked, 11, 12), {"mark": at_two}, Equivocation, id="same-sequence"),
        pytest.param(ONE, (), {}, ThresholdNotMet, id="no-signature"),
        pytest.param(ONE, signed(ONE, 11), {}, ThresholdNotMet, id="one-signature-on-a-fresh-node"),
        pytest.param(third, signed(third, 11), {"mark": at_two}, SignaturesPending, id="one-signature"),
        pytest.param(third, (), {"mark": at_two}, ThresholdNotMet, id="nobody-signed-the-next"),
        pytest.param(third, signed(TWO, 11, 12), {"mark": at_two}, ThresholdNotMet, id="signatures-of-the-last-one"),
        pytest.param(ONE, signed(ONE, 11, 11, 11), {}, ThresholdNotMet, id="duplicates"),
        pytest.param(ONE, signed(ONE, STRANGER, 98), {}, UnknownSigner, id="strangers"),
        pytest.param(ONE, signed(ONE, 1, 2, 3), {}, UnknownSigner, id="root-is-not-snapshot"),
        pytest.param(ONE, signed(ONE, 11, STRANGER), {}, ThresholdNotMet, id="one-and-a-stranger"),
        pytest.param(
            ONE,
            (signature_file(ONE, 11), signature_file(ONE, 11, signature=twin(signature(ONE, 11)), signer=address(12))),
            {},
            InvalidSignature,
            id="malleable-twin-as-second-signer",
        ),
        pytest.param(
            ONE,
            (signature_file(ONE, 11), signature_file(ONE, 12, signature=signature(TWO, 12))),
            {},
            InvalidSignature,
            id="signature-of-another-document",
        ),
        pytest.param(ONE, (signature_file(ONE, 11)[:-20],), {}, InvalidSignature, id="truncated-signature-file"),
        pytest.param(future, signed(future, 11, 12), {}, NotYetValid, id="begins-later"),
        pytest.param(old, signed(old, 11, 12), {}, Expired, id="expired"),
        pytest.param(
            ONE,
            signed(ONE, 11, 12),
            {"now": NOW + timedelta(days=29.9), "floor": NOW + timedelta(days=31)},
            Expired,
            id="clock-behind-what-was-accepted",
        ),
        pytest.param(
            ONE,
            signed(ONE, 11, 12),
            {
                "trust": TrustState(
                    first().document.model_copy(
                        update={"metadata": first().document.metadata.model_copy(update={"expires_at": NOW})}
                    ),
                    "blake3:" + "0" * 64,
                )
            },
            Expired,
            id="trust-expired",
        ),
        pytest.param(ahead, signed(ahead, 11, 12), {}, TrustBroken, id="trust-version-not-here"),
        pytest.param(high, signed(high, 11, 12), {}, TrustBroken, id="epoch-that-root-never-declared"),
        pytest.param(unchained, signed(unchained, 11, 12), {"mark": at_two}, BrokenChain, id="other-predecessor"),
        pytest.param(orphan, signed(orphan, 11, 12), {"mark": at_two}, BrokenChain, id="no-predecessor"),
    ]


@pytest.mark.parametrize(("content", "signatures", "changes", "reason"), reasons())
def test_every_refusal_has_its_reason(
    content: bytes, signatures: tuple[bytes, ...], changes: dict[str, Any], reason: type[NotTrusted]
) -> None:
    """I1, I11: one typed error per way of not being believable, with exit code 3."""
    with pytest.raises(reason) as caught:
        accept(content, signatures, **changes)
    assert (caught.value.reason, caught.value.exit_code) == (reason.__name__, 3)


def test_rollback_says_what_to_do() -> None:
    """People will `git revert`, and meet this."""
    with pytest.raises(RollbackAttack) as caught:
        accept(ONE, mark=mark_of(TWO))
    assert "snapshot revert" in caught.value.hint


def test_bad_files_do_not_stand_in_the_way() -> None:
    """I1: a threshold that is reached is reached, whatever else anybody put into the folder."""
    noise = (b"", b"{}", b"\xff", b"[" * 5000, signature_file(ONE, STRANGER), signature_file(TWO, 13), b"x" * 2**20)
    assert accept(ONE, (*noise, *signed(ONE, 11, 12))).signers == tuple(sorted((address(11), address(12))))


def test_what_counts_is_who_signed_and_not_who_is_named() -> None:
    """The claimed signer is a label: a file with a wrong one counts for the key that made it."""
    files = (signature_file(ONE, 11, signer=address(STRANGER)), signature_file(ONE, 12))
    assert accept(ONE, files).signers == tuple(sorted((address(11), address(12))))


def test_only_so_many_signature_files_are_looked_at() -> None:
    """I11: somebody who can push cannot keep a node busy with signatures."""
    with pytest.raises(InvalidSignature):
        accept(ONE, (b"",) * MAX_SIGNATURES + signed(ONE, 11, 12))


def test_revoked_signers_stop_counting_at_once() -> None:
    """I1: current trust counts, whatever version the snapshot names."""
    second = trust_text(2, previous=FIRST, signers=(11, 13, 14))
    trust = advance(first(), second, signed(second, 1, 2), network=NETWORK, now=NOW)
    with pytest.raises(ThresholdNotMet):
        accept(ONE, signed(ONE, 11, 12), trust=trust)
    assert accept(ONE, signed(ONE, 11, 14), trust=trust).trust_version == 2


def test_a_fast_forward_is_undone_by_the_epoch() -> None:
    """Whoever once signed a very high sequence loses: root raises the epoch, and counting starts again."""
    far = snapshot_text(2**53 - 1)
    second = trust_text(2, previous=FIRST, epoch=2, signers=(13, 14, 15))
    trust = advance(first(), second, signed(second, 1, 2), network=NETWORK, now=NOW)
    repaired = snapshot_text(1, epoch=2, trust_version=2)
    snapshot = accept(repaired, signed(repaired, 13, 14), trust=trust, mark=mark_of(far))
    assert snapshot.position > (1, 2**53 - 1)
    old = snapshot_text(1, epoch=1, trust_version=2)
    with pytest.raises(RollbackAttack, match="root ended"):
        accept(old, signed(old, 13, 14), trust=trust)


def test_clocks_may_differ_a_little() -> None:
    """A signer's clock may be ahead by minutes; an expiry is never stretched."""
    content = snapshot_text(1, issued=0)
    assert accept(content, now=NOW - CLOCK_SKEW)
    with pytest.raises(NotYetValid):
        accept(content, now=NOW - CLOCK_SKEW - timedelta(seconds=1))
    ends = NOW + timedelta(days=30)
    assert accept(content, now=ends - timedelta(seconds=1))
    with pytest.raises(Expired):
        accept(content, now=ends)


def test_a_clock_that_is_behind_loosens_nothing() -> None:
    """What was accepted was issued in the past: now cannot be before it."""
    content = snapshot_text(2, issued=-20, expires=-1)
    accept(content, now=NOW - timedelta(days=5))
    with pytest.raises(Expired):
        accept(content, now=NOW - timedelta(days=5), floor=NOW)


def test_checks_come_in_their_order() -> None:
    """A document that is wrong in every way is refused for the first, cheapest reason."""
    content = snapshot_text(1, network="othernet", requires=">=9", epoch=0, issued=-9, expires=-8)
    with pytest.raises(WrongNetwork):
        accept(content, (), mark=mark_of(TWO))
    content = snapshot_text(1, requires=">=9")
    with pytest.raises(ReconcileError) as caught:
        accept(content, (), mark=mark_of(TWO))
    assert caught.value.reason == "AgentTooOld"


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.sampled_from([*SIGNERS, 1, 2, STRANGER, 98]), max_size=8),
    st.permutations([b"", b"{}", signature_file(TWO, 11)]),
)
def test_acceptance_is_exactly_the_threshold(numbers: list[int], noise: list[bytes]) -> None:
    """I1, property: accepted if and only if two distinct current signers signed these bytes, in whatever order."""
    members = {number for number in numbers if number in SIGNERS}
    files = (*noise, *signed(ONE, *numbers))
    if len(members) >= 2:
        assert accept(ONE, files).signers == tuple(sorted(address(number) for number in members))
    else:
        with pytest.raises(NotTrusted):
            accept(ONE, files)


@settings(max_examples=150, deadline=None)
@given(st.integers(0, len(TWO) - 1), st.integers(1, 255))
def test_no_changed_byte_is_accepted(position: int, flip: int) -> None:
    """I1, property: with real signatures in place, no other bytes are believed."""
    changed = bytearray(TWO)
    changed[position] ^= flip
    with pytest.raises(ReconcileError):
        accept(bytes(changed), signed(TWO, 11, 12, 13))


# --- who may make a snapshot --------------------------------------------------------------------------------------


def test_nothing_else_makes_a_snapshot() -> None:
    """I1: neither by hand nor from another one; what is not verified is a draft."""
    parsed = document.load(ONE, SnapshotDocument, file="s")
    with pytest.raises(TypeError):
        Snapshot(parsed, ONE, digest_bytes(ONE), (), 1, gap=False, seal=object())
    with pytest.raises((TypeError, ValueError)):
        dataclasses.replace(accept(ONE), content=TWO)
    with pytest.raises(dataclasses.FrozenInstanceError):
        accept(ONE).gap = True  # type: ignore[misc]
    assert draft(parsed, ONE) == DraftSnapshot(parsed, ONE, digest_bytes(ONE))
    assert not draft(parsed, ONE).verified


def test_only_trust_holds_the_seal() -> None:
    """The name of the seal stands in the file that defines it and in the one that verifies, in the whole product."""
    root = Path(desired_state.__file__).parent.parent
    packages = ("schemas", "desired_state", "runtime", "reconciler")
    holders = {
        path.relative_to(root).as_posix()
        for package in packages
        for path in (root / package).rglob("*.py")
        if "SEAL" in path.read_text()
    }
    assert holders == {"desired_state/snapshot.py", "desired_state/acceptance.py"}
