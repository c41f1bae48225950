"""Any OpenAI-compatible image: its declared command, what is made of its answers, and a real one in containers."""

from __future__ import annotations

import http.client
import json
from contextlib import closing
from typing import TYPE_CHECKING, Any

import pytest
from pydantic import ValidationError

from runtime.engines.openai import CHAT, OpenAIEngine
from runtime.engines.registry import engines
from runtime.interfaces import EngineView
from schemas.errors import EngineUnreachable, Incompatible
from schemas.probe import ChatMessage
from schemas.runtimes import LlamaCppArgs, OpenAIArgs
from tests.support.builders import IMAGE, container_runtime, snapshot, target
from tests.support.front import dial
from tests.support.models import make_model
from tests.support.openai import OpenAINode
from tests.support.simulated_node import conditions, states
from tests.support.swapping import PROMPTS, ask_for

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from pydantic import JsonValue

ENGINE = OpenAIEngine()
VIEW = EngineView("/model", "/run/reconcile/engine.sock")
MANIFEST = make_model({"m.gguf": b"GGUF"}).manifest
COMMAND = ("/bin/serve", "--weights={model}/m.gguf", "--listen", "unix:{socket}", "--as", "{name}", "$(id); {x}")
HELLO = [ChatMessage(role="user", content="ba")]


def arguments(**fields: Any) -> OpenAIArgs:
    """Declared arguments."""
    return OpenAIArgs.model_validate({"command": COMMAND, "formats": ("gguf",), **fields})


def contained(**fields: Any) -> Any:
    """A target in a container."""
    given = {"mode": "container", "backend": "docker", "image": IMAGE, "environment": None, **fields}
    return target(**{"engine": "openai", "engine_args": arguments(), **given})


class Api:
    """A server that answers each path with one thing."""

    def __init__(self, chat: JsonValue, models: JsonValue = None) -> None:
        self.answers = {CHAT: chat, "/v1/models": models or {"data": [{"id": "m:v1"}]}}
        self.asked: list[Any] = []

    def request(
        self, method: str, path: str, body: JsonValue = None, *, timeout: float, limit: int = 2**22
    ) -> JsonValue:
        """The one thing."""
        self.asked.append((method, path, body))
        return self.answers[path]

    def read(self, path: str, *, timeout: float, limit: int = 2**22) -> str:
        """Nothing is read as a text."""
        raise AssertionError(path)

    def peer(self, *, timeout: float) -> int:
        """Nobody's process."""
        return 0


class TestDeclared:
    """What the snapshot says, and nothing else, in words that no shell sees."""

    def test_placeholders_are_replaced_word_by_word(self) -> None:
        """Also within a word; what looks like a shell's stays what it is, and so do other braces."""
        launch = ENGINE.launch(contained(), MANIFEST, VIEW)
        assert launch.argv == (
            *("/bin/serve", "--weights=/model/m.gguf", "--listen", "unix:/run/reconcile/engine.sock", "--as", "m:v1"),
            "$(id); {x}",
        )
        assert launch.program, "the image's entry point is not used"
        assert launch.health == "/health"

    @pytest.mark.parametrize(
        ("fields", "words"),
        [
            ({"command": ("serve", "{model}", "{socket}")}, "path of a program"),
            ({"command": ("/bin/sh", "-c", "serve {model} {socket}")}, "shell"),
            ({"command": ("/bin/serve", "{model}")}, "{socket}"),
            ({"command": ("/bin/serve", "{socket}")}, "{model}"),
            ({"command": ("/bin/{model}/{socket}",)}, "{model}"),
            ({"command": ("/bin/serve", "{model}", "{socket}", "a\nb")}, "pattern"),
            ({"command": ()}, "at least 1"),
            ({"formats": ()}, "at least 1"),
            ({"formats": ("pickle",)}, "gguf"),
            ({"health": "health"}, "pattern"),
            ({"health": "/x?y=1"}, "pattern"),
            ({"environment": {"LD_PRELOAD": "x"}}, "Extra"),
        ],
    )
    def test_what_cannot_be_meant_is_refused(self, fields: dict[str, Any], words: str) -> None:
        """Before anything is signed."""
        with pytest.raises(ValidationError, match=words):
            arguments(**fields)

    def test_it_runs_in_a_container_only(self) -> None:
        """Neither a snapshot nor a target says otherwise."""
        spec = {**container_runtime(), "engine": "openai", "engineArgs": {"command": COMMAND, "formats": ("gguf",)}}
        assert snapshot(runtimes=(spec,)).spec.runtimes[0].engine == "openai"
        with pytest.raises(ValidationError, match="container only"):
            snapshot(runtimes=({**spec, "modes": ("container", "native"), "native": {}},))
        with pytest.raises(Incompatible, match="container only"):
            ENGINE.launch(target(engine="openai", engine_args=arguments()), MANIFEST, VIEW)
        assert ENGINE.native() is None

    def test_what_it_was_not_said_to_load_is_incompatible(self) -> None:
        """Another format, and another engine's arguments."""
        with pytest.raises(Incompatible, match="said to load safetensors"):
            ENGINE.launch(contained(engine_args=arguments(formats=("safetensors",))), MANIFEST, VIEW)
        with pytest.raises(Incompatible, match="arguments"):
            ENGINE.launch(contained(engine_args=LlamaCppArgs()), MANIFEST, VIEW)

    def test_it_is_an_engine_of_this_agent(self) -> None:
        """By the name that snapshots use."""
        assert isinstance(engines()["openai"], OpenAIEngine)


class TestAnswers:
    """What it is asked, and what is made of what it says."""

    def test_ready_is_a_listed_model(self) -> None:
        """And its activity is not known, which is not the same as idle."""
        assert ENGINE.ready(Api(None))
        assert not ENGINE.ready(Api(None, {"data": [], "object": "list"}))
        with pytest.raises(EngineUnreachable, match="without a list"):
            ENGINE.ready(Api(None, {"models": []}))
        assert ENGINE.activity(Api(None)) is None

    def test_a_conversation_goes_out_as_it_was_rendered(self) -> None:
        """The rendered bytes hold it; at temperature 0 under the server's own name of the model; the text is cut."""
        api = Api({"usage": {"prompt_tokens": 9}, "choices": [{"message": {"content": "gr\u00fc\u00dfe"}}]})
        rendered = ENGINE.render(api, HELLO)
        assert json.loads(bytes(rendered)) == {"messages": [{"role": "user", "content": "ba"}], "tokens": 9}
        assert bytes(ENGINE.greedy(api, rendered, tokens=5)) == "gr\u00fc\u00df".encode()[:5]
        _, _, question = api.asked[-1]
        assert (question["model"], question["temperature"]) == ("m:v1", 0)
        assert question["messages"] == [{"role": "user", "content": "ba"}]

    @pytest.mark.parametrize(
        "answer",
        [
            None,
            {},
            {"choices": []},
            {"choices": [{"message": {"content": None}}]},
            {"choices": [{"message": {"content": "a"}}, {"message": {"content": "b"}}]},
            {"choices": ["x"]},
        ],
    )
    def test_what_is_no_answer_is_not_taken_for_one(self, answer: JsonValue) -> None:
        """Each way in which a broken or hostile server can answer something else."""
        prompt = tuple(b'{"messages": []}')
        with pytest.raises(EngineUnreachable):
            ENGINE.greedy(Api(answer), prompt, tokens=2)
        with pytest.raises(EngineUnreachable):
            ENGINE.render(Api(answer), HELLO)

    @pytest.mark.parametrize("prompt", [(1, 5, 70_000), (1, 2), tuple(b"[]"), tuple(b'"messages"'), tuple(b"{}")])
    def test_a_probe_with_token_ids_is_another_engine_s(self, prompt: tuple[int, ...]) -> None:
        """Said in words; nothing is asked."""
        api = Api(None)
        with pytest.raises(EngineUnreachable, match="token ids"):
            ENGINE.greedy(api, prompt, tokens=2)
        assert api.asked == []


@pytest.fixture(
    params=[
        pytest.param("docker", marks=pytest.mark.docker),
        pytest.param("podman", marks=pytest.mark.podman),
    ]
)
def openai(
    request: pytest.FixtureRequest,
    test_images: dict[str, str],
    tiny_model: Callable[[int], Path],
    tmp_path: Path,
) -> Iterator[OpenAINode]:
    """A node whose runtime is llama.cpp's image, of which it only knows how it is started."""
    pytest.importorskip("xllamacpp", reason="xllamacpp not present")
    host = request.getfixturevalue(f"{request.param}_host")
    models = (tiny_model(1), tiny_model(2))
    made = OpenAINode(tmp_path, models, name=request.param, host=host, image=test_images["llamacpp"])
    yield made
    made.take_apart()


def ask(node: OpenAINode, prompt: str) -> tuple[str, str]:
    """Who answers on the front's socket, and what."""
    with closing(http.client.HTTPConnection("localhost")) as connection:
        connection.sock = dial(node.keeper.address)
        body = json.dumps(ask_for(prompt))
        connection.request("POST", "/v1/completions", body, {"Content-Type": "application/json"})
        answer = json.loads(connection.getresponse().read())
    return str(answer["model"]), str(answer["choices"][0]["text"])


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_an_image_that_is_known_by_its_api_serves_is_swapped_and_told_from_an_impostor(openai: OpenAINode) -> None:
    """Active, swapped; then other weights under the name of the first, which the probe tells, and back (I2, I4, I5)."""
    for key in ("a:v1", "b:v1"):
        result = openai.run(openai.wish(key))
        assert result.exit_code == 0, [outcome.error for outcome in result.outcomes if outcome.error]
        assert states(result)[key] == "Active"
        for prompt in PROMPTS:
            assert ask(openai, prompt) == (key, openai.answers[key, prompt])
    (one, other) = openai.folders
    openai.folders[one] = openai.folders[other]
    openai.restart()
    lied = openai.run(openai.wish("a:v1"))
    errors = [outcome.error.reason for outcome in lied.outcomes if outcome.error]
    assert errors == ["ValidationFailed"]
    assert conditions(lied)["RolledBack"] == "True"
    assert ask(openai, PROMPTS[0]) == ("b:v1", openai.answers["b:v1", PROMPTS[0]])
