"""A daemon's look beside a pass: as a dry run's, with a journal of its own, into scratch, writing nothing (I9)."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from reconciler.cli import wiring
from reconciler.lookout import wants_else
from reconciler.preview import preview
from reconciler.state_dir import StateDir
from reconciler.target import choose

if TYPE_CHECKING:
    from schemas.node import NodeConfig


class Scout:
    """Says whether a newer snapshot would be accepted that wants something else of this node."""

    def __init__(self, config: NodeConfig) -> None:
        """Look at nothing yet.

        Args:
            config: the node's configuration.
        """
        self._config = config

    def __call__(self, digest: str) -> bool:
        """Look once; a `git ls-remote` where nothing has moved.

        Args:
            digest: the snapshot that is being carried out.

        Raises:
            ReconcileError: this could not be seen.
        """
        config = self._config
        state, ports = StateDir(Path(config.state_dir)), wiring.host()
        with (
            closing(wiring.open_journal(state, readonly=True)) as journal,
            TemporaryDirectory(prefix="reconcile-look-") as scratch,
        ):
            agent, now = wiring.agent_version(), ports.clock.now()
            seen = preview(config, journal, ports=ports, scratch=Path(scratch) / "repo.git", agent=agent, now=now)
            if not seen.verified or seen.digest == digest:
                return False
            node = wiring.build_node(config, journal, ports=ports, progress=_ignore, overlay=seen.documents)
            wishes = []
            for known, cleared in ((digest, ()), (seen.digest, seen.cleared)):
                desired, observed = node.look(known, cleared=cleared)
                if desired.document is None:
                    return True
                wishes.append((desired.document, choose(desired, observed, config)))
            before, after = wishes
            return wants_else(before, after)


def _ignore(subject: str, done: int, total: int) -> None:
    pass
