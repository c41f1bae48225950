"""Serves metrics and the page: read-only, on loopback or a socket, one request at a time.

A browser of this machine can be led to any loopback port by any page of the internet (DNS rebinding), so a request
must name the address that is listened on. Nothing here changes anything; only GET and HEAD are understood.
"""

from __future__ import annotations

import json
import logging
import secrets
import socket
import socketserver
import threading
from contextlib import closing, contextmanager
from dataclasses import asdict
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, HTTPServer
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from reconciler.published import read_status
from reconciler.telemetry.metrics import CONTENT_TYPE
from schemas.errors import ConfigError, ReconcileError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from reconciler.journal import Journal
    from reconciler.state_dir import StateDir
    from schemas.node import TelemetryConfig

LOG = logging.getLogger("reconcile")

_SECONDS: Final = 5
"""Within which a client must have said what it wants, and have taken its answer."""
_SHOWN_EVENTS: Final = 200
_SHOWN_PASSES: Final = 50
_UNIX: Final = "unix:"


class View:
    """What may be asked for, by path. Reads what the node published and its journal; never the node itself."""

    def __init__(
        self, state: StateDir, journal: Callable[[], Journal], metrics: Callable[[], bytes], *, page: bool
    ) -> None:
        """Name what is shown.

        Args:
            state: where the published status is.
            journal: opens the journal for reading.
            metrics: the metrics' text.
            page: whether there is a page, with the documents that it is made of.
        """
        self._state = state
        self._journal = journal
        self.answers: Mapping[str, Callable[[str], tuple[str, bytes]]] = {
            "/metrics": lambda _: (CONTENT_TYPE, metrics()),
            **(
                {
                    "/": self._page,
                    "/status.json": self._status,
                    "/events.json": self._events,
                    "/history.json": self._passes,
                }
                if page
                else {}
            ),
        }

    def _page(self, nonce: str) -> tuple[str, bytes]:
        text = files("reconciler.telemetry").joinpath("page.html").read_text(encoding="utf-8")
        return "text/html; charset=utf-8", text.replace("NONCE", nonce).encode()

    def _status(self, _nonce: str) -> tuple[str, bytes]:
        status = read_status(self._state)
        return "application/json", status.to_json().encode() if status is not None else b"null"

    def _events(self, _nonce: str) -> tuple[str, bytes]:
        with closing(self._journal()) as journal:
            return _rows([asdict(event) for event in reversed(journal.events(limit=_SHOWN_EVENTS))])

    def _passes(self, _nonce: str) -> tuple[str, bytes]:
        with closing(self._journal()) as journal:
            return _rows([asdict(record) for record in journal.history(limit=_SHOWN_PASSES)])


def _rows(rows: list[dict[str, Any]]) -> tuple[str, bytes]:
    return "application/json", json.dumps(rows, default=lambda moment: moment.isoformat()).encode()


@contextmanager
def serving(config: TelemetryConfig, view: View) -> Iterator[str]:
    """Serve a view for the length of the `with`; the address that it is found at.

    Raises:
        ConfigError: the address cannot be listened on.
    """
    if config.listen is None:
        raise ConfigError("telemetry.listen is not set")
    unix = config.listen.startswith(_UNIX)
    try:
        server = _UnixServer(config.listen.removeprefix(_UNIX), view) if unix else _TcpServer(config.listen, view)
    except (OSError, ValueError, OverflowError) as error:
        raise ConfigError(f"telemetry.listen: {config.listen}: {error}") from error
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.5}, name="telemetry", daemon=True)
    thread.start()
    try:
        yield server.shown
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
        if unix:
            Path(config.listen.removeprefix(_UNIX)).unlink(missing_ok=True)


class _Handler(BaseHTTPRequestHandler):
    """One request."""

    timeout = _SECONDS
    protocol_version = "HTTP/1.0"
    server: _TcpServer | _UnixServer

    def do_GET(self) -> None:
        """Answer."""
        if self.server.hosts and self.headers.get("Host", "").lower() not in self.server.hosts:
            self._say(HTTPStatus.MISDIRECTED_REQUEST, "text/plain", b"this is not the host that is listened on\n")
            return
        answer = self.server.view.answers.get(self.path.partition("?")[0])
        if answer is None:
            self._say(HTTPStatus.NOT_FOUND, "text/plain", b"there is nothing here\n")
            return
        nonce = secrets.token_urlsafe(16)
        try:
            kind, body = answer(nonce)
        except ReconcileError as error:
            self._say(HTTPStatus.SERVICE_UNAVAILABLE, "text/plain", f"{error.reason}: {error.message}\n".encode())
            return
        self._say(HTTPStatus.OK, kind, body, nonce)

    do_HEAD = do_GET  # noqa: N815 - the base class finds methods by these names

    def _say(self, status: HTTPStatus, kind: str, body: bytes, nonce: str = "") -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Cache-Control", "no-store")
        self.send_header("X-Content-Type-Options", "nosniff")
        policy = f"default-src 'none'; style-src 'nonce-{nonce}'; script-src 'nonce-{nonce}'; connect-src 'self'"
        self.send_header(
            "Content-Security-Policy", f"{policy}; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
        )
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def version_string(self) -> str:
        """Who answers; not which interpreter."""
        return "reconcile"

    def log_message(self, *_: Any) -> None:
        """Nothing: whoever scrapes does so every few seconds."""


class _Quiet(socketserver.BaseServer):
    def handle_error(self, request: Any, client_address: Any) -> None:  # noqa: ARG002 - the base class's signature
        """A client that left, or was too slow: nobody's concern but its own."""
        LOG.debug("a request for telemetry ended early")


class _TcpServer(_Quiet, HTTPServer):
    """On a loopback address."""

    def __init__(self, address: str, view: View) -> None:
        host, _, port = address.rpartition(":")
        bare = host.strip("[]")
        self.address_family = socket.AF_INET6 if ":" in bare else socket.AF_INET
        super().__init__((bare, int(port)), _Handler)
        found = self.server_address[1]
        self.view = view
        self.hosts = frozenset(f"{name}:{found}" for name in (host, "localhost"))
        self.shown = f"http://{host}:{found}/"

    def server_bind(self) -> None:
        """Without asking a name server for this machine's name, as the base class would."""
        socketserver.TCPServer.server_bind(self)
        self.server_name, self.server_port = str(self.server_address[0]), int(self.server_address[1])


class _UnixServer(_Quiet, socketserver.UnixStreamServer):
    """On a socket of this machine, for its group."""

    hosts: frozenset[str] = frozenset()
    """Any: no browser can be led to a socket."""

    def __init__(self, path: str, view: View) -> None:
        place = Path(path)
        if place.is_socket():
            place.unlink()
        super().__init__(path, _Handler)
        place.chmod(0o660)
        self.view = view
        self.shown = f"unix:{path}"

    def get_request(self) -> tuple[socket.socket, Any]:
        """The base class's, with an address in the form that a handler expects."""
        request, _ = super().get_request()
        return request, ("local", 0)
