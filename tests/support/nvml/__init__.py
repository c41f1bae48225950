"""NVML without a GPU: a library that stands in for the driver's, which the real bindings load and call.

What it answers is in a file, so that a test can change it under a running agent. What it cannot show is how a real
driver behaves beyond NVML's documentation: see docs/how-to/gpu-host.md.
"""

from __future__ import annotations

import ctypes
import subprocess
import sys
import tempfile
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from runtime import nvml

if TYPE_CHECKING:
    import pytest

SOURCE = Path(__file__).with_name("standin.c")
GIB = 2**30
SIGN = nvml.SIGNS[0]
"""A device that is there where a driver is."""


@dataclass(frozen=True, slots=True)
class Fake:
    """A GPU that the stand-in tells of."""

    uuid: str = "GPU-1"
    name: str = "NVIDIA H100 80GB HBM3"
    code: int = 0
    """What NVML returns for it; 15 is lost."""
    total: int = 80 * GIB
    free: int = 79 * GIB
    celsius: int = 40
    corrected: int = 0
    uncorrected: int = 0
    capability: tuple[int, int] = (9, 0)

    def line(self) -> str:
        """As the stand-in reads it."""
        numbers = (self.code, self.total, self.free, self.celsius, self.corrected, self.uncorrected, *self.capability)
        return f"gpu {self.uuid} {' '.join(map(str, numbers))} {self.name}"


@dataclass(slots=True)
class StandIn:
    """The driver of a machine, as its file says; `write` puts a change into force at once."""

    path: Path
    gpus: list[Fake] = field(default_factory=lambda: [Fake()])
    processes: list[tuple[str, int, int]] = field(default_factory=list)
    """UUID, process id, bytes."""
    reports: list[tuple[str, int]] = field(default_factory=list)
    """UUID and Xid; 0 is a double-bit error that came as such."""
    driver: str = "580.10"
    cuda: int = 12080
    init: int = 0
    fails: int = 0
    events: int = 0
    hangs: bool = False

    def write(self) -> None:
        """Let it be so."""
        lines = [f"init {self.init}", f"fails {self.fails}", f"driver {self.driver}", f"cuda {self.cuda}"]
        lines += [f"events {self.events}", *(["hangs"] if self.hangs else []), *(gpu.line() for gpu in self.gpus)]
        lines += [f"process {uuid} {pid} {size}" for uuid, pid, size in self.processes]
        lines += [f"xid {number} {uuid} {xid}" for number, (uuid, xid) in enumerate(self.reports, start=1)]
        new = self.path.with_suffix(".new")
        new.write_text("\n".join(lines) + "\n")
        new.replace(self.path)

    def change(self, uuid: str, **fields: object) -> None:
        """Another reading of a GPU."""
        self.gpus = [replace(gpu, **fields) if gpu.uuid == uuid else gpu for gpu in self.gpus]  # type: ignore[arg-type]
        self.write()


@cache
def library() -> Path:
    """The stand-in, compiled once per process; it has the name by which the bindings ask for the driver's."""
    folder = Path(tempfile.mkdtemp(prefix="nvml-"))
    built = folder / "libnvidia-ml.so.1"
    command = ["gcc", "-O1", "-Wall", "-Werror", "-shared", "-fPIC", "-Wl,-soname,libnvidia-ml.so.1"]
    subprocess.run([*command, "-o", str(built), str(SOURCE)], check=True)
    return built


@cache
def loaded() -> ctypes.CDLL:
    """The stand-in in this process: what is loaded under a name is what dlopen(3) finds under it from then on."""
    return ctypes.CDLL(str(library()))


def install(monkeypatch: pytest.MonkeyPatch, path: Path) -> StandIn:
    """Give this process a machine with one GPU; the file `path` says what it is like."""
    there = StandIn(path)
    there.write()
    loaded().standin_reads(str(path).encode())
    sys.modules.pop("pynvml", None)  # no test has what another one has opened
    monkeypatch.setattr(nvml, "SIGNS", (str(path),))
    return there
