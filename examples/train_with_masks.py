"""A training loop of one's own: prune, then fine-tune against PGD with the masks held."""

import torch
import torch.nn.functional as F

import prunerob
from prunerob.data import MNIST

network = prunerob.load("zoo/mnist_pgd_dense").train()
optimizer = torch.optim.Adam(network.parameters(), 1e-4, weight_decay=1e-3)
attack = prunerob.PGD(eps=0.3, step_size=0.1, steps=5)

masks = prunerob.prune(network, 0.9)
masks.hold(optimizer)  # from now on, after every step

for x, y, _ in MNIST(train_size=1280, batch_size=128).train_dataloader():
    loss = F.cross_entropy(network(attack(network, x, y)), y)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()

zeros = sum(int((network.get_parameter(name) == 0).sum()) for name in masks)
weights = sum(mask.numel() for mask in masks.values())
print(f"{zeros / weights:.1%} of the weights are 0")
