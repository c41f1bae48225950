"""Tells people and programs of a node's events: once each, in order, also after a restart, and never in the way.

The queue is the journal itself: for everybody who is told, a file remembers the last event that was settled. So nothing
is lost by a crash; an event whose receiver crashed us is told again, under the same id. What cannot be delivered is
tried again at growing intervals, and what waits is bounded: the oldest is dropped, with a word in the log.
"""

from __future__ import annotations

import json
import logging
import threading
from collections import deque
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from schemas.digests import digest_text
from schemas.errors import ReconcileError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from pathlib import Path

    from reconciler.journal import Event, Journal
    from runtime.notifying import Deliver
    from schemas.node import Notification
    from schemas.ports import Ports

LOG = logging.getLogger("reconcile")

QUEUE: Final = 200
"""Events that may wait for one receiver."""
REMEMBERED: Final = 500
"""Told subjects that are remembered, so that each is told once."""
FIRST_RETRY_SECONDS: Final = 5.0
LAST_RETRY_SECONDS: Final = 3600.0


@dataclass(frozen=True, slots=True)
class Receiver:
    """Somebody who is told."""

    settings: Notification
    deliver: Deliver

    def wants(self, event: Event) -> bool:
        """Whether an event is one to tell of."""
        return event.reason in self.settings.events if self.settings.events else event.type == "Warning"


@dataclass(slots=True)
class _Progress:
    """How far one receiver is."""

    after: int
    """Number of the last event that is settled: told, not wanted, told before, or dropped."""
    told: deque[str] = field(default_factory=lambda: deque(maxlen=REMEMBERED))
    failures: int = 0
    not_before: float = 0.0
    """On the monotonic clock of this process."""


class Notifier:
    """Delivers what is due. Used by one thread."""

    def __init__(
        self,
        receivers: Sequence[Receiver],
        *,
        node: Mapping[str, str],
        journal: Callable[[], Journal],
        memory: Path,
        ports: Ports,
    ) -> None:
        """Know whom to tell.

        Args:
            receivers: whom.
            node: what every notification says of its node: network and id.
            journal: opens the journal for reading.
            memory: the file that remembers what was settled.
            ports: clock and durable writes.
        """
        self._receivers = receivers
        self._node = dict(node)
        self._journal = journal
        self._memory = memory
        self._ports = ports
        self._progress = self._read()

    def run(self) -> float | None:
        """Deliver what can be delivered; seconds until the next attempt, None when nothing waits."""
        before = self._written()
        with closing(self._journal()) as journal:
            waits = [self._tell(receiver, journal) for receiver in self._receivers]
        if self._written() != before:
            self._ports.files.write(self._memory, self._written(), mode=0o600)
        return min((wait for wait in waits if wait is not None), default=None)

    def _tell(self, receiver: Receiver, journal: Journal) -> float | None:
        name = receiver.settings.name
        progress = self._progress.get(name)
        if progress is None:
            # Whoever is new is told of what comes, not of what was.
            newest = journal.events(limit=1)
            progress = self._progress[name] = _Progress(newest[-1].number if newest else 0)
        left = progress.not_before - self._ports.clock.monotonic()
        if left > 0:
            return left
        accepted = journal.accepted()
        waiting = journal.events(after=progress.after, limit=QUEUE)
        if waiting and waiting[0].number > progress.after + 1 and len(waiting) == QUEUE:
            LOG.warning("notifications to %s: %d events were dropped", name, waiting[0].number - progress.after - 1)
        for event in waiting:
            key = digest_text(f"{event.reason}|{event.subject}|{accepted.digest if accepted else ''}")[-16:]
            if receiver.wants(event) and key not in progress.told:
                try:
                    receiver.deliver(event.reason, self._body(event, accepted.digest if accepted else None))
                except ReconcileError as error:
                    return self._failed(name, progress, error)
                progress.told.append(key)
            progress.after, progress.failures = event.number, 0
        return None

    def _failed(self, name: str, progress: _Progress, error: ReconcileError) -> float:
        pause = min(FIRST_RETRY_SECONDS * 2.0**progress.failures, LAST_RETRY_SECONDS)
        progress.failures = min(progress.failures + 1, 16)
        progress.not_before = self._ports.clock.monotonic() + pause
        LOG.warning("notifications to %s: %s: %s", name, error.reason, error.message)
        return pause

    def _body(self, event: Event, snapshot: str | None) -> bytes:
        document: dict[str, Any] = {
            "formatVersion": "1",
            "kind": "Notification",
            "id": f"{self._node['node']}/{event.number}",
            **self._node,
            "at": event.at.isoformat(),
            "type": event.type,
            "event": event.reason,
            "subject": event.subject,
            "message": event.message,
            "snapshot": snapshot,
        }
        return json.dumps(document, ensure_ascii=False).encode()

    # --- what is remembered ---------------------------------------------------------------------------------------

    def _read(self) -> dict[str, _Progress]:
        try:
            content = json.loads(self._memory.read_bytes())
            return {
                str(name): _Progress(int(item["after"]), deque(map(str, item["told"]), maxlen=REMEMBERED))
                for name, item in content.items()
            }
        except FileNotFoundError:
            return {}
        except (OSError, ValueError, TypeError, KeyError, AttributeError):
            LOG.warning("%s cannot be read: what was told before is forgotten", self._memory)
            return {}

    def _written(self) -> bytes:
        known = {receiver.settings.name for receiver in self._receivers}
        kept = {name: item for name, item in sorted(self._progress.items()) if name in known}
        content = {name: {"after": item.after, "told": list(item.told)} for name, item in kept.items()}
        return json.dumps(content).encode()


@contextmanager
def notifying(notifier: Notifier) -> Iterator[Callable[[], None]]:
    """Deliver in a thread of its own for the length of the `with`; what is yielded says that there may be news."""
    news, ended = threading.Event(), threading.Event()

    def work() -> None:
        wait: float | None = 0.0
        while not ended.is_set():
            news.wait(wait)
            news.clear()
            if ended.is_set():
                return
            try:
                wait = notifier.run()
            except (ReconcileError, OSError) as error:
                LOG.warning("notifications: %s", error)
                wait = FIRST_RETRY_SECONDS

    thread = threading.Thread(target=work, name="notifications", daemon=True)
    thread.start()
    try:
        yield news.set
    finally:
        ended.set()
        news.set()
        # A receiver that hangs is not waited for: what it was being told is told again by the next daemon.
        thread.join(timeout=1)
