"""Publishes the JSON Schemas of all documents, so that editors complete and check them: `python -m schemas.publish`.

Descriptions are the docstrings below the fields. They are read from the source here, once per publishing: reading them
whenever the models are imported would cost every command 150 ms.
"""

from __future__ import annotations

import ast
import inspect
import itertools
import json
import sys
import textwrap
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from pydantic import BaseModel
from pydantic.json_schema import GenerateJsonSchema

from schemas.fleet import FleetPlan
from schemas.manifest import ManifestDocument
from schemas.node import NodeConfig
from schemas.plan import Plan
from schemas.probe import ProbeDocument
from schemas.receipt import AuditReport, ChainHead, ReceiptChain, ReceiptDocument
from schemas.snapshot import SnapshotDocument
from schemas.status import NodeStatus
from schemas.timestamp import TimestampDocument
from schemas.trust import SignatureFile, TrustDocument

if TYPE_CHECKING:
    from collections.abc import Mapping

DOCUMENTS: Final[dict[str, type[BaseModel]]] = {
    "snapshot": SnapshotDocument,
    "trust": TrustDocument,
    "timestamp": TimestampDocument,
    "signature": SignatureFile,
    "manifest": ManifestDocument,
    "probe": ProbeDocument,
    "receipt": ReceiptDocument,
    "receipt-head": ChainHead,
    "receipts": ReceiptChain,
    "audit": AuditReport,
    "node": NodeConfig,
    "plan": Plan,
    "status": NodeStatus,
    "fleet": FleetPlan,
}
"""Every published document, by the name that `reconcile schema print` takes."""

DIALECT: Final = "https://json-schema.org/draft/2020-12/schema"
FOLDER: Final = Path(__file__).with_name("published")


class _Described(GenerateJsonSchema):
    """Adds to each field the docstring that stands below it in the source, and its default as documents write it."""

    def model_schema(self, schema: Any) -> dict[str, Any]:
        """As pydantic makes it, with descriptions."""
        json_schema = super().model_schema(schema)
        described = field_docs(schema["cls"])
        fields = schema["cls"].model_fields
        names = {field.alias or name: name for name, field in fields.items()}
        for alias, entry in json_schema.get("properties", {}).items():
            name = names.get(alias, alias)
            if name in described:
                entry["description"] = described[name]
            if "default" in entry:
                entry["default"] = _written(schema["cls"], name, fields[name].default)
        return json_schema


def _written(model: type[BaseModel], name: str, default: Any) -> Any:
    """A default as a person would write it (`4GiB`, camelCase), not as the model holds it."""
    dumped = model.model_construct(**{name: default}).model_dump(
        mode="json", by_alias=True, include={name}, exclude_none=default is not None, warnings=False
    )
    return next(iter(dumped.values()))


@cache
def field_docs(model: type[BaseModel]) -> Mapping[str, str]:
    """The docstrings below a model's fields, its bases' included."""
    found: dict[str, str] = {}
    for cls in reversed(model.__mro__):
        if not (issubclass(cls, BaseModel) and cls.__module__.startswith("schemas.")):
            continue
        tree = ast.parse(textwrap.dedent(inspect.getsource(cls)))
        body = tree.body[0].body  # type: ignore[attr-defined] # a class statement
        for field, below in itertools.pairwise(body):
            if not (isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name)):
                continue
            if isinstance(below, ast.Expr) and isinstance(below.value, ast.Constant) and below.value.value:
                found[field.target.id] = " ".join(str(below.value.value).split())
    return found


def file_name(kind: str) -> str:
    """The name of a published schema."""
    return f"{kind}.v1alpha1.json"


def published(kind: str) -> str:
    """The JSON Schema of a document, as text.

    Args:
        kind: a key of `DOCUMENTS`.
    """
    model = DOCUMENTS[kind]
    body = model.model_json_schema(by_alias=True, mode="validation", schema_generator=_Described)
    # A relative id: whoever serves the folder decides where it lives.
    schema = {"$schema": DIALECT, "$id": file_name(kind), **body}
    return json.dumps(schema, indent=2, ensure_ascii=False) + "\n"


def main() -> int:
    """Write every schema; with `--check`, only say which are not fresh (exit code 1)."""
    stale = []
    for kind in DOCUMENTS:
        path, text = FOLDER / file_name(kind), published(kind)
        if not path.exists() or path.read_text(encoding="utf-8") != text:
            stale.append(path.name)
            if "--check" not in sys.argv:
                FOLDER.mkdir(exist_ok=True)
                path.write_text(text, encoding="utf-8")
    print("\n".join(stale) or "all schemas are fresh")  # noqa: T201 - a chore that reports
    return 1 if stale and "--check" in sys.argv else 0


if __name__ == "__main__":
    sys.exit(main())
