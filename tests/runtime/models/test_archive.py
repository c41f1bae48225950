"""Cold storage: plain Zstandard files, proven before anything is given up for them, and forgiving of a bad frame."""

from __future__ import annotations

import shutil
import subprocess
from typing import TYPE_CHECKING

import pytest

from runtime.host import StopEvent
from runtime.models import zstd
from schemas.digests import digest_bytes
from schemas.errors import DownloadFailed
from schemas.manifest import PIECE_SIZE
from schemas.observation import ArchivedModel
from tests.support.hostile_http import serving
from tests.support.models import content, gguf, lay_out, make_model, silent

if TYPE_CHECKING:
    from pathlib import Path

    from tests.runtime.models.conftest import Shop

FILES = {"copy.gguf": gguf(PIECE_SIZE + 5000, seed=1), "empty.txt": b"", "model.gguf": gguf(2 * PIECE_SIZE, seed=2)}
MODEL = make_model(FILES)


@pytest.fixture
def archived(shop: Shop, tmp_path: Path) -> Shop:
    """A store whose only model is in cold storage, on a disk of its own."""
    shop.options["archive"] = tmp_path / "cold" / "testnet"
    shop.acquire(MODEL, [lay_out(tmp_path / "source", FILES)])
    shop.store.archive(MODEL, progress=silent, stop=StopEvent())
    return shop


def frames(shop: Shop) -> list[Path]:
    """The files in cold storage."""
    return sorted(shop.options["archive"].glob("[0-9a-f]*/*.zst"))


def test_nothing_of_it_is_left_where_it_was(archived: Shop) -> None:
    """The hot copy's space is given back, and the cold copy's is what is listed."""
    assert not [path for path in archived.root.rglob("*") if path.is_file()]
    seen = archived.store.list()[MODEL.digest]
    assert isinstance(seen, ArchivedModel)
    assert seen.own == sum(path.stat().st_size for path in frames(archived))
    assert archived.store.cold_free() is not None


def test_a_cold_file_is_an_ordinary_zstandard_file(archived: Shop) -> None:
    """`zstd -d` gives the file itself: nobody needs this program to get a model back."""
    program = shutil.which("zstd")
    if program is None:
        pytest.skip("zstd is not installed")
    done = subprocess.run([program, "-dc", str(frames(archived)[2])], capture_output=True, check=True)
    assert digest_bytes(done.stdout) == digest_bytes(FILES["model.gguf"])


def test_a_frame_that_rotted_costs_one_piece(archived: Shop) -> None:
    """Of a cold file with a bad byte everything else comes back; the one piece is fetched (I2)."""
    path = frames(archived)[2]
    path.chmod(0o644)
    with path.open("r+b") as stream:
        stream.seek(1000)
        stream.write(b"rotten")
    with pytest.raises(DownloadFailed):
        archived.acquire(MODEL, [])
    with serving(FILES) as server:
        archived.acquire(MODEL, [server.url])
        assert server.sent == PIECE_SIZE
    assert content(archived.store.folder(MODEL.digest)) == FILES
    assert frames(archived) == [], "once it is back, the cold copy is gone"


def test_the_hot_copy_stays_while_the_cold_one_does_not_read_back(
    shop: Shop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A cold disk that lies about what it wrote is found out before anything is given up."""
    shop.acquire(MODEL, [lay_out(tmp_path / "source", FILES)])
    monkeypatch.setattr(zstd, "compress", lambda data, honest=zstd.compress: honest(bytes(len(data))))
    with pytest.raises(DownloadFailed, match="does not read back"):
        shop.store.archive(MODEL, progress=silent, stop=StopEvent())
    assert content(shop.store.folder(MODEL.digest)) == FILES
    monkeypatch.undo()
    shop.store.archive(MODEL, progress=silent, stop=StopEvent())
    assert isinstance(shop.store.list()[MODEL.digest], ArchivedModel)


def test_an_old_cold_copy_is_looked_at_again_before_the_hot_one_goes(shop: Shop, tmp_path: Path) -> None:
    """A cold copy that is there already, and rotted meanwhile, is written anew."""
    source = lay_out(tmp_path / "source", FILES)
    shop.acquire(MODEL, [source])
    shop.store.archive(MODEL, progress=silent, stop=StopEvent())
    shutil.copytree(shop.root / "archive", tmp_path / "kept")
    shop.acquire(MODEL, [])
    shutil.copytree(tmp_path / "kept", shop.root / "archive", dirs_exist_ok=True)
    (path,) = (shop.root / "archive").glob("*/00002.zst")
    path.chmod(0o644)
    path.write_bytes(b"rotten" + path.read_bytes()[6:])
    shop.store.archive(MODEL, progress=silent, stop=StopEvent())
    shop.acquire(MODEL, [])
    assert content(shop.store.folder(MODEL.digest)) == FILES


@pytest.mark.parametrize("frame", [b"", b"noise", zstd.compress(b"x" * 10), zstd.compress(b"x" * 2**20)])
def test_a_frame_of_another_size_is_refused(frame: bytes) -> None:
    """Neither too short nor too long a content is given, and no more memory is taken than the size that is wanted."""
    with pytest.raises(ValueError):
        zstd.decompress(frame, 1000)


def test_two_frames_are_not_one() -> None:
    """What follows a frame is not passed over in silence."""
    with pytest.raises(ValueError, match="one frame"):
        zstd.decompress(zstd.compress(b"x" * 10) * 2, 10)


def test_incompressible_data_stays_within_its_bound() -> None:
    """What is reserved on the cold disk suffices for any data."""
    for size in (0, 1, 1000, PIECE_SIZE):
        data = FILES["model.gguf"][:size]
        assert len(zstd.compress(data)) <= zstd.bound(size)
        assert zstd.decompress(zstd.compress(data), size) == data
