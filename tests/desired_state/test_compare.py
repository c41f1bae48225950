"""What a change of desired state means."""

from __future__ import annotations

from typing import Any

from desired_state.compare import Comparison, compare
from schemas.digests import digest_text
from tests.support import builders


def found(before: dict[str, Any] | None, after: dict[str, Any], sizes: dict[str, int] | None = None) -> Comparison:
    """Compare two snapshots that differ from the default one as given."""
    old = builders.snapshot(**before) if before is not None else None
    return compare(old, builders.snapshot(**after), sizes or {})


def lines(comparison: Comparison) -> list[str]:
    """Changes as text."""
    return [f"{one.sign} {one.kind} {one.name}: {'; '.join(one.details)}" for one in comparison.changes]


def test_the_same_is_no_change() -> None:
    """Two snapshots that differ in their metadata alone ask for the same."""
    assert found({"sequence": 1}, {"sequence": 2}) == Comparison((), 0, ())


def test_everything_is_new_at_first() -> None:
    """Without a snapshot before, everything is added, and everything is to be fetched."""
    comparison = found(None, {}, {builders.manifest_digest("m:v1"): 1000})
    assert lines(comparison) == [
        "+ model m:v1: version: v1; state: active",
        "+ runtime main: engine: llamacpp; version: 1.0",
        "+ assignment every node: runtime: main; serve: [m:v1]",
    ]
    assert (comparison.fetch, comparison.unknown, comparison.count("+")) == (1000, (), 3)


def test_models_are_told_apart_by_version() -> None:
    """A new version is a new model; the old one, when it goes, is removed; unknown sizes are said."""
    models = (builders.model("m", "v2"),)
    comparison = found({}, {"models": models, "assignments": (builders.assignment("m:v2"),)})
    assert lines(comparison) == [
        "+ model m:v2: version: v2; state: active",
        "- model m:v1: ",
        "~ assignment every node: serve: [m:v1] -> [m:v2]",
    ]
    assert comparison.unknown == ("m:v2",)


def test_a_manifest_that_changes_is_fetched_again() -> None:
    """The same name with other bytes is a change, told by both digests, and costs the new bytes."""
    digest = digest_text("other")
    model = builders.model(manifest={"path": "models/m/v1.yaml", "digest": digest})
    comparison = found({}, {"models": (model,)}, {digest: 7})
    old, new = builders.manifest_digest("m:v1"), digest
    assert lines(comparison) == [f"~ model m:v1: manifest.digest: {old[:19]} -> {new[:19]}"]
    assert comparison.fetch == 7


def test_order_of_assignments_matters() -> None:
    """The first match wins, so another order is another meaning; equal selectors are told apart by number."""
    special = builders.assignment(selector={"match_labels": {"gpu": "h100"}})
    shared = builders.assignment(rollout={"percent": "25%", "key": "new"})
    general = builders.assignment()
    comparison = found(
        {
            "assignments": (
                special,
                shared,
                general,
            )
        },
        {
            "assignments": (
                shared,
                special,
                general,
            )
        },
    )
    assert lines(comparison) == ["~ assignment order: 25% of every node [new] > gpu=h100 > every node"]
    twice = found(
        {"assignments": (general,)},
        {
            "assignments": (
                general,
                general,
            )
        },
    )
    assert lines(twice) == ["+ assignment every node (2): runtime: main; serve: [m:v1]"]


def test_expressions_are_readable() -> None:
    """A selector's expressions are told in words."""
    expression = {"key": "zone", "operator": "NotIn", "values": ("a", "b")}
    one = builders.assignment(selector={"match_expressions": (expression,)})
    assert lines(found({"assignments": ()}, {"assignments": (one,)}))[0].startswith("+ assignment zone NotIn (a, b):")


def test_withdrawn_retry_policy_and_extensions() -> None:
    """Everything that nodes act upon is in the comparison."""
    digest = digest_text("bad")
    after = {
        "withdrawn": ({"digest": digest, "reason": "leaked"},),
        "retry": (digest,),
        "policy": {"gc": {"grace": "48h"}},
        "extensions": {"team": "a"},
    }
    assert lines(found({}, after)) == [
        f"+ withdrawn {digest}: ",
        f"+ retry {digest[7:19]}: ",
        "~ policy policy: gc.grace: 1d -> 2d",
        "~ extensions extensions: team: none -> a",
    ]
    assert lines(found(after, {}))[:2] == [f"- withdrawn {digest}: ", f"- retry {digest[7:19]}: "]
