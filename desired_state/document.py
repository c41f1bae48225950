"""Bytes to models: the only way in for every document that somebody else wrote.

What the bytes may look like is decided in `desired_state.tree`; here they get a meaning. Every refusal is a
`DocumentError` that names file, line and field.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, TypeVar, get_args

from pydantic import BaseModel, ValidationError

from desired_state.tree import (
    DEFAULT_LIMIT,
    MANIFEST_LIMIT,
    PROBE_LIMIT,
    SIGNATURE_LIMIT,
    SNAPSHOT_LIMIT,
    TIMESTAMP_LIMIT,
    TRUST_LIMIT,
    Positions,
    dotted,
    parse,
    parse_json,
)
from schemas.base import (
    API_VERSION,
    WRITTEN,
    Address,
    Digest,
    ImageRef,
    ModelKey,
    Name,
    Sha256,
    Url,
    Version,
)
from schemas.refusals import AgentTooOld, DocumentError, MalformedDocument

if TYPE_CHECKING:
    from collections.abc import Sequence

    from desired_state.tree import Path, Tree

__all__ = [
    "DEFAULT_LIMIT",
    "MANIFEST_LIMIT",
    "PROBE_LIMIT",
    "SIGNATURE_LIMIT",
    "SNAPSHOT_LIMIT",
    "TIMESTAMP_LIMIT",
    "TRUST_LIMIT",
    "Envelope",
    "check_agent",
    "envelope",
    "load",
    "load_json",
    "parse",
    "parse_json",
    "validate",
]

T = TypeVar("T", bound=BaseModel)


def load(
    content: bytes, model: type[T], *, file: str, limit: int = DEFAULT_LIMIT, agent_version: str | None = None
) -> T:
    """Read a YAML document as a model.

    Args:
        content: the exact bytes.
        model: what it must be.
        file: the file's name, for messages.
        limit: bytes.
        agent_version: version of this agent, to be held against `requires`; None skips that.

    Raises:
        MalformedDocument: not YAML 1.2 core, or something in it is refused; a field is unknown, missing or wrong.
        LimitExceeded: too large, too deep, too many nodes, or a value too long.
        AgentTooOld: the document is in a newer form, or asks for a newer agent.
    """
    tree, positions = parse(content, file=file, limit=limit)
    return validate(tree, positions, model, file=file, agent_version=agent_version)


def load_json(content: bytes, model: type[T], *, file: str, limit: int = SIGNATURE_LIMIT) -> T:
    """Read a JSON document as a model; arguments and errors as `load`."""
    tree, positions = parse_json(content, file=file, limit=limit)
    return validate(tree, positions, model, file=file)


def validate(tree: Tree, positions: Positions, model: type[T], *, file: str, agent_version: str | None = None) -> T:
    """A tree as a model: the second half of `load`, for callers that look at the envelope in between.

    Raises:
        MalformedDocument: a field is unknown, missing or wrong.
        AgentTooOld: the document is in a newer form, or asks for a newer agent.
    """
    if "api_version" in model.model_fields:
        check_agent(envelope(tree, positions, file=file), agent_version, file=file)
    try:
        # By alias only: a second spelling of a field would be a second way to understand the same bytes.
        return model.model_validate(tree, by_alias=True, by_name=False, context=WRITTEN)
    except ValidationError as error:
        raise _translated(error, tree, positions, file) from error


# --- the envelope -------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Envelope:
    """What is understood of a document of any version."""

    api_version: str
    kind: str
    network: str
    """`metadata.network`; empty where the kind has none."""
    agent: str
    """`requires.agent`; empty where nothing is asked for."""


def envelope(tree: Tree, positions: Positions | None = None, *, file: str = "") -> Envelope:
    """Read the envelope, whatever else the document holds: even an old agent can then say why it cannot go on.

    Raises:
        MalformedDocument: apiVersion or kind is missing, or one of the four is not text.
    """

    def text(*path: str, needed: bool = False) -> str:
        value: Tree = tree
        for key in path:
            value = value.get(key) if isinstance(value, dict) else None
        if value is None and not needed:
            return ""
        if isinstance(value, str):
            return value
        line = positions.line(path) if positions is not None else 0
        message = "is missing" if value is None else "must be text"
        raise MalformedDocument(message, file=file, line=line, field=dotted(path))

    if not isinstance(tree, dict):
        raise MalformedDocument("must be a mapping that begins with apiVersion and kind", file=file, line=1)
    return Envelope(
        api_version=text("apiVersion", needed=True),
        kind=text("kind", needed=True),
        network=text("metadata", "network"),
        agent=text("requires", "agent"),
    )


def check_agent(found: Envelope, agent_version: str | None, *, file: str) -> None:
    """Whether this agent may read on.

    Args:
        found: the envelope.
        agent_version: version of this agent; None skips `requires`.
        file: for messages.

    Raises:
        AgentTooOld: a newer form of document, or `requires.agent` is not met.
        MalformedDocument: `requires.agent` is not a version specifier.
    """
    if _age(found.api_version) > _age(API_VERSION):
        raise AgentTooOld(
            f"{file} is written in {found.api_version}, and this agent reads {API_VERSION}", hint="update the agent"
        )
    if agent_version is None or not found.agent:
        return
    from packaging.specifiers import InvalidSpecifier, SpecifierSet  # noqa: PLC0415 - 20 ms, for new snapshots only

    try:
        met = SpecifierSet(found.agent).contains(agent_version, prereleases=True)
    except InvalidSpecifier as error:
        raise MalformedDocument("is not a version specifier", file=file, field="requires.agent") from error
    if not met:
        raise AgentTooOld(
            f"{file} asks for an agent {found.agent}, and this is {agent_version}", hint="update the agent"
        )


def _age(api_version: str) -> tuple[int, int, int]:
    """API versions in order of age (Kubernetes' convention: v1alpha1 < v1beta1 < v1 < v2); foreign ones come first."""
    match = re.fullmatch(r"reconcile/v([0-9]{1,4})(?:(alpha|beta)([0-9]{1,4}))?", api_version)
    if match is None:
        return (0, 0, 0)
    stage = {"alpha": 0, "beta": 1, None: 2}[match.group(2)]
    return (int(match.group(1)), stage, int(match.group(3) or 0))


# --- pydantic's errors --------------------------------------------------------------------------------------------

_MESSAGES: Final = {"missing": "is missing", "extra_forbidden": "is not a known field"}
_FORMS: Final[dict[str, str]] = {
    get_args(form)[1].pattern: words
    for form, words in (
        (Name, "must be a name: lower-case letters, digits and -, at most 63"),
        (Version, "must be a version: letters, digits and . _ + -, at most 64, in quotes"),
        (ModelKey, "must be NAME:VERSION"),
        (Digest, "must be a digest: blake3: and 64 hexadecimal digits in lower case"),
        (Sha256, "must be a digest: sha256: and 64 hexadecimal digits in lower case"),
        (Address, "must be an address: 0x and 40 hexadecimal digits"),
        (ImageRef, "must be an image by its digest: HOST/NAME@sha256:..., in lower case and without a tag"),
        (Url, "must be an address: SCHEME://..., without spaces"),
    )
}
"""What a scalar should look like, in words: its pattern is for programs."""
_SHOWN: Final = 60
"""Characters of a wrong value that are repeated in a message."""


def _translated(error: ValidationError, tree: Tree, positions: Positions, file: str) -> DocumentError:
    """The error that stands first in the file, with the number of the others."""
    problems = _causes(error.errors(include_url=False))
    places = [_located(problem["loc"], tree) for problem in problems]
    lines = [positions.line(place) for place in places]
    # On one line the field that is not known comes before the one that is missing: mostly one is the other, mistyped.
    first = min(range(len(problems)), key=lambda index: (lines[index], problems[index]["type"] == "missing"))
    message = _message(problems[first])
    if len(problems) > 1:
        message += f" (and {len(problems) - 1} more)"
    return MalformedDocument(message, file=file, line=lines[first], field=dotted(places[first]))


def _causes(problems: Sequence[Any]) -> list[Any]:
    """Without what only follows: a list is too short to pydantic where one of its items is wrong."""
    places = {problem["loc"][:size] for problem in problems for size in range(len(problem["loc"]))}
    return [problem for problem in problems if problem["type"] != "too_short" or problem["loc"] not in places]


def _message(problem: Any) -> str:
    kind: str = problem["type"]
    if kind in _MESSAGES:
        return _MESSAGES[kind]
    message: str = problem["msg"].removeprefix("Value error, ")
    if kind == "string_pattern_mismatch":
        message = _FORMS.get(problem["ctx"]["pattern"], message)
    value = problem["input"]
    # An address may carry a password.
    if isinstance(value, (str, int, float, bool)) and "://" not in str(value):
        message += f", got {str(value)[:_SHOWN]!r}"
    return message


def _located(location: Sequence[str | int], tree: Tree) -> Path:
    """Pydantic's location as a path of the document: without the names of union members in between."""
    path: list[str | int] = []
    node: Tree = tree
    for index, part in enumerate(location):
        if isinstance(node, dict) and part in node:
            node = node[str(part)]
        elif isinstance(node, tuple) and isinstance(part, int) and part < len(node):
            node = node[part]
        elif index != len(location) - 1 or part == "[key]":
            continue  # the name of a union's member, or pydantic's word for "the key itself"
        path.append(part)
    return tuple(path)
