"""What a change of desired state means, in the words of operators. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Literal

from schemas.digests import short

if TYPE_CHECKING:
    from collections.abc import Mapping

    from schemas.assignments import Assignment
    from schemas.base import Frozen
    from schemas.snapshot import ModelSpec, SnapshotDocument

Sign = Literal["+", "~", "-"]
_SHOWN: Final = 60
"""Characters of a value that are shown."""


@dataclass(frozen=True, slots=True)
class Change:
    """One thing that was added, changed or removed."""

    sign: Sign
    kind: Literal["model", "runtime", "assignment", "withdrawn", "retry", "policy", "metadata", "extensions"]
    name: str
    details: tuple[str, ...] = ()
    """Field by field: `state: active -> archived`."""


@dataclass(frozen=True, slots=True)
class Comparison:
    """The difference between two snapshots."""

    changes: tuple[Change, ...]
    fetch: int
    """Bytes of the models that are new: what a node that has all the old ones would fetch, if it serves them."""
    unknown: tuple[str, ...]
    """New models whose size is not known."""

    def count(self, sign: Sign) -> int:
        """How many changes have a sign."""
        return sum(change.sign == sign for change in self.changes)


def compare(before: SnapshotDocument | None, after: SnapshotDocument, sizes: Mapping[str, int]) -> Comparison:
    """Compare two snapshots.

    Args:
        before: the old one; None for none.
        after: the new one.
        sizes: bytes of models, by manifest digest, as far as known.
    """
    old_spec = before.spec if before is not None else None
    old_models = {model.key: model for model in old_spec.models} if old_spec else {}
    new_models = {model.key: model for model in after.spec.models}
    changes = _entries("model", old_models, new_models)
    changes += _entries(
        "runtime",
        {runtime.name: runtime for runtime in old_spec.runtimes} if old_spec else {},
        {runtime.name: runtime for runtime in after.spec.runtimes},
    )
    changes += _entries(
        "assignment", _assignments(old_spec.assignments if old_spec else ()), _assignments(after.spec.assignments)
    )
    changes += _order(old_spec.assignments if old_spec else (), after.spec.assignments)
    changes += _entries(
        "withdrawn",
        {entry.digest: entry for entry in old_spec.withdrawn} if old_spec else {},
        {entry.digest: entry for entry in after.spec.withdrawn},
    )
    changes += _entries(
        "wave",
        {wave.name: wave for wave in old_spec.waves} if old_spec else {},
        {wave.name: wave for wave in after.spec.waves},
    )
    changes += _tokens(old_spec.retry if old_spec else (), after.spec.retry)
    if before is not None:
        changes += _whole("policy", "policy", _wire(before.spec.policy), _wire(after.spec.policy))
        changes += _whole("metadata", "requires", _wire(before.requires), _wire(after.requires))
        changes += _whole("extensions", "extensions", before.spec.extensions, after.spec.extensions)
    known = {model.manifest.digest for model in old_models.values()}
    fresh = {model.manifest.digest: key for key, model in new_models.items() if model.manifest.digest not in known}
    return Comparison(
        changes=tuple(changes),
        fetch=sum(sizes.get(digest, 0) for digest in fresh),
        unknown=tuple(key for digest, key in fresh.items() if digest not in sizes),
    )


def _entries(kind: Any, before: Mapping[str, Frozen], after: Mapping[str, Frozen]) -> list[Change]:
    """Entries that have a name, in the order of the new document; removed ones last."""
    changes = []
    for name, entry in after.items():
        old = before.get(name)
        if old is None:
            changes.append(Change("+", kind, name, tuple(_summary(entry))))
        elif old != entry:
            changes.append(Change("~", kind, name, tuple(_details(_wire(old), _wire(entry)))))
    return changes + [Change("-", kind, name) for name in before if name not in after]


def _assignments(assignments: tuple[Assignment, ...]) -> dict[str, Assignment]:
    """By whom they are for; several for the same nodes are told apart by number: the first is the one that wins."""
    found: dict[str, Assignment] = {}
    for assignment in assignments:
        name = selector_text(assignment)
        number = 1
        while name in found:
            number += 1
            name = f"{selector_text(assignment)} ({number})"
        found[name] = assignment
    return found


def selector_text(assignment: Assignment) -> str:
    """Which nodes an assignment is for, in one line."""
    selector = assignment.selector
    parts = [f"{key}={value}" for key, value in selector.match_labels.items()]
    for expression in selector.match_expressions:
        values = f" ({', '.join(expression.values)})" if expression.values else ""
        parts.append(f"{expression.key} {expression.operator}{values}")
    text = ", ".join(parts) or "every node"
    rollout = assignment.rollout
    if rollout is None:
        return text
    return f"{f'wave {rollout.wave}' if rollout.wave else f'{rollout.percent}%'} of {text} [{rollout.key}]"


def _order(before: tuple[Assignment, ...], after: tuple[Assignment, ...]) -> list[Change]:
    """The first assignment that matches wins: another order is another meaning."""
    old, new = list(_assignments(before)), list(_assignments(after))
    shared_old = [name for name in old if name in new]
    shared_new = [name for name in new if name in old]
    return [] if shared_old == shared_new else [Change("~", "assignment", "order", (" > ".join(shared_new),))]


def _tokens(before: tuple[str, ...], after: tuple[str, ...]) -> list[Change]:
    added = [Change("+", "retry", short(token)) for token in after if token not in before]
    return added + [Change("-", "retry", short(token)) for token in before if token not in after]


def _whole(kind: Any, name: str, before: Any, after: Any) -> list[Change]:
    details = tuple(_details(before, after))
    return [Change("~", kind, name, details)] if details else []


def _summary(entry: Frozen) -> list[str]:
    """The few fields that say what a new entry is."""
    wire = _wire(entry)
    return [f"{key}: {_shown(wire[key])}" for key in ("engine", "version", "runtime", "serve", "state") if key in wire]


def _wire(entry: Frozen) -> Any:
    return entry.model_dump(mode="json", by_alias=True, exclude_none=True)


def _details(before: Any, after: Any, path: str = "") -> list[str]:
    """Field by field what differs."""
    if isinstance(before, dict) and isinstance(after, dict):
        keys = [*before, *(key for key in after if key not in before)]
        return [
            line
            for key in keys
            for line in _details(before.get(key), after.get(key), f"{path}.{key}" if path else str(key))
        ]
    return [] if before == after else [f"{path}: {_shown(before)} -> {_shown(after)}"]


def _shown(value: Any) -> str:
    if value is None:
        return "none"
    if isinstance(value, str):
        return (
            f"{value.partition(':')[0]}:{short(value)}" if value.startswith(("blake3:", "sha256:")) else value[:_SHOWN]
        )
    if isinstance(value, list):
        return f"[{', '.join(_shown(item) for item in value)}]"[:_SHOWN]
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key}: {_shown(item)}" for key, item in value.items())[:_SHOWN] + "}"
    return str(value)


def model_states(models: tuple[ModelSpec, ...]) -> str:
    """How many models are in which state: `3 active, 1 archived`."""
    counts = {state: sum(model.state == state for model in models) for state in ("active", "inactive", "archived")}
    return ", ".join(f"{count} {state}" for state, count in counts.items() if count) or "none"
