"""What the supervisor of an instance is told: its `spec.json`, with which what runs is compared later as well."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from runtime.backends import native_processes as processes
from schemas.digests import digest_text
from schemas.errors import StartFailed

if TYPE_CHECKING:
    from collections.abc import Mapping

    from runtime.interfaces import InstanceSpec

TMP_SHARE: Final = 4
"""What part of its memory limit an engine may fill its private /tmp with; what lies there counts as its memory."""


def order(
    spec: InstanceSpec, folder: Path, *, marks: Mapping[str, str], owner: str, permitted: Mapping[str, Any]
) -> dict[str, Any]:
    """What is to run, what it may see and take, and whose it is.

    Args:
        spec: the instance.
        folder: of the instance, with its `tmp` and `root`.
        marks: network and node.
        owner: of its processes; see `native_processes.OWNER`.
        permitted: what this host allows; see `native_permissions.Permissions.found`.

    Raises:
        StartFailed: the user that engines run as cannot read the model.
    """
    carried = {
        processes.OWNER: owner,
        processes.INSTANCE: spec.name,
        processes.INTENT: spec.intent,
        processes.SPEC: spec.target.spec_digest,
    }
    resources = spec.target.resources
    if permitted["user"] and (closed := _closed(spec.model_folder)):
        raise StartFailed(f"{closed} can be read by its owner only, and engines run as another user (chmod o+rX)")
    private = "/tmp" if permitted["root"] else str(folder / "tmp")  # noqa: S108 - the engine's own
    return {
        "marks": marks,
        "intent": spec.intent,
        "specDigest": spec.target.spec_digest,
        "argv": list(spec.launch.argv),
        # The marks come first: a look at the host's processes reads no more than the beginning.
        "env": {
            **carried,
            **spec.launch.env,
            "CUDA_VISIBLE_DEVICES": ",".join(spec.gpus),
            "TMPDIR": private,
            # Nothing of the agent's user is read or left behind: caches and settings go with the instance.
            "HOME": private,
        },
        "folder": str(spec.socket_folder),
        "cpus": resources.cpus or 0,
        "memory": resources.memory,
        "pids": resources.pids,
        "shm": resources.shm,
        "tmp": resources.memory // TMP_SHARE,
        "gpus": list(spec.gpus),
        "group": digest_text(f"{owner}|{spec.name}").rpartition(":")[2][:32],
        "user": processes.engine_user(owner, spec.name) if permitted["user"] else 0,
        "root": str(folder / "root") if permitted["root"] else "",
        "read": sorted(_named(spec)),
        "namespaces": permitted["namespaces"],
        "refused": permitted["refused"],
        "capped": permitted["capped"],
        "logFolder": str(spec.log_folder),
        "logLimit": spec.log_limit,
    }


def _named(spec: InstanceSpec) -> set[str]:
    """What an engine must find of the host beyond the system: its interpreter, its model, what its words name."""
    program = Path(spec.launch.argv[0])
    # Of an interpreter in an environment, the environment; and that of the interpreter behind the links.
    homes = {str(path.parent.parent) for path in (program, program.resolve()) if path.parent.name == "bin"}
    words = {word for text in (*spec.launch.argv, *spec.launch.env.values()) for word in text.split(":")}
    found = {word for word in words if word.startswith("/") and os.path.exists(word)}  # noqa: PTH110 - any text
    return {*found, *homes, sys.prefix, sys.base_prefix, str(spec.model_folder)} - {"/", "/tmp"}  # noqa: S108


def _closed(folder: Path) -> Path | None:
    """What of a model's folder other users cannot read; a store's folders are open, those of people may not be."""
    if folder.stat().st_mode & 0o005 != 0o005:  # noqa: PLR2004 - to list it, and to pass
        return folder
    return next((path for path in sorted(folder.iterdir()) if not path.stat().st_mode & 0o004), None)
