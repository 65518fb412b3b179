"""The short help: what it names is there, and everything of ours is named."""

from __future__ import annotations

import re
import subprocess
import sys
from time import monotonic

import pytest

from prunerob.cli import LIGHTNING, main
from prunerob.commands.help import HIDDEN
from prunerob.commands.reading import resolve
from tests.conftest import TINY

GROUPS = ("model", "model.adversarial_training", "model.fine_tuning", "pruning", "data.init_args")


@pytest.mark.parametrize("command", LIGHTNING)
def test_help_is_short(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    main([command, "--config", "x.yaml", "--help"])
    lines = capsys.readouterr().out.splitlines()
    assert 60 <= len(lines) <= 80
    assert max(map(len, lines)) <= 100
    assert lines[0].startswith(f"usage: prunerob {command} ")


def test_help_names_each_key_that_there_is(capsys: pytest.CaptureFixture[str]) -> None:
    main(["fit", "--help"])
    named = set(re.findall(r"^  --([\w.]+\.\w+) +\S", capsys.readouterr().out, re.MULTILINE))
    config = resolve(["--config", TINY])
    there = set()
    for group in GROUPS:
        settings = config
        for part in group.split("."):
            settings = settings[part]
        there |= {f"{group.removesuffix('.init_args')}.{key}" for key in settings}
    there -= {"model.adversarial_training", "model.fine_tuning", *HIDDEN}
    # What a data set adds of its own stands with the class.
    ours = {name for name in named if not name.startswith("trainer.") and name != "KEY.help"}
    assert ours == there


def test_help_answers_at_once() -> None:
    begun = monotonic()
    heavy = "import sys; from prunerob.cli import main; main(['fit', '--help']); "
    heavy += "assert not {'torch', 'jsonargparse'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", heavy], check=True, capture_output=True)
    assert monotonic() - begun < 5
