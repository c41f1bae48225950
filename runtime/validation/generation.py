"""Judges what a model wrote by itself: sampler, caches, its end, its speed, and the tasks that it claims. Pure."""

from __future__ import annotations

import json
from math import exp, fsum, log
from typing import TYPE_CHECKING, Any, Final

from runtime.validation.evidence import SAMPLING_TEMPERATURE
from runtime.validation.findings import Finding
from runtime.validation.statistics import GAP

if TYPE_CHECKING:
    from collections.abc import Sequence

    from runtime.validation.evidence import Evidence, Sampled
    from schemas.probe import Distribution, GreedyCase, ProbeSpec

BEYOND: Final = 4
"""Tokens that are asked for beyond the end of a continuation that ends by itself."""

CHANCE: Final = 1e-4
"""What an honest sampler may do by chance: rarer than the false rejects that a probe is calibrated for."""


def generation_findings(spec: ProbeSpec, evidence: Evidence) -> tuple[Finding, ...]:
    """Every test of what was generated, as far as it was asked for."""
    found = [_continuation(spec, evidence)] if spec.greedy else []
    if any(item.outcome == "fail" for item in found):
        return tuple(found)
    if evidence.cached is not None:
        found.append(_cache(spec.greedy[0], evidence.cached))
    if evidence.sampled:
        found.append(_sampler(spec, evidence.sampled))
    found += _speed(spec, evidence)
    found += [_task(name, text) for name, text in evidence.tasks]
    return tuple(found)


# --- greedy -------------------------------------------------------------------------------------------------------


def _continuation(spec: ProbeSpec, evidence: Evidence) -> Finding:
    total, agreed = len(spec.greedy), 0
    for number, (case, got) in enumerate(zip(spec.greedy, evidence.continued, strict=False), start=1):
        same, why = agreement(case.tokens, case.top, got, ends=case.ends)
        agreed += same
        if why:
            return Finding("continuation", "fail", f"greedy case {number} of {total}: {why}", tokens=agreed)
    if len(evidence.continued) != total:
        message = f"{len(evidence.continued)} of {total} continuations were answered"
        return Finding("continuation", "fail", message)
    return Finding("continuation", "pass", f"{agreed} tokens as recorded", tokens=agreed)


def agreement(
    wanted: Sequence[int], top: Sequence[Distribution], got: Sequence[int], *, ends: bool = False
) -> tuple[int, str]:
    """How many tokens agree, and why they do not where they should.

    Two honest engines part where the reference hesitates: between tokens within `GAP` of each other rounding chooses,
    and what follows is another text, about which nothing is known.

    Args:
        wanted: the recorded continuation.
        top: the reference's distribution at each of its tokens; none: nothing is forgiven.
        got: what was answered.
        ends: whether the model ended there by itself.
    """
    for position, (one, other) in enumerate(zip(wanted, got, strict=False)):
        if one == other:
            continue
        if top and _hesitates(top[position], one, other):
            return position, ""
        return position, f"token {position + 1} is {other}, the probe expects {one}"
    if len(got) < len(wanted):
        return len(got), f"{len(got)} tokens, the probe expects {len(wanted)}"
    if ends and len(got) > len(wanted):
        return len(wanted), f"it goes on after token {len(wanted)}, where the model ends"
    return len(wanted), ""


def _hesitates(position: Distribution, *tokens: int) -> bool:
    """Whether each of these is as good as the likeliest: the recorded one as well, or it was never the model's."""
    told = dict(zip(position.ids, position.logprobs, strict=True))
    return all(token in told and position.logprobs[0] - told[token] <= GAP for token in tokens)


def cache_split(case: GreedyCase) -> int:
    """After how many tokens of its continuation a case is asked for the rest, with caches."""
    return len(case.tokens) // 2


def _cache(case: GreedyCase, got: Sequence[int]) -> Finding:
    half = cache_split(case)
    agreed, why = agreement(case.tokens[half:], case.top[half:], got)
    if why:
        return Finding("cache", "fail", f"with caches, after {half} tokens: {why}", tokens=agreed)
    return Finding("cache", "pass", f"{agreed} tokens as without caches", tokens=agreed)


# --- sampler ------------------------------------------------------------------------------------------------------


def _sampler(spec: ProbeSpec, draws: Sequence[Sampled]) -> Finding:
    """A seed must repeat, and temperature must change what is drawn, unless the model is too sure to tell.

    One pair that parts may be honest rounding: only when each pair that was drawn does, it is a fault.
    """
    last = draws[-1]
    if all(item.first != item.again for item in draws):
        message = f"the same seed drew other tokens, {len(draws)} times: {ids(last.first)} and {ids(last.again)}"
        return Finding("sampler", "fail", message)
    case = spec.greedy[last.case]
    chance = greedy_chance(case.top[: len(last.first)])
    length = len(last.first)
    fixed = last.first == last.other == case.tokens[:length]
    if fixed and length and chance < CHANCE:
        message = f"it drew the likeliest token {length} times of {length} at temperature {SAMPLING_TEMPERATURE:g}"
        return Finding("sampler", "fail", message, chance, CHANCE, length)
    if last.first == last.other and length and chance < CHANCE:
        message = f"two seeds drew the same {length} tokens"
        return Finding("sampler", "fail", message, chance, CHANCE, length)
    if chance >= CHANCE:
        return Finding("sampler", "pass", "seeds repeat; the model is too sure to tell more", chance, CHANCE, length)
    return Finding("sampler", "pass", "seeds repeat, and differ from each other", chance, CHANCE, length)


def greedy_chance(top: Sequence[Distribution]) -> float:
    """At most how likely an honest sampler draws the likeliest token at every one of these positions.

    The tokens that are not listed would only make each of them less likely: an upper bound. 1 for no positions.
    """
    logarithm = 0.0
    for position in top:
        scaled = [value / SAMPLING_TEMPERATURE for value in position.logprobs]
        logarithm -= log(fsum(exp(value - scaled[0]) for value in scaled))
    return exp(logarithm)


def ids(tokens: Sequence[int]) -> str:
    """The first few, for people."""
    return " ".join(map(str, tokens[:6])) + (" ..." if len(tokens) > 6 else "")  # noqa: PLR2004 - a line's worth


# --- speed and tasks ----------------------------------------------------------------------------------------------


def _speed(spec: ProbeSpec, evidence: Evidence) -> list[Finding]:
    found: list[Finding] = []
    limits = spec.limits
    if limits.first_token is not None and evidence.first_token is not None:
        slow = evidence.first_token > limits.first_token
        message = f"the first token took {evidence.first_token:.3g} s, the limit is {limits.first_token:g} s"
        found.append(Finding("speed", "fail" if slow else "pass", message, evidence.first_token, limits.first_token))
    if limits.tokens_per_second is not None and evidence.tokens_per_second is not None:
        rate = evidence.tokens_per_second
        message = f"{rate:.3g} tokens per second, the limit is {limits.tokens_per_second:g}"
        slow = rate < limits.tokens_per_second
        found.append(Finding("speed", "fail" if slow else "pass", message, rate, limits.tokens_per_second))
    return found


CITIES: Final = ("Lima", "Oslo", "Cairo")
SCHEMA: Final[dict[str, Any]] = {
    "type": "object",
    "properties": {"city": {"type": "string", "enum": list(CITIES)}, "capital": {"type": "boolean"}},
    "required": ["city", "capital"],
    "additionalProperties": False,
}
"""What is asked for of models that claim `json` or `tools`. Any model can fill it in, if its server holds it to it."""


def _task(name: str, text: str) -> Finding:
    try:
        answer = json.loads(text)
    except (ValueError, RecursionError):
        return Finding(name, "fail", f"{name}: the answer is not JSON: {text[:60]!a}")
    fits = (
        isinstance(answer, dict)
        and answer.keys() == {"city", "capital"}
        and answer["city"] in CITIES
        and isinstance(answer["capital"], bool)
    )
    if not fits:
        return Finding(name, "fail", f"{name}: the answer does not fit its schema: {text[:60]!a}")
    return Finding(name, "pass", f"{name}: the answer fits its schema")
