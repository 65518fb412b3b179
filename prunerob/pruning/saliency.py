"""Saliency: how much the adversarial loss would change if something were pruned, to first order."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from prunerob.networks.modes import evaluating
from prunerob.pruning.batches import ScoringBatches
from prunerob.pruning.scores import Scores, Unit, filters_of, weights_of


@dataclass(frozen=True, kw_only=True)
class Taylor:
    """Adversarial Taylor saliency of each weight: the mean over batches of |w dL/dw|.

    L is the cross-entropy of the run's own adversarial examples: the first-order change of the
    loss when the weight is set to 0 (Molchanov et al., arXiv:1611.06440), with the robust loss in
    the place of the clean one, as in Sehwag et al. (arXiv:2002.10509).

    Args:
        batches: number of training batches to look at; 10 to 50 will do.
    """

    unit: ClassVar[Unit] = "weights"

    batches: int = 20

    def __post_init__(self) -> None:
        if self.batches < 1:
            raise ValueError(f"batches of {type(self).__name__}: {self.batches} is below 1")

    def __call__(self, network: nn.Module, seed: int, *, batches: ScoringBatches) -> Scores:
        """Score.

        Args:
            network: for weights, its convolutions and linear layers take part; for filters, those
                whose channels are known (`channels_of`). Left as it was found.
            seed: not used; the batches have it.
            batches: training batches, clean and adversarial.

        Returns:
            scores, float, in each weight's shape, or (filters,) per convolution.
        """
        of_filters = self.unit == "filters"
        names = [name for name, _ in (filters_of if of_filters else weights_of)(network)]
        scores = adversarial_saliency(network, names, batches.against(network, self.batches))
        return {n: score.flatten(1).sum(1) if of_filters else score for n, score in scores.items()}


@dataclass(frozen=True, kw_only=True)
class FilterTaylor(Taylor):
    """Adversarial Taylor saliency of each filter: the sum of its weights'.

    See `Taylor`.

    Args:
        batches: number of training batches to look at; 10 to 50 will do.
    """

    unit: ClassVar[Unit] = "filters"


def adversarial_saliency(
    network: nn.Module, names: Iterable[str], batches: Iterable[tuple[Tensor, Tensor, Tensor]]
) -> dict[str, Tensor]:
    """The mean over batches of |w dL/dw|, L the cross-entropy of adversarial examples.

    The network is in evaluation mode: nothing is drawn, and no statistics change.

    Args:
        network: from pixels to logits; left as it was found, gradients included.
        names: of the parameters to score.
        batches: images, adversarial examples and labels.

    Returns:
        scores, float, in the parameters' shapes.
    """
    # Leaves of their own: frozen parameters have a saliency, too, and DDP waits for no gradient.
    weights = {name: network.get_parameter(name).detach().requires_grad_() for name in names}
    sums = {name: torch.zeros_like(weight) for name, weight in weights.items()}
    number = 0
    for _, x_adv, y in batches:
        with evaluating(network), torch.enable_grad():
            loss = F.cross_entropy(functional_call(network, weights, (x_adv,)), y)
            gradients = torch.autograd.grad(loss, list(weights.values()))
        for (name, weight), gradient in zip(weights.items(), gradients, strict=True):
            sums[name] += (weight.detach() * gradient).abs()
        number += 1
    return {name: total / number for name, total in sums.items()}
