"""OpenSSF model signatures: who made a model, said by whoever made it. The one place that imports `model-signing`.

The manifest names the signature, which is one of the model's own files, and the key or the certificate authorities
that it has to be of. Everything happens offline. The library hashes the model with SHA-256 by itself: nothing that
somebody else said of the files is believed.
"""

from __future__ import annotations

from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from schemas.errors import Incompatible, SignatureRefused

if TYPE_CHECKING:
    from collections.abc import Iterator

    from schemas.manifest import ManifestDocument, ModelSignature

_HINT = "install the agent with its extra `openssf`"


def check_signature(manifest: ManifestDocument, base: Path) -> None:
    """Verify the signature that a manifest asks for. Fine if it asks for none.

    Args:
        manifest: the model's manifest.
        base: the folder of its files; it holds the manifest's files and nothing else.

    Raises:
        SignatureRefused: it is not one of these files by that key.
        Incompatible: this agent cannot verify signatures.
    """
    wanted = manifest.spec.signature
    if wanted is None:
        return
    metadata = manifest.metadata
    name = f"{metadata.name}:{metadata.version}"
    try:
        from model_signing import hashing, verifying  # noqa: PLC0415 - 1.4 s, for models that are signed
    except ImportError as error:
        raise Incompatible(f"{name} must be signed, and model-signing is not installed", hint=_HINT) from error
    signature = base / wanted.file
    # Nothing but the signature itself may be unsigned.
    rules = hashing.Config().set_ignored_paths(paths=[signature], ignore_git_paths=False)
    with _keys(wanted) as (key, chain):
        try:
            config = verifying.Config().set_hashing_config(rules)
            if key is not None:
                config = config.use_elliptic_key_verifier(public_key=key)
            else:
                config = config.use_certificate_verifier(certificate_chain=[chain])
            config.verify(base, signature)
        # The library has no error of its own: what it cannot read and what does not fit is all the same refusal.
        except Exception as error:
            text = " ".join(str(error).split())[:500] or type(error).__name__
            raise SignatureRefused(
                f"the signature {wanted.file} of {name} is not what its manifest asks for: {text}"
            ) from error


@contextmanager
def _keys(wanted: ModelSignature) -> Iterator[tuple[Path | None, Path]]:
    """The key and the authorities as files, as the library wants them."""
    with TemporaryDirectory(prefix="reconcile-key-") as folder:
        key, chain = Path(folder) / "key.pem", Path(folder) / "chain.pem"
        key.write_text(wanted.public_key or "", encoding="ascii")
        chain.write_text(wanted.certificates or "", encoding="ascii")
        yield (key if wanted.public_key is not None else None), chain
