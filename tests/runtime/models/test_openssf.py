"""OpenSSF model signatures: the maker's word, beside that of the network. Verified offline, by the library itself."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pytest
from pydantic import ValidationError

from runtime.interfaces import Model
from schemas.digests import digest_text
from schemas.errors import Incompatible, SignatureRefused
from schemas.manifest import ManifestDocument, ModelSignature
from tests.support.models import content, gguf, lay_out, make_model

if TYPE_CHECKING:
    from pathlib import Path

    from tests.runtime.models.conftest import Shop

pytest.importorskip("model_signing", reason="the extra `openssf` is not installed")

FILES = {"config.json": b"{}", "model.gguf": gguf(5000, seed=1), "sub/notes.txt": b"one"}


@dataclass(frozen=True)
class Maker:
    """Somebody who signs models."""

    private: Path
    public: str

    def sign(self, folder: Path) -> None:
        """Leave a signature in a folder."""
        from model_signing import hashing, signing

        signature = folder / "model.sig"
        rules = hashing.Config().set_ignored_paths(paths=[signature])  # type: ignore[no-untyped-call,unused-ignore]
        config = signing.Config().use_elliptic_key_signer(private_key=self.private)  # type: ignore[no-untyped-call,unused-ignore]
        config.set_hashing_config(rules).sign(folder, signature)


def make_maker(folder: Path, name: str) -> Maker:
    """A new key."""
    from cryptography.hazmat.primitives import serialization as form
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    private = folder / f"{name}.pem"
    private.write_bytes(key.private_bytes(form.Encoding.PEM, form.PrivateFormat.PKCS8, form.NoEncryption()))
    public = key.public_key().public_bytes(form.Encoding.PEM, form.PublicFormat.SubjectPublicKeyInfo)
    return Maker(private, public.decode())


@pytest.fixture
def maker(tmp_path: Path) -> Maker:
    """Who makes the models here."""
    return make_maker(tmp_path, "maker")


def demanding(files: dict[str, bytes], **signature: Any) -> Model:
    """A model whose manifest asks for a signature."""
    plain = make_model(files)
    spec = plain.manifest.spec.model_copy(update={"signature": ModelSignature(file="model.sig", **signature)})
    manifest = ManifestDocument.model_validate_json(plain.manifest.model_copy(update={"spec": spec}).to_json())
    return Model(digest_text(manifest.to_json()), manifest, plain.pieces)


def signed(folder: Path, maker: Maker, files: dict[str, bytes] = FILES) -> dict[str, bytes]:
    """The files of a model with their maker's signature beside them."""
    lay_out(folder, files)
    maker.sign(folder)
    return content(folder)


def test_a_model_with_its_makers_signature_is_installed(shop: Shop, tmp_path: Path, maker: Maker) -> None:
    """Signed by the key that the manifest names, over all files."""
    files = signed(tmp_path / "source", maker)
    model = demanding(files, public_key=maker.public)
    shop.acquire(model, [f"file://{tmp_path}/source"])
    assert content(shop.store.folder(model.digest)) == files


def test_a_signature_of_somebody_else_is_refused(shop: Shop, tmp_path: Path, maker: Maker) -> None:
    """Right bytes and a wrong signer: nothing is published, and what arrived is kept."""
    files = signed(tmp_path / "source", make_maker(tmp_path, "other"))
    model = demanding(files, public_key=maker.public)
    with pytest.raises(SignatureRefused, match=r"model\.sig"):
        shop.acquire(model, [f"file://{tmp_path}/source"])
    with pytest.raises(KeyError):
        shop.store.folder(model.digest)
    assert shop.store.missing(model) == 0


@pytest.mark.parametrize("change", ["added", "changed", "removed", "garbage"])
def test_a_signature_over_other_files_is_refused(shop: Shop, tmp_path: Path, maker: Maker, change: str) -> None:
    """The network approved a file that the maker did not sign, or left one out: the maker's word is not given."""
    files = signed(tmp_path / "source", maker)
    files |= {"added": {"more.txt": b"unsigned"}, "changed": {"config.json": b"[]"}}.get(change, {})
    files |= {"garbage": {"model.sig": b"not a signature"}}.get(change, {})
    if change == "removed":
        del files["config.json"]
    model = demanding(files, public_key=maker.public)
    with pytest.raises(SignatureRefused):
        shop.acquire(model, [lay_out(tmp_path / "published", files)])


def test_a_certificate_of_strangers_is_refused(shop: Shop, tmp_path: Path, maker: Maker) -> None:
    """A signature by a bare key does not satisfy a manifest that asks for an authority's certificate."""
    files = signed(tmp_path / "source", maker)
    authority = "-----BEGIN CERTIFICATE-----\nTWFkZSB1cA==\n-----END CERTIFICATE-----\n"
    with pytest.raises(SignatureRefused):
        shop.acquire(demanding(files, certificates=authority), [f"file://{tmp_path}/source"])


def test_without_the_library_nothing_signed_is_installed(
    shop: Shop, tmp_path: Path, maker: Maker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An agent that cannot verify refuses; it does not look away."""
    files = signed(tmp_path / "source", maker)
    monkeypatch.setitem(sys.modules, "model_signing", None)
    with pytest.raises(Incompatible, match="not installed"):
        shop.acquire(demanding(files, public_key=maker.public), [f"file://{tmp_path}/source"])


@pytest.mark.parametrize("fields", [{}, {"public_key": "x" * 10}, {"public_key": "", "certificates": ""}])
def test_a_demand_names_exactly_one_authority(fields: dict[str, str]) -> None:
    """Neither none nor two, and only PEM."""
    with pytest.raises(ValidationError):
        ModelSignature(file="model.sig", **fields)
