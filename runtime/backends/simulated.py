"""A backend in memory, for faults and speed. It passes the same contract suite as the real ones.

Its state is a value of its own (`SimulatedEngineRoom`) that outlives any backend object, as containers outlive agents.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from runtime.interfaces import EngineView
from schemas.errors import BackendUnavailable, GpuInUse, ImageUnavailable, StartFailed
from schemas.observation import Absent, Instance, Present

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from runtime.interfaces import InstanceSpec, Progress
    from schemas.observation import Difference, Observation
    from schemas.ports import Clock, Stop
    from schemas.runtimes import Mode, Unenforced
    from schemas.target import BackendName


@dataclass(slots=True)
class SimulatedGpus:
    """The GPUs of a machine: whoever runs on one has its lock, and loses it by its end, as with the real ones."""

    rooms: list[SimulatedEngineRoom] = field(default_factory=list)
    """Every room of the machine."""

    def holder(self, uuid: str, network: str, node_id: str) -> str:
        """Which other node has a GPU; empty for none."""
        for room in self.rooms:
            for item in room.running():
                spec = room.specs[item.name]
                if uuid in spec.gpus and (spec.network, spec.node_id) != (network, node_id):
                    return f"{spec.name} of node {spec.node_id} ({spec.network})"
        return ""


@dataclass(slots=True)
class SimulatedEngineRoom:
    """Everything that a container engine or a process table would hold, and the faults to come."""

    specs: dict[str, InstanceSpec] = field(default_factory=dict)
    instances: dict[str, Instance] = field(default_factory=dict)
    outputs: dict[str, str] = field(default_factory=dict)
    images: set[str] = field(default_factory=set)
    pullable: set[str] = field(default_factory=set)
    unavailable: str = ""
    """While set, nothing answers."""
    not_enforced: tuple[Unenforced, ...] = ()
    """Restrictions that this room is said not to enforce."""
    bad_starts: set[str] = field(default_factory=set)
    """Models (`name:version`) whose engine ends while starting."""
    activities: dict[str, tuple[int, int, int]] = field(default_factory=dict)
    """By instance: requests running and waiting, tokens so far. Nothing is being done where nothing is said."""
    most_running: int = 0
    """Most instances that ever ran at the same time: what I3 is about."""

    gpus: SimulatedGpus = field(default_factory=SimulatedGpus)
    """Those of the machine."""

    def __post_init__(self) -> None:
        self.gpus.rooms.append(self)

    def kill(self, name: str, *, exit_code: int = 137, detail: str = "signal 9") -> None:
        """End an instance from outside, as the kernel or a person would."""
        self.instances[name] = replace(
            self.instances[name], status="exited", exit_code=exit_code, detail=detail, health="unknown"
        )

    def change(self, name: str, change: Difference) -> None:
        """Change a field of an instance, as somebody else would."""
        kept = [one for one in self.instances[name].changed if one.field != change.field]
        self.instances[name] = replace(self.instances[name], changed=(*kept, change))

    def running(self) -> list[Instance]:
        """What runs now."""
        return [item for item in self.instances.values() if item.status == "running"]


class SimulatedBackend:
    """A backend over an engine room."""

    def __init__(
        self,
        room: SimulatedEngineRoom,
        *,
        network: str,
        node_id: str,
        clock: Clock,
        name: BackendName = "simulated",
        mode: Mode = "native",
    ) -> None:
        """Attach to a room.

        Args:
            room: what survives this object.
            network: the network of this node.
            node_id: this node.
            clock: when things start.
            name: which backend it stands for.
            mode: which mode it stands for.
        """
        self.name: BackendName = name
        self.mode: Mode = mode
        self._room = room
        self._marks = (network, node_id)
        self._clock = clock

    def list(self) -> tuple[Instance, ...]:
        """Every instance with this node's marks."""
        self._answer()
        found = [item for name, item in self._room.instances.items() if self._is_ours(name)]
        return tuple(sorted(found, key=lambda item: item.name))

    def view(self, *, model_folder: Path, socket_folder: Path) -> EngineView:
        """Host paths."""
        return EngineView(str(model_folder), str(socket_folder / "engine.sock"))

    def not_enforced(self) -> tuple[Unenforced, ...]:
        """Nothing runs, so nothing escapes, unless the room says so."""
        return self._room.not_enforced

    def create(self, spec: InstanceSpec) -> None:
        """Remember an instance."""
        self._answer()
        if self.mode == "container" and spec.target.image not in self._room.images:
            raise ImageUnavailable(f"{spec.target.image} is not here")
        known = self._room.specs.get(spec.name)
        if known is not None:
            if (known.intent, known.target.spec_digest) != (spec.intent, spec.target.spec_digest):
                raise StartFailed(f"another instance is called {spec.name}")
            return
        self._room.specs[spec.name] = spec
        self._room.instances[spec.name] = Instance(
            spec.name, spec.intent, self.name, spec.target.spec_digest, "created", gpus=spec.gpus
        )

    def start(self, name: str) -> None:
        """Let it run, or end at once where the room says so."""
        self._answer()
        if name not in self._room.specs or not self._is_ours(name):
            raise StartFailed(f"there is no instance {name}")
        item = self._room.instances[name]
        if item.status == "running":
            return
        for uuid in self._room.specs[name].gpus:
            other = self._room.gpus.holder(uuid, *self._marks)
            if other:
                raise GpuInUse(f"{uuid} is in use by {other}")
        self._room.instances[name] = replace(item, status="running", started_at=self._clock.now())
        self._room.most_running = max(self._room.most_running, len(self._room.running()))
        if self._room.specs[name].target.model in self._room.bad_starts:
            self._room.outputs[name] = "cannot load model"
            self._room.kill(name, exit_code=1, detail="exit code 1")

    def mend(self, name: str) -> None:
        """Give it back what can be given back."""
        self._answer()
        item = self._room.instances.get(name)
        if item is not None and self._is_ours(name):
            self._room.instances[name] = replace(item, changed=tuple(one for one in item.changed if not one.mendable))

    def inspect(self, name: str) -> Instance | None:
        """One instance."""
        self._answer()
        return self._room.instances.get(name) if self._is_ours(name) else None

    def stop(self, name: str, *, grace: float) -> None:  # noqa: ARG002 - it always obeys
        """End it."""
        self._answer()
        item = self._room.instances.get(name)
        if item is not None and item.status == "running" and self._is_ours(name):
            self._room.kill(name, exit_code=0, detail="exit code 0")

    def remove(self, name: str) -> None:
        """Forget it."""
        self._answer()
        if self._is_ours(name):
            self._room.instances.pop(name, None)
            self._room.specs.pop(name, None)

    def output(self, name: str, *, limit: int) -> str:
        """What it printed."""
        return self._room.outputs.get(name, "")[-limit:]

    def printed(self, name: str, *, lines: int, follow: bool, stop: Stop) -> Iterator[bytes]:  # noqa: ARG002 - it ended
        """What it printed."""
        self._answer()
        text = self._room.outputs.get(name, "").encode()
        yield from text.splitlines(keepends=True)[-lines:] if lines else ()

    def is_peer(self, name: str, pid: int) -> bool:  # noqa: ARG002 - there are no processes
        """Whether it runs."""
        self._answer()
        item = self._room.instances.get(name)
        return item is not None and item.status == "running"

    def image(self, ref: str) -> Observation[str]:
        """Whether it is here."""
        self._answer()
        return Present(f"sha256:{ref[-64:]}") if ref in self._room.images else Absent()

    def pull(self, ref: str, *, progress: Progress, stop: Stop) -> None:  # noqa: ARG002 - nothing is long here
        """Bring it, if the room's registry has it."""
        self._answer()
        if ref not in self._room.pullable:
            raise ImageUnavailable(f"{ref} cannot be pulled: not found")
        self._room.images.add(ref)

    def _is_ours(self, name: str) -> bool:
        spec = self._room.specs.get(name)
        return spec is not None and (spec.network, spec.node_id) == self._marks

    def _answer(self) -> None:
        if self._room.unavailable:
            raise BackendUnavailable(self._room.unavailable)
