"""`make bench`: runs the benchmarks (all, or one by the name of its figure) and makes the report."""

from __future__ import annotations

import argparse
import ast
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parent


def tests_of(name: str) -> list[str]:
    """The tests that record a figure, or whose own name says so; a test may record several."""
    found = []
    for path in sorted(FOLDER.glob("bench_*.py")):
        for item in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(item, ast.FunctionDef) and item.name.startswith("test_"):
                said = {node.value for node in ast.walk(item) if isinstance(node, ast.Constant)}
                found += [item.name] if name in said else []
    return found or [name]


def main() -> int:
    """Run and report; the exit code is pytest's."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", help="name of one figure")
    arguments = parser.parse_args()
    options = [str(FOLDER), "-q", "-s", "-p", "no:cacheprovider", "-o", "python_files=bench_*.py", "--timeout=1800"]
    if arguments.only:
        options += ["-k", " or ".join(tests_of(arguments.only))]
    code = pytest.main(options)
    if code == pytest.ExitCode.OK:
        from benchmarks import report

        report.main()
    return int(code)


if __name__ == "__main__":
    sys.exit(main())
