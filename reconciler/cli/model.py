"""`reconcile model`: approve models. One read of the data makes the manifest; the snapshot binds it."""

from __future__ import annotations

from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from reconciler.cli.console import emit, next_steps, plural, say, size, table
from reconciler.cli.drafts import finish
from reconciler.cli.lazy import OrderedGroup
from reconciler.cli.operators import edit_snapshot, ports, read_snapshot, workspace_options
from reconciler.cli.options import DurationType, SizeType, json_option
from schemas.errors import Incompatible, UsageError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from desired_state.authoring import Document
    from desired_state.paths import Steps
    from desired_state.workspace import Workspace
    from runtime.models.manifest_builder import BuiltManifest

_REMOTE = ("http://", "https://", "hf://")


@click.group(cls=OrderedGroup)
def model() -> None:
    """Approve models: manifests, sources, states.

    A model is its manifest: every file with its size and digests. The snapshot binds the manifest by digest, so nodes
    accept these bytes and no others, wherever they come from.
    """


@model.command()
@workspace_options
@click.argument("path")
@click.option("--name", required=True, help="Name of the model: lower-case letters, digits and -.")
@click.option("--version", required=True, help="Version of the model, e.g. v1.")
@click.option("--source", "sources", multiple=True, metavar="URL", help="Below which its files lie; repeatable.")
@click.option("--include", multiple=True, metavar="PATTERN", help="Files of an hf:// repository to take; repeatable.")
@click.option("--exclude", multiple=True, metavar="PATTERN", help="Files of an hf:// repository to leave; repeatable.")
@click.option("--probe", type=click.Path(path_type=Path), help="Probe document; `reconcile probe record` makes one.")
@click.option("--every", type=DurationType(), help="Interval of periodic retests, e.g. 6h.")
@click.option("--state", type=click.Choice(["active", "inactive", "archived"]), help="Its state [default: active].")
@click.option("--gpu-memory", type=SizeType(), help="GPU memory that it needs, e.g. 16GiB.")
@click.option("--compute-capability", metavar="N.N", help="The least compute capability of its GPUs, e.g. 8.0.")
@click.option("--driver", metavar="VERSION", help="The oldest NVIDIA driver, e.g. 570.")
@click.option("--cuda", metavar="VERSION", help="The oldest CUDA that the driver must serve, e.g. 12.8.")
@click.option("--memory", type=SizeType(), help="Main memory that it needs.")
@click.option(
    "--signed-by",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="PEM: the public key, or the authorities, of whom the OpenSSF signature in the model has to be.",
)
@click.option("--signature", default="model.sig", show_default=True, help="The signature among the model's files.")
@click.option("--task", "tasks", multiple=True, help="What it is for: chat, completion; repeatable.")
@click.option("--keep", type=click.Path(file_okay=False, path_type=Path), help="Keep a file read from a URL here.")
@click.option("--allow-http", is_flag=True, help="Read plain http URLs, too.")
@click.option("--allow-private", is_flag=True, help="Read URLs of private and loopback addresses, too.")
@json_option
def add(workspace: Workspace, path: str, name: str, version: str, *, as_json: bool, **given: Any) -> None:
    """Approve the model in PATH: write its manifest, and list it in the snapshot.

    PATH is a file, a folder, the URL of a file, or hf://ORG/REPO@REVISION: then its files are checked against the
    digests that the hub publishes, and the commit behind the revision becomes a source. The data is read once, and
    nothing remote is kept but with --keep. Doing it again updates the entry.
    """
    _check_identity(name, version)
    document = edit_snapshot(workspace)
    signature = _signature(given.pop("signed_by"), given.pop("signature"))
    with _data(path, given) as (built, folder):
        manifest_path, digest = _write_manifest(workspace, built, name, version, folder, signature)
    before = document.text
    _list(workspace, document, name, version, {"path": manifest_path, "digest": digest}, given)
    if as_json:
        from reconciler.cli.operators import save_snapshot

        save_snapshot(workspace, document)
        emit({"model": f"{name}:{version}", "manifest": digest, "path": manifest_path, "size": built.size})
        return
    if built.skipped:
        why = "hidden, refused by nodes or not asked for" if path.startswith("hf://") else "hidden"
        say(f"Left out, because {why}: {', '.join(built.skipped)}")
    say(f"Wrote {manifest_path} and .pieces: {plural(len(built.files), 'file')}, {size(built.size)}, {built.format}")
    finish(workspace, document, before)
    if not given["probe"] and not _has_probe(document, name, version):
        here = path if Path(path).exists() else given["keep"] or "PATH"
        next_steps(
            f"reconcile probe record --model {name}:{version} --model-path {here}",
            f"reconcile model set-probe {name}:{version} probes/FILE.yaml",
        )


@model.command()
@workspace_options
@click.argument("model", metavar="MODEL:VERSION")
def remove(workspace: Workspace, model: str) -> None:
    """Take a model off the list. Nodes remove it after the grace of spec.policy.gc."""
    from desired_state.paths import select

    document = edit_snapshot(workspace)
    before = document.text
    items = document.get(("spec", "models"))
    index = select(items if isinstance(items, tuple) else (), model, where="spec.models")
    found = document.get(("spec", "models", index))
    key = f"{found['name']}:{found['version']}" if isinstance(found, dict) else model
    assignments = document.get(("spec", "assignments"))
    for number, assignment in enumerate(assignments if isinstance(assignments, tuple) else ()):
        served = assignment.get("serve") if isinstance(assignment, dict) else None
        if isinstance(served, tuple) and key in served:
            raise UsageError(
                f"spec.assignments[{number}] serves {key}",
                hint="serve another model there first: `reconcile snapshot serve MODEL:VERSION --runtime NAME`",
            )
    document.remove(("spec", "models", index))
    finish(workspace, document, before)
    if isinstance(found, dict):
        say(f"Its manifest stays in the repository; git rm models/{found['name']}/{found['version']}.* removes it.")


@model.command("set-state")
@workspace_options
@click.argument("model", metavar="MODEL:VERSION")
@click.argument("state", type=click.Choice(["active", "inactive", "archived"]))
def set_state(workspace: Workspace, model: str, state: str) -> None:
    """Say what nodes do with a model: `active` may serve, `inactive` is kept, `archived` goes to cold storage."""
    document = edit_snapshot(workspace)
    before = document.text
    document.set((*_where(document, model), "state"), state)
    finish(workspace, document, before)


@model.command("set-probe")
@workspace_options
@click.argument("model", metavar="MODEL:VERSION")
@click.argument("probe", type=click.Path(path_type=Path))
def set_probe(workspace: Workspace, model: str, probe: Path) -> None:
    """Bind a model to the probe by which it is validated."""
    document = edit_snapshot(workspace)
    before = document.text
    bind_probe(workspace, document, _where(document, model), probe)
    finish(workspace, document, before)


@model.command("list")
@workspace_options
@json_option
def list_(workspace: Workspace, *, as_json: bool) -> None:
    """List the models of the snapshot."""
    from reconciler.cli.judging import sizes_of

    document = read_snapshot(workspace.snapshot(), workspace.snapshot_file)
    sizes = sizes_of(workspace.files, document)
    if as_json:
        models = [
            {
                "model": one.key,
                "state": one.state,
                "manifest": one.manifest.digest,
                "size": sizes.get(one.manifest.digest),
                "sources": list(one.sources),
            }
            for one in document.spec.models
        ]
        emit({"models": models})
        return
    if not document.spec.models:
        say("No models.")
        next_steps("reconcile model add PATH --name NAME --version VERSION")
        return
    rows = [
        (
            one.key,
            one.state,
            size(sizes[one.manifest.digest]) if one.manifest.digest in sizes else "?",
            plural(len(one.sources), "source"),
        )
        for one in document.spec.models
    ]
    say(*table(("Model", "State", "Size", "From"), rows))


# --- shared with `reconcile probe` --------------------------------------------------------------------------------


def bind_probe(workspace: Workspace, document: Document, where: Steps, probe: Path) -> None:
    """Bind a model's entry to a probe document, by path and digest.

    Raises:
        UsageError: the file lies outside the repository, or is the probe of another model.
        DocumentError: it is not a probe.
    """
    from desired_state.document import PROBE_LIMIT
    from desired_state.load import parse_probe
    from schemas.digests import digest_bytes

    path = _relative(workspace, probe)
    content = workspace.files.read(path, PROBE_LIMIT)
    found = parse_probe(content, file=path)
    entry = document.get(where)
    key = f"{entry['name']}:{entry['version']}" if isinstance(entry, dict) else ""
    if found.metadata.model != key:
        raise UsageError(f"{path} is the probe of {found.metadata.model}, not of {key}")
    manifest = document.get((*where, "manifest", "digest"))
    if found.spec.recorded.manifest != manifest:
        raise UsageError(
            f"{path} was recorded from other bytes than those that the snapshot lists for {key}",
            hint=f"reconcile probe record --model {key} --model-path PATH",
        )
    document.set((*where, "validation", "probe"), {"path": path, "digest": digest_bytes(content)})


def listed(document: Document, key: str) -> Steps | None:
    """Where a model stands in the snapshot, None if it is not listed."""
    items = document.get(("spec", "models"))
    for index, item in enumerate(items if isinstance(items, tuple) else ()):
        if isinstance(item, dict) and f"{item.get('name')}:{item.get('version')}" == key:
            return ("spec", "models", index)
    return None


# --- inside -------------------------------------------------------------------------------------------------------


def _where(document: Document, model: str) -> Steps:
    from desired_state.paths import select

    items = document.get(("spec", "models"))
    return ("spec", "models", select(items if isinstance(items, tuple) else (), model, where="spec.models"))


def _check_identity(name: str, version: str) -> None:
    from pydantic import TypeAdapter, ValidationError

    from schemas.base import ModelKey

    try:
        TypeAdapter[str](ModelKey).validate_python(f"{name}:{version}")
    except ValidationError as error:
        raise UsageError(
            f"{name}:{version} is not a model's name and version",
            hint="a name has lower-case letters, digits and -; a version letters, digits and . _ + -",
        ) from error


@contextmanager
def _data(path: str, given: dict[str, Any]) -> Iterator[tuple[BuiltManifest, Path]]:
    """What the data comes to, and where it can be looked into as long as this lasts; its address joins the sources."""
    if not path.startswith(_REMOTE):
        _check_local(path, given)
        yield _read(Path(path)), Path(path)
        return
    from reconciler.cli.remote_models import read

    with read(path, given) as found:
        given["sources"] = found.sources
        yield found.built, found.heads


def _check_local(path: str, given: dict[str, Any]) -> None:
    if path.startswith("s3://"):
        raise UsageError(
            "a model is added from files that are here, from https:// or from hf://",
            hint="download it, run `reconcile model add PATH`, and name the address with --source",
        )
    if given["include"] or given["exclude"]:
        raise UsageError("--include and --exclude choose among the files of an hf:// repository")
    if not Path(path).exists():
        raise UsageError(f"{path} does not exist")


def _read(path: Path) -> BuiltManifest:
    """Hash the data, with bars where somebody watches."""
    from reconciler.cli.progress import reading
    from runtime.models.manifest_builder import build

    try:
        with reading() as told:
            return build(path, told=told)
    except OSError as error:
        raise UsageError(f"{error.filename or path}: {error.strerror or error}") from error


def _signature(key: Path | None, file: str) -> dict[str, str] | None:
    """The manifest's entry about the maker's signature; None where nobody asked for one."""
    if key is None:
        return None
    pem = key.read_text(encoding="ascii", errors="replace")
    field = "certificates" if "BEGIN CERTIFICATE" in pem else "publicKey"
    return {"file": file, field: pem}


def _write_manifest(
    workspace: Workspace,
    built: BuiltManifest,
    name: str,
    version: str,
    data: Path,
    signature: dict[str, str] | None = None,
) -> tuple[str, str]:
    """Write the manifest and its pieces; returns the manifest's path and digest."""
    from desired_state.authoring import render
    from desired_state.drafting import MANIFEST_HEAD, manifest
    from desired_state.load import parse_manifest
    from runtime.interfaces import Model
    from runtime.models.formats import check_content
    from runtime.models.openssf import check_signature
    from schemas.digests import digest_bytes

    base = f"models/{name}/{version}"
    spec = {
        "format": built.format,
        "files": list(built.files),
        "pieces": {"path": f"{base}.pieces", "digest": built.pieces_digest},
        **({"signature": signature} if signature is not None else {}),
    }
    content = (MANIFEST_HEAD + render(manifest(name, version, spec))).encode()
    parsed = parse_manifest(content, file=f"{base}.yaml")
    digest = digest_bytes(content)
    candidate = Model(digest, parsed, built.pieces)
    # What nodes would refuse after the download is refused here, before anybody signs for it.
    folder = data if data.is_dir() else data.parent
    try:
        check_content(
            candidate, folder, [file.path for file in parsed.spec.files if not (folder / file.path).is_symlink()]
        )
    except OSError as error:
        raise Incompatible(f"{error.filename or data}: {error.strerror or error}") from error
    check_signature(parsed, folder)
    ports().files.make_folder(workspace.root / "models" / name)
    workspace.write(f"{base}.pieces", built.pieces)
    workspace.write(f"{base}.yaml", content)
    return f"{base}.yaml", digest


def _list(
    workspace: Workspace, document: Document, name: str, version: str, manifest: dict[str, str], given: dict[str, Any]
) -> None:
    """Add the model's entry to the snapshot, or update the one that is there with what was given."""
    from schemas.base import format_duration, format_size

    requires = {
        **({"gpuMemory": format_size(given["gpu_memory"])} if given["gpu_memory"] else {}),
        **({"computeCapability": given["compute_capability"]} if given["compute_capability"] else {}),
        **{name: given[name] for name in ("driver", "cuda") if given[name]},
        **({"memory": format_size(given["memory"])} if given["memory"] else {}),
        **({"tasks": list(given["tasks"])} if given["tasks"] else {}),
    }
    where = listed(document, f"{name}:{version}")
    if where is None:
        entry: dict[str, Any] = {
            "name": name,
            "version": version,
            "manifest": manifest,
            "state": given["state"] or "active",
            "sources": list(given["sources"]),
            **({"requires": requires} if requires else {}),
        }
        items = document.get(("spec", "models"))
        document.insert(("spec", "models"), entry)
        where = ("spec", "models", len(items) if isinstance(items, tuple) else 0)
    else:
        document.set((*where, "manifest"), manifest)
        updates = {"state": given["state"], "sources": list(given["sources"]), "requires": requires}
        for field, value in updates.items():
            if value:
                document.set((*where, field), value)
    if given["probe"] is not None:
        bind_probe(workspace, document, where, given["probe"])
    if given["every"] is not None:
        document.set((*where, "validation", "every"), format_duration(given["every"]))


def _has_probe(document: Document, name: str, version: str) -> bool:
    where = listed(document, f"{name}:{version}")
    return where is not None and document.get((*where, "validation", "probe")) is not None


def _relative(workspace: Workspace, path: Path) -> str:
    """A file's path in the repository, given from there or from the current folder."""
    absolute = path if path.is_absolute() else Path.cwd() / path
    if not absolute.exists() and not path.is_absolute():
        absolute = workspace.root / path
    try:
        return absolute.resolve().relative_to(workspace.root.resolve()).as_posix()
    except ValueError as error:
        raise UsageError(
            f"{path} lies outside the repository {workspace.root}", hint="nodes read it from there"
        ) from error
