"""Faults of engines that really run, and the verdict on a node that lived through them."""

from __future__ import annotations

import os
import signal
import threading
from datetime import timedelta
from typing import TYPE_CHECKING

from runtime.backends import native_processes
from schemas.digests import digest_text
from tests.support.front import eventually
from tests.support.invariants.checks import check
from tests.support.invariants.sight import look
from tests.support.swapping import Asker

if TYPE_CHECKING:
    from collections.abc import Callable

    from reconciler.executor import Outcome
    from schemas.plan import Action
    from tests.support.swapping import SwappingNode


def running(swapping: SwappingNode) -> list[str]:
    """Names of what runs."""
    return [item.name for item in swapping.backend.list() if item.status == "running"]


def kill(process: int, number: signal.Signals = signal.SIGKILL) -> None:
    """Signal an engine from outside."""
    if process:
        try:
            os.kill(process, number)
        except ProcessLookupError:
            return


def events(swapping: SwappingNode) -> str:
    """Everything that was told."""
    return "\n".join(f"{event.reason} {event.message}" for event in swapping.journal.events(after=0, limit=1000))


def judged(swapping: SwappingNode) -> list[str]:
    """What the checker of I1 to I11 finds wrong, once a pass has ended; nobody signs what these nodes are told (I1)."""
    sight = look(
        swapping.node.state,
        network="testnet",
        now=swapping.real_clock.now(),
        backends=swapping.node.adapters.backends,
        store=swapping.node.adapters.store,
        front=swapping.keeper,
        settled=True,
    )
    return [str(violation) for violation in check(sight) if violation.invariant != "I1"]


def serves_alone(swapping: SwappingNode, model: str) -> None:
    """One instance, no process of another, the right answers at the front, and every invariant."""
    swapping.real_clock.ahead += timedelta(minutes=1)
    swapping.run()
    (name,) = running(swapping)
    alive = {process.instance for process in native_processes.marked(digest_text(f"native/1|testnet|{swapping.mark}"))}
    assert alive <= {name}
    assert [item.name for item in swapping.backend.list()] == [name]
    assert judged(swapping) == []
    asker = Asker(swapping.keeper.address, swapping.answers, stream=False)
    thread = asker.start()
    eventually(lambda: bool(asker.wrong) or asker.answered.get(model, 0) > 1, f"{model} answers")
    asker.stop.set()
    thread.join(60)
    assert asker.wrong == []
    assert set(asker.answered) == {model}


def during(swapping: SwappingNode, kind: str, strike: Callable[[], None]) -> None:
    """Strike while the first action of a kind is under way, which ends no sooner than the strike."""
    recorder = swapping.recorder
    threads: list[threading.Thread] = []
    started, finished = recorder.started, recorder.finished

    def begin(action: Action) -> None:
        if action.kind == kind and not threads:
            threads.append(threading.Thread(target=strike, daemon=True))
            threads[0].start()
        started(action)

    def end(outcome: Outcome) -> None:
        if outcome.action.kind == kind:
            threads[0].join(60)
        finished(outcome)

    recorder.started, recorder.finished = begin, end  # type: ignore[method-assign] # for this test
