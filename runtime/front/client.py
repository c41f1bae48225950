"""A client's connection: at most one request at a time, bounded in size, time and memory."""

from __future__ import annotations

import asyncio
import select
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, Final, cast

from runtime.connection import peer
from runtime.front.reading import RequestReader, end_head, plain
from runtime.front.rules import NOT_HELD, Refused, check_target, fit, parse, unavailable
from runtime.front.upstream import Upstream

if TYPE_CHECKING:
    from collections.abc import Callable

    from runtime.front.relay import Relay
    from runtime.front.route import Route

REQUEST_SECONDS: Final = 30.0
"""From the first byte of a request to its last."""
IDLE_SECONDS: Final = 75.0
"""How long a connection may stay between two requests; nginx's default."""
LINGER_SECONDS: Final = 2.0
"""How long a refused client may go on sending before its connection is closed on it."""
GONE_SECONDS: Final = 0.5
"""Between two looks at a client that has closed its sending half: whether it still listens."""
BUFFER: Final = 2**16
"""Bytes that wait for a slow reader before its engine connection is held back."""


class Client(asyncio.Protocol):
    """One client: at most one request at a time."""

    def __init__(self, relay: Relay) -> None:
        self._relay = relay
        self._transport: asyncio.Transport = None  # type: ignore[assignment] # set before anything else is called
        self._reader = self._new_reader()
        self._question: dict[str, Any] | None = None
        self._busy = False
        """A complete request is being waited with, forwarded or answered."""
        self._last = False
        """The connection ends with this answer."""
        self._lingering = False
        self._half_closed = False
        self._deadline: asyncio.TimerHandle | None = None
        self._until = 0.0
        """When it stops waiting for a route, on the loop's clock; 0 before it waits."""
        self._upstream: Upstream | None = None

    # --- asyncio's calls ------------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """A client came: is it one of ours?"""
        self._transport = cast("asyncio.Transport", transport)
        self._transport.set_write_buffer_limits(high=BUFFER)
        relay = self._relay
        relay.clients.add(self)
        _, uid = peer(transport.get_extra_info("socket"))
        if uid not in relay.settings.allow:
            self._refuse(Refused(403, "forbidden", f"user {uid} may not use this socket"))
        elif len(relay.clients) > relay.settings.connections:
            self._refuse(Refused(503, "overloaded", "too many connections", Retry_After="1"))
        else:
            self._arm(IDLE_SECONDS, self._expire)

    def data_received(self, data: bytes) -> None:
        """Bytes of a request."""
        if self._lingering:
            return
        if self._busy:
            # A second request before the first is answered: never looked at, and the connection ends with the answer.
            self._last = True
            return
        if not self._reader.begun:
            self._arm(REQUEST_SECONDS, self._expire)
        try:
            self._reader.feed(data)
        except Refused as refused:
            self._refuse(refused)
            return
        if self._reader.complete:
            self._accept()
        elif self._reader.wants_continue:
            self._reader.wants_continue = False
            self._transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")

    def eof_received(self) -> bool:
        """The client sends no more. It may still listen, or be gone altogether."""
        if not self._busy or self._is_gone():
            return False
        self._last = self._half_closed = True
        self._watch()
        return True

    def connection_lost(self, exc: Exception | None) -> None:
        """The client is gone: nobody waits for what the engine computes."""
        del exc
        relay = self._relay
        relay.clients.discard(self)
        relay.left.set()
        relay.leave(self)
        relay.counts["gone"] += self._busy
        self._end_request()

    def pause_writing(self) -> None:
        """The client reads slowly."""
        if self._upstream is not None:
            self._upstream.pause()

    def resume_writing(self) -> None:
        """It has caught up."""
        if self._upstream is not None:
            self._upstream.resume()

    # --- a request's way ------------------------------------------------------------------------------------------

    def _accept(self) -> None:
        """The request is complete."""
        self._busy = True
        self._last = self._reader.followed or not self._reader.keep_alive
        self._disarm()
        try:
            if self._reader.method == "POST":
                self._question = parse(bytes(self._reader.body))
        except Refused as refused:
            self._answer(refused)
            return
        self.forward()

    def forward(self) -> None:
        """Give the request to the runtime, or let it wait for one."""
        route = self._relay.route()
        if self._upstream is not None:
            return
        if route.state != "serving":
            self._wait(route)
            return
        body = bytes(self._reader.body)
        try:
            check_target(route.engine, self._reader.method, self._reader.target)
            if self._question is not None:
                body = fit(route, self._reader.target, body, self._question)
        except Refused as refused:
            self._answer(refused)
            return
        self._relay.leave(self)
        self._arm(route.timeout, self._overdue)
        self._upstream = Upstream(self, self._relay, route)
        self._relay.start(self._upstream.ask(self._reader.method, self._reader.target, body))

    def dismiss(self) -> None:
        """Nothing is waited for any more: no runtime, and no request."""
        if self._busy:
            if self._upstream is None:
                self._wait(self._relay.route())
        elif self._reader.begun and not self._lingering:
            self._refuse(unavailable(self._relay.route(), "this front ends"))
        elif not self._lingering:
            self._close()

    def _wait(self, route: Route) -> None:
        if self._relay.leaving:
            self._answer(unavailable(route, "this front ends"))
        elif route.state == "none":
            self._answer(unavailable(route, "nothing serves on this node now"))
        elif self._reader.target in NOT_HELD:
            self._answer(unavailable(route, "the runtime is being replaced"))
        elif not self._relay.wait(self):
            self._answer(unavailable(route, f"{route.max_queue} requests wait for the runtime already"))
        else:
            now = asyncio.get_running_loop().time()
            # One bound for all its waiting, however often the route changes meanwhile.
            self._until = self._until or now + route.hold
            self._arm(self._until - now, partial(self._give_up, route))

    def _give_up(self, route: Route) -> None:
        self._answer(unavailable(route, f"no runtime was there within {route.hold:g} s"))

    # --- called by the runtime's connection -----------------------------------------------------------------------

    def unreachable(self, route: Route, why: str) -> None:
        """Nothing was sent: the instance is not there. Its agent will notice too, and lead elsewhere."""
        self._upstream = None
        self._relay.report(f"{route.instance} cannot be reached: {why}")
        if self._relay.route() is route:
            self._wait(replace(route, state="holding"))
        else:
            self.forward()

    def asked(self) -> None:
        """The request is with the engine: what it said need not be kept."""
        self._free()

    def send_head(self, head: bytes) -> None:
        """The engine has begun to answer."""
        self._last = self._last or self._relay.retiring
        self._transport.write(end_head(head, close=self._last))

    def send(self, data: bytes) -> None:
        """A part of the answer's body, framed."""
        self._transport.write(data)

    def finish(self) -> None:
        """The answer is complete."""
        self._relay.counts["served"] += 1
        self._end_request()
        self._next()

    def cut(self) -> None:
        """The answer has no end: it ends without its framing's end, which no client takes for whole."""
        self._end_request()
        self._close()

    def fail(self, refused: Refused) -> None:
        """The engine did not answer."""
        self._answer(refused)

    # --- inside ---------------------------------------------------------------------------------------------------

    def _answer(self, refused: Refused) -> None:
        """An answer of the front's own to a complete request."""
        counted = {503: "unavailable", 502: "failed", 504: "failed"}.get(refused.status, "refused")
        self._relay.counts[counted] += 1
        self._last = self._last or self._relay.retiring
        self._end_request()
        self._transport.write(plain(refused.status, refused.body(), close=self._last, headers=refused.headers))
        self._next()

    def _refuse(self, refused: Refused) -> None:
        """An answer to what is no request to be served; whatever still comes is not looked at."""
        self._relay.counts["unavailable" if refused.status == 503 else "refused"] += 1  # noqa: PLR2004 - HTTP's
        self._lingering = True
        self._transport.write(plain(refused.status, refused.body(), close=True, headers=refused.headers))
        if self._transport.can_write_eof():
            self._transport.write_eof()
        self._arm(LINGER_SECONDS, self._transport.abort)

    def _end_request(self) -> None:
        """Nothing of the request is left here."""
        self._busy = False
        self._until = 0.0
        self._question = None
        self._free()
        self._disarm()
        self._relay.leave(self)
        upstream, self._upstream = self._upstream, None
        if upstream is not None:
            upstream.abort()

    def _free(self) -> None:
        self._relay.bodies -= len(self._reader.body)
        self._reader.body.clear()

    def _next(self) -> None:
        """Ready for the next request, or done."""
        if self._last:
            self._close()
            return
        self._reader = self._new_reader()
        self._arm(IDLE_SECONDS, self._expire)

    def _close(self) -> None:
        """Close once what was written has been read, or never will be."""
        self._transport.close()
        self._arm(IDLE_SECONDS, self._transport.abort)

    def _new_reader(self) -> RequestReader:
        relay = self._relay
        return RequestReader(check=self._check, max_body=relay.settings.max_body, reserve=relay.reserve)

    def _check(self, method: str, target: str) -> None:
        route = self._relay.route()
        if route.state != "none":
            check_target(route.engine, method, target)

    def _expire(self) -> None:
        if self._reader.begun:
            self._refuse(Refused(408, "timeout", f"the request was not complete within {REQUEST_SECONDS:g} s"))
        else:
            self._close()

    def _overdue(self) -> None:
        if self._upstream is not None:
            self._upstream.overdue()

    def _watch(self) -> None:
        """Notice that a client which only listens has stopped listening: no event tells."""
        if self._busy and not self._transport.is_closing():
            if self._is_gone():
                self._transport.abort()
            else:
                asyncio.get_running_loop().call_later(GONE_SECONDS, self._watch)

    def _is_gone(self) -> bool:
        poll = select.poll()
        poll.register(self._transport.get_extra_info("socket").fileno(), 0)
        return bool(poll.poll(0))

    def _arm(self, seconds: float, call: Callable[[], None]) -> None:
        self._disarm()
        self._deadline = asyncio.get_running_loop().call_later(seconds, call)

    def _disarm(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None
