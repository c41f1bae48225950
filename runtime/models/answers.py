"""Judging the head of an answer: what part of a file it holds, or why it is of no use. Nothing is taken on trust."""

from __future__ import annotations

import http.client
import re
from contextlib import suppress
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Final

from runtime.models.sources import Interrupted, Unsuitable, WholeOnly, WrongContent

if TYPE_CHECKING:
    from schemas.ports import Clock

_CONTENT_RANGE: Final = re.compile(r"bytes ([0-9]{1,18})-([0-9]{1,18})/([0-9]{1,18}|\*)")
_PASSING: Final = frozenset({408, 425, 429, 500, 502, 503, 504})

_REASON: Final = re.compile(r"[A-Za-z]{1,64}")
_MAX_EXPLANATION: Final = 2**14
"""Bytes of an error's body in which its reason is looked for."""


def check_head(response: http.client.HTTPResponse) -> None:
    """Tell a head that broke off from one that ended: to `http.client` both look alike.

    Raises:
        ConnectionError: nothing says how long the body is, and there is none.
    """
    useful = response.status in (http.client.OK, http.client.PARTIAL_CONTENT)
    if useful and response.length is None and not response.chunked and not response.peek(1):
        raise ConnectionError("the head of the answer broke off")


def judge(
    response: http.client.HTTPResponse, size: int, start: int, end: int, *, whole: bool, clock: Clock
) -> tuple[int, int]:
    """What part of the file an answer holds: its first byte, and the one after its last.

    Raises:
        Unsuitable, WrongContent, WholeOnly, Interrupted: it cannot be used.
    """
    status = response.status
    if status in _PASSING:
        raise Interrupted(f"answered {status} {response.reason}", retry_after=_retry_after(response, clock))
    encoding = response.headers.get("Content-Encoding", "identity").strip().lower()
    if status in (200, 206) and encoding != "identity":
        raise Unsuitable(f"sends the file encoded as {encoding}, although it was asked not to")
    if status == http.client.PARTIAL_CONTENT:
        return _judge_part(response, size, start, end)
    if status == http.client.OK:
        return _judge_whole(response, size, start, end, whole=whole)
    if status == http.client.REQUESTED_RANGE_NOT_SATISFIABLE:
        raise WrongContent(f"says that its file ends before byte {end}, where the manifest has {size} bytes")
    explained = _explanation(response)
    raise Unsuitable(f"answered {status} {response.reason}{f' ({explained})' if explained else ''}")


def measured(response: http.client.HTTPResponse, clock: Clock) -> int:
    """Bytes of the whole file, from the answer to a request for its first one.

    Raises:
        Unsuitable, Interrupted: it does not say.
    """
    stated = _CONTENT_RANGE.fullmatch(response.headers.get("Content-Range", "").strip())
    if response.status == http.client.PARTIAL_CONTENT and stated is not None and stated.group(3) != "*":
        return int(stated.group(3))
    if response.status == http.client.OK and response.length is not None:
        if response.headers.get_content_type() == "text/html":
            raise Unsuitable("answers with a web page instead of the file: a login page?")
        return response.length
    if response.status == http.client.REQUESTED_RANGE_NOT_SATISFIABLE:
        raise Unsuitable("has an empty file")
    judge(response, -1, 0, 1, whole=True, clock=clock)
    raise Unsuitable("does not say how large the file is")


def _explanation(response: http.client.HTTPResponse) -> str:
    """The one word by which hubs and object stores say what is wrong: `GatedRepo`, `SignatureDoesNotMatch`."""
    word = response.headers.get("X-Error-Code", "")
    if not word and response.length is not None and 0 < response.length <= _MAX_EXPLANATION and not response.chunked:
        with suppress(OSError, http.client.HTTPException):
            found = re.search(rb"<Code>([A-Za-z]{1,64})</Code>", response.read())
            word = found.group(1).decode() if found is not None else ""
    return word if _REASON.fullmatch(word) else ""


def _judge_part(response: http.client.HTTPResponse, size: int, start: int, end: int) -> tuple[int, int]:
    stated = response.headers.get("Content-Range", "")
    match = _CONTENT_RANGE.fullmatch(stated.strip())
    if match is None:
        raise Unsuitable("sends a part of the file without saying which")
    first, last, total = match.groups()
    if total != "*" and int(total) != size:
        raise WrongContent(f"has {total} bytes where the manifest has {size}")
    if (int(first), int(last)) != (start, end - 1):
        raise Unsuitable(f"sends bytes {first}-{last} when asked for {start}-{end - 1}")
    if response.length is not None and response.length != end - start:
        raise Unsuitable(f"announces {response.length} bytes for a part of {end - start}")
    return start, end


def _judge_whole(
    response: http.client.HTTPResponse, size: int, start: int, end: int, *, whole: bool
) -> tuple[int, int]:
    kind = response.headers.get_content_type()
    if response.length != size:
        if kind == "text/html":
            raise Unsuitable("answers with a web page instead of the file: a login page?")
        raise Unsuitable(f"answers with a whole document of {response.length} bytes where the manifest has {size}")
    if (start, end) == (0, size) or whole:
        return 0, size
    raise WholeOnly("sends whole files only")


def _retry_after(response: http.client.HTTPResponse, clock: Clock) -> float | None:
    """Seconds to wait, from seconds or an HTTP date (RFC 9110, section 10.2.3)."""
    value = response.headers.get("Retry-After", "").strip()
    if re.fullmatch(r"[0-9]{1,9}", value):
        return float(value)
    with suppress(ValueError, OverflowError):
        moment = parsedate_to_datetime(value)
        if moment.tzinfo is not None:
            return max(0.0, (moment - clock.now()).total_seconds())
    return None
