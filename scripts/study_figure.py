"""Draw the study's figure: what each kind of attack leaves of each network in study/.

python scripts/study_figure.py docs/figures/study.svg
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("agg")
from matplotlib import pyplot as plt
from matplotlib.axes import Axes

SWEEPS = {
    "hidden": "weights, PGD as it is",
    "first_layer": "weights, first layer whole, PGD as it is",
    "weights": "weights, ReLUs that are off",
    "filters_hidden": "filters ranked over layers, PGD as it is",
    "filters": "filters, each layer's share, ReLUs that are off",
}
"""Folders, and what they are called, from above."""

LOWEST = 50
"""Accuracy in percent at which the axis begins; networks below are named as collapsed."""


def main(target: str) -> None:
    """Draw, from the results that are there.

    Args:
        target: file to write, .svg or .png.
    """
    runs = {sweep: sorted(Path("study", sweep).glob("seed0/*"), key=_order) for sweep in SWEEPS}
    rows = len(SWEEPS) + sum(map(len, runs.values()))
    figure, axes = plt.subplots(figsize=(8, 0.27 * rows + 0.9))
    place, labels = 0.0, []
    for sweep, title in SWEEPS.items():
        axes.text(LOWEST + 0.5, place, title, va="center", fontsize=8, style="italic")
        place -= 1
        for run in runs[sweep]:
            _draw(axes, place, json.loads((run / "robustness.json").read_text()))
            labels.append((place, run.name.replace("_", " ")))
            place -= 1
    axes.set_yticks([p for p, _ in labels], [name for _, name in labels], fontsize=7)
    axes.set_xlim(LOWEST, 100)
    axes.set_ylim(place, 1)
    axes.set_xlabel("validation images classified right, % (eps 0.3)")
    for marker, color, what in (
        ("o", "C0", "PGD-40"),
        ("|", "C1", "AutoAttack without Square"),
        ("o", "C3", "AutoAttack, 95 % interval"),
    ):
        axes.plot([], [], marker, color=color, label=what)
    axes.legend(loc="lower left", fontsize=7, frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    figure.tight_layout()
    mpl.rcParams["svg.hashsalt"] = "study"
    figure.savefig(target, metadata={"Date": None} if target.endswith(".svg") else None)


def _draw(axes: Axes, place: float, record: dict[str, Any]) -> None:
    """One network's row, by what was measured of it."""
    pgd, auto = _row(record, "PGD 0.3"), _row(record, "AutoAttack 0.3")
    left, (low, high) = 100 * auto["accuracy"], auto["interval"]
    if left < LOWEST:
        axes.text(LOWEST + 0.5, place, f"{left:.0f}, collapsed", va="center", fontsize=7)
        return
    axes.plot([left, 100 * pgd["accuracy"]], [place] * 2, color="0.8", zorder=0)
    interval = [[left - 100 * low], [100 * high - left]]
    axes.errorbar(left, place, xerr=interval, color="C3", lw=0.8, capsize=2)
    axes.plot(100 * pgd["accuracy"], place, "o", color="C0", ms=5)
    axes.plot(100 * auto["left"]["FAB-T"] / auto["images"], place, "|", color="C1", ms=9, mew=2)
    axes.plot(left, place, "o", color="C3", ms=5)


def _order(run: Path) -> tuple[bool, float, str]:
    amount = run.name.rsplit("-", 1)[-1]
    return run.name != "control", 0.0 if amount == "control" else float(amount), run.name


def _row(record: dict[str, Any], name: str) -> dict[str, Any]:
    row: dict[str, Any] = next(row for row in record["rows"] if row["attack"] == name)
    return row


if __name__ == "__main__":
    main(*sys.argv[1:])
