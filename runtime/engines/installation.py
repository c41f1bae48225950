"""What is installed of an engine beside the agent: found by name, never imported."""

from __future__ import annotations

import platform
from typing import TYPE_CHECKING

from runtime.installed import find
from schemas.digests import digest_text
from schemas.observation import NativeEngine

if TYPE_CHECKING:
    from collections.abc import Sequence


def beside_agent(engine: str, distributions: Sequence[str]) -> NativeEngine | None:
    """The first of an engine's distributions that is installed in the agent's own environment.

    Args:
        engine: as snapshots call it.
        distributions: that bring it, in order of preference.
    """
    for name in distributions:
        installed = find(name)
        # What cannot be named by its files' record cannot be spoken of by a receipt.
        if installed is not None and installed.record is not None:
            environment = digest_text(f"environment/1|python {platform.python_version()}|{installed.record}")
            return NativeEngine(engine, installed.version, environment)
    return None
