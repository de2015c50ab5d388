"""The first line of a report: what a rule finds in the tests."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest
from test_compare import make_run, make_runs
from test_compare_scores import change

from maskzoo.compare.cells import gather
from maskzoo.compare.findings import Found, findings, listed, sentence, verdict
from maskzoo.compare.statistics import corrected, paired
from maskzoo.metrics import Better

BASE = [0.50, 0.60, 0.70]
UP, UP_TOO, DOWN = [0.601, 0.70, 0.802], [0.611, 0.71, 0.809], [0.399, 0.50, 0.598]
NOISE = [0.80, 0.55, 0.75]


def found(better: Better | None = "higher", untrained: list[float] | None = None, **cells: list[float]) -> Found:
    """Cells beside a baseline called random; every list is a value a seed."""
    base = dict(enumerate(BASE))
    held = {name: dict(enumerate(values)) for name, values in cells.items()}
    tests = corrected([paired(values, base) for values in held.values()])
    begun = dict(enumerate(untrained or []))
    initial = corrected([paired(values, begun) for values in [base, *held.values()]]) if untrained else []
    return Found(
        label="k-NN top-1",
        better=better,
        unit=(100.0, 1, "%"),
        baseline="random",
        tests=dict(zip(held, tests, strict=True)),
        untrained=dict(zip(["random", *held], initial, strict=True)) if untrained else {},
    )


@pytest.mark.parametrize(
    ("values", "better", "wanted"),
    [
        (UP, "higher", "better"),
        (UP, "lower", "worse"),
        (DOWN, "higher", "worse"),
        (DOWN, "lower", "better"),
        (UP, None, "differs"),
        (NOISE, "higher", "unclear"),
        (BASE, "higher", "same"),
        ([0.75, 0.85, 0.95], "higher", "constant"),
        (UP[:2], "higher", "few"),
        (UP[:1], "higher", "few"),
        ([], "higher", "apart"),
    ],
)
def test_a_verdict_says_no_more_than_its_pairs(values: list[float], better: Better | None, wanted: str):
    (test,) = corrected([paired(dict(enumerate(values)), dict(enumerate(BASE)))])
    assert verdict(test, better) == wanted


def test_two_pairs_call_nothing_better_however_small_their_p_is():
    (test,) = corrected([paired({0: 0.6, 1: 0.700001}, {0: 0.5, 1: 0.6})])
    assert test.adjusted is not None
    assert test.adjusted < 0.001
    assert verdict(test, "higher") == "few"


@pytest.mark.parametrize(
    ("made", "said"),
    [
        (found(a=NOISE), "No cell differs from random by k-NN top-1, as far as 3 seeds can show."),
        (found(a=UP), "a is better than random by 10.1 ± 0.2 points (k-NN top-1)."),
        (found(a=UP, b=UP_TOO), "b (+11.0 ± 0.2 points) and a (+10.1 ± 0.2 points) are better than random (k-NN"),
        (found(a=DOWN), "No cell is better than random by k-NN top-1; a is worse by 10.1 ± 0.2 points."),
        (found("lower", a=DOWN), "a is better than random by 10.1 ± 0.2 points (k-NN top-1)."),
        (
            found(a=UP, b=DOWN, c=NOISE),
            "a is better than random by 10.1 ± 0.2 points (k-NN top-1); b is worse by 10.1 ± 0.2 points; "
            "c does not differ, as far as 3 seeds can show.",
        ),
        (
            found(None, a=UP),
            "a (+10.1 ± 0.2 points) differs from random by k-NN top-1; which way is better is not declared.",
        ),
        (found(a=UP[:2]), "Too few seeds to tell whether any cell differs from random by k-NN top-1: 2 of at least 3."),
        (found(a=[]), "No cell has a seed in common with random by k-NN top-1, so nothing is tested."),
        (found(), "No cell can be tested against random by k-NN top-1."),
        (found(a=NOISE, b=BASE), "can show; b has the result of random in every pair."),
        (found(a=NOISE, b=[0.75, 0.85, 0.95]), "b (+25.0 ± 0.0 points) cannot be tested"),
        (found(b=[0.75, 0.85, 0.95]), "b (+25.0 ± 0.0 points) cannot be tested by k-NN top-1: the difference"),
        (found(a=NOISE, b=[0.9]), "b has too few seeds to tell."),
        (found(a=NOISE, b=[]), "b has no seed in common with random."),
    ],
)  # fmt: skip
def test_the_sentence_follows_from_the_tests(made: Found, said: str):
    assert said in sentence(made)


@pytest.mark.parametrize(
    ("untrained", "said"),
    [
        ([0.30, 0.41, 0.50], "all are better than the untrained model."),
        ([0.9, 0.5, 0.7], "none is shown to be better than the untrained model."),
        ([0.80, 0.91, 1.00], "none is shown to be better than the untrained model, and random and a are worse."),
        ([0.551, 0.65, 0.753], "only a is shown to be better than the untrained model."),
    ],
)
def test_whether_training_has_helped_is_said(untrained: list[float], said: str):
    assert sentence(found(untrained=untrained, a=UP)).endswith(f"; {said}")


def test_with_few_seeds_only_a_mean_below_the_untrained_model_is_said():
    few = found(untrained=[0.9, 0.9], a=UP[:2])
    assert sentence(few).endswith("no cell has a better mean than the untrained model.")
    assert "untrained" not in sentence(found(untrained=[0.1, 0.1], a=UP[:2]))


def test_the_untrained_model_says_nothing_where_no_direction_is_declared():
    assert "untrained" not in sentence(found(None, untrained=[0.1, 0.2, 0.3], a=UP))


def test_a_cell_of_other_data_is_said_to_be_untested(tmp_path: Path):
    paths = make_runs(tmp_path, {"random": BASE, "clmae": UP})
    paths.append(make_run(tmp_path / "other", "block", changes={"data": {"use": "cifar10"}}))
    assert findings(gather(paths))[0].endswith("; block learned from other data and is not tested.")


def test_long_lists_are_counted():
    assert [listed([*"abcdefg"[:count]]) for count in (1, 2, 4, 6)] == [
        "a",
        "a and b",
        "a, b, c and d",
        "a, b, c and 3 others",
    ]


def test_the_metric_whose_direction_is_declared_comes_first(tmp_path: Path):
    scores: Mapping[str, float] = {"thing/distance": 2.0, "knn/top1": 0.5}
    paths = [make_run(tmp_path / f"{m}{s}", m, s, scores) for m in ("random", "clmae") for s in range(3)]
    first, second = findings(gather(paths))
    assert first == "clmae has the result of random in every pair by k-NN top-1."
    assert "thing/distance" in second


def test_what_is_said_of_several_metrics_alike_is_said_once(tmp_path: Path):
    def scores(value: float) -> Mapping[str, float]:
        return {"knn/top1": value, "linear/top1": 0.5, "finetune/top1": 0.5, "classifier/top1": value}

    paths = [
        make_run(tmp_path / f"{m}{s}", m, s, scores(v))
        for m, c in (("random", BASE), ("x", UP))
        for s, v in enumerate(c)
    ]
    assert findings(gather(paths)) == [
        "x is better than random by 10.1 ± 0.2 points (k-NN top-1).",
        "x has the result of random in every pair by linear probe top-1 and fine-tuned top-1.",
        "x is better than random by 10.1 ± 0.2 points (classifier top-1).",
    ]


def test_the_untrained_model_of_a_comparison_is_paired_by_seed(tmp_path: Path):
    paths = make_runs(tmp_path, {"random": BASE, "clmae": UP})
    for path, seed in zip(paths, [0, 1, 2] * 2, strict=True):
        change(path, before={"knn/top1": 0.1 + seed / 10 + (0.001 if seed else 0)})
    assert findings(gather(paths))[0].endswith("all are better than the untrained model.")


def test_one_cell_is_not_compared_and_nothing_is_found_where_nothing_was_measured(tmp_path: Path):
    assert findings(gather(make_runs(tmp_path / "a", {"random": BASE}))) == [
        "Only random was trained: k-NN top-1 60.0 ± 24.8 %."
    ]
    assert "nothing is found" in findings(gather([make_run(tmp_path / "b", scores={})]))[0]
