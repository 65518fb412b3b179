"""YAML files are looked through before they are built in memory."""

from __future__ import annotations

from pathlib import Path

import pytest

from prunerob.errors import UserError
from prunerob.runs.plain import read_yaml
from tests.conftest import TINY, refused

BOMB = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]\n" for i in range(1, 12)
)

HOSTILE: dict[str, tuple[bytes, str]] = {
    "utf-16": ("seed_everything: 1".encode("utf-16"), "is not UTF-8 text (at byte 0)"),
    "utf-16 without a mark": ("seed_everything: 1".encode("utf-16-le"), "is no YAML"),
    "latin-1": ("model: é".encode("latin-1"), "is not UTF-8 text (at byte 7)"),
    "binary": (bytes(range(256)) * 40, "is not UTF-8 text"),
    "aliases": (BOMB.encode(), "aliases stand for more than 100,000 values"),
    "itself": (b"model: &a [*a]", "the alias *a stands within what it stands for"),
    "deep": (b"a: " + b"[" * 1500 + b"]" * 1500, "is nested deeper than 50 levels"),
    "deep keys": (
        b"".join(b" " * i + b"a:\n" for i in range(300)),
        "is nested deeper than 50 levels",
    ),
    "unclosed": (b"a: [1, 2", "is no YAML: line 2, column 1: did not"),
    "object": (b"a: !!python/object/apply:os.getcwd []", "is no YAML: line 1, column 4"),
    "list as a key": (b"{[1]: 2}", "is no YAML: line 1, column 2"),
    "two documents": (b"a: 1\n---\na: 2\n", "but found another document"),
    "40th of May": (b"a: 2020-05-40", "holds a value that cannot be read"),
    "large": (b"# " + b"x" * 200_000, "is larger than 128 KiB"),
    "unknown alias": (b"a: *b", "is no YAML"),
    "digits": (b"a: " + b"9" * 6000, "holds a value that cannot be read"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_what_is_no_configuration_is_told_in_one_line(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    data, message = HOSTILE[name]
    Path("c.yaml").write_bytes(data)
    with pytest.raises(UserError) as error:
        read_yaml(Path("c.yaml"))
    assert str(error.value).startswith("c.yaml: ")
    assert message in str(error.value)
    told = refused(capsys, "fit", "--config", TINY, "--config", "c.yaml")
    assert told.startswith("prunerob: error: c.yaml: ")


def test_aliases_of_a_usual_configuration_are_read() -> None:
    Path("c.yaml").write_text("a: &attack {eps: 0.1, steps: [1, 2]}\nb: [*attack, *attack]\n")
    attack = {"eps": 0.1, "steps": [1, 2]}
    assert read_yaml(Path("c.yaml")) == {"a": attack, "b": [attack, attack]}
