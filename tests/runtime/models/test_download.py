"""Downloads from servers of every kind: finished correctly from what is honest, or one clear error (I2, I11)."""

from __future__ import annotations

import subprocess
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from runtime.host import StopEvent
from schemas.errors import DownloadFailed, ModelCorrupt, ReconcileError
from schemas.manifest import PIECE_SIZE
from schemas.node import SourcePolicy
from schemas.observation import PartialModel, StoredModel
from tests.support import hostile_http as hostile
from tests.support.hostile_http import serving
from tests.support.models import OPEN_POLICY, content, gguf, make_model, silent

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.runtime.models.conftest import Shop
    from tests.support.hostile_http import Exchange

BIG = gguf(2 * PIECE_SIZE + 12345, seed=1)
FILES = {"model.gguf": BIG, "tokenizer/config.json": b'{"a": 1}', "empty.txt": b""}
MODEL = make_model(FILES)
OTHER = gguf(len(BIG), seed=2)

UNUSABLE: dict[str, Callable[[Exchange], None]] = {
    "no Content-Range": hostile.no_content_range,
    "wrong Content-Range": hostile.wrong_content_range,
    "another size": hostile.wrong_total,
    "several parts in one": hostile.multipart,
    "length that contradicts": hostile.short_length,
    "416 inside the file": hostile.inside_416,
    "gzip": hostile.gzip_encoded,
    "gzip of the whole": hostile.gzip_whole,
    "login page": hostile.login_page,
    "login page of the right size": hostile.login_page_of_its_size,
    "403": hostile.forbidden,
    "404": hostile.not_found,
    "short body": hostile.short_body,
    "500": hostile.server_error,
    "429 for an hour": hostile.busy(10**6, "429 Too Many Requests", Retry_After=3600),
    "reset": hostile.hard_reset,
    "silence": hostile.silent,
    "slow drip": hostile.drip,
    "endless head line": hostile.drip_head,
    "endless head": hostile.flood_head,
    "corrupt": hostile.corrupting,
    "other content": hostile.flipping(OTHER, 0),
    "replaced while it is sent": hostile.flipping_inside(OTHER, PIECE_SIZE + 1000),
    "redirect to a private address": hostile.redirecting("http://169.254.169.254/latest{path}"),
    "redirect to a file": hostile.redirecting("file:///etc/passwd"),
    "redirect loop": hostile.redirecting("{path}"),
    "redirect nowhere": hostile.redirecting(""),
}
"""Servers from which nothing can be had."""

HARMLESS: dict[str, Callable[[Exchange], None]] = {
    "no ranges": hostile.without_ranges,
    "no ranges, no kept connections": hostile.without_ranges_old,
    "long body": hostile.long_body,
    "another ETag each time": hostile.new_etag_each_time,
    "a burst of 503": hostile.busy(3),
    "a burst of 502 and resets": hostile.bursting(4),
    "429 with a short Retry-After": hostile.busy(1, "429 Too Many Requests", Retry_After=1),
    "reset after 5 MB": hostile.resetting(5_000_000),
    "one wrong bit, once": hostile.corrupting_once(),
    "addresses that expire": hostile.expiring(1),
}
"""Servers that are a nuisance, and have the right bytes."""


@pytest.mark.parametrize("behaviour", UNUSABLE)
def test_an_unusable_source_is_passed_over_for_an_honest_one(shop: Shop, behaviour: str) -> None:
    """Whatever the first mirror does, the bytes come right from the second, and are published (I2)."""
    with serving(FILES, UNUSABLE[behaviour]) as bad, serving(FILES) as good:
        shop.acquire(MODEL, [bad.url, good.url])
        assert bad.seen, "the bad one was asked"
    assert content(shop.store.folder(MODEL.digest)) == FILES


@pytest.mark.parametrize("behaviour", UNUSABLE)
def test_an_unusable_source_alone_is_one_clear_error(shop: Shop, behaviour: str) -> None:
    """With nothing but a bad mirror: a typed error that names it, and nothing is published (I2, I11)."""
    with serving(FILES, UNUSABLE[behaviour]) as bad, pytest.raises((DownloadFailed, ModelCorrupt)) as caught:
        shop.acquire(MODEL, [bad.url])
    wrong_bytes = {"corrupt", "other content", "another size", "416 inside the file"}
    wrong_bytes |= {"login page of the right size", "replaced while it is sent"}
    assert isinstance(caught.value, ModelCorrupt) == (behaviour in wrong_bytes), caught.value
    assert bad.url in caught.value.message
    assert not any(isinstance(seen, StoredModel) for seen in shop.store.list().values())
    assert not (shop.root / "tiny").exists()


@pytest.mark.parametrize("behaviour", HARMLESS)
def test_a_nuisance_is_put_up_with(shop: Shop, behaviour: str) -> None:
    """A source that has the right bytes is enough, however awkwardly it gives them."""
    with serving(FILES, HARMLESS[behaviour]) as awkward:
        shop.acquire(MODEL, [awkward.url])
    assert content(shop.store.folder(MODEL.digest)) == FILES


def test_a_server_without_ranges_sends_a_file_about_once(shop: Shop) -> None:
    """One reader reads the whole file in order: not one reader per piece, each from the beginning."""
    with serving(FILES, hostile.without_ranges) as server:
        shop.acquire(MODEL, [server.url])
        # At the start several workers may each have asked once before anybody knew.
        assert server.sent < 2 * len(BIG) + 3 * PIECE_SIZE


def test_only_the_corrupt_piece_is_fetched_again(shop: Shop) -> None:
    """One wrong byte in one place of one mirror costs one piece, not the file."""
    with serving(FILES, hostile.corrupting_one(PIECE_SIZE + 5)) as bad, serving(FILES) as good:
        shop.acquire(MODEL, [bad.url, good.url])
        assert bad.sent + good.sent <= len(BIG) + PIECE_SIZE + 100
    assert content(shop.store.folder(MODEL.digest)) == FILES


def test_the_mirror_that_sent_wrong_bytes_is_named(shop: Shop) -> None:
    """Nothing else would say so: another mirror made up for it."""
    with serving(FILES, hostile.corrupting_one(5)) as bad, serving(FILES) as good:
        remarks = shop.store.acquire(MODEL, [bad.url, good.url], progress=silent, stop=StopEvent())
        assert remarks == (f"{bad.url} sent wrong bytes of 1 piece",)


def test_a_file_that_changes_on_the_server_is_never_mixed(shop: Shop) -> None:
    """A mirror that replaces its file in the middle is caught by its bytes, and the other finishes (I2)."""
    with serving(FILES, hostile.flipping(OTHER, 2)) as flips, serving(FILES) as good:
        shop.acquire(MODEL, [flips.url, good.url])
    assert content(shop.store.folder(MODEL.digest)) == FILES


def test_verified_pieces_are_kept_when_a_source_fails(shop: Shop) -> None:
    """What was verified before the failure is not fetched again."""

    def first_piece_only(exchange: Exchange) -> None:
        if exchange.asked[0] == 0:
            hostile.honest(exchange)
        else:
            hostile.not_found(exchange)

    shop.options["connections"] = 1
    with serving(FILES, first_piece_only) as server, pytest.raises(DownloadFailed):
        shop.acquire(MODEL, [server.url])
    seen = shop.store.list()[MODEL.digest]
    assert isinstance(seen, PartialModel)
    assert seen.verified_bytes >= PIECE_SIZE
    left = shop.store.missing(MODEL)
    assert left == len(BIG) + 8 - seen.verified_bytes
    with serving(FILES) as server:
        shop.acquire(MODEL, [server.url])
        assert server.sent == left
    assert content(shop.store.folder(MODEL.digest)) == FILES


def test_mirrors_are_used_side_by_side(shop: Shop) -> None:
    """With several mirrors, more than one is asked."""
    with serving(FILES) as one, serving(FILES) as two:
        shop.acquire(MODEL, [one.url, two.url])
        assert one.seen
        assert two.seen


def test_the_fallback_list_comes_last(shop: Shop) -> None:
    """The node's own sources get only what the snapshot's cannot give; `{name}` and `{version}` are filled in."""
    fallback_files = {f"tiny/v1/{path}": data for path, data in FILES.items()}
    with serving(FILES) as first, serving(fallback_files) as second:
        address = f"{second.url}/{{name}}/{{version}}"
        shop.options["policy"] = OPEN_POLICY.model_copy(update={"fallback": (address,)})
        shop.acquire(MODEL, [first.url])
        assert not second.seen
    with serving(FILES, hostile.not_found) as first, serving(fallback_files) as second:
        address = f"{second.url}/{{name}}/{{version}}"
        shop.options["policy"] = OPEN_POLICY.model_copy(update={"fallback": (address,)})
        shop.store.remove(MODEL.digest)
        shop.acquire(MODEL, [first.url])
        assert second.seen
    assert content(shop.store.folder(MODEL.digest)) == FILES


def test_a_slow_mirror_does_not_hold_the_last_piece(shop: Shop) -> None:
    """When nothing is left but what a slow mirror is sending, a faster one is asked for it instead."""
    shop.options["stall"] = 60

    def slow(exchange: Exchange) -> None:
        start, end = exchange.asked
        stated = f"bytes {start}-{end - 1}/{len(exchange.data)}"
        exchange.head("206 Partial Content", {"Content-Range": stated, "Content-Length": end - start})
        for offset in range(start, end, 4096):
            exchange.body(exchange.data[offset : min(offset + 4096, end)])
            if exchange.server.ended.wait(0.1):
                break

    only_big = {"model.gguf": BIG}
    model = make_model(only_big)
    with serving(only_big, slow) as slowest, serving(only_big) as fast:
        shop.acquire(model, [slowest.url, fast.url])
        assert slowest.sent < PIECE_SIZE, "its piece was taken from it"
    assert content(shop.store.folder(model.digest)) == only_big


def test_a_stop_ends_a_download_soon_and_keeps_what_is_verified(shop: Shop) -> None:
    """A stop request ends transfers that wait for a silent server, long before their stall timeout."""
    shop.options |= {"stall": 3600, "connections": 2}
    stop = StopEvent()

    def second_piece_hangs(exchange: Exchange) -> None:
        if exchange.asked[0] == PIECE_SIZE:
            stop.set()
            hostile.silent(exchange)
        hostile.honest(exchange)

    with serving(FILES, second_piece_hangs) as server, pytest.raises(DownloadFailed, match="stopped"):
        shop.store.acquire(MODEL, [server.url], progress=silent, stop=stop)
    assert not any(isinstance(seen, StoredModel) for seen in shop.store.list().values())
    with serving(FILES) as server:
        shop.acquire(MODEL, [server.url])
        assert server.sent <= len(BIG) + 8
    assert content(shop.store.folder(MODEL.digest)) == FILES


MEASURED = """
import sys
from pathlib import Path
from runtime.host import StopEvent, host_ports
from runtime.interfaces import Model
from runtime.models.store import DiskModelStore
from schemas.manifest import ManifestDocument
from tests.support.models import OPEN_POLICY, silent
root, url, digest = sys.argv[1:]
model = Model(digest, ManifestDocument.model_validate_json(sys.stdin.readline()), bytes.fromhex(sys.stdin.readline()))
store = DiskModelStore(Path(root), ports=host_ports(), policy=OPEN_POLICY, connections=4, reserve=0)
# Not ru_maxrss, which a child inherits from the process that started it.
peak = lambda: next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM"))
before = peak()
store.acquire(model, [url], progress=silent, stop=StopEvent())
print((peak() - before) // 1024)
"""


def test_memory_is_bounded_by_what_is_in_flight(shop: Shop) -> None:
    """Four connections, a file of 160 MiB: a process that downloads it grows by less than 64 MiB."""
    files = {"model.gguf": gguf(10 * PIECE_SIZE, seed=6)}
    model = make_model(files)
    with serving(files) as server:
        done = subprocess.run(
            [sys.executable, "-c", MEASURED, str(shop.root), server.url, model.digest],
            input=f"{model.manifest.to_json()}\n{model.pieces.hex()}\n",
            cwd=Path(__file__).parents[3],
            capture_output=True,
            text=True,
            check=True,
        )
    assert int(done.stdout) < 64
    assert isinstance(shop.store.list()[model.digest], StoredModel)


def test_no_source_at_all_is_an_error_that_says_so(shop: Shop) -> None:
    """Without any source: `DownloadFailed`, nothing created."""
    with pytest.raises(DownloadFailed, match="no source"):
        shop.acquire(MODEL, [])


def test_progress_reaches_the_size_of_every_file(shop: Shop) -> None:
    """Each file is told of up to its size, never beyond, never backwards."""
    told: dict[str, list[int]] = {}
    lock = threading.Lock()

    def progress(subject: str, done: int, total: int) -> None:
        with lock:
            assert done <= total
            told.setdefault(subject, []).append(done)

    with serving(FILES) as server:
        shop.store.acquire(MODEL, [server.url], progress=progress, stop=StopEvent())
    assert {subject: steps[-1] for subject, steps in told.items()} == {
        f"tiny:v1/{path}": len(data) for path, data in FILES.items()
    }
    assert all(steps == sorted(steps) for steps in told.values())


def test_a_policy_refusal_is_not_taken_for_corruption(shop: Shop) -> None:
    """Plain http that the node does not allow: `DownloadFailed` that names the setting, and no connection is made."""
    shop.options["policy"] = SourcePolicy(allow_private=True)
    with serving(FILES) as server:
        with pytest.raises(ReconcileError, match="allowHttp") as caught:
            shop.acquire(MODEL, [server.url])
        assert not server.seen
    assert isinstance(caught.value, DownloadFailed)
