"""What a container may do: the restrictions of I10, as every engine is asked for them. Pure; knows no SDK."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from pathlib import Path

    from runtime.interfaces import InstanceSpec

MODEL_PATH: Final = "/model"
SOCKET_FOLDER: Final = "/run/reconcile"

RUN_AS: Final = "65534:65534"
"""nobody:nogroup: owns nothing, in any image."""

TMPFS: Final = "rw,noexec,nosuid,nodev,mode=1777,size=64m"
COMPILING_TMPFS: Final = "rw,exec,nosuid,nodev,mode=1777,size={size}"
"""Where an engine loads code that it compiled: no way in for anybody who could not run an interpreter's code before."""
TMP_SHARE: Final = 4
"""What part of its memory limit an engine that compiles may fill /tmp with, as natively; it counts as its memory."""
SMALL_TMPFS: Final = "rw,noexec,nosuid,nodev,mode=1777,size=1m"
"""Podman mounts unbounded, executable tmpfs on /run and /var/tmp of a read-only container unless it gets its own."""

VOLUME_TMPFS: Final = "rw,noexec,nosuid,nodev,mode=1777,size=16m"
"""What covers an image's VOLUMEs, which would otherwise be unbounded and survive."""

OPEN_FILES: Final = 1024
"""Files that an engine may have open: what POSIX systems give a process by default."""


def host_config(spec: InstanceSpec, image: dict[str, Any]) -> dict[str, Any]:
    """The restrictions of a container, in the words of the SDK's `create_host_config`.

    Args:
        spec: what is to be made.
        image: what the engine says of its image.
    """
    resources = spec.target.resources
    volumes = sorted((image.get("Config") or {}).get("Volumes") or ())
    tmp = COMPILING_TMPFS.format(size=resources.memory // TMP_SHARE) if spec.launch.compiles else TMPFS
    gpus = [{"device_ids": list(spec.gpus), "capabilities": [["gpu"]]}] if spec.gpus else None
    return {
        "network_mode": "none",
        "read_only": True,
        "cap_drop": ["ALL"],
        "security_opt": ["no-new-privileges"],
        "privileged": False,
        "ipc_mode": "private",
        "init": True,
        "mem_limit": resources.memory,
        "memswap_limit": resources.memory,
        "pids_limit": resources.pids,
        "nano_cpus": resources.cpus * 10**9 if resources.cpus else None,
        "shm_size": resources.shm,
        "tmpfs": {
            "/tmp": tmp,  # noqa: S108 - inside the container
            "/run": SMALL_TMPFS,
            "/var/tmp": SMALL_TMPFS,  # noqa: S108 - inside the container
            **dict.fromkeys(volumes, VOLUME_TMPFS),
        },
        # Both, always: given one, Podman adds a limit of its own for the other that it may not be allowed to set.
        "ulimits": [
            {"name": "nofile", "soft": OPEN_FILES, "hard": OPEN_FILES},
            {"name": "nproc", "soft": resources.pids, "hard": resources.pids},
        ],
        "mounts": [
            _mount(MODEL_PATH, spec.model_folder, read_only=True),
            _mount(SOCKET_FOLDER, spec.socket_folder, read_only=False),
        ],
        # Podman takes the name for its own format, keeps one file and ignores max-file.
        "log_config": {
            "type": "json-file",
            "config": {"max-size": str(max(spec.log_limit // 2, 2**16)), "max-file": "2"},
        },
        "device_requests": gpus,
        "restart_policy": {"Name": "no"},
    }


def _mount(target: str, source: Path, *, read_only: bool) -> dict[str, Any]:
    """In the API's own words, as the SDK hands mounts on unread."""
    return {"Target": target, "Source": str(source), "Type": "bind", "ReadOnly": read_only}
