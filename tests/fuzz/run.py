"""Fuzzes one target in this process, guided by coverage: `python -m tests.fuzz.run NAME SECONDS CORPUS`.

Prints libFuzzer's own words; ends with a status that is not 0 where a finding was made, which lies beside the corpus.
"""

from __future__ import annotations

import sys
from pathlib import Path

import atheris

OURS = ("desired_state", "reconciler", "runtime", "schemas")
LIMIT = 2**12
"""Bytes of an input: every rule of every grammar shows in far less."""


def main(name: str, seconds: str, folder: str, inputs: str) -> None:
    """Fuzz until the time is up, or so many inputs were tried (-1: any number)."""
    with atheris.instrument_imports(include=list(OURS)):
        from tests.fuzz.targets import TARGETS
    target = TARGETS[name]
    corpus = Path(folder) / name
    corpus.mkdir(parents=True, exist_ok=True)
    for number, seed in enumerate(target.seeds):
        (corpus / f"seed-{number}").write_bytes(seed)
    options = [
        f"-max_total_time={seconds}",
        f"-runs={inputs}",
        f"-max_len={LIMIT}",
        f"-artifact_prefix={folder}/{name}-",
        "-seed=1",
        "-timeout=60",
        # The peak that libFuzzer reads begins at that of the process which started this one.
        "-rss_limit_mb=16384",
        "-malloc_limit_mb=1024",
        "-print_final_stats=1",
        "-verbosity=0",
    ]
    atheris.Setup([sys.argv[0], *options, str(corpus)], target)
    atheris.Fuzz()


if __name__ == "__main__":
    main(*sys.argv[1:])
