"""A bad change that never comes to an end does not keep out the commit that mends it."""

from __future__ import annotations

import subprocess
import threading
from contextlib import contextmanager
from functools import partial
from http.server import ThreadingHTTPServer
from typing import TYPE_CHECKING, Any

import pytest
from model_server import RangeHandler, serving
from telling import RECONCILE

from reconciler.cli import wiring
from reconciler.cli.scouting import Scout
from reconciler.journal import Journal
from reconciler.lookout import Lookout
from reconciler.watch import Wake
from runtime.engines.llamacpp import LlamaCppEngine
from tests.support.front import eventually
from tests.support.quiet_demo import QuietDemo
from tests.support.swapping import SwappingNode

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from reconciler.loop import PassResult
    from runtime.interfaces import EngineConnection, EngineView, Launch
    from schemas.manifest import ManifestDocument
    from schemas.target import ServingTarget


class Deaf(LlamaCppEngine):
    """llama.cpp, of which one model loads for ever."""

    def __init__(self, model: str) -> None:
        self.never = model
        self.loading = ""

    def launch(self, target: ServingTarget, manifest: ManifestDocument, view: EngineView) -> Launch:
        """As it is; remembers which."""
        self.loading = target.model
        return super().launch(target, manifest, view)

    def ready(self, connection: EngineConnection) -> bool:
        """Never, of that one."""
        return self.loading != self.never and super().ready(connection)


@pytest.fixture
def swapping(tmp_path: Path, tiny_model: Callable[[int], Path]) -> Iterator[SwappingNode]:
    """A node with two models."""
    made = SwappingNode(tmp_path, (tiny_model(1), tiny_model(2)))
    yield made
    made.take_apart()


def test_a_fix_ends_a_start_that_never_would(swapping: SwappingNode) -> None:
    """A real engine that is never ready, and a newer snapshot meanwhile: it gives way, nothing is held against it."""
    assert swapping.run(swapping.wish("a:v1")).exit_code == 0
    engine = Deaf("b:v1")
    swapping.node.adapters.engines["llamacpp"] = engine  # type: ignore[index] # a plain dict here
    bad = swapping.wish("b:v1")
    # Nothing but the newer snapshot ends it.
    patient = bad.spec.runtimes[0].timeouts.model_copy(update={"start": 3600, "stall": 3600})
    spec = bad.spec.runtimes[0].model_copy(update={"timeouts": patient})
    bad = bad.model_copy(update={"spec": bad.spec.model_copy(update={"runtimes": (spec,)})})
    backend = swapping.node.adapters.backends["native"]
    before = {item.name for item in backend.list()}
    wake = Wake()
    swapping.reconciler._lookout = Lookout(lambda _: swapping.offered is not None, wake=wake, interval=3600)
    results: list[PassResult] = []
    thread = threading.Thread(target=lambda: results.append(swapping.run(bad)), daemon=True)
    thread.start()
    eventually(lambda: engine.loading == "b:v1", "the bad one is made ready")
    # What serves runs as well, until the bad one takes its place.
    eventually(lambda: any(one.status == "running" and one.name not in before for one in backend.list()), "it runs")
    swapping.offer(swapping.wish("a:v1"))
    wake.now()
    thread.join(120)
    assert not thread.is_alive(), "the swap gave way"
    assert {outcome.action.id: outcome.status for outcome in results[0].outcomes}["start/b:v1"] == "cancelled"
    assert swapping.reconciler.run_pass().exit_code == 0
    memory = swapping.node.look("")[1].memory
    assert (dict(memory.rejections), dict(memory.holds)) == ({}, {})
    assert memory.last_known_good is not None
    assert memory.last_known_good.target.model == "a:v1"
    assert len([item for item in backend.list() if item.status == "running"]) == 1


class Trickling(RangeHandler):
    """A mirror that has all versions but one, of which it sends a byte now and then."""

    asked: threading.Event
    ended: threading.Event

    def copyfile(self, source: Any, outputfile: Any) -> None:
        """Send it."""
        if "/v2/" not in self.path:
            super().copyfile(source, outputfile)
            return
        self.asked.set()
        while not self.ended.wait(0.5):
            outputfile.write(source.read(1))
            outputfile.flush()

    def handle(self) -> None:
        """Whoever asked may be gone."""
        try:
            super().handle()
        except ConnectionError:
            self.close_connection = True


@contextmanager
def trickling(folder: Path) -> Iterator[tuple[str, threading.Event]]:
    """Such a mirror: its address, and whether it was asked for the bad version."""
    asked, ended = threading.Event(), threading.Event()
    kind = type("Handler", (Trickling,), {"asked": asked, "ended": ended})
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(kind, directory=str(folder)))
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}", asked
    finally:
        ended.set()
        server.shutdown()
        thread.join()
        server.server_close()


def test_a_daemon_leaves_a_download_for_the_commit_that_mends_it(tmp_path: Path) -> None:
    """Real git, real daemon: version 2 trickles in for ever; version 3 is pushed, and serves."""
    demo = QuietDemo(tmp_path, "native")
    demo.make_models()
    with trickling(tmp_path / "mirror") as (demo.mirror, asked):
        try:
            demo.found()
            demo.approve("v2")
            demo.publish("v2")
            command = [str(RECONCILE), "--watch", "--interval", "1h"]
            log = (tmp_path / "daemon.log").open("wb")
            with log, subprocess.Popen(command, cwd=tmp_path, stdout=log, stderr=log, env=demo._env()) as daemon:
                try:
                    eventually(asked.is_set, "version 2 is being downloaded")
                    demo.approve("v3")
                    demo.publish("v3")

                    def serves() -> bool:
                        demo.known = None
                        return daemon.poll() is None and demo.serving() == "tiny:v3"

                    eventually(serves, "version 3 serves")
                finally:
                    daemon.terminate()
            journal = Journal(tmp_path / "node" / "state.db", readonly=True)
            assert any(event.reason == "Superseded" for event in journal.events(limit=1000))
            assert "cancelled" in {item.outcome for item in journal.history()}
            journal.close()
        finally:
            demo.stop_runtime()


def test_only_a_snapshot_that_would_be_accepted_counts(tmp_path: Path) -> None:
    """Whoever can push, and no more, cannot keep a swap from ending (I1)."""
    demo = QuietDemo(tmp_path, "native")
    demo.make_models()
    with serving(tmp_path / "mirror") as demo.mirror:
        try:
            demo.found()
            scout = Scout(wiring.load_config(demo.config))
            in_force = demo.status()["snapshot"]["digest"]
            assert scout(in_force) is False, "nothing moved"
            demo.approve("v2")
            demo.operate("snapshot", "bump")
            demo.commit("unsigned")
            assert scout(in_force) is False, "nobody signed it"
            demo.sign("snapshot")
            demo.commit("signed")
            before = sorted(path.name for path in (tmp_path / "node").iterdir())
            assert scout(in_force) is True
            assert sorted(path.name for path in (tmp_path / "node").iterdir()) == before
        finally:
            demo.stop_runtime()
