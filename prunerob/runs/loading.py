"""Trained networks, loaded by where they lie."""

from __future__ import annotations

from pathlib import Path

from torch import nn

from prunerob.errors import UserError
from prunerob.runs.configuration import instantiate
from prunerob.runs.plain import read_yaml
from prunerob.runs.weights import Weights, find_weights, load_weights


def find_trained(place: str) -> Weights:
    """The weights that are meant; those of the zoo need no ending.

    Args:
        place: a run's folder, a checkpoint, or weights with their configuration beside them.

    Raises:
        UserError: nothing is there.
    """
    bare = Path(f"{place}.safetensors")
    return find_weights(str(bare) if bare.is_file() else place)


def load(place: str | Path) -> nn.Module:
    """Load a trained network, in evaluation mode, on the CPU.

    Args:
        place: a run's folder, a checkpoint, or weights with their configuration beside them, with
            or without their ending: "zoo/mnist_pgd_weight-0.94". The configuration names classes
            to import: treat one from a stranger as you would a program.

    Returns:
        the network, from pixels in [0, 1] to logits.

    Raises:
        UserError: there is none, or it does not fit its configuration.
    """
    weights = find_trained(str(place))
    if weights.config is None:
        raise UserError(f"{weights.file}: no configuration lies with it that names the network")
    record = read_yaml(weights.config)
    try:
        network = instantiate(record["model"]["network"])  # type: ignore[index]
    except (KeyError, TypeError, ImportError, AttributeError, ValueError) as error:
        raise UserError(f"{weights.config}: model.network cannot be made ({error})") from None
    load_weights(network, weights.file)
    network.eval()
    assert isinstance(network, nn.Module)
    return network
