"""Files of results, beside the weights that they are about."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from torch import Tensor

from prunerob.robustness.cells import to_cell
from prunerob.robustness.table import Robustness
from prunerob.runs.folder import write_whole
from prunerob.runs.weights import Weights


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
        file: a CSV file to write, in full or not at all.
        batches: positions of images, int64, (B,), and their probabilities, float, (B, classes).
        names: of the images by position; None for the positions themselves.
        classes: names of the classes; None for their numbers.
    """
    text = io.StringIO(newline="")
    table = csv.writer(text, lineterminator="\n")
    for i, (index, probabilities) in enumerate(batches):
        if i == 0:
            # A network may have more outputs than the data has classes.
            called = dict(enumerate(classes or ()))
            every = [to_cell(called.get(c, c)) for c in range(probabilities.shape[1])]
            table.writerow(["image", "class", *(f"probability of {c}" for c in every)])
        for image, row in zip(index.tolist(), probabilities, strict=True):
            values = [f"{value:.6g}" for value in row.tolist()]
            table.writerow(
                [to_cell(names[image]) if names else image, every[int(row.argmax())], *values]
            )
    write_whole(file, text.getvalue())
