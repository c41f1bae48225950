"""Killed, or refused by the disk, at every durable call: nothing half visible, and the next run converges (I7)."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from runtime.host import StopEvent
from runtime.models.layout import tree
from runtime.models.pieces import split
from schemas.errors import DownloadFailed, ModelCorrupt, NoSpace
from schemas.manifest import PIECE_SIZE
from schemas.observation import ArchivedModel, PartialModel, StoredModel
from tests.support import hostile_http as hostile
from tests.support.crashing import CONFIG, ONE, TWO, V1, V2, killer, open_store, perform
from tests.support.hostile_http import serving
from tests.support.models import content, gguf, lay_out, make_model, silent

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from runtime.models.store import DiskModelStore
    from tests.runtime.models.conftest import Shop
    from tests.support.crashing import Killer
    from tests.support.hostile_http import Exchange

MODELS = {ONE.digest: (ONE, V1), TWO.digest: (TWO, V2)}
OPERATIONS = ("acquire", "remove", "verify", "repair", "archive", "restore")
"""`verify` finds corruption, `repair` is the acquisition after it, `restore` the one of a model in cold storage."""


@pytest.fixture(scope="module")
def kill() -> Iterator[Killer]:
    """One process that forks all victims."""
    with killer() as running:
        yield running


def plain(root: Path) -> DiskModelStore:
    """A store on a disk that works."""
    return open_store(root, lambda _number, call: call())[0]


def prepare(root: Path, operation: str) -> str:
    """The state in which an operation begins; the address of a source for it."""
    source = lay_out(root / "source", V2)
    lay_out(root / "source1", V1)
    store = plain(root / "models")
    store.acquire(ONE, [f"file://{root}/source1"], progress=silent, stop=StopEvent())
    if operation in ("remove", "verify", "archive"):
        store.acquire(TWO, [source], progress=silent, stop=StopEvent())
    if operation in ("verify", "repair"):
        taint(store.folder(ONE.digest) / "config.json")
    if operation == "restore":
        store.archive(ONE, progress=silent, stop=StopEvent())
    if operation == "repair":
        with pytest.raises(ModelCorrupt):
            store.verify(ONE, progress=silent, stop=StopEvent())
    return source


def taint(path: Path) -> None:
    """Change a stored file's bytes."""
    path.chmod(0o644)
    path.write_bytes(b"x" * path.stat().st_size)
    path.chmod(0o444)


def act(store: DiskModelStore, operation: str, source: str) -> None:
    """Perform an operation; a repair is another acquisition."""
    perform(store, "acquire" if operation == "repair" else operation, source)


def calls_of(tmp_path: Path, operation: str) -> int:
    """How many durable calls an undisturbed operation makes."""
    source = prepare(tmp_path, operation)
    store, files = open_store(tmp_path / "models", lambda _number, call: call())
    act(store, operation, source)
    assert files.calls > 5
    return files.calls


def check_visible(store: DiskModelStore) -> None:
    """What is listed as stored is whole; what is listed as intact has the right bytes, and nothing but them."""
    for digest, seen in store.list().items():
        if isinstance(seen, ArchivedModel):
            model, _ = MODELS[digest]
            assert store.missing(model) == 0
            record = store._archive.get(digest)
            assert record is not None
            assert not store._archive.bad(record, split(model), stop=StopEvent())
        if isinstance(seen, StoredModel):
            model, files = MODELS[digest]
            found = content(store.folder(digest))
            assert found.keys() == files.keys()
            assert seen.size == model.manifest.size
            assert not seen.intact or found == files


def check_converges(root: Path, operation: str, source: str) -> None:
    """One more run brings about what was wanted, and leaves nothing lying about."""
    models = root / "models"
    store = plain(models)
    check_visible(store)
    if operation == "remove":
        store.remove(ONE.digest)
    elif operation == "archive":
        store.archive(ONE, progress=silent, stop=StopEvent())
        assert isinstance(store.list()[ONE.digest], ArchivedModel)
        store.acquire(ONE, [], progress=silent, stop=StopEvent())
    elif operation == "restore":
        store.acquire(ONE, [], progress=silent, stop=StopEvent())
        store.acquire(TWO, [source], progress=silent, stop=StopEvent())
    else:
        store.acquire(TWO, [source], progress=silent, stop=StopEvent())
        store.acquire(ONE, [f"file://{root}/source1"], progress=silent, stop=StopEvent())
    wanted = {TWO.digest} if operation == "remove" else {ONE.digest, TWO.digest}
    listed = store.list()
    for digest in sorted(wanted):
        seen = listed[digest]
        assert isinstance(seen, StoredModel)
        if not seen.intact:  # a crash may cost a hashing, never a model
            store.verify(MODELS[digest][0], progress=silent, stop=StopEvent())
        assert content(store.folder(digest)) == MODELS[digest][1]
    store.sweep()
    assert store.residue() == 0
    assert set(store.list()) == wanted
    for kind in ("partial", "quarantine", "trash", "archive"):
        assert not (models / kind).exists() or not tree(models / kind)
    shared = {path.stat().st_ino for path in models.glob("*/*@*/**/*") if path.is_file()}
    blobs = {path.stat().st_ino for path in (models / "blobs").rglob("*") if path.is_file()}
    assert shared == blobs, "every blob has a user, and every file is a blob"


@pytest.mark.parametrize("when", ["before", "within", "after"])
@pytest.mark.parametrize("operation", OPERATIONS)
def test_killed_at_every_durable_call(tmp_path: Path, kill: Killer, operation: str, when: str) -> None:
    """SIGKILL before, within, or right after each durable call: nothing half visible, the next run converges (I7)."""
    total = calls_of(tmp_path / "count", operation)
    for at in range(total):
        root = tmp_path / str(at)
        source = prepare(root, operation)
        verb = "acquire" if operation == "repair" else operation
        assert kill.run(root / "models", verb, source, at=at, when=when) == "killed"
        check_converges(root, operation, source)


@pytest.mark.parametrize(
    ("number", "kind"), [(errno.ENOSPC, NoSpace), (errno.EDQUOT, NoSpace), (errno.EIO, DownloadFailed)]
)
@pytest.mark.parametrize("operation", OPERATIONS)
def test_refused_by_the_disk_at_every_durable_call(
    tmp_path: Path, operation: str, number: int, kind: type[Exception]
) -> None:
    """A disk that is full, over quota or broken at one call: a typed error, and the next run converges (I7, I11)."""
    total = calls_of(tmp_path / "count", operation)
    for at in range(total):
        root = tmp_path / str(at)
        source = prepare(root, operation)

        def around(call_number: int, call: Callable[[], None], at: int = at) -> None:
            if call_number == at:
                raise OSError(number, os.strerror(number))
            call()

        store, _ = open_store(root / "models", around)
        with pytest.raises(kind):
            act(store, operation, source)
        check_converges(root, operation, source)


def test_a_refused_disk_sweep_reaches_beyond_the_first_call(tmp_path: Path) -> None:
    """The sweeps above are about more than a handful of calls."""
    assert calls_of(tmp_path, "acquire") > 20


VICTIM = """
import sys
from pathlib import Path
from runtime.host import StopEvent, host_ports
from runtime.models.store import DiskModelStore
from tests.runtime.models.test_crash import BIG_MODEL
from tests.support.models import OPEN_POLICY, silent
store = DiskModelStore(Path(sys.argv[1]), ports=host_ports(), policy=OPEN_POLICY, connections=2, stall=60, reserve=0)
store.acquire(BIG_MODEL, [sys.argv[2]], progress=silent, stop=StopEvent())
"""
BIG = {"model.gguf": gguf(4 * PIECE_SIZE, seed=3)}
BIG_MODEL = make_model(BIG)


def until(condition: Callable[[], bool], seconds: float = 60) -> None:
    """Wait for another process to bring something about."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.02)


def test_a_killed_download_goes_on_where_its_journal_ends(shop: Shop) -> None:
    """SIGKILL of a real process in the middle of a download: the next one fetches only what was not recorded."""

    def last_piece_hangs(exchange: Exchange) -> None:
        if exchange.asked[0] == 3 * PIECE_SIZE:
            hostile.silent(exchange)
        hostile.honest(exchange)

    def recorded() -> int:
        seen = shop.store.list().get(BIG_MODEL.digest)
        return seen.verified_bytes if isinstance(seen, PartialModel) else 0

    with serving(BIG, last_piece_hangs) as server:
        command = [sys.executable, "-c", VICTIM, str(shop.root), server.url]
        with subprocess.Popen(command, cwd=Path(__file__).parents[3]) as victim:
            until(lambda: recorded() == 3 * PIECE_SIZE or victim.poll() is not None)
            victim.send_signal(signal.SIGKILL)
        assert victim.returncode == -signal.SIGKILL
    assert recorded() == 3 * PIECE_SIZE
    with serving(BIG) as server:
        shop.acquire(BIG_MODEL, [server.url])
        assert server.sent == PIECE_SIZE
    assert content(shop.store.folder(BIG_MODEL.digest)) == BIG


def test_recorded_pieces_that_changed_on_disk_are_fetched_again(shop: Shop) -> None:
    """What the journal lists is hashed again when the file changed since: a resumed model is never wrong (I2)."""
    with serving(BIG, _only_first_pieces) as server, pytest.raises(DownloadFailed):
        shop.acquire(BIG_MODEL, [server.url])
    seen = shop.store.list()[BIG_MODEL.digest]
    assert isinstance(seen, PartialModel)
    assert seen.verified_bytes
    (partial,) = shop.root.glob("partial/*/files/model.gguf")
    with partial.open("r+b") as stream:
        stream.seek(5)
        stream.write(b"!")
    with serving(BIG) as server:
        shop.acquire(BIG_MODEL, [server.url])
        assert server.sent == BIG_MODEL.manifest.size - seen.verified_bytes + PIECE_SIZE
    assert content(shop.store.folder(BIG_MODEL.digest)) == BIG


def _only_first_pieces(exchange: Exchange) -> None:
    if exchange.asked[0] < 2 * PIECE_SIZE:
        hostile.honest(exchange)
    else:
        exchange.server.ended.wait(0.5)
        hostile.not_found(exchange)


def test_a_damaged_journal_is_not_believed(shop: Shop) -> None:
    """A journal with a flipped bit counts as none."""
    with serving(BIG, _only_first_pieces) as server, pytest.raises(DownloadFailed):
        shop.acquire(BIG_MODEL, [server.url])
    (journal,) = shop.root.glob("partial/*/journal")
    journal.write_bytes(journal.read_bytes().replace(b'"done":"0', b'"done":"f'))
    assert shop.store.list() == {BIG_MODEL.digest: PartialModel(BIG_MODEL.digest, 0)}
    with serving(BIG) as server:
        shop.acquire(BIG_MODEL, [server.url])
        assert server.sent == BIG_MODEL.manifest.size
    assert content(shop.store.folder(BIG_MODEL.digest)) == BIG


assert V1["config.json"] == V2["config.json"] == CONFIG, "the two versions share a file"
