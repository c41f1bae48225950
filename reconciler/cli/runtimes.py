"""`reconcile runtime`: how models are served."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from reconciler.cli.console import say, table
from reconciler.cli.drafts import finish
from reconciler.cli.lazy import OrderedGroup
from reconciler.cli.operators import edit_snapshot, read_snapshot, workspace_options
from reconciler.cli.options import DurationType, SizeType
from schemas.errors import UsageError

if TYPE_CHECKING:
    from desired_state.authoring import Document
    from desired_state.paths import Steps
    from desired_state.workspace import Workspace
    from schemas.base import Frozen

UNENFORCED = ("capabilities", "cpu", "filesystem", "memory", "network", "pids", "shm", "socket-size", "user")


@click.group(cls=OrderedGroup)
def runtime() -> None:
    """Say how models are served: engine, image, limits."""


@runtime.command("set")
@workspace_options
@click.argument("name")
@click.option(
    "--engine",
    type=click.Choice(["llamacpp", "vllm", "ollama", "openai"]),
    help="The engine; needed for a new runtime.",
)
@click.option("--version", help="Its exact version (default: the one that is installed beside this command).")
@click.option(
    "--mode", "modes", multiple=True, type=click.Choice(["container", "native"]), help="Repeatable, in order."
)
@click.option(
    "--image",
    "images",
    multiple=True,
    metavar="REF[,cuda][,linux/arm64]",
    help="Image by digest (name@sha256:...), with its accelerator and platform; repeatable.",
)
@click.option(
    "--lock",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help="Hash-locked requirements from which nodes install a native environment of its own.",
)
@click.option("--arg", "arguments", multiple=True, metavar="KEY=VALUE", help="Engine argument; repeatable.")
@click.option("--gpus", type=click.IntRange(0), help="GPUs of an instance.")
@click.option("--memory", type=SizeType(), help="Memory limit, e.g. 32GiB.")
@click.option("--shm", type=SizeType(), help="Shared memory.")
@click.option("--cpus", type=click.IntRange(1), help="Processors.")
@click.option("--pids", type=click.IntRange(8), help="Processes and threads.")
@click.option("--start-timeout", type=DurationType(), help="From start to ready, e.g. 10m.")
@click.option("--overlap/--no-overlap", default=None, help="Let the replacement briefly run beside the old instance.")
@click.option(
    "--allow-unenforced",
    "unenforced",
    multiple=True,
    type=click.Choice(UNENFORCED),
    help="Restriction that may go unenforced; the node's owner must accept it too; repeatable.",
)
def set_(workspace: Workspace, name: str, **given: Any) -> None:
    """Add the runtime NAME, or change what is given of it."""
    document = edit_snapshot(workspace)
    before = document.text
    place = _place(document, name)
    if given["lock"] is not None:
        given["lock"] = _bind_lock(workspace, name, given["lock"])
    if place is None:
        document.insert(("spec", "runtimes"), _new(name, given))
    else:
        old = document.get(place)
        engine = given["engine"] or (str(old.get("engine")) if isinstance(old, dict) else "")
        if isinstance(old, dict) and old.get("engine") != engine and old.get("engineArgs"):
            document.remove((*place, "engineArgs"))  # they are another engine's
        for path, value in _flat(_fields(engine, given)):
            if path != ("native",) or document.get((*place, *path)) is None:  # its lock stays
                document.set((*place, *path), value)
    finish(workspace, document, before)


@runtime.command()
@workspace_options
@click.argument("name")
def remove(workspace: Workspace, name: str) -> None:
    """Take a runtime off the list."""
    document = edit_snapshot(workspace)
    before = document.text
    place = _place(document, name)
    if place is None:
        raise UsageError(f"there is no runtime {name!r}")
    assignments = document.get(("spec", "assignments"))
    for number, assignment in enumerate(assignments if isinstance(assignments, tuple) else ()):
        if isinstance(assignment, dict) and assignment.get("runtime") == name:
            raise UsageError(f"spec.assignments[{number}] uses {name!r}")
    document.remove(place)
    finish(workspace, document, before)


@runtime.command("list")
@workspace_options
def list_(workspace: Workspace) -> None:
    """List the runtimes of the snapshot."""
    document = read_snapshot(workspace.snapshot(), workspace.snapshot_file)
    rows = [
        (one.name, f"{one.engine} {one.version}", ", ".join(one.modes), ", ".join(image.ref for image in one.images))
        for one in document.spec.runtimes
    ]
    say(*(table(("Runtime", "Engine", "Modes", "Images"), rows) if rows else ["No runtimes."]))


# --- from options to fields ---------------------------------------------------------------------------------------


def _new(name: str, given: dict[str, Any]) -> dict[str, Any]:
    """A new entry, complete."""
    engine = given["engine"]
    if engine is None:
        raise UsageError(f"there is no runtime {name!r} yet", hint="a new one needs --engine")
    native = ["native"] if given["lock"] or not given["images"] else []
    modes = list(given["modes"]) or [*(["container"] if given["images"] else []), *native]
    if "container" in modes and not given["images"]:
        raise UsageError("a runtime in containers needs --image", hint="name@sha256:..., never a tag alone")
    version = given["version"] or _installed(engine)
    if not version:
        raise UsageError(f"{engine} is not installed here, so its version must be given", hint="--version X")
    fields = _fields(engine, {**given, "modes": modes, "version": version})
    return {"name": name, "engine": engine, **{key: value for key, value in fields.items() if key != "engine"}}


def _fields(engine: str, given: dict[str, Any]) -> dict[str, Any]:
    """What was given, in the document's form."""
    from schemas.base import format_duration, format_size

    resources = {
        "gpus": given["gpus"],
        "memory": format_size(given["memory"]) if given["memory"] is not None else None,
        "shm": format_size(given["shm"]) if given["shm"] is not None else None,
        "pids": given["pids"],
        "cpus": given["cpus"],
    }
    timeouts = {"start": format_duration(given["start_timeout"])} if given["start_timeout"] is not None else {}
    isolation = {"overlap": given["overlap"], "allowUnenforced": list(given["unenforced"]) or None}
    fields: dict[str, Any] = {
        "engine": engine,
        "version": given["version"],
        "modes": list(given["modes"]) or None,
        "images": [_image(text) for text in given["images"]] or None,
        "native": {"lock": given["lock"]} if given["lock"] else {} if "native" in given["modes"] else None,
        "engineArgs": _arguments(engine, given["arguments"]),
        "isolation": _present(isolation),
        "resources": _present(resources),
        "timeouts": timeouts,
    }
    return {key: value for key, value in fields.items() if value is not None and (value != {} or key == "native")}


def _bind_lock(workspace: Workspace, name: str, path: Path) -> dict[str, str]:
    """Put a lock where nodes find it, and name it by its digest.

    Raises:
        MalformedDocument, LimitExceeded: it is not locked by hashes throughout, or is too large.
    """
    from desired_state.document import MANIFEST_LIMIT
    from desired_state.lockfile import parse_lock
    from schemas.digests import digest_bytes
    from schemas.refusals import LimitExceeded

    content = path.read_bytes()
    if len(content) > MANIFEST_LIMIT:
        raise LimitExceeded(f"{len(content)} bytes, and at most {MANIFEST_LIMIT} are read", file=str(path))
    locked = parse_lock(content, file=str(path))
    place = f"runtimes/{name}.lock"
    workspace.write(place, content)
    say(f"{place}: {len(locked)} packages, each by its hashes")
    return {"path": place, "digest": digest_bytes(content)}


def _present(fields: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in fields.items() if value is not None}


def _flat(fields: dict[str, Any]) -> list[tuple[Steps, Any]]:
    """Single fields, so that what was not given stays as it is."""
    flat: list[tuple[Steps, Any]] = []
    for key, value in fields.items():
        if isinstance(value, dict) and value:
            flat += [((key, name), item) for name, item in value.items()]
        else:
            flat.append(((key,), value))
    return flat


def _image(text: str) -> dict[str, str]:
    """An image from `REF[,accelerator][,platform]`, in any order after the reference."""
    ref, *rest = text.split(",")
    image = {"platform": "linux/amd64", "accelerator": "cpu", "ref": ref}
    for part in rest:
        image["platform" if "/" in part else "accelerator"] = part
    return image


def _arguments(engine: str, pairs: tuple[str, ...]) -> dict[str, Any]:
    """Engine arguments, typed as the schema says."""
    from pydantic import ValidationError

    from desired_state.document import parse
    from schemas.runtimes import LlamaCppArgs, OllamaArgs, OpenAIArgs, VllmArgs

    found: dict[str, Any] = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not equals:
            raise click.BadParameter(f"{pair!r} is not KEY=VALUE", param_hint="--arg")
        tree, _ = parse(f"value: {value}\n".encode(), file="--arg")
        found[key] = tree.get("value") if isinstance(tree, dict) else value
    models: dict[str, type[Frozen]] = {"llamacpp": LlamaCppArgs, "vllm": VllmArgs, "openai": OpenAIArgs}
    models["ollama"] = OllamaArgs
    if engine == "openai" and not found:
        return {}  # in a runtime that is there already, they stay
    model = models[engine]
    try:
        model.model_validate(found, by_alias=True, by_name=False)
    except ValidationError as error:
        problem = error.errors(include_url=False)[0]
        known = ", ".join(str(field.alias or name) for name, field in model.model_fields.items())
        where = ".".join(map(str, problem["loc"]))
        raise UsageError(f"--arg {where}: {problem['msg']}", hint=f"{engine} takes: {known}") from error
    return found


def _installed(engine: str) -> str:
    """Version of the engine beside this command; empty if there is none."""
    from runtime.engines.registry import engines

    known = engines().get(engine)
    native = known.native() if known is not None else None
    return native.version if native is not None else ""


def _place(document: Document, name: str) -> Steps | None:
    items = document.get(("spec", "runtimes"))
    for index, item in enumerate(items if isinstance(items, tuple) else ()):
        if isinstance(item, dict) and item.get("name") == name:
            return ("spec", "runtimes", index)
    return None
