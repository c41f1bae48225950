"""`reconcile probe`: record what a healthy model answers."""

from __future__ import annotations

import json
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from reconciler.cli.console import next_steps, plural, say

if TYPE_CHECKING:
    from collections.abc import Iterator

    from runtime.interfaces import Backend, Engine, EngineConnection
    from schemas.manifest import ManifestDocument
    from schemas.ports import Ports
    from schemas.probe import ProbeSpec
    from schemas.target import ServingTarget

START_SECONDS = 600


@click.group()
def probe() -> None:
    """Record what a healthy model answers."""


@probe.command()
@click.option("--model", "key", required=True, metavar="NAME:VERSION", help="The model, as its manifest names it.")
@click.option("--model-path", required=True, type=click.Path(exists=True, path_type=Path), help="Its files.")
@click.option("--engine", "engine_name", default="llamacpp", show_default=True, help="The engine to record from.")
@click.option("--repo", default=".", type=click.Path(exists=True, file_okay=False, path_type=Path), help="The network.")
@click.option("--out", type=click.Path(path_type=Path), help="Where to write [default: probes/NAME-VERSION.yaml].")
@click.option("--context-size", default=512, show_default=True, type=click.IntRange(64), help="Tokens of context.")
@click.option("--threads", type=click.IntRange(1), help="Threads of the engine.")
@click.option("--image", help="Record from a container of this image (name@sha256:...) instead of natively.")
@click.option("--docker-socket", default="/var/run/docker.sock", show_default=True)
def record(key: str, model_path: Path, engine_name: str, repo: Path, out: Path | None, **given: Any) -> None:
    """Start the engine on the model's files, ask it, and write what it answered.

    Do this on a machine that you trust, with the files that the manifest describes: every node is judged by it.
    """
    from runtime.engines.registry import engines
    from runtime.host import host_ports
    from runtime.validation.record import record as ask
    from schemas.errors import UsageError
    from schemas.probe import Provenance

    known = engines()
    if engine_name not in known:
        raise UsageError(f"{engine_name!r} is not an engine of this agent: {', '.join(sorted(known))}")
    manifest, digest = _manifest(repo, key)
    _check_bytes(manifest, model_path, key)
    engine, ports = known[engine_name], host_ports()
    version = given["image"] or (installed.version if (installed := engine.native()) else "")
    if not version:
        raise UsageError(f"{engine_name} is not installed here; record from an image with --image")
    recorded = Provenance(engine=engine_name, version=version, manifest=digest, machine=_processor())
    with _running(engine, manifest, digest, key, model_path, ports, given) as connection:
        spec = ask(engine, connection, recorded)
    name = key.replace(":", "-").lower().replace(".", "-").replace("_", "-")
    path = out or repo / "probes" / f"{name}.yaml"
    ports.files.make_folder(path.parent)
    ports.files.write(path, _text(name, key, spec).encode())
    say(
        f"Wrote {path}: {plural(len(spec.tokenizer), 'tokenizer case')}, {plural(len(spec.greedy), 'greedy case')}, "
        f"{sum(len(case.tokens) for case in spec.greedy)} tokens, recorded from {engine_name}."
    )
    _bind(repo, key, path)


@probe.command()
@click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
def show(file: Path) -> None:
    """Show what a probe asks."""
    from desired_state.load import parse_probe

    document = parse_probe(file.read_bytes(), file=str(file))
    recorded = document.spec.recorded
    say(
        f"Probe    {document.metadata.name} of {document.metadata.model}",
        f"Recorded {recorded.engine} {recorded.version} on {recorded.machine}",
        f"Manifest {recorded.manifest}",
    )
    for case in document.spec.tokenizer:
        said = case.messages[-1].content.replace("\n", " ")[:50]
        say(f"tokenizer  {plural(len(case.messages), 'turn')}, ends {said!r}: {plural(len(case.tokens), 'token')}")
    for greedy in document.spec.greedy:
        say(f"greedy     {plural(len(greedy.prompt), 'token')} of prompt: {' '.join(map(str, greedy.tokens[:8]))} ...")


# --- a model, running for a moment --------------------------------------------------------------------------------


@contextmanager
def _running(
    engine: Engine,
    manifest: ManifestDocument,
    digest: str,
    key: str,
    model_path: Path,
    ports: Ports,
    given: dict[str, Any],
) -> Iterator[EngineConnection]:
    """An instance of the engine on the model's files, gone afterwards."""
    from tempfile import TemporaryDirectory

    from runtime.connection import UnixConnection
    from runtime.interfaces import SOCKET_NAME, InstanceSpec
    from runtime.starting import start_instance

    intent = ports.randomness.token(6)
    name = f"reconcile-record-{intent}"
    with TemporaryDirectory(prefix="reconcile-") as folder:
        root = Path(folder)
        socket_folder, log_folder = root / "run" / name, root / "logs"
        for path in (socket_folder, log_folder):
            path.mkdir(parents=True, mode=0o755)
        target = _target(engine, digest, key, given)
        backend = _backend(root, given, ports)
        model_folder = model_path.absolute() if model_path.is_dir() else _alone(model_path, root / "model")
        view = backend.view(model_folder=model_folder, socket_folder=socket_folder)
        spec = InstanceSpec(
            name=name,
            intent=intent,
            network="record",
            node_id="record",
            target=target,
            launch=engine.launch(target, manifest, view),
            model_folder=model_folder,
            socket_folder=socket_folder,
            log_folder=log_folder,
            log_limit=2**22,
        )
        connection = UnixConnection(socket_folder / SOCKET_NAME, is_peer=lambda pid: backend.is_peer(name, pid))
        try:
            start_instance(backend, engine, spec, connection, clock=ports.clock, stop=ports.stop)
            yield connection
        finally:
            backend.stop(name, grace=1)
            backend.remove(name)


def _alone(file: Path, folder: Path) -> Path:
    """A folder that holds this file and no other: an engine is given folders, and refuses to choose among models."""
    import shutil

    folder.mkdir()
    target = folder / file.name
    try:
        target.hardlink_to(file.resolve())
    except OSError:  # another file system
        shutil.copyfile(file, target)
    return folder


def _backend(root: Path, given: dict[str, Any], ports: Ports) -> Backend:
    if given["image"]:
        from runtime.backends.docker_api import ContainerEngine

        return ContainerEngine("docker", socket=given["docker_socket"], network="record", node_id="record", ports=ports)
    from runtime.backends.native import NativeBackend

    return NativeBackend(root / "run", network="record", node_id="record", ports=ports)


def _target(engine: Engine, digest: str, key: str, given: dict[str, Any]) -> ServingTarget:
    from schemas.snapshot import FileRef, Isolation, LlamaCppArgs, Resources, Timeouts
    from schemas.target import ServingTarget

    installed = engine.native()
    return ServingTarget(
        runtime="record",
        engine=engine.name,  # type: ignore[arg-type] # one of the registry's names
        version=installed.version if installed else "0",
        mode="container" if given["image"] else "native",
        backend="docker" if given["image"] else "native",
        image=given["image"],
        environment=installed.environment if installed else None,
        engine_args=LlamaCppArgs(context_size=given["context_size"], threads=given["threads"]),
        isolation=Isolation(),
        resources=Resources(),
        timeouts=Timeouts(start=START_SECONDS),
        model=key,
        manifest=digest,
        probe=FileRef(path="probes/none.yaml", digest=digest),
    )


def _manifest(repo: Path, key: str) -> tuple[ManifestDocument, str]:
    """The model's manifest in the repository: made before the probe, which names it."""
    from desired_state.document import MANIFEST_LIMIT
    from desired_state.files import FolderFiles
    from desired_state.load import parse_manifest
    from schemas.digests import digest_bytes

    name, _, version = key.partition(":")
    path = f"models/{name}/{version}.yaml"
    content = FolderFiles(repo).read(path, MANIFEST_LIMIT)
    return parse_manifest(content, file=path), digest_bytes(content)


def _check_bytes(manifest: ManifestDocument, model_path: Path, key: str) -> None:
    """What is asked must be what the manifest describes: every node is judged by the answers."""
    from runtime.models.manifest_builder import build
    from schemas.errors import UsageError

    wanted = {file.path: file.blake3 for file in manifest.spec.files}
    here = {str(entry["path"]): str(entry["blake3"]) for entry in build(model_path).files}
    if wanted != here:
        differing = sorted(path for path in wanted.keys() | here.keys() if wanted.get(path) != here.get(path))
        raise UsageError(
            f"{model_path} is not what the manifest of {key} describes: {', '.join(differing[:3])} differ",
            hint="`reconcile model add` writes a manifest of other bytes, under another version",
        )


def _bind(repo: Path, key: str, path: Path) -> None:
    """Bind the probe where the snapshot lists the model; otherwise say what is next."""
    from desired_state.workspace import networks
    from reconciler.cli.drafts import finish
    from reconciler.cli.model import bind_probe, listed
    from reconciler.cli.operators import edit_snapshot, open_workspace

    inside = path.resolve().is_relative_to(repo.resolve())
    for network in networks(repo) if inside else ():
        workspace = open_workspace(repo, network)
        if not (workspace.root / workspace.snapshot_file).exists():
            continue
        document = edit_snapshot(workspace)
        where = listed(document, key)
        if where is not None:
            before = document.text
            bind_probe(workspace, document, where, path.absolute())
            finish(workspace, document, before)
            return
    next_steps(f"reconcile model add PATH --name NAME --version VERSION --probe {path}")


def _processor() -> str:
    from runtime.hardware import HostHardware

    return HostHardware(Path("/")).read().accelerator


def _text(name: str, key: str, spec: ProbeSpec) -> str:
    """YAML with one line per case: token ids are data. JSON text is YAML, but for its escapes of surrogates."""
    document = json.loads(spec.to_json())
    lines = [
        "# yaml-language-server: $schema=../.schemas/probe.v1alpha1.json",
        "# What a healthy model answers, recorded by `reconcile probe record`. Every node is judged by it.",
        "apiVersion: reconcile/v1alpha1",
        "kind: Probe",
        "metadata:",
        f"  name: {name}",
        f"  model: {json.dumps(key)}",
        "spec:",
        "  recorded:",
        *(f"    {field}: {json.dumps(value)}" for field, value in document["recorded"].items()),
    ]
    for kind in ("tokenizer", "greedy"):
        lines.append(f"  {kind}:")
        for case in document[kind]:
            fields = list(case.items())
            lines.append(f"    - {fields[0][0]}: {json.dumps(fields[0][1], ensure_ascii=False)}")
            lines += [f"      {field}: {json.dumps(value)}" for field, value in fields[1:]]
    return "\n".join(lines) + "\n"
