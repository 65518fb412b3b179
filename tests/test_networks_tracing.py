"""Channels of any network, traced: taking them out changes no answer."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import torch_pruning
import torchvision
from torch import Tensor, nn

from prunerob.errors import UserError
from prunerob.networks import MnistCNN, ResNet18, WideResNet
from prunerob.networks.channels import Channels, channels_of, writers
from prunerob.networks.narrow import find_narrowing
from prunerob.networks.tracing import trace
from prunerob.pruning import filter_l1, random_filters
from prunerob.pruning.counts import count_shares
from prunerob.pruning.cut import make_masks
from prunerob.pruning.filters import Silenced, silence_filters
from prunerob.pruning.masks import Masks, apply_masks


def timm_network(name: str) -> nn.Module:
    import timm

    network: nn.Module = timm.create_model(name, num_classes=10)
    return network


def vgg11_bn() -> nn.Module:
    """With a narrow head: the features are what is pruned."""
    network: nn.Module = torchvision.models.vgg11_bn(num_classes=10, init_weights=False)
    network.classifier = nn.Sequential(nn.Linear(512 * 49, 64), nn.ReLU(), nn.Linear(64, 10))
    return network


NETWORKS: dict[str, tuple[Callable[[], nn.Module], int]] = {
    "resnet18": (lambda: torchvision.models.resnet18(num_classes=10), 20),
    "resnet50": (lambda: torchvision.models.resnet50(num_classes=10), 53),
    "vgg11_bn": (vgg11_bn, 8),
    "mobilenet_v2": (lambda: torchvision.models.mobilenet_v2(num_classes=10), 35),
    "densenet121": (lambda: torchvision.models.densenet121(num_classes=10), 120),
    "timm resnet18": (lambda: timm_network("resnet18"), 20),
    "timm efficientnet_b0": (lambda: timm_network("efficientnet_b0"), 49),
}
"""Networks of others, and of how many convolutions the filters can go by themselves."""


def seen_something(network: nn.Module) -> nn.Module:
    """A network whose normalisations have seen something, in evaluation mode."""
    torch.manual_seed(0)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d) and module.affine:
            for value, low in ((module.weight, 0.5), (module.running_var, 0.5)):
                nn.init.uniform_(value, low, low + 1)  # type: ignore[arg-type]
            for value in (module.bias, module.running_mean):
                nn.init.uniform_(value, -0.5, 0.5)  # type: ignore[arg-type]
    return network.eval()


@torch.no_grad()
def check_narrow(network: nn.Module, masks: Masks, x: Tensor, *, all_gone: bool = True) -> None:
    """See that a network without its silent channels answers as with them."""
    masked = copy.deepcopy(network)
    apply_masks(masked, masks)
    narrow = find_narrowing(masked, masks).network(masked)
    out = masked(x)
    assert out.isfinite().all()
    assert out.std() > 0
    torch.testing.assert_close(narrow(x), out, rtol=1e-5, atol=1e-5 * float(out.abs().max()))
    left, before = (sum(p.numel() for p in n.parameters()) for n in (narrow, network))
    pruned = sum(int((~mask).sum()) for mask in masks.values())
    assert (left == before - pruned) if all_gone else left < before


@pytest.mark.parametrize("name", NETWORKS)
def test_networks_of_others_answer_without_their_pruned_filters(name: str) -> None:
    make, prunable = NETWORKS[name]
    network, x = seen_something(make()), torch.rand(2, 3, 64, 64)
    channels = channels_of(network)
    assert len(channels) == prunable
    # Of the other convolutions, all go with those.
    served = {str(n) for leads in channels.values() for n in leads.norms}
    others = {n for n, m in network.named_modules() if isinstance(m, nn.Conv2d)} - channels.keys()
    assert others <= served

    before = {name: value.clone() for name, value in network.named_buffers()}
    scores = filter_l1(network, 0)
    for residual in ("keep", "remove"):
        masks = make_masks(network, scores, 0.2, residual=residual)  # type: ignore[arg-type]
        check_narrow(network, masks, x)
        assert count_shares(network, masks, scores).weights >= 0.2
    for name, value in network.named_buffers():
        assert torch.equal(value, before[name]), "tracing changes nothing"
    agree_with_torch_pruning(network, channels, x[:1])


def agree_with_torch_pruning(network: nn.Module, channels: Any, x: Tensor) -> None:
    """The same rows and columns go as torch-pruning takes."""
    graph = torch_pruning.DependencyGraph().build_dependency(network, x)
    names = {module: name for name, module in network.named_modules()}
    prune = torch_pruning.prune_conv_out_channels
    groups = [[name] for name, leads in channels.items() if leads.stream is None]
    for group in [*groups, *writers(channels).values()]:
        conv = network.get_submodule(group[0])
        chosen = [0, 2]
        theirs: dict[tuple[str, str], set[int]] = {}
        for dependency, positions in graph.get_pruning_group(conv, prune, chosen):
            module = dependency.target.module
            if module in names and isinstance(module, nn.Conv2d | nn.BatchNorm2d | nn.Linear):
                reads = graph.is_in_channel_pruning_fn(dependency.handler)
                side = "columns" if reads and not isinstance(module, nn.BatchNorm2d) else "rows"
                if getattr(module, "groups", 1) > 1:
                    side = "rows"
                theirs.setdefault((names[module], side), set()).update(positions)
        marks = torch.zeros(len(conv.get_parameter("weight")), dtype=torch.bool)
        marks[chosen] = True
        ours = Silenced(network, channels, {f"{name}.weight": marks for name in group})
        found = {
            (name.removesuffix(".weight"), side): set(gone.nonzero().flatten().tolist())
            for side, sides in (("rows", ours.rows), ("columns", ours.columns))
            for name, gone in sides.items()
            if name.endswith(".weight")
        }
        assert found == theirs, group


def test_a_network_none_of_whose_channels_can_go_is_refused_with_the_operation() -> None:
    network = torchvision.models.convnext_tiny(num_classes=10)
    told = r"filters of ConvNeXt cannot be pruned: those of features\.0\.0 stay because of permute"
    with pytest.raises(UserError, match=told) as error:
        channels_of(network)
    assert "\n" not in str(error.value)
    assert find_narrowing(network).kept == {}


@pytest.mark.parametrize("network", [MnistCNN(), ResNet18(4), WideResNet(10, 1), WideResNet(16, 1)])
def test_what_our_own_networks_say_is_found_by_tracing(network: nn.Module) -> None:
    class Silent(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = network

        def forward(self, x: Tensor) -> Tensor:
            return self.inner(x)  # type: ignore[no-any-return]

    torch.manual_seed(0)
    whole = Silent()
    traced = channels_of(whole)
    assert {name.removeprefix("inner.") for name in traced} == channels_of(network).keys()
    marks = {
        name: torch.rand(len(weight)) < 0.5
        for name, weight in network.named_parameters()
        if weight.dim() == 4
    }
    # As channels of a stream go: with all that write to it.
    for group in writers(channels_of(network)).values():
        marks |= {f"{name}.weight": marks[f"{group[0]}.weight"] for name in group}
    ours = silence_filters(network, marks)
    theirs = silence_filters(whole, {f"inner.{name}": gone for name, gone in marks.items()})
    assert {f"inner.{name}" for name in ours} == theirs.keys()
    for name, mask in ours.items():
        assert torch.equal(mask, theirs[f"inner.{name}"]), name


class Net(nn.Module):
    """Two convolutions, something between them, and what reads the second."""

    def __init__(self, between: Any = None, channels: int = 8) -> None:
        super().__init__()
        self.a = nn.Conv2d(3, 8, 3, padding=1)
        self.between = between or nn.Identity()
        self.b = nn.Conv2d(channels, 6, 3, padding=1)
        self.linear = nn.Linear(6, 4)
        self.scale = nn.Parameter(torch.tensor(0.7))

    def forward(self, x: Tensor) -> Tensor:
        x = self.b(self.between(self.a(x))).relu()
        return self.linear(x.mean((2, 3)))  # type: ignore[no-any-return]


class SqueezeExcitation(nn.Module):
    """With linear layers, in its usual spelling."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Sequential(nn.Linear(8, 4), nn.ReLU(), nn.Linear(4, 8), nn.Sigmoid())

    def forward(self, x: Tensor) -> Tensor:
        b, c, _, _ = x.size()
        y = self.fc(F.adaptive_avg_pool2d(x, 1).view(b, c)).view(b, c, 1, 1)
        return x * y.expand_as(x)


class Both(nn.Module):
    """Something, beside what comes in."""

    def __init__(self, inner: nn.Module | None = None) -> None:
        super().__init__()
        self.inner = inner or nn.Conv2d(8, 5, 1)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.inner(x), x], dim=1)


class Calls(nn.Module):
    """A function, as a module."""

    def __init__(self, function: Callable[..., Tensor], inner: nn.Module | None = None) -> None:
        super().__init__()
        self.function, self.inner = function, inner

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x) if self.inner is None else self.function(x, self.inner)


class Standardised(nn.Conv2d):
    """A convolution of weights that are standardised over what they read."""

    def forward(self, x: Tensor) -> Tensor:
        weight = self.weight - self.weight.mean((1, 2, 3), keepdim=True)
        return F.conv2d(x, weight, self.bias, padding=self.padding)


class Padded(nn.Conv2d):
    """A convolution that pads by itself: a subclass that does what it is called for."""

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(F.pad(x, (1, 1, 1, 1)), self.weight, self.bias)


class Branches(nn.Module):
    """Control flow that depends on the images."""

    def forward(self, x: Tensor) -> Tensor:
        return x if x.sum() > 0 else -x


ALL = ("a", "b", "between.inner")


@pytest.mark.parametrize(
    ("network", "prunable"),
    [
        (Net(), "ab"),
        (Net(nn.Sequential(nn.BatchNorm2d(8), nn.SiLU(), nn.Dropout2d(), nn.MaxPool2d(2))), "ab"),
        (Net(nn.Conv2d(8, 8, 3, groups=8)), "ab"),
        (Net(nn.Sequential(nn.Conv2d(8, 8, 1, groups=8, bias=False), nn.PReLU(8))), "ab"),
        (Net(nn.InstanceNorm2d(8, affine=True)), "ab"),
        (Net(nn.BatchNorm2d(8, affine=False)), "ab"),
        (Net(SqueezeExcitation()), "ab"),
        (Net(Both(), 13), ALL),
        (Net(Both(nn.Identity()), 16), "ab"),
        (Net(Padded(8, 8, 3)), ("a", "b", "between")),
        (Net(Calls(lambda x: (x * 2 + 1)[:, :, 1:, None, 0].unsqueeze(-1).squeeze(3))), "ab"),
        (
            Net(Calls(lambda x, m: x + m(x).sigmoid(), nn.Conv2d(8, 8, 1))),
            {"a", "b", "between.inner"},
        ),
        (Net(Calls(lambda x, m: m(m(x)), nn.Conv2d(8, 8, 1))), {"a", "b", "between.inner"}),
        (Net(Calls(lambda x, m: x * m(x).sigmoid(), nn.Conv2d(8, 1, 1))), "ab"),
        (Net(nn.Conv2d(8, 8, 3, groups=2)), "b"),
        (Net(nn.GroupNorm(2, 8)), "b"),
        (Net(nn.Softmax(1)), "b"),
        (Net(nn.ConvTranspose2d(8, 8, 2)), "b"),
        (Net(nn.utils.parametrizations.weight_norm(nn.Conv2d(8, 8, 1))), "b"),
        (Net(Standardised(8, 8, 1)), "b"),
        (Net(Branches()), "b"),
        (Net(Calls(lambda x: x / x.shape[1])), "b"),
        (Net(Calls(lambda x: x + x.mean(1, keepdim=True))), "b"),
        (Net(Calls(lambda x: x.flip(1))), "b"),
        (Net(Calls(lambda x: torch.cat(x.chunk(2, 1)[::-1], 1))), "b"),
        (Net(Calls(lambda x: x.view(x.size(0), 2, 4, 9, 9).transpose(1, 2).flatten(1, 2))), "b"),
        (Net(Calls(lambda x: x * torch.arange(8.0).view(1, 8, 1, 1))), "b"),
        (Net(Calls(lambda x: F.pad(x, (0, 0, 0, 0, 2, 3))), 13), "b"),
    ],
)
def test_what_operations_do_to_channels(network: Net, prunable: str | tuple[str, ...]) -> None:
    seen_something(network)
    assert channels_of(network).keys() == set(prunable)
    scores, amount = random_filters(network, 0), 0.1 if prunable == "b" else 0.4
    masks = make_masks(network, scores, amount, reading="filters", residual="remove")
    check_narrow(network, masks, torch.rand(2, 3, 9, 9))


def test_gates_go_with_what_they_are_multiplied_with() -> None:
    network = Net(SqueezeExcitation())
    assert channels_of(network)["a"] == Channels(
        readers=("between.fc.0", "b"), norms=("between.fc.2",)
    )


class Classifies(nn.Module):
    """A network that ends in its own way."""

    def __init__(self, function: Callable[[Tensor], Tensor], features: int) -> None:
        super().__init__()
        self.a, self.function = nn.Conv2d(3, 8, 3), function
        self.linear = nn.Linear(features, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(self.function(self.a(x).relu()))  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    ("function", "features"),
    [
        (lambda x: x.view(x.size(0), -1), 8 * 49),
        (lambda x: x.reshape(x.shape[0], -1), 8 * 49),
        (lambda x: torch.flatten(x, start_dim=1), 8 * 49),
        (lambda x: F.avg_pool2d(x, x.shape[2:]).flatten(1), 8),
        (lambda x: x.flatten(2).mean(-1), 8),
        (lambda x: x.amax((-1, -2)), 8),
        (lambda x: F.adaptive_avg_pool2d(x, 1)[:, :, 0, 0], 8),
    ],
)
def test_linear_layers_read_channels_behind_a_flatten(
    function: Callable[[Tensor], Tensor], features: int
) -> None:
    torch.manual_seed(0)
    network = Classifies(function, features)
    assert channels_of(network) == {"a": Channels(readers=("linear",))}
    masks = make_masks(network, filter_l1(network, 0), 0.5)
    check_narrow(network, masks, torch.rand(2, 3, 9, 9))


def test_a_view_that_names_the_number_of_channels_keeps_them() -> None:
    with pytest.raises(UserError, match="those of a stay because of view"):
        channels_of(Classifies(lambda x: x.view(-1, 392), 392))


def test_what_cannot_be_traced_is_named() -> None:
    class Depends(Net):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x if x.mean() > 0 else -x)

    class Unused(Net):
        def __init__(self) -> None:
            super().__init__()
            self.head = nn.Linear(8, 2)

    with pytest.raises(UserError, match=r"filters of Depends .* its forward cannot be traced \("):
        channels_of(Depends())
    with pytest.raises(UserError, match="head is not called in evaluation mode"):
        channels_of(Unused())
    network = Net(Branches())
    assert "Branches between, which cannot be traced" in trace(network).whole["a"]


def test_tracing_leaves_modes_and_random_numbers_alone() -> None:
    network = Net(Padded(8, 8, 3)).train()
    network.b.eval()
    state = torch.get_rng_state()
    channels_of(network)
    assert torch.equal(torch.get_rng_state(), state)
    assert (network.training, network.a.training, network.b.training) == (True, True, False)
