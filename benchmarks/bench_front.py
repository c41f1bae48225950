"""What the front costs: latency added, throughput kept with 64 streams; beside the socket behind it.

The instance is a scripted one, so that the figure is the front's and not an engine's: it answers at once, or streams
chunks of server-sent events at the rate of a decoding engine. The client speaks both sockets in turn.
"""

from __future__ import annotations

import asyncio
import json
import os
import statistics
import time
from typing import TYPE_CHECKING

import pytest

from runtime.front.keeper import FrontKeeper, FrontSettings
from runtime.front.route import Route
from runtime.host import host_ports

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from benchmarks.conftest import Figure

STREAMS = 64
RATE = 2000.0
"""Tokens a second over all streams: a large GPU's decode rate."""
TOKENS = 200
"""Tokens of each stream."""
REQUESTS = 400
ROUNDS = 5
BODY = json.dumps({"model": "m:v1", "prompt": "Hello", "max_tokens": TOKENS, "stream": True}).encode()
TOKEN = json.dumps({"id": "cmpl-1", "object": "text_completion", "choices": [{"index": 0, "text": " token"}]})
EVENT = f"data: {TOKEN}\n\n".encode()
CHUNK = b"%x\r\n%b\r\n" % (len(EVENT), EVENT)
STREAM = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
SHORT = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 2\r\n\r\n{}"


def request(path: str, body: bytes) -> bytes:
    """A request as any client writes it."""
    return f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body


async def instance(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Answer short questions at once, and stream the others at their share of the rate."""
    try:
        while True:
            head = await reader.readuntil(b"\r\n\r\n")
            length = int(head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0])
            await reader.readexactly(length)
            if b"/tokenize" in head:
                writer.write(SHORT)
            else:
                writer.write(STREAM)
                begun, each = time.perf_counter(), STREAMS / RATE
                for number in range(TOKENS):
                    await asyncio.sleep(begun + number * each - time.perf_counter())
                    writer.write(CHUNK)
                    await writer.drain()
                writer.write(b"0\r\n\r\n")
            await writer.drain()
            if b"connection: close" in head.lower():
                break
    except (ConnectionError, asyncio.IncompleteReadError):
        pass
    finally:
        writer.close()


def listen(path: Path) -> int:
    """An instance in a process of its own; its id."""
    pid = os.fork()
    if pid:
        while not path.exists():
            time.sleep(0.01)
        return pid

    async def serve() -> None:
        server = await asyncio.start_unix_server(instance, str(path), backlog=256)
        await server.serve_forever()

    try:
        asyncio.run(serve())
    finally:
        os._exit(0)


@pytest.fixture(scope="module")
def sockets(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, str]]:
    """The front's address, and the instance's own."""
    run = tmp_path_factory.mktemp("f")
    (run / "a").mkdir()
    path = run / "a" / "engine.sock"
    pid = listen(path)
    keeper = FrontKeeper(run, FrontSettings(), uid=os.geteuid(), ports=host_ports())
    keeper.ensure()
    keeper.lead(Route("serving", "a", "a", "llamacpp", str(path), pid, models=("m:v1",)))
    yield str(keeper.address), str(path)
    keeper.stop()
    os.kill(pid, 9)
    os.waitpid(pid, 0)


async def one(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> float:
    """Seconds of one short exchange on a connection that is kept."""
    begun = time.perf_counter()
    writer.write(request("/tokenize", b'{"content": "Hello"}'))
    head = await reader.readuntil(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200")
    assert await reader.readexactly(2) == b"{}"
    return time.perf_counter() - begun


async def latencies(sockets: tuple[str, str]) -> tuple[list[float], list[float]]:
    """Exchanges through the front and directly, in turn, so that both meet the same noise."""
    front, direct = [await asyncio.open_unix_connection(path) for path in sockets]
    pairs = [(await one(*front), await one(*direct)) for _ in range(REQUESTS)]
    for _, writer in (front, direct):
        writer.close()
    return [first for first, _ in pairs], [second for _, second in pairs]


async def stream(path: str) -> int:
    """One stream, to its end; how many tokens came."""
    reader, writer = await asyncio.open_unix_connection(path, limit=2**20)
    writer.write(request("/v1/completions", BODY))
    seen = b""
    while not seen.endswith(b"\r\n0\r\n\r\n"):
        part = await reader.read(2**16)
        assert part, "cut"
        seen += part
    writer.close()
    return seen.count(b"data: ")


async def throughput(path: str) -> float:
    """Tokens a second over all streams."""
    begun = time.perf_counter()
    tokens = sum(await asyncio.gather(*(stream(path) for _ in range(STREAMS))))
    assert tokens == STREAMS * TOKENS
    return tokens / (time.perf_counter() - begun)


def test_front_latency_ms(sockets: tuple[str, str], figure: Figure) -> None:
    """What the front adds to a short exchange, at the median, beside the same exchange without it."""
    asyncio.run(latencies(sockets))
    through, direct = asyncio.run(latencies(sockets))
    added = statistics.median(through) - statistics.median(direct)
    figure(
        "front_latency_ms",
        added * 1000,
        "ms",
        goal="<= 1",
        peer="the same exchange with the instance itself",
        peer_value=statistics.median(direct) * 1000,
    )


def test_front_throughput_ratio(sockets: tuple[str, str], figure: Figure) -> None:
    """Tokens a second of 64 streams through the front, beside those without it."""
    front, direct = sockets
    pairs = [(asyncio.run(throughput(front)), asyncio.run(throughput(direct))) for _ in range(ROUNDS)]
    figure(
        "front_throughput_ratio",
        statistics.median(first for first, _ in pairs),
        "tokens/s",
        goal=">= 0.9 x",
        peer="the same 64 streams with the instance itself",
        peer_value=statistics.median(second for _, second in pairs),
    )
