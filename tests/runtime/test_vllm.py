"""vLLM as an engine: its command line, and how its answers are read. The real thing is in tests/engines."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, Any

import pytest
from pydantic import ValidationError

from runtime.engines.registry import engines
from runtime.engines.vllm import MODULE, VllmEngine
from runtime.interfaces import Activity, EngineView, Launch
from runtime.validation.evidence import FLOOR, TopTokens
from schemas.errors import EngineUnreachable, Incompatible
from schemas.probe import ChatMessage
from schemas.runtimes import LlamaCppArgs, VllmArgs, VllmResources
from tests.support.builders import IMAGE, target
from tests.support.models import make_model
from tests.support.scripted import Scripted

if TYPE_CHECKING:
    from pydantic import JsonValue

ENGINE = VllmEngine()
VIEW = EngineView("/srv/model", "engine.sock")
MANIFEST = make_model({"model.safetensors": b"weights"}, form="safetensors").manifest


def launch(view: EngineView = VIEW, **fields: Any) -> Launch:
    """A launch of vLLM."""
    return ENGINE.launch(target(engine="vllm", **{"engine_args": VllmArgs(), **fields}), MANIFEST, view)


def container() -> dict[str, Any]:
    """Fields of a target in a container."""
    return {"mode": "container", "backend": "docker", "image": IMAGE, "environment": None}


class TestCommandLine:
    """Nothing but what the snapshot says, in words that vLLM knows."""

    def test_native_runs_the_module_isolated_in_its_environment(self) -> None:
        """The environment's interpreter, -I, no compiled files left behind, and the socket instead of a port (I10)."""
        argv = launch(EngineView("/srv/model", "engine.sock", "/srv/runtimes/x/bin/python")).argv
        assert argv[:6] == ("/srv/runtimes/x/bin/python", "-I", "-B", "-u", "-m", MODULE)
        assert argv[argv.index("--uds") + 1] == "engine.sock"
        assert launch().argv[0] == sys.executable
        assert launch().env["VLLM_RPC_BASE_PATH"] == ".", "sockets between its processes fit into unix(7)'s 107 bytes"

    def test_in_a_container_the_image_s_entry_point_gets_flags_only(self) -> None:
        """And a home that it may write to."""
        made = launch(**container())
        assert made.argv[:2] == ("--model", "/srv/model")
        assert made.env["HOME"] == "/tmp"

    def test_nothing_is_fetched_and_no_program_of_a_model_runs(self) -> None:
        """Offline, safetensors only, and no flag that trusts remote code in either mode."""
        for made in (launch(), launch(**container())):
            assert {made.env[name] for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE")} == {"1"}
            assert made.argv[made.argv.index("--load-format") + 1] == "safetensors"
            assert not [part for part in made.argv if "trust" in part or part in ("--host", "--port")]

    def test_arguments_become_flags(self) -> None:
        """Each typed argument has its flag; what is absent is left to vLLM."""
        arguments = VllmArgs(
            max_model_len=4096,
            gpu_memory_utilization=0.5,
            dtype="float16",
            tensor_parallel_size=2,
            max_num_seqs=8,
            enforce_eager=True,
            kv_cache=3 * 2**30,
        )
        made = launch(engine_args=arguments)
        for flag, value in (
            ("--max-model-len", "4096"),
            ("--gpu-memory-utilization", "0.5"),
            ("--dtype", "float16"),
            ("--tensor-parallel-size", "2"),
            ("--max-num-seqs", "8"),
        ):
            assert made.argv[made.argv.index(flag) + 1] == value
        assert made.argv[-1] == "--enforce-eager"
        assert not {"--max-model-len", "--max-num-seqs", "--enforce-eager", "--tool-call-parser"} & set(launch().argv)

    def test_functions_and_compact_json_are_asked_for_together_with_what_they_need(self) -> None:
        """A parser means nothing unless calls are permitted; white space is known to one backend by name."""
        made = launch(engine_args=VllmArgs(tool_call_parser="hermes", compact_json=True))
        assert made.argv[-5:-2] == ("--enable-auto-tool-choice", "--tool-call-parser", "hermes")
        assert json.loads(made.argv[-1]) == {"backend": "xgrammar", "disable_any_whitespace": True}
        with pytest.raises(ValidationError):
            VllmArgs(tool_call_parser="--tool-parser-plugin=/tmp/x.py")

    @pytest.mark.parametrize(
        ("memory", "size", "fields", "said"),
        [
            (2**32, 0, {}, "1"),
            (16 * 2**30, 2**30, {}, "12"),
            (16 * 2**30, 2**30, {"dtype": "float32"}, "11"),
            (16 * 2**30, 2**30, {"kv_cache": 3 * 2**30}, "3"),
            (2**30, 2**40, {}, "1"),
        ],
    )
    def test_on_processors_the_cache_fits_the_memory_limit(
        self, memory: int, size: int, fields: dict[str, Any], said: str
    ) -> None:
        """What is not said follows from the limit: vLLM itself would take nine tenths of the machine."""
        files = tuple(file.model_copy(update={"size": size}) for file in MANIFEST.spec.files)
        manifest = MANIFEST.model_copy(update={"spec": MANIFEST.spec.model_copy(update={"files": files})})
        given = target(engine="vllm", engine_args=VllmArgs(**fields), resources=VllmResources(memory=memory))
        assert ENGINE.launch(given, manifest, VIEW).env["VLLM_CPU_KVCACHE_SPACE"] == said

    def test_nothing_is_compiled_on_processors(self) -> None:
        """No digest binds a machine's compiler, and an image may have none; GPUs' kernels are vLLM's own business."""
        for made in (launch(), launch(**container())):
            assert made.env["TORCH_COMPILE_DISABLE"] == "1"
        on_gpu = launch(resources=VllmResources(gpus=1))
        assert not {"TORCH_COMPILE_DISABLE", "VLLM_CPU_KVCACHE_SPACE"} & set(on_gpu.env)
        assert not launch(**container()).compiles
        assert launch(resources=VllmResources(gpus=1), **container()).compiles, "it needs room for what it compiles"

    def test_what_it_cannot_load_is_refused(self) -> None:
        """Another format, and another engine's arguments."""
        gguf = make_model({"m.gguf": b"GGUF"}).manifest
        with pytest.raises(Incompatible, match="safetensors"):
            ENGINE.launch(target(engine="vllm", engine_args=VllmArgs()), gguf, VIEW)
        with pytest.raises(Incompatible, match="arguments"):
            launch(engine_args=LlamaCppArgs())

    def test_it_is_an_engine_of_this_agent(self) -> None:
        """By the name that snapshots use."""
        assert isinstance(engines()["vllm"], VllmEngine)


class TestAnswers:
    """What it is asked, and what is made of what it says."""

    def test_it_is_ready_when_it_lists_its_model(self) -> None:
        """Not by an empty body."""
        assert ENGINE.ready(Scripted({"data": [{"id": "m:v1"}]}))
        assert not ENGINE.ready(Scripted({"data": []}))
        assert not ENGINE.ready(Scripted(None))

    def test_a_conversation_is_rendered_with_the_generation_prompt(self) -> None:
        """As the chat endpoint does it."""
        scripted = Scripted({"tokens": [4, 263, 6, 5]})
        assert ENGINE.render(scripted, [ChatMessage(role="user", content="ba")]) == (4, 263, 6, 5)
        turns = [{"role": "user", "content": "ba"}]
        assert scripted.asked == [("POST", "/tokenize", {"messages": turns, "add_generation_prompt": True})]

    def test_a_continuation_is_greedy_and_no_cache_is_asked(self) -> None:
        """Temperature 0, no penalties of the model's own, and another salt each time (vllm#42019)."""
        scripted = Scripted({"choices": [{"token_ids": [7, 8]}]})
        assert [ENGINE.greedy(scripted, (1, 2), tokens=2) for _ in range(2)] == [(7, 8), (7, 8)]
        bodies: list[Any] = [body for _, _, body in scripted.asked]
        assert [(body["prompt"], body["max_tokens"], body["temperature"]) for body in bodies] == [([1, 2], 2, 0)] * 2
        assert bodies[0]["cache_salt"] != bodies[1]["cache_salt"]

    @pytest.mark.parametrize(
        "answer",
        [
            None,
            {},
            {"choices": []},
            {"choices": ["x"]},
            {"choices": [{"token_ids": None}]},
            {"choices": [{"token_ids": [1, 2, 3]}]},
            {"choices": [{"token_ids": [-1]}]},
            {"choices": [{"token_ids": [True]}]},
            {"choices": [{"token_ids": [1]}, {"token_ids": [1]}]},
        ],
    )
    def test_what_is_no_answer_is_not_taken_for_one(self, answer: JsonValue) -> None:
        """Each way in which a broken or hostile engine can answer something else."""
        with pytest.raises(EngineUnreachable):
            ENGINE.greedy(Scripted(answer), (1,), tokens=2)

    def test_forced_tokens_are_a_prompt(self) -> None:
        """One pass; twenty at each position, and the token that stands there wherever it ranks."""
        first: JsonValue = {"9": {"logprob": -0.5}, "8": {"logprob": -1.5}, "3": {"logprob": -9999.0}}
        second: JsonValue = {"4": {"logprob": -0.1}, "8": {"logprob": -2.5}}
        choice: JsonValue = {"prompt_token_ids": [1, 2, 3, 4], "prompt_logprobs": [None, {}, first, second]}
        scripted = Scripted({"choices": [choice]})
        found = ENGINE.force(scripted, (1, 2), (3, 4))
        assert found[0] == TopTokens(3, FLOOR, (9, 8, 3), (-0.5, -1.5, FLOOR))
        assert found[1] == TopTokens(4, -0.1, (4, 8), (-0.1, -2.5))
        ((_, path, body),) = scripted.asked
        assert path == "/v1/completions"
        assert isinstance(body, dict)
        assert (body["prompt"], body["prompt_logprobs"], body["max_tokens"]) == ([1, 2, 3, 4], 20, 1)
        assert body["cache_salt"]

    @pytest.mark.parametrize(
        "change",
        [
            {"prompt_token_ids": None},
            {"prompt_token_ids": [1, 3]},
            {"prompt_logprobs": None},
            {"prompt_logprobs": [None]},
            {"prompt_logprobs": [None, None]},
            {"prompt_logprobs": [None, {"2": {"logprob": -1.0}}]},
            {"prompt_logprobs": [None, {"3": {"logprob": -1.0}, "4": {"logprob": -1.0}}]},
            {"prompt_logprobs": [None, {"2": {"logprob": -1.0}, "x": {"logprob": -1.0}}]},
            {"prompt_logprobs": [None, {"2": {"logprob": -1.0}, "-4": {"logprob": -1.0}}]},
            {"prompt_logprobs": [None, {"2": {"logprob": -1.0}, "02": {"logprob": -1.0}}]},
            {"prompt_logprobs": [None, {"2": {"logprob": -1.0}, "4": {"logprob": 1.0}}]},
            {"prompt_logprobs": [None, {"2": {"logprob": -1.0}, "4": -1.0}]},
            {"prompt_logprobs": [None, {str(number): {"logprob": -1.0} for number in range(22)}]},
        ],
    )
    def test_what_is_no_distribution_is_not_taken_for_one(self, change: dict[str, JsonValue]) -> None:
        """Each way in which a broken or hostile engine can answer something else."""
        listed: JsonValue = [None, {"2": {"logprob": -1.0}, "4": {"logprob": -1.0}}]
        good: dict[str, JsonValue] = {"prompt_token_ids": [1, 2], "prompt_logprobs": listed}
        assert ENGINE.force(Scripted({"choices": [good]}), (1,), (2,))
        with pytest.raises(EngineUnreachable):
            ENGINE.force(Scripted({"choices": [good | change]}), (1,), (2,))

    def test_what_it_is_doing_is_summed_over_its_workers(self) -> None:
        """As vLLM writes its metrics: labels, exponents, and a line per worker."""
        page = "\n".join(
            [
                "# HELP vllm:num_requests_running Number of requests in model execution batches.",
                "# TYPE vllm:num_requests_running gauge",
                'vllm:num_requests_running{engine="0",model_name="m:v1"} 2.0',
                'vllm:num_requests_running{engine="1",model_name="m:v1"} 1.0',
                'vllm:num_requests_waiting{engine="0",model_name="m:v1"} 4.0',
                'vllm:num_requests_waiting_by_reason{engine="0",reason="capacity"} 4.0',
                'vllm:prompt_tokens_total{engine="0",model_name="m:v1"} 1.5e+06',
                'vllm:generation_tokens_total{engine="0",model_name="m:v1"} 25.0',
            ]
        )
        assert ENGINE.activity(Scripted(None, page)) == Activity(running=3, waiting=4, tokens=1_500_025)
        for changed in (page.replace("25.0", "NaN"), page.replace("25.0", "-1"), page.replace("25.0", "1e300"), ""):
            with pytest.raises(EngineUnreachable, match="count"):
                ENGINE.activity(Scripted(None, changed))
