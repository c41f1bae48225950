"""What a disk holds after the power failed: what was synced, and of the rest whatever the adversary likes.

Files and the entries of folders become durable each by its own fsync, and by nothing else. Between two of them the
disk may keep any of the changes and lose any other, in any order: new names of files whose bytes never came, bytes
without their names, old names again. (A move is one change: every journalling file system keeps renames whole.)

`watching` looks on while an operation runs, and says what may be left at each moment at which the power could fail.
`Moment.restore` makes such a disk. Where a file is the same one, the store's own records are told its new stat: the
adversary changes bytes without changing what `stat` says.
"""

from __future__ import annotations

import errno
import json
import os
import stat
from collections import defaultdict
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import combinations
from typing import TYPE_CHECKING, Final

from runtime.models.records import Fingerprint
from schemas.digests import digest_text

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    import pytest


@dataclass(frozen=True, slots=True)
class Content:
    """A file's bytes, mode and stat."""

    data: bytes
    mode: int
    seen: Fingerprint


@dataclass(frozen=True, slots=True)
class Disk:
    """Folders and files by inode."""

    folders: dict[int, dict[str, int]] = field(default_factory=dict)
    files: dict[int, Content] = field(default_factory=dict)


_ALL_SUBSETS: Final = 6
"""Unsynced changes up to which every subset of them is tried; of more, none, all, each alone, and all but each."""

Change = frozenset[tuple[int, str]]
"""Entries that change together, as (folder, name); for bytes, the file's inode with an empty name."""


@dataclass(frozen=True, slots=True)
class Moment:
    """A moment at which the power may fail."""

    root: int
    live: Disk
    durable: Disk

    def states(self) -> Iterator[tuple[frozenset[Change], str]]:
        """What may be left: changes that are kept, and how lost bytes look (`zeros`, `short`, `torn`)."""
        names, contents = self.names(), self._contents()
        every = [*names, *contents]
        if len(every) <= _ALL_SUBSETS:
            found = [frozenset(kept) for size in range(len(every) + 1) for kept in combinations(every, size)]
        else:
            whole = frozenset(every)
            found = [frozenset(), frozenset(names), frozenset(contents), whole]
            found += [kept for change in every for kept in (frozenset({change}), whole - {change})]
        for kept in dict.fromkeys(found):
            for lost in ("zeros",) if kept.issuperset(contents) else ("zeros", "short", "torn"):
                yield kept, lost

    def names(self) -> list[Change]:
        """Changes of folders' entries; what moved is one change."""
        gone: dict[int, set[tuple[int, str]]] = defaultdict(set)
        come: dict[int, set[tuple[int, str]]] = defaultdict(set)
        for folder in self.live.folders.keys() | self.durable.folders.keys():
            new, old = self.live.folders.get(folder, {}), self.durable.folders.get(folder, {})
            for name in new.keys() | old.keys():
                if new.get(name) != old.get(name):
                    if name in old:
                        gone[old[name]].add((folder, name))
                    if name in new:
                        come[new[name]].add((folder, name))
        groups: list[set[tuple[int, str]]] = []
        for inode in sorted(gone.keys() | come.keys()):
            moved = bool(gone[inode]) and bool(come[inode])
            groups += [gone[inode] | come[inode]] if moved else [{entry} for entry in gone[inode] | come[inode]]
        return [frozenset(group) for group in _joined(groups)]

    def _contents(self) -> list[Change]:
        changed = (inode for inode, now in self.live.files.items() if self._old(inode, "zeros") != (now.data, now.mode))
        return [frozenset({(inode, "")}) for inode in sorted(changed)]

    def _old(self, inode: int, lost: str) -> tuple[bytes, int]:
        """Bytes and mode of a file whose unsynced bytes are lost."""
        new, old = self.live.files[inode], self.durable.files.get(inode)
        if old is not None and lost != "torn":
            return old.data, old.mode
        before = old.data if old is not None else b"" if lost == "short" else bytes(len(new.data))
        half = len(new.data) // 2 if lost == "torn" else 0
        return new.data[:half] + before[half:], new.mode if old is None else old.mode

    def restore(self, folder: Path, kept: frozenset[Change], lost: str) -> None:
        """Make the disk of one of the states."""
        every = {entry for change in kept for entry in change}
        made: dict[int, Path] = {}
        waiting = [(self.root, folder)]
        folder.mkdir(parents=True)
        for inode, path in waiting:  # grows while it is walked
            for name, child in self._entries(inode, every).items():
                if child in made and child in self.live.files.keys() | self.durable.files.keys():
                    (path / name).hardlink_to(made[child])
                elif child in self.live.files.keys() | self.durable.files.keys():
                    made[child] = path / name
                    data, mode = self._content(child, every, lost)
                    made[child].write_bytes(data)
                    made[child].chmod(mode)
                elif child not in made:
                    made[child] = path / name
                    made[child].mkdir()
                    waiting.append((child, made[child]))
        self._tell(folder, made)

    def _entries(self, inode: int, kept: set[tuple[int, str]]) -> dict[str, int]:
        new, old = self.live.folders.get(inode, {}), self.durable.folders.get(inode, {})
        chosen = ((name, new if (inode, name) in kept else old) for name in sorted(new.keys() | old.keys()))
        return {name: entries[name] for name, entries in chosen if name in entries}

    def _content(self, inode: int, kept: set[tuple[int, str]], lost: str) -> tuple[bytes, int]:
        now = self.live.files.get(inode)
        if now is None:
            gone = self.durable.files[inode]
            return gone.data, gone.mode
        return (now.data, now.mode) if (inode, "") in kept else self._old(inode, lost)

    def _tell(self, folder: Path, made: dict[int, Path]) -> None:
        """Put the stats of the restored files in place of theirs into the records that are sound."""
        for path in [*folder.glob("models/stamps/*.json"), *folder.glob("models/*/*/journal")]:
            seal, _, body = path.read_text(encoding="utf-8", errors="replace").partition("\n")
            if digest_text(body) != seal:
                continue
            record = json.loads(body)
            files = record["files"]
            for key, value in files.items() if isinstance(files, dict) else enumerate(files):
                before = Fingerprint.model_validate(value if isinstance(files, dict) else value["seen"])
                after = self._seen(before, made)
                if after is not None and isinstance(files, dict):
                    files[key] = json.loads(after.to_json())
                elif after is not None:
                    value["seen"] = json.loads(after.to_json())
            body = json.dumps(record)
            mode = stat.S_IMODE(path.stat().st_mode)
            path.write_text(f"{digest_text(body)}\n{body}", encoding="utf-8")
            path.chmod(mode)

    def _seen(self, before: Fingerprint, made: dict[int, Path]) -> Fingerprint | None:
        inode = before.inode
        known = [disk.files[inode].seen for disk in (self.live, self.durable) if inode in disk.files]
        return Fingerprint.of(made[inode].lstat()) if inode in made and before in known else None


@dataclass(slots=True)
class Watch:
    """What was seen of an operation."""

    base: Path
    fail: int | None
    moments: list[Moment] = field(default_factory=list)
    synced: int = 0
    _durable: Disk = field(default_factory=Disk)
    _held: dict[int, int] = field(default_factory=dict)
    """An open descriptor for every inode that was seen: its number then belongs to nobody else."""

    def begin(self) -> None:
        """Everything that is there now has been there for long."""
        self._durable = self._look()

    def fsync(self, descriptor: int) -> None:
        """In place of `os.fsync`."""
        live = self.look()
        self.synced += 1
        if self.synced - 1 == self.fail:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        inode = os.fstat(descriptor).st_ino
        if inode in live.files:
            self._durable.files[inode] = live.files[inode]
        elif inode in live.folders:
            self._durable.folders[inode] = live.folders[inode]

    def look(self) -> Disk:
        """A moment."""
        live = self._look()
        durable = Disk(dict(self._durable.folders), dict(self._durable.files))
        self.moments.append(Moment(self.base.stat().st_ino, live, durable))
        return live

    def close(self) -> None:
        """No further moments."""
        for descriptor in self._held.values():
            os.close(descriptor)

    def _look(self) -> Disk:
        disk = Disk()
        waiting = [self.base]
        for folder in waiting:  # grows while it is walked
            entries: dict[str, int] = {}
            for path in folder.iterdir():
                inode = self._hold(path)
                entries[path.name] = inode
                if path.is_dir():
                    waiting.append(path)
                elif inode not in disk.files:
                    seen = path.lstat()
                    found = Fingerprint.of(seen)
                    assert found is not None
                    disk.files[inode] = Content(path.read_bytes(), stat.S_IMODE(seen.st_mode), found)
            disk.folders[self._hold(folder)] = entries
        return disk

    def _hold(self, path: Path) -> int:
        inode = path.lstat().st_ino
        if inode not in self._held:
            self._held[inode] = os.open(path, os.O_RDONLY)
        return inode


@contextmanager
def watching(base: Path, monkeypatch: pytest.MonkeyPatch, *, fail: int | None = None) -> Iterator[Watch]:
    """Look on from here to the end of the `with`; its last moment is the one in which it ends.

    Args:
        base: the folder that is looked at, with all below it.
        monkeypatch: takes the place of `os.fsync`.
        fail: number of the fsync, from 0, that fails, and syncs nothing.
    """
    watch = Watch(base, fail)
    watch.begin()
    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", watch.fsync)
        yield watch
    watch.look()
    watch.close()


def _joined(groups: list[set[tuple[int, str]]]) -> list[set[tuple[int, str]]]:
    """Groups that have an entry in common are one: a rename onto a name is a change of both."""
    joined: list[set[tuple[int, str]]] = []
    for group in groups:
        apart = [other for other in joined if not other & group]
        joined = [*apart, group.union(*(other for other in joined if other & group))]
    return joined
