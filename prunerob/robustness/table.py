"""The result of a test: accuracy under each attack and under all of them, image by image."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from io import StringIO
from pathlib import Path
from time import perf_counter
from typing import Any

import torch
from torch import Tensor

from prunerob.errors import UserError

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
    """

    attack: str
    correct: int
    images: int
    seconds: float
    learned: Mapping[str, float] = field(default_factory=dict)

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
class Convergence:
    """Whether PGD would have found more with more work, on the images of a `Scrutiny`.

    Args:
        attack: the attack's name.
        correct: images classified right under the attack as it is.
        more_steps: with `factor` times as many steps.
        more_restarts: with as many times the restarts.
        factor: how much more.
    """

    attack: str
    correct: int
    more_steps: int
    more_restarts: int
    factor: int


@dataclass(frozen=True, kw_only=True)
class Scrutiny:
    """How far gradients and PGD can be trusted, seen on some of the test images.

    Args:
        images: number of images looked at.
        zero_gradients: those on which the gradient of the loss is exactly 0 everywhere, in
            float32: gradient attacks do not move from there.
        convergence: of each PGD in the suite.
    """

    images: int
    zero_gradients: int
    convergence: Sequence[Convergence]


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

    def correct(self, attack: str) -> Tensor:
        """Which images are classified right under an attack, bool, (N,).

        In the worst case, those are right clean and under every attack, those of `Search` included.
        """
        if attack != WORST_CASE:
            return self.predictions[attack] == self.label
        right = torch.ones_like(self.label, dtype=torch.bool)
        for prediction in self.predictions.values():
            right &= (prediction == self.label) | (prediction < 0)
        for search in self.searches:
            right &= ~torch.isin(self.index, search.fooled)
        return right

    def attacked(self, attack: str) -> Tensor:
        """Which images an attack was tried on, bool, (N,)."""
        if attack == WORST_CASE:
            return torch.ones_like(self.label, dtype=torch.bool)
        return self.predictions[attack] >= 0

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
            columns = dict(zip(headings, zip(*lines, strict=True), strict=True))
            names = [h.removesuffix(" prediction") for h in headings if h.endswith(" prediction")]
            index = _integers(columns["index"])
            by = columns.get(FOOLED_BY, ())
            searches = [
                Search(
                    attack=search["attack"],
                    images=search["images"],
                    fooled=index[torch.tensor([name == search["attack"] for name in by])],
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
                )
                for row in about["rows"]
            ]
            scrutiny = about.get("scrutiny")
            if scrutiny:
                found = [Convergence(**pgd) for pgd in scrutiny["convergence"]]
                scrutiny = Scrutiny(**{**scrutiny, "convergence": found})
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
                scrutiny=scrutiny,
            )
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(f"{stem}.json and _images.csv are not of a test ({error!r})") from None
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
        if self.scrutiny:
            found["scrutiny"] = asdict(self.scrutiny)
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

        Both are empty where the attack leaves the image out.
        Where attacks counted in the worst case alone, a last column names the one that succeeded.
        """
        file = StringIO()
        table = csv.writer(file, lineterminator="\n")
        columns = [[f"{name} prediction", f"{name} margin"] for name in self.predictions]
        headings = ["index", "label", *(c for pair in columns for c in pair)]
        values: list[Sequence[object]] = [self.index.tolist(), self.label.tolist()]
        for name, prediction in self.predictions.items():
            values.append(["" if p < 0 else p for p in prediction.tolist()])
            pairs = zip(prediction.tolist(), self.margins[name].tolist(), strict=True)
            values.append(["" if p < 0 else f"{margin:.6g}" for p, margin in pairs])
        if self.searches:
            headings.append(FOOLED_BY)
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
    _learned: dict[str, Mapping[str, float]] = field(default_factory=dict)

    @classmethod
    def of_all(cls, recorders: Sequence[RobustnessRecorder]) -> RobustnessRecorder:
        """What several ranks have seen; seconds are those of all together."""
        together = cls()
        for recorder in recorders:
            for name, parts in recorder._parts.items():
                together._parts.setdefault(name, []).extend(parts)
            for name, seconds in recorder._seconds.items():
                together._seconds[name] = together._seconds.get(name, 0.0) + seconds
            for name, searches in recorder._searches.items():
                together._searches.setdefault(name, []).extend(searches)
            together._learned |= recorder._learned
        return together

    def note_learned(self, attack: str, learned: Mapping[str, float], seconds: float) -> None:
        """Note what an attack learned before it attacked, and how long that took."""
        self._learned[attack] = learned
        self._seconds[attack] = seconds

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
            prediction: predicted labels, int64, (B,); -1 for an image that the attack leaves out.
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
        # In the order of the images, whoever saw them.
        order = next(iter(columns.values()))[0].argsort()
        columns = {name: [c[order] for c in column] for name, column in columns.items()}
        index, label = next(iter(columns.values()))[:2]
        if len(torch.unique(index)) != len(index):
            raise RuntimeError("an image was tested twice")
        found = Robustness(
            rows=(),
            searches=[
                Search(
                    attack=name,
                    images=sum(part.images for part in parts),
                    fooled=torch.cat([part.fooled for part in parts]),
                    seconds=sum(part.seconds for part in parts),
                )
                for name, parts in self._searches.items()
            ],
            index=index,
            label=label,
            predictions={name: column[2] for name, column in columns.items()},
            margins={name: column[3] for name, column in columns.items()},
        )
        seconds = dict(self._seconds)
        seconds[WORST_CASE] = sum(seconds.values()) + sum(s.seconds for s in found.searches)
        rows = [
            Row(
                attack=name,
                correct=int(found.correct(name).sum()),
                images=int(found.attacked(name).sum()),
                seconds=seconds[name],
                learned=self._learned.get(name, {}),
            )
            for name in (*columns, WORST_CASE)
        ]
        return replace(found, rows=rows)


def _integers(column: Sequence[str]) -> Tensor:
    """Numbers as in the file of images, int64; -1 for nothing."""
    return torch.tensor([int(value or -1) for value in column])


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
