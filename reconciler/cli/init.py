"""`reconcile init`: make this machine a node of a network."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from reconciler.cli import wiring
from reconciler.cli.console import next_steps, paint, say, warn

if TYPE_CHECKING:
    from reconciler.state_dir import StateDir
    from schemas.ports import Ports
    from schemas.trust import TrustDocument

DOCKER_SOCKET = "/var/run/docker.sock"
PODMAN_SOCKET = "/run/podman/podman.sock"


@click.command()
@click.option("--network", required=True, help="Name of the network.")
@click.option("--repository", "repositories", multiple=True, help="Git URL of the network; repeatable.")
@click.option(
    "--bundle",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="Take the first trust from a bundle: a node that is fed by hand needs no repository.",
)
@click.option("--branch", default="main", show_default=True, help="Branch that holds the documents.")
@click.option("--trust", "pin", help="Digest of trust/1.yaml (blake3:...), as the operators publish it.")
@click.option("--state-dir", type=click.Path(path_type=Path), help="Where the node keeps everything.")
@click.option("--config", "-c", "config_file", type=click.Path(path_type=Path), help="The configuration to write.")
@click.option("--account", help="Wallet address or e-mail of whoever controls this node.")
@click.option("--label", "labels", multiple=True, metavar="KEY=VALUE", help="Label for selectors; repeatable.")
@click.option(
    "--backend",
    "backends",
    multiple=True,
    type=click.Choice(["docker", "podman", "native"]),
    help="How engines are run here; repeatable. Default: the container engines that answer, else native.",
)
@click.option("--docker-socket", default=DOCKER_SOCKET, show_default=True)
@click.option("--podman-socket", default=PODMAN_SOCKET, show_default=True)
@click.option("--allow-http", is_flag=True, help="Let models be fetched over plain http (they are verified anyway).")
@click.option("--allow-private", is_flag=True, help="Let models be fetched from private and loopback addresses.")
@click.option("--allow-unenforced", multiple=True, help="A restriction that need not be enforced here; repeatable.")
@click.option("--password-file", type=click.Path(exists=True, dir_okay=False, path_type=Path), help="Encrypts the key.")
@click.option("--accept-current", is_flag=True, help="Forget a lost or contradictory mark; see the documentation.")
@click.option("--yes", "-y", is_flag=True, help="Do not ask.")
def init(pin: str | None, state_dir: Path | None, config_file: Path | None, yes: bool, **given: Any) -> None:
    """Make this machine a node: its key, the trust it starts from, its configuration.

    Run it again to change the configuration; the key is kept.
    """
    from desired_state.signatures import checksum
    from reconciler.state_dir import StateDir
    from runtime.host import host_ports

    ports = host_ports()
    if not given["repositories"] and given["bundle"] is None:
        raise click.UsageError("name the network's repository with --repository, or a bundle with --bundle")
    if given["account"] and given["account"].startswith("0x"):
        given["account"] = checksum(given["account"])
    root = (state_dir or _default_state(given["network"])).absolute()
    state = StateDir(root)
    for folder in (state.root, state.models, state.run, state.logs):
        ports.files.make_folder(folder, mode=0o700)
    if given["accept_current"]:
        _forget_mark(state, ports)
    document, digest = _trust(given, pin, ports, yes=yes)
    from reconciler.identity import create_identity

    existed = state.identity.exists()
    address = create_identity(state, password_file=given["password_file"], ports=ports)
    path = (config_file or _default_config()).absolute()
    ports.files.make_folder(path.parent)
    ports.files.write(path, _config(given, root, digest).encode())
    wiring.load_config(path)
    wiring.open_journal(state, readonly=False).close()
    roles = document.spec.roles
    say(
        f"Node      {paint(address, 'bold')}" + (" (kept)" if existed else ""),
        f"Network   {document.metadata.network}",
        f"Trust     {digest}",
        f"          snapshots need {roles.snapshot.threshold} of {len(roles.snapshot.signers)} signatures",
        f"State     {root}",
        f"Config    {path}",
    )
    if given["password_file"] is None and not existed:
        warn("the node's key is not encrypted; its file is readable by this user alone")
    if given["bundle"] is not None:
        next_steps(f"reconcile snapshot import {given['bundle']} --config {path}", f"reconcile --config {path}")
    else:
        next_steps(f"reconcile plan --config {path}", f"reconcile --config {path}")


def _default_state(network: str) -> Path:
    if os.geteuid() == 0:
        return Path("/var/lib/reconcile") / network
    home = Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state")
    return home / "reconcile" / network


def _default_config() -> Path:
    if os.geteuid() == 0:
        return Path("/etc/reconcile/node.yaml")
    home = Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config")
    return home / "reconcile" / "node.yaml"


def _forget_mark(state: StateDir, ports: Ports) -> None:
    """What `MarkLost` asks for, after a person compared the network's newest snapshot with another node."""
    from reconciler.source import forget_mark

    journal = wiring.open_journal(state, readonly=False)
    try:
        forget_mark(state, journal, ports)
    finally:
        journal.close()


def _trust(given: dict[str, Any], pin: str | None, ports: Ports, *, yes: bool) -> tuple[TrustDocument, str]:
    """The first trust document: the one that was named, or the one that the repository has, if a person says so."""
    from tempfile import TemporaryDirectory

    from desired_state.git_source import GitSettings, GitSource
    from desired_state.load import load_trust
    from desired_state.trust import verify_first
    from schemas.bundle import BRANCH
    from schemas.digests import digest_bytes
    from schemas.refusals import TrustBroken

    source = GitSource(ports, GitSettings(timeout=120.0, max_bytes=2**28, environment=dict(os.environ)))
    with TemporaryDirectory(prefix="reconcile-init-") as folder:
        mirror = Path(folder) / "repo.git"
        if given["bundle"] is not None:
            url, branch = _unpacked(given["bundle"], Path(folder) / "documents.bundle", ports), BRANCH
        else:
            url, branch = given["repositories"][0], given["branch"]
        commit = source.fetch(url, branch, mirror)
        links = load_trust(source.files(mirror, commit), given["network"], above=0)
    if not links or links[0].version != 1:
        raise TrustBroken(
            f"the repository has no networks/{given['network']}/trust/1.yaml", hint="is the network's name right?"
        )
    digest = digest_bytes(links[0].content)
    trust = verify_first(links[0].content, pin or digest, given["network"], file=links[0].file)
    if pin is None and not yes:
        say(f"The first trust document is {paint(digest, 'bold')}.")
        say("Compare it with what the network's operators publish elsewhere; everything else follows from it.")
        click.confirm("Trust it?", abort=True)
    return trust.document, digest


def _unpacked(path: Path, target: Path, ports: Ports) -> str:
    """The documents of a bundle as a file that git reads."""
    from reconciler.bundles.container import opened

    with opened(path) as bundle:
        ports.files.write(target, bundle.read(bundle.documents, 2**28))
    return str(target)


def _config(given: dict[str, Any], root: Path, digest: str) -> str:
    lines = [
        "# A node's configuration. Change it by hand; a running daemon reads it again at once.",
        "# `reconcile schema print node` prints the JSON Schema that an editor checks it against.",
        "apiVersion: reconcile/v1alpha1",
        "kind: Node",
        f"network: {given['network']}",
        "repositories:" if given["repositories"] else "repositories: []",
        *(f"  - url: {_quoted(url)}" for url in given["repositories"]),
        f"branch: {_quoted(given['branch'])}",
        "trust:",
        f"  digest: {_quoted(digest)}",
        f"stateDir: {_quoted(str(root))}",
    ]
    if given["account"]:
        lines.append(f"account: {_quoted(given['account'])}")
    if given["labels"]:
        lines.append("labels:")
        for label in given["labels"]:
            key, equals, value = label.partition("=")
            if not equals:
                raise click.BadParameter(f"{label!r} is not KEY=VALUE", param_hint="--label")
            lines.append(f"  {_quoted(key)}: {_quoted(value)}")
    if given["password_file"]:
        lines += ["identity:", f"  passwordFile: {_quoted(str(given['password_file'].absolute()))}"]
    lines += ["backends:", *_backends(given)]
    if given["allow_http"] or given["allow_private"]:
        lines += ["policy:", "  sources:"]
        lines += ["    allowHttp: true"] * given["allow_http"]
        lines += ["    allowPrivate: true"] * given["allow_private"]
    return "\n".join(lines) + "\n"


def _backends(given: dict[str, Any]) -> list[str]:
    allowed = ", ".join(given["allow_unenforced"])
    lines = []
    for name in given["backends"] or _found(given):
        lines.append(f"  {name}:")
        if name != "native":
            lines.append(f"    socket: {_quoted(given[f'{name}_socket'])}")
        else:
            lines.append("    enabled: true")
        if allowed:
            lines.append(f"    allowUnenforced: [{allowed}]")
    return lines


def _found(given: dict[str, Any]) -> list[str]:
    """Container engines whose sockets are there; native where there are none."""
    found = [name for name in ("docker", "podman") if Path(given[f"{name}_socket"]).is_socket()]
    return found or ["native"]


def _quoted(text: str) -> str:
    import json

    # A JSON string is a YAML string, with every character that could mean something escaped.
    return json.dumps(text)
