"""`reconcile service`: how an operating system looks after the daemon."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from reconciler.cli import wiring
from reconciler.cli.node import config_option


@click.command()
@config_option
@click.option("--stop-runtime", is_flag=True, help="Let the runtime end with the service; it serves on otherwise.")
def service(config_file: str | None, *, stop_runtime: bool) -> None:
    """Print a systemd unit for this node's daemon.

    Save it as /etc/systemd/system/reconcile.service. It is hardened as far as engines allow that outlive the agent.
    """
    from reconciler.service import unit

    path = wiring.config_path(config_file)
    wiring.load_config(path)  # a unit for what cannot be used would only fail later
    # Beside the interpreter that runs this, not what a PATH finds: that may be another version.
    program = Path(sys.executable).with_name("reconcile")
    click.echo(unit(program, path.absolute(), stop_runtime=stop_runtime), nl=False)
