"""Where results go: the terminal, TensorBoard, and files beside the weights."""

from __future__ import annotations

import csv
import json
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from pytorch_lightning import Trainer
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from torch import Tensor

from prunerob.attacks.suite import are_alike, is_same_test
from prunerob.errors import UserError
from prunerob.robustness.table import WORST_CASE, Robustness
from prunerob.runs.folder import Weights, write_whole
from prunerob.training.tensorboard import writers


def check_writable(folder: Path) -> None:
    """Find out before the work whether its result can be written.

    Raises:
        UserError: it cannot.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise UserError(f"{folder} cannot be written ({error.strerror})") from None


def write(robustness: Robustness, weights: Weights, about: Mapping[str, object]) -> list[Path]:
    """Write robustness.json, .csv and .md, and the per-image file, beside the weights.

    Args:
        robustness: the result.
        weights: what was tested.
        about: what else to record in the JSON.

    Returns:
        the files.
    """
    stem = weights.result("robustness")
    texts = {
        f"{stem.name}.csv": robustness.to_csv(),
        f"{stem.name}.md": robustness.to_markdown(),
        f"{stem.name}_images.csv": robustness.images_to_csv(),
        # The last: where it is, the others are.
        f"{stem.name}.json": robustness.to_json({"weights": weights.file.name, **about}),
    }
    stem.with_name(f"{stem.name}.json").unlink(missing_ok=True)
    for name, text in texts.items():
        write_whole(stem.parent / name, text)
    return [stem.parent / name for name in texts]


def write_predictions(
    file: Path,
    batches: Iterable[tuple[Tensor, Tensor]],
    names: Sequence[str] | None,
    classes: Sequence[str] | None = None,
) -> None:
    """Write the class and the probabilities of each image, one line each.

    Args:
        file: a CSV file to write.
        batches: positions of images, int64, (B,), and their probabilities, float, (B, classes).
        names: of the images by position; None for the positions themselves.
        classes: names of the classes; None for their numbers.
    """
    with file.open("w", encoding="utf-8", newline="") as opened:
        table = csv.writer(opened, lineterminator="\n")
        for i, (index, probabilities) in enumerate(batches):
            if i == 0:
                # A network may have more outputs than the data has classes.
                called = dict(enumerate(classes or ()))
                every = [called.get(c, str(c)) for c in range(probabilities.shape[1])]
                table.writerow(["image", "class", *(f"probability of {c}" for c in every)])
            for image, row in zip(index.tolist(), probabilities, strict=True):
                values = [f"{value:.6g}" for value in row.tolist()]
                table.writerow(
                    [names[image] if names else image, every[int(row.argmax())], *values]
                )


def show(
    robustness: Robustness, weights: Weights, warnings: Sequence[str], suite: Mapping[str, Any]
) -> None:
    """Print the table; beside it, if it was tested before, the same network before pruning.

    Args:
        robustness: the result.
        weights: what was tested.
        warnings: a reviewer's.
        suite: the `attacks` and `worst_case_attacks` of the test, as a configuration has them.
    """
    dense = accuracies_before_pruning(weights, robustness, suite)
    table = Table(title=f"Robustness of {weights.file}")
    table.add_column("attack")
    if dense:
        table.add_column("before pruning", justify="right")
    for heading in ("accuracy", "95 % interval", "images", "seconds"):
        table.add_column(heading, justify="right")
    for row in robustness.rows:
        low, high = row.interval
        cells = [f"{row.accuracy:.2%}", f"{low:.2%} to {high:.2%}", f"{row.images:,}"]
        before = [f"{dense[row.attack]:.2%}" if row.attack in dense else "-"] if dense else []
        table.add_row(row.attack, *before, *cells, f"{row.seconds:.1f}")
    if robustness.searches:
        table.caption = f"In the worst case alone: {robustness.told_searches()}"
    console = Console()
    console.print(table)
    for row in robustness.rows:
        if row.learned:
            told = ", ".join(f"{name} {value:,.4g}" for name, value in row.learned.items())
            console.print(f"{row.attack}: {told}", highlight=False)
    for warning in warnings:
        console.print(f"[yellow]Warning:[/] {escape(warning)}", highlight=False, soft_wrap=True)


def show_in_tensorboard(
    trainer: Trainer, name: str, robustness: Robustness, settings: Mapping[str, str | float]
) -> None:
    """Add the table, and the hyper-parameters with the accuracies they led to."""
    for writer in writers(trainer):
        writer.add_text(f"{name} robustness", robustness.to_markdown())
        results = {f"hp/{row.attack}": row.accuracy for row in robustness.rows}
        writer.add_hparams(dict(settings), results, run_name=name)


def accuracies_before_pruning(
    weights: Weights, robustness: Robustness, suite: Mapping[str, Any]
) -> dict[str, float]:
    """What the same attacks found on the run's before_pruning.ckpt; empty without a test of it."""
    file = weights.folder / "robustness_before_pruning.json"
    if weights.run is None or weights.file.stem == "before_pruning" or not file.is_file():
        return {}
    before = json.loads(file.read_text("utf-8"))
    theirs = before.get("suite", {})
    images = {row.attack: row.images for row in robustness.rows}

    def is_the_same(row: Mapping[str, Any]) -> bool:
        name = row["attack"]
        if row["images"] != images.get(name):
            return False
        if name == WORST_CASE:  # that of a suite, with what searched beyond it
            return is_same_test(theirs, suite)
        both = [group.get("attacks", {}).get(name) for group in (theirs, suite)]
        return name == "clean" or (None not in both and are_alike({"": both[0]}, {"": both[1]}))

    return {row["attack"]: row["accuracy"] for row in before["rows"] if is_the_same(row)}
