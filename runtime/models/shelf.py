"""What is visible and what is not: blobs, published folders, quarantine, trash. Every step is durable, in order (I7).

    publish   link blobs <-> files, freeze, sync folders; rename the whole folder into place; stamp; drop the partial
    remove    rename the whole folder into the trash; drop the stamp; delete; drop blobs that nobody else links to
    quarantine  void the stamps of all that share bad content; write what is good; rename the folder; drop the stamp

The folder and its stamp together make a model visible, so that a crash between two steps leaves it either invisible or
whole. What a crash leaves lying about is found by `sweep`: the trash, folders without a stamp, blobs of one link.
Callers hold the store's lock.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from runtime.models.filesystem import has_verity
from runtime.models.layout import blob_name, freeze, open_regular, thaw, tree
from runtime.models.pieces import JournalRecord
from runtime.models.records import Fingerprint, save
from runtime.models.stamps import Stamp, StampFile
from schemas.digests import short
from schemas.errors import StateCorrupt

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from runtime.interfaces import Model
    from runtime.models.layout import Layout
    from runtime.models.pieces import FilePieces
    from runtime.models.stamps import Stamps
    from schemas.ports import Ports


class Shelf:
    """The durable steps of a store. Not thread-safe by itself."""

    def __init__(self, layout: Layout, stamps: Stamps, ports: Ports) -> None:
        self._layout = layout
        self._stamps = stamps
        self._ports = ports
        self._files = ports.files

    # --- in ---------------------------------------------------------------------------------------------------------

    def clear(self, base: Path, paths: Iterable[str]) -> None:
        """Remove what is not a folder where the folders of these paths belong: nothing is written through a link.

        Args:
            base: the folder below which the paths lie; one in `partial/<hex>`.
            paths: relative paths of files.

        Raises:
            OSError: the disk refused.
        """
        folders = {folder for path in paths for folder in (base / path).parents if folder.is_relative_to(base)}
        for folder in [base.parent, *sorted(folders)]:
            if folder.is_symlink() or (folder.exists() and not folder.is_dir()):
                self._files.remove(folder)

    def borrow(self, names: Mapping[Path, str]) -> None:
        """Make paths further names of blobs: a model on its way in keeps them, whatever is removed meanwhile.

        Args:
            names: the blob of each path.

        Raises:
            OSError: the disk refused.
        """
        inodes = {path: self._layout.blob(blob).lstat().st_ino for path, blob in names.items()}
        wanted = {path: blob for path, blob in names.items() if _inode(path) != inodes[path]}
        with self._stamps.keeping(frozenset(inodes[path] for path in wanted)):
            for path, blob in wanted.items():
                self._files.remove(path)
                self._files.make_folder(path.parent)
                self._files.link(self._layout.blob(blob), path)

    def repeat(self, first: Path, twin: Path) -> None:
        """Give a completed file of a model on its way in a second name in the same model.

        Raises:
            OSError: the disk refused.
        """
        if _inode(twin) != first.lstat().st_ino:
            self._files.remove(twin)
            self._files.make_folder(twin.parent)
            self._files.link(first, twin)

    def publish(self, model: Model, files: Sequence[FilePieces], base: Path) -> None:
        """Make a model visible whose files lie below `base`, verified, read-only and synced.

        Raises:
            StateCorrupt: another model's folder is in its place.
            OSError: the disk refused.
        """
        folder = self.place(model)
        listed = {file.path for file in files}
        for path in tree(base):
            if path not in listed:
                self._files.remove(base / path)  # never anything but the manifest's files
        for file in files:
            self._lend(blob_name_of(file), base / file.path)
        for inner in dict.fromkeys(path.parent for path in (base / file.path for file in files)):
            self._files.sync_folder(inner)
        self._files.sync_folder(base)
        self._files.make_folder(folder.parent)
        if folder.exists():
            raise StateCorrupt(f"{folder} exists, and is not the folder of {model.digest}")
        self._files.rename(base, folder)
        freeze(folder)
        self.stamp(model, files)

    def stamp(self, model: Model, files: Sequence[FilePieces], seen: Mapping[str, Fingerprint] | None = None) -> None:
        """Record that a folder's files are verified.

        Args:
            model: the model.
            files: its files.
            seen: stat of each file, taken when it was verified; the present one if not given.

        Raises:
            OSError: the disk refused.
        """
        folder = self.place(model)
        metadata = model.manifest.metadata
        before = self._stamps.load(model.digest)
        stamp = Stamp(
            manifest=model.digest,
            name=metadata.name,
            version=metadata.version,
            verified_at=self._ports.clock.now().replace(microsecond=0),
            files=tuple(
                StampFile(
                    path=file.path,
                    blob=blob_name_of(file),
                    seen=_sure(folder / file.path) if seen is None else seen[file.path],
                )
                for file in files
            ),
        )
        # Once the kernel guards a file it does so for ever: asked once for files that are the same.
        same = before is not None and before.guarded and _inodes(before) == _inodes(stamp)
        guarded = same or all(_is_guarded(folder, file.path) for file in files)
        self._stamps.save(stamp.model_copy(update={"guarded": guarded}), model.pieces)

    def place(self, model: Model) -> Path:
        """The folder of a model."""
        metadata = model.manifest.metadata
        return self._layout.folder(metadata.name, metadata.version, model.digest)

    def _lend(self, blob: str, path: Path) -> None:
        """Give a verified file its name among the blobs, in place of one that nothing speaks for."""
        target = self._layout.blob(blob)
        present = _inode(target)
        if present == path.lstat().st_ino:
            return
        if present is not None:
            with self._stamps.keeping(frozenset({present})):
                self._files.remove(target)
        self._files.make_folder(target.parent)
        # No other model has this file yet: its only name is the one that is given here.
        self._files.link(path, target)

    # --- out --------------------------------------------------------------------------------------------------------

    def withdraw(self, digest: str) -> None:
        """Remove a model, whatever state it is in, and what only it needed. Fine if it is gone.

        Raises:
            OSError: the disk refused.
        """
        folder = self._layout.folders().get(short(digest))
        hidden = self._hide(Path(folder)) if folder is not None else None
        # Before the deletion: on a full disk, its space lets the stamps of models that share content be rewritten.
        self._stamps.drop(digest)
        if hidden is not None:
            self._delete(hidden)
        self.settle(digest)
        self.sweep()

    def quarantine(self, model: Model, files: Sequence[FilePieces], bad: frozenset[int]) -> None:
        """Take a model with bad bytes out of use. What is good of it is kept for the repair.

        Args:
            model: the model.
            files: its files.
            bad: numbers of the pieces that are not what they must be.

        Raises:
            OSError: the disk refused.
        """
        folder = self.place(model)
        spoilt = [file for file in files if any(piece.number in bad for piece in file.pieces)]
        # By inode, not by name: another model may have a sound copy of the same content meanwhile.
        inodes = {inode for file in spoilt if (inode := _inode(folder / file.path)) is not None}
        for stamp in self._stamps.stored():
            if stamp.manifest == model.digest or inodes & {file.seen.inode for file in stamp.files}:
                self._stamps.void(stamp, f"content shared with {model.digest} was found corrupt")
        for file in spoilt:
            blob = self._layout.blob(blob_name_of(file))
            if _inode(blob) in inodes:
                self._files.remove(blob)
        place = self._layout.quarantine(model.digest)
        self.discard(place)
        self._files.make_folder(place)
        good = {piece.number: piece.length for file in files for piece in file.pieces if piece.number not in bad}
        save(self._files, place / "journal", JournalRecord.of(model.digest, good))
        thaw(folder)
        self._files.rename(folder, place / "files")
        self._stamps.drop(model.digest)

    def discard(self, path: Path) -> None:
        """Move something out of sight at once, then delete it. Fine if it is gone.

        Raises:
            OSError: the disk refused.
        """
        if path.exists():
            self._delete(self._hide(path))

    def settle(self, digest: str) -> None:
        """Forget what a finished download left behind, and what was quarantined of the model before.

        Raises:
            OSError: the disk refused.
        """
        self.discard(self._layout.partial(digest))
        self.discard(self._layout.quarantine(digest))

    def empty_quarantine(self, keep: str) -> bool:
        """Give the space of quarantined models back, one at a time; the repair of `keep` loses its own last.

        Returns:
            Whether there was one.

        Raises:
            OSError: the disk refused.
        """
        own = self._layout.quarantine(keep)
        others = [path for path in _children(own.parent) if path != own]
        for path in [*others, own]:
            if path.exists():
                self.discard(path)
                return True
        return False

    def sweep(self) -> None:
        """Remove what a crash left lying about: none of it is visible, and nothing visible needs it.

        Raises:
            OSError: the disk refused.
        """
        visible = self._stamps.visible()
        for path in _children(self._layout.root / "stamps"):
            if f"blake3:{path.stem}" not in visible:  # half-written ones have names of their own
                self._files.remove(path)
        known = {short(digest) for digest in visible}
        # A folder whose stamp is still to be written has its journal yet: its bytes may all be good.
        known.update(short(f"blake3:{path.name}") for path in _children(self._layout.root / "partial"))
        for digits, folder in self._layout.folders().items():
            if digits not in known:
                self.discard(Path(folder))
        for path in _children(self._layout.root / "trash"):
            self._delete(path)
        self._drop_blobs()

    def _hide(self, path: Path) -> Path:
        """Move something into the trash; where it is there."""
        trash = self._layout.trash(self._ports.randomness.token(8))
        self._files.make_folder(trash.parent)
        thaw(path)
        self._files.rename(path, trash)
        return trash

    def _delete(self, path: Path) -> None:
        inodes = frozenset(seen.st_ino for seen in tree(path).values()) if path.is_dir() else frozenset()
        with self._stamps.keeping(inodes):
            self._files.remove(path)

    def _drop_blobs(self) -> None:
        """Remove blobs whose only name is the one among the blobs: no model has them."""
        for prefix in _children(self._layout.root / "blobs"):
            for blob in _children(prefix):
                if blob.lstat().st_nlink == 1:
                    self._files.remove(blob)


def blob_name_of(file: FilePieces) -> str:
    """The name of a file's content among the blobs."""
    return blob_name(file.blake3, file.hashes)


def _sure(path: Path) -> Fingerprint:
    seen = Fingerprint.of(path.lstat())
    if seen is None:
        raise StateCorrupt(f"{path} is not a regular file")
    return seen


def _inodes(stamp: Stamp) -> list[int]:
    return [file.seen.inode for file in stamp.files]


def _is_guarded(folder: Path, path: str) -> bool:
    file = open_regular(folder, path)
    try:
        return has_verity(file)
    finally:
        os.close(file)


def _inode(path: Path) -> int | None:
    try:
        return path.lstat().st_ino
    except OSError:
        return None


def _children(folder: Path) -> list[Path]:
    """What lies in a folder, sorted; nothing if it is not there."""
    try:
        return sorted(folder.iterdir())
    except (FileNotFoundError, NotADirectoryError):
        return []
