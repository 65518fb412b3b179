"""Schedules of pruning: when how much of the amount goes, from the prune epoch on."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from pytorch_lightning import Trainer

from prunerob.errors import UserError


@dataclass(frozen=True)
class PruningSchedule(ABC):
    """When masks are made, and of which share; the criterion scores anew each time."""

    @abstractmethod
    def lasts(self, amount: float) -> int:
        """Epochs from the prune epoch to the start of the one in which the amount is reached.

        Args:
            amount: share to prune in the end, in [0, 1).
        """

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

    @property
    def round_epochs(self) -> int | None:
        """Epochs of each round, with which fine-tuning begins anew; None where it goes on."""
        return None

    @property
    def rewind_epoch(self) -> int | None:
        """The epoch whose first weights come back with each round; None where none do."""
        return None

    def check(self, epoch: int | None, amount: float) -> None:
        """See that an amount can be reached like this.

        Args:
            epoch: the prune epoch; None without pruning.
            amount: share to prune in the end.

        Raises:
            UserError: it cannot.
        """
        return


@dataclass(frozen=True)
class OneShot(PruningSchedule):
    """Everything at once, at the start of the prune epoch."""

    def lasts(self, amount: float) -> int:
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

    def lasts(self, amount: float) -> int:
        """Its epochs; see `PruningSchedule.lasts`."""
        return self.epochs

    def shares(self, amount: float, steps: int) -> Mapping[int, float]:
        """Shares by the cubic formula; see `PruningSchedule.shares`."""
        initial = min(self.initial, amount)  # of the control, whose amount is 0
        end = self.epochs * steps
        times = [*range(0, end, self.every if isinstance(self.every, int) else steps), end]
        return {t: amount + (initial - amount) * (1 - t / end) ** 3 for t in times}

    def check(self, epoch: int | None, amount: float) -> None:
        """See that it does not begin above the amount; see `PruningSchedule.check`."""
        if 0 < amount < self.initial:
            raise UserError(
                f"pruning.schedule: begins with an initial {self.initial}, above pruning.amount "
                f"{amount}"
            )


@dataclass(frozen=True, kw_only=True)
class Iterative(PruningSchedule):
    """Rounds, each of which takes a part of what is left and trains again.

    With the weights of an early epoch each time it is iterative magnitude pruning with rewinding
    (Frankle et al., arXiv:1912.05671), with the learning rate alone that of Renda et al.
    (arXiv:2003.02389). There are as many rounds as `share` takes, and the last one takes what is
    missing; or a number of rounds, and each takes the same share of what is left.

    Args:
        epochs: of each round.
        share: of what is left, that goes in each round; of no effect with `rounds`.
        rounds: how many, whatever the amount; null for as many as it takes.
        rewind: what goes back at the start of each: the "learning_rate", as fine-tuning begins
            anew, with its optimizer and a schedule as long as a round; or the "weights", too; null
            goes on with both.
        to: the epoch of training whose first weights come back; 0 for the first of all.
    """

    epochs: int
    share: float = 0.2
    rounds: int | None = None
    rewind: Literal["weights", "learning_rate"] | None = "learning_rate"
    to: int = 1

    def __post_init__(self) -> None:
        if self.epochs < 1:
            raise ValueError(f"epochs of Iterative: {self.epochs} is below 1")
        if not 0 < self.share < 1:
            raise ValueError(f"share of Iterative: {self.share} lies outside (0, 1)")
        if self.rounds is not None and self.rounds < 1:
            raise ValueError(f"rounds of Iterative: {self.rounds} is below 1")
        if self.to < 0:
            raise ValueError(f"to of Iterative: {self.to} is below 0")

    def count_rounds(self, amount: float) -> int:
        """How many it takes to prune an amount: one for the control."""
        if self.rounds is not None:
            return self.rounds
        # To prune 0.36 takes two rounds of 0.2, whatever the rounding of their logarithms.
        return max(1, math.ceil(math.log1p(-amount) / math.log1p(-self.share) - 1e-9))

    def lasts(self, amount: float) -> int:
        """All rounds but the last; see `PruningSchedule.lasts`."""
        return (self.count_rounds(amount) - 1) * self.epochs

    @property
    def round_epochs(self) -> int | None:
        """Its epochs, if anything is rewound; see `PruningSchedule.round_epochs`."""
        return self.epochs if self.rewind else None

    @property
    def rewind_epoch(self) -> int | None:
        """Where the weights come from, if they are rewound; see `PruningSchedule.rewind_epoch`."""
        return self.to if self.rewind == "weights" else None

    def shares(self, amount: float, steps: int) -> Mapping[int, float]:
        """Shares by round; see `PruningSchedule.shares`."""
        rounds = self.count_rounds(amount)
        left = 1 - self.share if self.rounds is None else (1 - amount) ** (1 / rounds)
        shares = [1 - left**done for done in range(1, rounds)] + [amount]
        return {n * self.epochs * steps: share for n, share in enumerate(shares)}

    def check(self, epoch: int | None, amount: float) -> None:
        """See that it rewinds to before it prunes; see `PruningSchedule.check`."""
        if epoch is not None and self.rewind == "weights" and self.to >= epoch:
            raise UserError(
                f"pruning.schedule: rewinds to the start of epoch {self.to}, which is not before "
                f"pruning.epoch {epoch}"
            )


@dataclass(frozen=True, kw_only=True)
class Timetable:
    """When which share is due in a run.

    Args:
        shares: by optimizer step from the prune epoch on; see `PruningSchedule.shares`.
        epoch: the prune epoch.
        steps: optimizer steps of an epoch.
        batches: of each of them.
    """

    shares: Mapping[int, float]
    epoch: int
    steps: int
    batches: int

    @classmethod
    def of(
        cls, schedule: PruningSchedule, trainer: Trainer, epoch: int | None, amount: float
    ) -> Timetable:
        """That of a run; an empty one without pruning.

        Args:
            schedule: says how much when.
            trainer: knows its batches by now.
            epoch: the prune epoch.
            amount: to prune in the end.
        """
        batches = trainer.accumulate_grad_batches
        steps = math.ceil(int(trainer.num_training_batches) / batches)
        shares = {} if epoch is None else schedule.shares(amount, steps)
        return cls(shares=shares, epoch=epoch or 0, steps=steps, batches=batches)

    @property
    def last(self) -> float | None:
        """The share that is due last."""
        return max(self.shares.values(), default=None)

    def due(self, epoch: int, batch: int) -> float | None:
        """The share that is due at the start of a batch, if one is."""
        if epoch < self.epoch or batch % self.batches:
            return None
        return self.shares.get((epoch - self.epoch) * self.steps + batch // self.batches)
