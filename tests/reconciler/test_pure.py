"""Selectors, rollouts, windows and modes: small pure decisions."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from reconciler.modes import choose_mode
from reconciler.selectors import inside, matches, node_labels
from reconciler.windows import is_open, next_opening
from schemas.snapshot import Assignment, Selector, Window
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
    ],
)
def test_expressions(expression: dict[str, object], expected: bool) -> None:
    """Operators mean what they mean in Kubernetes, absent labels included."""
    assert matches(selector(matchExpressions=(expression,)), {"gpu": "h100"}) is expected


def test_a_label_cannot_pose_as_a_fact() -> None:
    """Facts are observed; an owner's label of the same name does not replace them."""
    labels = node_labels({"fact/accelerator": "cuda"}, hardware())
    assert labels["fact/accelerator"] == "cpu"
    assert node_labels({}, hardware(gpus=(gpu(),)))["fact/gpu"] == "NVIDIA-H100"


def test_rollout_share_grows_without_leaving_anyone_behind() -> None:
    """Nodes inside a share stay inside as it grows, and the share is about what it says."""
    nodes = [f"0x{number:040x}" for number in range(2000)]

    def share(percent: int) -> set[str]:
        fields = {"runtime": "main", "serve": ("m:v1",), "rollout": {"percent": f"{percent}%", "key": "k"}}
        assignment = Assignment.model_validate(fields)
        return {name for name in nodes if inside(assignment, name)}

    assert share(0) == set()
    assert share(10) < share(25) < share(100) == set(nodes)
    assert 400 < len(share(25)) < 600


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
