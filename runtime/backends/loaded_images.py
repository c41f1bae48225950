"""Images that came by file: how a reference by digest is found in an engine that was never told that digest.

An engine learns the digest of a manifest by pulling it. From a file it learns only the image's id, the digest of its
configuration (Docker 20.10, Podman 4.3), or, where containerd keeps the images, of its manifest. The manifest is kept
here: its own digest is the reference's, and it names the configuration, so that the id proves what the reference asks.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from runtime.oci import MANIFEST_LIMIT, resolve
from schemas.errors import ImageUnavailable

if TYPE_CHECKING:
    from pathlib import Path

    from runtime.oci import Image
    from schemas.ports import Files


class LoadedImages:
    """Manifests of images that were loaded, one file each, by digest."""

    def __init__(self, folder: Path, platform: str, files: Files) -> None:
        """Name the folder; nothing is touched yet.

        Args:
            folder: `<state>/images`.
            platform: of this machine, `linux/amd64`.
            files: durable writes.
        """
        self._folder = folder
        self._platform = platform
        self._files = files

    def keep(self, image: Image) -> None:
        """Keep what leads from an image's reference to its id."""
        self._files.make_folder(self._folder, mode=0o700)
        for digest, content in image.documents.items():
            path = self._path(digest)
            if not path.exists() or path.read_bytes() != content:
                self._files.write(path, content)

    def ids(self, ref: str) -> tuple[str, ...]:
        """The ids that engines give to the image that a reference names; empty if it never came by file."""
        try:
            image = resolve(ref, self._platform, self._read)
        except (ImageUnavailable, OSError):
            return ()
        return (image.config.digest, image.manifest, ref.rpartition("@")[2])

    def _read(self, digest: str) -> bytes:
        with self._path(digest).open("rb") as file:
            return file.read(MANIFEST_LIMIT)

    def _path(self, digest: str) -> Path:
        return self._folder / f"{digest.partition(':')[2]}.json"
