"""Attacks: against foolbox, and as properties over random networks, shapes and settings."""

from __future__ import annotations

import copy
import warnings

import foolbox
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from prunerob.attacks import FGSM, PGD, Attack, NoAttack
from prunerob.attacks.attack import has_bfloat16
from prunerob.attacks.pgd import margin
from prunerob.attacks.suite import perturb_by_each
from prunerob.networks import MnistCNN
from prunerob.noise import half_normal, image_keys, mix, uniform
from prunerob.pixels import Pixels
from tests.conftest import SmallCNN

epsilons = st.sampled_from([0.0, 1 / 255, 8 / 255, 0.1, 0.3, 1.0])


@st.composite
def attacks(draw: st.DrawFn) -> Attack:
    eps = Pixels(draw(epsilons))
    if draw(st.booleans()):
        return FGSM(eps=eps, label=draw(st.sampled_from(["true", "predicted"])))
    start = draw(st.booleans())
    step_size = draw(st.sampled_from([0.1 / 255, 1 / 255, 0.01, 0.1, 1.0]))
    precisions = ["auto", "float32", "bfloat16"]
    precision = draw(st.sampled_from(precisions if step_size > 2 / 255 else precisions[:2]))
    return PGD(
        eps=eps,
        step_size=Pixels(step_size),
        steps=draw(st.integers(1, 4)),
        random_start=start,
        restarts=draw(st.integers(1, 3)) if start else 1,
        precision=precision,
    )


@st.composite
def problems(draw: st.DrawFn) -> tuple[SmallCNN, Tensor, Tensor]:
    torch.manual_seed(draw(st.integers(0, 2**31)))
    channels, size = draw(st.sampled_from([1, 3])), draw(st.integers(5, 12))
    network = SmallCNN(channels, size)
    batch = draw(st.integers(1, 5))
    x = torch.rand(batch, channels, size, size)
    if draw(st.booleans()):
        x = x.round()  # pixels at the ends of [0, 1], as in MNIST
    return network, x, torch.randint(0, 4, (batch,))


@settings(deadline=None, max_examples=60)
@given(attacks(), problems(), st.booleans())
def test_examples_lie_in_the_ball_and_in_the_image_cube(
    attack: Attack, problem: tuple[SmallCNN, Tensor, Tensor], own_eps: bool
) -> None:
    network, x, y = problem
    eps = torch.rand(len(x)) if own_eps else None
    x_adv = attack(network, x, y, eps=eps)
    radius = attack.eps if eps is None else eps.view(-1, 1, 1, 1)  # type: ignore[attr-defined]
    assert x_adv.dtype == torch.float32
    assert x_adv.shape == x.shape
    assert ((x_adv - x).abs() <= radius + 1e-6).all()
    assert x_adv.min() >= 0
    assert x_adv.max() <= 1
    assert not x_adv.requires_grad


@settings(deadline=None, max_examples=40)
@given(attacks(), problems(), st.booleans(), st.booleans())
def test_an_attack_leaves_everything_as_it_found_it(
    attack: Attack, problem: tuple[SmallCNN, Tensor, Tensor], inference: bool, half: bool
) -> None:
    network, x, y = problem
    network.norm1.eval()  # a part frozen by its owner, inside a network in training mode
    network.linear.bias.requires_grad_(False)
    network.conv1.weight.grad = torch.ones_like(network.conv1.weight)
    modes = [module.training for module in network.modules()]
    wanted = [p.requires_grad for p in network.parameters()]
    state = copy.deepcopy(network.state_dict())
    images, random_state = x.clone(), torch.get_rng_state()

    with torch.inference_mode(inference), torch.autocast("cpu", torch.bfloat16, enabled=half):
        given_x = x.clone()
        x_adv = attack(network, given_x, y.clone())
        assert torch.is_inference_mode_enabled() == inference

    assert [module.training for module in network.modules()] == modes
    assert [p.requires_grad for p in network.parameters()] == wanted
    assert all(torch.equal(state[name], now) for name, now in network.state_dict().items())
    assert torch.equal(network.conv1.weight.grad, torch.ones_like(network.conv1.weight))
    assert all(p.grad is None for n, p in network.named_parameters() if n != "conv1.weight")
    assert torch.equal(given_x, images)
    assert torch.equal(torch.get_rng_state(), random_state)
    assert torch.equal(x_adv, attack(network, x, y)), "the caller's modes changed the example"


def test_modes_come_back_after_an_error(network: MnistCNN) -> None:
    with pytest.raises(RuntimeError):
        PGD()(network, torch.rand(2, 3, 28, 28), torch.zeros(2, dtype=torch.int64))
    assert network.training
    assert network.conv1.training


def by_foolbox(attack: object, network: nn.Module, x: Tensor, y: Tensor, eps: float) -> Tensor:
    model = foolbox.PyTorchModel(network.eval(), bounds=(0, 1), device="cpu")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        _, x_adv, _ = attack(model, x, y, epsilons=eps)  # type: ignore[operator]
    network.train()
    return x_adv  # type: ignore[no-any-return]


@pytest.mark.parametrize("eps", [0.1, 0.2, 0.3])
def test_fgsm_is_foolbox_s(trained: MnistCNN, digits: tuple[Tensor, Tensor], eps: float) -> None:
    x, y = digits
    ours = FGSM(eps=Pixels(eps))(trained, x, y)
    theirs = by_foolbox(foolbox.attacks.LinfFastGradientAttack(), trained, x, y, eps)
    assert_same_examples(trained, ours, theirs, y)


@pytest.mark.parametrize(("eps", "step", "steps"), [(0.3, 0.01, 40), (8 / 255, 2 / 255, 7)])
def test_pgd_is_foolbox_s(
    trained: MnistCNN, digits: tuple[Tensor, Tensor], eps: float, step: float, steps: int
) -> None:
    x, y = digits
    ours = PGD(
        eps=Pixels(eps),
        step_size=Pixels(step),
        steps=steps,
        random_start=False,
        precision="float32",
    )(trained, x, y)
    theirs = by_foolbox(
        foolbox.attacks.LinfProjectedGradientDescentAttack(
            abs_stepsize=step, steps=steps, random_start=False
        ),
        trained,
        x,
        y,
        eps,
    )
    assert_same_examples(trained, ours, theirs, y)


def assert_same_examples(network: nn.Module, ours: Tensor, theirs: Tensor, y: Tensor) -> None:
    """Equal to float precision; a pixel whose gradient is 0 but for rounding may go either way."""
    different = ((ours - theirs).abs() > 1e-5).float().mean()
    assert different < 1e-3
    change = (margin(network, ours, y) - margin(network, theirs, y)).abs()
    assert change.median() < 1e-4
    assert (margin(network, ours, y) > 0).sum() == (margin(network, theirs, y) > 0).sum()


def test_attacks_get_stronger_with_eps_steps_and_restarts(
    trained: MnistCNN, digits: tuple[Tensor, Tensor]
) -> None:
    x, y = digits

    def mean_margin(attack: Attack) -> float:
        return margin(trained, attack(trained, x, y), y).mean().item()

    clean = mean_margin(NoAttack())
    fgsm = mean_margin(FGSM(eps=Pixels(0.1)))
    short = mean_margin(PGD(eps=Pixels(0.1), steps=20))
    assert clean > fgsm > short > mean_margin(PGD(eps=Pixels(0.2), steps=40))
    one = PGD(eps=Pixels(0.1), steps=3)(trained, x, y)
    three = PGD(eps=Pixels(0.1), steps=3, restarts=3)(trained, x, y)
    assert (margin(trained, three, y) <= margin(trained, one, y) + 1e-6).all()
    assert (margin(trained, three, y) < margin(trained, one, y)).any()


@pytest.mark.skipif(not has_bfloat16("cpu"), reason="minutes, where bfloat16 is emulated")
def test_bfloat16_attacks_as_well_as_float32(
    trained: MnistCNN, digits: tuple[Tensor, Tensor]
) -> None:
    x, y = digits
    for eps in (0.05, 0.1):
        right = [
            (margin(trained, attack(trained, x, y), y) > 0).float().mean()
            for attack in (
                PGD(eps=Pixels(eps), precision="float32"),
                PGD(eps=Pixels(eps), precision="bfloat16"),
            )
        ]
        assert abs(right[0] - right[1]) <= 0.02, eps


@pytest.mark.parametrize("eps", [0.05, 0.1, 0.2])
def test_a_search_finds_what_the_final_iterate_shows_and_little_more(
    trained: MnistCNN, digits: tuple[Tensor, Tensor], eps: float
) -> None:
    """Stopping early may keep an example that later steps would have lost, never the reverse."""
    x, y = digits
    key = torch.arange(len(x))
    attack = PGD(eps=Pixels(eps), restarts=2)
    found = attack.fools(trained, x, y, key=key, batch_size=64)
    final = margin(trained.eval(), attack(trained, x, y, key=key), y) < 0
    assert found[final].all()
    assert found.sum() <= final.sum() + 3
    assert found.sum() > 0
    each = PGD(eps=Pixels(eps), steps=3).fools(trained, x, y, key=key, batch_size=1000)
    assert torch.equal(
        each, PGD(eps=Pixels(eps), steps=3).fools(trained, x, y, key=key, batch_size=7)
    )


class Watched(nn.Module):
    """Counts the images that are asked about."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network
        self.images = 0
        self.sizes: list[int] = []

    def forward(self, x: Tensor) -> Tensor:
        self.images += len(x)
        self.sizes.append(len(x))
        logits: Tensor = self.network(x)
        return logits


def test_a_search_leaves_images_alone_that_are_lost_and_keeps_batches_full(
    trained: MnistCNN, digits: tuple[Tensor, Tensor]
) -> None:
    x, y = digits
    network = Watched(trained)
    found = PGD(eps=Pixels(0.3)).fools(network, x, y, key=torch.arange(300), batch_size=50)
    assert found.all(), "an undefended network"
    assert network.images < 300 * 20, "half of 40 steps"
    assert network.sizes.count(50) >= 60

    robust = Watched(trained)
    found = PGD(eps=Pixels(0.001)).fools(robust, x, y, key=torch.arange(300), batch_size=50)
    assert found.sum() < 30
    assert robust.images <= 300 * 41 + 30, "one step more than without the checks, and what is lost"


def test_other_attacks_are_searched_by_their_final_example(
    trained: MnistCNN, digits: tuple[Tensor, Tensor]
) -> None:
    x, y = digits
    attack = FGSM(eps=Pixels(0.1))
    found = attack.fools(trained, x, y, key=torch.arange(300), batch_size=70)
    assert torch.equal(found, margin(trained.eval(), attack(trained, x, y), y) < 0)
    assert attack.fools(trained, x[:0], y[:0], key=y[:0], batch_size=70).shape == (0,)


def test_restarts_try_again_only_what_is_still_right(
    trained: MnistCNN, digits: tuple[Tensor, Tensor]
) -> None:
    x, y = digits
    key = torch.arange(len(x))
    once, thrice = (PGD(eps=Pixels(0.1), restarts=n, precision="float32") for n in (1, 3))
    first, best = once(trained, x, y, key=key), thrice(trained, x, y, key=key)
    lost = margin(trained.eval(), first, y) < 0
    assert lost.any()
    assert not lost.all()
    assert torch.equal(first[lost], best[lost])
    assert (margin(trained, best, y) <= margin(trained, first, y)).all()


def test_restarts_end_when_nothing_is_right_and_no_images_are_no_trouble(
    trained: MnistCNN, digits: tuple[Tensor, Tensor]
) -> None:
    x, y = digits[0][:20], digits[1][:20]
    x_adv = PGD(restarts=3)(trained, x, y)
    assert (margin(trained.eval(), x_adv, y) < 0).all()
    for attack in (PGD(), FGSM()):
        assert attack(trained, x[:0], y[:0]).shape == (0, 1, 28, 28)


def test_one_gradient_serves_fgsm_at_every_radius(
    trained: MnistCNN, digits: tuple[Tensor, Tensor]
) -> None:
    x, y = digits
    trained.eval()
    suite: dict[str, Attack] = {
        "small": FGSM(eps=Pixels(0.1)),
        "predicted": FGSM(eps=Pixels(0.25), label="predicted"),
        "large": FGSM(eps=Pixels(0.3)),
        "PGD": PGD(steps=2),
        "8/255": FGSM(eps=Pixels("8/255")),
        "none": FGSM(eps=Pixels(0)),
    }
    network = Watched(trained)
    together = list(perturb_by_each(suite, network, x, y, key=torch.arange(len(x))))
    assert network.sizes == [300] * 5, "a gradient by label, the prediction, two steps of PGD"
    for attack, x_adv in zip(suite.values(), together, strict=True):
        assert torch.equal(x_adv, attack(network, x, y)), attack


def test_own_eps_scales_ball_and_step(trained: MnistCNN, digits: tuple[Tensor, Tensor]) -> None:
    x, y = digits
    key = torch.arange(len(x))
    attack = PGD(eps=Pixels(0.3), step_size=Pixels(0.1), steps=3, precision="float32")
    half = PGD(eps=Pixels(0.15), step_size=Pixels(0.05), steps=3, precision="float32")
    same = attack(trained, x, y, eps=torch.full((len(x),), 0.15), key=key)
    torch.testing.assert_close(same, half(trained, x, y, key=key), atol=1e-6, rtol=0)
    assert torch.equal(attack(trained, x, y, eps=torch.zeros(len(x)), key=key), x)


def test_predicted_label_differs_only_where_the_prediction_does(
    trained: MnistCNN, digits: tuple[Tensor, Tensor]
) -> None:
    x, y = digits
    wrong = y.clone()
    wrong[:10] = (y[:10] + 1) % 10
    by_prediction = FGSM(eps=Pixels(0.1), label="predicted")
    trained.eval()
    prediction = trained(x).argmax(1)
    by_label = FGSM(eps=Pixels(0.1))
    assert torch.equal(by_prediction(trained, x, wrong), by_label(trained, x, prediction))
    assert not torch.equal(by_label(trained, x, wrong), by_prediction(trained, x, wrong))


def test_bfloat16_is_for_steps_that_it_can_see(
    trained: MnistCNN, digits: tuple[Tensor, Tensor]
) -> None:
    x, y = digits[0][:20], digits[1][:20]
    with pytest.raises(ValueError, match=r"steps of 0\.005 vanish in bfloat16"):
        PGD(step_size=Pixels(0.005), precision="bfloat16")
    for step, own_eps in ((0.005, False), (0.01, True)):
        eps = torch.full((20,), 0.3) if own_eps else None
        auto = PGD(step_size=Pixels(step), steps=3)(trained, x, y, eps=eps)
        plain = PGD(step_size=Pixels(step), steps=3, precision="float32")(trained, x, y, eps=eps)
        assert torch.equal(auto, plain)


def test_a_caller_in_float16_keeps_its_own_casts(
    trained: MnistCNN, digits: tuple[Tensor, Tensor]
) -> None:
    """Autocast caches the casts of weights by weight, not by type."""
    x, y = digits[0][:4], digits[1][:4]
    with torch.autocast("cpu", torch.float16):
        trained(x)
        PGD(steps=2, precision="bfloat16")(trained, x, y)
        assert trained(x).dtype == torch.float16


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("attack", [FGSM(), PGD(steps=3, random_start=False)])
def test_mixed_precision_takes_no_strength_from_attacks(
    attack: Attack, dtype: torch.dtype, trained: MnistCNN, digits: tuple[Tensor, Tensor]
) -> None:
    """Nothing underflows to a sign of 0, however sure the network is of itself."""
    x, y = digits
    network = copy.deepcopy(trained)
    with torch.no_grad():
        network.linear.weight.mul_(6)  # probabilities of the other classes below float16's smallest
    sure = network(x).softmax(1).gather(1, y[:, None]).squeeze(1) > 1 - 1e-7
    assert sure.sum() > 100
    network.half()
    with torch.enable_grad():
        halves = x.half().requires_grad_()
        loss = F.cross_entropy(network(halves), y, reduction="sum")
        (lost,) = torch.autograd.grad(loss, halves)
    assert (lost[sure] == 0).all(1).all(1).all(1).float().mean() > 0.9, "so it would be in float16"
    network = copy.deepcopy(trained)
    with torch.no_grad():
        network.linear.weight.mul_(6)
    plain = attack(network, x, y)
    with torch.autocast("cpu", dtype):
        network(x)
        mixed = attack(network, x, y)
    assert torch.equal(mixed, plain)
    assert ((mixed - x)[sure] != 0).any(1).any(1).any(1).all()


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 2**31), st.integers(0, 100), st.integers(2, 50))
def test_noise_depends_on_the_image_not_on_its_batch(seed: int, epoch: int, n: int) -> None:
    index = torch.arange(n)
    key = image_keys(index, seed=seed, purpose="training", epoch=epoch)
    noise = uniform(key, (1, 7, 5))
    order = torch.randperm(n)
    again = image_keys(index[order], seed=seed, purpose="training", epoch=epoch)
    assert torch.equal(uniform(again, (1, 7, 5)), noise[order])
    assert len(key.unique()) == n
    for other in (
        image_keys(index, seed=seed + 1, purpose="training", epoch=epoch),
        image_keys(index, seed=seed, purpose="test", epoch=epoch),
        image_keys(index, seed=seed, purpose="training", epoch=epoch + 1),
        mix(key, 1),
    ):
        assert not (other == key).any()


def test_noise_is_uniform_and_independent() -> None:
    noise = uniform(image_keys(torch.arange(400), seed=0, purpose="test"), (784,)).double()
    assert noise.min() >= 0
    assert noise.max() < 1
    n = noise.numel()
    # Five standard errors of mean and variance; 0.2 for any of 1,000 correlations of 400.
    assert abs(noise.mean() - 0.5) < 5 * (1 / 12 / n) ** 0.5
    assert abs(noise.var() - 1 / 12) < 5 * (1 / 180 / n) ** 0.5
    assert torch.corrcoef(noise[:, :45].T).triu(1).abs().max() < 0.25
    assert torch.corrcoef(noise[:45]).triu(1).abs().max() < 0.2
    counts = torch.histc(noise, 256, 0, 1)
    expected = n / 256
    assert ((counts - expected) ** 2 / expected).sum() < 256 + 5 * (2 * 256) ** 0.5


def test_half_normal_is_the_truncated_gaussian() -> None:
    keys = image_keys(torch.arange(200_000), seed=0, purpose="test")
    eps = 0.3 / 2 * half_normal(keys, cut=2.0).double()
    assert eps.min() >= 0
    assert eps.max() <= 0.3
    assert abs(eps.mean() / 0.3 - 0.3617) < 0.002  # E|z| given |z| < 2, halved
    assert abs((eps < 0.15).double().mean() - 0.6827 / 0.9545) < 0.005


@pytest.mark.parametrize(
    "value", ["8", 8, "-0.1", -0.1, "1.01", "nan", "8/0", "many", "255/8", "1e400", True]
)
def test_pixels_outside_the_image_cube_are_refused(value: object) -> None:
    with pytest.raises(ValueError, match=r"outside \[0, 1\]|not a number"):
        PGD(eps=value)  # type: ignore[arg-type]


def test_pixels_read_fractions_and_print_the_shorter_form() -> None:
    assert Pixels("8/255") == 8 / 255
    assert str(Pixels("8/255")) == "8/255"
    assert str(Pixels("0.3")) == "0.3"
    with pytest.raises(ValueError, match="8/255"):
        Pixels(8)
    for n in range(256):
        assert Pixels(str(Pixels(f"{n}/255"))) == n / 255
    assert Pixels(str(Pixels(0.123456789))) == 0.123456789


@pytest.mark.parametrize(("machine", "fast"), [("x86_64", False), ("aarch64", True)])
def test_bfloat16_is_no_choice_where_it_is_emulated(
    machine: str, fast: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """oneDNN accepts it on AVX-512 without instructions for it."""
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False, raising=False)
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: True)
    monkeypatch.setattr("platform.machine", lambda: machine)
    assert has_bfloat16.__wrapped__("cpu") is fast
