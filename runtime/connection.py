"""HTTP to an engine over its unix socket: no link followed, the peer checked, every exchange bounded.

An engine can write in its socket folder. It must not be able to lure the agent to another socket (Docker's, say) by a
planted link or a foreign listener, nor to hold it up with an answer that drips or never ends (I10, I11).
"""

from __future__ import annotations

import json
import os
import socket
import stat
import struct
import time
from contextlib import closing
from typing import TYPE_CHECKING, Final, NoReturn, cast

from schemas.errors import BackendUnavailable, EngineUnreachable

if TYPE_CHECKING:
    from collections.abc import Callable
    from http.client import HTTPConnection, HTTPResponse
    from pathlib import Path

    from pydantic import JsonValue
    from typing_extensions import Buffer

_CREDENTIALS: Final = struct.Struct("3i")
"""`struct ucred` (unix(7)): pid, uid, gid."""

_QUOTED: Final = 200
"""Bytes of an engine's error that are shown."""


class UnixConnection:
    """Requests to one instance. Each has a connection of its own, so nothing is shared between threads."""

    def __init__(self, path: Path, *, is_peer: Callable[[int], bool]) -> None:
        """Describe the connection; nothing is opened yet.

        Args:
            path: the socket. Its folder is the instance's own; what lies above is the agent's.
            is_peer: whether a process belongs to the instance.
        """
        self._path = path
        self._is_peer = is_peer

    def request(
        self, method: str, path: str, body: JsonValue = None, *, timeout: float, limit: int = 2**22
    ) -> JsonValue:
        """Send JSON, return JSON; see `runtime.interfaces.EngineConnection`.

        Raises:
            EngineUnreachable: no socket, not ours, refused, too slow, too long, not JSON, or another status.
        """
        content = None if body is None else json.dumps(body, allow_nan=False).encode()
        return _json(self._exchange(method, path, content, timeout=timeout, limit=limit), f"{method} {path}")

    def read(self, path: str, *, timeout: float, limit: int = 2**22) -> str:
        """Get a text; see `runtime.interfaces.EngineConnection`.

        Raises:
            EngineUnreachable: no socket, not ours, refused, too slow, too long, not UTF-8, or another status.
        """
        answer = self._exchange("GET", path, None, timeout=timeout, limit=limit)
        try:
            return answer.decode()
        except UnicodeDecodeError as error:
            raise EngineUnreachable(f"GET {path}: the answer is not UTF-8") from error

    def peer(self, *, timeout: float) -> int:
        """The process that listens, checked; see `runtime.interfaces.EngineConnection`.

        Raises:
            EngineUnreachable: no socket, not ours, or too slow.
        """
        try:
            with closing(_Bounded(time.monotonic() + timeout)) as stream:
                return connect(stream, self._path, self._is_peer)
        except OSError as error:
            raise EngineUnreachable(f"{self._path}: {_words(error)}") from error

    def _exchange(self, method: str, path: str, content: bytes | None, *, timeout: float, limit: int) -> bytes:
        from http.client import HTTPConnection, HTTPException  # noqa: PLC0415 - 20 ms, only when something runs

        headers = {"Connection": "close"} | ({"Content-Type": "application/json"} if content is not None else {})
        try:
            with closing(_Bounded(time.monotonic() + timeout)) as stream, closing(HTTPConnection("localhost")) as http:
                connect(stream, self._path, self._is_peer)
                http.sock = stream
                http.request(method, path, content, headers)
                return self._read(http, limit, f"{method} {path}")
        except TimeoutError as error:
            raise EngineUnreachable(f"{method} {path}: no complete answer within {timeout:g} s") from error
        except (OSError, HTTPException) as error:
            raise EngineUnreachable(f"{method} {path}: {self._path}: {_words(error)}") from error

    def _read(self, http: HTTPConnection, limit: int, what: str) -> bytes:
        with http.getresponse() as response:
            content = response.read(limit + 1)
            if response.status != 200:  # noqa: PLR2004 - HTTP's OK
                self._refuse(response, content, what)
        if len(content) > limit:
            raise EngineUnreachable(f"{what}: the answer is longer than {limit} bytes")
        if response.length:
            # A bounded read does not complain about a short body, and half a number is still JSON.
            raise EngineUnreachable(f"{what}: the answer ends {response.length} bytes early")
        return content

    def _refuse(self, response: HTTPResponse, content: bytes, what: str) -> NoReturn:
        said = ascii(content[:_QUOTED].decode(errors="replace")) if content else "nothing"
        raise EngineUnreachable(f"{what}: status {response.status}, which says {said}")


def connect(stream: socket.socket, path: Path, is_peer: Callable[[int], bool]) -> int:
    """Connect to the socket itself, whatever its name comes to mean meanwhile, and check who listens.

    Args:
        stream: a unix stream socket, not connected.
        path: the socket. Its folder is the instance's own; what lies above is the agent's.
        is_peer: whether a process belongs to the instance.

    Returns:
        The process that listens.

    Raises:
        EngineUnreachable: not a socket, or another's.
        OSError: not there, or refused.
    """
    folder = os.open(path.parent, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        entry = os.open(path.name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=folder)
    finally:
        os.close(folder)
    try:
        if not stat.S_ISSOCK(os.fstat(entry).st_mode):
            raise EngineUnreachable(f"{path} is not a socket")
        # The descriptor names the inode that was just looked at. It also spares long paths the limit of 107 bytes.
        stream.connect(f"/proc/self/fd/{entry}")
    finally:
        os.close(entry)
    pid, _ = peer(stream)
    try:
        ours = is_peer(pid)
    except BackendUnavailable as error:
        raise EngineUnreachable(f"cannot tell who listens on {path}: {error.message}") from error
    if not ours:
        if pid == 0:
            # What the kernel says of a process that this one's pid namespace does not have (pid_namespaces(7)).
            raise EngineUnreachable(
                f"cannot tell who listens on {path}: a process outside of this agent's pid namespace",
                hint="an agent in a container needs the host's process ids: --pid host",
            )
        raise EngineUnreachable(f"a process that is not the instance's (pid {pid}) listens on {path}")
    return pid


def peer(stream: socket.socket) -> tuple[int, int]:
    """Process id and user id at the other end of a connected unix socket (SO_PEERCRED in unix(7))."""
    pid, uid, _ = _CREDENTIALS.unpack(stream.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size))
    return int(pid), int(uid)


class _Bounded(socket.socket):
    """A unix socket with one deadline for everything: a peer that drips a byte at a time gains nothing by it."""

    def __init__(self, deadline: float) -> None:
        """Make the socket.

        Args:
            deadline: on the monotonic clock, seconds.
        """
        super().__init__(socket.AF_UNIX, socket.SOCK_STREAM)
        self._deadline = deadline

    def bound(self) -> None:
        """Let the next operation take no longer than what is left.

        Raises:
            TimeoutError: nothing is left.
        """
        left = self._deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError("the time is up")
        self.settimeout(left)

    def connect(self, address: str) -> None:  # type: ignore[override] # unix sockets only
        """Connect, until the deadline."""
        self.bound()
        super().connect(address)

    def sendall(self, data: Buffer, flags: int = 0) -> None:
        """Send all, until the deadline (the timeout of `socket.sendall` is one for the whole call)."""
        self.bound()
        super().sendall(data, flags)

    def recv_into(self, buffer: Buffer, nbytes: int = 0, flags: int = 0) -> int:
        """Receive some, until the deadline."""
        self.bound()
        return super().recv_into(buffer, nbytes, flags)


def _json(content: bytes, what: str) -> JsonValue:
    try:
        return cast("JsonValue", json.loads(content, parse_constant=_refuse_constant))
    except (ValueError, RecursionError) as error:
        raise EngineUnreachable(f"{what}: the answer is not JSON: {_words(error)}") from error


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no number in JSON")


def _words(error: BaseException) -> str:
    """An error for people: its own words where the system knows them, never a line break that an engine sent."""
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return ascii(text)[1:-1][:_QUOTED] or type(error).__name__
