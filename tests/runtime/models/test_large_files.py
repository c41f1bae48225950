"""Files above 4 GiB: offsets that need 64 bits, in requests, on the disk, in hashing and in what is told."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING, Final

import pytest

from runtime.interfaces import Model
from runtime.models.layout import Layout
from runtime.models.partial import Partial
from runtime.models.pieces import JournalRecord, split
from runtime.models.records import Fingerprint, save
from schemas.base import FileRef
from schemas.digests import digest_bytes, digest_text, raw_hash
from schemas.errors import ModelCorrupt
from schemas.manifest import PIECE_SIZE, ManifestDocument, ManifestFile, ManifestMetadata, ManifestSpec
from tests.support.hostile_http import serving
from tests.support.models import gguf, noise

if TYPE_CHECKING:
    from pathlib import Path

    from tests.runtime.models.conftest import Shop

BORDER: Final = 2**32
SIZE: Final = BORDER + 2 * PIECE_SIZE + 5
FILLED: Final = {
    0: gguf(PIECE_SIZE, seed=1),
    BORDER - PIECE_SIZE: noise(PIECE_SIZE, seed=2),
    BORDER: noise(PIECE_SIZE, seed=3),
    BORDER + 2 * PIECE_SIZE: b"tail!",
}
"""Where the file holds anything but zeros: pieces before, at and after the border, by offset."""


WHOLE: Final = "8a25a2a8ea791d2bad561351693538fcc88a006758427942cce80e2743a267a1"
"""What `b3sum` prints for it."""


class Sparse(bytes):
    """The file, as far as a server needs it: its length, and pieces of it."""

    __slots__ = ()

    def __len__(self) -> int:
        return SIZE

    def __getitem__(self, part: object) -> bytes:
        assert isinstance(part, slice)
        return FILLED[part.start][: part.stop - part.start]


def large_model() -> Model:
    """The model that consists of this file."""
    known = {offset: raw_hash(data) for offset, data in FILLED.items()}
    zeros = raw_hash(bytes(PIECE_SIZE))
    pieces = b"".join(known.get(offset, zeros) for offset in range(0, SIZE, PIECE_SIZE))
    manifest = ManifestDocument(
        api_version="reconcile/v1alpha1",
        kind="ModelManifest",
        metadata=ManifestMetadata(name="large", version="v1"),
        spec=ManifestSpec(
            format="gguf",
            files=(ManifestFile(path="model.gguf", size=SIZE, blake3=f"blake3:{WHOLE}", sha256=f"sha256:{64 * '0'}"),),
            pieces=FileRef(path="models/large/v1.pieces", digest=digest_bytes(pieces)),
        ),
    )
    return Model(digest=digest_text(manifest.to_json()), manifest=manifest, pieces=pieces)


@pytest.mark.slow
def test_pieces_beyond_four_gibibytes(shop: Shop, tmp_path: Path) -> None:
    """A sparse file is completed across the 4 GiB border by range requests, and a flipped byte behind it is named."""
    if shutil.disk_usage(tmp_path).free < SIZE + 2**30:
        pytest.skip("needs 5 GiB of disk")
    model = large_model()
    (file,) = split(model)
    folder = Layout(shop.root).partial(model.digest)
    partial = Partial(folder, model.digest, [file], shop.ports)
    partial.base.mkdir(parents=True)
    with (partial.base / file.path).open("wb") as stream:
        stream.truncate(SIZE)
    # All that is zeros counts as fetched before.
    done = {piece.number: piece.length for piece in file.pieces if piece.offset not in FILLED}
    seen = Fingerprint.of((partial.base / file.path).lstat())
    assert seen is not None
    save(shop.ports.files, partial.journal_path, JournalRecord.of(model.digest, done, {file.path: seen}))
    with serving({file.path: Sparse()}) as server:
        shop.acquire(model, [server.url])
        asked = {request.headers["range"] for request in server.seen}
        assert server.sent == sum(map(len, FILLED.values()))
    ends = {offset: min(offset + PIECE_SIZE, SIZE) for offset in FILLED}
    assert asked == {f"bytes={start}-{end - 1}" for start, end in ends.items()}
    path = shop.store.folder(model.digest) / file.path
    assert path.stat().st_size == SIZE
    with path.open("rb") as stream:
        for offset, data in FILLED.items():
            stream.seek(offset)
            assert stream.read(len(data)) == data
    path.chmod(0o644)
    with path.open("r+b") as stream:
        stream.seek(BORDER + PIECE_SIZE + 7)
        stream.write(b"!")
    with pytest.raises(ModelCorrupt, match=f"1 of 259 pieces .* the first at byte {BORDER + PIECE_SIZE}$"):
        shop.verify(model)
