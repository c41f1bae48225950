"""`node.yaml`: what the node's owner decides about the node."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, StringConstraints, model_validator

from schemas.access import AbsolutePath, SecretRef, SourceAccess
from schemas.base import Digest, Document, Duration, Frozen, Label, Name, Percent, Positive, Size, Text, Url
from schemas.runtimes import Mode, Unenforced

User = Annotated[str, StringConstraints(pattern=r"^([a-z_][a-z0-9_-]{0,31}|[0-9]{1,10})$")]
"""A user or group of this machine."""


class Repository(Frozen):
    """A git repository of the network, or a mirror of one."""

    url: Annotated[
        str,
        StringConstraints(
            # What begins with a hyphen would be an option to git or ssh.
            pattern=r"^((file|https|ssh)://[!-,.-~]|/)[!-~]*$"
            r"|^[A-Za-z0-9._][A-Za-z0-9._-]*@[A-Za-z0-9.][A-Za-z0-9.-]*:[!-~]+$",
            max_length=2048,
        ),
    ]
    """`file://`, `https://` or `ssh://` (or `user@host:path`). Transports that run commands are refused."""


class TrustPin(Frozen):
    """The first trust document, pinned at `reconcile init`."""

    digest: Digest
    """Digest of `trust/1.yaml`."""


class NativeBackend(Frozen):
    """Processes on this host."""

    enabled: bool = True
    """Whether engines may run without a container."""
    allow_unenforced: tuple[Unenforced, ...] = ()
    """Restrictions that the node's owner accepts as not enforced."""


class ContainerBackend(Frozen):
    """A container engine that speaks Docker's API."""

    enabled: bool = True
    """Whether this engine may be used."""
    socket: AbsolutePath
    """Its unix socket."""
    allow_unenforced: tuple[Unenforced, ...] = ()
    """Restrictions that the node's owner accepts as not enforced."""


class Backends(Frozen):
    """How instances may be run here. An absent backend does not exist on this node."""

    docker: ContainerBackend | None = None
    """Docker."""
    podman: ContainerBackend | None = None
    """Podman's Docker-compatible service."""
    native: NativeBackend | None = None
    """Native processes."""

    def usable(self) -> frozenset[str]:
        """Names of those that may start something."""
        named = {"docker": self.docker, "podman": self.podman, "native": self.native}
        return frozenset(name for name, settings in named.items() if settings is not None and settings.enabled)


class SourcePolicy(Frozen):
    """From where models may be fetched."""

    allow_http: bool = False
    """Plain http: bytes are verified anyway, but everybody on the way sees them."""
    allow_private: bool = False
    """Private and loopback addresses."""
    allow_file: bool = False
    """`file://` sources."""
    fallback: tuple[Url, ...] = ()
    """Tried after the snapshot's own sources; `{name}` and `{version}` are replaced."""


class HealPolicy(Frozen):
    """How often what somebody else changes is given back, before a person is asked for."""

    repairs: Annotated[int, Field(ge=1, le=1000)] = 3
    """Repairs of the same thing within the window."""
    window: Annotated[Duration, Field(ge=60)] = 3600
    """Seconds."""


class NodePolicy(Frozen):
    """The owner's rules. Network and owner must both allow what is weaker than the default."""

    modes: Annotated[tuple[Mode, ...], Field(min_length=1)] = ("container", "native")
    """Execution modes allowed."""
    prefer: Mode | None = None
    """The owner's preference; wins over the snapshot's."""
    default: Mode | None = None
    """Used when neither owner nor snapshot prefers one that is available."""
    overlap: bool = False
    """Whether a replacement may briefly run beside the old instance, where the snapshot allows it and both fit."""
    sources: SourcePolicy = SourcePolicy.model_construct()
    """From where models may be fetched."""
    reserve: Size = 2**28
    """Disk kept for the node's own state, bytes."""
    heal: HealPolicy = HealPolicy.model_construct()
    """How often drift is repaired."""


class ScrubConfig(Frozen):
    """Looking for bit rot while nothing else is to be done."""

    rate: Size = 2**24
    """Bytes a second, at most; 0 turns it off."""
    every: Annotated[Duration, Field(ge=60)] = 30 * 86400
    """Seconds within which every model is looked through, as far as the rate allows."""


class ModelsConfig(Frozen):
    """How models are kept."""

    archive: AbsolutePath | None = None
    """Folder on a cold disk, for models that the snapshot lists as archived; below the state directory if not given."""
    scrub: ScrubConfig = ScrubConfig.model_construct()
    """Looking for bit rot."""


class FrontConfig(Frozen):
    """The small process through which clients reach the runtime, at `run/front.sock` of the state directory."""

    enabled: bool = True
    """Whether there is one."""
    allow: tuple[User, ...] = ()
    """Users, by name or id, that may use it besides root and the agent's own."""
    group: User | None = None
    """Group of the socket (mode 0660), by name or id: whoever is allowed has to be in it."""
    connections: Annotated[int, Field(ge=1, le=10_000)] = 256
    """Clients at once."""
    max_body: Annotated[Size, Field(ge=2**10, le=2**30)] = 2**22
    """Bytes of a request's body."""
    hold: Annotated[Duration, Field(le=3600)] = 30
    """Seconds that a request may wait while the runtime is replaced; 503 with Retry-After beyond."""


EventName = Annotated[str, StringConstraints(pattern=r"^[A-Z][A-Za-z0-9]{1,63}$")]
_LISTEN = r"^(127(\.[0-9]{1,3}){3}:[0-9]{1,5}|\[::1\]:[0-9]{1,5}|unix:/[^\x00]{1,4090})$"


class TelemetryConfig(Frozen):
    """What a daemon tells whoever watches it. Read-only; off unless an address is given."""

    listen: Annotated[str, StringConstraints(pattern=_LISTEN)] | None = None
    """Where: a loopback address with its port (`127.0.0.1:9477`), or a socket (`unix:/run/telemetry.sock`)."""
    page: bool = True
    """Whether `/` is a page for people, beside `/metrics` for Prometheus."""
    traces: Annotated[str, StringConstraints(pattern=r"^https?://[!-~]+$", max_length=2048)] | None = None
    """Collector that gets traces of passes by OTLP/HTTP: `http://127.0.0.1:4318/v1/traces`. Needs the extra `otel`."""


class LogsConfig(Frozen):
    """How the daemon logs, to standard error."""

    format: Literal["human", "json"] = "human"
    """Lines for people, or one JSON object a line. `--log-format` wins."""
    level: Literal["debug", "info", "warning", "error"] = "info"
    """The least grave line that is written."""


class Notification(Frozen):
    """Whom to tell of events: a program, or a webhook."""

    name: Name
    """What it is called; what was delivered is remembered under it."""
    events: Annotated[tuple[EventName, ...], Field(max_length=64)] = ()
    """Events to tell of; none: every warning."""
    program: Annotated[tuple[Text, ...], Field(max_length=32)] = ()
    """Program and arguments. It is given the event as JSON on standard input, and should end with 0."""
    webhook: Annotated[str, StringConstraints(pattern=r"^https?://[!-~]+$", max_length=2048)] | None = None
    """Address that the event is posted to as JSON."""
    secret: Name | None = None
    """Of `secrets`: signs what is posted (HMAC-SHA256, in `X-Reconcile-Signature`)."""

    @model_validator(mode="after")
    def _one_way(self) -> Notification:
        if bool(self.program) == (self.webhook is not None):
            raise ValueError("name either a program or a webhook")
        if self.secret is not None and self.webhook is None:
            raise ValueError("a secret signs what is posted to a webhook")
        return self


class IdentityConfig(Frozen):
    """How the node's key is protected."""

    password_file: AbsolutePath | None = None
    """Encrypts the key; keep it outside the state directory."""


class NodeConfig(Document):
    """The configuration of one node in one network."""

    api_version: Literal["reconcile/v1alpha1"]
    """Version of this document's form."""
    kind: Literal["Node"]
    """`Node`."""
    network: Name
    """The network this node belongs to."""
    repositories: Annotated[tuple[Repository, ...], Field(max_length=16)]
    """All are asked; the highest valid snapshot wins. None on a node that bundles are carried to by hand."""
    branch: Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._/-]{0,127}$")] = "main"
    """Branch that holds the documents."""
    trust: TrustPin
    """The first trust document."""
    state_dir: AbsolutePath
    """Where this node keeps everything; one reconciler at a time."""
    account: (
        Annotated[str, StringConstraints(pattern=r"^(0x[0-9a-fA-F]{40}|[^@\s]+@[^@\s]+)$", max_length=255)] | None
    ) = None
    """The account that controls this node: a wallet address or an e-mail."""
    labels: dict[Label, Label] = {}
    """For selectors."""
    identity: IdentityConfig = IdentityConfig.model_construct()
    """The node's key."""
    backends: Backends = Backends.model_construct(native=NativeBackend.model_construct())
    """How instances may be run here."""
    front: FrontConfig = FrontConfig.model_construct()
    """Through which clients reach the runtime."""
    policy: NodePolicy = NodePolicy.model_construct()
    """The owner's rules."""
    logs: LogsConfig = LogsConfig.model_construct()
    """How the daemon logs."""
    telemetry: TelemetryConfig = TelemetryConfig.model_construct()
    """Metrics, and a page to look at."""
    notifications: Annotated[tuple[Notification, ...], Field(max_length=16)] = ()
    """Whom to tell of events."""
    models: ModelsConfig = ModelsConfig.model_construct()
    """How models are kept."""
    gpu_locks: AbsolutePath = "/run/lock/reconcile"
    """Folder of the locks by which nodes keep off each other's GPUs: the same for every node of this machine."""
    interval: Duration = 30
    """Seconds between polls of `--watch`."""
    git_timeout: Annotated[Duration, Field(ge=1)] = 120
    """Bound of one git operation, seconds."""
    max_repository: Size = 2**28
    """Bound of a fetch, bytes."""
    keep_free: Percent = 0
    """Share of the disk that downloads leave free."""
    log_limit: Size = 2**26
    """Bytes kept of one instance's output."""
    note: Text = ""
    """For people."""
    download_connections: Annotated[int, Field(ge=1, le=64)] = 4
    """Requests at once for one model."""
    download_stall: Annotated[Positive, Field(le=3600)] = 30
    """Seconds without a byte after which a source is given up."""
    secrets: dict[Name, SecretRef] = {}
    """Where secrets are, by the names under which `sources` refers to them."""
    sources: SourceAccess = SourceAccess.model_construct()
    """How sources of models are reached."""

    @model_validator(mode="after")
    def _secrets_exist(self) -> NodeConfig:
        unknown = [name for name in self.sources.secrets() if name not in self.secrets]
        if unknown:
            raise ValueError(f"sources refers to the secret {unknown[0]!r}, which secrets does not list")
        return self
