"""Branches of a sweep."""

from __future__ import annotations

import pytest

from prunerob.errors import UserError
from prunerob.sweeps.branches import make_branches


def test_branches_have_one_control_and_names_of_their_own() -> None:
    branches = make_branches(["weight", "filter", "filter:parameters"], [0.0, 0.94, 0.5])
    names = [branch.name for branch in branches]
    pruned = [
        f"{kind}-{n}" for kind in ("weight", "filter", "filter-parameters") for n in (0.94, 0.5)
    ]
    assert names == ["control", *pruned]
    (branch,) = make_branches(["filter:weights:silence"], [0.6])
    assert branch.name == "filter-weights-silence-0.6"
    assert branch.settings()[-4:] == [
        "--pruning.reading",
        "weights",
        "--pruning.residual",
        "silence",
    ]
    with pytest.raises(UserError, match="twice"):
        make_branches(["weight", "weight"], [0.5])
