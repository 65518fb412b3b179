"""How fast prunerob attacks and trains, side by side with its peers in one run: `make bench`.

All contestants attack the same batch of the same network, take turns within each round, and are
compared by the median of the rounds. What is counted are image-steps: one gradient of one image.
The networks are trained here, for a minute, on MNIST (the wide residual network on colour copies
of 32x32 pixels): speed does not depend on the weights, but whether the attacks agree does. On the
CPU with one thread, time is the process's CPU time, so other programs disturb little; otherwise it
is the clock's.
"""

from __future__ import annotations

import argparse
import copy
import itertools
import json
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from torch.utils.flop_counter import FlopCounterMode
from torchvision import transforms

from benchmarks import auto_peers, peers
from prunerob.attacks import APGD, FAB, PGD, AutoAttack, Square
from prunerob.attacks.attack import has_bfloat16, misclassified
from prunerob.attacks.auto_attack.survivors import Hunt
from prunerob.data import MNIST, CropAndFlip, NoAugmentation
from prunerob.data.batches import Batches, Images
from prunerob.networks import MnistCNN, WideResNet
from prunerob.networks.narrow import find_narrowing
from prunerob.noise import mix
from prunerob.pixels import Pixels
from prunerob.pruning.cut import make_masks
from prunerob.pruning.filters import ranked
from prunerob.pruning.masks import apply_masks
from prunerob.training.checkpoints import about_machine

Contest = Mapping[str, Callable[[], object]]

WARM_UP = 2
"""Rounds that do not count."""


@dataclass
class Table:
    """Rates by contestant, one column a question."""

    title: str
    unit: str
    rates: dict[str, float] = field(default_factory=dict)
    notes: dict[str, str] = field(default_factory=dict)
    rivals: tuple[str, ...] = ()

    def show(self) -> None:
        """Print, with each rate's ratio to the best peer's."""
        best = max((self.rates[name] for name in self.rivals), default=None)
        print(f"\n{self.title} ({self.unit})")
        for name, rate in self.rates.items():
            ratio = f"{rate / best:6.2f}x" if best else ""
            print(f"  {name:<34}{rate:>12,.1f}  {ratio}  {self.notes.get(name, '')}")


class Bench:
    """A device, the clock that suits it, and the tables so far.

    Args:
        device: "cpu" or "cuda".
        rounds: repetitions; the median counts.
    """

    def __init__(self, device: torch.device, rounds: int) -> None:
        self.device = device
        self.rounds = rounds
        self.tables: list[Table] = []

    def clock(self) -> float:
        """Seconds now, with the device's work done."""
        if self.device.type == "cuda":
            torch.cuda.synchronize()
        if self.device.type == "cpu" and torch.get_num_threads() == 1:
            return time.process_time()
        return time.perf_counter()

    def compare(self, contest: Contest) -> dict[str, float]:
        """Median seconds of each contestant; they take turns."""
        seconds: dict[str, list[float]] = {name: [] for name in contest}
        for number in range(WARM_UP + self.rounds):
            for name, run in contest.items():
                start = self.clock()
                run()
                if number >= WARM_UP:
                    seconds[name].append(self.clock() - start)
        return {name: statistics.median(values) for name, values in seconds.items()}

    def note(self, table: Table) -> None:
        """Print a table and keep it."""
        table.show()
        self.tables.append(table)


def learn_from(loss: Tensor) -> None:
    """Compute the parameters' gradients."""
    loss.backward()  # type: ignore[no-untyped-call]


def minute_of_training(network: nn.Module, images: Images, attack: PGD, steps: int) -> nn.Module:
    """Weights that an attack does not break at once."""
    device = images.pixels.device
    network.to(device).train()
    optimizer = torch.optim.Adam(network.parameters(), 1e-3)
    batches = Batches(images, torch.arange(len(images.labels)), size=64, shuffle_seed=0)
    for (x, y, index), step in zip(batches, range(steps), strict=False):
        ramp = min(1.0, 2 * step / steps)
        x_adv = attack(
            network, x, y, key=index, eps=torch.full_like(x[:, 0, 0, 0], ramp * attack.eps)
        )
        optimizer.zero_grad()
        learn_from(F.cross_entropy(network(x_adv), y))
        optimizer.step()
    return network.eval()


def in_colour(images: Images, count: int) -> Images:
    """Colour copies of 32x32 pixels of some grey ones of 28x28."""
    pixels = F.pad(images.pixels[:count], (2, 2, 2, 2)).expand(-1, 3, -1, -1)
    return Images(pixels.contiguous(), images.labels[:count])


def accuracy(network: nn.Module, x: Tensor, y: Tensor) -> float:
    """Share classified right, in float32."""
    return 1 - float(misclassified(network, x, y).float().mean())


def best_layout(network: nn.Module) -> nn.Module:
    """The network as prunerob's Classifier lays it out."""
    return copy.deepcopy(network).to(memory_format=torch.channels_last)


def versions(attack: PGD, device: torch.device) -> dict[str, PGD]:
    """The attack in the precisions to compare."""
    found = {"prunerob, float32": replace(attack, precision="float32")}
    if has_bfloat16(device.type):
        found = {"prunerob, bfloat16": replace(attack, precision="bfloat16"), **found}
    return found


def as_peer(attack: PGD) -> peers.Run:
    """Prunerob's attack with the peers' signature; like theirs, each call starts elsewhere."""
    calls = itertools.count()

    def run(network: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        key = mix(torch.arange(len(x), device=x.device), next(calls))
        return attack(network, x, y, key=key)

    return run


def evaluation(bench: Bench, name: str, network: nn.Module, x: Tensor, y: Tensor, pgd: PGD) -> None:
    """PGD as in a test: image-steps per second, and the accuracy that it leaves."""
    ours = best_layout(network)
    examples: dict[str, list[Tensor]] = {}

    def contestant(label: str, run: peers.Run, of: nn.Module) -> Callable[[], object]:
        def go() -> None:
            examples.setdefault(label, []).append(run(of, x, y))

        return go

    contest = {
        label: contestant(label, as_peer(attack), ours)
        for label, attack in versions(pgd, bench.device).items()
    }
    rivals = peers.installed()
    for label, peer in rivals.items():
        contest[label] = contestant(label, peer(pgd), network)
    seconds = bench.compare(contest)
    left = {
        label: statistics.mean(accuracy(network, x_adv, y) for x_adv in tries)
        for label, tries in examples.items()
    }
    work = len(x) * pgd.steps
    table = Table(
        f"{name}: PGD-{pgd.steps}, eps {pgd.eps}, batch {len(x)}",
        "image-steps/s",
        {label: work / time for label, time in seconds.items()},
        {label: f"{share:.4f} left" for label, share in left.items()},
        tuple(rivals),
    )
    bench.note(table)
    # Random starts differ: some images near the boundary fall in one try and not in another.
    tolerance = 0.05 / (WARM_UP + bench.rounds) ** 0.5
    spread = max(left.values()) - min(left.values())
    assert spread <= tolerance, f"the attacks on {name} do not agree: {left}"


def ingredients(
    bench: Bench, name: str, network: nn.Module, x: Tensor, y: Tensor, pgd: PGD
) -> None:
    """What each of the things that make the attack fast contributes."""
    laid_out = best_layout(network)
    # A container has no rewrite of its own: the plain path.
    plain, channels_last = nn.Sequential(network), nn.Sequential(laid_out)
    contest: dict[str, Callable[[], object]] = {}
    for label, attack in versions(pgd, bench.device).items():
        precision = label.removeprefix("prunerob, ")
        if precision == "float32":
            contest["float32"] = partial(attack, plain, x, y)
        contest[f"{precision}, channels-last"] = partial(attack, channels_last, x, y)
        contest[f"{precision}, rewritten"] = partial(attack, laid_out, x, y)
    seconds = bench.compare(contest)
    steps = len(x) * pgd.steps
    with FlopCounterMode(display=False) as counter:
        network(x)
    # The input gradient costs as much as the forward pass.
    flops = 2 * counter.get_total_flops() / len(x)
    peaks = bench.tables[0].rates
    bench.note(
        Table(
            f"{name}: ingredients, PGD-{pgd.steps}, batch {len(x)}, "
            f"{flops / 1e6:,.1f} MFLOP an image-step",
            "image-steps/s",
            {label: steps / time for label, time in sorted(seconds.items(), key=lambda i: -i[1])},
            {
                label: f"{steps / time * flops / 1e9 / peaks[label.split(',')[0]]:.0%} of the "
                "matrix product's rate"
                for label, time in seconds.items()
            },
            ("float32",),
        )
    )


def training(bench: Bench, name: str, network: nn.Module, x: Tensor, y: Tensor, pgd: PGD) -> None:
    """A step of adversarial training: attack, then one loss on clean and adversarial images."""

    def step(of: nn.Module, run: peers.Run, *, half: bool) -> Callable[[], object]:
        optimizer = torch.optim.SGD(of.parameters(), 1e-6)

        def go() -> None:
            x_adv = run(of.eval(), x, y)
            of.train()
            optimizer.zero_grad()
            with torch.autocast(x.device.type, torch.bfloat16, enabled=half):
                clean, adversarial = (
                    F.cross_entropy(of(images).float(), y) for images in (x, x_adv)
                )
            learn_from((clean + adversarial) / 2)
            optimizer.step()

        return go

    contest = {}
    for label, attack in versions(pgd, bench.device).items():
        contest[f"{label} attack"] = step(best_layout(network), as_peer(attack), half=False)
        if "bfloat16" in label:
            contest[f"{label} attack and update"] = step(
                best_layout(network), as_peer(attack), half=True
            )
    rivals = peers.installed()
    for label, peer in rivals.items():
        contest[label] = step(copy.deepcopy(network), peer(pgd), half=False)
    seconds = bench.compare(contest)
    bench.note(
        Table(
            f"{name}: training step against PGD-{pgd.steps}, batch {len(x)}",
            "images/s",
            {label: len(x) / time for label, time in seconds.items()},
            {label: f"{1000 * time:,.0f} ms" for label, time in seconds.items()},
            tuple(rivals),
        )
    )


def narrow(bench: Bench, name: str, network: nn.Module, x: Tensor, y: Tensor, pgd: PGD) -> None:
    """A filter-pruned network, masked and really narrower: the attack and a training step."""
    share = 0.75 if isinstance(network, MnistCNN) else 0.6
    scores = {}
    for layer in network.channels():  # type: ignore[operator]
        # By position: as many filters in each layer, so that the widths do not hang on weights.
        count = len(network.get_submodule(layer).get_parameter("weight"))
        scores[f"{layer}.weight"] = torch.arange(count) / count
    # Of the filters that may go: all of MnistCNN's, the inner ones of a residual network.
    inner = ranked(network, scores, "keep")
    share *= sum(map(len, inner.values())) / sum(map(len, scores.values()))

    def pruned(multiple: int) -> nn.Module:
        masked = best_layout(network)
        apply_masks(
            masked,
            make_masks(masked, scores, share, reading="filters", keep_multiple_of=multiple),
        )
        return masked

    def without_channels(masked: nn.Module) -> nn.Module:
        return find_narrowing(masked).network(masked)

    attack = next(iter(versions(pgd, bench.device).values()))

    def learn(of: nn.Module) -> Callable[[], object]:
        def go() -> None:
            of.train()
            learn_from(F.cross_entropy(of(x), y))
            of.eval()

        return go

    forms = {
        "masked": pruned(1),
        "narrow": without_channels(pruned(1)),
        "narrow, multiples of 16": without_channels(pruned(16)),
    }
    for what, contest in (
        (
            f"PGD-{pgd.steps}",
            {label: partial(attack, of, x, y) for label, of in forms.items()},
        ),
        ("forward and backward", {label: learn(of) for label, of in forms.items()}),
    ):
        seconds = bench.compare(contest)
        sizes = {label: sum(p.numel() for p in of.parameters()) for label, of in forms.items()}
        bench.note(
            Table(
                f"{name} without {share:.0%} of its filters: {what}, batch {len(x)}",
                "images/s",
                {label: len(x) / time for label, time in seconds.items()},
                {label: f"{size:,} parameters" for label, size in sizes.items()},
                ("masked",),
            )
        )


def pipeline(bench: Bench, name: str, network: nn.Module, images: Images, size: int) -> None:
    """The input pipeline's share of standard training: batches served, and a step on them.

    Beside it, for colour, what torchvision offers: transforms of one image at a time.
    """
    augmentation = CropAndFlip() if images.pixels.shape[1] == 3 else NoAugmentation()
    count = 64 * size
    index = torch.arange(len(images.labels)).repeat(-(-count // len(images.labels)))[:count]
    batches = Batches(images, index, size=size, shuffle_seed=0, augmentation=augmentation)
    batch = next(iter(batches))
    model = best_layout(network).train()

    def step() -> None:
        learn_from(F.cross_entropy(model(batch.x), batch.y))

    contest: dict[str, Callable[[], object]] = {"serving": lambda: list(batches), "step": step}
    if images.pixels.shape[1] == 3:
        loader = DataLoader(OneByOne(images, count), size, shuffle=True)
        contest["torchvision"] = lambda: list(loader)
    seconds = bench.compare(contest)
    serving = seconds["serving"] / len(batches)
    rates = {"batches from memory": size / serving, "standard training": size / seconds["step"]}
    notes = {"batches from memory": f"{serving / seconds['step']:.2%} of a training step"}
    if "torchvision" in seconds:
        rates["torchvision's transforms"] = count / seconds["torchvision"]
        slower = seconds["torchvision"] / seconds["serving"]
        notes["torchvision's transforms"] = f"batches from memory are {slower:.1f} times faster"
    bench.note(Table(f"{name}: input pipeline, batch {size}", "images/s", rates, notes))


class OneByOne(Dataset[tuple[Tensor, int]]):
    """Colour images with torchvision's own crops and flips, in one process.

    Args:
        images: to choose from.
        count: how many to serve.
    """

    def __init__(self, images: Images, count: int) -> None:
        self.arrays = images.pixels.permute(0, 2, 3, 1).cpu().numpy()
        self.labels, self.count = images.labels.tolist(), count
        self.transform = transforms.Compose(
            [
                transforms.RandomCrop(self.arrays.shape[1], padding=4, padding_mode="reflect"),
                transforms.RandomHorizontalFlip(),
                transforms.ToTensor(),
            ]
        )

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, position: int) -> tuple[Tensor, int]:
        place = position % len(self.labels)
        image: Tensor = self.transform(Image.fromarray(self.arrays[place]))
        return image, self.labels[place]


def search(bench: Bench, network: nn.Module, x: Tensor, y: Tensor) -> None:
    """The worst case's search, which lets lost images go, against attacking all to the end."""
    ours = best_layout(network)
    key = torch.arange(len(x), device=x.device)
    for what, eps in (("robust", Pixels(0.1)), ("not robust", Pixels(0.5))):
        attack = PGD(eps=eps)
        found: dict[str, Tensor] = {}

        def stopping(attack: PGD = attack, found: dict[str, Tensor] = found) -> None:
            found["stops"] = attack.fools(ours, x, y, key=key, batch_size=250)

        def to_the_end(attack: PGD = attack, found: dict[str, Tensor] = found) -> None:
            found["all"] = super(PGD, attack).search(ours, x, y, key, 250)

        seconds = bench.compare({"stops where it succeeds": stopping, "to the end": to_the_end})
        bench.note(
            Table(
                f"MnistCNN, {what}: search with PGD-40, eps {eps}, {len(x)} images",
                "images/s",
                {label: len(x) / time for label, time in seconds.items()},
                {
                    "stops where it succeeds": f"{int(found['stops'].sum())} found",
                    "to the end": f"{int(found['all'].sum())} found",
                },
                ("to the end",),
            )
        )


def hunt(
    bench: Bench,
    network: nn.Module,
    x: Tensor,
    y: Tensor,
    attack: Hunt,
    rivals: Mapping[str, peers.Run],
) -> None:
    """An attack of AutoAttack's, or all of them, beside its peers; what is counted are images."""
    ours = best_layout(network)
    key = torch.arange(len(x), device=x.device)
    right = ~misclassified(network, x, y)
    held: dict[str, int] = {}

    def prunerob() -> None:
        lost = attack.fools(ours, x, y, key=key, batch_size=len(x))
        held["prunerob"] = int((~lost).sum())

    def rival(label: str, run: peers.Run) -> Callable[[], object]:
        def go() -> None:
            x_adv = run(network, x[right], y[right])
            held[label] = int((~misclassified(network, x_adv, y[right])).sum())

        return go

    contest = {label: rival(label, run) for label, run in rivals.items()}
    seconds = bench.compare({"prunerob": prunerob, **contest})
    bench.note(
        Table(
            f"MnistCNN: {attack.name}, eps {attack.eps}, {len(x)} images",
            "images/s",
            {label: len(x) / time for label, time in seconds.items()},
            {label: f"{count} hold" for label, count in held.items()},
            tuple(label for label in contest if "pyautoattack" in label),
        )
    )


def roofline(bench: Bench) -> None:
    """The device's matrix rate: what image-steps per second could at most be."""
    rates = {}
    for dtype in (torch.float32, torch.bfloat16):
        n = 8192 if bench.device.type == "cuda" else 2048
        a, b = (torch.randn(n, n, device=bench.device, dtype=dtype) for _ in range(2))
        seconds = bench.compare({"product": partial(torch.matmul, a, b)})["product"]
        rates[str(dtype).removeprefix("torch.")] = 2 * n**3 / seconds / 1e9
    bench.note(Table("Product of two square matrices", "GFLOP/s", rates))


def main() -> None:
    """Run what is asked for, print tables, write JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--threads", type=int, default=1, help="of the CPU")
    parser.add_argument("--rounds", type=int, default=5, help="repetitions; the median counts")
    parser.add_argument("--only", choices=("mnist", "wrn"), help="one of the networks")
    parser.add_argument("--json", type=Path, default=Path("benchmarks/results.json"))
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    torch.manual_seed(0)
    bench = Bench(torch.device(given.device), given.rounds)
    about = {**about_machine(bench.device), "rounds": given.rounds}
    print(", ".join(f"{name} {value}" for name, value in about.items()))
    roofline(bench)
    train, test = (part.to(bench.device) for part in MNIST().load())

    if given.only != "wrn":
        pgd = PGD(eps=Pixels(0.3), step_size=Pixels(0.01), steps=40)
        quick = PGD(eps=Pixels(0.3), step_size=Pixels(0.15), steps=3)
        network = minute_of_training(MnistCNN(), train, quick, 400)
        x, y = test.pixels[:1000].float() / 255, test.labels[:1000]
        evaluation(bench, "MnistCNN", network, x[:256], y[:256], pgd)
        ingredients(bench, "MnistCNN", network, x[:256], y[:256], pgd)
        training(bench, "MnistCNN", network, x[:128], y[:128], pgd)
        narrow(bench, "MnistCNN", network, x[:256], y[:256], pgd)
        search(bench, network, x, y)
        few, of_few = x[:128], y[:128]
        eps = Pixels(0.1)
        climb, approach = APGD(eps=eps), FAB(eps=eps, targets=1)
        ask, whole = Square(eps=eps, queries=500), AutoAttack(eps=eps)
        hunt(bench, network, few, of_few, climb, auto_peers.apgd(climb))
        hunt(bench, network, few, of_few, approach, auto_peers.fab(approach))
        hunt(bench, network, few, of_few, ask, auto_peers.square(ask))
        hunt(bench, network, few[:32], of_few[:32], whole, auto_peers.suite(whole))
        pipeline(bench, "MnistCNN", network, train, 128)
    if given.only != "mnist":
        pgd = PGD(eps=Pixels("8/255"), step_size=Pixels("2/255"), steps=7)
        quick = PGD(eps=Pixels("8/255"), step_size=Pixels("8/255"), steps=1)
        size = 128 if bench.device.type == "cuda" else 32
        colour = in_colour(train, 6400)
        network = minute_of_training(WideResNet(), colour, quick, 20)
        held_out = in_colour(test, 128)
        x, y = held_out.pixels[:size].float() / 255, held_out.labels[:size]
        evaluation(bench, "WideResNet-28-4", network, x, y, pgd)
        ingredients(bench, "WideResNet-28-4", network, x, y, pgd)
        training(bench, "WideResNet-28-4", network, x, y, pgd)
        narrow(bench, "WideResNet-28-4", network, x, y, pgd)
        pipeline(bench, "WideResNet-28-4", network, colour, size)

    result = {**about, "tables": [vars(table) for table in bench.tables]}
    given.json.write_text(json.dumps(result, indent=2) + "\n")
    print(f"\nWritten: {given.json}")


if __name__ == "__main__":
    main()
