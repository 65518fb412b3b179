"""A network in a report: how it was made, and what its test found."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from prunerob.attacks import Attack
from prunerob.attacks.suite import Suite
from prunerob.pruning.counts import Layer
from prunerob.robustness.diagnostics import overfits_to_one_step, review
from prunerob.robustness.table import WORST_CASE, Robustness
from prunerob.runs.folder import Run

CONTROL = "control"
NATURAL = "natural"
BLACK_BOX = "black box"


@dataclass(frozen=True, kw_only=True)
class Point:
    """One way to train and prune, whatever the seed: a row of the table.

    Args:
        recipe: how the dense network was trained.
        method: how it was pruned; "" for the dense network.
        objective: of fine-tuning, where it has one of its own; "" otherwise.
        amount: the share pruned, as asked for, in [0, 1); 0 with a method is the control.
        is_scratch: trained from fresh weights under the masks of the pruned network.
        words: its name, with {share} for the amount in percent; "" for the method's own.
    """

    recipe: str
    method: str = ""
    objective: str = ""
    amount: float = 0.0
    is_scratch: bool = False
    words: str = field(default="", compare=False)

    @property
    def is_dense(self) -> bool:
        """Whether it was not pruned and not gone on with."""
        return not self.method

    @property
    def is_control(self) -> bool:
        """Whether it was gone on with as pruned ones are, with empty masks."""
        return self.method == CONTROL

    @property
    def dense(self) -> Point:
        """The network that it was pruned from."""
        return Point(recipe=self.recipe)

    @property
    def control(self) -> Point:
        """The control of the same recipe, fine-tuned by the same objective."""
        return Point(recipe=self.recipe, method=CONTROL, objective=self.objective)

    @property
    def name(self) -> str:
        """What it is, in words: "dense", "weights, 90 %" or "filters, 65 % of weights"."""
        if self.is_dense:
            return "dense"
        if self.is_control:
            longer = "dense, trained longer"
            return f"{longer}, {self.objective}" if self.objective else longer
        share = (self.words or f"{self.method}, {{share}} %").format(share=f"{100 * self.amount:g}")
        return f"{share}, from scratch" if self.is_scratch else share


@dataclass(frozen=True, kw_only=True)
class Result:
    """One network and its test.

    Args:
        run: where it is from.
        config: the run's configuration, in plain values.
        point: how it was made.
        seed: of its run.
        shares: what is pruned, in [0, 1], by reading (see `prunerob.pruning.masks`).
        layers: those of the network, before and after pruning; none where nothing was pruned.
        robustness: the test.
        suite: its attacks.
        training: the attack that it was trained against.
        validation_attack: the attack of its validation.
        validation: images classified right, and images, on validation images: "clean", "robust"
            and, of the probe for catastrophic overfitting, "one_step" and "many_steps".
        unit: what was pruned, "filters" or "weights"; None where nothing was.
        about: machine and versions of the test.
    """

    run: Run
    config: Mapping[str, Any]
    point: Point
    seed: int
    shares: Mapping[str, float]
    layers: Sequence[Layer]
    robustness: Robustness
    suite: Suite
    training: Attack
    validation_attack: Attack
    validation: Mapping[str, tuple[int, int]]
    unit: str | None
    about: Mapping[str, Any]

    def warnings(self) -> list[str]:
        """What a reviewer would object to, and what was not looked for."""
        warnings = review(self.robustness, self.suite.attacks, training=self.training)
        one_step = self.validation.get("one_step")
        many = "many_steps" if "many_steps" in self.validation else "robust"
        robust = self.validation.get(many) if self._is_probed_by(many) else None
        is_known = any(warning.startswith("catastrophic") for warning in warnings)
        if one_step and robust and not is_known and overfits_to_one_step(robust[0], one_step[0]):
            warnings.append(
                f"catastrophic overfitting: of {robust[1]:,} validation images {one_step[0]:,} are "
                f"right under the training's one step and {robust[0]:,} under PGD"
            )
        if self.robustness.scrutiny is None:
            warnings.append("whether PGD has converged and gradients are 0 was not looked for")
        warnings += [
            f"{layer.name} nearly vanished: {layer.channels_after} of {layer.channels_before} "
            f"channels and {layer.parameters_after:,} of {layer.parameters_before:,} parameters "
            "are left"
            for layer in self.layers
            if layer.has_nearly_vanished
        ]
        return warnings

    def _is_probed_by(self, name: str) -> bool:
        """Whether validation accuracies are under the radius of the training's single step."""
        return name == "many_steps" or self.validation_attack.radius == self.training.radius

    @property
    def dense_epochs(self) -> int:
        """Epochs of training before anything was pruned: 0 if the untrained network was."""
        epoch: int | None = self.config["pruning"]["epoch"]
        epochs: int = self.config["trainer"]["max_epochs"] if epoch is None else epoch
        return epochs

    def columns(self) -> dict[str, list[str]]:
        """The table's columns, with the attacks of the test that stand in each.

        Black-box attacks that differ in their seed alone are one column.
        """
        columns: dict[str, list[str]] = {NATURAL: ["clean"]}
        black_boxes: list[Attack] = []
        for name, attack in self.suite.attacks.items():
            heading = name
            if attack.learns:
                if (alike := attack.without_seed()) not in black_boxes:
                    black_boxes.append(alike)
                number = black_boxes.index(alike)
                heading = BLACK_BOX + (f" ({number + 1})" if number else "")
            columns.setdefault(heading, []).append(name)
        columns[WORST_CASE] = [WORST_CASE]
        return columns

    @property
    def tested_on(self) -> str:
        """Which images it was tested on: "test" or "validation"."""
        return str(self.about.get("test_on", "test"))

    def is_tested_as(self, other: Result, column: str) -> bool:
        """Whether the same attacks stand behind a column of both."""
        if column == NATURAL:
            return True
        if column == WORST_CASE:
            return self.suite == other.suite
        mine, theirs = (
            [result.suite.attacks[name].without_seed() for name in result.columns()[column]]
            for result in (self, other)
        )
        return mine == theirs

    def accuracies(self, column: str) -> list[float]:
        """Accuracy under each attack of a column, in [0, 1]; empty without such a column."""
        rows = {row.attack: row.accuracy for row in self.robustness.rows}
        return [rows[name] for name in self.columns().get(column, [])]
