"""Servers that are wrong without wrong weights: what stands between the agent and an honest engine."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from tests.power.serving import Remembered

if TYPE_CHECKING:
    from collections.abc import Sequence

    from runtime.interfaces import Engine
    from runtime.validation.evidence import TopTokens


class Truncating(Remembered):
    """The model sees the last tokens of a prompt alone."""

    def __init__(self, engine: Engine, tokens: int) -> None:
        """Keep so many."""
        super().__init__(engine)
        self._tokens = tokens

    def force(self, connection: Any, prompt: Sequence[int], forced: Sequence[int]) -> tuple[TopTokens, ...]:
        """The engine is asked for less."""
        return super().force(connection, tuple(prompt)[-self._tokens :], forced)


class Prefixing(Remembered):
    """Another beginning of sequence is put before every prompt, whether or not there is one."""

    def __init__(self, engine: Engine, token: int) -> None:
        """Which one."""
        super().__init__(engine)
        self._token = token

    def force(self, connection: Any, prompt: Sequence[int], forced: Sequence[int]) -> tuple[TopTokens, ...]:
        """The engine is asked for more."""
        return super().force(connection, (self._token, *prompt), forced)


class Beheading(Remembered):
    """The beginning of sequence is taken from every prompt."""

    def force(self, connection: Any, prompt: Sequence[int], forced: Sequence[int]) -> tuple[TopTokens, ...]:
        """The engine is asked for less."""
        return super().force(connection, tuple(prompt)[1:], forced)


class Seedless(Remembered):
    """The sampler draws anew whatever the seed."""

    _drawn = 0

    def sample(self, connection: Any, prompt: Sequence[int], *, tokens: int, seed: int, temperature: float) -> Any:
        """Another seed each time."""
        self._drawn += 1
        return self.engine.sample(
            connection, prompt, tokens=tokens, seed=seed + 7919 * self._drawn, temperature=temperature
        )


class Tepid(Remembered):
    """The sampler has one temperature of its own."""

    def __init__(self, engine: Engine, temperature: float) -> None:
        """Which one."""
        super().__init__(engine)
        self._temperature = temperature

    def sample(self, connection: Any, prompt: Sequence[int], *, tokens: int, seed: int, temperature: float) -> Any:
        """Whatever is asked for."""
        del temperature
        return self.engine.sample(connection, prompt, tokens=tokens, seed=seed, temperature=self._temperature)


class Canned(Remembered):
    """A proxy without a model: it has recorded answers to some cases, and gives those to whatever it is asked.

    What it has seen, it answers perfectly. To anything else it gives the recorded answer whose prompt and forced tokens
    share the most with what is asked, with the tokens exchanged: as close as a list can come.
    """

    def __init__(self, engine: Remembered, seen: Sequence[tuple[Sequence[int], Sequence[int]]]) -> None:
        """Take over the answers to what it has seen."""
        super().__init__(engine.engine)
        self._seen = [(tuple(prompt), tuple(forced)) for prompt, forced in seen]
        self._engine = engine
        self.known = {key: value for key, value in engine.known.items() if key[0] != "force"}

    def force(self, connection: Any, prompt: Sequence[int], forced: Sequence[int]) -> tuple[TopTokens, ...]:
        """From the list."""
        key = (tuple(prompt), tuple(forced))
        if key not in self.known:
            best = max(self._seen, key=lambda one: len({*one[0], *one[1]} & {*prompt, *forced}) + 1000 * (one == key))
            answer = self._engine.force(connection, *best)
            self.known[key] = tuple(
                replace(
                    position,
                    forced=token,
                    logprob=dict(zip(position.ids, position.logprobs, strict=True)).get(token, position.logprobs[-1]),
                )
                for position, token in zip(answer, forced, strict=True)
            )
        found: tuple[TopTokens, ...] = self.known[key]
        return found
