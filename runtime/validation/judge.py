"""Judges what a model answered against its probe. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from schemas.digests import digest_text

if TYPE_CHECKING:
    from collections.abc import Sequence

    from runtime.validation.run import Evidence
    from schemas.probe import ProbeDocument


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whether a model is what it claims to be, and what says so."""

    outcome: Literal["pass", "fail"]
    message: str
    """For people: how much was checked, or the first case that differs."""
    evidence: str
    """Digest of everything that the model answered."""
    tokens: int
    """Tokens that were generated."""


def judge(probe: ProbeDocument, evidence: Evidence) -> Verdict:
    """Compare token ids exactly: tokenizer and template first, then greedy continuations.

    A wrong tokenizer makes everything after it differ, so its case is the one that is named.
    """
    tokens = sum(len(answer) for answer in evidence.continued)
    digest = digest_text(f"evidence/1|{evidence.rendered}|{evidence.continued}")
    expected = [("tokenizer case", case.tokens) for case in probe.spec.tokenizer]
    expected += [("greedy case", case.tokens) for case in probe.spec.greedy]
    answers = (*evidence.rendered, *evidence.continued)
    if len(answers) != len(expected):
        return Verdict("fail", f"{len(answers)} of {len(expected)} cases were answered", digest, tokens)
    for number, ((what, wanted), got) in enumerate(zip(expected, answers, strict=True), start=1):
        if tuple(wanted) != tuple(got):
            return Verdict("fail", f"{what} {number} of {len(expected)}: {_difference(wanted, got)}", digest, tokens)
    return Verdict("pass", f"{len(expected)} cases, {tokens} tokens as recorded", digest, tokens)


def _difference(wanted: Sequence[int], got: Sequence[int]) -> str:
    for position, (one, other) in enumerate(zip(wanted, got, strict=False)):
        if one != other:
            return f"token {position + 1} is {other}, the probe expects {one}"
    return f"{len(got)} tokens, the probe expects {len(wanted)}"
