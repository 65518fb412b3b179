"""Weights are found, read without running code, and loaded."""

from __future__ import annotations

import csv
import json
import pickle
import shutil
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

from prunerob.cli import main
from prunerob.networks import MnistCNN
from prunerob.runs.weights import load_weights
from prunerob.statistics import wilson_interval
from tests.conftest import TINY, refused


def test_bare_test_takes_the_newest_finished_run(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main(["test", "--ckpt_path", "before_pruning"])
    main(["test"])
    shown = capsys.readouterr().out
    assert "before pruning" in shown
    assert "worst case" in shown

    result = json.loads((run / "robustness.json").read_text())
    rows = {row["attack"]: row for row in result["rows"]}
    assert list(rows) == ["clean", "FGSM 8/255", "PGD", "worst case"]
    with (run / "robustness_images.csv").open() as file:
        images = list(csv.DictReader(file))
    assert len({image["index"] for image in images}) == 60
    for name, row in rows.items():
        attacks = ["clean", "FGSM 8/255", "PGD"] if name == "worst case" else [name]
        right = sum(all(i[f"{a} prediction"] == i["label"] for a in attacks) for i in images)
        assert (row["correct"], row["images"]) == (right, 60)
        assert row["accuracy"] == right / 60
        assert tuple(row["interval"]) == wilson_interval(right, 60)
    for image in images:
        for attack in ("clean", "FGSM 8/255", "PGD"):
            wrong = image[f"{attack} prediction"] != image["label"]
            assert wrong == (float(image[f"{attack} margin"]) < 0)
    assert (run / "robustness.md").read_text().count("\n| ") == 4
    assert len((run / "robustness.csv").read_text().splitlines()) == 5
    assert (run / "robustness_before_pruning.json").is_file()

    main(["test", "--model.attacks.PGD.steps", "4"])
    lines = capsys.readouterr().out.splitlines()
    before = {line.split()[1]: line.split("│")[2].strip() for line in lines if line[:1] == "│"}
    assert before["clean"].endswith("%")
    assert before["FGSM"].endswith("%")
    assert (before["PGD"], before["worst"]) == ("-", "-"), "tested with other steps"


def test_the_same_weights_give_the_same_table_however_they_are_named(run: Path) -> None:
    results = []
    for place in (run, run / "checkpoints" / "last.ckpt", run / "weights.safetensors"):
        main(["test", "--ckpt_path", str(place)])
        results.append((run / "robustness_images.csv").read_text())
        (run / "robustness.json").unlink()
    main(["test", "--config", str(run / "config.yaml")])
    results.append((run / "robustness_images.csv").read_text())
    assert len(set(results)) == 1


def test_bare_weights_bring_their_configuration_and_get_results_beside_them(
    run: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The configuration is code, so a line names it."""
    zoo = tmp_path / "zoo"
    zoo.mkdir()
    shutil.copy(run / "weights.safetensors", zoo / "small.safetensors")
    shutil.copy(run / "config.yaml", zoo / "small.yaml")
    main(["test", "--ckpt_path", str(zoo / "small.safetensors")])
    assert (zoo / "small_robustness.json").is_file()
    assert f"Using {zoo / 'small.yaml'}, which lies with small.safetensors" in caplog.text


def test_untrained_weights_are_never_tested(capsys: pytest.CaptureFixture[str]) -> None:
    assert "untrained weights are never tested" in refused(capsys, "test", "--config", TINY)
    assert "no finished run" in refused(capsys, "test")


class Crafted:
    """Runs code where it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self.path,))


@pytest.mark.parametrize("command", ["fit", "test", "validate", "predict"])
@pytest.mark.parametrize("by_url", [False, True])
def test_a_crafted_checkpoint_runs_no_code(
    command: str, by_url: bool, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    mark, crafted = tmp_path / "code-ran", tmp_path / "crafted.ckpt"
    good = torch.load(run / "checkpoints" / "before_pruning.ckpt", weights_only=True)
    torch.save({**good, "hyper_parameters": Crafted(mark)}, crafted)
    place = str(crafted)
    if by_url:
        server = ThreadingHTTPServer(
            ("127.0.0.1", 0), partial(SimpleHTTPRequestHandler, directory=str(tmp_path))
        )
        threading.Thread(target=server.serve_forever, daemon=True).start()
        place = f"http://127.0.0.1:{server.server_port}/crafted.ckpt"
    try:
        told = refused(capsys, command, "--config", TINY, "--ckpt_path", place)
    finally:
        if by_url:
            server.shutdown()
    assert "was refused" in told
    assert not mark.exists()
    torch.load(crafted, weights_only=False)
    assert mark.exists(), "the test's own checkpoint does nothing"


def test_weights_come_from_a_url(run: Path, tmp_path: Path) -> None:
    server = ThreadingHTTPServer(
        ("127.0.0.1", 0), partial(SimpleHTTPRequestHandler, directory=str(run))
    )
    threading.Thread(target=server.serve_forever, daemon=True).start()
    url = f"http://127.0.0.1:{server.server_port}/weights.safetensors?download=true"
    main(["validate", "--config", TINY, "--ckpt_path", url])
    server.shutdown()


def test_foreign_and_damaged_files_are_named(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    last = run / "checkpoints" / "last.ckpt"
    (tmp_path / "short.ckpt").write_bytes(last.read_bytes()[:5000])
    (tmp_path / "text.ckpt").write_text("weights")
    (tmp_path / "short.safetensors").write_bytes(b"\x10" * 30)
    torch.save(torch.zeros(3), tmp_path / "tensor.ckpt")
    torch.save({"state_dict": {"network.other": torch.zeros(3)}}, tmp_path / "foreign.ckpt")
    save_file({"conv1.weight": torch.zeros(3)}, tmp_path / "foreign.safetensors")
    with (tmp_path / "pickle.ckpt").open("wb") as file:
        pickle.dump({"a": 1}, file)
    torch.save(
        {"a": torch.zeros(9)}, tmp_path / "legacy.ckpt", _use_new_zipfile_serialization=False
    )
    legacy = bytearray((tmp_path / "legacy.ckpt").read_bytes())
    legacy[60:90] = b"\x93" * 30
    (tmp_path / "legacy.ckpt").write_bytes(legacy)
    for name, message in {
        "short.ckpt": "is damaged (File is not a zip file)",
        "text.ckpt": "was refused: it is damaged",
        "short.safetensors": "is damaged",
        "tensor.ckpt": "holds a Tensor, not a network's weights by name",
        "foreign.ckpt": "is for another network: conv1.bias is only in the network",
        "foreign.safetensors": "is for another network",
        "pickle.ckpt": "was refused",
        "legacy.ckpt": "ckpt_path: ",
        "missing.ckpt": "there is no file or folder",
    }.items():
        told = refused(capsys, "test", "--config", TINY, "--ckpt_path", str(tmp_path / name))
        assert message in told, name
        assert name in told
        refused(capsys, "fit", "--config", TINY, "--ckpt_path", str(tmp_path / name))
    told = refused(
        capsys, "test", "--ckpt_path", str(run), "--model.network.init_args.filters", "[4,8,8]"
    )
    assert "conv1.bias is (8,), not (4,)" in told
    assert not (run / "robustness.json").exists()


@pytest.mark.parametrize("value", ["nan", "inf"])
def test_weights_that_are_not_finite_are_refused(
    value: str, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    weights = load_file(run / "weights.safetensors")
    weights["conv2.weight"][0, 0, 0, 0] = float(value)
    save_file(weights, tmp_path / "bad.safetensors")
    checkpoint = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)
    checkpoint["state_dict"]["network.conv2.weight"][0, 0, 0, 0] = float(value)
    torch.save(checkpoint, tmp_path / "bad.ckpt")
    for command in ("validate", "predict", "test"):
        for name in ("bad.safetensors", "bad.ckpt"):
            told = refused(capsys, command, "--config", TINY, "--ckpt_path", name)
            assert f"{name} is no trained network: conv2.weight holds values that are not" in told
    assert not (tmp_path / "predictions.csv").exists()


def test_a_run_begins_with_weights_of_others(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    state = load_file(run / "weights.safetensors")
    torch.save(state, tmp_path / "plain.pth")
    torch.save({"epoch": 3, "model": prefixed(state, "module.")}, tmp_path / "parallel.pt")
    metrics = {"metric.total": torch.zeros(())}
    torch.save(
        {"state_dict": {**prefixed(state, "model.module."), **metrics}}, tmp_path / "lightning.pt"
    )
    network = MnistCNN((8, 8, 8))
    for name in ("plain.pth", "parallel.pt", "lightning.pt"):
        for parameter in network.parameters():
            torch.nn.init.zeros_(parameter)
        load_weights(network, Path(name))
        assert all(torch.equal(network.state_dict()[key], value) for key, value in state.items())

    settings = ["--model.weights", "parallel.pt", "--model.optimizer.init_args.lr", "0"]
    settings += ["--pruning.epoch", "null", "--trainer.max_epochs", "1"]
    main(["fit", "--config", TINY, *settings, "--trainer.logger.init_args.version", "other"])
    other = run.parent / "other"
    assert yaml.safe_load((other / "config.yaml").read_text())["model"]["weights"] == "parallel.pt"
    for key, value in load_file(other / "weights.safetensors").items():
        assert torch.equal(value, state[key]), key

    # A run that goes on has weights of its own.
    (tmp_path / "parallel.pt").unlink()
    (other / "summary.json").unlink()
    main(["fit", "--ckpt_path", str(other)])
    assert (other / "summary.json").is_file()
    told = refused(capsys, "fit", "--config", TINY, *settings)
    assert "parallel.pt" in told

    main(["validate", "--config", TINY, "--model.weights", "plain.pth"])
    torch.save({"state_dict": {"a": 1}, "b": 2}, tmp_path / "none.pt")
    torch.save({"model": network}, tmp_path / "code.pt")
    torch.save(prefixed(state, "module.") | {"module.more": torch.ones(2)}, tmp_path / "more.pth")
    del state["conv1.bias"]
    torch.save(state, tmp_path / "less.pth")
    for name, message in {
        "none.pt": "holds no weights, neither plainly nor under state_dict, model_state_dict",
        "code.pt": "holds code, not weights alone; save a network's state_dict()",
        "more.pth": "is for another network: more is only in the file",
        "less.pth": "is for another network: conv1.bias is only in the network",
    }.items():
        told = refused(capsys, "fit", "--config", TINY, "--model.weights", name)
        assert told.startswith(f"prunerob: error: model.weights: {name} ")
        assert message in told


def prefixed(state: dict[str, torch.Tensor], prefix: str) -> dict[str, torch.Tensor]:
    return {f"{prefix}{name}": value for name, value in state.items()}
