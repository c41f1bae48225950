"""While a pass changes things: is there a newer snapshot that wants something else, or a person who does?

Only a daemon looks, and only at what may be believed: a snapshot counts once it would be accepted. A git host that
moves its branch about, or somebody who keeps notifying, cannot keep a swap from ending. A person at the node can: what
has been asked through the control socket is in the journal already, and the next round reads it there.
"""

from __future__ import annotations

import logging
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final, Literal

from schemas.errors import ReconcileError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from reconciler.target import Choice
    from reconciler.watch import Wake
    from schemas.ports import Stop
    from schemas.snapshot import SnapshotDocument

LOG = logging.getLogger("reconcile")

Hand = Literal["suspend", "redirect"]
"""What a person's word means for what is under way."""

SLICE_SECONDS: Final = 0.1
"""How long a wait goes on after one of the two things that end it; the other one wakes it at once."""

LAST_LOOK_SECONDS: Final = 2.0
"""Given to a look that is under way when the pass has ended. It only reads, and may end after that by itself."""


class PassStop:
    """The stop of one plan: the agent's own, a newer snapshot that wants something else, or a person who does."""

    def __init__(self, agent: Stop) -> None:
        self._agent = agent
        self._superseded = threading.Event()
        self._redirected = threading.Event()
        self._suspended = threading.Event()
        self._committed = threading.Event()

    @property
    def superseded(self) -> bool:
        """Whether a newer snapshot was noticed."""
        return self._superseded.is_set()

    @property
    def by_hand(self) -> bool:
        """Whether it is a person who has ended it."""
        return self._redirected.is_set() or self._is_suspended()

    def supersede(self) -> None:
        """A newer snapshot was noticed."""
        self._superseded.set()

    def redirect(self) -> None:
        """A person wants something else of this node, and something serves again at the end of that."""
        self._redirected.set()

    def suspend(self) -> None:
        """A person wants nothing to be changed. What serves has been stopped already: that comes to its end first."""
        self._suspended.set()

    def commit(self) -> None:
        """What serves is about to be stopped: to end here would leave nothing that serves (I6)."""
        self._committed.set()

    def is_set(self) -> bool:
        """Whether what takes time should end (the `Stop` protocol)."""
        return self._superseded.is_set() or self.by_hand or self._agent.is_set()

    def _is_suspended(self) -> bool:
        return self._suspended.is_set() and not self._committed.is_set()

    def wait(self, seconds: float) -> bool:
        """Sleep unless there is a reason to end (the `Stop` protocol)."""
        left = seconds
        while not self.is_set():
            if left <= SLICE_SECONDS:
                return self._agent.wait(left) or self.is_set()
            if self._agent.wait(SLICE_SECONDS):
                return True
            left -= SLICE_SECONDS
        return True


class Lookout:
    """Looks for a newer snapshot beside a pass: when the loop is woken, and otherwise once in an interval."""

    def __init__(self, scout: Callable[[str], bool], *, wake: Wake, interval: float) -> None:
        """Look at nothing yet.

        Args:
            scout: whether there is a newer snapshot than the one of this digest, wanting something else of this node.
                Called in a thread of its own; writes nothing.
            wake: what the triggers set.
            interval: seconds between looks when nothing wakes.
        """
        self._scout = scout
        self._wake = wake
        self._interval = interval
        self._news = threading.Event()
        self._lock = threading.Lock()
        self._asked: Hand | None = None
        self._stop: PassStop | None = None
        wake.also(self._news)

    def forget(self) -> None:
        """A pass begins: what came until now, it sees itself."""
        self._news.clear()

    def read(self) -> None:
        """The journal is about to be read: what a person asked for until now is in there."""
        with self._lock:
            self._asked = None

    def ask(self, hand: Hand) -> None:
        """A person has asked for something, which is in the journal; called by any thread.

        Args:
            hand: `suspend` ends what is under way unless nothing serves because of it; `redirect` ends it anyway.
        """
        with self._lock:
            self._asked = hand
            if self._stop is not None:
                _tell(self._stop, hand)

    @contextmanager
    def beside(self, digest: str, agent: Stop, *, suspended: bool = False) -> Iterator[PassStop]:
        """Look, and listen, while something is carried out.

        Args:
            digest: the snapshot that it is carried out for.
            agent: ends it as well.
            suspended: it is what is done in spite of a suspension: nobody suspends it again.
        """
        with self.heard(agent, suspended=suspended) as stop:
            ended = threading.Event()
            thread = threading.Thread(target=self._look, args=(digest, stop, ended), daemon=True)
            thread.start()
            try:
                yield stop
            finally:
                ended.set()
                woken = self._news.is_set()
                self._news.set()
                thread.join(LAST_LOOK_SECONDS)
                if not woken:
                    self._news.clear()

    @contextmanager
    def heard(self, agent: Stop, *, suspended: bool = False) -> Iterator[PassStop]:
        """What a person asks ends what is carried out; arguments as `beside`."""
        stop = PassStop(agent)
        with self._lock:
            self._stop = None if suspended else stop
            if self._stop is not None and self._asked is not None:
                # Asked after the plan was made, and before anything was done.
                _tell(stop, self._asked)
        try:
            yield stop
        finally:
            with self._lock:
                self._stop = None

    def _look(self, digest: str, stop: PassStop, ended: threading.Event) -> None:
        while not (ended.is_set() or stop.is_set()):
            self._news.wait(self._interval)
            if ended.is_set() or stop.is_set():
                return
            self._news.clear()
            try:
                found = self._scout(digest)
            except (ReconcileError, OSError) as error:
                # What cannot be seen now is no news; the next pass says what is wrong.
                LOG.info("no look at the repositories beside a pass: %s", error)
                continue
            if found and not ended.is_set():
                stop.supersede()
                # The next pass begins at once.
                self._wake.now()


def _tell(stop: PassStop, hand: Hand) -> None:
    if hand == "suspend":
        stop.suspend()
    else:
        stop.redirect()


def wants_else(before: tuple[SnapshotDocument, Choice], after: tuple[SnapshotDocument, Choice]) -> bool:
    """Whether a newer snapshot asks something else of this node than the one that is being carried out. Pure.

    What does not concern this node is no reason to give up minutes of loading.
    """
    return _asked(*before) != _asked(*after)


def _asked(document: SnapshotDocument, choice: Choice) -> tuple[object, ...]:
    spec = document.spec
    return (choice.target, choice.serve, spec.withdrawn, spec.retry, spec.policy)
