"""The table of power in small: a trained model, honest llama.cpp servers, strong faults, fixed seeds.

`make power` makes the whole table (docs/power.md); here the judging that it relies on is held to its main rows.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

pytest.importorskip("gguf", reason="gguf not present")
pytest.importorskip("xllamacpp", reason="xllamacpp not present")

from runtime.engines.llamacpp import LlamaCppEngine
from runtime.validation.evidence import Platform
from tests.power import serving
from tests.power.faulty import Beheading, Canned, Seedless, Tepid
from tests.power.formats import merges
from tests.power.laboratory import HONEST, Laboratory
from tests.power.probing import calibrated, honest_run, record_halves
from tests.power.serving import Remembered, fill
from tests.power.trials import clopper_pearson, trials
from tests.power.variants import VARIANTS

if TYPE_CHECKING:
    from collections.abc import Callable

    from runtime.connection import UnixConnection
    from schemas.probe import ProbeDocument

DATA = Path(__file__).with_name("data")
PASSAGES = 40
"""Of each half: 960 tokens to draw from."""
PLATFORM = Platform("llamacpp", "here", "any", "F16")
STRONG = (
    "two layers swapped",
    "a layer dropped",
    "weights of 4 bits, per channel",
    "weights of 8 bits, per channel",
    "llama.cpp Q8_0 file",
    "rope base 500,000 instead of 10,000",
    "one tensor with noise of 0.1",
)


class Bench:
    """One recording, calibrated on half of the passages, and an honest server that goes on."""

    def __init__(self, laboratory: Laboratory, connection: UnixConnection) -> None:
        """Record it.

        Args:
            laboratory: makes the files.
            connection: to an honest server, which has four slots.
        """
        self.laboratory = laboratory
        self.connection = connection
        self.honest = Remembered(LlamaCppEngine())
        chosen, self.judged = record_halves(self.honest, connection, laboratory.passages[: 2 * PASSAGES], PLATFORM)
        fill(self.honest, connection, [chosen, self.judged])
        self.loaded = fill(Remembered(LlamaCppEngine()), connection, [chosen, self.judged], load=4)
        runs = [honest_run(engine, chosen) for engine in (self.honest, self.loaded)]
        self.document: ProbeDocument = calibrated(self.judged, runs, PLATFORM)

    def answered(self, path: Path, engine: Remembered | None = None) -> Remembered:
        """What a server with another file answers."""
        engine = engine or Remembered(LlamaCppEngine())
        with serving.llamacpp(path) as connection:
            return fill(engine, connection, [self.judged]).without_sampler()

    def told_by(self, engine: Remembered, count: int = 20) -> dict[str, int]:
        """By which tests so many validations reject; all of them must."""
        found = trials([engine], self.document, PLATFORM, count, connection=self.connection)
        assert found.rejected == count, found
        return found.tests


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """An honest server for all tests of this file."""
    laboratory = Laboratory(DATA, tmp_path_factory.mktemp("power"))
    folder = laboratory.gguf(HONEST, "F16").rename(laboratory.work / "honest.gguf")
    with serving.llamacpp(folder, parallel=4) as connection:
        yield Bench(laboratory, connection)


def test_honest_servers_pass(bench: Bench) -> None:
    """Whole validations, each of its own draw, sampler and caches included, under load or not; cheaply."""
    found = trials([bench.honest, bench.loaded], bench.document, PLATFORM, 100, connection=bench.connection)
    assert (found.rejected, found.inconclusive) == (0, 0), found
    assert found.tokens <= 600


def test_honest_server_that_was_started_anew_passes(bench: Bench) -> None:
    """Another process, prompts in small batches: nothing of the first one's answers is used."""
    engine = Remembered(LlamaCppEngine())
    with serving.llamacpp(bench.laboratory.gguf(HONEST, "F16"), batch=5) as connection:
        fill(engine, connection, [bench.judged])
    found = trials([engine.without_sampler()], bench.document, PLATFORM, 50)
    assert (found.rejected, found.inconclusive) == (0, 0), found


@pytest.mark.parametrize("name", STRONG)
def test_strong_fault_of_the_weights_is_told(bench: Bench, name: str) -> None:
    """Every draw rejects it, by the weights: nothing else is wrong."""
    variant = next(variant for variant in VARIANTS if variant.name == name)
    assert bench.told_by(bench.answered(bench.laboratory.gguf(variant, "F16"))) == {"weights": 20}


def test_lost_beginning_of_sequence_is_told(bench: Bench) -> None:
    """The right model, which is given less than it should be."""
    path = bench.laboratory.gguf(HONEST, "F16")
    assert bench.told_by(bench.answered(path, Beheading(LlamaCppEngine()))) == {"weights": 20}


def test_canned_answers_are_told(bench: Bench) -> None:
    """A proxy that knows other prompts' answers is told from what is asked; one that knows all of them is not."""
    asked = [(case.prompt, case.tokens) for case in bench.judged.forced]
    half = Canned(bench.honest, asked[::2]).without_sampler()
    assert bench.told_by(half)["weights"] == 20
    everything = Canned(bench.honest, asked).without_sampler()
    found = trials([everything], bench.document, PLATFORM, 20, connection=bench.connection)
    assert found.rejected == 0, "documented: a list of the whole probe is not told"


@pytest.mark.parametrize(
    "wrap", [Seedless, lambda engine: Tepid(engine, 0.0)], ids=["ignores the seed", "ignores the temperature"]
)
def test_disobedient_sampler_is_told(bench: Bench, wrap: Callable[[Any], Remembered]) -> None:
    """The right weights, drawn from otherwise than asked."""
    engine = wrap(LlamaCppEngine())
    engine.known = bench.honest.known
    assert bench.told_by(engine) == {"sampler": 20}


@pytest.mark.parametrize(
    ("test", "given"),
    [
        ("tokenizer", {"template": None}),
        ("tokenizer", {"add_begin": False}),
        ("tokenizer", {"tokenizer": "without the first merges"}),
    ],
    ids=["template", "beginning of sequence", "merges"],
)
def test_wrong_tokenizer_is_told(bench: Bench, test: str, given: dict[str, Any]) -> None:
    """The right weights, in a file with another template or tokenizer."""
    if "tokenizer" in given:
        other = {**bench.laboratory.tokenizer, "model": dict(bench.laboratory.tokenizer["model"])}
        other["model"]["merges"] = merges(other)[8:]
        given = {"tokenizer": other}
    engine = bench.answered(bench.laboratory.gguf(HONEST, "F16", **given))
    assert bench.told_by(engine) == {test: 20}


def test_interval_is_clopper_pearson() -> None:
    """As R's `binom.test` has it, whose interval is theirs."""
    assert clopper_pearson(0, 3000) == pytest.approx((0.0, 0.0012288), abs=1e-6)
    assert clopper_pearson(3, 300) == pytest.approx((0.0020664, 0.0289424), abs=1e-5)
    assert clopper_pearson(300, 300)[1] == 1.0
