"""Model files over http and https: ranged requests on kept connections, every answer checked, every hop re-checked.

Built on `http.client`: a redirect has to be judged before it is followed, a connection has to go to the very address
that was judged, and the body has to be read into a buffer of ours without a copy. Nothing above `http.client` offers
these three (urllib3's `readinto` reads first and copies then).
"""

from __future__ import annotations

import http.client
import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import TYPE_CHECKING, Final

from runtime.models.addresses import Location, redirected
from runtime.models.answers import check_head, judge, measured
from runtime.models.dialing import Dialer
from runtime.models.reach import Reach
from runtime.models.sources import Interrupted, Unsuitable, Watch

if TYPE_CHECKING:
    import socket
    from io import BufferedReader

    from schemas.node import SourcePolicy
    from schemas.ports import Clock

Signer = Callable[[Location, Mapping[str, str]], Mapping[str, str]]
"""Makes the headers that sign a request, from its address and the headers that it has."""

_MAX_HOPS: Final = 5
"""Redirects followed for one request: hubs need two, a loop ends here."""

_MAX_DRAIN: Final = 2**16
"""Bytes of an unwanted body that are read so that its connection can be kept."""

_CHUNKED_READ: Final = 2**16
"""Bytes asked for at once where `http.client` waits for all of them: keeps the transfer observable."""

_REDIRECTS: Final = frozenset({301, 302, 303, 307, 308})
_EXPIRED: Final = frozenset({401, 403, 404, 410})
"""Statuses by which a redirect's target says that its address is no longer good."""

_HEADERS: Final = {"Accept": "*/*", "Accept-Encoding": "identity", "User-Agent": "inference-reconciler"}


class HttpSource:
    """A base address. Remembers for every file where a redirect led, until that address expires."""

    def __init__(
        self,
        base: Location,
        policy: SourcePolicy,
        *,
        stall: float,
        clock: Clock,
        reach: Reach | None = None,
        shown: str = "",
        sign: Signer | None = None,
    ) -> None:
        """Name the source; nothing is asked yet.

        Args:
            base: below which the files lie.
            policy: what the node allows.
            stall: seconds of silence that are borne.
            clock: the time, for `Retry-After` given as a date.
            reach: how the outside is reached.
            shown: the address for people; that of `base` if not given.
            sign: signs requests to the origin of `base`, and to no other.
        """
        self._base = base
        self._sign = sign
        self.policy = policy
        self.stall = stall
        self.clock = clock
        self.reach = reach if reach is not None else Reach()
        self.dialer = Dialer(policy, self.reach, stall=stall)
        self.shown = shown or base.shown
        self._lock = threading.Lock()
        self._moved: dict[str, Location] = {}

    def session(self) -> HttpSession:
        """A reader."""
        return HttpSession(self)

    def credentials(self, place: Location, headers: Mapping[str, str]) -> Mapping[str, str]:
        """The headers that say to an address who asks."""
        if self._sign is not None and place.origin == self._base.origin:
            return self._sign(place, headers)
        return {"Authorization": place.authorization} if place.authorization else {}

    def place(self, path: str) -> tuple[Location, bool]:
        """Where to ask for a file, and whether a redirect told so."""
        with self._lock:
            moved = self._moved.get(path)
        return (self._base.child(path) if path else self._base, False) if moved is None else (moved, True)

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
        response = self._answer(path, 0, 1)
        try:
            return measured(response, self._source.clock)
        finally:
            self._refuse_body(response)
            self._watch.detach()

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
        response, throttle = self._response, self._source.reach.throttle
        if response is None:
            return 0
        if throttle is None:
            return self._receive_some(response, view)
        while not (granted := throttle.grant(len(view))):
            if self._watch.cause:
                raise Interrupted(self._watch.cause)
        count = 0
        try:
            count = self._receive_some(response, view[:granted])
        finally:
            throttle.give_back(granted - count)
        return count

    def _receive_some(self, response: http.client.HTTPResponse, view: memoryview) -> int:
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
        response = self._answer(path, start, end)
        self._response, self._path = response, path
        try:
            self._position, self._end = judge(response, size, start, end, whole=whole, clock=self._source.clock)
        except BaseException:
            self._response = None
            self._refuse_body(response)
            self._source.moved(path, None)
            raise

    def _answer(self, path: str, start: int, end: int) -> http.client.HTTPResponse:
        """The answer from where the file really lies; that place is remembered, and forgotten when it expired."""
        place, moved = self._source.place(path)
        response = self._follow(place, start, end)
        if moved and response.status in _EXPIRED:
            self._source.moved(path, None)
            self._refuse_body(response)
            place, _ = self._source.place(path)
            response = self._follow(place, start, end)
        if self._landed != place:
            self._source.moved(path, self._landed)
        return response

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
        connection = self._source.dialer.connect(place, self._watch)
        self._connections[place.origin] = connection
        return self._send(connection, place, start, end)

    def _send(
        self, connection: http.client.HTTPConnection, place: Location, start: int, end: int
    ) -> http.client.HTTPResponse:
        self._current = connection
        headers = {**_HEADERS, "Host": place.authority, "Range": f"bytes={start}-{end - 1}"}
        headers.update(self._source.credentials(place, headers))
        target = place.target
        proxy = self._source.dialer.proxy(place) if place.scheme == "http" else None
        if proxy is not None:  # a proxy of plain http is asked for the whole address (RFC 9112, section 3.2.2)
            target = f"http://{place.authority}{target}"
            if proxy.authorization:
                headers["Proxy-Authorization"] = proxy.authorization
        # Held here, too: `http.client` forgets it when the answer says that the connection will be closed.
        self._socket = connection.sock
        if self._socket is not None:
            self._watch.attach(self._socket)
        try:
            connection.request("GET", target, headers=headers)
            response = connection.getresponse()
            check_head(response)
        except (OSError, http.client.HTTPException, ValueError) as error:
            connection.close()
            raise self._interrupted(error) from error
        if self._watch.cause:
            response.close()
            connection.close()
            raise Interrupted(self._watch.cause)
        return response
