"""Has a keeper hold a container's GPUs from before its start until after its end, whatever becomes of the agent."""

from __future__ import annotations

import os
import sys
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Final

from runtime.backends import gpu_keeper
from runtime.backends.native_processes import launch
from schemas.errors import StartFailed

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

KEEPER_SECONDS: Final = 30.0
"""From launching a keeper to its report: 50 ms on a quiet machine."""


@contextmanager
def kept(container: str, locks: Sequence[int]) -> Iterator[None]:
    """Let a keeper have the locks for as long as a container runs that is started within.

    Args:
        container: its id.
        locks: descriptors that hold the locks.

    Raises:
        StartFailed: no keeper could be started.
    """
    heard, told = os.pipe()
    try:
        try:
            answer = launch(
                lambda status: (sys.executable, "-I", "-S", gpu_keeper.__file__, container, str(heard), str(status)),
                env={},
                log=Path(os.devnull),
                seconds=KEEPER_SECONDS,
                keep=(heard, *locks),
            )
        except OSError as error:
            raise StartFailed(f"nobody could be started to keep its GPUs: {error}") from error
        finally:
            os.close(heard)
        if answer != "ok":
            raise StartFailed("whoever should keep its GPUs ended at once")
        try:
            yield
        except StartFailed:
            _say(told)  # refused: nothing comes any more
            raise
        # What else is raised leaves open whether it starts: the keeper waits for it as for that of a dead agent.
        _say(told)
    finally:
        os.close(told)


def _say(told: int) -> None:
    try:
        os.write(told, b".")
    except BrokenPipeError as error:
        raise StartFailed("whoever should keep its GPUs has ended") from error
