"""An artefact under attack: answers from the file, gradients from the network it was made from."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor, nn

from prunerob.artefacts.formats import Answers, Onnx
from prunerob.errors import UserError
from prunerob.networks.channels import Channels
from prunerob.runs.weights import load_weights


class ArtefactNetwork(nn.Module):
    """A network whose every answer is the file's.

    Its gradient is that of its twin, the float network that the file was made from, as if the file
    were it (straight-through): integers have none. Attacks that ask for answers alone see the file
    alone.

    Args:
        twin: in evaluation mode.
        answers: of the file; on the CPU.
    """

    def __init__(self, twin: nn.Module, answers: Answers) -> None:
        super().__init__()
        self.twin = twin
        self._answers = answers

    def channels(self) -> dict[str, Channels]:
        """None: the file cannot be narrowed, nor traced."""
        return {}

    def forward(self, x: Tensor) -> Tensor:
        """Logits, float32, (B, classes), of images (B, C, H, W), pixels in [0, 1]."""
        answered = self._answers(x.detach().float().cpu()).to(x.device)
        if not (torch.is_grad_enabled() and x.requires_grad):
            return answered
        with torch.autocast(x.device.type, enabled=False):
            straight: Tensor = self.twin(x.float())
        return straight + (answered - straight).detach()


class Attackable(Protocol):
    """What holds a network to attack."""

    network: nn.Module


def load_artefact(model: Attackable, file: Path) -> None:
    """Let a model answer from an ONNX file, with gradients from the twin beside it.

    Args:
        model: whose network has the twin's architecture.
        file: as `prunerob export` has written it, with twin.safetensors in its folder.

    Raises:
        UserError: one of the files is missing or damaged.
    """
    twin = file.with_name("twin.safetensors")
    if not twin.is_file():
        raise UserError(
            f"ckpt_path: {file} has no {twin.name} beside it, whose gradients attacks follow; make "
            "the file with `prunerob export`"
        )
    load_weights(model.network, twin)
    model.network = ArtefactNetwork(model.network.eval(), Onnx().open(file))
