"""What is kept from an engine, and by what: the table of docs/isolation.md, to which the conformance test holds it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from schemas.runtimes import Unenforced

PAGE: Final = Path(__file__).parents[2] / "docs" / "isolation.md"


@dataclass(frozen=True, slots=True)
class Restriction:
    """One row."""

    title: str
    excuse: Unenforced
    """What `not_enforced()` says of a backend where this does not hold."""
    tried: str
    """What the conformance test tries, for people."""
    container: str
    """By what Docker and Podman enforce it."""
    native: str
    """By what it is enforced for a process."""
    otherwise: str
    """Where a process is not kept from it; empty where it always is."""
    container_otherwise: str = ""
    """Where a container is not kept from it."""


RESTRICTIONS: Final[dict[str, Restriction]] = {
    "network": Restriction(
        "No network",
        "network",
        "reach any address, the host's loopback and its abstract sockets; open a raw socket; resolve a name",
        "a network namespace with nothing but a loopback",
        "a network namespace with nothing but a loopback",
        "without root on a machine that gives users no namespaces",
    ),
    "filesystem": Restriction(
        "Nothing of the host is written",
        "filesystem",
        "write to the root, system folders, /dev, control groups, a folder of the host, the model",
        "a read-only root; bounded tmpfs on /tmp and over every VOLUME",
        "a root of its own: system folders, interpreter and model read-only, a bounded tmpfs on /tmp, nothing else",
        "without root on a machine that gives users no namespaces, and before Linux 5.12",
    ),
    "engine-socket": Restriction(
        "No socket of a container engine",
        "filesystem",
        "connect to Docker's and Podman's sockets, where they usually lie and where they lie here",
        "only its own mounts are there",
        "only the paths above are there",
        "as above",
    ),
    "user": Restriction(
        "Not the agent's user",
        "user",
        "read a file that only the agent may; signal the agent",
        "user 65534",
        "a user and group id that nobody else has",
        "without root; without the capabilities to see and signal such a process",
    ),
    "capabilities": Restriction(
        "No privilege, and no way to one",
        "capabilities",
        "hold a capability; mount; chroot; change the user; set the clock",
        "no capability, no_new_privs, the engine's own seccomp profile",
        "no capability in any set, no_new_privs",
        "",
    ),
    "pids": Restriction(
        "Processes and threads",
        "pids",
        "fork past the limit",
        "a control group",
        "a control group; without one, RLIMIT_NPROC of a user or a user namespace of its own",
        "where neither can be had",
    ),
    "shm": Restriction(
        "Shared memory",
        "shm",
        "fill /dev/shm past the limit",
        "a bounded tmpfs, System V memory of its own",
        "a bounded tmpfs, System V memory of its own",
        "as for files",
    ),
    "socket-size": Restriction(
        "The shared folder",
        "socket-size",
        "fill the socket's folder past its size, and past its inodes",
        "a tmpfs of 64 KiB and 16 inodes",
        "a tmpfs of 64 KiB and 16 inodes",
        "without root",
        "under an agent without root",
    ),
    "cpu": Restriction(
        "Processors",
        "cpu",
        "compute on more processors than the limit",
        "a control group",
        "a control group (and an affinity, which alone an engine could change)",
        "where control groups cannot be written",
    ),
    "memory": Restriction(
        "Memory",
        "memory",
        "allocate past the limit",
        "a control group, swap included",
        "a control group, swap included where the kernel counts it; RLIMIT_AS is no substitute: CUDA and mapped models "
        "need more addresses than memory",
        "where control groups cannot be written",
    ),
}

HEAD: Final = """\
# What a runtime is kept from

Written by `make docs` from `tests/isolation/`; do not edit.

A program that takes the engine's place (`tests/isolation/prisoner.py`) is started through each backend as an engine is,
tries what this table says, and reports. `tests/isolation/test_conformance.py` fails where something succeeds that the
backend did not announce as not enforced, and runs the same program natively with every restriction taken away, where
each of them (processors aside, which a busy machine hides) must be seen to give way.

*Enforced* is what the tests find where they run as root on a machine with both engines and writable control groups.
Where a backend does not enforce something, `reconcile status` lists it by the name in the last column, and a runtime
is started only if the snapshot (`isolation.allowUnenforced`) and the node (`allowUnenforced`) both allow it. What a
machine permits is found out by trying it there, not by looking at versions.
"""

TAIL: Final = """
From outside, an engine can plant a link or another's socket where its own should be. Neither leads the agent or the
front anywhere: they open the socket without following links, and ask the kernel who listens before they send a byte
(`tests/runtime/test_connection.py`, `tests/runtime/front/test_relay.py`, `test_the_peer_is_known` for each backend).

Not enforced by any backend: what the kernel, the container engine and the GPU's driver themselves let through. Native
engines see the host's process table (`/proc`; a user of their own keeps them from signalling what is in it), and are
under no seccomp filter of ours.
"""


def page() -> str:
    """The page."""
    lines = [HEAD, "| Restriction | What is tried | Docker | Podman | Native | Name |\n", "|---|---|---|---|---|---|\n"]
    for row in RESTRICTIONS.values():
        container = _cell(row.container, row.container_otherwise)
        cells = (row.title, row.tried, container, container, _cell(row.native, row.otherwise), f"`{row.excuse}`")
        lines.append(f"| {' | '.join(cells)} |\n")
    return "".join([*lines, TAIL])


def _cell(means: str, otherwise: str) -> str:
    return f"enforced: {means}" + (f". Not enforced {otherwise}" if otherwise else "")


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
