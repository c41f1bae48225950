"""Paths into documents, as people write them."""

from __future__ import annotations

import pytest

from desired_state.paths import changed, find, found, inserted, parse_path, removed
from schemas.errors import UsageError

TREE = {
    "spec": {
        "models": ({"name": "a", "version": "v1"}, {"name": "a", "version": "v2"}, {"name": "b", "version": "1.0"}),
        "retry": ("blake3:00", "blake3:11"),
        "withdrawn": ({"digest": "sha256:22"},),
        "labels": {"a.b": "c"},
    }
}


@pytest.mark.parametrize(
    ("text", "path"),
    [
        ("spec.models[a:v2].state", ("spec", "models", 1, "state")),
        ("spec.models[b]", ("spec", "models", 2)),
        ("spec.models[2].version", ("spec", "models", 2, "version")),
        ("spec.models['b:1.0']", ("spec", "models", 2)),
        ("spec.retry[blake3:11]", ("spec", "retry", 1)),
        ("spec.withdrawn[sha256:22].reason", ("spec", "withdrawn", 0, "reason")),
        ('spec.labels."a.b"', ("spec", "labels", "a.b")),
        ("spec.new.deep", ("spec", "new", "deep")),
    ],
)
def test_paths_are_found(text: str, path: tuple[str | int, ...]) -> None:
    """Fields by name, items by number or by what they are called; what is missing at the end may be made."""
    assert find(TREE, text) == path


@pytest.mark.parametrize(
    "text",
    ["", ".", "a..b", "a.", "[0]", "a[", "a[]", "a]b", "a[0]b", "spec.models[a]", "spec.models[z]", "spec[0]",
     "spec.models.name", "spec.models[9]"],
)  # fmt: skip
def test_what_is_no_path(text: str) -> None:
    """Anything else is a usage error that shows how, or lists what there is."""
    with pytest.raises(UsageError) as caught:
        find(TREE, text)
    assert caught.value.hint


def test_ambiguous_names_are_refused_with_the_choices() -> None:
    """A name that two versions share needs its version."""
    with pytest.raises(UsageError, match="ambiguous") as caught:
        find(TREE, "spec.models[a]")
    assert caught.value.hint == "listed: a:v1, a:v2, b:1.0"


def test_steps_say_whether_they_were_chosen() -> None:
    """Brackets choose items, dots name fields."""
    assert parse_path("a[b].c") == [("a", False), ("b", True), ("c", False)]


def test_changes_leave_the_original_alone() -> None:
    """Trees are values: changing, inserting and removing give new ones."""
    tree = {"a": ({"b": 1},), "c": 2}
    assert changed(tree, ("a", 0, "b"), 3) == {"a": ({"b": 3},), "c": 2}
    assert changed(tree, ("x", "y"), 1)["x"] == {"y": 1}  # type: ignore[index, call-overload] # a mapping
    assert inserted(tree, ("a",), 0, "z") == {"a": ("z", {"b": 1}), "c": 2}
    assert removed(tree, ("a", 0)) == {"a": (), "c": 2}
    assert removed(tree, ("c",)) == {"a": ({"b": 1},)}
    assert found(tree, ("a", 1)) is None
    assert tree == {"a": ({"b": 1},), "c": 2}
    for path in (("z",), ("a", 5), ("c", "d")):
        with pytest.raises(UsageError):
            removed(tree, path)
