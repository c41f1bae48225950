"""The front's process: `python -I -m runtime.front.program SETTINGS REPORT-FD`. Started by the agent, and survives it.

It detaches, holds a lock on its folder while it lives, binds its socket beside the address and renames it into place:
clients of the front before it, if there is one, never meet a closed door, and that one goes on until its last answer.

Files in its folder: `settings.json` (read), `lock`, `state.json` (which socket it has bound), `control.sock`,
`front.log`.
Signals: SIGTERM and SIGINT end it after the last answer that the runtime gives it; what only waits is refused.
"""

from __future__ import annotations

import asyncio
import ctypes
import fcntl
import json
import logging
import logging.handlers
import os
import resource
import signal
import socket
import sys
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, cast

from runtime.backends import native_confinement, native_shim
from runtime.front.client import Client
from runtime.front.reading import RequestReader, plain
from runtime.front.relay import Relay, Settings
from runtime.front.rules import Refused

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

LOG_BYTES: Final = 2**19
"""Of its own words; twice as much is kept."""
BACKLOG: Final = 512
LOOK_SECONDS: Final = 5.0
"""Between two looks whether the address is still its own: all that it does when nobody asks."""
LEAVE_SECONDS: Final = 0.5
"""For whom had found the address just before another front took it."""
DESCRIPTORS: Final = 64
"""Beside two for each client."""

CAP_DAC_OVERRIDE: Final = 1
"""From linux/capability.h. An engine's socket belongs to the engine's user: root needs it to connect there."""

LOG = logging.getLogger("front")


@dataclass(frozen=True, slots=True)
class Place:
    """Where a front lives."""

    folder: Path
    """Its own folder."""
    address: Path
    """Where clients find it."""
    group: int = -1
    """Group of the address, -1 for the process's own."""


class Control(asyncio.Protocol):
    """The agent's connection: `GET /stats`, `POST /retire`. Its folder is closed to all others."""

    def __init__(self, relay: Relay, retire: Callable[[], None]) -> None:
        self._relay = relay
        self._retire = retire
        self._reader = RequestReader(check=self._check, max_body=0)
        self._transport: asyncio.Transport = None  # type: ignore[assignment] # set before anything else is called

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """An agent asks."""
        self._transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        """Bytes of a request."""
        try:
            self._reader.feed(data)
        except Refused as refused:
            answer = plain(refused.status, refused.body(), close=True, headers=refused.headers)
        else:
            if not self._reader.complete:
                return
            if self._reader.method == "POST":
                self._retire()
            answer = plain(200, json.dumps(self._relay.stats()).encode(), close=True)
        self._transport.write(answer)
        self._transport.close()

    def _check(self, method: str, target: str) -> None:
        if (method, target) not in (("GET", "/stats"), ("POST", "/retire")):
            raise Refused(404, "not_found", "GET /stats, POST /retire")


class Front:
    """A front that listens."""

    def __init__(self, place: Place, settings: Settings) -> None:
        self.relay = Relay(settings, report=LOG.warning)
        self._place = place
        self._inode = 0
        self._servers: list[asyncio.Server] = []
        self._retired = asyncio.Event()

    async def run(self, ready: Callable[[], None]) -> None:
        """Serve until another front has taken the address, and the last answer is given.

        Args:
            ready: called once it listens.
        """
        loop = asyncio.get_running_loop()
        control = listening(self._place.folder / "control.sock", mode=0o600)
        self._servers.append(await loop.create_server(lambda: Control(self.relay, self.retire), sock=control))
        door = listening(self._place.address, mode=0o660, group=self._place.group)
        self._inode = self._place.address.lstat().st_ino
        native_shim.publish(self._place.folder / "state.json", {"inode": self._inode})
        self._servers.append(await loop.create_server(lambda: Client(self.relay), sock=door, backlog=BACKLOG))
        ready()
        while not self._retired.is_set():
            with suppress(TimeoutError):
                await asyncio.wait_for(self._retired.wait(), LOOK_SECONDS)
            if not self._is_mine():
                self.retire()
        await asyncio.sleep(LEAVE_SECONDS)
        self._servers.pop().close()
        if self.relay.leaving:
            self.relay.dismiss()  # who came meanwhile
        await self.relay.deserted()
        self._servers.pop().close()

    def retire(self) -> None:
        """Take nobody new; connections end with their answers."""
        self.relay.retiring = True
        self._retired.set()

    def leave(self) -> None:
        """Take the address away, and end with the answers that the runtime still gives: a machine may be going down."""
        if self._is_mine():
            self._place.address.unlink(missing_ok=True)
        self.relay.dismiss()
        self.retire()

    def _is_mine(self) -> bool:
        try:
            return self._place.address.lstat().st_ino == self._inode
        except OSError:
            return False


def listening(path: Path, *, mode: int, group: int = -1) -> socket.socket:
    """A socket that listens at a path, put there in one step in the place of whatever was there.

    Raises:
        OSError: refused.
    """
    door = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    folder = os.open(path.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        new = path.with_name(f".{path.name}.new")
        new.unlink(missing_ok=True)
        # By way of its folder: unix(7) has room for 107 bytes of a path.
        door.bind(f"/proc/self/fd/{folder}/{new.name}")
        os.chown(new, -1, group)
        new.chmod(mode)
        door.listen(BACKLOG)
        new.replace(path)
    except OSError:
        door.close()
        raise
    finally:
        os.close(folder)
    door.setblocking(False)  # noqa: FBT003 - the standard library's
    return door


def lock_in() -> None:
    """Give up what the front does not need: the network, every capability but one, every way to gain one."""
    native_confinement.prctl(native_confinement.PR_SET_NO_NEW_PRIVS, 1)
    if os.geteuid() != 0:
        # A user namespace would take the network too, but in it no client's user id could be told from another's.
        return
    with suppress(OSError):
        native_confinement.unshare("plain")
    kept = 1 << CAP_DAC_OVERRIDE
    header = (ctypes.c_uint32 * 2)(native_confinement.CAPABILITY_VERSION_3, 0)
    ctypes.CDLL(None, use_errno=True).capset(header, (ctypes.c_uint32 * 6)(kept, kept, 0, 0, 0, 0))


async def serve(place: Place, settings: Settings, ready: Callable[[], None]) -> None:
    """The whole life of a front."""
    front = Front(place, settings)
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, front.leave)
    await front.run(ready)


def main(arguments: Sequence[str]) -> int:
    """Run the program; see the module's docstring."""
    path, told = Path(arguments[0]), int(arguments[1])
    if os.fork() != 0:
        # The agent waits for this process only; the one that stays is adopted by init, and no zombie is left.
        os._exit(0)
    folder = path.parent

    def report(message: str) -> None:
        with suppress(OSError):
            os.write(told, message.encode()[:4096])
            os.close(told)

    try:
        lock = os.open(folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        fcntl.lockf(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        value: dict[str, Any] = json.loads(path.read_bytes())
        settings = Settings(**{**value["settings"], "allow": tuple(value["settings"]["allow"])})
        place = Place(folder, Path(value["address"]), value["group"])
        handler = logging.handlers.RotatingFileHandler(folder / "front.log", maxBytes=LOG_BYTES, backupCount=1)
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
        logging.getLogger().addHandler(handler)
        most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
        wanted = 2 * settings.connections + DESCRIPTORS
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(wanted, most), most))
        lock_in()
        asyncio.run(serve(place, settings, lambda: report("ok")))
    except (OSError, ValueError, KeyError, TypeError) as error:
        LOG.exception("the front ends")
        report(f"{type(error).__name__}: {error}")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
