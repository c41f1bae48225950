"""The traps of a snapshot: what is well-formed and still not what anybody wants. Pure.

An `error` is something that no node can follow, or that every node will refuse; a `warning` is something that was
probably not meant, or that a careful operator would not sign without a second look.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Final, Literal
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from desired_state.compare import selector_text
from schemas.base import format_duration, format_time
from schemas.refusals import NotTrusted

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from datetime import datetime

    from desired_state.freshness import TimestampMark
    from desired_state.trust import TrustState
    from schemas.assignments import Selector
    from schemas.snapshot import SnapshotDocument

SHORTEST: Final = timedelta(days=3)
"""A snapshot that expires sooner stops changes over a long weekend."""
LONGEST: Final = timedelta(days=120)
"""A snapshot that lives longer lets a frozen mirror pass for a healthy one for months."""
STABLE: Final = timedelta(days=14)
"""Trust that expires sooner needs its root signers now."""

LONGEST_TIMESTAMP: Final = timedelta(days=7)
"""A timestamp that lives longer than a week says little more than the snapshot's own expiry."""

Severity = Literal["error", "warning"]


@dataclass(frozen=True, slots=True)
class Finding:
    """One trap."""

    severity: Severity
    code: str
    """Stable CamelCase name."""
    where: str
    """Field or document."""
    message: str
    hint: str = ""


@dataclass(frozen=True, slots=True)
class InventoryNode:
    """A node as `reconcile status --json` describes it, as far as selectors care."""

    name: str
    labels: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What a snapshot is held against."""

    now: datetime
    trust: TrustState | None = None
    """Trust in force; None when it could not be established."""
    timestamp: TimestampMark | NotTrusted | None = None
    """What a node would make of the timestamp; None where trust has no such role."""
    inventory: Sequence[InventoryNode] = ()
    """Known nodes; empty when none were given."""
    matches: Callable[[Selector, Mapping[str, str]], bool] | None = None
    """Whether a selector holds for labels."""


def lint(document: SnapshotDocument, around: Surroundings) -> tuple[Finding, ...]:
    """Every trap found, errors first, otherwise in the order of the document."""
    found = [
        *_validity(document, around.now),
        *_trust(document, around),
        *_timestamp(document, around),
        *_runtimes(document),
        *_models(document),
        *_assignments(document),
        *_inventory(document, around),
        *_policy(document),
    ]
    return tuple(sorted(found, key=lambda finding: finding.severity))


def _validity(document: SnapshotDocument, now: datetime) -> Iterator[Finding]:
    metadata = document.metadata
    left = metadata.expires_at - now
    where, renew = "metadata.expiresAt", "reconcile snapshot bump"
    if left <= timedelta(0):
        yield Finding("error", "Expired", where, f"it expired at {format_time(metadata.expires_at)}", renew)
    elif left < SHORTEST:
        text = f"it expires in {format_duration(int(left.total_seconds() // 60) * 60)}"
        yield Finding("warning", "ExpiresSoon", where, text, f"{renew} --valid 30d")
    elif left > LONGEST:
        text = f"it is valid for {left.days} days: a frozen mirror would go unnoticed that long"
        yield Finding("warning", "ExpiresLate", where, text, f"{renew} --valid 30d")
    if metadata.issued_at > now + timedelta(minutes=5):
        yield Finding("warning", "NotYetValid", "metadata.issuedAt", f"it begins at {format_time(metadata.issued_at)}")
    if metadata.sequence > 1 and metadata.previous is None:
        text = "it does not name the snapshot before it, so nodes cannot check the chain"
        yield Finding("warning", "NoPrevious", "metadata.previous", text, renew)


def _trust(document: SnapshotDocument, around: Surroundings) -> Iterator[Finding]:
    trust, metadata = around.trust, document.metadata
    if trust is None:
        return
    if metadata.trust_version > trust.version:
        text = f"it asks for trust version {metadata.trust_version}, and {trust.version} is in force"
        yield Finding("error", "TrustNotInForce", "metadata.trustVersion", text, "reconcile trust sign")
    if metadata.epoch != trust.epoch:
        text = f"it is of epoch {metadata.epoch}, and root declared {trust.epoch}"
        yield Finding("error", "WrongEpoch", "metadata.epoch", text, "reconcile snapshot bump")
    for name, role in (("root", trust.roles.root), ("snapshot", trust.roles.snapshot)):
        if role.threshold == 1:
            text = f"one stolen key is enough to sign as {name}"
            yield Finding("warning", "ThresholdOfOne", f"trust: {name}", text, f"reconcile trust threshold {name} 2")
        elif role.threshold == len(role.signers):
            text = f"one lost key ends the role {name}: all {role.threshold} signers are needed"
            yield Finding("warning", "NoSpareSigner", f"trust: {name}", text, "reconcile trust add ADDRESS")
    expires = trust.document.metadata.expires_at
    if expires - around.now < STABLE:
        text = f"trust version {trust.version} expires at {format_time(expires)}"
        yield Finding("warning", "TrustExpiresSoon", "trust", text, "reconcile trust rotate")


def _timestamp(document: SnapshotDocument, around: Surroundings) -> Iterator[Finding]:
    """Only warnings: it is written after the snapshot, and mostly on another machine."""
    seen, metadata = around.timestamp, document.metadata
    where, renew = "timestamp", "reconcile snapshot timestamp --key FILE"
    if seen is None:
        return
    if isinstance(seen, NotTrusted):
        text = f"nodes will suspect a freeze: {seen.reason}: {seen.message}"
        yield Finding("warning", "NoTimestamp", where, text, renew)
        return
    if seen.position > (metadata.epoch, metadata.sequence):
        text = f"it names sequence {seen.sequence} of epoch {seen.epoch}: this snapshot is not the newest"
        yield Finding("warning", "NotTheNewest", where, text, "reconcile snapshot bump")
    if seen.expires_at - seen.issued_at > LONGEST_TIMESTAMP:
        days = (seen.expires_at - seen.issued_at).days
        text = f"it is believed for {days} days: a frozen mirror would go unnoticed that long"
        yield Finding("warning", "TimestampExpiresLate", where, text, f"{renew} --valid 25h")


def _runtimes(document: SnapshotDocument) -> Iterator[Finding]:
    used = {assignment.runtime for assignment in document.spec.assignments}
    allowed = document.spec.policy.modes
    for index, runtime in enumerate(document.spec.runtimes):
        where = f"spec.runtimes[{index}]"
        if runtime.name not in used:
            yield Finding("warning", "UnusedRuntime", where, f"no assignment uses {runtime.name!r}")
        if not set(runtime.modes) & set(allowed):
            text = (
                f"{runtime.name!r} runs as {', '.join(runtime.modes)}, and the policy allows {', '.join(allowed)} only"
            )
            modes = ", ".join(dict.fromkeys((*allowed, *runtime.modes)))
            yield Finding(
                "error", "ModeNotAllowed", where, text, f'reconcile snapshot set spec.policy.modes "[{modes}]"'
            )
        if runtime.isolation.allow_unenforced:
            text = f"{runtime.name!r} may run without: {', '.join(runtime.isolation.allow_unenforced)}"
            yield Finding("warning", "WeakIsolation", f"{where}.isolation", text)


def _is_zone(name: str) -> bool:
    try:
        ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError, OSError):  # OSError: a folder of zones, or far too long
        return False
    return True


def _is_url(source: str) -> bool:
    return not source.startswith("hf://")  # where @ begins a revision


def _models(document: SnapshotDocument) -> Iterator[Finding]:
    served = {key for assignment in document.spec.assignments for key in assignment.serve}
    withdrawn = {entry.digest for entry in document.spec.withdrawn}
    for index, model in enumerate(document.spec.models):
        where = f"spec.models[{index}]"
        if not model.sources:
            text = f"{model.key} has no source: only nodes that have it already can serve it"
            hint = f"reconcile snapshot set 'spec.models[{model.key}].sources' '[\"https://...\"]'"
            yield Finding("warning", "NoSource", where, text, hint)
        plain = [source for source in model.sources if source.startswith("http://")]
        if plain:
            text = f"{model.key} is fetched over plain http, which nodes refuse unless their owner allows it"
            yield Finding("warning", "PlainHttp", f"{where}.sources", text)
        if any("@" in source.partition("://")[2].partition("/")[0] for source in model.sources if _is_url(source)):
            text = f"{model.key} has a source with a user or password in it, for everybody to read"
            hint = "name the secret in each node's configuration: sources.credentials"
            yield Finding("warning", "SecretInSource", f"{where}.sources", text, hint)
        if model.state == "active" and model.key not in served:
            text = f"{model.key} is active, and nothing serves it: it will be fetched nowhere"
            yield Finding("warning", "NotServed", where, text, f"reconcile snapshot serve {model.key} --runtime NAME")
        if model.manifest.digest in withdrawn:
            # No error: what must stop at once is not to wait for a tidy list.
            text = f"{model.key} is withdrawn and still listed: nodes hold it and never serve it"
            yield Finding("warning", "ListedAndWithdrawn", where, text, f"reconcile model remove {model.key}")


def _assignments(document: SnapshotDocument) -> Iterator[Finding]:
    if not document.spec.assignments:
        yield Finding("warning", "NoAssignment", "spec.assignments", "no node will serve anything", _SERVE)
    caught: str | None = None
    for index, assignment in enumerate(document.spec.assignments):
        where = f"spec.assignments[{index}]"
        if caught is not None:
            yield Finding("warning", "Unreachable", where, f"{caught} catches every node before it")
        selector = assignment.selector
        everyone = not selector.match_labels and not selector.match_expressions
        if everyone and document.spec.share(assignment.rollout) == 100:  # noqa: PLR2004 - per cent
            caught = caught or where
    if document.spec.assignments and caught is None:
        text = "a node that matches no assignment keeps what it has; there is none for every node"
        yield Finding("warning", "NoDefault", "spec.assignments", text)


_SERVE: Final = "reconcile snapshot serve MODEL:VERSION --runtime NAME"


def _inventory(document: SnapshotDocument, around: Surroundings) -> Iterator[Finding]:
    if not around.inventory or around.matches is None:
        return
    for index, assignment in enumerate(document.spec.assignments):
        if not any(around.matches(assignment.selector, node.labels) for node in around.inventory):
            text = f"{selector_text(assignment)} matches none of the {len(around.inventory)} known nodes"
            yield Finding("warning", "MatchesNothing", f"spec.assignments[{index}].selector", text)
    selectors = [assignment.selector for assignment in document.spec.assignments]
    lost = [node.name for node in around.inventory if not any(around.matches(one, node.labels) for one in selectors)]
    if lost:
        text = f"no assignment matches {', '.join(lost[:3])}" + (f" and {len(lost) - 3} more" if len(lost) > 3 else "")  # noqa: PLR2004
        yield Finding("warning", "NodeWithoutAssignment", "spec.assignments", text)


def _policy(document: SnapshotDocument) -> Iterator[Finding]:
    policy = document.spec.policy
    for name, windows in (("stage", policy.windows.stage), ("swap", policy.windows.swap)):
        for index, window in enumerate(windows):
            if not _is_zone(window.zone):
                text = f"no clock knows the zone {window.zone!r}: this window never opens"
                yield Finding("error", "UnknownZone", f"spec.policy.windows.{name}[{index}].zone", text)
    if policy.gc.allow_empty:
        text = "an empty model list would remove every model from every node"
        yield Finding("warning", "EmptyAllowed", "spec.policy.gc.allowEmpty", text)
    if policy.windows.urgent:
        text = "maintenance windows are ignored; take it back with the next snapshot"
        yield Finding("warning", "Urgent", "spec.policy.windows.urgent", text)
