"""`reconcile logs`: what the runtime printed, and what those before it did."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from reconciler.cli import wiring
from reconciler.cli.node import config_option

if TYPE_CHECKING:
    from collections.abc import Iterator

    from reconciler.state_dir import StateDir
    from runtime.interfaces import Backend
    from schemas.node import NodeConfig
    from schemas.observation import Instance
    from schemas.ports import Stop


@click.command()
@click.argument("instance", default="")
@config_option
@click.option("--follow", "-f", is_flag=True, help="Go on as it is printed, until the instance ends.")
@click.option(
    "--tail", "lines", type=click.IntRange(0, 10**6), default=200, show_default=True, help="Lines to begin with."
)
@click.option("--list", "listing", is_flag=True, help="List the instances whose output is kept, newest first.")
def logs(instance: str, config_file: str | None, follow: bool, lines: int, listing: bool) -> None:
    """Show what INSTANCE printed: what runs, or ran last, unless one is named. Past instances are kept for a while."""
    from reconciler.state_dir import StateDir
    from reconciler.watch import Wake
    from runtime import logs as files
    from schemas.errors import UsageError

    config = wiring.load_config(wiring.config_path(config_file))
    state = StateDir(Path(config.state_dir))
    kept = files.instances(state.logs)
    present = {} if instance and instance in kept and not follow else _present(config, state)
    if listing:
        for name in sorted({*kept, *present}, key=lambda name: kept.index(name) if name in kept else -1):
            click.echo(f"{name}  {present[name][1].status if name in present else 'gone'}")
        return
    running = [name for name, (_, seen) in present.items() if seen.status == "running"]
    name = instance or next(iter([*running, *kept]), "")
    if not name:
        raise UsageError("nothing has run here yet")
    if name not in present and name not in kept:
        raise UsageError(f"nothing is kept of {name}", hint="`reconcile logs --list` says what there is")
    wake = Wake()
    if follow:
        wake.on_signals()
    for part in _printed(name, present.get(name), state, lines=lines, follow=follow, stop=wake):
        sys.stdout.buffer.write(part)
        sys.stdout.buffer.flush()


def _present(config: NodeConfig, state: StateDir) -> dict[str, tuple[Backend, Instance]]:
    """The instances that there are, by name; backends that do not answer have none to show."""
    from reconciler.identity import node_address
    from schemas.errors import BackendUnavailable

    found = {}
    for backend in wiring.build_backends(config, state, node_address(state), wiring.host()).values():
        try:
            found.update({item.name: (backend, item) for item in backend.list()})
        except BackendUnavailable as error:
            click.echo(f"warning: {error.message}", err=True)
    return found


def _printed(
    name: str, present: tuple[Backend, Instance] | None, state: StateDir, *, lines: int, follow: bool, stop: Stop
) -> Iterator[bytes]:
    from runtime import logs as files

    if present is not None:
        yield from present[0].printed(name, lines=lines, follow=follow, stop=stop)
        return
    yield from files.read(state.logs / name, lines=lines)
