"""Instances as containers, of Docker itself or of Podman's compatible service.

Every container gets the restrictions of I10. It is found again by its name and labels together, because an image can
carry labels of its own; whose it is, the journal says.
"""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from runtime.backends import socket_folder
from runtime.backends.container_answers import LABEL, PAUSED, Marks, gpus, label_filters
from runtime.backends.container_drift import differences, limits, settings
from runtime.backends.container_images import ContainerImages
from runtime.backends.container_limits import MODEL_PATH, RUN_AS, SOCKET_FOLDER, host_config
from runtime.backends.container_made import Made, Record
from runtime.backends.container_output import ContainerOutput
from runtime.backends.containment import containment, read_own_container
from runtime.backends.docker_api import API_SECONDS, DockerApi
from runtime.backends.gpu_keeping import kept
from runtime.gpu_locks import claim
from runtime.interfaces import EngineView
from schemas.errors import BackendUnavailable, StartFailed

if TYPE_CHECKING:
    from collections.abc import Iterator

    from runtime.backends.containment import Containment
    from runtime.backends.loaded_images import LoadedImages
    from runtime.gpu_locks import GpuLocks
    from runtime.interfaces import InstanceSpec, Progress
    from schemas.observation import Instance, Observation
    from schemas.ports import Ports, Stop
    from schemas.runtimes import Mode, Unenforced
    from schemas.target import BackendName


class ContainerEngine:
    """A backend that runs instances as containers of one engine."""

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
        self._api = DockerApi(name, socket)
        self._images = ContainerImages(self._api, loaded)
        self._output = ContainerOutput(self._api, self._detail)
        self._marks = Marks(name, network=network, node_id=node_id)
        self._filters = label_filters(network, node_id)
        self._ports = ports
        self._run_folder = run_folder
        self._around: tuple[Containment | None] | None = None
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
        with self._api.translated():
            found = self._api.client.containers(all=True, filters={"label": self._filters})
            instances = [self._compared(self._listed(item)) for item in found]
        return tuple(sorted((item for item in instances if item is not None), key=lambda item: item.name))

    def inspect(self, name: str) -> Instance | None:
        """One container, None when there is none of that name with this node's marks."""
        with self._api.translated():
            detail = self._detail(name)
        return self._marks.instance(detail) if detail is not None else None

    def mend(self, name: str) -> None:
        """Have the engine set the limits again, which it does while the container runs."""
        made = self._made.read(name)
        with self._api.translated():
            detail = self._detail(name)
            if detail is None or made is None:
                return
            changed = {one.field for one in differences(made.settings, settings(detail))}
            if "name" in changed:
                self._api.client.rename(made.id, name)
            if changed - {"name"}:
                self._api.update(made.id, limits(made.settings))

    def is_peer(self, name: str, pid: int) -> bool:
        """Whether a process lives in the container's control group."""
        known = self._ids.get(name)
        if known is not None and _lives_in(pid, known):
            # Its group is named after the container: whoever lives there needs no asking.
            return True
        with self._api.translated():
            detail = self._detail(name)
        if detail is None or not detail["State"].get("Running"):
            return False
        if pid == int(detail["State"].get("Pid") or 0):
            return True
        self._ids[name] = str(detail["Id"])
        return _lives_in(pid, self._ids[name])

    def output(self, name: str, *, limit: int) -> str:
        """The end of what the container printed."""
        return self._output.end(name, limit)

    def printed(self, name: str, *, lines: int, follow: bool, stop: Stop) -> Iterator[bytes]:
        """What the engine's own capped log has of it."""
        return self._output.printed(name, lines=lines, follow=follow, stop=stop)

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
            with self._api.translated():
                detail = self._api.container(own) if own else None
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
        return self._images.image(ref)

    def pull(self, ref: str, *, progress: Progress, stop: Stop) -> None:
        """Pull by digest; the engine checks every layer against it."""
        self._images.pull(ref, progress=progress, stop=stop)

    def load(self, archive: Iterator[bytes]) -> None:
        """Load images from an archive that is made while it is sent; see `ContainerImages.load`."""
        self._images.load(archive)

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
        with self._api.translated():
            image = self._images.found(str(spec.target.image))
            config = self._api.client.create_container_config(
                # By its reference where the engine knows that, which is what people then see in its lists.
                image=spec.target.image if spec.target.image in (image.get("RepoDigests") or ()) else image["Id"],
                command=list(spec.launch.argv[1:] if spec.launch.program else spec.launch.argv),
                entrypoint=list(spec.launch.argv[:1]) if spec.launch.program else None,
                environment={**spec.launch.env, "NVIDIA_VISIBLE_DEVICES": ",".join(spec.gpus) or "void"},
                user=RUN_AS,
                labels=self._marks.labels(spec),
                stop_signal="SIGTERM",
                networking_config=None,
                host_config=self._api.client.create_host_config(**host_config(spec, image)),
            )
            self._api.client.create_container_from_config(config, name=spec.name)
            self._remember(spec.name)

    def start(self, name: str) -> None:
        """Start a created container, with a keeper for its GPUs."""
        with self._api.translated():
            before = self._detail(name)
        known = gpus((before or {}).get("Config", {}).get("Labels") or {})
        container = str((before or {}).get("Id", ""))
        with (
            claim(self._locks, known, name, container=container) as held,
            kept(container, held) if held else nullcontext(),
            self._api.translated(),
        ):
            self._api.client.start(self._at(name))
            if before is not None and not before["State"].get("Running"):
                # What an engine fills in when it starts a container is none of somebody else's changes.
                self._remember(name)

    def stop(self, name: str, *, grace: float) -> None:
        """SIGTERM, then SIGKILL after `grace` seconds."""
        seen = self.inspect(name)
        if seen is None or seen.status != "running":
            # Each question more is time in which nobody serves: a swap waits for this, and so does a restart.
            return
        with self._api.translated(timeout=grace + API_SECONDS) as api:
            if PAUSED in seen.detail:
                # A frozen process hears no signal, and Podman refuses to stop one.
                self._api.unpause(self._at(name))
            api.stop(self._at(name), timeout=max(int(grace), 1))

    def remove(self, name: str) -> None:
        """Keep the container's output in its log folder, then remove it with its anonymous volumes."""
        with self._api.translated():
            detail = self._detail(name)
            if detail is None:
                return
            self._output.keep(name, detail, self._ports.files)
            self._api.remove(detail["Id"])
            self._ids.pop(name, None)
            self._made.forget(name)
            socket_folder.release(Path(detail["Config"]["Labels"][f"{LABEL}socket-folder"]), self._ports.processes)

    # --- inside ---------------------------------------------------------------------------------------------------

    def _detail(self, name: str) -> dict[str, Any] | None:
        made = self._made.read(name)
        # By its id first: whatever it is called by now, it is the one that was made here.
        for asked in (made.id, name) if made is not None else (name,):
            detail = self._api.container(asked)
            if detail is None:
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


def _lives_in(pid: int, container: str) -> bool:
    """Whether a process is in the control group of a container, by its id."""
    try:
        with open(f"/proc/{pid}/cgroup", encoding="ascii", errors="replace") as file:  # noqa: PTH123 - a kernel file
            return container in file.read(2**16)
    except OSError:
        return False
