"""`reconcile rollback`: a person wants what was good before, now."""

from __future__ import annotations

import sys
from contextlib import closing
from typing import TYPE_CHECKING

import click

from reconciler.cli import wiring
from reconciler.cli.node import config_option, json_option

if TYPE_CHECKING:
    from reconciler.loop import PassResult, Reconciler
    from reconciler.rollback import WayBack
    from reconciler.state_dir import StateDir
    from schemas.control import Rollback
    from schemas.node import NodeConfig


@click.command()
@click.argument("to", default="", metavar="[ID]")
@click.option("--reason", default="by hand", show_default=True, help="Why; it is kept, and shown.")
@config_option
@json_option
def rollback(to: str, reason: str, config_file: str | None, *, as_json: bool) -> None:
    """Serve what was good before what is wanted now.

    ID names it: the digest of the snapshot that wanted it, as `reconcile history` shows it, or how that begins; or the
    model. Without one: the newest that is something else. What is left is remembered as a bad subject is: until it
    changes, a signed `retry` names it, or `reconcile retry`. Nothing unverified and nothing withdrawn comes back.
    Exits with 6: what serves is not what the snapshot wants.
    """
    from reconciler.cli.passes import make_pass, state_of
    from reconciler.verbs import record
    from runtime.host import SystemClock

    config = wiring.load_config(wiring.config_path(config_file))
    state = state_of(config)
    back, question = _decide(config, state, to, reason)
    if not as_json:
        left = ", ".join(target.model for target in back.leave) or "nothing"
        proven = f"proven {back.good.since:%Y-%m-%d %H:%M}Z"
        click.echo(f"Going back to {back.good.target.model} ({proven}); held back: {left}.", err=True)

    def here(reconciler: Reconciler) -> PassResult:
        with closing(wiring.open_journal(state, readonly=False)) as journal:
            record(question, journal, SystemClock().now())
        return reconciler.run_pass()

    sys.exit(make_pass(config, question, here, as_json=as_json))


def _decide(config: NodeConfig, state: StateDir, to: str, reason: str) -> tuple[WayBack, Rollback]:
    """What is gone back to, and what has to be recorded for it; looks only.

    Raises:
        NothingToGoBackTo: there is no way back.
    """
    from reconciler.rollback import way_back
    from schemas.control import Left, Rollback
    from schemas.errors import NothingToGoBackTo

    with closing(wiring.open_journal(state, readonly=True)) as journal:
        node = wiring.build_node(config, journal, ports=wiring.host(), progress=_silent)
        accepted = journal.accepted()
        if accepted is None:
            raise NothingToGoBackTo("no snapshot was accepted yet", hint="run `reconcile` once")
        desired, observed = node.look(accepted.digest)
        back = way_back(desired, observed, config, node.adapters.ports.clock.now(), to)
        accelerator = observed.state.hardware.accelerator
    left = tuple(
        Left(subject=target.subject(accelerator), model=target.model, snapshot=desired.digest) for target in back.leave
    )
    return back, Rollback(to=back.good.target.model, leave=left, why=reason)


def _silent(subject: str, done: int, total: int) -> None:
    pass
