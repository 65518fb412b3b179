"""Exact rewrites: the same logits, gradients and adversarial accuracy as the plain network."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
import torchvision
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from prunerob.attacks import FGSM, PGD, Attack
from prunerob.attacks.pgd import margin
from prunerob.networks import MnistCNN, ResNet18, Rewrite, WideResNet, rewrite
from prunerob.networks.mnist_cnn import PackedMnistCNN
from prunerob.networks.resnet import FoldedResNet18
from prunerob.networks.rewrite import AsItIs
from prunerob.networks.wide_resnet import FoldedWideResNet
from prunerob.pixels import Pixels

SHAPE = torch.Size((1, 28, 28))
widths = st.tuples(*[st.integers(1, 20)] * 3)


@settings(deadline=None, max_examples=40)
@given(widths, st.integers(2, 12), st.integers(1, 4), st.integers(0, 2**31))
def test_logits_and_gradients_are_the_network_s(
    filters: tuple[int, int, int], classes: int, batch: int, seed: int
) -> None:
    torch.manual_seed(seed)
    network = MnistCNN(filters=filters, classes=classes).eval()
    x = torch.rand(batch, 1, 28, 28)
    fast = rewrite(network, SHAPE)
    assert isinstance(fast, PackedMnistCNN)
    packed = fast.pack(x)
    assert torch.equal(fast.unpack(packed), x)
    assert packed.numel() == x.numel()
    torch.testing.assert_close(fast(packed), network(x), atol=1e-5, rtol=0)

    assert_same_gradient(network, x, torch.rand(batch, classes))


def assert_same_gradient(network: nn.Module, x: Tensor, mix: Tensor) -> None:
    """In float64, where hardly a ReLU is so near its corner that rounding turns it over."""
    network, x = network.double(), x.double()
    fast = rewrite(network, x.shape[1:])
    packed = fast.pack(x).requires_grad_()
    x.requires_grad_()
    plain, packed_gradient = (
        torch.autograd.grad((logits * mix).sum(), images)[0]
        for logits, images in ((network(x), x), (fast(packed), packed))
    )
    scale = float(plain.abs().max())
    torch.testing.assert_close(fast.unpack(packed_gradient), plain, atol=1e-9 * scale, rtol=0)


RESIDUAL: dict[str, tuple[Callable[[], nn.Module], type[Rewrite]]] = {
    "WRN-10-1": (lambda: WideResNet(10, 1), FoldedWideResNet),
    "WRN-10-2": (lambda: WideResNet(10, 2), FoldedWideResNet),
    "WRN-16-1": (lambda: WideResNet(16, 1), FoldedWideResNet),
    "ResNet-18": (lambda: ResNet18(8), FoldedResNet18),
}


@settings(deadline=None, max_examples=12)
@given(st.sampled_from(sorted(RESIDUAL)), st.integers(0, 2**31))
def test_a_residual_network_is_folded_exactly(name: str, seed: int) -> None:
    torch.manual_seed(seed)
    make, folded = RESIDUAL[name]
    network = make()
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, -1.5, 1.5)
            nn.init.uniform_(module.bias, -0.5, 0.5)
            nn.init.uniform_(module.running_mean, -0.5, 0.5)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
    network.eval()
    state = copy.deepcopy(network.state_dict())
    x = torch.rand(2, 3, 32, 32).requires_grad_()
    fast = rewrite(network, x.shape[1:])
    assert isinstance(fast, folded)
    logits = network(x)
    scale = float(logits.detach().abs().max())
    torch.testing.assert_close(fast(fast.pack(x)), logits, atol=1e-5 * scale, rtol=0)
    assert_same_gradient(copy.deepcopy(network), x.detach(), torch.arange(10))
    assert all(torch.equal(state[name], value) for name, value in network.state_dict().items())


def by_the_plain_path(network: MnistCNN) -> nn.Module:
    """The same network in the dress of one that has no rewrite."""
    return nn.Sequential(network)


@pytest.mark.parametrize("eps", [0.1, 0.2, 0.3])
def test_adversarial_accuracy_is_that_of_the_plain_path(
    trained: MnistCNN, digits: tuple[Tensor, Tensor], eps: float
) -> None:
    """Trained weights, real images; signs of gradients within rounding of 0 may differ."""
    x, y = digits
    plain_network = by_the_plain_path(trained).eval()
    assert isinstance(rewrite(plain_network, SHAPE), AsItIs)
    for attack in (FGSM(eps=Pixels(eps)), PGD(eps=Pixels(eps), precision="float32")):
        fast, plain = attack(trained, x, y), attack(plain_network, x, y)
        assert (fast != plain).float().mean() < 0.02
        right_fast, right_plain = margin(trained, fast, y) > 0, margin(trained, plain, y) > 0
        assert (right_fast != right_plain).sum() <= 1


def test_a_rewrite_follows_the_weights(trained: MnistCNN, digits: tuple[Tensor, Tensor]) -> None:
    x, y = digits[0][:20], digits[1][:20]
    attack = PGD(steps=3, precision="float32")
    before = attack(trained, x, y)
    bias = trained.linear.bias.detach().clone()
    with torch.no_grad():
        trained.linear.weight.neg_()
    try:
        assert (attack(trained, x, y) != before).float().mean() > 0.1
    finally:
        with torch.no_grad():
            trained.linear.weight.neg_()
    assert torch.equal(trained.linear.bias, bias)


class Shifted(MnistCNN):
    """Another function than MnistCNN, whose rewrite it inherits."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(1 - x)


def test_a_subclass_with_another_forward_takes_the_plain_path() -> None:
    assert isinstance(rewrite(Shifted(), SHAPE), AsItIs)
    x = torch.rand(2, 1, 28, 28)
    network = Shifted().eval()
    fast = rewrite(network, SHAPE)
    torch.testing.assert_close(fast(fast.pack(x)), network(x))


def test_hooks_are_not_passed_by() -> None:
    network = MnistCNN()
    assert isinstance(rewrite(network, SHAPE), PackedMnistCNN)
    handle = network.conv2.register_forward_hook(lambda *_: None)
    assert isinstance(rewrite(network, SHAPE), AsItIs)
    handle.remove()
    assert isinstance(rewrite(network, SHAPE), PackedMnistCNN)


def test_a_network_that_is_not_as_built_takes_the_plain_path() -> None:
    assert isinstance(rewrite(MnistCNN(), torch.Size((1, 30, 30))), AsItIs)
    for name, layer in (
        ("conv1", nn.Conv2d(1, 32, 8, stride=2, padding=3, bias=False)),
        ("conv1", nn.Conv2d(1, 32, 8, stride=2, padding=2)),
        ("conv1", nn.Conv2d(1, 32, 8, stride=2, padding=3, padding_mode="circular")),
        ("linear", nn.Linear(64, 10, bias=False)),
        ("conv2", nn.Sequential(nn.Conv2d(32, 64, 6, stride=2))),
    ):
        network = MnistCNN()
        setattr(network, name, layer)
        assert isinstance(rewrite(network, SHAPE), AsItIs)
    wide = WideResNet(10, 1)
    colour = torch.Size((3, 32, 32))
    assert isinstance(rewrite(wide.eval(), colour), FoldedWideResNet)
    for name, layer in (
        ("conv1", nn.Conv2d(16, 16, 3, padding=1)),
        ("bn2", nn.BatchNorm2d(16, track_running_stats=False)),
        ("bn2", nn.Identity()),
    ):
        wide = WideResNet(10, 1).eval()
        setattr(wide.stage1[0], name, layer)
        assert type(rewrite(wide, colour)) is AsItIs
    network = MnistCNN()
    network.forward = lambda x: x.flatten(1)  # type: ignore[method-assign]
    assert isinstance(rewrite(network, SHAPE), AsItIs)
    assert isinstance(rewrite(torch.compile(MnistCNN()), SHAPE), AsItIs)
    x = torch.rand(2, 1, 30, 30)
    assert FGSM()(MnistCNN(), x, torch.zeros(2, dtype=torch.int64)).shape == x.shape


@pytest.mark.parametrize("attack", [FGSM(), PGD(steps=3), PGD(steps=3, precision="float32")])
@pytest.mark.parametrize("kind", ["MnistCNN", "WideResNet"])
def test_no_attack_waits_for_the_device(attack: FGSM | PGD, kind: str) -> None:
    """Fake tensors hold no values: to read one on the host, as a decision would, is an error."""
    with FakeTensorMode():
        network = MnistCNN() if kind == "MnistCNN" else WideResNet(10, 1)
        shape = (4, 1, 28, 28) if kind == "MnistCNN" else (4, 3, 32, 32)
        x, y = torch.zeros(shape), torch.zeros(4, dtype=torch.int64)
        assert attack(network, x, y, key=y).shape == shape
        with pytest.raises(Exception, match=r"local_scalar_dense|DataDependent|data-dependent"):
            bool((x > 0).any())


@pytest.mark.parametrize("name", sorted(RESIDUAL))
def test_residual_networks_compile_without_a_break(name: str) -> None:
    """In one graph, channels-last, with the logits and gradients of the network as it is."""
    torch.manual_seed(0)
    network = RESIDUAL[name][0]().to(memory_format=torch.channels_last).eval()
    x = torch.rand(2, 3, 32, 32).contiguous(memory_format=torch.channels_last).requires_grad_()
    compiled = torch.compile(network, fullgraph=True, backend="aot_eager")
    for either in (network, compiled):
        assert either(x).shape == (2, 10)
    (gradient,) = torch.autograd.grad(network(x).sum(), x)
    torch.testing.assert_close(torch.autograd.grad(compiled(x).sum(), x)[0], gradient)

    twin = copy.deepcopy(network).train()  # whose running statistics a training step changes
    trained = torch.compile(copy.deepcopy(network).train(), fullgraph=True, backend="aot_eager")
    for either in (twin, trained):
        either(x).square().sum().backward()
    gradients = [parameter.grad for parameter in twin.parameters()]
    for parameter, expected in zip(trained.parameters(), gradients, strict=True):
        torch.testing.assert_close(parameter.grad, expected)
    for value, expected in zip(trained.buffers(), twin.buffers(), strict=True):
        torch.testing.assert_close(value, expected)

    seen = []
    for module in network.modules():
        if isinstance(module, nn.Conv2d) and module.in_channels > 3:
            module.register_forward_hook(lambda m, a, out: seen.append(out))
    network(x)
    assert seen
    assert all(out.is_contiguous(memory_format=torch.channels_last) for out in seen)


def test_resnet_18_is_the_usual_one_for_small_images() -> None:
    """Against torchvision's own, whose stem is made that of small images."""
    torch.manual_seed(0)
    ours = ResNet18().eval()
    assert sum(p.numel() for p in ours.parameters()) == 11_173_962
    theirs = torchvision.models.resnet18(num_classes=10).eval()
    theirs.conv1 = nn.Conv2d(3, 64, 3, padding=1, bias=False)
    theirs.maxpool = nn.Identity()  # type: ignore[assignment]
    state = {}
    for name, value in ours.state_dict().items():
        name = name.replace("stem_bn", "bn1").replace("stem", "conv1").replace("stage", "layer")
        name = name.replace("shortcut_bn", "downsample.1").replace("shortcut", "downsample.0")
        state[name.replace("linear", "fc")] = value
    theirs.load_state_dict(state)
    x = torch.rand(3, 3, 32, 32)
    torch.testing.assert_close(ours(x), theirs(ours.normalize(x)))
    for bad in ({"width": 0}, {"classes": 1}, {"mean": ()}):
        with pytest.raises(ValueError, match=r"ResNet18|do not belong together"):
            ResNet18(**bad)  # type: ignore[arg-type]


def test_wide_resnets_are_the_paper_s() -> None:
    network = WideResNet()
    assert sum(p.numel() for p in network.parameters()) == 5_849_050
    network.eval()
    x = torch.rand(2, 3, 32, 32)
    moved = (x - torch.tensor([0.4914, 0.4822, 0.4465]).view(3, 1, 1)) / torch.tensor(
        [0.2470, 0.2435, 0.2616]
    ).view(3, 1, 1)
    torch.testing.assert_close(network.normalize(x), moved)
    assert network(x).shape == (2, 10)
    assert not any(name.startswith("normalize") for name in network.state_dict())
    for bad in ({"depth": 27}, {"widen_factor": 0}, {"mean": (0.5,)}, {"std": (0.0, 1.0, 1.0)}):
        with pytest.raises(ValueError, match=r"WideResNet|do not belong together"):
            WideResNet(**bad)  # type: ignore[arg-type]


def test_a_wide_block_is_pre_activation_with_a_projection_where_shapes_change() -> None:
    torch.manual_seed(0)
    network = WideResNet(16, 1).eval()
    block = network.stage2[0]
    x = torch.rand(2, 16, 32, 32)
    activated = F.relu(block.bn1(x))
    inner = F.relu(block.bn2(F.conv2d(activated, block.conv1.weight, stride=2, padding=1)))
    expected = F.conv2d(inner, block.conv2.weight, padding=1)
    expected = expected + F.conv2d(activated, block.shortcut.weight, stride=2)
    torch.testing.assert_close(block(x), expected)
    assert network.stage2[1].shortcut is None


@pytest.mark.parametrize("attack", [FGSM(eps=Pixels(0.1)), PGD(eps=Pixels(0.1), steps=2)])
def test_networks_of_linear_layers_may_view_their_images(attack: Attack) -> None:
    class Linear(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(3 * 8 * 8, 10)

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.linear(x.view(x.shape[0], -1))
            return out

    x = torch.rand(4, 3, 8, 8).contiguous(memory_format=torch.channels_last).contiguous()
    assert attack(Linear(), x, torch.zeros(4, dtype=torch.int64)).shape == x.shape


def test_a_block_that_hands_on_its_input_is_not_rewritten() -> None:
    network = WideResNet(depth=10, widen_factor=1).eval()
    x = torch.rand(2, 3, 32, 32)
    assert isinstance(rewrite(network, x.shape[1:]), FoldedWideResNet)
    for block in network.blocks().values():
        block.bn1 = nn.Identity()  # type: ignore[assignment]
    fast = rewrite(network, x.shape[1:])
    torch.testing.assert_close(fast(fast.pack(x)), network(x))
