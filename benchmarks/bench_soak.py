"""What grows while a daemon swaps and looks for long. `make soak` is the long one: 300 swaps, 3,000 passes."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from tests.soak.soak import BOUNDS, DATABASE_ANYWAY, DATABASE_PER_SWAP, MOST_DISK, check, grown, soaking

if TYPE_CHECKING:
    from pathlib import Path

    from benchmarks.conftest import Figure
    from tests.soak.soak import Look

SWAPS = int(os.environ.get("SOAK_SWAPS", "20"))
PASSES = int(os.environ.get("SOAK_PASSES", "200"))
WARM_UP = 5
"""Swaps before the first measurement: what is imported, cached and opened once is there then."""
LOOKS = 50
"""Passes over which the cost of one is taken."""


@pytest.mark.timeout(4 * 3600)
def test_soak_memory_mib_and_the_rest(tmp_path: Path, figure: Figure) -> None:
    """Real swaps of real llama.cpp processes by a real daemon, and passes between them: checked, then recorded."""
    done: list[Look] = []
    with soaking(tmp_path) as node:
        for _ in range(WARM_UP):
            node.swap()
        before = node.measure()  # first: it waits until the receipts of the last swap are signed
        first = node.cost(LOOKS)
        for number in range(1, SWAPS + 1):
            node.swap()
            for _ in range(number * PASSES // SWAPS - (number - 1) * PASSES // SWAPS):
                node.look()
            if number % max(SWAPS // 10, 1) == 0:
                done.append(node.measure())
                print(done[-1], flush=True)
        after = node.measure()
        last = node.cost(LOOKS)
    check(before, after)
    more = grown(before, after)
    what = f"over {SWAPS} swaps and {PASSES} passes"
    print(f"soak {what}: {more}")
    figure("soak_memory_mib", more["memory"], f"MiB more {what}", goal=f"<= {BOUNDS['memory']:g}")
    figure("soak_descriptors", more["descriptors"], f"more {what}", goal=f"<= {BOUNDS['descriptors']}")
    figure("soak_threads", more["threads"], f"more {what}", goal=f"<= {BOUNDS['threads']}")
    figure("soak_processes", after.engines - 1, f"too many {what}", goal="0")
    figure("soak_disk_mib", after.disk / 1024, f"MiB without models {what}", goal=f"<= {MOST_DISK // 1024}")
    bound = (DATABASE_PER_SWAP * SWAPS + DATABASE_ANYWAY) / 1024
    figure("soak_database_mib", more["database"] / 1024, f"MiB more {what}", goal=f"<= {bound:.1f}")
    figure(
        "soak_pass_cpu_ms",
        last * 1000,
        "ms for a pass at the end",
        goal="as in the beginning",
        peer="a pass in the beginning",
        peer_value=first * 1000,
    )
