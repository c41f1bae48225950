"""A program that stands in for Ollama: its documented API over TCP, for one model that needs no weights to answer.

`ollama serve` and `ollama --version`, as the proxy and the agent call them. It refuses what the documentation says that
Ollama refuses: blobs whose bytes have another digest, models of blobs that are not there, questions for models that
were not made. What it answers follows from the model's bytes and the question, so that another file answers otherwise.

Standard library only: it is put into an image. Source: Ollama's documentation, "API" and "OpenAI compatibility".
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

VERSION = "0.12.0"
MODELS: dict[str, str] = {}
"""Digest of the blob, by the name of the model that was made of it."""
LOADED: set[str] = set()


def blob(digest: str) -> Path:
    """Where a blob lies; what looks like another path is none."""
    return Path(os.environ["OLLAMA_MODELS"], "blobs", digest.replace(":", "-").replace("/", ""))


def words(name: str, question: object, count: int) -> str:
    """So many words that follow from the model's bytes and the question."""
    seed = blob(MODELS[name]).read_bytes() + json.dumps(question, sort_keys=True).encode()
    digest = hashlib.sha256(seed).hexdigest()
    return " ".join(digest[2 * number : 2 * number + 2] for number in range(min(count, 24)))


def filled(schema: dict[str, object]) -> dict[str, object]:
    """Something that fits a schema, as `format` promises."""
    properties = schema["properties"]
    assert isinstance(properties, dict)
    return {name: about["enum"][0] if "enum" in about else True for name, about in properties.items()}


class Handler(BaseHTTPRequestHandler):
    """One request."""

    protocol_version = "HTTP/1.1"

    def do_HEAD(self) -> None:
        """Whether a blob is there."""
        self.answer(200 if blob(self.path.rpartition("/")[2]).exists() else 404, b"")

    def do_GET(self) -> None:
        """What is documented of what can be read."""
        if self.path == "/api/version":
            return self.say({"version": VERSION})
        if self.path == "/api/tags":
            return self.say({"models": [{"name": name, "digest": digest} for name, digest in MODELS.items()]})
        if self.path == "/v1/models":
            return self.say({"object": "list", "data": [{"id": name, "object": "model"} for name in MODELS]})
        return self.say({"error": "not found"}, 404)

    def do_POST(self) -> None:
        """What is documented of what can be asked."""
        content = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if self.path.startswith("/api/blobs/"):
            return self.take(self.path.rpartition("/")[2], content)
        asked = json.loads(content)
        name = asked["model"]
        if self.path == "/api/create":
            (digest,) = asked["files"].values()
            if not blob(digest).exists():
                return self.say({"error": "blob not found"}, 400)
            if blob(digest).read_bytes()[:4] != b"GGUF":
                return self.say({"error": "invalid file magic"}, 400)
            MODELS[name] = digest
            return self.say({"status": "success"})
        if name not in MODELS:
            return self.say({"error": f"model '{name}' not found"}, 404)
        return self.write(name, asked)

    def take(self, digest: str, content: bytes) -> None:
        """Keep a blob that is what it is called."""
        if f"sha256:{hashlib.sha256(content).hexdigest()}" != digest:
            return self.say({"error": "digest mismatch"}, 400)
        blob(digest).write_bytes(content)
        return self.answer(201, b"")

    def write(self, name: str, asked: dict[str, object]) -> None:
        """Write, by either API; a generation without a prompt loads."""
        if self.path == "/api/generate" and not asked.get("prompt"):
            LOADED.add(name)
            return self.say({"model": name, "response": "", "done": True, "done_reason": "load"})
        question = asked["messages"]
        if self.path == "/api/chat":
            message: dict[str, object] = {"role": "assistant", "content": words(name, question, 24)}
            tools = asked.get("tools")
            if isinstance(asked.get("format"), dict):
                message["content"] = json.dumps(filled(asked["format"]), indent=1)  # type: ignore[arg-type]
            if isinstance(tools, list):
                function = tools[0]["function"]
                called = {"name": function["name"], "arguments": filled(function["parameters"])}
                message = {"role": "assistant", "content": "", "tool_calls": [{"function": called}]}
            return self.say({"model": name, "message": message, "done": True, "done_reason": "stop"})
        if self.path == "/v1/chat/completions":
            text = words(name, question, int(str(asked["max_tokens"])))
            choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "length"}
            return self.say({"object": "chat.completion", "model": name, "choices": [choice]})
        return self.say({"error": "not found"}, 404)

    def say(self, what: object, status: int = 200) -> None:
        """JSON."""
        self.answer(status, json.dumps(what).encode())

    def answer(self, status: int, content: bytes) -> None:
        """An answer."""
        self.send_response(status)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def log_message(self, *_: object) -> None:
        """Nothing of it."""


def main() -> int:
    """As it is called."""
    if sys.argv[1:] == ["--version"]:
        print(f"ollama version is {VERSION}")
        return 0
    assert sys.argv[1:] == ["serve"], sys.argv
    host, _, port = os.environ["OLLAMA_HOST"].partition(":")
    assert host == "127.0.0.1", "it must be reachable from nowhere else"
    ThreadingHTTPServer((host, int(port)), Handler).serve_forever()
    return 0


if __name__ == "__main__":
    sys.exit(main())
