"""From where the missing pieces come: folders of files, asked side by side; where they fail, bundles, one by one.

A folder gives any piece at any time, from several mirrors at once. A bundle gives them in its own order and may have to
be read from its beginning, so it is for sources that have nothing else, and for when the folders fail.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from runtime.models.archives import split_archive
from runtime.models.download import Download
from runtime.models.health import Health, SourceState
from runtime.models.sources import Refused, open_source, shown
from runtime.models.telling import label
from runtime.models.unpack import Unpack
from schemas.errors import DownloadFailed, ModelCorrupt, ReconcileError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from runtime.interfaces import Model
    from runtime.models.install import Fetching
    from runtime.models.pieces import FilePieces, Journal
    from runtime.models.sources import Source
    from runtime.models.telling import Teller
    from schemas.ports import Ports, Stop


class Fetch:
    """Gets the missing pieces of one model. Used once."""

    def __init__(
        self,
        model: Model,
        base: Path,
        wanted: Sequence[FilePieces],
        *,
        fetching: Fetching,
        journal: Journal,
        ports: Ports,
        stop: Stop,
        tell: Teller,
    ) -> None:
        """Prepare.

        Args:
            model: the model.
            base: folder of its preallocated files.
            wanted: its files.
            fetching: how models are fetched.
            journal: knows what is verified, and gets every further piece.
            ports: clock, chance, threads.
            stop: ends the work early.
            tell: told of every verified piece.
        """
        self._model = model
        self._label = label(model)
        self._base = base
        self._wanted = wanted
        self._fetching = fetching
        self._nearby = fetching.nearby(model.digest)
        self._journal = journal
        self._ports = ports
        self._stop = stop
        self._tell = tell

    def run(self, sources: Sequence[str]) -> Sequence[str]:
        """Fetch what is missing.

        Args:
            sources: base addresses and bundles; the node's fallback list comes after them.

        Returns:
            What is to be held against sources, although others made up for it.

        Raises:
            DownloadFailed, ModelCorrupt, NoSpace: see `Download.run`.
            hashing.Stopped: `stop` was set.
        """
        if self._fetching.reach.paused():
            raise DownloadFailed(f"the download of {self._label} waits: paused now by sources.bandwidth")
        addresses = self._addresses(sources)
        bundles = [address for address in addresses if split_archive(address) is not None]
        folders = [address for address in addresses if address not in bundles]
        failure: ReconcileError | None = None
        if folders or not bundles or self._nearby:
            try:
                return self._download(folders, sources)
            except (DownloadFailed, ModelCorrupt) as error:
                if not bundles or self._stop.is_set() or self._fetching.reach.paused():
                    raise
                failure = error
        return self._unpack(bundles, failure)

    def _addresses(self, sources: Sequence[str]) -> list[str]:
        """The sources of the snapshot, then the node's own fallback list; each once."""
        metadata = self._model.manifest.metadata
        own = [
            address.replace("{name}", metadata.name).replace("{version}", metadata.version)
            for address in self._fetching.policy.fallback
        ]
        return list(dict.fromkeys([*sources, *own]))

    def _open(self, address: str) -> Source:
        fetching = self._fetching
        return open_source(
            address, fetching.policy, stall=fetching.stall, clock=self._ports.clock, reach=fetching.reach
        )

    # --- folders ----------------------------------------------------------------------------------------------------

    def _download(self, addresses: Sequence[str], sources: Sequence[str]) -> Sequence[str]:
        health = self._health(addresses, sources)
        done = self._journal.done
        missing = [(file, [piece for piece in file.pieces if piece.number not in done]) for file in self._wanted]
        Download(
            self._label,
            self._base,
            missing,
            health=health,
            journal=self._journal,
            ports=self._ports,
            stop=self._stop,
            told=self._tell.file,
            connections=self._fetching.connections,
            stall=self._fetching.stall,
            paused=self._fetching.reach.paused,
        ).run()
        return health.blamed()

    def _health(self, addresses: Sequence[str], sources: Sequence[str]) -> Health:
        states = [SourceState(source=source, shown=source.shown, fallback=False) for source in self._nearby]
        for address in addresses:
            state = SourceState(source=None, shown=shown(address), fallback=address not in sources)
            try:
                state.source = self._open(address)
            except Refused as error:
                state.dropped, state.refused = str(error), True
            states.append(state)
        return Health(states, clock=self._ports.clock.monotonic, jitter=self._ports.randomness.uniform)

    # --- bundles ----------------------------------------------------------------------------------------------------

    def _unpack(self, addresses: Sequence[str], failure: ReconcileError | None) -> Sequence[str]:
        unpack = Unpack(
            self._base,
            self._wanted,
            journal=self._journal,
            ports=self._ports,
            stop=self._stop,
            told=self._tell.piece,
            stall=self._fetching.stall,
            paused=self._fetching.reach.paused,
        )
        said = [failure.message] if failure is not None else []
        corrupt = failure is None or isinstance(failure, ModelCorrupt)
        for address in addresses:
            base, name, suffix = split_archive(address) or (address, "", "")
            try:
                outcome = unpack.run(self._open(base), name, suffix)
            except Refused as error:
                said.append(f"{shown(address)}: {error}")
                corrupt = False
                continue
            if not unpack.missing:
                return said
            corrupt = corrupt and outcome.error is None
            said.append(f"{shown(address)}: {outcome.error or _lacking(outcome.wrong, unpack.missing)}")
        what = f"no source gives {self._label}/{unpack.missing[0]}: {'; '.join(said)}"
        raise ModelCorrupt(what) if corrupt else DownloadFailed(what)


def _lacking(wrong: Sequence[str], missing: Sequence[str]) -> str:
    """What a bundle that was read to its end does not have."""
    return f"has other content as {wrong[0]}" if wrong else f"has no {missing[0]}"
