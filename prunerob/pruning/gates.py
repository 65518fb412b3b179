"""Gates: a copy of a network in which weights or filters are switched off one by one."""

from __future__ import annotations

import copy
from collections.abc import Collection, Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from prunerob.networks.channels import Channels, channels_of, part_of
from prunerob.networks.parts import Part
from prunerob.pruning.masks import Masks
from prunerob.pruning.scores import Unit, filters_of, weights_of

Gates = Mapping[str, Tensor]
"""By parameter name, float, 1 for what is on and 0 for what is off: in the scores' shapes."""


class Gated:
    """A network whose weights, or filters, are multiplied by gates, and have gradients by them.

    A filter's gate sits where its channel is read, on the weights of its readers: behind a ReLU, a
    channel that is silenced at its source would have no gradient, and could never come back. Where
    it has no readers of its own, as on a residual stream, its gate sits on its own weights, its
    bias and the normalisation that serves it; a channel of the stream that nothing writes to any
    more still has the shift of the stream's own normalisation.

    Args:
        network: is copied: neither it nor its statistics change.
        unit: what a gate switches.
        names: of the weights of the layers that have gates.
    """

    def __init__(self, network: nn.Module, unit: Unit, names: Collection[str]) -> None:
        self.network = copy.deepcopy(network).requires_grad_(False)
        """The copy, with everything that is off at 0; to attack, to train statistics with."""
        of_all = weights_of(network) if unit == "weights" else filters_of(network)
        self.weights = {n: weight.detach() for n, weight in of_all if n in names}
        """The weights, as they are, that have gates."""
        self.unit = unit
        self._places: dict[str, list[tuple[str, _Place | None]]] = {}
        if unit == "weights":
            self._places = {name: [(name, None)] for name in self.weights}
        else:
            channels = channels_of(network)
            for name, weight in self.weights.items():
                leads = channels[name.removesuffix(".weight")]
                for place in _places(network, name.removesuffix(".weight"), leads, len(weight)):
                    self._places.setdefault(place.parameter, []).append((name, place))
        self._values = {n: network.get_parameter(n).detach().clone() for n in self._places}

    def gates(self, masks: Masks) -> dict[str, Tensor]:
        """The gates that masks stand for; what they do not mention is on."""
        gates = {}
        for name, weight in self.weights.items():
            mask = masks.get(name, torch.ones_like(weight, dtype=torch.bool)).to(weight.device)
            on = mask if self.unit == "weights" else mask.flatten(1).any(1)
            gates[name] = on.to(weight.dtype)
        return gates

    def switch(self, gates: Gates) -> None:
        """Set the copy's weights to what gates leave of them."""
        with torch.no_grad():
            for name, value in self._parameters(gates).items():
                self.network.get_parameter(name).copy_(value)

    def gradients(self, gates: Gates, x: Tensor, y: Tensor) -> dict[str, Tensor]:
        """Gradients of the cross-entropy by the gates, in their shapes.

        Args:
            gates: what is on.
            x: images, float32, (B, C, H, W), pixels in [0, 1].
            y: labels, int64, (B,).
        """
        leaves = {name: gate.detach().requires_grad_() for name, gate in gates.items()}
        with torch.enable_grad():
            logits = functional_call(self.network, self._parameters(leaves), (x,))
            found = torch.autograd.grad(F.cross_entropy(logits, y), list(leaves.values()))
        return dict(zip(leaves, found, strict=True))

    def _parameters(self, gates: Gates) -> dict[str, Tensor]:
        """Every parameter that has gates, multiplied by them."""
        parameters = {}
        for name, places in self._places.items():
            value = self._values[name]
            for scored, place in places:
                value = value * (place.spread(gates[scored], value) if place else gates[scored])
            parameters[name] = value
        return parameters


@dataclass(frozen=True)
class _Place:
    """Where a convolution's gates sit.

    Args:
        parameter: its name.
        dim: the dimension that goes by channels.
        part: which of all channels there.
    """

    parameter: str
    dim: int
    part: Part

    def spread(self, gate: Tensor, value: Tensor) -> Tensor:
        """Gates, float, (filters,), in a form to multiply the parameter with."""
        behind = self.part.of - self.part.first - len(gate)
        on = (gate.new_ones(self.part.first), gate, gate.new_ones(behind))
        # A linear layer behind a flatten reads a channel's pixels side by side.
        spread = torch.cat(on).repeat_interleave(value.shape[self.dim] // self.part.of)
        return spread.view([-1 if d == self.dim else 1 for d in range(value.dim())])


def _places(network: nn.Module, name: str, leads: Channels, filters: int) -> list[_Place]:
    """Where the gates of a convolution sit, by where its channels lead."""
    readers = [part_of(reader, filters) for reader in leads.readers]
    groups = [getattr(network.get_submodule(part.layer), "groups", 1) for part in readers]
    if readers and leads.stream is None and set(groups) == {1}:
        return [_Place(f"{part.layer}.weight", 1, part) for part in readers]
    return [
        _Place(f"{part.layer}.{parameter}", 0, part)
        for part in (part_of(owner, filters) for owner in (name, *leads.norms))
        for parameter, _ in network.get_submodule(part.layer).named_parameters(recurse=False)
    ]
