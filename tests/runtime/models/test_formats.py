"""Headers that lie, pickles and program code: refused before they are published."""

from __future__ import annotations

import json
import struct
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from runtime.models import formats
from schemas.errors import Incompatible
from tests.support.models import gguf, make_model, safetensors

if TYPE_CHECKING:
    from pathlib import Path


def check(folder: Path, name: str, data: bytes) -> None:
    """Look into one file."""
    folder.mkdir(exist_ok=True)
    (folder / name).write_bytes(data)
    model = make_model({name: data}, form="safetensors" if name.endswith("safetensors") else "gguf")
    formats.check_content(model, folder, [name])


def wrap(header: object, data: bytes = b"") -> bytes:
    """A safetensors file with any header."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def tensor(begin: int, end: int, **fields: Any) -> dict[str, Any]:
    """A description of bytes."""
    return {"dtype": "U8", "shape": [end - begin], "data_offsets": [begin, end], **fields}


def test_sound_files_pass(tmp_path: Path) -> None:
    """What real tools write is accepted."""
    check(tmp_path, "model.gguf", gguf())
    check(tmp_path, "model.safetensors", safetensors())
    check(tmp_path, "two.safetensors", wrap({"b": tensor(3, 5), "a": tensor(0, 3), "c": tensor(5, 5)}, b"12345"))
    check(tmp_path, "tokenizer.json", b"{}")
    check(tmp_path, "empty.txt", b"")


def test_a_file_of_the_gguf_library_passes(tmp_path: Path) -> None:
    """The reference writer's output is accepted: arrays of text, of numbers, several tensors, its alignment."""
    gguf_library = pytest.importorskip("gguf")
    numpy = pytest.importorskip("numpy")
    writer = gguf_library.GGUFWriter(tmp_path / "m.gguf", "llama")
    writer.add_block_count(2)
    writer.add_token_list(["<s>", "a", "b" * 300])
    writer.add_token_scores([0.0, 1.0, 2.0])
    writer.add_custom_alignment(64)
    writer.add_tensor("one", numpy.ones((4, 8), dtype=numpy.float32))
    writer.add_tensor("two", numpy.ones(5, dtype=numpy.float16))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    check(tmp_path, "model.gguf", (tmp_path / "m.gguf").read_bytes())


GGUF_HEAD = struct.pack("<4sI", b"GGUF", 3)
BAD_GGUF = {
    "empty": b"",
    "another magic": b"FUGG" + gguf()[4:],
    "version 1": struct.pack("<4sI", b"GGUF", 1) + gguf()[8:],
    "version of the other byte order": struct.pack(">4sI", b"GGUF", 3) + gguf()[8:],
    "cut in its header": gguf()[:40],
    "cut before its tensor": gguf(4096)[:128],
    "countless tensors": GGUF_HEAD + struct.pack("<QQ", 2**60, 0) + bytes(100),
    "countless keys": GGUF_HEAD + struct.pack("<QQ", 0, 2**60) + bytes(100),
    "endless key": GGUF_HEAD + struct.pack("<QQQ", 0, 1, 2**63) + bytes(100),
    "endless text": GGUF_HEAD + struct.pack("<QQQ1sIQ", 0, 1, 1, b"k", 8, 2**40) + bytes(100),
    "endless array": GGUF_HEAD + struct.pack("<QQQ1sIIQ", 0, 1, 1, b"k", 9, 4, 2**61) + bytes(100),
    "array beyond the end": GGUF_HEAD + struct.pack("<QQQ1sIIQ", 0, 1, 1, b"k", 9, 4, 2**20) + bytes(100),
    "arrays in arrays": GGUF_HEAD + struct.pack("<QQQ1sI", 0, 1, 1, b"k", 9) + struct.pack("<IQ", 9, 1) * 50,
    "arrays of nothing": GGUF_HEAD
    + struct.pack("<QQQ1sI", 0, 1, 1, b"k", 9)
    + struct.pack("<IQ", 9, 2**23)
    + struct.pack("<IQ", 0, 0) * (2**21 + 10),
    "unknown type": GGUF_HEAD + struct.pack("<QQQ1sI", 0, 1, 1, b"k", 99) + bytes(100),
    "no alignment": GGUF_HEAD + struct.pack("<QQQ17sII", 0, 1, 17, b"general.alignment", 4, 0) + bytes(100),
    "many dimensions": GGUF_HEAD + struct.pack("<QQQ1sI", 1, 0, 1, b"t", 2**31) + bytes(100),
    "tensor beyond the end": GGUF_HEAD + struct.pack("<QQQ1sIQIQ", 1, 0, 1, b"t", 1, 1, 0, 2**40) + bytes(100),
}
BAD_SAFETENSORS = {
    "empty": b"",
    "short": b"1234567",
    "endless header": struct.pack("<Q", 2**63) + b"{}",
    "header beyond the end": struct.pack("<Q", 100) + b"{}",
    "header above the limit": struct.pack("<Q", 100_000_001) + bytes(100),
    "not JSON": wrap(b"{,}"),
    "not UTF-8": wrap(b'{"\xff": 1}'),
    "not an object": wrap([]),
    "deep": wrap(b"[" * 100_000),
    "a name twice": wrap(b'{"a":{"dtype":"U8","shape":[0],"data_offsets":[0,0]},"a":{}}'),
    "unknown dtype": wrap({"a": tensor(0, 1, dtype="X8")}, b"1"),
    "overlap": wrap({"a": tensor(0, 3), "b": tensor(2, 5)}, b"12345"),
    "hole": wrap({"a": tensor(0, 2), "b": tensor(3, 5)}, b"12345"),
    "beyond the end": wrap({"a": tensor(0, 6)}, b"12345"),
    "bytes of nobody": wrap({"a": tensor(0, 4)}, b"12345"),
    "backwards": wrap({"a": tensor(3, 1)}, b"12345"),
    "shape that does not fit": wrap({"a": tensor(0, 5, shape=[2, 2])}, b"12345"),
    "negative shape": wrap({"a": tensor(0, 5, shape=[-1, -5])}, b"12345"),
    "shape that overflows": wrap({"a": tensor(0, 5, shape=[2**40, 2**40])}, b"12345"),
    "shape of truths": wrap({"a": tensor(0, 1, shape=[True])}, b"1"),
    "no shape": wrap({"a": {"dtype": "U8", "data_offsets": [0, 5]}}, b"12345"),
}


@pytest.mark.parametrize("case", BAD_GGUF)
def test_an_unsound_gguf_header_is_refused(tmp_path: Path, case: str) -> None:
    """Each way in which a header can lie is one clear error, within bounds."""
    with pytest.raises(Incompatible, match=r"model\.gguf"):
        check(tmp_path, "model.gguf", BAD_GGUF[case])


@pytest.mark.parametrize("case", BAD_SAFETENSORS)
def test_an_unsound_safetensors_header_is_refused(tmp_path: Path, case: str) -> None:
    """Each way in which a header can lie is one clear error, within bounds."""
    with pytest.raises(Incompatible, match=r"model\.safetensors"):
        check(tmp_path, "model.safetensors", BAD_SAFETENSORS[case])


@pytest.mark.parametrize("start", [b"\x80\x02", b"\x80\x04\x95", b"\x80\x05", b"PK\x03\x04", b"\x7fELF"])
def test_a_pickle_or_program_under_another_name_is_refused(tmp_path: Path, start: bytes) -> None:
    """What a file begins with counts, not what it is called."""
    with pytest.raises(Incompatible):
        check(tmp_path, "tokenizer.json", start + bytes(100))


@pytest.mark.parametrize("name", ["pytorch_model.bin", "a/model.PT", "x.pkl", "modeling.py", "lib.so", "weights.npz"])
def test_names_of_pickles_and_code_are_refused(name: str) -> None:
    """Before anything is fetched."""
    with pytest.raises(Incompatible, match=r"refused"):
        formats.check_names(make_model({name: b"", "z.gguf": gguf()}))


def test_a_model_has_weights_in_its_format() -> None:
    """A manifest that claims a format and lists no file of it."""
    with pytest.raises(Incompatible, match="safetensors"):
        formats.check_names(make_model({"model.gguf": gguf()}, form="safetensors"))
    formats.check_names(make_model({"model.gguf": gguf()}))


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_no_header_makes_the_check_fail_otherwise(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    """Random damage to sound files: accepted or `Incompatible`, never another exception."""
    name = data.draw(st.sampled_from(["model.gguf", "model.safetensors"]))
    sound = bytearray(gguf(512) if name == "model.gguf" else safetensors(200))
    for _ in range(data.draw(st.integers(1, 8))):
        sound[data.draw(st.integers(0, min(len(sound), 200) - 1))] = data.draw(st.integers(0, 255))
    cut = data.draw(st.integers(0, len(sound)))
    try:
        check(tmp_path_factory.getbasetemp() / "damaged", name, bytes(sound[:cut]))
    except Incompatible:
        return
