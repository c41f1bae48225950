"""Every system call of installing and publishing, refused or the last one: a sweep by `strace`, not a sample (I7)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import pytest

from tests.runtime.models.test_crash import check_converges, prepare
from tests.support.tracing import tracer

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.support.tracing import Tracer

# With the names that the same calls have on processors without the older ones.
TAKING: Final = frozenset(
    "mkdir mkdirat rename renameat renameat2 link linkat fsync fallocate write pwrite64 openat".split()  # noqa: SIM905
)
"""Calls for which a disk or a quota may be too full. `openat` counts where it may create something."""

CHANGING: Final = TAKING | {"unlink", "unlinkat", "rmdir", "chmod", "fchmod", "fchmodat", "flock", "ftruncate"}
"""Calls after which the disk is another, or was waited for."""

LOOKING: Final = frozenset({"getdents64", "pread64", "preadv", "preadv2", "read", "statfs"})
"""Calls that a broken disk may refuse beside those."""


@pytest.fixture(scope="module")
def traced() -> Iterator[Tracer]:
    """One process that forks all victims."""
    with tracer() as running:
        yield running


@pytest.mark.parametrize(
    ("what", "calls", "outcome"),
    [
        ("signal=KILL", CHANGING, "killed"),
        ("error=EIO", CHANGING | LOOKING, "DownloadFailed"),
        ("error=ENOSPC", TAKING, "NoSpace"),
        ("error=EDQUOT", TAKING, "NoSpace"),
    ],
    ids=["killed", "broken", "full", "quota"],
)
@pytest.mark.parametrize("operation", ["acquire", "repair"])
def test_every_system_call_of_publishing(
    memory: Path, traced: Tracer, operation: str, what: str, calls: frozenset[str], outcome: str
) -> None:
    """Killed at, or refused, each single call: a typed error, nothing wrong published, the next run converges (I7)."""
    source = prepare(memory / "count", operation)
    made = traced.calls(
        memory / "count" / "models", "acquire", source, of=",".join(f"?{call}" for call in sorted(calls))
    )
    assert {"openat", "fsync", "fallocate", "write", "pwrite64"} <= made.keys()
    for call, lines in sorted(made.items()):
        for at, line in enumerate(lines, start=1):
            creates = call != "openat" or "O_CREAT" in line
            if not creates and what != "error=EIO":
                continue
            root = memory / f"{call}-{at}"
            source = prepare(root, operation)
            ended = traced.disturb(root / "models", "acquire", source, call=call, what=what, at=at)
            # What was only looked at may be had in another way: from the source again, or not needed after all.
            looked = call in LOOKING or not creates
            assert ended == outcome or (looked and ended == "ended"), f"{ended} after {what} at call {at}: {line}"
            check_converges(root, operation, source)
