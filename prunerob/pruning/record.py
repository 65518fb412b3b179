"""What pruning did to a run: shares, layers and accuracies, for people and for pruning.json."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from prunerob.pruning.counts import Layer, Shares
from prunerob.pruning.masks import Reading
from prunerob.statistics import wilson_interval

Accuracies = Mapping[str, tuple[int, int]]
"""Validation images classified right, and images, by name."""


@dataclass(kw_only=True)
class PruningRecord:
    """What is known of one pruning.

    Args:
        unit: what was pruned: "filters" or "weights".
        shares: how much.
        kept_by_rounding_up: parameters that stay for `keep_multiple_of` alone.
        accuracies: "before" and "after" pruning and "fine-tuned".
    """

    unit: str
    shares: Shares
    kept_by_rounding_up: int = 0
    accuracies: dict[str, Accuracies] = field(default_factory=dict)

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> PruningRecord:
        """Take up what `to_state` laid down."""
        return cls(
            unit=state["unit"],
            shares=Shares(**state["shares"]),
            kept_by_rounding_up=state["rounded_up"],
            accuracies=dict(state["accuracies"]),
        )

    def to_state(self) -> dict[str, Any]:
        """For a checkpoint, in plain values."""
        return {
            "unit": self.unit,
            "shares": asdict(self.shares),
            "rounded_up": self.kept_by_rounding_up,
            "accuracies": dict(self.accuracies),
        }

    def to_json(self, settings: Mapping[str, Any], layers: Sequence[Layer]) -> str:
        """For pruning.json.

        Args:
            settings: what was asked for, in plain values.
            layers: those of the network, before and after.
        """
        record = {
            **settings,
            "unit": self.unit,
            "shares": asdict(self.shares),
            "parameters_kept_by_rounding_up": self.kept_by_rounding_up,
            "validation": {
                when: {name: _accuracy(*counts) for name, counts in values.items()}
                for when, values in self.accuracies.items()
            },
            "layers": [asdict(layer) for layer in layers],
        }
        return json.dumps(record, indent=2) + "\n"

    def reached(self, reading: Reading) -> float:
        """The share that is pruned, in [0, 1], as `pruning.amount` counts it.

        Args:
            reading: the share that is meant, for filters.
        """
        if self.unit == "weights":
            return self.shares.weights
        return float(asdict(self.shares)[reading])

    def describe(self, headline: str, multiple: int, layers: Sequence[Layer]) -> str:
        """What pruning did, layer by layer, as text.

        Args:
            headline: the first line.
            multiple: the setting `keep_multiple_of`.
            layers: those of the network, before and after.
        """
        lines = [
            headline,
            f"{'layer':<16}{'parameters':>12}{'kept':>10}{'pruned':>9}{'channels':>10}{'kept':>7}",
        ]
        lines += [
            f"{layer.name:<16}{layer.parameters_before:>12,}{layer.parameters_after:>10,}"
            f"{layer.share_pruned:>9.1%}{layer.channels_before:>10}{layer.channels_after:>7}"
            for layer in layers
        ]
        before = sum(layer.parameters_before for layer in layers)
        after = sum(layer.parameters_after for layer in layers)
        lines.append(f"{'all':<16}{before:>12,}{after:>10,}{1 - after / before:>9.1%}")
        lines.append(
            f"Share pruned: {self.shares.filters:.2%} of the filters, {self.shares.weights:.2%} of "
            f"the weights, {self.shares.parameters:.2%} of all parameters"
        )
        if kept := self.kept_by_rounding_up:
            lines.append(
                f"Rounding the kept filters up to multiples of {multiple} keeps {kept:,} more "
                f"parameters, {kept / before:.2%} of all"
            )
        lines += [
            f"Warning: {layer.name} nearly vanished: {layer.share_pruned:.1%} of it is pruned, "
            f"{layer.channels_after} of {layer.channels_before} channels are left; "
            "pruning.keep_per_layer would keep more"
            for layer in layers
            if layer.has_nearly_vanished
        ]
        if accuracies := self.describe_accuracies():
            lines.append(accuracies)
        return "\n".join(lines)

    def describe_accuracies(self) -> str:
        """One line; empty without validation images."""
        parts = [
            f"{when} "
            + ", ".join(f"{n / of:.1%} {name}" for name, (n, of) in values.items())
            + f" ({'/'.join(f'{of:,}' for _, of in values.values())} images)"
            for when, values in self.accuracies.items()
            if values
        ]
        return f"Validation accuracy: {'; '.join(parts)}" if parts else ""


def _accuracy(correct: int, images: int) -> dict[str, Any]:
    """An accuracy with what it takes to judge it."""
    interval = wilson_interval(correct, images)
    return {"accuracy": correct / images, "interval": interval, "images": images}


def curves(
    record: PruningRecord | None, reading: Reading, layers: Sequence[Layer]
) -> dict[str, float]:
    """Shares pruned, in [0, 1], by the tags of their curves.

    Args:
        record: of what was pruned; None before anything was.
        reading: the share that is meant by `pruning.amount`, for filters.
        layers: those of the network, before and after.
    """
    shares = asdict(record.shares) if record else {}
    curves = {f"pruned/{f.name}": shares.get(f.name, 0.0) for f in fields(Shares)}
    curves["pruned/amount"] = record.reached(reading) if record else 0.0
    return curves | {f"pruned by layer/{layer.name}": layer.share_pruned for layer in layers}
