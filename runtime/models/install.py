"""Bringing one model in: what the disk has already, space for the rest, the rest, the last looks, out.

share      files whose content another model has: further names of its blobs
reserve    space for all other files, before the first byte
copy       pieces that files of this store hold, and those in cold storage
fetch      the other pieces, from the sources
publish    after a last look at what was shared, at every header, and at its maker's signature
"""

from __future__ import annotations

import threading
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from runtime.models import formats, hashing
from runtime.models.capacity import OVERHEAD, admit, free_bytes
from runtime.models.layout import Layout, tree
from runtime.models.openssf import check_signature
from runtime.models.partial import Known, Partial
from runtime.models.pieces import load_journal
from runtime.models.reach import Reach
from runtime.models.records import Fingerprint
from runtime.models.shelf import Shelf, blob_name_of
from runtime.models.stamps import Stamps
from runtime.models.telling import Teller, label
from schemas.errors import DownloadFailed, Incompatible, NoSpace, ReconcileError
from schemas.manifest import HASH_SIZE, PIECE_SIZE

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from pathlib import Path

    from runtime.interfaces import Model, Progress
    from runtime.models.archive import Archive
    from runtime.models.pieces import FilePieces, Journal
    from runtime.models.sources import Source
    from schemas.node import SourcePolicy
    from schemas.ports import Ports, Stop

_SYNCS: Final = 8
"""Files synced side by side at the end: a journalling file system commits them together."""


class Rooms:
    """What the parts of a store share. `lock` is held for every step that others must not see halfway."""

    def __init__(self, root: Path, ports: Ports, archive: Archive) -> None:
        self.ports = ports
        self.archive = archive
        self.layout = Layout(root)
        self.stamps = Stamps(self.layout, ports.files)
        self.shelf = Shelf(self.layout, self.stamps, ports)
        self.lock = threading.RLock()


@dataclass(frozen=True, slots=True)
class Fetching:
    """How models are fetched."""

    policy: SourcePolicy
    """From where."""
    connections: int
    """Requests at once for one model."""
    stall: float
    """Seconds of silence after which a source is given up."""
    reserve: int
    """Bytes of the disk that are left free."""
    nearby: Callable[[str], Sequence[Source]] = lambda _manifest: ()
    """By a manifest's digest: sources that are open already, such as a bundle. The policy is about addresses."""
    reach: Reach = field(default_factory=Reach)
    """How the outside is reached, beyond the policy."""


class Install:
    """One model on its way in."""

    def __init__(
        self,
        rooms: Rooms,
        fetching: Fetching,
        model: Model,
        files: tuple[FilePieces, ...],
        *,
        progress: Progress,
        stop: Stop,
    ) -> None:
        self._rooms = rooms
        self._fetching = fetching
        self._layout = rooms.layout
        self._stamps = rooms.stamps
        self._shelf = rooms.shelf
        self._ports = rooms.ports
        self._lock = rooms.lock
        self._model = model
        self._label = label(model)
        self._files = files
        self._folder = rooms.layout.partial(model.digest)
        self._base = self._folder / "files"
        self._tell = Teller(model, files, progress)
        self._stop = stop

    def run(self, sources: Sequence[str]) -> Sequence[str]:
        """Fetch what is missing, verify, publish.

        Args:
            sources: base addresses; the node's fallback list comes after them.

        Returns:
            What is to be held against sources, although others made up for it.

        Raises:
            DownloadFailed, ModelCorrupt, Incompatible, NoSpace: see `ModelStore.acquire`.
            hashing.Stopped: `stop` was set.
            OSError: the disk refused.
        """
        with self._lock:
            self._shelf.clear(self._base, [file.path for file in self._files])
        borrowed = self._share()
        wanted = one_of_each([file for file in self._files if file.path not in borrowed])
        partial = Partial(self._folder, self._model.digest, wanted, self._ports)
        good = self._reserve(partial, partial.resume(self._stop))
        self._tell.begin(wanted, good, borrowed)
        journal = partial.journal(good)
        try:
            self._copy(wanted, partial, journal)
            remarks = self._fetch(wanted, partial, journal, sources)
        except (ReconcileError, hashing.Stopped):
            journal.save(partial.fingerprints())
            raise
        self._ports.concurrency.map(partial.seal, [file.path for file in wanted], limit=_SYNCS)
        journal.save(partial.fingerprints(), synced=True)
        with self._lock:
            self._publish(borrowed)
        self._tell.finish()
        return remarks

    # --- what the disk has already --------------------------------------------------------------------------------

    def _share(self) -> Mapping[str, Fingerprint]:
        """Borrow the blobs that hold a file's content already; those that no stored model vouches for are hashed.

        Returns:
            The stat of the borrowed files, by path.
        """
        with self._lock:
            vouched = self._stamps.vouched()
        held = {file.path: seen for file in self._files if (seen := self._held(file, vouched)) is not None}
        names = {file.path: blob_name_of(file) for file in self._files}
        with self._lock:
            there = [path for path in held if self._layout.blob(names[path]).exists()]
            self._shelf.borrow({self._base / path: names[path] for path in there})
            found = fingerprints(self._base) if there else {}
        # A blob that changed between the look and the link is not what was looked at.
        return {path: found[path] for path in there if found[path].same_but_ctime(held[path])}

    def _held(self, file: FilePieces, vouched: Mapping[str, frozenset[Fingerprint]]) -> Fingerprint | None:
        """The stat of the blob that holds a file's content, None if there is none."""
        name = blob_name_of(file)
        blob = self._layout.blob(name)
        try:
            seen = Fingerprint.of(blob.lstat())
        except OSError:
            return None
        if seen is None or seen.size != file.size:
            return None
        if seen in vouched.get(name, ()):
            return seen
        work = ((blob.name, piece) for piece in file.pieces)
        bad = hashing.bad_pieces(work, blob.parent, concurrency=self._ports.concurrency, stop=self._stop)
        return None if bad else seen

    def _copy(self, wanted: Sequence[FilePieces], partial: Partial, journal: Journal) -> None:
        """Take over pieces that other models' files hold, or the quarantined copy of this one."""
        done = journal.done
        work = [(file, piece) for file in wanted for piece in file.pieces if piece.number not in done]
        with self._lock:
            known = known_pieces(self._rooms, self._model, self._files, frozenset(piece.hash for _, piece in work))
        if known:
            partial.copy(work, known, journal, stop=self._stop, told=self._tell.piece)
        archived = self._rooms.archive.get(self._model.digest)
        if archived is not None:
            done = journal.done
            partial.fill(
                [(file, piece) for file, piece in work if piece.number not in done],
                lambda file, piece: self._rooms.archive.read(archived, self._files, file, piece),
                journal,
                stop=self._stop,
                told=self._tell.piece,
                limit=self._rooms.archive.side_by_side,
            )

    # --- the rest -------------------------------------------------------------------------------------------------

    def _reserve(self, partial: Partial, good: frozenset[int]) -> frozenset[int]:
        """Take all the space before anything is fetched; quarantined models make room where they must."""
        root, reserve = self._layout.root, self._fetching.reserve
        with self._lock:
            self._ports.files.make_folder(root)
            wanted = partial.wanted()
            need = wanted + OVERHEAD if wanted else 0
            while need and need + reserve > free_bytes(root):
                if not self._shelf.empty_quarantine(self._model.digest):
                    break
            try:
                admit(root, need, reserve=reserve, what=f"installing {self._label}")
                return partial.take(good)
            except (OSError, NoSpace):
                if not good:
                    self._shelf.discard(self._folder)  # half a reservation is of no use, and in the way
                raise

    def _fetch(
        self, wanted: Sequence[FilePieces], partial: Partial, journal: Journal, sources: Sequence[str]
    ) -> Sequence[str]:
        done = journal.done
        if all(piece.number in done for file in wanted for piece in file.pieces):
            return ()
        from runtime.models.fetch import Fetch  # noqa: PLC0415 - looking at the store needs no engine

        fetch = Fetch(
            self._model,
            partial.base,
            wanted,
            fetching=self._fetching,
            journal=journal,
            ports=self._ports,
            stop=self._stop,
            tell=self._tell,
        )
        return fetch.run(sources)

    # --- out ------------------------------------------------------------------------------------------------------

    def _publish(self, borrowed: Mapping[str, Fingerprint]) -> None:
        """The last looks, and out."""
        for twin, first in _twins([file for file in self._files if file.path not in borrowed]):
            self._shelf.repeat(self._base / first.path, self._base / twin.path)
        vouched = self._stamps.vouched()
        now = fingerprints(self._base)
        for file in self._files:
            if file.path in borrowed:
                spoken_for = vouched.get(blob_name_of(file), frozenset()) | {borrowed[file.path]}
                if now.get(file.path) not in spoken_for:
                    raise DownloadFailed(f"{self._label}/{file.path}, shared with another model, changed meanwhile")
        try:
            formats.check_content(self._model, self._base, [file.path for file in self._files])
        except Incompatible:
            self._shelf.discard(self._folder)  # the right bytes, and nothing to go on with
            raise
        # What arrived is kept where the signature is refused: another manifest may ask for another one.
        check_signature(self._model.manifest, self._base)
        self._shelf.publish(self._model, self._files, self._base)
        self._shelf.settle(self._model.digest)
        self._rooms.archive.remove(self._model.digest)


def known_pieces(
    rooms: Rooms, model: Model, files: Sequence[FilePieces], hashes: frozenset[bytes]
) -> dict[bytes, list[Known]]:
    """Where in a store pieces of these hashes may be found: in stored models, and in what was quarantined of this one.

    Args:
        rooms: the store; its lock is held.
        model: the model that needs them.
        files: its files.
        hashes: what is looked for.

    Raises:
        OSError: the store cannot be read.
    """
    found: dict[bytes, list[Known]] = {}
    for stamp in rooms.stamps.stored():
        base = rooms.stamps.folder(stamp)
        for file, digests in rooms.stamps.pieces(stamp):
            for start in range(0, len(digests), HASH_SIZE):
                digest = digests[start : start + HASH_SIZE]
                if digest in hashes:
                    place = Known(base, file.path, start // HASH_SIZE * PIECE_SIZE)
                    found.setdefault(digest, []).append(place)
    kept = rooms.layout.quarantine(model.digest)
    good = load_journal(kept / "journal", model.digest).numbers()
    for own in files:
        for piece in own.pieces:
            if piece.number in good and piece.hash in hashes:
                found.setdefault(piece.hash, []).append(Known(kept / "files", own.path, piece.offset))
    return found


def one_of_each(files: Sequence[FilePieces]) -> tuple[FilePieces, ...]:
    """The files without those whose content an earlier one has."""
    return tuple({blob_name_of(file): file for file in reversed(files)}.values())[::-1]


def _twins(files: Sequence[FilePieces]) -> Iterator[tuple[FilePieces, FilePieces]]:
    """Files whose content an earlier one has, each with that one."""
    first = {blob_name_of(file): file for file in reversed(files)}
    return ((file, first[blob_name_of(file)]) for file in files if first[blob_name_of(file)] is not file)


def fingerprints(folder: Path) -> dict[str, Fingerprint]:
    """Stat of everything below a folder, by path; what is not a regular file gets one that never matches."""
    odd = Fingerprint(size=-1, mtime_ns=0, ctime_ns=0, inode=0)
    return {path: Fingerprint.of(seen) or odd for path, seen in tree(folder).items()}
