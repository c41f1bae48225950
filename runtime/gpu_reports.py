"""What GPUs report by themselves: Xid errors, and memory errors that could not be corrected.

A thread waits for them in NVML and wakes the daemon; every look has what came so far. NVML tells nobody of what
happened before it was asked: between two agents' lives a report is only in the kernel's log.
"""

from __future__ import annotations

import threading
from collections import deque
from typing import TYPE_CHECKING, Final
from uuid import uuid4

from runtime.nvml import NvmlHangsError
from schemas.observation import GpuReport

if TYPE_CHECKING:
    from collections.abc import Callable

    from runtime.nvml import Nvml, Occurrence

KEPT: Final = 64
"""Reports that are kept: a GPU that fails can say so thousands of times."""

WAIT_SECONDS: Final = 2.0
"""For one report; so soon is noticed that nobody wants to hear any more."""

AGAIN_SECONDS: Final = 60.0
"""Until a driver that does not let itself be waited for is asked again."""

XIDS: Final = {
    13: "a program's graphics engine exception",
    31: "a program's memory page fault",
    43: "a program's channel was reset",
    45: "a program's channel was taken down",
    48: "an uncorrectable memory error",
    63: "a memory row or page was retired",
    64: "a memory row or page could not be retired",
    74: "an NVLink error",
    79: "the GPU has fallen off the bus",
    92: "many memory errors were corrected",
    94: "a contained memory error",
    95: "an uncontained memory error",
    109: "a context switch took too long",
    119: "the GPU's system processor did not answer",
    120: "the GPU's system processor failed",
    140: "an unrecovered memory error",
}
"""The ones of inference machines, in words, after NVIDIA's Xid catalog (docs.nvidia.com/deploy/xid-errors)."""


class GpuReports:
    """What came so far, in this agent's life. Filled by one thread, read by others."""

    def __init__(self) -> None:
        """Nothing came yet."""
        self._kept: deque[GpuReport] = deque(maxlen=KEPT)
        self._number = 0
        self._life = uuid4().hex
        self.trouble = ""
        """Why reports cannot be read; empty where they can, or where nobody listens."""

    def so_far(self) -> tuple[GpuReport, ...]:
        """What was reported, the newest last."""
        return tuple(self._kept)

    def add(self, seen: Occurrence) -> None:
        """Remember one more."""
        self._number += 1
        self._kept.append(GpuReport(f"{self._life}/{self._number}", seen.uuid, words(seen)))


class GpuListener:
    """A `runtime.interfaces.Follower` over the GPUs of this machine. On one without a driver it does nothing at all."""

    def __init__(self, nvml: Nvml, reports: GpuReports) -> None:
        """Nobody listens yet.

        Args:
            nvml: the driver's library.
            reports: takes what comes.
        """
        self._nvml = nvml
        self._reports = reports
        self._closed = threading.Event()

    def follow(self, changed: Callable[[], None]) -> None:
        """Listen until closed."""
        while not self._closed.is_set():
            try:
                self._listen(changed)
            except (NvmlHangsError, OSError) as error:
                before, self._reports.trouble = self._reports.trouble, f"reports of GPUs cannot be read: {error}"
                if self._reports.trouble != before:
                    # Perhaps because one of them was lost: that is worth a look.
                    changed()
            self._closed.wait(AGAIN_SECONDS)

    def _listen(self, changed: Callable[[], None]) -> None:
        events = self._nvml.watch()
        if events is None:
            return
        try:
            self._reports.trouble = events.trouble
            while events.hears and not self._closed.is_set():
                seen = events.wait(WAIT_SECONDS)
                if seen is not None:
                    self._reports.add(seen)
                    changed()
        finally:
            events.close()

    def renew(self) -> None:
        """GPUs do not come and go with instances."""

    def close(self) -> None:
        """End `follow`."""
        self._closed.set()


def words(seen: Occurrence) -> str:
    """What a report says, for people."""
    if not seen.xid:
        return "an uncorrectable memory error"
    return f"Xid {seen.xid}" + (f": {XIDS[seen.xid]}" if seen.xid in XIDS else "")
