"""Selectors, rollouts, windows and modes: small pure decisions."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from pydantic import ValidationError

from reconciler.modes import choose_mode
from reconciler.selectors import inside, matches, node_labels, wave_of
from reconciler.windows import is_open, next_opening
from schemas.assignments import Rollout, Selector
from schemas.observation import NativeEngine
from schemas.policy import Window
from schemas.snapshot import SnapshotSpec
from tests.support.builders import IMAGE, NOW, gpu, hardware, node, runtime, snapshot


def selector(**fields: object) -> Selector:
    """A selector in wire form."""
    return Selector.model_validate(fields)


def test_empty_selector_matches_every_node() -> None:
    """No requirement is no restriction."""
    assert matches(selector(), {})


@pytest.mark.parametrize(
    ("expression", "expected"),
    [
        ({"key": "gpu", "operator": "In", "values": ("h100", "h200")}, True),
        ({"key": "gpu", "operator": "NotIn", "values": ("h100",)}, False),
        ({"key": "gpu", "operator": "Exists"}, True),
        ({"key": "zone", "operator": "DoesNotExist"}, True),
        ({"key": "zone", "operator": "NotIn", "values": ("a",)}, True),
        ({"key": "zone", "operator": "In", "values": ("a",)}, False),
        ({"key": "memory", "operator": "Gte", "values": ("80GiB",)}, True),
        ({"key": "memory", "operator": "Gt", "values": ("80GiB",)}, False),
        ({"key": "memory", "operator": "Lt", "values": ("81GiB",)}, True),
        ({"key": "driver", "operator": "Gte", "values": ("550.54",)}, True),
        ({"key": "driver", "operator": "Gte", "values": ("550.100",)}, False),
        ({"key": "driver", "operator": "Lte", "values": ("1000",)}, True),
        ({"key": "driver", "operator": "Lt", "values": ("550.90.0",)}, False),
        ({"key": "zone", "operator": "Lt", "values": ("1",)}, False),
        ({"key": "gpu", "operator": "Lt", "values": ("1",)}, False),
    ],
)
def test_expressions(expression: dict[str, object], expected: bool) -> None:
    """Operators mean what they mean in Kubernetes, absent labels included; order is that of numbers, not of text."""
    labels = {"gpu": "h100", "memory": str(80 * 2**30), "driver": "550.90"}
    assert matches(selector(matchExpressions=(expression,)), labels) is expected


@pytest.mark.parametrize(
    "expression",
    [
        {"operator": "Gt"},
        {"operator": "Gt", "values": ("1", "2")},
        {"operator": "Lte", "values": ("many",)},
        {"operator": "In"},
        {"operator": "Exists", "values": ("a",)},
    ],
)
def test_values_fit_their_operator(expression: dict[str, object]) -> None:
    """What could never be compared is refused when the document is read, not ignored on a node."""
    with pytest.raises(ValidationError, match=r"takes no|needs"):
        selector(matchExpressions=({"key": "k", **expression},))


def test_a_label_cannot_pose_as_a_fact() -> None:
    """Facts are observed; an owner's label of the same name does not replace them."""
    labels = node_labels({"fact/accelerator": "cuda"}, hardware(), (), ())
    assert labels["fact/accelerator"] == "cpu"
    assert "fact/gpu" not in labels


def test_facts_tell_gpu_memory_driver_and_engines() -> None:
    """Selectors can ask for the GPU's model, the memory of the smallest, the driver, engines and backends."""
    small, large = replace(gpu(), memory=2**34, name="NVIDIA (test) RTX 6000"), replace(gpu(), memory=2**36)
    engine = NativeEngine("llamacpp", "2026.10", "blake3:" + "0" * 64)
    labels = node_labels({}, hardware(gpus=(small, large)), (engine,), ("docker", "native"))
    asked = ["gpu", "gpu-memory", "gpu-count", "driver", "engine-llamacpp", "backend-docker"]
    assert [labels[f"fact/{name}"] for name in asked] == [
        "NVIDIA-test-RTX-6000",
        str(2**34),
        "2",
        gpu().driver,
        "2026.10",
        "true",
    ]


def test_rollout_share_grows_without_leaving_anyone_behind() -> None:
    """Nodes inside a share stay inside as it grows, and the share is about what it says."""
    nodes = [f"0x{number:040x}" for number in range(2000)]

    def reached(percent: int) -> set[str]:
        rollout = Rollout.model_validate({"percent": f"{percent}%", "key": "k"})
        return {name for name in nodes if inside(SnapshotSpec(), rollout, name)}

    assert reached(0) == set()
    assert reached(10) < reached(25) < reached(100) == set(nodes)
    assert 400 < len(reached(25)) < 600
    assert inside(SnapshotSpec(), None, nodes[0])


def test_waves_are_named_shares() -> None:
    """A rollout at a wave has reached exactly those that the wave's percentage would, and each node knows its wave."""
    waves = ({"name": "canary", "percent": "5%"}, {"name": "early", "percent": "30%"})
    spec = SnapshotSpec.model_validate({"waves": waves})
    early, percent = Rollout(wave="early", key="k"), Rollout(percent=30, key="k")
    nodes = [f"0x{number:040x}" for number in range(500)]
    assert [inside(spec, early, name) for name in nodes] == [inside(spec, percent, name) for name in nodes]
    by_wave = {wave: [name for name in nodes if wave_of(spec, early, name) == wave] for wave in ("canary", "early", "")}
    assert all(by_wave.values())
    assert by_wave["canary"] == [name for name in nodes if inside(spec, Rollout(wave="canary", key="k"), name)]
    assert sorted(by_wave["canary"] + by_wave["early"]) == [name for name in nodes if inside(spec, early, name)]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"waves": ({"name": "a", "percent": "5%"}, {"name": "a", "percent": "6%"})}, "different names"),
        ({"waves": ({"name": "a", "percent": "5%"}, {"name": "b", "percent": "5%"})}, "growing"),
    ],
)
def test_waves_grow(fields: dict[str, object], message: str) -> None:
    """Waves that could not be told apart, or that shrink, are refused."""
    with pytest.raises(ValidationError, match=message):
        SnapshotSpec.model_validate(fields)


@pytest.mark.parametrize("rollout", [{"key": "k"}, {"key": "k", "percent": "1%", "wave": "a"}])
def test_a_rollout_has_one_share(rollout: dict[str, object]) -> None:
    """Neither none nor two: nobody has to guess which counts."""
    with pytest.raises(ValidationError, match="either a percent or a wave"):
        Rollout.model_validate(rollout)


def window(**fields: object) -> Window:
    """A window in wire form."""
    return Window.model_validate({"days": ("mon",), "from": "22:00", "to": "02:00", **fields})


def at(text: str) -> datetime:
    """A UTC time in the week of 2026-03-02, a Monday."""
    return datetime.fromisoformat(text).replace(tzinfo=UTC)


@pytest.mark.parametrize(
    ("moment", "expected"),
    [
        ("2026-03-02T21:59", False),
        ("2026-03-02T22:00", True),
        ("2026-03-03T01:59", True),
        ("2026-03-03T02:00", False),
        ("2026-03-04T23:00", False),
    ],
)
def test_window_over_midnight(moment: str, expected: bool) -> None:
    """A window that closes before it opens closes on the next day; its end is not in it."""
    assert is_open((window(),), at(moment)) is expected


def test_window_in_its_zone_follows_daylight_saving() -> None:
    """Two o'clock in Berlin is one o'clock UTC in winter and midnight in summer."""
    berlin = window(
        days=("mon", "tue", "wed", "thu", "fri", "sat", "sun"), zone="Europe/Berlin", **{"from": "03:00", "to": "04:00"}
    )
    assert is_open((berlin,), at("2026-03-02T02:30"))
    assert is_open((berlin,), at("2026-07-01T01:30"))
    assert not is_open((berlin,), at("2026-07-01T02:30"))


def test_next_opening() -> None:
    """The next opening is in the future, also in the middle of a window."""
    assert next_opening((window(),), at("2026-03-02T23:00")) == at("2026-03-09T22:00")
    assert next_opening((window(),), NOW) == at("2026-03-02T22:00")


def test_unknown_zone_never_opens() -> None:
    """A zone that does not exist keeps the work from happening at a surprising hour."""
    assert not is_open((window(zone="Mars/Olympus"),), at("2026-03-02T23:00"))
    assert next_opening((window(zone="Mars/Olympus"),), NOW) is None


def test_no_windows_means_always() -> None:
    """Nothing said, nothing restricted."""
    assert is_open((), NOW + timedelta(days=3))


BOTH = ("container", "native")


@pytest.mark.parametrize(
    ("declared", "network", "owner", "backends", "expected"),
    [
        (BOTH, BOTH, {}, ("docker", "native"), ("container", "docker")),
        (BOTH, BOTH, {}, ("native",), ("native", "native")),
        (BOTH, ("container",), {}, ("native",), (None, None)),
        (
            ("container", "native"),
            ("container", "native"),
            {"prefer": "native"},
            ("docker", "native"),
            ("native", "native"),
        ),
        (
            ("container", "native"),
            ("container", "native"),
            {"default": "native"},
            ("docker", "native"),
            ("native", "native"),
        ),
        (
            ("container", "native"),
            ("container", "native"),
            {"modes": ("native",)},
            ("docker", "native"),
            ("native", "native"),
        ),
        (("container",), ("container",), {}, ("podman",), ("container", "podman")),
    ],
)
def test_mode_selection(
    declared: tuple[str, ...],
    network: tuple[str, ...],
    owner: dict[str, object],
    backends: tuple[str, ...],
    expected: tuple[str | None, str | None],
) -> None:
    """Declared, allowed by both, and there; then the owner's preference, the default, containers first."""
    document = snapshot(
        runtimes=(runtime(modes=declared, images=({"ref": IMAGE},), native={} if "native" in declared else None),),
        policy={"modes": network},
    )
    chosen = choose_mode(document.spec.runtimes[0], document.spec.policy, node(policy=owner), backends)  # type: ignore[arg-type]
    assert (chosen.mode, chosen.backend) == expected
    assert chosen.reason


def test_snapshot_preference_loses_to_the_owner() -> None:
    """The owner's preference wins over the snapshot's, which wins over the default."""
    document = snapshot(
        runtimes=(runtime(modes=("container", "native"), preferred="native", images=({"ref": IMAGE},)),)
    )
    spec, policy = document.spec.runtimes[0], document.spec.policy
    assert choose_mode(spec, policy, node(policy={"default": "container"}), ("docker", "native")).mode == "native"
    assert choose_mode(spec, policy, node(policy={"prefer": "container"}), ("docker", "native")).mode == "container"
