"""The command reproduce."""

from __future__ import annotations

import pytest

from tests.conftest import CONFIGS, refused


def test_reproduce_needs_a_known_table_and_the_configurations(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert "table9 is not known; there are table1" in refused(capsys, "reproduce", "table9")
    for text in ("nan", "-300", "a"):
        assert "--tolerance" in refused(capsys, "reproduce", "table1", "--tolerance", text)
    assert "--configs: there is no configs/mnist" in refused(capsys, "reproduce", "table1")
    told = refused(capsys, "reproduce", "table1", "--recipe", "quick")
    assert "--recipe: 'quick' is none of: standard; standard, TensorFlow's RMSprop;" in told
    told = refused(capsys, "reproduce", "table3", "--recipe", "PGD*", "--recipe", "FGSM")
    assert "no configs/cifar10_pgd_cpu.yaml" in told, "the first of those asked for"
    told = refused(capsys, "reproduce", "table1", "--report-only", "--configs", str(CONFIGS))
    assert "--folder: reproduce holds no runs of table1" in told
