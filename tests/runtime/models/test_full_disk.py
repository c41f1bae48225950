"""Disks that are really full: typed errors, nothing lost, room kept for the node's own state, and on it goes after."""

from __future__ import annotations

import os
import sqlite3
from contextlib import closing, suppress
from typing import TYPE_CHECKING

import pytest

from runtime.host import StopEvent
from schemas.errors import NoSpace
from schemas.manifest import PIECE_SIZE
from schemas.observation import StoredModel
from tests.runtime.models.conftest import Shop
from tests.support import hostile_http as hostile
from tests.support.disks import small_disk
from tests.support.hostile_http import serving
from tests.support.models import content, gguf, lay_out, make_model, silent

if TYPE_CHECKING:
    from pathlib import Path

    from tests.support.hostile_http import Exchange

SMALL = {"config.json": b"{}", "model.gguf": gguf(5000, seed=1)}
SMALL_MODEL = make_model(SMALL)
TWIN = {"config.json": b"{}", "model.gguf": SMALL["model.gguf"], "more.txt": b"more"}
TWIN_MODEL = make_model(TWIN, version="v2")
LARGE = {"config.json": b"{}", "model.gguf": gguf(2 * PIECE_SIZE, seed=3)}
LARGE_MODEL = make_model(LARGE, name="large")
STATE = 2**22
"""Bytes that the node keeps free for its own state."""


def fill(folder: Path) -> Path:
    """Take all the space that is left."""
    path = folder / "filler"
    with path.open("wb", buffering=0) as stream:
        for block in (2**20, 2**12):
            with suppress(OSError):
                while True:
                    stream.write(bytes(block))
    return path


def intact(shop: Shop) -> set[str]:
    """Manifests of the models that may be used."""
    return {digest for digest, seen in shop.store.list().items() if isinstance(seen, StoredModel) and seen.intact}


def test_refused_before_the_first_byte_and_done_after_space_returns(tmp_path: Path) -> None:
    """A model that does not fit beside the reserve is refused with numbers, unfetched; later it is installed (I11)."""
    with small_disk(tmp_path / "disk", size=3 * PIECE_SIZE) as disk, serving(LARGE) as server:
        shop = Shop(disk / "models", {"reserve": STATE})
        other = disk / "other"
        other.write_bytes(bytes(PIECE_SIZE))
        with pytest.raises(NoSpace, match=r"needs 33\.0 MiB, 3\d\.\d MiB is free .*, 4\.0 MiB of it is reserved"):
            shop.acquire(LARGE_MODEL, [server.url])
        assert not server.seen
        assert not list(shop.root.rglob("*.gguf"))
        other.unlink()
        shop.acquire(LARGE_MODEL, [server.url])
        assert content(shop.store.folder(LARGE_MODEL.digest)) == LARGE


def test_the_node_can_write_its_state_on_the_disk_that_its_models_fill(tmp_path: Path) -> None:
    """After an installation that took all it was allowed to, the reserve is there for the node's own journal (I6)."""
    size = 2 * PIECE_SIZE + STATE + 2**20 + 2**16  # the model, the reserve, the model's overhead, some folders
    with small_disk(tmp_path / "disk", size=size) as disk, serving(LARGE) as server:
        shop = Shop(disk / "models", {"reserve": STATE})
        shop.acquire(LARGE_MODEL, [server.url])
        with closing(sqlite3.connect(disk / "state.db")) as journal:
            journal.execute("PRAGMA journal_mode = WAL")
            journal.execute("CREATE TABLE events (text BLOB)")
            journal.execute("INSERT INTO events VALUES (?)", (bytes(STATE // 3),))
            journal.commit()
        assert os.statvfs(disk).f_bavail * os.statvfs(disk).f_frsize > 0
        with pytest.raises(NoSpace):
            shop.acquire(SMALL_MODEL, [lay_out(tmp_path / "small", SMALL)])
        assert intact(shop) == {LARGE_MODEL.digest}


def test_a_disk_that_fills_up_on_the_way(tmp_path: Path) -> None:
    """Somebody else takes the last byte during a download: NoSpace, nothing stored suffers, and later it goes on."""
    with small_disk(tmp_path / "disk", size=4 * PIECE_SIZE) as disk:
        shop = Shop(disk / "models", {"connections": 1})
        shop.acquire(SMALL_MODEL, [lay_out(tmp_path / "small", SMALL)])

        def last_piece_fills(exchange: Exchange) -> None:
            if exchange.asked[0] and not (disk / "filler").exists():
                fill(disk)
            hostile.honest(exchange)

        with serving(LARGE, last_piece_fills) as server, pytest.raises(NoSpace, match="No space left"):
            shop.acquire(LARGE_MODEL, [server.url])
        assert intact(shop) == {SMALL_MODEL.digest}
        with pytest.raises(NoSpace):
            shop.acquire(LARGE_MODEL, [])
        (disk / "filler").unlink()
        with serving(LARGE) as server:
            shop.acquire(LARGE_MODEL, [server.url])
            assert server.sent <= LARGE_MODEL.manifest.size
        assert content(shop.store.folder(LARGE_MODEL.digest)) == LARGE
        assert intact(shop) == {SMALL_MODEL.digest, LARGE_MODEL.digest}


def test_a_full_disk_can_be_emptied(tmp_path: Path) -> None:
    """Removing a model works with not a byte free, also one that shares its content with a model that stays (I6)."""
    with small_disk(tmp_path / "disk", size=2 * PIECE_SIZE) as disk:
        shop = Shop(disk / "models")
        shop.acquire(SMALL_MODEL, [lay_out(tmp_path / "small", SMALL)])
        shop.acquire(TWIN_MODEL, [lay_out(tmp_path / "twin", TWIN)])
        fill(disk)
        shop.store.remove(SMALL_MODEL.digest)
        assert intact(shop) == {TWIN_MODEL.digest}


def test_no_more_inodes(tmp_path: Path) -> None:
    """A file system that has bytes but no inodes left is full, too; after it has some again the model is installed."""
    with small_disk(tmp_path / "disk", size=PIECE_SIZE, nr_inodes=40) as disk:
        shop = Shop(disk / "models")
        source = lay_out(tmp_path / "small", SMALL)
        others = [disk / str(number) for number in range(30)]
        for other in others:
            other.touch()
        with pytest.raises(NoSpace):
            shop.acquire(SMALL_MODEL, [source])
        assert not intact(shop)
        for other in others:
            other.unlink()
        shop.store.acquire(SMALL_MODEL, [source], progress=silent, stop=StopEvent())
        assert intact(shop) == {SMALL_MODEL.digest}
