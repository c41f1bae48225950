"""Bytes to trees: reading YAML and JSON within limits, before anything has a meaning.

YAML comes through libyaml's event stream and a resolver of our own, which is the YAML 1.2 core schema
(https://yaml.org/spec/1.2.2/#103-core-schema) and nothing else. What two readers could understand differently is
refused rather than decided: anchors, aliases, tags, duplicate keys, keys that are not text, several documents, byte
order marks, invisible control characters, numbers that JSON cannot carry. No object is ever constructed. The only
importer of PyYAML.
"""

from __future__ import annotations

import json
import math
import re
from typing import TYPE_CHECKING, Any, Final, NoReturn, TypeAlias

import yaml

from schemas.base import MAX_INTEGER
from schemas.errors import ConfigError
from schemas.refusals import LimitExceeded, MalformedDocument

if TYPE_CHECKING:
    from collections.abc import Callable

Tree: TypeAlias = "dict[str, Tree] | tuple[Tree, ...] | str | int | float | bool | None"
"""A document before it has a meaning. Sequences are tuples, because the models are strict and immutable."""

Path: TypeAlias = "tuple[str | int, ...]"
"""Where a node stands in a document: keys and indices from the root."""

# --- limits -------------------------------------------------------------------------------------------------------

DEFAULT_LIMIT: Final = 2**20
"""Bytes of a document without a limit of its own: far above what a person writes by hand."""
SNAPSHOT_LIMIT: Final = 2**24
"""Bytes of a snapshot: 10,000 models (`schemas.snapshot.MAX_MODELS`) at some 700 bytes, twice over."""
MANIFEST_LIMIT: Final = 2**23
"""Bytes of a manifest: 10,000 files (`schemas.manifest.MAX_FILES`) at some 300 bytes, twice over."""
PROBE_LIMIT: Final = 2**22
"""Bytes of a probe: hundreds of thousands of token ids, hours of validation on any machine."""
TRUST_LIMIT: Final = 2**18
"""Bytes of a trust document: three roles of 64 signers take 10 KiB; the rest is room for comments."""
SIGNATURE_LIMIT: Final = 2**14
"""Bytes of a signature file: it holds some 500, and anybody who can push may add one."""
TIMESTAMP_LIMIT: Final = 2**14
"""Bytes of a timestamp: it holds some 400."""

MAX_DEPTH: Final = 32
"""Levels of nesting: our deepest document has 9, `extensions` may hold some more; keeps recursion bounded."""
MAX_NODES: Final = 1_000_000
"""Keys and values: 10,000 models have 350,000; about 100 MB of memory at worst."""
MAX_SCALAR: Final = 2**16
"""Characters of one value: texts end at 4096, only `extensions` may hold longer ones."""
_MAX_DIGITS: Final = 40
"""Characters of a number: beyond every number that is accepted, short enough to convert in no time."""

_FORBIDDEN: Final = re.compile(
    # C0 without tab and line breaks, DEL and C1 (terminal escapes; NEL is a line break in YAML 1.1 only);
    "[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f"
    # line and paragraph separator (line breaks in YAML 1.1 only), byte order mark, non-characters;
    "\u2028\u2029\ufeff\ufffe\uffff"
    # bidirectional overrides: text that reads differently from what it is (CVE-2021-42574); lone surrogates.
    "\u202a-\u202e\u2066-\u2069\ud800-\udfff]"
)
_BYTE_ORDER_MARK: Final = "\ufeff"

# --- the YAML 1.2 core schema -------------------------------------------------------------------------------------

_NULL: Final = frozenset({"", "~", "null", "Null", "NULL"})
_BOOL: Final = {"true": True, "True": True, "TRUE": True, "false": False, "False": False, "FALSE": False}
_NUMERIC: Final = frozenset("+-.0123456789")
"""First characters of numbers."""
_NOT_FINITE: Final = re.compile(r"[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)")
_NUMBERS: Final[tuple[tuple[re.Pattern[str], Callable[[str], int | float]], ...]] = (
    (re.compile(r"[-+]?[0-9]+"), lambda text: _bounded(int(text))),
    (re.compile(r"0o[0-7]+"), lambda text: _bounded(int(text, 8))),
    (re.compile(r"0x[0-9a-fA-F]+"), lambda text: _bounded(int(text, 16))),
    (re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?"), lambda text: _finite(float(text))),
)


def resolve(text: str) -> str | int | float | bool | None:
    """The value of a plain scalar by the core schema.

    Raises:
        ValueError: a number that is not finite, or beyond 2^53 - 1.
    """
    if text in _NULL:
        return None
    if text[0] not in _NUMERIC:
        return _BOOL.get(text, text)
    if _NOT_FINITE.fullmatch(text):
        raise ValueError("a number must be finite")
    for pattern, convert in _NUMBERS:
        if pattern.fullmatch(text):
            if len(text) > _MAX_DIGITS:
                raise ValueError(f"a number has at most {_MAX_DIGITS} digits")
            return convert(text)
    return text


def _bounded(number: int) -> int:
    if abs(number) > MAX_INTEGER:
        raise ValueError("a whole number must lie within 2^53 - 1")
    return number


def _finite(number: float) -> float:
    if not math.isfinite(number):
        raise ValueError("a number must be finite")
    return number


# --- YAML ---------------------------------------------------------------------------------------------------------


class Positions:
    """Lines of a document's nodes. Found by a second reading, and only when an error needs them."""

    def __init__(self, content: bytes | None) -> None:
        self._content = content
        self._lines: dict[Path, int] | None = None

    def line(self, path: Path) -> int:
        """The line, from 1, of a node or of its nearest parent that exists; 0 where lines are not known (JSON)."""
        if self._content is None:
            return 0
        if self._lines is None:
            self._lines = {}
            _Reader(self._content, "", self._lines).read()
        while path and path not in self._lines:
            path = path[:-1]
        return self._lines.get(path, 1)


def parse(content: bytes, *, file: str, limit: int = DEFAULT_LIMIT) -> tuple[Tree, Positions]:
    """Read one YAML document.

    Args:
        content: the exact bytes.
        file: the file's name, for messages.
        limit: bytes.

    Returns:
        The tree and the lines of its nodes.

    Raises:
        MalformedDocument: not UTF-8, not YAML, or with something in it that is refused.
        LimitExceeded: too large, too deep, too many nodes, or a value too long.
        ConfigError: PyYAML was built without libyaml.
    """
    _check_text(content, file, limit)
    return _Reader(content, file, None).read(), Positions(content)


# Looked up once: they are compared with every event.
_SCALAR: Final = yaml.ScalarEvent
_MAPPING_END: Final = yaml.MappingEndEvent
_KEYS: Final = frozenset({yaml.ScalarEvent, yaml.AliasEvent})
"""What may stand where a key stands; an alias is then refused as one."""


class _Reader:
    """One pass over libyaml's events.

    Args:
        content: UTF-8 text, already checked.
        file: for messages.
        lines: filled with the line of every node, if given.
    """

    def __init__(self, content: bytes, file: str, lines: dict[Path, int] | None) -> None:
        # Typed as Any: PyYAML's stubs do not know that its events have marks, tags and anchors.
        self._next: Callable[[], Any] = _libyaml(content)
        self._file = file
        self._lines = lines
        self._path: list[str | int] = []
        self._nodes = 0

    def read(self) -> Tree:
        """The document's tree."""
        try:
            return self._document()
        except yaml.YAMLError as error:
            mark = getattr(error, "problem_mark", None)
            line = mark.line + 1 if mark is not None else 0
            problem = getattr(error, "problem", None) or getattr(error, "reason", None) or "cannot be read"
            raise MalformedDocument(
                f"is not YAML: {problem}", file=self._file, line=line, field=dotted(tuple(self._path))
            ) from error

    def _document(self) -> Tree:
        self._next()  # the stream's start
        start = self._next()
        if type(start) is yaml.StreamEndEvent:
            raise MalformedDocument("is empty", file=self._file, line=1)
        # `%YAML 1.1` would give other meanings to the same text; `%TAG` gives meaning to tags, which are refused.
        if start.tags or start.version not in {None, (1, 2)}:
            raise self._refuse(start, "directives other than %YAML 1.2 are refused")
        tree = self._node(self._next())
        self._next()  # the document's end
        end = self._next()
        if type(end) is not yaml.StreamEndEvent:
            raise self._refuse(end, "a file holds one document, and a second one begins here")
        if tree is None:
            raise MalformedDocument("is empty", file=self._file, line=1)
        return tree

    def _node(self, event: Any) -> Tree:
        self._nodes += 1
        if self._nodes > MAX_NODES:
            raise self._limit(event, f"has more than {MAX_NODES} nodes")
        if self._lines is not None:
            self._lines.setdefault(tuple(self._path), event.start_mark.line + 1)
        kind = type(event)
        if kind is _SCALAR and event.anchor is None and event.tag is None:  # nearly all of them
            return self._scalar(event)
        if kind is yaml.AliasEvent:
            raise self._refuse(event, f"the alias *{event.anchor} is refused: write the value out")
        if event.anchor is not None:
            raise self._refuse(event, f"the anchor &{event.anchor} is refused: write the value out where it is needed")
        if event.tag is not None:
            raise self._refuse(event, f"the tag {event.tag} is refused")
        if len(self._path) >= MAX_DEPTH:
            raise self._limit(event, f"is nested deeper than {MAX_DEPTH} levels")
        return self._mapping() if kind is yaml.MappingStartEvent else self._sequence()

    def _scalar(self, event: Any) -> Tree:
        text: str = event.value
        if len(text) > MAX_SCALAR:
            raise self._limit(event, f"a value has more than {MAX_SCALAR} characters")
        if event.implicit[0]:  # plain: neither quoted nor a block
            try:
                return resolve(text)
            except ValueError as error:
                raise self._refuse(event, str(error)) from error
        # Only an escape can hide what the raw text was searched for already.
        hidden = _forbidden(text) if event.style == '"' else ""
        if hidden:
            raise self._refuse(event, hidden)
        return text

    def _mapping(self) -> dict[str, Tree]:
        found: dict[str, Tree] = {}
        next_event, path = self._next, self._path
        while type(event := next_event()) is not _MAPPING_END:
            key = self._key(event)
            if key in found:
                raise self._refuse(event, f"the key {key!r} stands twice")
            path.append(key)
            if self._lines is not None:  # the line of a field is the line of its key: that is where people look
                self._lines[tuple(path)] = event.start_mark.line + 1
            found[key] = self._node(next_event())
            path.pop()
        return found

    def _key(self, event: Any) -> str:
        if type(event) not in _KEYS:
            raise self._refuse(event, "a key must be text")
        key = self._node(event)
        if not isinstance(key, str):
            raise self._refuse(event, f"a key must be text: put {event.value!r} in quotes")
        return key

    def _sequence(self) -> tuple[Tree, ...]:
        found: list[Tree] = []
        while type(event := self._next()) is not yaml.SequenceEndEvent:
            self._path.append(len(found))
            found.append(self._node(event))
            self._path.pop()
        return tuple(found)

    def _refuse(self, event: Any, message: str) -> MalformedDocument:
        return MalformedDocument(message, **self._where(event))

    def _limit(self, event: Any, message: str) -> LimitExceeded:
        return LimitExceeded(message, **self._where(event))

    def _where(self, event: Any) -> dict[str, Any]:
        return {"file": self._file, "line": event.start_mark.line + 1, "field": dotted(tuple(self._path))}


def _libyaml(content: bytes) -> Callable[[], Any]:
    """The next event of libyaml's parser, on each call."""
    try:
        from yaml._yaml import CParser  # noqa: PLC0415 - absent where PyYAML was built without libyaml
    except ImportError as error:
        raise ConfigError(
            "this Python's PyYAML was built without libyaml, by which documents are read",
            hint="install PyYAML from its wheel, or with the libyaml headers present",
        ) from error
    parser: Any = CParser(content)
    next_event: Callable[[], Any] = parser.get_event
    return next_event


# --- JSON ---------------------------------------------------------------------------------------------------------


_JSON_MARKS: Final = re.compile(r'"(?:[^"\\]|\\.)*"?|[\[\]{}]', re.DOTALL)
"""Strings, which hide brackets, and brackets."""


def parse_json(content: bytes, *, file: str, limit: int = DEFAULT_LIMIT) -> tuple[Tree, Positions]:
    """Read one JSON document (RFC 8259) under the same rules as YAML.

    Raises:
        MalformedDocument: not UTF-8, not JSON, a duplicate key, a number out of bounds.
        LimitExceeded: too large, too deep, too many nodes, or a value too long.
    """
    text = _check_text(content, file, limit)
    _check_depth(text, file)
    try:
        raw = json.loads(
            text,
            object_pairs_hook=_unique,
            parse_int=_json_integer,
            parse_float=lambda digits: _finite(float(digits)),
            parse_constant=_json_constant,
        )
    except json.JSONDecodeError as error:
        raise MalformedDocument(f"is not JSON: {error.msg}", file=file, line=error.lineno) from error
    except ValueError as error:
        raise MalformedDocument(str(error), file=file) from error
    return _JsonTree(file).convert(raw, ()), Positions(None)


def _check_depth(text: str, file: str) -> None:
    """Bound the nesting before the JSON reader sees it: it recurses in C, where too deep may mean a crash."""
    depth = 0
    for mark in _JSON_MARKS.finditer(text):
        depth += {"[": 1, "{": 1, "]": -1, "}": -1}.get(mark.group(), 0)
        if depth > MAX_DEPTH:
            line = text.count("\n", 0, mark.start()) + 1
            raise LimitExceeded(f"is nested deeper than {MAX_DEPTH} levels", file=file, line=line)


def _unique(items: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in items:
        if key in found:
            raise ValueError(f"the key {key!r} stands twice")
        found[key] = value
    return found


def _json_integer(digits: str) -> int:
    # By length first: Python's conversion is quadratic.
    return _bounded(int(digits) if len(digits) <= _MAX_DIGITS else MAX_INTEGER + 1)


def _json_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a number of JSON")


class _JsonTree:
    """Brings what the JSON reader made into our form, and applies the limits that it does not know."""

    def __init__(self, file: str) -> None:
        self._file = file
        self._nodes = 0

    def convert(self, value: Any, path: Path) -> Tree:
        """A value of the JSON reader as a tree."""
        self._nodes += 1
        if self._nodes > MAX_NODES:
            raise self._limit(f"has more than {MAX_NODES} nodes", path)
        if isinstance(value, dict):
            return {self._text(key, path): self.convert(item, (*path, key)) for key, item in value.items()}
        if isinstance(value, list):
            return tuple(self.convert(item, (*path, index)) for index, item in enumerate(value))
        if isinstance(value, str):
            return self._text(value, path)
        scalar: Tree = value
        return scalar

    def _text(self, text: str, path: Path) -> str:
        if len(text) > MAX_SCALAR:
            raise self._limit(f"a value has more than {MAX_SCALAR} characters", path)
        hidden = _forbidden(text)
        if hidden:
            raise MalformedDocument(hidden, file=self._file, field=dotted(path))
        return text

    def _limit(self, message: str, path: Path) -> LimitExceeded:
        return LimitExceeded(message, file=self._file, field=dotted(path))


# --- text ---------------------------------------------------------------------------------------------------------


def _check_text(content: bytes, file: str, limit: int) -> str:
    if len(content) > limit:
        raise LimitExceeded(f"has {len(content)} bytes, and at most {limit} are read", file=file)
    try:
        text = content.decode()
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise MalformedDocument("is not UTF-8 text", file=file, line=line) from error
    found = _FORBIDDEN.search(text)
    if found is not None:
        line = text.count("\n", 0, found.start()) + 1
        raise MalformedDocument(_forbidden(found.group()), file=file, line=line)
    return text


def _forbidden(text: str) -> str:
    """What is refused in a text, or ""."""
    found = _FORBIDDEN.search(text)
    if found is None:
        return ""
    if found.group() == _BYTE_ORDER_MARK:
        return "a byte order mark is refused"
    return f"the control character U+{ord(found.group()):04X} is refused"


def dotted(path: Path) -> str:
    """A path as people write it: `spec.models[3].name`."""
    text = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in path)
    return text.removeprefix(".")
