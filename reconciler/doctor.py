"""Looks for what keeps a node from working, and says how to mend it. Changes nothing (I9).

Each check looks at one thing, in the order in which a newcomer would need them; one that cannot be made because of an
earlier one is left out. `reconcile status` says how the node is; this says why it may not get there.
"""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal

from desired_state.keys import read_key_file
from reconciler.control import CONTROL_SOCKET
from reconciler.inquiry import git_source
from reconciler.published import read_status, silence
from reconciler.source import current_trust
from reconciler.state_dir import StateDir
from runtime.backends.containment import read_own_container
from runtime.backends.describe import describe
from schemas.errors import BackendUnavailable, ReconcileError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from reconciler.journal import Journal
    from runtime.backends.describe import EngineFacts
    from runtime.interfaces import Backend, Engine, Front
    from schemas.node import ContainerBackend, NodeConfig
    from schemas.observation import Gpu, Hardware
    from schemas.ports import Ports
    from schemas.status import NodeStatus

Verdict = Literal["ok", "warning", "failure"]

OLDEST_API: Final = (1, 41)
"""Docker 20.10's and Podman 4's: the oldest that the backends are tested with."""

SOON_SECONDS: Final = 7 * 86400
"""An expiry that is nearer than this is worth a warning."""

SYNCHRONISED: Final = (Path("/run/systemd/timesync/synchronized"), Path("/run/chrony/chronyd.pid"))
"""What is there where a service keeps the clock right: systemd-timesyncd, chrony."""


@dataclass(frozen=True, slots=True)
class Check:
    """What came of looking at one thing."""

    subject: str
    verdict: Verdict
    message: str
    mend: str = ""
    """What to do about it; empty where all is well."""


@dataclass(frozen=True, slots=True)
class Patient:
    """What is examined."""

    config: NodeConfig
    journal: Callable[[], Journal]
    """Opens the journal for reading."""
    ports: Ports
    backends: Mapping[str, Backend]
    engines: Mapping[str, Engine]
    hardware: Callable[[], Hardware]
    """Reads the machine."""
    front: Front | None


def examine(patient: Patient) -> Iterator[Check]:
    """Every check, one after the other."""
    state = StateDir(Path(patient.config.state_dir))
    yield from _state(state)
    if not state.root.is_dir():
        return
    yield _daemon(patient, state)
    yield from _journal(patient, state)
    yield from _disk(patient, state)
    yield _clock(patient)
    for repository in patient.config.repositories:
        yield _repository(patient, repository.url)
    for name, settings in (("docker", patient.config.backends.docker), ("podman", patient.config.backends.podman)):
        if settings is not None and settings.enabled:
            yield from _container_engine(patient, name, settings)
    if "native" in patient.backends:
        yield from _native(patient)
    yield from _gpus(patient)
    if patient.front is not None:
        yield _front(patient.front, read_status(state))


# --- the node's own folder ----------------------------------------------------------------------------------------


def _state(state: StateDir) -> Iterator[Check]:
    try:
        found = state.root.stat()
    except OSError as error:
        yield Check("state directory", "failure", f"{state.root}: {error.strerror}", "run `reconcile init`")
        return
    if found.st_uid not in (os.geteuid(), 0) and os.geteuid() != 0:
        mend = "run reconcile as its owner, or give the folder to the user that runs it"
        yield Check("state directory", "failure", f"{state.root} belongs to user {found.st_uid}", mend)
    elif found.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        mend = f"chmod 700 {state.root}"
        yield Check("state directory", "failure", f"others may write into {state.root}", mend)
    else:
        yield Check("state directory", "ok", str(state.root))
    try:
        address = read_key_file(state.identity).address
    except (ReconcileError, OSError) as error:
        text = error.message if isinstance(error, ReconcileError) else str(error)
        yield Check(
            "identity", "failure", text, f"chmod 600 {state.identity}; `reconcile init` makes one where none is"
        )
    else:
        yield Check("identity", "ok", address)


def _daemon(patient: Patient, state: StateDir) -> Check:
    try:
        holder = state.holder()
    except OSError as error:
        return Check("daemon", "warning", f"{state.lock_file}: {error.strerror}", "look at its owner and mode")
    if holder is None:
        return Check("daemon", "ok", "none runs: passes are made by hand, or by a timer")
    text = f"process {holder} holds the state directory"
    silent = silence(state, patient.config.interval, patient.ports.clock.now())
    if silent:
        mend = "its log says what it waits for; stop it and start it again: what serves goes on meanwhile"
        return Check("daemon", "failure", f"{text}, and {silent}", mend)
    if not (state.run / CONTROL_SOCKET).is_socket():
        mend = "a pass by hand holds it until it has ended; a daemon opens the socket again at its next pass"
        return Check("daemon", "warning", f"{text}, and nothing answers questions in {state.run}", mend)
    return Check("daemon", "ok", text)


def _journal(patient: Patient, state: StateDir) -> Iterator[Check]:
    try:
        journal = patient.journal()
    except ReconcileError as error:
        yield Check("journal", "failure", error.message, error.hint or "see `reconcile why StateCorrupt`")
        return
    try:
        trust, accepted = current_trust(patient.config, journal), journal.accepted()
        yield Check("journal", "ok", str(state.journal))
        now = patient.ports.clock.now()
        if trust is not None:
            text = f"version {trust.version}, expires {trust.document.metadata.expires_at:%Y-%m-%d}"
            yield _expiry(
                "trust", text, (trust.document.metadata.expires_at - now).total_seconds(), "reconcile trust rotate"
            )
        if accepted is None:
            mend = "`reconcile plan` says what it sees; `reconcile` takes it"
            yield Check("snapshot", "warning", "none was accepted yet", mend)
        else:
            text = f"{accepted.sequence} of epoch {accepted.epoch}, expires {accepted.expires_at:%Y-%m-%d %H:%M} UTC"
            left = (accepted.expires_at - now).total_seconds()
            yield _expiry("snapshot", text, left, "reconcile snapshot bump, and sign")
    except ReconcileError as error:
        yield Check("journal", "failure", f"{error.reason}: {error.message}", f"see `reconcile why {error.reason}`")
    finally:
        journal.close()


def _expiry(subject: str, text: str, left: float, command: str) -> Check:
    mend = f"the network's operators renew it: {command}"
    if left <= 0:
        return Check(subject, "failure", f"{text}: it has expired", mend)
    return Check(subject, "warning", text, mend) if left < SOON_SECONDS else Check(subject, "ok", text)


# --- the machine --------------------------------------------------------------------------------------------------


def _disk(patient: Patient, state: StateDir) -> Iterator[Check]:
    usage = os.statvfs(state.root)
    free, reserve = usage.f_bavail * usage.f_frsize, patient.config.policy.reserve
    text = f"{free / 2**30:.1f} GiB free at {state.root}"
    if free < reserve:
        mend = "make room: `reconcile gc --dry-run` says what could go; or lower policy.reserve"
        yield Check("disk", "failure", f"{text}, less than the reserve of {reserve / 2**30:.1f} GiB", mend)
    elif usage.f_favail < 1000 and usage.f_files:  # noqa: PLR2004 - a model has dozens of files, an environment thousands
        yield Check("disk", "failure", f"{text}, and {usage.f_favail} inodes", "make room for more files")
    else:
        yield Check("disk", "ok", text)
    if not os.access(state.root, os.W_OK):
        mend = "it may be mounted read-only, or belong to somebody else"
        yield Check("disk", "failure", f"{state.root} cannot be written to", mend)


def _clock(patient: Patient) -> Check:
    now = patient.ports.clock.now()
    status = read_status(StateDir(Path(patient.config.state_dir)))
    if status is not None and status.updated_at.timestamp() > now.timestamp() + 60:
        mend = "set it; a clock that runs behind lets expired documents pass"
        return Check("clock", "failure", f"{now:%Y-%m-%d %H:%M} UTC is before the last status", mend)
    text = f"{now:%Y-%m-%d %H:%M:%S} UTC"
    if any(path.exists() for path in SYNCHRONISED):
        return Check("clock", "ok", f"{text}, kept right by a service")
    mend = "run chrony or systemd-timesyncd; virtual machines and containers may get the time from their host"
    return Check("clock", "warning", f"{text}; nothing here is known to keep it right", mend)


def _gpus(patient: Patient) -> Iterator[Check]:
    """GPUs one by one; none is a normal machine."""
    hardware = patient.hardware()
    for gpu in hardware.gpus:
        yield _gpu(gpu)
    if hardware.gpu_trouble:
        mend = "`nvidia-smi` must work; the agent needs nvidia-ml-py (pip install 'inference-reconciler[gpu]')"
        yield Check("GPUs", "warning" if hardware.gpus else "failure", hardware.gpu_trouble, mend)
    for other in hardware.unsupported:
        yield Check("GPUs", "warning", other, "engines do not compute on it; only NVIDIA's are supported")
    if not (hardware.gpus or hardware.gpu_trouble or hardware.unsupported):
        yield Check("GPUs", "ok", "none: engines compute on the processor")
    if hardware.gpus:
        yield _gpu_locks(Path(patient.config.gpu_locks))


def _gpu(gpu: Gpu) -> Check:
    text = f"{gpu.uuid}, {gpu.name}, {gpu.memory / 2**30:.0f} GiB, driver {gpu.driver}, CUDA {gpu.cuda or 'unknown'}"
    if gpu.fault:
        mend = "`nvidia-smi` and the kernel's log (NVRM: Xid) say more; reset it, or restart the machine"
        return Check("GPUs", "failure", f"{text}: it {gpu.fault}", mend)
    if gpu.temperature is not None:
        text += f", {gpu.memory_free / 2**30:.0f} GiB free, {gpu.temperature} °C"
    if gpu.ecc_uncorrected:
        mend = "memory that fails again is worth a replacement; `nvidia-smi -q -d ECC,ROW_REMAPPER` says more"
        return Check("GPUs", "warning", f"{text}: {gpu.ecc_uncorrected} memory errors were not corrected", mend)
    if gpu.holder:
        mend = "a node needs a GPU of its own: stop the other one, or add a GPU"
        return Check("GPUs", "warning", f"{text}: in use by {gpu.holder}", mend)
    return Check("GPUs", "ok", text)


def _gpu_locks(folder: Path) -> Check:
    mend = "have root make it once, e.g. by tmpfiles.d: `d /run/lock/reconcile 1777 root root -`"
    try:
        found = folder.lstat()
    except FileNotFoundError:
        return Check("GPU locks", "ok", f"{folder} is made with the first engine on a GPU")
    except OSError as error:
        return Check("GPU locks", "failure", f"{folder}: {error.strerror}", mend)
    if not stat.S_ISDIR(found.st_mode) or found.st_uid not in (0, os.geteuid()):
        return Check("GPU locks", "failure", f"{folder} is no folder of root's or of this user's", mend)
    if not os.access(folder, os.W_OK):
        return Check("GPU locks", "failure", f"this user cannot write to {folder}", mend)
    if read_own_container() and not folder.is_mount():
        mend = f"map the machine's: --mount type=bind,source={folder},target={folder}"
        return Check("GPU locks", "warning", f"{folder} may be this container's own: other nodes do not see it", mend)
    return Check("GPU locks", "ok", str(folder))


# --- the outside --------------------------------------------------------------------------------------------------


def _repository(patient: Patient, url: str) -> Check:
    clock = patient.ports.clock
    begun = clock.monotonic()
    try:
        head = git_source(patient.config, patient.ports).head(url, patient.config.branch)
    except ReconcileError as error:
        mend = error.hint or "try `git ls-remote` with the same address as the same user"
        return Check("repository", "failure", error.message, mend)
    return Check("repository", "ok", f"{url}: {head[:12]}, answered in {(clock.monotonic() - begun) * 1000:.0f} ms")


def _container_engine(patient: Patient, name: str, settings: ContainerBackend) -> Iterator[Check]:
    socket = Path(settings.socket)
    if not socket.exists():
        start = "podman system service" if name == "podman" else "dockerd"
        mend = f"start {start}, or name its socket in node.yaml (backends.{name}.socket)"
        yield Check(name, "failure", f"{socket} does not exist", mend)
        return
    if not os.access(socket, os.R_OK | os.W_OK):
        mend = f"add the user to the socket's group ({name}), which amounts to root, or run the agent as root"
        yield Check(name, "failure", f"this user may not talk to {socket}", mend)
        return
    try:
        facts = describe(socket)
    except ReconcileError as error:
        yield Check(name, "failure", error.message, f"is {name} running? Its own log says more")
        return
    yield from _judge(patient, name, facts)
    try:
        count = len(patient.backends[name].list())
    except ReconcileError as error:
        yield Check(name, "failure", error.message, error.hint or f"{name}'s own log says more")
    else:
        yield Check(name, "ok", f"{count} containers of this node")
        yield from _contained(patient, name)


def _contained(patient: Patient, name: str) -> Iterator[Check]:
    """What it means that the agent is a container of the engine itself; nothing where it is none."""
    from runtime.backends.containers import ContainerEngine  # noqa: PLC0415 - an SDK, needed only where it is used

    backend = patient.backends[name]
    if not isinstance(backend, ContainerEngine) or backend.containment() is None:
        return
    yield Check(name, "ok", "the agent is a container itself, with the host's process ids and folders")
    settings = patient.config.backends.docker if name == "docker" else patient.config.backends.podman
    refused = set(backend.not_enforced()) - set(settings.allow_unenforced if settings is not None else ())
    if refused:
        mend = (
            "give its container --cap-add SYS_ADMIN and bind-propagation=rshared for the state directory, or allow it"
        )
        yield Check(name, "warning", f"not enforced from here, and not allowed: {', '.join(sorted(refused))}", mend)
    if "native" in patient.backends:
        mend = "set backends.native.enabled to false in node.yaml"
        yield Check("native", "warning", "native engines would end with the agent's container", mend)


def _judge(patient: Patient, name: str, facts: EngineFacts) -> Iterator[Check]:
    text = f"version {facts.version}, API {facts.api[0]}.{facts.api[1]}, {facts.storage}"
    if facts.api < OLDEST_API:
        yield Check(name, "failure", f"{text}: too old", f"API {OLDEST_API[0]}.{OLDEST_API[1]} or newer is needed")
    else:
        yield Check(name, "ok", text)
    for warning in facts.warnings:
        yield Check(name, "warning", warning, "a limit that the kernel does not offer is not enforced")
    if patient.hardware().gpus and not any("nvidia" in runtime for runtime in facts.runtimes):
        mend = "install NVIDIA's container toolkit, and let it register its runtime"
        yield Check(name, "warning", "it knows no NVIDIA runtime: containers get no GPU", mend)


def _native(patient: Patient) -> Iterator[Check]:
    settings = patient.config.backends.native
    missing = patient.backends["native"].not_enforced()
    allowed = settings.allow_unenforced if settings is not None else ()
    refused = [name for name in missing if name not in allowed]
    if refused:
        mend = f"allow it here if the network does, too: backends.native.allowUnenforced: [{', '.join(missing)}]"
        yield Check("native", "warning", f"not enforced here, and not allowed: {', '.join(refused)}", mend)
    else:
        yield Check("native", "ok", f"not enforced here, and allowed: {', '.join(missing) or 'nothing'}")
    try:
        patient.backends["native"].list()
    except BackendUnavailable as error:
        mend = "where it names a file: stop what runs there (`kill` its engine), and remove that file's folder"
        yield Check("native", "failure", error.message, mend)
    found = [f"{seen.engine} {seen.version}" for engine in patient.engines.values() if (seen := engine.native())]
    text = ", ".join(found) or "no engine beside this agent; a runtime may bring an environment of its own"
    yield Check("native", "ok", text)


def _front(front: Front, status: NodeStatus | None) -> Check:
    if front.counts() is not None:
        return Check("front", "ok", f"takes clients at {front.address}")
    if status is not None and status.serving is not None:
        mend = "a pass starts it again: `reconcile`, or `reconcile notify`; see `reconcile logs` if it does not"
        return Check("front", "failure", f"{status.serving.model} serves, and nobody answers at {front.address}", mend)
    return Check("front", "ok", "does not run: it is started with the first instance that has passed its probe")
