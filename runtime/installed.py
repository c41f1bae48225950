"""What is installed beside the agent, by its folder's name: `importlib.metadata` would parse a mail header for it.

That parser and its imports take 25 ms, of which every `plan` would pay its share. The layout is the standard's: Binary
distribution format and Recording installed projects, packaging.python.org.
"""

from __future__ import annotations

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
        folder = Path(place or ".")
        if not folder.is_dir():
            continue
        for info in sorted(folder.glob("*.dist-info")):
            called, _, version = info.name.removesuffix(".dist-info").partition("-")
            if re.sub(r"[-_.]+", "_", called).lower() == wanted and version:
                record = info / "RECORD"
                return Installed(version, record.read_text(encoding="utf-8") if record.is_file() else None)
    return None
