"""`reconcile probe`: record what a healthy model answers."""

from __future__ import annotations

import json
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from reconciler.cli.console import next_steps, plural, say

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    from reconciler.cli.recording import Source
    from schemas.manifest import ManifestDocument
    from schemas.ports import Ports
    from schemas.probe import ProbeSpec

FILE = click.Path(exists=True, dir_okay=False, path_type=Path)


@click.group()
def probe() -> None:
    """Record what a healthy model answers."""


@probe.command()
@click.option("--model", "key", required=True, metavar="NAME:VERSION", help="The model, as its manifest names it.")
@click.option(
    "--model-path", type=click.Path(exists=True, path_type=Path), help="Its files: an engine is started on them."
)
@click.option(
    "--from-node", type=FILE, metavar="CONFIG", help="Ask what serves on the node of this configuration instead."
)
@click.option("--engine", "engine_name", default="llamacpp", show_default=True, help="The engine to record from.")
@click.option("--repo", default=".", type=click.Path(exists=True, file_okay=False, path_type=Path), help="The network.")
@click.option("--out", type=click.Path(path_type=Path), help="Where to write [default: probes/NAME-VERSION.yaml].")
@click.option("--onto", type=FILE, help="Add this engine's thresholds to a recorded probe, and ask what it asks.")
@click.option("--golden", is_flag=True, help="With --onto: add this engine build's own answers as well.")
@click.option("--reference", type=click.Choice(["transformers"]), help="Take log-probabilities from this instead.")
@click.option("--reference-python", type=FILE, help="Interpreter that has torch and transformers [default: this one].")
@click.option("--passages", type=FILE, help="Texts to force instead of the built-in ones, with a blank line between.")
@click.option("--margin", default=1.3, show_default=True, type=click.FloatRange(1.3, 100), help="On honest spread.")
@click.option(
    "--false-rejects", default=0.001, show_default=True, type=click.FloatRange(1e-5, 0.1), help="Their share."
)
@click.option("--context-size", default=512, show_default=True, type=click.IntRange(64), help="Tokens of context.")
@click.option("--threads", type=click.IntRange(1), help="Threads of the engine.")
@click.option("--image", help="Record from a container of this image (name@sha256:...) instead of natively.")
@click.option("--docker-socket", default="/var/run/docker.sock", show_default=True)
def record(key: str, engine_name: str, repo: Path, out: Path | None, onto: Path | None, **given: Any) -> None:
    """Start the engine on the model's files, ask it, and write what it answered.

    It is asked again under other circumstances that are just as honest: another order, load, threads, batches. How far
    its answers spread then becomes the thresholds for this engine on this kind of processor or GPU.

    Do this on a machine that you trust, with the files that the manifest describes: every node is judged by it. With
    --from-node, what serves there is asked, in another order and under load; it cannot be started otherwise, so its
    thresholds are those of its own threads and batches.
    """
    from reconciler.cli.recording import Recorder, served
    from runtime.host import host_ports
    from schemas.errors import UsageError

    if given["golden"] and onto is None:
        raise UsageError("--golden adds to a recorded probe: name it with --onto")
    if onto is not None and given["reference"]:
        raise UsageError("--onto compares with the reference that the probe has: it takes no --reference")
    if (given["model_path"] is None) == (given["from_node"] is None):
        raise UsageError("name the model's files with --model-path, or a node that serves it with --from-node")
    manifest, digest = _manifest(repo, key)
    ports = host_ports()
    before = _onto(onto, key, digest) if onto is not None else None
    asked: AbstractContextManager[Source]
    if given["from_node"] is not None:
        asked = served(str(given["from_node"]), key, digest)
    else:
        asked = nullcontext(_started(engine_name, key, manifest, digest, ports, given))
    with asked as source:
        recorder = Recorder(source, ports, given)
        spec = recorder.new() if before is None else recorder.onto(before, golden=given["golden"])
    path = out or onto or repo / "probes" / f"{_name(key)}.yaml"
    ports.files.make_folder(path.parent)
    ports.files.write(path, _text(_name(key), key, spec).encode())
    said = spec.recorded
    say(
        f"Wrote {path}: {plural(len(spec.tokenizer) + len(spec.texts), 'tokenizer case')}, "
        f"{plural(len(spec.greedy), 'greedy case')}, {plural(len(spec.forced), 'forced case')} of "
        f"{sum(len(case.tokens) for case in spec.forced)} tokens, recorded from {said.engine}."
    )
    for item in (*spec.calibrations, *(golden.calibration for golden in spec.goldens)):
        last = item.looks[-1]
        say(
            f"Thresholds for {item.engine} ({item.dtype}) on {item.architecture}: variance {last.reject:g} after "
            f"{last.tokens} tokens, from {plural(item.runs, 'honest run')}."
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
    for item in document.spec.calibrations:
        looks = ", ".join(f"{look.reject:g} after {look.tokens}" for look in item.looks)
        say(f"thresholds {item.engine} ({item.dtype}) on {item.architecture}: variance {looks} tokens")
    for golden in document.spec.goldens:
        say(f"golden     {golden.calibration.engine} {golden.calibration.version} on {golden.calibration.architecture}")
    for forced in document.spec.forced:
        say(f"forced     {plural(len(forced.prompt), 'token')} of prompt, {plural(len(forced.tokens), 'token')} forced")
    for greedy in document.spec.greedy:
        say(f"greedy     {plural(len(greedy.prompt), 'token')} of prompt: {' '.join(map(str, greedy.tokens[:8]))} ...")


# --- inside -------------------------------------------------------------------------------------------------------


def _started(
    engine_name: str, key: str, manifest: ManifestDocument, digest: str, ports: Ports, given: dict[str, Any]
) -> Source:
    """An engine that is started on files that are what the manifest describes."""
    from reconciler.cli.momentary import Subject
    from reconciler.cli.recording import started
    from runtime.engines.registry import engines
    from schemas.errors import UsageError

    known = engines()
    if engine_name not in known:
        raise UsageError(f"{engine_name!r} is not an engine of this agent: {', '.join(sorted(known))}")
    model_path = given["model_path"]
    _check_bytes(manifest, model_path, key)
    engine = known[engine_name]
    version = given["image"] or (installed.version if (installed := engine.native()) else "")
    if not version:
        raise UsageError(f"{engine_name} is not installed here; record from an image with --image")
    subject = Subject(engine, version, manifest, digest, key, model_path, given["image"], given["docker_socket"])
    return started(subject, ports, context_size=given["context_size"], threads=given["threads"])


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


def _onto(path: Path, key: str, digest: str) -> ProbeSpec:
    """A recorded probe of the same model."""
    from desired_state.load import parse_probe
    from schemas.errors import UsageError

    document = parse_probe(path.read_bytes(), file=str(path))
    if document.metadata.model != key or document.spec.recorded.manifest != digest:
        raise UsageError(f"{path} was recorded from {document.metadata.model}, with another manifest than {key} has")
    return document.spec


def _name(key: str) -> str:
    return key.replace(":", "-").lower().replace(".", "-").replace("_", "-")


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
    if document.get("limits"):
        lines.append(f"  limits: {json.dumps(document['limits'])}")
    for kind in ("tokenizer", "texts", "greedy", "forced", "calibrations", "goldens"):
        if document.get(kind):
            lines.append(f"  {kind}:")
        for case in document.get(kind, ()):
            fields = list(case.items())
            lines.append(f"    - {fields[0][0]}: {json.dumps(fields[0][1], ensure_ascii=False)}")
            lines += [f"      {field}: {json.dumps(value)}" for field, value in fields[1:]]
    return "\n".join(lines) + "\n"
