"""What every benchmark shares: a fixture that records a figure beside its goal and its peer.

Figures go to `results.json` as `{name: {value, unit, goal, peer, peer_value, machine, when}}`; `report.py` makes
`RESULTS.md` and the plots from it. A benchmark checks its result before it records anything.
"""

from __future__ import annotations

import json
import os
import platform
import statistics
import subprocess
import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import pytest

if TYPE_CHECKING:
    from collections.abc import Sequence

ROOT = Path(__file__).parents[1]
RESULTS = Path(__file__).with_name("results.json")


class Figure(Protocol):
    """Records one figure."""

    def __call__(
        self, name: str, value: float, unit: str, *, goal: str, peer: str = "", peer_value: float | None = None
    ) -> None:
        """Record `value` of `name`.

        Args:
            name: the figure's name, as issues and documents call it.
            value: the median.
            unit: its unit.
            goal: what it must reach, for people: `< 0.15`.
            peer: what was measured beside it in the same run.
            peer_value: the peer's median, same unit.
        """
        ...


def machine() -> str:
    """The machine, in words."""
    model = platform.processor() or platform.machine()
    for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
        if line.startswith("model name"):
            model = line.partition(":")[2].strip()
            break
    return f"{model}, {len(os.sched_getaffinity(0))} CPUs, Python {platform.python_version()}"


@pytest.fixture(scope="session")
def figure() -> Figure:
    """Merges a figure into `results.json`."""

    def record(
        name: str, value: float, unit: str, *, goal: str, peer: str = "", peer_value: float | None = None
    ) -> None:
        results = json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.exists() else {}
        results[name] = {
            "value": round(value, 4),
            "unit": unit,
            "goal": goal,
            "peer": peer,
            "peer_value": round(peer_value, 4) if peer_value is not None else None,
            "machine": machine(),
            "when": datetime.now(UTC).strftime("%Y-%m-%d"),
        }
        RESULTS.write_text(json.dumps(dict(sorted(results.items())), indent=2) + "\n", encoding="utf-8")

    return record


def environment() -> dict[str, str]:
    """The environment of a measured process: as a user's, with compiled modules kept."""
    return {key: value for key, value in os.environ.items() if key != "PYTHONDONTWRITEBYTECODE"}


def run_once(command: Sequence[str], *, codes: tuple[int, ...] = (0,)) -> float:
    """Wall-clock seconds of one whole process, which must exit with one of `codes`."""
    begun = time.perf_counter()
    done = subprocess.run(command, capture_output=True, check=False, env=environment())
    seconds = time.perf_counter() - begun
    assert done.returncode in codes, (command, done.returncode, done.stderr[-2000:])
    return seconds


def paired(
    ours: Sequence[str], peer: Sequence[str], *, rounds: int = 11, codes: tuple[int, ...] = (0,)
) -> tuple[float, float]:
    """Median seconds of two commands, run in turn so that both meet the same noise; one warm-up each."""
    run_once(ours, codes=codes)
    run_once(peer)
    pairs = [(run_once(ours, codes=codes), run_once(peer)) for _ in range(rounds)]
    return statistics.median(first for first, _ in pairs), statistics.median(second for _, second in pairs)


def reconcile() -> str:
    """The installed command."""
    return str(Path(sys.executable).with_name("reconcile"))
