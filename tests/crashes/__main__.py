"""`python -m tests.crashes`: an agent dies by SIGKILL at every point of every operation, on real parts.

--scenes swap gc       only these (install, swap, rollback, rotation, gc, scrub, signing)
--every 7              every seventh point, for a sample (1: all of them)
--points               print the points instead
--backend docker       containers of the Docker engine at DOCKER_HOST, of llama.cpp's image out of the test registry
"""

from __future__ import annotations

import argparse
import json
import os
import pickle
import signal
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tests.crashes.scenes import SCENES, Scene
from tests.crashes.tap import Point, Tap
from tests.crashes.world import Docker
from tests.support.containers import DOCKER_SOCKET, REGISTRY, built_images

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

PATIENCE = 120
"""Seconds after which an agent hangs: a hundred times what it takes."""
WARM = 2
"""Undisturbed rounds before those in which points are counted: in them models arrive that stay."""
COUNTED = 2
"""Rounds in which points are counted: both directions of what alternates."""
PASSES = {"gc": 3, "scrub": 2}
"""Passes of an operation, where they are several: one sees what is unlisted, one counts, one removes; one scrubs, one
mends."""


@dataclass
class Tally:
    """What one scene came to."""

    scene: str
    points: int = 0
    tried: Counter[str] = field(default_factory=Counter)
    """By label of a point: agents that died there."""
    missed: list[str] = field(default_factory=list)
    """Points to which no agent came the second time."""
    failed: list[str] = field(default_factory=list)
    seconds: float = 0.0


def in_child(work: Callable[[], Any]) -> tuple[int, Any]:
    """Do something in a process of its own, which may die.

    Returns:
        How it ended, as `os.waitstatus_to_exitcode` says it, and what the work returned; None of one that died.
    """
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        status = 1
        try:
            os.close(read)
            signal.alarm(PATIENCE)
            content = pickle.dumps(work())
            with os.fdopen(write, "wb") as pipe:
                pipe.write(content)
            status = 0
        except BaseException:  # noqa: BLE001 - it is shown, and the process ends
            import traceback

            traceback.print_exc()
        finally:
            os._exit(status)
    os.close(write)
    with os.fdopen(read, "rb") as pipe:
        # What outlives an agent does not hold its pipe: descriptors are closed on exec.
        content = pipe.read()
    _, status = os.waitpid(child, 0)
    return os.waitstatus_to_exitcode(status), pickle.loads(content) if content else None


def act(scene: Scene, name: str, at: Point | None) -> list[Point]:
    """What an agent does that may die; the points that it passed."""
    tap = Tap(at)
    for number in range(PASSES.get(name, 1)):
        if number:
            scene.world.later()
        scene.world.pass_(tap, sign=name == "signing", idle=name == "scrub")
    return tap.passed


def round_(scene: Scene, name: str, at: Point | None) -> tuple[int, list[Point], list[str]]:
    """One operation, with one death at most, and what comes after it."""
    goal = SCENES[name](scene)
    scene.world.later()
    code, passed = in_child(lambda: act(scene, name, at))
    scene.rounds += 1
    settled, wrong = in_child(lambda: scene.world.settle(goal))
    if settled != 0:
        wrong = [f"the agent after it ended with {settled}"]
    scene.world.later()
    return code, passed or [], wrong


def sweep(name: str, folder: Path, every: int, *, only_points: bool = False, docker: Docker | None = None) -> Tally:
    """Every point of one scene, or every n-th.

    Args:
        name: of the scene.
        folder: for its world.
        every: 1 for all of them.
        only_points: print them, and try none.
        docker: where instances are containers; None where they are processes.
    """
    tally, begun = Tally(name), time.monotonic()
    scene = Scene(folder, docker)
    try:
        # In this process, so that what is loaded only when it is needed is there in all that are forked from it.
        goal = scene.install()
        scene.world.pass_(Tap())
        tally.failed += scene.world.settle(goal)
        passed: dict[Point, None] = {}
        for number in range(WARM + COUNTED):
            code, points, wrong = round_(scene, name, None)
            tally.failed += [f"undisturbed: {text}" for text in ([] if code == 0 else [f"ended with {code}"]) + wrong]
            passed.update(dict.fromkeys(points if number >= WARM else ()))
        # What alternates passes some points in every second round only: those are tried until they come.
        known = list(passed)
        tally.points = len(known)
        if only_points:
            print("\n".join(map(str, known)))
            return tally
        for point in known[::every]:
            for _ in range(COUNTED + 1):
                code, _, wrong = round_(scene, name, point)
                if wrong:
                    tally.failed.append(f"{point}: {'; '.join(wrong)}")
                if code == -signal.SIGKILL:
                    tally.tried[point.label] += 1
                    break
                if code != 0:
                    tally.failed.append(f"{point}: ended with {code}")
            else:
                tally.missed.append(str(point))
    finally:
        scene.world.clear()
    tally.seconds = time.monotonic() - begun
    return tally


def engine() -> Docker:
    """The engine and the image of tests that need containers."""
    address = os.environ.get("DOCKER_HOST") or DOCKER_SOCKET
    images = built_images(os.environ.get("RECONCILE_TEST_REGISTRY") or REGISTRY)
    return Docker(address.removeprefix("unix://"), images["llamacpp"])


def main(arguments: Sequence[str]) -> int:
    """The program; its exit status: 1 where something is wrong."""
    parser = argparse.ArgumentParser(prog="crashes", description=__doc__)
    parser.add_argument("--scenes", nargs="*", choices=sorted(SCENES), default=list(SCENES))
    parser.add_argument("--every", type=int, default=1)
    parser.add_argument("--points", action="store_true")
    parser.add_argument("--backend", choices=("native", "docker"), default="native")
    chosen = parser.parse_args(arguments)
    docker = engine() if chosen.backend == "docker" else None
    tallies = []
    for name in chosen.scenes:
        with tempfile.TemporaryDirectory(prefix="crashes-") as folder:
            Path(folder).chmod(0o755)
            tally = sweep(name, Path(folder), chosen.every, only_points=chosen.points, docker=docker)
        tallies.append(tally)
        kinds = Counter[str]()
        for label, count in tally.tried.items():
            kinds[label.partition(".")[0].partition(" ")[0]] += count
        print(
            f"{name:9} {tally.points:4} points, {tally.tried.total():4} deaths"
            f" ({', '.join(f'{kind} {count}' for kind, count in sorted(kinds.items()))}),"
            f" {len(tally.missed)} not reached, {len(tally.failed)} failed, {tally.seconds:.0f} s",
            flush=True,
        )
        for line in (*tally.failed[:10], *(f"not reached: {point}" for point in tally.missed[:10])):
            print(f"  {line}")
    sums = {
        "points": sum(tally.points for tally in tallies),
        "deaths": sum(tally.tried.total() for tally in tallies),
        "missed": sum(len(tally.missed) for tally in tallies),
        "failed": sum(len(tally.failed) for tally in tallies),
    }
    print(json.dumps(sums))
    return 1 if sums["failed"] else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
