"""What a container engine's answers mean: which containers are this node's, and how they are. Pure; knows no SDK."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final

from schemas.observation import Instance

if TYPE_CHECKING:
    from runtime.interfaces import InstanceSpec
    from schemas.observation import Health, InstanceStatus
    from schemas.target import BackendName

LABEL: Final = "org.inference-reconciler."

KILLED: Final = 128 + 9
"""Exit code of what SIGKILL ended, which is also what the kernel sends for want of memory."""

PAUSED: Final = "it was paused by somebody else"

_STATUS: Final[dict[str, InstanceStatus]] = {
    "created": "created",
    "configured": "created",  # Podman's word for it
    "initialized": "created",
    "running": "running",
    "restarting": "running",
    "paused": "running",
    "stopping": "running",
    "removing": "exited",
    "exited": "exited",
    "stopped": "exited",
    "dead": "exited",
}


class Marks:
    """Of one node, on the containers of one engine: a name and labels together, because an image can bring labels."""

    def __init__(self, backend: BackendName, *, network: str, node_id: str) -> None:
        """Remember whose.

        Args:
            backend: the engine.
            network: the network of the node.
            node_id: the node. Containers of other nodes on the same engine are none of its own.
        """
        self._backend: BackendName = backend
        self._marks = _of_node(network, node_id)

    def bear(self, name: str, labels: dict[str, str]) -> bool:
        """Whether a container of this name and these labels is this node's, as far as marks can say."""
        # An image can bring labels, and a person can choose a name: only both together are a mark.
        return labels.get(f"{LABEL}name") == name.lstrip("/") and self._marks.items() <= labels.items()

    def labels(self, spec: InstanceSpec) -> dict[str, str]:
        """The labels of a container that is to be made."""
        return {
            **self._marks,
            f"{LABEL}name": spec.name,
            f"{LABEL}intent": spec.intent,
            f"{LABEL}spec": spec.target.spec_digest,
            f"{LABEL}model": spec.target.model,
            f"{LABEL}log-folder": str(spec.log_folder),
            f"{LABEL}socket-folder": str(spec.socket_folder),
            f"{LABEL}log-limit": str(spec.log_limit),
            **({f"{LABEL}gpus": ",".join(spec.gpus)} if spec.gpus else {}),
        }

    def name(self, item: dict[str, Any]) -> str | None:
        """The name under which a listed container is this node's; None if it is not."""
        names = [name.lstrip("/") for name in item.get("Names") or ()]
        return next((name for name in names if self.bear(name, item.get("Labels") or {})), None)

    def listed(self, name: str, item: dict[str, Any]) -> Instance | None:
        """What a list says of a container with these marks; None where only an inspection can say, because it ended."""
        labels = item.get("Labels") or {}
        now = _STATUS.get(str(item.get("State")).lower(), "exited")
        if now == "exited":
            return None
        paused = str(item.get("State")).lower() == "paused"
        return Instance(
            name=name,
            intent=labels.get(f"{LABEL}intent", ""),
            backend=self._backend,
            spec_digest=labels.get(f"{LABEL}spec", ""),
            status=now,
            # We never pause: whoever did took the runtime from its clients, although it runs.
            health="unhealthy" if paused else _health(str(item.get("Status", ""))),
            detail=PAUSED if paused else "",
            started_at=_created(item.get("Created")),
            gpus=gpus(labels),
        )

    def instance(self, detail: dict[str, Any]) -> Instance:
        """What an inspection says of a container with these marks."""
        labels, state = detail["Config"].get("Labels") or {}, detail["State"]
        now = status(detail)
        code = state.get("ExitCode") if now == "exited" else None
        notes = ["out of memory"] if state.get("OOMKilled") else []
        if code is not None:
            notes.append(f"signal {code - 128}" if code > 128 else f"exit code {code}")  # noqa: PLR2004 - by convention
        if code == KILLED and self._backend == "podman" and not state.get("OOMKilled"):
            # Its monitor (conmon 2.1) writes down where nobody looks that the memory's limit was the reason.
            notes.append("perhaps out of memory")
        paused = str(state.get("Status")).lower() == "paused"
        if paused:
            notes.append(PAUSED)
        if state.get("Error"):
            notes.append(str(state["Error"])[:200])
        health = (state.get("Health") or state.get("Healthcheck") or {}).get("Status") or ""
        return Instance(
            name=detail["Name"].lstrip("/"),
            intent=labels.get(f"{LABEL}intent", ""),
            backend=self._backend,
            spec_digest=labels.get(f"{LABEL}spec", ""),
            status=now,
            health="unhealthy" if paused else _health(f"({health})"),
            exit_code=code,
            detail=", ".join(notes),
            started_at=_time(state.get("StartedAt")),
            gpus=gpus(labels),
        )


def status(detail: dict[str, Any]) -> InstanceStatus:
    """How a container is, by an inspection."""
    return _STATUS.get(str(detail["State"].get("Status")).lower(), "exited")


def gpus(labels: dict[str, str]) -> tuple[str, ...]:
    """UUIDs of the GPUs that a container was given, by its labels."""
    return tuple(uuid for uuid in labels.get(f"{LABEL}gpus", "").split(",") if uuid)


def label_filters(network: str, node_id: str) -> list[str]:
    """What a list or an event stream is asked for, so that nobody else's containers are told of."""
    return [f"{label}={value}" for label, value in sorted(_of_node(network, node_id).items())]


def _of_node(network: str, node_id: str) -> dict[str, str]:
    return {f"{LABEL}network": network, f"{LABEL}node": node_id}


def _health(text: str) -> Health:
    if "(healthy)" in text:
        return "healthy"
    return "unhealthy" if "(unhealthy)" in text else "unknown"


def _created(value: Any) -> datetime | None:
    if isinstance(value, int | float) and value > 0:
        return datetime.fromtimestamp(value, UTC)
    return _time(value)


def _time(value: Any) -> datetime | None:
    """RFC 3339 as engines write it, with up to nine digits of a second; the zero time means never."""
    if not isinstance(value, str) or value.startswith("0001-"):
        return None
    head, _, rest = value.partition(".")
    zone = rest.lstrip("0123456789") if rest else ""
    try:
        return datetime.fromisoformat(head + (zone or "Z" if rest else "")).astimezone(UTC)
    except ValueError:
        return None
