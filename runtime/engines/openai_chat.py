"""A chat whose answer has a form, by OpenAI's API, which vLLM and llama.cpp's server both speak.

Source for the fields: OpenAI's API reference, `POST /v1/chat/completions`: `response_format` and `tools`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from schemas.errors import EngineUnreachable

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from pydantic import JsonValue

    from runtime.interfaces import EngineConnection
    from schemas.probe import ChatMessage

SECONDS: Final = 180.0
TOKENS: Final = 256
"""Tokens that it may take: what has a form ends by itself."""
LONGEST: Final = 2**14
"""Characters of an answer that are taken."""
FUNCTION: Final = "answer"


def turns(messages: Sequence[ChatMessage]) -> list[JsonValue]:
    """A conversation as the API takes it."""
    return [{"role": message.role, "content": message.content} for message in messages]


def formed_chat(
    connection: EngineConnection, messages: Sequence[ChatMessage], *, schema: Mapping[str, JsonValue], call: bool
) -> str:
    """The text of an answer in the form of a JSON Schema, or the arguments of a call whose parameters have it.

    Raises:
        EngineUnreachable: no answer, or not of the API's form.
    """
    question: dict[str, JsonValue] = {
        "messages": turns(messages),
        "max_tokens": TOKENS,
        "temperature": 0,
        "stream": False,
    }
    if call:
        # Strictly: without that a server may leave the arguments to the model (vLLM does).
        function: dict[str, JsonValue] = {
            "name": FUNCTION,
            "description": "Answer.",
            "parameters": dict(schema),
            "strict": True,
        }
        question["tools"] = [{"type": "function", "function": function}]
        question["tool_choice"] = "required"
        # One: a small model goes on calling until its tokens are used up, and the last call has no end.
        question["parallel_tool_calls"] = False
    else:
        described: dict[str, JsonValue] = {"name": FUNCTION, "schema": dict(schema), "strict": True}
        question["response_format"] = {"type": "json_schema", "json_schema": described}
    answer = connection.request("POST", "/v1/chat/completions", question, timeout=SECONDS)
    choices = answer.get("choices") if isinstance(answer, dict) else None
    first = choices[0] if isinstance(choices, list) and len(choices) == 1 else None
    message = first.get("message") if isinstance(first, dict) else None
    if not isinstance(message, dict):
        raise EngineUnreachable("/v1/chat/completions answered without exactly one message")
    text = _arguments(message) if call else message.get("content")
    # No text at all is an answer, and not of the form: that is for the judge to say.
    return text[:LONGEST] if isinstance(text, str) else ""


def _arguments(message: Mapping[str, JsonValue]) -> JsonValue:
    calls = message.get("tool_calls")
    first = calls[0] if isinstance(calls, list) and calls else None
    function = first.get("function") if isinstance(first, dict) else None
    if not isinstance(function, dict) or function.get("name") != FUNCTION:
        return None
    return function.get("arguments")
