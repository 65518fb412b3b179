"""The paper's tables, and what it takes to measure their cells again.

Wang, Ding, Huang, Cao and Lui, "Adversarial Robustness of Pruned Neural Networks" (2018). A table
more is one more entry of `TABLES`: its rows, and the recipes that stand for its ways of training.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace


@dataclass(frozen=True)
class Row:
    """One row of a table.

    Args:
        training: "standard", "FGSM" or "PGD".
        method: "weight" or "filter"; "" where nothing is pruned.
        amount: share pruned, in [0, 1).
        accuracies: in percent, one for each of the table's columns.
    """

    training: str
    method: str
    amount: float
    accuracies: Sequence[float]


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """A configuration that stands for one of the paper's ways of training.

    Args:
        training: which.
        name: what to call it in our tables.
        config: name of the configuration's file.
        settings: keys and values to set in it, as on a command line.
        folder: name of the folder of its runs.
        readings: of its filters' amounts, in place of the table's.
        amounts: shares to prune beyond those of the table's rows, in place of the table's.
    """

    training: str
    name: str
    config: str
    folder: str
    settings: Sequence[str] = ()
    readings: Sequence[str] | None = None
    amounts: Mapping[str, Sequence[float]] | None = None


@dataclass(frozen=True, kw_only=True)
class PaperTable:
    """A table of the paper, or the amounts of a figure.

    Args:
        title: for people.
        columns: headings, as those of prunerob's own table.
        rows: of the paper; of a figure, those of the tables that lie on it.
        recipes: what to train.
        amounts: shares to prune beyond those of the rows, by method.
        readings: what "filters pruned by x %" may mean; all are run. "weights:silence" also says
            what becomes of filters that write to a residual stream (`pruning.residual`).
    """

    title: str
    columns: Sequence[str]
    recipes: Sequence[Recipe]
    rows: Sequence[Row] = ()
    amounts: Mapping[str, Sequence[float]] = field(default_factory=dict)
    readings: Sequence[str] = ("weights", "parameters")

    def amounts_of(self, recipe: Recipe) -> dict[str, list[float]]:
        """Shares to prune by criterion, as `prunerob sweep` takes them, with the control."""
        readings = self.readings if recipe.readings is None else recipe.readings
        more = self.amounts if recipe.amounts is None else recipe.amounts
        amounts: dict[str, list[float]] = {"weight": [0.0]}
        for method, amount in [
            *((row.method, row.amount) for row in self.rows if row.training == recipe.training),
            *((method, amount) for method, shares in more.items() for amount in shares),
        ]:
            # "weights" is what a configuration means unless it says otherwise.
            names = ["filter" if r == "weights" else f"filter:{r}" for r in readings]
            for name in names if method == "filter" else ["weight"] if method else []:
                amounts.setdefault(name, [])
                if amount not in amounts[name]:
                    amounts[name].append(amount)
        return amounts


MNIST_COLUMNS = ("natural", "FGSM 0.1", "FGSM 0.2", "FGSM 0.3", "PGD 0.3", "black box")

STANDARD = Recipe(
    training="standard",
    name="standard",
    config="mnist_standard.yaml",
    folder="mnist_standard",
)
TUNED = Recipe(
    training="standard",
    name="standard, tuned",
    config="mnist_standard_tuned.yaml",
    folder="mnist_standard_tuned",
)
FGSM = Recipe(training="FGSM", name="FGSM", config="mnist_fgsm.yaml", folder="mnist_fgsm")
FGSM_PREDICTED = Recipe(
    training="FGSM",
    name="FGSM, predicted labels",
    config="mnist_fgsm.yaml",
    settings=("--model.adversarial_training.attack.init_args.label", "predicted"),
    folder="mnist_fgsm_predicted",
)
TENSORFLOW = (
    *("--model.optimizer.class_path", "prunerob.optimizers.TensorFlowRMSprop"),
    *("--model.optimizer.init_args.alpha", "0.9"),
    *("--model.optimizer.init_args.eps", "1e-10"),
)
"""The paper does not give RMSprop's constants; these are those of the framework of 2018."""

STANDARD_TENSORFLOW = Recipe(
    training="standard",
    name="standard, TensorFlow's RMSprop",
    config="mnist_standard.yaml",
    settings=TENSORFLOW,
    folder="mnist_standard_tensorflow",
)
FGSM_TENSORFLOW = Recipe(
    training="FGSM",
    name="FGSM, TensorFlow's RMSprop",
    config="mnist_fgsm.yaml",
    settings=TENSORFLOW,
    folder="mnist_fgsm_tensorflow",
)
PGD = Recipe(training="PGD", name="PGD", config="mnist_pgd.yaml", folder="mnist_pgd")
PGD_TENSORFLOW = Recipe(
    training="PGD",
    name="PGD, TensorFlow's RMSprop",
    config="mnist_pgd.yaml",
    settings=TENSORFLOW,
    folder="mnist_pgd_tensorflow",
)

CIFAR10_COLUMNS = ("natural", "FGSM 2/255", "FGSM 4/255", "FGSM 8/255", "PGD 8/255")
"""The paper's headings, 0.1 to 0.3, are those of its MNIST tables. Its text says eps 8 (of 255),
which is the last column's; 2 and 4 fit the others best."""

CIFAR10_READINGS = ("parameters", "weights:silence")
"""The first convolutions of the blocks hold 46 % of all filters' weights: alone, they can lose 50
or 60 % of the network's parameters, but not of its filters' weights; for that all are ranked."""

CIFAR10_FAST = tuple(
    Recipe(
        training=training,
        name=f"{training}, fast",
        config=f"cifar10_{training.lower()}_fast.yaml",
        folder=f"cifar10_{training.lower()}_fast",
    )
    for training in ("standard", "FGSM", "PGD")
)
CIFAR10_CPU = tuple(
    Recipe(
        training=training,
        name=f"{training}, cpu",
        config=f"cifar10_{training.lower()}_cpu.yaml",
        folder=f"cifar10_{training.lower()}_cpu",
        # A day on one core for each way of training: one reading, that of all filters ranked.
        readings=("weights:silence",),
    )
    for training in ("standard", "PGD", "FGSM")
)
CIFAR10 = tuple(
    Recipe(
        training=training,
        name=training,
        config=f"cifar10_{training.lower()}.yaml",
        folder=f"cifar10_{training.lower()}",
    )
    for training in ("standard", "FGSM", "PGD")
)

TABLE_1 = (
    Row("standard", "", 0.0, (99.0, 70.3, 30.4, 13.6, 0.3, 59.6)),
    Row("standard", "weight", 0.98, (99.0, 47.1, 11.3, 4.0, 0.0, 59.2)),
    Row("standard", "filter", 0.75, (98.8, 52.8, 16.5, 8.5, 0.0, 52.6)),
)

TABLE_2 = (
    Row("FGSM", "", 0.0, (99.2, 97.9, 94.0, 84.7, 0.5, 89.2)),
    Row("FGSM", "weight", 0.96, (99.0, 94.8, 83.5, 59.0, 2.2, 79.6)),
    Row("FGSM", "weight", 0.80, (99.2, 98.2, 94.7, 85.9, 0.2, 89.6)),
    Row("FGSM", "filter", 0.70, (98.9, 94.1, 82.3, 60.1, 1.7, 82.5)),
    Row("FGSM", "filter", 0.60, (99.0, 97.8, 93.6, 83.0, 0.4, 85.7)),
    Row("PGD", "", 0.0, (99.0, 97.3, 95.6, 93.5, 92.5, 96.8)),
    Row("PGD", "weight", 0.94, (98.8, 95.6, 94.2, 91.9, 90.6, 95.6)),
    Row("PGD", "weight", 0.85, (99.0, 96.9, 95.3, 93.3, 92.0, 96.0)),
    Row("PGD", "filter", 0.65, (98.9, 89.8, 86.9, 82.3, 75.4, 87.5)),
    Row("PGD", "filter", 0.40, (99.0, 94.9, 93.1, 90.8, 87.3, 94.1)),
)

TABLE_3 = (
    Row("standard", "", 0.0, (95.2, 66.1, 53.0, 42.4, 0.5)),
    Row("standard", "weight", 0.94, (94.7, 54.9, 33.1, 24.0, 0.0)),
    Row("standard", "filter", 0.60, (94.5, 49.9, 30.0, 21.7, 0.0)),
    Row("FGSM", "", 0.0, (91.2, 86.7, 76.2, 55.4, 41.5)),
    Row("FGSM", "weight", 0.94, (90.5, 85.0, 73.0, 44.9, 31.6)),
    Row("FGSM", "filter", 0.60, (91.4, 85.7, 72.4, 42.2, 27.5)),
    Row("PGD", "", 0.0, (87.3, 83.3, 74.3, 55.1, 47.1)),
    Row("PGD", "weight", 0.70, (87.5, 83.0, 74.4, 55.2, 47.3)),
    Row("PGD", "filter", 0.50, (87.3, 83.7, 75.7, 55.1, 47.8)),
)

TABLES: Mapping[str, PaperTable] = {
    "table1": PaperTable(
        title="Table 1: MNIST, standard training",
        columns=MNIST_COLUMNS,
        recipes=(STANDARD, STANDARD_TENSORFLOW, TUNED),
        rows=TABLE_1,
    ),
    "table2": PaperTable(
        title="Table 2: MNIST, adversarial training",
        columns=MNIST_COLUMNS,
        recipes=(FGSM, FGSM_PREDICTED, FGSM_TENSORFLOW, PGD, PGD_TENSORFLOW),
        rows=TABLE_2,
    ),
    "figure1": PaperTable(
        title="Figure 1: MNIST, accuracy against the share pruned",
        columns=MNIST_COLUMNS,
        recipes=(STANDARD, FGSM, PGD),
        rows=(*TABLE_1, *TABLE_2),  # which lie on its curves
        amounts={
            "weight": (0.2, 0.4, 0.6, 0.8, 0.85, 0.9, 0.94, 0.96, 0.98),
            "filter": (0.2, 0.4, 0.5, 0.6, 0.65, 0.7, 0.75, 0.8),
        },
        readings=("weights",),
    ),
    "table3": PaperTable(
        title="Table 3: CIFAR-10, WRN-28-4",
        columns=CIFAR10_COLUMNS,
        recipes=(*CIFAR10_CPU, *CIFAR10_FAST, *CIFAR10),
        rows=TABLE_3,
        readings=CIFAR10_READINGS,
    ),
    "figure2": PaperTable(
        title="Figure 2: CIFAR-10, accuracy against the share pruned",
        columns=CIFAR10_COLUMNS,
        recipes=(
            *(replace(r, amounts={"weight": (0.5, 0.8, 0.9, 0.94, 0.97)}) for r in CIFAR10_CPU),
            *CIFAR10_FAST,
            *CIFAR10,
        ),
        rows=TABLE_3,
        amounts={
            # Beyond 80 % the paper sees PGD-trained networks gain robustness and lose accuracy.
            "weight": (0.2, 0.4, 0.6, 0.7, 0.8, 0.85, 0.9, 0.94),
            "filter": (0.2, 0.4, 0.5, 0.6, 0.7, 0.8),
        },
        readings=("parameters",),
    ),
}
