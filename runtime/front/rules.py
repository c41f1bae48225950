"""What may be asked, and how a refusal reads: OpenAI's form of an error, with a stable code. Pure.

Methods and paths are exact and few. A body is parsed, so that the engine is never shown what the front understood
otherwise: a key given twice is refused, and bytes are passed on as they came or written anew from what was understood.
"""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any, Final, NoReturn

if TYPE_CHECKING:
    from runtime.front.route import Route

COMMON: Final = frozenset(
    {
        ("GET", "/health"),
        ("GET", "/v1/models"),
        ("POST", "/v1/chat/completions"),
        ("POST", "/v1/completions"),
        ("POST", "/v1/embeddings"),
    }
)
"""OpenAI's API, as every engine speaks it."""

BY_ENGINE: Final[dict[str, frozenset[tuple[str, str]]]] = {
    "llamacpp": COMMON | {("POST", "/tokenize"), ("POST", "/detokenize"), ("POST", "/apply-template")},
    "vllm": COMMON | {("POST", "/tokenize"), ("POST", "/detokenize")},
}
"""What each engine offers besides. Metrics, slots, adapters, saved caches and whatever else there is stay inside."""

GENERATING: Final = frozenset({"/v1/chat/completions", "/v1/completions"})
"""Paths whose requests ask for tokens."""

TOKEN_FIELDS: Final = ("max_tokens", "max_completion_tokens", "n_predict")
"""How a request says how many; the last is llama.cpp's."""

UNBOUNDED: Final = frozenset({"llamacpp"})
"""Engines that write on until their context is full when a request names no number, and take any number: they are given
the limit. vLLM refuses a number that does not fit behind the prompt, so it is left to its own bound, its context."""

DEPTH: Final = 128
"""Levels of nesting in a body: a few times what a tool's schema has. Parsers recurse, the engine's too, and can run out
of stack."""
_STRUCTURE: Final = re.compile(rb'[\[\]{}]|"(?:[^"\\]|\\.)*+(?:"|\\?\Z)', re.DOTALL)
"""A bracket; or a string, or the rest of the body where it does not end: looked at once, whatever it is."""

NOT_HELD: Final = frozenset({"/health"})
"""Asked to know how things are now: an answer that waits for better times would be a wrong one."""


class Refused(Exception):
    """A request that does not pass."""

    def __init__(self, status: int, code: str, message: str, **headers: str) -> None:
        """Describe the refusal.

        Args:
            status: HTTP status.
            code: stable word for programs.
            message: for people.
            headers: further headers of the answer, underscores for hyphens.
        """
        super().__init__(message)
        self.status = status
        self.code = code
        self.headers = headers

    def body(self) -> bytes:
        """The answer's content."""
        kind = "server_error" if self.status >= 500 else "invalid_request_error"  # noqa: PLR2004 - HTTP's classes
        error = {"message": str(self), "type": kind, "param": None, "code": self.code}
        return json.dumps({"error": error}).encode()


def unavailable(route: Route, message: str) -> Refused:
    """Nothing serves now; the client is told when to come back."""
    return Refused(503, "unavailable", message, Retry_After=str(route.retry_after))


def check_target(engine: str, method: str, target: str) -> None:
    """Whether an engine may be asked this at all.

    Raises:
        Refused: 404 or 405.
    """
    allowed = BY_ENGINE.get(engine, COMMON)
    if (method, target) in allowed:
        return
    methods = sorted(known for known, path in allowed if path == target)
    if methods:
        raise Refused(405, "method_not_allowed", f"{target} takes {' or '.join(methods)}", Allow=", ".join(methods))
    raise Refused(404, "not_found", f"there is no {ascii(target)[1:-1][:200]} here; paths are exact, without a query")


def parse(body: bytes) -> dict[str, Any]:
    """A request's body.

    Raises:
        Refused: 400: not one JSON object in UTF-8, nested too deeply, or a key is given twice.
    """
    if _is_deep(body):
        raise Refused(400, "invalid_json", f"the body is nested deeper than {DEPTH} levels")
    try:
        value = json.loads(body.decode("utf-8"), object_pairs_hook=_unique, parse_constant=_no_number)
    except (ValueError, RecursionError) as error:
        raise Refused(400, "invalid_json", f"the body is not JSON: {error}") from error
    if not isinstance(value, dict):
        raise Refused(400, "invalid_json", "the body is not a JSON object")
    return value


def fit(route: Route, path: str, body: bytes, question: dict[str, Any]) -> bytes:
    """The body as the engine gets it.

    Args:
        route: the instance and its limits.
        path: what is asked.
        body: the bytes that came.
        question: what they say.

    Returns:
        The same bytes, unless a model has to be called by its engine's name or a limit has to be filled in.

    Raises:
        Refused: 404 for another model, 400 beyond the limits.
    """
    changes: dict[str, Any] = {}
    name = question.get("model")
    if name is not None and name not in route.models:
        shown = ascii(name)[:100]
        raise Refused(404, "model_not_found", f"{shown} is not served here; {route.models[0]} is")
    if name is not None and name != route.models[0]:
        changes["model"] = route.models[0]
    if path in GENERATING and not _names_bound(route, question) and route.engine in UNBOUNDED:
        changes["max_tokens"] = route.max_tokens // _choices(question)
    if not changes:
        return body
    try:
        return json.dumps({**question, **changes}, allow_nan=False).encode()
    except ValueError as error:
        raise Refused(400, "invalid_json", "a number in the body is out of range") from error


def _names_bound(route: Route, question: dict[str, Any]) -> bool:
    """Whether the request says how many tokens it wants, within the limit."""
    choices = _choices(question)
    if choices > route.max_tokens:
        _too_many(choices, "n", route)
    named = [(field, question[field]) for field in TOKEN_FIELDS if question.get(field) is not None]
    for field, value in named:
        if not _is_count(value):
            raise Refused(400, "invalid_value", f"{field} is not a number of tokens")
        if value * choices > route.max_tokens:
            _too_many(value * choices, field, route)
    return bool(named)


def _choices(question: dict[str, Any]) -> int:
    """How many answers are asked for at once (`n`, and `best_of`, which computes more than it shows)."""
    most = 1
    for field in ("n", "best_of"):
        value = question.get(field)
        if value is not None and (not _is_count(value) or value < 1):
            raise Refused(400, "invalid_value", f"{field} is not a number of answers")
        most = max(most, value or 1)
    return most


def _too_many(asked: int, field: str, route: Route) -> NoReturn:
    raise Refused(
        400,
        "max_tokens_exceeded",
        f"{field} asks for {asked} tokens in all; this network allows {route.max_tokens} in one request",
    )


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _is_deep(body: bytes) -> bool:
    """Whether a parser would recurse further than is safe. Most bodies have fewer brackets than that."""
    if body.count(b"[") + body.count(b"{") <= DEPTH:
        return False
    depth = 0
    for token in _STRUCTURE.finditer(body):
        first = body[token.start()]
        depth += (first in b"[{") - (first in b"]}")
        if depth > DEPTH:
            return True
    return False


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) != len(pairs):
        raise ValueError("a key is given twice")
    return value


def _no_number(name: str) -> NoReturn:
    raise ValueError(f"{name} is no number in JSON")
