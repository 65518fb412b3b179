"""Masks of filters."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from prunerob.errors import UserError
from prunerob.networks import MnistCNN, WideResNet
from prunerob.pruning import filter_l1, random_filters, weight_magnitude
from prunerob.pruning.counts import count_layers, count_shares
from prunerob.pruning.cut import make_masks
from prunerob.pruning.filters import ranked
from prunerob.pruning.masks import Reading, apply_masks
from prunerob.pruning.scores import without
from tests.conftest import SmallCNN, amounts, random_network, readings, seeds


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
@given(seeds, st.integers(1, 9), st.sampled_from([filter_l1, random_filters]))
def test_uniform_takes_the_lowest_tenths_of_every_layer(
    seed: int, tenths: int, criterion: Callable[..., dict[str, torch.Tensor]]
) -> None:
    torch.manual_seed(seed)
    network = MnistCNN(filters=(10, 20, 30))
    scores = criterion(network, seed)
    masks = make_masks(network, scores, tenths / 10, reading="filters", budget="uniform")
    for name, score in scores.items():
        lowest = sorted(range(len(score)), key=lambda i: (score[i].item(), i))
        gone = set((~masks[name].flatten(1).any(1)).nonzero().flatten().tolist())
        assert gone == set(lowest[: len(score) * tenths // 10]), name


def test_uniform_on_streams_ranks_their_channels_and_grows(network: MnistCNN) -> None:
    residual = WideResNet(depth=10, widen_factor=1)
    scores = filter_l1(residual, 0)
    args = {"reading": "filters", "budget": "uniform", "residual": "remove"}
    masks = make_masks(residual, scores, 0.5, **args)  # type: ignore[arg-type]
    left = {n: int(masks[n].flatten(1).any(1).sum()) for n in scores}
    assert left == {n: len(score) // 2 for n, score in scores.items()}
    before = None
    for amount in (0.2, 0.5, 0.8):  # as gradual pruning needs it
        masks = make_masks(network, filter_l1(network, 0), amount, budget="uniform")
        apply_masks(network, masks)
        assert before is None or not any((masks[n] & ~before[n]).any() for n in masks)
        before = masks


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
