"""Tiny wheels, and locks of them, for tests that install something."""

from __future__ import annotations

import base64
import hashlib
import zipfile
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

PURE = "py3-none-any"


def write_wheel(folder: Path, name: str, version: str = "1.0", **modules: str) -> Path:
    """A pure Python wheel with modules by name, and a script called as the distribution.

    Source: Binary distribution format, packaging.python.org.
    """
    info = f"{name}-{version}.dist-info"
    contents = {f"{module}.py": text for module, text in modules.items()} | {
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n",
        f"{info}/WHEEL": f"Wheel-Version: 1.0\nGenerator: tests\nRoot-Is-Purelib: true\nTag: {PURE}\n",
        f"{info}/entry_points.txt": f"[console_scripts]\n{name} = {next(iter(modules))}:main\n",
    }
    rows = [f"{path},sha256={_sealed(text.encode())},{len(text)}" for path, text in contents.items()]
    contents[f"{info}/RECORD"] = "\n".join([*rows, f"{info}/RECORD,,"]) + "\n"
    path = folder / f"{name}-{version}-{PURE}.whl"
    with zipfile.ZipFile(path, "w") as archive:
        for place, text in contents.items():
            archive.writestr(zipfile.ZipInfo(place), text)
    return path


def _sealed(content: bytes) -> str:
    return base64.urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b"=").decode()


def lock_of(*wheels: Path) -> bytes:
    """A lock that names wheels by their hashes."""
    lines = []
    for wheel in wheels:
        name, version, *_ = wheel.name.split("-")
        lines.append(f"{name}=={version} \\\n    --hash=sha256:{hashlib.sha256(wheel.read_bytes()).hexdigest()}\n")
    return "".join(lines).encode()
