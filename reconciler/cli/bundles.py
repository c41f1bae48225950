"""`reconcile snapshot export` and `import`: a signed snapshot as one file, for nodes without a network."""

from __future__ import annotations

import json
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import click

from reconciler.cli import wiring
from reconciler.cli.console import emit, next_steps, plural, say, size, warn
from reconciler.cli.options import json_option
from reconciler.cli.transfer import Transfer
from schemas.errors import ConfigError, StateLocked, UsageError

if TYPE_CHECKING:
    from collections.abc import Callable

    from reconciler.bundles.exporting import Cargo, Exported
    from reconciler.bundles.importing import Imported
    from runtime.interfaces import Model
    from schemas.node import NodeConfig, SourcePolicy

_POLL_SECONDS = 0.2
"""How often the answer of a daemon is looked for."""
_NO_CONFIG = "no repository was named, and there is no node here whose configuration names one"
_LIMIT = 2**28
"""Bytes of documents, where no node's configuration says otherwise: what nodes let in by default."""


# --- export -------------------------------------------------------------------------------------------------------


@click.command()
@click.argument("out", type=click.Path(dir_okay=False, path_type=Path))
@click.option("--repository", metavar="DIR|URL", help="Repository of the network (default: the node's first).")
@click.option("--branch", help="Branch that holds the documents (default: the node's, or main).")
@click.option("--network", metavar="NAME", help="The network (default: the node's, or the only one).")
@click.option("--models", "all_models", is_flag=True, help="Take every model along that is not archived.")
@click.option("--model", "keys", multiple=True, metavar="MODEL:VERSION", help="Take this model along; repeatable.")
@click.option("--images", is_flag=True, help="Take container images along, from their registries.")
@click.option(
    "--platform",
    "platforms",
    multiple=True,
    type=click.Choice(["linux/amd64", "linux/arm64"]),
    help="With --images: for these machines only; repeatable [default: all that the snapshot names].",
)
@click.option("--allow-http", is_flag=True, help="Fetch models over plain http, too (they are verified anyway).")
@click.option("--allow-private", is_flag=True, help="Fetch models from private and loopback addresses, too.")
@click.option("--config", "-c", "config_file", metavar="FILE", help="Configuration of the node on this machine.")
@json_option
def export(out: Path, *, as_json: bool, **given: Any) -> None:
    """Write the published snapshot to OUT, one file that a node without a network imports.

    It has the signatures, the chain of trust and every document; with --models and --images also what they name, each
    byte checked on the way. What is exported is what was committed, and what a node would accept now. Models come from
    the store of the node on this machine where it has them, else from their sources.
    """
    if given["platforms"] and not given["images"]:
        raise UsageError("--platform goes with --images")
    config = _config(given)
    if not out.absolute().parent.is_dir():
        raise UsageError(f"{out.absolute().parent} is not a folder")
    with Transfer() as transfer:
        done = _export(out.absolute(), config, given, transfer)
    metadata = done.snapshot.document.metadata
    if as_json:
        emit(
            {
                "bundle": str(out),
                "size": done.size,
                "snapshot": done.snapshot.digest,
                "sequence": metadata.sequence,
                "pin": done.pin,
                "models": list(done.models),
                "images": list(done.images),
            }
        )
        return
    say(
        f"Wrote {out}: {size(done.size)}, snapshot {metadata.sequence} of {metadata.network}, "
        f"{plural(len(done.models), 'model')}, {plural(len(done.images), 'image')}",
        f"Digest   {done.snapshot.digest}",
        f"Pin      {done.pin} (compare it with what the operators publish)",
    )
    next_steps(f"carry it to the node, and there: reconcile snapshot import {out.name}")


def _config(given: dict[str, Any]) -> NodeConfig | None:
    """The node's configuration, where there is one; it must be there only if nothing else names a repository."""
    try:
        return wiring.load_config(wiring.config_path(given["config_file"]))
    except ConfigError as error:
        if given["config_file"]:
            raise
        if not given["repository"]:
            raise UsageError(_NO_CONFIG, hint="name one with --repository DIR|URL") from error
        return None


def _export(out: Path, config: NodeConfig | None, given: dict[str, Any], transfer: Transfer) -> Exported:
    from reconciler.bundles.exporting import Exporter
    from reconciler.cli.operators import ports

    agent, now = wiring.agent_version(), ports().clock.now()
    limit = config.max_repository if config else _LIMIT
    with TemporaryDirectory(prefix="reconcile-export-") as folder:
        from desired_state.git_source import GitSource
        from reconciler.inquiry import git_settings

        git = GitSource(ports(), git_settings(config))
        branch = given["branch"] or (config.branch if config else "main")
        mirror = Path(folder) / "repo.git"
        files = git.files(mirror, git.fetch(_address(config, given["repository"]), branch, mirror))
        network = given["network"] or (config.network if config and not given["repository"] else _only_network(files))
        exporter = Exporter(git, Path(folder), wiring.host(transfer.stop), transfer.told, _registry)
        return exporter.export(files, network, _cargo(config, given), out, agent=agent, now=now, limit=limit)


def _address(config: NodeConfig | None, given: str | None) -> str:
    """The repository that was named, or the node's first."""
    if given is not None:
        return str(Path(given).resolve()) if Path(given).is_dir() else given
    if config is None or not config.repositories:
        raise UsageError(_NO_CONFIG, hint="name one with --repository DIR|URL")
    return config.repositories[0].url


def _only_network(files: Any) -> str:
    known = files.folders("networks")
    if len(known) != 1:
        found = f"it has {', '.join(known)}" if known else "it has no networks/"
        raise UsageError(f"which network of the repository? {found}", hint="name it with --network")
    return str(known[0])


def _cargo(config: NodeConfig | None, given: dict[str, Any]) -> Cargo:
    from reconciler.bundles.exporting import Cargo

    keys = set(given["keys"])
    return Cargo(
        models=lambda spec: spec.key in keys or (given["all_models"] and spec.state != "archived"),
        keys=tuple(given["keys"]),
        platforms=(given["platforms"] or ("linux/amd64", "linux/arm64")) if given["images"] else (),
        folder=_stored(config),
        policy=_policy(config, given),
    )


def _policy(config: NodeConfig | None, given: dict[str, Any]) -> SourcePolicy:
    from schemas.node import SourcePolicy

    policy = config.policy.sources if config else SourcePolicy()
    allowed = {name: True for name in ("allow_http", "allow_private") if given[name]}
    return policy.model_copy(update=allowed)


def _stored(config: NodeConfig | None) -> Callable[[Model], Path | None]:
    """Where the node on this machine has a model."""
    if config is None:
        return lambda _model: None
    store = wiring.build_store(config, wiring.host())

    def folder(model: Model) -> Path | None:
        try:
            return store.folder(model.digest)
        except (KeyError, OSError):
            return None

    return folder


def _registry(ref: str) -> Any:
    from runtime.registry import Registry

    return Registry(ref)


# --- import -------------------------------------------------------------------------------------------------------


@click.command("import")
@click.argument("file", type=click.Path(dir_okay=False, path_type=Path))
@click.option("--check", is_flag=True, help="Only say what it holds, and whether this node would accept it.")
@click.option("--config", "-c", "config_file", metavar="FILE", help="The node's configuration.")
@json_option
def import_(file: Path, *, check: bool, config_file: str | None, as_json: bool) -> None:
    """Take a bundle in: verify it as this node verifies a repository, and bring its models and images into place.

    Nothing starts or stops: the next pass of the node does that, and `reconcile plan` shows it. Doing it again goes on
    where it was interrupted. A running daemon is asked to do it, and looks at once.
    """
    config = wiring.load_config(wiring.config_path(config_file))
    path = file.absolute()
    with Transfer() as transfer:
        if check:
            from reconciler.bundles.container import opened

            with (
                TemporaryDirectory(prefix="reconcile-import-") as folder,
                opened(path) as bundle,
                wiring.importing(config, bundle, transfer.told, transfer.stop, readonly=True) as job,
            ):
                done, by_daemon = job.check(Path(folder)), False
        else:
            done, by_daemon = _import(config, path, transfer)
    if as_json:
        emit({"checked": check, "daemon": by_daemon, **json.loads(done.to_json())})
        return
    _say(done, file, check=check, by_daemon=by_daemon)


def _import(config: NodeConfig, path: Path, transfer: Transfer) -> tuple[Imported, bool]:
    """Import here, or through whoever holds the state directory; returns whether it was a daemon."""
    from reconciler.asking import ask
    from reconciler.bundles.handover import Desk
    from reconciler.state_dir import StateDir
    from schemas.control import Notify
    from schemas.errors import DaemonUnreachable

    state = StateDir(Path(config.state_dir))
    ports = wiring.host(transfer.stop)
    desk, token = Desk(state, ports.files), ports.randomness.token(16)
    asked = False
    while True:
        try:
            with state.lock():
                desk.withdraw(token)
                return wiring.import_bundle(config, path, transfer.told, transfer.stop), False
        except StateLocked:
            if not asked:
                desk.ask(path, token)
                transfer.note("another reconciler holds this node, and is asked to import the bundle ...")
                asked = True
                try:
                    ask(state, Notify())
                except DaemonUnreachable:
                    transfer.note("it is not a daemon that can be woken: waiting until it is done ...")
        if transfer.stop.wait(_POLL_SECONDS):
            raise KeyboardInterrupt
        done = desk.answer(token)
        if done is not None:
            return done, True


def _say(done: Imported, file: Path, *, check: bool, by_daemon: bool) -> None:
    verb = "Verified" if check else "Imported"
    state = "already in force" if done.in_force else "accepted by this node's rules"
    say(f"{verb} {file}: snapshot {done.sequence}, {state}", f"Digest   {done.snapshot}")
    for title, names in (("Models", done.models), ("Images", done.images)):
        if names:
            say(f"{title}   {', '.join(names)}")
    if done.absent:
        warn(f"neither in the bundle nor on this node: {', '.join(done.absent)}")
    if check:
        next_steps(f"reconcile snapshot import {file}")
    elif by_daemon:
        say("The daemon looks at it now; `reconcile status` shows what comes of it.")
    elif not done.in_force:
        next_steps("reconcile plan", "reconcile")
