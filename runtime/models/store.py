"""The node's models on disk: acquire, verify, list, remove. The order of things is here, the things are next door."""

from __future__ import annotations

import threading
from collections import defaultdict
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Final

from runtime.models import formats, hashing, inventory
from runtime.models.archive import Archive, SourceChanged
from runtime.models.capacity import disk_errors, free_bytes
from runtime.models.filesystem import verity_refusal
from runtime.models.install import Fetching, Install, Rooms, fingerprints, known_pieces, one_of_each
from runtime.models.layout import give_modes_back
from runtime.models.pieces import load_journal, split
from runtime.models.reach import Reach
from runtime.models.shelf import blob_name_of
from runtime.models.telling import Teller, label
from schemas.digests import short
from schemas.errors import DownloadFailed, ModelCorrupt

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from datetime import datetime

    from runtime.interfaces import Model, Progress, Scrubbed
    from runtime.models.pieces import FilePieces
    from runtime.models.records import Fingerprint
    from runtime.models.sources import Source
    from schemas.node import SourcePolicy
    from schemas.observation import ModelSeen
    from schemas.ports import Ports, Stop


TIDY_SECONDS: Final = 60.0
"""How long a store in which nothing lies about is taken to be so. A crash leaves something, and whoever comes after it
looks first; so does whoever changed something. Only other hands can leave something else, and looking for that costs
more than all the rest of an idle pass."""


class DiskModelStore:
    """A `ModelStore` below one folder. Safe to use from several threads; one process at a time (the state lock)."""

    def __init__(
        self,
        root: Path,
        *,
        ports: Ports,
        policy: SourcePolicy,
        connections: int = 4,
        stall: float = 30,
        reserve: int = 2**28,
        nearby: Callable[[str], Sequence[Source]] = lambda _manifest: (),
        archive: Path | None = None,
        reach: Reach | None = None,
    ) -> None:
        """Name the store; nothing is touched before something is acquired.

        Args:
            root: `<state>/models`.
            ports: clock, chance, disk, threads.
            policy: from where models may be fetched.
            connections: requests at once for one model.
            stall: seconds of silence after which a source is given up.
            reserve: bytes of the disk that are left free.
            nearby: by a manifest's digest: sources that are open already, such as a bundle.
            archive: folder of this network's own on a cold disk; below the root if not given.
            reach: how sources are reached, beyond the policy: credentials, endpoints, proxy, bandwidth.
        """
        self._ports = ports
        self._archive = Archive(archive or root / "archive", ports, reserve=reserve)
        self._elsewhere = archive is not None
        self._rooms = Rooms(root, ports, self._archive)
        self._layout = self._rooms.layout
        self._stamps = self._rooms.stamps
        self._shelf = self._rooms.shelf
        self._lock = self._rooms.lock
        self._fetching = Fetching(
            policy=policy,
            connections=connections,
            stall=stall,
            reserve=reserve,
            nearby=nearby,
            reach=reach or Reach(),
        )
        self._tidy_until: float | None = None
        """Monotonic time until which nothing need be looked for that lies about; None where nobody knows."""
        self._busy: defaultdict[str, threading.Lock] = defaultdict(threading.Lock)

    # --- looking ------------------------------------------------------------------------------------------------------

    def list(self) -> Mapping[str, ModelSeen]:
        """Everything in the store, by manifest digest. Costs stats only, and changes nothing (I9).

        Raises:
            OSError: the store cannot be read; what is in it is then unknown, not absent.
        """
        with self._lock:
            return inventory.listing(self._rooms)

    def folder(self, digest: str) -> Path:
        """The read-only folder of a stored model, for mounting.

        Raises:
            KeyError: not stored.
        """
        with self._lock:
            return Path(self._stamps.visible()[digest])

    def missing(self, model: Model) -> int:
        """Bytes that `acquire` would have to fetch: neither stored, nor verified in part, nor known piece by piece.

        Raises:
            ModelCorrupt: the manifest contradicts its pieces file.
        """
        files = split(model)
        with self._lock:
            if model.digest in self._stamps.visible():
                return 0
            blobs = self._stamps.vouched()
            wanted = one_of_each([file for file in files if blob_name_of(file) not in blobs])
            here = load_journal(self._layout.partial(model.digest) / "journal", model.digest).numbers()
            pieces = [piece for file in wanted for piece in file.pieces if piece.number not in here]
            known = known_pieces(self._rooms, model, files, frozenset(piece.hash for piece in pieces))
        archived = self._archive.get(model.digest) is not None
        return sum(piece.length for piece in pieces if piece.hash not in known and not archived)

    def room(self, model: Model) -> int:
        """Bytes of the disk that `acquire` would take, beyond what it has taken already.

        Raises:
            ModelCorrupt: the manifest contradicts its pieces file.
        """
        files = split(model)
        with self._lock:
            return inventory.room(self._rooms, model, files)

    def residue(self) -> int:
        """Bytes that nothing visible needs: what a crash left lying about.

        Raises:
            OSError: the store cannot be read.
        """
        now = self._ports.clock.monotonic()
        with self._lock:
            if self._tidy_until is not None and now < self._tidy_until:
                return 0
            found = inventory.residue(self._rooms)
            self._tidy_until = None if found else now + TIDY_SECONDS
        return found

    def cold_free(self) -> int | None:
        """Free bytes of the cold disk; None where it is the disk of the store."""
        if not self._elsewhere:
            return None
        folder = next(path for path in (self._archive.root, *self._archive.root.parents) if path.exists())
        return free_bytes(folder)

    def unguarded(self) -> str:
        """Why the file system cannot have the kernel refuse changed bytes; empty where it can."""
        return verity_refusal(self._layout.root)

    # --- acquiring ----------------------------------------------------------------------------------------------------

    def acquire(self, model: Model, sources: Sequence[str], *, progress: Progress, stop: Stop) -> Sequence[str]:
        """Fetch what is missing, verify, publish. Resumes; fine if the model is stored and intact.

        Args:
            model: what to install.
            sources: base addresses; the node's fallback list comes after them.
            progress: told per file.
            stop: when set, returns soon with `DownloadFailed`, keeping what is verified.

        Returns:
            What is to be held against sources, although others made up for it.

        Raises:
            DownloadFailed: no source had it all, or stopped, or the disk failed; what is verified is kept.
            ModelCorrupt: the sources answered with other bytes than the manifest's, or it contradicts itself.
            Incompatible: a file is of a kind that is refused, or its header is not sound.
            SignatureRefused: it does not carry the signature of its maker that its manifest asks for.
            NoSpace: the disk cannot hold it; nothing was fetched.
        """
        formats.check_names(model)
        files = split(model)
        with self._exclusive(model.digest, f"installing {label(model)}"):
            try:
                if self._settle(model, files, progress=progress, stop=stop):
                    return ()
                install = Install(self._rooms, self._fetching, model, files, progress=progress, stop=stop)
                return install.run(sources)
            except hashing.Stopped as error:
                raise DownloadFailed(f"installing {label(model)} was stopped; what is verified is kept") from error

    def _settle(self, model: Model, files: tuple[FilePieces, ...], *, progress: Progress, stop: Stop) -> bool:
        """Whether the model is stored and intact, after hashing a folder of which nobody is sure."""
        with self._lock:
            self._shelf.sweep()
            stamp = self._stamps.load(model.digest) if model.digest in self._stamps.visible() else None
            if stamp is not None and self._stamps.intact(stamp):
                self._shelf.settle(model.digest)
                self._archive.remove(model.digest)
                return True
            there = self._shelf.place(model).is_dir()
        if not there:
            return False
        try:
            self._check(model, files, progress=progress, stop=stop)
        except ModelCorrupt:
            return False  # quarantined: fetched again, as far as it was bad
        with self._lock:
            self._shelf.settle(model.digest)
            self._archive.remove(model.digest)
        return True

    # --- checking and removing ----------------------------------------------------------------------------------------

    def verify(self, model: Model, *, progress: Progress, stop: Stop) -> None:
        """Hash a stored model again, and stamp it intact. One in doubt is read past the page cache.

        Raises:
            KeyError: not stored.
            ModelCorrupt: the bytes differ; the model has been moved to quarantine and is no longer stored.
            DownloadFailed: stopped, or the disk failed, before the end.
        """
        files = split(model)
        with self._exclusive(model.digest, f"verifying {label(model)}"):
            self.folder(model.digest)
            try:
                self._check(model, files, progress=progress, stop=stop)
            except hashing.Stopped as error:
                raise DownloadFailed(f"verifying {label(model)} was stopped") from error

    def _check(self, model: Model, files: tuple[FilePieces, ...], *, progress: Progress, stop: Stop) -> None:
        """Hash a folder; stamp it, or quarantine it.

        Raises:
            ModelCorrupt: it went to quarantine.
            hashing.Stopped: `stop` was set.
        """
        folder = self._shelf.place(model)
        with self._lock:
            stamp = self._stamps.load(model.digest)
        give_modes_back(folder)
        before = fingerprints(folder)
        tell = Teller(model, files, progress)
        work = ((file.path, piece) for file in files for piece in file.pieces)
        by_path = {file.path: file for file in files}
        bad = hashing.bad_pieces(
            work,
            folder,
            concurrency=self._ports.concurrency,
            stop=stop,
            checked=lambda path, piece: tell.piece(by_path[path], piece),
            # Memory may still have what the disk has lost.
            past_cache=stamp is not None and bool(stamp.void),
        )
        with self._lock:
            after = fingerprints(folder)
            sizes = {file.path: file.size for file in files}
            if not bad and before == after and {path: seen.size for path, seen in after.items()} == sizes:
                self._shelf.stamp(model, files, after)
                return
            self._shelf.quarantine(model, files, bad)
        raise ModelCorrupt(
            f"the files of {label(model)} are not those of its manifest: {_difference(files, bad, after)}",
            hint="moved to quarantine; the next sync fetches what is bad",
        )

    def remove(self, digest: str) -> None:
        """Remove a model and the blobs that no other model needs. Fine if it is gone.

        Raises:
            DownloadFailed: the disk failed.
        """
        with self._exclusive(digest, f"removing the model {short(digest)}"), self._lock:
            self._shelf.withdraw(digest)
            self._archive.remove(digest)

    def sweep(self) -> None:
        """Remove what a crash left lying about.

        Raises:
            DownloadFailed: the disk failed.
        """
        with disk_errors("sweeping the model store"), self._lock:
            self._tidy_until = None
            self._shelf.sweep()
            for path in self._archive.unfinished():
                self._ports.files.remove(path)

    # --- cold storage -------------------------------------------------------------------------------------------------

    def archive(self, model: Model, *, progress: Progress, stop: Stop) -> None:
        """Move a stored model to cold storage; `acquire` brings it back. Fine if it is there already.

        Raises:
            KeyError: not stored, and not in cold storage.
            ModelCorrupt: its bytes differ; it has been moved to quarantine.
            NoSpace: the cold disk cannot hold it; nothing was written.
            DownloadFailed: stopped, or a disk failed; the stored model stays.
        """
        files = split(model)
        with self._exclusive(model.digest, f"archiving {label(model)}"):
            try:
                if not self._is_archived(model, files, stop):
                    self._put_away(model, files, progress=progress, stop=stop)
            except hashing.Stopped as error:
                raise DownloadFailed(f"archiving {label(model)} was stopped") from error
            with self._lock:
                self._shelf.withdraw(model.digest)

    def _is_archived(self, model: Model, files: tuple[FilePieces, ...], stop: Stop) -> bool:
        """Whether cold storage has the model, whole, as is looked up where there is another copy to lose."""
        record = self._archive.get(model.digest)
        if record is None:
            return False
        with self._lock:
            hot = model.digest in self._stamps.visible()
        return not hot or not self._archive.bad(record, files, stop=stop)

    def _put_away(self, model: Model, files: tuple[FilePieces, ...], *, progress: Progress, stop: Stop) -> None:
        folder = self.folder(model.digest)
        try:
            self._archive.put(model, files, folder, told=Teller(model, files, progress).piece, stop=stop)
        except SourceChanged as error:
            self._check(model, files, progress=progress, stop=stop)
            raise DownloadFailed(f"{label(model)} changed while it was archived") from error

    # --- background ---------------------------------------------------------------------------------------------------

    def scrub(self, *, rate: int, every: float, stop: Stop) -> Scrubbed | None:
        """Look for bit rot in the model that was verified longest ago, as far as there is time.

        Args:
            rate: bytes a second, at most.
            every: seconds after which a verified model is due again.
            stop: ends it soon; the place is remembered.

        Returns:
            What came of a model that was looked through, None where none is due or the time was up. A bad one is no
            longer intact.

        Raises:
            DownloadFailed: the disk failed.
        """
        from runtime.models.scrub import Scrub  # noqa: PLC0415 - only a daemon scrubs

        with disk_errors("scrubbing the model store"):
            return Scrub(self._rooms, rate=rate, every=every).run(stop)

    def scrub_due(self, *, every: float) -> tuple[str, datetime] | None:
        """The stamp that is oldest; nothing is read but stamps that are known already."""
        try:
            stamps = [stamp for stamp in self._stamps.stored() if not stamp.void]
        except OSError:
            return None
        oldest = min(stamps, key=lambda stamp: (stamp.verified_at, stamp.manifest), default=None)
        if oldest is None:
            return None
        return f"{oldest.name}:{oldest.version}", oldest.verified_at + timedelta(seconds=every)

    @contextmanager
    def _exclusive(self, digest: str, what: str) -> Iterator[None]:
        """One thing at a time per model; errors of the disk become ours."""
        with self._lock:
            busy = self._busy[digest]
        with busy, disk_errors(what):
            try:
                yield
            finally:
                self._tidy_until = None


def _difference(files: Sequence[FilePieces], bad: frozenset[int], after: Mapping[str, Fingerprint]) -> str:
    """What is wrong with a folder, for people: the first thing found."""
    listed = {file.path for file in files}
    for file in files:
        if file.path not in after:
            return f"{file.path} is missing"
        pieces = [piece for piece in file.pieces if piece.number in bad]
        if pieces:
            share = f"{len(pieces)} of {len(file.pieces)} pieces"
            return f"{share} of {file.path} are bad, the first at byte {pieces[0].offset}"
    strange = sorted(path for path in after if path not in listed)
    return f"{strange[0]} does not belong there" if strange else "they changed while they were read"
