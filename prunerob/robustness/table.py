"""The result of a test: accuracy under each attack and under all of them, image by image."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from io import StringIO
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from prunerob.errors import UserError
from prunerob.robustness.cells import from_cell, to_cell
from prunerob.robustness.scrutiny import Scrutiny
from prunerob.statistics import wilson_interval

WORST_CASE = "worst case"
FOOLED_BY = "fooled in the worst case by"
"""Heading of the last column of the file of images."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """Accuracy under one attack.

    Args:
        attack: the attack's name; "clean", or "worst case" for an image being classified right
            clean and under every attack, those of `Search` included.
        correct: images classified right.
        images: images attacked.
        seconds: time spent attacking and classifying them; the gradient that FGSM's rows share
            counts in the first of them.
        learned: what the attack learned before it attacked, by name.
        left: of an attack in parts, images right after each of them, by name and in order.
        gradients: where they came from, of a row about a file that has none itself.
    """

    attack: str
    correct: int
    images: int
    seconds: float
    learned: Mapping[str, float] = field(default_factory=dict)
    left: Mapping[str, int] = field(default_factory=dict)
    gradients: str = ""

    @property
    def accuracy(self) -> float:
        """Share classified right, in [0, 1]."""
        return self.correct / self.images

    @property
    def interval(self) -> tuple[float, float]:
        """95 % confidence interval of the accuracy."""
        return wilson_interval(self.correct, self.images)


@dataclass(frozen=True, kw_only=True)
class Search:
    """What an attack added to the worst case alone, on images that no other got wrong.

    Args:
        attack: the attack's name.
        images: images attacked.
        fooled: positions of those it got wrong, int64, (n,).
        seconds: time spent on them.
    """

    attack: str
    images: int
    fooled: Tensor
    seconds: float


@dataclass(frozen=True, kw_only=True)
class Robustness:
    """The table of a test, and what it was made from.

    Args:
        rows: one per attack, then the worst case.
        searches: of the attacks that count in the worst case alone, in their order.
        index: position of each image in its data set, int64, (N,).
        label: true labels, int64, (N,).
        predictions: by attack, int64, (N,); -1 for an image that the attack leaves out.
        margins: by attack, true logit minus the largest other one, float32, (N,).
        scrutiny: how far the gradients and PGD can be trusted, if that was looked into.
    """

    rows: Sequence[Row]
    searches: Sequence[Search]
    index: Tensor
    label: Tensor
    predictions: Mapping[str, Tensor]
    margins: Mapping[str, Tensor]
    scrutiny: Scrutiny | None = None

    def __str__(self) -> str:
        return self.to_markdown()

    def correct(self, attack: str) -> Tensor:
        """Which images are classified right under an attack, bool, (N,).

        In the worst case, those are right clean and under every attack, those of `Search` included.
        """
        if attack != WORST_CASE:
            return self.predictions[attack] == self.label
        right = torch.ones_like(self.label, dtype=torch.bool)
        for prediction in self.predictions.values():
            right &= prediction == self.label
        for search in self.searches:
            right &= ~torch.isin(self.index, search.fooled)
        return right

    def attacked(self, attack: str) -> Tensor:
        """Which images an attack was tried on, bool, (N,); in the worst case, every attack."""
        if attack != WORST_CASE:
            return self.predictions[attack] >= 0
        return torch.stack([prediction >= 0 for prediction in self.predictions.values()]).all(0)

    @classmethod
    def read(cls, stem: Path) -> tuple[Robustness, dict[str, Any]]:
        """Read back what a test wrote.

        Args:
            stem: the files' path without `.json` and `_images.csv`.

        Returns:
            the result, and all that its JSON file says.

        Raises:
            UserError: the files are not of a test, or damaged.
        """
        try:
            about = json.loads(stem.with_name(f"{stem.name}.json").read_text("utf-8"))
            with stem.with_name(f"{stem.name}_images.csv").open(
                encoding="utf-8", newline=""
            ) as file:
                headings, *lines = csv.reader(file)
            headings = [from_cell(heading) for heading in headings]
            columns = dict(zip(headings, zip(*lines, strict=True), strict=True))
            names = [h.removesuffix(" prediction") for h in headings if h.endswith(" prediction")]
            index = _integers(columns["index"])
            by = columns.get(FOOLED_BY, ())
            searches = [
                Search(
                    attack=search["attack"],
                    images=search["images"],
                    fooled=index[torch.tensor([from_cell(c) == search["attack"] for c in by])],
                    seconds=search["seconds"],
                )
                for search in about.get("worst case attacks", [])
            ]
            rows = [
                Row(
                    attack=row["attack"],
                    correct=row["correct"],
                    images=row["images"],
                    seconds=row["seconds"],
                    learned=row.get("learned", {}),
                    left={str(k): int(v) for k, v in row.get("left", {}).items()},
                    gradients=str(row.get("gradients", "")),
                )
                for row in about["rows"]
            ]
            scrutiny = about.get("scrutiny")
            robustness = cls(
                rows=rows,
                searches=searches,
                index=index,
                label=_integers(columns["label"]),
                predictions={name: _integers(columns[f"{name} prediction"]) for name in names},
                margins={
                    name: torch.tensor([float(v or "nan") for v in columns[f"{name} margin"]])
                    for name in names
                },
                scrutiny=Scrutiny.from_plain(scrutiny) if scrutiny else None,
            )
            _check(robustness)
        except FileNotFoundError:
            raise
        except Exception as error:  # a damaged file can fail in any way
            reason = " ".join(repr(error).split())[:200]
            raise UserError(f"{stem}.json and _images.csv are not of a test ({reason})") from None
        return robustness, about

    def to_json(self, about: Mapping[str, object]) -> str:
        """The rows, behind what is to be known about the test."""
        rows = [
            {
                "attack": row.attack,
                "accuracy": row.accuracy,
                "interval": row.interval,
                "correct": row.correct,
                "images": row.images,
                "seconds": round(row.seconds, 3),
                **({"learned": dict(row.learned)} if row.learned else {}),
                **({"left": dict(row.left)} if row.left else {}),
                **({"gradients": row.gradients} if row.gradients else {}),
            }
            for row in self.rows
        ]
        record = {**about, "interval": "95 %, Wilson", "rows": rows}
        if self.searches:
            record["worst case attacks"] = [
                {
                    "attack": search.attack,
                    "fooled": len(search.fooled),
                    "images": search.images,
                    "seconds": round(search.seconds, 3),
                }
                for search in self.searches
            ]
        if self.scrutiny:
            record["scrutiny"] = self.scrutiny.to_plain()
        return json.dumps(record, indent=2) + "\n"

    def to_csv(self) -> str:
        """The rows, one line each; accuracies in [0, 1]."""
        file = StringIO()
        table = csv.writer(file, lineterminator="\n")
        table.writerow(["attack", "accuracy", "low", "high", "correct", "images", "seconds"])
        for row in self.rows:
            low, high = (f"{bound:.6f}" for bound in row.interval)
            seconds = f"{row.seconds:.3f}"
            table.writerow(
                [
                    to_cell(row.attack),
                    f"{row.accuracy:.6f}",
                    low,
                    high,
                    row.correct,
                    row.images,
                    seconds,
                ]
            )
        return file.getvalue()

    def to_markdown(self) -> str:
        """The table for a page; accuracies in percent."""
        told = any(row.gradients for row in self.rows)
        lines = [
            "| attack | accuracy, % | 95 % interval | images | seconds |" + " gradients |" * told,
            "|---|---|---|---|---|" + "---|" * told,
        ]
        for row in self.rows:
            low, high = row.interval
            lines.append(
                f"| {row.attack} | {100 * row.accuracy:.2f} | {100 * low:.2f} to {100 * high:.2f} "
                f"| {row.images:,} | {row.seconds:.1f} |" + f" {row.gradients} |" * told
            )
        if self.searches:
            lines += ["", f"In the worst case alone: {self.told_searches()}."]
        return "\n".join(lines) + "\n"

    def told_searches(self) -> str:
        """What the attacks in the worst case alone found, in words."""
        return "; ".join(
            f"{search.attack} got {len(search.fooled):,} of {search.images:,} more wrong "
            f"({search.seconds:.1f} s)"
            for search in self.searches
        )

    def images_to_csv(self) -> str:
        """One line per image: index, label, and the prediction and margin under each attack.

        Both are empty where the attack leaves the image out.
        Where attacks counted in the worst case alone, a last column names the one that succeeded.
        """
        file = StringIO()
        table = csv.writer(file, lineterminator="\n")
        columns = [
            [to_cell(f"{name} {what}") for what in ("prediction", "margin")]
            for name in self.predictions
        ]
        headings = ["index", "label", *(c for pair in columns for c in pair)]
        values: list[Sequence[object]] = [self.index.tolist(), self.label.tolist()]
        for name, prediction in self.predictions.items():
            values.append(["" if p < 0 else p for p in prediction.tolist()])
            pairs = zip(prediction.tolist(), self.margins[name].tolist(), strict=True)
            values.append(["" if p < 0 else f"{margin:.6g}" for p, margin in pairs])
        if self.searches:
            headings.append(FOOLED_BY)
            by = {
                i: to_cell(search.attack)
                for search in self.searches
                for i in search.fooled.tolist()
            }
            values.append([by.get(i, "") for i in self.index.tolist()])
        table.writerow(headings)
        table.writerows(zip(*values, strict=True))
        return file.getvalue()


def _check(robustness: Robustness) -> None:
    """See that what was read is of one test.

    Raises:
        ValueError: it is not.
    """
    images = len(robustness.index)
    if len(set(robustness.index.tolist())) < images:
        raise ValueError("an image is there twice")
    for row in robustness.rows:
        if not (0 <= int(row.correct) <= int(row.images) <= images and row.images > 0):
            raise ValueError(f"{row.attack}: {row.correct} of {row.images} of {images} images")
        if row.attack != WORST_CASE:
            right = int(robustness.correct(row.attack).sum())
            if right != row.correct:
                raise ValueError(f"{row.attack}: {row.correct} right, but {right} by image")
        if not float(row.seconds) >= 0 or not isinstance(row.learned, Mapping):
            raise ValueError(f"{row.attack}: {row.seconds} seconds")


def _integers(column: Sequence[str]) -> Tensor:
    """Numbers as in the file of images, int64; -1 for nothing."""
    return torch.tensor([int(value or -1) for value in column])
