"""Optimizers that PyTorch has only otherwise."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.optimizer import ParamsT


class TensorFlowRMSprop(Optimizer):
    """RMSprop as TensorFlow 1 has it (`tf.train.RMSPropOptimizer`), with its constants.

    The running mean of squared gradients begins at 1, where PyTorch's begins at 0, and eps stands
    within the root. The first steps are therefore small, where PyTorch's moves every weight by
    lr / sqrt(1 - alpha), 0.01 at the rate 0.001 and alpha 0.99, whatever the gradient.

    Args:
        params: parameters, or groups of them.
        lr: learning rate.
        alpha: of the running mean, TensorFlow's `decay`, in [0, 1).
        eps: added to the mean before its root is taken, TensorFlow's `epsilon`.
        weight_decay: factor of the weights that is added to the gradients.
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float = 0.001,
        alpha: float = 0.9,
        eps: float = 1e-10,
        weight_decay: float = 0.0,
    ) -> None:
        for name, value in (("lr", lr), ("eps", eps), ("weight_decay", weight_decay)):
            if value < 0:
                raise ValueError(f"{name} of TensorFlowRMSprop: {value} is below 0")
        if not 0 <= alpha < 1:
            raise ValueError(f"alpha of TensorFlowRMSprop: {alpha} lies outside [0, 1)")
        settings = {"lr": lr, "alpha": alpha, "eps": eps, "weight_decay": weight_decay}
        super().__init__(params, settings)

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Take one step.

        Args:
            closure: computes the loss anew, and its gradients.

        Returns:
            what the closure returned.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._update(parameter, parameter.grad, group)
        return loss

    def _update(self, parameter: Tensor, gradient: Tensor, group: dict[str, float]) -> None:
        if group["weight_decay"]:
            gradient = gradient.add(parameter, alpha=group["weight_decay"])
        state = self.state[parameter]
        if not state:
            state["square_avg"] = torch.ones_like(parameter, memory_format=torch.preserve_format)
        mean = state["square_avg"]
        mean.mul_(group["alpha"]).addcmul_(gradient, gradient, value=1 - group["alpha"])
        parameter.addcdiv_(gradient, (mean + group["eps"]).sqrt_(), value=-group["lr"])
