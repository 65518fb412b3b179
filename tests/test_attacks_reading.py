"""Attacks are read from records."""

from __future__ import annotations

import sys

import pytest

from prunerob.attacks.reading import Unknown, read_attack
from prunerob.errors import UserError


def test_a_record_of_an_attack_imports_nothing() -> None:
    record = {"class_path": "this.Attack", "init_args": {"eps": "0.3", "seed": 3}}
    read = read_attack(record)
    assert "this" not in sys.modules, "a module of Python's own that prints when it is imported"
    assert read == Unknown("this.Attack", {"eps": "0.3", "seed": 3}) == read_attack(record)
    assert read.without_seed() == read_attack({**record, "init_args": {"eps": "0.3"}})
    assert (read.name, read.radius, read.gradient_steps) == ("Attack", None, 0)
    for class_path in ("os.system", "prunerob.cli.main", "prunerob.attacks.pgd", "", "nothing"):
        assert isinstance(read_attack({"class_path": class_path}), Unknown)
    assert isinstance(
        read_attack({"class_path": "prunerob.attacks.PGD", "init_args": {"steps": -1}}), Unknown
    )
    for wrong in (None, "PGD", {"class_path": 3}, {"class_path": "a.B", "init_args": [1]}):
        with pytest.raises(UserError, match="not an attack"):
            read_attack(wrong)
