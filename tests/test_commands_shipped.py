"""Configurations by name."""

from __future__ import annotations

import zipfile
from pathlib import Path

import pytest
import setuptools.build_meta

from prunerob.commands import shipped
from prunerob.commands.reading import resolve
from prunerob.commands.shipped import with_files
from prunerob.errors import UserError
from tests.conftest import refused

CONFIGS = Path(__file__).parents[1] / "configs"


def test_a_name_stands_for_a_shipped_file() -> None:
    file = str(CONFIGS / "mnist_pgd.yaml")
    assert with_files(["fit", "--config", "mnist_pgd", "--x", "mnist_pgd"]) == [
        *("fit", "--config", file, "--x", "mnist_pgd")
    ]
    assert with_files(["sweep", "--config=mnist_pgd"]) == ["sweep", f"--config={file}"]
    assert resolve(["--config", file])["pruning"]["epoch"] == 10


def test_a_file_comes_before_a_name() -> None:
    Path("mnist_pgd").write_text("pruning: {epoch: 3}")
    assert with_files(["fit", "-c", "mnist_pgd"]) == ["fit", "-c", "mnist_pgd"]
    assert with_files(["fit", "-c", "a/b.yaml"]) == ["fit", "-c", "a/b.yaml"]


def test_an_installed_package_finds_what_the_wheel_laid_down(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    share = tmp_path / "share"
    share.mkdir()
    (share / "mine.yaml").write_text("")
    monkeypatch.setattr(shipped, "FOLDERS", (tmp_path / "none", share))
    assert shipped.find("mine") == str(share / "mine.yaml")


def test_an_unknown_name_is_told_with_the_known_ones(capsys: pytest.CaptureFixture[str]) -> None:
    told = refused(capsys, "fit", "--config", "mnist_pdg")
    assert told.startswith("prunerob: error: --config mnist_pdg: there is no such file, nor")
    assert "mnist_pgd" in told
    with pytest.raises(UserError):
        shipped.find("nothing")


@pytest.mark.slow
def test_the_wheel_carries_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(CONFIGS.parent)
    wheel = tmp_path / setuptools.build_meta.build_wheel(str(tmp_path))
    names = [name for name in zipfile.ZipFile(wheel).namelist() if "/share/prunerob/" in name]
    carried = {Path(name).name for name in names}
    assert carried == {file.name for file in CONFIGS.glob("*.yaml")}
