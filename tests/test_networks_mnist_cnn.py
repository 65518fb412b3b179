"""The paper's networks."""

from __future__ import annotations

import torch

from prunerob.networks import MnistCNN


def test_networks_are_the_paper_s() -> None:
    network = MnistCNN()
    sizes = {name: p.numel() for name, p in network.named_parameters()}
    assert sum(sizes.values()) == 178_986
    assert sum(n for name, n in sizes.items() if name.endswith("weight")) == 178_816
    shapes = []
    for layer in (network.conv1, network.conv2, network.conv3):
        layer.register_forward_hook(lambda m, a, out: shapes.append(tuple(out.shape[1:])))
    assert network(torch.rand(2, 1, 28, 28)).shape == (2, 10)
    assert shapes == [(32, 14, 14), (64, 5, 5), (64, 1, 1)]
