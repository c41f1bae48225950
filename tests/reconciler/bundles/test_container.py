"""The archive against somebody hostile: whatever differs from the one form is refused, typed, before it is used."""

from __future__ import annotations

import io
import json
import os
import tarfile
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from reconciler.bundles import container
from reconciler.bundles.container import INDEX_LIMIT, lay_out, opened
from runtime.archive import BLOCK, header
from schemas.bundle import BundledSnapshot, BundleEntry, BundleIndex
from schemas.digests import digest_bytes
from schemas.errors import ReconcileError
from schemas.refusals import DigestMismatch, DocumentError, LimitExceeded

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

DOCUMENTS = b"documents" * 100
MODEL = b"model" * 1000


def index(**changes: object) -> BundleIndex:
    """An index of two entries."""
    fields = {
        "network": "testnet",
        "snapshot": BundledSnapshot(digest=digest_bytes(b"s"), epoch=1, sequence=1),
        "entries": (
            BundleEntry(kind="documents", digest=digest_bytes(DOCUMENTS), size=len(DOCUMENTS)),
            BundleEntry(kind="model", digest=digest_bytes(MODEL), size=len(MODEL)),
        ),
        **changes,
    }
    return BundleIndex(**fields)  # type: ignore[arg-type]


def archive(of: BundleIndex | None = None) -> bytes:
    """A sound bundle."""
    plan = lay_out(of or index())
    made = bytearray(plan.size)
    for (path, span), content in zip(plan.spans.items(), (plan.index, DOCUMENTS, MODEL), strict=True):
        made[span.offset - BLOCK : span.offset] = header(path, span.size)
        made[span.offset : span.offset + span.size] = content
    return bytes(made)


def with_index(content: bytes) -> bytes:
    """A bundle whose index was written by somebody else."""
    first = lay_out(index())
    rest = archive()[first.spans["documents.bundle"].offset - BLOCK :]
    return header("bundle.json", len(content)) + content + bytes(-len(content) % BLOCK) + rest


def with_member(change: Callable[[tarfile.TarInfo], None]) -> bytes:
    """A bundle whose model's header was written by somebody else."""
    sound = bytearray(archive())
    span = lay_out(index()).spans[index().entries[1].path]
    info = tarfile.TarInfo(index().entries[1].path)
    info.size = span.size
    change(info)
    buffer = info.tobuf(tarfile.GNU_FORMAT)
    return bytes(sound[: span.offset - BLOCK]) + buffer + bytes(sound[span.offset :])


def as_kind(kind: bytes, link: str = "") -> Callable[[tarfile.TarInfo], None]:
    """Change what a member is."""

    def change(info: tarfile.TarInfo) -> None:
        info.type, info.linkname = kind, link

    return change


def named(name: str) -> Callable[[tarfile.TarInfo], None]:
    """Change what a member is called."""

    def change(info: tarfile.TarInfo) -> None:
        info.name = name

    return change


def sized(size: int) -> Callable[[tarfile.TarInfo], None]:
    """Change how large a member says it is."""

    def change(info: tarfile.TarInfo) -> None:
        info.size = size

    return change


def edited(**changes: object) -> bytes:
    """A bundle with another value in its index."""
    tree = json.loads(index().to_json())
    tree.update(changes)
    return with_index(json.dumps(tree, separators=(",", ":")).encode() + b"\n")


def second(**changes: object) -> bytes:
    """A bundle with another value in its index's second entry."""
    entries = json.loads(index().to_json())["entries"]
    entries[1].update(changes)
    return edited(entries=entries)


def pax(key: str, value: str) -> bytes:
    """A tar that begins with an extended header."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as made:
        info = tarfile.TarInfo("bundle.json")
        info.pax_headers = {key: value}
        made.addfile(info)
    return buffer.getvalue()


TEXT = index().to_json().encode()
HOSTILE: dict[str, tuple[Callable[[], bytes], str]] = {
    "nothing": (lambda: b"", "MalformedDocument"),
    "not a tar": (lambda: b"PK\x03\x04" * 1000, "MalformedDocument"),
    "zeros": (lambda: bytes(10240), "MalformedDocument"),
    "another first member": (lambda: header("index.json", 5) + bytes(1024), "MalformedDocument"),
    "a first member that is a link": (lambda: _first(as_kind(tarfile.SYMTYPE, "/etc/passwd")), "MalformedDocument"),
    "a negative size": (lambda: _first(sized(-1)), "MalformedDocument"),
    "an index of nothing": (lambda: _first(sized(0)), "MalformedDocument"),
    "an index too large": (lambda: _first(sized(INDEX_LIMIT + 1)), "LimitExceeded"),
    "an index of 8 EiB": (lambda: _first(sized(2**63 - 1)), "LimitExceeded"),
    "an index beyond the end": (lambda: _first(sized(INDEX_LIMIT)), "MalformedDocument"),
    "an extended header first": (lambda: pax("path", "../../etc/passwd"), "MalformedDocument"),
    "a sparse extended header": (lambda: pax("GNU.sparse.realsize", str(2**60)), "MalformedDocument"),
    "an index that is not JSON": (lambda: with_index(b"- yaml\n"), "MalformedDocument"),
    "an index that is not UTF-8": (lambda: with_index(TEXT[:-1] + b"\xff}\n"), "MalformedDocument"),
    "an index nested deeply": (lambda: with_index(b"[" * 100_000), "MalformedDocument"),
    "a huge number": (lambda: with_index(TEXT.replace(b'"epoch":1', b'"epoch":' + b"9" * 5000)), "MalformedDocument"),
    "an index in another way": (lambda: with_index(TEXT.replace(b",", b", ") + b"\n"), "MalformedDocument"),
    "a key twice": (
        lambda: with_index(TEXT.replace(b'"epoch":1', b'"epoch":9,"epoch":1') + b"\n"),
        "MalformedDocument",
    ),
    "a Python name": (
        lambda: with_index(TEXT.replace(b"formatVersion", b"format_version") + b"\n"),
        "MalformedDocument",
    ),
    "an unknown field": (lambda: edited(more=1), "MalformedDocument"),
    "a later form": (lambda: edited(formatVersion="2"), "AgentTooOld"),
    "another kind": (lambda: edited(kind="Snapshot"), "MalformedDocument"),
    "a network with a path": (lambda: edited(network="../x"), "MalformedDocument"),
    "no entries": (lambda: edited(entries=[]), "MalformedDocument"),
    "no documents": (lambda: edited(entries=json.loads(TEXT)["entries"][1:]), "MalformedDocument"),
    "documents twice": (lambda: edited(entries=json.loads(TEXT)["entries"][:1] * 2), "MalformedDocument"),
    "another order": (lambda: edited(entries=json.loads(TEXT)["entries"][::-1]), "MalformedDocument"),
    "an entry twice": (
        lambda: edited(entries=[*json.loads(TEXT)["entries"], json.loads(TEXT)["entries"][1]]),
        "MalformedDocument",
    ),
    "a digest with a path": (lambda: second(digest="blake3:../../../etc/passwd"), "MalformedDocument"),
    "a digest of another kind": (lambda: second(digest="sha256:" + "0" * 64), "MalformedDocument"),
    "a name where none belongs": (lambda: second(name="index.json"), "MalformedDocument"),
    "a path of its own": (lambda: second(path="/etc/passwd"), "MalformedDocument"),
    "an entry of -1 bytes": (lambda: second(size=-1), "MalformedDocument"),
    "an entry of 8 PiB": (lambda: second(size=2**53 - 1), "MalformedDocument"),
    "a smaller entry": (lambda: second(size=5), "MalformedDocument"),
    "cut by a byte": (lambda: archive()[:-1], "MalformedDocument"),
    "cut in the index": (lambda: archive()[: BLOCK + 10], "MalformedDocument"),
    "cut in a header": (lambda: archive()[: BLOCK - 10], "MalformedDocument"),
    "one more byte": (lambda: archive() + b"\0", "MalformedDocument"),
    "one more member": (lambda: archive()[: -2 * BLOCK] + header("extra", 0) + bytes(2 * BLOCK), "MalformedDocument"),
    "a member after the end": (lambda: archive() + header("extra", 0) + bytes(2 * BLOCK), "MalformedDocument"),
    "a symbolic link": (lambda: with_member(as_kind(tarfile.SYMTYPE, "/etc/shadow")), "MalformedDocument"),
    "a hard link": (lambda: with_member(as_kind(tarfile.LNKTYPE, "bundle.json")), "MalformedDocument"),
    "a device": (lambda: with_member(as_kind(tarfile.BLKTYPE)), "MalformedDocument"),
    "a FIFO": (lambda: with_member(as_kind(tarfile.FIFOTYPE)), "MalformedDocument"),
    "a folder": (lambda: with_member(as_kind(tarfile.DIRTYPE)), "MalformedDocument"),
    "a sparse file": (lambda: with_member(as_kind(tarfile.GNUTYPE_SPARSE)), "MalformedDocument"),
    "a continued file": (lambda: with_member(as_kind(tarfile.CONTTYPE)), "MalformedDocument"),
    "a path escape": (lambda: with_member(named("../../etc/cron.d/x")), "MalformedDocument"),
    "an absolute path": (lambda: with_member(named("/etc/cron.d/x")), "MalformedDocument"),
    "a setuid file": (lambda: with_member(lambda info: setattr(info, "mode", 0o4755)), "MalformedDocument"),
    "an owner": (lambda: with_member(lambda info: setattr(info, "uid", 1000)), "MalformedDocument"),
    "a time": (lambda: with_member(lambda info: setattr(info, "mtime", 1)), "MalformedDocument"),
    "a size that differs": (lambda: with_member(sized(len(MODEL) - 1)), "MalformedDocument"),
    "something in the padding": (lambda: archive()[: -2 * BLOCK - 1] + b"x" + bytes(2 * BLOCK), "MalformedDocument"),
    "something in the end": (lambda: archive()[:-1] + b"x", "MalformedDocument"),
}


def _edit(old: bytes, new: bytes) -> bytes:
    return TEXT.replace(old, new) + b"\n"


def _first(change: Callable[[tarfile.TarInfo], None]) -> bytes:
    info = tarfile.TarInfo("bundle.json")
    info.size = 100
    change(info)
    return info.tobuf(tarfile.GNU_FORMAT) + bytes(10240)


def test_a_sound_bundle_opens(tmp_path: Path) -> None:
    """What the table below spoils is in order before, and tar itself reads it."""
    path = tmp_path / "bundle.tar"
    path.write_bytes(archive())
    with opened(path) as bundle:
        assert bundle.read(bundle.documents, 2**20) == DOCUMENTS
        entry = bundle.entry(digest_bytes(MODEL))
        assert entry is not None
        assert b"".join(bundle.windows(entry)) == MODEL
    with tarfile.open(path) as seen:
        assert [member.size for member in seen.getmembers()][1:] == [len(DOCUMENTS), len(MODEL)]


@pytest.mark.parametrize("case", HOSTILE)
def test_hostile_bundles_are_refused(case: str, tmp_path: Path) -> None:
    """Every difference is one clear refusal, and nothing of the bundle was used (I11)."""
    make, reason = HOSTILE[case]
    path = tmp_path / "bundle.tar"
    path.write_bytes(make())
    with pytest.raises(ReconcileError) as refused, opened(path):
        pytest.fail("was opened")
    assert refused.value.reason == reason
    assert str(path) in refused.value.message


def test_a_bundle_must_be_a_regular_file(tmp_path: Path) -> None:
    """A FIFO is not waited for, a folder and a hole in the file system are named."""
    os.mkfifo(tmp_path / "fifo")
    for name in ("fifo", "", "absent"):
        with pytest.raises(DocumentError) as refused, opened(tmp_path / name):
            pytest.fail("was opened")
        assert refused.value.reason == "MissingDocument"


def test_contents_are_compared_with_the_index(tmp_path: Path) -> None:
    """A byte that changed is found at the latest with the last window, and an entry is read within its limit."""
    path = tmp_path / "bundle.tar"
    spoilt = bytearray(archive())
    spoilt[lay_out(index()).spans["documents.bundle"].offset] ^= 1
    path.write_bytes(spoilt)
    with opened(path) as bundle:
        with pytest.raises(DigestMismatch):
            bundle.read(bundle.documents, 2**20)
        with pytest.raises(LimitExceeded):
            bundle.read(bundle.documents, 10)


def test_a_file_that_shrinks_meanwhile_is_an_error(tmp_path: Path) -> None:
    """Whoever cuts an open bundle ends the reading, not the reader."""
    path = tmp_path / "bundle.tar"
    path.write_bytes(archive())
    with opened(path) as bundle:
        os.truncate(path, BLOCK)
        with pytest.raises(DocumentError) as refused:
            bundle.read(bundle.documents, 2**20)
    assert refused.value.reason == "MalformedDocument"


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_no_single_change_outside_of_the_contents_passes(data: st.DataObject, tmp_path: Path) -> None:
    """One byte anywhere but in the contents: refused with a type of ours, or it was never opened (a fuzz test)."""
    sound = archive()
    plan = lay_out(index())
    contents = [range(span.offset, span.offset + span.size) for span in list(plan.spans.values())[1:]]
    at = data.draw(st.integers(0, len(sound) - 1).filter(lambda n: not any(n in span for span in contents)))
    changed = bytearray(sound)
    changed[at] ^= data.draw(st.integers(1, 255))
    path = tmp_path / "bundle.tar"
    path.write_bytes(changed)
    try:
        with opened(path) as bundle:
            # Digests and numbers of the index may be others and still make an index: then its contents differ.
            assert bundle.index != index()
    except ReconcileError:
        return


def test_the_layout_holds_files_larger_than_ustars_octal_sizes() -> None:
    """A shard of 500 GB has a header that tar reads back (the octal field ends at 8 GiB)."""
    size = 500 * 10**9
    info = tarfile.TarInfo.frombuf(header("models/x", size), "ascii", "strict")
    assert (info.size, info.name) == (size, "models/x")
    large = index(
        entries=(index().entries[0], BundleEntry(kind="model", digest=digest_bytes(MODEL), size=size)),
    )
    assert lay_out(large).size > size
    assert container.lay_out(large) == lay_out(large)
