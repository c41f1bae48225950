"""What wakes a daemon early: a local repository that moved, a `reconcile notify`. They only say "look now"."""

from __future__ import annotations

import logging
import os
import socket
import struct
import threading
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Final

from schemas.errors import SourceUnreachable

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from reconciler.state_dir import StateDir
    from reconciler.watch import Wake

LOG = logging.getLogger("reconcile")

NOTIFY_SOCKET: Final = "notify.sock"
_PEER: Final = struct.Struct("3i")
"""SO_PEERCRED: pid, uid, gid (unix(7))."""
_ACCEPT_SECONDS: Final = 0.5
"""How often the listener looks whether it should end."""
_DEBOUNCE_MS: Final = 50
"""A push touches several files within milliseconds; they are one change."""
_CONNECT_SECONDS: Final = 5


@contextmanager
def triggers(wake: Wake, state: StateDir, urls: Sequence[str]) -> Iterator[None]:
    """Wake a daemon when something says that there may be something new.

    Args:
        wake: what is woken.
        state: where the notify socket is.
        urls: the node's repositories; those on this machine are watched.
    """
    ended = threading.Event()
    with ExitStack() as stack:
        stack.callback(ended.set)
        folders = [folder for url in urls for folder in local_refs(url)]
        threads = [threading.Thread(target=_listen, args=(state.run / NOTIFY_SOCKET, wake, ended), daemon=True)]
        if folders:
            threads.append(threading.Thread(target=_watch, args=(folders, wake, ended), daemon=True))
        for thread in threads:
            thread.start()
        yield


def local_refs(url: str) -> tuple[Path, ...]:
    """The folders of a repository on this machine in which a branch that moves leaves a trace; empty for others."""
    path = Path(url.removeprefix("file://"))
    if "://" in str(url.removeprefix("file://")) or not path.is_absolute():
        return ()
    git = path / ".git" if (path / ".git").is_dir() else path
    if not (git / "refs" / "heads").is_dir():
        return ()
    # Branches move in refs/heads; `git gc` moves them into packed-refs, beside HEAD.
    return (git / "refs" / "heads", git)


def _watch(folders: Sequence[Path], wake: Wake, ended: threading.Event) -> None:
    from watchfiles import watch  # noqa: PLC0415 - 40 ms, for daemons with local repositories only

    heads = [folder for folder in folders if folder.name == "heads"]
    others = [folder for folder in folders if folder.name != "heads"]
    try:
        if others:
            flat = threading.Thread(target=_watch_flat, args=(others, wake, ended), daemon=True)
            flat.start()
        # No filter: the library's own leaves out everything below `.git`.
        for _ in watch(
            *heads,
            watch_filter=None,
            stop_event=ended,
            debounce=_DEBOUNCE_MS,
            step=_DEBOUNCE_MS,
            raise_interrupt=False,
        ):
            wake.now()
    except (OSError, RuntimeError) as error:
        # Polling goes on; being woken early is a comfort.
        LOG.warning("local repositories are not watched: %s", error)


def _watch_flat(folders: Sequence[Path], wake: Wake, ended: threading.Event) -> None:
    from watchfiles import watch  # noqa: PLC0415 - as above

    with suppress(OSError, RuntimeError):
        for changes in watch(
            *folders,
            watch_filter=None,
            stop_event=ended,
            recursive=False,
            debounce=_DEBOUNCE_MS,
            step=_DEBOUNCE_MS,
            raise_interrupt=False,
        ):
            if any(Path(name).name == "packed-refs" for _, name in changes):
                wake.now()


# --- notify -------------------------------------------------------------------------------------------------------


def _listen(path: Path, wake: Wake, ended: threading.Event) -> None:
    path.unlink(missing_ok=True)
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        try:
            with _short(path) as address:
                listener.bind(address)
            path.chmod(0o660)
        except OSError as error:
            LOG.warning("%s cannot be used: %s", path, error)
            return
        listener.listen(8)
        listener.settimeout(_ACCEPT_SECONDS)
        while not ended.is_set():
            try:
                connection, _ = listener.accept()
            except TimeoutError:
                continue
            with connection:
                if _may_notify(connection):
                    wake.now()
                    connection.sendall(b"ok\n")
    path.unlink(missing_ok=True)


def _may_notify(connection: socket.socket) -> bool:
    """Only root and this daemon's own user: whoever else can reach the socket could keep the daemon busy."""
    _, uid, _ = _PEER.unpack(connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _PEER.size))
    return uid in (0, os.geteuid())


def notify(state: StateDir) -> None:
    """Tell a running daemon to look at once.

    Raises:
        SourceUnreachable: no daemon listens here, or it did not take the word of this user.
    """
    path = state.run / NOTIFY_SOCKET
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.settimeout(_CONNECT_SECONDS)
        try:
            with _short(path) as address:
                connection.connect(address)
            answer = connection.recv(16)
        except OSError as error:
            raise SourceUnreachable(
                f"no daemon listens on {path}", hint="`reconcile --watch` does; `reconcile` looks by itself"
            ) from error
    if answer != b"ok\n":
        raise SourceUnreachable("the daemon did not take the word of this user", hint="run it as the daemon's user")


@contextmanager
def _short(path: Path) -> Iterator[str]:
    """An address of a socket however long its path is: unix(7) has room for 107 bytes only."""
    folder = os.open(path.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{folder}/{path.name}"
    finally:
        os.close(folder)
