"""The planner's first argument: a snapshot with what it binds, as far as this decision needs it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

    from schemas.manifest import ManifestDocument
    from schemas.snapshot import SnapshotDocument


@dataclass(frozen=True, slots=True)
class Desired:
    """What the network's operators want, as far as this node was given it."""

    document: SnapshotDocument | None
    """None before the first snapshot was accepted: then nothing is wanted, and nothing is removed."""
    digest: str = ""
    verified: bool = False
    """Whether signatures were checked. A plan from unverified bytes is a draft: shown, never applied."""
    manifests: Mapping[str, ManifestDocument] = field(default_factory=dict)
    """By digest: the manifests that were loaded. Those of models that are installed already may be missing."""
