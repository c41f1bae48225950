"""Any server that speaks OpenAI's API, in an image that says nothing else about itself. Its command is declared."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Final

from runtime.engines.answers import count
from runtime.engines.short import ShortApi
from runtime.interfaces import Launch
from schemas.errors import EngineUnreachable, Incompatible
from schemas.runtimes import OpenAIArgs

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pydantic import JsonValue

    from runtime.interfaces import Activity, Answers, EngineConnection, EngineView
    from schemas.manifest import ManifestDocument
    from schemas.observation import NativeEngine
    from schemas.probe import ChatMessage
    from schemas.target import ServingTarget

HEALTH_SECONDS: Final = 5.0
RENDER_SECONDS: Final = 60.0
TOKEN_SECONDS: Final = 2.0
"""Time allowed for a token, as for the other engines."""

CHAT: Final = "/v1/chat/completions"


class OpenAIEngine(ShortApi):
    """A server that is known by its API alone.

    The API has no token ids: it takes conversations and answers text. So a probe of such an engine is recorded from
    such an engine, and where others have ids of tokens it has bytes of UTF-8. A conversation is "rendered" as itself
    with the number of tokens that the server counts in its prompt, which a wrong tokenizer or template changes, though
    not always; a continuation is the text of a chat at temperature 0. Two models that write the same text cannot be
    told apart.

    Source: OpenAI's API reference, "Chat" and "Models".
    """

    name = "openai"
    formats = frozenset({"gguf", "safetensors"})
    """At most; each snapshot declares which."""
    distributions: tuple[str, ...] = ()
    answers: frozenset[Answers] = frozenset({"render"})

    def native(self) -> NativeEngine | None:
        """None: it is an image."""
        return None

    def launch(self, target: ServingTarget, manifest: ManifestDocument, view: EngineView) -> Launch:
        """The declared command, its placeholders replaced word by word.

        Raises:
            Incompatible: not in a container, another engine's arguments, or a format that it was not said to load.
        """
        arguments = target.engine_args
        if not isinstance(arguments, OpenAIArgs):
            raise Incompatible(f"{target.model}: the arguments are not those of an OpenAI-compatible image")
        if target.mode != "container":
            raise Incompatible(f"{target.model}: an OpenAI-compatible image runs in a container only")
        if manifest.spec.format not in arguments.formats:
            known = " and ".join(arguments.formats)
            raise Incompatible(
                f"{target.model} is stored as {manifest.spec.format}; the image was said to load {known}"
            )
        # /tmp is the one place that it may write to.
        home = {"HOME": "/tmp", "LANG": "C.UTF-8"}  # noqa: S108 - its own
        values = {"{model}": view.model, "{socket}": view.socket, "{name}": target.model}
        argv = tuple(_replaced(word, values) for word in arguments.command)
        return Launch(argv, home, program=True, health=arguments.health)

    def ready(self, connection: EngineConnection) -> bool:
        """Whether a model is listed. The declared health path has answered before this is asked.

        Raises:
            EngineUnreachable: the socket does not answer yet.
        """
        return bool(_models(connection))

    def served(self, connection: EngineConnection) -> str:
        """What the server calls its first model.

        Raises:
            EngineUnreachable: it does not answer, or has none.
        """
        names = _models(connection)
        if not names:
            raise EngineUnreachable("/v1/models lists no model")
        return names[0]

    def activity(self, connection: EngineConnection) -> Activity | None:  # noqa: ARG002 - the API has no word for it
        """None: the API does not say."""
        return None

    def render(
        self, connection: EngineConnection, messages: Sequence[ChatMessage], *, tools: Sequence[JsonValue] = ()
    ) -> tuple[int, ...]:
        """The bytes of a conversation, and of the number of tokens that the server counts in its prompt.

        Raises:
            EngineUnreachable: it does not answer, or does not count.
        """
        turns: list[JsonValue] = [{"role": message.role, "content": message.content} for message in messages]
        if tools:
            raise EngineUnreachable("the functions of a conversation are not counted apart by OpenAI's API")
        answer = _chat(connection, self.served(connection), turns, tokens=1)
        counted = count(answer.get("usage"), "prompt_tokens", asked=CHAT)
        return tuple(json.dumps({"messages": turns, "tokens": counted}, ensure_ascii=False).encode())

    def greedy(self, connection: EngineConnection, prompt: Sequence[int], *, tokens: int) -> tuple[int, ...]:
        """The first bytes of the likeliest answer to a conversation.

        Args:
            connection: the instance.
            prompt: bytes, as `render` gives them.
            tokens: how many bytes; fewer come back when the model ends by itself.

        Raises:
            EngineUnreachable: it does not answer, or the prompt is none of `render`'s.
        """
        try:
            turns = json.loads(bytes(prompt))["messages"]
        except (ValueError, TypeError, KeyError, RecursionError) as error:
            raise EngineUnreachable(
                "the probe has token ids, which OpenAI's API does not speak: record it from such an engine"
            ) from error
        # A token is a byte at least, but for those that stand for nothing.
        choices = _chat(connection, self.served(connection), turns, tokens=2 * tokens + 8).get("choices")
        choice = choices[0] if isinstance(choices, list) and len(choices) == 1 else None
        message = choice.get("message") if isinstance(choice, dict) else None
        text = message.get("content") if isinstance(message, dict) else None
        if not isinstance(text, str):
            raise EngineUnreachable(f"{CHAT} answered without exactly one text")
        return tuple(text.encode(errors="surrogatepass")[:tokens])


def _replaced(word: str, values: dict[str, str]) -> str:
    for placeholder, value in values.items():
        word = word.replace(placeholder, value)
    return word


def _models(connection: EngineConnection) -> list[str]:
    """The names that the server calls its models by."""
    answer = connection.request("GET", "/v1/models", timeout=HEALTH_SECONDS)
    listed = answer.get("data") if isinstance(answer, dict) else None
    if not isinstance(listed, list):
        raise EngineUnreachable("/v1/models answered without a list")
    return [str(item["id"]) for item in listed if isinstance(item, dict) and "id" in item]


def _chat(connection: EngineConnection, name: str, turns: JsonValue, *, tokens: int) -> dict[str, Any]:
    """An answer at temperature 0, in one piece."""
    question: JsonValue = {
        "model": name,
        "messages": turns,
        "max_tokens": tokens,
        "temperature": 0,
        "seed": 0,
        "stream": False,
    }
    answer = connection.request("POST", CHAT, question, timeout=RENDER_SECONDS + tokens * TOKEN_SECONDS)
    if not isinstance(answer, dict):
        raise EngineUnreachable(f"{CHAT} answered without an object")
    return answer
