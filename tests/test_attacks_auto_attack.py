"""AutoAttack: as properties, against its formulas, and against the authors' code."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pyautoattack import AutoAttack as Original
from pyautoattack.autopgd_base import APGDAttack as OriginalAPGD
from pyautoattack.autopgd_base import APGDAttack_targeted as TargetedAPGD
from pyautoattack.square import SquareAttack
from torch import Tensor, nn

from prunerob.attacks import APGD, FAB, AutoAttack, NoAttack, Square
from prunerob.attacks.attack import has_bfloat16
from prunerob.attacks.auto_attack import survivors
from prunerob.attacks.auto_attack.apgd import checkpoints, dlr, targeted_dlr
from prunerob.attacks.auto_attack.fab import onto_plane
from prunerob.attacks.auto_attack.square import DRAWN_AT_ONCE, Windows
from prunerob.attacks.auto_attack.survivors import Hunt, Survivors
from prunerob.errors import UserError
from prunerob.networks import MnistCNN
from prunerob.noise import mix, uniform
from prunerob.pixels import Pixels
from prunerob.runs.weights import load_weights
from tests.conftest import SmallCNN
from tests.test_attacks_attack import problems

ZOO = Path(__file__).parent.parent / "zoo"


@st.composite
def hunts(draw: st.DrawFn) -> Hunt:
    eps = Pixels(draw(st.sampled_from([0.0, 1 / 255, 8 / 255, 0.3, 1.0])))
    restarts = draw(st.integers(1, 2))
    kind = draw(st.sampled_from(["APGD", "FAB", "Square"]))
    if kind == "APGD":
        loss = draw(st.sampled_from(["cross_entropy", "dlr", "targeted_dlr"]))
        steps = draw(st.integers(1, 12))
        return APGD(eps=eps, loss=loss, steps=steps, restarts=restarts, targets=2)
    if kind == "FAB":
        return FAB(eps=eps, steps=draw(st.integers(1, 5)), restarts=restarts, targets=2)
    queries = draw(st.integers(1, 70))
    return Square(eps=eps, queries=queries, restarts=restarts, edges=draw(st.booleans()))


@settings(deadline=None, max_examples=60)
@given(hunts(), problems(), st.booleans())
def test_examples_lie_in_the_ball_and_in_the_image_cube(
    attack: Hunt, problem: tuple[SmallCNN, Tensor, Tensor], own_eps: bool
) -> None:
    network, x, y = problem
    eps = torch.rand(len(x)) if own_eps else None
    x_adv = attack(network, x, y, eps=eps)
    radius = attack.eps if eps is None else eps.view(-1, 1, 1, 1)
    assert x_adv.dtype == torch.float32
    assert x_adv.shape == x.shape
    assert ((x_adv - x).abs() <= radius + 1e-6).all()
    assert x_adv.min() >= 0
    assert x_adv.max() <= 1
    assert not x_adv.requires_grad


@settings(deadline=None, max_examples=40)
@given(hunts(), problems(), st.booleans(), st.booleans())
def test_an_attack_leaves_everything_as_it_found_it(
    attack: Hunt, problem: tuple[SmallCNN, Tensor, Tensor], inference: bool, half: bool
) -> None:
    network, x, y = problem
    network.norm1.eval()
    network.linear.bias.requires_grad_(False)
    network.conv1.weight.grad = torch.ones_like(network.conv1.weight)
    modes = [module.training for module in network.modules()]
    state = copy.deepcopy(network.state_dict())
    images, random_state = x.clone(), torch.get_rng_state()
    with torch.inference_mode(inference), torch.autocast("cpu", torch.bfloat16, enabled=half):
        x_adv = attack(network, x.clone(), y.clone())
    assert [module.training for module in network.modules()] == modes
    assert not network.linear.bias.requires_grad
    assert all(torch.equal(state[name], now) for name, now in network.state_dict().items())
    assert torch.equal(network.conv1.weight.grad, torch.ones_like(network.conv1.weight))
    assert all(p.grad is None for n, p in network.named_parameters() if n != "conv1.weight")
    assert torch.equal(x, images)
    assert torch.equal(torch.get_rng_state(), random_state)
    assert torch.equal(x_adv, attack(network, x, y)), "the caller's modes changed the example"


@settings(deadline=None, max_examples=30)
@given(hunts(), problems())
def test_a_call_and_a_search_agree(attack: Hunt, problem: tuple[SmallCNN, Tensor, Tensor]) -> None:
    """The examples of a call are those that a search counts, whatever the batches."""
    network, x, y = problem
    key = torch.arange(len(x)) + 7
    lost = attack.fools(network, x, y, key=key, batch_size=len(x))
    wrong = network.eval()(attack(network, x, y, key=key)).argmax(1) != y
    assert torch.equal(lost, wrong)


class Rowwise(nn.Module):
    """A network whose arithmetic cannot depend on the batch: one image at a time."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.network(image) for image in x.split(1)])


@pytest.mark.parametrize(
    "attack",
    [
        APGD(eps=Pixels(0.1), steps=20),
        APGD(eps=Pixels(0.1), steps=10, loss="targeted_dlr", targets=2),
        FAB(eps=Pixels(0.1), steps=8, targets=2, restarts=2),
        Square(eps=Pixels(0.1), queries=90),
    ],
    ids=lambda attack: type(attack).__name__,
)
def test_an_image_s_example_does_not_depend_on_the_others(
    trained: MnistCNN, digits: tuple[Tensor, Tensor], attack: Hunt
) -> None:
    x, y = digits[0][:12], digits[1][:12]
    network, key = Rowwise(trained), torch.arange(12) + 100
    together = attack(network, x, y, key=key)
    some = torch.tensor([9, 2, 5])
    assert torch.equal(attack(network, x[some], y[some], key=key[some]), together[some])
    assert torch.equal(attack(network, x[5:6], y[5:6], key=key[5:6]), together[5:6])
    lost = attack.fools(network, x, y, key=key, batch_size=12)
    assert torch.equal(attack.fools(network, x, y, key=key, batch_size=5), lost)


def test_checkpoints_are_the_paper_s() -> None:
    assert list(checkpoints(100)) == [22, 41, 57, 70, 80, 87, 93, 99]
    assert list(checkpoints(100).values()) == [22, 19, 16, 13, 10, 7, 6, 6]
    assert checkpoints(1) == {1: 1}


def test_dlr_is_the_formula() -> None:
    logits, y = torch.tensor([[5.0, 3.0, 2.0, -1.0], [1.0, 4.0, 0.0, 2.0]]), torch.tensor([0, 3])
    assert torch.allclose(
        dlr(logits, y), torch.tensor([-(5.0 - 3) / (5 - 2), -(2.0 - 4) / (4 - 1)])
    )
    expected = torch.tensor([-(5.0 - 2) / (5 - (2 - 1) / 2), -(2.0 - 1) / (4 - (1 + 0) / 2)])
    assert torch.allclose(targeted_dlr(logits, y, torch.tensor([2, 0])), expected)
    scaled = targeted_dlr(100 * logits, y, torch.tensor([2, 0]))
    assert torch.allclose(scaled, expected, rtol=1e-5)


@settings(deadline=None, max_examples=60)
@given(st.integers(0, 2**31), st.floats(-3, 3))
def test_a_step_onto_the_plane_is_the_smallest(seed: int, value: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    point, slope = (torch.rand(1, 30, generator=generator) for _ in range(2))
    point = torch.where(point < 0.3, 0, point)
    slope = (slope - 0.5) * (slope > 0.2)
    step, length = onto_plane(point, slope, torch.tensor([value]))
    there = point + step
    assert there.min() >= -1e-6
    assert there.max() <= 1 + 1e-6
    assert length == step.abs().max().clamp(min=1e-8)
    reached = value + (slope * step).sum().item()
    if abs(reached) > 1e-4:  # not within [0, 1]: then all that can go, goes
        assert reached * value > 0
        end = (slope > 0).float() if value < 0 else (slope < 0).float()
        assert torch.allclose(there[slope != 0], end[slope != 0])
        return
    shorter = 0.99 * length * slope.sign() * (-1 if value > 0 else 1)
    best = value + (slope * ((point + shorter).clamp(0, 1) - point)).sum().item()
    assert value == 0 or abs(value) < 1e-6 or best * value > -1e-6, "a smaller step gets there"


def test_windows_are_squares_and_shrink_on_schedule(network: MnistCNN) -> None:
    x = torch.rand(200, 1, 28, 28)
    images = Survivors(
        network.eval(), x, torch.zeros(200).long(), torch.full((200,), 0.3), torch.arange(200), 200
    )
    for edges in (False, True):
        windows = Windows(images, edges=edges)
        where, up = windows.place(windows.draw(images.key, 0)[:, 3], 9)
        flat = torch.zeros(200, 784).scatter_(1, where, up.float() * 2 - 1)
        marked = images.flat.unflatten(flat)[:, 0]
        assert (marked.abs().sum((1, 2)) == 81).all()
        assert ((marked.abs().amax(2).sum(1) == 9) & (marked.abs().amax(1).sum(1) == 9)).all()
        assert set(marked.flatten(1).sum(1).tolist()) == {-81, 81}
        assert marked[:, -1].any() == edges
    sides = list(Square().sides(x.shape))
    changes = [q for q in range(1, 5000) if sides[q] != sides[q - 1]]
    assert changes == [11, 51, 201, 501, 1001, 2001, 4001]
    assert [sides[q] for q in (0, *changes)] == [25, 18, 13, 9, 6, 4, 3, 2]


def test_what_is_lost_counts_each_iterate(trained: MnistCNN, digits: tuple[Tensor, Tensor]) -> None:
    """AutoAttack loses what any of its parts loses, and run one by one they are the whole."""
    x, y = digits[0][:6], digits[1][:6]
    attack, key = AutoAttack(eps=Pixels(0.1)), torch.arange(6)
    whole = attack.fools(trained, x, y, key=key, batch_size=6)
    left = torch.arange(6)
    for _, stage in attack.stages:
        by_part = stage.fools(trained, x[left], y[left], key=key[left], batch_size=6)
        left = left[~by_part]
    assert torch.equal((~whole).nonzero().squeeze(1), left)
    assert [name for name, _ in attack.stages] == ["APGD-CE", "APGD-T", "FAB-T", "Square"]
    alone = attack.stages[0][1].fools(trained, x, y, key=key, batch_size=6)
    assert (whole | ~alone).all()


class Answers(nn.Module):
    """Logits that are a linear function of the image."""

    def __init__(self, classes: int, factor: float = 1.0) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.linear = nn.Linear(16, classes)
        self.factor = factor

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.linear(x.flatten(1)) * self.factor
        return logits


def test_too_few_classes_are_one_clear_line() -> None:
    x, y = torch.rand(1, 1, 4, 4), torch.zeros(1).long()
    for classes in (2, 3):
        with pytest.raises(UserError, match=f"4 classes or more, and the network has {classes}"):
            AutoAttack()(Answers(classes), x, y)
    with pytest.raises(UserError, match="dlr needs 3 classes"):
        APGD(loss="dlr")(Answers(2), x, y)
    for attack in (APGD(steps=3), FAB(steps=3), Square(queries=3)):
        assert attack(Answers(2), x, y).shape == x.shape


def test_at_eps_0_the_verdict_is_the_image_s() -> None:
    network, x = Answers(4), torch.rand(9, 1, 4, 4)
    y = torch.randint(0, 4, (9,))
    attack = AutoAttack(eps=Pixels(0))
    assert torch.equal(attack(network, x, y), x)
    lost = attack.fools(network, x, y, key=torch.arange(9), batch_size=4)
    assert torch.equal(lost, network(x).argmax(1) != y)


def test_answers_that_are_no_numbers_are_wrong() -> None:
    x, y = torch.rand(3, 1, 4, 4), torch.zeros(3).long()
    network = Answers(4, factor=torch.nan)
    assert AutoAttack().fools(network, x, y, key=torch.arange(3), batch_size=3).all()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: APGD(steps=0), "steps of APGD: 0 is below 1"),
        (lambda: APGD(loss="hinge"), "loss of APGD: 'hinge'"),  # type: ignore[arg-type]
        (lambda: APGD(rho=1.0), "rho of APGD"),
        (lambda: FAB(beta=1.5), "beta of FAB"),
        (lambda: FAB(targets=0), "targets of FAB: 0 is below 1"),
        (lambda: Square(queries=0), "queries of Square: 0 is below 1"),
        (lambda: Square(p=0.0), "p of Square"),
        (lambda: AutoAttack(eps=3), "outside"),  # type: ignore[arg-type]
    ],
)
def test_wrong_settings_are_refused(make: type[Hunt], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


def zoo(name: str) -> MnistCNN:
    network = MnistCNN()
    load_weights(network, ZOO / f"{name}.safetensors")
    return network.eval()


NAMES = {"APGD-CE": "apgd-ce", "APGD-T": "apgd-t", "FAB-T": "fab-t", "Square": "square"}


def by_original(network: nn.Module, x: Tensor, y: Tensor, *attacks: str, seed: int = 0) -> Tensor:
    """Where the authors' code finds an example, bool, (N,)."""
    original = Original(network, attacks=list(attacks), eps=0.3, seed=seed, version="custom")
    original.apgd.n_restarts = original.fab.n_restarts = 1
    x_adv, _ = original.run_standard_evaluation(x, y, batch_size=250)
    return is_wrong_about(network, x_adv, y)


@torch.no_grad()
def is_wrong_about(network: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    wrong: Tensor = network(x).argmax(1) != y
    return wrong


def test_fab_is_the_original_s(digits: tuple[Tensor, Tensor]) -> None:
    """FAB draws nothing: the same images are lost, but for rounding."""
    network, (x, y) = zoo("mnist_pgd_dense"), (digits[0][:30], digits[1][:30])
    original = Original(network, attacks=["fab-t"], eps=0.3, seed=0, version="custom")
    original.fab.n_restarts, original.fab.n_target_classes, original.fab.n_iter = 1, 3, 30
    x_adv, _ = original.run_standard_evaluation(x, y)
    theirs = is_wrong_about(network, x_adv, y)
    ours = FAB(targets=3, steps=30).fools(network, x, y, key=torch.arange(30), batch_size=16)
    assert 5 <= theirs.sum() <= 25
    assert (ours != theirs).sum() <= 1


@pytest.mark.parametrize("loss", ["cross_entropy", "targeted_dlr"])
def test_apgd_is_the_original_s(
    loss: Literal["cross_entropy", "targeted_dlr"],
    digits: tuple[Tensor, Tensor],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """From the same starts the same images are lost, but for rounding."""
    network, (x, y) = zoo("mnist_pgd_tensorflow_dense"), (digits[0][:100], digits[1][:100])
    right = ~is_wrong_about(network, x, y)
    key = torch.arange(100)
    starts = uniform(mix(key[right], loss, 0, 0), x.shape[1:])
    monkeypatch.setattr(torch, "rand", lambda shape: starts)
    if loss == "targeted_dlr":
        original = TargetedAPGD(network, n_iter=40, n_target_classes=1, eps=0.3, device="cpu")
    else:
        original = OriginalAPGD(network, n_iter=40, eps=0.3, device="cpu")
    theirs = is_wrong_about(network, original.perturb(x, y), y)
    attack = APGD(loss=loss, steps=40, targets=1)
    # A container has no rewrite: the same arithmetic as theirs.
    ours = attack.fools(nn.Sequential(network), x, y, key=key, batch_size=100)
    assert theirs.sum() > (~right).sum()
    assert (ours != theirs).sum() <= 1


class OurWindows(SquareAttack):
    """The authors' Square attack with our stripes and windows, of one key, for all images.

    Args:
        network: to attack.
        key: int64, (1,).
        queries: number of windows.
    """

    def __init__(self, network: nn.Module, key: Tensor, queries: int) -> None:
        super().__init__(
            network, n_queries=queries, eps=0.3, seed=0, device="cpu", resc_schedule=False
        )
        key = mix(key, "Square", 0)
        stripes = uniform(mix(key, "stripes"), (1, 1, 28))
        blocks = range(0, queries + 1, DRAWN_AT_ONCE)
        noise = torch.cat([uniform(mix(key, first), (DRAWN_AT_ONCE, 3))[0] for first in blocks])
        # Each is asked for in turn: row, column, sign.
        self.noise = iter([stripes, *noise[1:].flatten()])

    def random_choice(self, shape: Sequence[int]) -> Tensor:
        return torch.where(next(self.noise) >= 0.5, 1.0, -1.0).expand(*shape)

    def random_int(self, low: int = 0, high: int = 1, shape: Sequence[int] = (1,)) -> Tensor:
        return (low + (high - low) * next(self.noise)).long().expand(*shape)


def test_square_is_the_original_s(digits: tuple[Tensor, Tensor]) -> None:
    """With the same stripes and windows the same images are lost, but for rounding."""
    network, (x, y) = zoo("mnist_pgd_dense"), (digits[0][:50], digits[1][:50])
    key = torch.tensor([17])
    theirs = is_wrong_about(network, OurWindows(network, key, 300).perturb(x, y), y)
    ours, inclusive = (
        Square(queries=300, edges=edges).fools(network, x, y, key=key.expand(50), batch_size=50)
        for edges in (False, True)
    )
    assert (ours != theirs).sum() <= 1
    assert (inclusive != theirs).sum() > 1, "the last row and column make a difference"


@pytest.mark.skipif(not has_bfloat16("cpu"), reason="no fast path without bfloat16")
def test_rough_answers_change_nothing(
    digits: tuple[Tensor, Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Square's fast path loses the images that float32 alone loses, with the same examples."""
    network, (x, y) = zoo("mnist_pgd_dense"), (digits[0][:50], digits[1][:50])
    quick = Square(queries=300)(network, x, y)
    monkeypatch.setattr(survivors, "has_bfloat16", lambda device: False)
    plain = Square(queries=300)(network, x, y)
    lost, lost_quick = is_wrong_about(network, plain, y), is_wrong_about(network, quick, y)
    assert lost.sum() > is_wrong_about(network, x, y).sum()
    assert (lost_quick != lost).sum() <= 1
    assert (quick == plain).flatten(1).all(1).float().mean() > 0.8, "the search went other ways"


def test_the_suite_is_the_original_s(
    trained: MnistCNN, digits: tuple[Tensor, Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    """At an eps that some images survive; both with fewer targets, steps and queries."""
    x, y, eps = digits[0][:40], digits[1][:40], Pixels(0.06)
    original = Original(trained, eps=0.06, seed=0)
    original.apgd_targeted.n_target_classes = original.fab.n_target_classes = 1
    original.fab.n_iter, original.square.n_queries = 20, 100
    x_adv, _ = original.run_standard_evaluation(x, y)
    theirs = is_wrong_about(trained, x_adv, y)
    stages = (
        ("APGD-CE", APGD(eps=eps)),
        ("APGD-T", APGD(eps=eps, loss="targeted_dlr", targets=1)),
        ("FAB-T", FAB(eps=eps, targets=1, steps=20)),
        ("Square", Square(eps=eps, queries=100)),
    )
    monkeypatch.setattr(AutoAttack, "stages", stages)
    ours = AutoAttack(eps=eps).fools(trained, x, y, key=torch.arange(40), batch_size=40)
    assert 4 <= theirs.sum() <= 36
    assert (ours != theirs).sum() <= 1


def test_a_fallen_network_falls(digits: tuple[Tensor, Tensor]) -> None:
    network, (x, y) = zoo("mnist_fgsm_dense"), (digits[0][:30], digits[1][:30])
    for attack in (AutoAttack(), Square(queries=2000), FAB(targets=3)):
        assert attack.fools(network, x, y, key=torch.arange(30), batch_size=30).float().mean() > 0.9
    assert torch.equal(NoAttack()(network, x, y), x)


@pytest.mark.slow
@pytest.mark.timeout(14400)
@pytest.mark.parametrize(
    "name", ["mnist_pgd_tensorflow_dense", "mnist_pgd_dense", "mnist_standard_dense"]
)
def test_it_is_the_original(name: str) -> None:
    """Where gradients are masked, starts decide about an image: seeds count together."""
    from prunerob.data import MNIST

    _, test = MNIST().load()
    x, y = test.pixels[:500].float() / 255, test.labels[:500]
    network, seeds = zoo(name), range(2)
    ours, theirs = torch.zeros(2, len(seeds), 500, dtype=torch.bool)
    for stage, attack in AutoAttack().stages:
        mine, original = torch.zeros(2, len(seeds), 500, dtype=torch.bool)
        for seed in seeds:
            key = mix(torch.arange(500), seed)
            mine[seed] = attack.fools(network, x, y, key=key, batch_size=250)
            original[seed] = by_original(network, x, y, NAMES[stage], seed=seed)
        points = 100 * float(mine.float().mean() - original.float().mean())
        agreed = float((mine.any(0) == original.any(0)).float().mean())
        print(f"{name}, {stage}: agreement {agreed:.3f}, {points:+.1f} points lost")
        assert points >= -1, f"{stage} is weaker than the original"
        ours, theirs = ours | mine, theirs | original
    points = 100 * float(ours.float().mean() - theirs.float().mean())
    assert points >= -0.3, "weaker than the original"
    assert (ours.any(0) == theirs.any(0)).float().mean() >= 0.99
