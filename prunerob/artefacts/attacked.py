"""An artefact under attack: answers from the file, gradients from the network it was made from."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from prunerob.artefacts.format import Answers, sha256
from prunerob.artefacts.formats import format_of
from prunerob.artefacts.plain import Safetensors
from prunerob.artefacts.trial import try_out
from prunerob.attacks import Attack
from prunerob.attacks.suite import Suite
from prunerob.data.images import ImageDataModule
from prunerob.errors import UserError
from prunerob.networks.attacked import AttackedNetwork
from prunerob.networks.channels import Channels
from prunerob.networks.narrow import find_narrowing
from prunerob.robustness.diagnostics import is_above
from prunerob.robustness.table import Robustness
from prunerob.runs.weights import load_weights

TWIN, CARD = "twin.safetensors", "MODEL_CARD.json"
"""Beside every artefact: the float network's weights in full shape, and what is known of it all."""
STRAIGHT = "straight through, the float network's"
TRANSFERRED = "none: the float network's examples"
NONE = "none: answers alone"
SUFFIX = ", transferred"
"""Of a row's name, whose attack was made against the float network."""


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


@dataclass(frozen=True)
class Transferred(Attack):
    """Another attack's examples, made against another network.

    Args:
        attack: that makes them.
        twin: that they are made against, in evaluation mode.
        images: on how many test images it is tried; None for all.
    """

    attack: Attack
    twin: nn.Module = field(compare=False, repr=False)
    images: int | None = None

    @property
    def radius(self) -> float | None:
        """That of the attack."""
        return self.attack.radius

    @property
    def sample(self) -> int | None:
        """On how many test images a test tries it; None for all of them."""
        return self.images

    @property
    def fewest_classes(self) -> int:
        """As the attack's."""
        return self.attack.fewest_classes

    def perturb(
        self, network: nn.Module, x: Tensor, y: Tensor, eps: Tensor | None, key: Tensor
    ) -> Tensor:
        """Attack the twin, whatever the network."""
        return self.attack(self.twin, x, y, eps=eps, key=key)


@dataclass(frozen=True)
class Artefact:
    """A file that stands for a network in a test.

    Args:
        file: as `prunerob export` has written it.
        network: whose answers are the file's.
        suite: what it is attacked with, transferred examples among it.
    """

    file: Path
    network: ArtefactNetwork
    suite: Suite

    def gradients(self) -> Mapping[str, str]:
        """How each attack came by gradients, by the name of its row."""
        return {
            name: TRANSFERRED
            if isinstance(attack, Transferred)
            else " and ".join(dict.fromkeys(map(_gradient, _parts(attack))))
            for name, attack in self.suite.attacks.items()
        }

    def told(self, robustness: Robustness) -> Robustness:
        """The table of a test, with how each row came by its gradients."""
        gradients = self.gradients()
        rows = [replace(row, gradients=gradients.get(row.attack, "")) for row in robustness.rows]
        return replace(robustness, rows=rows)

    def review(self, robustness: Robustness) -> list[str]:
        """Warnings, a line each: of examples that transfer where attacks on the file fail."""
        warnings = []
        for name, attack in self.suite.attacks.items():
            own = name.removesuffix(SUFFIX)
            if not isinstance(attack, Transferred) or own not in robustness.predictions:
                continue
            both = robustness.attacked(name) & robustness.attacked(own)
            theirs, ours = (robustness.correct(row)[both] for row in (name, own))
            if is_above(ours, theirs):
                shares = [f"{100 * float(right.float().mean()):.1f} %" for right in (theirs, ours)]
                warnings.append(
                    f"{name}: the float network's examples leave {shares[0]} of the images right, "
                    f"and {own} on the file itself {shares[1]}: its gradients mislead"
                )
        return warnings


def _parts(attack: Attack) -> list[Attack]:
    return [part for _, part in attack.stages] or [attack]


def _gradient(attack: Attack) -> str:
    return STRAIGHT if attack.sees_gradients else NONE


def with_transferred(suite: Suite, twin: nn.Module) -> Suite:
    """A suite that also tries the float network's examples, of each attack that follows gradients.

    AutoAttack's, too, though that doubles its cost: integers round away what its last part, which
    asks for answers alone, would find on the file, and examples of the float network get through.

    Args:
        suite: of the configuration.
        twin: the float network, in evaluation mode.
    """
    made = {
        f"{name}{SUFFIX}": Transferred(attack, twin, attack.sample)
        for name, attack in suite.attacks.items()
        if any(part.sees_gradients for part in _parts(attack))
    }
    return Suite({**suite.attacks, **made}, suite.worst_case_attacks)


def load_artefact(
    file: Path, network: nn.Module, suite: Suite, data: ImageDataModule
) -> Artefact | None:
    """Open a file that `prunerob export` has written; None for bare weights and checkpoints.

    A file of anyone's: nothing in it runs, and one that brings down its reader is told in a line.

    Args:
        file: an artefact, with twin.safetensors in its folder.
        network: of the twin's architecture; takes its weights.
        suite: what the artefact is to be attacked with.
        data: the test images.

    Raises:
        UserError: it is damaged or changed, or does not go with its twin.
    """
    form = format_of(file)
    if form is None:
        return None
    twin = file.with_name(TWIN)
    if not twin.is_file():
        raise UserError(
            f"ckpt_path: {file} has no {twin.name} beside it, whose gradients attacks follow; make "
            "the file with `prunerob export`"
        )
    _check_unchanged(file)
    load_weights(network, twin)
    data.prepare_data()
    data.setup("test")
    x = data.test_sample(2).x
    if not isinstance(form, Safetensors):  # tensors alone, and our own layers
        try_out(file, x.shape[1:])
    answers = form.open(file, network=network)
    fast = AttackedNetwork(network.eval(), find_narrowing(network))(x)
    with torch.no_grad():
        expected, found = fast(x).shape, answers(x).shape
    if found != expected:
        raise UserError(
            f"{file}: answers {tuple(found)} to {len(x)} images, and the network that it was made "
            f"from {tuple(expected)}"
        )
    artefact = ArtefactNetwork(fast, answers).eval()
    return Artefact(file, artefact, with_transferred(suite, fast))


def _check_unchanged(file: Path) -> None:
    """See that a file is the one that its card tells of.

    Raises:
        UserError: it has another checksum.
    """
    try:
        known = json.loads(file.with_name(CARD).read_text("utf-8"))["files"][file.name]["sha256"]
    except Exception:  # no card, or one that does not tell; a stranger's may fail in any way
        return
    if sha256(file) != known:
        raise UserError(
            f"{file} is not the file that {CARD} beside it tells of: its checksum is another; "
            "export it again"
        )
