"""Prune the filters of a model and take them out: the same answers from a smaller network."""

import torch
import torchvision

import prunerob
from prunerob.pruning import filter_l1

model = torchvision.models.mobilenet_v2(num_classes=10).eval()
masks = prunerob.prune(model, 0.4, criterion=filter_l1)
print(f"{masks.shares.weights:.1%} of the convolutions' weights pruned")

small = prunerob.narrow(model)
x = torch.rand(1, 3, 64, 64)
with torch.no_grad():
    print(f"largest difference of a logit: {float((small(x) - model(x)).abs().max()):.1e}")
for name, network in (("pruned", model), ("narrow", small)):
    print(f"{name}: {sum(p.numel() for p in network.parameters()):,} parameters")
