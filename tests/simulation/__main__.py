"""`python -m tests.simulation`: plays schedules, many at once or one to read.

--seed 42              one schedule, with its whole trace
--seeds 1000           schedules 0 to 999, over all processors; the trace of the first that fails
--seeds 5000-6000      those
--mutations WORDS...   the agent broken in the ways whose names contain one of the words (all without words): each has
                       to be found within --seeds schedules
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import sys
import time
from typing import TYPE_CHECKING, Self

from schemas.digests import digest_text, short
from tests.simulation.mutations import MUTATIONS
from tests.simulation.schedule import Outcome, run

if TYPE_CHECKING:
    from collections.abc import Sequence

_CHUNK = 25
_SHOWN = 10


def main(arguments: Sequence[str]) -> int:
    """The program; its exit status: 1 where something is wrong."""
    parser = argparse.ArgumentParser(prog="simulate", description=__doc__)
    parser.add_argument("--seed", type=int)
    parser.add_argument("--seeds", default="1000")
    parser.add_argument("--jobs", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--mutations", nargs="*")
    parser.add_argument("--digests", action="store_true", help="print what tells one run of a seed from another")
    chosen = parser.parse_args(arguments)
    first, dash, last = chosen.seeds.partition("-")
    seeds = range(int(first), int(last)) if dash else range(int(first))
    if chosen.seed is not None:
        outcome = run(chosen.seed)
        print(outcome.text())
        return 1 if outcome.violations else 0
    if chosen.digests:
        for seed in seeds:
            print(seed, short(digest_text(run(seed).text())))
        return 0
    if chosen.mutations is not None:
        return _mutations(chosen.mutations, seeds)
    return _many(seeds, chosen.jobs)


def _many(seeds: range, jobs: int) -> int:
    begun, done, failed = time.monotonic(), 0, []
    sums = dict.fromkeys(("passes", "points", "crashes", "faults"), 0)
    with multiprocessing.Pool(jobs) if jobs > 1 else _Here() as pool:
        for outcome in pool.imap_unordered(_brief, seeds, _CHUNK):
            done += 1
            for name in sums:
                sums[name] += getattr(outcome, name)
            if outcome.violations:
                failed.append(outcome)
                # At once: a long run that is broken off has told what it found.
                print(f"seed {outcome.seed}: {outcome.violations[0]}", flush=True)
            if done % 1000 == 0:
                print(
                    f"{done} schedules, {len(failed)} failed, {done / (time.monotonic() - begun):.0f} a second",
                    flush=True,
                )
    print(json.dumps({"schedules": done, "failed": len(failed), "seconds": round(time.monotonic() - begun, 1), **sums}))
    failed.sort(key=lambda outcome: int(outcome.seed))
    for outcome in failed[:_SHOWN]:
        print(f"seed {outcome.seed}: {outcome.violations[0]}")
    if failed:
        print(f"\nmake simulate SEED={failed[0].seed} shows:\n\n{run(failed[0].seed).text()}")
    return 1 if failed else 0


class _Here:
    """A pool of this process."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *trace: object) -> None:
        pass

    imap_unordered = staticmethod(lambda function, items, _chunk: map(function, items))


def _brief(seed: int) -> Outcome:
    """A schedule without its trace, which would have to travel between processes."""
    outcome = run(seed)
    outcome.trace.clear()
    return outcome


def _mutations(words: Sequence[str], seeds: range) -> int:
    missed = 0
    for mutation in MUTATIONS:
        if words and not any(word in mutation.name for word in words):
            continue
        with mutation.applied():
            found = next((outcome for outcome in map(run, seeds) if outcome.violations), None)
        told = found is not None and found.violations[0].invariant in mutation.finds
        missed += not told
        said = f"seed {found.seed}: {found.violations[0]}" if found else f"not found within {len(seeds)} schedules"
        print(f"{'found ' if told else 'MISSED'} {mutation.name}: {said}", flush=True)
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
