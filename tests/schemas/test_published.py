"""Published schemas and models agree: what an editor accepts is what a node accepts, as far as a schema can say it."""

from __future__ import annotations

import copy
import json
from typing import Any

import jsonschema
import pytest
from pydantic import BaseModel, ValidationError

from schemas.base import WRITTEN
from schemas.publish import DIALECT, DOCUMENTS, FOLDER, field_docs, file_name, published
from tests.support import builders

DIGEST = "blake3:" + "0" * 64
ADDRESS = "0x" + "1" * 40
HEAD = {"apiVersion": "reconcile/v1alpha1"}
ROLE = {"threshold": 1, "signers": [ADDRESS]}
FILE = {"path": "m.gguf", "size": 1, "blake3": DIGEST, "sha256": "sha256:" + "0" * 64}

EXAMPLES: dict[str, dict[str, Any]] = {
    "snapshot": json.loads(builders.snapshot(runtimes=(builders.container_runtime(),)).to_json()),
    "trust": {
        **HEAD,
        "kind": "Trust",
        "metadata": {
            "network": "testnet",
            "version": 1,
            "issuedAt": "2026-01-01T00:00:00Z",
            "expiresAt": "2027-01-01T00:00:00Z",
        },
        "spec": {"roles": {"root": ROLE, "snapshot": ROLE}},
    },
    "timestamp": {
        **HEAD,
        "kind": "Timestamp",
        "metadata": {"network": "testnet", "issuedAt": "2026-01-01T00:00:00Z", "expiresAt": "2026-01-02T01:00:00Z"},
        "snapshot": {"epoch": 1, "sequence": 42, "digest": DIGEST},
    },
    "signature": {**HEAD, "kind": "Signature", "signer": ADDRESS, "content": DIGEST, "signature": "0x" + "0" * 130},
    "manifest": {
        **HEAD,
        "kind": "ModelManifest",
        "metadata": {"name": "m", "version": "v1"},
        "spec": {"format": "gguf", "files": [FILE], "pieces": {"path": "models/m/v1.pieces", "digest": DIGEST}},
    },
    "probe": {
        **HEAD,
        "kind": "Probe",
        "metadata": {"name": "m", "model": "m:v1"},
        "spec": {
            "recorded": {"engine": "llamacpp", "version": "1", "manifest": DIGEST, "machine": "cpu"},
            "greedy": [{"prompt": [1], "tokens": [2]}],
        },
    },
    "node": {
        **HEAD,
        "kind": "Node",
        "network": "testnet",
        "repositories": [{"url": "https://example.org/network.git"}],
        "trust": {"digest": DIGEST},
        "stateDir": "/var/lib/reconcile",
        "labels": {"gpu": "h100"},
        "interval": "30s",
    },
}

WRONG: list[tuple[str, tuple[str | int, ...], Any]] = [
    ("snapshot", ("metadata", "network"), "UPPER"),
    ("snapshot", ("metadata", "sequence"), 0),
    ("snapshot", ("metadata", "sequence"), "1"),
    ("snapshot", ("metadata", "sequence"), 2**53),
    ("snapshot", ("metadata", "issuedAt"), "2026-01-01"),
    ("snapshot", ("metadata", "unknown"), 1),
    ("snapshot", ("kind",), "Trust"),
    ("snapshot", ("spec", "models", 0, "state"), "sleeping"),
    ("snapshot", ("spec", "models", 0, "manifest", "path"), "../escape"),
    ("snapshot", ("spec", "models", 0, "manifest", "digest"), "sha256:" + "0" * 64),
    ("snapshot", ("spec", "runtimes", 0, "engine"), "other"),
    ("snapshot", ("spec", "runtimes", 0, "version"), 1.0),
    ("snapshot", ("spec", "runtimes", 0, "images", 0, "ref"), "example.org/image:latest"),
    ("snapshot", ("spec", "runtimes", 0, "resources", "memory"), "4GB"),
    ("snapshot", ("spec", "runtimes", 0, "isolation", "network"), "host"),
    ("snapshot", ("spec", "assignments", 0, "serve"), []),
    ("trust", ("spec", "roles", "root", "threshold"), 0),
    ("trust", ("spec", "roles", "root", "signers"), ["alice"]),
    ("timestamp", ("metadata", "expiresAt"), 0),
    ("timestamp", ("snapshot", "sequence"), 0),
    ("timestamp", ("snapshot", "digest"), "sha256:" + "0" * 64),
    ("signature", ("signature",), "0x12"),
    ("manifest", ("spec", "format"), "pickle"),
    ("manifest", ("spec", "files"), []),
    ("probe", ("spec", "greedy", 0, "tokens"), [-1]),
    ("probe", ("metadata", "model"), "m"),
    ("node", ("stateDir",), "relative"),
    ("node", ("interval",), 30),
    ("snapshot", ("spec", "policy", "gc", "keepFree"), 10),
    ("snapshot", ("spec", "runtimes", 0, "resources", "memory"), 4096),
    ("node", ("repositories",), [{"url": "ext::sh -c id"}]),
]


def schema(kind: str) -> dict[str, Any]:
    """A published schema."""
    loaded: dict[str, Any] = json.loads((FOLDER / file_name(kind)).read_text())
    return loaded


def accepts(kind: str, document: Any) -> tuple[bool, bool]:
    """Whether the schema, and the model, accept a document."""
    by_schema = jsonschema.Draft202012Validator(schema(kind)).is_valid(document)
    try:
        DOCUMENTS[kind].model_validate(_tuples(document), by_alias=True, by_name=False, context=WRITTEN)
    except ValidationError:
        return by_schema, False
    return by_schema, True


def _tuples(value: Any) -> Any:
    """As the reader gives it."""
    if isinstance(value, dict):
        return {key: _tuples(item) for key, item in value.items()}
    return tuple(_tuples(item) for item in value) if isinstance(value, list) else value


@pytest.mark.parametrize("kind", EXAMPLES)
def test_both_accept_what_is_right(kind: str) -> None:
    """A document that is right is right for both."""
    assert accepts(kind, EXAMPLES[kind]) == (True, True)


@pytest.mark.parametrize(("kind", "path", "value"), WRONG)
def test_both_refuse_what_is_wrong(kind: str, path: tuple[str | int, ...], value: Any) -> None:
    """What a schema can say, it says as the model does."""
    document = copy.deepcopy(EXAMPLES[kind])
    place: Any = document
    for step in path[:-1]:
        place = place[step]
    place[path[-1]] = value
    assert accepts(kind, document) == (False, False)


@pytest.mark.parametrize("kind", DOCUMENTS)
def test_schemas_are_fresh_and_sound(kind: str) -> None:
    """The published file is what the model gives now, in the dialect that it names."""
    text = (FOLDER / file_name(kind)).read_text()
    assert text == published(kind), "run `make docs`"
    jsonschema.Draft202012Validator.check_schema(json.loads(text))
    assert json.loads(text)["$schema"] == DIALECT


def objects(node: Any) -> list[dict[str, Any]]:
    """Every object schema with named properties."""
    if isinstance(node, list):
        return [found for item in node for found in objects(item)]
    if not isinstance(node, dict):
        return []
    here = [node] if "properties" in node and node.get("type") == "object" else []
    return here + [found for item in node.values() for found in objects(item)]


@pytest.mark.parametrize("kind", EXAMPLES)
def test_an_editor_can_explain_every_field(kind: str) -> None:
    """Every field has a description, unknown ones are refused, and defaults are written as a person writes them."""
    for one in objects(schema(kind)):
        assert one["additionalProperties"] is False, one["title"]
        for name, field in one["properties"].items():
            assert field.get("description"), f"{one['title']}.{name}"
            assert name[0].islower()
            assert "_" not in name
            if "default" in field and "pattern" in field:
                assert isinstance(field["default"], str), f"{one['title']}.{name}"


@pytest.mark.parametrize("kind", ["snapshot", "node"])
def test_defaults_are_valid(kind: str) -> None:
    """A default that an editor inserts is accepted by the schema it comes from."""
    whole = schema(kind)
    checked = 0
    for one in objects(whole):
        for name, field in one["properties"].items():
            if "default" in field and field["default"] is not None:
                validator = jsonschema.Draft202012Validator({"$defs": whole["$defs"], **field})
                assert validator.is_valid(field["default"]), f"{one['title']}.{name}: {field['default']}"
                checked += 1
    assert checked > 10


def test_descriptions_come_from_the_source() -> None:
    """A docstring below a field describes it, inherited fields included."""
    from schemas.runtimes import VllmRuntime

    docs = field_docs(VllmRuntime)
    assert docs["name"] == "Referred to by assignments."
    assert docs["engine_args"] == "Arguments of the engine."
    assert issubclass(VllmRuntime, BaseModel)
