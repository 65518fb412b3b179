"""The security curve."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from prunerob.attacks import PGD
from prunerob.cli import main
from prunerob.networks import MnistCNN
from prunerob.noise import image_keys
from prunerob.pixels import Pixels
from prunerob.robustness.curve import SecurityCurve, curves_to_csv, security_curve
from tests.conftest import TINY, refused


class Threshold(nn.Module):
    """Tells one grey pixel's class by its distance to 0.5: its radius of robustness is known."""

    def forward(self, x: Tensor) -> Tensor:
        value = x.flatten(1)[:, :1] - 0.5
        return torch.cat([-value, value], 1)


def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("PARTS", 1), ("GROWTH", 3), ("QUERIES", 20)):
        monkeypatch.setattr(f"prunerob.robustness.curve.{name}", value)


def test_the_curve_of_a_known_network_is_exact() -> None:
    values = torch.tensor([0.0, 0.1, 0.34, 0.45, 0.55, 0.8, 1.0])
    x, y = values[:, None, None, None], (values > 0.5).long()
    y[0] = 1  # wrong without an attack
    keys = image_keys(torch.arange(7), seed=0, purpose="test")
    curve = security_curve(Threshold(), x, y, radius=0.4, key=keys)
    assert curve.radii[:4] == pytest.approx([0, 0.05, 0.1, 0.15])
    # An image is lost from the first radius on that reaches the other side of 0.5.
    robust = [0.4, 0.16, 0.05, 0.05, 0.3, 0.5]
    for radius, right in list(zip(curve.radii, curve.right, strict=True))[:9]:
        expected = sum(distance > radius + 1e-6 for distance in robust)
        assert expected <= right <= sum(distance >= radius - 1e-6 for distance in robust), radius
    assert curve.right[0] == 6
    assert curve.right[-1] == 0
    assert curve.radii[8:] == pytest.approx([0.4, 0.5])
    assert curve.accuracy(0.1) == curve.right[2] / 7
    assert curve.accuracy(0.9) == 0


def test_it_falls_and_is_no_higher_than_under_pgd(
    trained: MnistCNN, digits: tuple[Tensor, Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    quick(monkeypatch)
    x, y = digits[0][:12], digits[1][:12]
    keys = image_keys(torch.arange(12), seed=0, purpose="test")
    curve = security_curve(trained, x, y, radius=0.1, key=keys, batch_size=7)
    assert list(curve.right) == sorted(curve.right, reverse=True)
    assert curve.right[-1] == 0
    at = curve.radii.index(0.1)
    lost = PGD(eps=Pixels(0.1)).fools(trained, x, y, key=keys, batch_size=12)
    assert curve.right[at] <= int((~lost).sum())


def test_what_never_falls_ends_at_eps_1(monkeypatch: pytest.MonkeyPatch) -> None:
    quick(monkeypatch)

    class Constant(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.tensor([[1.0, 0.0]]).repeat(len(x), 1) + 0 * x.flatten(1)[:, :1]

    keys = image_keys(torch.arange(2), seed=0, purpose="test")
    labels = torch.zeros(2, dtype=torch.int64)
    curve = security_curve(Constant(), torch.rand(2, 1, 4, 4), labels, radius=0.5, key=keys)
    assert (curve.radii[-1], curve.right[-1]) == (1, 2)
    assert curve.accuracy(0.03) == 1


def test_a_csv_has_a_line_for_each_radius() -> None:
    text = curves_to_csv({"a": SecurityCurve(radii=[0, 0.1], right=[8, 2], images=10)})
    rows = list(csv.DictReader(text.splitlines()))
    assert [row["eps"] for row in rows] == ["0", "0.1"]
    assert [float(row["accuracy"]) for row in rows] == [0.8, 0.2]
    assert float(rows[1]["low"]) < 0.2 < float(rows[1]["high"])


def test_a_run_s_curve_has_the_network_before_pruning_beside_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    quick(monkeypatch)
    main(["fit", "--config", TINY])
    capsys.readouterr()
    main(["test", "--curve"])
    run = Path("lightning_logs/tiny/version_0")
    curves = json.loads((run / "security_curve.json").read_text())
    assert list(curves) == ["before pruning", "at the end"]
    assert curves["at the end"]["images"] == 60
    assert (run / "security_curve.png").is_file()
    assert not (run / "robustness.json").exists()
    assert "at the end" in capsys.readouterr().out
    main(["test", "--ckpt_path", "before_pruning", "--curve"])
    curves = json.loads((run / "security_curve_before_pruning.json").read_text())
    assert list(curves) == ["as tested"]
    attacks = "{none: {class_path: prunerob.attacks.NoAttack}}"
    told = refused(capsys, "test", "--curve", "--model.attacks", attacks)
    assert told.endswith("--curve: model.attacks holds no attack with an eps above 0")
