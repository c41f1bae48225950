"""An HTTP proxy on loopback: tunnels for https, whole addresses for http. What it was asked is on record."""

from __future__ import annotations

import socket
import threading
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

if TYPE_CHECKING:
    from collections.abc import Iterator


class Proxy:
    """Sends every request to one server on loopback, whatever host was asked for."""

    def __init__(self, port: int, authorization: str) -> None:
        self._port = port
        self._authorization = authorization
        self.seen: list[tuple[str, dict[str, str]]] = []
        """First line and headers (names in lower case) of every request."""
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"

    def serve(self) -> None:
        """Until closed."""
        with suppress(OSError):
            while True:
                connection, _ = self._listener.accept()
                threading.Thread(target=self._one, args=(connection,), daemon=True).start()

    def close(self) -> None:
        """Take no more requests."""
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def _one(self, connection: socket.socket) -> None:
        """One connection of a client: a tunnel, or one request after the other to the same server."""
        with connection, suppress(OSError), socket.create_connection(("127.0.0.1", self._port)) as server:
            stream = connection.makefile("rb")
            first, headers = _head(stream)
            self.seen.append((first, headers))
            if self._authorization and headers.get("proxy-authorization") != self._authorization:
                connection.sendall(b"HTTP/1.1 407 Proxy Authentication Required\r\nContent-Length: 0\r\n\r\n")
                return
            if first.startswith("CONNECT "):
                connection.sendall(b"HTTP/1.1 200 Connection established\r\n\r\n")
            else:
                server.sendall(_forwarded(first, headers))
            threading.Thread(target=_pump, args=(server, connection), daemon=True).start()
            if first.startswith("CONNECT "):
                _pump(connection, server)
                return
            while (request := _head(stream))[0]:
                self.seen.append(request)
                server.sendall(_forwarded(*request))


def _head(stream: object) -> tuple[str, dict[str, str]]:
    readline = stream.readline  # type: ignore[attr-defined]
    first = readline().decode("latin-1").strip()
    headers: dict[str, str] = {}
    while line := readline().decode("latin-1").strip():
        name, _, value = line.partition(":")
        headers[name.lower()] = value.strip()
    return first, headers


def _forwarded(first: str, headers: dict[str, str]) -> bytes:
    method, address, version = first.split()
    parts = urlsplit(address)
    target = f"{parts.path}?{parts.query}" if parts.query else parts.path
    kept = [f"{name}: {value}" for name, value in headers.items() if not name.startswith("proxy-")]
    return "\r\n".join([f"{method} {target} {version}", *kept, "", ""]).encode("latin-1")


def _pump(source: socket.socket, target: socket.socket) -> None:
    with suppress(OSError):
        while data := source.recv(2**16):
            target.sendall(data)
        target.shutdown(socket.SHUT_WR)


@contextmanager
def proxying(port: int, authorization: str = "") -> Iterator[Proxy]:
    """A proxy in front of one server on loopback, for the length of a `with`.

    Args:
        port: the server's.
        authorization: what the proxy wants to be told; "" for nothing.
    """
    proxy = Proxy(port, authorization)
    thread = threading.Thread(target=proxy.serve, daemon=True)
    thread.start()
    try:
        yield proxy
    finally:
        proxy.close()
        thread.join(timeout=10)
