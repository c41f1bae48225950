"""Images of a container engine: found by their digest, pulled by it, or loaded from a file."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from schemas.errors import BackendUnavailable, ImageUnavailable
from schemas.observation import Absent, Present, Unknown

if TYPE_CHECKING:
    from collections.abc import Iterator

    from runtime.backends.docker_api import DockerApi
    from runtime.backends.loaded_images import LoadedImages
    from runtime.interfaces import Progress
    from schemas.observation import Observation
    from schemas.ports import Stop

LOAD_SECONDS: Final = 3600
"""Bound of loading images from a file, where an engine says nothing before it has unpacked them all."""


class ContainerImages:
    """Of one engine."""

    def __init__(self, api: DockerApi, loaded: LoadedImages | None) -> None:
        """Describe them; nothing is asked yet.

        Args:
            api: the engine.
            loaded: what is known of images that came by file.
        """
        self._api = api
        self._loaded = loaded

    def image(self, ref: str) -> Observation[str]:
        """The id of an image that is here under exactly this digest."""
        try:
            with self._api.translated():
                return Present(str(self.found(ref)["Id"]))
        except ImageUnavailable:
            return Absent()
        except BackendUnavailable as error:
            return Unknown(error.message)

    def pull(self, ref: str, *, progress: Progress, stop: Stop) -> None:
        """Pull by digest; the engine checks every layer against it."""
        if isinstance(self.image(ref), Present):
            return
        repository, _, digest = ref.partition("@")
        layers: dict[str, tuple[int, int]] = {}
        with self._api.translated(StartFailed=ImageUnavailable):
            for message in self._api.client.pull(repository, tag=digest, stream=True, decode=True):
                if stop.is_set():
                    raise BackendUnavailable("stopped while pulling")
                if "error" in message:
                    raise ImageUnavailable(f"{ref} cannot be pulled: {message['error']}")
                detail = message.get("progressDetail") or {}
                if detail.get("total"):
                    layers[str(message.get("id"))] = (int(detail.get("current") or 0), int(detail["total"]))
                    progress(
                        repository, sum(done for done, _ in layers.values()), sum(all_ for _, all_ in layers.values())
                    )
        if not isinstance(self.image(ref), Present):
            raise ImageUnavailable(f"{ref} was pulled, and is still not here under its digest")

    def load(self, archive: Iterator[bytes]) -> None:
        """Load images from an archive that is made while it is sent.

        Args:
            archive: see `runtime.oci.load_archive`; what it raises ends the transfer, and nothing is loaded.

        Raises:
            ImageUnavailable: the engine refuses it.
            BackendUnavailable: the engine does not answer.
        """
        with self._api.translated(timeout=LOAD_SECONDS, StartFailed=ImageUnavailable) as api:
            for message in api.load_image(archive):
                if "error" in message:
                    raise ImageUnavailable(f"{self._api.name} cannot load the images: {message['error']}")

    def found(self, ref: str) -> dict[str, Any]:
        """What the engine knows of an image, by its digest or by an id that the digest leads to.

        Raises:
            ImageUnavailable: it is not here.
        """
        found = self._api.image(ref)
        if found is not None:
            return found
        for known in self._loaded.ids(ref) if self._loaded is not None else ():
            found = self._api.image(known)
            if found is not None and found["Id"] == known:
                return found
        raise ImageUnavailable(f"the image is not here: {ref}")
