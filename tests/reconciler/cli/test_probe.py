"""`reconcile probe` on a real engine, and `reconcile schema`."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import jsonschema
import pytest

from schemas.publish import DOCUMENTS

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.support.operators import Operator


@pytest.fixture
def network(operator: Operator, tiny_model: Callable[[int], Path]) -> Operator:
    """A network that lists a real tiny model without a probe."""
    pytest.importorskip("xllamacpp", reason="xllamacpp not present")
    operator.trust()
    operator.run("snapshot", "new", "--mode", "native")
    data = tiny_model(1) / "tiny.gguf"
    operator.run("model", "add", str(data), "--name", "tiny", "--version", "v1", "--source", "https://m.example/")
    return operator


def test_a_probe_is_recorded_from_the_engine_and_bound(network: Operator, tiny_model: Callable[[int], Path]) -> None:
    """Real llama.cpp answers, the answers are written, and the snapshot that lists the model binds them."""
    data = tiny_model(1) / "tiny.gguf"
    found = network.run("probe", "record", "--model", "tiny:v1", "--model-path", str(data), "--threads", "1")
    assert "Wrote probes/tiny-v1.yaml" in found.stdout
    network.run("snapshot", "validate")
    shown = network.run("probe", "show", "probes/tiny-v1.yaml").stdout
    assert "tiny-v1 of tiny:v1" in shown
    assert shown.count("greedy") == 4
    assert network.text.count("probes/tiny-v1.yaml") == 1


def test_other_bytes_are_not_recorded(network: Operator, tiny_model: Callable[[int], Path]) -> None:
    """A probe of other bytes would judge every node by the wrong model: refused before an engine is started."""
    other = tiny_model(2) / "tiny.gguf"
    found = network.run("probe", "record", "--model", "tiny:v1", "--model-path", str(other), code=64)
    assert "tiny.gguf differ" in found.stderr
    assert not (network.root / "probes").exists()


def test_a_probe_beside_the_repository_is_not_bound(network: Operator, tiny_model: Callable[[int], Path]) -> None:
    """What nodes could not read is written where it was asked for, and bound nowhere."""
    out = network.keys / "probe.yaml"
    data = tiny_model(1)
    before = network.text
    arguments = ["--model", "tiny:v1", "--model-path", str(data), "--out", str(out), "--threads", "1"]
    assert "reconcile model add" in network.run("probe", "record", *arguments).stdout
    assert out.exists()
    assert network.text == before


def test_record_needs_a_manifest_and_a_known_engine(network: Operator, tiny_model: Callable[[int], Path]) -> None:
    """A model without a manifest, and an engine that this agent does not have, are refused."""
    path = str(tiny_model(1))
    network.run("probe", "record", "--model", "big:v1", "--model-path", path, code=3)
    network.run("probe", "record", "--model", "tiny:v1", "--model-path", path, "--engine", "magic", code=64)


def test_schemas_are_listed_and_printed(operator: Operator) -> None:
    """Every document has a schema of the 2020-12 dialect, and the command prints exactly the published one."""
    kinds = operator.run("schema", "list").stdout.split()
    assert sorted(kinds) == sorted(DOCUMENTS)
    for kind in kinds:
        schema = json.loads(operator.run("schema", "print", kind).stdout)
        jsonschema.Draft202012Validator.check_schema(schema)
        assert schema["$schema"] == "https://json-schema.org/draft/2020-12/schema"
    operator.run("schema", "print", "nothing", code=64)


def test_thresholds_and_a_golden_are_added_to_a_recorded_probe(
    network: Operator, tiny_model: Callable[[int], Path]
) -> None:
    """Recorded with thresholds of this platform; --onto replaces those, --golden adds this build's own answers."""
    from desired_state.load import parse_probe

    data = str(tiny_model(1) / "tiny.gguf")
    model = ["--model", "tiny:v1", "--model-path", data, "--threads", "1"]
    passages = network.keys / "passages.txt"
    passages.write_text("\n\n".join(f"ba be bi bo bu da de di do du {number} " * 8 for number in range(6)))
    found = network.run("probe", "record", *model, "--passages", str(passages))
    assert "Thresholds for llamacpp (stored) on " in found.stdout
    path = network.root / "probes/tiny-v1.yaml"
    first = parse_probe(path.read_bytes(), file="first").spec
    assert (len(first.forced), len(first.calibrations), first.goldens) == (6, 1, ())
    assert first.calibrations[0].runs == 3

    network.run("probe", "record", *model, "--onto", str(path), "--golden", "--margin", "2")
    second = parse_probe(path.read_bytes(), file="second").spec
    assert second.forced == first.forced
    (calibration,), (golden,) = second.calibrations, second.goldens
    assert (calibration.margin, golden.calibration.engine, len(golden.forced)) == (2, "llamacpp", 6)
    assert "golden" in network.run("probe", "show", str(path)).stdout

    network.run("probe", "record", *model, "--golden", code=64)
    network.run("probe", "record", *model, "--onto", str(path), "--reference", "transformers", code=64)
