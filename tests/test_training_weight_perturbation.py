"""Adversarial weight perturbation, against the formula and a plain loop."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from prunerob.data.batches import Batch
from prunerob.networks import MnistCNN
from prunerob.noise import image_keys
from prunerob.training.adversarial import AdversarialTraining
from prunerob.training.weight_perturbation import WeightPerturbation
from tests.conftest import SmallCNN, classifier
from tests.test_training_objectives import CLIMB


def test_weights_move_up_the_loss_by_a_share_of_their_norm_and_back() -> None:
    torch.manual_seed(0)
    network = SmallCNN(1, 8).eval()
    x, y = torch.rand(16, 1, 8, 8), torch.randint(0, 4, (16,))
    with torch.no_grad():
        network.conv2.weight[:2] = 0  # pruned
    before = copy.deepcopy(network.state_dict())

    def loss() -> Tensor:
        return F.cross_entropy(network(x), y)

    low = loss().item()
    matrices = {n: p for n, p in network.named_parameters() if p.dim() > 1}
    gradients = torch.autograd.grad(loss(), list(matrices.values()))
    perturbation = WeightPerturbation(0.05)
    perturbation.perturb(network, loss)
    assert loss().item() > low
    for (name, weight), gradient in zip(matrices.items(), gradients, strict=True):
        g = gradient * (before[name] != 0)
        expected = before[name] + 0.05 * before[name].norm() * g / g.norm()
        torch.testing.assert_close(weight.detach(), expected, msg=name)
    assert (network.conv2.weight[:2] == 0).all()
    for name, value in network.state_dict().items():
        if name not in matrices:
            assert torch.equal(value, before[name]), "biases and normalisations stay"
    perturbation.restore()
    assert all(torch.equal(v, before[n]) for n, v in network.state_dict().items())


def test_statistics_are_counted_once() -> None:
    torch.manual_seed(0)
    network = SmallCNN(1, 8).train()
    x, y = torch.rand(16, 1, 8, 8), torch.randint(0, 4, (16,))
    before = copy.deepcopy(network.state_dict())
    WeightPerturbation(0.1).perturb(network, lambda: F.cross_entropy(network(x), y))
    assert torch.equal(network.norm1.running_mean, before["norm1.running_mean"])  # type: ignore[arg-type]
    assert network.norm1.num_batches_tracked == 0


@pytest.mark.parametrize("half", [False, True])
def test_a_training_step_takes_the_gradient_there_and_updates_here(
    half: bool, trained: MnistCNN, digits: tuple[Tensor, Tensor]
) -> None:
    x, y = digits[0][:32], digits[1][:32]
    trained, plain = copy.deepcopy(trained), copy.deepcopy(trained)
    trained.zero_grad()
    training = AdversarialTraining(attack=CLIMB, weight=1.0, weight_perturbation=0.02)
    module = classifier(trained, training)
    with torch.autocast("cpu", torch.bfloat16, enabled=half):
        loss = module.training_step(Batch(x, y, torch.arange(32)), 0)
    loss.backward()  # type: ignore[no-untyped-call]
    module.on_after_backward()

    other = classifier(plain, AdversarialTraining(attack=CLIMB, weight=1.0))
    with torch.autocast("cpu", torch.bfloat16, enabled=half):
        low = other.training_step(Batch(x, y, torch.arange(32)), 0)
    assert loss > low, "the loss is that of the perturbed weights"
    parameters = dict(plain.named_parameters())
    weights = [p for p in parameters.values() if p.dim() > 1]
    gradients = torch.autograd.grad(low, weights)
    moved = copy.deepcopy(plain)
    with torch.no_grad():
        targets = [p for p in moved.parameters() if p.dim() > 1]
        for weight, gradient in zip(targets, gradients, strict=True):
            weight += 0.02 * weight.norm() * gradient / gradient.norm()
    # The same examples: those made at the weights where the step began.
    x_adv = CLIMB(
        plain, x, y, key=image_keys(torch.arange(32), seed=5, purpose="training", epoch=3)
    )
    with torch.autocast("cpu", torch.bfloat16, enabled=half):
        F.cross_entropy(moved(x_adv), y).backward()  # type: ignore[no-untyped-call]
    for (name, ours), theirs, before in zip(
        trained.named_parameters(), moved.parameters(), parameters.values(), strict=True
    ):
        torch.testing.assert_close(
            ours.grad,
            theirs.grad,
            msg=name,
            rtol=0.05 if half else 1e-4,
            atol=1e-3 if half else 1e-6,
        )
        assert torch.equal(ours, before), "the weights are back"
