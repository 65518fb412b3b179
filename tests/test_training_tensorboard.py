"""What a run shows in TensorBoard."""

from __future__ import annotations

import errno
import threading
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.summary.writer.record_writer import RecordWriter
from torch.utils.tensorboard.writer import SummaryWriter

from prunerob.cli import main
from prunerob.commands.reading import resolve
from prunerob.training.tensorboard import hyper_parameters, quiet_writers

TINY = str(Path(__file__).parent / "tiny.yaml")


def test_a_run_and_its_test_show_what_a_reader_looks_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    main(["fit", "--config", TINY])
    main(["test", "--ckpt_path", "before_pruning"])
    main(["test"])
    shown = EventAccumulator("lightning_logs/tiny/version_0", size_guidance={"images": 0})
    shown.Reload()
    tags = shown.Tags()
    for name in (
        "accuracy/train_clean",
        "accuracy/train_adversarial",
        "accuracy/validation_clean",
        "accuracy/validation_robust",
        "loss/train",
    ):
        assert [point.step for point in shown.Scalars(name)] == [5, 10, 15, 20], name
    for name in ("pruned/amount", "pruned/weights", "pruned by layer/conv2"):
        points = shown.Scalars(name)
        assert [(p.step, p.value > 0) for p in points] == [
            *((0, False), (5, False), (10, True), (15, True))
        ], name
    assert shown.Scalars("pruned/amount")[-1].value == pytest.approx(0.7, abs=1e-3)
    # Curves come first, and nothing stands among them that is none.
    groups = sorted({name.split("/")[0] for name in tags["scalars"]})
    assert groups == ["accuracy", "loss", "pruned", "pruned by layer"]
    others = {name.split("/")[0] for name in (*tags["histograms"], *tags["images"])}
    assert min(others) > groups[-1]
    for when in ("1 before pruning", "2 after pruning", "3 after fine-tuning"):
        assert f"weights/conv2.weight/{when}" in tags["histograms"]
    assert {"test examples/PGD", "test before_pruning examples/FGSM 8/255"} <= set(tags["images"])
    assert {"config/text_summary", "test robustness/text_summary"} <= set(tags["tensors"])
    hparams = EventAccumulator("lightning_logs/tiny/version_0/test")
    hparams.Reload()
    assert "_hparams_/session_start_info" in str(hparams.PluginTagToContent("hparams"))
    assert "test/PGD" in hparams.Tags()["scalars"]
    before, after = (
        next(iter(shown.Histograms(f"weights/conv2.weight/{when}"))).histogram_value
        for when in ("1 before pruning", "2 after pruning")
    )
    assert before.num == after.num
    assert after.sum_squares < before.sum_squares


def test_the_thread_of_a_writer_that_fails_says_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The next call gets what stopped it; other threads say what they always said."""
    said: list[object] = []
    monkeypatch.setattr(threading, "excepthook", said.append)

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    def write() -> None:
        with SummaryWriter(str(tmp_path)) as writer:
            writer.flush()
            monkeypatch.setattr(RecordWriter, "write", full)
            for i in range(50):
                writer.add_scalar("a", i, i)
                writer.flush()

    with quiet_writers():
        with pytest.raises(OSError, match="No space left on device"):
            write()
        assert not said
        other = threading.Thread(target=full)
        other.start()
        other.join()
    assert len(said) == 1


def test_the_hyper_parameters_are_a_dozen_that_distinguish_runs() -> None:
    config = resolve(["--config", TINY, "--pruning.amount", "0.75"])
    found = hyper_parameters(config)
    assert 10 <= len(found) <= 13
    assert found["pruning.amount"] == 0.75
    assert found["pruning.criterion"] == "weight_magnitude"
    assert found["network"] == "MnistCNN"
    assert found["optimizer"] == "RMSprop"
    assert found["fine-tuning lr"] == config["model"]["fine_tuning"]["optimizer"]["init_args"]["lr"]
    assert found["lr"] == config["model"]["optimizer"]["init_args"]["lr"]
