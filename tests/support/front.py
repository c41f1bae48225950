"""A front in this process, instances that answer as a test says, and clients that say what they like, byte by byte."""

from __future__ import annotations

import asyncio
import http.client
import json
import os
import socket
import threading
import time
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

from runtime.backends.native_shim import start_ticks
from runtime.front.program import Front, Place
from runtime.front.relay import Settings
from runtime.front.route import Route

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

PATIENCE = 60.0
"""Seconds after which a test gives up; nothing here takes more than a fraction of one."""


def eventually(check: Callable[[], bool], what: str, *, seconds: float = PATIENCE) -> None:
    """Wait for something that happens in another thread or process."""
    until = time.monotonic() + seconds
    while not check():
        assert time.monotonic() < until, f"this did not happen: {what}"
        time.sleep(0.005)


def dial(path: Path) -> socket.socket:
    """A connection to a socket, however deep its folder lies."""
    folder = os.open(path.parent, os.O_PATH)
    stream = socket.socket(socket.AF_UNIX)
    stream.settimeout(PATIENCE)
    try:
        stream.connect(f"/proc/self/fd/{folder}/{path.name}")
    except OSError:
        stream.close()
        raise
    finally:
        os.close(folder)
    return stream


def bind(path: Path, backlog: int = 128) -> socket.socket:
    """A listener on a socket, however deep its folder lies."""
    folder = os.open(path.parent, os.O_PATH)
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(f"/proc/self/fd/{folder}/{path.name}")
    os.close(folder)
    listener.listen(backlog)
    return listener


class Answer:
    """What a client got."""

    def __init__(self, stream: socket.socket, method: str = "POST") -> None:
        """Read one answer off a connection, to its end or to where it is cut."""
        response = http.client.HTTPResponse(stream, method=method)
        response.begin()
        self.status = response.status
        self.headers = {name.lower(): value for name, value in response.getheaders()}
        self.whole = True
        try:
            self.body = response.read()
        except http.client.IncompleteRead as error:
            self.body, self.whole = error.partial, False

    @property
    def code(self) -> str:
        """The stable word of an error."""
        return str(json.loads(self.body)["error"]["code"])


def question(path: str = "/v1/completions", /, **body: Any) -> bytes:
    """A well-formed request."""
    content = json.dumps({"prompt": "x", "max_tokens": 4, **body}).encode()
    return f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(content)}\r\n\r\n".encode() + content


def whole(text: str, status: int = 200) -> bytes:
    """A well-formed answer of an engine."""
    return (
        f"HTTP/1.1 {status} Whatever\r\nContent-Type: text/plain\r\nContent-Length: {len(text)}\r\n\r\n{text}".encode()
    )


STREAM = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
"""The head of a streamed answer."""


def chunk(text: str) -> bytes:
    """A part of a streamed answer; the empty one is its end."""
    return f"{len(text):x}\r\n{text}\r\n".encode()


class Engine:
    """An instance: a socket, and a script for each connection."""

    def __init__(self, path: Path, script: Callable[[socket.socket, bytes], None]) -> None:
        """Listen.

        Args:
            path: the socket.
            script: gets a connection and the request that came on it; the connection is closed when it returns.
        """
        self.path = path
        self.requests: list[bytes] = []
        self.lost = threading.Event()
        """A client went away while its answer was being written."""
        self._script = script
        self._listener = bind(path)
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        """Listen no more."""
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def _accept(self) -> None:
        while True:
            try:
                stream, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(stream,), daemon=True).start()

    def _serve(self, stream: socket.socket) -> None:
        stream.settimeout(PATIENCE)
        with stream:
            try:
                request = _read(stream)
                self.requests.append(request)
                self._script(stream, request)
            except OSError:
                self.lost.set()


def _read(stream: socket.socket) -> bytes:
    seen, length = b"", -1
    while length < 0 or len(seen) < length:
        received = stream.recv(65536)
        if not received:
            raise ConnectionError
        seen += received
        head, end, _ = seen.partition(b"\r\n\r\n")
        if end:
            lines = head.lower().split(b"\r\n")
            length = len(head) + 4 + next((int(li[15:]) for li in lines if li.startswith(b"content-length:")), 0)
    return seen


class Stage:
    """A front, its route and its instances, in a folder."""

    def __init__(self, folder: Path, **settings: Any) -> None:
        """Start a front.

        Args:
            folder: for everything.
            settings: other than the usual ones.
        """
        self.folder = folder
        self.address = folder / "front.sock"
        self._engines: list[Engine] = []
        usual = {"route": str(folder / "route.json"), "allow": (os.getuid(),), "connections": 64, "max_body": 2**16}
        (folder / "own").mkdir()
        self._place = Place(folder / "own", self.address)
        self._settings = Settings(**{**usual, **settings})
        self._ready = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._run()), daemon=True)
        self._thread.start()
        assert self._ready.wait(PATIENCE)

    async def _run(self) -> None:
        self._front = Front(self._place, self._settings)
        self._loop = asyncio.get_running_loop()
        await self._front.run(self._ready.set)

    def close(self) -> None:
        """End everything."""
        self.call(self._front.leave)
        for client in tuple(self._front.relay.clients):
            self.call(client._transport.abort)
        self._thread.join(PATIENCE)
        assert not self._thread.is_alive()
        for engine in self._engines:
            engine.close()

    def call(self, function: Callable[[], object]) -> None:
        """Do something in the front's thread."""
        with suppress(RuntimeError):
            self._loop.call_soon_threadsafe(function)

    def stats(self) -> dict[str, Any]:
        """What the front says of itself, as its agent asks."""
        with dial(self._place.folder / "control.sock") as stream:
            stream.sendall(b"GET /stats HTTP/1.1\r\nHost: x\r\n\r\n")
            answer: dict[str, Any] = json.loads(Answer(stream, "GET").body)
            return answer

    def retire(self) -> None:
        """As its agent does."""
        with dial(self._place.folder / "control.sock") as stream:
            stream.sendall(b"POST /retire HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n")
            Answer(stream)

    def engine(self, name: str, script: Callable[[socket.socket, bytes], None]) -> Engine:
        """An instance."""
        (self.folder / name).mkdir()
        engine = Engine(self.folder / name / "engine.sock", script)
        self._engines.append(engine)
        return engine

    def lead(self, state: str = "serving", instance: str = "a", **fields: Any) -> None:
        """Replace the route, as the agent does."""
        usual = {
            "engine": "llamacpp",
            "socket": str(self.folder / instance / "engine.sock"),
            "pid": os.getpid(),
            "ticks": start_ticks(os.getpid()),
            "models": ("m:v1", "m"),
            "max_tokens": 100,
            "hold": PATIENCE,
            "timeout": PATIENCE,
        }
        route = Route(state=state, instance=instance, intent=instance, **{**usual, **fields})  # type: ignore[arg-type]
        new = self.folder / "route.new"
        new.write_bytes(route.to_json())
        new.replace(self.folder / "route.json")

    def ask(self, request: bytes | None = None) -> Answer:
        """One request on a connection of its own."""
        with dial(self.address) as stream:
            stream.sendall(request if request is not None else question())
            return Answer(stream)

    @contextmanager
    def asking(self, request: bytes | None = None) -> Iterator[socket.socket]:
        """A connection on which a request was sent."""
        with dial(self.address) as stream:
            stream.sendall(request if request is not None else question())
            yield stream
