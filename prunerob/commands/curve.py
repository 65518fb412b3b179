"""`prunerob test --curve`: accuracy against eps, of a network and of the one before pruning."""

from __future__ import annotations

from pathlib import Path

from pytorch_lightning.utilities import rank_zero_info
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from torch import nn

from prunerob.data.images import ImageDataModule
from prunerob.errors import UserError
from prunerob.networks.attacked import AttackedNetwork
from prunerob.networks.narrow import find_narrowing
from prunerob.noise import image_keys
from prunerob.reports.figures import curve_figure, save
from prunerob.robustness.curve import SecurityCurve, curves_to_csv, curves_to_json, security_curve
from prunerob.runs.folder import write_whole
from prunerob.runs.weights import Weights, network_before_pruning
from prunerob.training.classifier import Classifier

IMAGES = 200
"""Test images behind a curve, stratified by class."""


def draw_curves(model: Classifier, data: ImageDataModule, weights: Weights) -> list[Path]:
    """Measure, show and write the security curves.

    Args:
        model: with the weights loaded, on its device.
        data: whose test images are attacked.
        weights: that were loaded; beside those of a pruned run's end stands the network before.

    Returns:
        the files.

    Raises:
        UserError: no attack of the suite says at which radius to measure.
    """
    radius = max((attack.radius or 0.0 for attack in model.suite.attacks.values()), default=0.0)
    if not radius:
        raise UserError("--curve: model.attacks holds no attack with an eps above 0")
    networks: dict[str, nn.Module] = {"as tested": model.network}
    if (dense := network_before_pruning(model.network, weights)) is not None:
        networks = {"before pruning": dense, "at the end": model.network}
    curves = {name: _curve(net, data, model, radius) for name, net in networks.items()}
    _show(curves)
    stem = weights.result("security_curve")
    files = [stem.with_name(f"{stem.name}.{ending}") for ending in ("csv", "json")]
    write_whole(files[0], curves_to_csv(curves))
    write_whole(files[1], curves_to_json(curves))
    return files + save(curve_figure(curves, radius), stem)


def _curve(
    network: nn.Module, data: ImageDataModule, model: Classifier, radius: float
) -> SecurityCurve:
    x, y, index = (column.to(model.device) for column in data.test_sample(IMAGES))
    attacked = AttackedNetwork(network, find_narrowing(network))
    key = image_keys(index, seed=model.seed, purpose="test")
    return security_curve(
        attacked(x), x, y, radius=radius, key=key, batch_size=data.eval_batch_size
    )


def _show(curves: dict[str, SecurityCurve]) -> None:
    table = Table(title="Accuracy against the attacker's eps")
    table.add_column("eps", justify="right")
    for name in curves:
        table.add_column(escape(name), justify="right")
    longest = max((curve.radii for curve in curves.values()), key=len)
    for eps in longest:
        table.add_row(f"{eps:.4g}", *(f"{curve.accuracy(eps):.1%}" for curve in curves.values()))
    console = Console()
    console.print(table)
    images = next(iter(curves.values())).images
    rank_zero_info(
        f"On {images} test images, by APGD and Square, each shorter than in AutoAttack, whose "
        "table `prunerob test` writes: no network is more robust than this"
    )
