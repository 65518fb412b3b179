"""The table of a test on the terminal, beside that of the network before pruning."""

from __future__ import annotations

import json
from collections.abc import Sequence

from pytorch_lightning.utilities import rank_zero_warn
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from prunerob.attacks.suite import Suite
from prunerob.robustness.table import WORST_CASE, Robustness
from prunerob.runs.weights import Weights


def show(robustness: Robustness, weights: Weights, warnings: Sequence[str], suite: Suite) -> None:
    """Print the table; beside it, if it was tested before, the same network before pruning.

    Args:
        robustness: the result.
        weights: what was tested.
        warnings: a reviewer's.
        suite: what it attacked with.
    """
    dense = accuracies_before_pruning(weights, robustness, suite)
    table = Table(title=escape(f"Robustness of {weights.file}"))
    table.add_column("attack")
    if dense:
        table.add_column("before pruning", justify="right")
    for heading in ("accuracy", "95 % interval", "images", "seconds"):
        table.add_column(heading, justify="right")
    if told := any(row.gradients for row in robustness.rows):
        table.add_column("gradients")
    for row in robustness.rows:
        low, high = row.interval
        cells = [f"{row.accuracy:.2%}", f"{low:.2%} to {high:.2%}", f"{row.images:,}"]
        before = [f"{dense[row.attack]:.2%}" if row.attack in dense else "-"] if dense else []
        gradients = [escape(row.gradients)] if told else []
        table.add_row(escape(row.attack), *before, *cells, f"{row.seconds:.1f}", *gradients)
    if robustness.searches:
        table.caption = escape(f"In the worst case alone: {robustness.told_searches()}")
    console = Console()
    console.print(table)
    for row in robustness.rows:
        if row.learned:
            learned = ", ".join(f"{name} {value:,.4g}" for name, value in row.learned.items())
            console.print(escape(f"{row.attack}: {learned}"), highlight=False)
        if row.left:
            left = ", ".join(f"{part} {images:,}" for part, images in row.left.items())
            text = f"{row.attack}, right of {row.images:,} images after: {left}"
            console.print(escape(text), highlight=False)
    for warning in warnings:
        console.print(f"[yellow]Warning:[/] {escape(warning)}", highlight=False, soft_wrap=True)


def accuracies_before_pruning(
    weights: Weights, robustness: Robustness, suite: Suite
) -> dict[str, float]:
    """What the same attacks found on the run's before_pruning.ckpt; empty without a test of it."""
    file = weights.folder / "robustness_before_pruning.json"
    if weights.run is None or weights.file.stem == "before_pruning" or not file.is_file():
        return {}
    try:
        before = json.loads(file.read_text("utf-8"))
        theirs = Suite.read(before.get("suite", {}))
        found = {row["attack"]: (row["images"], float(row["accuracy"])) for row in before["rows"]}
    except Exception as error:  # a damaged file can fail in any way, and is no reason to stop
        rank_zero_warn(f"{file} is damaged, so it is left out of the table ({error!r:.100})")
        return {}
    images = {row.attack: row.images for row in robustness.rows}

    def is_the_same(name: str) -> bool:
        if found[name][0] != images.get(name):
            return False
        if name == WORST_CASE:  # that of a suite, with what searched beyond it
            return theirs == suite
        return name == "clean" or theirs.attacks.get(name) == suite.attacks[name]

    return {name: accuracy for name, (_, accuracy) in found.items() if is_the_same(name)}
