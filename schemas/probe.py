"""Probes: prompts with expected evidence, by which validation inference judges a running model."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, StringConstraints, model_validator

from schemas.base import Count, Digest, Document, Frozen, Json, ModelKey, Name, Positive, Text

TokenId = Annotated[int, Field(ge=0, le=2**31 - 1)]
LogProbability = Annotated[float, Field(ge=-1000, le=0, allow_inf_nan=False)]
"""A natural logarithm of a probability."""
Measure = Annotated[float, Field(ge=0, le=1e9, allow_inf_nan=False)]
"""A figure of a statistic, a time or a rate: never negative, never infinite."""
MAX_PROMPTS = 256
MAX_TOKENS = 4096
MAX_FORCED = 256
"""Tokens that are forced in one request: what an engine answers for each takes kilobytes."""
MAX_TOP = 128
MAX_CALIBRATIONS = 64
MAX_LOOKS = 16


class ChatMessage(Frozen):
    """One turn of a conversation."""

    role: Literal["system", "user", "assistant"]
    """Who speaks."""
    content: Text
    """What is said."""


class TokenizerCase(Frozen):
    """A conversation whose rendered token ids must come out exactly: tokenizer and template."""

    messages: Annotated[tuple[ChatMessage, ...], Field(min_length=1, max_length=64)]
    """The conversation."""
    tools: Annotated[tuple[Json, ...], Field(max_length=16)] = ()
    """Functions that the model may call, as OpenAI's API describes them; the template renders them."""
    tokens: Annotated[tuple[TokenId, ...], Field(min_length=1, max_length=MAX_TOKENS)]
    """Expected ids of the rendered conversation."""


class TextCase(Frozen):
    """A plain text whose token ids must come out exactly: merges, and what is put before a text."""

    text: Annotated[Text, StringConstraints(min_length=1)]
    """The text."""
    special: bool = False
    """Whether tokens are added that the vocabulary puts around a text, such as a beginning of sequence."""
    tokens: Annotated[tuple[TokenId, ...], Field(min_length=1, max_length=MAX_TOKENS)]
    """Expected ids."""


class Distribution(Frozen):
    """Most likely next tokens at one position, the likeliest first."""

    ids: Annotated[tuple[TokenId, ...], Field(min_length=2, max_length=MAX_TOP)]
    """Token ids, each once."""
    logprobs: Annotated[tuple[LogProbability, ...], Field(min_length=2, max_length=MAX_TOP)]
    """Their log-probabilities, natural logarithms at temperature 1, none above the one before it."""

    @model_validator(mode="after")
    def _is_one(self) -> Distribution:
        if len(self.ids) != len(self.logprobs) or len(set(self.ids)) != len(self.ids):
            raise ValueError("a distribution has one log-probability for each of its tokens, and each token once")
        if any(later > earlier for earlier, later in zip(self.logprobs, self.logprobs[1:], strict=False)):
            raise ValueError("a distribution begins with the likeliest token")
        return self


class ForcedCase(Frozen):
    """Token ids that are put into the model's mouth, and what the reference thinks at each of them: weights."""

    prompt: Annotated[tuple[TokenId, ...], Field(min_length=1, max_length=MAX_TOKENS)]
    """Token ids given to the engine."""
    tokens: Annotated[tuple[TokenId, ...], Field(min_length=1, max_length=MAX_FORCED)]
    """Token ids that follow, whatever the model would have written."""
    top: Annotated[tuple[Distribution, ...], Field(min_length=1, max_length=MAX_FORCED)]
    """The reference's distribution at each of them."""

    @model_validator(mode="after")
    def _has_each(self) -> ForcedCase:
        if len(self.top) != len(self.tokens):
            raise ValueError("a forced case has one distribution for each of its tokens")
        return self


class GreedyCase(Frozen):
    """A prompt of token ids whose greedy continuation must come out: sampler, caches and end of text.

    With distributions, another token is a fault only where the reference was decided: honest rounding may choose the
    other one of two that are as likely, and everything after it is another text. Without them the ids are exact.
    """

    prompt: Annotated[tuple[TokenId, ...], Field(min_length=1, max_length=MAX_TOKENS)]
    """Token ids given to the engine."""
    tokens: Annotated[tuple[TokenId, ...], Field(min_length=1, max_length=MAX_TOKENS)]
    """Expected token ids of the greedy continuation."""
    top: Annotated[tuple[Distribution, ...], Field(max_length=MAX_TOKENS)] = ()
    """The reference's distribution at each of them; none: the ids must come out exactly."""
    ends: bool = False
    """Whether the model ends there by itself."""

    @model_validator(mode="after")
    def _has_each(self) -> GreedyCase:
        if self.top and len(self.top) != len(self.tokens):
            raise ValueError("a greedy case has one distribution for each of its tokens, or none at all")
        return self


class ProbeMetadata(Frozen):
    """Which probe this is."""

    name: Name
    """The probe's name."""
    model: ModelKey
    """The model it was recorded from."""


class Provenance(Frozen):
    """What the expected evidence was recorded from."""

    engine: Annotated[str, StringConstraints(pattern=r"^[a-z]+$")]
    """Engine."""
    version: Text
    """Engine version."""
    manifest: Digest
    """The model's identity."""
    machine: Text
    """Processor or GPU model."""
    architecture: Text = ""
    """What decides how it rounds: `cuda/9.0`, `amd64/avx512`."""
    dtype: Text = ""
    """Numbers that it computed with, as the engine names them; `stored` for the file's own."""


class Look(Frozen):
    """What may be concluded after a number of tokens."""

    tokens: Positive
    """Positions that have been compared."""
    accept: Measure
    """Centred variance up to which the model passes, in squared natural logarithms."""
    reject: Measure
    """Centred variance above which it fails. Between the two more is asked."""
    squared: Measure
    """Mean squared difference above which it fails, in squared natural logarithms."""
    mismatches: Count
    """Decided positions with another likeliest token, above which it fails."""

    @model_validator(mode="after")
    def _in_order(self) -> Look:
        if self.accept > self.reject:
            raise ValueError("a look accepts no more than it does not reject")
        return self


class Calibration(Frozen):
    """Thresholds of one engine with one kind of numbers on one architecture, from honest runs. Never pooled."""

    engine: Annotated[str, StringConstraints(pattern=r"^[a-z]+$")]
    """Engine."""
    version: Text
    """The engine build that the honest runs were made with."""
    architecture: Text
    """As in the provenance."""
    dtype: Text
    """As in the provenance."""
    samples: Positive
    """Honest positions that the thresholds were made from, all runs counted."""
    runs: Positive
    """Honest runs, each under other circumstances."""
    margin: Annotated[float, Field(ge=1.3, le=100)]
    """What the honest quantiles were multiplied by, so that they hold for other prompts."""
    false_rejects: Annotated[float, Field(gt=0, le=0.1)]
    """Share of honest validations that may be rejected, which the thresholds were chosen for."""
    looks: Annotated[tuple[Look, ...], Field(min_length=1, max_length=MAX_LOOKS)]
    """By growing number of tokens; the last is the bound."""

    @model_validator(mode="after")
    def _grows(self) -> Calibration:
        sizes = [look.tokens for look in self.looks]
        if sizes != sorted(set(sizes)):
            raise ValueError("looks come by growing number of tokens")
        return self


class Golden(Frozen):
    """What one engine build answered to the same forced cases: a reference with a lower floor, for that build only."""

    calibration: Calibration
    """Whose answers these are, and the thresholds against them; here the version must be the same as well."""
    forced: Annotated[tuple[tuple[Distribution, ...], ...], Field(min_length=1, max_length=MAX_PROMPTS)]
    """By forced case, at each of its tokens."""


class Limits(Frozen):
    """How fast it must be. Absent limits are none."""

    first_token: Measure | None = None
    """Seconds until the first token of a short prompt, at most."""
    tokens_per_second: Measure | None = None
    """Tokens per second of one request, at least."""


class ProbeSpec(Frozen):
    """The evidence."""

    recorded: Provenance
    """Where it comes from."""
    tokenizer: Annotated[tuple[TokenizerCase, ...], Field(max_length=MAX_PROMPTS)] = ()
    """Tokenizer and template cases."""
    texts: Annotated[tuple[TextCase, ...], Field(max_length=MAX_PROMPTS)] = ()
    """Plain texts aimed at the merges."""
    greedy: Annotated[tuple[GreedyCase, ...], Field(max_length=MAX_PROMPTS)] = ()
    """Continuation cases."""
    forced: Annotated[tuple[ForcedCase, ...], Field(max_length=MAX_PROMPTS)] = ()
    """Forced cases: the pool that each validation draws from."""
    calibrations: Annotated[tuple[Calibration, ...], Field(max_length=MAX_CALIBRATIONS)] = ()
    """Thresholds, one for each engine, architecture and kind of numbers."""
    goldens: Annotated[tuple[Golden, ...], Field(max_length=8)] = ()
    """References of engine builds, beside the one above."""
    limits: Limits = Limits.model_construct()
    """How fast it must be."""

    @model_validator(mode="after")
    def _proves_something(self) -> ProbeSpec:
        if not self.greedy and not self.forced:
            raise ValueError("a probe without a greedy or a forced case would prove nothing about the weights")
        sizes = tuple(len(case.tokens) for case in self.forced)
        if any(tuple(len(case) for case in golden.forced) != sizes for golden in self.goldens):
            raise ValueError("a golden has one distribution for each token of each forced case")
        keys = [(item.engine, item.architecture, item.dtype) for item in self.calibrations]
        if len(set(keys)) != len(keys):
            raise ValueError("there is one calibration for each engine, architecture and kind of numbers")
        if self.calibrations and not self.forced:
            raise ValueError("a calibration is about forced cases")
        return self


class ProbeDocument(Document):
    """Prompts with expected evidence for one model."""

    api_version: Literal["reconcile/v1alpha1"]
    """Version of this document's form."""
    kind: Literal["Probe"]
    """`Probe`."""
    metadata: ProbeMetadata
    """Which probe."""
    spec: ProbeSpec
    """The evidence."""
