"""Random histories of a simulated node: snapshots and mishaps in any order."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from hypothesis import strategies as st

from tests.support.builders import assignment, manifest_digest, model, runtime, snapshot

if TYPE_CHECKING:
    from tests.support.simulated_node import SimulatedNode

NAMES = ("a", "b", "c")


@st.composite
def worlds(draw: st.DrawFn) -> list[tuple[str, Any]]:
    """A history: snapshots and mishaps in any order."""
    steps: list[tuple[str, Any]] = []
    for sequence in range(1, draw(st.integers(2, 6)) + 1):
        listed = draw(st.sets(st.sampled_from(NAMES), min_size=1))
        serve = draw(st.sampled_from(sorted(listed)))
        context = draw(st.sampled_from((512, 2048)))
        document = snapshot(
            models=tuple(model(name) for name in sorted(listed)),
            runtimes=(runtime(engineArgs={"contextSize": context}),),
            assignments=(assignment(f"{serve}:v1"),),
            sequence=sequence,
        )
        steps.append(("snapshot", document))
        mishaps = ("kill", "touch", "restart", "later", "unreachable", "corrupt", "nothing")
        steps.append((draw(st.sampled_from(mishaps)), draw(st.sampled_from(NAMES))))
    return steps


def mishap(simulated: SimulatedNode, what: str, name: str) -> None:
    """Let something happen to a node between two passes."""
    digest = manifest_digest(f"{name}:v1")
    simulated.shelf.unreachable = what == "unreachable"
    if what == "kill" and simulated.room.running():
        simulated.room.kill(simulated.room.running()[0].name)
    elif what == "touch" and digest in simulated.shelf.stored:
        simulated.shelf.touch(digest)
    elif what == "restart":
        simulated.restart()
    elif what == "later":
        simulated.later(hours=7)
    elif what == "corrupt":
        simulated.shelf.corrupt_sources ^= {digest}
