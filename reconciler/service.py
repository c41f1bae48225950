"""The daemon under a service manager: sd_notify(3), and the unit that goes with it.

The protocol is one datagram to a socket that the environment names; where there is none, nothing is said.
"""

from __future__ import annotations

import os
import socket
import threading
import time
from contextlib import contextmanager, suppress
from importlib.resources import files
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

SILENCE_SECONDS: Final = 1800.0
"""A pass in which nothing begins, ends or moves for so long is taken for hung. Loading the largest models, hashing
them on a slow disk and waiting for a drain are all shorter, or tell of their progress."""

_UNIT: Final = "reconcile.service"


def notify(*assignments: str) -> None:
    """Tell the service manager, if there is one; never fails.

    Args:
        assignments: `READY=1`, `STATUS=...` and their like (sd_notify(3)).
    """
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address.startswith(("/", "@")):
        return
    with suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sender:
        # A leading @ stands for the null byte of an abstract address.
        sender.connect("\0" + address[1:] if address[0] == "@" else address)
        sender.sendall("\n".join(assignments).encode())


def reloading() -> None:
    """Tell the service manager that the configuration is read again; READY=1 ends that (Type=notify-reload as well)."""
    notify("RELOADING=1", f"MONOTONIC_USEC={time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000}")


class Pulse:
    """Feeds the service manager's watchdog for as long as the thread that decides shows signs of life."""

    def __init__(self) -> None:
        """It lives now."""
        self._seen = time.monotonic()
        self._resting = False

    def beat(self) -> None:
        """Something began, ended or moved."""
        self._seen, self._resting = time.monotonic(), False

    def rest(self) -> None:
        """The loop rests, which is no sign of death however long it takes."""
        self._resting = True

    def alive(self) -> bool:
        """Whether the watchdog is fed."""
        return self._resting or time.monotonic() - self._seen < SILENCE_SECONDS

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Feed the watchdog that the environment asks for, if it does (sd_watchdog_enabled(3))."""
        microseconds, pid = os.environ.get("WATCHDOG_USEC", ""), os.environ.get("WATCHDOG_PID", "")
        if not microseconds.isdigit() or (pid and pid != str(os.getpid())):
            yield
            return
        ended = threading.Event()
        thread = threading.Thread(target=self._feed, args=(int(microseconds) / 2e6, ended), name="pulse", daemon=True)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()

    def _feed(self, every: float, ended: threading.Event) -> None:
        while self.alive():
            notify("WATCHDOG=1")
            if ended.wait(every):
                return


def unit(program: Path, config: Path, *, stop_runtime: bool) -> str:
    """A hardened systemd unit for a node.

    Args:
        program: the installed command.
        config: the node's configuration.
        stop_runtime: whether the runtime ends with the service.
    """
    text = files("reconciler").joinpath(_UNIT).read_text(encoding="utf-8")
    arguments = ["--config", str(config), "--watch", *(["--stop-runtime"] if stop_runtime else [])]
    command = " ".join(_escape(part) for part in (str(program), *arguments))
    return text.replace("@COMMAND@", command.replace("$", "$$"))


def _escape(text: str) -> str:
    """A word of a unit file (systemd.syntax(7)): % begins a specifier, quotes and backslashes are C's."""
    escaped = text.replace("\\", "\\\\").replace('"', '\\"').replace("%", "%%")
    return f'"{escaped}"' if escaped != text or " " in text else text
