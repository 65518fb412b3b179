"""Results put in order: by what was trained and pruned, and by seed, and how they differ."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import NormalDist, mean

import torch
from torch import Tensor

from prunerob.attacks import Attack
from prunerob.errors import UserError
from prunerob.reports.networks import Point, Result
from prunerob.robustness.diagnostics import is_blindly_beaten
from prunerob.robustness.table import WORST_CASE
from prunerob.runs.configuration import NOT_TRAINING, differences
from prunerob.statistics import SIGNIFICANT, mean_and_spread, sign_test, t_test
from prunerob.training.validation import masks_gradients


@dataclass(frozen=True, kw_only=True)
class Difference:
    """Accuracy of one network minus that of another, on the same images.

    Args:
        points: in percentage points, mean over seeds; of one seed, over black-box substitutes.
        spread: standard deviation of the same, in percentage points; None of a single value.
        values: number of values that the mean is of.
        margin: half of the 95 % interval of a mean over images, in percentage points; of all values
            together, so that it says nothing about other seeds.
        p_images: of the exact sign test on the images, each counted once with all its values: of
            a single one it is McNemar's. It is about these very networks.
        p_values: of the t test on the values, whether others would differ too; None of a single.
    """

    points: float
    spread: float | None
    values: int
    margin: float
    p_images: float
    p_values: float | None

    @property
    def p(self) -> float:
        """The larger of the two."""
        return max(self.p_images, self.p_values or 0.0)

    @property
    def is_noise(self) -> bool:
        """Whether chance would do: of the images, or of the seeds or substitutes."""
        return self.p >= SIGNIFICANT


class Results:
    """Results by point and seed.

    Args:
        results: of one data set, no two of the same point and seed; one or more.
        left_out: runs that are not finished or tested, in words.

    Raises:
        UserError: data sets, test images or settings are mixed, or a network is there twice.
    """

    def __init__(self, results: Sequence[Result], left_out: Sequence[str] = ()) -> None:
        self.left_out = list(left_out)
        self.by_point: dict[Point, dict[int, Result]] = {}
        for result in sorted(results, key=_order):
            seeds = self.by_point.setdefault(result.point, {})
            other = seeds.setdefault(result.seed, result)
            if other is not result and not _is_same_network(other, result):
                raise UserError(
                    f"{result.run.folder} and {other.run.folder} are the same: "
                    f"{result.point.recipe}, {result.point.name}, seed {result.seed}; report one"
                )
        self.columns = list(dict.fromkeys(name for r in self.all for name in r.columns()))
        self.columns.append(self.columns.pop(self.columns.index(WORST_CASE)))
        self._refuse_mixed_tests()
        self._refuse_mixed_settings()

    def _refuse_mixed_tests(self) -> None:
        first = self.all[0]
        behind: dict[str, Result] = {}
        for result in self.all:
            if result.tested_on != first.tested_on or not torch.equal(
                result.robustness.index, first.robustness.index
            ):
                raise UserError(
                    f"{first.run.folder} and {result.run.folder} were tested on different "
                    "images; test them alike"
                )
            for column in result.columns():
                other = behind.setdefault(column, result)
                if column != WORST_CASE and not result.is_tested_as(other, column):
                    raise UserError(
                        f"{column} of {result.run.folder} and of {other.run.folder} are different "
                        "attacks; test them alike"
                    )

    def _refuse_mixed_settings(self) -> None:
        """Seeds of one point, and all of one recipe, must differ in nothing else."""
        for recipe in self.recipes:
            of_it = [result for result in self.all if result.point.recipe == recipe]
            trained = [r for r in of_it if r.dense_epochs]
            for result in trained[1:]:
                if result.dense_epochs != trained[0].dense_epochs:
                    raise UserError(
                        f"the dense network of {result.run.folder} was trained for "
                        f"{result.dense_epochs} epochs, that of {trained[0].run.folder} for "
                        f"{trained[0].dense_epochs}: report them apart"
                    )
            for result in of_it[1:]:
                first = next(iter(self.by_point[result.point].values()))
                _refuse_differences(of_it[0], result, FREE)
                if result.point.is_control:
                    _refuse_differences(first, result, FREE_OF_A_CONTROL)
                elif not result.point.is_dense:
                    _refuse_differences(first, result, FREE_OF_A_POINT)
                if not first.is_tested_as(result, WORST_CASE):
                    raise UserError(
                        f"{first.run.folder} and {result.run.folder} stand in one row and were "
                        "tested with different attacks; test them alike"
                    )

    @property
    def all(self) -> list[Result]:
        """Every result, in the order of the points."""
        return [result for seeds in self.by_point.values() for result in seeds.values()]

    @property
    def recipes(self) -> list[str]:
        """The ways of training."""
        return list(dict.fromkeys(point.recipe for point in self.by_point))

    @property
    def methods(self) -> list[str]:
        """The ways of pruning."""
        names = (p.method for p in self.by_point if not (p.is_dense or p.is_control))
        return list(dict.fromkeys(names))

    def pruned(self, recipe: str, method: str) -> list[Point]:
        """The networks of one recipe pruned in one way, without those from scratch."""
        return [
            point
            for point in self.by_point
            if (point.recipe, point.method, point.is_scratch) == (recipe, method, False)
        ]

    def accuracies(self, point: Point, column: str) -> list[float]:
        """All that was measured, in [0, 1]: by seed and, of black boxes, by substitute."""
        seeds = self.by_point.get(point, {})
        return [value for result in seeds.values() for value in result.accuracies(column)]

    def images(self, point: Point, column: str) -> int:
        """The number of images behind one accuracy of a column, which the point must have."""
        one = next(r for r in self.by_point[point].values() if column in r.columns())
        return int(one.robustness.attacked(one.columns()[column][0]).sum())

    def share(self, point: Point, reading: str = "parameters") -> float:
        """Share pruned by one reading, in [0, 1], mean over seeds."""
        return mean(result.shares[reading] for result in self.by_point[point].values())

    def validation(self, point: Point, base: Point, name: str) -> tuple[float, float] | None:
        """Accuracies of two networks on validation images.

        "robust" is under the attack of validation; see `is_masked`.

        Args:
            point: the one.
            base: the other.
            name: "clean" or "robust".

        Returns:
            both in [0, 1], means over the seeds that both have; None where there is none, or one
            of them was not measured on as many images.
        """
        mine, theirs = self.by_point.get(point, {}), self.by_point.get(base, {})
        pairs = []
        for seed in mine.keys() & theirs.keys():
            a, b = (r.validation.get(name) for r in (mine[seed], theirs[seed]))
            if a is None or b is None or a[1] != b[1]:
                return None
            pairs.append((a[0] / a[1], b[0] / b[1]))
        if not pairs:
            return None
        one, other = zip(*pairs, strict=True)
        return mean(one), mean(other)

    def is_masked(self, point: Point) -> bool:
        """Whether the probe of a seed's validation found much that its attack did not.

        Or AutoAttack's Square much that its other attacks did not.
        """
        return any(
            masks_gradients(result.validation)
            or any(map(is_blindly_beaten, result.robustness.rows))
            for result in self.by_point.get(point, {}).values()
        )

    def difference(self, point: Point, base: Point, column: str) -> Difference | None:
        """Accuracy minus that of another point, over the seeds that both have."""
        mine, theirs = self.by_point.get(point, {}), self.by_point.get(base, {})
        if not self.is_comparable(point, base):
            return None
        by_seed: list[list[float]] = []
        gain: Tensor | int = 0  # of each image
        tried: Tensor = torch.zeros_like(self.all[0].robustness.index, dtype=torch.bool)
        pairings = 0
        for seed in sorted(mine.keys() & theirs.keys()) if point != base else ():
            a, b = mine[seed], theirs[seed]
            if not (column in a.columns() and column in b.columns()):
                continue
            if not a.is_tested_as(b, column):
                continue
            pairs = zip(a.accuracies(column), b.accuracies(column), strict=True)
            by_seed.append([x - y for x, y in pairs])
            names = zip(a.columns()[column], b.columns()[column], strict=True)
            for name, other in names:
                both = a.robustness.attacked(name) & b.robustness.attacked(other)
                right, theirs_right = a.robustness.correct(name), b.robustness.correct(other)
                gain = gain + (right.int() - theirs_right.int()) * both
                tried, pairings = tried | both, pairings + 1
        if isinstance(gain, int):
            return None
        # Substitutes of one network are no seeds: they are averaged first where there are seeds.
        values = by_seed[0] if len(by_seed) == 1 else [mean(of_seed) for of_seed in by_seed]
        points, spread = mean_and_spread(values)
        return Difference(
            points=100 * points,
            spread=None if spread is None else 100 * spread,
            values=len(values),
            margin=100 * _margin(gain[tried] / pairings),
            p_images=sign_test(int((gain > 0).sum()), int((gain < 0).sum())),
            p_values=t_test(values, resolution=1 / len(gain)),
        )

    def is_comparable(self, point: Point, base: Point) -> bool:
        """Whether two networks of a recipe differ by what was pruned alone.

        A network that was fine-tuned for longer than the control, or otherwise, is not to be
        compared with it.
        """
        if point.is_dense or not base.is_control or not {point, base} <= self.by_point.keys():
            return True
        one, other = (next(iter(self.by_point[p].values())).config for p in (point, base))
        keys = ["trainer.max_epochs"] + ["model.fine_tuning"] * (not point.is_scratch)
        return not any(name.startswith(tuple(keys)) for name, _, _ in differences(one, other))

    def one_step_column(self) -> str | None:
        """The column of the attack of a single gradient step; see `_column_of`."""
        return self._column_of(lambda attack: attack.is_one_step)

    def many_steps_column(self) -> str | None:
        """The column of the attack of many gradient steps; see `_column_of`."""
        return self._column_of(lambda a: a.gradient_steps > 1 and not a.is_standard)

    def robust_column(self) -> str | None:
        """The column of robust accuracy, AutoAttack's; see `_column_of`."""
        return self._column_of(lambda attack: attack.is_standard)

    def _column_of(self, is_meant: Callable[[Attack], bool]) -> str | None:
        """The column of such an attack that most networks have, of those the one of largest eps.

        Of several it is the first of the suite: PGD as the paper has it, before stronger ones.
        """
        counts: dict[tuple[float, str], int] = {}
        for result in self.all:
            for name, attack in result.suite.attacks.items():
                if is_meant(attack):
                    key = (attack.radius or 0.0, name)
                    counts[key] = counts.get(key, 0) + 1
        return max(counts, key=lambda key: (counts[key], key[0]))[1] if counts else None


def _margin(gains: Tensor) -> float:
    """Half of the 95 % interval of a mean of many values, by the normal distribution."""
    spread = gains.double().std().item() if len(gains) > 1 else 0.0
    return NormalDist().inv_cdf(0.975) * spread / math.sqrt(max(1, len(gains)))


FREE_OF_A_POINT = (*NOT_TRAINING, "model.validation_attack", "pruning.masks_from", "pruning.narrow")
"""Beginnings of keys in which the seeds of one row may differ."""

FREE_OF_A_CONTROL = (
    *FREE_OF_A_POINT,
    "pruning.criterion",
    "pruning.reading",
    "pruning.residual",
    "pruning.schedule",
)
"""Empty masks are the same by any criterion."""

FREE = (*FREE_OF_A_POINT, "model.fine_tuning", "pruning", "trainer.max_epochs")
"""Beginnings of keys in which the networks of one recipe may differ."""


def _refuse_differences(a: Result, b: Result, free: tuple[str, ...]) -> None:
    """Refuse two runs whose configurations differ in what matters.

    Raises:
        UserError: they do.
    """
    for name, mine, theirs in differences(a.config, b.config):
        if not name.startswith(free):
            raise UserError(
                f"{a.run.folder} has {name} {mine}, but {b.run.folder} {theirs}: they cannot stand "
                "in one row or beside each other; report them apart"
            )


def _is_same_network(a: Result, b: Result) -> bool:
    """Whether two results are of one dense network, tested in two runs that began with it."""
    mine, theirs = a.robustness.predictions, b.robustness.predictions
    shared = mine.keys() & theirs.keys()
    return a.point.is_dense and all(torch.equal(mine[name], theirs[name]) for name in shared)


def _order(result: Result) -> tuple[object, ...]:
    """Training as in the paper, dense first, then by method and less and less pruned."""
    point = result.point
    trainings = ("standard", "FGSM", "PGD")
    first = next((i for i, t in enumerate(trainings) if point.recipe.startswith(t)), 9)
    kinds = 0 if point.is_dense else 1 if point.is_control else 2
    method = (not point.method.startswith("weight"), point.method)
    control = point.objective if point.is_control else ""
    amount = -point.amount
    return first, point.recipe, kinds, control, method, amount, point.is_scratch, result.seed
