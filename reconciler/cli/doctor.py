"""`reconcile doctor`."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Final

import click

from reconciler.cli import wiring
from reconciler.cli.console import emit, paint, say
from reconciler.cli.node import config_option, json_option

if TYPE_CHECKING:
    from reconciler.doctor import Check, Patient
    from schemas.node import NodeConfig

_MARKS: Final = {"ok": ("ok     ", "green"), "warning": ("warning", "yellow"), "failure": ("FAILURE", "red")}


@click.command()
@config_option
@json_option
def doctor(config_file: str | None, as_json: bool) -> int:
    """Look for what keeps this node from working, and say how to mend it.

    Changes nothing. Ends with 1 where something is broken; warnings alone are 0.
    """
    from reconciler.doctor import Check, examine

    path = wiring.config_path(config_file)
    config = wiring.load_config(path)
    checks = [Check("configuration", "ok", str(path))]
    if not as_json:
        _show(checks[0])
    for check in examine(_patient(config)):
        checks.append(check)
        if not as_json:
            _show(check)
    broken = sum(check.verdict == "failure" for check in checks)
    doubtful = sum(check.verdict == "warning" for check in checks)
    if as_json:
        emit({"kind": "Examination", "checks": [asdict(check) for check in checks]})
    else:
        say("", f"{len(checks)} checks: {broken} broken, {doubtful} doubtful." if broken + doubtful else "All is well.")
    return 1 if broken else 0


def _show(check: Check) -> None:
    mark, colour = _MARKS[check.verdict]
    say(f"{paint(mark, colour)}  {paint(check.subject, 'bold')}: {check.message}")
    if check.mend:
        say(f"         {check.mend}")


def _patient(config: NodeConfig) -> Patient:
    from reconciler.doctor import Patient
    from reconciler.identity import node_address
    from reconciler.state_dir import StateDir
    from runtime.engines.registry import engines
    from schemas.errors import ReconcileError

    state, ports = StateDir(Path(config.state_dir)), wiring.host()
    try:
        node = node_address(state)
    except ReconcileError:
        node = ""  # which one of the checks says
    return Patient(
        config=config,
        journal=lambda: wiring.open_journal(state, readonly=True),
        ports=ports,
        backends=wiring.build_backends(config, state, node, ports),
        engines=engines(),
        hardware=wiring.build_hardware(config, state, node).read,
        front=wiring.build_front(config, state, ports),
    )
