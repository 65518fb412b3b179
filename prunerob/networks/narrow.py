"""Narrow networks: the same function with the channels taken out that nothing reads.

Masks keep a pruned network's shape, and with it the work: zeros are multiplied as slowly as other
numbers. Where filters are pruned, their channels can be taken out of every tensor, exactly.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from prunerob.networks.channels import Channels, Reader, known_channels, part_of, writers
from prunerob.networks.layers import set_sizes
from prunerob.networks.modes import evaluating
from prunerob.networks.rewrite import layout_of, survives_channels_last

Positions = tuple[Tensor | None, Tensor | None]
"""Kept positions along a tensor's first and second dimension, int64; None keeps all."""


@dataclass(frozen=True)
class Narrowing:
    """Which channels stay, for each tensor of a network's state.

    Args:
        kept: by the name of each tensor that loses channels.
    """

    kept: Mapping[str, Positions]

    def to(self, device: torch.device) -> Narrowing:
        """The same with its positions on a device, where they index without a copy."""
        moved = {
            name: tuple(p if p is None else p.to(device) for p in positions)
            for name, positions in self.kept.items()
        }
        return Narrowing(cast(Mapping[str, Positions], moved))

    def narrow(self, name: str, tensor: Tensor) -> Tensor:
        """Take channels out of one tensor of the network, or of one in the shape of it.

        Args:
            name: of the tensor in the network's state.
            tensor: in its full shape.

        Returns:
            the kept part, a copy; the tensor itself if all of it is kept.
        """
        for dim, positions in enumerate(self.kept.get(name, ())):
            if positions is not None:
                tensor = tensor.index_select(dim, positions.to(tensor.device))
        return tensor

    def widen(self, name: str, tensor: Tensor, into: Tensor) -> Tensor:
        """Put a narrow tensor back into its place in a full one.

        Args:
            name: of the tensor in the network's state.
            tensor: in its narrow shape.
            into: in its full shape, with what is to stand where channels were taken out.

        Returns:
            the full tensor, a copy.
        """
        if name not in self.kept:
            return tensor.clone()
        rows, columns = (p if p is None else p.to(into.device) for p in self.kept[name])
        full, tensor = into.detach().clone(), tensor.to(into.device)
        if rows is None:
            full[:, columns] = tensor
        elif columns is None:
            full[rows] = tensor
        else:
            full[rows[:, None], columns] = tensor
        return full

    def network(self, network: nn.Module) -> nn.Module:
        """A narrow copy of a network.

        Args:
            network: in its full shape.

        Returns:
            a network of the same class, mode and device, with parameters of its own.
        """
        narrow = copy.deepcopy(network)
        for name, tensor in [*narrow.named_parameters(), *narrow.named_buffers()]:
            if name in self.kept:
                owner, _, attribute = name.rpartition(".")
                module = narrow.get_submodule(owner)
                part = self.narrow(name, tensor.detach())
                if isinstance(tensor, nn.Parameter):
                    part = nn.Parameter(part, requires_grad=tensor.requires_grad)
                setattr(module, attribute, part)
                set_sizes(module)
        can_stay = survives_channels_last(narrow)
        return narrow.to(memory_format=layout_of(network) if can_stay else torch.contiguous_format)


def narrow(network: nn.Module) -> nn.Module:
    """A smaller copy of a network that answers the same: without the channels that nothing reads.

    Args:
        network: pruned by filters, by masks or in any other way: what counts is which weights are
            0. Where its channels lead is what it says, or what tracing finds.

    Returns:
        a network of the same class; as wide as it was where no channel can go.
    """
    return find_narrowing(network).network(network)


class NarrowCopy:
    """A network and a narrow copy of it, brought up to date in either direction.

    Not an `nn.Module`: whoever holds one does not own the other network's parameters twice.

    Args:
        wide: the network in its full shape.
        narrowing: what stays of it.
    """

    @torch.inference_mode(False)
    def __init__(self, wide: nn.Module, narrowing: Narrowing) -> None:
        self.wide = wide
        self.narrow = narrowing.network(wide)
        self.narrowing = narrowing.to(next(wide.parameters()).device)

    def to(self, device: torch.device) -> None:
        """Move both networks."""
        self.wide.to(device)
        self.narrow.to(device)
        self.narrowing = self.narrowing.to(device)

    @torch.inference_mode(False)
    @torch.no_grad()
    def update_narrow(self) -> nn.Module:
        """Take over the present weights and modes of the wide network."""
        for module, copied in zip(self.wide.modules(), self.narrow.modules(), strict=True):
            copied.training = module.training
        for name, wide, narrow in self._tensors():
            narrow.copy_(self.narrowing.narrow(name, wide))
        return self.narrow

    @torch.no_grad()
    def update_wide(self) -> nn.Module:
        """Take over the present weights of the narrow network; nothing else changes."""
        for name, wide, narrow in self._tensors():
            wide.copy_(self.narrowing.widen(name, narrow, wide))
        return self.wide

    @torch.no_grad()
    def agrees(self, x: Tensor) -> bool:
        """Whether both networks answer the same up to rounding, in evaluation mode.

        They do not where a network depends on its number of channels, as by `view(-1, 1600)`, or a
        normalisation over several channels.

        Args:
            x: images, float, (B, C, H, W).
        """
        with evaluating(self.wide), torch.autocast(x.device.type, enabled=False):
            wide = self.wide(x)
            try:
                narrow = self.update_narrow()(x)
            except Exception:  # a network of the user's may fail in any way
                return False
        return bool(torch.allclose(wide, narrow, rtol=1e-3, atol=1e-3 * float(wide.abs().max())))

    def narrow_optimizer_state(self, state: dict[str, Any], optimizer: Optimizer) -> dict[str, Any]:
        """Fit an optimizer's state of the wide network's parameters to the narrow one's.

        Args:
            state: of an optimizer of the wide network.
            optimizer: one of the narrow network, which tells the order of its parameters.
        """
        return self._each_moment(state, optimizer, self._narrow_moment)

    def widen_optimizer_state(self, state: dict[str, Any], optimizer: Optimizer) -> dict[str, Any]:
        """Fit an optimizer's state of the narrow network's parameters to the wide one's.

        What was taken out gets zeros; its gradients are 0, so that no optimizer moves it by them.

        Args:
            state: of the optimizer.
            optimizer: one of the narrow network.
        """
        return self._each_moment(state, optimizer, self._widen_moment)

    def _narrow_moment(self, name: str, value: Tensor) -> Tensor:
        wide = self.wide.get_parameter(name)
        return self.narrowing.narrow(name, value) if value.shape == wide.shape else value

    def _widen_moment(self, name: str, value: Tensor) -> Tensor:
        if value.shape != self.narrow.get_parameter(name).shape:
            return value
        zeros = torch.zeros_like(self.wide.get_parameter(name), device=value.device)
        return self.narrowing.widen(name, value, zeros.to(value.dtype))

    def _each_moment(
        self, state: dict[str, Any], optimizer: Optimizer, change: Callable[[str, Tensor], Tensor]
    ) -> dict[str, Any]:
        """Change what an optimizer keeps in the shape of a parameter."""
        names = {id(parameter): name for name, parameter in self.narrow.named_parameters()}
        order = [names[id(p)] for group in optimizer.param_groups for p in group["params"]]
        changed = {
            position: {
                key: change(order[position], value) if isinstance(value, Tensor) else value
                for key, value in moments.items()
            }
            for position, moments in state["state"].items()
        }
        return {**state, "state": changed}

    def _tensors(self) -> Iterator[tuple[str, Tensor, Tensor]]:
        """Name, wide and narrow tensor of all that the networks hold."""
        wide = [*self.wide.named_parameters(), *self.wide.named_buffers()]
        narrow = [*self.narrow.parameters(), *self.narrow.buffers()]
        for (name, tensor), other in zip(wide, narrow, strict=True):
            yield name, tensor, other


def find_narrowing(
    network: nn.Module, alive: Mapping[str, Tensor] | None = None, *, multiple_of: int = 1
) -> Narrowing:
    """Find the channels that nothing reads: taking them out changes no output.

    Args:
        network: any; one that does not say where its channels lead, and cannot be traced, keeps
            everything.
        alive: bool, in each parameter's shape, by its name: where it may be other than 0, such as
            masks; by default where it is.
        multiple_of: channels that nothing reads stay up to such a number: kernels may be faster.

    Returns:
        what stays: of each convolution one channel at least.
    """
    channels = known_channels(network)
    if not channels:
        return Narrowing({})
    if alive is None:
        alive = {name: parameter != 0 for name, parameter in network.named_parameters()}
    groups = _groups(channels)
    # What only unread channels read is unread, too: begin with nothing read, go from the last layer
    # back, and again while more is found, since a residual stream is read by what writes to it.
    read = {
        writer: torch.zeros(_count(network, group), dtype=torch.bool)
        for group in groups
        for writer in group.writers
    }
    marked, before = 0, -1
    while marked != before:
        before, marked = marked, 0
        for group in reversed(groups):
            marks = _read_of(network, group, alive, read)
            read |= dict.fromkeys(group.writers, marks)
            marked += int(marks.sum())

    stay: dict[tuple[str, int], Tensor] = {}
    for group in groups:
        stays = read[group.writers[0]].clone()
        stays[0] |= ~stays.any()
        stays[(~stays).nonzero()[: -int(stays.sum()) % multiple_of]] = True
        if stays.all():
            continue
        size = len(stays)
        for owner in (*group.writers, *group.norms):
            part = part_of(owner, size)
            module = network.get_submodule(part.layer)
            for name, tensor in [*module.named_parameters(), *module.named_buffers()]:
                if tensor.dim() > 0:
                    rows = _all(stay, f"{part.layer}.{name}", 0, tensor)
                    rows[part.first : part.first + size] = stays
        for reader in group.readers:
            part = part_of(reader, size)
            name = f"{part.layer}.weight"
            columns = _all(stay, name, 1, network.get_parameter(name))
            # A linear layer behind a flatten reads a channel's pixels side by side.
            columns.view(part.of, -1)[part.first : part.first + size] = stays[:, None]
    kept: dict[str, Positions] = {}
    for name in dict.fromkeys(name for name, _ in stay):
        kept[name] = (_positions(stay.get((name, 0))), _positions(stay.get((name, 1))))
    return Narrowing(kept)


def _all(stay: dict[tuple[str, int], Tensor], name: str, dim: int, tensor: Tensor) -> Tensor:
    """What stays of a tensor along a dimension, to be changed: at first all; bool, (length,)."""
    return stay.setdefault((name, dim), torch.ones(tensor.shape[dim], dtype=torch.bool))


def _positions(stays: Tensor | None) -> Tensor | None:
    return None if stays is None else stays.nonzero().squeeze(1)


@dataclass(frozen=True)
class _Group:
    """Convolutions whose output channels are the same channels, and who has to do with them."""

    writers: tuple[str, ...]
    readers: tuple[Reader, ...]
    norms: tuple[Reader, ...]


def _groups(channels: Mapping[str, Channels]) -> list[_Group]:
    """One group for each residual stream, and one for each other convolution; first ones first."""
    streams = writers(channels)
    groups = []
    for name, leads in channels.items():
        if leads.stream is None:
            groups.append(_Group((name,), leads.readers, leads.norms))
        elif name == streams[leads.stream][0]:
            names = tuple(streams[leads.stream])
            norms = [norm for writer in names for norm in channels[writer].norms]
            readers = [reader for writer in names for reader in channels[writer].readers]
            stream = leads.stream
            groups.append(_Group(names, (*stream.readers, *readers), (*stream.norms, *norms)))
    return groups


def _count(network: nn.Module, group: _Group) -> int:
    return len(network.get_submodule(group.writers[0]).get_parameter("weight"))


def _read_of(
    network: nn.Module, group: _Group, alive: Mapping[str, Tensor], read: Mapping[str, Tensor]
) -> Tensor:
    """Which of a group's channels are read by what is itself read; bool, (channels,)."""
    layers = [network.get_submodule(name) for name in group.writers]
    count = _count(network, group)
    marks = [_read_by(network, reader, count, alive, read) for reader in group.readers]
    if not marks or any(getattr(layer, "groups", 1) != 1 for layer in layers):
        return torch.ones(count, dtype=torch.bool)
    return torch.stack(marks).any(0)


def _read_by(
    network: nn.Module,
    reader: Reader,
    channels: int,
    alive: Mapping[str, Tensor],
    read: Mapping[str, Tensor],
) -> Tensor:
    """Which channels a layer reads, as far as its own outputs are read; bool, (channels,)."""
    part = part_of(reader, channels)
    weight = alive.get(f"{part.layer}.weight")
    # Grouped convolutions need their channels in groups of one size: none is taken out.
    if weight is None or getattr(network.get_submodule(part.layer), "groups", 1) != 1:
        return torch.ones(channels, dtype=torch.bool)
    weight = weight.cpu()
    if part.layer in read:
        weight = weight[read[part.layer]]
    each = weight.any(0).reshape(part.of, -1)
    return each[part.first : part.first + channels].any(1)
