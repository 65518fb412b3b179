"""The result in a sentence for each way of training and pruning, for the head of a report."""

from __future__ import annotations

from statistics import mean

from prunerob.reports.networks import NATURAL, Point
from prunerob.reports.results import Results


def headlines(results: Results) -> list[str]:
    """How much goes without a loss that chance would not explain, and what the next amount costs.

    A network is compared with its control if there is one, else with the dense network; amounts
    count up to the first that loses something, natural or under AutoAttack.

    Args:
        results: all of them.

    Returns:
        a sentence for each way of training and pruning.
    """
    robust = results.robust_column() or results.many_steps_column()
    columns = [NATURAL, *([robust] if robust else [])]
    sentences = []
    for recipe in results.recipes:
        for method in results.methods:
            points = sorted(results.pruned(recipe, method), key=lambda point: point.amount)
            if told := _compared(results, points, columns):
                sentences.append(f"{recipe}. {told}")
    if sentences and not results.robust_column():
        sentences.append("AutoAttack was not run, and other attacks can be misled.")
    return sentences


def _compared(results: Results, points: list[Point], columns: list[str]) -> str:
    """What is lost at which amount; "" where there is nothing to compare."""
    kept = ""
    for point in points:
        has_control = point.control in results.by_point
        is_alike = has_control and results.is_comparable(point, point.control)
        base = point.control if is_alike else point.dense
        found = {column: results.difference(point, base, column) for column in columns}
        if not any(found.values()):
            break
        of_base = "control" if base.is_control else "dense"
        numbers = "; ".join(
            f"{_mean(results, point, column)} % {_under(column)}, {of_base} "
            f"{_mean(results, base, column)}"
            for column, difference in found.items()
            if difference
        )
        lost = {c: d.points for c, d in found.items() if d and d.points < 0 and not d.is_noise}
        if lost:
            costs = " and ".join(f"{-d:.1f} points {_under(column)}" for column, d in lost.items())
            return f"{kept}{_upper(point.name)}: {costs} lost ({numbers})."
        kept = f"At most {point.name}: nothing lost beyond chance ({numbers}). "
    return kept.strip()


def _mean(results: Results, point: Point, column: str) -> str:
    return f"{100 * mean(results.accuracies(point, column)):.1f}"


def _under(column: str) -> str:
    return NATURAL if column == NATURAL else f"under {column}"


def _upper(text: str) -> str:
    return text[0].upper() + text[1:]
