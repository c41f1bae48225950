"""llama.cpp, through the server program beside this file. Never imports the engine: it is started."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Final

from runtime.engines.answers import count, log_probability, metrics, said, token_id, token_ids, top_tokens
from runtime.engines.installation import beside_agent
from runtime.engines.openai_chat import formed_chat, turns
from runtime.interfaces import Activity, Launch
from runtime.validation.evidence import TOP
from schemas.errors import EngineUnreachable, Incompatible
from schemas.runtimes import LlamaCppArgs

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from pydantic import JsonValue

    from runtime.interfaces import Answers, EngineConnection, EngineView
    from runtime.validation.evidence import TopTokens
    from schemas.manifest import ManifestDocument
    from schemas.observation import NativeEngine
    from schemas.probe import ChatMessage
    from schemas.target import ServingTarget

PROGRAM: Final = Path(__file__).with_name("llamacpp_server.py")

HEALTH_SECONDS: Final = 5.0
RENDER_SECONDS: Final = 30.0
PROMPT_TOKEN_SECONDS: Final = 0.1
POSITION_BYTES: Final = 2**13
"""Bytes that the answer may take for each position: twenty tokens with their text, and its bytes one by one."""
TOKEN_SECONDS: Final = 2.0
"""Time allowed for a token: a 70B model on a slow processor writes about one per second."""


class LlamaCppEngine:
    """llama.cpp's server with one GGUF model, over its own HTTP API.

    Source for endpoints and fields: llama.cpp, `tools/server/README.md`.
    """

    name = "llamacpp"
    formats = frozenset({"gguf"})
    answers: frozenset[Answers] = frozenset({"render", "tokenize", "force", "sample", "chat"})
    distributions: tuple[str, ...] = ("xllamacpp",)

    def native(self) -> NativeEngine | None:
        """The engine beside this agent, if it is installed."""
        return beside_agent(self.name, self.distributions)

    def launch(self, target: ServingTarget, manifest: ManifestDocument, view: EngineView) -> Launch:
        """Command line and environment.

        Raises:
            Incompatible: not one GGUF model, or arguments of another engine.
        """
        arguments = target.engine_args
        if not isinstance(arguments, LlamaCppArgs):
            raise Incompatible(f"{target.model}: the arguments are not llama.cpp's")
        if manifest.spec.format not in self.formats:
            raise Incompatible(f"{target.model} is stored as {manifest.spec.format}; llama.cpp loads gguf")
        if not any(file.path.endswith(".gguf") for file in manifest.spec.files):
            raise Incompatible(f"{target.model} has no .gguf file")
        flags: list[str] = []
        for flag, value in (
            ("--model", view.model),
            ("--socket", view.socket),
            ("--alias", target.model),
            ("--ctx-size", arguments.context_size),
            ("--parallel", arguments.parallel),
            # A processor limit that llama.cpp does not see would make its threads wait for each other.
            ("--threads", arguments.threads or target.resources.cpus),
            ("--gpu-layers", arguments.gpu_layers),
        ):
            if value is not None:
                flags += [flag, str(value)]
        if target.mode == "container":
            # The image's entry point is the same program.
            return Launch(tuple(flags), {})
        # -I: no environment variable and no folder of the user's adds code to the engine. -B: its files
        # stay as they were verified.
        return Launch((view.python or sys.executable, "-I", "-B", str(PROGRAM), *flags), {"LANG": "C.UTF-8"})

    def ready(self, connection: EngineConnection) -> bool:
        """Whether the model is loaded.

        Raises:
            EngineUnreachable: the socket does not answer yet.
        """
        answer = connection.request("GET", "/health", timeout=HEALTH_SECONDS)
        return isinstance(answer, dict) and answer.get("status") == "ok"

    def activity(self, connection: EngineConnection) -> Activity:
        """What it is doing, by its metrics and its slots.

        Both are answered by the loop that computes, so that one that hangs does not answer. The metrics count a request
        that has ended; what is under way is seen in its slot: tokens read until the first is written, then those
        written. Where nothing is under way, no slot has anything to say.

        Raises:
            EngineUnreachable: it does not answer, or not with numbers.
        """
        names = ("requests_processing", "requests_deferred", "prompt_tokens_total", "tokens_predicted_total")
        page = connection.read("/metrics", timeout=HEALTH_SECONDS)
        running, waiting, read, written = metrics(page, [f"llamacpp:{name}" for name in names], asked="/metrics")
        if not running:
            return Activity(running, waiting, read + written)
        slots = connection.request("GET", "/slots", timeout=HEALTH_SECONDS)
        if not isinstance(slots, list):
            raise EngineUnreachable("/slots answered without a list of slots")
        return Activity(running, waiting, read + written + sum(_under_way(slot) for slot in slots))

    def render(
        self, connection: EngineConnection, messages: Sequence[ChatMessage], *, tools: Sequence[JsonValue] = ()
    ) -> tuple[int, ...]:
        """Token ids of a rendered conversation, exactly as the chat endpoint would feed them to the model.

        Raises:
            EngineUnreachable.
        """
        conversation: dict[str, JsonValue] = {"messages": turns(messages)}
        if tools:
            conversation["tools"] = list(tools)
        rendered = connection.request("POST", "/apply-template", conversation, timeout=RENDER_SECONDS)
        prompt = rendered.get("prompt") if isinstance(rendered, dict) else None
        if not isinstance(prompt, str):
            raise EngineUnreachable("/apply-template answered without a prompt")
        # Like the chat endpoint: markers of the template are special tokens, and the vocabulary says whether a
        # beginning-of-sequence token comes first (the template's own has been cut off by then).
        question: JsonValue = {"content": prompt, "add_special": True, "parse_special": True}
        answer = connection.request("POST", "/tokenize", question, timeout=RENDER_SECONDS)
        return token_ids(answer, "tokens", asked="/tokenize")

    def tokenize(self, connection: EngineConnection, text: str, *, special: bool) -> tuple[int, ...]:
        """Token ids of a plain text.

        Raises:
            EngineUnreachable.
        """
        question: JsonValue = {"content": text, "add_special": special, "parse_special": False}
        answer = connection.request("POST", "/tokenize", question, timeout=RENDER_SECONDS)
        return token_ids(answer, "tokens", asked="/tokenize")

    def text(self, connection: EngineConnection, tokens: Sequence[int]) -> str:
        """What token ids say.

        Raises:
            EngineUnreachable.
        """
        answer = connection.request("POST", "/detokenize", {"tokens": list(tokens)}, timeout=RENDER_SECONDS)
        return said(answer, "content", asked="/detokenize")

    def greedy(self, connection: EngineConnection, prompt: Sequence[int], *, tokens: int) -> tuple[int, ...]:
        """The most likely continuation of token ids, computed anew.

        Raises:
            EngineUnreachable.
        """
        question: JsonValue = {
            "prompt": list(prompt),
            "n_predict": tokens,
            "temperature": 0,
            "cache_prompt": False,
            "return_tokens": True,
            "stream": False,
        }
        timeout = RENDER_SECONDS + len(prompt) * PROMPT_TOKEN_SECONDS + tokens * TOKEN_SECONDS
        answer = connection.request("POST", "/completion", question, timeout=timeout)
        return token_ids(answer, "tokens", asked="/completion", at_most=tokens)

    def force(
        self, connection: EngineConnection, prompt: Sequence[int], forced: Sequence[int]
    ) -> tuple[TopTokens, ...]:
        """Next-token distributions at each of the forced tokens, one decoding step each.

        llama.cpp has no log-probabilities of prompts (llama.cpp#27174): a grammar that allows exactly these tokens
        makes it write them, and what it would rather have written is told as it was before the grammar.

        Raises:
            EngineUnreachable: also where a forced token ends generation, which no grammar can make it write on after.
        """
        question: JsonValue = {
            "prompt": list(prompt),
            "grammar": "root ::= " + " ".join(f"<[{token}]>" for token in forced),
            "n_predict": len(forced),
            "n_probs": TOP,
            "post_sampling_probs": False,
            "temperature": 0,
            "cache_prompt": False,
            "return_tokens": True,
            "stream": False,
        }
        timeout = RENDER_SECONDS + len(prompt) * PROMPT_TOKEN_SECONDS + len(forced) * TOKEN_SECONDS
        limit = 2**16 + len(forced) * POSITION_BYTES
        answer = connection.request("POST", "/completion", question, timeout=timeout, limit=limit)
        written = token_ids(answer, "tokens", asked="/completion", at_most=len(forced))
        told = answer.get("completion_probabilities") if isinstance(answer, dict) else None
        if not isinstance(told, list) or len(told) != len(written):
            raise EngineUnreachable("/completion answered without the probabilities of each token")
        return tuple(_distribution(item, token) for item, token in zip(told, written, strict=True))

    def sample(
        self, connection: EngineConnection, prompt: Sequence[int], *, tokens: int, seed: int, temperature: float
    ) -> tuple[int, ...]:
        """A continuation as clients get it, drawn from the whole distribution.

        Raises:
            EngineUnreachable.
        """
        question: JsonValue = {
            "prompt": list(prompt),
            "n_predict": tokens,
            "seed": seed,
            "temperature": temperature,
            # The one that is tested: every other narrows what may be drawn.
            "samplers": ["temperature"],
            "cache_prompt": True,
            "return_tokens": True,
            "stream": False,
        }
        timeout = RENDER_SECONDS + len(prompt) * PROMPT_TOKEN_SECONDS + tokens * TOKEN_SECONDS
        answer = connection.request("POST", "/completion", question, timeout=timeout)
        return token_ids(answer, "tokens", asked="/completion", at_most=tokens)

    def chat(
        self,
        connection: EngineConnection,
        messages: Sequence[ChatMessage],
        *,
        schema: Mapping[str, JsonValue],
        call: bool,
    ) -> str:
        """The text of an answer that was asked to have a form.

        Raises:
            EngineUnreachable.
        """
        return formed_chat(connection, messages, schema=schema, call=call)


def _distribution(item: JsonValue, written: int) -> TopTokens:
    """One of `completion_probabilities`.

    Raises:
        EngineUnreachable: it is not of that form, or about another token than was written.
    """
    asked = "/completion"
    listed = item.get("top_logprobs") if isinstance(item, dict) else None
    if not isinstance(item, dict) or item.get("id") != written or not isinstance(listed, list):
        raise EngineUnreachable(f"{asked} answered with probabilities of another token than it wrote")
    pairs: list[tuple[int, float]] = []
    for entry in listed[:TOP]:
        if not isinstance(entry, dict):
            raise EngineUnreachable(f"{asked} answered {ascii(entry)[:50]} for a token's probability")
        pairs.append((token_id(entry.get("id"), asked=asked), log_probability(entry.get("logprob"), asked=asked)))
    return top_tokens(written, log_probability(item.get("logprob"), asked=asked), pairs, asked=asked)


def _under_way(slot: JsonValue) -> int:
    """Tokens that a slot has read, or has written since; 0 for one without a request."""
    if not isinstance(slot, dict) or slot.get("is_processing") is not True:
        return 0
    written = slot.get("next_token")
    begun = count(written[0], "n_decoded", asked="/slots") if isinstance(written, list) and written else 0
    return begun or count(slot, "n_prompt_tokens_processed", asked="/slots")
