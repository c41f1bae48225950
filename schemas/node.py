"""`node.yaml`: what the node's owner decides about the node."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, StringConstraints, model_validator

from schemas.access import AbsolutePath, SecretRef, SourceAccess
from schemas.base import Digest, Document, Duration, Frozen, Label, Name, Percent, Positive, Size, Text, Url
from schemas.snapshot import Mode, Unenforced


class Repository(Frozen):
    """A git repository of the network, or a mirror of one."""

    url: Annotated[
        str,
        StringConstraints(
            pattern=r"^((file|https|ssh)://|/)[!-~]{1,2000}$|^[A-Za-z0-9._-]+@[A-Za-z0-9.-]+:[!-~]{1,1000}$"
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


class NodePolicy(Frozen):
    """The owner's rules. Network and owner must both allow what is weaker than the default."""

    modes: Annotated[tuple[Mode, ...], Field(min_length=1)] = ("container", "native")
    """Execution modes allowed."""
    prefer: Mode | None = None
    """The owner's preference; wins over the snapshot's."""
    default: Mode | None = None
    """Used when neither owner nor snapshot prefers one that is available."""
    sources: SourcePolicy = SourcePolicy.model_construct()
    """From where models may be fetched."""
    reserve: Size = 2**28
    """Disk kept for the node's own state, bytes."""


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
    repositories: Annotated[tuple[Repository, ...], Field(min_length=1, max_length=16)]
    """All are asked; the highest valid snapshot wins."""
    branch: Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._/-]{0,127}$")] = "main"
    """Branch that holds the documents."""
    trust: TrustPin
    """The first trust document."""
    state_dir: AbsolutePath
    """Where this node keeps everything; one reconciler at a time."""
    account: Annotated[str, StringConstraints(pattern=r"^(0x[0-9a-fA-F]{40}|[^@\s]{1,64}@[^@\s]{1,190})$")] | None = (
        None
    )
    """The account that controls this node: a wallet address or an e-mail."""
    labels: dict[Label, Label] = {}
    """For selectors."""
    identity: IdentityConfig = IdentityConfig.model_construct()
    """The node's key."""
    backends: Backends = Backends.model_construct(native=NativeBackend.model_construct())
    """How instances may be run here."""
    policy: NodePolicy = NodePolicy.model_construct()
    """The owner's rules."""
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
