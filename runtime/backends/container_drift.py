"""What somebody else has changed of a container since it was made. Pure; knows no SDK.

Compared are an engine's own words right after the container was made with its words now: each engine has its own way
of writing down what it was asked for, and a way of its own of leaving things out.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Final

from runtime.backends.container_answers import LABEL
from schemas.observation import Difference

if TYPE_CHECKING:
    from collections.abc import Mapping

MENDABLE: Final = frozenset({"name", "memory", "memory and swap", "pids", "cpus", "restart policy"})
"""What an engine gives back while the container runs (`POST /containers/ID/update`, `/rename`)."""

_BYTES: Final = frozenset({"memory", "memory and swap", "shm"})
_UNITS: Final = ("B", "KiB", "MiB", "GiB", "TiB")


def settings(detail: Mapping[str, Any]) -> dict[str, str]:
    """What a container was made with, by field, as an engine tells it (`GET /containers/ID/json`).

    Left out: what changes by itself, such as its state and its process ids.
    """
    config, host = detail.get("Config") or {}, detail.get("HostConfig") or {}
    networks = (detail.get("NetworkSettings") or {}).get("Networks") or {}
    found = {
        "name": str(detail.get("Name") or "").lstrip("/"),
        # Another one of the same name: somebody has taken ours away and made it again.
        "container": str(detail.get("Id") or "")[:12],
        "image": detail.get("Image"),
        "arguments": [detail.get("Path"), *(detail.get("Args") or ())],
        "environment": sorted(config.get("Env") or ()),
        "user": config.get("User"),
        "network": sorted({str(host.get("NetworkMode") or ""), *networks} - {""}),
        "memory": host.get("Memory"),
        "memory and swap": host.get("MemorySwap"),
        "pids": host.get("PidsLimit"),
        "cpus": [_processors(host), host.get("CpusetCpus") or ""],
        "shm": host.get("ShmSize"),
        "restart policy": (host.get("RestartPolicy") or {}).get("Name") or "no",
        "read-only root": host.get("ReadonlyRootfs"),
        "privileged": host.get("Privileged"),
        "capabilities": [sorted(host.get("CapAdd") or ()), sorted(host.get("CapDrop") or ())],
        "security options": sorted(host.get("SecurityOpt") or ()),
        "namespaces": [
            host.get(name) or "" for name in ("IpcMode", "PidMode", "UTSMode", "UsernsMode", "CgroupnsMode")
        ],
        "devices": [host.get("Devices") or [], host.get("DeviceRequests") or []],
        "mounts": sorted(
            f"{item.get('Source') or item.get('Type')} on {item.get('Destination')} {'rw' if item.get('RW') else 'ro'}"
            for item in detail.get("Mounts") or ()
        ),
        **{
            f"label {name.removeprefix(LABEL)}": value
            for name, value in (config.get("Labels") or {}).items()
            if name.startswith(LABEL)
        },
    }
    return {name: value if isinstance(value, str) else json.dumps(value) for name, value in found.items()}


def differences(made: Mapping[str, str], now: Mapping[str, str]) -> tuple[Difference, ...]:
    """Field by field, what is no longer as it was made; sorted."""
    return tuple(
        # An environment may hold what is nobody else's business: that it differs is said, and not how.
        Difference(name, "as it was made", "something else")
        if name == "environment"
        else Difference(name, _said(name, made.get(name)), _said(name, now.get(name)), mendable=name in MENDABLE)
        for name in sorted(made.keys() | now.keys())
        if made.get(name) != now.get(name)
    )


def limits(made: Mapping[str, str]) -> dict[str, Any]:
    """The limits that a container was made with, in the words of the API's update."""
    processors, _ = json.loads(made["cpus"])
    return {
        "Memory": json.loads(made["memory"]),
        "MemorySwap": json.loads(made["memory and swap"]),
        "PidsLimit": json.loads(made["pids"]),
        # Of the two ways to limit processors an engine takes one at a time: 0 leaves the other alone.
        "NanoCpus": round(processors * 10**9),
        "RestartPolicy": {"Name": made["restart policy"]},
    }


def _processors(host: Mapping[str, Any]) -> float:
    """How many processors it may use; 0 for all."""
    if host.get("NanoCpus"):
        return float(host["NanoCpus"]) / 10**9
    period, quota = host.get("CpuPeriod") or 0, host.get("CpuQuota") or 0
    return float(quota) / float(period) if period and quota > 0 else 0.0


def _said(name: str, value: str | None) -> str:
    if value is None:
        return "absent"
    if name in _BYTES and value.isdigit():
        return _bytes(int(value))
    return value[:500] or "empty"


def _bytes(count: int) -> str:
    """`8 GiB` where it is a whole number of them, else exact."""
    index = 0
    while index < len(_UNITS) - 1 and count and count % 1024 == 0:
        count, index = count // 1024, index + 1
    return f"{count} {_UNITS[index]}"
