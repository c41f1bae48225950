"""What somebody else has changed of a native instance since it was started: its limits, and its program's arguments."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from runtime.backends.native_group import Group
from schemas.observation import Difference

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

PAGE: Final = 4096
"""Bytes to which the kernel rounds a limit of memory down."""
READ_LIMIT: Final = 2**17
"""Bytes of a command line: what execve(2) takes as one argument."""


def differences(spec: Mapping[str, Any], engine: int) -> tuple[Difference, ...]:
    """Field by field, what is no longer as the instance was started; sorted.

    Args:
        spec: the instance's own record of how it is started.
        engine: process id of its engine.
    """
    found = [*_limits(spec), *_arguments(spec["argv"], engine)]
    return tuple(sorted(found, key=lambda one: one.field))


def mend(spec: Mapping[str, Any]) -> tuple[str, ...]:
    """Set the limits again; the controllers that refuse."""
    group = Group(spec["group"])
    refused = group.make(memory=spec["memory"], pids=spec["pids"], cpus=spec["cpus"])
    return tuple(name for name in refused if name not in spec["refused"])


def _limits(spec: Mapping[str, Any]) -> list[Difference]:
    if not spec.get("group"):
        return []
    limits = Group(spec["group"]).limits(
        memory=spec["memory"], pids=spec["pids"], cpus=spec["cpus"], without=spec["refused"]
    )
    names = {"cpu": "cpus"}
    return [
        Difference(names.get(controller, controller), made, now, mendable=True)
        for controller, (made, now) in limits.items()
        if _rounded(made) != _rounded(now)
    ]


def _arguments(argv: Sequence[str], engine: int) -> list[Difference]:
    try:
        with Path(f"/proc/{engine}/cmdline").open("rb") as file:
            words = file.read(READ_LIMIT).decode(errors="surrogateescape").split("\0")[:-1]
    except OSError:
        return []
    # A program may give itself a title, which begins otherwise; it may not give itself other arguments.
    if not words or words[0] != argv[0] or words == list(argv):
        return []
    return [Difference("arguments", " ".join(argv)[:500], " ".join(words)[:500])]


def _rounded(limit: str) -> str:
    return str(int(limit) // PAGE * PAGE) if limit.isdigit() and int(limit) >= PAGE else limit
