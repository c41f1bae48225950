"""A tiny engine for tests of backends: HTTP on a unix socket, and every bad habit on request. Standard library only.

It runs natively, and in any image that has Python, from the model folder. `GET /health` answers; `GET /exit/3` ends it
with code 3; `GET /inside` says what it sees from where it is locked in; `GET /orphan` leaves a grandchild in a session
of its own, and answers its process id; `GET /fill/1000` prints that many lines.
"""

# ruff: noqa: T201 - a program that prints is what backends capture

from __future__ import annotations

import argparse
import json
import mmap
import os
import signal
import socket
import sys
import tempfile
import time
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from socketserver import ThreadingUnixStreamServer


def inside() -> dict[str, object]:
    """What this process can see and do: the kernel's own account where there is one."""
    status = dict(line.split(":\t", 1) for line in Path("/proc/self/status").read_text().splitlines() if ":\t" in line)
    try:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            # Connecting a datagram socket sends nothing: it asks whether there is a way to the address.
            probe.connect(("192.0.2.1", 9))
        route = True
    except OSError:
        route = False
    return {
        "pid": os.getpid(),
        "environment": sorted(os.environ),
        "interfaces": sorted(name for _, name in socket.if_nameindex()),
        "route": route,
        "capabilities": sorted({status[name].strip() for name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")}),
        "noNewPrivileges": status["NoNewPrivs"].strip(),
        "descriptors": sorted(int(entry.name) for entry in Path("/proc/self/fd").iterdir()),
        "input": str(Path("/proc/self/fd/0").readlink()),
        "scratch": scratch(),
    }


def scratch() -> dict[str, object]:
    """What /tmp is good for: how large it is, and whether code can be mapped out of it, as for a library."""
    usage = os.statvfs("/tmp")
    with tempfile.TemporaryFile(dir="/tmp") as file:
        file.write(bytes(mmap.PAGESIZE))
        file.flush()
        try:
            mmap.mmap(
                file.fileno(), mmap.PAGESIZE, prot=mmap.PROT_READ | mmap.PROT_EXEC, flags=mmap.MAP_PRIVATE
            ).close()
        except PermissionError:
            executable = False
        else:
            executable = True
    return {"size": usage.f_blocks * usage.f_frsize, "executable": executable}


def orphan() -> int:
    """A grandchild whose parent ends at once, in a session of its own, which ignores SIGTERM."""
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        os.setsid()
        grandchild = os.fork()
        if grandchild == 0:
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            time.sleep(3600)
        os.write(write, str(grandchild).encode())
        os._exit(0)
    os.waitpid(child, 0)
    return int(os.read(read, 32))


class Handler(BaseHTTPRequestHandler):
    """The questions."""

    def do_GET(self) -> None:
        """Answer one question."""
        what, _, argument = self.path.lstrip("/").partition("/")
        if what == "exit":
            os._exit(int(argument))
        if what == "fill":
            for number in range(int(argument)):
                print("line", number, "x" * 50, flush=True)
        answer: object = {"health": "ok", "inside": inside, "orphan": orphan}.get(what, "done")
        content = json.dumps(answer() if callable(answer) else answer).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def address_string(self) -> str:
        """A unix peer has no address."""
        return "peer"

    def log_message(self, *_: object) -> None:
        """Print only what a test asked for."""


def main() -> None:
    """Serve until a signal."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--socket", required=True)
    parser.add_argument("--say", default="")
    parser.add_argument("--exit", type=int, default=-1)
    parser.add_argument("--ignore-term", action="store_true")
    options = parser.parse_args()
    if options.ignore_term:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    else:
        signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
    print("test engine", options.say, flush=True)
    print("on stderr", options.say, file=sys.stderr, flush=True)
    if options.exit >= 0:
        sys.exit(options.exit)
    Path(options.socket).unlink(missing_ok=True)
    # Whoever asks may be another user than the one that a container runs as.
    os.umask(0)
    ThreadingUnixStreamServer(options.socket, Handler).serve_forever()


if __name__ == "__main__":
    main()
