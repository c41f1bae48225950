"""`reconcile audit`: whether receipts are what their nodes wrote; here, or anywhere from an export alone."""

from __future__ import annotations

import json
import sys
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Final

import click

from reconciler.cli import wiring
from reconciler.cli.console import paint, plural, relative_time, table
from reconciler.cli.node import config_option, json_option
from schemas.errors import ConfigError, KeyLocked, UsageError
from schemas.refusals import LimitExceeded, MalformedDocument

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime

    from reconciler.journal import Journal
    from schemas.node import NodeConfig
    from schemas.receipt import AuditReport, ReceiptChain

EXIT_FOUND: Final = 1
EXPORT_LIMIT: Final = 2**29
"""Bytes of an export: a century of retests every six hours."""


@click.command()
@click.option(
    "--receipts",
    type=click.Path(exists=True, path_type=Path),
    metavar="DIR|FILE",
    help="Audit an export, or every export of a folder; no node is needed.",
)
@click.option("--node", "address", metavar="ADDRESS", help="With --receipts FILE: the node's address, as you know it.")
@click.option("--export", "export", type=click.Path(dir_okay=False, path_type=Path), help="Write this node's receipts.")
@config_option
@json_option
def audit(
    receipts: Path | None, address: str | None, export: Path | None, config_file: str | None, *, as_json: bool
) -> None:
    """Verify receipts offline: signatures, hashes, numbers, gaps, and what is void.

    Without --receipts: this node's own, and that its journal decides from nothing else. Exits with 1 if anything is not
    as the node wrote it.
    """
    if receipts is not None:
        if export is not None:
            raise UsageError("--export writes this node's receipts; it does not go with --receipts")
        reports = _audit_exports(receipts, address)
    else:
        if address is not None:
            raise UsageError("--node goes with --receipts")
        reports = [_audit_here(wiring.load_config(wiring.config_path(config_file)), export)]
    if as_json:
        click.echo(json.dumps({"formatVersion": "1", "reports": [json.loads(item.to_json()) for item in reports]}))
    else:
        from runtime.host import SystemClock

        click.echo("\n\n".join(audit_text(report, SystemClock().now()) for report in reports))
        if export is not None:
            click.echo(f"\nWritten to {export}; `reconcile audit --receipts FILE --node ADDRESS` verifies it anywhere.")
    if any(report.findings for report in reports):
        sys.exit(EXIT_FOUND)


def _recover(content: str, signature: str) -> str:
    from desired_state.receipt_signing import typed
    from desired_state.signatures import recover

    return recover(typed(content.encode()), signature)


# --- exports ------------------------------------------------------------------------------------------------------


def _audit_exports(path: Path, address: str | None) -> list[AuditReport]:
    from reconciler.audit import audit_export, forks

    node = _checksummed(address) if address is not None else None
    if path.is_dir() and node is not None:
        raise UsageError("--node names one node, and a folder may hold exports of several")
    files = sorted(path.glob("*.json")) if path.is_dir() else [path]
    chains = [(str(file), _read(file)) for file in files]
    reports = [audit_export(chain, source=name, node=node, recover=_recover) for name, chain in chains]
    forked = forks(chains)
    return [
        report.model_copy(
            update={"findings": (*report.findings, *(item for name, item in forked if name == report.source))}
        )
        for report in reports
    ]


def _checksummed(address: str) -> str:
    from desired_state.signatures import checksum

    try:
        return checksum(address)
    except ValueError as error:
        raise UsageError(str(error)) from error


def _read(path: Path) -> ReceiptChain:
    from schemas.receipt import ReceiptChain

    with path.open("rb") as file:
        content = file.read(EXPORT_LIMIT + 1)
    if len(content) > EXPORT_LIMIT:
        raise LimitExceeded(f"larger than {EXPORT_LIMIT} bytes", file=str(path))
    try:
        return ReceiptChain.model_validate_json(content)
    except ValueError as error:
        first = str(error).partition("\n")
        raise MalformedDocument(
            f"not an export of receipts: {first[0]}", file=str(path), hint="`reconcile audit --export FILE` makes one"
        ) from error


# --- this node ----------------------------------------------------------------------------------------------------


def _audit_here(config: NodeConfig, export: Path | None) -> AuditReport:
    from reconciler.audit import audit_journal
    from reconciler.identity import node_address
    from reconciler.state_dir import StateDir

    state = StateDir(Path(config.state_dir))
    node = node_address(state)
    with closing(wiring.open_journal(state, readonly=True)) as journal:
        rows, last = journal.chain.rows(), journal.chain.last_number()
        if export is not None:
            chain = _export(config, state.root, node, journal)
            wiring.host().files.write(export.absolute(), chain.to_json().encode() + b"\n")
    return audit_journal(rows, last_number=last, network=config.network, node=node, recover=_recover)


def _export(config: NodeConfig, root: Path, node: str, journal: Journal) -> ReceiptChain:
    """Everything, with a signed end; what waits for its signature gets one in the export, if the identity is open."""
    from desired_state.receipt_signing import BATCH
    from reconciler.audit import entry_of
    from reconciler.signing import ReceiptSigner
    from reconciler.state_dir import StateDir
    from schemas.base import API_VERSION
    from schemas.receipt import ChainHead, ReceiptChain

    ports = wiring.host()
    rows = journal.chain.rows()
    head = ChainHead(
        api_version=API_VERSION,
        kind="ReceiptHead",
        network=config.network,
        node=node,
        number=rows[-1].number if rows else 0,
        digest=rows[-1].digest if rows else None,
        issued_at=ports.clock.now().replace(microsecond=0),
        agent=wiring.agent_version(),
    ).to_json()
    signer = ReceiptSigner(StateDir(root), config.identity, node_id=node, journal=journal, ports=ports)
    waiting = [row.content for row in rows if row.content and not row.signature]
    statements = [*waiting, head]
    signed: dict[str, str] = {}
    try:
        for at in range(0, len(statements), BATCH):
            batch = statements[at : at + BATCH]
            signed.update(zip(batch, signer.sign(batch, ports.stop), strict=True))
    except (ConfigError, KeyLocked) as error:
        click.echo(f"{error.reason}: {error.message}: the export's end is not signed", err=True)
    entries = tuple(entry_of(row) for row in rows)
    return ReceiptChain(
        network=config.network,
        node=node,
        entries=tuple(
            item.model_copy(update={"signature": signed[item.content]}) if item.content in signed else item
            for item in entries
        ),
        head=head,
        head_signature=signed.get(head),
    )


# --- for people ---------------------------------------------------------------------------------------------------


def audit_text(report: AuditReport, now: datetime) -> str:
    """What an audit came to."""
    claimed = " (claimed by the export: compare it with an address from elsewhere)" if report.claimed else ""
    lines = [
        f"Receipts  {report.source}",
        f"Node      {report.node} in {report.network}{paint(claimed, 'yellow') if claimed else ''}",
        f"Chain     {plural(report.statements, 'statement')}: {report.signed} signed, {report.pending} not signed yet"
        + (f", {report.legacy} from before receipts were signed" if report.legacy else ""),
    ]
    if not report.head_signed:
        lines.append(paint("End       not signed: what may have been cut off behind it is not missed", "yellow"))
    rows = [
        (
            str(item.number),
            item.model,
            relative_time(item.issued_at, now),
            item.strength,
            "yes" if item.signed else "no",
        )
        for item in report.standing
    ]
    proven = table(("Number", "Proven", "When", "By", "Signed"), rows) if rows else ["Nothing is proven now."]
    lines += ["", *proven, "", *_findings(report)]
    return "\n".join(lines)


def _findings(report: AuditReport) -> Sequence[str]:
    if not report.findings:
        return [paint("The chain holds.", "green")]
    rows = [(str(item.number or "-"), item.reason, item.message) for item in report.findings]
    return [
        paint(f"{plural(len(rows), 'thing')} in it cannot be as the node wrote it:", "red"),
        *table(("Number", "Reason", "What"), rows),
    ]
