"""Containers, through Docker's API: Docker itself, and Podman's compatible service. The only importer of the SDK.

Every container gets the restrictions of I10. It is found again by its name and labels together, because an image can
carry labels of its own; whose it is, the journal says.
"""

from __future__ import annotations

import os
import threading
from collections import deque
from contextlib import closing, contextmanager, nullcontext, suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import docker
import docker.errors
import docker.types
import requests.exceptions

from runtime.backends import socket_folder
from runtime.backends.container_answers import LABEL, PAUSED, Marks, gpus, label_filters
from runtime.backends.container_drift import differences, limits, settings
from runtime.backends.container_limits import MODEL_PATH, RUN_AS, SOCKET_FOLDER, host_config
from runtime.backends.container_made import Made, Record
from runtime.backends.containment import containment, read_own_container
from runtime.backends.gpu_keeping import kept
from runtime.backends.monitor_log import MonitorLog
from runtime.backends.stamped_lines import Place
from runtime.gpu_locks import claim
from runtime.interfaces import EngineView
from schemas.errors import BackendUnavailable, ImageUnavailable, StartFailed
from schemas.observation import Absent, Instance, Present, Unknown

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from runtime.backends.containment import Containment
    from runtime.backends.loaded_images import LoadedImages
    from runtime.gpu_locks import GpuLocks
    from runtime.interfaces import InstanceSpec, Progress
    from schemas.observation import Observation
    from schemas.ports import Ports, Stop
    from schemas.runtimes import Mode, Unenforced
    from schemas.target import BackendName

API_SECONDS: Final = 30
"""Bound of one call to the engine's API. A list takes milliseconds; stopping has its own bound on top."""

LOOK_SECONDS: Final = 0.5
"""Between two questions for what a container has printed since; one costs some milliseconds."""

LOAD_SECONDS: Final = 3600
"""Bound of loading images from a file, where an engine says nothing before it has unpacked them all."""

OUTPUT_LIMIT: Final = 2**20
FOLLOW_FIRST_SECONDS: Final = 0.5
FOLLOW_LAST_SECONDS: Final = 60.0
"""First and longest wait before an engine's events are asked for again."""

_EVENTS: Final = ("die", "destroy", "oom", "pause", "unpause", "rename", "update", "health_status", "died", "remove")
"""What happens to a container by itself or by somebody else's hand. Its start is always ours. The last two are Podman's
words: its filter knows no others, although it answers in Docker's."""


class ContainerEngine:
    """A backend that runs instances as containers of one engine.

    The SDK's client is not safe to share between threads: each thread has its own.
    """

    mode: Mode = "container"

    def __init__(
        self,
        name: BackendName,
        *,
        socket: str,
        network: str,
        node_id: str,
        ports: Ports,
        loaded: LoadedImages | None = None,
        run_folder: Path | None = None,
        locks: GpuLocks | None = None,
    ) -> None:
        """Describe the engine; nothing is connected yet.

        Args:
            name: `docker` or `podman`.
            socket: path of the engine's unix socket.
            network: the network of this node.
            node_id: this node. Containers of other nodes on the same engine are none of ours.
            ports: durable writes for captured output.
            loaded: what is known of images that came by file.
            run_folder: what instances' socket folders lie in; needed where the agent is a container itself.
            locks: of this machine's GPUs; without them no instance is given one.
        """
        self._locks = locks
        self.name: BackendName = name
        self._socket = socket
        self._marks = Marks(name, network=network, node_id=node_id)
        self._filters = label_filters(network, node_id)
        self._ports = ports
        self._loaded = loaded
        self._run_folder = run_folder
        self._around: tuple[Containment | None] | None = None
        self._local = threading.local()
        self._made = Made(run_folder, ports.files)
        self._ids: dict[str, str] = {}
        """By name: the id of a container with this node's marks, as it was last seen. Ids are never used again."""

    # --- looking --------------------------------------------------------------------------------------------------

    def list(self) -> tuple[Instance, ...]:
        """Every container with this node's marks: one call, and one more for each that has ended.

        An agent in a container that cannot judge what it would see is told so here, before anything is changed: to
        it a healthy engine would be one that somebody else answers for.
        """
        around = self.containment()
        if around is not None and (trouble := around.trouble(self._run_folder)) is not None:
            raise BackendUnavailable(trouble[0], hint=trouble[1])
        with self._translated():
            found = self._api.containers(all=True, filters={"label": self._filters})
            instances = [self._compared(self._listed(item)) for item in found]
        return tuple(sorted((item for item in instances if item is not None), key=lambda item: item.name))

    def inspect(self, name: str) -> Instance | None:
        """One container, None when there is none of that name with this node's marks."""
        with self._translated():
            detail = self._detail(name)
        return self._marks.instance(detail) if detail is not None else None

    def mend(self, name: str) -> None:
        """Have the engine set the limits again, which it does while the container runs."""
        made = self._made.read(name)
        with self._translated():
            detail = self._detail(name)
            if detail is None or made is None:
                return
            changed = {one.field for one in differences(made.settings, settings(detail))}
            if "name" in changed:
                self._api.rename(made.id, name)
            if changed - {"name"}:
                # The SDK's own update knows neither pids nor exact processors.
                url = self._api._url("/containers/{0}/update", made.id)  # noqa: SLF001 - see above
                self._api._raise_for_status(self._api._post_json(url, data=limits(made.settings)))  # noqa: SLF001

    def is_peer(self, name: str, pid: int) -> bool:
        """Whether a process lives in the container's control group."""
        known = self._ids.get(name)
        if known is not None and _lives_in(pid, known):
            # Its group is named after the container: whoever lives there needs no asking.
            return True
        with self._translated():
            detail = self._detail(name)
        if detail is None or not detail["State"].get("Running"):
            return False
        if pid == int(detail["State"].get("Pid") or 0):
            return True
        self._ids[name] = str(detail["Id"])
        return _lives_in(pid, self._ids[name])

    def output(self, name: str, *, limit: int) -> str:
        """The end of what the container printed."""
        try:
            with self._translated():
                tail = self._api.logs(self._at(name), stdout=True, stderr=True, tail=200)
        except (BackendUnavailable, StartFailed):
            return ""
        return bytes(tail)[-limit:].decode(errors="replace")

    def printed(self, name: str, *, lines: int, follow: bool, stop: Stop) -> Iterator[bytes]:
        """What the engine's own capped log has of it.

        Of Podman's monitor the file itself, where the agent can read it. Else asked again and again, by time: followed
        across a rotation of its log, Docker (28) repeats lines and Podman loses some.
        """
        with self._translated():
            detail = self._detail(name)
        if detail is None:
            return
        path = self._monitored(detail)
        if path is not None:
            yield from self._from_file(name, path, lines=lines, follow=follow, stop=stop)
            return
        place = Place()
        tail: int | str = lines  # the SDK takes a number in a string for "all"
        while True:
            asked = {"since": place.second} if place.second else {"tail": tail}
            text = b""
            with self._translated():
                detail = self._detail(name)
            if detail is None:
                return
            # Podman refuses to read a log that it is rotating: the next look finds what there is then.
            with suppress(StartFailed) if follow else nullcontext(), self._translated():
                text = bytes(self._api.logs(self._at(name), stdout=True, stderr=True, timestamps=True, **asked))
            last = not follow or not detail["State"].get("Running")
            yield from place.news(text, whole=last)
            tail = "all"
            if last or stop.wait(LOOK_SECONDS):
                return

    def _monitored(self, detail: dict[str, Any]) -> Path | None:
        """The log file of a container's monitor; None for an engine without one, or where it lies out of reach."""
        path = str(detail.get("LogPath") or "") if self.name == "podman" else ""
        return Path(path) if path and os.access(path, os.R_OK) else None

    def _from_file(self, name: str, path: Path, *, lines: int, follow: bool, stop: Stop) -> Iterator[bytes]:
        with MonitorLog(path) as log:
            known = deque(log.news(), maxlen=lines)
            yield from known
            runs = follow
            while runs and not stop.wait(LOOK_SECONDS):
                # Asked first: what it printed before it ended is in the file by then.
                seen = self.inspect(name)
                runs = seen is not None and seen.status == "running"
                yield from log.news()
            if lines:
                yield from log.last()

    def view(self, *, model_folder: Path, socket_folder: Path) -> EngineView:  # noqa: ARG002 - fixed inside
        """Paths inside the container."""
        return EngineView(MODEL_PATH, f"{SOCKET_FOLDER}/engine.sock")

    def not_enforced(self) -> tuple[Unenforced, ...]:
        """Only root can cap the socket folder; everything else the engine enforces."""
        return () if self._can_cap() else ("socket-size",)

    def containment(self) -> Containment | None:
        """The agent's own container, asked for once; None where it is none of this engine's.

        Raises:
            BackendUnavailable: the engine does not answer.
        """
        if self._around is None:
            own = read_own_container()
            detail = None
            with self._translated(), suppress(docker.errors.NotFound):
                detail = self._api.inspect_container(own) if own else None
            self._around = (containment(detail) if detail is not None else None,)
        return self._around[0]

    def _can_cap(self) -> bool:
        """Whether a mount of the agent's is one to the engine too."""
        if not socket_folder.can_cap():
            return False
        try:
            around = self.containment()
        except (BackendUnavailable, StartFailed):
            # Nothing can be started meanwhile, and whoever creates asks again.
            return True
        return around is None or (self._run_folder is not None and around.shares(self._run_folder))

    # --- images ---------------------------------------------------------------------------------------------------

    def image(self, ref: str) -> Observation[str]:
        """The id of an image that is here under exactly this digest."""
        try:
            with self._translated():
                return Present(str(self._found(ref)["Id"]))
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
        with self._translated(StartFailed=ImageUnavailable):
            for message in self._api.pull(repository, tag=digest, stream=True, decode=True):
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
        with self._translated(timeout=LOAD_SECONDS, StartFailed=ImageUnavailable) as api:
            for message in api.load_image(archive):
                if "error" in message:
                    raise ImageUnavailable(f"{self.name} cannot load the images: {message['error']}")

    def _found(self, ref: str) -> dict[str, Any]:
        """What the engine knows of an image, by its digest or by an id that the digest leads to."""
        try:
            found: dict[str, Any] = self._api.inspect_image(ref)
        except docker.errors.ImageNotFound:
            for known in self._loaded.ids(ref) if self._loaded is not None else ():
                with suppress(docker.errors.ImageNotFound):
                    found = self._api.inspect_image(known)
                    if found["Id"] == known:
                        return found
            raise
        return found

    # --- life -----------------------------------------------------------------------------------------------------

    def create(self, spec: InstanceSpec) -> None:
        """Create the container with every restriction; fine if it exists."""
        seen = self.inspect(spec.name)
        if seen is not None:
            if seen.spec_digest != spec.target.spec_digest:
                raise StartFailed(f"{spec.name} exists, and is something else")
            return
        for folder in (spec.model_folder, spec.socket_folder):
            if not folder.is_dir():
                # Docker refuses a missing source; Podman would create it.
                raise StartFailed(f"{folder} does not exist")
        self._release_forgotten(spec.socket_folder.parent)
        socket_folder.open_for_engine(spec.socket_folder, self._ports.processes, cap=self._can_cap())
        with self._translated():
            image = self._found(str(spec.target.image))
            config = self._api.create_container_config(
                # By its reference where the engine knows that, which is what people then see in its lists.
                image=spec.target.image if spec.target.image in (image.get("RepoDigests") or ()) else image["Id"],
                command=list(spec.launch.argv[1:] if spec.launch.program else spec.launch.argv),
                entrypoint=list(spec.launch.argv[:1]) if spec.launch.program else None,
                environment={**spec.launch.env, "NVIDIA_VISIBLE_DEVICES": ",".join(spec.gpus) or "void"},
                user=RUN_AS,
                labels=self._marks.labels(spec),
                stop_signal="SIGTERM",
                networking_config=None,
                host_config=self._api.create_host_config(**host_config(spec, image)),
            )
            self._api.create_container_from_config(config, name=spec.name)
            self._remember(spec.name)

    def start(self, name: str) -> None:
        """Start a created container, with a keeper for its GPUs."""
        with self._translated():
            before = self._detail(name)
        known = gpus((before or {}).get("Config", {}).get("Labels") or {})
        container = str((before or {}).get("Id", ""))
        with (
            claim(self._locks, known, name, container=container) as held,
            kept(container, held) if held else nullcontext(),
            self._translated(),
        ):
            self._api.start(self._at(name))
            if before is not None and not before["State"].get("Running"):
                # What an engine fills in when it starts a container is none of somebody else's changes.
                self._remember(name)

    def stop(self, name: str, *, grace: float) -> None:
        """SIGTERM, then SIGKILL after `grace` seconds."""
        seen = self.inspect(name)
        if seen is None or seen.status != "running":
            # Each question more is time in which nobody serves: a swap waits for this, and so does a restart.
            return
        with self._translated(timeout=grace + API_SECONDS) as api:
            if PAUSED in seen.detail:
                # A frozen process hears no signal, and Podman refuses to stop one.
                with suppress(docker.errors.APIError):
                    api.unpause(self._at(name))
            api.stop(self._at(name), timeout=max(int(grace), 1))

    def remove(self, name: str) -> None:
        """Keep the container's output in its log folder, then remove it with its anonymous volumes."""
        with self._translated():
            detail = self._detail(name)
            if detail is None:
                return
            self._keep_output(name, detail)
            with suppress(docker.errors.NotFound):
                self._api.remove_container(detail["Id"], v=True, force=True)
            self._ids.pop(name, None)
            self._made.forget(name)
            socket_folder.release(Path(detail["Config"]["Labels"][f"{LABEL}socket-folder"]), self._ports.processes)

    # --- inside ---------------------------------------------------------------------------------------------------

    @property
    def _api(self) -> Any:
        if not hasattr(self._local, "client"):
            self._local.client = docker.DockerClient(
                base_url=f"unix://{self._socket}", version="auto", timeout=API_SECONDS
            )
        return self._local.client.api

    @contextmanager
    def _translated(self, timeout: float = 0, **swap: type[ImageUnavailable]) -> Iterator[Any]:
        """Errors of the SDK as ours; a longer time bound where asked."""
        api = None
        try:
            api = self._api
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
            self._local.__dict__.pop("client", None)
            raise BackendUnavailable(f"{self.name} does not answer on {self._socket}: {_short(error)}") from error
        finally:
            if api is not None and timeout:
                api.timeout = API_SECONDS

    def _detail(self, name: str) -> dict[str, Any] | None:
        made = self._made.read(name)
        # By its id first: whatever it is called by now, it is the one that was made here.
        for asked in (made.id, name) if made is not None else (name,):
            try:
                detail: dict[str, Any] = self._api.inspect_container(asked)
            except docker.errors.NotFound:
                continue
            known = made is not None and detail["Id"] == made.id
            if known or self._marks.bear(detail["Name"], detail["Config"].get("Labels") or {}):
                return detail
        return None

    def _listed(self, item: dict[str, Any]) -> Instance | None:
        name = self._marks.name(item) or self._made.named(str(item.get("Id")))
        if name is None:
            return None
        instance = self._marks.listed(name, item)
        if instance is None:
            detail = self._detail(name)
            return self._marks.instance(detail) if detail is not None else None
        return instance

    def _at(self, name: str) -> str:
        """By what the engine is asked for a container: its id, which stays the same when somebody renames it."""
        detail = self._detail(name)
        return str(detail["Id"]) if detail is not None else name

    def _remember(self, name: str) -> None:
        """Keep what the engine says of a container now: whatever is different later, somebody else has changed."""
        detail = self._detail(name)
        if detail is not None:
            self._made.write(name, Record(str(detail["Id"]), settings(detail)))

    def _compared(self, instance: Instance | None) -> Instance | None:
        """One that runs, with what somebody else has changed of it."""
        made = self._made.read(instance.name) if instance is not None and instance.status == "running" else None
        if instance is None or made is None:
            return instance
        detail = self._detail(instance.name)
        return replace(instance, changed=differences(made.settings, settings(detail))) if detail is not None else None

    def _release_forgotten(self, run_folder: Path) -> None:
        """Release the socket folders of containers that somebody else removed."""
        for folder in run_folder.iterdir():
            if folder.is_mount() and self._detail(folder.name) is None:
                socket_folder.release(folder, self._ports.processes)

    def _keep_output(self, name: str, detail: dict[str, Any]) -> None:
        labels = detail["Config"].get("Labels") or {}
        folder, limit = labels.get(f"{LABEL}log-folder"), labels.get(f"{LABEL}log-limit", "")
        if not folder or not Path(folder).is_dir():
            return
        kept = bytearray()
        bound = min(int(limit) if limit.isdigit() else OUTPUT_LIMIT, 64 * OUTPUT_LIMIT)
        for part in self._all_output(name, detail):
            kept += part
            del kept[:-bound]
        self._ports.files.write(Path(folder) / "output.log", bytes(kept), mode=0o600)

    def _all_output(self, name: str, detail: dict[str, Any]) -> Iterator[bytes]:
        path = self._monitored(detail)
        if path is not None:
            with MonitorLog(path) as log:
                yield from log.news()
                yield from log.last()
            return
        yield from self._api.logs(self._at(name), stdout=True, stderr=True, stream=True, follow=False)


def _lives_in(pid: int, container: str) -> bool:
    """Whether a process is in the control group of a container, by its id."""
    try:
        with open(f"/proc/{pid}/cgroup", encoding="ascii", errors="replace") as file:  # noqa: PTH123 - a kernel file
            return container in file.read(2**16)
    except OSError:
        return False


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
