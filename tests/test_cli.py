"""The command line answers at once."""

from __future__ import annotations

import subprocess
import sys
from time import perf_counter

import pytest


@pytest.mark.parametrize("option", ["--help", "--version"])
def test_help_and_version_answer_before_heavy_imports(option: str) -> None:
    code = (
        "import sys\n"
        "from prunerob.cli import main\n"
        f"main([{option!r}])\n"
        "heavy = {'torch', 'pytorch_lightning', 'jsonargparse', 'numpy'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    start = perf_counter()
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert perf_counter() - start < 1
    assert "prunerob" in done.stdout
