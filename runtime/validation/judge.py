"""Judges what a model answered against its probe. Pure.

The order is that of causes: a wrong tokenizer makes everything after it differ, wrong weights make every continuation
differ. The first stage that fails is the verdict.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final, Literal

from runtime.validation.evidence import TopTokens
from runtime.validation.generation import generation_findings
from runtime.validation.statistics import differences, summarise, uniform
from schemas.digests import digest_text
from schemas.probe import Look

if TYPE_CHECKING:
    from collections.abc import Sequence

    from runtime.validation.evidence import Evidence, Forced, Platform
    from runtime.validation.statistics import Summary, TokenDifference
    from schemas.probe import Calibration, Distribution, ForcedCase, ProbeDocument, ProbeSpec

from runtime.validation.findings import Finding, Outcome

Strength = Literal["golden", "calibrated", "uncalibrated", "token-ids"]
"""What the weights were told by, the strongest first:

- `golden`: distributions of the same engine build, with thresholds of this architecture and kind of numbers;
- `calibrated`: distributions of the reference, with such thresholds;
- `uncalibrated`: distributions, with thresholds that no honest engine is known to pass: other models, broken weights
  and four-bit weights are seen, eight-bit weights and small changes are not;
- `token-ids`: continuations alone. Another model is seen; the same one with eight-bit weights mostly is not.
"""

UNCALIBRATED_ACCEPT: Final = 0.02
UNCALIBRATED_REJECT: Final = 0.05
UNCALIBRATED_SQUARED: Final = 1.0
UNCALIBRATED_TOKENS: Final = (64, 192)
UNCALIBRATED_MISMATCHES: Final = 20
"""Thresholds for engines that the probe was not calibrated for; mismatches: one in so many tokens. Honest 16-bit
engines have a variance of 1e-7 to 3e-3 against 32-bit references, eight-bit activations about 1e-2."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whether a model is what it claims to be, and what says so."""

    outcome: Outcome
    message: str
    """For people: how much was checked, or the first thing that differs."""
    evidence: str
    """Digest of everything that the model answered: of `Evidence.to_json`."""
    tokens: int
    """Tokens that were computed for it, forced ones included."""
    strength: Strength
    """What the weights were told by."""
    findings: tuple[Finding, ...] = ()
    """Test by test."""


def judge(probe: ProbeDocument, evidence: Evidence, platform: Platform) -> Verdict:
    """What the evidence comes to.

    Args:
        probe: what was asked, and what should have been answered.
        evidence: what was answered.
        platform: what computed it.
    """
    spec = probe.spec
    findings = ids_findings(spec, evidence)
    if not _failed(findings) and spec.forced and (evidence.forced or not _asked_otherwise(evidence)):
        findings += (forced_finding(spec, evidence.forced, platform),)
    if not _failed(findings):
        findings += generation_findings(spec, evidence)
    worst: Finding | None = next((item for item in findings if item.outcome == "fail"), None)
    worst = worst or next((item for item in findings if item.outcome == "inconclusive"), None)
    strength = strength_of(spec, evidence, platform)
    return Verdict(
        outcome=worst.outcome if worst is not None else "pass",
        message=worst.message if worst is not None else _summary(spec, evidence, strength),
        evidence=digest_text(evidence.to_json()),
        tokens=evidence.spent(),
        strength=strength,
        findings=findings,
    )


def _failed(findings: Sequence[Finding]) -> bool:
    return any(item.outcome == "fail" for item in findings)


def _asked_otherwise(evidence: Evidence) -> bool:
    """Whether the engine cannot be asked for distributions, and was asked for continuations instead."""
    return bool(evidence.continued)


def _summary(spec: ProbeSpec, evidence: Evidence, strength: Strength) -> str:
    cases = len(evidence.rendered) + len(evidence.encoded) + len(evidence.forced) + len(evidence.continued)
    if not spec.forced:
        return f"{cases} cases, {evidence.spent()} tokens as recorded"
    return f"{cases} cases, {evidence.spent()} tokens as recorded ({strength})"


# --- tokenizer and template ---------------------------------------------------------------------------------------


def ids_findings(spec: ProbeSpec, evidence: Evidence) -> tuple[Finding, ...]:
    """Exact ids: of conversations (template, control tokens), then of texts (merges, beginning of sequence)."""
    conversations = [case.tokens for case in spec.tokenizer]
    texts = [case.tokens for case in spec.texts]
    found = [_exact("tokenizer", "tokenizer case", conversations, evidence.rendered)] if conversations else []
    if texts and not any(item.outcome == "fail" for item in found):
        found.append(_exact("texts", "text", texts, evidence.encoded))
    return tuple(found)


def _exact(test: str, what: str, expected: Sequence[Sequence[int]], answers: Sequence[Sequence[int]]) -> Finding:
    total = len(expected)
    for number, (wanted, got) in enumerate(zip(expected, answers, strict=False), start=1):
        if tuple(wanted) != tuple(got):
            return Finding(test, "fail", f"{what} {number} of {total}: {ids_difference(wanted, got)}")
    if len(answers) != total:
        return Finding(test, "fail", f"{len(answers)} of {total} cases were answered ({what}s)")
    return Finding(test, "pass", f"{total} of {total} as recorded")


def ids_difference(wanted: Sequence[int], got: Sequence[int]) -> str:
    """Where two sequences of token ids come apart, for people."""
    for position, (one, other) in enumerate(zip(wanted, got, strict=False)):
        if one != other:
            return f"token {position + 1} is {other}, the probe expects {one}"
    return f"{len(got)} tokens, the probe expects {len(wanted)}"


# --- weights ------------------------------------------------------------------------------------------------------


def strength_of(spec: ProbeSpec, evidence: Evidence, platform: Platform) -> Strength:
    """What the weights are told by on this platform."""
    if not evidence.forced:
        return "token-ids"
    reference = reference_for(spec, platform)
    return reference.strength


@dataclass(frozen=True, slots=True)
class Reference:
    """What a platform is compared with, and by which thresholds."""

    strength: Strength
    forced: tuple[tuple[Distribution, ...], ...]
    """By forced case, at each of its tokens."""
    looks: tuple[Look, ...]


def reference_for(spec: ProbeSpec, platform: Platform) -> Reference:
    """The golden of exactly this engine build, or else the reference; calibrated, if it was for this platform."""
    for golden in spec.goldens:
        if _is_for(golden.calibration, platform) and golden.calibration.version == platform.version:
            return Reference("golden", golden.forced, golden.calibration.looks)
    told = tuple(case.top for case in spec.forced)
    for calibration in spec.calibrations:
        if _is_for(calibration, platform):
            return Reference("calibrated", told, calibration.looks)
    pool = sum(len(case.tokens) for case in spec.forced)
    sizes = sorted({min(size, pool) for size in UNCALIBRATED_TOKENS})
    looks = tuple(
        Look(
            tokens=size,
            accept=UNCALIBRATED_ACCEPT,
            reject=UNCALIBRATED_REJECT,
            squared=UNCALIBRATED_SQUARED,
            mismatches=1 + size // UNCALIBRATED_MISMATCHES,
        )
        for size in sizes
    )
    return Reference("uncalibrated", told, looks)


def _is_for(calibration: Calibration, platform: Platform) -> bool:
    mine = (platform.engine, platform.architecture, platform.dtype)
    return (calibration.engine, calibration.architecture, calibration.dtype) == mine


def told(case: ForcedCase, distributions: Sequence[Distribution]) -> tuple[TopTokens, ...]:
    """A reference's distributions as evidence, which answers are compared with."""
    return tuple(
        TopTokens(token, _logprob(item, token), item.ids, item.logprobs)
        for token, item in zip(case.tokens, distributions, strict=True)
    )


def _logprob(item: Distribution, token: int) -> float:
    # What is not listed is no likelier than the last that is; nothing is computed with it.
    return item.logprobs[item.ids.index(token)] if token in item.ids else item.logprobs[-1]


def forced_finding(spec: ProbeSpec, answers: Sequence[Forced], platform: Platform) -> Finding:
    """What the distributions come to that have been asked for so far: inconclusive means that more should be."""
    reference = reference_for(spec, platform)
    compared: list[TokenDifference] = []
    for answer in answers:
        case = spec.forced[answer.case]
        written = tuple(position.forced for position in answer.positions)
        if written != case.tokens:
            where = ids_difference(case.tokens, written)
            message = f"the engine did not take the tokens that it was given: forced case {answer.case + 1}: {where}"
            return Finding("weights", "fail", message)
        compared += differences(told(case, reference.forced[answer.case]), answer.positions)
    return weigh(summarise(compared), reference.looks, reference.strength)


def weigh(summary: Summary, looks: Sequence[Look], strength: Strength) -> Finding:
    """Judge a summary by the largest look that it has reached.

    Args:
        summary: over all positions so far.
        looks: thresholds, by growing number of tokens.
        strength: for the message.
    """
    tokens, variance, squared = summary.tokens, summary.variance, summary.squared
    finding = Finding("weights", "pass", "", variance, None, tokens)
    if uniform(summary):
        return finding.being("fail", f"the engine prefers no token over another ({tokens} tokens)")
    reached = [look for look in looks if look.tokens <= tokens]
    if not reached:
        return finding.being("inconclusive", f"{tokens} tokens are too few to tell: {looks[0].tokens} are needed")
    look = reached[-1]
    about = f"over {tokens} tokens ({strength})"
    varies = f"log-probabilities vary by {variance:.3g} {about}"
    finding = replace(finding, threshold=look.reject)
    faults = [
        said
        for found, said in (
            (variance > look.reject, f"{varies}, at most {look.reject:.3g} is honest"),
            (
                summary.mismatches > look.mismatches,
                f"{summary.mismatches} of {summary.decided} sure tokens are others {about}, {look.mismatches} may be",
            ),
            (squared > look.squared, f"log-probabilities are off by {squared:.3g} {about}: {look.squared:.3g} may be"),
        )
        if found
    ]
    if faults:
        return finding.being("fail", faults[0])
    if variance > look.accept:
        return finding.being("inconclusive", f"{varies}: more than {look.accept:.3g}, which passes")
    return finding.being("pass", varies)
