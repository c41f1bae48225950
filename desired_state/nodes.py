"""Where the nodes of a YAML text stand, and how new ones are written. The one place that imports ruamel.yaml.

ruamel.yaml's composer knows the place of everything (libyaml's events know lines only), and its emitter writes what any
reader understands. It takes 0.13 s to import and a second for a thousand models: only what edits imports this module.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Literal

from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedMap, CommentedSeq
from ruamel.yaml.error import YAMLError
from ruamel.yaml.nodes import MappingNode, SequenceNode
from ruamel.yaml.scalarstring import DoubleQuotedScalarString, SingleQuotedScalarString

from desired_state.tree import resolve

if TYPE_CHECKING:
    from desired_state.tree import Tree

INDENT: Final = 2
"""Columns by which what belongs to a key stands inside it."""

_LEAF_WIDTH: Final = 160
"""Characters up to which a list or mapping of plain values stands on one line: a path with its digest takes 130."""
_NESTED_WIDTH: Final = 72
"""Characters up to which anything deeper stands on one line."""
_WIDTH: Final = 2**20
"""Never wrap: a long line is one change, a wrapped one is many."""
_OLD_BOOLEANS: Final = frozenset({"y", "n", "yes", "no", "on", "off"})
"""What readers of YAML 1.1 take for booleans (https://yaml.org/type/bool.html): quoted, for their sake."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One entry of a collection."""

    name: str
    """The key; empty for a list's item."""
    start: int
    """Where the key begins, or the item behind its dash."""
    column: int
    colon: int
    """Behind the colon of the key; `start` for an item."""
    value: Node

    @property
    def end(self) -> int:
        """Where the entry's own text ends: comments and blank lines after it are not its own."""
        return self.value.end


@dataclass(frozen=True, slots=True)
class Node:
    """A value in a text."""

    kind: Literal["scalar", "mapping", "sequence"]
    start: int
    end: int
    column: int
    """Of its first character; for a block list, of its dashes."""
    style: str
    """`flow` or `block` for collections; for scalars the quote or block indicator, empty when plain."""
    text: str
    """A scalar's text."""
    entries: tuple[Entry, ...] = ()

    @property
    def void(self) -> bool:
        """Whether there is nothing at all: `key:` and no value."""
        return self.kind == "scalar" and self.start == self.end

    @property
    def empty(self) -> bool:
        """Whether it says nothing: absent, null, or a collection without entries."""
        if self.kind == "scalar":
            return not self.style and resolve(self.text) is None
        return not self.entries

    @property
    def block(self) -> bool:
        """Whether it is a collection over several lines, by indentation."""
        return self.style == "block"


def compose(text: str) -> Node:
    """Find every node of a text.

    Raises:
        ValueError: ruamel.yaml cannot read it, or something stands where it cannot be placed.
    """
    try:
        root = YAML(typ="rt", pure=True).compose(text)
    except YAMLError as error:
        raise ValueError(str(error)) from error
    return _node(root, text, void_at=-1)


def _node(raw: Any, text: str, *, void_at: int) -> Node:
    """Translate a node of ruamel's.

    Args:
        raw: the node.
        text: the whole text.
        void_at: where an absent value is taken to stand, because ruamel puts it before whatever comes next.
    """
    start, end = raw.start_mark.index, raw.end_mark.index
    if isinstance(raw, MappingNode):
        entries = tuple(_field(key, value, text) for key, value in raw.value)
        return _collection("mapping", raw, entries)
    if isinstance(raw, SequenceNode):
        return _collection("sequence", raw, tuple(_item(item, text) for item in raw.value))
    style = raw.style or ""
    if start == end:
        if void_at < 0:
            raise ValueError("an item without a value")
        return Node("scalar", void_at, void_at, raw.start_mark.column, "", "")
    if style in ("|", ">"):
        end = start + len(text[start:end].rstrip())
    return Node("scalar", start, end, raw.start_mark.column, style, str(raw.value))


def _collection(kind: Literal["mapping", "sequence"], raw: Any, entries: tuple[Entry, ...]) -> Node:
    flow = bool(raw.flow_style)
    # A block's own mark lies behind the comments that follow it.
    end = raw.end_mark.index if flow else entries[-1].end
    return Node(kind, raw.start_mark.index, end, raw.start_mark.column, "flow" if flow else "block", "", entries)


def _field(key: Any, value: Any, text: str) -> Entry:
    colon = text.find(":", key.end_mark.index) + 1
    if not colon:
        raise ValueError("a key without a colon")
    return Entry(str(key.value), key.start_mark.index, key.start_mark.column, colon, _node(value, text, void_at=colon))


def _item(raw: Any, text: str) -> Entry:
    start = raw.start_mark.index
    return Entry("", start, raw.start_mark.column, start, _node(raw, text, void_at=-1))


# --- writing ------------------------------------------------------------------------------------------------------


def plain(value: Any) -> Tree:
    """A value in the form that reading gives: tuples for lists, nothing but text as keys."""
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return tuple(plain(item) for item in value)
    scalar: Tree = value
    return scalar


def block(value: Tree) -> list[str]:
    """A value on lines of its own, without indentation."""
    return _dump(_styled(value, top=True)).splitlines() if isinstance(value, dict | tuple) else [inline(value)]


def inline(value: Tree, *, quote: str = "") -> str:
    """A value on one line.

    Args:
        value: the value.
        quote: quotes that a text is to have; where absent, it has them when it needs them.
    """
    if isinstance(value, str) and quote:
        styled: Any = SingleQuotedScalarString(value) if quote == "'" else DoubleQuotedScalarString(value)
    else:
        styled = _styled(value, flow=True)
    return _dump(CommentedMap({"k": styled}))[3:].rstrip("\n")


def inline_field(name: str, value: Tree) -> str:
    """A field on one line, as it stands within `{...}` too."""
    return _dump(CommentedMap({_quoted(name): _styled(value, flow=True)})).rstrip("\n")


def is_inline(value: Tree) -> bool:
    """Whether a value is to stand on the line of its key."""
    if not isinstance(value, dict | tuple) or not value:
        return True
    items = list(value.values()) if isinstance(value, dict) else list(value)
    if isinstance(value, tuple) and any(isinstance(item, dict) and item for item in items):
        return False  # items that are edited, added and removed one by one
    flat = not any(isinstance(item, dict | tuple) and item for item in items)
    return len(inline(value)) <= (_LEAF_WIDTH if flat else _NESTED_WIDTH)


def _styled(value: Tree, *, flow: bool = False, top: bool = False) -> Any:
    """A value with the style in which it is to be written."""
    if isinstance(value, str):
        return _quoted(value)
    styled: CommentedMap | CommentedSeq
    if isinstance(value, dict):
        styled = CommentedMap({_quoted(key): _styled(item, flow=flow) for key, item in value.items()})
    elif isinstance(value, tuple):
        styled = CommentedSeq([_styled(item, flow=flow, top=isinstance(item, dict)) for item in value])
    else:
        return value
    if flow or (not top and is_inline(value)):
        styled.fa.set_flow_style()
    return styled


def _quoted(text: str) -> str:
    """A text in quotes wherever a reader, or a person, could take it for something else."""
    bare = (
        text
        and text.isascii()
        and (text[0].isalpha() or text[:-1].isdigit())
        and all(character.isalnum() or character in "._/+-" for character in text)
        and text.lower() not in _OLD_BOOLEANS
        and _means_text(text)
    )
    return text if bare else DoubleQuotedScalarString(text)


def _means_text(text: str) -> bool:
    """Whether a text without quotes is read as itself."""
    try:
        return resolve(text) == text
    except ValueError:  # a number beyond what is accepted
        return False


def _dump(value: Any) -> str:
    yaml = YAML(typ="rt", pure=True)
    yaml.width = _WIDTH
    yaml.indent(mapping=INDENT, sequence=2 * INDENT, offset=INDENT)
    # ruamel writes an absent value as nothing at all.
    yaml.representer.add_representer(type(None), _write_null)
    out = io.StringIO()
    yaml.dump(value, out)
    return out.getvalue()


def _write_null(representer: Any, _value: None) -> Any:
    return representer.represent_scalar("tag:yaml.org,2002:null", "null")
