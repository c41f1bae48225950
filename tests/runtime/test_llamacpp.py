"""llama.cpp as an engine: its command line, and the real thing under the native backend."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import pytest

from runtime.engines.llamacpp import PROGRAM, LlamaCppEngine
from runtime.engines.registry import engines
from runtime.interfaces import Activity, EngineView
from runtime.validation.evidence import FLOOR, TOP, TopTokens
from schemas.errors import EngineUnreachable, Incompatible
from schemas.probe import ChatMessage
from schemas.runtimes import LlamaCppArgs, Resources, VllmArgs
from tests.contracts.backend_contract import eventually
from tests.support.builders import IMAGE, target
from tests.support.engines import NativeNode, small
from tests.support.models import make_model
from tests.support.scripted import Scripted

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from pydantic import JsonValue

    from runtime.interfaces import EngineConnection

ENGINE = LlamaCppEngine()
VIEW = EngineView("/srv/model", "engine.sock")
MANIFEST = make_model({"m.gguf": b"GGUF"}).manifest
HELLO = (ChatMessage(role="user", content="ba be bi bo bu"),)
GOOD_LIST: list[Any] = [{"id": 9, "logprob": -0.5}, {"id": 7, "logprob": -1.0}]


def flags(**fields: Any) -> dict[str, str]:
    """The flags of a launch, by name."""
    argv = ENGINE.launch(target(**fields), MANIFEST, VIEW).argv
    start = argv.index("--model")
    return dict(zip(argv[start::2], argv[start + 1 :: 2], strict=True))


class TestCommandLine:
    """Nothing but what the snapshot says, in words the server program knows."""

    def test_native_runs_the_program_beside_the_engine_isolated(self) -> None:
        """This interpreter, -I, and an environment without anything of the agent's (I10)."""
        launch = ENGINE.launch(target(), MANIFEST, VIEW)
        assert launch.argv[:4] == (sys.executable, "-I", "-B", str(PROGRAM))
        assert PROGRAM.is_file()
        assert dict(launch.env) == {"LANG": "C.UTF-8"}

    def test_a_locked_environment_brings_its_interpreter(self) -> None:
        """The same program, run by the environment's own Python."""
        launch = ENGINE.launch(
            target(), MANIFEST, EngineView("/srv/model", "engine.sock", "/srv/runtimes/x/bin/python")
        )
        assert launch.argv[:4] == ("/srv/runtimes/x/bin/python", "-I", "-B", str(PROGRAM))

    def test_in_a_container_the_image_s_entry_point_gets_flags_only(self) -> None:
        """The image's program is the same one."""
        launch = ENGINE.launch(
            target(mode="container", backend="docker", image=IMAGE, environment=None), MANIFEST, VIEW
        )
        assert launch.argv[:4] == ("--model", "/srv/model", "--socket", "engine.sock")

    def test_arguments_become_flags(self) -> None:
        """Each typed argument has its flag; what is absent is left to llama.cpp."""
        arguments = LlamaCppArgs(context_size=4096, parallel=3, threads=5, gpu_layers=7)
        assert flags(engine_args=arguments) == {
            "--model": "/srv/model",
            "--socket": "engine.sock",
            "--alias": "m:v1",
            "--ctx-size": "4096",
            "--parallel": "3",
            "--threads": "5",
            "--gpu-layers": "7",
        }
        assert "--threads" not in flags()

    def test_threads_follow_the_processor_limit(self) -> None:
        """With a limit and no number of threads, there are as many as processors: more would wait for each other."""
        assert flags(resources=Resources(cpus=2))["--threads"] == "2"
        assert flags(resources=Resources(cpus=2), engine_args=LlamaCppArgs(threads=6))["--threads"] == "6"

    def test_the_program_accepts_every_flag(self) -> None:
        """The server's own parser reads the command line that is made here."""
        from runtime.engines import llamacpp_server

        arguments = LlamaCppArgs(context_size=4096, parallel=3, threads=5, gpu_layers=7)
        argv = ENGINE.launch(target(engine_args=arguments), MANIFEST, VIEW).argv[4:]
        parsed = llamacpp_server.parse(argv)
        assert (parsed.ctx_size, parsed.parallel, parsed.threads, parsed.gpu_layers) == (4096, 3, 5, 7)

    @pytest.mark.parametrize(
        ("fields", "files", "words"),
        [
            ({"engine_args": VllmArgs()}, {"m.gguf": b""}, "not llama.cpp's"),
            ({}, {"README.md": b""}, "no .gguf file"),
        ],
    )
    def test_what_it_cannot_load_is_incompatible(
        self, fields: dict[str, Any], files: dict[str, bytes], words: str
    ) -> None:
        """Said before anything is stopped or started."""
        with pytest.raises(Incompatible, match=words):
            ENGINE.launch(target(**fields), make_model(files).manifest, VIEW)

    def test_another_format_is_incompatible(self) -> None:
        """Safetensors are another engine's."""
        manifest = MANIFEST.model_copy(update={"spec": MANIFEST.spec.model_copy(update={"format": "safetensors"})})
        with pytest.raises(Incompatible, match="loads gguf"):
            ENGINE.launch(target(), manifest, VIEW)


class TestAnswers:
    """An engine's answers are input from outside."""

    @pytest.mark.parametrize(
        "answer", [None, [], {}, {"tokens": None}, {"tokens": "1"}, {"tokens": [1.5]}, {"tokens": [True]}]
    )
    def test_token_ids_are_checked(self, answer: JsonValue) -> None:
        """Anything but a list of integers is no answer."""
        with pytest.raises(EngineUnreachable, match="token"):
            ENGINE.greedy(Scripted(answer), [1], tokens=4)

    @pytest.mark.parametrize("tokens", [[-1], [2**31]])
    def test_ids_outside_any_vocabulary_are_refused(self, tokens: list[JsonValue]) -> None:
        """Bounds of 32-bit token ids."""
        with pytest.raises(EngineUnreachable, match="for a token id"):
            ENGINE.greedy(Scripted({"tokens": tokens}), [1], tokens=4)

    def test_more_than_was_asked_for_is_refused(self) -> None:
        """A server that ignores the limit is no judge's witness."""
        with pytest.raises(EngineUnreachable, match="5 tokens, 4 were asked for"):
            ENGINE.greedy(Scripted({"tokens": [1, 2, 3, 4, 5]}), [1], tokens=4)

    def test_greedy_asks_for_the_likeliest_token_without_caches(self) -> None:
        """Temperature 0 and no cached prompt: what is judged is the weights, not the dice and not an earlier answer."""
        engine = Scripted({"tokens": [7]})
        assert ENGINE.greedy(engine, (1, 2), tokens=4) == (7,)
        ((method, path, body),) = engine.asked
        assert (method, path) == ("POST", "/completion")
        assert isinstance(body, dict)
        assert (body["prompt"], body["n_predict"], body["temperature"], body["cache_prompt"]) == ([1, 2], 4, 0, False)

    def test_tokens_are_forced_by_a_grammar_of_nothing_else(self) -> None:
        """One request; the distribution is the model's own, not what the grammar left of it."""
        listed: list[JsonValue] = [{"id": 8, "logprob": -2.0}, {"id": 9, "logprob": -0.2}]
        told: list[JsonValue] = [{"id": token, "logprob": -3.4e38, "top_logprobs": listed} for token in (7, 5)]
        engine = Scripted({"tokens": [7, 5], "completion_probabilities": told})
        found = ENGINE.force(engine, (1, 2), (7, 5))
        assert found[0] == TopTokens(7, FLOOR, (9, 8), (-0.2, -2.0))
        ((_, path, body),) = engine.asked
        assert path == "/completion"
        assert isinstance(body, dict)
        assert (body["grammar"], body["n_predict"], body["n_probs"]) == ("root ::= <[7]> <[5]>", 2, TOP)
        assert (body["post_sampling_probs"], body["cache_prompt"]) == (False, False)

    @pytest.mark.parametrize(
        "entry",
        [
            None,
            {"id": 7, "logprob": -1.0},
            {"id": 8, "logprob": -1.0, "top_logprobs": []},
            {"id": 7, "logprob": "x", "top_logprobs": GOOD_LIST},
            {"id": 7, "logprob": 0.5, "top_logprobs": GOOD_LIST},
            {"id": 7, "logprob": True, "top_logprobs": GOOD_LIST},
            {"id": 7, "logprob": 1e400, "top_logprobs": GOOD_LIST},
            {"id": 7, "logprob": -1.0, "top_logprobs": []},
            {"id": 7, "logprob": -1.0, "top_logprobs": [*GOOD_LIST, "x"]},
            {"id": 7, "logprob": -1.0, "top_logprobs": [*GOOD_LIST, {"id": -1, "logprob": -1.0}]},
            {"id": 7, "logprob": -1.0, "top_logprobs": [*GOOD_LIST, {"id": 9, "logprob": -1.0}]},
            {"id": 7, "logprob": -1.0, "top_logprobs": [*GOOD_LIST, {"id": 3, "logprob": None}]},
        ],
    )
    def test_what_is_no_distribution_is_not_taken_for_one(self, entry: JsonValue) -> None:
        """Each way in which a broken or hostile engine can answer something else; nothing of it is computed with."""
        with pytest.raises(EngineUnreachable):
            ENGINE.force(Scripted({"tokens": [7], "completion_probabilities": [entry]}), (1,), (7,))

    def test_each_written_token_has_its_distribution(self) -> None:
        """More or fewer are no answer."""
        with pytest.raises(EngineUnreachable, match="each token"):
            ENGINE.force(Scripted({"tokens": [7], "completion_probabilities": []}), (1,), (7,))
        with pytest.raises(EngineUnreachable, match="2 tokens, 1 were"):
            ENGINE.force(Scripted({"tokens": [7, 7], "completion_probabilities": []}), (1,), (7,))

    def test_rendering_needs_a_prompt(self) -> None:
        """A template endpoint that answers something else is no answer."""
        with pytest.raises(EngineUnreachable, match="without a prompt"):
            ENGINE.render(Scripted({"prompt": 3}), HELLO)

    def test_what_is_under_way_counts_before_it_has_ended(self) -> None:
        """A slot that reads counts what it has read, one that writes what it has written, an idle one nothing."""
        page = "\n".join(
            f"llamacpp:{name} {value}"
            for name, value in (
                ("requests_processing", 2),
                ("requests_deferred", 3),
                ("prompt_tokens_total", 100),
                ("tokens_predicted_total", 10),
            )
        )
        slots: list[Any] = [
            {"is_processing": True, "n_prompt_tokens_processed": 7, "next_token": [{"n_decoded": 0}]},
            {"is_processing": True, "n_prompt_tokens_processed": 70, "next_token": [{"n_decoded": 5}]},
            {"is_processing": False, "n_prompt_tokens_processed": 9, "next_token": [{"n_decoded": 9}]},
        ]
        assert ENGINE.activity(Scripted(slots, page)) == Activity(running=2, waiting=3, tokens=122)
        for answer in ({}, [{"is_processing": True}], [{"is_processing": True, "n_prompt_tokens_processed": -1}]):
            with pytest.raises(EngineUnreachable, match="/slots"):
                ENGINE.activity(Scripted(answer, page))

    def test_ready_means_ok(self) -> None:
        """Only the documented word counts."""
        assert ENGINE.ready(Scripted({"status": "ok"}))
        assert not ENGINE.ready(Scripted({"status": "loading model"}))
        assert not ENGINE.ready(Scripted("ok"))


def test_the_registry_names_engines_as_snapshots_do() -> None:
    """One place, keyed by the engine's own name; all of them are names that a snapshot may use."""
    from typing import get_args

    from schemas.runtimes import EngineName

    assert {name: engine.name for name, engine in engines().items()} == {name: name for name in engines()}
    assert set(engines()) <= set(get_args(EngineName))


def test_looking_for_the_engine_does_not_import_it() -> None:
    """34 MB of native code stay unloaded in the agent; version and environment come from what is installed."""
    pytest.importorskip("xllamacpp", reason="xllamacpp not present")
    from importlib.metadata import version

    code = (
        "import sys; from runtime.engines.registry import engines; found = engines()['llamacpp'].native();"
        "assert 'xllamacpp' not in sys.modules; print(found.version, found.environment)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    found = ENGINE.native()
    assert found is not None
    assert done.stdout.split() == [version("xllamacpp"), found.environment]


def test_the_environment_follows_what_is_installed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Another record is another environment; no record, or no distribution, is no engine."""
    info = tmp_path / "xllamacpp-1.0.dist-info"
    info.mkdir()
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    (info / "RECORD").write_text("a")
    one = ENGINE.native()
    (info / "RECORD").write_text("b")
    other = ENGINE.native()
    assert one is not None
    assert other is not None
    assert (one.engine, one.version) == ("llamacpp", "1.0")
    assert one.environment != other.environment
    (info / "RECORD").unlink()
    assert ENGINE.native() is None
    info.rmdir()
    assert ENGINE.native() is None


class TestReal:
    """The real server, natively, with a model of random weights."""

    @pytest.fixture
    def node(self, tmp_path: Path) -> Iterator[NativeNode]:
        """A node; nothing of it is left."""
        pytest.importorskip("xllamacpp", reason="xllamacpp not present")
        node = NativeNode(tmp_path)
        yield node
        for item in node.attach().list():
            node.attach().remove(item.name)

    def ready(self, connection: EngineConnection) -> bool:
        """Whether it serves by now."""
        try:
            return ENGINE.ready(connection)
        except EngineUnreachable:
            return False

    def test_rendering_is_what_the_chat_endpoint_feeds(
        self, node: NativeNode, tiny_model: Callable[[int], Path]
    ) -> None:
        """As many tokens as the chat endpoint counts, one beginning of sequence, markers as single tokens."""
        with node.running(tiny_model(1)) as connection:
            eventually(lambda: self.ready(connection), "llama.cpp is ready")
            for messages in (
                HELLO,
                (ChatMessage(role="system", content="<|end|> x"), *HELLO, ChatMessage(role="assistant", content="no")),
                (ChatMessage(role="user", content="Grüße, 世界! \n\t🙂"),),
            ):
                tokens = ENGINE.render(connection, messages)
                turns: JsonValue = [{"role": message.role, "content": message.content} for message in messages]
                answer: Any = connection.request(
                    "POST", "/v1/chat/completions", {"messages": turns, "max_tokens": 1}, timeout=60
                )
                assert len(tokens) == answer["usage"]["prompt_tokens"]
                assert tokens.count(1) == 1
                assert tokens[0] == 1

    def test_greedy_is_what_the_chat_endpoint_writes(self, node: NativeNode, tiny_model: Callable[[int], Path]) -> None:
        """The tokens continue the rendered prompt exactly as a chat at temperature 0 does, each time, in any order."""
        with node.running(tiny_model(1)) as connection:
            eventually(lambda: self.ready(connection), "llama.cpp is ready")
            prompt = ENGINE.render(connection, HELLO)
            first = ENGINE.greedy(connection, prompt, tokens=16)
            assert len(first) == 16
            ENGINE.greedy(connection, prompt[:4], tokens=8)
            assert ENGINE.greedy(connection, prompt, tokens=16) == first
            assert ENGINE.greedy(connection, prompt, tokens=4) == first[:4]
            text: Any = connection.request("POST", "/detokenize", {"tokens": list(first)}, timeout=60)
            turns: JsonValue = [{"role": "user", "content": HELLO[0].content}]
            question: JsonValue = {"messages": turns, "max_tokens": 16, "temperature": 0}
            chat: Any = connection.request("POST", "/v1/chat/completions", question, timeout=60)
            assert chat["choices"][0]["message"]["content"].strip() == text["content"].strip()

    def test_forced_tokens_come_with_what_the_model_thinks_of_them(
        self, node: NativeNode, tiny_model: Callable[[int], Path]
    ) -> None:
        """Written as told, twenty a position, the same each time, and the likeliest is what greedy would write."""
        with node.running(tiny_model(1)) as connection:
            eventually(lambda: self.ready(connection), "llama.cpp is ready")
            prompt = ENGINE.render(connection, HELLO)
            greedy = ENGINE.greedy(connection, prompt, tokens=8)
            found = ENGINE.force(connection, prompt, greedy)
            assert tuple(position.forced for position in found) == greedy
            assert tuple(position.ids[0] for position in found) == greedy
            assert all(len(position.ids) == len(position.logprobs) == TOP for position in found)
            other = tuple(reversed(greedy))
            unlikely = ENGINE.force(connection, prompt, other)
            assert tuple(position.forced for position in unlikely) == other
            # What comes before a position decides, not what stands there.
            assert unlikely[0].ids == found[0].ids
            assert unlikely[-1].ids != found[-1].ids
            assert ENGINE.force(connection, prompt, other) == unlikely

    def test_its_activity_moves_while_it_writes(self, node: NativeNode, tiny_model: Callable[[int], Path]) -> None:
        """Idle at first; then one running and one waiting, and tokens of an answer that has not ended; idle again."""
        with node.running(tiny_model(1), target(engine_args=LlamaCppArgs(context_size=2048, threads=1))) as connection:
            eventually(lambda: self.ready(connection), "llama.cpp is ready")
            assert ENGINE.activity(connection) == Activity(running=0, waiting=0, tokens=0)
            question: JsonValue = {"prompt": [1, *range(5, 105)], "n_predict": 1800, "ignore_eos": True}
            with ThreadPoolExecutor(2) as pool:
                answers = [
                    pool.submit(connection.request, "POST", "/completion", question, timeout=300) for _ in range(2)
                ]
                seen = [Activity(0, 0, 0)]
                while not all(answer.done() for answer in answers):
                    seen.append(ENGINE.activity(connection))
                assert all(answer.result() for answer in answers)
            busy = {doing.tokens for doing in seen if (doing.running, doing.waiting) == (1, 1)}
            assert len(busy) > 1, seen
            ended = ENGINE.activity(connection)
            assert (ended.running, ended.waiting) == (0, 0)
            assert ended.tokens > 2 * 1800

    def test_another_model_continues_differently(
        self, node: NativeNode, tiny_model: Callable[[int], Path], tmp_path: Path
    ) -> None:
        """Greedy ids tell two models of one tokenizer apart: the same prompt, other ids (I2)."""
        answers = []
        for seed in (1, 2):
            with NativeNode(tmp_path / str(seed)).running(tiny_model(seed)) as connection:
                eventually(lambda here=connection: self.ready(here), "llama.cpp is ready")
                prompt = ENGINE.render(connection, HELLO)
                answers.append((prompt, ENGINE.greedy(connection, prompt, tokens=8)))
        assert answers[0][0] == answers[1][0]
        assert answers[0][1] != answers[1][1]

    def test_it_is_adopted_and_its_death_is_seen(self, node: NativeNode, tiny_model: Callable[[int], Path]) -> None:
        """A new backend object reaches the same engine; after SIGKILL it is exited, with the signal (I7)."""
        spec = node.spec(tiny_model(1))
        node.attach().create(spec)
        node.attach().start(spec.name)
        backend = node.attach()
        connection = node.connect(backend, spec)
        eventually(lambda: self.ready(connection), "llama.cpp is ready")
        assert ENGINE.render(node.connect(node.attach(), spec), HELLO)
        (item,) = backend.list()
        assert item.status == "running"
        state = (node.folder / "run" / "instances" / spec.name / "state.json").read_text()
        import json

        os.kill(json.loads(state)["engine"], signal.SIGKILL)
        eventually(lambda: node.attach().list()[0].status == "exited", "its death is seen")
        (item,) = node.attach().list()
        assert (item.exit_code, item.detail) == (137, "signal 9")
        assert "llamacpp_server: serving" in backend.output(spec.name, limit=100_000)

    def test_a_clean_stop_is_code_0(self, node: NativeNode, tiny_model: Callable[[int], Path]) -> None:
        """SIGTERM lets the server end by itself, within the grace."""
        spec = node.spec(tiny_model(1))
        backend = node.attach()
        backend.create(spec)
        backend.start(spec.name)
        eventually(lambda: self.ready(node.connect(backend, spec)), "llama.cpp is ready")
        # It answers a moment before it has a handler for signals.
        eventually(lambda: "serving" in backend.output(spec.name, limit=100_000), "it says so")
        backend.stop(spec.name, grace=60)
        (item,) = backend.list()
        assert (item.status, item.exit_code) == ("exited", 0)

    def test_a_broken_model_ends_with_a_reason(self, node: NativeNode, tmp_path: Path) -> None:
        """What is no GGUF ends the engine with code 1 and a line that says so."""
        folder = tmp_path / "broken"
        folder.mkdir()
        (folder / "m.gguf").write_bytes(b"not a model")
        spec = node.spec(folder, target(engine_args=small()))
        backend = node.attach()
        backend.create(spec)
        backend.start(spec.name)
        eventually(lambda: backend.list()[0].status == "exited", "it ends")
        assert backend.list()[0].exit_code == 1
        assert "not a GGUF file" in backend.output(spec.name, limit=1000)
