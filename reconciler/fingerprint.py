"""What was observed, as one digest: a plan is bound to it. Volatile readings are left out. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING

from schemas.digests import digest_text
from schemas.observation import Absent, ArchivedModel, Present, StoredModel, Unknown

if TYPE_CHECKING:
    from collections.abc import Mapping

    from schemas.observation import FrontSeen, Instance, ModelSeen, Observation, Observed, StoredEnvironment


def fingerprint(observed: Observed) -> str:
    """Digest of everything that a decision depends on, and of nothing that changes by itself.

    Left out: free disk and memory, times, detail texts, bytes of partial downloads.
    """
    state, memory = observed.state, observed.memory
    lines = [
        "observation/1",
        observed.node_id,
        state.hardware.platform,
        state.hardware.accelerator,
        str(state.hardware.memory),
        *(f"engine {item.engine} {item.version} {item.environment}" for item in state.engines),
        *(f"backend {name} {_backend(seen)}" for name, seen in sorted(state.backends.items())),
        *(f"not enforced {name} {' '.join(names)}" for name, names in sorted(state.not_enforced.items())),
        *(f"image {name} {_image(seen)}" for name, seen in sorted(state.images.items())),
        *(f"model {digest} {_model(seen)}" for digest, seen in sorted(state.models.items())),
        *(f"record {digest} {record.state}" for digest, record in sorted(memory.models.items())),
        *(f"receipt {receipt.digest}" for receipt in memory.receipts),
        *(f"rejected {subject}" for subject in sorted(memory.rejections)),
        *(f"held {subject} {hold.failures}" for subject, hold in sorted(memory.holds.items())),
        *((f"front {_front(state.front)}",) if state.front is not None else ()),
        f"interpreter {state.interpreter}",
        f"environments {_environments(state.environments)}",
        f"good {memory.last_known_good.target.spec_digest if memory.last_known_good else ''}",
        *((f"earlier {memory.earlier_good.target.spec_digest}",) if memory.earlier_good else ()),
        *(f"retest {digest}" for digest in sorted(memory.retests)),
        *(f"check {digest}" for digest in sorted(memory.checks)),
        f"residue {bool(state.residue)}",
        f"suspended {memory.suspended}",
    ]
    return digest_text("\n".join(lines))


def _backend(seen: Observation[tuple[Instance, ...]]) -> str:
    if isinstance(seen, Present):
        # Well, or not known to be otherwise: they lead to the same decision, and change with every request.
        return " ".join(
            f"{item.name}={item.status}/{'unhealthy' if item.health == 'unhealthy' else 'well'}/{item.spec_digest}"
            + "".join(f"/{one.field}={one.found}" for one in item.changed)
            for item in seen.value
        )
    return _other(seen)


def _front(seen: Observation[FrontSeen]) -> str:
    if isinstance(seen, Present):
        limits = seen.value.limits.to_json() if seen.value.limits is not None else ""
        return f"{seen.value.current} {seen.value.state} {seen.value.intent} {limits}"
    return _other(seen)


def _environments(seen: Observation[Mapping[str, StoredEnvironment]]) -> str:
    return " ".join(sorted(seen.value)) if isinstance(seen, Present) else _other(seen)


def _image(seen: Observation[str]) -> str:
    return seen.value if isinstance(seen, Present) else _other(seen)


def _model(seen: Observation[ModelSeen]) -> str:
    if not isinstance(seen, Present):
        return _other(seen)
    if isinstance(seen.value, StoredModel):
        return f"stored intact={seen.value.intact}"
    if isinstance(seen.value, ArchivedModel):
        return "archived"
    return "quarantined" if seen.value.quarantined else "partial"


def _other(seen: Absent | Unknown) -> str:
    return "absent" if isinstance(seen, Absent) else "unknown"
