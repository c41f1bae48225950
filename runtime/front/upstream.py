"""The connection of one request to the runtime."""

from __future__ import annotations

import asyncio
import socket
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Final, cast

from runtime.backends.native_shim import start_ticks
from runtime.connection import connect
from runtime.front.reading import AnswerReader, request_head
from runtime.front.rules import Refused
from schemas.errors import EngineUnreachable

if TYPE_CHECKING:
    from runtime.front.client import Client
    from runtime.front.relay import Relay
    from runtime.front.route import Route

FULL_SECONDS: Final = 0.01
"""Between two attempts at an instance whose queue of connections is full."""
GATEWAY_TIMEOUT: Final = 504


class Upstream(asyncio.Protocol):
    """One request at one instance, counted from before it is sent until its connection is gone.

    So an instance whose count is zero, once new requests wait, has nothing left to do.
    """

    def __init__(self, client: Client, relay: Relay, route: Route) -> None:
        """Count the request.

        Args:
            client: whose it is.
            relay: counts it.
            route: the instance.
        """
        self._client: Client | None = client
        self._relay = relay
        self._route = route
        self._reader = AnswerReader()
        self._transport: asyncio.Transport | None = None
        self._sent_head = False
        self._counted = True
        relay.answering[route.instance] += 1

    async def ask(self, method: str, target: str, body: bytes) -> None:
        """Connect and send. Until something was sent nothing has happened, and the request may wait for another."""
        try:
            stream = await self._open()
            await asyncio.get_running_loop().create_unix_connection(lambda: self, sock=stream)
        except (OSError, EngineUnreachable) as error:
            self._uncount()
            client, self._client = self._client, None
            if client is not None:
                client.unreachable(self._route, str(error))
            return
        if self._client is None:
            self.abort()
        elif self._transport is not None:
            self._client.asked()
            self._transport.write(request_head(method, target, len(body)) + body)

    # --- asyncio's calls ------------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Connected."""
        self._transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        """A part of the answer."""
        client = self._client
        if client is None:
            return
        out = self._reader.feed(data)
        if self._reader.unfit:
            self._relay.report(self._reader.unfit)
            self._end("the engine's answer cannot be passed on")
            return
        if self._reader.head and not self._sent_head:
            self._sent_head = True
            client.send_head(self._reader.head)
        if out:
            client.send(out)
        if self._reader.complete:
            self.abort()
            client.finish()

    def connection_lost(self, exc: Exception | None) -> None:
        """The engine closed, or died."""
        del exc
        self._transport = None
        self._end("the engine ended before its answer did")
        self._uncount()

    # --- called by the client's connection ------------------------------------------------------------------------

    def overdue(self) -> None:
        """The time that an answer may take is over."""
        self._end(f"no complete answer within {self._route.timeout:g} s", status=GATEWAY_TIMEOUT)

    def abort(self) -> None:
        """Nobody waits any more: the engine sees its client gone, and stops computing."""
        self._client = None
        if self._transport is not None:
            self._transport.abort()

    def pause(self) -> None:
        """Take no more for now."""
        if self._transport is not None:
            self._transport.pause_reading()

    def resume(self) -> None:
        """Go on."""
        if self._transport is not None:
            self._transport.resume_reading()

    # --- inside ---------------------------------------------------------------------------------------------------

    async def _open(self) -> socket.socket:
        """A connection to the instance, its peer checked.

        Raises:
            EngineUnreachable: nothing of the instance's listens there.
            OSError: refused.
        """
        while True:
            stream = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            stream.setblocking(False)  # noqa: FBT003 - the standard library's
            try:
                connect(stream, Path(self._route.socket), partial(is_expected, self._route))
            except BlockingIOError:
                stream.close()
                if self._client is None:
                    raise
                await asyncio.sleep(FULL_SECONDS)
            except BaseException:
                stream.close()
                raise
            else:
                return stream

    def _end(self, why: str, *, status: int = 502) -> None:
        """The answer ends here, without its end."""
        client, self._client = self._client, None
        if self._transport is not None:
            self._transport.abort()
        if client is None:
            return
        if not self._sent_head:
            code = "engine_timeout" if status == GATEWAY_TIMEOUT else "engine_failed"
            client.fail(Refused(status, code, why))
            return
        # Cut while its instance is drained: the deadline passed. Otherwise the engine failed.
        drained = status != GATEWAY_TIMEOUT and self._relay.route().state == "holding"
        self._relay.counts["cutByDrain" if drained else "cut"] += 1
        client.cut()

    def _uncount(self) -> None:
        if self._counted:
            self._counted = False
            self._relay.answering[self._route.instance] -= 1


def is_expected(route: Route, pid: int) -> bool:
    """Whether it is the very process that the agent has checked."""
    with suppress(OSError, ValueError, IndexError):
        return pid == route.pid and start_ticks(pid) == route.ticks
    return False
