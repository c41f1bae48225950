"""HTTP/1.1 requests out of bytes, and answers into bytes: no I/O. The one importer of the parser.

llhttp, in its strict mode, refuses what smuggling is made of: both framings at once, a length given twice, bare line
feeds, folded headers, space before a colon. What it leaves open (which transfer codings, targets, versions, a second
request behind the first) is refused here. Requests are never passed on as bytes: a new head is written for the engine.
"""

from __future__ import annotations

from http import HTTPStatus
from typing import TYPE_CHECKING, Final

import httptools

from runtime.front.rules import Refused

if TYPE_CHECKING:
    from collections.abc import Callable

HEAD_LIMIT: Final = 2**14
"""Bytes of a request's head: what common servers take."""
ANSWER_HEAD_LIMIT: Final = 2**16
"""Bytes of an answer's head."""

REASONS: Final = {status.value: status.phrase for status in HTTPStatus}

KEPT: Final = frozenset({"content-type", "cache-control", "retry-after", "x-request-id"})
"""Headers of an engine's answer that a client gets; the others are between the engine and the front."""


class RequestReader:
    """One request, fed as it comes."""

    def __init__(
        self,
        *,
        check: Callable[[str, str], None],
        max_body: int,
        reserve: Callable[[int], bool] = lambda _: True,
    ) -> None:
        """Begin.

        Args:
            check: called with method and target once the head is complete; raises `Refused`.
            max_body: bytes of body.
            reserve: asked for memory before bytes of the body are kept.
        """
        self.method = ""
        self.target = ""
        self.body = bytearray()
        self.complete = False
        self.keep_alive = False
        self.begun = False
        """Whether any byte came."""
        self.wants_continue = False
        """The client waits for `100 Continue` before it sends its body."""
        self.followed = False
        """Bytes came behind the end: a second request, sent without waiting for the answer to the first."""
        self._check = check
        self._max_body = max_body
        self._reserve = reserve
        self._head_bytes = 0
        self._head_done = False
        self._url = b""
        self._headers: list[tuple[str, str]] = []
        self._refused: Refused | None = None
        self._parser = httptools.HttpRequestParser(self)

    def feed(self, data: bytes) -> None:
        """Take bytes.

        Raises:
            Refused: what came will not be served; the connection has to be closed.
        """
        self.begun = True
        if self.complete:
            self.followed = True
            return
        if not self._head_done:
            self._head_bytes += len(data)
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade as error:
            raise Refused(400, "bad_request", "no other protocol is spoken here") from error
        except httptools.HttpParserError as error:
            if self._refused is None and not self.complete:
                raise Refused(400, "bad_request", f"not a well-formed HTTP/1.1 request: {error}") from error
            self.followed = True
        if self._refused is not None:
            raise self._refused
        if not self._head_done and self._head_bytes > HEAD_LIMIT:
            raise Refused(431, "head_too_large", f"the request's head is longer than {HEAD_LIMIT} bytes")

    # --- called by the parser -------------------------------------------------------------------------------------

    def on_message_begin(self) -> None:
        """A request begins."""
        self.followed = self.followed or self.complete

    def on_url(self, data: bytes) -> None:
        """A part of the target."""
        if not self.complete:
            self._url += data

    def on_header(self, name: bytes, value: bytes) -> None:
        """A header, or a trailer, which nobody needs."""
        if not self._head_done:
            self._headers.append((name.decode("latin-1").lower(), value.decode("latin-1").strip()))

    def on_headers_complete(self) -> None:
        """The head is complete: what cannot pass is refused before its body is taken."""
        if self.complete:
            return
        self._head_done = True
        try:
            self._check_head()
        except Refused as refused:
            self._refused = refused

    def on_body(self, data: bytes) -> None:
        """A part of the body."""
        if self.complete or self._refused is not None:
            return
        if len(self.body) + len(data) > self._max_body:
            self._refused = _too_large(self._max_body)
        elif not self._reserve(len(data)):
            self._refused = Refused(503, "overloaded", "too many long requests at once", Retry_After="1")
        else:
            self.body += data

    def on_message_complete(self) -> None:
        """The request is complete."""
        self.complete = True

    # --- inside ---------------------------------------------------------------------------------------------------

    def _check_head(self) -> None:
        self.method = self._parser.get_method().decode("latin-1")
        self.target = self._url.decode("latin-1")
        if self._parser.get_http_version() != "1.1":
            raise Refused(505, "http_version", "HTTP/1.1 is spoken here")
        if len(self._values("host")) != 1:
            raise Refused(400, "bad_request", "a request names one host")
        codings = self._values("transfer-encoding")
        if codings and [coding.lower() for coding in codings] != ["chunked"]:
            raise Refused(501, "transfer_coding", "the only transfer coding here is chunked")
        lengths = self._values("content-length")
        if lengths and int(lengths[0]) > self._max_body:
            raise _too_large(self._max_body)
        if self._values("content-encoding") not in ([], ["identity"]):
            raise Refused(415, "content_coding", "bodies are not compressed here")
        expected = [value.lower() for value in self._values("expect")]
        if expected not in ([], ["100-continue"]):
            raise Refused(417, "expectation", "the only expectation here is 100-continue")
        self._check(self.method, self.target)
        if self.method == "GET" and (codings or lengths not in ([], ["0"])):
            raise Refused(400, "bad_request", "a GET has no body here")
        self.wants_continue = bool(expected)
        self.keep_alive = bool(self._parser.should_keep_alive())

    def _values(self, name: str) -> list[str]:
        return [value for known, value in self._headers if known == name]


class AnswerReader:
    """An engine's answer, fed as it comes, and given out as it will be sent on: framed anew."""

    def __init__(self) -> None:
        self.status = 0
        self.head = b""
        """The head for the client, without its end: see `end_head`. Empty until the engine's is complete."""
        self.complete = False
        self.unfit = ""
        """Why the answer cannot be passed on; empty while it can."""
        self._chunked = False
        self._bytes = 0
        self._headers: list[tuple[str, str]] = []
        self._out: list[bytes] = []
        self._parser = httptools.HttpResponseParser(self)

    def feed(self, data: bytes) -> bytes:
        """Take bytes; what of the body they bring, framed for the client."""
        if not self.head:
            self._bytes += len(data)
        try:
            if not self.complete:
                self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade) as error:
            if not self.complete:
                self.unfit = f"the engine's answer is not HTTP: {error}"
        if not self.head and self._bytes > ANSWER_HEAD_LIMIT:
            self.unfit = "the head of the engine's answer is too long"
        out, self._out = self._out, []
        return b"".join(out)

    # --- called by the parser -------------------------------------------------------------------------------------

    def on_header(self, name: bytes, value: bytes) -> None:
        """A header or a trailer."""
        if not self.head:
            self._headers.append((name.decode("latin-1").lower(), value.decode("latin-1").strip()))

    def on_headers_complete(self) -> None:
        """The head is complete."""
        if self.complete or self.unfit:
            return
        self.status = int(self._parser.get_status_code())
        lengths = [value for name, value in self._headers if name == "content-length"]
        codings = [value.lower() for name, value in self._headers if name == "transfer-encoding"]
        self._chunked = codings == ["chunked"]
        if self.status not in REASONS or self.status < 200 or not (self._chunked or lengths):  # noqa: PLR2004 - HTTP's
            # An answer that ends with its connection cannot be told from one that was cut.
            self.unfit = f"the engine's answer (status {self.status}) does not say where it ends"
            return
        lines = [f"HTTP/1.1 {self.status} {REASONS[self.status]}"]
        lines += [f"{name}: {value}" for name, value in self._headers if name in KEPT]
        lines.append("transfer-encoding: chunked" if self._chunked else f"content-length: {lengths[0]}")
        self.head = "\r\n".join(lines).encode("latin-1")

    def on_body(self, data: bytes) -> None:
        """A part of the body."""
        if self.head and not self.complete and not self.unfit:
            self._out.append(b"%x\r\n%b\r\n" % (len(data), data) if self._chunked else data)

    def on_message_complete(self) -> None:
        """The answer is whole."""
        if self.head and not self.complete and self._chunked:
            self._out.append(b"0\r\n\r\n")
        self.complete = bool(self.head)


def end_head(head: bytes, *, close: bool) -> bytes:
    """A head with its end, and whether the connection ends with this answer."""
    return head + (b"\r\nconnection: close\r\n\r\n" if close else b"\r\n\r\n")


def request_head(method: str, target: str, length: int) -> bytes:
    """The head that the engine gets: nothing of the client's but method and path.

    One request a connection: the peer is checked for each, and none can meet a connection that has just been closed.
    """
    framing = f"Content-Type: application/json\r\nContent-Length: {length}\r\n" if method == "POST" else ""
    return f"{method} {target} HTTP/1.1\r\nHost: localhost\r\n{framing}Connection: close\r\n\r\n".encode("ascii")


def plain(status: int, body: bytes, *, close: bool, headers: dict[str, str] | None = None) -> bytes:
    """A whole answer of the front's own, JSON."""
    lines = [f"HTTP/1.1 {status} {REASONS[status]}", "content-type: application/json", f"content-length: {len(body)}"]
    lines += [f"{name.replace('_', '-').lower()}: {value}" for name, value in (headers or {}).items()]
    return end_head("\r\n".join(lines).encode("latin-1"), close=close) + body


def _too_large(limit: int) -> Refused:
    return Refused(413, "body_too_large", f"the request's body is longer than {limit} bytes")
