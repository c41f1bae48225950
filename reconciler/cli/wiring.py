"""The one place that chooses implementations: from a configuration to a wired node."""

from __future__ import annotations

import os
from contextlib import closing, contextmanager
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, cast

from schemas.errors import ConfigError
from schemas.refusals import DocumentError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from datetime import datetime

    from reconciler.bundles.container import Bundle
    from reconciler.bundles.importing import ImageEngine, Import, Imported
    from reconciler.journal import Journal, StoredDocument
    from reconciler.loop import PassResult
    from reconciler.node import Node
    from reconciler.notifications import Notifier
    from reconciler.source import RepositorySource
    from reconciler.state_dir import StateDir
    from runtime.backends.loaded_images import LoadedImages
    from runtime.front.keeper import FrontKeeper
    from runtime.gpu_locks import GpuLocks
    from runtime.gpu_reports import GpuListener, GpuReports
    from runtime.hardware import HostHardware
    from runtime.interfaces import Backend, EngineConnection, Follower, Progress
    from runtime.models.reach import Reach
    from runtime.models.sources import Source
    from runtime.models.store import DiskModelStore
    from runtime.nvml import Nvml
    from schemas.node import ContainerBackend, NodeConfig, Notification
    from schemas.ports import Ports, Stop
    from schemas.status import NodeStatus
    from schemas.target import BackendName

CONFIG_LIMIT = 2**18
"""Bytes of a node.yaml: hundreds of times what one needs."""


def config_path(given: str | None) -> Path:
    """Where the node's configuration is: `--config`, `RECONCILE_CONFIG`, /etc, the user's config directory.

    Raises:
        ConfigError: nowhere.
    """
    if given:
        return Path(given)
    if os.environ.get("RECONCILE_CONFIG"):
        return Path(os.environ["RECONCILE_CONFIG"])
    home = Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config")
    places = (Path("/etc/reconcile/node.yaml"), home / "reconcile" / "node.yaml")
    found = next((place for place in places if place.exists()), None)
    if found is None:
        raise ConfigError(
            f"no node configuration: neither {places[0]} nor {places[1]} exists",
            hint="run `reconcile init`, or name the file with --config",
        )
    return found


def load_config(path: Path) -> NodeConfig:
    """Read and check a node's configuration.

    Raises:
        ConfigError: missing, unreadable, or not what it must be; names file, line and field.
    """
    from desired_state.document import load
    from schemas.node import NodeConfig

    try:
        with path.open("rb") as file:
            content = file.read(CONFIG_LIMIT + 1)
        return load(content, NodeConfig, file=str(path), limit=CONFIG_LIMIT)
    except DocumentError as error:
        raise ConfigError(error.message, hint=error.hint) from error
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}", hint="run `reconcile init`, or name it with --config") from error


def agent_version() -> str:
    """The version of this agent."""
    from runtime.installed import find

    installed = find("inference-reconciler")
    if installed is None:
        raise ConfigError("this agent is not installed as a distribution", hint="`make install`, or pip install it")
    return installed.version


def open_journal(state: StateDir, *, readonly: bool) -> Journal:
    """The node's journal."""
    from reconciler.journal import Journal

    return Journal(state.journal, readonly=readonly)


def build_node(
    config: NodeConfig,
    journal: Journal,
    *,
    ports: Ports,
    progress: Progress,
    overlay: Mapping[str, StoredDocument] | None = None,
) -> Node:
    """Wire a node.

    Args:
        config: its configuration.
        journal: its journal, open for reading or writing.
        ports: the outside.
        progress: told about bytes.
        overlay: documents of a candidate that is only looked at.

    Raises:
        ConfigError: the configuration is of another node than the one that lives here.
    """
    from reconciler import belonging
    from reconciler.chain import Issuer
    from reconciler.documents import JournalDocuments
    from reconciler.identity import node_address
    from reconciler.kinds.base import Adapters
    from reconciler.node import Node
    from reconciler.state_dir import StateDir
    from runtime.backends.containment import blindness
    from runtime.engines.registry import engines
    from runtime.environments import DiskEnvironments
    from runtime.health import HealthWatch

    state = StateDir(Path(config.state_dir))
    node_id = node_address(state)
    documents = JournalDocuments(journal, overlay)
    journal.chain.issuer = Issuer(config.network, node_id, agent_version())
    keeping = belonging.kept(config, journal, JournalDocuments(journal))
    backends = build_backends(config, state, node_id, ports, keeping=keeping)
    hardware = build_hardware(config, state, node_id)
    adapters = Adapters(
        ports=ports,
        store=build_store(config, ports),
        backends=backends,
        engines=engines(),
        environments=DiskEnvironments(state.runtimes, ports=ports),
        documents=documents,
        connect=_connect,
        progress=progress,
        run_folder=state.run,
        log_folder=state.logs,
        front=build_front(config, state, ports, lambda: blindness(backends.values())),
        machine=hardware,
        health=HealthWatch(ports.clock),
    )
    return Node(
        config=config,
        node_id=node_id,
        agent=agent_version(),
        state=state,
        journal=journal,
        documents=documents,
        adapters=adapters,
        hardware=hardware,
    )


def build_store(
    config: NodeConfig, ports: Ports, nearby: Callable[[str], Sequence[Source]] = lambda _manifest: ()
) -> DiskModelStore:
    """The node's model store.

    Args:
        config: the node's configuration.
        ports: the outside.
        nearby: by a manifest's digest: sources that are open already, such as a bundle.
    """
    from reconciler.state_dir import StateDir
    from runtime.models.store import DiskModelStore

    return DiskModelStore(
        StateDir(Path(config.state_dir)).models,
        ports=ports,
        policy=config.policy.sources,
        connections=config.download_connections,
        stall=config.download_stall,
        reserve=config.policy.reserve,
        # Several networks may share a cold disk: each has a folder of its own there, and removes from no other.
        archive=Path(config.models.archive) / config.network if config.models.archive else None,
        nearby=nearby,
        reach=build_reach(config, ports),
    )


def build_reach(config: NodeConfig, ports: Ports) -> Reach:
    """How the node reaches sources of models: its secrets, endpoints, proxy and bandwidth."""
    from reconciler.windows import is_open
    from runtime.models.reach import Reach
    from runtime.models.throttle import Throttle
    from runtime.secrets import Secrets

    bandwidth = config.sources.bandwidth

    def rate(now: datetime) -> int | None:
        return next((window.limit for window in bandwidth.windows if is_open((window,), now)), bandwidth.limit)

    limited = bandwidth.limit is not None or bandwidth.windows
    return Reach(
        settings=config.sources,
        secrets=Secrets(config.secrets),
        environment=os.environ,
        throttle=Throttle(rate, ports.clock) if limited else None,
    )


def build_backends(
    config: NodeConfig, state: StateDir, node_id: str, ports: Ports, *, keeping: BackendName | None = None
) -> dict[str, Backend]:
    """The backends that the configuration names, in order of preference. An SDK is imported only for its own.

    Args:
        config: the node's configuration.
        state: its state directory.
        node_id: checksummed address of its key.
        ports: the outside.
        keeping: one that is turned off, and is still looked at.
    """
    backends: dict[str, Backend] = {}
    locks = gpu_locks(config, node_id)
    engines: tuple[tuple[BackendName, ContainerBackend | None], ...] = (
        ("docker", config.backends.docker),
        ("podman", config.backends.podman),
    )
    for name, settings in engines:
        if settings is not None and (settings.enabled or name == keeping):
            from runtime.backends.containers import ContainerEngine

            backends[name] = ContainerEngine(
                name,
                socket=settings.socket,
                network=config.network,
                node_id=node_id,
                ports=ports,
                loaded=loaded_images(state, ports),
                run_folder=state.run,
                locks=locks,
            )
    if "native" in config.backends.usable() or keeping == "native":
        from runtime.backends.native import NativeBackend

        backends["native"] = NativeBackend(state.run, network=config.network, node_id=node_id, ports=ports, locks=locks)
    return backends


def gpu_locks(config: NodeConfig, node_id: str) -> GpuLocks:
    """The locks of this machine's GPUs, as this node takes them."""
    from runtime.gpu_locks import GpuLocks

    return GpuLocks(Path(config.gpu_locks), network=config.network, node_id=node_id)


@cache
def _nvml() -> Nvml:
    """The driver's library: one per process, which keeps it open over changes of the configuration."""
    from runtime.nvml import Nvml

    return Nvml()


@cache
def gpu_reports() -> GpuReports:
    """What GPUs report, likewise: what came is known as long as the process lives."""
    from runtime.gpu_reports import GpuReports

    return GpuReports()


def gpu_listener() -> GpuListener:
    """What listens to GPUs."""
    from runtime.gpu_reports import GpuListener

    return GpuListener(_nvml(), gpu_reports())


def build_hardware(config: NodeConfig, state: StateDir, node_id: str) -> HostHardware:
    """What reads the machine."""
    from runtime.hardware import HostHardware

    return HostHardware(state.root, nvml=_nvml(), reports=gpu_reports(), locks=gpu_locks(config, node_id))


def build_followers(config: NodeConfig, state: StateDir) -> list[Follower]:
    """What notices that an instance, or the front, has ended or was changed, that a GPU fails, or a disk runs low."""
    from reconciler.identity import node_address
    from runtime.backends.lock_follower import LockFollower
    from runtime.disk_follower import DiskFollower

    folders = [state.run / "instances"] if config.backends.native is not None else []
    disks = DiskFollower([state.root, *([Path(config.models.archive)] if config.models.archive else [])])
    followers: list[Follower] = [LockFollower([*folders, state.run / "front"]), gpu_listener(), disks]
    for settings in (config.backends.docker, config.backends.podman):
        if settings is not None and settings.enabled:
            from runtime.backends.docker_api import ContainerEvents

            events = ContainerEvents(socket=settings.socket, network=config.network, node_id=node_address(state))
            followers.append(events)
    return followers


def build_front(
    config: NodeConfig, state: StateDir, ports: Ports, blind: Callable[[], str] = lambda: ""
) -> FrontKeeper | None:
    """The front, unless the owner wants none.

    Args:
        config: the node's configuration.
        state: its state directory.
        ports: the outside.
        blind: as `FrontKeeper`.

    Raises:
        ConfigError: a user or group that does not exist here.
    """
    if not config.front.enabled:
        return None
    from grp import getgrnam
    from pwd import getpwnam

    from runtime.front.keeper import FrontKeeper, FrontSettings

    def number(name: str, find: Callable[[str], int]) -> int:
        try:
            return int(name) if name.isdigit() else find(name)
        except KeyError as error:
            raise ConfigError(f"front: there is no {name} on this machine") from error

    settings = FrontSettings(
        allow=tuple(number(name, lambda known: getpwnam(known).pw_uid) for name in config.front.allow),
        group=number(config.front.group, lambda known: getgrnam(known).gr_gid) if config.front.group else -1,
        connections=config.front.connections,
        max_body=config.front.max_body,
    )
    return FrontKeeper(state.run, settings, uid=os.geteuid(), ports=ports, blind=blind)


def _connect(backend: Backend, name: str, socket: Path) -> EngineConnection:
    from runtime.connection import UnixConnection

    return UnixConnection(socket, is_peer=lambda pid: backend.is_peer(name, pid))


def loaded_images(state: StateDir, ports: Ports) -> LoadedImages:
    """What the node knows of images that came by file."""
    from runtime.backends.loaded_images import LoadedImages
    from runtime.hardware import platform_name

    return LoadedImages(state.images, platform_name(), ports.files)


# --- bundles ------------------------------------------------------------------------------------------------------


@contextmanager
def importing(
    config: NodeConfig, bundle: Bundle, progress: Progress, stop: Stop, *, readonly: bool = False
) -> Iterator[Import]:
    """What imports an open bundle into a node. Whoever does more than check holds the state directory.

    Args:
        config: the node's configuration.
        bundle: the bundle.
        progress: told about bytes.
        stop: ends the import early.
        readonly: whether the journal is only read.
    """
    from reconciler.bundles.importing import Import, Site
    from reconciler.identity import node_address
    from reconciler.state_dir import StateDir
    from runtime.hardware import platform_name
    from schemas.node import SourcePolicy

    state, ports = StateDir(Path(config.state_dir)), host(stop)
    # A bundle is the one source of what is imported: nothing is asked that could be missing here.
    alone = config.model_copy(
        update={"policy": config.policy.model_copy(update={"sources": SourcePolicy.model_construct()})}
    )
    with closing(open_journal(state, readonly=readonly)) as journal:
        backends = build_backends(config, state, node_address(state), ports)
        site = Site(
            config=config,
            state=state,
            journal=journal,
            ports=ports,
            agent=agent_version(),
            platform=platform_name(),
            engines=[cast("ImageEngine", backend) for backend in backends.values() if backend.mode == "container"],
            loaded=loaded_images(state, ports),
            open_store=lambda nearby: build_store(alone, ports, nearby),
            progress=progress,
        )
        yield Import(site, bundle)


def import_bundle(config: NodeConfig, path: Path, progress: Progress, stop: Stop) -> Imported:
    """Import a bundle into a node whose state directory the caller holds; errors as `Import.run`."""
    from reconciler.bundles.container import opened

    with opened(path) as bundle, importing(config, bundle, progress, stop) as job:
        return job.run()


@contextmanager
def observed(
    config: NodeConfig, run_pass: Callable[[], PassResult], shows: Callable[[Callable[[NodeStatus], None]], None]
) -> Iterator[Callable[[], PassResult]]:
    """A daemon's pass, watched and told of as the configuration asks for.

    Args:
        config: the node's configuration.
        run_pass: one pass.
        shows: has somebody told of what is published in the middle of a pass.

    Raises:
        ConfigError: the address of `telemetry.listen` cannot be listened on.
    """
    from reconciler.state_dir import StateDir
    from reconciler.telemetry.observer import observed as watched

    state = StateDir(Path(config.state_dir))

    def journal() -> Journal:
        return open_journal(state, readonly=True)

    with watched(config.telemetry, state, journal, build_notifier(config, state), run_pass, shows) as run:
        yield run


def build_notifier(config: NodeConfig, state: StateDir) -> Notifier | None:
    """What tells of events; None where nobody wants to hear."""
    if not config.notifications:
        return None
    from functools import partial

    from reconciler.identity import node_address
    from reconciler.notifications import Notifier, Receiver
    from runtime.notifying import Deliver, Program, Webhook
    from runtime.secrets import Secrets

    ports, secrets = host(), Secrets(config.secrets)

    def deliver(item: Notification) -> Deliver:
        if item.webhook is None:
            return Program(item.program, ports.processes)
        return Webhook(item.webhook, partial(secrets.read, item.secret) if item.secret else None)

    return Notifier(
        [Receiver(item, deliver(item)) for item in config.notifications],
        node={"network": config.network, "node": node_address(state)},
        journal=lambda: open_journal(state, readonly=True),
        memory=state.notifications,
        ports=ports,
    )


def build_source(node: Node) -> RepositorySource:
    """What asks the node's repositories."""
    from reconciler.source import RepositorySource

    return RepositorySource(node)


def host(stop: Stop | None = None) -> Ports:
    """The real outside."""
    from runtime.host import host_ports

    return host_ports(stop)
