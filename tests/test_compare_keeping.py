"""A comparison writes into a folder of its own, and over nothing that it has not written."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from test_compare import make_runs
from test_compare_plan import made
from test_nothing_lost import contents

from maskzoo.compare.keeping import RECORD, refuse_foreign
from maskzoo.compare.plan import planned
from maskzoo.compare.report import report, report_on
from maskzoo.compare.whole import compare_all
from maskzoo.errors import MaskZooError, RecipeError
from maskzoo.registry import Registry

pytestmark = pytest.mark.slow

PLAN = {"baseline": "random", "equal": "epochs", "cells": [], "runs": []}


@pytest.fixture(autouse=True)
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without figures, and without FLOPs, which take seconds."""

    def draw_all(comparison: Any, folder: Path) -> list[Any]:
        (folder / "loss.svg").write_text("<svg/>")
        return []

    def flops_per_image(*_: Any) -> None:
        raise NotImplementedError

    monkeypatch.setattr("maskzoo.compare.figures.draw_all", draw_all)
    monkeypatch.setattr("maskzoo.compare.plan.flops_per_image", flops_per_image)


@pytest.fixture
def runs(tmp_path: Path) -> list[Path]:
    """Of each of two maskers, two."""
    return make_runs(tmp_path / "made", {"random": [0.1, 0.2], "clmae": [0.3, 0.4]})


def compare(out: Path, runs: list[Path], **options: Any) -> None:
    report_on(out, runs, None, Console(quiet=True), **options)


@pytest.mark.parametrize(
    "theirs",
    [
        ["report.html", "sources/code.py", "figures/plot.svg", "results.csv"],
        ["plan.json", "recipes/random-s0.toml"],
        ["sources/code.py"],
        ["results.csv"],
        ["comparison.json"],
        ["probes/mine.txt"],
        ["recipe.toml"],
        ["metrics.jsonl"],
    ],
)
def test_a_folder_of_somebody_else_is_refused_and_left_alone(theirs: list[str], runs: list[Path], tmp_path: Path):
    out = tmp_path / "out"
    for name in theirs:
        (out / name).parent.mkdir(parents=True, exist_ok=True)
        (out / name).write_text('{"mine": true}')
    before = contents(out)
    with pytest.raises(RecipeError, match="--out"):
        compare(out, runs)
    if "plan.json" in theirs:
        with pytest.raises(RecipeError, match=r"plan\.json"):
            made(out, "random", seeds="1")
        with pytest.raises(RecipeError, match=r"plan\.json"):
            planned(out)
    with pytest.raises(RecipeError, match="--out"):
        refuse_foreign(out)
    assert contents(out) == before


def test_a_file_of_somebody_else_in_a_comparison_is_not_overwritten(runs: list[Path], tmp_path: Path):
    out = tmp_path / "out"
    made(out, "random", seeds="1")
    (out / "results.csv").write_text("mine")
    before = contents(out)
    with pytest.raises(RecipeError, match=r"results\.csv' is not of a comparison"):
        compare(out, runs)
    assert contents(out) == before


def test_a_recipe_of_somebody_else_is_not_overwritten(tmp_path: Path):
    out = tmp_path / "out"
    made(out, "random", seeds="1")
    (out / "recipes" / "block-s0.toml").write_text("mine = true")
    before = contents(out)
    with pytest.raises(RecipeError, match=r"block-s0\.toml' is not of a comparison"):
        made(out, "random,block", seeds="1")
    assert contents(out) == before
    made(out, "random,attmask", seeds="1")
    assert (out / "recipes" / "block-s0.toml").read_text() == "mine = true"


def test_a_comparison_is_refreshed_file_by_file_and_others_files_stay(runs: list[Path], tmp_path: Path):
    out = tmp_path / "out"
    compare(out, runs[:3])
    mine = {"sources/notes.md": "a", "sources/clmae-s0/mine.txt": "b", "figures/mine.svg": "c", "paper.tex": "d"}
    for name, text in mine.items():
        (out / name).write_text(text)
    compare(out, runs[:3])
    compare(out, runs)
    compare(out, runs[:3], another=True)  # clmae-s1 goes
    assert not (out / "sources" / "clmae-s1").exists()
    assert {name: (out / name).read_text() for name in mine} == mine
    assert (out / "sources" / "random-s1" / "recipe.toml").exists()
    refuse_foreign(out)


def test_another_comparison_is_replaced_only_when_asked(runs: list[Path], tmp_path: Path):
    out = tmp_path / "out"
    compare(out, runs[:2])
    before = contents(out)
    with pytest.raises(RecipeError, match=r"another comparison.*--replace"):
        compare(out, runs[2:])
    assert contents(out) == before
    compare(out, runs[2:], another=True)
    assert "clmae" in (out / "results.csv").read_text()
    shutil.rmtree(runs[2])  # what is gone cannot be named
    compare(out, runs[3:])


def test_another_plan_is_refused_before_anything_is_trained_or_written(tmp_path: Path, runs: list[Path]):
    out = tmp_path / "out"
    plan = made(out, "random", seeds="1")
    shutil.copytree(runs[0], plan.jobs[0].folder)
    report(out, plan.paths)
    before = contents(out)
    with pytest.raises(RecipeError, match="another comparison"):
        made(out, "block", seeds="1")
    assert contents(out) == before
    assert len(made(out, "random,block", seeds="1").jobs) == 2
    assert len(made(out, "block", seeds="1", another=True).jobs) == 1
    assert len(made(out, "block", seeds="1").jobs) == 1  # as the command that resumes it does


@pytest.mark.parametrize("form", ["plan", "page"])
def test_a_comparison_of_before_the_record_is_known_by_its_form(form: str, runs: list[Path], tmp_path: Path):
    out = tmp_path / "out"
    if form == "plan":
        made(out, "random", seeds="1")
        plan = json.loads((out / "plan.json").read_text())
        del plan["generator"]
        (out / "plan.json").write_text(json.dumps(plan))
    else:
        compare(out, runs)
    (out / RECORD).unlink()
    refuse_foreign(out)
    compare(out, runs)


@pytest.mark.parametrize(
    "change",
    [
        {"run": "../outside"},
        {"run": "/tmp/outside"},
        {"run": "runs/../../outside"},
        {"run": "runs/.."},
        {"run": "runs/a/b"},
        {"recipe": "../outside.toml"},
        {"recipe": "recipes/linked"},
        {"run": "runs/linked"},
        {"run": 3},
        {"seed": "0"},
        {"cell": "block"},
    ],
)
def test_a_plan_that_leads_elsewhere_is_refused_before_anything_is_written(change: dict[str, Any], tmp_path: Path):
    out = tmp_path / "out"
    made(out, "random", seeds="1")
    (out / "runs").mkdir()
    for folder in ("runs", "recipes"):
        (out / folder / "linked").symlink_to(tmp_path)
    plan = json.loads((out / "plan.json").read_text())
    plan["runs"][0].update(change)
    (out / "plan.json").write_text(json.dumps(plan))
    before = contents(out)
    for base in (None, {}):
        with pytest.raises(RecipeError, match=r"plan\.json"):
            compare_all(
                base, Registry(), Console(quiet=True), maskers="random", vary=(), seeds="1", baseline=None,
                equal="epochs", jobs=1, devices="", launcher="local", launch=(), out=out, dry_run=False,
            )  # fmt: skip
    assert contents(out) == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out"]


@pytest.mark.parametrize("plan", [[], {}, {**PLAN, "cells": [3]}, {**PLAN, "runs": {}}, {**PLAN, "baseline": None}])
def test_a_plan_of_another_form_is_one_message(plan: Any, tmp_path: Path):
    (tmp_path / "plan.json").write_text(json.dumps(plan))
    with pytest.raises(MaskZooError, match=r"plan\.json' cannot be read"):
        planned(tmp_path)


@pytest.mark.parametrize("name", ["../mine.txt", "/etc/hosts", "sources/../../mine.txt", "runs/x/mine.txt", ""])
def test_a_record_that_lists_files_elsewhere_removes_none(name: str, runs: list[Path], tmp_path: Path):
    out = tmp_path / "out"
    compare(out, runs)
    (tmp_path / "mine.txt").write_text("mine")
    record = json.loads((out / RECORD).read_text())
    record["files"].append(name)
    (out / RECORD).write_text(json.dumps(record))
    before = contents(tmp_path)
    with pytest.raises(RecipeError, match="--out"):
        compare(out, runs)
    assert contents(tmp_path) == before


@pytest.mark.parametrize("linked", ["sources", "figures"])
def test_a_report_is_not_written_through_links(linked: str, runs: list[Path], tmp_path: Path):
    out, elsewhere = tmp_path / "out", tmp_path / "elsewhere"
    made(out, "random", seeds="1")
    elsewhere.mkdir()
    (out / linked).symlink_to(elsewhere)
    with pytest.raises(RecipeError, match="link to something outside"):
        compare(out, runs)
    assert not any(elsewhere.iterdir())
    for part in ("results.csv.part", ".results.csv.part"):
        (out / part).symlink_to(tmp_path / "victim")
    (out / linked).unlink()
    compare(out, runs)
    assert not (tmp_path / "victim").exists()
