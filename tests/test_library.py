"""The library's face, and the scripts in examples/."""

from __future__ import annotations

import copy
import json
import os
import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

import prunerob
from prunerob.attacks import PGD
from prunerob.attacks.attack import misclassified
from prunerob.errors import UserError
from prunerob.networks import MnistCNN
from prunerob.noise import image_keys
from prunerob.pruning import FilterTaylor, filter_l1
from prunerob.statistics import wilson_interval

ROOT = Path(__file__).parent.parent


def test_importing_prunerob_imports_no_torch() -> None:
    code = "import sys, prunerob; assert not {'torch', 'numpy'} & sys.modules.keys(); prunerob.nope"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert "has no attribute 'nope'" in done.stderr
    assert set(prunerob.__all__) <= set(dir(prunerob))
    assert all(getattr(prunerob, n).__module__.startswith("prunerob") for n in prunerob.__all__)


def test_evaluate_counts_what_an_attack_leaves(
    trained: MnistCNN, digits: tuple[torch.Tensor, torch.Tensor]
) -> None:
    x, y = digits[0][:60], digits[1][:60]
    attack = PGD(eps=0.1, step_size=0.05, steps=3)  # type: ignore[arg-type]
    trained = copy.deepcopy(trained).train()
    trained.zero_grad()
    state = torch.get_rng_state()
    table = prunerob.evaluate(trained, x, y, {"PGD": attack}, batch_size=25, seed=4)
    assert trained.training
    assert torch.equal(torch.get_rng_state(), state)
    assert all(parameter.grad is None for parameter in trained.parameters())
    key = image_keys(torch.arange(60), seed=4, purpose="test")
    x_adv = attack(trained, x, y, key=key)
    trained.eval()
    wrong = misclassified(trained, x_adv, y)
    row = {row.attack: row for row in table.rows}["PGD"]
    assert (row.correct, row.images) == (60 - int(wrong.sum()), 60)
    assert row.interval == wilson_interval(row.correct, 60)
    assert "95 % interval" in str(table)
    # Of 256 shades, or finer: the same images.
    shades = (255 * x).round().byte()
    same = prunerob.evaluate(trained, shades, y, {"PGD": attack}, batch_size=25, seed=4)
    assert same.rows[0].correct == table.rows[0].correct
    fine = x * 0.999
    row = prunerob.evaluate(trained, fine, y, attack).rows[0]
    assert row.correct == int((trained(fine).argmax(1) == y).sum())


def test_what_cannot_be_evaluated_is_told(digits: tuple[torch.Tensor, torch.Tensor]) -> None:
    x, y, attack = digits[0][:4], digits[1][:4], PGD()
    for images, labels, told in (
        (2 * x, y, "outside"),
        (x, y[:3], "were expected"),
        (x, y.float(), "no classes"),
        (x[0], y[:1], "were expected"),
    ):
        with pytest.raises(UserError, match=told):
            prunerob.evaluate(MnistCNN(), images, labels, attack)
    with pytest.raises(UserError, match="10 classes or more"):
        prunerob.evaluate(MnistCNN(classes=3), x, torch.tensor([0, 1, 2, 9]), attack)


@pytest.mark.slow
def test_the_notebook_runs(tmp_path: Path) -> None:
    """Its code, cell by cell, in one process that has no display."""
    notebook = json.loads((ROOT / "examples" / "paper.ipynb").read_text("utf-8"))
    code = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert sum(bool(cell["outputs"]) for cell in code) == 4
    script = tmp_path / "paper.py"
    script.write_text("\n\n".join("".join(cell["source"]) for cell in code))
    done = subprocess.run(
        [sys.executable, script],
        cwd=ROOT,
        env={**os.environ, "MPLBACKEND": "agg"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    lines = [line for line in done.stdout.splitlines() if "of the weights pruned: clean" in line]
    accuracies = [[float(v) for v in re.findall(r"([\d.]+)%", line)[1:]] for line in lines]
    assert len(accuracies) == 5
    natural, pgd, auto = zip(*accuracies, strict=True)
    assert min(natural[:4]) > 95
    assert all(left <= by_pgd + 5 for left, by_pgd in zip(auto, pgd, strict=True))
    assert auto[0] - auto[3] > 30 > natural[0] - natural[3]


def test_masks_are_held_by_any_optimizer(network: MnistCNN) -> None:
    masks = prunerob.prune(network, 0.9)
    assert masks.shares.weights == pytest.approx(0.9, abs=1e-4)
    optimizer = torch.optim.SGD(network.parameters(), 0.1, momentum=0.9, weight_decay=0.1)
    masks.hold(optimizer)
    for _ in range(3):
        network(torch.rand(8, 1, 28, 28)).square().sum().backward()
        optimizer.step()
        for name, mask in masks.items():
            assert bool((network.get_parameter(name)[~mask] == 0).all())
    with pytest.raises(UserError, match="sees training batches"):
        prunerob.prune(network, 0.5, criterion=FilterTaylor())
    with pytest.raises(UserError, match="outside"):
        prunerob.prune(network, 1.5)


def test_filters_that_are_pruned_can_be_taken_out(network: MnistCNN) -> None:
    network.eval()
    prunerob.prune(network, 0.5, criterion=filter_l1)
    small, x = prunerob.narrow(network), torch.rand(2, 1, 28, 28)
    torch.testing.assert_close(small(x), network(x))
    sizes = [sum(p.numel() for p in n.parameters()) for n in (small, network)]
    assert sizes[0] < 0.6 * sizes[1]


def test_networks_are_loaded_by_name(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for place in (run, run / "weights.safetensors", run / "checkpoints" / "last.ckpt"):
        network = prunerob.load(place)
        assert isinstance(network, MnistCNN)
        assert not network.training
    monkeypatch.chdir(ROOT)
    loaded = prunerob.load("zoo/mnist_pgd_weight-0.94")
    zeros = sum(int((p == 0).sum()) for p in loaded.parameters() if p.dim() > 1)
    assert zeros / sum(p.numel() for p in loaded.parameters() if p.dim() > 1) == pytest.approx(0.94)
    with pytest.raises(UserError, match="there is no file or folder zoo/nothing"):
        prunerob.load("zoo/nothing")


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("attack_a_model", "| PGD |"),
        ("prune_a_model", "largest difference of a logit"),
        ("train_with_masks", "90.0% of the weights are 0"),
        ("own_criterion", "linear: "),
        ("own_attack", "| RandomSigns |"),
        ("lightning_trainer", "90% pruned, and held"),
    ],
)
def test_examples_run(
    name: str, shown: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file = ROOT / "examples" / f"{name}.py"
    assert len(file.read_text().splitlines()) < 40
    monkeypatch.chdir(ROOT)
    namespace = runpy.run_path(str(file))
    assert shown in capsys.readouterr().out
    for value in namespace.values():
        if isinstance(value, nn.Module):
            assert all(bool(p.isfinite().all()) for p in value.parameters())


@pytest.mark.slow
def test_the_first_lines_of_the_readme_work(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(ROOT)
    text = (ROOT / "README.md").read_text("utf-8").partition("From Python")[2]
    lines = [line[4:] for line in text.splitlines() if line.startswith("    ")][:5]
    assert lines[-1].startswith("print(")
    exec("\n".join(lines).replace("test_sample(50)", "test_sample(3)"), {})
    rows = capsys.readouterr().out
    assert all(row in rows for row in ("clean", "PGD-40", "AutoAttack", "worst case"))
