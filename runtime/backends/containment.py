"""Whether this agent is itself a container of the engine that it commands, and what that keeps it from.

An agent in a container names folders to an engine that sees the host's, mounts where only it may see them, and reads
process ids of a pid namespace of its own. The engine's own word about the agent's container tells all three; an agent
that is no container of this engine (a host, or a machine in a container with the engine beside the agent) has none.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Any, Final, Protocol, runtime_checkable

from schemas.errors import BackendUnavailable

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

MOUNTS: Final = Path("/proc/self/mountinfo")
_READ_LIMIT: Final = 2**20
_OWN_FILES: Final = re.compile(r"containers/([0-9a-f]{64})/(?:userdata/)?(?:hostname|hosts|resolv\.conf)$")
"""Where Docker and Podman keep the three files that they mount into every container, below their own folders."""
_ROOT: Final = 3
"""Field of proc_pid_mountinfo(5): what of its file system is mounted."""

HOST_PIDS: Final = "run the agent's container with --pid host"
SAME_PATH: Final = "map the state directory under its own path: --mount type=bind,source=DIR,target=DIR"


@dataclass(frozen=True, slots=True)
class Bind:
    """A folder of the host in the agent's container."""

    source: PurePath
    target: PurePath
    shared: bool
    """Whether what the agent mounts below it appears on the host."""


@dataclass(frozen=True, slots=True)
class Containment:
    """The agent's container, as its engine describes it."""

    host_pids: bool
    """Whether the agent reads the host's process ids."""
    binds: tuple[Bind, ...]

    def trouble(self, folder: Path | None) -> tuple[str, str] | None:
        """What makes it impossible to run engines from here, and how to mend it; None if nothing does.

        Args:
            folder: what engines are given parts of, in the node's state directory; None where nothing was named.
        """
        if not self.host_pids:
            return (
                "the agent's container has process ids of its own: who listens on a socket cannot be told",
                HOST_PIDS,
            )
        if folder is None:
            return None
        bind = self._around(folder)
        if bind is None:
            return f"{folder} is inside of the agent's container only: its engine cannot mount it", SAME_PATH
        outside = bind.source / folder.relative_to(bind.target)
        if outside != folder:
            return f"{folder} in the agent's container is {outside} to its engine", SAME_PATH
        return None

    def shares(self, folder: Path) -> bool:
        """Whether the engine sees what is mounted below a folder."""
        bind = self._around(folder)
        return bind is not None and bind.shared

    def _around(self, folder: Path) -> Bind | None:
        around = [bind for bind in self.binds if folder.is_relative_to(bind.target)]
        return max(around, key=lambda bind: len(bind.target.parts), default=None)


@runtime_checkable
class Contained(Protocol):
    """An engine that may be the agent's own."""

    def containment(self) -> Containment | None:
        """The agent's own container.

        Raises:
            BackendUnavailable: the engine does not answer.
        """
        ...


def blindness(engines: Iterable[object]) -> str:
    """Why an agent cannot tell who listens on a socket, with the remedy; empty where it can, or nobody knows.

    Args:
        engines: the node's container engines; what is none is passed over.
    """
    for engine in engines:
        if not isinstance(engine, Contained):
            continue
        try:
            around = engine.containment()
        except BackendUnavailable:
            continue
        if around is not None and (trouble := around.trouble(None)) is not None:
            return "; ".join(trouble)
    return ""


def own_container(mountinfo: str) -> str:
    """The id of the container that a process with these mounts lives in, empty for none that Docker or Podman made."""
    for line in mountinfo.splitlines():
        fields = line.split()
        found = _OWN_FILES.search(fields[_ROOT]) if len(fields) > _ROOT else None
        if found:
            return found[1]
    return ""


def read_own_container() -> str:
    """The id of the container that this process lives in, empty for none."""
    try:
        with MOUNTS.open("rb") as file:
            return own_container(file.read(_READ_LIMIT).decode(errors="replace"))
    except OSError:
        return ""


def containment(detail: Mapping[str, Any]) -> Containment:
    """What an engine says of the agent's container (`GET /containers/ID/json`)."""
    binds = tuple(
        Bind(
            PurePath(str(item.get("Source", ""))),
            PurePath(str(item.get("Destination", ""))),
            item.get("Propagation") in ("shared", "rshared"),
        )
        for item in detail.get("Mounts") or ()
        if item.get("Type") == "bind"
    )
    return Containment(str((detail.get("HostConfig") or {}).get("PidMode", "")) == "host", binds)
