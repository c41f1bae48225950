"""The store on disk: what is believed, what is shared, what is never touched (I2, I7, I8, I9)."""

from __future__ import annotations

import os
import subprocess
import threading
from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from runtime.host import DurableFiles, StopEvent, ThreadedConcurrency
from runtime.models import hashing
from runtime.models.layout import Layout
from runtime.models.pieces import Piece
from runtime.models.records import Fingerprint
from runtime.models.stamps import Stamps
from schemas.digests import raw_hash
from schemas.errors import DownloadFailed, Incompatible, ModelCorrupt, NoSpace
from schemas.manifest import PIECE_SIZE
from schemas.observation import PartialModel, StoredModel
from tests.support.crashing import CONFIG, ONE, TWO, V1, V2
from tests.support.hostile_http import serving
from tests.support.models import content, gguf, hashes_of, lay_out, make_model, silent

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from runtime.interfaces import Model
    from tests.runtime.models.conftest import Shop

BIG_BYTES = gguf(3 * PIECE_SIZE + 100, seed=7)
BIG = {"config.json": CONFIG, "model.gguf": BIG_BYTES}
BIG_MODEL = make_model(BIG, name="big")


@pytest.fixture
def stocked(shop: Shop, tmp_path: Path) -> Shop:
    """A store with two versions that share a file."""
    shop.acquire(ONE, [lay_out(tmp_path / "one", V1)])
    shop.acquire(TWO, [lay_out(tmp_path / "two", V2)])
    return shop


def intact(shop: Shop, model: Model) -> bool:
    """What the store says of a stored model."""
    seen = shop.store.list()[model.digest]
    assert isinstance(seen, StoredModel)
    return seen.intact


def overwrite(path: Path, data: bytes, *, hide: bool = False) -> None:
    """Change a stored file, with its old modification time if the change is to be hidden."""
    before = path.stat()
    path.chmod(0o644)
    with path.open("r+b") as stream:
        stream.write(data)
    path.chmod(0o444)
    if hide:
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def written(root: Path) -> dict[Path, tuple[int, ...]]:
    """Everything that a write would change; reading may change the access time."""
    seen = {path: path.stat() for path in [root, *root.rglob("*")]}
    return {
        path: (s.st_ino, s.st_mode, s.st_nlink, s.st_size, s.st_mtime_ns, s.st_ctime_ns) for path, s in seen.items()
    }


# --- what lies where ------------------------------------------------------------------------------------------------


def test_the_folder_is_read_only_hard_links_of_blobs(stocked: Shop) -> None:
    """Every file is 0444 and has a blob; a blob's name begins with what `b3sum` prints; shared content is one inode."""
    folder = stocked.store.folder(TWO.digest)
    assert folder == stocked.root / "tiny" / f"v2@{TWO.digest[7:19]}"
    assert content(folder) == V2
    assert {path.stat().st_mode & 0o777 for path in folder.rglob("*") if path.is_file()} == {0o444}
    assert {path.stat().st_mode & 0o777 for path in [folder, *folder.rglob("*")] if path.is_dir()} == {0o555}
    blobs = {path.stat().st_ino: path.name for path in (stocked.root / "blobs").rglob("*") if path.is_file()}
    for file in TWO.manifest.spec.files:
        assert blobs[(folder / file.path).stat().st_ino].startswith(file.blake3.removeprefix("blake3:"))
    one = stocked.store.folder(ONE.digest)
    assert (one / "config.json").samefile(folder / "copy.json")


def test_looking_changes_nothing(shop: Shop, tmp_path: Path) -> None:
    """`list` and `missing` create no file and no folder, not even the store's own (I9)."""
    assert shop.store.list() == {}
    assert shop.store.missing(ONE) == ONE.manifest.size
    assert not shop.root.exists()
    shop.acquire(ONE, [lay_out(tmp_path / "one", V1)])
    before = written(shop.root)
    shop.store.list()
    shop.store.missing(TWO)
    shop.store.folder(ONE.digest)
    assert written(shop.root) == before


def test_a_store_that_cannot_be_read_is_not_an_empty_one(shop: Shop) -> None:
    """What cannot be seen is an error, never an empty list: the caller takes it for unknown (I3)."""
    shop.root.mkdir()
    (shop.root / "stamps").write_text("not a folder")
    with pytest.raises(OSError, match="Not a directory"):
        shop.store.list()


@pytest.mark.parametrize("name", ["archive", "blobs", "partial", "quarantine", "stamps", "trash"])
def test_a_model_may_have_the_name_of_one_of_our_folders(shop: Shop, tmp_path: Path, name: str) -> None:
    """A model called `blobs` is kept apart from the blobs."""
    model = make_model(V1, name=name)
    shop.acquire(model, [lay_out(tmp_path / "one", V1)])
    shop.acquire(TWO, [lay_out(tmp_path / "two", V2)])
    assert content(shop.store.folder(model.digest)) == V1
    assert intact(shop, model)
    shop.store.remove(model.digest)
    assert set(shop.store.list()) == {TWO.digest}
    assert content(shop.store.folder(TWO.digest)) == V2


# --- what is believed -----------------------------------------------------------------------------------------------


def _touch(folder: Path) -> None:
    (folder / "model.gguf").touch()


def _replace(folder: Path) -> None:
    path = folder / "model.gguf"
    copy = path.read_bytes()
    folder.chmod(0o755)
    path.unlink()
    path.write_bytes(copy)


def _hidden(folder: Path) -> None:
    overwrite(folder / "model.gguf", b"GGUF", hide=True)


def _extra(folder: Path) -> None:
    folder.chmod(0o755)
    (folder / "modeling.py").write_text("import os")


def _link(folder: Path) -> None:
    folder.chmod(0o755)
    (folder / "model.gguf").rename(folder.parent / "elsewhere")
    (folder / "model.gguf").symlink_to(folder.parent / "elsewhere")


def _lost(folder: Path) -> None:
    folder.chmod(0o755)
    (folder / "model.gguf").unlink()


def _mode(folder: Path) -> None:
    (folder / "model.gguf").chmod(0o644)


CHANGES: dict[str, tuple[Callable[[Path], None], bool]] = {
    "modification time": (_touch, True),
    "another inode with the same bytes": (_replace, True),
    "written with the same bytes, modification time set back": (_hidden, True),
    "permissions": (_mode, True),
    "a file too many": (_extra, False),
    "a link in place of a file": (_link, False),
    "a file too few": (_lost, False),
}
"""What is done to a folder, and whether its bytes are still the manifest's."""


@pytest.mark.parametrize("change", CHANGES)
def test_any_change_is_seen_by_stat_and_judged_by_hash(shop: Shop, tmp_path: Path, change: str) -> None:
    """Size, mtime, ctime, inode, a file more or less: no longer intact; hashing then tells whether it is bad (I2)."""
    source = lay_out(tmp_path / "one", V1)
    shop.acquire(ONE, [source])
    alter, good = CHANGES[change]
    alter(shop.store.folder(ONE.digest))
    assert not intact(shop, ONE)
    if good:
        shop.verify(ONE)
    else:
        with pytest.raises(ModelCorrupt):
            shop.verify(ONE)
        assert ONE.digest not in {d for d, seen in shop.store.list().items() if isinstance(seen, StoredModel)}
        shop.acquire(ONE, [source])
    assert intact(shop, ONE)
    assert content(shop.store.folder(ONE.digest)) == V1


def test_acquire_hashes_a_changed_model_and_repairs_it(shop: Shop, tmp_path: Path) -> None:
    """`acquire` of a stored model that changed: hashed, found bad, fetched again (I2)."""
    source = lay_out(tmp_path / "one", V1)
    shop.acquire(ONE, [source])
    overwrite(shop.store.folder(ONE.digest) / "model.gguf", b"FFUG")
    shop.acquire(ONE, [source])
    assert intact(shop, ONE)
    assert content(shop.store.folder(ONE.digest)) == V1


def test_corrupt_shared_content_makes_all_its_models_suspect(stocked: Shop) -> None:
    """When one model's shared file is found bad, the other models that have it stop being intact, too (I2)."""
    overwrite(stocked.store.folder(ONE.digest) / "config.json", b"x")
    with pytest.raises(ModelCorrupt, match=r"config\.json"):
        stocked.verify(ONE)
    assert not intact(stocked, TWO)
    with pytest.raises(ModelCorrupt):
        stocked.verify(TWO)
    assert not any(isinstance(seen, StoredModel) for seen in stocked.store.list().values())


def test_a_new_link_speaks_for_no_file_that_had_changed(shop: Shop, tmp_path: Path) -> None:
    """Linking a blob again changes its ctime; a model that had changed before is not taken for intact by that (I2)."""
    shop.acquire(ONE, [lay_out(tmp_path / "one", V1)])
    overwrite(shop.store.folder(ONE.digest) / "config.json", b"x", hide=True)
    shop.acquire(TWO, [lay_out(tmp_path / "two", V2)])
    assert content(shop.store.folder(TWO.digest)) == V2, "the changed blob was hashed, and not used"
    assert not intact(shop, ONE)
    assert intact(shop, TWO)


def test_bit_rot_in_shared_content_makes_all_its_models_suspect(stocked: Shop) -> None:
    """Bytes that changed under an unchanged stat, found in one model: the others become suspect (I2)."""
    rotten = stocked.store.folder(ONE.digest) / "config.json"
    for blob in (stocked.root / "blobs").rglob("*"):
        if blob.is_file() and blob.samefile(rotten):
            blob.unlink()  # so that nothing of what the quarantine does touches the file's stat
    overwrite(rotten, b"x")
    layout = Layout(stocked.root)
    stamps = Stamps(layout, DurableFiles())
    for model in (ONE, TWO):
        stamp = stamps.load(model.digest)
        assert stamp is not None
        folder = stocked.store.folder(model.digest)
        files = tuple(f.model_copy(update={"seen": Fingerprint.of((folder / f.path).lstat())}) for f in stamp.files)
        stamps.save(stamp.model_copy(update={"files": files}))
    assert intact(stocked, ONE)
    assert intact(stocked, TWO)
    with pytest.raises(ModelCorrupt):
        stocked.verify(ONE)
    assert not intact(stocked, TWO)


class Meddling(DurableFiles):
    """A disk on which somebody else changes a file at a chosen moment, once."""

    def __init__(self, moment: str, change: Callable[[], None]) -> None:
        self.moment = moment
        self.change = change

    def _at(self, moment: str) -> None:
        if self.moment == moment:
            self.moment = "past"
            self.change()

    def link(self, source: Path, target: Path) -> None:
        """Before and after."""
        self._at("before the link")
        super().link(source, target)
        self._at("after the link")

    def write(self, path: Path, data: bytes, *, mode: int = 0o644) -> None:
        """The journal is written when everything is there, before publishing."""
        super().write(path, data, mode=mode)
        if path.name == "journal":
            self._at("before publishing")


@pytest.mark.parametrize("moment", ["before the link", "after the link", "before publishing"])
def test_a_change_in_the_middle_of_our_own_is_not_blessed(shop: Shop, tmp_path: Path, moment: str) -> None:
    """A shared file that changes just while it is linked, or later before publishing, speaks for no model (I2)."""
    shop.acquire(ONE, [lay_out(tmp_path / "one", V1)])
    shared = shop.store.folder(ONE.digest) / "config.json"
    shop.files = Meddling(moment, lambda: overwrite(shared, b"x"))
    source = lay_out(tmp_path / "two", V2)
    with suppress(DownloadFailed):  # refusing, and doing without the shared file, are both right
        shop.acquire(TWO, [source])
        assert content(shop.store.folder(TWO.digest)) == V2
    assert shop.files.moment == "past"
    shop.files = None
    assert not intact(shop, ONE)
    shop.acquire(TWO, [source])
    assert intact(shop, TWO)
    assert content(shop.store.folder(TWO.digest)) == V2


def test_links_of_our_own_leave_other_models_intact(stocked: Shop) -> None:
    """Models that share files stay intact while others come and go: nothing is hashed for nothing."""
    assert intact(stocked, ONE)
    assert intact(stocked, TWO)
    stocked.store.remove(TWO.digest)
    assert intact(stocked, ONE)


def test_a_damaged_stamp_speaks_for_nothing(stocked: Shop) -> None:
    """A stamp with a flipped bit: the model is there, and must be hashed before use (I2)."""
    (stamp,) = stocked.root.glob(f"stamps/{ONE.digest[7:]}.json")
    stamp.write_bytes(stamp.read_bytes().replace(b'"size":5000', b'"size":5001'))
    assert not intact(stocked, ONE)
    stocked.verify(ONE)
    assert intact(stocked, ONE)


@pytest.mark.parametrize("hide", [False, True])
def test_a_stamp_that_changes_below_a_running_agent_is_read_again(stocked: Shop, *, hide: bool) -> None:
    """A daemon remembers the stamps that it read, and sees by their stat that one was exchanged or damaged (I2)."""
    store = stocked.store

    def seen() -> StoredModel | PartialModel:
        return store.list()[ONE.digest]

    before = seen()
    assert before == seen()
    (stamp,) = stocked.root.glob(f"stamps/{ONE.digest[7:]}.json")
    written = stamp.read_bytes()
    overwrite(stamp, written.replace(b'"size":5000', b'"size":5001'), hide=hide)
    assert seen() == replace(before, intact=False)
    overwrite(stamp, written)
    assert seen() == before
    stamp.unlink()
    assert ONE.digest not in store.list()


def test_a_fingerprint_matches_what_it_was_taken_from(tmp_path: Path) -> None:
    """The short comparison, which every look makes for every file, says what the long one says."""
    file, folder = tmp_path / "file", tmp_path / "folder"
    file.write_bytes(b"1")
    folder.mkdir()
    taken = Fingerprint.of(file.lstat())
    assert taken is not None
    assert taken.matches(file.lstat())
    for field in ("size", "mtime_ns", "ctime_ns", "inode"):
        assert not taken.model_copy(update={field: getattr(taken, field) + 1}).matches(file.lstat())
    seen = folder.lstat()
    values = {"size": seen.st_size, "mtime_ns": seen.st_mtime_ns, "ctime_ns": seen.st_ctime_ns, "inode": seen.st_ino}
    assert not Fingerprint(**values).matches(seen)


def test_a_damaged_stamp_does_not_keep_a_model_from_removal(stocked: Shop) -> None:
    """A model whose stamp cannot be read is still found, and removed."""
    (stamp,) = stocked.root.glob(f"stamps/{ONE.digest[7:]}.json")
    stamp.write_bytes(b"")
    folder = stocked.store.folder(ONE.digest)
    stocked.store.remove(ONE.digest)
    assert set(stocked.store.list()) == {TWO.digest}
    assert not folder.exists()


def test_a_file_that_changes_while_it_is_hashed_is_not_stamped(shop: Shop, tmp_path: Path) -> None:
    """Stat before and after hashing must agree: bytes that change meanwhile are not called verified (I2)."""
    shop.acquire(ONE, [lay_out(tmp_path / "one", V1)])
    path = shop.store.folder(ONE.digest) / "model.gguf"

    def meddle(subject: str, done: int, total: int) -> None:
        if subject.endswith("model.gguf") and done == total:
            overwrite(path, b"FFUG")

    with pytest.raises(ModelCorrupt):
        shop.store.verify(ONE, progress=meddle, stop=StopEvent())


# --- manifests that contradict themselves ---------------------------------------------------------------------------


def test_another_pieces_file_is_refused(shop: Shop, tmp_path: Path) -> None:
    """The side file must be the one that the manifest binds (I2)."""
    forged = replace(ONE, pieces=bytes(len(ONE.pieces)))
    with pytest.raises(ModelCorrupt, match="pieces file"):
        shop.acquire(forged, [lay_out(tmp_path / "one", V1)])
    assert not shop.root.exists()


def forge(model: Model, path: str, digest: str) -> Model:
    """The model with another digest of one file, its pieces left as they are."""
    files = tuple(
        file.model_copy(update={"blake3": digest}) if file.path == path else file for file in model.manifest.spec.files
    )
    spec = model.manifest.spec.model_copy(update={"files": files})
    manifest = model.manifest.model_copy(update={"spec": spec})
    return replace(model, manifest=manifest, digest="blake3:" + "f" * 64)


def test_a_small_file_with_two_digests_is_refused(shop: Shop, tmp_path: Path) -> None:
    """A file of one piece has its digest in two places; they must agree."""
    forged = forge(ONE, "config.json", "blake3:" + "0" * 64)
    with pytest.raises(ModelCorrupt, match="contradicts"):
        shop.acquire(forged, [lay_out(tmp_path / "one", V1)])


def test_a_false_digest_never_passes_for_another_models_file(shop: Shop, tmp_path: Path) -> None:
    """A manifest that claims another model's file digest for its own bytes does not poison that model (I2)."""
    evil_files = BIG | {"model.gguf": gguf(len(BIG_BYTES), seed=8)}
    honest = next(file for file in BIG_MODEL.manifest.spec.files if file.path == "model.gguf")
    evil = forge(make_model(evil_files, name="evil"), "model.gguf", honest.blake3)
    shop.acquire(evil, [lay_out(tmp_path / "evil", evil_files)])
    shop.acquire(BIG_MODEL, [lay_out(tmp_path / "big", BIG)])
    assert content(shop.store.folder(BIG_MODEL.digest)) == BIG
    assert content(shop.store.folder(evil.digest)) == evil_files


# --- nothing is fetched twice ---------------------------------------------------------------------------------------


def test_only_the_pieces_that_differ_are_fetched(shop: Shop) -> None:
    """A version that differs in one piece of a large file moves one piece; `missing` had said so."""
    other = bytearray(BIG_BYTES)
    other[PIECE_SIZE + 10] ^= 1
    changed = BIG | {"model.gguf": bytes(other)}
    model = make_model(changed, name="big", version="v2")
    with serving(BIG) as server:
        shop.acquire(BIG_MODEL, [server.url])
    assert shop.store.missing(model) == PIECE_SIZE
    with serving(changed) as server:
        shop.acquire(model, [server.url])
        assert server.sent == PIECE_SIZE
    assert content(shop.store.folder(model.digest)) == changed
    assert intact(shop, BIG_MODEL)


def test_a_repair_fetches_only_what_is_bad(shop: Shop) -> None:
    """After bit rot the good pieces of the quarantined file are used again, and the quarantine is emptied."""
    with serving(BIG) as server:
        shop.acquire(BIG_MODEL, [server.url])
    overwrite(shop.store.folder(BIG_MODEL.digest) / "model.gguf", b"FFUG")
    with pytest.raises(ModelCorrupt, match="1 of 4 pieces"):
        shop.verify(BIG_MODEL)
    assert shop.store.missing(BIG_MODEL) == PIECE_SIZE
    with serving(BIG) as server:
        shop.acquire(BIG_MODEL, [server.url])
        assert server.sent == PIECE_SIZE
    assert content(shop.store.folder(BIG_MODEL.digest)) == BIG
    assert not list((shop.root / "quarantine").iterdir())


def test_a_file_that_a_model_has_twice_is_fetched_once(shop: Shop) -> None:
    """Two paths, one content: one request."""
    files = {"a.json": CONFIG, "b/c.json": CONFIG, "model.gguf": gguf(100_000, seed=4)}
    model = make_model(files)
    assert shop.store.missing(model) == 100_000 + len(CONFIG)
    with serving(files) as server:
        shop.acquire(model, [server.url])
        assert server.sent == 100_000 + len(CONFIG)
    assert content(shop.store.folder(model.digest)) == files


def test_piece_hashes_that_were_lost_cost_a_download_only(shop: Shop) -> None:
    """Without its side file a stored model is as good as before; it just cannot lend single pieces."""
    with serving(BIG) as server:
        shop.acquire(BIG_MODEL, [server.url])
    (side,) = shop.root.glob("stamps/*.pieces")
    side.unlink()
    model = make_model({"model.gguf": BIG_BYTES + b"more"}, name="big", version="v2")
    assert shop.store.missing(model) == len(BIG_BYTES) + 4
    assert intact(shop, BIG_MODEL)


def test_models_that_share_may_come_in_side_by_side(shop: Shop, tmp_path: Path) -> None:
    """Two threads, two versions, one shared file: both whole, both intact."""
    sources = {ONE.digest: lay_out(tmp_path / "one", V1), TWO.digest: lay_out(tmp_path / "two", V2)}
    store = shop.store
    failures: list[BaseException] = []

    def bring(model: Model) -> None:
        try:
            store.acquire(model, [sources[model.digest]], progress=silent, stop=StopEvent())
        except BaseException as error:  # noqa: BLE001 - shown below
            failures.append(error)

    for _ in range(5):
        threads = [threading.Thread(target=bring, args=(model,)) for model in (ONE, TWO, ONE)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not failures
        assert intact(shop, ONE)
        assert intact(shop, TWO)
        store.remove(ONE.digest)
        store.remove(TWO.digest)


# --- paths that lead elsewhere --------------------------------------------------------------------------------------


@pytest.mark.parametrize("place", ["files/model.gguf", "files/sub", "files/sub/deep", "files"])
@pytest.mark.parametrize("hard", [False, True])
def test_nothing_is_written_through_a_planted_link(shop: Shop, tmp_path: Path, place: str, *, hard: bool) -> None:
    """A link in the place of a partial file or folder is replaced; what it leads to stays as it is (I8)."""
    files = V2 | {"sub/deep/notes.txt": b"notes", "sub/deep/config.json": CONFIG}
    model = make_model(files)
    shop.acquire(ONE, [lay_out(tmp_path / "one", V1)])  # has one of the files already
    outside = tmp_path / "outside"
    (outside / "sub" / "deep").mkdir(parents=True)
    (outside / "model.gguf").write_bytes(b"precious")
    planted = shop.root / "partial" / model.digest[7:] / place
    planted.parent.mkdir(parents=True)
    target = outside / place.removeprefix("files").removeprefix("/")
    if hard and target.is_file():
        planted.hardlink_to(target)
    else:
        planted.symlink_to(target)
    shop.acquire(model, [lay_out(tmp_path / "two", files)])
    assert content(outside) == {"model.gguf": b"precious"}
    assert content(shop.store.folder(model.digest)) == files


def test_a_source_folders_links_are_not_followed(shop: Shop, tmp_path: Path) -> None:
    """A `file://` source gives regular files below its folder, and nothing that a link there leads to."""
    secret = tmp_path / "secret"
    secret.write_bytes(V1["model.gguf"])
    source = lay_out(tmp_path / "one", {path: data for path, data in V1.items() if path != "model.gguf"})
    (tmp_path / "one" / "model.gguf").symlink_to(secret)
    with pytest.raises(DownloadFailed, match=r"model\.gguf"):
        shop.acquire(ONE, [source])


def test_a_source_that_is_a_pipe_does_not_hang(shop: Shop, tmp_path: Path) -> None:
    """A FIFO in a source folder is refused, not waited for."""
    source = lay_out(tmp_path / "one", {path: data for path, data in V1.items() if path != "model.gguf"})
    os.mkfifo(tmp_path / "one" / "model.gguf")
    with pytest.raises(DownloadFailed, match="not a regular file"):
        shop.acquire(ONE, [source])


def test_removal_follows_no_link(shop: Shop, tmp_path: Path) -> None:
    """A link planted in a model's folder goes; what it leads to stays (I8)."""
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "file").write_bytes(b"precious")
    shop.acquire(ONE, [lay_out(tmp_path / "one", V1)])
    folder = shop.store.folder(ONE.digest)
    folder.chmod(0o755)
    (folder / "planted").symlink_to(outside)
    shop.store.remove(ONE.digest)
    assert content(outside) == {"file": b"precious"}
    assert shop.store.list() == {}


# --- what is refused whatever its digest ----------------------------------------------------------------------------


def test_a_pickle_by_name_is_refused_before_anything_is_fetched(shop: Shop) -> None:
    """A model that lists a pickle: `Incompatible`, no request, nothing on the disk."""
    files = V1 | {"weights.bin": b"\x80\x04..."}
    with serving(files) as server:
        with pytest.raises(Incompatible, match=r"weights\.bin"):
            shop.acquire(make_model(files), [server.url])
        assert not server.seen
    assert not shop.root.exists()


def test_an_unsound_header_is_never_published(shop: Shop, tmp_path: Path) -> None:
    """The manifest's own bytes, with a header that lies: `Incompatible`, and no trace of it is left."""
    files = {"model.gguf": b"GGUF" + bytes([3, 0, 0, 0]) + b"\xff" * 100}
    with pytest.raises(Incompatible, match="claims"):
        shop.acquire(make_model(files), [lay_out(tmp_path / "bad", files)])
    assert shop.store.list() == {}
    assert not list((shop.root / "blobs").glob("*/*"))


# --- space ----------------------------------------------------------------------------------------------------------


def test_the_reserve_is_left_free(shop: Shop) -> None:
    """What the node keeps for itself counts as taken; the error has the numbers, and no byte was asked for."""
    shop.options["reserve"] = 2**60
    with serving(V1) as server:
        with pytest.raises(NoSpace, match=r"5\.\d KiB|1\.0 MiB") as caught:
            shop.acquire(ONE, [server.url])
        assert not server.seen
    assert "1048576.0 TiB" in caught.value.message
    assert caught.value.hint
    assert shop.store.list() == {}


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 24 MiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=24m", "tmpfs", str(folder)]
    if os.geteuid() != 0 or subprocess.run(command, check=False, capture_output=True).returncode != 0:
        pytest.skip("needs the right to mount a tmpfs")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_full_disk_is_noticed_before_the_first_byte(shop: Shop, small_disk: Path) -> None:
    """A model larger than the disk: `NoSpace`, nothing fetched, nothing left; a smaller one then fits."""
    shop.root = small_disk / "models"
    with serving(BIG) as server:
        with pytest.raises(NoSpace, match=r"49\.0 MiB"):
            shop.acquire(BIG_MODEL, [server.url])
        assert not server.seen
    assert shop.store.list() == {}
    small = {"model.gguf": gguf(15 * 2**20, seed=5)}
    with serving(small) as server:
        shop.acquire(make_model(small), [server.url])


def test_what_was_quarantined_makes_room(shop: Shop, small_disk: Path) -> None:
    """Where the disk cannot hold a bad copy beside the new one, the bad copy goes."""
    shop.root = small_disk / "models"
    files = {"model.gguf": gguf(15 * 2**20, seed=5)}
    model = make_model(files)
    with serving(files) as server:
        shop.acquire(model, [server.url])
        overwrite(shop.store.folder(model.digest) / "model.gguf", b"FFUG")
        shop.acquire(model, [server.url])
    assert content(shop.store.folder(model.digest)) == files


def test_two_downloads_do_not_promise_the_same_space(shop: Shop, small_disk: Path) -> None:
    """Space is taken when it is promised: the second of two models that fit only singly is refused."""
    shop.root = small_disk / "models"
    first = make_model({"model.gguf": gguf(12 * 2**20, seed=1)}, version="v1")
    second = make_model({"model.gguf": gguf(13 * 2**20, seed=2)}, version="v2")
    with pytest.raises(DownloadFailed):
        shop.acquire(first, ["http://127.0.0.1:9"])
    assert shop.store.list()[first.digest].manifest == first.digest
    with pytest.raises(NoSpace):
        shop.acquire(second, ["http://127.0.0.1:9"])


# --- large files ----------------------------------------------------------------------------------------------------


def test_offsets_beyond_four_gibibytes_are_hashed_right(tmp_path: Path) -> None:
    """A sparse file of more than 4 GiB: its last pieces are told from zeros, and from each other."""
    path = tmp_path / "sparse"
    tail = gguf(PIECE_SIZE + 1000, seed=9)
    start = 256 * PIECE_SIZE
    assert start == 2**32
    with path.open("wb") as stream:
        stream.seek(start)
        stream.write(tail)
    hashes = hashes_of(tail)
    zeros = raw_hash(bytes(PIECE_SIZE))
    pieces = [
        Piece(255, 255 * PIECE_SIZE, PIECE_SIZE, zeros),
        Piece(256, 256 * PIECE_SIZE, PIECE_SIZE, hashes[:32]),
        Piece(257, 257 * PIECE_SIZE, 1000, hashes[32:]),
        Piece(1256, 256 * PIECE_SIZE, PIECE_SIZE, zeros),
    ]
    work = [("sparse", piece) for piece in pieces]
    bad = hashing.bad_pieces(work, tmp_path, concurrency=ThreadedConcurrency(), stop=StopEvent())
    assert bad == {1256}
