"""Tracing: finds where the channels of any network lead, from what its `forward` does with them.

`torch.fx` writes down the operations; each is then asked what it does to channels. Convolutions
write them, convolutions and linear layers read them, BatchNorm and depthwise convolutions serve
them one by one, sums make one of several, concatenation puts them side by side. What is not
understood keeps its channels whole: it may depend on their number.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor, fx, nn

from prunerob.networks import operations, shapes
from prunerob.networks.layers import (
    is_as_named,
    is_convolution,
    is_depthwise,
    is_layer,
    is_normalisation,
    is_silent,
)
from prunerob.networks.modes import evaluating
from prunerob.networks.operations import name_of
from prunerob.networks.parts import Part
from prunerob.networks.shapes import PLAIN, NotUnderstood, Size
from prunerob.networks.spaces import Signal, Space, Spaces


@dataclass(frozen=True)
class Traced:
    """What tracing found.

    Args:
        spaces: the channels that can go, first ones first.
        whole: why the other convolutions' channels cannot, by name; by "" why nothing is known.
    """

    spaces: Sequence[Space]
    whole: dict[str, str]


def trace(network: nn.Module) -> Traced:
    """Find the channels of a network that can go.

    Args:
        network: whose `forward` takes images alone. What of it cannot be traced, since what it does
            depends on the images, is a module that is not understood.
    """
    tracer = _Tracer()
    with evaluating(network):
        while True:
            try:
                graph = tracer.trace(network)
                break
            except Exception as error:  # somebody's own code may fail in any way
                reason = " ".join(str(error).split()) or type(error).__name__
                if tracer.failed is None:
                    return Traced([], {"": f"its forward cannot be traced ({reason})"})
                tracer.opaque[tracer.failed] = reason
                tracer.failed = None
        walk = _Walk(network, tracer.opaque)
        for node in graph.nodes:
            walk.visit(node)
    return walk.finish()


class _Tracer(fx.Tracer):
    """Writes down layers whole, and modules that it cannot look into."""

    def __init__(self) -> None:
        super().__init__()
        self.opaque: dict[str, str] = {}
        """Why a module cannot be looked into, by its name."""
        self.failed: str | None = None
        """The innermost module that could not."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        """Whether a module is written down without what it does inside."""
        opaque = module_qualified_name in self.opaque
        return opaque or is_layer(m) or super().is_leaf_module(m, module_qualified_name)

    def call_module(self, m: nn.Module, forward: Any, args: Any, kwargs: Any) -> Any:
        """Write a call down; note which one fails."""
        try:
            return super().call_module(m, forward, args, kwargs)
        except Exception:
            self.failed = self.failed or self.path_of_module(m)
            raise


_Value = Signal | Size | None
"""What a node gives; None is a tensor about whose channels nothing is known."""


class _Walk:
    """Goes through the operations of a network in order.

    Args:
        network: whose operations they are.
        opaque: why modules could not be looked into, by name.
    """

    def __init__(self, network: nn.Module, opaque: dict[str, str]) -> None:
        self.network = network
        self.modules = dict(network.named_modules())
        self.opaque = opaque
        self.spaces = Spaces()
        self.values: dict[fx.Node, _Value] = {}
        self.calls: dict[str, tuple[Signal | None, Signal | None]] = {}
        """Layers' first calls: what they read and gave."""
        self.as_wide: list[tuple[Signal, Signal, str]] = []
        """Values that must turn out to have the same channels, and where."""
        self.seen: list[str] = []
        """Modules that are written down whole, or whose tensors are read by themselves."""
        self.shared = _owners_of_shared(network)

    def visit(self, node: fx.Node) -> None:
        """See what one operation does to channels."""
        if node.op in ("call_module", "get_attr"):
            self.seen.append(str(node.target))
        self.values[node] = None
        try:
            if node.op == "call_module":
                self.values[node] = self._module(node, self.modules[str(node.target)])
            elif node.op in ("call_function", "call_method"):
                self.values[node] = result = self._operation(node, name_of(node))
                if operations.is_in_place(node) and isinstance(node.args[0], fx.Node):
                    self.values[node.args[0]] = result
            elif node.op == "output":
                self._keep_whole(node, "the network's output")
            elif node.op == "get_attr" and self._is_number(str(node.target)):
                self.values[node] = PLAIN
        except NotUnderstood:
            self._keep_whole(node, self._place(node))

    def finish(self) -> Traced:
        """What was found."""
        for these, those, place in self.as_wide:
            if not self.spaces.are_same(these.strands, those.strands):
                for signal in (these, those):
                    self.spaces.keep_whole(signal.strands, place)
        for name, module in self.modules.items():
            inside = any(
                name.startswith(f"{other}.") or other.startswith(f"{name}.") for other in self.seen
            )
            if is_layer(module) and name not in self.calls and not inside:
                why = f"{name} is not called in evaluation mode, so what it reads is not known"
                return Traced([], {"": why})
        return Traced(*self.spaces.finish())

    # Modules

    def _module(self, node: fx.Node, module: nn.Module) -> _Value:
        name = str(node.target)
        value = self._first(node)
        if is_layer(module):
            if name in self.calls:
                return self._again(node, name, value)
            gives = self._layer(node, name, module, value)
            self.calls[name] = (value, gives)
            return gives
        if value is None:
            raise NotUnderstood
        if isinstance(module, nn.PReLU) and module.num_parameters > 1:
            return self._serve(name, value, module.num_parameters, is_silent=True)
        if operations.is_pointwise(module):
            return value if operations.keeps_zero(module) else value.loud()
        if operations.goes_by_channel(module):
            return value
        if (zeros := operations.pads_with_zeros(module)) is not None:
            return value if zeros else value.loud()
        if type(module) is nn.Flatten:
            return shapes.flattened(value, module.start_dim, module.end_dim)
        raise NotUnderstood

    def _layer(
        self, node: fx.Node, name: str, module: nn.Module, value: Signal | None
    ) -> Signal | None:
        """What a layer gives when it is called for the first time."""
        known = name not in self.shared and is_as_named(module)
        if is_normalisation(module) or (is_depthwise(module) and known and value is not None):
            if value is None or not known:
                self._keep_whole(node, self._place(node))
                return None
            width = getattr(module, "num_features", getattr(module, "in_channels", 0))
            return self._serve(name, value, int(width), is_silent=is_silent(module))
        weight = module.get_parameter("weight") if known else None
        is_linear = not is_convolution(module)
        width = getattr(module, "out_features" if is_linear else "out_channels", 0)
        gives = self.spaces.begin(int(width), name, is_linear=is_linear)
        if weight is None or getattr(module, "groups", 1) != 1:
            self.spaces.keep_whole([gives], self._place(node))
            self._keep_whole(node, self._place(node))
        elif value is not None:
            # A linear layer behind a flatten reads each channel's pixels side by side.
            flat = value.dims == 2
            fits = weight.shape[1] % value.size == 0 if flat else weight.shape[1] == value.size
            if fits and is_linear == flat:
                first = 0
                for strand in value.strands:
                    strand.readers.append(Part(layer=name, first=first, of=value.size))
                    first += strand.size
            else:
                self._keep_whole(node, self._place(node))
        dims = 2 if is_linear or weight is None else weight.dim()
        return Signal((gives,), dims, is_silent=weight is not None and is_silent(module))

    def _again(self, node: fx.Node, name: str, value: Signal | None) -> Signal | None:
        """What a layer gives that is called once more: to the same channels, or to whole ones."""
        before, gives = self.calls[name]
        if value is not None and before is not None and value.sizes == before.sizes:
            self.spaces.unite(before.strands, value.strands)
        else:
            for signal in (value, before, gives):
                if signal is not None:
                    self.spaces.keep_whole(signal.strands, f"{self._place(node)}, called twice")
        if gives is None or value is None or before is None or gives.strands != before.strands:
            return gives
        return replace(value, is_silent=gives.is_silent)  # served, of other channels

    def _serve(self, name: str, value: Signal, width: int, *, is_silent: bool) -> Signal:
        """Let a layer serve channels one by one."""
        if width != value.size:
            raise NotUnderstood
        first = 0
        for strand in value.strands:
            strand.norms.append(Part(layer=name, first=first, of=width))
            first += strand.size
        return replace(value, is_silent=is_silent)

    # Operations

    def _operation(self, node: fx.Node, name: str) -> _Value:
        values = [self.values[other] for other in node.all_input_nodes]
        value, args = self._first(node), node.args[1:]
        tells = any(isinstance(v, Size) and v.tells_channels for v in values)
        if not any(isinstance(v, Signal) for v in values):
            if name == "getitem" and isinstance(size := values[0], Size):
                return shapes.length_of(size, args[0])
            if tells:
                self._keep_whole(node, self._place(node))
            return None if None in values else PLAIN
        if name in operations.SUMS | operations.PRODUCTS | operations.QUOTIENTS:
            return self._elementwise(node, name)
        if name in operations.CONCATENATIONS:
            return self._concatenate(node)
        if value is None:
            raise NotUnderstood
        if name in operations.SIZES:
            return shapes.size_of(value, name, args, node.kwargs)
        if name in operations.RESHAPES:
            return self._reshape(node, name, value)
        if tells or sum(isinstance(v, Signal) for v in values) > 1:
            raise NotUnderstood
        if name in operations.POINTWISE:
            return value if operations.keeps_zero_here(node) else value.loud()
        if name in operations.DROPOUT | operations.POOLINGS:
            return value
        if name in operations.MEANS:
            return shapes.averaged(value, args, node.kwargs)
        raise NotUnderstood

    def _elementwise(self, node: fx.Node, name: str) -> Signal:
        """A sum, product or quotient."""
        if len(node.args) != 2:
            raise NotUnderstood
        left, right = map(self._value_of, node.args)
        product, is_sum = name in operations.PRODUCTS, name in operations.SUMS
        if isinstance(left, Signal) and right == PLAIN:
            return left.loud() if is_sum else left
        if isinstance(right, Signal) and left == PLAIN:
            return right if product else right.loud()
        if not (isinstance(left, Signal) and isinstance(right, Signal)):
            raise NotUnderstood
        for one, other in ((left, right), (right, left)):
            if one.size == 1 < other.size and one.dims == other.dims:  # for all channels alike
                self.spaces.keep_whole(one.strands, self._place(node))
                return other if product else other.loud()
        if left.sizes != right.sizes or (left.dims, left.is_flat) != (right.dims, right.is_flat):
            raise NotUnderstood
        both = left.is_silent and right.is_silent
        either = left.is_silent or right.is_silent
        is_silent = either if product else both and is_sum
        if self.spaces.are_same(left.strands, right.strands):
            return replace(left, is_silent=is_silent)
        if product and not both and either:
            main, gate = (left, right) if left.is_silent else (right, left)
            self.spaces.gate(gate.strands, main.strands)
            return main
        strands = tuple(self.spaces.begin(size) for size in left.sizes)
        self.spaces.unite(left.strands, right.strands)
        self.spaces.unite(left.strands, strands)
        return replace(left, strands=strands, is_silent=is_silent)

    def _concatenate(self, node: fx.Node) -> Signal:
        """Channels side by side."""
        pieces = node.args[0] if node.args else node.kwargs.get("tensors")
        dim = node.args[1] if len(node.args) > 1 else node.kwargs.get("dim", 0)
        values = [*map(self._value_of, pieces)] if isinstance(pieces, list | tuple) else []
        signals = [value for value in values if isinstance(value, Signal)]
        if not signals or len(signals) < len(values):
            raise NotUnderstood
        first = signals[0]
        alike = all((s.dims, s.is_flat) == (first.dims, False) for s in signals)
        if not alike or shapes.dimensions(dim, first.dims) != [1]:
            raise NotUnderstood
        strands = tuple(strand for signal in signals for strand in signal.strands)
        return replace(first, strands=strands, is_silent=all(s.is_silent for s in signals))

    def _reshape(self, node: fx.Node, name: str, value: Signal) -> Signal:
        """What moves dimensions about."""
        args: Sequence[Any] = node.args[1:]
        if name == "flatten":
            start = node.kwargs.get("start_dim", args[0] if args else 0)
            end = node.kwargs.get("end_dim", args[1] if len(args) > 1 else -1)
            return shapes.flattened(value, start, end)
        if node.kwargs or not args:
            raise NotUnderstood
        if name == "getitem":
            return shapes.picked(value, args[0])
        if name == "unsqueeze":
            return shapes.unsqueezed(value, args[0])
        if len(args) == 1 and isinstance(args[0], list | tuple):
            args = args[0]
        if name == "squeeze":
            return shapes.squeezed(value, args)
        if name == "expand_as":
            after, like = value, self._value_of(args[0])
            if not isinstance(like, Signal) or (like.sizes, like.dims) != (value.sizes, value.dims):
                raise NotUnderstood
        else:
            given = [*map(self._value_of, args)]
            if not all(isinstance(length, Size) for length in given):
                raise NotUnderstood
            after, like = shapes.viewed(value, args, given)
        self.as_wide.append((after, like, self._place(node)))
        return after

    # Values

    def _value_of(self, arg: Any) -> _Value:
        """What an argument is: what a node gives, or a plain number."""
        return self.values[arg] if isinstance(arg, fx.Node) else PLAIN

    def _is_number(self, name: str) -> bool:
        """Whether a tensor of the network's has one entry alone."""
        owner, _, attribute = name.rpartition(".")
        value = getattr(self.modules[owner], attribute, None)
        return isinstance(value, Tensor) and value.numel() == 1

    def _first(self, node: fx.Node) -> Signal | None:
        """The value that a node is about."""
        args = [*node.args, *node.kwargs.values()]
        value = self._value_of(args[0]) if args else None
        return value if isinstance(value, Signal) else None

    def _keep_whole(self, node: fx.Node, why: str) -> None:
        """Let all channels that go into an operation stay."""
        for other in node.all_input_nodes:
            value = self.values.get(other)
            signal = value.of if isinstance(value, Size) and value.tells_channels else value
            if isinstance(signal, Signal):
                self.spaces.keep_whole(signal.strands, why)

    def _place(self, node: fx.Node) -> str:
        """What an operation is called and where it is, for a message."""
        name = str(node.target)
        if node.op == "call_module":
            reason = self.opaque.get(name)
            module = self.modules[name]
            groups = ", a convolution in groups" if getattr(module, "groups", 1) != 1 else ""
            kind = f"{type(module).__name__} {name}{groups}"
            return f"{kind}, which cannot be traced ({reason})" if reason else kind
        stack = [*node.meta.get("nn_module_stack", {})]
        inside = f" in {stack[-1]}" if stack and stack[-1] else ""
        return f"{name_of(node).removesuffix('()')}{inside}"


def _owners_of_shared(network: nn.Module) -> set[str]:
    """Names of modules that share a parameter with another."""
    owners: dict[int, set[str]] = {}
    for name, module in network.named_modules():
        for parameter in module.parameters(recurse=False):
            owners.setdefault(id(parameter), set()).add(name)
    return {name for names in owners.values() if len(names) > 1 for name in names}
