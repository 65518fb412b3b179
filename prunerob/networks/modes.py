"""The mode of a network, changed for a while."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn


@contextmanager
def evaluating(network: nn.Module) -> Iterator[None]:
    """Evaluation mode for a while.

    Every module's own mode comes back afterwards: parts of a network may have been frozen in
    evaluation mode by the caller. Parameters need no care: `torch.autograd.grad` with respect to
    the input alone computes no gradient of theirs and touches no `.grad`.
    """
    training = [module for module in network.modules() if module.training]
    for module in training:
        module.training = False
    try:
        yield
    finally:
        for module in training:
            module.training = True
