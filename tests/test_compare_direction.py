"""Which cell is called better, by what, and than which: declared directions, enough seeds, one column a measurement."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from test_compare import make_run

from maskzoo.compare.cells import gather
from maskzoo.compare.latex import STAR, latex
from maskzoo.compare.report import tell
from maskzoo.compare.tables import markdown
from maskzoo.measured import Measured, added
from maskzoo.metrics import Metric, accuracy

HIGH, LOW = [0.50, 0.60, 0.70], [0.301, 0.40, 0.502]  # three seeds each, clearly apart


def measured(path: Path, *found: Measured) -> Path:
    """A run whose evaluation.json holds that, in the format of today."""
    held = added({}, [Measured(**{"when": "after", **one}) if isinstance(one, dict) else one for one in found], "after")
    (path / "evaluation.json").write_text(json.dumps(held))
    return path


def runs(folder: Path, cells: Mapping[str, Sequence[float]], **declared: Any) -> list[Path]:
    """A run for each value of each masker, measured by a foreign evaluator in "it"."""
    return [
        measured(
            make_run(folder / f"{masker}-{seed}", masker, seed),
            Measured({"use": "foreign"}, [Metric("it", value, **declared)], "after"),
        )
        for masker, values in cells.items()
        for seed, value in enumerate(values)
    ]


# ------------------------------------------------------------------------------------------------------------ direction
@pytest.mark.parametrize(
    ("better", "bold", "starred"), [("higher", "clmae", True), ("lower", "random", False), (None, None, False)]
)
def test_bold_and_stars_follow_the_declared_direction(tmp_path: Path, better: Any, bold: str | None, starred: bool):
    comparison = gather(runs(tmp_path, {"random": LOW, "clmae": HIGH}, better=better, unit="share"))
    assert comparison.best("foreign/it") == bold
    lines = [line for line in markdown(comparison).splitlines() if "**" in line]
    assert [line.split(" |")[0].strip("| ") for line in lines] == ([] if bold is None else [bold])
    assert (STAR in latex(comparison)) is starred  # never on a worse value


def test_an_undeclared_direction_is_said(tmp_path: Path):
    text = markdown(gather(runs(tmp_path, {"random": LOW, "clmae": HIGH})))
    assert "Which way is better is not declared for foreign/it" in text
    assert "| 0.401 " in text  # a raw number, no percent


@pytest.mark.parametrize("better", ["higher", "lower"])
def test_two_seeds_are_too_few_for_bold_or_a_star(tmp_path: Path, better: Any):
    cells = {"random": [0.1, 0.2], "clmae": [0.3001, 0.4], "block": [0.6001, 0.7]}
    comparison = gather(runs(tmp_path, cells, better=better))
    assert comparison.best("foreign/it") is None
    assert "**" not in markdown(comparison)
    assert STAR not in latex(comparison)


def test_what_evaluators_disagree_about_is_undeclared(tmp_path: Path):
    paths = runs(tmp_path / "a", {"random": LOW}, better="lower", unit="share")
    paths += runs(tmp_path / "b", {"clmae": HIGH}, better="higher")
    comparison = gather(paths)
    assert comparison.better("foreign/it") is None
    assert comparison.unit("foreign/it") == (100.0, 1, "%")  # what one says and the other leaves open


# ------------------------------------------------------------------------------------------------------ one measurement
def knn(k: int, value: float, **more: Any) -> Measured:
    given = {"use": "knn", "k": k, "metric": "cosine"}
    return Measured(
        {**given, **more},
        [accuracy("knn", value)],
        "after",
        changed=frozenset(more) | {"k"} if k != 20 else frozenset(more),
    )


def test_a_value_of_k_is_one_column_alone_and_among_several(tmp_path: Path):
    alone = measured(make_run(tmp_path / "a"), knn(20, 0.5))
    among = measured(make_run(tmp_path / "b", "clmae"), knn(5, 0.3), knn(20, 0.6))
    comparison = gather([alone, among])
    assert comparison.scores == ["knn (k 20)/top1", "knn (k 5)/top1"]
    assert [comparison.cell(name).values("knn (k 20)/top1") for name in ("random", "clmae")] == [{0: 0.5}, {0: 0.6}]
    assert comparison.label("knn (k 5)/top1") == "k-NN top-1 (k 5)"
    row = next(line for line in markdown(comparison).split("\n\n")[1].splitlines() if line.startswith("| random"))
    assert "unmeasured" in row
    assert "seeds to tell" not in row


def test_a_score_that_many_runs_lack_is_one_remark(tmp_path: Path):
    paths = [measured(make_run(tmp_path / f"a{seed}", seed=seed), knn(20, 0.5)) for seed in range(7)]
    paths += [measured(make_run(tmp_path / f"b{seed}", "clmae", seed), knn(5, 0.5)) for seed in range(7)]
    lacking = [remark for remark in gather(paths).remarks if "was not measured there" in remark]
    assert len(lacking) == 2
    assert lacking[0].startswith("7 of 14 runs have no knn (k 5)/top1: it was not measured there")
    assert "a2' and 4 more" in lacking[0]


@pytest.mark.parametrize(("option", "together"), [({}, True), ({"weighting": "plain"}, False)])
def test_an_option_that_an_older_version_lacked_is_as_given(tmp_path: Path, option: dict[str, Any], together: bool):
    older = measured(make_run(tmp_path / "a"), knn(20, 0.5))
    weighting = {"weighting": "similarity", **option}
    newer = Measured(
        {"use": "knn", "k": 20, "metric": "cosine", **weighting},
        [accuracy("knn", 0.6)], "after", changed=frozenset(option),
    )  # fmt: skip
    comparison = gather([older, measured(make_run(tmp_path / "b", "clmae"), newer)])
    assert (len(comparison.scores) == 1) is together


@pytest.mark.parametrize(
    ("held", "word"),
    [([], "unmeasured"), ([Measured({"use": "foreign"}, (), "after", problem="no room")], "failed"),
     ([Measured({"use": "foreign"}, [Metric("it", float("nan"))], "after")], "NaN")],
)  # fmt: skip
def test_a_cell_without_a_value_says_why_in_a_word(tmp_path: Path, held: list[Measured], word: str):
    paths = runs(tmp_path, {"random": LOW})
    paths.append(measured(make_run(tmp_path / "c", "clmae"), Measured({"use": "knn"}, [], "after"), *held))
    row = next(line for line in markdown(gather(paths)).splitlines() if line.startswith("| clmae"))
    assert f"| {word} |" in row
    assert "seeds to tell" not in row


# ------------------------------------------------------------------------------------------------------------- baseline
def curriculum(path: Path, factor: Sequence[float], learns: bool = False) -> Path:
    lines = [
        {
            "step": step,
            "progress": step / 9,
            "loss": 1.0,
            "factor": value,
            **({"strategy_grad_norm": 1.0} if learns else {}),
        }
        for step, value in enumerate(factor)
    ]
    (path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def test_random_is_the_baseline_of_given_runs_whatever_the_order(tmp_path: Path):
    paths = [make_run(tmp_path / masker, masker) for masker in ("attmask", "clmae", "random")]
    assert gather(paths).baseline == "random"
    assert gather(paths, "clmae").baseline == "clmae"
    assert (
        gather(dict(zip(paths, ["attmask", "clmae", "random"], strict=True))).baseline == "attmask"
    )  # the first named


def test_without_random_the_plainest_is_the_baseline(tmp_path: Path):
    learned = curriculum(make_run(tmp_path / "a", "clmae"), [0, 0], learns=True)
    moving = curriculum(make_run(tmp_path / "b", "attmask"), [1, 0])
    adversary = curriculum(make_run(tmp_path / "c", "edges"), [-1, -1])
    fixed = curriculum(make_run(tmp_path / "d", "grid"), [0, 0])
    for paths, plainest in (
        ([learned, moving], "attmask"),
        ([learned, moving, adversary], "edges"),
        ([learned, moving, adversary, fixed], "grid"),
    ):
        assert gather(paths).baseline == plainest


# ------------------------------------------------------------------------------------------------------------- terminal
@pytest.mark.parametrize("width", [24, 40, 60, 80, 200])
def test_what_is_said_in_words_is_a_footnote_and_no_number_is_cut(tmp_path: Path, width: int):
    paths = runs(tmp_path, {"random": [12.782, 22.391], "edges+linear:0:-0.5": [12.782, 22.391]}, better="lower")
    console = Console(record=True, width=width)
    tell(gather(paths), Path("out"), console)
    said = console.export_text()
    assert "\u2026" not in said
    assert said.count("17.59 ± 61.05") == 2
    assert re.search(r"\[1\] the\s+same\s+result\s+in\s+every\s+pair", said)


# -------------------------------------------------------------------------------------------------- as it is printed
def test_small_values_beside_large_ones_keep_three_digits(tmp_path: Path):
    cells = {"random": [12.30, 12.31, 12.35], "clmae": [0.000401, 0.000402, 0.000406]}
    text = markdown(gather(runs(tmp_path, cells, better="lower")))
    assert "0.000403 ± 0.00000" in text
    assert "| 12.32 ± 0.0" in text


def test_a_small_difference_of_large_values_keeps_a_digit(tmp_path: Path):
    cells = {"random": [12.30, 12.31, 12.35], "clmae": [12.3004, 12.3104, 12.3506]}
    assert "+0.0005 ± 0.000" in markdown(gather(runs(tmp_path, cells, better="lower")))


def test_a_difference_that_is_noise_of_the_arithmetic_is_none(tmp_path: Path):
    cells = {"random": [0.5, 0.6], "clmae": [0.5 + 1e-15, 0.6 - 1e-15]}
    assert "| 0.000 ± 0.000 |" in markdown(gather(runs(tmp_path, cells)))


def test_tables_carry_the_label_and_the_name_of_a_score(tmp_path: Path):
    comparison = gather(
        runs(tmp_path, {"random": LOW, "clmae": HIGH}, better="lower", unit="share", label="top-1 error")
    )
    console = Console(record=True, width=100)
    tell(comparison, Path("out"), console)
    for text in (markdown(comparison), console.export_text()):
        assert "top-1 error, foreign/it (%) \u2193" in text


def test_only_the_float_with_a_column_of_minutes_explains_it(tmp_path: Path):
    path = measured(
        make_run(tmp_path / "a"),
        Measured({"use": "foreign"}, [Metric(f"m{number}", 0.5) for number in range(4)], "after"),
    )
    first, second = latex(gather([path])).split(r"\end{table*}")[0], latex(gather([path])).split(r"\begin{table")[2]
    assert ("min:" in first, "min:" in second) == (True, False)
