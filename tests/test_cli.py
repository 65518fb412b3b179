"""The command line answers at once."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
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


@pytest.mark.parametrize(("args", "status"), [(["--help"], 0), (["--version"], 0), (["no"], 2)])
def test_a_reader_that_leaves_is_no_error(args: list[str], status: int) -> None:
    """As `prunerob --help | head -1`, whenever the reader goes: here, before the first word."""
    reading, writing = os.pipe()
    os.close(reading)
    try:
        done = subprocess.run(
            [sys.executable, "-m", "prunerob", *args],
            stdout=writing,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
    finally:
        os.close(writing)
    assert done.returncode == status
    assert "BrokenPipe" not in done.stderr
    assert "Traceback" not in done.stderr


def test_a_reader_that_leaves_ends_no_training() -> None:
    code = "import sys\nfrom prunerob.cli import main\nmain(['--version'])\n"
    code += "for _ in range(3):\n    print('x' * 100_000, flush=True)\n"
    code += "sys.stderr.write('the end')"
    reading, writing = os.pipe()
    os.close(reading)
    try:
        done = subprocess.run(
            [sys.executable, "-c", code], stdout=writing, stderr=subprocess.PIPE, check=False
        )
    finally:
        os.close(writing)
    assert (done.returncode, done.stderr) == (0, b"the end")


def test_a_working_directory_that_is_gone_is_told(tmp_path: Path) -> None:
    code = "import os\nos.mkdir('gone')\nos.chdir('gone')\nos.rmdir(os.getcwd())\n"
    code += "from prunerob.cli import main\nmain(['report', 'x'])\n"
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parent.parent)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert done.stderr == (
        "prunerob: error: the working directory was removed; change to another\n"
    )


def shell(line: str) -> subprocess.CompletedProcess[str]:
    """Run a line of a shell, in which PRUNEROB is the program."""
    return subprocess.run(
        ["sh", "-c", line.replace("PRUNEROB", f"{sys.executable} -m prunerob")],
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parent.parent)},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize(
    ("line", "status"),
    [
        ("PRUNEROB --version >&-", 0),
        ("PRUNEROB --version <&- >&- 2>&-", 0),
        ("PRUNEROB nothing 2>&-", 2),
        ("PRUNEROB nothing <&- >&- 2>&-", 2),
        ("PRUNEROB nothing 2> /dev/full", 2),
        ("PRUNEROB --help > /dev/full 2> /dev/full", 2),
    ],
)
def test_streams_may_be_closed_or_full(line: str, status: int) -> None:
    done = shell(line)
    assert (done.returncode, done.stdout, done.stderr) == (status, "", "")


def test_what_cannot_be_printed_is_no_success() -> None:
    done = shell("PRUNEROB --help > /dev/full")
    assert done.returncode == 2
    assert done.stderr == "prunerob: error: standard output: No space left on device\n"


def test_no_file_takes_the_place_of_a_closed_stream(tmp_path: Path) -> None:
    file = tmp_path / "file"
    code = "import sys\nfrom prunerob.cli import main\nmain(['--version'])\n"
    code += f"with open({str(file)!r}, 'w') as opened:\n    print('printed')\n"
    code += "    assert opened.fileno() > 2\n"
    assert shell(f'{sys.executable} -c "{code}" >&- 2>&-').returncode == 0
    assert not file.read_text()
