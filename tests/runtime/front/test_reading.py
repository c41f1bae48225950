"""Requests out of bytes: what is refused, and that no two readers of the same bytes can see different requests."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtime.front.reading import AnswerReader, RequestReader
from runtime.front.rules import Refused

HEAD = b"POST /v1/completions HTTP/1.1\r\nHost: x\r\n"


def reader(max_body: int = 1000) -> RequestReader:
    """A reader that minds the form alone."""
    return RequestReader(check=lambda _method, _target: None, max_body=max_body)


def feed(ours: RequestReader, raw: bytes, step: int) -> None:
    """Bytes as they arrive."""
    for start in range(0, len(raw), step):
        ours.feed(raw[start : start + step])


SMUGGLING = {
    "both framings": HEAD + b"Content-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "both framings, the other way round": HEAD + b"Transfer-Encoding: chunked\r\nContent-Length: 3\r\n\r\n0\r\n\r\n",
    "two lengths": HEAD + b"Content-Length: 3\r\nContent-Length: 4\r\n\r\nabcd",
    "one length twice": HEAD + b"Content-Length: 3\r\nContent-Length: 3\r\n\r\nabc",
    "a list of lengths": HEAD + b"Content-Length: 3, 3\r\n\r\nabc",
    "a signed length": HEAD + b"Content-Length: +3\r\n\r\nabc",
    "a length in hexadecimal": HEAD + b"Content-Length: 0x3\r\n\r\nabc",
    "an endless length": HEAD + b"Content-Length: 99999999999999999999999\r\n\r\nabc",
    "another coding": HEAD + b"Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
    "chunked twice": HEAD + b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "a coding that looks like chunked": HEAD + b"Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n",
    "a space before the colon": HEAD + b"Transfer-Encoding : chunked\r\n\r\n0\r\n\r\n",
    "a folded header": HEAD + b"X: a\r\n Content-Length: 3\r\n\r\nabc",
    "a folded first header": b"POST / HTTP/1.1\r\n Host: x\r\nHost: x\r\n\r\n",
    "bare line feeds": b"POST / HTTP/1.1\nHost: x\nContent-Length: 3\n\nabc",
    "one bare line feed": HEAD + b"X: a\nContent-Length: 3\r\n\r\nabc",
    "a bare carriage return": HEAD + b"X: a\rContent-Length: 3\r\n\r\nabc",
    "a zero byte": HEAD + b"X: a\0b\r\nContent-Length: 3\r\n\r\nabc",
    "bare line feeds between chunks": HEAD + b"Transfer-Encoding: chunked\r\n\r\n3\nabc\n0\n\n",
    "a chunk longer than it says": HEAD + b"Transfer-Encoding: chunked\r\n\r\n3\r\nabcd\r\n0\r\n\r\n",
    "a chunk without a size": HEAD + b"Transfer-Encoding: chunked\r\n\r\n\r\nabc\r\n0\r\n\r\n",
    "no host": b"POST /v1/completions HTTP/1.1\r\nContent-Length: 0\r\n\r\n",
    "two hosts": HEAD + b"Host: y\r\nContent-Length: 0\r\n\r\n",
    "an old version": b"POST /v1/completions HTTP/1.0\r\nHost: x\r\nContent-Length: 0\r\n\r\n",
    "a new version": b"POST /v1/completions HTTP/2.0\r\nHost: x\r\nContent-Length: 0\r\n\r\n",
    "another protocol": b"GET / HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: upgrade\r\n\r\n",
    "a tunnel": b"CONNECT x:1 HTTP/1.1\r\nHost: x\r\n\r\n",
    "a body where none belongs": b"GET /v1/models HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\n\r\nabc",
    "a compressed body": HEAD + b"Content-Encoding: gzip\r\nContent-Length: 3\r\n\r\nabc",
    "an unknown expectation": HEAD + b"Expect: more\r\nContent-Length: 3\r\n\r\nabc",
    "an endless head": HEAD + b"X: " + b"a" * 20_000,
    "an endless body": HEAD + b"Transfer-Encoding: chunked\r\n\r\n" + b"400\r\n" + b"a" * 1024 + b"\r\n" * 2,
    "not HTTP": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc",
}


@pytest.mark.parametrize("bytes_", SMUGGLING.values(), ids=SMUGGLING)
@pytest.mark.parametrize("step", [1, 7, 100_000])
def test_what_could_be_read_in_two_ways_is_refused(bytes_: bytes, step: int) -> None:
    """However it arrives: in one piece, or byte by byte; and with a 4xx or 5xx for its sender."""
    with pytest.raises(Refused) as refused:
        feed(reader(), bytes_, step)
    assert 400 <= refused.value.status < 600
    assert json.loads(refused.value.body())["error"]["code"] == refused.value.code


@given(st.binary(max_size=200), st.integers(1, 50), st.booleans())
def test_a_request_is_the_same_however_it_is_cut(body: bytes, step: int, chunked: bool) -> None:
    """Framing by length or by chunks, in pieces of any size: the same body, and nothing behind it."""
    if chunked:
        parts = [body[start : start + 10] for start in range(0, len(body), 10)]
        framed = b"".join(b"%x;note=1\r\n%b\r\n" % (len(part), part) for part in parts) + b"0\r\nTrailer: x\r\n\r\n"
        raw = HEAD + b"Transfer-Encoding: chunked\r\n\r\n" + framed
    else:
        raw = HEAD + b"Content-Length: %d\r\n\r\n" % len(body) + body
    ours = reader()
    for start in range(0, len(raw), step):
        assert not ours.complete
        ours.feed(raw[start : start + step])
    assert (ours.complete, ours.followed, bytes(ours.body)) == (True, False, body)
    assert (ours.method, ours.target, ours.keep_alive) == ("POST", "/v1/completions", True)


@given(st.binary(max_size=300))
def test_no_bytes_break_the_reader(data: bytes) -> None:
    """Anything at all is a request, a part of one, or refused."""
    ours, status = reader(), 400
    try:
        ours.feed(data)
    except Refused as refused:
        status = refused.status
    assert 400 <= status < 600


@pytest.mark.parametrize("step", [1, 100_000])
def test_a_second_request_behind_the_first_is_noticed_and_not_read(step: int) -> None:
    """What follows is never taken for a request, whatever it says."""
    ours = reader()
    raw = HEAD + b"Content-Length: 3\r\n\r\nabc" + b"GET /admin HTTP/1.1\r\nHost: y\r\n\r\n"
    for start in range(0, len(raw), step):
        ours.feed(raw[start : start + step])
    assert (ours.complete, ours.followed) == (True, True)
    assert (ours.method, ours.target, bytes(ours.body)) == ("POST", "/v1/completions", b"abc")


def test_memory_is_asked_for_before_it_is_taken() -> None:
    """When nothing is left for bodies the request is refused, and the client told to come back."""
    ours = RequestReader(check=lambda _method, _target: None, max_body=1000, reserve=lambda size: size < 3)
    with pytest.raises(Refused) as refused:
        ours.feed(HEAD + b"Content-Length: 3\r\n\r\nabc")
    assert (refused.value.status, refused.value.headers) == (503, {"Retry_After": "1"})


@given(st.lists(st.binary(min_size=1, max_size=40), max_size=8), st.integers(1, 60))
def test_a_streamed_answer_arrives_as_it_was_sent(parts: list[bytes], step: int) -> None:
    """Framed anew, it still says the same, and it has an end only where the engine's had one."""
    raw = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nContent-Type: x/y\r\n\r\n"
    raw += b"".join(b"%x\r\n%b\r\n" % (len(part), part) for part in parts)
    ours, out = AnswerReader(), b""
    for start in range(0, len(raw), step):
        out += ours.feed(raw[start : start + step])
    assert not ours.complete
    assert not out.endswith(b"0\r\n\r\n") or any(part.endswith(b"0") for part in parts)
    out += ours.feed(b"0\r\n\r\nHTTP/1.1 200 OK\r\n")
    assert ours.complete
    again = AnswerReader()
    again.feed(ours.head + b"\r\n\r\n")
    assert again.feed(out) == out
    assert again.complete


@pytest.mark.parametrize(
    "head",
    [
        b"HTTP/1.1 200 OK\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n",
        b"HTTP/1.1 101 Switching\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\n",
        b"HTTP/1.1 100 Continue\r\n\r\n",
        b"HTTP/1.1 999 Odd\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nX: " + b"a" * 70_000,
        b"220 smtp ready\r\n",
    ],
)
def test_an_answer_that_does_not_say_where_it_ends_is_not_passed_on(head: bytes) -> None:
    """A client could not tell it from one that was cut."""
    ours = AnswerReader()
    assert ours.feed(head) == b""
    assert ours.unfit


def test_an_engines_headers_stay_inside() -> None:
    """Cookies, servers, hop-by-hop headers: only what describes the content goes on."""
    ours = AnswerReader()
    inside = b"Set-Cookie: a\r\nConnection: close\r\nServer: x\r\n"
    ours.feed(b"HTTP/1.1 200 Fine\r\n" + inside + b"Content-Type: t\r\nContent-Length: 0\r\n\r\n")
    assert ours.head == b"HTTP/1.1 200 OK\r\ncontent-type: t\r\ncontent-length: 0"
