"""The result of a test: accuracy under each attack and under all of them, image by image."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from io import StringIO
from time import perf_counter

import torch
from torch import Tensor

WORST_CASE = "worst case"


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
    """

    attack: str
    correct: int
    images: int
    seconds: float

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
        predictions: by attack, int64, (N,).
        margins: by attack, true logit minus the largest other one, float32, (N,).
    """

    rows: Sequence[Row]
    searches: Sequence[Search]
    index: Tensor
    label: Tensor
    predictions: Mapping[str, Tensor]
    margins: Mapping[str, Tensor]

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
            }
            for row in self.rows
        ]
        found = {**about, "interval": "95 %, Wilson", "rows": rows}
        if self.searches:
            found["worst case attacks"] = [
                {
                    "attack": search.attack,
                    "fooled": len(search.fooled),
                    "images": search.images,
                    "seconds": round(search.seconds, 3),
                }
                for search in self.searches
            ]
        return json.dumps(found, indent=2) + "\n"

    def to_csv(self) -> str:
        """The rows, one line each; accuracies in [0, 1]."""
        file = StringIO()
        table = csv.writer(file, lineterminator="\n")
        table.writerow(["attack", "accuracy", "low", "high", "correct", "images", "seconds"])
        for row in self.rows:
            low, high = (f"{bound:.6f}" for bound in row.interval)
            seconds = f"{row.seconds:.3f}"
            table.writerow(
                [row.attack, f"{row.accuracy:.6f}", low, high, row.correct, row.images, seconds]
            )
        return file.getvalue()

    def to_markdown(self) -> str:
        """The table for a page; accuracies in percent."""
        lines = [
            "| attack | accuracy, % | 95 % interval | images | seconds |",
            "|---|---|---|---|---|",
        ]
        for row in self.rows:
            low, high = row.interval
            lines.append(
                f"| {row.attack} | {100 * row.accuracy:.2f} | {100 * low:.2f} to {100 * high:.2f} "
                f"| {row.images:,} | {row.seconds:.1f} |"
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

        Where attacks counted in the worst case alone, a last column names the one that succeeded.
        """
        file = StringIO()
        table = csv.writer(file, lineterminator="\n")
        columns = [[f"{name} prediction", f"{name} margin"] for name in self.predictions]
        headings = ["index", "label", *(c for pair in columns for c in pair)]
        values: list[Sequence[object]] = [self.index.tolist(), self.label.tolist()]
        for name, prediction in self.predictions.items():
            values.append(prediction.tolist())
            values.append([f"{value:.6g}" for value in self.margins[name].tolist()])
        if self.searches:
            headings.append("fooled in the worst case by")
            by = {i: search.attack for search in self.searches for i in search.fooled.tolist()}
            values.append([by.get(i, "") for i in self.index.tolist()])
        table.writerow(headings)
        table.writerows(zip(*values, strict=True))
        return file.getvalue()


@dataclass
class RobustnessRecorder:
    """Collects what a test sees, batch by batch."""

    _seconds: dict[str, float] = field(default_factory=dict)
    _parts: dict[str, list[tuple[Tensor, ...]]] = field(default_factory=dict)
    _searches: dict[str, list[Search]] = field(default_factory=dict)

    def add(
        self,
        attack: str,
        *,
        index: Tensor,
        label: Tensor,
        prediction: Tensor,
        margin: Tensor,
        start: float,
    ) -> None:
        """Note one attack on one batch.

        Args:
            attack: its name.
            index: position of each image in its data set, int64, (B,).
            label: true labels, int64, (B,).
            prediction: predicted labels, int64, (B,).
            margin: true logit minus the largest other one, float32, (B,).
            start: `perf_counter()` when the attack began. The clock is read after the results
                have come to the CPU, so that a GPU's time is counted in full.
        """
        part = tuple(t.cpu().clone() for t in (index, label, prediction, margin))
        self._parts.setdefault(attack, []).append(part)
        self._seconds[attack] = self._seconds.get(attack, 0.0) + perf_counter() - start

    def add_search(self, attack: str, *, index: Tensor, fooled: Tensor, start: float) -> None:
        """Note one attack that counts in the worst case alone, on some images.

        Args:
            attack: its name.
            index: position of each attacked image in its data set, int64, (n,).
            fooled: whether the network got it wrong, bool, (n,).
            start: as in `add`.
        """
        found = index[fooled].cpu()
        search = Search(
            attack=attack, images=len(index), fooled=found, seconds=perf_counter() - start
        )
        self._searches.setdefault(attack, []).append(search)

    def robustness(self) -> Robustness:
        """Sum up.

        Raises:
            RuntimeError: an image was counted twice.
        """
        columns = {
            name: [torch.cat(column) for column in zip(*parts, strict=True)]
            for name, parts in self._parts.items()
        }
        index, label = next(iter(columns.values()))[:2]
        if len(torch.unique(index)) != len(index):
            raise RuntimeError("an image was tested twice")
        correct = {name: column[2] == label for name, column in columns.items()}
        rows = [
            Row(attack=name, correct=int(c.sum()), images=len(c), seconds=self._seconds[name])
            for name, c in correct.items()
        ]
        searches = [
            Search(
                attack=name,
                images=sum(part.images for part in parts),
                fooled=torch.cat([part.fooled for part in parts]),
                seconds=sum(part.seconds for part in parts),
            )
            for name, parts in self._searches.items()
        ]
        right = torch.stack(list(correct.values())).all(0)
        for search in searches:
            right &= ~torch.isin(index, search.fooled)
        seconds = sum(self._seconds.values()) + sum(search.seconds for search in searches)
        rows.append(
            Row(attack=WORST_CASE, correct=int(right.sum()), images=len(right), seconds=seconds)
        )
        return Robustness(
            rows=rows,
            searches=searches,
            index=index,
            label=label,
            predictions={name: column[2] for name, column in columns.items()},
            margins={name: column[3] for name, column in columns.items()},
        )


def wilson_interval(correct: int, images: int) -> tuple[float, float]:
    """95 % confidence interval of a share (Wilson, 1927): honest near 0 and 1 too.

    Args:
        correct: successes.
        images: trials, 1 or more.

    Returns:
        lower and upper bound, in [0, 1].

    Example:
        >>> [round(bound, 4) for bound in wilson_interval(9900, 10000)]
        [0.9879, 0.9918]
    """
    z = 1.959963984540054
    share = correct / images
    center = share + z * z / (2 * images)
    spread = z * math.sqrt(share * (1 - share) / images + z * z / (4 * images * images))
    scale = 1 + z * z / images
    return max(0.0, (center - spread) / scale), min(1.0, (center + spread) / scale)
