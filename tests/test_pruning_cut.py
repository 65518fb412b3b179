"""What is pruned."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from prunerob.cli import main
from prunerob.errors import UserError
from prunerob.pruning import Pruning
from tests.conftest import RUN, TINY, newest_run, refused


@pytest.mark.parametrize("amount", [1.0, -0.1, 1.5, math.nan])
def test_amounts_outside_the_range_are_refused(amount: float) -> None:
    with pytest.raises(UserError, match=r"pruning.amount: .* outside \[0, 1\)"):
        Pruning(epoch=1, amount=amount)


def test_masks_of_another_run_must_be_of_the_same_settings(
    capsys: pytest.CaptureFixture[str],
) -> None:
    filters = ["--pruning.criterion", "prunerob.pruning.filter_l1", "--pruning.amount", "0.5"]
    even = ["--pruning.keep_multiple_of", "2"]
    main(["fit", "--config", TINY, *filters, *even])
    report = json.loads((RUN / "pruning.json").read_text())
    again = ["fit", "--config", TINY, *filters, "--pruning.epoch", "0"]
    again += ["--pruning.masks_from", str(RUN)]
    told = refused(capsys, *again)
    assert "pruning.keep_multiple_of: 1, but" in told
    main([*again, *even])
    kept = json.loads((newest_run() / "pruning.json").read_text())["parameters_kept_by_rounding_up"]
    assert kept == report["parameters_kept_by_rounding_up"]


def test_masks_of_another_run_must_be_those_that_were_asked_for(
    sweep: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def masks_from(run: str, *args: str) -> str:
        place = ["--pruning.masks_from", str(sweep / "seed0" / run), "--pruning.epoch", "0"]
        return refused(capsys, "fit", "--config", TINY, *place, *args)

    told = masks_from("weight-0.5")
    assert "pruning.amount: 0.7, but" in told
    assert told.endswith("was pruned with 0.5")
    told = masks_from("filter-0.5", "--pruning.amount", "0.5")
    assert "pruning.criterion: prunerob.pruning.criteria.weight_magnitude, but" in told
    assert "holds no masks: it is not of a pruned run" in masks_from("dense")
    narrower = ["--pruning.amount", "0.5", "--model.network.init_args.filters", "[8, 8, 4]"]
    assert "is of another network (conv3.weight)" in masks_from("weight-0.5", *narrower)
    assert "there is no file or folder" in masks_from("none")
