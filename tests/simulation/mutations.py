"""The agent, broken on purpose in one way at a time: a simulation that does not notice proves nothing."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final
from unittest import mock

import desired_state.acceptance
import reconciler.executor
import reconciler.gpus
import reconciler.kinds.front
import reconciler.kinds.instances
import reconciler.kinds.runtime
import reconciler.kinds.storage
import reconciler.kinds.validation
import reconciler.loop
import reconciler.memory
import reconciler.node
import reconciler.observe
import reconciler.restarts
import reconciler.source
import reconciler.target
from desired_state.watermark import MarkFile
from reconciler.journal import Journal
from runtime.backends.simulated import SimulatedBackend, SimulatedGpus
from runtime.host import DurableFiles
from schemas.observation import Present, StoredModel, Unknown
from schemas.plan import StartInstance, StopInstance

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path


@dataclass(frozen=True, slots=True)
class Mutation:
    """One way of being wrong."""

    name: str
    finds: frozenset[str]
    """Invariants that may name it."""
    patches: Callable[[], list[Any]]

    @contextmanager
    def applied(self) -> Iterator[None]:
        """The agent, broken."""
        made = self.patches()
        for patch in made:
            patch.start()
        try:
            yield
        finally:
            for patch in made:
                patch.stop()


def _patch(place: Any, name: str, new: Any) -> Any:
    return mock.patch.object(place, name, new)


def _without_staging() -> list[Any]:
    """What serves is stopped whether or not its replacement is here."""
    real = reconciler.executor._blocked

    def blocked(action: Any, outcomes: Any) -> bool:
        return not isinstance(action, StopInstance) and bool(real(action, outcomes))

    return [_patch(reconciler.executor, "_blocked", blocked)]


def _without_needs() -> list[Any]:
    """Nothing waits for what it needs."""
    return [_patch(reconciler.executor, "_blocked", lambda _action, _outcomes: False)]


def _without_intents() -> list[Any]:
    """Intents are not recorded before the act."""
    real = Journal.begin

    def begin(self: Journal, intent: str, **named: Any) -> None:
        if named["kind"] not in ("create-instance", "start-instance"):
            real(self, intent, **named)

    return [_patch(Journal, "begin", begin)]


def _adopts_strangers() -> list[Any]:
    """Whatever carries this node's marks counts as its own."""
    real = Journal.memory

    class Everything(frozenset[str]):
        def __contains__(self, item: object) -> bool:
            return True

    return [_patch(Journal, "memory", lambda self, **named: replace(real(self, **named), intents=Everything()))]


def _without_probes() -> list[Any]:
    """Nobody is asked anything before it counts as Active, and no receipt is written."""
    real = reconciler.kinds.validation.perform

    def perform(action: Any, context: Any) -> Any:
        return tuple(item for item in real(action, context) if not isinstance(item, reconciler.memory.IssueReceipt))

    kind = replace(reconciler.kinds.validation.KIND, perform=perform)
    return [_kinds(reconciler.kinds.validation.KIND, kind)]


def _any_answer() -> list[Any]:
    """Every answer passes."""
    real = reconciler.kinds.validation.validate

    def validate(*args: Any, **named: Any) -> Any:
        verdict, evidence = real(*args, **named)
        return replace(verdict, outcome="pass"), evidence

    return [_patch(reconciler.kinds.validation, "validate", validate)]


def _kinds(old: Any, new: Any) -> Any:
    from reconciler import planner
    from reconciler.kinds import registry

    kinds = tuple(new if kind is old else kind for kind in registry.KINDS)
    assert kinds != registry.KINDS

    class Both:
        def start(self) -> None:
            self._made = [_patch(registry, "KINDS", kinds), _patch(planner, "KINDS", kinds)]
            for patch in self._made:
                patch.start()

        def stop(self) -> None:
            for patch in self._made:
                patch.stop()

    return Both()


def _accepts_older() -> list[Any]:
    """A lower sequence is as good as a higher one."""

    def at_mark(document: Any, digest: str, mark: Any) -> bool:
        return bool(digest == mark.digest)

    return [
        _patch(desired_state.acceptance, "_is_at_mark", at_mark),
        _patch(desired_state.acceptance, "_has_gap", lambda _document, _mark: True),
    ]


def _counts_nobody() -> list[Any]:
    """Signatures are not counted."""
    return [_patch(desired_state.acceptance, "_check_signatures", lambda *_args: ("0x" + "0" * 40,))]


def _ignores_expiry() -> list[Any]:
    """Time does not matter."""
    return [_patch(desired_state.acceptance, "_check_validity", lambda *_args: None)]


def _removes_at_once() -> list[Any]:
    """What is not listed is removed without its grace."""
    real = reconciler.kinds.storage.unlisted

    def unlisted(*args: Any) -> Any:
        return tuple(replace(item, seconds=1e9) for item in real(*args))

    return [_patch(reconciler.kinds.storage, "unlisted", unlisted)]


def _unknown_is_absent() -> list[Any]:
    """A backend that cannot be seen is taken for empty."""
    real = reconciler.node.observe

    def observe(**named: Any) -> Any:
        seen = real(**named)
        backends = {
            name: Present(()) if isinstance(item, Unknown) else item for name, item in seen.state.backends.items()
        }
        return replace(seen, state=replace(seen.state, backends=backends))

    return [_patch(reconciler.node, "observe", observe)]


def _starts_beside() -> list[Any]:
    """The new instance is started before the old one is stopped."""
    real = reconciler.loop.make_plan

    def plan(*args: Any, **named: Any) -> Any:
        made = real(*args, **named)
        starts = [action for action in made.actions if isinstance(action, StartInstance)]
        if not starts:
            return made
        others = [action for action in made.actions if not isinstance(action, StartInstance | StopInstance)]
        stops = [action for action in made.actions if isinstance(action, StopInstance)]
        kept = {action.id for action in stops}
        starts = [
            action.model_copy(update={"needs": tuple(need for need in action.needs if need not in kept)})
            for action in starts
        ]
        staging = [action for action in others if action.id in {need for start in starts for need in start.needs}]
        rest = [action for action in others if action not in staging]
        return made.model_copy(update={"actions": (*staging, *starts, *stops, *rest)})

    return [_patch(reconciler.loop, "make_plan", plan)]


def _forgets_failures() -> list[Any]:
    """What failed is not remembered."""
    real = Journal.memory
    return [_patch(Journal, "memory", lambda self, **named: replace(real(self, **named), rejections={}))]


def _trusts_stamps() -> list[Any]:
    """Changed files are not hashed again."""
    real = reconciler.observe._models

    def models(store: Any, wanted: Any) -> Any:
        seen = real(store, wanted)
        return {
            digest: Present(replace(item.value, intact=True))
            if isinstance(item, Present) and isinstance(item.value, StoredModel)
            else item
            for digest, item in seen.items()
        }

    return [_patch(reconciler.observe, "_models", models)]


def _keeps_withdrawn() -> list[Any]:
    """What is withdrawn goes on."""
    return [
        _patch(reconciler.target, "withdrawn", lambda _document, _target: ""),
        _patch(reconciler.kinds.runtime, "withdrawn", lambda _document, _target: ""),
    ]


def _careless_commits() -> list[Any]:
    """The journal's commits are not synced."""
    real = Journal._check_version

    def check(self: Journal) -> None:
        real(self)
        self._db.execute("PRAGMA synchronous = OFF")

    return [_patch(Journal, "_check_version", check)]


def _careless_files() -> list[Any]:
    """Small files are written without a sync."""

    def write(self: DurableFiles, path: Path, data: bytes, *, mode: int = 0o644) -> None:
        path.write_bytes(data)

    return [_patch(DurableFiles, "write", write)]


def _one_mark() -> list[Any]:
    """There is no second copy of the mark."""
    return [
        _patch(MarkFile, "write", lambda _self, _mark: None),
        _patch(MarkFile, "keep", lambda _self, _mark: None),
    ]


def _early_route() -> list[Any]:
    """Clients are led to what was started and not yet asked anything."""
    real = reconciler.kinds.front._add

    def add(situation: Any, draft: Any, seen: Any, target: Any, intent: Any, cause: Any, needs: Any) -> None:
        real(situation, draft, seen, target, intent, cause, tuple(n for n in needs if not n.startswith("validate")))
        if draft.actions and draft.actions[-1].kind == "route-front" and target is not None:
            checks = [item for item in draft.actions if item.kind == "validate-model"]
            draft.actions[:] = [*(item for item in draft.actions if item not in checks), *checks]

    return [_patch(reconciler.kinds.front, "_add", add)]


def _endless_waits() -> list[Any]:
    """A wait that was set by a clock that was ahead is waited for."""
    return [_patch(reconciler.node, "as_of", lambda memory, _now: memory)]


def _dies_of_disks() -> list[Any]:
    """A full disk ends the agent."""

    def unchanged(error: OSError) -> Any:
        raise error

    return [_patch(reconciler.loop, "of_disk", unchanged), _patch(reconciler.executor, "of_disk", unchanged)]


def _shares_gpus() -> list[Any]:
    """Whoever has a GPU, and whether it computes, is not asked."""
    return [
        _patch(reconciler.gpus, "_refusal", lambda _target, _gpu: ("", "")),
        _patch(SimulatedBackend, "start", _start_anywhere),
    ]


def _start_anywhere(self: SimulatedBackend, name: str) -> None:
    with mock.patch.object(SimulatedGpus, "holder", return_value=""):
        _real_start(self, name)


_real_start: Final = SimulatedBackend.start


def _hurries() -> list[Any]:
    """A GPU is taken for free as soon as what ran on it was stopped."""
    return [_patch(reconciler.kinds.instances, "await_release", lambda *_, **__: 0.0)]


def _restless() -> list[Any]:
    """What ended is started again as soon as it has been cleared away."""
    return [_patch(reconciler.restarts, "pending", lambda *_: None)]


def _mutation(name: str, finds: str, patches: Callable[[], list[Any]]) -> Mutation:
    return Mutation(name, frozenset(finds.split()), patches)


MUTATIONS: Final = (
    _mutation("a stop does not wait for staging", "I4 I6", _without_staging),
    _mutation("nothing waits for what it needs", "I2 I3 I4 I5 I6 I7 I11", _without_needs),
    _mutation("no intent before a start", "I7", _without_intents),
    _mutation("strangers are adopted", "I8", _adopts_strangers),
    _mutation("no receipts", "I2", _without_probes),
    _mutation("every answer passes", "I2 I5", _any_answer),
    _mutation("a lower sequence is accepted", "I1", _accepts_older),
    _mutation("signatures are not counted", "I1", _counts_nobody),
    _mutation("expiry is ignored", "I1", _ignores_expiry),
    _mutation("unlisted models go at once", "I8", _removes_at_once),
    _mutation("unknown is taken for absent", "I3 I6 I8", _unknown_is_absent),
    _mutation("the new beside the old", "I3", _starts_beside),
    _mutation("failures are not remembered", "I5 I7", _forgets_failures),
    _mutation("changed files are not hashed", "I2 I4", _trusts_stamps),
    _mutation("what is withdrawn goes on", "I6", _keeps_withdrawn),
    _mutation("commits are not synced", "I1 I2 I7 I8", _careless_commits),
    _mutation("files are not synced", "I1", _careless_files),
    _mutation("one copy of the mark", "I1", _one_mark),
    _mutation("clients before the probe", "I2", _early_route),
    _mutation("waits outlive the clock", "I7 I11", _endless_waits),
    _mutation("restarts do not wait", "I11", _restless),
    _mutation("a full disk ends the agent", "I11", _dies_of_disks),
    _mutation("other nodes' GPUs are taken", "I3 I4", _shares_gpus),
    _mutation("a GPU is not waited for", "I4", _hurries),
)
