"""Criteria and masks as properties: what is asked for is what is pruned, and it stays pruned."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from prunerob.errors import UserError
from prunerob.networks import MnistCNN, ResNet18, WideResNet
from prunerob.networks.channels import writers
from prunerob.pruning import Pruning, filter_l1, random_filters, random_weights, weight_magnitude
from prunerob.pruning.counts import count_layers, count_shares
from prunerob.pruning.criteria import without
from prunerob.pruning.cut import make_masks
from prunerob.pruning.filters import ranked
from prunerob.pruning.hold import Hold
from prunerob.pruning.masks import Reading, Residual, apply_masks, emptied_layers
from tests.conftest import SmallCNN

seeds = st.integers(0, 2**31)
amounts = st.floats(0, 0.97)
readings = st.sampled_from(["filters", "weights", "parameters"])


def random_network(seed: int) -> SmallCNN | MnistCNN:
    torch.manual_seed(seed)
    if seed % 2:
        return SmallCNN(1 + seed % 3, 9)
    return MnistCNN(filters=(3 + seed % 5, 8, 5))


@settings(deadline=None, max_examples=80)
@given(seeds, amounts, st.sampled_from([weight_magnitude, random_weights]), st.booleans())
def test_the_share_of_weights_is_exact(
    seed: int, amount: float, criterion: Callable[..., dict[str, torch.Tensor]], ties: bool
) -> None:
    network = random_network(seed)
    if ties:
        network.conv2.weight.data.fill_(0.01)
    scores = criterion(network, seed)
    masks = make_masks(network, scores, amount)
    n = sum(score.numel() for score in scores.values())
    pruned = sum(int((~mask).sum()) for mask in masks.values())
    assert pruned == round(amount * n)
    assert count_shares(network, masks, scores).weights == pruned / n
    assert set(masks) == set(scores)
    assert not any("bias" in name or "norm" in name for name in masks)
    # Whatever stays scores at least as high as whatever goes, over all layers together.
    stays = torch.cat([scores[name][mask] for name, mask in masks.items()])
    goes = torch.cat([scores[name][~mask] for name, mask in masks.items()])
    assert not len(goes) or not len(stays) or goes.max() <= stays.min()


def test_ties_go_by_position(network: MnistCNN) -> None:
    for parameter in network.parameters():
        parameter.data.fill_(0.5)
    masks = make_masks(network, weight_magnitude(network, 0), 0.25)
    flat = torch.cat([mask.flatten() for mask in masks.values()])
    assert not flat[: round(0.25 * len(flat))].any()
    assert flat[round(0.25 * len(flat)) :].all()


@settings(deadline=None, max_examples=80)
@given(seeds, amounts, readings, st.sampled_from([filter_l1, random_filters]))
def test_filters_go_in_rank_order_until_the_share_is_first_reached(
    seed: int,
    amount: float,
    reading: Reading,
    criterion: Callable[..., dict[str, torch.Tensor]],
) -> None:
    network = random_network(seed)
    scores = criterion(network, seed)
    # What can be reached at most: every layer down to its best filter.
    most = {name: torch.zeros(len(score), dtype=torch.bool) for name, score in scores.items()}
    for name, score in scores.items():
        most[name][max(range(len(score)), key=lambda j: (score[j].item(), j))] = True
    if by_hand(network, most)[reading] < amount - 1e-12:
        with pytest.raises(UserError, match="cannot be pruned and leave filters in every layer"):
            make_masks(network, scores, amount, reading=reading)
        return
    masks = make_masks(network, scores, amount, reading=reading)
    share = getattr(count_shares(network, masks, scores), reading)
    assert share >= amount - 1e-12

    # Rank by hand, one filter at a time, until the share is reached.
    kept = {name: torch.ones(len(score), dtype=torch.bool) for name, score in scores.items()}
    ranking = sorted(
        (float(value), place, name, i)
        for place, (name, score) in enumerate(scores.items())
        for i, value in enumerate(score.tolist())
        if i != max(range(len(score)), key=lambda j: (score[j].item(), j))
    )
    for _, _, name, i in ranking:
        if by_hand(network, kept)[reading] >= amount - 1e-12:
            break
        kept[name][i] = False
    for name, keep in kept.items():
        assert torch.equal(masks[name].flatten(1).any(1), keep), name
    assert share == pytest.approx(by_hand(network, kept)[reading])


def by_hand(network: SmallCNN | MnistCNN, kept: dict[str, torch.Tensor]) -> dict[str, float]:
    """The three readings, from the shapes of the network with the channels taken out."""
    convolutions = [network.get_submodule(name.removesuffix(".weight")) for name in kept]
    before = after = 0
    channels_in = 1.0
    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.Linear | nn.BatchNorm2d):
            before += sum(p.numel() for p in module.parameters())
        if isinstance(module, nn.Conv2d):
            out = int(
                kept[next(n for n in kept if network.get_parameter(n) is module.weight)].sum()
            )
            after += round(out * (module.weight[0].numel() * channels_in + 1))
            channels_in = out / module.out_channels
        elif isinstance(module, nn.BatchNorm2d):
            after += 2 * out
        elif isinstance(module, nn.Linear):
            after += round(module.weight.numel() * channels_in) + module.out_features
    gone = sum(int((~k).sum()) for k in kept.values())
    sizes = [c.weight[0].numel() for c in convolutions]  # type: ignore[union-attr, index]
    weights = sum(size * int((~k).sum()) for size, k in zip(sizes, kept.values(), strict=True))
    ranked = sum(size * len(k) for size, k in zip(sizes, kept.values(), strict=True))
    return {
        "filters": gone / sum(len(k) for k in kept.values()),
        "weights": weights / ranked,
        "parameters": 1 - after / before,
    }


@settings(deadline=None, max_examples=40)
@given(seeds, st.floats(0.05, 0.8))
def test_a_pruned_filter_is_silent_whatever_its_biases_were(seed: int, amount: float) -> None:
    network = random_network(seed).eval()
    for parameter in network.parameters():
        parameter.data.normal_()
    masks = make_masks(network, filter_l1(network, 0), amount, reading="filters")
    apply_masks(network, masks)
    x = torch.rand(4, network.conv1.in_channels, *((28, 28) if seed % 2 == 0 else (9, 9)))
    out: dict[str, torch.Tensor] = {}
    for name in network.channels():
        served = network.channels()[name].norms
        owner = network.get_submodule(served[0] if served else name)
        owner.register_forward_hook(lambda m, a, o, name=name: out.update({name: o}))
    logits = network(x)
    for name, value in out.items():
        silent = ~masks[f"{name}.weight"].flatten(1).any(1)
        assert (value[:, silent] == 0).all()
        assert silent.sum() < len(silent), "a layer keeps a filter"
    # What reads a silent channel is masked too, because it does nothing: whatever stood there.
    for name, mask in masks.items():
        if mask.dim() > 1:
            rows = mask.flatten(1).any(1)
            unread = ~mask & rows.view(-1, *[1] * (mask.dim() - 1))
            network.get_parameter(name).data[unread] = torch.randn(int(unread.sum()))
    assert torch.equal(network(x), logits)
    layers = count_layers(network, masks)
    assert sum(a.parameters_before - a.parameters_after for a in layers) == sum(
        int((~mask).sum()) for mask in masks.values()
    )


# Residual networks


@pytest.mark.parametrize("make", [lambda: WideResNet(16, 1), lambda: ResNet18(6)])
@settings(deadline=None, max_examples=25)
@given(seeds, amounts, readings, st.sampled_from(["keep", "silence", "remove"]))
def test_the_share_counts_all_filters_whichever_are_ranked(
    make: Callable[[], WideResNet | ResNet18],
    seed: int,
    amount: float,
    reading: Reading,
    residual: Residual,
) -> None:
    torch.manual_seed(seed)
    network = make()
    channels = network.channels()
    scores = filter_l1(network, 0)
    amount *= 0.3 if residual == "keep" else 0.8  # more is there not to go
    masks = make_masks(network, scores, amount, reading=reading, residual=residual)
    convolutions = {n: m.weight for n, m in network.named_modules() if isinstance(m, nn.Conv2d)}
    gone = {
        name: ~masks[f"{name}.weight"].flatten(1).any(1)
        if f"{name}.weight" in masks
        else torch.zeros(len(weight), dtype=torch.bool)
        for name, weight in convolutions.items()
    }
    filters = sum(len(weight) for weight in convolutions.values())
    weights = sum(weight.numel() for weight in convolutions.values())
    shares = count_shares(network, masks, scores)
    assert shares.filters == sum(int(g.sum()) for g in gone.values()) / filters
    lost = sum(int(g.sum()) * convolutions[name][0].numel() for name, g in gone.items())
    assert shares.weights == lost / weights
    assert getattr(shares, reading) >= amount - 1e-12
    for name, leads in channels.items():
        if residual == "keep" and leads.stream is not None:
            assert not gone[name].any()
        elif residual == "remove" and leads.stream is not None:
            group = writers(channels)[leads.stream]
            assert all(torch.equal(gone[name], gone[other]) for other in group)
        # What was ranked by itself goes below one threshold over all layers.
        assert not gone[name].all()
    if residual == "silence":
        stays = torch.cat([scores[f"{n}.weight"][~g] for n, g in gone.items()])
        best = torch.stack([scores[f"{n}.weight"].max() for n in gone])
        goes = torch.cat([scores[f"{n}.weight"][g] for n, g in gone.items()])
        others = stays[~torch.isin(stays, best)]
        assert not len(goes) or not len(others) or goes.max() <= others.min()


def test_a_stream_s_channels_are_ranked_by_the_mean_over_all_their_weights() -> None:
    torch.manual_seed(0)
    network = WideResNet(10, 2)
    group = ["stage3.0.conv2", "stage3.0.shortcut"]
    with torch.no_grad():
        for module in network.modules():
            if isinstance(module, nn.Conv2d):
                module.weight.fill_(1.0)
        for name, value in zip(group, (0.5, 0.1), strict=True):
            network.get_submodule(name).weight[7] = value  # type: ignore[index]
        network.stage2[0].conv1.weight[3] = 0.4  # type: ignore[union-attr, index]
    counts = [128 * 9, 64]
    mean = (0.5 * counts[0] + 0.1 * counts[1]) / sum(counts)
    assert 0.47 < mean < 0.49
    scores = filter_l1(network, 0)

    def pruned(amount: float) -> set[str]:
        masks = make_masks(network, scores, amount, reading="filters", residual="remove")
        return {n for n, m in masks.items() if m.dim() == 4 and not m.flatten(1).any(1).all()}

    filters = sum(len(score) for score in scores.values())
    assert pruned(1 / filters) == {"stage2.0.conv1.weight"}
    assert pruned(2 / filters) == {"stage2.0.conv1.weight", *(f"{name}.weight" for name in group)}


def test_what_is_said_of_residual_streams_must_leave_something_to_prune() -> None:
    network = WideResNet(10, 1)
    scores = filter_l1(network, 0)
    inner = {name: score for name, score in scores.items() if name.endswith("conv1.weight")}
    others = {name: score for name, score in scores.items() if name not in inner}
    assert ranked(network, scores, "keep").keys() == inner.keys()
    assert ranked(network, scores, "silence").keys() == scores.keys()
    assert ranked(network, scores, "remove").keys() == scores.keys()
    # Without one of those that write to it, a stream's channels cannot go.
    some = without(scores, ["stage2.0.shortcut"])
    assert "stage2.0.conv2.weight" in ranked(network, some, "silence")
    assert "stage2.0.conv2.weight" not in ranked(network, some, "remove")
    with pytest.raises(UserError, match=r"pruning\.residual: keep leaves no filters"):
        ranked(network, others, "keep")
    with pytest.raises(UserError, match=r"at most 0\.4\d* can; pruning\.residual"):
        make_masks(WideResNet(), filter_l1(WideResNet(), 0), 0.5)
    # Weights have no streams.
    weights = weight_magnitude(network, 0)
    assert ranked(network, weights, "keep") is weights


def test_class_blinded_pruning_takes_one_threshold(network: MnistCNN) -> None:
    network.conv1.weight.data *= 100
    masks = make_masks(network, weight_magnitude(network, 0), 0.9)
    assert masks["conv1.weight"].float().mean() > 0.9
    assert masks["conv3.weight"].float().mean() < 0.2


def test_filter_scores_do_not_depend_on_a_filter_s_size(network: MnistCNN) -> None:
    for parameter in network.parameters():
        parameter.data.fill_(-0.25)
    for score in filter_l1(network, 0).values():
        torch.testing.assert_close(score, torch.full_like(score, 0.25))
    assert set(filter_l1(network, 0)) == {"conv1.weight", "conv2.weight", "conv3.weight"}


@pytest.mark.parametrize("criterion", [weight_magnitude, filter_l1])
def test_keep_per_layer_is_a_floor(network: MnistCNN, criterion: Callable[..., object]) -> None:
    network.conv1.weight.data /= 1000
    scores = criterion(network, 0)
    masks = make_masks(network, scores, 0.7, keep_per_layer=0.25)  # type: ignore[arg-type]
    for layer in ("conv1", "conv2", "conv3"):
        mask = masks[f"{layer}.weight"].flatten(1)
        kept = mask.any(1) if criterion is filter_l1 else mask
        assert kept.sum() >= math.ceil(0.25 * kept.numel())
    with pytest.raises(UserError, match=r"at most 0\.7"):
        make_masks(network, scores, 0.9, keep_per_layer=0.25)  # type: ignore[arg-type]


def test_layers_can_be_left_out(network: MnistCNN) -> None:
    scores = without(weight_magnitude(network, 0), ["linear", "conv1"])
    assert set(scores) == {"conv2.weight", "conv3.weight"}
    with pytest.raises(UserError, match=r"no prunable layer 'conv9'; there are conv1, conv2"):
        without(weight_magnitude(network, 0), ["conv9"])
    with pytest.raises(UserError, match="leaves out every layer"):
        without(filter_l1(network, 0), ["conv1", "conv2", "conv3"])


def test_an_emptied_layer_is_found(network: MnistCNN) -> None:
    network.conv1.weight.data.zero_()
    masks = make_masks(network, weight_magnitude(network, 0), 0.9)
    assert emptied_layers(masks) == ["conv1"]


def test_a_network_without_a_channel_map_is_told_so() -> None:
    with pytest.raises(UserError, match="Sequential does not say where its channels lead"):
        filter_l1(nn.Sequential(nn.Conv2d(1, 2, 3)), 0)


def test_random_criteria_follow_the_seed(network: MnistCNN) -> None:
    for criterion in (random_weights, random_filters):
        a, b, c = (criterion(network, seed)["conv2.weight"] for seed in (1, 1, 2))
        assert torch.equal(a, b)
        assert not torch.equal(a, c)


def test_masking_sets_zero_even_what_is_not_finite(network: MnistCNN) -> None:
    network.conv1.weight.data[0] = math.inf
    network.conv1.weight.data[1] = math.nan
    masks = {"conv1.weight": torch.ones_like(network.conv1.weight, dtype=torch.bool)}
    masks["conv1.weight"][:2] = False
    apply_masks(network, masks)
    assert (network.conv1.weight[:2] == 0).all()


@settings(deadline=None, max_examples=12)
@given(
    seeds,
    st.sampled_from([weight_magnitude, filter_l1]),
    st.sampled_from(["sgd", "adam", "rmsprop"]),
)
def test_pruned_stays_pruned_through_momentum_and_weight_decay(
    seed: int, criterion: Callable[..., object], kind: str
) -> None:
    network = random_network(seed)
    optimizer: torch.optim.Optimizer
    if kind == "sgd":
        optimizer = torch.optim.SGD(network.parameters(), 0.1, momentum=0.9, weight_decay=0.1)
    elif kind == "adam":
        optimizer = torch.optim.Adam(network.parameters(), 0.1, weight_decay=0.1)
    else:
        optimizer = torch.optim.RMSprop(network.parameters(), 0.1, momentum=0.9)

    def step() -> None:
        optimizer.zero_grad()
        shape = (28, 28) if seed % 2 == 0 else (9, 9)
        network(torch.rand(4, network.conv1.in_channels, *shape)).square().sum().backward()
        optimizer.step()

    step()  # momentum that would bring pruned weights back
    masks = make_masks(network, criterion(network, 0), 0.5)  # type: ignore[arg-type]
    Hold(network, masks).follow(optimizer)
    before = {name: p.clone() for name, p in network.named_parameters()}
    for _ in range(3):
        step()
        for name, mask in masks.items():
            assert (network.get_parameter(name)[~mask] == 0).all()
    assert any((network.get_parameter(n)[m] != before[n][m]).any() for n, m in masks.items())


def test_layers_are_counted(network: MnistCNN) -> None:
    masks = make_masks(network, filter_l1(network, 0), 0.6)
    layers = count_layers(network, masks)
    assert [layer.name for layer in layers] == ["conv1", "conv2", "conv3", "linear"]
    assert sum(layer.parameters_before for layer in layers) == 178_986
    gone = sum(layer.parameters_before - layer.parameters_after for layer in layers)
    shares = count_shares(network, masks, filter_l1(network, 0))
    assert shares.parameters == gone / 178_986
    assert shares.parameters > shares.weights >= 0.6
    channels = sum(layer.channels_before - layer.channels_after for layer in layers)
    assert shares.filters == channels / 160


@pytest.mark.parametrize("amount", [1.0, -0.1, 1.5, math.nan])
def test_amounts_outside_the_range_are_refused(amount: float) -> None:
    with pytest.raises(UserError, match=r"pruning.amount: .* outside \[0, 1\)"):
        Pruning(epoch=1, amount=amount)
