"""The Classifier."""

from __future__ import annotations

import copy

import torch
from torch import Tensor

from prunerob.attacks import NoAttack
from prunerob.data.batches import Batch
from prunerob.networks import MnistCNN
from prunerob.training.adversarial import AdversarialTraining
from prunerob.training.validation import Validation
from tests.conftest import classifier


def test_what_is_counted_is_counted_in_float32(
    trained: MnistCNN, digits: tuple[Tensor, Tensor]
) -> None:
    """Whatever the precision of training: a pixel of bfloat16 is off by up to half of 1/255."""
    network = copy.deepcopy(trained)
    module = classifier(network, AdversarialTraining())
    batch = Batch(digits[0][:4], digits[1][:4], torch.arange(4))
    seen: list[torch.dtype] = []
    network.linear.register_forward_hook(lambda m, a, out: seen.append(out.dtype))
    with torch.autocast("cpu", torch.bfloat16):
        network(batch.x)
        assert seen == [torch.bfloat16]
        none = NoAttack()
        Validation(
            none, none, attacked_images=0, probed_images=0, attacked=lambda x: network, seed=0
        ).step(batch, 0)
        module.predict_step(batch, 1)
    assert seen[1:] == [torch.float32] * 2
