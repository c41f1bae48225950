"""What may be asked of the runtime through the front."""

from __future__ import annotations

import json
from typing import Any

import pytest

from runtime.front.route import Route
from runtime.front.rules import Refused, check_target, fit, parse

ROUTE = Route(state="serving", engine="llamacpp", models=("m:v1", "m"), max_tokens=100)
VLLM = Route(state="serving", engine="vllm", models=("m:v1", "m"), max_tokens=100)


def fitted(route: Route = ROUTE, path: str = "/v1/chat/completions", **body: Any) -> dict[str, Any]:
    """A question as the engine gets it."""
    content = json.dumps(body).encode()
    return parse(fit(route, path, content, parse(content)))


@pytest.mark.parametrize(
    ("engine", "method", "target", "status"),
    [
        ("llamacpp", "POST", "/v1/chat/completions", 0),
        ("llamacpp", "POST", "/tokenize", 0),
        ("vllm", "POST", "/apply-template", 404),
        ("another", "POST", "/tokenize", 404),
        ("llamacpp", "GET", "/v1/chat/completions", 405),
        ("llamacpp", "OPTIONS", "/v1/models", 405),
        ("llamacpp", "HEAD", "/v1/models", 405),
        ("llamacpp", "POST", "/slots/0?action=save", 404),
        ("llamacpp", "GET", "/metrics", 404),
        ("llamacpp", "GET", "/props", 404),
        ("vllm", "POST", "/v1/load_lora_adapter", 404),
        ("vllm", "POST", "/sleep", 404),
        ("vllm", "POST", "/collective_rpc", 404),
        ("llamacpp", "POST", "/v1/completions?x=1", 404),
        ("llamacpp", "POST", "/v1/completions/", 404),
        ("llamacpp", "POST", "//v1/completions", 404),
        ("llamacpp", "POST", "/v1/../v1/completions", 404),
        ("llamacpp", "POST", "/v1/%63ompletions", 404),
        ("llamacpp", "POST", "http://x/v1/completions", 404),
        ("llamacpp", "POST", "*", 404),
    ],
)
def test_methods_and_paths_are_exact(engine: str, method: str, target: str, status: int) -> None:
    """An engine's other doors, and other spellings of the open ones, stay shut."""
    try:
        check_target(engine, method, target)
        seen = 0
    except Refused as refused:
        seen = refused.status
    assert seen == status


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"[]",
        b"{",
        b'{"a": 1} x',
        b'{"max_tokens": 1, "max_tokens": 1000000}',
        b'{"a": {"b": 1, "b": 2}}',
        b'{"a": NaN}',
        b'{"a": "\xff"}',
        b'{"a": ' + b"[" * 100_000,
        b'{"a": "' + b'\\"' * 500_000 + b"[" * 200,
        b'{"a": "' + b'\\"' * 1_000 + b"[" * 200 + b"\\",
        b'{"a": ' + b'{"a": ' * 200 + b"1" + b"}" * 201,
        b'{"a": ' + b"9" * 5000 + b"}",
    ],
)
def test_a_body_that_two_parsers_could_read_differently_is_refused(body: bytes) -> None:
    """The engine's parser is not ours: it must not find another limit in the same bytes."""
    with pytest.raises(Refused) as refused:
        parse(body)
    assert (refused.value.status, refused.value.code) == (400, "invalid_json")


@pytest.mark.parametrize(
    "body",
    [
        {"max_tokens": 101},
        {"max_completion_tokens": 101},
        {"n_predict": 101},
        {"max_tokens": 1, "n_predict": 101},
        {"max_tokens": 51, "n": 2},
        {"max_tokens": 51, "best_of": 2},
        {"n": 101},
        {"max_tokens": -1},
        {"n_predict": -1},
        {"max_tokens": 1.5},
        {"max_tokens": True},
        {"max_tokens": "7"},
        {"n": 0, "max_tokens": 5},
        {"n": -3, "max_tokens": 5},
    ],
)
def test_more_tokens_than_the_network_allows_are_refused(body: dict[str, Any]) -> None:
    """Refused, not clamped: who asked for more should know that it will not come."""
    for route in (ROUTE, VLLM):
        with pytest.raises(Refused) as refused:
            fitted(route, **body)
        assert refused.value.status == 400


def test_who_names_no_number_gets_the_limit_where_an_engine_would_write_on() -> None:
    """llama.cpp writes until its context is full; vLLM takes its context for the bound, and refuses a number beyond."""
    assert fitted(messages=[])["max_tokens"] == 100
    assert fitted(messages=[], max_tokens=None)["max_tokens"] == 100
    assert fitted(messages=[], n=4)["max_tokens"] == 25
    assert "max_tokens" not in fitted(VLLM, messages=[])
    assert "max_tokens" not in fitted(path="/tokenize", content="x")


def test_bytes_pass_unchanged_where_nothing_has_to_change() -> None:
    """The engine gets what the client wrote, to the last space."""
    body = b' {"model" :"m:v1", "max_tokens":7, "x": 1e3, "y": "\\u00e9"}\n'
    assert fit(ROUTE, "/v1/completions", body, parse(body)) is body


def test_a_model_goes_by_its_name_with_or_without_version() -> None:
    """The engine is asked by the one name that it knows; another model is not answered in its place."""
    assert fitted(model="m", max_tokens=1)["model"] == "m:v1"
    assert fitted(model="m:v1", max_tokens=1)["model"] == "m:v1"
    for name in ("m:v2", "other", "", 5, ["m"]):
        with pytest.raises(Refused) as refused:
            fitted(model=name, max_tokens=1)
        assert (refused.value.status, refused.value.code) == (404, "model_not_found")


def test_brackets_in_strings_are_no_nesting() -> None:
    """A long prompt of brackets is a prompt; a schema of many shallow parts is shallow."""
    text = '[{"\\' * 500
    body = json.dumps({"prompt": text, "tools": [{"a": {"b": [1]}}] * 300}).encode()
    assert parse(body)["prompt"] == text


def test_a_number_that_json_cannot_carry_on_is_refused() -> None:
    """What was read as infinite would be written as no JSON at all."""
    with pytest.raises(Refused):
        fit(ROUTE, "/v1/completions", b"", parse(b'{"x": 1e999}'))
