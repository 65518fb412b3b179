"""Learning-rate schedules whose length is that of the phase they run in."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from bisect import bisect_right
from dataclasses import dataclass
from typing import ClassVar, Literal

from pytorch_lightning.cli import LRSchedulerCallable
from pytorch_lightning.utilities.types import LRSchedulerConfigType
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR, OneCycleLR


@dataclass(frozen=True)
class Schedule(ABC):
    """How the learning rate runs over one phase: training, or fine-tuning."""

    follows_phase: ClassVar[bool] = True
    """Whether its length is the phase's, so that a change of the phase changes its course."""

    @abstractmethod
    def __call__(self, optimizer: Optimizer, steps: int) -> LRSchedulerConfigType | None:
        """Build the scheduler.

        Args:
            optimizer: the phase's optimizer.
            steps: optimizer steps in the phase.

        Returns:
            Lightning's description of a scheduler, or None for a constant rate.
        """


@dataclass(frozen=True)
class Constant(Schedule):
    """The optimizer's own learning rate throughout."""

    follows_phase = False

    def __call__(self, optimizer: Optimizer, steps: int) -> LRSchedulerConfigType | None:
        """No scheduler; see `Schedule.__call__`."""
        return None


@dataclass(frozen=True, kw_only=True)
class OneCycle(Schedule):
    """Up to the optimizer's learning rate and down again (Smith and Topin, arXiv:1708.07120).

    Args:
        warmup: share of the phase in which the rate rises, in (0, 1).
        start: first rate, as a share of the optimizer's.
        end: last rate, as a share of the optimizer's.
        shape: of the way up and down.
    """

    warmup: float = 0.25
    start: float = 0.04
    end: float = 0.0001
    shape: Literal["cos", "linear"] = "cos"

    def __post_init__(self) -> None:
        for name, share in (("warmup", self.warmup), ("start", self.start), ("end", self.end)):
            if not 0 < share < 1:
                raise ValueError(f"{name} of OneCycle: {share} lies outside (0, 1)")

    def __call__(self, optimizer: Optimizer, steps: int) -> LRSchedulerConfigType | None:
        """Build the scheduler; see `Schedule.__call__`."""
        scheduler = OneCycleLR(
            optimizer,
            max_lr=[group["lr"] for group in optimizer.param_groups],
            total_steps=steps,
            # Not exactly one step: torch divides by the steps on the way up, less one.
            pct_start=self.warmup if self.warmup * steps != 1 else self.warmup * 0.999,
            anneal_strategy=self.shape,
            cycle_momentum=False,
            div_factor=1 / self.start,
            final_div_factor=self.start / self.end,
        )
        return {"scheduler": scheduler, "interval": "step"}


@dataclass(frozen=True, kw_only=True)
class Cosine(Schedule):
    """From the optimizer's learning rate down along half a cosine.

    Args:
        end: last rate, as a share of the optimizer's.
    """

    end: float = 0.0

    def __post_init__(self) -> None:
        if self.end < 0:
            raise ValueError(f"end of Cosine: {self.end} is below 0")

    def __call__(self, optimizer: Optimizer, steps: int) -> LRSchedulerConfigType | None:
        """Build the scheduler; see `Schedule.__call__`."""
        # Not CosineAnnealingLR, whose last rate is one number for all parameter groups.
        scheduler = LambdaLR(
            optimizer,
            lambda step: self.end + (1 - self.end) * (1 + math.cos(math.pi * step / steps)) / 2,
        )
        return {"scheduler": scheduler, "interval": "step"}


@dataclass(frozen=True, kw_only=True)
class Stepwise(Schedule):
    """A learning rate that drops at given points of the phase.

    Args:
        at: the points, as shares of the phase, rising, in (0, 1).
        rates: the rate from each of them on, as a share of the optimizer's.
    """

    at: tuple[float, ...] = (0.3, 0.6, 0.8)
    rates: tuple[float, ...] = (0.2, 0.04, 0.008)

    def __post_init__(self) -> None:
        if list(self.at) != sorted(set(self.at)) or not all(0 < share < 1 for share in self.at):
            raise ValueError(f"at of Stepwise: {self.at} do not rise within (0, 1)")
        if len(self.at) != len(self.rates) or not all(rate > 0 for rate in self.rates):
            raise ValueError(f"rates of Stepwise: {self.rates} are not one above 0 for each point")

    def __call__(self, optimizer: Optimizer, steps: int) -> LRSchedulerConfigType | None:
        """Build the scheduler; see `Schedule.__call__`."""
        shares = (1.0, *self.rates)
        scheduler = LambdaLR(optimizer, lambda step: shares[bisect_right(self.at, step / steps)])
        return {"scheduler": scheduler, "interval": "step"}


@dataclass(frozen=True, kw_only=True)
class TorchScheduler(Schedule):
    """Any scheduler of `torch.optim.lr_scheduler`, with its own lengths as settings.

    Args:
        scheduler: the scheduler's class and settings, without the optimizer.
        interval: what one step of it is: an "epoch", or an optimizer "step".
    """

    follows_phase = False

    scheduler: LRSchedulerCallable
    interval: Literal["epoch", "step"] = "epoch"

    def __call__(self, optimizer: Optimizer, steps: int) -> LRSchedulerConfigType | None:
        """Build the scheduler; see `Schedule.__call__`."""
        return {"scheduler": self.scheduler(optimizer), "interval": self.interval}
