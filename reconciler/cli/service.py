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

    Save it as /etc/systemd/system/reconcile.service. It is hardened as far as this node's backends allow.
    """
    from reconciler.service import unit

    path = wiring.config_path(config_file)
    config = wiring.load_config(path)
    # Beside the interpreter that runs this, not what a PATH finds: that may be another version.
    program = Path(sys.executable).with_name("reconcile")
    engines = (config.backends.docker, config.backends.podman)
    text = unit(
        program,
        path.absolute(),
        Path(config.state_dir),
        containers=any(settings is not None and settings.enabled for settings in engines),
        stop_runtime=stop_runtime,
    )
    click.echo(text, nl=False)
