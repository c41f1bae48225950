"""Container images as what they are made of: manifests, a configuration and layers, each named by its SHA-256.

From a reference by digest every byte of an image is bound: the digest names a manifest (or an index of manifests, one
for each platform), the manifest names the configuration and the layers, and the configuration names the layers once
more, unpacked. That is how an image may come from anywhere (OCI image specification 1.1; Docker's image manifest v2).
"""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from pydantic_core import from_json

from runtime.archive import END, header, padding
from schemas.errors import ImageUnavailable

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

MANIFEST_LIMIT: Final = 2**22
"""Bytes of a manifest or an index: what registries accept at most (distribution specification)."""
MAX_LAYERS: Final = 512
"""Layers of an image: Docker mounts 127, and some are empty."""
MAX_PLATFORMS: Final = 256

MANIFESTS: Final = (
    "application/vnd.oci.image.manifest.v1+json",
    "application/vnd.docker.distribution.manifest.v2+json",
)
INDEXES: Final = (
    "application/vnd.oci.image.index.v1+json",
    "application/vnd.docker.distribution.manifest.list.v2+json",
)
_DIGEST: Final = re.compile(r"sha256:[0-9a-f]{64}")
_MAX_SIZE: Final = 2**53 - 1


@dataclass(frozen=True, slots=True)
class Part:
    """A blob of an image."""

    digest: str
    size: int
    media_type: str = ""


@dataclass(frozen=True, slots=True)
class Image:
    """An image for one platform, resolved from its reference."""

    ref: str
    """`name@sha256:...`, as the snapshot has it."""
    documents: Mapping[str, bytes]
    """By digest: the manifest, and the index that leads to it where there is one."""
    manifest: str
    """Digest of the manifest."""
    media_type: str
    """Of what the reference names."""
    config: Part
    layers: tuple[Part, ...]

    @property
    def parts(self) -> tuple[Part, ...]:
        """Configuration and layers, each once."""
        return tuple({part.digest: part for part in (self.config, *self.layers)}.values())

    @property
    def tag(self) -> str:
        """A name under which engines that forget digests keep the image: it is pruned neither, nor mistaken."""
        name, _, digest = self.ref.partition("@")
        return f"{name}:{digest.replace(':', '-')}"


def sha256(content: bytes) -> str:
    """The digest of bytes, as images write it."""
    return f"sha256:{hashlib.sha256(content).hexdigest()}"


def resolve(ref: str, platform: str, read: Callable[[str], bytes]) -> Image:
    """What an image is made of.

    Args:
        ref: `name@sha256:...`.
        platform: `linux/amd64`: which image of an index is meant.
        read: the bytes of a manifest or index, by digest; they are checked here.

    Raises:
        ImageUnavailable: other bytes than the reference's, not an image, or none for the platform.
    """
    digest = ref.rpartition("@")[2]
    documents: dict[str, bytes] = {}
    tree = _document(ref, digest, read, documents)
    media_type = str(tree.get("mediaType") or (INDEXES[0] if "manifests" in tree else MANIFESTS[0]))
    if media_type in INDEXES:
        digest = _of_platform(ref, tree, platform)
        tree = _document(ref, digest, read, documents)
    if "manifests" in tree or tree.get("mediaType", MANIFESTS[0]) not in MANIFESTS:
        raise ImageUnavailable(f"{ref}: {digest} is not the manifest of an image")
    layers = tree.get("layers")
    if not isinstance(layers, list) or len(layers) > MAX_LAYERS:
        raise ImageUnavailable(f"{ref}: its manifest lists no layers, or more than {MAX_LAYERS}")
    parts = tuple(_part(ref, layer) for layer in layers)
    return Image(ref, documents, digest, media_type, _part(ref, tree.get("config")), parts)


def _document(ref: str, digest: str, read: Callable[[str], bytes], documents: dict[str, bytes]) -> dict[str, Any]:
    content = read(digest)
    if sha256(content) != digest:
        raise ImageUnavailable(f"{ref}: the bytes of {digest} are others")
    try:
        # Bounds its depth by itself: the standard library's parser can be made to overflow the stack.
        tree = from_json(content)
    except ValueError as error:
        raise ImageUnavailable(f"{ref}: {digest} is not JSON") from error
    if not isinstance(tree, dict) or tree.get("schemaVersion") != 2:  # noqa: PLR2004 - the only version since 2015
        raise ImageUnavailable(f"{ref}: {digest} is not a manifest of version 2")
    documents[digest] = content
    return tree


def _of_platform(ref: str, tree: dict[str, Any], platform: str) -> str:
    listed = tree.get("manifests")
    for entry in listed[:MAX_PLATFORMS] if isinstance(listed, list) else ():
        found = entry.get("platform") if isinstance(entry, dict) else None
        if isinstance(found, dict) and f"{found.get('os')}/{found.get('architecture')}" == platform:
            return _part(ref, entry).digest
    raise ImageUnavailable(f"{ref}: has no image for {platform}")


def _part(ref: str, entry: Any) -> Part:
    match entry:
        case {"digest": str(digest), "size": int(size)} if _DIGEST.fullmatch(digest) and 0 <= size <= _MAX_SIZE:
            return Part(digest, size, str(entry.get("mediaType", "")))
    raise ImageUnavailable(f"{ref}: its manifest names something without digest or size")


# --- for an engine's `load` ---------------------------------------------------------------------------------------


def load_archive(images: Sequence[Image], blobs: Iterable[tuple[Part, Iterator[bytes]]]) -> Iterator[bytes]:
    """What `docker load` takes, made on the way: every blob once, in whatever order they come.

    The list of images comes last: an archive that ends early because a blob was not what it must be loads nothing.

    Args:
        images: the images.
        blobs: their configurations and layers, with their bytes; the iterator raises for wrong ones.
    """
    for part, windows in blobs:
        yield header(_blob(part.digest), part.size)
        yield from windows
        yield bytes(padding(part.size))
    listed = [
        {
            "Config": _blob(image.config.digest),
            "RepoTags": [image.tag],
            "Layers": [_blob(layer.digest) for layer in image.layers],
        }
        for image in images
    ]
    content = json.dumps(listed).encode()
    yield header("manifest.json", len(content)) + content + bytes(padding(len(content))) + END


def _blob(digest: str) -> str:
    return f"blobs/{digest.replace(':', '/')}"


# --- a layout -----------------------------------------------------------------------------------------------------

LAYOUT: Final = b'{"imageLayoutVersion":"1.0.0"}\n'
"""The file `oci-layout` of an image layout."""


def layout_index(images: Sequence[Image]) -> bytes:
    """The file `index.json` of an image layout: the images by their references' digests, each under its tag."""
    entries = []
    for image in images:
        digest = image.ref.rpartition("@")[2]
        entries.append(
            {
                "mediaType": image.media_type,
                "digest": digest,
                "size": len(image.documents[digest]),
                "annotations": {"org.opencontainers.image.ref.name": image.tag},
            }
        )
    return json.dumps({"schemaVersion": 2, "mediaType": INDEXES[0], "manifests": entries}).encode() + b"\n"
