"""What a test sees, batch by batch, collected into its table."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from time import perf_counter

import torch
from torch import Tensor

from prunerob.robustness.table import WORST_CASE, Robustness, Row, Search

COLUMNS = ("index", "label", "prediction", "margin")


@dataclass
class Recorder:
    """Collects what a test sees, batch by batch."""

    _seconds: dict[str, float] = field(default_factory=dict)
    _parts: dict[str, list[tuple[Tensor, ...]]] = field(default_factory=dict)
    _searches: dict[str, list[Search]] = field(default_factory=dict)
    _learned: dict[str, Mapping[str, float]] = field(default_factory=dict)
    _left: dict[str, dict[str, int]] = field(default_factory=dict)

    @classmethod
    def of_all(cls, recorders: Sequence[Recorder]) -> Recorder:
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
            for name, left in recorder._left.items():
                for part, images in left.items():
                    together.note_left(name, part, images)
        return together

    def note_learned(self, attack: str, learned: Mapping[str, float], seconds: float) -> None:
        """Note what an attack learned before it attacked, and how long that took."""
        self._learned[attack] = learned
        self._seconds[attack] = seconds

    def note_left(self, attack: str, part: str, images: int) -> None:
        """Note how many more images are right after a part of an attack."""
        left = self._left.setdefault(attack, {})
        left[part] = left.get(part, 0) + images

    def add(
        self,
        attack: str,
        *,
        index: Tensor,
        label: Tensor,
        prediction: Tensor,
        margin: Tensor,
        start: float,
    ) -> dict[str, Tensor]:
        """Note one attack on one batch.

        Args:
            attack: its name.
            index: position of each image in its data set, int64, (B,).
            label: true labels, int64, (B,).
            prediction: predicted labels, int64, (B,); -1 for an image that the attack leaves out.
            margin: true logit minus the largest other one, float32, (B,).
            start: `perf_counter()` when the attack began. The clock is read after the results
                have come to the CPU, so that a GPU's time is counted in full.

        Returns:
            all that was noted, for `add_again`.
        """
        columns = dict(zip(COLUMNS, (index, label, prediction, margin), strict=True))
        entry = {name: column.cpu().clone() for name, column in columns.items()}
        entry["seconds"] = torch.tensor(perf_counter() - start, dtype=torch.float64)
        self.add_again(attack, entry)
        return entry

    def add_again(self, attack: str, entry: Mapping[str, Tensor]) -> None:
        """Note what `add` has returned before, perhaps in an earlier try of the same test."""
        self._parts.setdefault(attack, []).append(tuple(entry[name] for name in COLUMNS))
        seconds = float(entry["seconds"])
        self._seconds[attack] = self._seconds.get(attack, 0.0) + seconds

    def add_search(self, attack: str, *, index: Tensor, fooled: Tensor, start: float) -> None:
        """Note one attack that counts in the worst case alone, on some images.

        Args:
            attack: its name.
            index: position of each attacked image in its data set, int64, (n,).
            fooled: whether the network got it wrong, bool, (n,).
            start: as in `add`.
        """
        lost = index[fooled].cpu()
        search = Search(
            attack=attack, images=len(index), fooled=lost, seconds=perf_counter() - start
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
        for own, *_ in columns.values():
            if len(torch.unique(own)) != len(own):
                raise RuntimeError("an image was tested twice")
        # In the order of the images, whoever saw them; the first attack is tried on all.
        first = next(iter(columns.values()))
        order = first[0].argsort()
        index, label = first[0][order], first[1][order]
        predictions = {n: _spread(index, c[0], c[2], -1) for n, c in columns.items()}
        margins = {n: _spread(index, c[0], c[3], math.nan) for n, c in columns.items()}
        robustness = Robustness(
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
            predictions=predictions,
            margins=margins,
        )
        seconds = dict(self._seconds)
        seconds[WORST_CASE] = sum(seconds.values()) + sum(s.seconds for s in robustness.searches)
        rows = [
            Row(
                attack=name,
                correct=int(robustness.correct(name).sum()),
                images=int(robustness.attacked(name).sum()),
                seconds=seconds[name],
                learned=self._learned.get(name, {}),
                left=self._left.get(name, {}),
            )
            for name in (*columns, WORST_CASE)
        ]
        return replace(robustness, rows=rows)


def _spread(index: Tensor, own: Tensor, values: Tensor, filling: float) -> Tensor:
    """Values of some images at the places of all.

    Args:
        index: positions of all images in their data set, int64, (N,), rising.
        own: positions of some of them, int64, (n,).
        values: of these, (n,).
        filling: of the others.
    """
    spread = torch.full(index.shape, filling, dtype=values.dtype)
    spread[torch.searchsorted(index, own)] = values
    return spread
