"""An HTTP server on loopback that serves files honestly, or in one of the ways in which real servers go wrong.

Real sockets, one thread per connection. What it did is on record: requests, and bytes of content that left it.
"""

from __future__ import annotations

import gzip
import re
import socket
import struct
import threading
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Self
from urllib.parse import unquote

if TYPE_CHECKING:
    import ssl
    from collections.abc import Callable, Iterator, Mapping

_RANGE = re.compile(r"bytes=([0-9]+)-([0-9]+)")
_BLOCK = 2**16


@dataclass(frozen=True, slots=True)
class Seen:
    """A request as it came in."""

    path: str
    headers: Mapping[str, str]
    """Names in lower case."""


@dataclass(slots=True)
class Exchange:
    """One request, and the means to answer it."""

    server: HostileServer
    connection: socket.socket
    seen: Seen
    number: int
    """0 for the first request that this server ever got."""

    @property
    def name(self) -> str:
        """Path of the file that was asked for, decoded."""
        return unquote(self.seen.path.partition("?")[0]).lstrip("/")

    @property
    def data(self) -> bytes:
        """The file that was asked for; empty if there is none."""
        return self.server.files.get(self.name, b"")

    @property
    def exists(self) -> bool:
        """Whether there is such a file."""
        return self.name in self.server.files

    @property
    def asked(self) -> tuple[int, int]:
        """First byte asked for, and the one after the last."""
        match = _RANGE.fullmatch(self.seen.headers.get("range", ""))
        if match is None:
            return 0, len(self.data)
        return int(match.group(1)), min(int(match.group(2)) + 1, len(self.data))

    def head(self, status: str, headers: Mapping[str, str | int]) -> None:
        """Send the head of an answer."""
        lines = [f"HTTP/1.1 {status}", *(f"{name}: {value}" for name, value in headers.items()), "", ""]
        self.connection.sendall("\r\n".join(lines).encode())

    def body(self, data: bytes) -> None:
        """Send content, and count it."""
        for start in range(0, len(data), _BLOCK):
            block = data[start : start + _BLOCK]
            self.connection.sendall(block)
            self.server.count(len(block))

    def answer(self, status: str, body: bytes = b"", **headers: str | int) -> None:
        """Send a whole answer."""
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        self.head(status, {"Content-Length": len(body), **named})
        self.body(body)

    def part(self, data: bytes | None = None, **headers: str | int) -> None:
        """Answer the range honestly; from other content where `data` is given."""
        content = self.data if data is None else data
        start, end = self.asked
        stated = f"bytes {start}-{end - 1}/{len(content)}"
        self.answer("206 Partial Content", content[start:end], Content_Range=stated, **headers)

    def close(self) -> None:
        """End the connection in good order."""
        raise ConnectionAbortedError

    def reset(self) -> None:
        """End the connection with a TCP reset."""
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        raise ConnectionAbortedError


@dataclass(slots=True)
class HostileServer:
    """A server and its record."""

    files: Mapping[str, bytes]
    behave: Callable[[Exchange], None]
    tls: ssl.SSLContext | None = None
    seen: list[Seen] = field(default_factory=list)
    sent: int = 0
    """Bytes of content that left the server."""
    port: int = 0
    """Port on 127.0.0.1."""
    ended: threading.Event = field(default_factory=threading.Event)
    """Set when the server closes: behaviours that wait, wait for this."""
    _listener: socket.socket = field(default_factory=socket.socket)
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _open: set[socket.socket] = field(default_factory=set)
    _threads: list[threading.Thread] = field(default_factory=list)

    @property
    def url(self) -> str:
        """Base address of the files."""
        return f"{'https' if self.tls else 'http'}://127.0.0.1:{self.port}"

    def count(self, size: int) -> None:
        """Content left the server."""
        with self._lock:
            self.sent += size

    def __enter__(self) -> Self:
        self._listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self._listener.bind(("127.0.0.1", 0))
        self._listener.listen(64)
        self.port = int(self._listener.getsockname()[1])
        self._start(self._accept)
        return self

    def __exit__(self, *_: object) -> None:
        self.ended.set()
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        with self._lock:
            connections = list(self._open)
        for connection in connections:
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join(timeout=10)

    def _start(self, target: Callable[..., None], *args: object) -> None:
        thread = threading.Thread(target=target, args=args, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        while not self.ended.is_set():
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            self._start(self._serve, connection)

    def _serve(self, plain: socket.socket) -> None:
        connection = plain
        try:
            if self.tls is not None:
                connection = self.tls.wrap_socket(plain, server_side=True)
            with self._lock:
                self._open.add(connection)
            stream = connection.makefile("rb")
            while (seen := _read(stream)) is not None:
                with self._lock:
                    number = len(self.seen)
                    self.seen.append(seen)
                self.behave(Exchange(self, connection, seen, number))
        except OSError:
            return  # the client went away, or the behaviour ended the connection
        finally:
            with self._lock:
                self._open.discard(connection)
            with suppress(OSError, UnboundLocalError):
                stream.close()
            connection.close()


def _read(stream: object) -> Seen | None:
    readline = stream.readline  # type: ignore[attr-defined]
    first = readline().decode("latin-1").split()
    if len(first) != 3:
        return None
    headers: dict[str, str] = {}
    while (line := readline().decode("latin-1").strip()) != "":
        name, _, value = line.partition(":")
        headers[name.lower()] = value.strip()
    return Seen(first[1], headers)


@contextmanager
def serving(
    files: Mapping[str, bytes],
    behave: Callable[[Exchange], None] | None = None,
    *,
    tls: ssl.SSLContext | None = None,
) -> Iterator[HostileServer]:
    """A server for the length of a `with`."""
    with HostileServer(files, behave if behave is not None else honest, tls) as server:
        yield server


# --- behaviours -----------------------------------------------------------------------------------------------------


def honest(exchange: Exchange) -> None:
    """What every server should do."""
    if not exchange.exists:
        exchange.answer("404 Not Found", b"no such file")
    elif "range" in exchange.seen.headers:
        exchange.part(ETag='"1"')
    else:
        exchange.answer("200 OK", exchange.data)


def without_ranges(exchange: Exchange) -> None:
    """200 to a range: the whole file, whatever was asked."""
    exchange.answer("200 OK", exchange.data)


def without_ranges_old(exchange: Exchange) -> None:
    """The same with a connection that is closed after each answer, as HTTP/1.0 servers do."""
    exchange.answer("200 OK", exchange.data, Connection="close")
    exchange.close()


def no_content_range(exchange: Exchange) -> None:
    """206 that does not say which part it is."""
    start, end = exchange.asked
    exchange.answer("206 Partial Content", exchange.data[start:end])


def wrong_content_range(exchange: Exchange) -> None:
    """206 with another part than the one asked for."""
    start, end = exchange.asked
    stated = f"bytes {start + 1}-{end}/{len(exchange.data)}"
    exchange.answer("206 Partial Content", (exchange.data + b"x")[start + 1 : end + 1], Content_Range=stated)


def wrong_total(exchange: Exchange) -> None:
    """206 of a file of another size."""
    exchange.part(exchange.data + b"more")


def multipart(exchange: Exchange) -> None:
    """206 in the form that answers several ranges at once."""
    start, end = exchange.asked
    body = b"--x\r\nContent-Range: bytes 0-1/2\r\n\r\n" + exchange.data[start:end] + b"\r\n--x--\r\n"
    exchange.answer("206 Partial Content", body, Content_Type="multipart/byteranges; boundary=x")


def short_body(exchange: Exchange) -> None:
    """Announces the part, sends half of its first block, and closes."""
    start, end = exchange.asked
    stated = f"bytes {start}-{end - 1}/{len(exchange.data)}"
    exchange.head("206 Partial Content", {"Content-Range": stated, "Content-Length": end - start})
    exchange.body(exchange.data[start : min(end, start + 1000)])
    exchange.close()


def short_length(exchange: Exchange) -> None:
    """Announces a part and a length that do not fit together."""
    start, end = exchange.asked
    stated = f"bytes {start}-{end - 1}/{len(exchange.data)}"
    exchange.answer("206 Partial Content", exchange.data[start : end - 1], Content_Range=stated)


def long_body(exchange: Exchange) -> None:
    """Sends more than it announced: the rest looks like the next answer."""
    exchange.part()
    exchange.body(b"and some bytes that nobody asked for" * 100)


def inside_416(exchange: Exchange) -> None:
    """Says that a range within the file is beyond its end."""
    exchange.answer("416 Range Not Satisfiable", Content_Range="bytes */100")


def gzip_encoded(exchange: Exchange) -> None:
    """Encodes what was asked for as it is."""
    exchange.part(Content_Encoding="gzip")


def login_page(exchange: Exchange) -> None:
    """200 with a page for people."""
    exchange.answer("200 OK", b"<html>Please log in</html>", Content_Type="text/html; charset=utf-8")


def login_page_of_its_size(exchange: Exchange) -> None:
    """206 with a page for people, made as long as the part that was asked for: nothing but the bytes tells."""
    exchange.part((b"<html>Please log in</html>" * (len(exchange.data) // 26 + 1))[: len(exchange.data)])


def gzip_whole(exchange: Exchange) -> None:
    """A whole file, encoded, to a range of one."""
    exchange.answer("200 OK", gzip.compress(exchange.data[:100_000], 1), Content_Encoding="gzip")


def forbidden(exchange: Exchange) -> None:
    """403 for everything."""
    exchange.answer("403 Forbidden", b"no")


def not_found(exchange: Exchange) -> None:
    """404 for everything."""
    exchange.answer("404 Not Found", b"no")


def server_error(exchange: Exchange) -> None:
    """500 for everything."""
    exchange.answer("500 Internal Server Error", b"oops")


def silent(exchange: Exchange) -> None:
    """Reads the request and never answers."""
    exchange.server.ended.wait(60)
    exchange.close()


def drip(exchange: Exchange) -> None:
    """A good head, then a byte now and then."""
    start, end = exchange.asked
    stated = f"bytes {start}-{end - 1}/{len(exchange.data)}"
    exchange.head("206 Partial Content", {"Content-Range": stated, "Content-Length": end - start})
    for byte in exchange.data[start:end]:
        exchange.body(bytes([byte]))
        if exchange.server.ended.wait(0.05):
            break
    exchange.close()


def drip_head(exchange: Exchange) -> None:
    """A head that never ends."""
    exchange.connection.sendall(b"HTTP/1.1 206 Partial Content\r\nX-Padding: ")
    while not exchange.server.ended.wait(0.05):
        exchange.connection.sendall(b"x")


def flood_head(exchange: Exchange) -> None:
    """A head of endless lines."""
    exchange.connection.sendall(b"HTTP/1.1 206 Partial Content\r\n")
    while not exchange.server.ended.is_set():
        exchange.connection.sendall(b"X-Padding: " + b"x" * 1000 + b"\r\n")


def corrupting(exchange: Exchange) -> None:
    """Flips a bit in every answer."""
    start, end = exchange.asked
    data = bytearray(exchange.data)
    data[(start + end) // 2] ^= 1
    exchange.part(bytes(data))


def corrupting_one(offset: int) -> Callable[[Exchange], None]:
    """Has one wrong byte in one place, whoever asks."""

    def behave(exchange: Exchange) -> None:
        data = bytearray(exchange.data)
        data[offset] ^= 1
        exchange.part(bytes(data))

    return behave


def corrupting_once() -> Callable[[Exchange], None]:
    """Flips a bit in the first answer only: a fault on the way."""

    def behave(exchange: Exchange) -> None:
        (corrupting if exchange.number == 0 else honest)(exchange)

    return behave


def flipping(other: bytes, after: int) -> Callable[[Exchange], None]:
    """Replaces its file in the middle of a download: from then on other bytes under another ETag."""

    def behave(exchange: Exchange) -> None:
        if exchange.number < after:
            exchange.part(ETag='"old"')
        else:
            exchange.part(other, ETag='"new"')

    return behave


def flipping_inside(other: bytes, at: int) -> Callable[[Exchange], None]:
    """Replaces its file while it sends it: an answer that began with the old bytes goes on with the new ones."""

    def behave(exchange: Exchange) -> None:
        exchange.part(exchange.data[:at] + other[at : len(exchange.data)], ETag='"old"')

    return behave


def new_etag_each_time(exchange: Exchange) -> None:
    """The same bytes under another ETag each time, as machines behind one name do."""
    exchange.part(ETag=f'"{exchange.number}"')


def busy(times: int, status: str = "503 Service Unavailable", **headers: str | int) -> Callable[[Exchange], None]:
    """Refuses the first requests, then serves."""

    def behave(exchange: Exchange) -> None:
        if exchange.number < times:
            exchange.answer(status, b"later", **headers)
        else:
            honest(exchange)

    return behave


def bursting(times: int) -> Callable[[Exchange], None]:
    """Fails in turns, by an answer and by a reset, then serves."""

    def behave(exchange: Exchange) -> None:
        if exchange.number >= times:
            honest(exchange)
        elif exchange.number % 2:
            exchange.reset()
        else:
            exchange.answer("502 Bad Gateway", b"later")

    return behave


def resetting(after: int) -> Callable[[Exchange], None]:
    """Resets every connection after so many bytes of content."""

    def behave(exchange: Exchange) -> None:
        start, end = exchange.asked
        stated = f"bytes {start}-{end - 1}/{len(exchange.data)}"
        exchange.head("206 Partial Content", {"Content-Range": stated, "Content-Length": end - start})
        exchange.body(exchange.data[start : min(end, start + after)])
        if end - start > after:
            exchange.close()

    return behave


def hard_reset(exchange: Exchange) -> None:
    """Resets every connection at once."""
    exchange.reset()


def redirecting(target: str, status: str = "302 Found") -> Callable[[Exchange], None]:
    """Sends everybody elsewhere; `{path}` is the path that was asked for."""

    def behave(exchange: Exchange) -> None:
        exchange.answer(status, b"there", Location=target.replace("{path}", exchange.seen.path))

    return behave


def expiring(uses: int) -> Callable[[Exchange], None]:
    """Redirects to an address that is good for a few requests only, as signed addresses are."""
    left: dict[str, int] = {}
    lock = threading.Lock()

    def behave(exchange: Exchange) -> None:
        path, _, token = exchange.seen.path.partition("?token=")
        with lock:
            if not token:
                token = str(len(left))
                left[token] = uses
                target = f"{path}?token={token}"
            else:
                target = ""
                left[token] -= 1
            spent = left[token] < 0
        if target:
            exchange.answer("302 Found", b"", Location=target)
        elif spent:
            exchange.answer("403 Forbidden", b"expired")
        else:
            honest(exchange)

    return behave
