"""What is installed beside the agent, by its folder's name: `importlib.metadata` would parse a mail header for it.

That parser and its imports take 25 ms, of which every `plan` would pay its share. The layout is the standard's: Binary
distribution format and Recording installed projects, packaging.python.org.
"""

from __future__ import annotations

import os
import re
import sys
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Installed:
    """One installed distribution."""

    version: str
    record: str | None
    """Content of its RECORD, None where the installer kept none."""


def find(name: str) -> Installed | None:
    """The first distribution of a name on the module path, None if there is none.

    Args:
        name: as the project is called; upper case, `-`, `_` and `.` make no difference.
    """
    wanted = re.sub(r"[-_.]+", "_", name).lower()
    for place in sys.path:
        for info in _dist_infos(place or "."):
            called, _, version = info.removesuffix(".dist-info").partition("-")
            if re.sub(r"[-_.]+", "_", called).lower() == wanted and version:
                record = Path(place, info, "RECORD")
                return Installed(version, record.read_text(encoding="utf-8") if record.is_file() else None)
    return None


def _dist_infos(folder: str) -> list[str]:
    """Names of the folders of installed distributions, sorted; nothing where there is no folder."""
    try:
        # A daemon asks at every look, of a folder of hundreds.
        return sorted(name for name in os.listdir(folder) if name.endswith(".dist-info"))  # noqa: PTH208 - as said
    except OSError:
        return []
