"""The log: one form for people, one for programs, and secrets in neither."""

from __future__ import annotations

import io
import json
import logging
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import PurePath
from typing import TYPE_CHECKING

import pytest

from reconciler import logbook
from reconciler.cli.progress import LogDisplay
from runtime.notifying import Webhook
from schemas.errors import NotDelivered
from tests.support.builders import assignment, model, snapshot
from tests.support.simulated_node import SimulatedNode

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

HUSH = "hush-Xq9Kz7wTn2"

LOG = logging.getLogger("reconcile")


@pytest.fixture
def out() -> Iterator[io.StringIO]:
    """Where the log goes."""
    root = logging.getLogger()
    before, level = list(root.handlers), root.level
    yield io.StringIO()
    root.handlers[:] = before
    root.setLevel(level)


def test_a_line_for_programs_is_one_object(out: io.StringIO) -> None:
    """Whatever is in it: line breaks, fields, tracebacks, values that JSON does not know."""
    logbook.set_up("json", stream=out)
    LOG.info("a\nb %s", "ü", extra={"condition": "Ready", "path": PurePath("/x"), "seconds": 1.5})
    try:
        int("two\nlines")
    except ValueError:
        LOG.exception("broken")
    LOG.debug("too much")
    first, second = [json.loads(line) for line in out.getvalue().splitlines()]
    assert (first["message"], first["level"], first["logger"]) == ("a\nb ü", "info", "reconcile")
    assert (first["condition"], first["path"], first["seconds"]) == ("Ready", "/x", 1.5)
    assert first["time"].endswith("Z")
    assert "ValueError: invalid literal" in second["traceback"]


def test_a_line_for_people_is_a_line(out: io.StringIO) -> None:
    """As before; and the form can be changed while it runs."""
    logbook.set_up("human", stream=out)
    LOG.warning("git is away")
    assert out.getvalue().endswith(" WARNING git is away\n")
    logbook.set_up("json", "warning", stream=out)
    LOG.info("quiet")
    LOG.warning("loud")
    assert json.loads(out.getvalue().splitlines()[-1])["message"] == "loud"
    assert len(out.getvalue().splitlines()) == 2


SAID = (
    f"fatal: unable to access 'https://me:{HUSH}@git.example.org/x.git/': 403",
    f"GET https://{HUSH}@mirror.example.org/model.gguf failed",
    f"{{'Authorization': 'Bearer {HUSH}', 'Accept': '*/*'}}",
    f"authorization: Basic {HUSH}==",
    f"https://s3.example.org/m.gguf?X-Amz-Signature={HUSH}&X-Amz-Date=20260101",
    f"X-Amz-Credential={HUSH}/20260101/eu",
    f"token={HUSH}",
    f"HF_TOKEN: {HUSH}",
    f"password = '{HUSH}'",
    f'{{"client_secret": "{HUSH}"}}',
    f"hf_{HUSH.replace('-', '')} was refused",
)


def fail(said: str) -> None:
    """As a library would."""
    raise OSError(said)


@pytest.mark.parametrize("form", ["human", "json"])
@pytest.mark.parametrize("said", SAID)
def test_what_looks_like_a_secret_is_taken_out(out: io.StringIO, said: str, form: logbook.Form) -> None:
    """Whoever wrote the line: in its text, its arguments, its fields and its traceback."""
    logbook.set_up(form, stream=out)
    logging.getLogger("some.library").error(said)
    LOG.error("it said: %s", said, extra={"reply": said, "more": [{"reply": said}], "token": HUSH})
    try:
        fail(said)
    except OSError:
        LOG.exception("broken")
    assert HUSH not in out.getvalue()
    assert HUSH.replace("-", "") not in out.getvalue()
    assert logbook.HIDDEN in out.getvalue()


@pytest.mark.parametrize(
    "said",
    [
        "SourceVerified True Verified: sequence 2 of blake3:00aa, signed by 2 of 3",
        "download/mistral:v1: fetched 8 tokens: 12 of 12",
        "https://mirror.example.org/a@b/c.gguf answers 404",
        "models: token-ids differ; see reconcile why",
        "no secret is configured",
    ],
)
def test_what_is_none_is_left(said: str) -> None:
    """People have to understand it."""
    assert logbook.clean(said) == said


def test_actions_are_told_with_their_fields(out: io.StringIO, tmp_path: Path) -> None:
    """What began, how it ended, how long it took and for which reason it failed: each an object with its resource."""
    logbook.set_up("json", stream=out)
    node = SimulatedNode(tmp_path, recorder=LogDisplay())  # type: ignore[arg-type]
    node.room.bad_starts.add("a:v1")
    node.run(snapshot(models=(model("a"),), assignments=(assignment("a:v1"),)))
    lines = [json.loads(line) for line in out.getvalue().splitlines()]
    told = [(line["action"], line["status"]) for line in lines if "action" in line]
    assert ("download/a:v1", "started") in told
    assert ("download/a:v1", "done") in told
    failed = next(line for line in lines if line.get("status") == "failed")
    assert (failed["action"], failed["reason"], failed["level"]) == ("start/a:v1", "StartFailed", "warning")
    assert failed["seconds"] >= 0


def test_paths_of_webhooks_are_in_no_log(out: io.StringIO) -> None:
    """The path is often all that keeps others from posting, and the HTTP library writes it at its most talkative."""
    with HTTPServer(("127.0.0.1", 0), BaseHTTPRequestHandler) as server:
        thread = threading.Thread(target=server.handle_request)
        thread.start()
        logbook.set_up("json", "debug", stream=out)
        hook = Webhook(f"http://127.0.0.1:{server.server_address[1]}/services/{HUSH}", None)
        with pytest.raises(NotDelivered, match="501") as refused:
            hook("Odd", b"{}")
        thread.join()
    LOG.debug("still here")
    assert "still here" in out.getvalue()
    assert HUSH not in out.getvalue() + str(refused.value)
