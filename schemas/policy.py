"""The policy of a snapshot: rules of the network for every node."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, StringConstraints

from schemas.base import Duration, Frozen, Percent, Positive, Text
from schemas.runtimes import Mode

WeekDay = Literal["mon", "tue", "wed", "thu", "fri", "sat", "sun"]


class JobPolicy(Frozen):
    """Bounds on requests."""

    max_tokens: Positive = 4096
    """Tokens that one request may ask for."""
    max_queue: Positive = 64
    """Requests held at once."""
    timeout: Duration = 120
    """Time bound of one request, seconds."""


class HeartbeatPolicy(Frozen):
    """Reporting."""

    interval: Duration = 10
    """Seconds between heartbeats."""


class GcPolicy(Frozen):
    """When unlisted models are removed (I8)."""

    grace: Duration = 86400
    """Running time between unlisting and removal, seconds."""
    keep_free: Percent = 10
    """Share of the disk kept free."""
    allow_empty: bool = False
    """Whether an empty model list may remove everything."""


class Window(Frozen):
    """A weekly window, in the clock of `zone`."""

    days: Annotated[tuple[WeekDay, ...], Field(min_length=1)]
    """Days on which the window opens."""
    from_: Annotated[str, StringConstraints(pattern=r"^([01][0-9]|2[0-3]):[0-5][0-9]$"), Field(alias="from")]
    """Opening time."""
    to: Annotated[str, StringConstraints(pattern=r"^([01][0-9]|2[0-3]):[0-5][0-9]$")]
    """Closing time; on the next day when not after `from`."""
    zone: Text = "UTC"
    """IANA time zone."""


class Windows(Frozen):
    """When work may happen; empty means always."""

    stage: tuple[Window, ...] = ()
    """Downloads and pulls."""
    swap: tuple[Window, ...] = ()
    """Stopping what serves."""
    urgent: bool = False
    """Signed by the operators: this snapshot ignores the windows."""


class ValidationPolicy(Frozen):
    """Validation inference."""

    inconclusive: Literal["retry", "reject"] = "retry"
    """`retry`: nothing is held against the model; what served before goes on, and it is tried again with backoff.
    `reject`: it counts as failed, and is remembered."""
    installed: bool = False
    """Whether models that are assigned and not served are validated as well: each is a swap there and one back, made
    in a swap window and a quiet moment. Without it they are `Pending` until they serve."""


class Policy(Frozen):
    """Rules of the network for every node."""

    modes: Annotated[tuple[Mode, ...], Field(min_length=1)] = ("container",)
    """Execution modes that the network allows."""
    jobs: JobPolicy = JobPolicy.model_construct()
    """Bounds on requests."""
    heartbeat: HeartbeatPolicy = HeartbeatPolicy.model_construct()
    """Reporting."""
    gc: GcPolicy = GcPolicy.model_construct()
    """Clean-up."""
    windows: Windows = Windows.model_construct()
    """Maintenance windows."""
    validation: ValidationPolicy = ValidationPolicy.model_construct()
    """Validation inference."""
