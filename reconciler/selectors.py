"""Which assignment a node falls under: labels, facts, and a stable share of the nodes. Pure."""

from __future__ import annotations

import operator
import re
from typing import TYPE_CHECKING, Final

from schemas.base import measure
from schemas.digests import digest_text

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from schemas.assignments import LabelExpression, Rollout, Selector
    from schemas.observation import Hardware, NativeEngine
    from schemas.snapshot import SnapshotSpec

_FACTS_PREFIX: Final = "fact/"
_NO_LABEL: Final = re.compile(r"[^A-Za-z0-9._/-]+")
_ORDERS: Final[Mapping[str, Callable[[tuple[int, ...], tuple[int, ...]], bool]]] = {
    "Gt": operator.gt,
    "Gte": operator.ge,
    "Lt": operator.lt,
    "Lte": operator.le,
}
_SHARES: Final = 10_000
"""Resolution of a rollout's share: a hundredth of a percent."""


def node_labels(
    labels: Mapping[str, str], hardware: Hardware, engines: Iterable[NativeEngine], backends: Iterable[str]
) -> dict[str, str]:
    """The node's own labels, with what was observed of the machine under `fact/`.

    Facts cannot be overridden by a label of the same name: they are what selectors of the network rely on.

    Args:
        labels: what the node's owner wrote.
        hardware: the machine.
        engines: engines installed beside the agent.
        backends: how instances can be run here.
    """
    facts = {
        "platform": hardware.platform,
        "accelerator": "cuda" if hardware.gpus else "cpu",
        "cpus": str(hardware.cpus),
        "memory": str(hardware.memory),
        "disk": str(hardware.disk),
        "gpu-count": str(len(hardware.gpus)),
    }
    if hardware.gpus:
        facts["gpu"] = _NO_LABEL.sub("-", hardware.gpus[0].name).strip("-")
        # What fits on the smallest fits wherever it is put.
        facts["gpu-memory"] = str(min(gpu.memory for gpu in hardware.gpus))
        facts["driver"] = hardware.gpus[0].driver
    facts |= {f"engine-{engine.engine}": engine.version for engine in engines}
    facts |= {f"backend-{name}": "true" for name in backends}
    return dict(labels) | {_FACTS_PREFIX + key: value for key, value in facts.items()}


def matches(selector: Selector, labels: Mapping[str, str]) -> bool:
    """Whether all of a selector's requirements hold; an empty selector matches every node."""
    return all(labels.get(key) == value for key, value in selector.match_labels.items()) and all(
        _holds(expression, labels) for expression in selector.match_expressions
    )


def inside(spec: SnapshotSpec, rollout: Rollout | None, node_id: str) -> bool:
    """Whether a rollout has reached a node. Nodes inside stay inside as the percentage grows."""
    return rollout is None or _drawn(rollout, node_id) < spec.share(rollout) * _SHARES // 100


def wave_of(spec: SnapshotSpec, rollout: Rollout, node_id: str) -> str:
    """The first wave that reaches a node; empty where none does."""
    drawn = _drawn(rollout, node_id)
    return next((wave.name for wave in spec.waves if drawn < wave.percent * _SHARES // 100), "")


def _drawn(rollout: Rollout, node_id: str) -> int:
    return int(digest_text(f"rollout/1|{rollout.key}|{node_id.lower()}")[-12:], 16) % _SHARES


def _holds(expression: LabelExpression, labels: Mapping[str, str]) -> bool:
    value = labels.get(expression.key)
    if expression.operator == "Exists":
        return value is not None
    if expression.operator == "DoesNotExist":
        return value is None
    if expression.operator == "In":
        return value in expression.values
    if expression.operator == "NotIn":
        return value not in expression.values
    seen, bound = measure(value or ""), measure(expression.values[0])
    return seen is not None and bound is not None and _ORDERS[expression.operator](seen, bound)
