"""The model card: what an artefact is, how it was made, attacked and checked."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from torch import nn

from prunerob import __version__
from prunerob.artefacts.agreement import Agreement
from prunerob.artefacts.speed import Latency
from prunerob.errors import UserError
from prunerob.robustness.table import Robustness
from prunerob.runs.weights import Weights
from prunerob.training.checkpoints import processor

LICENCES = {
    "prunerob.data.MNIST": "MNIST, Y. LeCun, C. Cortes and C. Burges: CC BY-SA 3.0",
    "prunerob.data.CIFAR10": "CIFAR-10, A. Krizhevsky: no licence stated; cite his report of 2009",
}
"""Of the training images, by the data's class."""


def make_card(
    weights: Weights,
    config: Mapping[str, Any],
    network: nn.Module,
    exported: nn.Module,
    agreements: Mapping[Path, Agreement],
    speed: Mapping[str, Sequence[Latency]],
    command: str,
) -> dict[str, Any]:
    """All that is known of an artefact, in plain values.

    Args:
        weights: that it was made from; what a test of them found is part of the card.
        config: of the run, in plain values.
        network: in its full shape.
        exported: what went into the files.
        agreements: of each file with the network.
        speed: of each file, and of the network that no channels were taken out of.
        command: that repeats the export.
    """
    stem = weights.result("robustness")
    try:
        robustness, about = Robustness.read(stem)
    except (UserError, OSError):
        rows, about = [], {}
    else:
        rows = [
            {
                "attack": row.attack,
                "accuracy": row.accuracy,
                "low": row.interval[0],
                "high": row.interval[1],
                "images": row.images,
            }
            for row in robustness.rows
        ]
    attacks = about.get("suite", {}).get("attacks", {})
    data = str(config["data"]["class_path"])
    return {
        "network": config["model"]["network"],
        "parameters": {"full": _count(network), "exported": _count(exported)},
        "non_zero_parameters": int(sum(int(p.count_nonzero()) for p in exported.parameters())),
        "training": {
            "data": config["data"],
            "epochs": config["trainer"]["max_epochs"],
            "adversarial_training": config["model"]["adversarial_training"],
            "fine_tuning": config["model"]["fine_tuning"],
        },
        "pruning": config["pruning"],
        "data_licence": LICENCES.get(data, f"of the authors of {data}"),
        "attacked": rows,
        "attacks": attacks,
        "warnings": about.get("warnings", []),
        "files": {
            file.name: {
                "bytes": file.stat().st_size,
                "sha256": _sha256(file),
                "agreement": str(agreement),
            }
            for file, agreement in agreements.items()
        },
        "milliseconds": {name: [asdict(one) for one in of_it] for name, of_it in speed.items()},
        "hardware": processor(),
        "weights": {"file": weights.file.name, "sha256": _sha256(weights.file)},
        "prunerob": __version__,
        "command": command,
    }


def _count(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


def _sha256(file: Path) -> str:
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def to_json(card: Mapping[str, Any]) -> str:
    """For programs."""
    return json.dumps(card, indent=2, ensure_ascii=False) + "\n"


def to_markdown(card: Mapping[str, Any]) -> str:
    """For people."""
    network = str(card["network"]["class_path"]).rpartition(".")[2]
    pruning, counts = card["pruning"], card["parameters"]
    lines = [f"# {network}, pruned and attacked", ""]
    amount = pruning["amount"] if pruning["epoch"] is not None else 0
    pruned = f"{100 * amount:g} % by {pruning['criterion']}" if amount else "nothing"
    lines += [
        "Takes images, float32, (B, C, H, W), pixels in [0, 1]; answers logits, (B, classes). "
        "Normalisation is inside.",
        "",
        f"- Trained for {card['training']['epochs']} epochs on "
        f"{card['training']['data']['class_path']} ({card['data_licence']})",
        f"- Pruned: {pruned}",
        f"- Parameters: {counts['full']:,} before channels were taken out, "
        f"{counts['exported']:,} in the file, {card['non_zero_parameters']:,} of them not 0. A "
        "zero takes as many bytes and as much time as any other number",
        "",
        "## Accuracy",
        "",
    ]
    if card["attacked"]:
        lines += ["| attack | accuracy, % | 95 % interval | images |", "|---|---|---|---|"]
        lines += [
            f"| {row['attack']} | {100 * row['accuracy']:.1f} | {100 * row['low']:.1f} to "
            f"{100 * row['high']:.1f} | {row['images']:,} |"
            for row in card["attacked"]
        ]
        lines += [
            "",
            "Measured on the network that the files were made from, not on the files, which agree "
            "with it as below. Threat model: L-infinity balls, in pixel units of [0, 1]:",
            "",
        ]
        lines += [
            f"- {name}: {str(attack['class_path']).rpartition('.')[2]}, "
            + ", ".join(f"{k} {v}" for k, v in attack.get("init_args", {}).items())
            for name, attack in card["attacks"].items()
        ]
    else:
        lines += ["**Not attacked**: these weights have not been tested (`prunerob test`)."]
    lines += ["", "## Warnings", ""]
    none = ["None was raised."] if card["attacked"] else ["None was looked for."]
    lines += [f"- {warning}" for warning in card["warnings"]] or none
    lines += ["", "## Files", "", "| file | bytes | agrees with the network |", "|---|---|---|"]
    lines += [f"| {n} | {f['bytes']:,} | {f['agreement']} |" for n, f in card["files"].items()]
    lines += [
        "",
        "## Speed",
        "",
        f"On one thread of {card['hardware'].partition(',')[0]}, in turn:",
    ]
    lines += ["", "| | images | ms, median | ms, 95 % below |", "|---|---|---|---|"]
    lines += [
        f"| {name} | {one['images']} | {one['p50']:.3g} | {one['p95']:.3g} |"
        for name, of_it in card["milliseconds"].items()
        for one in of_it
    ]
    lines += ["", *(f"- sha256 of {n}: {f['sha256']}" for n, f in card["files"].items())]
    lines += [f"- sha256 of {card['weights']['file']}: {card['weights']['sha256']}", ""]
    lines += [f"Made by prunerob {card['prunerob']}:", "", f"    {card['command']}"]
    return "\n".join(lines) + "\n"
