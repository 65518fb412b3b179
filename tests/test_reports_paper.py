"""The tables of the paper."""

from __future__ import annotations

from prunerob.reports.paper import TABLES
from tests.conftest import CONFIGS, recipe_of


def test_the_paper_s_tables_can_be_swept() -> None:
    for table in TABLES.values():
        for recipe in table.recipes:
            assert (CONFIGS / recipe.config).is_file()
            amounts = table.amounts_of(recipe)
            assert amounts["weight"][0] == 0.0, "the control"
        for row in table.rows:
            assert len(row.accuracies) == len(table.columns)
            assert any(recipe.training == row.training for recipe in table.recipes)
    assert TABLES["table2"].amounts_of(recipe_of("table2", "PGD")) == {
        "weight": [0.0, 0.94, 0.85],
        "filter": [0.65, 0.4],
        "filter:parameters": [0.65, 0.4],
    }
    # What is made to run on a CPU takes one reading, and fewer amounts.
    one = {"weight": [0.0, 0.7], "filter:weights:silence": [0.5]}
    assert TABLES["table3"].amounts_of(recipe_of("table3", "PGD, cpu")) == one
    fewer = {**one, "weight": [0.0, 0.7, 0.5, 0.8, 0.9, 0.94, 0.97]}
    assert TABLES["figure2"].amounts_of(recipe_of("figure2", "PGD, cpu")) == fewer
