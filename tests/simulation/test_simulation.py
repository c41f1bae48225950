"""Three thousand fates of a node; the same seed is the same fate; and an agent that is broken on purpose is found."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.simulation.mutations import MUTATIONS

pytestmark = pytest.mark.timeout(1200)  # bounds of a hang, on a machine that does much else beside

ITEMS, SCHEDULES = 20, 150
"""Items of the test run, so that its workers share them, and schedules in each."""

WITHIN = 300
"""Schedules within which each mutation has to be found; most are within the first ten."""


def simulate(*arguments: str, hash_seed: str = "0") -> subprocess.CompletedProcess[str]:
    """The program, in a process of its own: without the tracing of coverage it is three times as fast."""
    environment = {**os.environ, "PYTHONHASHSEED": hash_seed}
    return subprocess.run(
        [sys.executable, "-m", "tests.simulation", *arguments],
        cwd=Path(__file__).parents[2],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize("item", range(ITEMS))
def test_no_schedule_breaks_an_invariant(item: int) -> None:
    """I1 to I11 hold after every step of every schedule, and once faults stop the node converges or says why not."""
    begin = item * SCHEDULES
    done = simulate("--seeds", f"{begin}-{begin + SCHEDULES}", "--jobs", "1")
    assert done.returncode == 0, done.stdout + done.stderr
    told = json.loads(done.stdout.splitlines()[-1])
    assert told["schedules"] == SCHEDULES
    assert told["crashes"] > SCHEDULES, "agents die"
    assert told["faults"] > SCHEDULES, "calls fail"


def test_a_seed_is_one_fate() -> None:
    """In another process, with other hashes of strings, a seed plays the same schedule to the letter."""
    once, again = (simulate("--digests", "--seeds", "12", hash_seed=seed) for seed in ("1", "2"))
    assert once.returncode == 0, once.stderr
    assert len(once.stdout.splitlines()) == 12
    assert once.stdout == again.stdout


GROUPS = 7


@pytest.mark.parametrize("group", range(GROUPS))
def test_an_agent_that_is_broken_on_purpose_is_found(group: int) -> None:
    """Each way of being wrong is found, under the name of an invariant that it breaks."""
    names = [mutation.name for mutation in MUTATIONS][group::GROUPS]
    done = simulate("--seeds", str(WITHIN), "--mutations", *names)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("found ") >= len(names)
