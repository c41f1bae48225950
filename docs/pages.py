"""Pages of the site that are made from the code while it is built: documents, conditions, events, metrics, invariants.

They are not kept in the repository, where they would be stale the moment after.
"""

from __future__ import annotations

import ast
import json
import re
from collections import defaultdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from reconciler.telemetry.metrics import Metrics
from schemas.events import EVENTS
from schemas.publish import DOCUMENTS, file_name, published
from schemas.states import CONDITIONS, HELD

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

ROOT: Final = Path(__file__).parents[1]


def write() -> None:
    """Write what has changed; a page that is the same is left alone, so that a second build is quick."""
    pages = {
        "reference/documents.md": documents,
        "reference/conditions.md": conditions,
        "reference/events.md": events,
        "reference/metrics.md": metrics,
        "explanation/invariants.md": invariants,
    }
    for name, make in pages.items():
        path, text = Path(__file__).parent / name, make()
        if not path.exists() or path.read_text(encoding="utf-8") != text:
            path.write_text(text, encoding="utf-8")


# --- documents ----------------------------------------------------------------------------------------------------


def documents() -> str:
    """Every field of every document, from the JSON Schemas that editors use."""
    lines = [
        "# Documents",
        "",
        "Every field of every document, made from the published JSON Schemas (`reconcile schema print NAME`).",
        "Sizes are written `4GiB`, durations `90s`, `10m`, `6h`, `7d`, shares `10%`, times `2026-01-31T12:00:00Z`.",
        "What has no default has to be given.",
        "",
    ]
    for kind in DOCUMENTS:
        schema = json.loads(published(kind))
        lines += [f"## {kind}", "", f"{schema.get('description', '')} Schema: `{file_name(kind)}`.", ""]
        parts = {name: part for name, part in schema.get("$defs", {}).items() if "properties" in part}
        linked = {name: f"{kind}-{name.lower()}" for name in parts}
        lines += _table(schema, linked)
        for name, part in parts.items():
            lines += [f"### {kind}: {name}", "", part.get("description", ""), "", *_table(part, linked)]
    return "\n".join(lines) + "\n"


def _table(schema: Mapping[str, Any], linked: Mapping[str, str]) -> Iterator[str]:
    yield "| Field | Is | Default | |"
    yield "|---|---|---|---|"
    required = set(schema.get("required", ()))
    for name, field in schema.get("properties", {}).items():
        default = "" if name in required else f"`{json.dumps(field.get('default'), ensure_ascii=False)}`"
        text = field.get("description", "").replace("|", "\\|")
        yield f"| `{name}` | {_type(field, linked)} | {default.replace('|', chr(92) + '|')} | {text} |"
    yield ""


def _type(field: Mapping[str, Any], linked: Mapping[str, str]) -> str:
    """A type in a few words; parts of the document are links to their tables."""
    if "$ref" in field:
        name = field["$ref"].rpartition("/")[2]
        text = f"[{name}](#{linked[name]})" if name in linked else name
    elif "const" in field or "enum" in field:
        text = " \\| ".join(f"`{value}`" for value in field.get("enum", [field.get("const")]))
    elif "anyOf" in field or "oneOf" in field:
        parts = [_type(part, linked) for part in field.get("anyOf", field.get("oneOf"))]
        text = " or ".join(dict.fromkeys(part for part in parts if part != "null"))
    elif field.get("type") == "array":
        items = field.get("items", {})
        text = f"list of {_type(items, linked)}" if items else "list"
    elif field.get("type") == "object":
        values = field.get("additionalProperties") or next(iter(field.get("patternProperties", {}).values()), None)
        text = f"map to {_type(values, linked)}" if isinstance(values, dict) else "map"
    else:
        text = str(field.get("type", "any"))
    return text


# --- conditions ---------------------------------------------------------------------------------------------------


def conditions() -> str:
    """What conditions and held changes say."""
    lines = [
        "# Conditions, and what is held back",
        "",
        "What `reconcile status` and `reconcile plan` give as the reason of a condition, and of a change that is due",
        "and not made now. Beside these, every [reason](reasons.md) of an error occurs in both places.",
        "`reconcile why REASON` says the same.",
        "",
        "## Held back",
        "",
        "| Reason | |",
        "|---|---|",
        *(f"| `{name}` | {meaning} |" for name, meaning in HELD.items()),
        "",
        "## Conditions",
        "",
        "| Reason | |",
        "|---|---|",
        *(f"| `{name}` | {meaning} |" for name, meaning in CONDITIONS.items()),
    ]
    return "\n".join(lines) + "\n"


# --- events -------------------------------------------------------------------------------------------------------


def events() -> str:
    """What events mean."""
    lines = [
        "# Events",
        "",
        "What `reconcile events` prints, oldest first, with time, level and subject. Names are stable,",
        "sentences are not. Beside these, every [reason](reasons.md) occurs as a warning; `FreezeSuspectedOver` and",
        "`ClockBehindOver` say that an alarm is over.",
        "",
        "| Event | |",
        "|---|---|",
        *(f"| `{name}` | {meaning} |" for name, meaning in EVENTS.items()),
    ]
    return "\n".join(lines) + "\n"


# --- metrics ------------------------------------------------------------------------------------------------------


def metrics() -> str:
    """Every metric."""
    lines = [
        "# Metrics",
        "",
        "What a daemon with `telemetry.listen` answers at `/metrics`. Counters begin anew with the daemon.",
        "[How to use them](../how-to/monitor.md).",
        "",
        "| Metric | Type | |",
        "|---|---|---|",
        *(f"| `{name}` | {kind} | {meaning} |" for name, (kind, meaning) in sorted(Metrics().described().items())),
    ]
    return "\n".join(lines) + "\n"


# --- invariants ---------------------------------------------------------------------------------------------------


def invariants() -> str:
    """Each invariant, with the tests whose first line names it."""
    threats = (ROOT / "docs" / "threat-model.md").read_text(encoding="utf-8")
    stated = re.findall(r"^\| (I[0-9]+) \| (.*) \|$", threats, re.MULTILINE)
    shown = _tests()
    lines = [
        "# Invariants, and what shows each",
        "",
        "What must hold at every instant, crash or no crash, and the tests that say in their first line that they",
        "show it. Attackers are in the [threat model](../threat-model.md).",
        "",
    ]
    for name, text in stated:
        lines += [f"## {name}", "", text, "", f"{len(shown[name])} tests:", ""]
        lines += [f"- {what} (`{where}`)" for what, where in shown[name]]
        lines.append("")
    return "\n".join(lines)


def _tests() -> dict[str, list[tuple[str, str]]]:
    found: dict[str, list[tuple[str, str]]] = defaultdict(list)
    for path in sorted((ROOT / "tests").rglob("test_*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not (isinstance(node, ast.FunctionDef) and node.name.startswith("test_")):
                continue
            first = (ast.get_docstring(node) or "").partition("\n")[0]
            for name in dict.fromkeys(re.findall(r"\bI(?:1[01]|[1-9])\b", first)):
                what = re.sub(r"\s*\((?:I[0-9]+(?:, )?)+\)", "", first).rstrip(".")
                found[name].append((_plain(what), f"{path.relative_to(ROOT)}::{node.name}"))
    return found


def _plain(text: str) -> str:
    """A sentence in which nothing is markup: brackets and angles of a docstring mean themselves."""
    return re.sub(r"([\[\]<>*_{}])", r"\\\1", text) if "`" not in text else text
