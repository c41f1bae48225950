"""Engines: what is run in an instance, and how it is asked."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Protocol

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from pydantic import JsonValue

    from runtime.interfaces.backends import EngineView, Launch
    from runtime.validation.evidence import TopTokens
    from schemas.manifest import ManifestDocument
    from schemas.observation import NativeEngine
    from schemas.probe import ChatMessage
    from schemas.target import ServingTarget


class EngineConnection(Protocol):
    """HTTP to one instance over its unix socket, bounded in size and time.

    The socket is opened without following links, and its peer must belong to the instance (I10).
    """

    def request(
        self, method: str, path: str, body: JsonValue = None, *, timeout: float, limit: int = 2**22
    ) -> JsonValue:
        """Send JSON, return JSON; only status 200 is an answer.

        Args:
            method: HTTP method.
            path: absolute path.
            body: JSON body, None for none.
            timeout: seconds for the whole exchange.
            limit: bytes of the answer.

        Raises:
            EngineUnreachable: no socket, not ours, refused, too slow, too long, not JSON, or another status.
        """
        ...

    def read(self, path: str, *, timeout: float, limit: int = 2**22) -> str:
        """Get a text, which need not be JSON; only status 200 is an answer.

        Args:
            path: absolute path.
            timeout: seconds for the whole exchange.
            limit: bytes of the answer.

        Raises:
            EngineUnreachable: as for `request`, or not UTF-8.
        """
        ...

    def peer(self, *, timeout: float) -> int:
        """The process that listens on the socket, after the checks that every request makes.

        Args:
            timeout: seconds.

        Raises:
            EngineUnreachable: no socket, not ours, refused, or too slow.
        """
        ...


Answers = Literal["render", "tokenize", "force", "sample", "chat"]
"""What validation can ask of an engine beyond greedy continuations, which every engine gives."""


@dataclass(frozen=True, slots=True)
class Activity:
    """What an engine says that it is doing, in one answer's time."""

    running: int
    """Requests that it is working on."""
    waiting: int
    """Requests that it has accepted and not begun."""
    tokens: int
    """Tokens read and written since it started, those of unfinished requests included as far as it says. Only that it
    moves means anything: an engine with `running` requests whose count stands still makes no progress."""


class Engine(Protocol):
    """What is run: how it is started, how ready looks, how it is asked. Stateless."""

    name: str
    answers: frozenset[Answers]
    """Which of the methods below it has an answer to; the others are never called."""
    formats: frozenset[str]
    """Manifest formats that it loads."""
    distributions: tuple[str, ...]
    """Python distributions that bring it; any one of them does."""

    def native(self) -> NativeEngine | None:
        """The engine in the agent's own environment, if it is installed. Must not import the engine."""
        ...

    def launch(self, target: ServingTarget, manifest: ManifestDocument, view: EngineView) -> Launch:
        """Command line and environment.

        Raises:
            Incompatible: this engine cannot load that model.
        """
        ...

    def ready(self, connection: EngineConnection) -> bool:
        """Whether the model is loaded and requests are served; False while loading.

        Raises:
            EngineUnreachable: the socket does not answer (yet).
        """
        ...

    def activity(self, connection: EngineConnection) -> Activity | None:
        """What it is doing, as it reports itself; None from an engine that has no way to say.

        Raises:
            EngineUnreachable: it does not answer, or not with numbers: one that hangs may still say that it is well.
        """
        ...

    def render(
        self, connection: EngineConnection, messages: Sequence[ChatMessage], *, tools: Sequence[JsonValue] = ()
    ) -> tuple[int, ...]:
        """Token ids of a rendered conversation, with the generation prompt.

        Args:
            connection: the instance.
            messages: the conversation.
            tools: functions that the model may call, as OpenAI's API describes them.

        Raises:
            EngineUnreachable.
        """
        ...

    def tokenize(self, connection: EngineConnection, text: str, *, special: bool) -> tuple[int, ...]:
        """Token ids of a plain text.

        Args:
            connection: the instance.
            text: the text, in which nothing is the name of a control token: engines differ in what they take it for.
            special: whether what the vocabulary puts around a text is added (a beginning of sequence).

        Raises:
            EngineUnreachable.
        """
        ...

    def greedy(self, connection: EngineConnection, prompt: Sequence[int], *, tokens: int) -> tuple[int, ...]:
        """The most likely continuation of token ids, without caches.

        Args:
            connection: the instance.
            prompt: token ids.
            tokens: how many to generate; fewer come back when the model ends by itself.

        Raises:
            EngineUnreachable.
        """
        ...

    def text(self, connection: EngineConnection, tokens: Sequence[int]) -> str:
        """What token ids say, as far as they are characters; asked for when a probe is recorded.

        Raises:
            EngineUnreachable.
        """
        ...

    def force(
        self, connection: EngineConnection, prompt: Sequence[int], forced: Sequence[int]
    ) -> tuple[TopTokens, ...]:
        """The model's next-token distribution at each of these tokens, as if it had written the ones before.

        Args:
            connection: the instance.
            prompt: token ids, at least one.
            forced: token ids that stand after the prompt, at least one, none that ends generation.

        Returns:
            One per position, each saying which token stood there: an engine that does not do as it is told shows in
            other tokens, or fewer.

        Raises:
            EngineUnreachable: it does not answer, or not with distributions.
        """
        ...

    def sample(
        self, connection: EngineConnection, prompt: Sequence[int], *, tokens: int, seed: int, temperature: float
    ) -> tuple[int, ...]:
        """A continuation as clients get it: caches allowed, drawn from the whole distribution at a temperature.

        Args:
            connection: the instance.
            prompt: token ids.
            tokens: how many to generate; fewer come back when the model ends by itself.
            seed: decides what is drawn.
            temperature: 0 draws the likeliest.

        Raises:
            EngineUnreachable.
        """
        ...

    def chat(
        self,
        connection: EngineConnection,
        messages: Sequence[ChatMessage],
        *,
        schema: Mapping[str, JsonValue],
        call: bool,
    ) -> str:
        """The text of an answer that was asked to have a form; empty where there is none.

        Args:
            connection: the instance.
            messages: the conversation.
            schema: JSON Schema of the answer.
            call: whether it should be the arguments of a function call.

        Raises:
            EngineUnreachable.
        """
        ...
