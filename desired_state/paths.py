"""Paths into documents, as people write them: `spec.models[mistral:v1].state`. Pure.

A step is a field's name, in double quotes where it holds a dot; `[...]` chooses an item of a list by its number, or by
what it is called: a model by `name:version` (or by its name alone where only one version is listed), everything else by
its name, its digest, or its own text.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final, TypeAlias

from desired_state.tree import dotted
from schemas.errors import UsageError

if TYPE_CHECKING:
    from desired_state.tree import Tree

__all__ = ["Steps", "changed", "dotted", "find", "found", "inserted", "parse_path", "removed", "select"]

Steps: TypeAlias = "tuple[str | int, ...]"
"""Keys and indices from the root."""

_STEP: Final = re.compile(r'"([^"]+)"|([^.\[\]"]+)')
_CHOICE: Final = re.compile(r"\[([^\[\]]+)\]")
_HINT: Final = "a path looks like spec.policy.gc.grace, or spec.models[mistral:v1].state"


def parse_path(text: str) -> list[tuple[str, bool]]:
    """A path's steps, each with whether it stood in brackets.

    Raises:
        UsageError: not a path.
    """
    steps: list[tuple[str, bool]] = []
    position = 0
    while position < len(text):
        match = _CHOICE.match(text, position) if steps else None
        if match is not None:
            steps.append((match.group(1).strip("\"'"), True))
        else:
            if steps:
                position += text[position] == "."
            match = _STEP.match(text, position)
            if match is None or (steps and text[position - 1] != "."):
                position = -1
                break
            steps.append((match.group(1) or match.group(2), False))
        position = match.end()
    if position != len(text) or not steps:
        raise UsageError(f"{text!r} is not a path", hint=_HINT)
    return steps


def find(tree: Tree, text: str) -> Steps:
    """A path in a document. Fields at its end need not exist yet; items that are chosen must.

    Raises:
        UsageError: not a path, or no such item.
    """
    path: list[str | int] = []
    node: Tree = tree
    for name, chosen in parse_path(text):
        step: str | int = name
        if chosen:
            if not isinstance(node, tuple):
                raise UsageError(f"{dotted(tuple(path))} is not a list, so [{name}] chooses nothing", hint=_HINT)
            step = select(node, name, where=dotted(tuple(path)))
        elif isinstance(node, tuple):
            raise UsageError(f"{dotted(tuple(path))} is a list: choose an item with [...]", hint=_HINT)
        path.append(step)
        node = found(tree, tuple(path))
    return tuple(path)


def select(items: tuple[Tree, ...], name: str, *, where: str) -> int:
    """The index of a list's item by number or by what it is called.

    Raises:
        UsageError: there is none, or several.
    """
    if name.isdecimal() and int(name) < len(items):
        return int(name)
    hits = [index for index, item in enumerate(items) if name in _names(item)]
    if len(hits) == 1:
        return hits[0]
    known = ", ".join(_names(item)[0] for item in items if _names(item)) or "nothing"
    problem = "is ambiguous" if hits else "is not there"
    raise UsageError(f"{where}[{name}] {problem}", hint=f"listed: {known}")


def _names(item: Tree) -> tuple[str, ...]:
    if isinstance(item, str):
        return (item,)
    if not isinstance(item, dict):
        return ()
    name, version, digest = (item.get(key) for key in ("name", "version", "digest"))
    if isinstance(name, str) and isinstance(version, str):
        return (f"{name}:{version}", name)
    return tuple(text for text in (name, digest) if isinstance(text, str))


# --- trees, changed -----------------------------------------------------------------------------------------------


def found(tree: Tree, path: Steps) -> Tree:
    """The value at a path; None where there is none."""
    for step in path:
        if isinstance(tree, dict) and isinstance(step, str):
            tree = tree.get(step)
        elif isinstance(tree, tuple) and isinstance(step, int) and step < len(tree):
            tree = tree[step]
        else:
            return None
    return tree


def changed(tree: Tree, path: Steps, value: Tree) -> Tree:
    """A tree with another value at a path; mappings that are missing on the way are made."""
    if not path:
        return value
    step, rest = path[0], path[1:]
    if isinstance(step, int):
        items = tree if isinstance(tree, tuple) else ()
        return tuple(changed(item, rest, value) if number == step else item for number, item in enumerate(items))
    entries = tree if isinstance(tree, dict) else {}
    return {**entries, step: changed(entries.get(step), rest, value)}


def inserted(tree: Tree, path: Steps, index: int, value: Tree) -> Tree:
    """A tree with a further item in the list at a path."""
    items = found(tree, path)
    old = items if isinstance(items, tuple) else ()
    return changed(tree, path, (*old[:index], value, *old[index:]))


def removed(tree: Tree, path: Steps) -> Tree:
    """A tree without the entry at a path.

    Raises:
        UsageError: it is not there.
    """
    parent, step = found(tree, path[:-1]), path[-1]
    if isinstance(parent, dict) and step in parent:
        return changed(tree, path[:-1], {key: item for key, item in parent.items() if key != step})
    if isinstance(parent, tuple) and isinstance(step, int) and step < len(parent):
        return changed(tree, path[:-1], (*parent[:step], *parent[step + 1 :]))
    raise UsageError(f"{dotted(path)} is not there")
