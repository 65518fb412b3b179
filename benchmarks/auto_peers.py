"""AutoAttack and its parts by others from PyPI, behind prunerob's signature, with its settings.

pyautoattack is the code of AutoAttack's authors. torchattacks has attacks of the same names, with
other defaults, set here to AutoAttack's; its own AutoAttack does less and is left out. foolbox has
none of them: its nearest are PGD with as many steps as Auto-PGD, and FMN (Pintor et al., 2021),
which looks for the nearest boundary as FAB does.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib.metadata import version
from importlib.util import find_spec

from torch import Tensor, nn

from benchmarks.peers import Run
from prunerob.attacks import APGD, FAB, AutoAttack, Square


def apgd(attack: APGD) -> Mapping[str, Run]:
    """The peers' forms of Auto-PGD on the cross-entropy, by name and version."""

    def authors(network: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        from pyautoattack.autopgd_base import APGDAttack

        eps = float(attack.eps)
        theirs = APGDAttack(network, n_iter=attack.steps, eps=eps, device=x.device)
        x_adv: Tensor = theirs.perturb(x, y)
        return x_adv

    def torchattacks(network: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        import torchattacks as library

        theirs = library.APGD(network, eps=float(attack.eps), steps=attack.steps)
        x_adv: Tensor = theirs(x, y)
        return x_adv

    def foolbox(network: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        from foolbox.attacks import LinfPGD

        return _by_foolbox(LinfPGD(steps=attack.steps), network, x, y, float(attack.eps))

    return _installed(
        ("pyautoattack", "", authors),
        ("torchattacks", "", torchattacks),
        ("foolbox", "PGD", foolbox),
    )


def fab(attack: FAB) -> Mapping[str, Run]:
    """The peers' forms of targeted FAB, by name and version."""

    def authors(network: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        from pyautoattack.fab_pt import FABAttack_PT

        theirs = FABAttack_PT(
            network,
            n_iter=attack.steps,
            n_target_classes=attack.targets,
            targeted=True,
            eps=float(attack.eps),
            device=x.device,
        )
        x_adv: Tensor = theirs.perturb(x, y)
        return x_adv

    def torchattacks(network: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        import torchattacks as library

        theirs = library.FAB(
            network,
            eps=float(attack.eps),
            steps=attack.steps,
            multi_targeted=True,
            n_classes=attack.targets + 1,
        )
        x_adv: Tensor = theirs(x, y)
        return x_adv

    def foolbox(network: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        from foolbox.attacks import LInfFMNAttack

        return _by_foolbox(LInfFMNAttack(steps=attack.steps), network, x, y, float(attack.eps))

    return _installed(
        ("pyautoattack", "", authors),
        ("torchattacks", "", torchattacks),
        ("foolbox", "FMN", foolbox),
    )


def square(attack: Square) -> Mapping[str, Run]:
    """The peers' forms of the Square attack, by name and version."""

    def authors(network: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        from pyautoattack.square import SquareAttack

        theirs = SquareAttack(
            network,
            n_queries=attack.queries,
            eps=float(attack.eps),
            resc_schedule=False,
            device=x.device,
        )
        x_adv: Tensor = theirs.perturb(x, y)
        return x_adv

    def torchattacks(network: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        import torchattacks as library

        theirs = library.Square(
            network, eps=float(attack.eps), n_queries=attack.queries, resc_schedule=False
        )
        x_adv: Tensor = theirs(x, y)
        return x_adv

    return _installed(("pyautoattack", "", authors), ("torchattacks", "", torchattacks))


def suite(attack: AutoAttack) -> Mapping[str, Run]:
    """AutoAttack, standard, by its authors, by name and version."""

    def authors(network: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        from pyautoattack import AutoAttack as Original

        theirs = Original(network, eps=float(attack.eps), seed=0, device=x.device)
        x_adv: Tensor = theirs.run_standard_evaluation(x, y, batch_size=len(x))[0]
        return x_adv

    return _installed(("pyautoattack", "", authors))


def _by_foolbox(
    attack: Callable[..., tuple[object, Tensor, object]],
    network: nn.Module,
    x: Tensor,
    y: Tensor,
    eps: float,
) -> Tensor:
    """Run one of foolbox's; an example that lies too far away is moved into the ball."""
    from foolbox import PyTorchModel

    model = PyTorchModel(network.eval(), bounds=(0, 1), device=x.device)
    return attack(model, x, y, epsilons=eps)[1]


def _installed(*runs: tuple[str, str, Run]) -> Mapping[str, Run]:
    """Those whose package can be imported, by its name and version and what it does instead."""
    return {
        f"{package} {version(package)}" + (f", {instead}" if instead else ""): run
        for package, instead, run in runs
        if find_spec(package)
    }
