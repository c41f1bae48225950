"""Which assignment a node falls under: labels, facts, and a stable share of the nodes. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from schemas.digests import digest_text

if TYPE_CHECKING:
    from collections.abc import Mapping

    from schemas.observation import Hardware
    from schemas.snapshot import Assignment, LabelExpression, Selector

_FACTS_PREFIX: Final = "fact/"
_SHARES: Final = 10_000
"""Resolution of a rollout's share: a hundredth of a percent."""


def node_labels(labels: Mapping[str, str], hardware: Hardware) -> dict[str, str]:
    """The node's own labels, with what was observed of the machine under `fact/`.

    Facts cannot be overridden by a label of the same name: they are what selectors of the network rely on.
    """
    facts = {
        "platform": hardware.platform,
        "accelerator": "cuda" if hardware.gpus else "cpu",
        "gpu-count": str(len(hardware.gpus)),
    }
    if hardware.gpus:
        facts["gpu"] = hardware.gpus[0].name.replace(" ", "-")
        facts["driver"] = hardware.gpus[0].driver
    return dict(labels) | {_FACTS_PREFIX + key: value for key, value in facts.items()}


def matches(selector: Selector, labels: Mapping[str, str]) -> bool:
    """Whether all of a selector's requirements hold; an empty selector matches every node."""
    return all(labels.get(key) == value for key, value in selector.match_labels.items()) and all(
        _holds(expression, labels) for expression in selector.match_expressions
    )


def inside(assignment: Assignment, node_id: str) -> bool:
    """Whether a node belongs to the assignment's share. Nodes inside stay inside as the percentage grows."""
    if assignment.rollout is None:
        return True
    drawn = int(digest_text(f"rollout/1|{assignment.rollout.key}|{node_id.lower()}")[-12:], 16) % _SHARES
    return drawn < assignment.rollout.percent * _SHARES // 100


def _holds(expression: LabelExpression, labels: Mapping[str, str]) -> bool:
    value = labels.get(expression.key)
    if expression.operator == "Exists":
        return value is not None
    if expression.operator == "DoesNotExist":
        return value is None
    if expression.operator == "In":
        return value in expression.values
    return value not in expression.values
