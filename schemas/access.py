"""How a node reaches the sources of models: its secrets, hubs, object stores, proxy and bandwidth (`node.yaml`).

A snapshot says which addresses a model may come from, and never how to be let in there: that is the owner's.
"""

from __future__ import annotations

import re
from typing import Annotated, Final

from pydantic import Field, StringConstraints, model_validator

from schemas.base import Frozen, Name, Size, Text
from schemas.policy import Window

AbsolutePath = Annotated[str, StringConstraints(pattern=r"^/[^\x00]*$", max_length=4095)]
Variable = Annotated[str, StringConstraints(pattern=r"^[A-Za-z_][A-Za-z0-9_]{0,127}$")]
HostPort = Annotated[str, StringConstraints(pattern=r"^[a-z0-9]([a-z0-9.-]{0,252})(:[0-9]{1,5})?$")]
HttpUrl = Annotated[str, StringConstraints(pattern=r"^https?://[!-~]{1,2040}$")]

MIN_RATE: Final = 2**18
"""Least bytes a second of a bandwidth limit: with less, 64 connections would each look like a stalled source."""


class SecretRef(Frozen):
    """Where the node finds a secret. Exactly one place."""

    file: AbsolutePath | None = None
    """A file of the agent's user or of root, readable by nobody else (mode 0600)."""
    environment: Variable | None = None
    """A variable of the agent's environment."""
    credential: Name | None = None
    """A systemd credential (`LoadCredential=`)."""

    @model_validator(mode="after")
    def _one_place(self) -> SecretRef:
        if sum(place is not None for place in (self.file, self.environment, self.credential)) != 1:
            raise ValueError("a secret has exactly one of file, environment and credential")
        return self


class HostCredential(Frozen):
    """What is shown to one host of `https://` sources. Other hosts never see it, redirects included."""

    host: HostPort
    """The host, with its port where that is not the scheme's own."""
    secret: Name
    """The secret: a bearer token, or a password where `user` is given."""
    user: Text | None = None
    """User name, for Basic authentication."""


class HubAccess(Frozen):
    """Where `hf://` leads."""

    endpoint: HttpUrl | None = None
    """A Hugging Face compatible hub; absent: `HF_ENDPOINT`, then https://huggingface.co."""
    secret: Name | None = None
    """An access token for it."""


class StoreAccess(Frozen):
    """Where `s3://` leads, for one bucket or for all that have no entry of their own."""

    bucket: Text | None = None
    """The bucket; absent: every other one."""
    endpoint: HttpUrl | None = None
    """An S3-compatible service; absent: Amazon's in the region."""
    region: Annotated[str, StringConstraints(pattern=r"^[a-z0-9-]{1,64}$")] = "us-east-1"
    """Region that signatures name."""
    access_key: Annotated[str, StringConstraints(pattern=r"^[!-~]{1,256}$")] | None = None
    """Access key id. Without it, and without `chain`, requests are anonymous."""
    secret: Name | None = None
    """The secret access key."""
    session: Name | None = None
    """A session token, for temporary keys."""
    chain: bool = False
    """Take credentials from where AWS tools look: environment, shared files, the machine's role."""

    @model_validator(mode="after")
    def _keys_agree(self) -> StoreAccess:
        if (self.access_key is None) != (self.secret is None):
            raise ValueError("accessKey and secret belong together")
        if self.chain and self.access_key is not None:
            raise ValueError("either chain or accessKey, not both")
        if self.session is not None and self.access_key is None:
            raise ValueError("session needs accessKey and secret")
        return self


class ProxyAccess(Frozen):
    """The way out where there is no direct one."""

    url: Annotated[str, StringConstraints(pattern=r"^http://[!-~]{1,512}$")]
    """The proxy, `http://host:port`. Bytes of https sources pass through it encrypted."""
    user: Text | None = None
    """User name, for Basic authentication."""
    secret: Name | None = None
    """Its password."""
    except_: Annotated[tuple[Text, ...], Field(alias="except")] = ()
    """Hosts, and `.domains`, that are reached directly."""

    @model_validator(mode="after")
    def _plain(self) -> ProxyAccess:
        if not re.fullmatch(r"http://(\[[0-9a-fA-F:]+\]|[A-Za-z0-9.-]+)(:[0-9]{1,5})?/?", self.url):
            raise ValueError("a proxy is http://host:port; user and password are given as user and secret")
        if (self.user is None) != (self.secret is None):
            raise ValueError("user and secret belong together")
        return self


Rate = Annotated[Size, Field(description="Bytes a second; 0B pauses downloads.")]


def _fair(rate: int | None) -> None:
    if rate and rate < MIN_RATE:
        raise ValueError("a limit is 0B (no downloads) or at least 256KiB a second")


class BandwidthWindow(Window):
    """A weekly window with a limit of its own."""

    limit: Rate
    """Bytes a second in this window; 0B: no downloads."""

    @model_validator(mode="after")
    def _limit_is_fair(self) -> BandwidthWindow:
        _fair(self.limit)
        return self


class Bandwidth(Frozen):
    """How much of the line downloads may take, all of them together."""

    limit: Rate | None = None
    """Bytes a second outside of all windows; absent: no limit; 0B: downloads in the windows only."""
    windows: Annotated[tuple[BandwidthWindow, ...], Field(max_length=64)] = ()
    """The first that is open decides instead."""

    @model_validator(mode="after")
    def _limit_is_fair(self) -> Bandwidth:
        _fair(self.limit)
        return self


class SourceAccess(Frozen):
    """How sources of models are reached from here."""

    credentials: Annotated[tuple[HostCredential, ...], Field(max_length=64)] = ()
    """Who this node is, to hosts of `https://` sources."""
    hub: HubAccess = HubAccess.model_construct()
    """`hf://`."""
    stores: Annotated[tuple[StoreAccess, ...], Field(max_length=64)] = ()
    """`s3://`: the first entry for the bucket, else the first without a bucket."""
    proxy: ProxyAccess | None = None
    """A proxy; absent: `HTTPS_PROXY`, `HTTP_PROXY` and `NO_PROXY` of the agent's environment."""
    bandwidth: Bandwidth = Bandwidth.model_construct()
    """Limits."""

    def secrets(self) -> tuple[str, ...]:
        """Names of all secrets that are referred to, in order of appearance."""
        proxy = self.proxy.secret if self.proxy is not None else None
        named: list[str | None] = [entry.secret for entry in self.credentials]
        named += [self.hub.secret, proxy]
        named += [name for store in self.stores for name in (store.secret, store.session)]
        return tuple(dict.fromkeys(name for name in named if name is not None))
