"""Connections to where bytes may come from: to an address that the policy allows, or to the owner's proxy.

Behind a proxy this node resolves no name and connects to nothing but the proxy, which the owner named; so it is the
proxy's rules that decide which addresses a name may lead to. An address written as a number, in whatever spelling, and
the machine's own name are checked here all the same.
"""

from __future__ import annotations

import http.client
import socket
import ssl
import threading
from typing import TYPE_CHECKING, Final

from runtime.models.addresses import Location, permitted, resolve
from runtime.models.sources import Interrupted, Refused
from schemas.errors import ConfigError

if TYPE_CHECKING:
    from runtime.models.reach import Proxy, Reach
    from runtime.models.sources import Watch
    from schemas.node import SourcePolicy

_CONNECT_SECONDS: Final = 10.0
"""Longest wait for one address to accept a connection; a host may have several."""

_MAX_ADDRESSES: Final = 4
"""Addresses of one host that are tried."""


class Dialer:
    """Makes connections for the sessions of one source. Shared by threads."""

    def __init__(self, policy: SourcePolicy, reach: Reach, *, stall: float) -> None:
        """Prepare.

        Args:
            policy: what the node allows.
            reach: the proxy.
            stall: seconds of silence that are borne.
        """
        self._policy = policy
        self._reach = reach
        self._stall = stall
        self._lock = threading.Lock()
        self._tls: ssl.SSLContext | None = None

    def proxy(self, place: Location) -> Proxy | None:
        """The proxy on the way to an address, None if there is none.

        Raises:
            Refused: its configuration cannot be used.
        """
        try:
            return self._reach.proxy(place)
        except ConfigError as error:
            raise Refused(error.message) from error

    def connect(self, place: Location, watch: Watch) -> http.client.HTTPConnection:
        """A connection over which the address may be asked.

        Args:
            place: whom to reach.
            watch: may end the wait.

        Raises:
            Refused: the policy allows no address of the host, or its certificate is not good.
            Interrupted: nobody answers there now.
        """
        proxy = self.proxy(place)
        if proxy is None:
            addresses = resolve(place, self._policy)
            port, who = place.port, place.authority
        else:
            _check_written(place, self._policy)
            addresses = _resolve_proxy(proxy)
            port, who = proxy.port, f"the proxy {proxy.host}:{proxy.port}"
        failure: Interrupted | None = None
        for family, address in addresses[:_MAX_ADDRESSES]:
            try:
                return self._dial(place, family, (address, port), proxy, watch, who)
            except Interrupted as error:
                failure = error
                if watch.cause:
                    break
        raise failure if failure is not None else Interrupted("nothing to connect to")

    def _dial(
        self,
        place: Location,
        family: socket.AddressFamily,
        address: tuple[str, int],
        proxy: Proxy | None,
        watch: Watch,
        who: str,
    ) -> http.client.HTTPConnection:
        plain = socket.socket(family, socket.SOCK_STREAM)
        try:
            plain.settimeout(min(_CONNECT_SECONDS, self._stall))
            watch.attach(plain)
            plain.connect(address)
            if proxy is not None and place.scheme == "https":
                _open_tunnel(plain, place, proxy)
            connected = plain if place.scheme == "http" else self._handshake(plain, place, watch)
        except ssl.SSLCertVerificationError as error:
            plain.close()
            raise Refused(f"the certificate of {place.host} is not good: {error.verify_message}") from error
        except (Interrupted, Refused):
            plain.close()
            raise
        except (OSError, ValueError, http.client.HTTPException) as error:
            plain.close()
            if watch.cause:
                raise Interrupted(watch.cause) from error
            reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
            raise Interrupted(f"cannot connect to {who}: {reason}") from error
        connected.settimeout(self._stall)
        connection = http.client.HTTPConnection(place.host, place.port)
        connection.sock = connected
        connection.auto_open = 0  # it would connect by name again, past the policy
        return connection

    def _handshake(self, plain: socket.socket, place: Location, watch: Watch) -> ssl.SSLSocket:
        secured = self._context().wrap_socket(plain, server_hostname=place.host, do_handshake_on_connect=False)
        try:
            watch.attach(secured)
            secured.do_handshake()
        except BaseException:
            secured.close()
            raise
        return secured

    def _context(self) -> ssl.SSLContext:
        """The machine's trusted certificates, read once."""
        with self._lock:
            if self._tls is None:
                self._tls = ssl.create_default_context()
            return self._tls


def _open_tunnel(plain: socket.socket, place: Location, proxy: Proxy) -> None:
    """Have the proxy connect to the address (RFC 9110, section 9.3.6). What passes from then on is TLS.

    Raises:
        Refused: the proxy does not let this node through.
        Interrupted: it cannot now.
    """
    host = f"[{place.host}]" if ":" in place.host else place.host
    target = f"{host}:{place.port}"
    lines = [f"CONNECT {target} HTTP/1.1", f"Host: {target}"]
    if proxy.authorization:
        lines.append(f"Proxy-Authorization: {proxy.authorization}")
    plain.sendall("\r\n".join([*lines, "", ""]).encode("ascii"))
    # The other side of the tunnel says nothing before we do, so nothing of it can be swallowed here.
    answer = http.client.HTTPResponse(plain, method="CONNECT")
    try:
        answer.begin()
    finally:
        answer.close()
    if answer.status in (401, 403, 405, 407):
        raise Refused(f"the proxy answered {answer.status} {answer.reason} when asked for {target}")
    if not 200 <= answer.status < 300:  # noqa: PLR2004 - the class of success
        raise Interrupted(f"the proxy answered {answer.status} {answer.reason} when asked for {target}")


def _resolve_proxy(proxy: Proxy) -> list[tuple[socket.AddressFamily, str]]:
    try:
        found = socket.getaddrinfo(proxy.host, proxy.port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        raise Interrupted(f"the name of the proxy, {proxy.host}, does not resolve") from error
    return list(dict.fromkeys((family, str(address[0])) for family, _, _, _, address in found))


def _check_written(place: Location, policy: SourcePolicy) -> None:
    """Judge what can be judged without resolving a name.

    Raises:
        Refused: the address is written as a number that the policy does not allow, or means this machine.
    """
    name = place.host.rstrip(".")
    own = name == "localhost" or name.endswith(".localhost")
    try:
        found = socket.getaddrinfo(place.host, place.port, type=socket.SOCK_STREAM, flags=socket.AI_NUMERICHOST)
    except (OSError, UnicodeError):
        found = []
    if (own and not policy.allow_private) or not all(permitted(str(entry[4][0]), policy) for entry in found):
        raise Refused(f"this node's policy allows no connection to {place.host}")
