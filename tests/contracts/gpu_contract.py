"""What every backend must do about GPUs: one GPU, one node, for as long as an engine runs on it (I3)."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from schemas.errors import GpuInUse
from tests.contracts.backend_contract import answers, eventually, run

if TYPE_CHECKING:
    from runtime.interfaces import Backend, InstanceSpec
    from tests.contracts.backend_contract import Harness

GPU, OTHER = "GPU-5f3c2a10-0000-4000-8000-000000000001", "GPU-5f3c2a10-0000-4000-8000-000000000002"


def on(spec: InstanceSpec, *gpus: str) -> InstanceSpec:
    """An instance that gets GPUs."""
    return replace(spec, gpus=gpus)


def is_started(backend: Backend, spec: InstanceSpec) -> bool:
    """Whether it could be started now."""
    try:
        backend.start(spec.name)
    except GpuInUse:
        return False
    return True


class GpuContract:
    """A part of the suite."""

    def test_one_gpu_serves_one_node(self, harness: Harness) -> None:
        """Another node's start is refused by name, and leaves nothing running; its own GPU it gets (I3)."""
        ours, theirs = on(harness.spec("a1"), GPU), on(harness.spec("b1", node="b"), GPU)
        run(harness, harness.attach(), ours)
        other = harness.attach("b")
        other.create(theirs)
        with pytest.raises(GpuInUse, match=f"{GPU} is in use by {ours.name} of node"):
            other.start(theirs.name)
        seen = other.inspect(theirs.name)
        assert seen is not None
        assert (seen.status, seen.gpus) == ("created", (GPU,))
        other.remove(theirs.name)
        elsewhere = on(harness.spec("b2", node="b"), OTHER)
        run(harness, other, elsewhere)
        assert [item.gpus for item in harness.attach().list()] == [(GPU,)]
        assert [item.gpus for item in harness.attach("b").list()] == [(OTHER,)]

    def test_an_engine_that_dies_leaves_its_gpu_to_others(self, harness: Harness) -> None:
        """By SIGKILL and by a stop, seen by nobody: what used the GPU is gone, and so is its hold on it (I3, I7)."""
        ours, theirs = on(harness.spec("a1"), GPU), on(harness.spec("b1", node="b"), GPU)
        run(harness, harness.attach(), ours)
        other = harness.attach("b")
        other.create(theirs)
        assert not is_started(other, theirs)
        harness.kill(harness.attach(), ours)
        eventually(lambda: is_started(other, theirs), "the GPU of a killed engine is free")
        again = on(harness.spec("a2"), GPU)
        harness.attach().create(again)
        assert not is_started(harness.attach(), again)
        other.stop(theirs.name, grace=30)
        eventually(lambda: is_started(harness.attach(), again), "the GPU of a stopped engine is free")

    def test_a_start_that_is_repeated_or_overlaps_shares_the_nodes_own_gpu(self, harness: Harness) -> None:
        """One node may run two engines on its GPU for a while; it stays the node's until the last has ended (I3)."""
        first, second = on(harness.spec("a1"), GPU), on(harness.spec("a2"), GPU)
        backend = harness.attach()
        run(harness, backend, first)
        backend.start(first.name)
        connection = run(harness, backend, second)
        backend.stop(first.name, grace=30)
        assert answers(connection)
        theirs = on(harness.spec("b1", node="b"), GPU)
        other = harness.attach("b")
        other.create(theirs)
        assert not is_started(other, theirs)
        backend.stop(second.name, grace=30)
        eventually(lambda: is_started(other, theirs), "the GPU is free after the last")
