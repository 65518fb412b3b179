"""Wrong values of a configuration: a run, or one line that names the key."""

from __future__ import annotations

import copy
import os
import random
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from time import monotonic
from typing import Any

import pytest
import yaml

from prunerob.cli import main
from prunerob.commands.lightning import CommandLine
from prunerob.commands.reading import resolve
from prunerob.data import MNIST
from prunerob.training.classifier import Classifier
from tests.conftest import TINY, refused

Path_ = tuple[str, ...]
TOO_LONG = "x" * 5000
VALUES = (None, "", [], {}, -1, 0, 1e30, float("nan"), "abc", True, 0.5, TOO_LONG, "é☃")


class Accepted(Exception):  # noqa: N818  (no error)
    """Ends a run that would begin to train."""


def keys(config: object, above: Path_ = ()) -> Iterator[Path_]:
    if above:
        yield above
    if isinstance(config, dict):
        for name, value in config.items():
            yield from keys(value, (*above, name))


def changed(config: dict[str, Any], key: Path_, value: object) -> dict[str, Any]:
    config = copy.deepcopy(config)
    group = config
    for name in key[:-1]:
        group = group[name]
    group[key[-1]] = value
    return config


def attempt(config: dict[str, Any], *wrong: Path_, capsys: pytest.CaptureFixture[str]) -> None:
    """Run `fit`, which must begin to train, or refuse in a line with a key that is wrong."""
    Path("c.yaml").write_text(yaml.safe_dump(config, allow_unicode=True), "utf-8")
    begun = monotonic()
    with pytest.raises((Accepted, SystemExit)) as end:
        main(["fit", "--config", "c.yaml"])
    assert monotonic() - begun < 20
    if isinstance(end.value, SystemExit):
        assert end.value.code == 2
        told = capsys.readouterr().err.strip().splitlines()[-1]
        assert told.startswith("prunerob: error: ")
        # A phase's optimizer and schedule are refused together; a system's error names the file.
        named = [TOO_LONG[:100]]
        for key in wrong:
            names = [name for name in key if name not in ("init_args", "class_path")]
            named += [*names[-3:], ".".join(names[:2])]
        assert any(name in told for name in named), f"{wrong}: {told}"


@pytest.mark.parametrize(
    "key",
    ["trainer", "pruning", "data", "model", "model.adversarial_training", "model.fine_tuning"],
)
@pytest.mark.parametrize("value", ["null", "0.5", "[]", "true"])
def test_a_group_of_settings_is_no_single_value(
    key: str, value: str, capsys: pytest.CaptureFixture[str]
) -> None:
    outer, _, inner = key.partition(".")
    text = f"{outer}: {{{inner}: {value}}}" if inner else f"{outer}: {value}"
    Path("c.yaml").write_text(text)
    told = refused(capsys, "fit", "--config", TINY, "--config", "c.yaml")
    assert told.startswith(f"prunerob: error: {key}: ")


@pytest.mark.parametrize("key", ["data.seed", "data.init_args.seed"])
def test_the_data_has_no_seed_of_its_own(key: str, capsys: pytest.CaptureFixture[str]) -> None:
    """It would have no effect: all follow the run's."""
    outer, *inner = key.split(".")
    config = yaml.safe_load(Path(TINY).read_text())
    config[outer] = changed(config[outer], tuple(inner), 5)
    Path("c.yaml").write_text(yaml.safe_dump(config))
    expected = "prunerob: error: data.seed: follows the run's seed; set seed_everything"
    assert refused(capsys, "fit", "--config", "c.yaml") == expected
    assert refused(capsys, "fit", "--config", TINY, f"--{key}", "5") == expected
    assert refused(capsys, "sweep", "--config", TINY, f"--{key}=5", "--amount", "0") == expected


QUICK = [
    ("seed_everything", None),
    ("trainer.devices", None),
    ("trainer.devices", "abc"),
    ("trainer.devices", 1e30),
    ("trainer.devices", -1),
    ("trainer.max_time", "abc"),
    ("trainer.accumulate_grad_batches", 0),
    ("trainer.check_val_every_n_epoch", 0),
    ("trainer.gradient_clip_val", -1),
    ("data", {}),
    ("data.init_args.batch_size", None),
    ("data.init_args.validation_size", None),
    ("model.network.init_args.filters", None),
    ("model.adversarial_training.weight", None),
    ("model.adversarial_training.weight", float("nan")),
    ("model.adversarial_training.ramp_epochs", None),
    ("model.adversarial_training.ramp_epochs", float("nan")),
    ("model.adversarial_training.attack.init_args.steps", None),
    ("model.attacks.PGD.init_args.steps", None),
    ("model.attacks", None),
    ("pruning.amount", None),
    ("trainer.limit_train_batches", 0),
    ("trainer.logger.init_args.purge_step", "abc"),
    ("trainer.logger.init_args.max_queue", None),
    ("trainer.logger.init_args.flush_secs", 1e30),
    ("trainer.logger.init_args.filename_suffix", 0),
    ("model.network", {}),
    ("model.fine_tuning.schedule.init_args.scheduler", {}),
    ("pruning.amount", float("nan")),
    ("model.adversarial_training.ramp_epochs", float("inf")),
    ("model.adversarial_training.weight_perturbation_warmup", float("inf")),
    ("model.fine_tuning.ramp_epochs", float("inf")),
]


@pytest.mark.parametrize(("key", "value"), QUICK)
def test_a_wrong_value_is_told_with_its_key(
    key: str,
    value: object,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def accept(*_: object, **__: object) -> None:
        raise AssertionError("accepted")

    monkeypatch.setattr(CommandLine, "fit", accept)
    base = yaml.safe_load(Path(TINY).read_text())
    base["model"]["adversarial_training"]["weight"] = 0.5
    path = tuple(key.split("."))
    attempt(changed(base, path, value), path, capsys=capsys)


def settings(class_path: str, **init_args: object) -> dict[str, object]:
    return {"class_path": class_path, "init_args": init_args}


@pytest.mark.parametrize(
    ("key", "value", "told_of"),
    [
        (
            "model.optimizer",
            settings("torch.optim.LBFGS", lr=0.1),
            "model.optimizer or model.schedule: cannot train this network: ",
        ),
        (
            "model.fine_tuning.optimizer",
            settings("torch.optim.SparseAdam", lr=0.1),
            "model.fine_tuning: cannot train this network: SparseAdam",
        ),
        (
            "model.schedule.init_args.scheduler.init_args.step_size",
            0,
            "model.optimizer or model.schedule: cannot train this network: integer modulo by zero",
        ),
        ("model.optimizer.init_args.weight_decay", {}, "model.optimizer"),
        (
            "model.schedule.init_args.scheduler.init_args.last_epoch",
            0,
            "model.optimizer or model.schedule: param 'initial_lr' is not specified",
        ),
        ("pruning.masks_from", "", "pruning.masks_from: is empty"),
        ("pruning.masks_from", "abc", "pruning.masks_from: there is no file or folder abc"),
        ("trainer.val_check_interval", 10**9, "trainer.val_check_interval: "),
        ("trainer.overfit_batches", 0.5, "trainer: You requested to check 0.5"),
        ("ckpt_path", "", "ckpt_path: is empty"),
        ("model.schedule", {"": None}, "model.schedule: a setting has no name"),
        (
            "model.adversarial_training",
            {"class_path": "os.system"},
            "model.adversarial_training: holds settings, and no class as os.system",
        ),
        ("model.schedule", settings("prunerob.schedules.Cosine", end=-1), "end of Cosine: -1.0"),
        (
            "pruning.criterion",
            settings("prunerob.pruning.Hydra", momentum=2),
            "momentum of Hydra: 2.0 lies outside [0, 1)",
        ),
        (
            "pruning.criterion",
            settings("prunerob.pruning.Harp", weight_decay=-1),
            "weight_decay of Harp: -1.0 is below 0",
        ),
        (
            "model.network",
            settings("torch.nn.Conv2d", in_channels=1, out_channels=10, kernel_size=28),
            "model.network: Conv2d answers (1, 10, 1, 1) for an image, not (1, classes)",
        ),
    ],
)
def test_settings_that_would_fail_in_training_are_told_before(
    key: str, value: object, told_of: str, capsys: pytest.CaptureFixture[str]
) -> None:
    config = yaml.safe_load(Path(TINY).read_text())
    config["model"]["schedule"] = config["model"]["fine_tuning"].pop("schedule")
    Path("c.yaml").write_text(yaml.safe_dump(changed(config, tuple(key.split(".")), value)))
    told = refused(capsys, "fit", "--config", "c.yaml")
    assert told.startswith(f"prunerob: error: {told_of}")


@pytest.mark.parametrize("name", ["", " ", "a\nb", "\u202e"])
def test_an_attack_has_a_name_that_a_table_can_show(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    config = yaml.safe_load(Path(TINY).read_text())
    config["model"]["attacks"][name] = settings("prunerob.attacks.FGSM")
    Path("c.yaml").write_text(yaml.safe_dump(config))
    told = refused(capsys, "fit", "--config", "c.yaml")
    assert told == f"prunerob: error: model.attacks: {name!r} is no name that a table can show"


def test_a_pipe_in_the_place_of_weights_is_not_waited_for(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    os.mkfifo(tmp_path / "pipe")
    told = refused(capsys, "fit", "--config", TINY, "--model.weights", "pipe")
    assert told == "prunerob: error: model.weights: pipe is no regular file"


def test_a_name_with_a_line_break_is_told_in_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    told = refused(capsys, "fit", "--config", TINY, "--model.weights", "no\nthing")
    assert "no thing: No such file or directory" in told


@pytest.fixture
def no_training(monkeypatch: pytest.MonkeyPatch) -> None:
    """A run ends where it would begin to train, and images are loaded once, not for every value."""

    def accept(_: object) -> None:
        raise Accepted

    monkeypatch.setattr(Classifier, "on_train_start", accept)
    loaded = MNIST().load()
    monkeypatch.setattr(MNIST, "load", lambda _: loaded)


@pytest.mark.usefixtures("no_training")
@pytest.mark.slow
@pytest.mark.timeout(7200)
def test_no_value_of_any_key_ends_in_a_traceback(capsys: pytest.CaptureFixture[str]) -> None:
    base = resolve(["--config", TINY])
    problems, tried = [], 0
    for key in keys(base):
        for value in VALUES:
            tried += 1
            try:
                attempt(changed(base, key, value), key, capsys=capsys)
            except Exception as error:  # all of them, in one list
                problems.append(f"{'.'.join(key)} = {str(value)[:20]}: {error!r:.200}")
    print(f"{tried} values tried")
    assert not problems, "\n".join(problems)


ODD = (
    *VALUES,
    *(-0.0, 1e-320, 2**63, -(2**63), 0x110000, float("inf"), "1/0", "0x10", "1e400", "nan", "~"),
    *(
        [None],
        [[]],
        {"": None},
        {"a": {"b": 1}},
        [1, "a"],
        {"class_path": None},
        {"class_path": "os"},
    ),
    *(
        {"class_path": "os.system"},
        {"init_args": {}},
        "a\x00b",
        "\u202e",
        "\n",
        "-",
        "../..",
        "os.getcwd",
    ),
    *({"class_path": "torch.nn.ReLU"}, {"class_path": "builtins.int", "init_args": {"x": "1"}}),
)


@pytest.mark.usefixtures("no_training")
@pytest.mark.slow
@pytest.mark.timeout(7200)
def test_no_two_wrong_values_at_once_end_in_a_traceback(capsys: pytest.CaptureFixture[str]) -> None:
    """In the configurations of MNIST that are shipped, with two or three keys changed."""
    draw = random.Random(20)
    shipped = sorted((Path(TINY).parents[1] / "configs").glob("mnist_*.yaml"))
    bases = [yaml.safe_load(file.read_text()) for file in shipped]
    problems = []
    for _ in range(400):
        config = draw.choice(bases)
        wrong = draw.sample(list(keys(config)), draw.choice((2, 3)))
        asked = []
        for key in wrong:
            value = draw.choice(ODD)
            asked.append(f"{'.'.join(key)} = {str(value)[:20]!r}")
            with suppress(KeyError, TypeError):  # it was within another that is changed
                config = changed(config, key, value)
        try:
            attempt(config, *wrong, capsys=capsys)
        except Exception as error:
            problems.append(f"{'; '.join(asked)}: {error!r:.300}")
    assert not problems, "\n".join(problems)
