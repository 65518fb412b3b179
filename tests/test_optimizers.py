"""TensorFlow's RMSprop, against its published update rule and against PyTorch's own."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from prunerob.optimizers import TensorFlowRMSprop


@given(
    st.lists(st.floats(-3, 3), min_size=1, max_size=8),
    st.floats(0, 0.99),
    st.sampled_from([1e-10, 1e-3]),
    st.sampled_from([0.0, 0.1]),
)
def test_it_is_tensorflow_s_rule(
    gradients: list[float], alpha: float, eps: float, weight_decay: float
) -> None:
    """mean = decay * mean + (1 - decay) * g^2, from 1; w -= lr * g / sqrt(mean + eps)."""
    weight, mean = np.float64(0.7), np.float64(1)
    parameter = torch.tensor(0.7, dtype=torch.float64, requires_grad=True)
    optimizer = TensorFlowRMSprop(
        [parameter], lr=0.01, alpha=alpha, eps=eps, weight_decay=weight_decay
    )
    for gradient in gradients:
        parameter.grad = torch.tensor(gradient, dtype=torch.float64)
        optimizer.step()
        g = gradient + weight_decay * weight
        mean = alpha * mean + (1 - alpha) * g * g
        weight -= 0.01 * g / np.sqrt(mean + eps)
    assert parameter.item() == pytest.approx(float(weight), abs=1e-12)


def test_its_first_step_is_small_where_pytorch_s_is_large() -> None:
    def first_step(kind: type[torch.optim.Optimizer], **settings: float) -> float:
        parameter = torch.zeros((), requires_grad=True)
        parameter.grad = torch.tensor(1e-3)
        kind([parameter], lr=0.001, **settings).step()  # type: ignore[call-arg]
        return abs(parameter.item())

    assert first_step(torch.optim.RMSprop, alpha=0.99) == pytest.approx(0.01, rel=1e-3)
    assert first_step(TensorFlowRMSprop, alpha=0.9) < 2e-6


def test_far_from_the_start_both_are_the_same() -> None:
    torch.manual_seed(0)
    gradients = torch.randn(400, 5)
    found = []
    for kind in (torch.optim.RMSprop, TensorFlowRMSprop):
        parameter = torch.zeros(5, requires_grad=True)
        optimizer = kind([parameter], lr=0.001, alpha=0.9, eps=1e-10)
        for i, gradient in enumerate(gradients):
            if i == 200:
                parameter.data.zero_()
            parameter.grad = gradient.clone()
            optimizer.step()
        found.append(parameter.detach())
    assert torch.allclose(*found, atol=1e-6)


@pytest.mark.parametrize(("name", "value"), [("lr", -1), ("alpha", 1), ("eps", -1)])
def test_bad_settings_are_refused(name: str, value: float) -> None:
    with pytest.raises(ValueError, match=f"{name} of TensorFlowRMSprop"):
        TensorFlowRMSprop([torch.zeros(1, requires_grad=True)], **{name: value})
