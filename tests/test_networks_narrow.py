"""Narrow networks: channels taken out, the same outputs."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from prunerob.attacks import PGD
from prunerob.attacks.pgd import margin
from prunerob.networks import Channels, MnistCNN, ResNet18, Stream, WideResNet
from prunerob.networks.channels import writers
from prunerob.networks.narrow import NarrowCopy, find_narrowing
from prunerob.pruning import filter_l1, random_filters, weight_magnitude
from prunerob.pruning.cut import make_masks
from prunerob.pruning.filters import silence_filters
from prunerob.pruning.masks import Residual, apply_masks
from tests.conftest import SmallCNN


def random_network(kind: str, seed: int) -> tuple[nn.Module, torch.Tensor]:
    """A network whose BatchNorm has seen something, and images for it.

    In float64, where hardly a ReLU or a step of Adam is so near its corner that rounding turns it.
    """
    torch.manual_seed(seed)
    network: nn.Module
    if kind == "MnistCNN":
        network, x = MnistCNN((5, 7, 6)), torch.rand(3, 1, 28, 28)
    elif kind == "SmallCNN":
        network, x = SmallCNN(2, 9), torch.rand(3, 2, 9, 9)
    elif kind == "ResNet18":
        network, x = ResNet18(5), torch.rand(3, 3, 16, 16)
    else:
        depth, width = map(int, kind.split("-")[1:])
        network, x = WideResNet(depth, width), torch.rand(3, 3, 16, 16)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.uniform_(module.bias, -0.5, 0.5)
            nn.init.uniform_(module.running_mean, -0.5, 0.5)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
    return network.double().eval(), x.double()


residual_kinds = st.sampled_from(["WRN-16-1", "WRN-10-2", "ResNet18"])
kinds = st.sampled_from(["MnistCNN", "SmallCNN", "WRN-16-1", "WRN-10-2", "ResNet18"])


@settings(deadline=None, max_examples=40)
@given(
    kinds,
    st.sampled_from(["keep", "remove"]),
    st.floats(0, 0.75),
    st.sampled_from([filter_l1, random_filters]),
    st.integers(0, 999),
)
def test_without_its_silent_channels_a_network_answers_the_same(
    kind: str,
    residual: Residual,
    amount: float,
    criterion: Callable[..., dict[str, torch.Tensor]],
    seed: int,
) -> None:
    network, x = random_network(kind, seed)
    if residual == "keep":  # where residual networks keep more than half of their filters
        amount /= 2.5
    masks = make_masks(
        network, criterion(network, seed), amount, reading="filters", residual=residual
    )
    apply_masks(network, masks)
    narrowing = find_narrowing(network)
    by_masks = find_narrowing(network, masks)
    assert narrowing.kept.keys() == by_masks.kept.keys()
    narrow = narrowing.network(network)
    torch.testing.assert_close(narrow(x), network(x), atol=1e-10, rtol=1e-9)

    pruned = sum(int((~mask).sum()) for mask in masks.values())
    parameters = sum(p.numel() for p in network.parameters())
    assert sum(p.numel() for p in narrow.parameters()) == parameters - pruned
    # In training, too, where BatchNorm has the statistics of the batch; dropout draws alike.
    for either in (network, narrow):
        either.train()
        for module in either.modules():
            if isinstance(module, nn.Dropout):
                module.eval()
    torch.testing.assert_close(narrow(x), network(x), atol=1e-10, rtol=1e-9)


@settings(deadline=None, max_examples=30)
@given(residual_kinds, st.floats(0, 0.9), st.integers(0, 999))
def test_silenced_filters_add_nothing_and_their_stream_goes_where_all_are(
    kind: str, amount: float, seed: int
) -> None:
    network, x = random_network(kind, seed)
    gone = {
        name: torch.rand(len(score)) < amount for name, score in filter_l1(network, seed).items()
    }
    for marks in gone.values():
        marks[0] = False
    masks = silence_filters(network, gone)
    heard: dict[str, torch.Tensor] = {}
    for name, leads in network.channels().items():  # type: ignore[operator]
        last = network.get_submodule((name, *leads.norms)[-1])
        last.register_forward_hook(lambda m, a, out, name=name: heard.update({name: out}))
    apply_masks(network, masks)
    logits = network(x)
    for name, out in heard.items():
        assert (out[:, gone[f"{name}.weight"]] == 0).all(), name

    narrowing = find_narrowing(network, masks)
    narrow = narrowing.network(network)
    torch.testing.assert_close(narrow(x), logits, atol=1e-10, rtol=1e-9)
    for stream, group in writers(network.channels()).items():  # type: ignore[operator]
        together = torch.stack([gone[f"{name}.weight"] for name in group]).all(0)
        for reader in stream.readers:
            weight = narrow.get_submodule(reader).get_parameter("weight")
            assert weight.shape[1] == int((~together).sum())


def test_narrowing_finds_what_a_stream_s_own_blocks_alone_read() -> None:
    """Channels that read each other in a loop that no logit sees."""
    network, x = random_network("WRN-16-1", 0)
    assert isinstance(network, WideResNet)
    with torch.no_grad():
        network.linear.weight[:, 3] = 0  # channel 3 of the last stream is read by stage3.1 alone,
        conv1, conv2 = network.stage3[1].conv1, network.stage3[1].conv2  # type: ignore[union-attr]
        conv1.weight[[i for i in range(64) if i != 5], 3] = 0  # there by the inner channel 5 alone,
        conv2.weight[[i for i in range(64) if i != 3], 5] = 0  # which leads back to channel 3
    narrow = find_narrowing(network).network(network)
    assert isinstance(narrow, WideResNet)
    assert narrow.linear.in_features == 63
    assert narrow.stage3[1].conv1.out_channels == 63  # type: ignore[union-attr]
    torch.testing.assert_close(narrow(x), network(x))


def test_weights_that_leave_a_channel_unread_let_it_go() -> None:
    network, x = random_network("MnistCNN", 0)
    assert isinstance(network, MnistCNN)
    with torch.no_grad():
        network.conv3.weight[:, 2] = 0  # what conv2's channel 2 says is heard by no one
        network.conv2.weight[[0, 1, 3, 4, 5, 6], 4] = 0  # and 4 of conv1 by that channel alone
    narrow = find_narrowing(network).network(network)
    assert isinstance(narrow, MnistCNN)
    assert (narrow.conv1.out_channels, narrow.conv2.out_channels) == (4, 6)
    torch.testing.assert_close(narrow(x), network(x))


def test_a_network_that_reads_everything_or_says_nothing_stays_as_it_is() -> None:
    network, _ = random_network("MnistCNN", 0)
    assert find_narrowing(network).kept == {}
    assert find_narrowing(nn.Sequential(nn.Linear(2, 2))).kept == {}


@settings(deadline=None, max_examples=20)
@given(kinds, st.integers(0, 999))
def test_weights_and_optimizer_go_to_the_narrow_network_and_back(kind: str, seed: int) -> None:
    network, x = random_network(kind, seed)
    masks = make_masks(network, filter_l1(network, 0), 0.5, reading="filters", residual="remove")
    apply_masks(network, masks)
    both = NarrowCopy(network, find_narrowing(network, masks))
    before = {name: value.clone() for name, value in network.state_dict().items()}
    both.update_narrow()
    both.update_wide()
    for name, value in network.state_dict().items():
        assert torch.equal(value, before[name]), name

    # One step of the narrow network is, in the full shape, one step of the masked one.
    optimizers = []
    for model in (both.narrow, network):
        weights = [p for p in model.parameters() if p.dim() > 1]
        others = [p for p in model.parameters() if p.dim() <= 1]
        groups = [{"params": weights, "weight_decay": 0.1}, {"params": others}]
        optimizer = torch.optim.Adam(groups if seed % 2 else model.parameters(), 0.01)
        model.eval()
        model(x).square().sum().backward()
        optimizer.step()
        optimizers.append(optimizer)
    narrow_state, masked_state = (optimizer.state_dict() for optimizer in optimizers)
    apply_masks(network, masks)
    masked = {name: value.clone() for name, value in network.state_dict().items()}
    both.update_wide()
    for name, value in network.state_dict().items():
        torch.testing.assert_close(value, masked[name], atol=1e-7, rtol=1e-7, msg=name)
    wide = both.widen_optimizer_state(narrow_state, optimizers[0])
    for position, moments in masked_state["state"].items():
        other = wide["state"][position]
        torch.testing.assert_close(other["exp_avg"], moments["exp_avg"], atol=1e-9, rtol=1e-7)
    back = both.narrow_optimizer_state(wide, optimizers[0])
    for position, moments in narrow_state["state"].items():
        assert torch.equal(back["state"][position]["exp_avg_sq"], moments["exp_avg_sq"])
        assert torch.equal(back["state"][position]["step"], moments["step"])


class Grouped(nn.Module):
    """A convolution in two groups between two plain ones."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 8, 3)
        self.conv2 = nn.Conv2d(8, 8, 3, groups=2)
        self.conv3 = nn.Conv2d(8, 6, 3)
        self.linear = nn.Linear(6, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.conv3(self.conv2(self.conv1(x).relu()).relu()).relu()
        logits: torch.Tensor = self.linear(x.mean((2, 3)))
        return logits

    def channels(self) -> dict[str, Channels]:
        return {
            "conv1": Channels(readers=("conv2",)),
            "conv2": Channels(readers=("conv3",)),
            "conv3": Channels(readers=("linear",)),
        }


def test_grouped_convolutions_keep_their_channels() -> None:
    torch.manual_seed(0)
    network, x = Grouped(), torch.rand(2, 1, 9, 9)
    with torch.no_grad():
        network.conv3.weight[:, [0, 5]] = 0
        network.conv2.weight[:, 1] = 0
        network.linear.weight[:, 2] = 0
    narrow = find_narrowing(network).network(network)
    assert isinstance(narrow, Grouped)
    assert [len(c.weight) for c in (narrow.conv1, narrow.conv2, narrow.conv3)] == [8, 8, 5]
    torch.testing.assert_close(narrow(x), network(x))


class Mixing(MnistCNN):
    """A network in which silent channels count: a mean over channels."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.conv3(self.conv2(self.conv1(x).relu()).relu()).relu()
        logits: torch.Tensor = self.linear((x + x.mean(1, keepdim=True)).flatten(1))
        return logits


def test_networks_that_depend_on_their_number_of_channels_are_found_out() -> None:
    torch.manual_seed(0)
    x = torch.rand(2, 1, 28, 28)
    for kind, agrees in ((MnistCNN, True), (Mixing, False)):
        network = kind().eval()
        apply_masks(network, make_masks(network, filter_l1(network, 0), 0.5, reading="filters"))
        assert NarrowCopy(network, find_narrowing(network)).agrees(x) is agrees


def test_attacks_on_the_narrow_network_are_those_on_the_masked_one(
    trained: MnistCNN, digits: tuple[torch.Tensor, torch.Tensor]
) -> None:
    x, y = digits[0][:100], digits[1][:100]
    network = MnistCNN()
    network.load_state_dict(trained.state_dict())
    apply_masks(network, make_masks(network, filter_l1(network, 0), 0.5, reading="weights"))
    narrow = find_narrowing(network).network(network)
    attack = PGD(eps=0.1, steps=10, precision="float32")  # type: ignore[arg-type]
    masked_x, narrow_x = attack(network, x, y), attack(narrow, x, y)
    assert (masked_x != narrow_x).float().mean() < 0.02
    assert ((margin(network, masked_x, y) > 0) != (margin(network, narrow_x, y) > 0)).sum() <= 1


@settings(deadline=None, max_examples=30)
@given(st.floats(0, 0.8), st.integers(1, 20), st.integers(0, 999))
def test_kept_filters_are_rounded_up_to_a_multiple(amount: float, multiple: int, seed: int) -> None:
    network, _ = random_network("MnistCNN", seed)
    scores = filter_l1(network, 0)
    plain = make_masks(network, scores, amount)
    rounded = make_masks(network, scores, amount, keep_multiple_of=multiple)
    for name, score in scores.items():
        stays, before = (m[name].flatten(1).any(1) for m in (rounded, plain))
        assert (before <= stays).all(), "rounding up takes nothing away"
        count = int(stays.sum())
        assert count % multiple == 0 or count == len(score)
        assert count - int(before.sum()) < multiple
        if not stays.all() and (stays & ~before).any():
            assert score[~stays].max() <= score[stays & ~before].min()


@pytest.mark.parametrize("residual", ["keep", "silence", "remove"])
def test_what_is_left_of_a_stream_is_rounded_up_where_it_is_one_width(residual: Residual) -> None:
    torch.manual_seed(0)
    network = WideResNet(10, 2)
    amount = 0.2 if residual == "keep" else 0.5
    masks = make_masks(
        network,
        filter_l1(network, 0),
        amount,
        reading="filters",
        residual=residual,
        keep_multiple_of=8,
    )
    apply_masks(network, masks)
    narrow = find_narrowing(network).network(network)
    assert isinstance(narrow, WideResNet)
    widths = [block.conv1.out_channels for block in narrow.blocks().values()]
    streams = [narrow.stem.out_channels]
    streams += [block.conv2.out_channels for block in narrow.blocks().values()]
    assert all(width % 8 == 0 for width in widths)
    assert min(widths) < 32
    if residual == "remove":
        assert all(width % 8 == 0 for width in streams)
    elif residual == "silence":
        gone = [
            int((~masks[f"{n}.conv2.weight"].flatten(1).any(1)).sum()) for n in network.blocks()
        ]
        assert any(count % 8 for count in gone), "filters of a stream are not rounded one by one"


class Streams(nn.Module):
    """A stream whose writers have readers of their own, too, and one in groups among them."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 8, 3, padding=1)
        self.a = nn.Conv2d(8, 8, 3, padding=1)
        self.b = nn.Conv2d(8, 8, 3, padding=1)
        self.depthwise = nn.Conv2d(8, 8, 3, groups=8)
        self.linear = nn.Linear(8, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        a = self.a(self.stem(x))
        x = self.depthwise((a + self.b(a)).relu())
        logits: torch.Tensor = self.linear(x.mean((2, 3)))
        return logits

    def channels(self) -> dict[str, Channels]:
        both = Stream(name="both", readers=["depthwise"])  # type: ignore[arg-type]
        return {
            "stem": Channels(readers=("a",)),
            "a": Channels(readers=("b",), stream=both),
            "b": Channels(stream=both),
        }


def test_a_stream_s_writers_may_have_readers_of_their_own() -> None:
    torch.manual_seed(0)
    network, x = Streams(), torch.rand(2, 1, 9, 9)
    scores = filter_l1(network, 0)
    masks = make_masks(network, scores, 0.4, reading="filters", residual="remove")
    apply_masks(network, masks)
    assert not masks["a.weight"].flatten(1).any(1).all()
    assert "depthwise.weight" not in masks, "its weights do not stand in columns by channel"
    assert NarrowCopy(network.eval(), find_narrowing(network)).agrees(x)


def test_weights_are_not_rounded_up(network: MnistCNN) -> None:
    scores = weight_magnitude(network, 0)
    plain, rounded = (make_masks(network, scores, 0.9, keep_multiple_of=n) for n in (1, 8))
    assert all(torch.equal(plain[name], rounded[name]) for name in plain)


def test_the_narrow_copy_follows_the_wide_network_s_modes() -> None:
    network, _ = random_network("SmallCNN", 1)
    apply_masks(network, make_masks(network, filter_l1(network, 0), 0.4))
    both = NarrowCopy(network, find_narrowing(network))
    network.train()
    assert both.update_narrow().training
    network.eval()
    assert not any(module.training for module in both.update_narrow().modules())
