"""Runs are read back."""

from __future__ import annotations

import json
import random
import shutil
from pathlib import Path
from typing import Any

import pytest

from prunerob.cli import main
from prunerob.errors import UserError
from prunerob.reports import comparison
from prunerob.reports.paper import TABLES
from prunerob.reports.reading import _check_counts, _in_words, _point, read_results
from prunerob.sweeps.branches import make_branches
from tests.conftest import TINY, recipe_of, refused


def test_settings_of_a_newer_version_do_not_make_other_attacks(swept: Path) -> None:
    file = swept / "seed0" / "dense" / "robustness.json"
    found = json.loads(file.read_text())
    for attack in found["suite"]["attacks"].values():
        attack["init_args"].pop("label", None)  # as if it had not been there yet
    file.write_text(json.dumps(found))
    assert len(read_results([str(swept)]).all) == 12
    found["suite"]["attacks"]["FGSM 8/255"]["init_args"].pop("eps")  # 0.3, where it is not said
    file.write_text(json.dumps(found))
    with pytest.raises(UserError, match=r"FGSM 8/255 of .* are different attacks"):
        read_results([str(swept)])


@pytest.mark.parametrize(
    ("group", "name", "value"),
    [
        ("shares", "weights", None),
        ("shares", "filters", 2),
        ("layers", "channels_after", {}),
        ("layers", "channels_before", 0),
        ("layers", "parameters_after", -1),
    ],
)
def test_counts_of_pruning_that_are_none_are_damage(group: str, name: str, value: object) -> None:
    counts = ("parameters_before", "parameters_after", "channels_before", "channels_after")
    record = {
        "shares": {"filters": 0.0, "weights": 0.5, "parameters": 0.4},
        "layers": [{"name": "conv1", **dict.fromkeys(counts, 4)}],
    }
    _check_counts(record)
    place: Any = record["shares"] if group == "shares" else record["layers"][0]  # type: ignore[index]
    place[name] = value
    with pytest.raises((ValueError, TypeError)):
        _check_counts(record)


def test_recipes_are_told_apart_by_as_much_of_their_path_as_it_takes(swept: Path) -> None:
    for place in ("a/x/pgd", "b/x/pgd"):
        shutil.copytree(swept / "seed0" / "dense", Path(place) / "seed0" / "dense")
    assert read_results(["a", "b"]).recipes == ["PGD (a/x/pgd)", "PGD (b/x/pgd)"]


def test_single_runs_with_their_dense_network(tmp_path: Path) -> None:
    main(["fit", "--config", TINY])
    main(["test", "--ckpt_path", "before_pruning"])
    main(["test"])
    results = read_results(["lightning_logs"])
    run = Path("lightning_logs/tiny/version_0")
    assert [point.name for point in results.by_point] == ["dense", "weights, 70 %"]
    dense, pruned = results.all
    rows = json.loads((run / "robustness_before_pruning.json").read_text())["rows"]
    assert [row.accuracy for row in dense.robustness.rows] == [row["accuracy"] for row in rows]
    # On as many images, so that they can be compared.
    assert dense.validation["robust"][1] == pruned.validation["robust"][1] == 100
    assert dense.validation["clean"][1] == pruned.validation["clean"][1] == 100


def test_tables_and_reports_call_a_way_of_pruning_the_same() -> None:
    assert comparison._told("filter") == "filter (weights)"
    assert comparison._told("filter:parameters") == "filter (parameters)"
    assert comparison._told("filter:weights:silence") == "filter (weights, silence)"
    names = []
    for text in TABLES["table3"].amounts_of(recipe_of("table3", "PGD")):
        (branch,) = make_branches([text], [0.5])
        words = branch.settings()
        keys = [word.removeprefix("--pruning.") for word in words[::2]]
        defaults = {"reading": "weights", "residual": "keep", "epoch": 1, "masks_from": None}
        defaults["unit"] = "weights" if text == "weight" else "filters"
        said = {**defaults, **dict(zip(keys, words[1::2], strict=True)), "amount": 0.5}
        names.append(_point("PGD", said, "", is_given=False).method)
    assert names == ["weight", "filter (parameters)", "filter (weights, silence)"]


def test_tampered_results_are_one_line_each(
    swept: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = swept / "seed0" / "dense"
    chance = random.Random(0)
    damaged = 0
    for name in ("robustness.json", "robustness_images.csv", "summary.json", "config.yaml"):
        whole = (run / name).read_bytes()
        hostile = [b"", b"\xff\xfe\x00", b"[]", b"null", b"[" * 100_000, b"{}", b"a,b\n1\n"]
        for _ in range(12):
            changed = bytearray(whole)
            changed[chance.randrange(len(whole))] = chance.randrange(256)
            hostile += [bytes(changed), whole[: chance.randrange(len(whole))]]
        if name == "robustness.json":
            good = json.loads(whole)
            for key, value in (
                *(("images", v) for v in (0, -1, 1e9, "many", None)),
                *(("correct", v) for v in (-1, 10**9, 0.5, [])),
                *(("seconds", v) for v in ("x", None, float("nan"))),
                *(("attack", v) for v in (None, [], "another")),
            ):
                rows = [{**good["rows"][0], key: value}, *good["rows"][1:]]
                hostile.append(json.dumps({**good, "rows": rows}).encode())
        for data in hostile:
            (run / name).write_bytes(data)
            told = ""
            try:
                read_results([str(swept)])
            except (UserError, OSError) as error:
                told = str(error)
            damaged += bool(told)
            assert not told or "dense" in told
        (run / name).write_bytes(whole)
    print(f"{damaged} refused")
    (run / "robustness.json").write_text("[]")
    told = refused(capsys, "report", str(swept))
    assert "robustness.json and _images.csv are not of a test" in told


def test_a_folder_s_name_is_no_formula_in_figures(swept: Path) -> None:
    for place in (r"$\foo$", "$x^{"):
        shutil.copytree(swept / "seed0" / "dense", Path(place) / "seed0" / "dense")
    main(["report", r"$\foo$", "$x^{", "--output", "report"])
    assert Path("report/report.html").is_file()


@pytest.mark.slow
def test_a_sweep_over_objectives_compares_each_with_its_own_control(
    capsys: pytest.CaptureFixture[str],
) -> None:
    sweep = ["sweep", "--config", TINY, "--amount", "0,0.5", "--objective", "trades:2,rslad"]
    main([*sweep, "--threads", "1", "--folder", "s", "--model.scrutinized_images", "0"])
    main([*sweep, "--threads", "1", "--folder", "s", "--model.scrutinized_images", "0"])
    assert "5 of 5 runs finished" in capsys.readouterr().out
    results = read_results(["s"])
    told = [point.name for point in results.by_point]
    objectives = ["RSLAD (share 0.8333)", "TRADES (beta 2)"]
    assert told == [
        "dense",
        *(f"dense, trained longer, {objective}" for objective in objectives),
        *(f"weights, 50 %, {objective}" for objective in objectives),
    ]
    for point in results.by_point:
        if not (point.is_dense or point.is_control):
            assert results.is_comparable(point, point.control)
            assert results.difference(point, point.control, "natural") is not None
    main(["report", "s", "--output", "page"])
    assert "weights, 50 %, TRADES (beta 2)" in Path("page/accuracy.md").read_text()
    with pytest.raises(SystemExit):
        main([*sweep, "--objective", "trades:2", "--scratch", "--folder", "t"])


@pytest.mark.parametrize(
    ("record", "words"),
    [
        ("prunerob.pruning.criteria.lamp", "lamp"),
        ("prunerob.pruning.criteria.filter_l1", "filter"),
        ("prunerob.pruning.saliency.Taylor(batches=20)", "taylor"),
        ("prunerob.pruning.saliency.FilterTaylor(batches=3)", "filter taylor (batches 3)"),
        (
            "prunerob.pruning.learned_scores.Hydra(epochs=1, lr=0.1, momentum=0.9, "
            "weight_decay=0.0001)",
            "hydra (epochs 1)",
        ),
        ("prunerob.pruning.schedules.OneShot()", "oneshot"),
        (
            "prunerob.pruning.schedules.Gradual(epochs=3, every='epoch', initial=0.0)",
            "gradual (epochs 3)",
        ),
        (
            "prunerob.pruning.schedules.Gradual(epochs=3, every=50, initial=0.5)",
            "gradual (epochs 3, every 50, initial 0.5)",
        ),
        ("mine.Largest(size=3)", "Largest(size=3)"),
        ("prunerob.pruning.saliency.Taylor(batches=open('x'))", "Taylor(batches=open('x'))"),
        ("Taylor(((", "Taylor((("),
    ],
)
def test_criteria_and_schedules_have_words(record: str, words: str) -> None:
    assert _in_words(record) == words
