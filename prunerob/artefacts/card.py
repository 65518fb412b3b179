"""The model card: what an artefact is, how it was made, attacked and checked."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from pytorch_lightning.utilities import rank_zero_warn
from torch import nn

from prunerob import __version__
from prunerob.artefacts.agreement import Agreement
from prunerob.artefacts.attacked import CARD
from prunerob.artefacts.format import Source, sha256
from prunerob.artefacts.quantize import CALIBRATION
from prunerob.artefacts.speed import Latency, flops
from prunerob.runs.folder import write_whole
from prunerob.runs.weights import Weights
from prunerob.training.checkpoints import processor

LICENCES = {
    "prunerob.data.MNIST": "MNIST, Y. LeCun, C. Cortes and C. Burges: CC BY-SA 3.0",
    "prunerob.data.CIFAR10": "CIFAR-10, A. Krizhevsky: no licence stated; cite his report of 2009",
}
"""Of the training images, by the data's class."""
NETWORK = "the network"


def make_card(
    weights: Weights,
    config: Mapping[str, Any],
    source: Source,
    agreements: Mapping[Path, Agreement],
    speed: Mapping[str, Sequence[Latency]],
    command: str,
) -> dict[str, Any]:
    """All that is known of an artefact, in plain values.

    Args:
        weights: that it was made from; what a test of them found is part of the card.
        config: of the run, in plain values.
        source: what went into the files.
        agreements: of each file with the network.
        speed: of each file, and of the network that no channels were taken out of.
        command: that repeats the export.
    """
    data = str(config["data"]["class_path"])
    found = tested(weights)
    networks = {"full": source.network, "exported": source.exported}
    return {
        "network": config["model"]["network"],
        "parameters": {name: _count(network) for name, network in networks.items()},
        "non_zero_parameters": int(
            sum(int(p.count_nonzero()) for p in source.exported.parameters())
        ),
        "flops": {name: flops(network, source.shape) for name, network in networks.items()},
        "training": {
            "data": config["data"],
            "epochs": config["trainer"]["max_epochs"],
            "adversarial_training": config["model"]["adversarial_training"],
            "fine_tuning": config["model"]["fine_tuning"],
        },
        "pruning": config["pruning"],
        "data_licence": LICENCES.get(data, f"of the authors of {data}"),
        "attacked": {NETWORK: found} if found else {},
        "files": {
            file.name: {
                "bytes": file.stat().st_size,
                "sha256": sha256(file),
                "agreement": str(agreement),
            }
            for file, agreement in agreements.items()
        },
        "milliseconds": {name: [asdict(one) for one in of_it] for name, of_it in speed.items()},
        "hardware": processor(),
        "weights": {"file": weights.file.name, "sha256": sha256(weights.file)},
        "prunerob": __version__,
        "command": command,
    }


def tested(weights: Weights) -> dict[str, Any] | None:
    """What a test of weights has found, in plain values; None if they were not tested.

    Args:
        weights: of a run, or bare: robustness.json, or the table that networks of the zoo have.
    """
    stem = weights.result("robustness")
    beside = weights.file.with_name(f"{weights.file.stem}_table.json")
    for file in (stem.with_name(f"{stem.name}.json"), beside):
        if file.is_file() and (found := _read_test(file)):
            return found
    return None


def _read_test(file: Path) -> dict[str, Any] | None:
    """The rows of a test's JSON with the attacks behind them; None where it is damaged."""
    try:
        about = json.loads(file.read_text("utf-8"))
        rows = [
            {
                "attack": str(row["attack"]),
                "accuracy": float(row["accuracy"]),
                "low": float(row["interval"][0]),
                "high": float(row["interval"][1]),
                "images": int(row["images"]),
                "gradients": str(row.get("gradients", "")),
            }
            for row in about["rows"]
        ]
        attacks = {
            str(name): {
                "class_path": str(attack["class_path"]),
                "init_args": dict(attack.get("init_args") or {}),
            }
            for name, attack in about["suite"]["attacks"].items()
        }
        warnings = [str(warning) for warning in about.get("warnings", [])]
    except Exception:  # a damaged file can fail in any way
        return None
    return {"rows": rows, "attacks": attacks, "warnings": warnings}


def note_test(file: Path, result: Path) -> None:
    """Enter a test of an artefact into the card beside it, if there is one that knows the file.

    Args:
        file: that was tested.
        result: JSON of the test.
    """
    place = file.with_name(CARD)
    try:
        card = json.loads(place.read_text("utf-8"))
        if file.name in card["files"] and (found := _read_test(result)):
            card["attacked"][file.name] = found
            write_card(card, place.parent)
    except FileNotFoundError:
        return
    except Exception as error:  # a stranger's card may fail in any way, and is no reason to stop
        rank_zero_warn(f"{place} is damaged, so the test is not entered into it ({error!r:.100})")


def write_card(card: Mapping[str, Any], folder: Path) -> None:
    """Write MODEL_CARD.json and .md into a folder."""
    texts = to_markdown(card), json.dumps(card, indent=2, ensure_ascii=False) + "\n"
    for suffix, text in zip((".md", ".json"), texts, strict=True):
        write_whole((folder / CARD).with_suffix(suffix), text)


def _count(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


def to_markdown(card: Mapping[str, Any]) -> str:
    """For people."""
    network = str(card["network"]["class_path"]).rpartition(".")[2]
    pruning, counts, operations = card["pruning"], card["parameters"], card["flops"]
    amount = pruning["amount"] if pruning["epoch"] is not None else 0
    pruned = f"{100 * amount:g} % by {pruning['criterion']}" if amount else "nothing"
    lines = [
        f"# {network}, pruned and attacked",
        "",
        "Takes images, float32, (B, C, H, W), pixels in [0, 1]; answers logits, (B, classes). "
        "Normalisation is inside.",
        "",
        f"- Trained for {card['training']['epochs']} epochs on "
        f"{card['training']['data']['class_path']} ({card['data_licence']})",
        f"- Pruned: {pruned}",
        f"- Parameters: {counts['full']:,} before channels were taken out, "
        f"{counts['exported']:,} in the file, {card['non_zero_parameters']:,} of them not 0. A "
        "zero takes as much time as any other number",
        f"- Operations for an image: {operations['full']:,} before, {operations['exported']:,} in "
        "the file",
        "",
        "## Accuracy",
        "",
        *_accuracy(card["attacked"]),
        "## Files",
        "",
        "| file | bytes | agrees with the network |",
        "|---|---|---|",
        *(f"| {n} | {f['bytes']:,} | {f['agreement']} |" for n, f in card["files"].items()),
        "",
        *_integers(card["files"]),
        "## Speed",
        "",
        f"On {card['hardware'].partition(',')[0]}, in turn:",
        "",
        "| | images | threads | ms, median | ms, 95 % below |",
        "|---|---|---|---|---|",
        *(
            f"| {name} | {one['images']} | {one['threads']} | {one['p50']:.3g} | {one['p95']:.3g} |"
            for name, of_it in card["milliseconds"].items()
            for one in of_it
        ),
        "",
        *(f"- sha256 of {n}: {f['sha256']}" for n, f in card["files"].items()),
        f"- sha256 of {card['weights']['file']}: {card['weights']['sha256']}",
        "",
        f"Made by prunerob {card['prunerob']}:",
        "",
        f"    {card['command']}",
    ]
    return "\n".join(lines) + "\n"


def _integers(files: Mapping[str, Any]) -> list[str]:
    """How files of integers were made, if there are any."""
    if not any(".int8." in name for name in files):
        return []
    return [
        "Integers have 8 bits, with a scale for each channel of weights; ranges of activations, "
        f"where they are fixed, come from {CALIBRATION} training images.",
        "",
    ]


def _accuracy(attacked: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """What attacks leave, of the network and of each file, with warnings and threat model."""
    if not attacked:
        return [
            "**Not attacked**: neither the network nor a file has been tested (`prunerob test`).",
            "",
        ]
    lines = ["| | attack | accuracy, % | 95 % interval | images | gradients |"]
    lines += ["|---|---|---|---|---|---|"]
    lines += [
        f"| {name} | {row['attack']} | {100 * row['accuracy']:.1f} | {100 * row['low']:.1f} to "
        f"{100 * row['high']:.1f} | {row['images']:,} | {row['gradients']} |"
        for name, test in attacked.items()
        for row in test["rows"]
    ]
    if list(attacked) == [NETWORK]:
        lines += ["", "Measured on the network, not on the files, which agree with it as below."]
    lines += ["", "Threat model: L-infinity balls, in pixel units of [0, 1]:", ""]
    attacks = {
        name: attack for test in attacked.values() for name, attack in test["attacks"].items()
    }
    lines += [
        f"- {name}: {str(attack['class_path']).rpartition('.')[2]}, "
        + ", ".join(f"{k} {v}" for k, v in attack.get("init_args", {}).items())
        for name, attack in attacks.items()
    ]
    told = [f"- {name}: {text}" for name, test in attacked.items() for text in test["warnings"]]
    return [*lines, "", "## Warnings", "", *(told or ["None was raised."]), ""]
