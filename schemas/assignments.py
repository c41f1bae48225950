"""The assignments of a snapshot: which nodes run what, and how far a change has reached among them."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from schemas.base import Frozen, Label, ModelKey, Name, Percent, measure


class LabelExpression(Frozen):
    """One requirement on a label or fact."""

    key: Label
    """Name of the label or fact."""
    operator: Literal["In", "NotIn", "Exists", "DoesNotExist", "Gt", "Gte", "Lt", "Lte"]
    """How the value is compared; the last four compare numbers, sizes and dotted versions, and hold for no node that
    has no such value."""
    values: tuple[Label, ...] = ()
    """Several for `In` and `NotIn`, one for `Gt`, `Gte`, `Lt` and `Lte`."""

    @model_validator(mode="after")
    def _values_fit_operator(self) -> LabelExpression:
        if self.operator in ("Exists", "DoesNotExist") and self.values:
            raise ValueError(f"{self.operator} takes no values")
        if self.operator in ("In", "NotIn") and not self.values:
            raise ValueError(f"{self.operator} needs values")
        if self.operator in ("Gt", "Gte", "Lt", "Lte") and [measure(text) is None for text in self.values] != [False]:
            raise ValueError(f"{self.operator} needs one value: a number, a size or a dotted version")
        return self


class Selector(Frozen):
    """Which nodes an assignment is for. Empty matches every node."""

    match_labels: dict[Label, Label] = {}
    """All must be equal."""
    match_expressions: tuple[LabelExpression, ...] = ()
    """All must hold."""


class Wave(Frozen):
    """A named step of rollouts: everybody up to a share of the nodes."""

    name: Name
    """What rollouts call it: `canary`, `early`."""
    percent: Percent
    """Share of the nodes in this wave and those before it."""


class Rollout(Frozen):
    """A stable share of the matching nodes: hash(node id, key) below a percentage, given here or by a wave."""

    percent: Percent | None = None
    """Share of nodes inside; those inside stay inside as it grows."""
    wave: Name | None = None
    """A wave of this snapshot, instead of a percentage."""
    key: Label
    """Names the rollout; another key draws another share."""

    @model_validator(mode="after")
    def _one_share(self) -> Rollout:
        if (self.percent is None) == (self.wave is None):
            raise ValueError("a rollout has either a percent or a wave")
        return self


class Assignment(Frozen):
    """What the selected nodes run. The first assignment that matches a node wins."""

    selector: Selector = Selector.model_construct()
    """Which nodes."""
    rollout: Rollout | None = None
    """Which share of them; the others fall through to the next assignment."""
    runtime: Name
    """A runtime of this snapshot."""
    serve: Annotated[tuple[ModelKey, ...], Field(min_length=1)]
    """Models to serve; the first is loaded."""
