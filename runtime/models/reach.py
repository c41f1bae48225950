"""How sources are reached from this node, beyond what its policy allows: credentials, endpoints, proxy, bandwidth."""

from __future__ import annotations

import base64
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final
from urllib.parse import unquote, urlsplit

from runtime.secrets import Secrets
from schemas.access import SourceAccess, StoreAccess
from schemas.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from runtime.models.addresses import Location
    from runtime.models.throttle import Throttle

HUB: Final = "https://huggingface.co"
"""The hub that `hf://` means where nobody says otherwise."""


@dataclass(frozen=True, slots=True)
class Proxy:
    """A proxy, and what it is told."""

    host: str
    port: int
    authorization: str = field(default="", repr=False)


@dataclass(frozen=True, slots=True)
class Reach:
    """What the node's configuration says about reaching sources. Secrets are read when they are needed."""

    settings: SourceAccess = field(default_factory=SourceAccess.model_construct)
    secrets: Secrets = field(default_factory=Secrets, repr=False)
    environment: Mapping[str, str] = field(default_factory=dict, repr=False)
    """For the variables that every tool of the trade obeys: `HF_ENDPOINT`, and those of proxies."""
    throttle: Throttle | None = None

    def paused(self) -> bool:
        """Whether nothing may be downloaded now."""
        return self.throttle is not None and self.throttle.paused()

    def authorization(self, place: Location) -> str:
        """What is shown to the host of an `https://` source; "" if nothing.

        Raises:
            ConfigError: the secret cannot be read.
        """
        full = f"{place.host}:{place.port}"
        for entry in self.settings.credentials:
            if entry.host in (place.authority, full):
                secret = self.secrets.read(entry.secret)
                return _basic(entry.user, secret) if entry.user is not None else f"Bearer {secret}"
        return ""

    @property
    def hub(self) -> str:
        """Address of the hub, without a slash at its end."""
        return (self.settings.hub.endpoint or self.environment.get("HF_ENDPOINT") or HUB).rstrip("/")

    def hub_authorization(self) -> str:
        """What is shown to the hub; "" if nothing.

        Raises:
            ConfigError: the secret cannot be read.
        """
        name = self.settings.hub.secret
        return f"Bearer {self.secrets.read(name)}" if name is not None else ""

    def store(self, bucket: str) -> StoreAccess:
        """How a bucket is reached."""
        stores = self.settings.stores
        own = [entry for entry in stores if entry.bucket == bucket]
        others = [entry for entry in stores if entry.bucket is None]
        return next(iter([*own, *others]), StoreAccess.model_construct())

    def proxy(self, place: Location) -> Proxy | None:
        """The proxy through which an address is reached, None for the direct way.

        Raises:
            ConfigError: the proxy's address or its password cannot be read.
        """
        # Only where something is fetched; typeshed does not know it.
        from urllib.request import proxy_bypass_environment  # type: ignore[attr-defined]  # noqa: PLC0415

        configured = self.settings.proxy
        if configured is not None:
            exceptions = {"no": ",".join(configured.except_)}
            if configured.except_ and proxy_bypass_environment(place.authority, exceptions):
                return None
            parts = urlsplit(configured.url)
            authorization = ""
            if configured.user is not None and configured.secret is not None:
                authorization = _basic(configured.user, self.secrets.read(configured.secret))
            return Proxy(parts.hostname or "", parts.port or 80, authorization)
        found = self._variable(f"{place.scheme}_proxy") or self._variable("all_proxy")
        exceptions = {"no": self._variable("no_proxy")}
        if not found or (exceptions["no"] and proxy_bypass_environment(place.authority, exceptions)):
            return None
        return _proxy(found)

    def _variable(self, name: str) -> str:
        """A variable in either spelling; the lower-case one wins, as in curl."""
        value = self.environment.get(name)
        # A web server sets HTTP_PROXY from a request's header of that name (httpoxy, CVE-2016-5385).
        if value is None and not (name == "http_proxy" and "REQUEST_METHOD" in self.environment):
            value = self.environment.get(name.upper())
        return value or ""


def _proxy(address: str) -> Proxy:
    """The proxy of an environment variable, which may bring its user and password along."""
    try:
        parts = urlsplit(address if "://" in address else f"http://{address}")
        port = parts.port
    except ValueError as error:
        raise ConfigError("the proxy's address in the environment cannot be read") from error
    if parts.scheme != "http" or not parts.hostname:
        raise ConfigError("the proxy in the environment is none that is spoken to over plain http (http://host:port)")
    authorization = ""
    if parts.username is not None:
        authorization = _basic(unquote(parts.username), unquote(parts.password or ""))
    return Proxy(parts.hostname, port or 80, authorization)


def _basic(user: str, password: str) -> str:
    return "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()
