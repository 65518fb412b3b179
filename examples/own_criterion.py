"""A criterion of one's own: weights are scored by their size beside the others of their layer."""

import torch
from torch import Tensor, nn

import prunerob


def relative_magnitude(network: nn.Module, seed: int) -> dict[str, Tensor]:
    """|w| over the mean of its layer; what scores lowest goes first."""
    return {
        f"{name}.weight": module.weight.detach().abs() / module.weight.detach().abs().mean()
        for name, module in network.named_modules()
        if isinstance(module, nn.Conv2d | nn.Linear)
    }


network = prunerob.load("zoo/mnist_pgd_dense")
masks = prunerob.prune(network, 0.8, criterion=relative_magnitude)
for layer in masks.layers:
    print(f"{layer.name}: {layer.share_pruned:.1%} pruned")

# On the command line: prunerob fit ... --pruning.criterion mymodule.relative_magnitude
assert torch.equal(masks["linear.weight"], network.get_parameter("linear.weight") != 0)
