"""The table on the terminal."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from prunerob.cli import main
from prunerob.robustness.table import Robustness
from tests.conftest import TINY


def test_names_of_attacks_are_no_markup_and_no_formulas(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main(["test", "--ckpt_path", "before_pruning"])
    (run / "robustness_before_pruning.json").write_text("{")
    attack = "{class_path: prunerob.attacks.FGSM, init_args: {eps: 0.1}}"
    suite = f"{{'[/foo]': {attack}, '=1+1': {attack}}}"
    with pytest.warns(UserWarning, match=r"robustness_before_pruning\.json is damaged"):
        main(["test", "--config", TINY, "--ckpt_path", str(run), "--model.attacks", suite])
    assert "[/foo]" in capsys.readouterr().out
    lines = (run / "robustness.csv").read_text().splitlines()
    names = [line.split(",")[0] for line in lines]
    assert names == ["attack", "clean", "[/foo]", "'=1+1", "worst case"]
    robustness, _ = Robustness.read(run / "robustness")
    assert list(robustness.predictions) == ["clean", "[/foo]", "=1+1"]
    rows = json.loads((run / "robustness.json").read_text())["rows"]
    assert [row["attack"] for row in rows] == ["clean", "[/foo]", "=1+1", "worst case"]
