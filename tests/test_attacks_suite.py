"""Suites."""

from __future__ import annotations

from prunerob.attacks import FGSM, PGD
from prunerob.attacks.reading import read_attack
from prunerob.attacks.suite import Suite
from prunerob.pixels import Pixels


def test_records_are_attacks_with_their_defaults() -> None:
    assert read_attack({"class_path": "prunerob.attacks.PGD"}) == PGD()
    record = {"class_path": "prunerob.attacks.FGSM", "init_args": {"eps": "8/255"}}
    assert read_attack(record) == FGSM(eps=Pixels("8/255")) != FGSM()
    suite = Suite.read({"attacks": {"a": record}, "worst_case_attacks": {}})
    assert suite == Suite({"a": FGSM(eps=Pixels("8/255"), label="true")})
    assert suite != Suite({"b": FGSM(eps=Pixels("8/255"))})
