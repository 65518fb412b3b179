"""A mistake is one line."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from torch import nn

from prunerob.cli import main
from prunerob.runs.configuration import instantiate
from tests.conftest import TINY, refused


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--model.nonsense", "1"], "unrecognized arguments: --model.nonsense"),
        (["--trainer.max_epochs", "many"], "trainer.max_epochs: expected int"),
        (["--model.adversarial_training.attack.eps", "8"], "eps: 8 lies outside [0, 1]"),
        (["--model.adversarial_training.attack.eps", "-0.1"], "eps: -0.1 lies outside"),
        (["--model.adversarial_training.attack", "Nope"], "attack: no such class: Nope"),
        (["--model.adversarial_training.weight", "2"], "adversarial_training.weight: 2.0 lies"),
        (["--model.network", "Nope"], "model.network: no such class: Nope"),
        (["--data", "Nope"], "data: no such class: Nope"),
        (["--pruning.criterion", "prunerob.pruning.nope"], "pruning.criterion: "),
        (["--pruning.amount", "1"], "pruning.amount: 1.0 lies outside [0, 1)"),
        (
            ["--pruning", "null"],
            "pruning: null is no mapping of settings, nor a file with one; to",
        ),
        (["--pruning", ""], "error: pruning: an empty text is no mapping of settings, nor"),
        (["--trainer.logger.init_args.name", "a\nb"], r"init_args.name: 'a\nb' holds what no"),
        (
            ["--trainer.logger.init_args.version", "\x1b[31m"],
            "init_args.version: '\\x1b[31m' holds",
        ),
        (
            ["--trainer.logger.init_args.save_dir", "http://x/y"],
            "http://x/y is no folder here",
        ),
        (["--trainer.max_epochs", "null"], "trainer.max_epochs: is not set"),
        (["--trainer.val_check_interval", "0"], "trainer.val_check_interval: 0 is below 1"),
        (["--trainer.val_check_interval", "99"], "val_check_interval: has more steps than an"),
        (["--trainer.accelerator", "tpu"], "error: trainer: "),
        (["--ckpt_path", ""], "ckpt_path: is empty; name a run"),
        (["--trainer", "null"], "error: trainer: null is no mapping of settings"),
        (["--model.adversarial_training.attack.step_size", "0"], "step_size of PGD: steps of 0"),
        (["--model.attacks.PGD.step_size", "nan"], "step_size: 'nan' is not a number"),
        (["--model.validation_attack.step_size", "-0.1"], "step_size: -0.1 lies outside"),
        (
            [
                f"--model.adversarial_training.weight_perturbation{end}"
                for end in ("=1", "_warmup=2")
            ],
            "weight_perturbation_warmup: 2 epochs, but no phase of this run has more than 2",
        ),
        (["--pruning.epoch", "4"], "pruning.epoch: 4 is never reached in this run of 4 epochs"),
        (["--pruning.exclude", "[conv9]"], "pruning.exclude: no prunable layer 'conv9'"),
        (["--data.batch_size", "0"], "data.batch_size: 0 is below 1"),
        (["--trainer.devices", "2"], "trainer.devices: "),
        (["--ckpt_path", "nowhere"], "there is no file or folder nowhere"),
        (["--trainer.logger.init_args.save_dir", TINY], "Not a directory"),
    ],
)
def test_a_mistake_is_told_in_one_line(
    args: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert message in refused(capsys, "fit", "--config", TINY, *args)


def test_more_mistakes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "text.yaml").write_text("just text")
    assert "no such command" in refused(capsys, "train")
    assert "required: model.network" in refused(capsys, "fit").replace("fit.", "")
    assert "File does not exist" in refused(capsys, "fit", "--config", "nowhere.yaml")
    assert "Unexpected config" in refused(capsys, "fit", "--config", "text.yaml")
    (tmp_path / "null.yaml").write_text("model: {fine_tuning: null}")
    told = refused(capsys, "fit", "--config", TINY, "--config", "null.yaml")
    assert "model.fine_tuning: is null" in told
    assert "of which run?" in refused(capsys, "fit", "--ckpt_path", "last")


@pytest.mark.parametrize(
    ("args", "told"),
    [
        (["--model.scrutinized_images", "-3"], "model.scrutinized_images: -3 is below 0"),
        (["--model.validation_attack_images", "-1"], "validation_attack_images: -1 is below 0"),
        (["--trainer.fast_dev_run", "true"], "trainer.fast_dev_run: stops before anything is"),
        (
            ["--pruning.epoch", "null", "--trainer.max_epochs", "-1", "--trainer.max_steps", "3"],
            "trainer.max_epochs: phases are counted in epochs",
        ),
    ],
)
def test_settings_that_cannot_be_meant(
    args: list[str], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert told in refused(capsys, "fit", "--config", TINY, *args)


def test_functions_of_others_make_networks(capsys: pytest.CaptureFixture[str]) -> None:
    """With settings as one would type them, `**kwargs` or not."""

    def configured(*args: str) -> dict[str, object]:
        with pytest.raises(SystemExit) as end:
            main(["fit", "--config", TINY, *args, "--print_config"])
        assert not end.value.code
        network = yaml.safe_load(capsys.readouterr().out)["model"]["network"]
        made = instantiate(network)
        assert isinstance(made, nn.Module)
        return {"classes": made.fc.out_features, **network}

    network = configured(
        *("--model.network", "torchvision.models.resnet18", "--model.network.num_classes", "12")
    )
    assert network["classes"] == 12
    create = ["--model.network", "timm.create_model", "--model.network.model_name", "resnet18"]
    network = configured(*create, "--model.network.num_classes", "12", "--model.network.in_chans=1")
    assert network["classes"] == 12
    assert network["dict_kwargs"] == {"num_classes": 12, "in_chans": 1}
    # In a file, they go where they are recorded; what nothing takes is a mistake.
    Path("own.yaml").write_text(
        "model: {network: {class_path: timm.create_model, init_args: {model_name: resnet18, "
        "num_classes: 12}}}"
    )
    told = refused(capsys, "fit", "--config", TINY, "--config", "own.yaml")
    assert "'num_classes' is not accepted; what timm.create_model takes as **kwargs goes" in told
    told = refused(capsys, "fit", "--config", TINY, *create, "--model.network.num_clases", "12")
    assert "unexpected keyword argument 'num_clases'" in told
    told = refused(capsys, "fit", "--config", TINY, "--model", "own.Classifier")
    assert "model: holds the settings of prunerob's Classifier, no class of your own" in told
    told = refused(capsys, "fit", "--config", TINY, "--model.network", "timm.create_model")
    assert "model_name" in told
