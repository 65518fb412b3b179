"""The tables of the paper."""

from __future__ import annotations

from prunerob.reports.paper import TABLES
from tests.conftest import CONFIGS


def test_the_paper_s_tables_can_be_swept() -> None:
    for table in TABLES.values():
        for recipe in table.recipes:
            assert (CONFIGS / recipe.config).is_file()
            amounts = table.amounts_of(recipe.training)
            assert amounts["weight"][0] == 0.0, "the control"
        for row in table.rows:
            assert len(row.accuracies) == len(table.columns)
            assert any(recipe.training == row.training for recipe in table.recipes)
    assert TABLES["table2"].amounts_of("PGD") == {
        "weight": [0.0, 0.94, 0.85],
        "filter": [0.65, 0.4],
        "filter:parameters": [0.65, 0.4],
    }
