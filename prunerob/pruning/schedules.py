"""Schedules of pruning: when how much of the amount goes, from the prune epoch on."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from prunerob.errors import UserError


@dataclass(frozen=True)
class PruningSchedule(ABC):
    """When masks are made, and of which share; the criterion scores anew each time."""

    @property
    @abstractmethod
    def lasts(self) -> int:
        """Epochs from the prune epoch to the start of the one in which the amount is reached."""

    @abstractmethod
    def shares(self, amount: float, steps: int) -> Mapping[int, float]:
        """The share to prune from an optimizer step on.

        Args:
            amount: share to prune in the end, in [0, 1).
            steps: optimizer steps of an epoch.

        Returns:
            shares by the step, counted from the start of the prune epoch, in order: the first at
            0, the last, which is the amount, at the start of an epoch.
        """

    def check(self, amount: float) -> None:
        """See that an amount can be reached like this.

        Raises:
            UserError: it cannot.
        """
        return


@dataclass(frozen=True)
class OneShot(PruningSchedule):
    """Everything at once, at the start of the prune epoch."""

    @property
    def lasts(self) -> int:
        """No epoch; see `PruningSchedule.lasts`."""
        return 0

    def shares(self, amount: float, steps: int) -> Mapping[int, float]:
        """The amount at once; see `PruningSchedule.shares`."""
        return {0: amount}


@dataclass(frozen=True, kw_only=True)
class Gradual(PruningSchedule):
    """More and more, quickly at first and ever more slowly (Zhu and Gupta, arXiv:1710.01878).

    At t of T, both counted from the start of the prune epoch, the share is
    amount + (initial - amount) (1 - t/T)^3.

    Args:
        epochs: from the prune epoch on, until the amount is reached; epochs with all of it follow.
        initial: share that goes at the start of the prune epoch.
        every: when masks are made anew: at the start of each "epoch", or every so many optimizer
            steps.
    """

    epochs: int
    initial: float = 0.0
    every: Literal["epoch"] | int = "epoch"

    def __post_init__(self) -> None:
        if self.epochs < 1:
            raise ValueError(f"epochs of Gradual: {self.epochs} is below 1")
        if not 0 <= self.initial < 1:
            raise ValueError(f"initial of Gradual: {self.initial} lies outside [0, 1)")
        if isinstance(self.every, int) and self.every < 1:
            raise ValueError(f"every of Gradual: {self.every} is below 1")

    @property
    def lasts(self) -> int:
        """Its epochs; see `PruningSchedule.lasts`."""
        return self.epochs

    def shares(self, amount: float, steps: int) -> Mapping[int, float]:
        """Shares by the cubic formula; see `PruningSchedule.shares`."""
        initial = min(self.initial, amount)  # of the control, whose amount is 0
        end = self.epochs * steps
        times = [*range(0, end, self.every if isinstance(self.every, int) else steps), end]
        return {t: amount + (initial - amount) * (1 - t / end) ** 3 for t in times}

    def check(self, amount: float) -> None:
        """See that it does not begin above the amount; see `PruningSchedule.check`."""
        if 0 < amount < self.initial:
            raise UserError(
                f"pruning.schedule: begins with an initial {self.initial}, above pruning.amount "
                f"{amount}"
            )
