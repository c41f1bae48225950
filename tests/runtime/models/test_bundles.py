"""Models in archives: what the manifest lists is unpacked and nothing else, whatever an archive claims (I2, I11)."""

from __future__ import annotations

import tarfile
import zipfile
from typing import TYPE_CHECKING

import pytest

from runtime.models.archives import split_archive
from schemas.errors import DownloadFailed, ModelCorrupt
from schemas.manifest import PIECE_SIZE
from schemas.observation import StoredModel
from tests.support import bundles as made
from tests.support import hostile_http as hostile
from tests.support.bundles import member, packed, tar, zipped
from tests.support.hostile_http import serving
from tests.support.models import content, gguf, lay_out, make_model, noise

if TYPE_CHECKING:
    from pathlib import Path

    from tests.runtime.models.conftest import Shop
    from tests.support.hostile_http import Exchange

SMALL = {"model.gguf": gguf(50_000), "tokenizer/config.json": b'{"a": 1}', "empty.txt": b""}
MODEL = make_model(SMALL)
BIG = {"model.gguf": gguf(2 * PIECE_SIZE + 777, seed=3), "tokenizer/config.json": b'{"a": 1}'}

SOUND = {
    "bundle.tar": tar(SMALL),
    "bundle.tar.zst": packed(tar(SMALL)),
    "bundle.zip": zipped(SMALL.items()),
    "stored.zip": zipped(SMALL.items(), zipfile.ZIP_STORED),
    "dotted.tar": tar({f"./{path}": data for path, data in SMALL.items()}),
    "pax.tar": tar(SMALL, (member("long/" * 60 + "name", 5), b"hello"), first=True),
    "more.tar.zst": packed(tar(SMALL, (member("README.md", 9), b"read this"), first=True)),
    "more.zip": zipped([("README.md", b"read this"), *SMALL.items()]),
    "twice.tar": tar(SMALL, (member("model.gguf", 50_000), noise(50_000, 9))),
    "twice, the wrong one first.tar": tar(SMALL, (member("model.gguf", 50_000), noise(50_000, 9)), first=True),
    "linked elsewhere.tar": tar(SMALL, (member("model.gguf/x", kind=tarfile.SYMTYPE, target="/etc"), b"")),
    "with devices.tar": tar(
        SMALL, (member("null", kind=tarfile.CHRTYPE), b""), (member("p", kind=tarfile.FIFOTYPE), b"")
    ),
    "leading out.tar": tar(SMALL, (member("../../outside", 4), b"evil"), (member("/outside", 4), b"evil")),
    "leading out.zip": zipped([*SMALL.items(), ("../../outside", b"evil"), ("/outside", b"evil")]),
}
"""Archives that have the model's files, whatever else they have."""

LINK = member("model.gguf", kind=tarfile.SYMTYPE, target="/etc/passwd")
HARD = member("model.gguf", kind=tarfile.LNKTYPE, target="tokenizer/config.json")
REST = {path: data for path, data in SMALL.items() if path != "model.gguf"}

HOSTILE: dict[str, tuple[bytes, str]] = {
    "link in its place.tar": (tar(REST, (LINK, b"")), "has no model.gguf"),
    "hard link in its place.tar": (tar(REST, (HARD, b"")), "has no model.gguf"),
    "link in its place.zip": (made.zip_symlink("model.gguf", "/etc/passwd"), "has no model.gguf"),
    "other bytes.tar": (tar(SMALL | {"model.gguf": noise(50_000, 4)}), "other content as model.gguf"),
    "other size.tar": (tar(SMALL | {"model.gguf": noise(50_001, 4)}), "other content as model.gguf"),
    "other bytes.zip": (zipped((SMALL | {"model.gguf": noise(50_000, 4)}).items()), "other content as model.gguf"),
    "cut short.tar": (tar(SMALL)[:30_000], "ends early|unexpected end"),
    "cut short.tar.zst": (packed(tar(SMALL))[:-20_000], "ends early"),
    "cut short.zip": (zipped(SMALL.items())[:-30], "not a zip file"),
    "empty.tar": (b"x", "not a sound archive"),
    "no archive.tar": (noise(5000), "not a sound archive"),
    "no archive.tar.zst": (noise(5000), "not a sound archive"),
    "no archive.zip": (noise(5000), "not a zip file"),
    "encrypted.zip": (made.zip_encrypted(zipped(SMALL.items())), "is encrypted"),
    "claims more.zip": (made.zip_claiming(zipped(SMALL.items()), 2**31), "other content as model.gguf"),
    "list of 2 GiB.zip": (made.zip64_claiming(zipped(SMALL.items()), 2**31), "not a sound archive"),
    "list of 2^60 bytes.zip": (made.zip64_claiming(zipped(SMALL.items()), 2**60), "not a sound archive"),
    "lzma.zip": (zipped(SMALL.items(), zipfile.ZIP_LZMA), "has no model.gguf"),
    "nothing but zeros.tar.zst": (made.packed_zeros(2**22), "has no model.gguf"),
}
"""Archives from which the model cannot be had, with what is said about each."""


@pytest.mark.parametrize("name", SOUND)
def test_a_model_comes_out_of_a_bundle(shop: Shop, name: str, tmp_path: Path) -> None:
    """Every kind of archive gives the model, and nothing beside it appears, inside the store or out of it."""
    path = name.replace(" ", "-").replace(",", "")
    with serving({path: SOUND[name]}) as server:
        shop.acquire(MODEL, [f"{server.url}/{path}"])
    assert content(shop.store.folder(MODEL.digest)) == SMALL
    assert not list(tmp_path.rglob("outside"))
    assert not list(tmp_path.rglob("README.md"))


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_bundle_is_one_clear_error(shop: Shop, name: str) -> None:
    """Nothing is published, and the error says of the bundle what is wrong with it."""
    data, said = HOSTILE[name]
    path = name.replace(" ", "-").replace("^", "")
    with serving({path: data}) as server, pytest.raises((ModelCorrupt, DownloadFailed), match=said) as caught:
        shop.acquire(MODEL, [f"{server.url}/{path}"])
    assert path in caught.value.message
    assert not any(isinstance(seen, StoredModel) for seen in shop.store.list().values())


def test_a_bomb_costs_no_more_than_its_allowance(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    """A member of 4 GiB of zeros that nobody asked for: given up at the allowance, long before its end."""
    head = member("zeros", 2**32).tobuf()
    bomb = made.zstd.compress(head, 1) + made.packed_zeros(2**27)
    monkeypatch.setattr("runtime.models.unpack._ALLOWANCE", 2**25)
    with serving({"bomb.tar.zst": bomb}) as server, pytest.raises(DownloadFailed, match="far more than the model"):
        shop.acquire(MODEL, [f"{server.url}/bomb.tar.zst"])


def test_a_pax_head_of_a_gigabyte_is_not_read(shop: Shop) -> None:
    """A tar member that only describes the next one may not be larger than any honest one is."""
    data = member("x", 2**30, kind=tarfile.XHDTYPE).tobuf() + bytes(10_000)
    server_file = {"pax.tar": data, "pax.tar.zst": packed(data)}
    for name in server_file:
        with serving(server_file) as server, pytest.raises(DownloadFailed, match="bytes at once"):
            shop.acquire(MODEL, [f"{server.url}/{name}"])


def test_a_bundle_continues_where_its_transfer_broke(shop: Shop) -> None:
    """A server that resets the connection every 5 MB: the bundle is read on from there, each byte about once."""
    model = make_model(BIG)
    bundle = tar(BIG)
    with serving({"b.tar": bundle}, hostile.resetting(5_000_000)) as server:
        shop.acquire(model, [f"{server.url}/b.tar"])
        assert server.sent < 1.2 * len(bundle)
    assert content(shop.store.folder(model.digest)) == BIG


def test_verified_pieces_of_an_uncompressed_bundle_are_not_fetched_again(shop: Shop) -> None:
    """After a failure in the middle, the next attempt asks for what is missing only."""
    model = make_model(BIG)
    bundle = tar(BIG)

    def first_pieces_only(exchange: Exchange) -> None:
        start, end = exchange.asked
        if start > PIECE_SIZE:
            hostile.forbidden(exchange)
        elif end - start < PIECE_SIZE:
            exchange.part()
        else:
            hostile.resetting(PIECE_SIZE + 100_000)(exchange)

    with serving({"b.tar": bundle}, first_pieces_only) as server, pytest.raises(DownloadFailed, match="403"):
        shop.acquire(model, [f"{server.url}/b.tar"])
    with serving({"b.tar": bundle}) as server:
        shop.acquire(model, [f"{server.url}/b.tar"])
        assert server.sent < 0.9 * len(bundle)
    assert content(shop.store.folder(model.digest)) == BIG


def test_a_bundle_comes_after_folders(shop: Shop) -> None:
    """While plain files are to be had a bundle is not asked; when they fail, it is, for the rest alone."""
    with serving(SMALL) as folder, serving({"b.tar": tar(SMALL)}) as bundle:
        shop.acquire(MODEL, [f"{bundle.url}/b.tar", folder.url])
        assert not bundle.seen
    shop.store.remove(MODEL.digest)
    with serving(REST) as folder, serving({"b.tar": tar(SMALL)}) as bundle:
        shop.acquire(MODEL, [f"{bundle.url}/b.tar", folder.url])
        assert bundle.seen
    assert content(shop.store.folder(MODEL.digest)) == SMALL


def test_a_bundle_of_this_machine(shop: Shop, tmp_path: Path) -> None:
    """`file://` addresses may name bundles, too."""
    lay_out(tmp_path, {"b.tar.zst": SOUND["bundle.tar.zst"]})
    shop.acquire(MODEL, [f"file://{tmp_path}/b.tar.zst"])
    assert content(shop.store.folder(MODEL.digest)) == SMALL


@pytest.mark.parametrize(("name", "works"), [("b.tar", True), ("b.tar.zst", True), ("b.zip", False)])
def test_a_server_without_ranges_gives_streams(shop: Shop, name: str, *, works: bool) -> None:
    """A tar stream needs no ranges; a zip archive, whose list is at its end, does."""
    files = {"b.tar": SOUND["bundle.tar"], "b.tar.zst": SOUND["bundle.tar.zst"], "b.zip": SOUND["bundle.zip"]}
    with serving(files, hostile.without_ranges) as server:
        if works:
            shop.acquire(MODEL, [f"{server.url}/{name}"])
        else:
            with pytest.raises(DownloadFailed, match="whole files only"):
                shop.acquire(MODEL, [f"{server.url}/{name}"])


@pytest.mark.parametrize(
    ("address", "parts"),
    [
        ("https://h/a/b.tar.zst?token=x", ("https://h/a?token=x", "b.tar.zst", ".tar.zst")),
        ("hf://org/repo@main/b.tar", ("hf://org/repo@main", "b.tar", ".tar")),
        ("s3://bucket/b.zip", ("s3://bucket", "b.zip", ".zip")),
        ("https://host.zip", None),
        ("https://h/tar", None),
        ("https://h/a.tar/", None),
    ],
)
def test_which_addresses_are_bundles(address: str, parts: tuple[str, str, str] | None) -> None:
    """A file's name in the last place, not a host, not a folder."""
    assert split_archive(address) == parts
