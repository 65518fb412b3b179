"""The result in a sentence."""

from __future__ import annotations

from typing import Any, cast

from prunerob.reports.headline import headlines
from prunerob.reports.networks import CONTROL, Point
from prunerob.reports.results import Difference, Results


class Known:
    """Results that are written down: accuracies in percent by amount, AutoAttack's first."""

    recipes = ("PGD",)
    methods = ("weight",)

    def __init__(self, accuracies: dict[float, tuple[float, float]], *, auto: bool = True) -> None:
        self.control = Point(recipe="PGD", method=CONTROL)
        self.by_point = {self.control: (50.0, 99.0)} | {
            Point(recipe="PGD", method="weight", amount=a, words="weights, {share} %"): values
            for a, values in accuracies.items()
        }
        self.auto = auto

    def robust_column(self) -> str | None:
        return "AutoAttack" if self.auto else None

    def many_steps_column(self) -> str | None:
        return "AutoAttack"

    def pruned(self, recipe: str, method: str) -> list[Point]:
        return [point for point in self.by_point if not point.is_control]

    def is_comparable(self, point: Point, base: Point) -> bool:
        return True

    def accuracies(self, point: Point, column: str) -> list[float]:
        return [self.by_point[point][column == "natural"] / 100]

    def difference(self, point: Point, base: Point, column: str) -> Difference:
        points = 100 * (self.accuracies(point, column)[0] - self.accuracies(base, column)[0])
        p = 0.5 if abs(points) < 1 else 0.001
        return Difference(
            points=points, spread=None, values=1, margin=1.0, p_images=p, p_values=None
        )


def told(accuracies: dict[float, tuple[float, float]], **settings: Any) -> list[str]:
    return headlines(cast(Results, Known(accuracies, **settings)))


def test_amounts_count_up_to_the_first_that_loses_something() -> None:
    swept = {0.5: (49.8, 99.1), 0.9: (51.0, 98.8), 0.94: (40.0, 97.0), 0.98: (50.0, 99.0)}
    assert told(swept) == [
        "PGD. At most weights, 90 %: nothing lost beyond chance (98.8 % natural, control 99.0; "
        "51.0 % under AutoAttack, control 50.0). Weights, 94 %: 2.0 points natural and 10.0 points "
        "under AutoAttack lost (97.0 % natural, control 99.0; 40.0 % under AutoAttack, control "
        "50.0)."
    ]
    assert told({0.9: (40.0, 99.0)})[0].startswith("PGD. Weights, 90 %: 10.0 points under Auto")
    assert told({0.9: (49.9, 99.0)})[0].endswith("control 50.0).")
    assert told({}) == []


def test_what_was_not_attacked_by_auto_attack_is_said() -> None:
    assert told({0.9: (49.9, 99.0)}, auto=False)[1:] == [
        "AutoAttack was not run, and other attacks can be misled."
    ]
