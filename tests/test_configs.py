"""Shipped configurations."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

from prunerob.cli import main


@pytest.mark.parametrize(
    "config", sorted(Path(__file__).parent.parent.joinpath("configs").glob("*.yaml")), ids=str
)
def test_every_shipped_configuration_parses_and_says_what_to_expect(
    config: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = config.read_text().splitlines()
    assert lines[0] == f"# prunerob fit --config configs/{config.name}"
    assert re.match(r"# Expect.*\d", lines[1]), "the measured result"
    with pytest.raises(SystemExit) as end:
        main(["fit", "--config", str(config), "--print_config"])
    assert not end.value.code
    written = yaml.safe_load(config.read_text())
    assert written["trainer"]["devices"] == 1, "a machine with many devices changes nothing"
    assert (
        yaml.safe_load(capsys.readouterr().out)["pruning"]["epoch"] == written["pruning"]["epoch"]
    )
