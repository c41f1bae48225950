"""What is said over `run/control.sock`: one question a connection, then what happens, line by line, then how it ended.

Each message is one line of JSON. The lines in between are those of `--json` progress (`event: started`, `progress`,
`finished`); the last one is a `ControlDone` or a `ControlFailed`.
"""

from __future__ import annotations

from typing import Annotated, Final, Literal

from pydantic import Field, JsonValue

from schemas.base import Count, Digest, Frozen, Text
from schemas.failure import Failure
from schemas.plan import Plan
from schemas.status import NodeStatus

REQUEST_LIMIT: Final = 2**24
"""Bytes of a question: a saved plan over ten thousand models."""
ANSWER_LIMIT: Final = 2**26
"""Bytes of one line of an answer: a report and a plan over ten thousand models."""


class Reconcile(Frozen):
    """One pass, at once."""

    verb: Literal["reconcile"] = "reconcile"
    ignore_windows: bool = False
    """A person wants changes now, whatever the maintenance windows say."""


class Suspend(Frozen):
    """Hold every change but a withdrawal."""

    verb: Literal["suspend"] = "suspend"
    why: Text


class Resume(Frozen):
    """Let changes be applied again."""

    verb: Literal["resume"] = "resume"


class Retry(Frozen):
    """Forget remembered failures."""

    verb: Literal["retry"] = "retry"
    subjects: Annotated[tuple[Text, ...], Field(max_length=1000)] = ()
    """Which; all of them when empty."""


class CollectGarbage(Frozen):
    """A pass: it removes what is no longer listed, once its grace is over."""

    verb: Literal["gc"] = "gc"


class Verify(Frozen):
    """Hash stored models again, in a pass."""

    verb: Literal["verify"] = "verify"
    manifests: Annotated[tuple[Digest, ...], Field(min_length=1, max_length=10_000)]


class Notify(Frozen):
    """Look at once."""

    verb: Literal["notify"] = "notify"


class Reload(Frozen):
    """Read the configuration again."""

    verb: Literal["reload"] = "reload"


class Left(Frozen):
    """What a rollback holds against."""

    subject: Digest
    """Of validation: model, runtime, probe and machine."""
    model: Text
    snapshot: Digest
    """The one in force."""


class Rollback(Frozen):
    """Go back to what was good before, in a pass."""

    verb: Literal["rollback"] = "rollback"
    to: Text
    """What serves afterwards, for people."""
    leave: Annotated[tuple[Left, ...], Field(min_length=1, max_length=16)]
    """What has to be held against, so that it does."""
    why: Text = ""


class Apply(Frozen):
    """Carry out a saved plan, if it is still what would be done."""

    verb: Literal["apply"] = "apply"
    plan: Plan


class Validate(Frozen):
    """Ask what serves what its probe asks. Changes nothing, and waits for no pass."""

    verb: Literal["validate"] = "validate"
    model: Text = ""
    """`name:version` or `name` of what should serve; empty for whatever does."""


Question = (
    Rollback | Apply | Validate | Reconcile | Suspend | Resume | Retry | CollectGarbage | Verify | Notify | Reload
)
PASSES: Final = (Reconcile, CollectGarbage, Verify, Rollback, Apply)
"""What is answered when the pass that it asks for has ended; everything else is answered at once."""


class ControlRequest(Frozen):
    """The question."""

    format_version: Literal["1"] = "1"
    ask: Annotated[Question, Field(discriminator="verb")]


class PassReport(Frozen):
    """How the pass ended that was asked for."""

    exit_code: Count
    status: NodeStatus
    plan: Plan
    """What would still be done."""


class ControlDone(Frozen):
    """It was done."""

    format_version: Literal["1"] = "1"
    event: Literal["done"] = "done"
    count: Count = 0
    """How many things changed, where that is what was asked for."""
    result: PassReport | None = None
    document: dict[str, JsonValue] | None = None
    """What a look came to, where that is what was asked for."""


class ControlFailed(Frozen):
    """It was refused, or failed."""

    format_version: Literal["1"] = "1"
    event: Literal["failed"] = "failed"
    failure: Failure
