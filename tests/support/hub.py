"""A hub as Hugging Face's client knows it, on loopback: the listing here, large files with nginx where there is one.

Speaks what `huggingface_hub` asks: `/api/models/O/R/revision/REV`, `/api/models/O/R/tree/SHA`, and
`/O/R/resolve/REV/FILE` with `ETag` and `X-Repo-Commit`. Large files are redirected to another origin, as there.
"""

from __future__ import annotations

import hashlib
import json
import re
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlsplit

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

LARGE = 10_000
"""Bytes from which a file is stored apart (git LFS)."""


class Hub:
    """Repositories by name, each with one commit and one branch."""

    def __init__(self, token: str = "", large_at: str = "") -> None:
        """An empty hub.

        Args:
            token: asked of everybody; "" lets everybody in.
            large_at: base address of large files; they are named by their SHA-256 there. "" serves them from here.
        """
        self.token = token
        self.large_at = large_at
        self.url = ""
        self.seen: list[tuple[str, str, str]] = []
        """Method, path and Authorization header of every request."""
        self._repositories: dict[str, Mapping[str, bytes]] = {}
        self.published: dict[str, str] = {}
        """SHA-256 that is published for a path instead of the true one."""

    def add(self, repository: str, files: Mapping[str, bytes]) -> str:
        """Put a repository up; its commit."""
        self._repositories[repository] = files
        return self.commit(repository)

    def commit(self, repository: str) -> str:
        """The commit of a repository."""
        parts = [f"{path}{hashlib.sha256(data).hexdigest()}" for path, data in self._repositories[repository].items()]
        return hashlib.sha1("".join([repository, *parts]).encode()).hexdigest()

    def listing(self, repository: str) -> list[dict[str, object]]:
        """The tree, as the API has it."""
        entries: list[dict[str, object]] = []
        for path, data in self._repositories[repository].items():
            blob = hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
            entry: dict[str, object] = {"type": "file", "path": path, "size": len(data), "oid": blob}
            if len(data) >= LARGE:
                oid = self.published.get(path, hashlib.sha256(data).hexdigest())
                entry["lfs"] = {"oid": oid, "size": len(data), "pointerSize": 134}
            entries.append(entry)
        return entries

    def find(self, path: str) -> tuple[str, str, str, str] | None:
        """What is asked for: "api" or "resolve", the repository, the revision and the file or kind of listing."""
        api = re.fullmatch(r"/api/models/([^/]+/[^/]+)/(revision|tree)/([^/]+)/?", path)
        if api is not None:
            return ("api", api[1], unquote(api[3]), api[2])
        file = re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path)
        return ("resolve", file[1], unquote(file[2]), unquote(file[3])) if file is not None else None

    def file(self, repository: str, path: str) -> bytes | None:
        """A file's content, None if there is none."""
        return self._repositories.get(repository, {}).get(path)

    def knows(self, repository: str, revision: str) -> bool:
        """Whether there is such a revision."""
        return repository in self._repositories and revision in ("main", "refs/pr/1", self.commit(repository))


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: Hub

    def log_message(self, *_: object) -> None:
        """Nobody reads it."""

    def do_HEAD(self) -> None:
        self._serve()

    def do_GET(self) -> None:
        self._serve()

    def _serve(self) -> None:
        hub = self.hub
        path = urlsplit(self.path).path
        hub.seen.append((self.command, path, self.headers.get("Authorization", "")))
        found = hub.find(path)
        if hub.token and self.headers.get("Authorization") != f"Bearer {hub.token}":
            self._answer(401, b'{"error": "no"}', {"X-Error-Code": "GatedRepo", "X-Error-Message": "Access restricted"})
        elif found is None or found[1] not in hub._repositories:
            self._answer(404, b'{"error": "no"}', {"X-Error-Code": "RepoNotFound"})
        elif not hub.knows(found[1], found[2]):
            self._answer(404, b'{"error": "no"}', {"X-Error-Code": "RevisionNotFound"})
        elif found[0] == "api":
            self._list(found[1], found[3])
        else:
            self._file(found[1], found[3])

    def _list(self, repository: str, kind: str) -> None:
        commit = self.hub.commit(repository)
        names = [{"rfilename": entry["path"]} for entry in self.hub.listing(repository)]
        model = {"_id": "1", "id": repository, "modelId": repository, "sha": commit, "siblings": names}
        body = self.hub.listing(repository) if kind == "tree" else model
        self._answer(200, json.dumps(body).encode(), {"Content-Type": "application/json"})

    def _file(self, repository: str, path: str) -> None:
        data = self.hub.file(repository, path)
        commit = {"X-Repo-Commit": self.hub.commit(repository)}
        if data is None:
            self._answer(404, b"", {"X-Error-Code": "EntryNotFound", **commit})
            return
        digest = hashlib.sha256(data).hexdigest()
        if len(data) >= LARGE and self.hub.large_at:
            linked = {"X-Linked-Etag": f'"{digest}"', "X-Linked-Size": str(len(data))}
            self._answer(302, b"", {"Location": f"{self.hub.large_at}/{digest}", **linked, **commit})
            return
        tag = digest if len(data) >= LARGE else hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
        head = {"ETag": f'"{tag}"', "Accept-Ranges": "bytes", "Content-Type": "application/octet-stream", **commit}
        asked = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        if asked is None:
            self._answer(200, data, head)
            return
        start, end = int(asked[1]), min(int(asked[2]) + 1 if asked[2] else len(data), len(data))
        self._answer(206, data[start:end], {**head, "Content-Range": f"bytes {start}-{end - 1}/{len(data)}"})

    def _answer(self, status: int, body: bytes, headers: Mapping[str, str]) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)


@contextmanager
def serving_hub(token: str = "", large_at: str = "") -> Iterator[Hub]:
    """A hub for the length of a `with`."""
    hub = Hub(token, large_at)
    handler = type("Handler", (_Handler,), {"hub": hub})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    hub.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join(timeout=10)
