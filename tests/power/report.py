"""Writes the table of power as a page, and its plot."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Sequence

    from runtime.validation.evidence import Platform
    from schemas.probe import Calibration
    from tests.power.trials import Count

PAGE: Final = Path(__file__).with_name("page.md")
"""What the page says before its tables."""
SHOWN: Final = (
    "weights of 4 bits, per channel",
    "weights of 8 bits, per channel",
    "llama.cpp Q8_0 file",
    "fine-tuned sibling: 50 steps at 1e-5",
    "one tensor with noise of 0.03",
    "one tensor with noise of 0.01",
    "two layers swapped",
    "norms' epsilon 1e-6 instead of 1e-5",
)
"""Faults in the plot."""


@dataclass(frozen=True)
class Row:
    """One line."""

    name: str
    count: Count
    tokens: int | None = None
    """At how many tokens 99 % of draws are told, with a look at that number alone."""
    honest: bool = False


@dataclass(frozen=True)
class Section:
    """One engine with one kind of numbers, against one reference."""

    label: str
    reference: str
    platform: Platform
    calibration: Calibration
    rows: Sequence[Row]
    curves: dict[str, dict[int, list[float]]] = field(default_factory=dict)
    allowed: dict[int, float] = field(default_factory=dict)
    missing: Sequence[str] = ()
    """What could not be run where the table was made."""


def write(folder: Path, sections: Sequence[Section], extra: Sequence[Row], *, models: Path) -> None:
    """Write `power.md` and `power.svg` into a folder.

    Args:
        folder: where.
        sections: tables of weights.
        extra: rows of tokenizers, templates and samplers.
        models: folder of the trained models, whose metadata are told.
    """
    intro = PAGE.read_text("utf-8")
    parts = [intro.rstrip(), *(_section(section) for section in sections)]
    if extra:
        parts.append(_table("Tokenizers, templates, samplers (llama.cpp)", extra, curves=False))
    parts.append(f"## How it was made\n\n{_about(models)}")
    (folder / "power.md").write_text("\n\n".join(parts) + "\n", "utf-8")
    _plot(folder / "power.svg", sections)


def _section(section: Section) -> str:
    looks = ", ".join(
        f"{look.tokens} tokens: pass up to {look.accept:.2g}, fail above {look.reject:.2g}"
        for look in section.calibration.looks
    )
    calibration = section.calibration
    about = (
        f"Thresholds from {calibration.runs} honest runs over other passages ({calibration.samples} positions), margin "
        f"{calibration.margin:g}. {looks}."
    )
    if section.missing:
        about += f" Not run here: {'; '.join(dict.fromkeys(section.missing))}."
    return _table(f"{section.label}, against {section.reference}", section.rows, curves=True, about=about)


def _table(title: str, rows: Sequence[Row], *, curves: bool, about: str = "") -> str:
    lines = [f"## {title}", ""]
    if about:
        lines += [about, ""]
    more = " variance | tokens for 99 % |" if curves else ""
    lines += [
        f"| What serves | validations | rejected | share, 95 % interval | tokens (median) |{more} told by |",
        f"|---|---:|---:|---:|---:|{'---:|---:|' if curves else ''}---|",
    ]
    for row in rows:
        low, high = row.count.interval()
        count = row.count
        share = f"{100 * count.share():.2f} % ({100 * low:.2f}-{100 * high:.2f})"
        told = ", ".join(f"{test}" for test in sorted(count.tests, key=count.tests.__getitem__, reverse=True)) or "-"
        least = "" if row.honest or not curves else str(row.tokens) if row.tokens else "-"
        extra = f" {count.variance:.2g} | {least} |" if curves else ""
        name = f"*{row.name}*" if row.honest else row.name
        lines.append(f"| {name} | {count.trials} | {count.rejected} | {share} | {count.tokens:.0f} |{extra} {told} |")
    return "\n".join(lines)


def _about(models: Path) -> str:
    lines = []
    for path in sorted(models.glob("*.safetensors")):
        content = path.read_bytes()
        header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
        facts = header.get("__metadata__", {})
        lines.append(
            f"- `{path.stem}`: seed {facts.get('seed')}, {facts.get('steps')} steps in {facts.get('seconds')} s, loss "
            f"on held-out text {facts.get('loss')} (token frequencies alone: {facts.get('unigram')}), torch "
            f"{facts.get('torch')}, library of Python {facts.get('python')}"
        )
    return "\n".join(lines)


def _plot(path: Path, sections: Sequence[Section]) -> None:
    import matplotlib as mpl

    mpl.use("svg")
    mpl.rcParams["svg.hashsalt"] = "power"
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(
        1, len(sections), figsize=(4.6 * len(sections), 4.6), sharey=True, squeeze=False, layout="constrained"
    )
    for axis, section in zip(axes[0], sections, strict=True):
        for name, found in section.curves.items():
            if name != "honest" and name not in SHOWN:
                continue
            sizes = sorted(found)
            style = {"color": "black", "linewidth": 2.5} if name == "honest" else {"linewidth": 1.2}
            (line,) = axis.plot(sizes, [median(found[size]) for size in sizes], label=name, **style)
            low, high = ([_quantile(found[size], share) for size in sizes] for share in (0.01, 0.99))
            axis.fill_between(sizes, low, high, color=line.get_color(), alpha=0.12, linewidth=0)
        sizes = sorted(section.allowed)
        allowed = [section.allowed[size] for size in sizes]
        axis.plot(sizes, allowed, "r--", linewidth=1.5, label="fails above")
        axis.set(
            xscale="log", yscale="log", xlabel="tokens spent", title=f"{section.label},\nagainst {section.reference}"
        )
        axis.set_xticks(sizes, [str(size) for size in sizes], rotation=60)
        axis.minorticks_off()
        axis.grid(alpha=0.2)
    axes[0][0].set_ylabel("centred variance (median, 1-99 % of draws)")
    handles, labels = axes[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=3, fontsize=8)
    figure.savefig(path, metadata={"Date": None})


def _quantile(values: Sequence[float], share: float) -> float:
    return sorted(values)[int(share * len(values))]
