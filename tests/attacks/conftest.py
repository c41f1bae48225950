"""The node under attack, one for each worker, and the table that `make attacks` prints."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.attacks.victim import Victim

PRINT = "--attack-table"


def pytest_addoption(parser: pytest.Parser) -> None:
    """`make attacks` asks for the table."""
    parser.addoption(PRINT, action="store_true", help="print the attack table row by row, as it was seen")


@pytest.hookimpl(wrapper=True)
def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> Iterator[None]:
    """The table as it was seen, in its own order."""
    if terminalreporter.config.getoption(PRINT, default=False):
        from tests.attacks.rows import ATTACKS
        from tests.attacks.table import line

        reports = [report for kind in ("passed", "failed") for report in terminalreporter.getreports(kind)]
        seen = {
            value[0]: (value, report) for report in reports for key, value in report.user_properties if key == "attack"
        }
        heading = ""
        for name in [name for name in ATTACKS if name in seen]:
            attack, (value, report) = ATTACKS[name], seen[name]
            if attack.group != heading:
                heading = attack.group
                terminalreporter.section(heading, sep="-")
            _, reason, code, answered = value
            terminalreporter.write_line(line(attack, reason, code, answered=answered), red=report.failed)
        held = sum(report.passed for _, report in seen.values())
        terminalreporter.section(f"{held} of {len(ATTACKS)} rows are as they must be", sep="=")
    yield


@pytest.fixture(scope="session")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Victim]:
    """A node that serves snapshot 5."""
    pytest.importorskip("gguf", reason="gguf not present")
    pytest.importorskip("xllamacpp", reason="xllamacpp not present")
    from tests.attacks.victim import victim

    with victim(tmp_path_factory.mktemp("attacks")) as made:
        yield made
