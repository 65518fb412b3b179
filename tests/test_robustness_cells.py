"""Names in CSV files."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prunerob.robustness.cells import from_cell, to_cell


@pytest.mark.parametrize("name", ["=1+1", "+1", "-1", "@SUM(A1)", "\t=1", "\r=1", "'=1"])
def test_no_cell_begins_a_formula(name: str) -> None:
    assert to_cell(name) == f"'{name}"


@given(st.text("=+-@'a1 \t"))
def test_a_cell_is_read_back(name: str) -> None:
    assert from_cell(to_cell(name)) == name
    assert to_cell(name)[:1] not in tuple("=+-@\t\r")
