"""Gradients through ReLUs that are off."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from prunerob.attacks import APGD, PGD
from prunerob.attacks.attack import input_gradient
from prunerob.attacks.smooth_relu import smooth_relus
from prunerob.networks import MnistCNN, ResNet18, WideResNet
from prunerob.networks.rewrite import rewrite

RELUS: list[Callable[[Tensor], Tensor]] = [
    torch.relu,
    F.relu,
    F.relu_,
    lambda x: F.relu(x, inplace=True),
    lambda x: F.relu(input=x),
    lambda x: x.relu(),
    lambda x: x.relu_(),
    lambda x: torch.relu_(x),
    nn.ReLU(),
    nn.ReLU(inplace=True),
]


@pytest.mark.parametrize("relu", RELUS)
def test_however_a_network_calls_it_only_the_gradient_changes(
    relu: Callable[[Tensor], Tensor],
) -> None:
    x = torch.linspace(-1, 1, 21, dtype=torch.float64).requires_grad_()
    with smooth_relus(0.2):
        out = relu(x * 3)
        (gradient,) = torch.autograd.grad((out * torch.arange(21)).sum(), x)
        with torch.no_grad():
            assert torch.equal(relu(x * 3), (x * 3).clamp(min=0))
    assert torch.equal(out, (3 * x).clamp(min=0))
    expected = torch.autograd.functional.jacobian(lambda z: 0.2 * F.softplus(z / 0.2), 3 * x)
    assert torch.allclose(gradient, 3 * torch.arange(21) * expected.diagonal())
    plain = torch.autograd.grad(relu(x * 3).sum(), x)[0]
    assert torch.equal(plain, 3.0 * (x > 0)), "afterwards it is ReLU's own again"


@pytest.mark.parametrize(
    ("network", "shape"),
    [
        (MnistCNN(), (1, 28, 28)),
        (WideResNet(depth=10, widen_factor=1), (3, 32, 32)),
        (ResNet18(), (3, 32, 32)),
    ],
)
def test_the_rewritten_network_has_the_same_smooth_gradients(
    network: nn.Module, shape: tuple[int, int, int]
) -> None:
    network.eval()
    x, y = torch.rand(4, *shape), torch.arange(4)
    fast = rewrite(network, x.shape[1:])
    gradients = []
    for temperature in (0.0, 0.1):
        with smooth_relus(temperature):
            plain, logits = input_gradient(network, x, y, torch.float32)
            quick, same = input_gradient(fast, fast.pack(x), y, torch.float32)
        assert torch.allclose(logits, same, atol=1e-4)
        quick = fast.unpack(quick)
        assert float((plain - quick).norm()) < 1e-3 * float(plain.norm())
        gradients.append(plain)
    assert float((gradients[1] - gradients[0]).norm()) > 0.01 * float(gradients[0].norm())


class Hidden(nn.Module):
    """Answers by the mean pixel, above a threshold that no clean image reaches."""

    def forward(self, x: Tensor) -> Tensor:
        over = (x.mean((1, 2, 3)) - 0.6).relu()
        return torch.stack([torch.full_like(over, 0.01), over], 1)


@pytest.mark.parametrize(
    "attack",
    [
        PGD(eps=0.3, step_size=0.05, steps=10, random_start=False),
        APGD(eps=0.3, steps=10),
    ],
)
def test_what_hides_behind_a_unit_that_is_off_is_found(attack: PGD | APGD) -> None:
    x, y = torch.full((3, 1, 8, 8), 0.4), torch.zeros(3, dtype=torch.int64)
    key = torch.arange(3)
    network = Hidden()
    assert not attack.fools(network, x, y, key=key, batch_size=3).any()
    smooth = replace(attack, relu_temperature=0.1)
    assert smooth.fools(network, x, y, key=key, batch_size=3).all()
    assert (network(smooth(network, x, y)).argmax(1) == 1).all()


@pytest.mark.parametrize("every", [1, 2, 5, 12])
@pytest.mark.parametrize("search", [False, True])
def test_the_first_of_so_many_steps_follows_relu_s_own_derivative(
    every: int, search: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where a search, which stops to see who is lost, goes on."""
    seen = []

    def note(temperature: float) -> AbstractContextManager[None]:
        seen.append(temperature)
        return smooth_relus(temperature)

    monkeypatch.setattr("prunerob.attacks.pgd.smooth_relus", note)
    attack = PGD(eps=0.3, step_size=0.001, steps=23, relu_temperature=0.1, relu_own_every=every)
    x, y = torch.full((3, 1, 8, 8), 0.1), torch.zeros(3, dtype=torch.int64)
    if search:
        attack.fools(Hidden(), x, y, key=torch.arange(3), batch_size=3)
    else:
        attack(Hidden(), x, y)
    assert seen == [0.1 if step % every else 0.0 for step in range(23)]
    with pytest.raises(ValueError, match="relu_own_every of PGD: 0 is below 1"):
        PGD(relu_own_every=0)


@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_a_share_of_the_images_is_attacked_so(share: float) -> None:
    """Each as if it were alone, and as every image is under its own attack."""
    network = Hidden()
    x, y = torch.full((200, 1, 8, 8), 0.4), torch.zeros(200, dtype=torch.int64)
    x += 0.01 * torch.rand(200, 1, 8, 8)
    key = torch.arange(200)
    attack = PGD(
        eps=0.3, step_size=0.05, steps=12, relu_temperature=0.1, relu_own_every=12, relu_share=share
    )
    x_adv = attack(network, x, y, key=key)
    smooth = replace(attack, relu_share=1.0)(network, x, y, key=key)
    own = replace(attack, relu_temperature=0.0)(network, x, y, key=key)
    is_smooth = (x_adv == smooth).flatten(1).all(1)
    assert torch.equal(x_adv[~is_smooth], own[~is_smooth])
    assert not torch.equal(own, smooth)
    assert abs(int(is_smooth.sum()) - 200 * share) < 25
    found = attack.fools(network, x, y, key=key, batch_size=64)
    assert torch.equal(found, network(x_adv).argmax(1) != y)
    radii = torch.full((200,), 0.3)
    assert torch.allclose(attack(network, x, y, eps=radii, key=key), x_adv, atol=1e-5)
    assert torch.equal(attack(network, x[3:5], y[3:5], key=key[3:5]), x_adv[3:5])


def test_a_share_lies_in_0_to_1() -> None:
    for share in (-0.1, 1.1, float("nan")):
        with pytest.raises(ValueError, match="relu_share of PGD: "):
            PGD(relu_share=share)


@pytest.mark.parametrize("kind", [PGD, APGD])
@pytest.mark.parametrize("temperature", [-0.1, float("nan"), float("inf")])
def test_a_temperature_is_a_number(kind: type[PGD | APGD], temperature: float) -> None:
    with pytest.raises(ValueError, match=f"relu_temperature of {kind.__name__}: "):
        kind(relu_temperature=temperature)
