"""The tiny model is what demonstrations and tests need: reproducible, loadable, different by seed, never stuck."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any

import pytest

from examples import tiny_model

if TYPE_CHECKING:
    from pathlib import Path

xllamacpp = pytest.importorskip("xllamacpp", reason="xllamacpp not present")

TOKENS = 48


def digest(path: Path) -> str:
    """SHA-256 of a file."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def greedy(path: Path, prompt: str) -> list[str]:
    """The tokens that llama.cpp answers a chat message with, most likely first."""
    params = xllamacpp.CommonParams()
    params.model.path = str(path)
    params.n_ctx = 256
    # llama.cpp's threads wait by spinning: more of them than idle processors take ten times as long.
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = 1
    listener = path.with_suffix(".sock")
    listener.unlink(missing_ok=True)
    params.hostnames = [str(listener)]
    request = {"messages": [{"role": "user", "content": prompt}], "temperature": 0, "max_tokens": TOKENS}
    answer: dict[str, Any] = xllamacpp.Server(params).handle_chat_completions(request | {"logprobs": True})
    return [entry["token"] for entry in answer["choices"][0]["logprobs"]["content"]]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Two models of different seeds."""
    folder = tmp_path_factory.mktemp("models")
    paths = (folder / "a.gguf", folder / "b.gguf")
    for seed, path in enumerate(paths, start=1):
        tiny_model.write_tiny_model(path, seed=seed, name=path.stem)
    return paths


def test_equal_arguments_give_equal_bytes(models: tuple[Path, Path], tmp_path: Path) -> None:
    """A model made again is the same file; with another seed or name it is not."""
    again, renamed = tmp_path / "again.gguf", tmp_path / "renamed.gguf"
    tiny_model.write_tiny_model(again, seed=1, name="a")
    tiny_model.write_tiny_model(renamed, seed=1, name="b")
    assert digest(again) == digest(models[0])
    assert len({digest(path) for path in (*models, renamed)}) == 3


@pytest.mark.parametrize("prompt", ["Hello", "What is two plus two?", "bado rilu"])
def test_answers_never_stick_and_differ_by_seed(models: tuple[Path, Path], prompt: str) -> None:
    """No token comes twice in 48, the answer is the same on every run, and another seed answers otherwise."""
    first, second = (greedy(path, prompt) for path in models)
    assert len(set(first)) == len(set(second)) == TOKENS
    assert sum(a == b for a, b in zip(first, second, strict=True)) < TOKENS // 4
    assert greedy(models[0], prompt) == first


def test_answers_depend_on_the_prompt(models: tuple[Path, Path]) -> None:
    """Different questions start different answers: a probe can tell them apart."""
    assert len({greedy(models[0], prompt)[0] for prompt in ("Hello", "What is two plus two?", "bado rilu")}) > 1


def test_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The program writes the file and says what it is; a bad seed or path is one line and exit code 1."""
    path = tmp_path / "model.gguf"
    assert tiny_model.main([str(path), "--seed", "7"]) == 0
    assert "random weights, seed 7" in capsys.readouterr().out
    assert path.stat().st_size < 4_000_000
    for arguments in ([str(path), "--seed", "-1"], [str(tmp_path / "absent" / "model.gguf")]):
        assert tiny_model.main(arguments) == 1
        assert capsys.readouterr().err.count("\n") == 1
