"""Ollama's proxy for real, natively and in containers, in front of a program that implements its documented API."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import pytest

from runtime.connection import UnixConnection
from runtime.engines.ollama import OllamaEngine
from runtime.engines.registry import engines
from runtime.interfaces import SOCKET_NAME, EngineView
from runtime.validation.record import record
from schemas.errors import Incompatible
from schemas.probe import Provenance
from schemas.runtimes import OllamaArgs
from tests.contracts.test_engines import ProcessBench
from tests.support import ollama_standin
from tests.support.builders import IMAGE, manifest_digest, target
from tests.support.models import make_model
from tests.support.ollama import KEYS, OllamaNode, content_of, standin, standin_image
from tests.support.simulated_node import conditions, states

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from schemas.probe import ProbeSpec

VIEW = EngineView("/model", "/run/reconcile/engine.sock")


@pytest.fixture(scope="module")
def probes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, ProbeSpec]:
    """What both models answer, as the stand-in was asked by itself."""
    found = {}
    for key in KEYS:
        folder = tmp_path_factory.mktemp(key[0])
        (folder / "model.gguf").write_bytes(content_of(key))
        standin(folder / "ollama", python=sys.executable)
        engine = OllamaEngine(str(folder))
        view = EngineView(str(folder), SOCKET_NAME)
        bench = ProcessBench(
            engine, target(key, engine="ollama", engine_args=OllamaArgs()), folder, view=view, form="gguf"
        )
        origin = Provenance(engine="ollama", version="1", manifest=manifest_digest(key), machine="test")
        try:
            found[key] = record(engine, bench.connect(), origin, tokens=8)
        finally:
            bench.end(60)
    return found


@pytest.fixture(
    params=[
        pytest.param("docker", marks=pytest.mark.docker),
        pytest.param("podman", marks=pytest.mark.podman),
        "native",
    ]
)
def served(request: pytest.FixtureRequest, probes: dict[str, ProbeSpec], tmp_path: Path) -> Iterator[OllamaNode]:
    """A node with two models."""
    made: Any = {"name": request.param}
    if request.param != "native":
        (tmp_path / "archive").mkdir()
        made["host"] = request.getfixturevalue(f"{request.param}_host")
        made["image"] = standin_image(request.getfixturevalue("registry"), tmp_path / "archive")
    ollama = OllamaNode(tmp_path, probes, **made)
    yield ollama
    ollama.take_apart()


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_it_serves_is_swapped_and_told_from_an_impostor(served: OllamaNode) -> None:
    """Locked in with a loopback of its own; other weights under a model's name are seen, and it goes back (I2, I10)."""
    for key in KEYS:
        result = served.run(served.wish(key))
        assert result.exit_code == 0, [outcome.error for outcome in result.outcomes if outcome.error]
        assert states(result)[key] == "Active"
        assert served.ask(key) == key
    one, other = (manifest_digest(key) for key in KEYS)
    served.folders[one] = served.folders[other]
    served.restart()
    lied = served.run(served.wish("a:v1"))
    assert [outcome.error.reason for outcome in lied.outcomes if outcome.error] == ["ValidationFailed"]
    assert conditions(lied)["RolledBack"] == "True"
    assert served.ask("b:v1") == "b:v1"


def test_a_model_is_handed_over_where_ollama_does_not_see_the_link(tmp_path: Path) -> None:
    """An Ollama that keeps its blobs elsewhere is given the bytes; where it refuses them its words end the start."""
    (tmp_path / "model.gguf").write_bytes(b"GGUF, and more")
    source = tmp_path / "ollama"
    standin(source, python=sys.executable)
    # Under names that nobody but it knows.
    source.write_text(
        source.read_text("utf-8").replace('"blobs", digest.replace(":", "-")', '"kept-" + digest[7:]'), "utf-8"
    )
    engine = OllamaEngine(str(tmp_path))
    of = target(engine="ollama", engine_args=OllamaArgs())
    view = EngineView(str(tmp_path), SOCKET_NAME)
    bench = ProcessBench(engine, of, tmp_path, view=view, form="gguf")
    with pytest.raises(AssertionError, match="digest mismatch"):
        bench.connect()
    assert bench.end(60)
    bench.content = b"GGUF, and more"
    assert engine.ready(bench.connect())
    assert bench.end(60)


def test_it_is_known_by_its_program_s_own_word(tmp_path: Path) -> None:
    """Its version and an identity that changes with the file; nothing where it is not, or says nothing."""
    engine = OllamaEngine(str(tmp_path))
    assert engine.native() is None
    standin(tmp_path / "ollama", python=sys.executable)
    native = engine.native()
    assert native is not None
    assert (native.engine, native.version) == ("ollama", ollama_standin.VERSION)
    with (tmp_path / "ollama").open("a") as file:
        file.write("# changed\n")
    changed = engine.native()
    assert changed is not None
    assert changed.environment != native.environment
    (tmp_path / "ollama").write_text("#!/bin/sh\nexit 3\n")
    assert engine.native() is None
    assert isinstance(engines()["ollama"], OllamaEngine)


def test_the_command_says_which_file_and_how_ollama_names_it() -> None:
    """In a container the image's entry point gets flags only; several files are refused."""
    one = make_model({"m.gguf": b"GGUF"}).manifest
    contained = target(
        engine="ollama",
        engine_args=OllamaArgs(context_size=512, parallel=2, flash_attention=True),
        mode="container",
        backend="docker",
        image=IMAGE,
        environment=None,
    )
    argv = OllamaEngine().launch(contained, one, VIEW).argv
    assert argv[:2] == ("--model", "/model")
    assert argv[argv.index("--digest") + 1] == one.spec.files[0].sha256
    assert argv[-5:] == ("--ctx-size", "512", "--parallel", "2", "--flash-attention")
    two = make_model({"m-1.gguf": b"GGUF", "m-2.gguf": b"GGUF"}).manifest
    with pytest.raises(Incompatible, match=r"2 \.gguf files"):
        OllamaEngine().launch(contained, two, VIEW)


def test_its_socket_leads_to_nobody_once_it_has_ended(tmp_path: Path) -> None:
    """The proxy takes its socket with it."""
    (tmp_path / "model.gguf").write_bytes(b"GGUF")
    standin(tmp_path / "ollama", python=sys.executable)
    engine = OllamaEngine(str(tmp_path))
    of = target(engine="ollama", engine_args=OllamaArgs())
    bench = ProcessBench(engine, of, tmp_path, view=EngineView(str(tmp_path), SOCKET_NAME), form="gguf")
    assert isinstance(bench.connect(), UnixConnection)
    assert (tmp_path / SOCKET_NAME).is_socket()
    assert bench.end(60)
    assert not (tmp_path / SOCKET_NAME).exists()
