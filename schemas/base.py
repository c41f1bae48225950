"""The two bases of every type that crosses a boundary, and the grammar of their scalars.

One grammar for digests, names, sizes, durations, percentages and times serves every document, so that a person learns
it once and a signature can rely on it. Sizes are bytes, durations are seconds, times are timezone-aware UTC.
"""

from __future__ import annotations

import re
from datetime import UTC, datetime
from functools import lru_cache
from typing import TYPE_CHECKING, Annotated, Any, Final

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    JsonValue,
    PlainSerializer,
    StringConstraints,
    ValidationInfo,
    WithJsonSchema,
)
from pydantic.alias_generators import to_camel

if TYPE_CHECKING:
    from collections.abc import Callable

API_VERSION: Final = "reconcile/v1alpha1"

WRITTEN: Final = {"written": True}
"""Validation context of documents that were written outside: there, numbers with a unit are text."""

MAX_INTEGER: Final = 2**53 - 1
"""Largest integer in any document: every JSON reader, whatever its language, keeps it exactly (RFC 8259, section 6)."""


class Frozen(BaseModel):
    """An immutable value with camelCase names on the wire, strict types and no unknown fields.

    Building is deferred to the first use of a class, and defaults are made with `model_construct`, which needs no
    building: importing the vocabulary must not cost every command a tenth of a second.
    """

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        strict=True,
        alias_generator=to_camel,
        populate_by_name=True,
        ser_json_inf_nan="strings",
        defer_build=True,
    )

    def to_json(self) -> str:
        """The canonical text of this value: wire names, no absent fields, one line.

        Fields come in declaration order, so equal values give equal text: digests may be taken over it.
        """
        return self.model_dump_json(by_alias=True, exclude_none=True)


class Document(Frozen):
    """A `Frozen` that stands at the top of a file: it begins with `apiVersion` and `kind`."""


# --- text ---------------------------------------------------------------------------------------------------------

Name = Annotated[str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9-]{0,62}$")]
Version = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._+-]{0,63}$")]
Least = Annotated[str, StringConstraints(pattern=r"^([0-9]{1,6}(\.[0-9]{1,6}){0,3})?$")]
"""The least version that will do (`12.8`); empty where any will."""
ModelKey = Annotated[str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9-]{0,62}:[A-Za-z0-9][A-Za-z0-9._+-]{0,63}$")]
Digest = Annotated[str, StringConstraints(pattern=r"^blake3:[0-9a-f]{64}$")]
Sha256 = Annotated[str, StringConstraints(pattern=r"^sha256:[0-9a-f]{64}$")]
Address = Annotated[str, StringConstraints(pattern=r"^0x[0-9a-fA-F]{40}$")]
Label = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9]([A-Za-z0-9._/-]{0,61}[A-Za-z0-9])?$")]
ImageRef = Annotated[
    str,
    StringConstraints(
        pattern=r"^[a-z0-9]([a-z0-9.-]*[a-z0-9])?(:[0-9]{1,5})?(/[a-z0-9]+([._-]+[a-z0-9]+)*)+@sha256:[0-9a-f]{64}$",
        max_length=512,
    ),
]
# Lengths that go into the hundreds are told apart from the pattern: a counted repeat is unrolled when it is compiled,
# and `[^x]{0,4094}` takes 20 ms at the start of every command.
Url = Annotated[str, StringConstraints(pattern=r"^[a-z][a-z0-9+]{1,15}://[!-~]+$", max_length=2048)]
Text = Annotated[str, StringConstraints(max_length=4096)]

RelativePath = Annotated[
    str,
    StringConstraints(
        # Every segment starts with a letter or digit: no "..", no hidden file, no empty segment. None ends in a dot,
        # which some file systems drop. ASCII only: no two spellings of one name, no look-alikes, nothing invisible.
        pattern=r"^[A-Za-z0-9_]([A-Za-z0-9_.+-]*[A-Za-z0-9_+-])?(/[A-Za-z0-9_]([A-Za-z0-9_.+-]*[A-Za-z0-9_+-])?)*$",
        max_length=255,
    ),
]


def _lists(value: Any) -> Any:
    """Tuples as lists, all the way down: documents are read into tuples, and `JsonValue` knows lists only."""
    if isinstance(value, tuple | list):
        return [_lists(item) for item in value]
    return {key: _lists(item) for key, item in value.items()} if isinstance(value, dict) else value


Json = Annotated[JsonValue, BeforeValidator(_lists)]
"""Anything that JSON can say."""

Count = Annotated[int, Field(ge=0, le=MAX_INTEGER)]
Positive = Annotated[int, Field(ge=1, le=MAX_INTEGER)]


# --- sizes, durations, percentages, times -------------------------------------------------------------------------

_SIZE_WANTED: Final = 'a size like "512MiB"'
_DURATION_WANTED: Final = 'a duration like "30s" or "6h"'
_PERCENT_WANTED: Final = 'a percentage like "10%"'
_SIZE_UNITS: Final = {"B": 1, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30, "TiB": 2**40}
_DURATION_UNITS: Final = {"s": 1, "m": 60, "h": 3600, "d": 86400}
_SIZE_PATTERN: Final = r"^(0|[1-9][0-9]{0,15})(B|KiB|MiB|GiB|TiB)$"
_DURATION_PATTERN: Final = r"^(0|[1-9][0-9]{0,9})(s|m|h|d)$"
_PERCENT_PATTERN: Final = r"^(100|[1-9]?[0-9])%$"
_UNITS: Final[dict[str, dict[str, int]]] = {
    _SIZE_PATTERN: _SIZE_UNITS,
    _DURATION_PATTERN: _DURATION_UNITS,
    _PERCENT_PATTERN: {},
}
_TIME_PATTERN: Final = r"^[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}Z$"


def parse_size(value: Any) -> Any:
    """`"32GiB"` as bytes; an `int` passes unchanged (the value is already parsed).

    Raises:
        ValueError: the text does not follow the size grammar.
    """
    return _scaled(value, _SIZE_PATTERN, _SIZE_WANTED)


def measure(text: str) -> tuple[int, ...] | None:
    """What the ordering operators of selectors compare: a number, a size in bytes, or a dotted version.

    Returns:
        Its parts without trailing zeros, so that `550` equals `550.0`; None for any other text.
    """
    if re.fullmatch(_SIZE_PATTERN, text):
        return (parse_size(text),)
    if not re.fullmatch(r"[0-9]{1,19}(\.[0-9]{1,9}){0,5}", text):
        return None
    parts = [int(part) for part in text.split(".")]
    while len(parts) > 1 and parts[-1] == 0:
        parts.pop()
    return tuple(parts)


def format_size(size: int) -> str:
    """Bytes as the largest unit that keeps the value exact: the inverse of `parse_size`."""
    for unit in ("TiB", "GiB", "MiB", "KiB"):
        if size and size % _SIZE_UNITS[unit] == 0:
            return f"{size // _SIZE_UNITS[unit]}{unit}"
    return f"{size}B"


def parse_duration(value: Any) -> Any:
    """`"10m"` as seconds; an `int` passes unchanged.

    Raises:
        ValueError: the text does not follow the duration grammar.
    """
    return _scaled(value, _DURATION_PATTERN, _DURATION_WANTED)


def format_duration(seconds: int) -> str:
    """Seconds as the largest unit that keeps the value exact: the inverse of `parse_duration`."""
    for unit in ("d", "h", "m"):
        if seconds and seconds % _DURATION_UNITS[unit] == 0:
            return f"{seconds // _DURATION_UNITS[unit]}{unit}"
    return f"{seconds}s"


def parse_percent(value: Any) -> Any:
    """`"10%"` as 10; an `int` passes unchanged.

    Raises:
        ValueError: the text is not a whole percentage from 0% to 100%.
    """
    return _scaled(value, _PERCENT_PATTERN, _PERCENT_WANTED)


def parse_time(value: Any) -> Any:
    """`"2026-01-31T12:00:00Z"` as an aware UTC datetime; a datetime passes unchanged.

    Raises:
        ValueError: not RFC 3339 with whole seconds and a `Z`.
    """
    return _moment(value) if isinstance(value, str) else value


@lru_cache(maxsize=4096)
def _moment(value: str) -> datetime:
    """The documents of a fleet tell the same few times and sizes thousands of times over."""
    if not re.fullmatch(_TIME_PATTERN, value):
        raise ValueError('expected a time like "2026-01-31T12:00:00Z"')
    # A tenth of the time of `strptime`; `fromisoformat` takes an hour of 24 in some versions of Python only.
    year, month, day, hour, minute, second = (int(part) for part in re.findall("[0-9]+", value))
    return datetime(year, month, day, hour, minute, second, tzinfo=UTC)


def format_time(moment: datetime) -> str:
    """An aware datetime as RFC 3339 with `Z` and whole seconds."""
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _written(parse: Callable[[Any], Any], wanted: str) -> BeforeValidator:
    """A validator that refuses bare numbers in documents: whether 30 are seconds or minutes is for nobody to guess.

    Values that are parsed already, as defaults and our own code hold them, pass.
    """

    def validate(value: Any, info: ValidationInfo) -> Any:
        if info.context is WRITTEN and isinstance(value, int | float):
            raise ValueError(f"expected {wanted}, with its unit")
        return parse(value)

    return BeforeValidator(validate)


def _scaled(value: Any, pattern: str, wanted: str) -> Any:
    return _number(value, pattern, wanted) if isinstance(value, str) else value


@lru_cache(maxsize=4096)
def _number(value: str, pattern: str, wanted: str) -> int:
    match = re.fullmatch(pattern, value)
    if match is None:
        raise ValueError(f"expected {wanted}")
    units = _UNITS[pattern]
    number = int(match.group(1)) * (units[match.group(2)] if units else 1)
    if number > MAX_INTEGER:
        raise ValueError("larger than 2^53 - 1")
    return number


Size = Annotated[
    int,
    _written(parse_size, _SIZE_WANTED),
    Field(ge=0, le=MAX_INTEGER),
    PlainSerializer(format_size, return_type=str),
    WithJsonSchema({"type": "string", "pattern": _SIZE_PATTERN, "examples": ["512MiB", "32GiB"]}),
]
Duration = Annotated[
    int,
    _written(parse_duration, _DURATION_WANTED),
    Field(ge=0, le=MAX_INTEGER),
    PlainSerializer(format_duration, return_type=str),
    WithJsonSchema({"type": "string", "pattern": _DURATION_PATTERN, "examples": ["30s", "10m", "6h", "7d"]}),
]
Percent = Annotated[
    int,
    _written(parse_percent, _PERCENT_WANTED),
    Field(ge=0, le=100),
    PlainSerializer(lambda value: f"{value}%", return_type=str),
    WithJsonSchema({"type": "string", "pattern": _PERCENT_PATTERN, "examples": ["10%"]}),
]
Time = Annotated[
    datetime,
    BeforeValidator(parse_time),
    PlainSerializer(format_time, return_type=str),
    WithJsonSchema({"type": "string", "pattern": _TIME_PATTERN, "examples": ["2026-01-31T12:00:00Z"]}),
]


class FileRef(Frozen):
    """A file of the network's repository, bound by the digest of its exact bytes."""

    path: RelativePath
    """Path from the repository's root."""
    digest: Digest
    """BLAKE3 of the file's bytes."""
