"""Edits YAML documents for people: a change of one field is a change of one line, and every other byte stays.

New text is spliced into the old at the places that `desired_state.nodes` finds; what lies in between is never written
again, so comments, order, quotes, spacing and line ends are what their author made them. After each edit the new text
is read back, and must say exactly what was asked for, and nothing else.
"""

from __future__ import annotations

import difflib
from typing import TYPE_CHECKING, Any, NoReturn, TypeAlias

from desired_state.nodes import INDENT, Entry, Node, block, compose, inline, inline_field, is_inline, plain
from desired_state.paths import Steps, changed, dotted, found, inserted, removed
from desired_state.tree import SNAPSHOT_LIMIT, parse
from schemas.errors import ConfigError
from schemas.refusals import MalformedDocument

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from desired_state.tree import Tree

Splice: TypeAlias = "tuple[int, int, str]"
"""Start and end of what goes, and what comes."""


class Document:
    """A YAML document that is being edited.

    Args:
        text: what it is now.
        file: its name, for messages.

    Raises:
        MalformedDocument, LimitExceeded: it is not a document that we would read.
    """

    def __init__(self, text: str, *, file: str) -> None:
        self._text = text
        self._file = file
        self._tree, _ = parse(text.encode(), file=file, limit=SNAPSHOT_LIMIT)

    @property
    def text(self) -> str:
        """The document as it stands now."""
        return self._text

    @property
    def tree(self) -> Tree:
        """What it says now."""
        return self._tree

    def get(self, path: Steps) -> Tree:
        """The value at a path; None where there is none."""
        return found(self._tree, path)

    def set(self, path: Steps, value: Any) -> None:
        """Change one value, or add it with whatever mappings are missing above it; errors as `set_all`."""
        self.set_all({path: value})

    def set_all(self, changes: Mapping[Steps, Any]) -> None:
        """Change several values that lie apart from each other, with one reading of the document.

        Args:
            changes: new values by path.

        Raises:
            ConfigError: a path leads through something that is no mapping, or the layout is beyond us.
        """
        expected = self._tree
        editor = _Editor(self._text, self._file)
        splices: list[Splice] = []
        for path, raw in changes.items():
            value = plain(raw)
            expected = changed(expected, path, value)
            splices += editor.set(path, value)
        self._take(editor.apply(splices), expected)

    def insert(self, path: Steps, value: Any, index: int | None = None) -> None:
        """Add an item to a list, at the end unless told where; the list is made if there is none.

        Raises:
            ConfigError: there is something else than a list, or the layout is beyond us.
        """
        items = self.get(path)
        if not items:
            self.set(path, (value,))
            return
        if not isinstance(items, tuple):
            raise ConfigError(f"{self._file}: {dotted(path)} is not a list")
        place = len(items) if index is None else index
        editor = _Editor(self._text, self._file)
        splices = editor.insert(path, plain(value), place)
        self._take(editor.apply(splices), inserted(self._tree, path, place, plain(value)))

    def remove(self, path: Steps) -> None:
        """Remove a field or an item, with the comment that stands directly above it.

        Raises:
            UsageError: it is not there.
            ConfigError: the layout is beyond us.
        """
        expected = removed(self._tree, path)
        parent = found(expected, path[:-1])
        if not parent and len(path) > 1:  # it was the last one: what is left is an empty list or mapping
            self.set(path[:-1], parent)
            return
        editor = _Editor(self._text, self._file)
        self._take(editor.apply(editor.remove(path)), expected)

    def _take(self, text: str, expected: Tree) -> None:
        """Accept an edit that says what was asked for, and nothing else."""
        try:
            tree, _ = parse(text.encode(), file=self._file, limit=SNAPSHOT_LIMIT)
        except MalformedDocument as error:
            raise _beyond(self._file) from error
        if tree != expected:
            raise _beyond(self._file)
        self._text, self._tree = text, tree


def render(value: Any) -> str:
    """A new document, in the style in which edits are made."""
    return "".join(f"{line}\n" for line in block(plain(value)))


def unified(before: str, after: str, *, file: str) -> list[str]:
    """The difference of two texts as people read it, without line ends; empty if there is none."""
    lines = difflib.unified_diff(before.splitlines(), after.splitlines(), f"a/{file}", f"b/{file}", lineterm="")
    return list(lines)


def _beyond(file: str) -> ConfigError:
    return ConfigError(
        f"{file} is laid out in a way that cannot be edited safely; nothing was written",
        hint="edit this place by hand, then run `reconcile snapshot validate`",
    )


class _Editor:
    """One reading of a document: turns changes into splices of its text."""

    def __init__(self, text: str, file: str) -> None:
        self._text = text
        self._file = file
        self._newline = "\r\n" if "\r\n" in text else "\n"
        try:
            self._root = compose(text)
        except ValueError as error:
            raise _beyond(file) from error

    def apply(self, splices: Iterable[Splice]) -> str:
        """The text with all splices done, from the end backwards so that the earlier ones stay where they are."""
        text = self._text
        ordered = sorted(splices, key=lambda splice: splice[:2])  # stable: at the same place, the first comes first
        for start, end, new in ordered[::-1]:
            text = text[:start] + new.replace("\n", self._newline) + text[end:]
        return text

    # --- changes

    def set(self, path: Steps, value: Tree) -> list[Splice]:
        """Splices that make the value at a path another."""
        trail = self._walk(path)
        depth = len(trail)
        flow = any(not entry.value.block for entry in trail[:-1]) or not self._root.block
        if depth == len(path):
            entry = trail[-1]
            return self._set_field(entry, value, flow=flow) if entry.name else [self._set_item(entry, value, flow=flow)]
        name = path[depth]
        parent = trail[-1].value if trail else self._root
        if not isinstance(name, str) or (parent.kind != "mapping" and not parent.empty):
            raise ConfigError(f"{self._file}: {dotted(path[: depth + 1])} does not exist")
        for step in reversed(path[depth + 1 :]):
            value = {str(step): value}
        if parent.kind == "mapping" and parent.entries:
            return [self._add_field(parent, name, value)]
        return self._set_field(trail[-1], {name: value}, flow=flow)

    def insert(self, path: Steps, value: Tree, index: int) -> list[Splice]:
        """Splices that add an item to a list that is not empty."""
        node = self._node(path)
        entries = node.entries
        if not node.block:
            if index < len(entries):
                return [(entries[index].start, entries[index].start, f"{inline(value)}, ")]
            return [(entries[-1].end, entries[-1].end, f", {inline(value)}")]
        lines = self._item(value, node.column)
        if index < len(entries):
            head = self._head(node, entries[index])
            return [(head, head, "\n".join(lines).lstrip() + "\n" + " " * node.column)]
        if len(entries) > 1 and self._apart(*entries[-2:]):
            lines.insert(0, "")
        end = self._line_end(entries[-1].end)
        return [(end, end, "".join(f"\n{line}" for line in lines))]

    def remove(self, path: Steps) -> list[Splice]:
        """Splices that remove an entry which is not the only one."""
        parent, step = self._node(path[:-1]), path[-1]
        entries = parent.entries
        position = step if isinstance(step, int) else [entry.name for entry in entries].index(step)
        entry = entries[position]
        following = self._head(parent, entries[position + 1]) if position + 1 < len(entries) else None
        if not parent.block:
            return [(entry.start, following, "")] if following else [(entries[position - 1].end, entry.end, "")]
        head = self._head(parent, entry)
        start = self._line_start(head)
        if self._text[start:head].strip():
            # The first field of an item, on the line of its dash: the next one takes its place.
            return [(head, following, "")] if following else self._refuse()
        if position:
            start = self._with_comment(start)
        end = self._line_end(entry.end)
        if start and self._is_blank(start - 1) and (end == len(self._text) or self._is_blank(end + len(self._newline))):
            start = self._line_start(start - 1)  # of two blank lines around what goes, one is enough
        # The line break goes too: the one behind, or at the end of the file the one before.
        return [(start, end + len(self._newline), "")] if end < len(self._text) else [(max(0, start - 1), end, "")]

    def _set_item(self, entry: Entry, value: Tree, *, flow: bool) -> Splice:
        """Another value for an item of a list."""
        node = entry.value
        if flow or is_inline(value):
            return (node.start, node.end, inline(value, quote=node.style if node.style in ("'", '"') else ""))
        return (node.start, node.end, ("\n" + " " * node.column).join(block(value)))

    def _set_field(self, entry: Entry, value: Tree, *, flow: bool) -> list[Splice]:
        """Another value for a key."""
        node = entry.value
        if not (flow or is_inline(value)):
            below = "".join(f"\n{line}" for line in self._below(value, entry.column))
            if node.block:
                return [(self._line_end(entry.colon), self._line_end(node.end), below)]
            after = self._line_end(node.end)
            return [(entry.colon, node.end, ""), (after, after, below)]
        if node.block:
            return [(entry.colon, node.end, f" {inline(value)}{self._comment(entry.colon)}")]
        if node.void:
            return [(entry.colon, entry.colon, f" {inline(value)}")]
        return [(node.start, node.end, inline(value, quote=node.style if node.style in ("'", '"') else ""))]

    def _add_field(self, node: Node, name: str, value: Tree) -> Splice:
        last = node.entries[-1]
        if not node.block:
            return (last.end, last.end, f", {inline_field(name, value)}")
        end = self._line_end(last.end)
        lines = [" " * last.column + (inline_field(name, value) if is_inline(value) else f"{inline(name)}:")]
        if not is_inline(value):
            lines += self._below(value, last.column)
        return (end, end, "".join(f"\n{line}" for line in lines))

    def _item(self, value: Tree, column: int) -> list[str]:
        """The lines of a list's item, its dash in a column."""
        indent = " " * column
        return [f"{indent}{'  ' if number else '- '}{line}" for number, line in enumerate(block(value))]

    def _below(self, value: Tree, column: int) -> list[str]:
        """The lines of a block below its key, which stands in a column."""
        if isinstance(value, tuple):
            offset = column + self._list_offset()
            return [line for item in value for line in self._item(item, offset)]
        return [" " * (column + INDENT) + line for line in block(value)]

    # --- the document's own layout

    def _walk(self, path: Steps) -> list[Entry]:
        """The entries along a path, as far as it goes."""
        trail: list[Entry] = []
        node = self._root
        for step in path:
            if isinstance(step, int):
                hits = node.entries[step : step + 1] if node.kind == "sequence" else ()
            else:
                hits = tuple(entry for entry in node.entries if node.kind == "mapping" and entry.name == step)
            if not hits:
                break
            trail.append(hits[0])
            node = hits[0].value
        return trail

    def _node(self, path: Steps) -> Node:
        trail = self._walk(path)
        if len(trail) != len(path):
            self._refuse()
        return trail[-1].value if trail else self._root

    def _head(self, parent: Node, entry: Entry) -> int:
        """Where an entry begins: at its key, or at its dash."""
        if not parent.block or parent.kind == "mapping":
            return entry.start
        head = self._line_start(entry.start) + parent.column
        return head if self._text[head] == "-" else self._refuse()

    def _comment(self, index: int) -> str:
        """The comment on the rest of a line, with the blanks before it."""
        rest = self._text[index : self._line_end(index)]
        return rest.rstrip() if rest.strip().startswith("#") else ""

    def _with_comment(self, start: int) -> int:
        """The start of a line, or of the comment directly above it at the same indentation."""
        line = self._text[start : self._line_end(start)]
        indent = line[: len(line) - len(line.lstrip())]
        while start:
            above = self._line_start(start - 1)
            if not self._text[above:start].startswith(f"{indent}#"):
                break
            start = above
        return start

    def _apart(self, one: Entry, other: Entry) -> bool:
        """Whether a blank line stands between two items."""
        between = self._text[self._line_end(one.end) : other.start].splitlines()
        return any(not line.strip() for line in between[1:-1])

    def _list_offset(self) -> int:
        """How far lists stand inside their key here: as the first one does."""
        waiting = [self._root]
        while waiting:
            entries = waiting.pop().entries
            for entry in entries:
                if entry.name and entry.value.kind == "sequence" and entry.value.block:
                    return entry.value.column - entry.column
            waiting.extend(entry.value for entry in reversed(entries))
        return INDENT

    def _is_blank(self, index: int) -> bool:
        """Whether nothing stands on the line of a place."""
        return not self._text[self._line_start(index) : self._line_end(index)].strip()

    def _line_start(self, index: int) -> int:
        return self._text.rfind("\n", 0, index) + 1

    def _line_end(self, index: int) -> int:
        end = self._text.find(self._newline, index)
        return len(self._text) if end < 0 else end

    def _refuse(self) -> NoReturn:
        raise _beyond(self._file)
