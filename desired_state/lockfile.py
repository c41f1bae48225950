"""Locks of native environments: pip's requirements format, of which only pinned and hashed wheels are let in.

The format also knows options that fetch from elsewhere, build from source, or install what no hash was given for; a
signed lock must not be able to say such things, because then its digest would not stand for what is installed.

Source: pip's "Requirements File Format" and "Secure installs"; the forms that `uv pip compile --generate-hashes` and
`pip-compile --generate-hashes` write.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

from schemas.refusals import LimitExceeded, MalformedDocument

MAX_REQUIREMENTS: Final = 2_000
"""Ten times what vLLM with everything around it needs."""

_REQUIREMENT: Final = re.compile(
    r"(?P<name>[A-Za-z0-9](?:[A-Za-z0-9._-]*[A-Za-z0-9])?)(?:\[[A-Za-z0-9._, -]*\])?"
    r"\s*==\s*(?P<version>[A-Za-z0-9][A-Za-z0-9._!+-]*)"
    r"(?:\s*;(?P<marker>[^;#@]*))?"
)
_HASH: Final = re.compile(r"--hash=sha256:[0-9a-f]{64}")


@dataclass(frozen=True, slots=True)
class Locked:
    """One requirement of a lock."""

    name: str
    """Normalised: lower case, `-` between words (PEP 503)."""
    version: str
    hashes: int
    """How many files may be taken for it."""


def parse_lock(content: bytes, *, file: str) -> tuple[Locked, ...]:
    """The requirements of a lock, in its order.

    Args:
        content: its exact bytes.
        file: its name, for messages.

    Raises:
        MalformedDocument: not UTF-8, nothing in it, or something that is not `name==version` with SHA-256 hashes.
        LimitExceeded: more requirements than `MAX_REQUIREMENTS`.
    """
    try:
        text = content.decode()
    except UnicodeDecodeError as error:
        raise MalformedDocument("not UTF-8", file=file) from error
    found: list[Locked] = []
    for number, line in _logical_lines(text):
        found.append(_requirement(line, file, number))
        if len(found) > MAX_REQUIREMENTS:
            raise LimitExceeded(f"more than {MAX_REQUIREMENTS} requirements", file=file)
    if not found:
        raise MalformedDocument("no requirement in it", file=file)
    return tuple(found)


def _logical_lines(text: str) -> list[tuple[int, str]]:
    """Lines with their continuations joined and their comments taken off, each with the number of its first."""
    joined: list[tuple[int, str]] = []
    begun = 0
    parts: list[str] = []
    for number, line in enumerate(text.splitlines(), start=1):
        bare = "" if line.lstrip().startswith("#") else re.sub(r"\s+#.*$", "", line)
        begun = begun or number
        parts.append(bare.removesuffix("\\"))
        if not bare.endswith("\\"):
            whole = " ".join(parts).strip()
            if whole:
                joined.append((begun, whole))
            begun, parts = 0, []
    if parts and " ".join(parts).strip():
        joined.append((begun, " ".join(parts).strip()))
    return joined


def _requirement(line: str, file: str, number: int) -> Locked:
    head, *hashes = re.split(r"\s+(?=--)", line)
    match = _REQUIREMENT.fullmatch(head.strip())
    if match is None:
        raise MalformedDocument(
            f"line {number}: {ascii(head)[:80]} is not a requirement of the form name==version", file=file
        )
    wrong = next((item for item in hashes if _HASH.fullmatch(item.strip()) is None), None)
    if wrong is not None:
        raise MalformedDocument(f"line {number}: {ascii(wrong)[:80]} has no place in a lock", file=file)
    if not hashes:
        raise MalformedDocument(f"line {number}: {match['name']} has no hash", file=file)
    return Locked(re.sub(r"[-_.]+", "-", match["name"]).lower(), match["version"], len(hashes))
