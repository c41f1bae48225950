"""Asks a running model what its probe asks, and judges it: from a short draw on, for as long as it cannot be told."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from runtime.validation.evidence import SAMPLED_TOKENS, SAMPLING_TEMPERATURE, Evidence, Forced, Sampled, draw
from runtime.validation.generation import BEYOND, SCHEMA, cache_split
from runtime.validation.judge import forced_finding, ids_findings, judge, reference_for
from schemas.errors import EngineUnreachable
from schemas.probe import ChatMessage

if TYPE_CHECKING:
    from collections.abc import Sequence

    from runtime.interfaces import Engine, EngineConnection
    from runtime.validation.evidence import Platform
    from runtime.validation.judge import Verdict
    from schemas.ports import Clock, Stop
    from schemas.probe import ProbeDocument

QUESTION: Final = (ChatMessage(role="user", content="Name a city, and say whether it is a capital."),)
"""What is asked for the tasks that a model claims: any answer of the right form will do."""


def validate(
    engine: Engine,
    connection: EngineConnection,
    probe: ProbeDocument,
    *,
    platform: Platform,
    seed: str,
    clock: Clock,
    stop: Stop,
    tasks: Sequence[str] = (),
) -> tuple[Verdict, Evidence]:
    """Run a probe against a running instance, and say what it comes to.

    Args:
        engine: how the instance is asked.
        connection: to the instance, its peer checked.
        probe: the cases.
        platform: what computes: thresholds belong to it.
        seed: unguessable; which forced cases are asked follows from it, and what the sampler is seeded with.
        clock: for the limits on speed.
        stop: looked at between cases.
        tasks: what the model is said to be for; `json` and `tools` are tried.

    Raises:
        EngineUnreachable: the instance does not answer, or stopping was requested.
    """
    asking = _Asking(engine, connection, probe, platform, seed, clock, stop)
    evidence = asking.all(tasks)
    return judge(probe, evidence, platform), evidence


class _Asking:
    """One run. What an engine's protocol does not offer is left out, and the verdict says how strong it is."""

    def __init__(
        self,
        engine: Engine,
        connection: EngineConnection,
        probe: ProbeDocument,
        platform: Platform,
        seed: str,
        clock: Clock,
        stop: Stop,
    ) -> None:
        self._engine = engine
        self._connection = connection
        self._spec = probe.spec
        self._platform = platform
        self._seed = seed
        self._clock = clock
        self._stop = stop

    def all(self, tasks: Sequence[str]) -> Evidence:
        """Stage by stage; one that fails is the last."""
        engine, spec = self._engine, self._spec
        rendered = [self._render(number) for number in range(len(spec.tokenizer))] if "render" in engine.answers else []
        encoded: list[tuple[int, ...]] = []
        if "tokenize" in engine.answers:
            for text in spec.texts:
                self._go_on()
                encoded.append(engine.tokenize(self._connection, text.text, special=text.special))
        evidence = Evidence(rendered=tuple(rendered), encoded=tuple(encoded))
        if any(item.outcome == "fail" for item in ids_findings(spec, evidence)):
            return evidence
        forced = self._forced() if "force" in engine.answers else ()
        failed = bool(forced) and forced_finding(spec, forced, self._platform).outcome == "fail"
        if failed:
            return Evidence(evidence.rendered, evidence.encoded, forced)
        continued, rate = self._continued()
        return Evidence(
            rendered=evidence.rendered,
            encoded=evidence.encoded,
            forced=forced,
            continued=continued,
            cached=self._cached() if "sample" in engine.answers else None,
            sampled=self._sampled() if "sample" in engine.answers else (),
            tasks=self._tasks(tasks) if "chat" in engine.answers else (),
            first_token=self._first_token(),
            tokens_per_second=rate,
        )

    def _go_on(self) -> None:
        if self._stop.is_set():
            raise EngineUnreachable("stopped while validating")

    def _render(self, number: int) -> tuple[int, ...]:
        self._go_on()
        case = self._spec.tokenizer[number]
        if case.tools:
            return self._engine.render(self._connection, case.messages, tools=case.tools)
        return self._engine.render(self._connection, case.messages)

    def _forced(self) -> tuple[Forced, ...]:
        """Draw cases until one of the looks concludes, or all of them have been asked."""
        looks = reference_for(self._spec, self._platform).looks if self._spec.forced else ()
        answers: list[Forced] = []
        tokens = 0
        order = iter(draw(self._seed, len(self._spec.forced)))
        for look in looks:
            while tokens < look.tokens and (number := next(order, None)) is not None:
                self._go_on()
                case = self._spec.forced[number]
                found = self._engine.force(self._connection, case.prompt, case.tokens)
                answers.append(Forced(number, found))
                tokens += len(case.tokens)
                if tuple(position.forced for position in found) != case.tokens:
                    return tuple(answers)
            if forced_finding(self._spec, answers, self._platform).outcome != "inconclusive":
                break
        return tuple(answers)

    def _continued(self) -> tuple[tuple[tuple[int, ...], ...], float | None]:
        found: list[tuple[int, ...]] = []
        rate: float | None = None
        longest = max((len(case.tokens) for case in self._spec.greedy), default=0)
        for case in self._spec.greedy:
            self._go_on()
            started = self._clock.monotonic()
            wanted = len(case.tokens) + (BEYOND if case.ends else 0)
            found.append(self._engine.greedy(self._connection, case.prompt, tokens=wanted))
            seconds = self._clock.monotonic() - started
            if self._spec.limits.tokens_per_second is not None and len(case.tokens) == longest:
                rate = max(rate or 0.0, len(found[-1]) / max(seconds, 1e-6))
        return tuple(found), rate

    def _first_token(self) -> float | None:
        if self._spec.limits.first_token is None or not self._spec.greedy:
            return None
        self._go_on()
        started = self._clock.monotonic()
        self._engine.greedy(self._connection, self._spec.greedy[0].prompt, tokens=1)
        return self._clock.monotonic() - started

    def _cached(self) -> tuple[int, ...] | None:
        """The first continuation in two requests, the second of which may take the first one's work from a cache."""
        if not self._spec.forced or not self._spec.greedy or len(self._spec.greedy[0].tokens) < 2:  # noqa: PLR2004 - halves
            return None
        case = self._spec.greedy[0]
        half = cache_split(case)
        for prompt, tokens in ((case.prompt, half), ((*case.prompt, *case.tokens[:half]), len(case.tokens) - half)):
            self._go_on()
            found = self._engine.sample(self._connection, prompt, tokens=tokens, seed=0, temperature=0.0)
        return found

    def _sampled(self) -> tuple[Sampled, ...]:
        """Pairs of draws under one seed, until one pair agrees, two at most; and one under another seed."""
        cases = self._spec.greedy if self._spec.forced else ()
        number = next((index for index, case in enumerate(cases) if case.top), None)
        if number is None:
            return ()
        found: list[Sampled] = []
        tokens = min(SAMPLED_TOKENS, len(cases[number].tokens))
        for attempt in range(2):
            seeds = [int(self._seed[:6] or "0", 16) + 2 * attempt + other for other in (0, 0, 1)]
            first, again, other = (self._sample(cases[number].prompt, tokens, seed) for seed in seeds)
            found.append(Sampled(number, first, again, other))
            if first == again:
                break
        return tuple(found)

    def _sample(self, prompt: Sequence[int], tokens: int, seed: int) -> tuple[int, ...]:
        self._go_on()
        return self._engine.sample(self._connection, prompt, tokens=tokens, seed=seed, temperature=SAMPLING_TEMPERATURE)

    def _tasks(self, tasks: Sequence[str]) -> tuple[tuple[str, str], ...]:
        found: list[tuple[str, str]] = []
        for task in ("json", "tools"):
            if task in tasks:
                self._go_on()
                form = self._engine.chat(self._connection, QUESTION, schema=SCHEMA, call=task == "tools")
                found.append((task, form))
        return tuple(found)
