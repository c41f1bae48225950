"""A small HTTP server for model files, with byte ranges: a mirror on loopback, for the demo and the tests."""

from __future__ import annotations

import argparse
import os
import re
import threading
from contextlib import contextmanager
from functools import partial
from http import HTTPStatus
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

if TYPE_CHECKING:
    from collections.abc import Iterator

RANGE = re.compile(r"bytes=(\d+)-(\d+)?")


class RangeHandler(SimpleHTTPRequestHandler):
    """Serves files below a folder; answers a single byte range with 206 (RFC 9110, section 14)."""

    protocol_version = "HTTP/1.1"

    def send_head(self) -> BinaryIO | None:  # type: ignore[override]
        """As the base class, with ranges."""
        match = RANGE.fullmatch(self.headers.get("Range", ""))
        path = Path(self.translate_path(self.path))
        if match is None or not path.is_file():
            self._left = None
            return super().send_head()  # type: ignore[return-value]
        size = path.stat().st_size
        first = int(match.group(1))
        last = min(int(match.group(2) or size - 1), size - 1)
        if first > last:
            self.send_response(HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE)
            self.send_header("Content-Range", f"bytes */{size}")
            self.send_header("Content-Length", "0")
            self.end_headers()
            return None
        file = path.open("rb")
        file.seek(first)
        self._left = last - first + 1
        self.send_response(HTTPStatus.PARTIAL_CONTENT)
        self.send_header("Content-Type", "application/octet-stream")
        self.send_header("Content-Range", f"bytes {first}-{last}/{size}")
        self.send_header("Content-Length", str(self._left))
        self.send_header("ETag", f'"{size:x}-{path.stat().st_mtime_ns:x}"')
        self.end_headers()
        return file

    def copyfile(self, source: Any, outputfile: Any) -> None:
        """Send the range that was announced, or the whole file."""
        if self._left is None:
            super().copyfile(source, outputfile)
            return
        while self._left:
            data = source.read(min(self._left, 2**20))
            if not data:
                return
            outputfile.write(data)
            self._left -= len(data)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base class's name
        """Quiet: the demo's own output is what people read."""


@contextmanager
def serving(folder: Path, *, port: int = 0) -> Iterator[str]:
    """Serve a folder while the context lasts; gives the base address."""
    server = ThreadingHTTPServer(("127.0.0.1", port), partial(RangeHandler, directory=str(folder)))
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def main() -> None:
    """Serve a folder until interrupted."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--port", type=int, default=8000)
    arguments = parser.parse_args()
    with serving(arguments.folder, port=arguments.port) as address:
        print(f"serving {arguments.folder} at {address} (process {os.getpid()})", flush=True)
        threading.Event().wait()


if __name__ == "__main__":
    main()
