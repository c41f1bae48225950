"""What is in a store, and what is missing: looking only. Costs stats, and changes nothing (I9). The lock is held."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Final

from runtime.models.capacity import allocated
from runtime.models.layout import folder_name, tree
from runtime.models.pieces import load_journal
from runtime.models.shelf import blob_name_of
from schemas.digests import short
from schemas.observation import ArchivedModel, PartialModel, StoredModel

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from runtime.interfaces import Model
    from runtime.models.install import Rooms
    from runtime.models.pieces import FilePieces
    from schemas.observation import ModelSeen

_OWN_NAMES: Final = 2
"""Names of a file that one model has: one in its folder, one among the blobs."""


def listing(rooms: Rooms) -> dict[str, ModelSeen]:
    """Everything in a store, by manifest digest, sorted.

    Raises:
        OSError: it cannot be read.
    """
    found: dict[str, ModelSeen] = {}
    for kind in ("partial", "quarantine"):
        for digest, seen in _unfinished(rooms, kind).items():
            known = found.get(digest)
            quarantined = seen.quarantined or (isinstance(known, PartialModel) and known.quarantined)
            best = seen if not isinstance(known, PartialModel) or known.verified_bytes < seen.verified_bytes else known
            own = seen.own + (known.own if isinstance(known, PartialModel) else 0)
            found[digest] = PartialModel(digest, best.verified_bytes, quarantined=quarantined, own=own)
    for digest, record in rooms.archive.list().items():
        found[digest] = ArchivedModel(digest, record.size, own=record.stored)
    found.update((seen.manifest, seen) for seen in _visible(rooms))
    return dict(sorted(found.items()))


def _visible(rooms: Rooms) -> Iterator[StoredModel]:
    """Every model that has a stamp and a folder.

    A stamp says where its folder is, so that one look at it tells both whether it is there and what is in it. All
    folders are only gone through for what is not where it should be.
    """
    astray: list[str] = []
    root = os.fspath(rooms.layout.root)
    for digest in rooms.stamps.named():
        stamp = rooms.stamps.load(digest)
        try:
            files = tree(f"{root}/{folder_name(stamp.name, stamp.version, digest)}") if stamp else None
        except (FileNotFoundError, NotADirectoryError):
            files = None
        if stamp is None or files is None:
            astray.append(digest)
            continue
        intact = rooms.stamps.intact(stamp, files)
        yield StoredModel(
            digest,
            intact=intact,
            size=stamp.size,
            doubt=stamp.void,
            guarded=stamp.guarded,
            own=_own(files),
            changed=() if intact else rooms.stamps.changes(stamp),
        )
    folders = rooms.layout.folders() if astray else {}
    for digest in astray:
        folder = folders.get(short(digest))
        if folder is not None:
            yield _astray(rooms, digest, folder)


def _unfinished(rooms: Rooms, kind: str) -> dict[str, PartialModel]:
    folder = rooms.layout.root / kind
    found = {}
    for path in sorted(folder.iterdir()) if folder.is_dir() else ():
        digest = f"blake3:{path.name}"
        done = load_journal(path / "journal", digest).verified
        own = sum(allocated(seen) for seen in tree(path).values() if seen.st_nlink == 1)
        found[digest] = PartialModel(digest, done, quarantined=kind == "quarantine", own=own)
    return found


def _astray(rooms: Rooms, digest: str, folder: str) -> StoredModel:
    """A folder that nothing speaks for: its stamp is damaged, or is about another place."""
    stamp, files = rooms.stamps.load(digest), tree(folder)
    if stamp is None:
        return StoredModel(digest, intact=False, size=sum(seen.st_size for seen in files.values()), own=_own(files))
    return StoredModel(
        digest,
        intact=False,
        size=stamp.size,
        doubt=stamp.void,
        guarded=stamp.guarded,
        own=_own(files),
        changed=rooms.stamps.changes(stamp),
    )


def _own(files: Mapping[str, os.stat_result]) -> int:
    """Bytes that only this model needs."""
    return sum(seen.st_size for seen in files.values() if seen.st_nlink <= _OWN_NAMES)


def room(rooms: Rooms, model: Model, files: Sequence[FilePieces]) -> int:
    """Bytes of the disk that installing a model would take, beyond what it has taken already.

    Raises:
        OSError: the store cannot be read.
    """
    if model.digest in rooms.stamps.visible():
        return 0
    blobs = rooms.stamps.vouched()
    base = rooms.layout.partial(model.digest) / "files"
    # One of each content: what a model has twice lies on the disk once.
    wanted = {blob_name_of(file): file for file in files if blob_name_of(file) not in blobs}
    return sum(file.size - _taken(base / file.path, file.size) for file in wanted.values())


def _taken(path: Path, size: int) -> int:
    try:
        return min(allocated(path.lstat()), size)
    except OSError:
        return 0


def residue(rooms: Rooms) -> int:
    """Bytes of what a crash left lying about, which the next sweep removes. Takes the same looks as the sweep does.

    Raises:
        OSError: the store cannot be read.
    """
    root = rooms.layout.root
    visible = rooms.stamps.visible()
    known = {short(digest) for digest in visible} | {path.name[:12] for path in _children(root / "partial")}
    lost = [Path(folder) for digits, folder in rooms.layout.folders().items() if digits not in known]
    lost += [*_children(root / "trash"), *rooms.archive.unfinished()]
    total = sum(seen.st_size for folder in lost for seen in _below(folder) if seen.st_nlink <= _OWN_NAMES)
    try:
        blobs = tree(root / "blobs").values()
    except FileNotFoundError:
        return total
    return total + sum(seen.st_size for seen in blobs if seen.st_nlink == 1)


def _below(path: Path) -> list[os.stat_result]:
    return list(tree(path).values()) if path.is_dir() and not path.is_symlink() else [path.lstat()]


def _children(folder: Path) -> list[Path]:
    try:
        return sorted(folder.iterdir())
    except (FileNotFoundError, NotADirectoryError):
        return []
