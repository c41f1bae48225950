"""The traps of a snapshot, one by one."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING, Any

import pytest

from desired_state.lint import Finding, InventoryNode, Surroundings, lint
from desired_state.trust import TrustState
from reconciler.selectors import matches
from schemas.base import format_time
from schemas.trust import TrustDocument
from tests.support import builders

if TYPE_CHECKING:
    from schemas.snapshot import SnapshotDocument

NOW = builders.NOW
NIGHT = {"days": ("mon",), "from": "02:00", "to": "05:00"}


def trust(threshold: int = 2, signers: int = 3, *, days: int = 300, epoch: int = 1) -> TrustState:
    """Trust in force."""
    role = {"threshold": threshold, "signers": tuple(f"0x{number:040x}" for number in range(1, signers + 1))}
    document = TrustDocument.model_validate(
        {
            "apiVersion": "reconcile/v1alpha1",
            "kind": "Trust",
            "metadata": {
                "network": "testnet",
                "version": 1,
                "epoch": epoch,
                "issuedAt": format_time(NOW - timedelta(days=1)),
                "expiresAt": format_time(NOW + timedelta(days=days)),
            },
            "spec": {"roles": {"root": role, "snapshot": role}},
        }
    )
    return TrustState(document, "blake3:" + "0" * 64)


def found(document: SnapshotDocument, **around: Any) -> dict[str, Finding]:
    """Findings by code."""
    return {one.code: one for one in lint(document, Surroundings(**{"now": NOW, "trust": trust(), **around}))}


def with_metadata(**fields: Any) -> SnapshotDocument:
    """The default snapshot with other metadata."""
    document = builders.snapshot()
    return document.model_copy(update={"metadata": document.metadata.model_copy(update=fields)})


def test_a_careful_snapshot_has_none() -> None:
    """The default snapshot has no trap: every finding below comes from what its test changes."""
    assert found(builders.snapshot()) == {}


@pytest.mark.parametrize(
    ("fields", "code", "severity"),
    [
        ({"expires_at": NOW}, "Expired", "error"),
        ({"expires_at": NOW + timedelta(days=1)}, "ExpiresSoon", "warning"),
        ({"expires_at": NOW + timedelta(days=400)}, "ExpiresLate", "warning"),
        ({"issued_at": NOW + timedelta(hours=1)}, "NotYetValid", "warning"),
        ({"sequence": 2}, "NoPrevious", "warning"),
        ({"trust_version": 2}, "TrustNotInForce", "error"),
        ({"epoch": 2}, "WrongEpoch", "error"),
    ],
)
def test_metadata(fields: dict[str, Any], code: str, severity: str) -> None:
    """Validity, chain and authority: what nodes would refuse is an error."""
    findings = found(with_metadata(**fields))
    assert list(findings) == [code]
    assert findings[code].severity == severity


@pytest.mark.parametrize(
    ("state", "code"),
    [
        (trust(1, 3), "ThresholdOfOne"),
        (trust(3, 3), "NoSpareSigner"),
        (trust(days=5), "TrustExpiresSoon"),
    ],
)
def test_trust(state: TrustState, code: str) -> None:
    """A threshold of one, a signer too few to lose, trust that ends soon."""
    findings = found(builders.snapshot(), trust=state)
    assert set(findings) == {code}
    assert findings[code].hint.startswith("reconcile trust")


@pytest.mark.parametrize(
    ("fields", "code"),
    [
        (
            {
                "runtimes": (
                    builders.runtime(),
                    builders.runtime("spare"),
                )
            },
            "UnusedRuntime",
        ),
        ({"policy": {"modes": ("container",)}}, "ModeNotAllowed"),
        ({"runtimes": (builders.runtime(isolation={"allow_unenforced": ("network",)}),)}, "WeakIsolation"),
        ({"models": (builders.model(sources=()),)}, "NoSource"),
        ({"models": (builders.model(sources=("http://a/",)),)}, "PlainHttp"),
        ({"models": (builders.model(sources=("https://me:pw@a/b",)),)}, "SecretInSource"),
        (
            {
                "models": (
                    builders.model(),
                    builders.model("n"),
                )
            },
            "NotServed",
        ),
        ({"withdrawn": ({"digest": builders.manifest_digest("m:v1")},)}, "ListedAndWithdrawn"),
        (
            {
                "assignments": (
                    builders.assignment(),
                    builders.assignment(),
                )
            },
            "Unreachable",
        ),
        ({"assignments": (builders.assignment(selector={"match_labels": {"a": "b"}}),)}, "NoDefault"),
        ({"assignments": (builders.assignment(rollout={"percent": "50%", "key": "k"}),)}, "NoDefault"),
        ({"policy": {"gc": {"allow_empty": True}}}, "EmptyAllowed"),
        ({"policy": {"windows": {"urgent": True}}}, "Urgent"),
        ({"policy": {"windows": {"swap": ({**NIGHT, "zone": "Mars/Base"},)}}}, "UnknownZone"),
        ({"policy": {"windows": {"stage": (NIGHT, {**NIGHT, "zone": "Europe"})}}}, "UnknownZone"),
    ],
)
def test_contents(fields: dict[str, Any], code: str) -> None:
    """Each trap of the contents is found, and nothing else is."""
    findings = found(builders.snapshot(**fields))
    assert list(findings) == [code]
    assert findings[code].where.startswith("spec.")


def test_nothing_is_assigned() -> None:
    """A snapshot without assignments serves nothing anywhere."""
    assert {"NoAssignment", "NotServed", "UnusedRuntime"} == set(found(builders.snapshot(assignments=())))


def test_errors_come_first() -> None:
    """What stops everybody is read before what is merely odd."""
    document = builders.snapshot(models=(builders.model(sources=()),), policy={"modes": ("container",)})
    assert [one.severity for one in found(document).values()] == ["error", "warning"]


def test_inventory() -> None:
    """Selectors are held against known nodes: one that matches nothing, and nodes that match nothing, are traps."""
    special = builders.assignment(selector={"match_labels": {"gpu": "h100"}})
    nodes = [InventoryNode(f"n{number}", {"gpu": "a100"}) for number in range(5)]
    findings = found(builders.snapshot(assignments=(special,)), inventory=nodes, matches=matches)
    assert "gpu=h100 matches none of the 5 known nodes" in findings["MatchesNothing"].message
    assert findings["NodeWithoutAssignment"].message == "no assignment matches n0, n1, n2 and 2 more"
    nodes = [InventoryNode("n", {"gpu": "h100"})]
    assert "MatchesNothing" not in found(builders.snapshot(assignments=(special,)), inventory=nodes, matches=matches)
