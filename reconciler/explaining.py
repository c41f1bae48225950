"""What is known of one thing that somebody asks about, and why it is not otherwise. Pure.

The decision's own trace tells what was decided. This tells of what nothing had to be decided about: a model that waits
for its turn or that nobody lists, a backend that is not used, a GPU that is not there.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from reconciler.modes import usable
from schemas.observation import Present, StoredModel, Unknown
from schemas.plan import Explanation
from schemas.status import CONDITION_TYPES

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from reconciler.desired import Desired
    from reconciler.target import Choice
    from schemas.node import NodeConfig
    from schemas.observation import Instance, Observed
    from schemas.plan import Held
    from schemas.snapshot import ModelSpec
    from schemas.status import NodeStatus

BACKENDS: Final = ("docker", "podman", "native")
_GPUS: Final = ("gpu", "gpus")
_SOME: Final = 8
"""Names that are listed for whoever asks about another."""


def facts(
    thing: str, desired: Desired, observed: Observed, choice: Choice, node: NodeConfig, status: NodeStatus | None
) -> list[Explanation]:
    """What is known of a thing.

    Args:
        thing: a model (`name` or `name:version`), a condition, a backend, `gpu`, `front`, an instance; in any case.
        desired: what is wanted.
        observed: what is there.
        choice: what should serve.
        node: the node's configuration.
        status: what the node said last; None before its first pass.
    """
    word = thing.lower()
    steps = [*_models(word, desired, observed, choice), *_conditions(word, status), *_instances(word, observed)]
    if word in BACKENDS:
        steps += _backend(word, observed, node)
    if word in _GPUS:
        steps += _gpus(observed)
    if word == "front":
        steps.append(_step("front", _front(observed)))
    if not steps and ":" in word:
        listed = [spec.key for spec in desired.document.spec.models] if desired.document is not None else []
        more = f" and {len(listed) - _SOME} more" if len(listed) > _SOME else ""
        steps.append(
            _step(
                thing,
                f"neither the snapshot nor this node knows it; listed: {', '.join(listed[:_SOME]) or 'none'}{more}",
            )
        )
    return steps


def held_for(thing: str, choice: Choice, held: Sequence[Held]) -> list[Held]:
    """What is held back of a thing; of the model that should serve, also what holds the runtime, or the whole node."""
    target = choice.target
    wide = target is not None and thing.lower() in (target.model, target.model.partition(":")[0])
    return [item for item in held if thing in item.subject or (wide and item.subject in ("runtime", "node"))]


# --- models -------------------------------------------------------------------------------------------------------


def _models(word: str, desired: Desired, observed: Observed, choice: Choice) -> Iterator[Explanation]:
    specs = desired.document.spec.models if desired.document is not None else ()
    for spec in specs:
        if word in (spec.key, spec.name):
            yield _step(spec.key, f"the snapshot lists it as {spec.state}")
            yield from _remembered(spec.key, spec.manifest.digest, observed)
            yield _step(spec.key, _turn(spec, choice))
    listed = {spec.manifest.digest for spec in specs}
    for digest, record in sorted(observed.memory.models.items(), key=lambda item: item[1].key):
        if word in (record.key, record.key.partition(":")[0]) and digest not in listed:
            yield _step(record.key, "the snapshot does not list it any more: it is removed after its grace")
            yield from _remembered(record.key, digest, observed)


def _remembered(key: str, digest: str, observed: Observed) -> Iterator[Explanation]:
    record, seen = observed.memory.models.get(digest), observed.state.models.get(digest)
    if isinstance(seen, Unknown):
        yield _step(key, f"what is stored of it cannot be seen: {seen.reason}")
    elif not (isinstance(seen, Present) and isinstance(seen.value, StoredModel)):
        yield _step(key, "it is not stored here")
    if record is not None:
        yield _step(key, f"{record.state} since {record.since:%Y-%m-%d %H:%M}Z: {record.cause}")


def _turn(spec: ModelSpec, choice: Choice) -> str:
    target = choice.target
    if target is not None and target.manifest == spec.manifest.digest:
        role = "the last known good" if choice.role == "last-known-good" else "what the snapshot wants here"
        return f"it should serve: it is {role}"
    assigned = [item.manifest.digest for item in choice.serve]
    instead = f"{target.model} serves here" if target is not None else "nothing can serve here now"
    if spec.manifest.digest not in assigned:
        return f"not served: no assignment that selects this node has it; {instead}"
    if spec.manifest.digest == assigned[0]:
        held = next((item for item in choice.held if item.subject == spec.key), None)
        why = f": {held.reason}: {held.message}" if held is not None else ""
        return f"the snapshot wants it to serve, and it does not{why}; {instead}"
    place = assigned.index(spec.manifest.digest) + 1
    return f"not served: number {place} of what is assigned here, and one is loaded at a time; {instead}"


# --- everything else ----------------------------------------------------------------------------------------------


def _conditions(word: str, status: NodeStatus | None) -> Iterator[Explanation]:
    name = next((name for name in CONDITION_TYPES if name.lower() == word), None)
    condition = status.condition(name) if status is not None and name is not None else None
    if condition is not None:
        since = f"since {condition.since:%Y-%m-%d %H:%M}Z"
        yield _step(condition.type, f"{condition.status} {since}: {condition.reason}: {condition.message}")


def _instances(word: str, observed: Observed) -> Iterator[Explanation]:
    for _, seen in sorted(observed.state.backends.items()):
        for item in seen.value if isinstance(seen, Present) else ():
            if word == item.name:
                yield _step(item.name, _instance(item, observed))


def _instance(item: Instance, observed: Observed) -> str:
    known = "" if item.intent in observed.memory.intents else "; the journal does not know it, so it is left alone"
    proven = any(receipt.intent == item.intent for receipt in observed.memory.receipts)
    detail = f" ({item.detail})" if item.detail else ""
    return f"{item.status}, {item.health}{detail}, {'proven' if proven else 'without a receipt'}{known}"


def _backend(word: str, observed: Observed, node: NodeConfig) -> Iterator[Explanation]:
    settings = {"docker": node.backends.docker, "podman": node.backends.podman, "native": node.backends.native}[word]
    if settings is None:
        yield _step(word, f"node.yaml names no backends.{word}")
    elif word not in usable(observed.state.backends, node):
        yield _step(word, f"backends.{word}.enabled is false: nothing is started there")
    seen = observed.state.backends.get(word)
    if isinstance(seen, Unknown):
        yield _step(word, f"it cannot be seen, and may hold an instance: {seen.reason}")
    elif isinstance(seen, Present):
        names = [f"{item.name} {item.status}" for item in seen.value]
        yield _step(word, f"it holds {', '.join(names) or 'nothing of this node'}")
    missing = observed.state.not_enforced.get(word, ())
    if missing:
        yield _step(word, f"cannot enforce here: {', '.join(missing)}")


def _gpus(observed: Observed) -> Iterator[Explanation]:
    machine = observed.state.hardware
    for gpu in machine.gpus:
        what = f"{gpu.name}, {gpu.memory} bytes, driver {gpu.driver}"
        yield _step(
            gpu.uuid,
            f"{what}{f', {gpu.fault}' if gpu.fault else ''}{f', in use by {gpu.holder}' if gpu.holder else ''}",
        )
    for text in (*machine.unsupported, *([machine.gpu_trouble] if machine.gpu_trouble else [])):
        yield _step("gpu", text)
    if not (machine.gpus or machine.unsupported or machine.gpu_trouble):
        yield _step("gpu", "this machine has none: engines compute on the processor")


def _front(observed: Observed) -> str:
    seen = observed.state.front
    if seen is None:
        return "this node has none: front.enabled is false"
    if isinstance(seen, Unknown):
        return f"it cannot be seen: {seen.reason}"
    if not isinstance(seen, Present) or not seen.value.current:
        return "none of this agent's takes clients: it is started with the first instance that has passed its probe"
    leads = {"serving": "leads requests to", "holding": "lets requests wait for", "none": "refuses requests; it led to"}
    return f"{leads[seen.value.state]} the instance of intent {seen.value.intent or 'none'}"


def _step(subject: str, decision: str) -> Explanation:
    return Explanation(subject=subject, decision=decision[:4096])
