"""Probes: prompts with expected evidence, by which validation inference judges a running model."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, StringConstraints, model_validator

from schemas.base import Digest, Document, Frozen, ModelKey, Name, Text

TokenId = Annotated[int, Field(ge=0, le=2**31 - 1)]
MAX_PROMPTS = 256
MAX_TOKENS = 4096


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
    tokens: Annotated[tuple[TokenId, ...], Field(min_length=1, max_length=MAX_TOKENS)]
    """Expected ids of the rendered conversation."""


class GreedyCase(Frozen):
    """A prompt of token ids whose greedy continuation must come out exactly: weights and sampler."""

    prompt: Annotated[tuple[TokenId, ...], Field(min_length=1, max_length=MAX_TOKENS)]
    """Token ids given to the engine."""
    tokens: Annotated[tuple[TokenId, ...], Field(min_length=1, max_length=MAX_TOKENS)]
    """Expected token ids of the greedy continuation."""


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


class ProbeSpec(Frozen):
    """The evidence."""

    recorded: Provenance
    """Where it comes from."""
    tokenizer: Annotated[tuple[TokenizerCase, ...], Field(max_length=MAX_PROMPTS)] = ()
    """Tokenizer and template cases."""
    greedy: Annotated[tuple[GreedyCase, ...], Field(max_length=MAX_PROMPTS)] = ()
    """Continuation cases."""

    @model_validator(mode="after")
    def _proves_something(self) -> ProbeSpec:
        if not self.greedy:
            raise ValueError("a probe without a greedy case would prove nothing about the weights")
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
