"""Makes `RESULTS.md` and its plot from `results.json`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Final

FOLDER = Path(__file__).parent

NOT_RUN: Final = """## Not run

On a GPU: everything. No machine with one was at hand: neither these figures, nor the
[table of power](../docs/power.md), nor the spread of honest GPU engines in bfloat16 and float16, batch-invariant or
not, against references from a processor. On a machine with one, `reconcile probe record --onto` records its
thresholds, `make power VLLM=PYTHON` counts its rows, and `make bench` adds its figures here."""


def table(results: dict[str, dict[str, object]]) -> str:
    """The figures as a table."""
    rows = [
        "# Results",
        "",
        "Made by `make bench` from [results.json](results.json). Each figure is a median; peers ran in turn with it,",
        "in the same run on the same machine. Machines are noisy: ratios say more than seconds.",
        "",
        "| Figure | Value | Goal | Peer | Peer's value | Ratio | On |",
        "|---|---|---|---|---|---|---:|",
    ]
    machines = sorted({f"{item['machine']} ({item['when']})" for item in results.values()})
    for name, item in sorted(results.items()):
        value, other = item["value"], item["peer_value"]
        ratio = f"{float(str(value)) / other:.2f}" if isinstance(other, int | float) and other else ""
        shown = f"{other} {item['unit']}" if other is not None else ""
        peer = item["peer"]
        place = machines.index(f"{item['machine']} ({item['when']})") + 1
        rows.append(f"| `{name}` | {value} {item['unit']} | {item['goal']} | {peer} | {shown} | {ratio} | {place} |")
    rows += ["", "![figures beside their peers](results.svg)", "", "Measured on:", ""]
    rows += [f"{place}. {machine}" for place, machine in enumerate(machines, 1)]
    rows += ["", NOT_RUN]
    return "\n".join(rows) + "\n"


def plot(results: dict[str, dict[str, object]], target: Path) -> None:
    """Each figure beside its peer, as a share of the peer."""
    import matplotlib as mpl

    mpl.use("svg")
    mpl.rcParams["svg.hashsalt"] = "reconcile"
    from matplotlib import pyplot as plt

    shown = [(name, item) for name, item in sorted(results.items()) if item["peer_value"]]
    if not shown:
        return
    figure, axes = plt.subplots(figsize=(8, 1.2 + 0.5 * len(shown)))
    ratios = [float(str(item["value"])) / float(str(item["peer_value"])) for _, item in shown]
    axes.barh([f"{name}\nvs {item['peer']}" for name, item in shown], ratios, color="#4477aa")
    axes.axvline(1.0, color="#888888", linewidth=1)
    axes.set_xlabel("value / peer's value")
    axes.bar_label(axes.containers[0], fmt="%.2f", padding=3)
    figure.tight_layout()
    figure.savefig(target, metadata={"Date": None})


def main() -> None:
    """Write both."""
    results = json.loads((FOLDER / "results.json").read_text(encoding="utf-8"))
    plot(results, FOLDER / "results.svg")
    (FOLDER / "RESULTS.md").write_text(table(results), encoding="utf-8")
    print(table(results))


if __name__ == "__main__":
    main()
