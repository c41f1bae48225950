"""Probes and answers for tests: small, by hand."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from runtime.validation.evidence import Evidence, Forced, Platform, Sampled, TopTokens
from schemas.probe import ProbeDocument
from tests.support.builders import manifest_digest

PLATFORM = Platform("llamacpp", "1", "amd64/avx2", "stored")
IDS = (5, 6, 7, 8)
LOGPROBS = (-0.5, -1.5, -3.0, -4.0)
TOKENS = (5, 6, 7, 8)
LENGTH = 8
"""Tokens of each forced case."""


def top(token: int, *, off: float = 0.0, spread: float = 1.0) -> TopTokens:
    """The one distribution, with the second token's log-probability moved, and all of them drawn together."""
    values = [LOGPROBS[0], LOGPROBS[1] + off, *LOGPROBS[2:]]
    ranked = sorted(zip(IDS, (value * spread for value in values), strict=True), key=lambda pair: -pair[1])
    ids, logprobs = tuple(one for one, _ in ranked), tuple(value for _, value in ranked)
    return TopTokens(token, logprobs[ids.index(token)], ids, logprobs)


def look(tokens: int, accept: float = 0.001, reject: float = 0.01, **fields: Any) -> dict[str, Any]:
    """Thresholds after a number of tokens."""
    return {"tokens": tokens, "accept": accept, "reject": reject, "squared": 1.0, "mismatches": 0, **fields}


def calibration(**fields: Any) -> dict[str, Any]:
    """Thresholds for the platform."""
    return {
        "engine": PLATFORM.engine,
        "version": PLATFORM.version,
        "architecture": PLATFORM.architecture,
        "dtype": PLATFORM.dtype,
        "samples": 1000,
        "runs": 4,
        "margin": 1.3,
        "falseRejects": 0.001,
        "looks": (look(8), look(16)),
        **fields,
    }


def distributions(length: int) -> tuple[dict[str, Any], ...]:
    """As many of the one distribution."""
    return ({"ids": IDS, "logprobs": LOGPROBS},) * length


def forced_case(number: int, length: int = LENGTH) -> dict[str, Any]:
    """A forced case, told apart by its prompt."""
    return {"prompt": (1, 100 + number), "tokens": (TOKENS * 2)[:length], "top": distributions(length)}


def probe(**fields: Any) -> ProbeDocument:
    """A probe of everything; fields replace its parts."""
    turn = {"role": "user", "content": "hello"}
    cases: dict[str, Any] = {
        "recorded": {"engine": "llamacpp", "version": "1", "manifest": manifest_digest("m:v1"), "machine": "test"},
        "tokenizer": tuple({"messages": (turn,), "tokens": tokens} for tokens in ((1, 2, 3), (4, 5))),
        "texts": ({"text": "x", "special": True, "tokens": (1, 9)},),
        "greedy": ({"prompt": (1, 2), "tokens": TOKENS, "top": distributions(4)},),
        "forced": tuple(forced_case(number) for number in range(4)),
        "calibrations": (calibration(),),
        **fields,
    }
    return ProbeDocument.model_validate(
        {
            "apiVersion": "reconcile/v1alpha1",
            "kind": "Probe",
            "metadata": {"name": "p", "model": "m:v1"},
            "spec": cases,
        }
    )


def forced(*cases: int, length: int = LENGTH, **fields: Any) -> tuple[Forced, ...]:
    """Answers to forced cases."""
    tokens = (TOKENS * 2)[:length]
    return tuple(Forced(number, tuple(top(token, **fields) for token in tokens)) for number in cases)


GOOD = Evidence(
    rendered=((1, 2, 3), (4, 5)),
    encoded=((1, 9),),
    forced=forced(0),
    continued=(TOKENS,),
    cached=TOKENS[2:],
    sampled=(Sampled(0, (5, 8, 8, 6), (5, 8, 8, 6), (6, 5, 7, 8)),),
)
"""What a model answers that is what it claims to be."""


def evidence(**fields: Any) -> Evidence:
    """Good evidence with something else in it."""
    return replace(GOOD, **fields)
