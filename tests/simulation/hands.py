"""A person who asks for something in the middle of a pass: what the control socket does, without its threads."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from reconciler.lookout import Lookout
from reconciler.memory import Note
from reconciler.watch import Wake

if TYPE_CHECKING:
    from contextlib import AbstractContextManager
    from datetime import datetime

    from reconciler.journal import Journal
    from reconciler.lookout import PassStop
    from schemas.ports import Stop

Word = Literal["suspend", "retry"]


class Hand(Lookout):
    """Looks at no repository; speaks when so many actions have begun."""

    def __init__(self) -> None:
        """Nobody says anything."""
        super().__init__(lambda _digest: False, wake=Wake(), interval=3600)
        self.word: Word = "suspend"
        self.after = 0
        """Actions that begin until it is said; 0 for never."""

    def beside(self, digest: str, agent: Stop, *, suspended: bool = False) -> AbstractContextManager[PassStop]:
        """Whatever snapshot it is carried out for."""
        return self.heard(agent, suspended=suspended)

    def step(self, journal: Journal, now: datetime) -> Word | None:
        """An action begins; what is said now."""
        self.after -= 1
        if self.after != 0:
            return None
        if self.word == "suspend":
            journal.set_fact("suspended", "maintenance")
            self.ask("suspend")
        else:
            journal.forget_rejections(None, Note("Normal", "RetryAsked", "by hand"), now)
            self.ask("redirect")
        return self.word
