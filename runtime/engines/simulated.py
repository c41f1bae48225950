"""An engine without a model: its answers follow from the manifest it was started with, a wrong one answers wrongly."""

from __future__ import annotations

from typing import TYPE_CHECKING

from runtime.interfaces import Activity, Launch
from runtime.validation.evidence import FLOOR, TOP, TopTokens
from schemas.digests import digest_text
from schemas.errors import EngineUnreachable
from schemas.observation import NativeEngine

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from pydantic import JsonValue

    from runtime.backends.simulated import SimulatedEngineRoom
    from runtime.interfaces import Answers, Backend, EngineConnection, EngineView
    from schemas.manifest import ManifestDocument
    from schemas.probe import ChatMessage
    from schemas.target import ServingTarget

ENVIRONMENT = digest_text("simulated environment")


class SimulatedConnection:
    """Reaches an instance of an engine room; the path of a request is its question."""

    def __init__(self, room: SimulatedEngineRoom, name: str) -> None:
        self._room = room
        self._name = name

    def request(
        self,
        method: str,  # noqa: ARG002 - every question is the same to it
        path: str,
        body: JsonValue = None,
        *,
        timeout: float,  # noqa: ARG002 - it answers at once
        limit: int = 2**22,  # noqa: ARG002 - its answers are short
    ) -> JsonValue:
        """The manifest that the instance was started with, as its answer to everything."""
        item = self._room.instances.get(self._name)
        if item is None or item.status != "running" or self._room.unavailable:
            raise EngineUnreachable(f"{self._name} does not answer")
        return {"manifest": self._room.specs[self._name].target.manifest, "path": path, "body": body}

    def read(self, path: str, *, timeout: float, limit: int = 2**22) -> str:  # noqa: ARG002 - see `request`
        """What the room says that the instance is doing, as three numbers."""
        self.request("GET", path, timeout=timeout)
        doing = self._room.activities.get(self._name, (0, 0, 0))
        return " ".join(str(number) for number in doing)

    def peer(self, *, timeout: float) -> int:  # noqa: ARG002 - it answers at once
        """A process that is none."""
        self.request("GET", "/health", timeout=1)
        return 0


class SimulatedEngine:
    """Stands for any engine. `lies` names models (`name:version`) that answer as another model would."""

    formats = frozenset({"gguf", "safetensors"})
    answers: frozenset[Answers] = frozenset({"render", "tokenize", "force", "sample", "chat"})
    distributions: tuple[str, ...] = ("simulated",)

    def __init__(self, name: str = "llamacpp", version: str = "1.0", lies: frozenset[str] = frozenset()) -> None:
        self.name = name
        self.lies = lies
        self._version = version

    def native(self) -> NativeEngine | None:
        """Always installed."""
        return NativeEngine(self.name, self._version, ENVIRONMENT)

    def launch(self, target: ServingTarget, manifest: ManifestDocument, view: EngineView) -> Launch:  # noqa: ARG002
        """Names what would be started."""
        return Launch((self.name, view.model, view.socket), {})

    def ready(self, connection: EngineConnection) -> bool:
        """At once."""
        connection.request("GET", "/health", timeout=1)
        return True

    def activity(self, connection: EngineConnection) -> Activity:
        """What the room says."""
        running, waiting, tokens = connection.read("/activity", timeout=1).split()
        return Activity(int(running), int(waiting), int(tokens))

    def render(
        self, connection: EngineConnection, messages: Sequence[ChatMessage], *, tools: Sequence[JsonValue] = ()
    ) -> tuple[int, ...]:
        """Token ids that depend on the text alone: two models of a family share their tokenizer."""
        connection.request("POST", "/render", timeout=1)
        given = [f"{message.role}:{message.content}" for message in messages] + [f"tool:{tool}" for tool in tools]
        return answer("tokenizer", *given)

    def tokenize(self, connection: EngineConnection, text: str, *, special: bool) -> tuple[int, ...]:
        """Token ids that depend on the text alone."""
        connection.request("POST", "/tokenize", timeout=1)
        return ((1,) if special else ()) + answer("text", text)

    def greedy(self, connection: EngineConnection, prompt: Sequence[int], *, tokens: int) -> tuple[int, ...]:
        """Token ids that depend on the model and the prompt."""
        return answer(self._model(connection), *(str(token) for token in prompt))[:tokens]

    def force(
        self, connection: EngineConnection, prompt: Sequence[int], forced: Sequence[int]
    ) -> tuple[TopTokens, ...]:
        """Distributions that depend on the model and everything that stands before the position."""
        model = self._model(connection)
        return tuple(distribution(model, (*prompt, *forced[:number]), token) for number, token in enumerate(forced))

    def text(self, connection: EngineConnection, tokens: Sequence[int]) -> str:
        """The ids themselves."""
        connection.request("POST", "/detokenize", timeout=1)
        return " ".join(str(token) for token in tokens)

    def sample(
        self, connection: EngineConnection, prompt: Sequence[int], *, tokens: int, seed: int, temperature: float
    ) -> tuple[int, ...]:
        """Greedy where it is cold, and otherwise what follows from the seed as well."""
        if temperature == 0:
            return self.greedy(connection, prompt, tokens=tokens)
        return answer(self._model(connection), f"seed {seed}", *(str(token) for token in prompt))[:tokens]

    def chat(
        self,
        connection: EngineConnection,
        messages: Sequence[ChatMessage],  # noqa: ARG002 - every question is the same to it
        *,
        schema: Mapping[str, JsonValue],  # noqa: ARG002 - as above
        call: bool,  # noqa: ARG002 - as above
    ) -> str:
        """The one form that is asked for."""
        connection.request("POST", "/chat", timeout=1)
        return '{"city": "Oslo", "capital": true}'

    def _model(self, connection: EngineConnection) -> str:
        reply = connection.request("POST", "/completion", timeout=1)
        manifest = str(reply["manifest"]) if isinstance(reply, dict) else ""
        return "another model" if manifest in self.lies else manifest


def answer(*parts: str) -> tuple[int, ...]:
    """Eight token ids that follow from the parts."""
    digest = digest_text("|".join(parts))[-32:]
    return tuple(int(digest[index : index + 4], 16) for index in range(0, 32, 4))


def distribution(model: str, before: Sequence[int], forced: int) -> TopTokens:
    """`TOP` tokens whose log-probabilities follow from the model and from what stands before the position."""
    said = "|".join((model, *(str(token) for token in before)))
    drawn = bytes.fromhex(digest_text(said)[-64:]) + bytes.fromhex(digest_text(f"more|{said}")[-64:])
    # Ids apart by construction, steps between a sixteenth and two: they add up to no distribution of a real vocabulary,
    # which nobody asks of them.
    ids = tuple(drawn[number] * TOP + number for number in range(TOP))
    logprobs: list[float] = []
    for number in range(TOP):
        logprobs.append((logprobs[-1] if logprobs else 0.0) - (1 + drawn[TOP + number] % 32) / 16)
    told = dict(zip(ids, logprobs, strict=True))
    return TopTokens(forced, told.get(forced, FLOOR), ids, tuple(logprobs))


def simulated_connect(room: SimulatedEngineRoom, backend: Backend, name: str, socket: Path) -> EngineConnection:  # noqa: ARG001
    """Like the real one, for a room."""
    return SimulatedConnection(room, name)
