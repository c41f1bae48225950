"""The dashboard and the alert rules ask for metrics that there are, by labels that they have."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from reconciler.telemetry.metrics import Metrics

FOLDER = Path(__file__).parents[2] / "examples" / "monitoring"
SUFFIXES = ("", "_bucket", "_count", "_sum")


def expressions() -> list[str]:
    """Every expression of both."""
    rules = YAML(typ="safe").load((FOLDER / "alerts.yaml").read_text(encoding="utf-8"))
    dashboard = json.loads((FOLDER / "dashboard.json").read_text(encoding="utf-8"))
    found = [rule["expr"] for group in rules["groups"] for rule in group["rules"]]
    return found + [target["expr"] for panel in dashboard["panels"] for target in panel["targets"]]


@pytest.mark.parametrize("expression", expressions())
def test_what_is_asked_for_is_there(expression: str) -> None:
    """A metric that was renamed breaks a test, not an alert."""
    known = {name + suffix for name in Metrics().described() for suffix in SUFFIXES}
    asked = set(re.findall(r"\breconcile_[a-z_]+", expression))
    assert asked
    assert asked <= known


def test_every_rule_says_whom_it_is_about() -> None:
    """Severity and a sentence, for whoever is woken."""
    rules = YAML(typ="safe").load((FOLDER / "alerts.yaml").read_text(encoding="utf-8"))
    for group in rules["groups"]:
        for rule in group["rules"]:
            assert rule["labels"]["severity"] in ("page", "ticket")
            assert "{{" in rule["annotations"]["summary"]
