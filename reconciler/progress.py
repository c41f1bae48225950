"""What happens in a pass, as JSON: for `--json` on standard error, and for who asked a daemon. One form for both."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from pydantic import TypeAdapter

from reconciler.executor import Outcome
from schemas.failure import Failure, error_of
from schemas.plan import Action

if TYPE_CHECKING:
    from collections.abc import Mapping

    from reconciler.executor import Reporter

Event = dict[str, Any]


def started(action: Action) -> Event:
    """An action begins."""
    return {"formatVersion": "1", "event": "started", "action": json.loads(action.to_json())}


def finished(outcome: Outcome) -> Event:
    """An action ended, or was skipped."""
    error = None
    if outcome.error is not None:
        error = {"reason": outcome.error.reason, "message": outcome.error.message}
    return {
        "formatVersion": "1",
        "event": "finished",
        "action": outcome.action.id,
        "status": outcome.status,
        "seconds": round(outcome.seconds, 3),
        "error": error,
    }


def advanced(subject: str, done: int, total: int) -> Event:
    """Bytes of something long are secured."""
    return {"formatVersion": "1", "event": "progress", "subject": subject, "done": done, "total": total}


class Retelling:
    """Tells a display here what happens in another process, and keeps how its actions ended."""

    def __init__(self, reporter: Reporter, advance: Any) -> None:
        """Retell to a display.

        Args:
            reporter: told of actions.
            advance: told of bytes: `(subject, done, total)`.
        """
        self._reporter = reporter
        self._advance = advance
        self._actions: dict[str, Action] = {}
        self.outcomes: list[Outcome] = []

    def __call__(self, event: Mapping[str, Any]) -> None:
        """Retell one event; one that this version does not know is left out."""
        if event.get("event") == "started":
            # Strict models take JSON's arrays for tuples only when they read JSON.
            action = _ACTION.validate_json(json.dumps(event["action"]))
            self._actions[action.id] = action
            self._reporter.started(action)
        elif event.get("event") == "finished" and event["action"] in self._actions:
            error = event.get("error")
            failed = error_of(Failure(reason=error["reason"], message=error["message"])) if error else None
            outcome = Outcome(self._actions[event["action"]], event["status"], failed, float(event["seconds"]))
            self.outcomes.append(outcome)
            self._reporter.finished(outcome)
        elif event.get("event") == "progress":
            self._advance(str(event["subject"]), int(event["done"]), int(event["total"]))


_ACTION: TypeAdapter[Action] = TypeAdapter(Action)
