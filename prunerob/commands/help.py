"""The help of `fit`, `validate`, `test` and `predict`: own settings first, one line each.

It is made from the docstrings' text in the source files, so nothing heavy is imported for it.
"""

from __future__ import annotations

import ast
import re
from pathlib import Path

WIDTH = 100
NAMES = 45
"""Columns of the lines, and of the keys in them."""

PACKAGE = Path(__file__).parents[1]

INTRODUCTIONS = {
    "fit": """\
usage: prunerob fit --config FILE [--KEY VALUE ...]
       prunerob fit --ckpt_path RUN        (go on with a run that was interrupted)

Train, prune at the prune epoch, fine-tune with the masks held.
Begin with a file of configs/ and change what you need: --pruning.amount 0.8""",
    "validate": """\
usage: prunerob validate --ckpt_path RUN [--KEY VALUE ...]

Accuracy on the held-out validation images, with the configuration of the run.""",
    "test": """\
usage: prunerob test [--ckpt_path RUN] [--curve] [--KEY VALUE ...]

Attack the test images with the whole suite, model.attacks, and write the table. RUN is a run's
folder, a checkpoint, or weights in .safetensors; without one, the newest finished run.""",
    "predict": """\
usage: prunerob predict [--ckpt_path RUN] --data.predict_folder FOLDER

Class and probabilities of each image, as CSV in the run's folder; --json writes JSON, --top_k N the
N most probable classes of each.""",
}

OPTIONS = """\
  --config FILE                                a file, or a name, as mnist_pgd; later ones overrule
  --ckpt_path RUN                              a run's folder, a checkpoint, a .safetensors file
  --print_config                               show the whole configuration and exit
  --help all                                   every key, those of PyTorch Lightning's Trainer too
  --KEY.help CLASS                             the settings of a class, as
                                               --data.help prunerob.data.MNIST"""

TRAINER = """\
  --trainer.max_epochs N                       epochs, those of fine-tuning included
  --trainer.devices N                          processes that share the work; 1
  --trainer.accelerator NAME                   auto, cpu, gpu
  --trainer.precision NAME                     32-true, or bf16-mixed on hardware that has it
  --trainer.max_time DD:HH:MM:SS               stop in time, to go on later
  --trainer.logger.init_args.name NAME         the folder of the run below save_dir"""

SECTIONS = (
    ("The network, its training and its test", "model", "training/classifier.py", "Classifier"),
    (
        "Adversarial training",
        "model.adversarial_training",
        "training/adversarial.py",
        "AdversarialTraining",
    ),
    ("Fine-tuning", "model.fine_tuning", "training/phases.py", "FineTuning"),
    ("Pruning", "pruning", "pruning/callback.py", "Pruning"),
    ("Images", "data", "data/images.py", "ImageDataModule"),
)
"""Headings, the group of keys, and the class whose docstring tells of them."""

HIDDEN = {
    *("model.seed", "data.seed", "pruning.seed"),  # which follow seed_everything
    *("model.adversarial_training", "model.fine_tuning"),  # groups of their own
}


def short_help(command: str) -> str:
    """The help of a command.

    Args:
        command: "fit", "validate", "test" or "predict".
    """
    seed = _line("--seed_everything N", "of weights, order of images, noise; 0")
    parts = [INTRODUCTIONS[command], "", OPTIONS, seed]
    for heading, group, file, name in SECTIONS:
        parts += ["", f"{heading}:"]
        parts += [
            _line(f"--{group}.{key}", text)
            for key, text in arguments(PACKAGE / file, name).items()
            if f"{group}.{key}" not in HIDDEN
        ]
    parts += ["", "PyTorch Lightning's Trainer, the most used:", TRAINER]
    return "\n".join(parts)


def arguments(file: Path, name: str) -> dict[str, str]:
    """What a class's docstring says of its arguments, by their names.

    Args:
        file: the source.
        name: of the class.
    """
    tree = ast.parse(file.read_text("utf-8"))
    classes = [node for node in tree.body if isinstance(node, ast.ClassDef) and node.name == name]
    text = ast.get_docstring(classes[0]) or ""
    block = re.search(r"^Args:\n((?: {4}.*\n?|\n)*)", text, re.MULTILINE)
    found = re.findall(r"^ {4}(\w+): (.*(?:\n {6,}.*)*)", block[1] if block else "", re.MULTILINE)
    return {key: " ".join(told.split()) for key, told in found}


def _line(key: str, text: str) -> str:
    """A key, and as much of its text as a line takes: to the end of a clause, or of a word."""
    start = f"  {key:<{NAMES}}" if len(key) < NAMES else f"  {key} "
    room = WIDTH - len(start)
    if len(text) > room:
        clauses = [
            text[: end.start()]
            for end in re.finditer(r"[.;:,] ", text)
            if room / 3 <= end.start() <= room and _is_closed(text[: end.start()])
        ]
        text = clauses[-1] if clauses else text[: text.rindex(" ", 0, room - 3)] + " ..."
    return start + (text if text.endswith("...") else text.removesuffix("."))


def _is_closed(text: str) -> bool:
    """Whether no bracket is open at a text's end."""
    return text.count("(") == text.count(")") and text.count("[") == text.count("]")
