"""Several repositories: the highest valid snapshot wins, and what the others offered is known."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from desired_state.acceptance import accept_snapshot
from desired_state.choice import Choice, RepositoryResult, choose
from desired_state.trust import verify_first
from schemas.digests import digest_bytes
from schemas.errors import ReconcileError, SourceUnreachable
from schemas.refusals import Equivocation, InvalidSignature, RollbackAttack, SignaturesPending
from tests.desired_state.network import AGENT, FIRST_TRUST, NETWORK, NOW, signed, snapshot_text

if TYPE_CHECKING:
    from desired_state.snapshot import Snapshot

TRUST = verify_first(FIRST_TRUST, digest_bytes(FIRST_TRUST), NETWORK)


def accepted(sequence: int, note: str = "") -> Snapshot:
    """A verified snapshot."""
    content = snapshot_text(sequence, note=note)
    return accept_snapshot(
        content=content,
        signatures=signed(content, 11, 12),
        trust=TRUST,
        mark=None,
        network=NETWORK,
        now=NOW,
        agent_version=AGENT,
    )


def result(url: str, outcome: Snapshot | ReconcileError) -> RepositoryResult:
    """What came of one repository."""
    if isinstance(outcome, ReconcileError):
        return RepositoryResult(url, error=outcome)
    return RepositoryResult(url, commit=f"commit of {url}", snapshot=outcome)


def reasons(choice: Choice) -> list[tuple[str, str]]:
    """Why the others did not count."""
    return [(url, error.reason) for url, error in choice.others]


def test_the_highest_wins_and_the_lagging_are_named() -> None:
    """I1: a mirror that lags is no attack where another one is up to date."""
    choice = choose(
        [
            result("a", accepted(1)),
            result("b", accepted(3)),
            result("c", RollbackAttack("older than the mark")),
            result("d", accepted(3)),
        ]
    )
    assert (choice.url, choice.commit, choice.snapshot.position) == ("b", "commit of b", (1, 3))
    assert reasons(choice) == [("a", "StaleSource"), ("c", "StaleSource")]


def test_a_bad_repository_does_not_hide_a_good_one() -> None:
    """I6: one hostile or silent mirror changes nothing but what is reported."""
    choice = choose([result("a", InvalidSignature("x")), result("b", SourceUnreachable("x")), result("c", accepted(1))])
    assert choice.url == "c"
    assert reasons(choice) == [("a", "InvalidSignature"), ("b", "SourceUnreachable")]


def test_equivocation_across_repositories_is_refused() -> None:
    """I1: two valid snapshots for one position mean that signers signed twice; neither is believed."""
    with pytest.raises(Equivocation, match="a and b"):
        choose([result("a", accepted(2)), result("b", accepted(2, note="fork")), result("c", accepted(1))])


@pytest.mark.parametrize(
    ("errors", "expected"),
    [
        ([], "SourceUnreachable"),
        ([SourceUnreachable("x"), SourceUnreachable("y")], "SourceUnreachable"),
        ([SourceUnreachable("x"), SignaturesPending("y")], "SignaturesPending"),
        ([SignaturesPending("x"), RollbackAttack("y"), InvalidSignature("z")], "RollbackAttack"),
        ([InvalidSignature("x"), Equivocation("y")], "Equivocation"),
    ],
)
def test_without_a_valid_one_the_gravest_reason_is_told(errors: list[ReconcileError], expected: str) -> None:
    """A refusal over silence, an alarm over a wait."""
    with pytest.raises(ReconcileError) as caught:
        choose([result(str(number), error) for number, error in enumerate(errors)])
    assert caught.value.reason == expected


def test_credentials_in_an_address_are_never_shown() -> None:
    """An address may carry a token: it selects the repository, and stays out of every message."""
    secret = "https://user:hunter2@example.org/mirror.git"
    choice = choose([result(secret, accepted(1)), result("b", accepted(3))])
    assert "hunter2" not in choice.others[0][1].message
    assert "example.org/mirror.git" in choice.others[0][1].message
    with pytest.raises(Equivocation) as caught:
        choose([result(secret, accepted(1, "one")), result("b", accepted(1, "other"))])
    assert "hunter2" not in caught.value.message
