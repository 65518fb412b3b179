"""Predictions of images, as files."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from prunerob.errors import UserError
from prunerob.robustness.cells import to_cell
from prunerob.runs.folder import write_whole


@dataclass(frozen=True)
class PredictionFormat:
    """How predictions are written.

    Args:
        as_json: as JSON; otherwise as CSV.
        top_k: number of classes of each image, the most probable first; None for all of them, in
            their own order.
    """

    as_json: bool = False
    top_k: int | None = None

    def __post_init__(self) -> None:
        if self.top_k is not None and self.top_k < 1:
            raise UserError(f"--top_k: {self.top_k} is below 1")

    @property
    def suffix(self) -> str:
        """The file's ending."""
        return "json" if self.as_json else "csv"


def write_predictions(
    file: Path,
    batches: Iterable[tuple[Tensor, Tensor]],
    names: Sequence[str] | None,
    classes: Sequence[str] | None = None,
    form: PredictionFormat = PredictionFormat(),
) -> None:
    """Write the class and the probabilities of each image.

    Args:
        file: a file to write, in full or not at all.
        batches: positions of images, int64, (B,), and their probabilities, float, (B, classes).
        names: of the images by position; None for the positions themselves.
        classes: names of the classes; None for their numbers.
        form: CSV with a line for each image, or JSON with an object for each.
    """
    text = io.StringIO(newline="")
    table = csv.writer(text, lineterminator="\n")
    objects: list[dict[str, object]] = []
    for i, (index, probabilities) in enumerate(batches):
        outputs = probabilities.shape[1]
        # A network may have more outputs than the data has classes.
        called = dict(enumerate(classes or ()))
        labels = [called.get(c, str(c)) for c in range(outputs)]
        shown = min(form.top_k or outputs, outputs)
        if i == 0 and form.top_k is None:
            every = (f"probability of {to_cell(label)}" for label in labels)
            table.writerow(["image", "class", *every])
        elif i == 0:
            heads = (f"{what} {k + 1}" for k in range(shown) for what in ("class", "probability"))
            table.writerow(["image", *heads])
        for image, row in zip(index.tolist(), probabilities, strict=True):
            name = names[image] if names else image
            values = [f"{value:.6g}" for value in row.tolist()]
            best = row.argsort(descending=True, stable=True).tolist()[:shown]
            if form.as_json:
                order = best if form.top_k else range(outputs)
                found = [{"class": labels[c], "probability": float(values[c])} for c in order]
                objects.append({"image": name, "class": labels[best[0]], "classes": found})
            elif form.top_k is None:
                table.writerow([to_cell(name), to_cell(labels[best[0]]), *values])
            else:
                cells = (cell for c in best for cell in (to_cell(labels[c]), values[c]))
                table.writerow([to_cell(name), *cells])
    content = json.dumps(objects, indent=1, ensure_ascii=False) + "\n"
    write_whole(file, content if form.as_json else text.getvalue())
