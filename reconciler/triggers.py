"""What wakes a daemon early: a local repository that moved, its configuration, an instance that ended.

They only say "look now": every pass takes the same path, and a burst is one pass. Whoever asks through the control
socket wakes it as well (`reconciler.control`).
"""

from __future__ import annotations

import logging
import threading
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from desired_state.local_repository import watched_folders

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from reconciler.watch import Wake
    from runtime.interfaces import Follower

LOG = logging.getLogger("reconcile")

_STEP_MS: Final = 40
"""How often the library looks whether something came, and how long it has to have been quiet then, so that a commit
waits for 60 ms on average. Each look wakes a processor that sleeps, for some 35 us: 0.09 % of it at this pace, which is
most of what an idle daemon costs."""
_DEBOUNCE_MS: Final = 50
"""A push touches several files within milliseconds; they are one change. What comes later is another pass."""
_END_SECONDS: Final = 5.0
_PACKED: Final = frozenset({"packed-refs"})


@dataclass(frozen=True, slots=True)
class Sights:
    """What is looked at."""

    urls: Sequence[str] = ()
    """The node's repositories; those on this machine are watched."""
    branch: str = ""
    config: Path | None = None
    """The node's configuration; a change of it asks for it to be read again."""
    instances: Sequence[Follower] = ()
    """What notices the end of instances."""


@contextmanager
def triggers(wake: Wake, sights: Sights) -> Iterator[Callable[[], None]]:
    """Wake a daemon when something says that there may be something new.

    Args:
        wake: what is woken.
        sights: what is looked at.

    Yields:
        What is to be called when a pass has ended, so that new instances are looked at as well.
    """
    ended = threading.Event()
    threads = [
        threading.Thread(target=one.follow, args=(wake.now,), name="instances", daemon=True) for one in sights.instances
    ]
    folders = _folders(sights)
    if folders:
        config = str(sights.config.absolute()) if sights.config is not None else ""
        arguments = (folders, config, wake, ended)
        threads.append(threading.Thread(target=_watch, args=arguments, name="files", daemon=True))

    def renew() -> None:
        for one in sights.instances:
            one.renew()

    renew()
    for thread in threads:
        thread.start()
    try:
        yield renew
    finally:
        ended.set()
        for one in sights.instances:
            one.close()
        for thread in threads:
            thread.join(_END_SECONDS)


def _folders(sights: Sights) -> dict[Path, frozenset[str] | None]:
    """What to watch: by folder, the names that count, None for all."""
    found: dict[Path, frozenset[str] | None] = {}
    for url in sights.urls:
        for folder in watched_folders(url, sights.branch):
            found[folder] = None if "heads" in folder.parts else _PACKED
    if sights.config is not None and sights.config.parent.is_dir():
        folder = sights.config.parent.absolute()
        known = found.get(folder, frozenset())
        found[folder] = None if known is None else known | {sights.config.name}
    return found


def _watch(folders: dict[Path, frozenset[str] | None], config: str, wake: Wake, ended: threading.Event) -> None:
    from watchfiles import watch  # noqa: PLC0415 - 40 ms, for daemons only

    try:
        # Flat: a repository has thousands of folders of objects. No filter: the library's own leaves out `.git`.
        for changes in watch(
            *folders,
            watch_filter=None,
            stop_event=ended,
            recursive=False,
            debounce=_DEBOUNCE_MS,
            step=_STEP_MS,
            raise_interrupt=False,
        ):
            names = [name for _, name in changes if _counts(Path(name), folders)]
            if names:
                wake.now(reload=config in names)
    except (OSError, RuntimeError) as error:
        # Polling goes on; being woken early is a comfort.
        LOG.warning("repositories and configuration are not watched: %s", error)


def _counts(path: Path, folders: dict[Path, frozenset[str] | None]) -> bool:
    wanted = folders.get(path.parent, frozenset())
    # git writes a lock beside what it changes, and renames it into place: the rename is the change.
    return path.suffix != ".lock" and (wanted is None or path.name in wanted)
