"""The connection to an engine: what an engine, or somebody who can write in its folder, may do to the agent."""

from __future__ import annotations

import os
import socket
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest

from runtime.connection import UnixConnection
from schemas.errors import BackendUnavailable, EngineUnreachable

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from pydantic import JsonValue


def read_request(stream: socket.socket) -> bytes:
    """One request, complete with its body; or the beginning of one that was not finished."""
    seen, length = b"", -1
    while length < 0 or len(seen) < length:
        received = stream.recv(65536)
        if not received:
            return seen
        seen += received
        head, end, _ = seen.partition(b"\r\n\r\n")
        if end:
            lines = head.lower().split(b"\r\n")
            body = next((int(line[15:]) for line in lines if line.startswith(b"content-length:")), 0)
            length = len(head) + len(end) + body
    return seen


@contextmanager
def serving(path: Path, answer: Callable[[socket.socket], None]) -> Iterator[list[bytes]]:
    """A peer on a real unix socket; `answer` handles one connection. Yields the requests as they arrived."""
    requests: list[bytes] = []
    listener = socket.socket(socket.AF_UNIX)
    # Tests may run in deep folders; a name relative to an open folder has no length limit worth speaking of.
    folder = os.open(path.parent, os.O_PATH)
    listener.bind(f"/proc/self/fd/{folder}/{path.name}")
    os.close(folder)
    listener.listen()

    def serve() -> None:
        while True:
            try:
                stream, _ = listener.accept()
            except OSError:
                return
            with stream:
                try:
                    request = read_request(stream)
                    if request:
                        requests.append(request)
                        answer(stream)
                except OSError:
                    pass

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        yield requests
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        thread.join()


def replying(content: bytes, *, status: str = "200 OK", head: str = "") -> Callable[[socket.socket], None]:
    """A peer that sends one response and closes."""

    def answer(stream: socket.socket) -> None:
        length = f"Content-Length: {len(content)}\r\n" if "-Length" not in head and "chunked" not in head else ""
        stream.sendall(f"HTTP/1.1 {status}\r\n{length}{head}\r\n".encode() + content)

    return answer


def ask(path: Path, *, timeout: float = 60, limit: int = 10_000, body: JsonValue = None) -> JsonValue:
    """One request to a peer that counts as ours."""
    return UnixConnection(path, is_peer=lambda pid: pid == os.getpid()).request(
        "POST" if body is not None else "GET", "/x", body, timeout=timeout, limit=limit
    )


def test_json_goes_out_and_comes_back(tmp_path: Path) -> None:
    """A request carries its body, and the answer is decoded: with a length, in chunks, or until the end."""
    path = tmp_path / "engine.sock"
    with serving(path, replying(b'{"tokens": [1, 2]}')) as requests:
        assert ask(path, body={"prompt": "h\u00e9"}) == {"tokens": [1, 2]}
    assert requests[0].startswith(b"POST /x HTTP/1.1\r\nHost: localhost\r\n")
    assert requests[0].endswith(b'\r\n\r\n{"prompt": "h\\u00e9"}')
    path.unlink()
    with serving(path, replying(b"3\r\n[1,\r\n3\r\n 2]\r\n0\r\n\r\n", head="Transfer-Encoding: chunked\r\n")):
        assert ask(path) == [1, 2]


def test_a_text_comes_back_as_it_is(tmp_path: Path) -> None:
    """Metrics are no JSON; what is not UTF-8, too long, or another status is no text either."""
    path = tmp_path / "engine.sock"
    for peer, words in (
        (replying("größe 1\n".encode()), ""),
        (replying(b"\xff\xfe"), "not UTF-8"),
        (replying(b"x" * 101), "longer than 100 bytes"),
        (replying(b"x", status="404 Not Found"), "status 404"),
    ):
        with serving(path, peer):
            connection = UnixConnection(path, is_peer=lambda pid: pid == os.getpid())
            if words:
                with pytest.raises(EngineUnreachable, match=words):
                    connection.read("/metrics", timeout=60, limit=100)
            else:
                assert connection.read("/metrics", timeout=60, limit=100) == "größe 1\n"
        path.unlink()


def test_a_deep_folder_is_no_problem(tmp_path: Path) -> None:
    """A path beyond a unix socket's 107 bytes works: state directories may be deep."""
    folder = tmp_path / ("d" * 120) / ("e" * 120)
    folder.mkdir(parents=True)
    with serving(folder / "engine.sock", replying(b"1")):
        assert ask(folder / "engine.sock") == 1


def test_a_planted_link_to_another_socket_is_not_followed(tmp_path: Path) -> None:
    """A link in the socket's place (to Docker's socket, say) receives not one byte (I10)."""
    with serving(tmp_path / "victim.sock", replying(b"{}")) as requests:
        (tmp_path / "run").mkdir()
        (tmp_path / "run" / "engine.sock").symlink_to(tmp_path / "victim.sock")
        with pytest.raises(EngineUnreachable, match=r"not a socket|symbolic links"):
            ask(tmp_path / "run" / "engine.sock")
        # The folder itself swapped for a link is refused as well.
        (tmp_path / "link").symlink_to(tmp_path)
        with pytest.raises(EngineUnreachable, match=r"Not a directory|symbolic links"):
            ask(tmp_path / "link" / "victim.sock")
    assert requests == []


def test_only_a_socket_is_a_socket(tmp_path: Path) -> None:
    """Regular file, pipe, folder, nothing at all, and a socket without a listener are unreachable, not waited for."""
    (tmp_path / "file").write_bytes(b"{}")
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "folder").mkdir()
    for name in ("file", "pipe", "folder"):
        with pytest.raises(EngineUnreachable, match="is not a socket"):
            ask(tmp_path / name)
    with pytest.raises(EngineUnreachable, match="No such file"):
        ask(tmp_path / "nothing")
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(tmp_path / "dead.sock"))
    with pytest.raises(EngineUnreachable, match="Connection refused"):
        ask(tmp_path / "dead.sock")


def test_a_foreign_listener_receives_nothing(tmp_path: Path) -> None:
    """The peer's pid is asked of the kernel and checked before anything is sent (I10)."""
    path = tmp_path / "engine.sock"
    seen: list[int] = []

    def is_peer(pid: int) -> bool:
        seen.append(pid)
        return False

    with serving(path, replying(b"{}")) as requests:
        with pytest.raises(EngineUnreachable, match=rf"not the instance's \(pid {os.getpid()}\)"):
            UnixConnection(path, is_peer=is_peer).request("GET", "/", timeout=60)
        assert requests == []
    assert seen == [os.getpid()]


def test_who_cannot_be_known_is_refused(tmp_path: Path) -> None:
    """A backend that cannot say whose process it is leads to unreachable, never to trust (I3)."""

    def is_peer(_: int) -> bool:
        raise BackendUnavailable("docker does not answer")

    with serving(tmp_path / "engine.sock", replying(b"{}")) as requests:
        with pytest.raises(EngineUnreachable, match="docker does not answer"):
            UnixConnection(tmp_path / "engine.sock", is_peer=is_peer).request("GET", "/", timeout=60)
        assert requests == []


@pytest.mark.parametrize("start", [b"", b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n"])
def test_an_answer_that_drips_ends_with_the_deadline(tmp_path: Path, start: bytes) -> None:
    """A byte now and then renews nothing: the deadline is for the whole exchange, headers and body (I11)."""
    over = threading.Event()

    def drip(stream: socket.socket) -> None:
        stream.sendall(start)
        while not over.wait(0.02):
            stream.sendall(b" ")

    with serving(tmp_path / "engine.sock", drip):
        try:
            with pytest.raises(EngineUnreachable, match=r"no complete answer within 0\.5 s"):
                ask(tmp_path / "engine.sock", timeout=0.5, limit=10**6)
        finally:
            over.set()


def test_a_peer_that_does_not_read_ends_with_the_deadline(tmp_path: Path) -> None:
    """A large request to a peer that reads none of it does not hang either."""
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(tmp_path / "engine.sock"))
    listener.listen()
    with listener, pytest.raises(EngineUnreachable, match="no complete answer"):
        ask(tmp_path / "engine.sock", timeout=0.3, body="x" * 10_000_000)


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (replying(b'"' + b"x" * 20_000 + b'"'), "longer than 10000 bytes"),
        (
            replying(b"9999\r\n" + b"1" * 0x9999 + b"\r\n0\r\n\r\n", head="Transfer-Encoding: chunked\r\n"),
            "longer than",
        ),
        (replying(b"123", head="Content-Length: 9\r\n"), "ends 6 bytes early"),
        (replying(b"10\r\n123", head="Transfer-Encoding: chunked\r\n"), "/x"),
        (replying(b"<html>"), "not JSON"),
        (replying(b""), "not JSON"),
        (replying(b"\xff\xfe\x00"), "not JSON"),
        (replying(b"[NaN]"), "not JSON: NaN is no number"),
        (replying(b"[" * 9_999), "not JSON"),
        (replying(b"9" * 9_999), "not JSON"),
        (replying(b'{"error":"loading\x1b[31m"}', status="503 Service Unavailable"), r"status 503.*loading\\x1b"),
        (replying(b"", status="302 Found", head="Location: http://example.org/\r\n"), "status 302"),
        (replying(b"{}", status="201 Created"), "status 201"),
        (lambda stream: stream.sendall(b"SSH-2.0-OpenSSH\r\n"), "/x"),
        (lambda stream: stream.sendall(b"HTTP/1.1 200 OK\r\n" + b"A: b\r\n" * 1000 + b"\r\n{}"), "headers"),
        (lambda stream: stream.sendall(b"HTTP/1.1 200 OK\r\nA: " + b"b" * 100_000), "/x"),
        (lambda stream: None, "/x"),
    ],
    ids=range(17),
)
def test_only_200_with_bounded_json_is_an_answer(
    tmp_path: Path, answer: Callable[[socket.socket], None], words: str
) -> None:
    """Too long, cut short, no JSON, made to exhaust the reader, another status or protocol (I11)."""
    with serving(tmp_path / "engine.sock", answer), pytest.raises(EngineUnreachable, match=words) as refusal:
        ask(tmp_path / "engine.sock")
    assert "\x1b" not in refusal.value.message
