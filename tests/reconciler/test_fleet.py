"""What a snapshot would do to many nodes: sums that were done by hand, and inventories that are not tidy."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

from reconciler.cli.inventory import fleet_lines
from reconciler.fleet import fleet
from schemas.observation import PartialModel, Present
from tests.reconciler.test_inventory import manifest, status
from tests.support import builders
from tests.support.builders import NOW, assignment, desired, manifest_digest, model, snapshot

if TYPE_CHECKING:
    from reconciler.desired import Desired
    from schemas.fleet import NodeOutlook
    from schemas.observation import Observed
    from schemas.status import NodeStatus

SIZES = {"m:v1": 1000, "n:v1": 1000, "o:v1": 2000}
KIND = "replace/llamacpp/native/2^9"
NIGHT = {"days": ("mon", "tue", "wed", "thu", "fri", "sat", "sun"), "from": "02:00", "to": "05:00"}


def wanted(**spec: Any) -> Desired:
    """Nodes of zone `a` serve n, those of zone `b` would serve o and have not the memory, all others go on with m."""
    mirrors = ("https://one.example.org/n", "https://two.example.org/n")
    document = snapshot(
        models=(model("m"), model("n", sources=mirrors), model("o", requires={"memory": "999GiB"})),
        assignments=(
            assignment("n:v1", selector={"matchLabels": {"zone": "a"}}),
            assignment("o:v1", selector={"matchLabels": {"zone": "b"}}),
            assignment("m:v1"),
        ),
        sequence=2,
        **spec,
    )
    return replace(desired(document), manifests={manifest_digest(key): manifest(size) for key, size in SIZES.items()})


def published(number: int, observed: Observed | None = None, *, zone: str = "", **memory: Any) -> NodeStatus:
    """What a node said that serves m:v1, unless it was something else."""
    observed = observed or builders.converged(**memory)
    labels = {"zone": zone} if zone else {}
    return status(replace(observed, node_id=f"0x{number:040x}"), labels=labels)


def half_done() -> Observed:
    """Serves m, and has 400 bytes of n."""
    seen = builders.converged()
    partial = Present(PartialModel(manifest_digest("n:v1"), 400))
    return replace(seen, state=replace(seen.state, models={**seen.state.models, manifest_digest("n:v1"): partial}))


def six() -> list[NodeStatus]:
    """Six nodes, of which five have something to do."""
    return [
        published(1, zone="a", downtimes={KIND: (1000, 1000)}),
        published(2, zone="a", downtimes={KIND: (2000, 3000, 90_000)}),
        published(3, half_done(), zone="a"),
        published(4, zone="b"),
        published(5),
        published(6, builders.observed(), zone="a"),
    ]


def test_the_sums_are_those_of_a_calculation_by_hand() -> None:
    """Bytes by mirror 1000 + 1000 + 600 + 1000; downtime 1 s + 3 s, two unknown; one does not fit; one stays."""
    made = fleet(wanted(), six(), NOW)
    assert [node.outcome for node in made.nodes] == ["changes", "changes", "changes", "held", "unchanged", "changes"]
    assert made.fetch_by_host == {"one.example.org": 3600}, "the mirror that is asked first"
    assert [node.fetch for node in made.nodes] == [1000, 1000, 600, 0, 0, 1000]
    assert [node.downtime for node in made.nodes] == ["swap", "swap", "swap", "none", "none", "start"]
    lines = fleet_lines(made)
    assert lines[0] == "Snapshot 2 on 6 nodes of testnet:"
    assert "  4 would change, 1 would be held back, 1 would stay as they are" in lines
    assert "  3 would swap what serves, 1 would start where nothing serves" in lines
    assert "  4 would be interrupted, 4 s in all, 3 s at most, 2 not measured yet" in lines
    assert lines[lines.index("  3.5 KiB to fetch:") + 1] == "    3.5 KiB from one.example.org"
    (who,) = (line for line in lines if line.startswith("  Incompatible"))
    assert who.startswith("  Incompatible on 1 node: o:v1 needs ")
    assert "bytes of memory, the machine has" in who, "reviewers are told what is missing, not only that something is"


def test_a_window_says_when_and_not_what() -> None:
    """What a review shows at noon is what it shows at night, but for the hour at which it begins."""
    document = wanted(policy={"windows": {"swap": (NIGHT,)}})
    noon, night = datetime(2026, 3, 2, 12, tzinfo=UTC), datetime(2026, 3, 2, 3, tzinfo=UTC)
    by_day, by_night = (fleet(document, six(), now) for now in (noon, night))

    def what(node: NodeOutlook) -> tuple[Any, ...]:
        held = tuple(item for item in node.held if item.reason != "OutsideWindow")
        return node.after, node.fetch, node.downtime, node.downtime_ms, held

    assert [what(node) for node in by_day.nodes] == [what(node) for node in by_night.nodes]
    assert {node.opens for node in by_night.nodes} == {None}
    opens = datetime(2026, 3, 3, 2, tzinfo=UTC)
    assert [node.opens for node in by_day.nodes] == [opens, opens, opens, None, None, None]
    assert "  The first window opens at 2026-03-03 02:00Z" in fleet_lines(by_day)


def test_of_one_node_the_newest_document_counts() -> None:
    """A copy that somebody forgot would have its bytes and its downtime counted twice."""
    now = published(1, zone="a")
    before = now.model_copy(update={"updated_at": NOW - timedelta(days=40), "labels": {}})
    for documents in ([now, before], [before, now]):
        made = fleet(wanted(), documents, NOW)
        assert [(node.after, node.as_of) for node in made.nodes] == [("n:v1", NOW)]
        assert (made.fetch_by_host, made.superseded) == ({"one.example.org": 1000}, 1)
    assert "(left out: 1 older document of the same nodes)" in fleet_lines(made)[0]


def test_what_is_left_out_is_told() -> None:
    """Documents of another network, and how old what was published is; nothing at all is a sum as well."""
    other = published(2).model_copy(update={"network": "mainnet"})
    old = published(1).model_copy(update={"updated_at": NOW - timedelta(days=40)})
    lines = fleet_lines(fleet(wanted(), [other, old], NOW))
    assert lines[0] == "Snapshot 2 on 1 node of testnet (left out: 1 document of other networks):"
    assert lines[1] == f"  by what they published, the oldest of it 40 d ago (0x{1:040x})"
    assert fleet(wanted(), [other], NOW).elsewhere == 1
    assert fleet_lines(fleet(wanted(), [], NOW))[0] == "Snapshot 2 on 0 nodes of testnet:"


def test_nobody_claims_to_know_what_an_old_agent_would_serve() -> None:
    """Where too little is published, the row says so."""
    old = published(1).model_copy(update={"facts": None, "serving": None})
    (row,) = (line for line in fleet_lines(fleet(wanted(), [old], NOW)) if "unknown" in line)
    assert row.split() == [f"0x{1:040x}", "unknown", "nothing", "->", "?", "-", "none", "-"]
