"""PGD by the attack libraries from PyPI, behind prunerob's own signature.

Each is called as its documentation shows, on a network in the default layout, with the same
settings: a uniform random start, steps along the sign of the cross-entropy's gradient, float32.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib.metadata import version
from importlib.util import find_spec

import numpy as np
import torch
from torch import Tensor, nn

from prunerob.attacks import PGD

Run = Callable[[nn.Module, Tensor, Tensor], Tensor]


def torchattacks(attack: PGD) -> Run:
    """PGD by torchattacks (Kim, arXiv:2010.01950)."""
    import torchattacks as library

    def run(network: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        settings = {"eps": float(attack.eps), "alpha": float(attack.step_size)}
        theirs = library.PGD(network, steps=attack.steps, random_start=True, **settings)
        x_adv: Tensor = theirs(x, y)
        return x_adv

    return run


def foolbox(attack: PGD) -> Run:
    """PGD by foolbox (Rauber et al., 2020)."""
    from foolbox import PyTorchModel
    from foolbox.attacks import LinfPGD

    def run(network: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        model = PyTorchModel(network.eval(), bounds=(0, 1), device=x.device)
        theirs = LinfPGD(abs_stepsize=float(attack.step_size), steps=attack.steps)
        x_adv: Tensor = theirs.run(model, x, y, epsilon=float(attack.eps))
        return x_adv

    return run


def art(attack: PGD) -> Run:
    """PGD by the Adversarial Robustness Toolbox (Nicolae et al., arXiv:1807.01069)."""
    from art.attacks.evasion.projected_gradient_descent.projected_gradient_descent_pytorch import (
        ProjectedGradientDescentPyTorch,
    )
    from art.estimators.classification import PyTorchClassifier

    def run(network: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        model = PyTorchClassifier(
            network.eval(),
            loss=nn.CrossEntropyLoss(),
            input_shape=tuple(x.shape[1:]),
            nb_classes=10,
            clip_values=(0.0, 1.0),
            device_type="gpu" if x.device.type == "cuda" else "cpu",
        )
        theirs = ProjectedGradientDescentPyTorch(
            model,
            norm=np.inf,
            eps=float(attack.eps),
            eps_step=float(attack.step_size),
            max_iter=attack.steps,
            num_random_init=1,
            batch_size=len(x),
            verbose=False,
        )
        return torch.from_numpy(theirs.generate(x.cpu().numpy(), y.cpu().numpy())).to(x.device)

    return run


def installed() -> dict[str, Callable[[PGD], Run]]:
    """The peers that can be imported, by name and version."""
    packages = {
        "torchattacks": ("torchattacks", "torchattacks", torchattacks),
        "foolbox": ("foolbox", "foolbox", foolbox),
        "ART": ("art", "adversarial-robustness-toolbox", art),
    }
    return {
        f"{name} {version(package)}": run
        for name, (module, package, run) in packages.items()
        if find_spec(module)
    }
