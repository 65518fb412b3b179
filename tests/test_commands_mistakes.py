"""A mistake is one line."""

from __future__ import annotations

from pathlib import Path

import pytest

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
