"""Networks are attacked without their silent channels."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest

from prunerob.cli import main
from tests.conftest import FILTERS, RUN, TINY, Interrupt


def test_filter_pruned_wide_resnets_are_attacked_tested_and_validated() -> None:
    """Evaluation runs in inference mode, whose tensors autograd refuses."""
    network = ["--model.network", "prunerob.networks.WideResNet", "--model.network.depth", "10"]
    network += ["--model.network.widen_factor", "1", "--model.network.mean", "[0.1]"]
    network += ["--model.network.std", "[0.3]", "--data.train_size", "64"]
    network += ["--pruning.reading", "parameters"]
    main(["fit", "--config", TINY, *network, *FILTERS, "--data.init_args.test_size", "20"])
    for command in ("test", "validate"):
        main([command])
    main(["test", "--model.worst_case_attacks", "{more: {class_path: prunerob.attacks.FGSM}}"])


def test_networks_of_tutorials_run_without_their_silent_channels(
    recwarn: pytest.WarningsRecorder, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    filters = ["--pruning.criterion", "prunerob.pruning.filter_l1", "--pruning.amount", "0.4"]
    filters += ["--model.network", "tests.conftest.LeNet"]
    monkeypatch.setattr("prunerob.commands.lightning.Progress", partial(Interrupt, 3))
    with pytest.raises(SystemExit):
        main(["fit", "--config", TINY, *filters])
    monkeypatch.undo()
    monkeypatch.chdir(tmp_path)
    main(["fit", "--ckpt_path", str(RUN)])
    main(["fit", "--config", TINY, *filters, "--pruning.narrow", "true"])
    main(["test", "--ckpt_path", str(RUN)])
    assert (RUN / "robustness.json").is_file()
    assert not [w for w in recwarn if "depends on its number of channels" in str(w.message)]
