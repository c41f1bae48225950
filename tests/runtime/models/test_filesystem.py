"""Reflinks and fs-verity: used where the file system has them, done without where it has not."""

from __future__ import annotations

import errno
import fcntl
import os
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from runtime.models import filesystem, partial
from runtime.models.filesystem import clone_range, enable_verity, has_verity, verity_refusal
from schemas.manifest import PIECE_SIZE
from schemas.observation import StoredModel
from tests.runtime.models.conftest import Shop
from tests.support.filesystems import mounted
from tests.support.hostile_http import serving
from tests.support.models import content, gguf, lay_out, make_model

if TYPE_CHECKING:
    from collections.abc import Callable

OLD = {"model.gguf": gguf(4 * PIECE_SIZE, seed=1)}
NEW = {"model.gguf": OLD["model.gguf"][: 3 * PIECE_SIZE] + gguf(PIECE_SIZE, seed=9)}
V1 = make_model(OLD, version="v1")
V2 = make_model(NEW, version="v2")


def used(folder: Path) -> int:
    """Bytes in use on a file system, once everything is on it."""
    os.sync()
    seen = os.statvfs(folder)
    return (seen.f_blocks - seen.f_bfree) * seen.f_frsize


@pytest.mark.parametrize("kind", ["xfs", "btrfs"])
def test_a_version_that_shares_pieces_shares_their_blocks(tmp_path: Path, kind: str) -> None:
    """Three of four pieces are the other version's: the fourth is fetched, and the disk holds the others once."""
    with mounted(kind, tmp_path) as disk:
        shop = Shop(disk / "models")
        shop.acquire(V1, [lay_out(tmp_path / "source", OLD)])
        before = used(disk)
        with serving(NEW) as server:
            shop.acquire(V2, [server.url])
            assert server.sent == PIECE_SIZE
        assert used(disk) - before < 3 * PIECE_SIZE, (
            "four would be all of it; btrfs keeps some of what was preallocated"
        )
        assert content(shop.store.folder(V2.digest)) == NEW
        assert content(shop.store.folder(V1.digest)) == OLD


def test_shared_blocks_are_hashed_where_they_came_to_lie(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file system that says it shared, and shared something else, is not believed: the piece is copied (I2)."""
    shop = Shop(tmp_path / "models")
    shop.acquire(V1, [lay_out(tmp_path / "source", OLD)])
    asked = []

    def lie(source: int, offset: int, length: int, target: int, at: int) -> bool:
        asked.append(at)
        os.pwrite(target, b"something else", at)
        return True

    monkeypatch.setattr(partial, "clone_range", lie)
    with serving(NEW) as server:
        shop.acquire(V2, [server.url])
        assert server.sent == PIECE_SIZE
    assert len(asked) == 3
    assert content(shop.store.folder(V2.digest)) == NEW


def test_another_file_system_shares_nothing(tmp_path: Path) -> None:
    """A refusal is an answer, not an error."""
    shared = Path("/dev/shm")
    if not shared.is_dir() or shared.stat().st_dev == tmp_path.stat().st_dev:
        pytest.skip("there is no second file system")
    (tmp_path / "source").write_bytes(bytes(8192))
    target = os.open(shared, os.O_TMPFILE | os.O_RDWR)
    source = os.open(tmp_path / "source", os.O_RDONLY)
    try:
        assert not clone_range(source, 0, 4096, target, 0)
    finally:
        os.close(source)
        os.close(target)


# --- fs-verity ----------------------------------------------------------------------------------------------------


def answering(number: int | None) -> Callable[..., int]:
    """An ioctl with one answer."""

    def ioctl(*_: object) -> int:
        if number is not None:
            raise OSError(number, os.strerror(number))
        return 0

    return ioctl


@pytest.mark.parametrize(
    ("number", "enabled"),
    [(None, True), (errno.EEXIST, True), (errno.EOPNOTSUPP, False), (errno.ENOTTY, False), (errno.ETXTBSY, False)],
)
def test_enabling_takes_every_answer_of_the_kernel(
    monkeypatch: pytest.MonkeyPatch, number: int | None, enabled: bool
) -> None:
    """Done, done before, and the ways in which kernels and file systems refuse (Documentation/fsverity.rst)."""
    monkeypatch.setattr(fcntl, "ioctl", answering(number))
    assert enable_verity(0) is enabled


def test_a_failure_is_not_taken_for_a_refusal(monkeypatch: pytest.MonkeyPatch) -> None:
    """A disk that fails while the tree of hashes is written is an error of the disk."""
    monkeypatch.setattr(fcntl, "ioctl", answering(errno.EIO))
    with pytest.raises(OSError, match="Input/output"):
        enable_verity(0)


def test_the_reason_is_told_where_the_file_system_cannot(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """ENODATA means that it can, and that this folder is none of its guarded files."""
    monkeypatch.setattr(fcntl, "ioctl", answering(errno.ENODATA))
    assert not verity_refusal(tmp_path)
    monkeypatch.setattr(fcntl, "ioctl", answering(errno.EOPNOTSUPP))
    assert verity_refusal(tmp_path) == os.strerror(errno.EOPNOTSUPP)
    assert not verity_refusal(tmp_path / "not there")


def test_a_store_says_whether_the_kernel_guards_its_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every file is sealed before it is published, and the listing says that all of them are."""
    sealed: list[str] = []

    def enable(file: int) -> bool:
        sealed.append(Path(f"/proc/self/fd/{file}").readlink().name)
        return True

    monkeypatch.setattr(partial, "enable_verity", enable)
    monkeypatch.setattr("runtime.models.shelf.has_verity", lambda _file: True)
    shop = Shop(tmp_path / "models")
    shop.acquire(V1, [lay_out(tmp_path / "source", OLD)])
    assert sealed == ["model.gguf"]
    seen = shop.store.list()[V1.digest]
    assert isinstance(seen, StoredModel)
    assert seen.guarded


def test_the_kernel_refuses_changed_bytes(tmp_path: Path) -> None:
    """On ext4 with verity: a guarded blob cannot be opened for writing, and the store says so (I2)."""
    with mounted("ext4", tmp_path) as disk:
        shop = Shop(disk / "models")
        shop.acquire(V1, [lay_out(tmp_path / "source", OLD)])
        path = shop.store.folder(V1.digest) / "model.gguf"
        refusal = verity_refusal(disk)
        seen = shop.store.list()[V1.digest]
        assert isinstance(seen, StoredModel)
        assert seen.intact
        assert seen.guarded is not bool(refusal)
        assert shop.store.unguarded() == refusal
        if refusal:
            pytest.skip(f"this kernel has no fs-verity: {refusal}")
        descriptor = os.open(path, os.O_RDONLY)
        try:
            assert has_verity(descriptor)
        finally:
            os.close(descriptor)
        path.chmod(0o644)
        with pytest.raises(PermissionError):
            path.open("r+b")


def test_ioctl_numbers_are_those_of_the_kernel() -> None:
    """Direction, size, type and number, put together as asm-generic/ioctl.h does."""

    def number(direction: int, kind: int, which: int, size: int) -> int:
        return direction << 30 | size << 16 | kind << 8 | which

    assert number(1, 0x94, 13, filesystem._CLONE.size) == filesystem._CLONE_RANGE
    assert number(1, ord("f"), 133, filesystem._ENABLE.size) == filesystem._ENABLE_VERITY
    assert number(3, ord("f"), 134, 4) == filesystem._MEASURE_VERITY
