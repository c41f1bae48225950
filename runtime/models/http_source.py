"""Model files over http and https: ranged requests on kept connections, every answer checked, every hop re-checked.

Built on `http.client`: a redirect has to be judged before it is followed, a connection has to go to the very address
that was judged, and the body has to be read into a buffer of ours without a copy. Nothing above `http.client` offers
these three (urllib3's `readinto` reads first and copies then).
"""

from __future__ import annotations

import http.client
import re
import socket
import ssl
import threading
from contextlib import suppress
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Final

from runtime.models.addresses import Location, locate, redirected, resolve
from runtime.models.sources import Interrupted, Refused, Unsuitable, Watch, WholeOnly, WrongContent

if TYPE_CHECKING:
    from io import BufferedReader

    from schemas.node import SourcePolicy
    from schemas.ports import Clock

_MAX_HOPS: Final = 5
"""Redirects followed for one request: hubs need two, a loop ends here."""

_CONNECT_SECONDS: Final = 10.0
"""Longest wait for one address to accept a connection; a host may have several."""

_MAX_ADDRESSES: Final = 4
"""Addresses of one host that are tried."""

_MAX_DRAIN: Final = 2**16
"""Bytes of an unwanted body that are read so that its connection can be kept."""

_CHUNKED_READ: Final = 2**16
"""Bytes asked for at once where `http.client` waits for all of them: keeps the transfer observable."""

_CONTENT_RANGE: Final = re.compile(r"bytes ([0-9]{1,18})-([0-9]{1,18})/([0-9]{1,18}|\*)")

_REDIRECTS: Final = frozenset({301, 302, 303, 307, 308})
_PASSING: Final = frozenset({408, 425, 429, 500, 502, 503, 504})
_EXPIRED: Final = frozenset({401, 403, 404, 410})
"""Statuses by which a redirect's target says that its address is no longer good."""

_HEADERS: Final = {"Accept": "*/*", "Accept-Encoding": "identity", "User-Agent": "inference-reconciler"}


class HttpSource:
    """A base address. Remembers for every file where a redirect led, until that address expires."""

    def __init__(self, address: str, policy: SourcePolicy, *, stall: float, clock: Clock) -> None:
        """See `open_source`.

        Raises:
            Refused: the policy does not allow the address.
        """
        self._base = locate(address, policy)
        self.policy = policy
        self.stall = stall
        self.clock = clock
        self.shown = self._base.shown
        self._lock = threading.Lock()
        self._moved: dict[str, Location] = {}
        self._tls: ssl.SSLContext | None = None

    def session(self) -> HttpSession:
        """A reader."""
        return HttpSession(self)

    def tls(self) -> ssl.SSLContext:
        """The machine's trusted certificates, read once."""
        with self._lock:
            if self._tls is None:
                self._tls = ssl.create_default_context()
            return self._tls

    def place(self, path: str) -> tuple[Location, bool]:
        """Where to ask for a file, and whether a redirect told so."""
        with self._lock:
            moved = self._moved.get(path)
        return (self._base.child(path), False) if moved is None else (moved, True)

    def moved(self, path: str, place: Location | None) -> None:
        """Remember where a redirect led, or forget it."""
        with self._lock:
            if place is None:
                self._moved.pop(path, None)
            else:
                self._moved[path] = place


class HttpSession:
    """One reader: at most one connection per origin, and at most one answer being read."""

    def __init__(self, source: HttpSource) -> None:
        self._source = source
        self._connections: dict[tuple[str, str, int], http.client.HTTPConnection] = {}
        self._current: http.client.HTTPConnection | None = None
        self._socket: socket.socket | None = None
        self._landed: Location | None = None
        self._response: http.client.HTTPResponse | None = None
        self._path = ""
        self._position = 0
        self._limit = 0
        self._end = 0
        self._watch = Watch(source.clock)

    def open(self, path: str, size: int, start: int, length: int, *, whole: bool, watch: Watch) -> None:
        """See `Session.open`."""
        self._watch = watch
        if self._response is None or self._path != path or self._position > start:
            self._leave()
            self._ask(path, size, start, start + length, whole=whole)
        elif self._socket is not None:
            watch.attach(self._socket)
        self._limit = start + length
        self._skip_to(start)

    def readinto(self, view: memoryview) -> int:
        """See `Session.readinto`."""
        if self._response is None or self._position >= self._limit:
            return 0
        count = self._receive(view[: self._limit - self._position])
        self._watch.receive(count)
        return count

    def measure(self, path: str, watch: Watch) -> int:
        """See `Session.measure`."""
        self._watch = watch
        self._leave()
        place, _ = self._source.place(path)
        response = self._follow(place, 0, 1)
        try:
            return _measured(response, self._source.clock)
        finally:
            self._refuse_body(response)
            watch.detach()

    def finish(self) -> None:
        """See `Session.finish`. An answer that goes on stays open: the next piece may be in it."""
        self._watch.detach()
        if self._position >= self._end:
            self._leave()

    def drop(self) -> None:
        """See `Session.drop`."""
        self._watch.detach()
        response, self._response = self._response, None
        if response is not None:
            response.close()
        self._current = self._socket = None
        for connection in self._connections.values():
            connection.close()
        self._connections.clear()

    # --- reading --------------------------------------------------------------------------------------------------

    def _receive(self, view: memoryview) -> int:
        response = self._response
        if response is None:
            return 0
        try:
            if response.chunked:
                count = response.readinto(view[:_CHUNKED_READ])
            else:
                # One receive straight into the caller's buffer. `readinto` would wait until all of it is full.
                body: BufferedReader | None = response.fp
                count = body.readinto1(view) if body is not None else 0
        except (OSError, http.client.HTTPException, ValueError) as error:
            raise self._interrupted(error) from error
        self._position += count
        return count

    def _skip_to(self, start: int) -> None:
        """Read on to `start` and throw away what comes before it."""
        waste = memoryview(bytearray(min(2**20, start - self._position)))
        while self._position < start:
            count = self._receive(waste[: start - self._position])
            if not count:
                raise Interrupted("the answer ended early")
            self._watch.receive(count)

    def _leave(self) -> None:
        """Be done with the answer: keep its connection if nothing of it is left unread, else close it."""
        response, self._response = self._response, None
        if response is None:
            return
        clean = self._position >= self._end and not response.chunked
        response.close()
        if not clean and self._current is not None:
            self._current.close()

    def _interrupted(self, error: Exception) -> Interrupted:
        if self._watch.cause:
            return Interrupted(self._watch.cause)
        if isinstance(error, TimeoutError):
            return Interrupted(f"no answer for {self._source.stall:g} s")
        text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        return Interrupted(f"the connection broke: {text or type(error).__name__}")

    # --- asking ---------------------------------------------------------------------------------------------------

    def _ask(self, path: str, size: int, start: int, end: int, *, whole: bool) -> None:
        """Send the request, follow redirects, and judge the answer."""
        place, moved = self._source.place(path)
        response = self._follow(place, start, end)
        if moved and response.status in _EXPIRED:
            self._source.moved(path, None)
            self._refuse_body(response)
            place, _ = self._source.place(path)
            response = self._follow(place, start, end)
        self._response, self._path = response, path
        try:
            self._position, self._end = _judge(response, size, start, end, whole=whole, now=self._source)
        except BaseException:
            self._response = None
            self._refuse_body(response)
            self._source.moved(path, None)
            raise
        if self._landed != place:
            self._source.moved(path, self._landed)

    def _follow(self, place: Location, start: int, end: int) -> http.client.HTTPResponse:
        for _ in range(_MAX_HOPS + 1):
            response = self._request(place, start, end)
            if response.status not in _REDIRECTS:
                self._landed = place
                return response
            target = response.headers.get("Location", "")
            self._refuse_body(response)
            place = redirected(place, target, self._source.policy)
        raise Unsuitable(f"more than {_MAX_HOPS} redirects")

    def _refuse_body(self, response: http.client.HTTPResponse) -> None:
        """Get rid of a body that is not wanted."""
        with suppress(OSError, http.client.HTTPException):
            if response.length is not None and response.length <= _MAX_DRAIN and not response.chunked:
                response.read()
                response.close()
                return
        response.close()
        if self._current is not None:
            self._current.close()

    def _request(self, place: Location, start: int, end: int) -> http.client.HTTPResponse:
        kept = self._connections.get(place.origin)
        if kept is not None and kept.sock is not None:
            try:
                return self._send(kept, place, start, end)
            except Interrupted as error:
                # A kept connection may have been closed by the other side meanwhile, or hold the rest of an answer
                # that was longer than announced: neither says anything about a new one.
                stale = isinstance(error.__cause__, ConnectionError | http.client.BadStatusLine)
                if self._watch.cause or not stale:
                    raise
        connection = self._connect(place)
        self._connections[place.origin] = connection
        return self._send(connection, place, start, end)

    def _send(
        self, connection: http.client.HTTPConnection, place: Location, start: int, end: int
    ) -> http.client.HTTPResponse:
        self._current = connection
        headers = {**_HEADERS, "Host": place.authority, "Range": f"bytes={start}-{end - 1}"}
        if place.authorization:
            headers["Authorization"] = place.authorization
        # Held here, too: `http.client` forgets it when the answer says that the connection will be closed.
        self._socket = connection.sock
        if self._socket is not None:
            self._watch.attach(self._socket)
        try:
            connection.request("GET", place.target, headers=headers)
            response = connection.getresponse()
            _check_head(response)
        except (OSError, http.client.HTTPException, ValueError) as error:
            connection.close()
            raise self._interrupted(error) from error
        if self._watch.cause:
            response.close()
            connection.close()
            raise Interrupted(self._watch.cause)
        return response

    def _connect(self, place: Location) -> http.client.HTTPConnection:
        """Connect to an address that the policy allows, and to no other."""
        failure: Interrupted | None = None
        for family, address in resolve(place, self._source.policy)[:_MAX_ADDRESSES]:
            try:
                return self._dial(place, family, address)
            except Interrupted as error:
                failure = error
                if self._watch.cause:
                    break
        raise failure if failure is not None else Interrupted("nothing to connect to")

    def _dial(self, place: Location, family: socket.AddressFamily, address: str) -> http.client.HTTPConnection:
        plain = socket.socket(family, socket.SOCK_STREAM)
        try:
            plain.settimeout(min(_CONNECT_SECONDS, self._source.stall))
            self._watch.attach(plain)
            plain.connect((address, place.port))
            connected = plain if place.scheme == "http" else self._handshake(plain, place)
        except ssl.SSLCertVerificationError as error:
            plain.close()
            raise Refused(f"the certificate of {place.host} is not good: {error.verify_message}") from error
        except Interrupted:
            plain.close()
            raise
        except (OSError, ValueError) as error:
            plain.close()
            if self._watch.cause:
                raise Interrupted(self._watch.cause) from error
            reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
            raise Interrupted(f"cannot connect to {place.authority}: {reason}") from error
        connected.settimeout(self._source.stall)
        connection = http.client.HTTPConnection(place.host, place.port)
        connection.sock = connected
        connection.auto_open = 0  # it would connect by name again, past the policy
        return connection

    def _handshake(self, plain: socket.socket, place: Location) -> ssl.SSLSocket:
        secured = self._source.tls().wrap_socket(plain, server_hostname=place.host, do_handshake_on_connect=False)
        try:
            self._watch.attach(secured)
            secured.do_handshake()
        except BaseException:
            secured.close()
            raise
        return secured


# --- judging an answer --------------------------------------------------------------------------------------------


def _check_head(response: http.client.HTTPResponse) -> None:
    """Tell a head that broke off from one that ended: to `http.client` both look alike.

    Raises:
        ConnectionError: nothing says how long the body is, and there is none.
    """
    useful = response.status in (http.client.OK, http.client.PARTIAL_CONTENT)
    if useful and response.length is None and not response.chunked and not response.peek(1):
        raise ConnectionError("the head of the answer broke off")


def _judge(
    response: http.client.HTTPResponse, size: int, start: int, end: int, *, whole: bool, now: HttpSource
) -> tuple[int, int]:
    """What part of the file an answer holds: its first byte, and the one after its last.

    Raises:
        Unsuitable, WrongContent, WholeOnly, Interrupted: it cannot be used.
    """
    status = response.status
    if status in _PASSING:
        raise Interrupted(f"answered {status} {response.reason}", retry_after=_retry_after(response, now.clock))
    encoding = response.headers.get("Content-Encoding", "identity").strip().lower()
    if status in (200, 206) and encoding != "identity":
        raise Unsuitable(f"sends the file encoded as {encoding}, although it was asked not to")
    if status == http.client.PARTIAL_CONTENT:
        return _judge_part(response, size, start, end)
    if status == http.client.OK:
        return _judge_whole(response, size, start, end, whole=whole)
    if status == http.client.REQUESTED_RANGE_NOT_SATISFIABLE:
        raise WrongContent(f"says that its file ends before byte {end}, where the manifest has {size} bytes")
    raise Unsuitable(f"answered {status} {response.reason}")


def _measured(response: http.client.HTTPResponse, clock: Clock) -> int:
    """Bytes of a whole file, from the answer to a request for its first byte."""
    if response.status in _PASSING:
        raise Interrupted(f"answered {response.status} {response.reason}", retry_after=_retry_after(response, clock))
    match = _CONTENT_RANGE.fullmatch(response.headers.get("Content-Range", "").strip())
    if response.status == http.client.PARTIAL_CONTENT and match is not None and match.group(3) != "*":
        return int(match.group(3))
    if response.status == http.client.OK and response.length is not None:
        return response.length
    if response.status in (http.client.OK, http.client.PARTIAL_CONTENT):
        raise Unsuitable("does not say how large the file is")
    raise Unsuitable(f"answered {response.status} {response.reason}")


def _judge_part(response: http.client.HTTPResponse, size: int, start: int, end: int) -> tuple[int, int]:
    stated = response.headers.get("Content-Range", "")
    match = _CONTENT_RANGE.fullmatch(stated.strip())
    if match is None:
        raise Unsuitable("sends a part of the file without saying which")
    first, last, total = match.groups()
    if total != "*" and int(total) != size:
        raise WrongContent(f"has {total} bytes where the manifest has {size}")
    if (int(first), int(last)) != (start, end - 1):
        raise Unsuitable(f"sends bytes {first}-{last} when asked for {start}-{end - 1}")
    if response.length is not None and response.length != end - start:
        raise Unsuitable(f"announces {response.length} bytes for a part of {end - start}")
    return start, end


def _judge_whole(
    response: http.client.HTTPResponse, size: int, start: int, end: int, *, whole: bool
) -> tuple[int, int]:
    kind = response.headers.get_content_type()
    if response.length != size:
        if kind == "text/html":
            raise Unsuitable("answers with a web page instead of the file: a login page?")
        raise Unsuitable(f"answers with a whole document of {response.length} bytes where the manifest has {size}")
    if (start, end) == (0, size) or whole:
        return 0, size
    raise WholeOnly("sends whole files only")


def _retry_after(response: http.client.HTTPResponse, clock: Clock) -> float | None:
    """Seconds to wait, from seconds or an HTTP date (RFC 9110, section 10.2.3)."""
    value = response.headers.get("Retry-After", "").strip()
    if re.fullmatch(r"[0-9]{1,9}", value):
        return float(value)
    with suppress(ValueError):
        moment = parsedate_to_datetime(value)
        if moment.tzinfo is not None:
            return max(0.0, (moment - clock.now()).total_seconds())
    return None
