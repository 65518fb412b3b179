"""The study: its sweeps, the results that lie there, and the page that quotes them."""

from __future__ import annotations

import json
from argparse import Namespace
from pathlib import Path
from typing import Any

import pytest
import yaml

from prunerob.cli import main
from prunerob.commands.sweep import _read
from prunerob.reports.reading import read_results

ROOT = Path(__file__).parent.parent
SWEEPS = sorted(ROOT.joinpath("study").glob("*.yaml"))
RUNS = sorted(ROOT.joinpath("study").glob("*/seed*/*/robustness.json"))


@pytest.mark.parametrize("sweep", SWEEPS, ids=lambda path: path.stem)
def test_a_sweep_of_the_study_says_what_it_is_and_chooses_on_validation_images(sweep: Path) -> None:
    first, second = sweep.read_text().splitlines()[:2]
    assert first.startswith("# ")
    assert f"prunerob sweep study/{sweep.name}" in second
    options = yaml.safe_load(sweep.read_text())
    _read(str(sweep), Namespace(), [])  # as the command reads it
    assert options["folder"] == f"study/{sweep.stem}"
    assert (ROOT / options["config"]).is_file()
    settings = options["settings"]
    assert (ROOT / settings["model.weights"]).is_file()
    assert settings["data.test_on"] == "validation"
    assert settings["model.attacks"]["AutoAttack 0.3"]["init_args"]["images"] == 250


def test_what_lies_there_is_finished_and_reads(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Without checkpoints, as in a fresh clone; in the repository, whose paths the sweeps name."""
    monkeypatch.chdir(ROOT)
    assert len(RUNS) >= 13
    for folder in sorted({run.parent.parent.parent for run in RUNS}):
        results = read_results([str(folder)])
        assert results.left_out == []
        assert {result.tested_on for result in results.all} == {"validation"}
    main(["sweep", "study/first_layer.yaml"])
    assert "1 of 1 runs finished" in capsys.readouterr().out


@pytest.mark.parametrize("run", RUNS, ids=lambda path: "/".join(path.parts[-4:-1:2]))
def test_the_page_quotes_each_of_them(run: Path) -> None:
    page = (ROOT / "docs" / "study.md").read_text().replace("**", "")
    rows = {row["attack"]: row for row in json.loads(run.read_text())["rows"]}

    def percent(name: str) -> str:
        return f"{100 * rows[name]['accuracy']:.1f}"

    left: dict[str, Any] = rows["AutoAttack 0.3"]["left"]
    cells = [percent("clean"), percent("PGD 0.3")]
    cells += [str(left[part]) for part in ("APGD-CE", "APGD-T", "FAB-T", "Square")]
    assert f"| {' | '.join(cells)} |" in page
