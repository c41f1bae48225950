"""Docker's API, as Docker and Podman's compatible service speak it. The only importer of the SDK."""

from __future__ import annotations

import threading
from contextlib import closing, contextmanager, suppress
from typing import TYPE_CHECKING, Any, Final

import docker
import docker.errors
import requests.exceptions

from runtime.backends.container_answers import label_filters
from schemas.errors import BackendUnavailable, ImageUnavailable, StartFailed

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from schemas.target import BackendName

API_SECONDS: Final = 30
"""Bound of one call to the engine's API. A list takes milliseconds; stopping has its own bound on top."""

FOLLOW_FIRST_SECONDS: Final = 0.5
FOLLOW_LAST_SECONDS: Final = 60.0
"""First and longest wait before an engine's events are asked for again."""

_EVENTS: Final = ("die", "destroy", "oom", "pause", "unpause", "rename", "update", "health_status", "died", "remove")
"""What happens to a container by itself or by somebody else's hand. Its start is always ours. The last two are Podman's
words: its filter knows no others, although it answers in Docker's."""


class DockerApi:
    """One engine, asked over its socket.

    The SDK's client is not safe to share between threads: each thread has its own.
    """

    def __init__(self, name: BackendName, socket: str) -> None:
        """Describe it; nothing is connected yet.

        Args:
            name: of the engine, as messages call it.
            socket: path of its unix socket.
        """
        self.name: BackendName = name
        self._socket = socket
        self._local = threading.local()

    @property
    def client(self) -> Any:
        """This thread's own `docker.APIClient`."""
        if not hasattr(self._local, "client"):
            self._local.client = docker.DockerClient(
                base_url=f"unix://{self._socket}", version="auto", timeout=API_SECONDS
            )
        return self._local.client.api

    def forget(self) -> None:
        """Drop this thread's connection: the next call makes another."""
        self._local.__dict__.pop("client", None)

    @contextmanager
    def translated(self, timeout: float = 0, **swap: type[ImageUnavailable]) -> Iterator[Any]:
        """Errors of the SDK as ours; a longer time bound where asked.

        Args:
            timeout: seconds of one call within; the usual ones for 0.
            swap: `StartFailed`: what a refusal is instead.

        Yields:
            `client`.

        Raises:
            ImageUnavailable: the engine does not have the image.
            StartFailed: the engine refuses.
            BackendUnavailable: the engine does not answer, or fails.
        """
        api = None
        try:
            api = self.client
            if timeout:
                api.timeout = timeout
            yield api
        except docker.errors.ImageNotFound as error:
            raise ImageUnavailable(f"the image is not here: {error.explanation}") from error
        except docker.errors.APIError as error:
            if error.response is not None and error.response.status_code >= 500 and not error.explanation:  # noqa: PLR2004
                raise BackendUnavailable(f"{self.name} failed: {error}") from error
            wanted = swap.get("StartFailed", StartFailed)
            raise wanted(f"{self.name} refused: {error.explanation or error}") from error
        except (docker.errors.DockerException, requests.exceptions.RequestException, OSError) as error:
            # A connection that broke may be half-used: the next call makes another.
            self.forget()
            raise BackendUnavailable(f"{self.name} does not answer on {self._socket}: {_short(error)}") from error
        finally:
            if api is not None and timeout:
                api.timeout = API_SECONDS

    # --- calls that the SDK has not, or answers with an error: to be made within `translated` ---------------------

    def container(self, reference: str) -> dict[str, Any] | None:
        """What the engine knows of a container, by its name or id; None where there is none."""
        with suppress(docker.errors.NotFound):
            found: dict[str, Any] = self.client.inspect_container(reference)
            return found
        return None

    def image(self, reference: str) -> dict[str, Any] | None:
        """What the engine knows of an image; None where it has none."""
        with suppress(docker.errors.ImageNotFound):
            found: dict[str, Any] = self.client.inspect_image(reference)
            return found
        return None

    def update(self, container: str, limits: Mapping[str, Any]) -> None:
        """Set limits of a container. The SDK's own call knows neither pids nor exact processors."""
        url = self.client._url("/containers/{0}/update", container)  # noqa: SLF001 - see above
        self.client._raise_for_status(self.client._post_json(url, data=limits))  # noqa: SLF001

    def unpause(self, container: str) -> None:
        """Let a container go on; fine if it is not paused."""
        with suppress(docker.errors.APIError):
            self.client.unpause(container)

    def remove(self, container: str) -> None:
        """Remove a container with its anonymous volumes; fine if it is gone."""
        with suppress(docker.errors.NotFound):
            self.client.remove_container(container, v=True, force=True)


class ContainerEvents:
    """A `runtime.interfaces.Follower` over an engine's event stream, for this node's containers only."""

    def __init__(self, *, socket: str, network: str, node_id: str) -> None:
        """Describe it; nothing is connected yet.

        Args:
            socket: path of the engine's unix socket.
            network: the network of this node.
            node_id: this node.
        """
        self._socket = socket
        self._filters = {
            "type": ["container"],
            "event": list(_EVENTS),
            "label": label_filters(network, node_id),
        }
        self._closed = threading.Event()
        self._stream: Any = None

    def follow(self, changed: Callable[[], None]) -> None:
        """Tell of each event; connects again when the engine was restarted, and tells of that as well."""
        failures = 0
        while not self._closed.is_set():
            try:
                client = docker.APIClient(base_url=f"unix://{self._socket}", version="auto", timeout=API_SECONDS)
                with closing(client):
                    self._stream = client.events(filters=self._filters, decode=True)
                    # What happened before is over; a pass that was under way meanwhile may have missed it.
                    changed()
                    failures = 0
                    for _ in self._stream:
                        changed()
            except (docker.errors.DockerException, requests.exceptions.RequestException, OSError, ValueError):
                # Passes say what is wrong with the engine; here it is only worth another try.
                failures += 1
            self._closed.wait(min(FOLLOW_FIRST_SECONDS * 2 ** min(failures, 8), FOLLOW_LAST_SECONDS))

    def renew(self) -> None:
        """The filter knows new containers by itself."""

    def close(self) -> None:
        """End the stream."""
        self._closed.set()
        if self._stream is not None:
            with suppress(OSError, AttributeError, docker.errors.DockerException):
                self._stream.close()


def _short(error: BaseException) -> str:
    return " ".join(str(error).split())[:300]
