"""Ollama, behind a small proxy of ours. Known by its documented API alone."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Final

from runtime.engines.openai import OpenAIEngine
from runtime.engines.openai_chat import FUNCTION, LONGEST, TOKENS, turns
from runtime.interfaces import Launch
from schemas.digests import digest_text
from schemas.errors import EngineUnreachable, Incompatible
from schemas.observation import NativeEngine
from schemas.runtimes import OllamaArgs

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from pydantic import JsonValue

    from runtime.interfaces import Answers, EngineConnection, EngineView
    from schemas.manifest import ManifestDocument
    from schemas.probe import ChatMessage
    from schemas.target import ServingTarget

PROGRAM: Final = Path(__file__).with_name("ollama_server.py")
CHAT: Final = "/api/chat"
CHAT_SECONDS: Final = 180.0
VERSION_SECONDS: Final = 5.0
PLACES: Final = "/usr/local/bin:/usr/bin"
"""Where Ollama's installer and distributions put it."""


class OllamaEngine(OpenAIEngine):
    """Ollama with one GGUF model, on the loopback of its own network namespace.

    It has no token ids either, and what it counts in a prompt leaves out what it had cached: a conversation is rendered
    as itself, so that only what the model writes tells it. What has a form is asked for through its own API, whose
    `format` takes a JSON Schema; a function's call cannot be demanded of it.

    Source: Ollama's documentation, "API" and "OpenAI compatibility". It was never tried against Ollama itself.
    """

    name = "ollama"
    formats = frozenset({"gguf"})
    answers: frozenset[Answers] = frozenset({"render", "chat"})

    def __init__(self, places: str = PLACES) -> None:
        """Look nowhere yet.

        Args:
            places: where its program is looked for natively, as PATH has it.
        """
        self._places = places

    def native(self) -> NativeEngine | None:
        """The program on this machine, named by its version, place and stat: it is no Python distribution."""
        found = shutil.which("ollama", path=self._places)
        if found is None:
            return None
        stat = Path(found).stat()
        version = _version(found, stat.st_mtime_ns, stat.st_size)
        if not version:
            return None
        return NativeEngine(self.name, version, digest_text(f"ollama/1|{found}|{stat.st_mtime_ns}|{stat.st_size}"))

    def launch(self, target: ServingTarget, manifest: ManifestDocument, view: EngineView) -> Launch:
        """Command line of the proxy, which starts Ollama.

        Raises:
            Incompatible: not one GGUF file, or arguments of another engine.
        """
        arguments = target.engine_args
        if not isinstance(arguments, OllamaArgs):
            raise Incompatible(f"{target.model}: the arguments are not Ollama's")
        if manifest.spec.format not in self.formats:
            raise Incompatible(f"{target.model} is stored as {manifest.spec.format}; Ollama loads gguf")
        files = [file for file in manifest.spec.files if file.path.endswith(".gguf")]
        if len(files) != 1:
            raise Incompatible(f"{target.model} has {len(files)} .gguf files; Ollama is given one")
        flags = [
            *("--model", view.model, "--file", files[0].path, "--digest", files[0].sha256),
            *("--name", target.model, "--socket", view.socket),
            *("--ctx-size", str(arguments.context_size), "--parallel", str(arguments.parallel)),
            *(("--flash-attention",) if arguments.flash_attention else ()),
        ]
        if target.mode == "container":
            return Launch(tuple(flags), {"HOME": "/tmp", "LANG": "C.UTF-8"})  # noqa: S108 - its own
        program = shutil.which("ollama", path=self._places) or "/usr/bin/ollama"
        command = (sys.executable, "-I", "-B", str(PROGRAM), "--program", program)
        return Launch((*command, *flags), {"LANG": "C.UTF-8"})

    def render(
        self, connection: EngineConnection, messages: Sequence[ChatMessage], *, tools: Sequence[JsonValue] = ()
    ) -> tuple[int, ...]:
        """The bytes of a conversation, by which `greedy` is asked.

        Raises:
            EngineUnreachable: it does not answer, or there are functions.
        """
        if tools:
            raise EngineUnreachable("the functions of a conversation are not shown by Ollama's API")
        self.ready(connection)
        return tuple(json.dumps({"messages": turns(messages)}, ensure_ascii=False).encode())

    def chat(
        self,
        connection: EngineConnection,
        messages: Sequence[ChatMessage],
        *,
        schema: Mapping[str, JsonValue],
        call: bool,
    ) -> str:
        """The text of an answer that was asked to have a form, or the arguments of a call if it made one.

        Raises:
            EngineUnreachable.
        """
        question: dict[str, JsonValue] = {
            "model": self.served(connection),
            "messages": turns(messages),
            "options": {"temperature": 0, "num_predict": TOKENS},
            "stream": False,
        }
        if call:
            function: JsonValue = {"name": FUNCTION, "description": "Answer.", "parameters": dict(schema)}
            question["tools"] = [{"type": "function", "function": function}]
        else:
            question["format"] = dict(schema)
        answer = connection.request("POST", CHAT, question, timeout=CHAT_SECONDS)
        message = answer.get("message") if isinstance(answer, dict) else None
        if not isinstance(message, dict):
            raise EngineUnreachable(f"{CHAT} answered without a message")
        text = _arguments(message) if call else message.get("content")
        return text[:LONGEST] if isinstance(text, str) else ""


@lru_cache(maxsize=8)
def _version(program: str, _changed: int, _size: int) -> str:
    """What it says of itself, asked once for each file: `ollama version is 0.12.0`."""
    try:
        done = subprocess.run(
            [program, "--version"], capture_output=True, text=True, timeout=VERSION_SECONDS, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    words = done.stdout.split()
    return words[-1] if words and words[-1][:1].isdigit() else ""


def _arguments(message: Mapping[str, JsonValue]) -> JsonValue:
    """A call's arguments as JSON text; its API gives an object."""
    calls = message.get("tool_calls")
    first = calls[0] if isinstance(calls, list) and calls else None
    function = first.get("function") if isinstance(first, dict) else None
    if not isinstance(function, dict) or function.get("name") != FUNCTION:
        return None
    return json.dumps(function.get("arguments"))
