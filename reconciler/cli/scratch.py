"""Folders of momentary instances. They go however their command ends: by itself, by a signal, or with the next run."""

from __future__ import annotations

import fcntl
import os
import shutil
import signal
import sys
import tempfile
import threading
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from types import FrameType

PREFIX: Final = "reconcile-record-"
_LOCK: Final = "lock"
_SIGNALS: Final = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


@contextmanager
def scratch() -> Iterator[Path]:
    """A folder that is this process's until it ends, however it ends."""
    root = Path(tempfile.mkdtemp(prefix=PREFIX))
    # Locked before it has its name: whoever looks for folders of the dead finds none that is just being made.
    made = root / f"{_LOCK}.new"
    descriptor = os.open(made, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        made.rename(root / _LOCK)
        yield root
    finally:
        shutil.rmtree(root, ignore_errors=True)
        os.close(descriptor)


def abandoned() -> Iterator[Path]:
    """Folders of this user whose process is gone; each is held while the caller looks at it."""
    for root in sorted(Path(tempfile.gettempdir()).glob(f"{PREFIX}*")):
        try:
            seen = root.lstat()
            if seen.st_uid != os.geteuid() or not root.is_dir() or root.is_symlink():
                continue
            descriptor = os.open(root / _LOCK, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
        except OSError:
            continue
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            continue
        else:
            yield root
        finally:
            os.close(descriptor)


@contextmanager
def signals_unwind() -> Iterator[Callable[[], None]]:
    """Signals that end a process unwind it, so that what it started goes with it.

    Yields:
        What is to be called before the unwinding itself: from then on they wait until it is done.
    """
    if threading.current_thread() is not threading.main_thread():
        yield lambda: None
        return

    def unwind(number: int, _frame: FrameType | None) -> None:
        sys.exit(128 + number)

    def hold() -> None:
        for number in caught:
            signal.signal(number, signal.SIG_IGN)

    # What is ignored stays so: a job in the background of a shell is not meant.
    caught = {number: signal.getsignal(number) for number in _SIGNALS if signal.getsignal(number) is not signal.SIG_IGN}
    for number in caught:
        if number is not signal.SIGINT:
            # Ctrl-C unwinds by itself, and says that it did.
            signal.signal(number, unwind)
    try:
        yield hold
    finally:
        for number, before in caught.items():
            with suppress(TypeError):  # a handler that was not set from Python
                signal.signal(number, before)
