"""Edits of documents for people: what was asked for changes, and nothing else."""

from __future__ import annotations

import difflib

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from desired_state.authoring import Document, render, unified
from desired_state.paths import find
from desired_state.tree import parse
from schemas.errors import ConfigError, UsageError
from schemas.refusals import MalformedDocument

TEXT = """\
# The network's desired state.
apiVersion: reconcile/v1alpha1
kind:   Snapshot      # aligned by hand
metadata: {network: testnet, sequence: 1,   trustVersion: 1}
spec:
  # Approved models.
  models:
    # the first
    - name: mistral
      version: 'v1'     # single quotes
      state: active
      sources: ["https://a.example/", 'https://b.example/']

    # the second
    - name: tiny
      version: v2
      state: inactive   # resting
      requires:
        gpuMemory: 16GiB

  # Which node runs what.
  assignments:
  - runtime: main
    serve: [ "mistral:v1" ]
  withdrawn: []
  retry:
  policy:
    # the owner asked for this
    gc:
      grace: 24h
# The end.
"""


def edited(text: str = TEXT) -> Document:
    """A document to edit."""
    return Document(text, file="snapshot.yaml")


def changes(before: str, after: str) -> list[str]:
    """Removed and added lines."""
    lines = difflib.ndiff(before.splitlines(), after.splitlines())
    return [line for line in lines if line.startswith(("+", "-"))]


def set_at(path: str, value: object, text: str = TEXT) -> list[str]:
    """The lines that setting a value changes."""
    document = edited(text)
    document.set(find(document.tree, path), value)
    return changes(text, document.text)


@pytest.mark.parametrize(
    ("path", "value", "before", "after"),
    [
        ("spec.models[mistral:v1].state", "archived", "      state: active", "      state: archived"),
        ("spec.models[tiny].state", "active", "      state: inactive   # resting", "      state: active   # resting"),
        (
            "spec.models[0].version",
            "v3",
            "      version: 'v1'     # single quotes",
            "      version: 'v3'     # single quotes",
        ),
        ("kind", "Other", "kind:   Snapshot      # aligned by hand", "kind:   Other      # aligned by hand"),
        (
            "metadata.sequence",
            2,
            "metadata: {network: testnet, sequence: 1,   trustVersion: 1}",
            "metadata: {network: testnet, sequence: 2,   trustVersion: 1}",
        ),
        (
            "metadata.issuedAt",
            "2026-01-01T00:00:00Z",
            "metadata: {network: testnet, sequence: 1,   trustVersion: 1}",
            'metadata: {network: testnet, sequence: 1,   trustVersion: 1, issuedAt: "2026-01-01T00:00:00Z"}',
        ),
        (
            "spec.assignments[0].serve[0]",
            "tiny:v2",
            '    serve: [ "mistral:v1" ]',
            '    serve: [ "tiny:v2" ]',
        ),
        ("spec.withdrawn", ("x",), "  withdrawn: []", "  withdrawn: [x]"),
        ("spec.retry", ("x", "1.0"), "  retry:", '  retry: [x, "1.0"]'),
        ("spec.policy.gc.grace", "48h", "      grace: 24h", "      grace: 48h"),
    ],
)
def test_one_field_is_one_line(path: str, value: object, before: str, after: str) -> None:
    """A change of one field is a one-line diff, whatever the style around it."""
    assert set_at(path, value) == [f"- {before}", f"+ {after}"]


def test_missing_parents_are_made() -> None:
    """A field whose parents do not exist is added with them, below its neighbours and above the closing comment."""
    assert set_at("spec.policy.jobs.maxTokens", 10) == ["+     jobs: {maxTokens: 10}"]
    document = edited()
    document.set(("spec", "policy", "jobs", "maxTokens"), 10)
    assert document.text.endswith("      grace: 24h\n    jobs: {maxTokens: 10}\n# The end.\n")


def test_item_is_appended_before_the_next_section() -> None:
    """A new item goes right behind the last one, with the same blank line between, not behind the next comment."""
    document = edited()
    document.insert(("spec", "models"), {"name": "new", "version": "0.32", "sources": ["s3://b"]})
    assert (
        "        gpuMemory: 16GiB\n"
        "\n"
        "    - name: new\n"
        '      version: "0.32"\n'
        '      sources: ["s3://b"]\n'
        "\n"
        "  # Which node runs what.\n"
    ) in document.text


def test_item_is_inserted_first() -> None:
    """An item can be put before the others; the comment that stands above the list stays on top."""
    document = edited()
    document.insert(("spec", "models"), {"name": "new", "version": "v1"}, 0)
    assert "    # the first\n    - name: new\n      version: v1\n    - name: mistral\n" in document.text


ITEM = '- digest: "blake3:00"'


@pytest.mark.parametrize(
    ("path", "after"),
    [
        ("spec.withdrawn", f"  withdrawn:\n    {ITEM}\n      reason: bad\n  retry:\n"),
        ("spec.retry", f"  retry:\n    {ITEM}\n      reason: bad\n  policy:\n"),
        ("spec.added", f"      grace: 24h\n  added:\n    {ITEM}\n      reason: bad\n# The end.\n"),
    ],
)
def test_first_item_of_a_list(path: str, after: str) -> None:
    """An empty, absent or missing list takes its first item."""
    document = edited()
    document.insert(find(document.tree, path), {"digest": "blake3:00", "reason": "bad"})
    assert after in document.text


def test_lists_are_indented_as_the_others_are() -> None:
    """Where the document's lists stand below their key without indentation, a new one does too."""
    document = edited("a:\n- x: 1\nb: []\n")
    document.insert(("b",), {"z": 2})
    document.insert(("c",), {"z": 3})
    assert document.text == "a:\n- x: 1\nb:\n- z: 2\nc:\n- z: 3\n"


def test_removed_item_takes_its_comment() -> None:
    """An item goes with the comment directly above it; its neighbours and their comments stay."""
    document = edited()
    document.remove(find(document.tree, "spec.models[tiny]"))
    assert changes(TEXT, document.text) == [
        "-     # the second",
        "-     - name: tiny",
        "-       version: v2",
        "-       state: inactive   # resting",
        "-       requires:",
        "-         gpuMemory: 16GiB",
        "- ",
    ]


def test_removed_first_item_leaves_the_comment_of_the_list() -> None:
    """What stands above the first item may be about the whole list: it stays."""
    document = edited()
    document.remove(("spec", "models", 0))
    assert "    # the first\n" in document.text
    assert "mistral\n" not in document.text


@pytest.mark.parametrize(
    ("path", "gone"),
    [
        ("spec.models[0].name", ["-     - name: mistral", "-       version: 'v1'     # single quotes"]),
        ("spec.models[0].state", ["-       state: active"]),
        ("spec.assignments[0]", ["-   assignments:", "-   - runtime: main", '-     serve: [ "mistral:v1" ]']),
        ("spec.policy.gc.grace", ["-     gc:", "-       grace: 24h"]),
        ("spec.models[0].sources[0]", ["-       sources: [\"https://a.example/\", 'https://b.example/']"]),
    ],
)
def test_removal_of_fields_and_last_items(path: str, gone: list[str]) -> None:
    """Fields and items of every style can be removed; the last one leaves an empty list or mapping."""
    document = edited()
    document.remove(find(document.tree, path))
    assert [line for line in changes(TEXT, document.text) if line.startswith("-")] == gone


def test_remove_what_is_not_there() -> None:
    """Removing nothing is an error of whoever asked."""
    with pytest.raises(UsageError):
        edited().remove(("spec", "nothing"))


def test_line_ends_are_kept() -> None:
    """A document with carriage returns keeps them, in new lines too."""
    document = edited(TEXT.replace("\n", "\r\n"))
    document.set(("spec", "policy", "jobs", "maxTokens"), 10)
    document.insert(("spec", "models"), {"name": "new"})
    assert "\n" not in document.text.replace("\r\n", "")


def test_blocks_of_text_are_stepped_over() -> None:
    """A block scalar ends where its own text does; what is added stands behind it."""
    text = "a:\n  note: |\n    one\n    two\n\n# about b\nb: 1\n"
    document = edited(text)
    document.set(("a", "more"), "x")
    assert document.text == "a:\n  note: |\n    one\n    two\n  more: x\n\n# about b\nb: 1\n"


def test_lists_of_lists_are_edited_too() -> None:
    """An item that begins on the line of an outer dash can be removed, and others put before it."""
    document = edited("- - a\n  - b\n- - c\n")
    document.insert((0,), "z", 0)
    document.remove((0, 1))
    assert document.text == "- - z\n  - b\n- - c\n"


def test_unsafe_layout_is_refused_and_nothing_changes() -> None:
    """Where the layout is beyond us, the error says so and the document stays as it was."""
    text = "a:\n  -\n    x: 1\n  - y: 2\n"
    document = edited(text)
    with pytest.raises(ConfigError, match="cannot be edited safely"):
        document.insert(("a",), "z", 0)
    assert document.text == text


def test_an_edit_that_would_say_something_else_is_refused() -> None:
    """The new text is read back: where the value would land in a comment, nothing is written."""
    text = "? a # see: docs\n:\nb: 1\n"
    document = edited(text)
    with pytest.raises(ConfigError, match="cannot be edited safely"):
        document.set(("a",), 5)
    assert document.text == text


def test_what_verification_would_refuse_is_refused() -> None:
    """Anchors, duplicate keys and the like are refused before anything is edited."""
    with pytest.raises(MalformedDocument, match="anchor"):
        edited("a: &x 1\nb: *x\n")


@pytest.mark.parametrize(
    "value", ["1.0", "0.32.0", "yes", "null", "", "2026-01-01", "blake3:00", "a: b", "#x", "30d", "9" * 20]
)
def test_text_stays_text(value: str) -> None:
    """A text that looks like something else is written so that YAML 1.2 and 1.1 readers both take it for text."""
    document = edited()
    document.set(("spec", "note"), value)
    assert document.get(("spec", "note")) == value
    assert yaml.safe_load(document.text)["spec"]["note"] == value


def test_several_changes_with_one_reading() -> None:
    """Changes that lie apart are made together, additions in the order in which they were given."""
    document = edited()
    document.set_all({("metadata", "sequence"): 9, ("metadata", "epoch"): 1, ("metadata", "previous"): "x"})
    assert "sequence: 9,   trustVersion: 1, epoch: 1, previous: x}" in document.text


def test_difference_of_nothing_is_empty() -> None:
    """An edit that changes nothing shows nothing."""
    assert unified(TEXT, TEXT, file="x") == []
    assert unified("a\n", "b\n", file="x")[-2:] == ["-a", "+b"]


# --- properties ---------------------------------------------------------------------------------------------------

_scalars = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**53) + 1, 2**53 - 1),
    st.text(st.characters(min_codepoint=32, max_codepoint=0x24F, exclude_characters="\x7f", exclude_categories=["Cc"])),
    st.sampled_from(["1.0", "yes", "~", "0x1F", "-", "a: b", "- a", "# c", "'", '"', "{", "[1", "a,b", " a", "a "]),
)
_keys = st.text("abcXYZ-", min_size=1, max_size=4).filter(lambda key: key[0] != "-")
_values = st.recursive(
    _scalars,
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(_keys, inner, max_size=4)),
    max_leaves=12,
)
_documents = st.dictionaries(_keys, _values, min_size=1, max_size=4)


def paths_of(tree: object, prefix: tuple[str | int, ...] = ()) -> list[tuple[str | int, ...]]:
    """Every path of a tree but the root's."""
    items = list(tree.items()) if isinstance(tree, dict) else list(enumerate(tree)) if isinstance(tree, tuple) else []
    return [found for key, item in items for found in [(*prefix, key), *paths_of(item, (*prefix, key))]]


@given(_documents)
@settings(max_examples=60, deadline=None)
def test_what_is_written_is_what_is_read(value: dict[str, object]) -> None:
    """Law: reading a rendered document gives back the value, by our reader and by a foreign one."""
    text = render(value)
    tree, _ = parse(text.encode(), file="x")
    assert _lists(tree) == value
    assert yaml.safe_load(text) == value


@given(_documents, _values, st.data())
@settings(max_examples=60, deadline=None)
def test_any_edit_says_what_was_asked_or_is_refused(value: dict[str, object], new: object, data: st.DataObject) -> None:
    """Law: an edit anywhere gives exactly the tree that was asked for, with every line before it untouched."""
    document = Document(render(value), file="x")
    before = document.text.splitlines()
    path = data.draw(st.sampled_from(paths_of(document.tree)))
    document.set(path, new)
    assert _lists(document.get(path)) == _lists(new)
    after = document.text.splitlines()
    key = next(index for index, line in enumerate(before) if line.startswith((f"{path[0]}:", f'"{path[0]}"')))
    assert after[:key] == before[:key]


@given(_documents, st.data())
@settings(max_examples=60, deadline=None)
def test_any_removal_leaves_the_rest(value: dict[str, object], data: st.DataObject) -> None:
    """Law: after a removal the entry is gone and every other one is as it was."""
    document = Document(render(value | {"last": 1}), file="x")
    path = data.draw(st.sampled_from(paths_of(document.tree)))
    size = len(paths_of(document.tree))
    gone = len(paths_of(document.get(path))) + 1
    document.remove(path)
    assert len(paths_of(document.tree)) == size - gone


def _lists(value: object) -> object:
    """A tree with lists for tuples."""
    if isinstance(value, dict):
        return {key: _lists(item) for key, item in value.items()}
    return [_lists(item) for item in value] if isinstance(value, tuple | list) else value
