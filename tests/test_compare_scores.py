"""Which figures stand under one name in a comparison: what runs and `maskzoo evaluate` have measured alike."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from test_compare import make_run, make_runs

from maskzoo.compare.cells import gather
from maskzoo.compare.latex import latex
from maskzoo.compare.readings import read, read_run
from maskzoo.compare.report import report
from maskzoo.compare.tables import NONE, markdown, results_csv
from maskzoo.errors import RecipeError
from maskzoo.evaluate import Wishes, evaluate_backbone, evaluate_run
from maskzoo.measured import Measured, entries
from maskzoo.measured import read as read_evaluation
from maskzoo.recipe import Recipe
from maskzoo.registry import Registry
from maskzoo.run import run as train_run

REGISTRY = Registry()
QUIET = Console(quiet=True)
KNN = {"use": "knn", "k": 20, "metric": "cosine"}
SMALL = {
    "timm": "vit_tiny_patch16_224",
    "patch_size": 8,
    "options": {"embed_dim": 24, "depth": 1, "num_heads": 2},
}


def change(path: Path, **values: Any) -> Path:
    """Change what a run's evaluation.json says."""
    file = path / "evaluation.json"
    held = json.loads(file.read_text()) if file.exists() else {}
    file.write_text(json.dumps({**held, **values}))
    return path


def entry(figures: Mapping[str, Any], evaluator: Mapping[str, Any] = KNN, **more: Any) -> dict[str, Any]:
    """What `maskzoo evaluate` adds for a run of ten steps on digits."""
    return {
        "step": 10,
        "data": {"use": "digits"},
        "pooling": "mean",
        "evaluator": evaluator,
        "figures": figures,
        **more,
    }


def model(path: Path, *entries: Mapping[str, Any], **more: Any) -> Path:
    """The folder that `maskzoo evaluate --backbone` fills."""
    path.mkdir(exist_ok=True)
    about = {"model": {"use": "vit", "timm": "vit_base_patch16_224"}, "weights": "there/mae_vit_base.pth", **more}
    return change(path, evaluations=[{**about, **{k: v for k, v in one.items() if k != "step"}} for one in entries])


def own(path: Path, moment: str) -> list[Measured]:
    """What a run has measured of itself at that moment."""
    return [one for one in entries(read_evaluation(path / "evaluation.json")) if one.when == moment]


def scores(*paths: Path) -> dict[str, dict[str, float | None]]:
    """{cell: scores of its first run}."""
    return {cell.name: cell.first.scores for cell in gather(paths).cells}


# ---------------------------------------------------------------------------------------------------------- what is one
def test_what_was_evaluated_later_stands_in_the_table_too(tmp_path: Path):
    paths = make_runs(tmp_path, {"random": [0.1, 0.2], "clmae": [0.3, 0.4]})
    for number, path in enumerate(paths):
        change(path, evaluations=[entry({"top1": 0.5 + number / 10}, {"use": "linear", "epochs": 9})])
    comparison = gather(paths)
    assert comparison.scores == ["knn/top1", "linear/top1"]
    assert comparison.cell("clmae").values("linear/top1") == pytest.approx({0: 0.7, 1: 0.8})
    assert comparison.remarks == []


def test_what_was_measured_before_the_run_had_ended_is_no_score_of_it(tmp_path: Path):
    path = change(make_run(tmp_path / "a"), evaluations=[entry({"top1": 0.9}, {"use": "linear"}, step=5)])
    assert scores(path) == {"random": {"knn/top1": 0.5}}


def test_figures_of_other_settings_are_other_scores(tmp_path: Path):
    one = change(make_run(tmp_path / "a"), settings={"evaluators": [KNN]})
    other = change(make_run(tmp_path / "b", "clmae"), settings={"evaluators": [{**KNN, "k": 5}]})
    assert scores(one, other) == {"random": {"knn (k 20)/top1": 0.5}, "clmae": {"knn (k 5)/top1": 0.5}}
    remarks = gather([one, other]).remarks
    assert any(re.search(r"a' has no knn \(k 5\)/top1: it was not measured there", remark) for remark in remarks)


def test_an_option_that_one_side_does_not_name_makes_no_other_score(tmp_path: Path):
    old = change(make_run(tmp_path / "a"), settings={"evaluators": [{"use": "knn", "k": 20}]})
    new = change(make_run(tmp_path / "b", "clmae"), settings={"evaluators": [{**KNN, "temperature": None}]})
    assert list(scores(old, new)["clmae"]) == ["knn/top1"]


def test_the_runs_own_figure_comes_before_one_that_was_measured_alike_later(tmp_path: Path):
    path = change(make_run(tmp_path / "a"), settings={"evaluators": [KNN]}, evaluations=[entry({"top1": 0.6})])
    assert scores(path) == {"random": {"knn/top1": 0.5}}


def test_of_what_was_measured_twice_alike_the_last_counts(tmp_path: Path):
    linear = {"use": "linear", "epochs": 9}
    entries = [entry({"top1": 0.6}, linear), entry({"top1": 0.7}, linear, normalisation={"mean": [0.5], "std": [0.5]})]
    assert scores(change(make_run(tmp_path / "a"), evaluations=entries))["random"]["linear/top1"] == 0.7


def test_other_data_and_another_pooling_are_said(tmp_path: Path):
    other = {"use": "folder", "root": "/data/flowers"}
    path = change(
        make_run(tmp_path / "a"),
        evaluations=[
            entry({"top1": 0.6}, data=other),
            entry({"top1": 0.7}, pooling="class"),
            entry({"top1": 0.8}, data={"use": "cifar10"}, pooling="class"),
        ],
    )
    assert scores(path)["random"] == {
        "knn/top1": 0.5,
        "knn/top1 on flowers": 0.6,
        "knn/top1 (class token)": 0.7,
        "knn/top1 on cifar10 (class token)": 0.8,
    }
    assert "k-NN top-1 on flowers, knn/top1 on flowers (%) \u2191 |" in markdown(gather([path]))


def test_two_kinds_of_data_in_folders_of_one_name_are_never_one_score(tmp_path: Path):
    paths = make_runs(tmp_path, {"random": [0.1, 0.2], "clmae": [0.3, 0.4]})
    for path in paths:
        kind = "pets" if "random" in path.name else "cars"
        change(path, evaluations=[entry({"top1": 0.9}, data={"use": "folder", "root": f"/data/{kind}/val"})])
    comparison = gather(paths)
    assert comparison.scores == [
        "knn/top1",
        "knn/top1 on data.use=folder data.root=/data/pets/val",
        "knn/top1 on data.use=folder data.root=/data/cars/val",
    ]
    assert all(test.summary is None for test in comparison.differences(comparison.scores[2]).values())


def test_a_model_on_the_data_of_one_of_several_runs_is_said_to_be(tmp_path: Path):
    paths = [make_run(tmp_path / "a"), make_run(tmp_path / "b", "clmae", changes={"data": {"use": "cifar10"}})]
    paths.append(model(tmp_path / "mae", entry({"top1": 0.9})))
    assert list(scores(*paths)["vit_base_patch16_224 (mae_vit_base)"]) == ["knn/top1 on digits"]


@pytest.mark.parametrize("held", [[None], [{}], [{"step": 10, "evaluator": "knn"}], {"a": 1}, "x"])
def test_entries_that_are_no_measurement_are_passed_over(tmp_path: Path, held: Any):
    assert scores(change(make_run(tmp_path / "a"), evaluations=held)) == {"random": {"knn/top1": 0.5}}


# ----------------------------------------------------------------------------------------------------- published models
def test_a_published_model_stands_in_the_same_table(tmp_path: Path):
    paths = make_runs(tmp_path, {"random": [0.1, 0.2, 0.31], "clmae": [0.3, 0.4, 0.5]})
    for path in paths:
        change(path, settings={"evaluators": [KNN]})
    paths.append(model(tmp_path / "mae", entry({"top1": 0.9})))
    comparison = gather(paths)
    name = "vit_base_patch16_224 (mae_vit_base)"
    assert [cell.name for cell in comparison.cells] == ["random", "clmae", name]
    assert comparison.scores == ["knn/top1"]
    assert comparison.seeds == [0, 1, 2]
    assert list(comparison.differences("knn/top1")) == ["clmae"]  # nothing is paired with it
    assert comparison.best("knn/top1") == "clmae"  # of what was trained here
    assert comparison.differing() == ["masking.strategy.use"]
    assert comparison.remarks == []
    (row,) = [line for line in markdown(comparison).splitlines() if line.startswith(f"| {name}")]  # it took nothing
    assert row.count("not trained here") == 1
    assert "| 90.0 |" in row
    assert "Evaluated, but not trained here, so in no test: 'vit_base_patch16_224 (mae_vit_base)'." in markdown(
        comparison
    )
    assert "base) & 90.0 & -- & -- " in latex(comparison)
    assert results_csv(comparison).splitlines()[-1].startswith(f"{name},,{tmp_path / 'mae'},0.9,,")


@pytest.mark.slow
def test_a_report_on_a_published_model_is_whole(tmp_path: Path):
    paths = [*make_runs(tmp_path, {"random": [0.1, 0.2]}), model(tmp_path / "mae", entry({"top1": 0.9}))]
    report(tmp_path / "out", paths)
    text = (tmp_path / "out" / "report.html").read_text()
    assert "2 runs of vit_tiny_patch16_224" in text
    assert "vit_base_patch16_224 (mae_vit_base)" in text
    (kept,) = (tmp_path / "out" / "sources").glob("vit_base*")
    assert json.loads((kept / "evaluation.json").read_text()) == json.loads(
        (tmp_path / "mae" / "evaluation.json").read_text()
    )


@pytest.mark.slow
def test_models_alone_can_be_compared(tmp_path: Path):
    first = model(tmp_path / "a", entry({"top1": 0.9}), weights=None)
    second = model(tmp_path / "b", entry({"top1": 0.8}), weights=None)
    assert list(scores(first, second)) == ["vit_base_patch16_224 (untrained)", "vit_base_patch16_224 (untrained) 2"]
    report(tmp_path / "out", [first, second])
    assert "Models that were evaluated, and not trained here." in (tmp_path / "out" / "report.html").read_text()


def test_two_models_in_one_folder_are_two(tmp_path: Path):
    model(tmp_path / "a", entry({"top1": 0.9}))
    held = json.loads((tmp_path / "a" / "evaluation.json").read_text())["evaluations"]
    change(tmp_path / "a", evaluations=[*held, {**held[0], "weights": None}])
    assert [one.model for one in read(tmp_path / "a")] == [
        "vit_base_patch16_224 (mae_vit_base)",
        "vit_base_patch16_224 (untrained)",
    ]


def test_a_published_model_is_no_baseline(tmp_path: Path):
    paths = [model(tmp_path / "mae", entry({"top1": 0.9})), *make_runs(tmp_path, {"random": [0.1, 0.2]})]
    assert gather(paths).baseline == "random"
    with pytest.raises(RecipeError, match=r"--baseline: 'vit_base_patch16_224 .mae_vit_base.' was not trained here"):
        gather(paths, "vit_base_patch16_224 (mae_vit_base)")


# ------------------------------------------------------------------------------------------------------ before training
def begun(path: Path, value: float) -> Path:
    return change(path, before={"knn/top1": value})


def test_what_an_untrained_model_can_do_is_a_row_without_a_test(tmp_path: Path):
    paths = make_runs(tmp_path, {"random": [0.5, 0.6, 0.7], "clmae": [0.6, 0.71, 0.8]})
    for number, path in enumerate(paths):
        begun(path, 0.2 + 0.01 * (number % 3))  # a seed means the same model for all maskers
    comparison = gather(paths)
    assert [cell.name for cell in comparison.cells] == ["before training", "random", "clmae"]
    assert comparison.baseline == "random"
    assert comparison.cell("before training").values("knn/top1") == pytest.approx({0: 0.2, 1: 0.21, 2: 0.22})
    assert list(comparison.differences("knn/top1")) == ["clmae"]
    assert comparison.remarks == []
    assert markdown(comparison).splitlines()[2] == f"| before training | 3 | 21.0 ± 2.5 | 1.0 | {NONE} | {NONE} |"
    assert results_csv(comparison).splitlines()[1].startswith(f"before training,0,{tmp_path / 'random-0'},0.2,,,,,,,")
    with pytest.raises(RecipeError, match="no cell is called 'before training'"):
        gather(paths, "before training")


def test_models_that_begin_otherwise_have_no_such_row(tmp_path: Path):
    paths = make_runs(tmp_path, {"random": [0.5], "clmae": [0.6]})
    for number, path in enumerate(paths):
        begun(path, 0.2 + number)
    comparison = gather(paths)
    assert [cell.name for cell in comparison.cells] == ["random", "clmae"]
    assert any("so there is no row of those" in remark for remark in comparison.remarks)


# --------------------------------------------------------------------------------------------------------- what it took
def test_the_memory_and_the_flops_of_a_run_are_in_the_table(tmp_path: Path):
    (tmp_path / "out" / "runs").mkdir(parents=True)
    path = make_run(tmp_path / "out" / "runs" / "random-s0")
    lines = [{"step": step, "peak_memory_bytes": (step % 3 + 1) * 2**30} for step in range(10)]
    (path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    plan = {"runs": [{"cell": "r", "run": "runs/random-s0"}], "cells": [{"name": "r", "flops": 2.5e9}]}
    (tmp_path / "out" / "plan.json").write_text(json.dumps(plan))
    run = read_run(path)
    assert (run.memory, run.flops) == (3 * 2**30, 2.5e9)
    head, _, row = markdown(gather([path])).split("\n\n")[1].splitlines()
    assert head == "| cell | GFLOPs an image | images seen | minutes | peak memory (GiB) |"
    assert row == f"| random | 2.5 | 40 | {NONE} | 3 |"


def test_another_number_of_threads_is_said(tmp_path: Path):
    paths = make_runs(tmp_path, {"random": [0.1], "clmae": [0.2]})
    for number, path in enumerate(paths, start=1):
        environment = json.loads((path / "environment.json").read_text())
        (path / "environment.json").write_text(json.dumps({**environment, "threads": number}))
    assert "the runs were made with different numbers of threads: 1, 2" in gather(paths).remarks


# ------------------------------------------------------------------------------------------------------- from real runs
@pytest.mark.slow
def test_two_evaluators_of_one_name_both_have_their_figures(tmp_path: Path):
    euclidean = {"use": "knn", "k": 5, "metric": "euclidean", "weighting": "plain"}
    recipe = {
        "backbone": SMALL,
        "objective": {"use": "reconstruct", "decoder_dim": 16, "decoder_depth": 1},
        "evaluation": ["knn", euclidean],
        "train": {"steps": 2, "pictures": 0, "device": "cpu", "precision": "fp32"},
    }
    out = tmp_path / "run"
    train_run(Recipe.from_plain(recipe), REGISTRY, QUIET, out)
    assert [one.told for one in own(out, "after")] == ["knn", "knn (k 5, metric euclidean, weighting plain)"]
    # In a comparison all settings of a name are told by what differs, also what was measured later or elsewhere.
    evaluate_run(
        out, Wishes(evaluators='{use="knn", k=5, metric="euclidean", weighting="plain"},knn:7'), REGISTRY, QUIET
    )
    small = ("backbone.patch_size=8", "backbone.options={embed_dim=24, depth=1, num_heads=2}")
    elsewhere = Wishes(evaluators='{use="knn", k=5, metric="euclidean", weighting="plain"}', settings=small)
    evaluate_backbone("vit_tiny_patch16_224", None, False, tmp_path / "model", elsewhere, REGISTRY, QUIET)
    begun, trained, untrained = scores(out, tmp_path / "model").values()
    shared = "knn (k 5, metric euclidean, weighting plain)/top1"
    assert set(trained) == {
        "knn (k 20, metric cosine, weighting similarity)/top1",
        "knn (k 7, metric cosine, weighting similarity)/top1",
        shared,
    }
    assert set(untrained) == {shared}
    for scored, moment in ((begun, "before"), (trained, "after")):
        assert scored[shared] == own(out, moment)[1].metrics[0].value
