"""Backends: what runs instances, and what is told of their end."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from pathlib import Path

    from runtime.interfaces.telling import Progress
    from schemas.observation import Instance, Observation
    from schemas.ports import Stop
    from schemas.runtimes import Mode, Unenforced
    from schemas.target import BackendName, ServingTarget


SOCKET_NAME: Final = "engine.sock"
"""Name of the socket in an instance's folder."""


@dataclass(frozen=True, slots=True)
class EngineView:
    """Paths as the engine sees them: container paths in a container, host paths natively."""

    model: str
    """Folder with the model's files, read-only."""
    socket: str
    """Unix socket that the engine must listen on."""
    python: str = ""
    """Natively: interpreter of the locked environment that the engine is in; empty for the agent's own."""


@dataclass(frozen=True, slots=True)
class Launch:
    """How an engine is started: complete, nothing is inherited."""

    argv: tuple[str, ...]
    env: Mapping[str, str]
    program: bool = False
    """In a container: whether `argv` begins with the program. Otherwise the image's entry point is the program."""
    health: str = ""
    """Path that has to answer before the engine is asked whether it is ready; empty where the engine itself knows."""
    compiles: bool = False
    """In a container: whether the engine compiles code of its own while it runs, and loads it from /tmp, which is then
    a fourth of the memory limit and may be executed from. Natively /tmp is always so."""


@dataclass(frozen=True, slots=True)
class InstanceSpec:
    """Everything a backend needs to create one instance."""

    name: str
    """Deterministic: `reconcile-<network>-<intent>`, at most 63 characters."""
    intent: str
    """Id of the journalled intent."""
    network: str
    node_id: str
    target: ServingTarget
    launch: Launch
    model_folder: Path
    """Host folder with the verified model, mounted read-only."""
    socket_folder: Path
    """Host folder of the instance's own; holds `engine.sock` and nothing else."""
    log_folder: Path
    """Host folder of the instance's own for captured output."""
    log_limit: int
    """Bytes of output kept."""
    gpus: tuple[str, ...] = ()
    """UUIDs of the GPUs that the instance may see; none means none is visible."""


class Backend(Protocol):
    """Runs instances. Knows nothing of models, probes or plans. Safe to call from several threads."""

    name: BackendName
    mode: Mode

    def list(self) -> tuple[Instance, ...]:
        """Every instance with this node's marks (network and node id), whatever its status, sorted by name.

        Raises:
            BackendUnavailable: cannot be observed now; the caller must take everything for unknown.
        """
        ...

    def view(self, *, model_folder: Path, socket_folder: Path) -> EngineView:
        """Where an instance will find its model and its socket."""
        ...

    def not_enforced(self) -> tuple[Unenforced, ...]:
        """Restrictions of I10 that this backend cannot enforce on this machine, sorted; empty for full isolation."""
        ...

    def create(self, spec: InstanceSpec) -> None:
        """Prepare an instance without starting it. Fine if one with the same name and spec exists.

        Raises:
            BackendUnavailable: cannot be reached.
            StartFailed: refused by the backend.
            ImageUnavailable: the image is not here, or declares what I10 refuses.
        """
        ...

    def start(self, name: str) -> None:
        """Start a created instance; returns once it runs (not once it is ready). Fine if it already runs.

        Its GPUs are this node's from before its start until its last process has ended, whatever becomes of the agent:
        two nodes never start engines on one GPU (I3).

        Raises:
            BackendUnavailable, StartFailed.
            GpuInUse: another node of this machine has one of its GPUs.
            GpuNotLockable: a GPU's lock cannot be taken, and nobody has it.
        """
        ...

    def mend(self, name: str) -> None:
        """Give a running instance back the limits that it was created with. Fine if it has them, or is gone.

        Raises:
            BackendUnavailable: cannot be reached.
            StartFailed: refused by the backend.
        """
        ...

    def inspect(self, name: str) -> Instance | None:
        """One instance, None when there is none of that name with this node's marks.

        Raises:
            BackendUnavailable.
        """
        ...

    def stop(self, name: str, *, grace: float) -> None:
        """Ask to stop, and kill after `grace` seconds. Returns when no process of it is left. Fine if it is gone.

        Raises:
            BackendUnavailable.
        """
        ...

    def remove(self, name: str) -> None:
        """Remove a stopped or created instance; its logs stay in its log folder. Fine if it is gone.

        Raises:
            BackendUnavailable.
        """
        ...

    def output(self, name: str, *, limit: int) -> str:
        """The last `limit` bytes of what the instance printed, as far as known; for error messages."""
        ...

    def printed(self, name: str, *, lines: int, follow: bool, stop: Stop) -> Iterator[bytes]:
        """What the instance printed, over rotations of its log; nothing for an instance that is not there.

        Args:
            name: of the instance.
            lines: how many of the last lines to begin with.
            follow: go on as it is printed, until the instance ends.
            stop: ends the following.

        Raises:
            BackendUnavailable.
        """
        ...

    def is_peer(self, name: str, pid: int) -> bool:
        """Whether a process (as SO_PEERCRED of the instance's socket names it) belongs to the instance.

        Raises:
            BackendUnavailable.
        """
        ...

    def image(self, ref: str) -> Observation[str]:
        """The id of an image that is here. Backends without images answer `Absent`."""
        ...

    def pull(self, ref: str, *, progress: Progress, stop: Stop) -> None:
        """Bring an image by digest. Fine if it is here.

        Raises:
            BackendUnavailable, ImageUnavailable.
        """
        ...


class Follower(Protocol):
    """Notices at once that an instance ended or changed. What it is then, only a look at the backend says."""

    def follow(self, changed: Callable[[], None]) -> None:
        """Tell of changes until closed; runs in a thread of its own, and outlives whatever it listens to.

        Args:
            changed: told that it is worth a look; may be told too often, never too seldom while it could be known.
        """
        ...

    def renew(self) -> None:
        """A pass has ended: there may be instances that were not there before. Cheap."""
        ...

    def close(self) -> None:
        """End `follow`; called once, from another thread."""
        ...
