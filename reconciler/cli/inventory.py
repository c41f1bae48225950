"""Inventories on the command line: nodes' published statuses, and what a snapshot would do to them."""

from __future__ import annotations

import json
import os
import signal
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

import click

from reconciler.cli.console import duration, paint, plural, relative_time, size, table
from schemas.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence
    from datetime import datetime

    from pydantic import ValidationError

    from desired_state.files import DocumentFiles
    from reconciler.desired import Desired
    from reconciler.fleet import Outlook
    from schemas.fleet import FleetPlan, NodeOutlook
    from schemas.snapshot import SnapshotDocument
    from schemas.status import NodeStatus

STATUS_LIMIT = 2**24
"""Bytes of a node's status in an inventory."""
SHARE = 200
"""Nodes that a process plans for at once: half a second of work, against milliseconds of handing it out."""
SAID = 2
"""Words of a reason that are shown for people; nodes often differ in a number."""
SHOWN = 20
"""Nodes that are listed for people; `--json` has them all."""

inventory_option = click.option(
    "--inventory",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="Folder with the nodes' `reconcile status --json`, one file each.",
)


def read_inventory(folder: Path) -> Iterator[NodeStatus]:
    """The statuses that lie in a folder, one after the other.

    Raises:
        UsageError: a file is not a node's status, or there is none.
    """
    return read_statuses(_files(folder))


def _files(folder: Path) -> list[Path]:
    paths = sorted(folder.glob("*.json"))
    if not paths:
        raise UsageError(f"{folder} holds no node's status", hint="`reconcile status --json > FOLDER/node.json`")
    return paths


def read_statuses(paths: Iterable[Path]) -> Iterator[NodeStatus]:
    """The nodes' statuses, one after the other.

    Raises:
        UsageError: a file is not a node's status.
    """
    from pydantic import ValidationError

    from schemas.status import NodeStatus

    for path in paths:
        try:
            with path.open("rb") as file:
                content = file.read(STATUS_LIMIT)
            status = NodeStatus.model_validate_json(content)
        except ValidationError as error:
            raise _refused(path, content, error) from error
        except OSError as error:
            raise UsageError(f"{path} cannot be read: {error.strerror}") from error
        yield status


def _refused(path: Path, content: bytes, error: ValidationError) -> UsageError:
    """Why a file is no node's status that this program understands: mostly it was cut, or is of a newer agent."""
    from reconciler.cli.wiring import agent_version

    first = error.errors(include_url=False, include_context=False)[0]
    field = ".".join(map(str, first["loc"]))
    said = f"{path} is not a node's status: {f'{field}: ' if field else ''}{first['msg']}"
    try:
        writer = json.loads(content)["agent"]
    except (ValueError, KeyError, TypeError):
        return UsageError(said, hint="`reconcile status --json` prints one")
    return UsageError(f"{said} (written by agent {writer}; this is {agent_version()})", hint="update what is older")


def plan_fleet(
    files: DocumentFiles, content: bytes, document: SnapshotDocument, inventory: Path, now: datetime
) -> FleetPlan:
    """What a snapshot would do to every node of an inventory.

    Args:
        files: where the manifests lie that it names.
        content: the snapshot's exact bytes.
        document: the snapshot.
        inventory: folder of the nodes' statuses.
        now: the time at which holds and windows are judged.

    Raises:
        DocumentError: a manifest is missing, or is not what was signed for.
        UsageError: a file is not a node's status, or there is none.
    """
    from desired_state.load import load_manifests
    from reconciler.desired import Desired
    from reconciler.fleet import summed
    from schemas.digests import digest_bytes

    manifests = load_manifests(files, document.spec.models)
    desired = Desired(document, digest_bytes(content), manifests=manifests)
    return summed(desired, _outlooks(desired, _files(inventory), now), now)


def _outlooks(desired: Desired, paths: Sequence[Path], now: datetime) -> Iterator[Outlook | None]:
    """Of each document, in the order of the paths; a large fleet's by as many processes as there are processors."""
    from reconciler.fleet import outlooks

    workers = min(len(os.sched_getaffinity(0)), len(paths) // SHARE)
    if workers <= 1:
        yield from outlooks(desired, read_statuses(paths), now)
        return
    from multiprocessing import get_context

    # Forked, by a command that has no threads: what was read so far, and imported, is there already.
    with get_context("fork").Pool(workers, _begin, (desired, now)) as pool:
        for part in pool.imap(_planned, (paths[at : at + SHARE] for at in range(0, len(paths), SHARE))):
            yield from part


_JOB: list[tuple[Desired, datetime]] = []
"""What a process plans for."""


def _begin(desired: Desired, now: datetime) -> None:
    """In a process of its own: what all its shares are planned for."""
    # It ends when the pool ends it, whatever the process that it was forked from does about signals.
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    _JOB.append((desired, now))


def _planned(paths: Sequence[Path]) -> list[Outlook | None]:
    from reconciler.fleet import outlooks

    desired, now = _JOB[-1]
    return list(outlooks(desired, read_statuses(paths), now))


def fleet_lines(made: FleetPlan) -> list[str]:
    """A fleet's plan for people: the sum first, then the nodes that would change or be held."""
    outcomes = Counter(node.outcome for node in made.nodes)
    downtime = Counter(node.downtime for node in made.nodes)
    fetch = sum(node.fetch for node in made.nodes)
    lines = [
        f"Snapshot {made.sequence} on {plural(len(made.nodes), 'node')} of {made.network}{_left_out(made)}:",
        *_oldest(made),
        f"  {outcomes['changes']} would change, {outcomes['held']} would be held back, "
        f"{outcomes['unchanged']} would stay as they are"
        + (f", {outcomes['unknown']} publish too little to tell" if outcomes["unknown"] else ""),
        f"  {downtime['swap']} would swap what serves, {downtime['start']} would start where nothing serves",
        _interruptions(made),
        f"  {size(fetch)} to fetch" + (":" if made.fetch_by_host else ""),
    ]
    lines += [f"    {size(count)} from {host}" for host, count in made.fetch_by_host.items()]
    for rollout in made.rollouts:
        waves = ", ".join(f"{wave.wave} {wave.nodes}" for wave in rollout.waves)
        lines.append(
            f"  Rollout {rollout.key} at {rollout.share}%: {rollout.reached} of {rollout.nodes} nodes"
            + (f" ({waves})" if waves else "")
        )
    lines += _reasons(made)
    shown = [node for node in made.nodes if node.outcome != "unchanged"]
    if shown:
        lines += ["", *table(("Node", "Outcome", "Serves", "Fetch", "Downtime", "Held"), map(_row, shown[:SHOWN]))]
    if len(shown) > SHOWN:
        lines.append(f"... and {len(shown) - SHOWN} more; --json has them all")
    return lines


def _left_out(made: FleetPlan) -> str:
    """Documents of the inventory that count for nothing."""
    of_others = f"{plural(made.elsewhere, 'document')} of other networks" if made.elsewhere else ""
    older = f"{plural(made.superseded, 'older document')} of the same nodes" if made.superseded else ""
    parts = [part for part in (older, of_others) if part]
    return f" (left out: {', '.join(parts)})" if parts else ""


def _oldest(made: FleetPlan) -> list[str]:
    """How far back the inventory reaches: what nodes said long ago may not be so any more."""
    known = [(node.as_of, node.node) for node in made.nodes if node.as_of is not None]
    if not known:
        return []
    told, node = min(known)
    return [f"  by what they published, the oldest of it {relative_time(told, made.made_at)} ({node})"]


def _reasons(made: FleetPlan) -> list[str]:
    """What is held back, on how many nodes, and in whose words: the most frequent, or the only ones."""
    nodes: Counter[str] = Counter()
    said: dict[str, Counter[str]] = {}
    for node in made.nodes:
        nodes.update({held.reason for held in node.held})
        for held in node.held:
            said.setdefault(held.reason, Counter())[held.message] += 1
    lines = []
    for reason, count in sorted(nodes.items()):
        most = [message for message, _ in said[reason].most_common(SAID)]
        more = f" (and {len(said[reason]) - SAID} others)" if len(said[reason]) > SAID else ""
        lines.append(f"  {paint(reason, 'yellow')} on {plural(count, 'node')}: {'; '.join(most)}{more}")
    opens = sorted({node.opens for node in made.nodes if node.opens is not None})
    if opens:
        last = f", the last at {opens[-1]:%Y-%m-%d %H:%M}Z" if len(opens) > 1 else ""
        lines.append(f"  The first window opens at {opens[0]:%Y-%m-%d %H:%M}Z{last}")
    return lines


def _interruptions(made: FleetPlan) -> str:
    """How long clients will wait, as far as the nodes know."""
    hit = [node for node in made.nodes if node.downtime != "none"]
    known = [node.downtime_ms for node in hit if node.downtime_ms is not None]
    told = f", {duration(sum(known) / 1000)} in all, {duration(max(known) / 1000)} at most" if known else ""
    unknown = f", {len(hit) - len(known)} not measured yet" if len(known) < len(hit) else ""
    return f"  {len(hit)} would be interrupted{told}{unknown}"


def _row(node: NodeOutlook) -> tuple[str, ...]:
    unknown = node.outcome == "unknown"
    serves = "?" if unknown else node.after or "nothing"
    return (
        node.node,
        node.outcome,
        serves if node.before == node.after and not unknown else f"{node.before or 'nothing'} -> {serves}",
        size(node.fetch) if node.fetch else "-",
        node.downtime if node.downtime_ms is None else f"{node.downtime}, {duration(node.downtime_ms / 1000)}",
        "; ".join(f"{held.subject}: {held.reason}" for held in node.held) or "-",
    )
