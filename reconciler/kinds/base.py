"""What a resource kind is: a pure difference, and the doing of its own actions.

`diff` sees a `Situation` and answers with actions and with what is held back; `perform` carries one action out through
the adapters and returns what must be remembered. No kind knows another: they meet in the ids of the actions that they
need, collected in a `Draft` that the planner passes from kind to kind in a fixed order.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, Protocol

from reconciler.windows import is_open, next_opening
from schemas.plan import Explanation, Held

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from datetime import datetime
    from pathlib import Path

    from reconciler.desired import Desired
    from reconciler.memory import Change
    from reconciler.target import Choice
    from runtime.health import HealthWatch
    from runtime.interfaces import (
        Backend,
        Engine,
        EngineConnection,
        EnvironmentStore,
        Front,
        HardwareProbe,
        Model,
        ModelStore,
        Progress,
    )
    from schemas.memory import Memory
    from schemas.node import NodeConfig
    from schemas.observation import Hardware, Instance, Observed
    from schemas.plan import Action
    from schemas.ports import Ports
    from schemas.probe import ProbeDocument


@dataclass(frozen=True, slots=True)
class Situation:
    """Everything a decision may look at."""

    desired: Desired
    observed: Observed
    node: NodeConfig
    now: datetime
    choice: Choice
    ignore_windows: bool = False
    """A person at the node wants changes now, whatever the maintenance windows say."""


@dataclass(slots=True)
class Draft:
    """A plan in the making. The only mutable value of the decision; it never leaves the planner."""

    actions: list[Action] = field(default_factory=list)
    held: list[Held] = field(default_factory=list)
    trace: list[Explanation] = field(default_factory=list)
    staging: list[str] = field(default_factory=list)
    """Ids of the actions that must have succeeded before a serving instance is stopped (I4)."""
    blocked: bool = False
    """Something that the target needs cannot be staged now: nothing that serves is stopped."""
    retiring: list[Instance] = field(default_factory=list)
    """Instances that serve until requests are led to their replacement, which runs beside them, and stop then."""
    outside_window: bool = False
    """A change is made outside its maintenance window, because a person wants it so."""

    def hold(self, subject: str, reason: str, message: str, until: datetime | None = None) -> None:
        """Record a change that is due and not made."""
        self.held.append(Held(subject=subject, reason=reason, message=message[:4096], until=until))

    def explain(self, subject: str, decision: str) -> None:
        """Record a step of the decision."""
        self.trace.append(Explanation(subject=subject, decision=decision[:4096]))


def waits(situation: Situation, draft: Draft, work: Literal["stage", "swap"], subject: str, message: str) -> bool:
    """Hold work on `subject` until its maintenance window opens; False when it may be done now."""
    document = situation.desired.document
    if document is None or document.spec.policy.windows.urgent:
        return False
    windows = getattr(document.spec.policy.windows, work)
    if is_open(windows, situation.now):
        return False
    if situation.ignore_windows:
        draft.outside_window = True
        draft.explain(subject, f"its {work} window is closed, which a person told this node to ignore")
        return False
    draft.hold(subject, "OutsideWindow", message, next_opening(windows, situation.now))
    return True


def may_stage(situation: Situation, draft: Draft, key: str, subject: str, message: str) -> bool:
    """Whether what the target needs may be brought here now; where not, it is held, and nothing that serves is stopped.

    Args:
        situation: what the decision is about.
        draft: gets what is held back.
        key: under which a backoff is remembered.
        subject: what people call it.
        message: what they read while its window is closed.
    """
    hold = situation.observed.memory.holds.get(key)
    if hold is not None and hold.until > situation.now:
        draft.hold(subject, hold.reason, hold.message, hold.until)
    elif not waits(situation, draft, "stage", subject, message):
        return True
    draft.blocked = True
    return False


class Documents(Protocol):
    """Documents of accepted snapshots, by digest, as the journal keeps them."""

    def model(self, digest: str) -> Model:
        """A model's manifest with its pieces.

        Raises:
            MissingDocument: never accepted, or no longer kept.
        """
        ...

    def probe(self, digest: str) -> ProbeDocument:
        """A probe.

        Raises:
            MissingDocument: never accepted, or no longer kept.
        """
        ...

    def lock(self, digest: str) -> bytes:
        """The exact bytes of a native environment's lock.

        Raises:
            MissingDocument: never accepted, or no longer kept.
        """
        ...


@dataclass(frozen=True, slots=True)
class Adapters:
    """The outside, as actions reach it."""

    ports: Ports
    store: ModelStore
    backends: Mapping[str, Backend]
    engines: Mapping[str, Engine]
    environments: EnvironmentStore
    documents: Documents
    connect: Callable[[Backend, str, Path], EngineConnection]
    """(backend, instance name, socket) to a connection that has checked its peer."""
    progress: Progress
    run_folder: Path
    """Folder of the instances' sockets."""
    log_folder: Path
    """Folder of the instances' captured output."""
    front: Front | None = None
    """The process through which clients reach the runtime; None on a node without one."""
    machine: HardwareProbe | None = None
    """Reads the machine again, in the middle of a plan; None where nothing can be waited for."""
    health: HealthWatch | None = None
    """Asks what serves how it is; None where only processes are looked at."""


@dataclass(frozen=True, slots=True)
class Context:
    """One action's circumstances."""

    adapters: Adapters
    node: NodeConfig
    node_id: str
    hardware: Hardware
    memory: Memory
    """What was remembered when the plan was made."""
    snapshot: str
    """Digest of the snapshot that the plan was made for; empty for none."""
    sources: Mapping[str, tuple[str, ...]]
    """By manifest digest: base addresses of the snapshot, then the node's own."""
    intent: str
    """Id of the journalled intent of this action."""
    created: str
    """Intent of the instance that an earlier action of this plan created; empty for none."""
    started: str
    """Intent of the instance that an earlier action of this plan started; empty for none."""


Changes = tuple["Change", ...]


@dataclass(frozen=True, slots=True)
class Kind:
    """One kind of resource. Registered in `reconciler.kinds.registry`."""

    name: str
    actions: tuple[type[Action], ...]
    """The action classes that this kind plans and performs; no two kinds share one."""
    diff: Callable[[Situation, Draft], None]
    perform: Callable[[Action, Context], Changes]
