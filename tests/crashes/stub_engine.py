"""An engine that listens at once: what it answers follows from the bytes of its model. Standard library only."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import socket
import sys
from pathlib import Path


def tokens(content: bytes) -> list[int]:
    """What an instance with these bytes answers to every prompt."""
    return list(hashlib.sha256(content).digest()[:8])


def main(model: str, address: str) -> None:
    """Serve until a signal; one request for each connection."""
    signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
    said = {"status": "ok", "tokens": tokens(Path(model, "model.gguf").read_bytes())}
    body = json.dumps(said).encode()
    answer = b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body)
    # Whoever asks may be another user than the one that an instance runs as.
    os.umask(0)
    Path(address).unlink(missing_ok=True)
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(address)
    listener.listen(16)
    while True:
        peer, _ = listener.accept()
        with peer:
            try:
                if _read_request(peer):
                    peer.sendall(answer)
            except OSError:
                continue


def _read_request(peer: socket.socket) -> bool:
    """To its end: a socket that is closed with bytes unread resets the answer."""
    data = b""
    while b"\r\n\r\n" not in data:
        more = peer.recv(65536)
        if not more:
            return False
        data += more
    head, _, body = data.partition(b"\r\n\r\n")
    lines = head.lower().split(b"\r\n")
    length = next((int(line.split(b":")[1]) for line in lines if line.startswith(b"content-length:")), 0)
    while len(body) < length:
        body += peer.recv(65536)
    return True


if __name__ == "__main__":
    main(*sys.argv[1:])
