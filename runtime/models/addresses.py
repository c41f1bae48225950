"""Where bytes may come from: addresses taken apart, and checked against the node's policy at every hop.

The address that counts is the one that is really connected to: a name is resolved here, each result is checked, and
the connection is made to a checked one, so that a name that answers differently the second time gains nothing.
"""

from __future__ import annotations

import base64
import ipaddress
import re
import socket
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final
from urllib.parse import unquote, urljoin, urlsplit

from runtime.models.sources import Interrupted, Refused

if TYPE_CHECKING:
    from schemas.node import SourcePolicy

_PORTS: Final = {"https": 443, "http": 80}

_ADDRESS: Final = re.compile(r"[!-~]{1,8192}")
"""Printable ASCII without blanks, as long as the longest signed address that object stores hand out."""

_NAT64: Final = ipaddress.IPv6Network("64:ff9b::/96")
"""IPv4 addresses as IPv6 ones, reached through a gateway (RFC 6052)."""

IPAddress = ipaddress.IPv4Address | ipaddress.IPv6Address


@dataclass(frozen=True, slots=True)
class Location:
    """An http or https address, taken apart."""

    scheme: str
    host: str
    """Lower case, without the brackets of an IPv6 literal."""
    port: int
    path: str
    query: str = ""
    authorization: str = ""
    """Value of the Authorization header for this origin; never printed."""

    def __repr__(self) -> str:
        """Without what may be secret: a log must not hold it."""
        return f"Location({self.shown})"

    @property
    def origin(self) -> tuple[str, str, int]:
        """What credentials belong to, and what a connection may be reused for."""
        return (self.scheme, self.host, self.port)

    @property
    def authority(self) -> str:
        """Host and port as the Host header has them."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == _PORTS[self.scheme] else f"{host}:{self.port}"

    @property
    def shown(self) -> str:
        """The address for people: without credentials and query, which may be a signature."""
        return f"{self.scheme}://{self.authority}{self.path}"

    @property
    def target(self) -> str:
        """Path and query, as a request line has them."""
        return f"{self.path or '/'}?{self.query}" if self.query else self.path or "/"

    def child(self, relative: str) -> Location:
        """The address of a file below this base address; the query, often a token, stays."""
        # The one character of a manifest's paths that servers read in two ways.
        encoded = relative.replace("+", "%2B")
        return replace(self, path=f"{self.path.rstrip('/')}/{encoded}")


def locate(address: str, policy: SourcePolicy) -> Location:
    """Take an http or https address apart.

    Args:
        address: absolute.
        policy: what the node allows.

    Raises:
        Refused: not such an address, or the policy does not allow its scheme.
    """
    if not _ADDRESS.fullmatch(address):
        raise Refused("its address is not plain ASCII, or far too long")
    try:
        parts = urlsplit(address)
        port = parts.port
    except ValueError as error:
        raise Refused("its address cannot be read") from error
    if parts.scheme not in _PORTS:
        raise Refused(f"{parts.scheme or 'an address without a scheme'} is not a way to fetch models here")
    if parts.scheme == "http" and not policy.allow_http:
        raise Refused("plain http is not allowed by this node's policy (policy.sources.allowHttp)")
    if not parts.hostname:
        raise Refused("its address names no host")
    authorization = ""
    if parts.username is not None:
        pair = f"{unquote(parts.username)}:{unquote(parts.password or '')}"
        authorization = "Basic " + base64.b64encode(pair.encode()).decode()
    return Location(
        scheme=parts.scheme,
        host=parts.hostname,
        port=_PORTS[parts.scheme] if port is None else port,
        path=parts.path,
        query=parts.query,
        authorization=authorization,
    )


def redirected(current: Location, target: str, policy: SourcePolicy) -> Location:
    """The address that a redirect leads to. Credentials stay behind when the origin changes.

    Args:
        current: the address that answered.
        target: its Location header.
        policy: what the node allows.

    Raises:
        Refused: not http or https, or not allowed by the policy.
    """
    if not target:
        raise Refused("it redirects without saying where to")
    if not _ADDRESS.fullmatch(target):
        raise Refused("it redirects to an address that is not plain ASCII, or far too long")
    try:
        absolute = urljoin(f"{current.scheme}://{current.authority}{current.target}", target)
        location = locate(absolute, policy)
    except ValueError as error:
        raise Refused("it redirects to an address that cannot be read") from error
    except Refused as error:
        raise Refused(f"it redirects to an address that is refused: {error}") from error
    # What a redirect itself brings along as user and password is not ours: dropped, too.
    kept = current.authorization if location.origin == current.origin else ""
    return replace(location, authorization=kept)


def resolve(location: Location, policy: SourcePolicy) -> list[tuple[socket.AddressFamily, str]]:
    """The addresses of a host that may be connected to, in the resolver's order.

    Raises:
        Refused: the host has addresses, and the policy allows none of them.
        Interrupted: the name does not resolve now.
    """
    try:
        found = socket.getaddrinfo(location.host, location.port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:  # UnicodeError: a label too long for the international encoding
        raise Interrupted(f"the name {location.host} does not resolve") from error
    addresses: dict[tuple[socket.AddressFamily, str], None] = {}
    for family, _, _, _, address in found:
        addresses[family, str(address[0])] = None
    allowed = [(family, text) for family, text in addresses if permitted(text, policy)]
    if not allowed:
        shown = ", ".join(text for _, text in addresses)
        where = shown if shown == location.host else f"{location.host} ({shown})"
        raise Refused(f"this node's policy allows no connection to {where}")
    return allowed


def permitted(address: str, policy: SourcePolicy) -> bool:
    """Whether a numeric address may be connected to.

    Public ones may; private and loopback ones only where the policy says so; link-local (where clouds keep their
    metadata service), multicast, reserved and unspecified ones never.
    """
    ip = _innermost(ipaddress.ip_address(address.partition("%")[0]))
    if ip.is_multicast or ip.is_link_local or ip.is_unspecified:
        return False
    if ip.is_loopback:  # before is_reserved: IPv6's loopback address lies in a reserved block
        return policy.allow_private
    if ip.is_reserved:
        return False
    return ip.is_global or policy.allow_private


def _innermost(ip: IPAddress) -> IPAddress:
    """The IPv4 address inside an IPv6 one that some gateway would unwrap."""
    if isinstance(ip, ipaddress.IPv6Address):
        if ip.ipv4_mapped is not None:
            return ip.ipv4_mapped
        if ip.sixtofour is not None:
            return ip.sixtofour
        if ip in _NAT64:
            return ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF)
    return ip
