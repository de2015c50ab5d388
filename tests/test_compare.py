"""The report of a comparison, over run folders that are made up."""

from __future__ import annotations

import base64
import csv
import io
import json
import math
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Mapping
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy
import pytest
import tomli_w
from rich.console import Console
from scipy import stats

from maskzoo.compare.cells import gather, signed
from maskzoo.compare.latex import escaped, latex, quoted
from maskzoo.compare.readings import POINTS, read_run
from maskzoo.compare.report import folder_name, refuse_foreign, report, report_on
from maskzoo.compare.statistics import best, corrected, holm, paired, summarise
from maskzoo.compare.tables import markdown, results_csv, statistics_csv
from maskzoo.errors import DataError, RecipeError

PIXEL = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
)


def make_run(
    path: Path,
    masker: str = "random",
    seed: int = 0,
    scores: Mapping[str, Any] | None = None,
    *,
    finished: bool = True,
    changes: Mapping[str, Any] | None = None,
    plugins: tuple[str, ...] = (),
    steps: int = 10,
) -> Path:
    """A run's folder, as `maskzoo train` would leave it."""
    (path / "masks").mkdir(parents=True)
    recipe = {
        "data": {"use": "digits"},
        "backbone": {"timm": "vit_tiny_patch16_224"},
        "objective": {"use": "reconstruct"},
        "masking": {"strategy": {"use": masker}, "ratio": {"use": "constant", "value": 0.75}},
        "evaluation": [{"use": "knn", "k": 20}],
        "train": {"seed": seed, "batch_size": 4, "epochs": 2, "device": "cpu"},
        **(changes or {}),
    }
    (path / "recipe.toml").write_text(tomli_w.dumps(recipe))
    environment = {"device": "cpu", "versions": {"maskzoo": "0.1.0", "torch": "2"}, "plugins": list(plugins)}
    (path / "environment.json").write_text(json.dumps(environment))
    lines = [
        {"step": step, "progress": step / (steps - 1), "loss": 1 / (step + 1), "factor": 1 - step / 5, "ratio": 0.75,
         "images_per_second": 8.0}
        for step in range(steps if finished else steps // 2)
    ]  # fmt: skip
    (path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    measured = {"settings": {"features": "mean"}, "before": {}}
    if finished:
        measured["after"] = dict({"knn/top1": 0.5} if scores is None else scores)
    (path / "evaluation.json").write_text(json.dumps(measured))
    (path / "masks" / "curriculum.png").write_bytes(PIXEL)
    (path / "lock").touch()
    return path


def make_runs(folder: Path, scores: Mapping[str, list[float]]) -> list[Path]:
    """A run for each score: {masker: [that of seed 0, of seed 1, ...]}."""
    return [
        make_run(folder / f"{masker}-{seed}", masker, seed, {"knn/top1": value})
        for masker, values in scores.items()
        for seed, value in enumerate(values)
    ]


# ---------------------------------------------------------------------------------------------------------- statistics
def test_a_summary_is_the_mean_the_deviation_and_the_interval_of_t():
    values = [0.71, 0.74, 0.69, 0.75]
    summary = summarise(values)
    low, high = stats.t.interval(0.95, 3, numpy.mean(values), stats.sem(values))
    assert (summary.count, summary.mean, summary.deviation) == pytest.approx(
        (4, numpy.mean(values), numpy.std(values, ddof=1))
    )
    assert (summary.low, summary.high) == pytest.approx((low, high))


def test_a_single_seed_has_a_mean_and_no_interval():
    summary = summarise([0.5])
    assert (summary.mean, summary.deviation, summary.half) == (0.5, None, None)


def test_a_difference_is_tested_over_the_seeds_that_both_have():
    ours, theirs = {0: 0.5, 1: 0.7, 2: 0.61, 7: 9.0}, {2: 0.6, 1: 0.62, 0: 0.45, 8: -9.0}
    difference = paired(ours, theirs)
    assert difference.pairs == 3
    assert difference.p == pytest.approx(stats.ttest_rel([0.5, 0.7, 0.61], [0.45, 0.62, 0.6]).pvalue)
    assert difference.summary.mean == pytest.approx(0.14 / 3)


@pytest.mark.parametrize(
    ("ours", "words"),
    [
        ([0.4], "not enough seeds to tell"),
        ([0.3, 0.4], "the same result in every pair"),
        ([0.4, 0.5], "the same difference in every pair"),
        ([0.4, 0.9], "0.374"),
    ],
)
def test_a_test_never_says_more_than_the_seeds_can(tmp_path: Path, ours: list[float], words: str):
    text = markdown(gather(make_runs(tmp_path, {"random": [0.3, 0.4], "clmae": ours})))
    row = next(line for line in text.splitlines() if line.startswith("| clmae"))
    assert row.endswith(f"| {words} |")


@pytest.mark.parametrize(
    ("chances", "adjusted"),
    [
        ([], []),
        ([0.04], [0.04]),
        ([0.01, 0.04, 0.03, 0.005], [0.03, 0.06, 0.06, 0.02]),  # the example in R's ?p.adjust, by hand
        ([0.6, 0.5], [1.0, 1.0]),
    ],
)
def test_holm_steps_down(chances: list[float], adjusted: list[float]):
    assert holm(chances) == pytest.approx(adjusted)


def test_the_correction_leaves_out_what_could_not_be_tested():
    untested, tested = corrected([paired({0: 1.0}, {0: 0.0}), paired({0: 1.0, 1: 1.2}, {0: 0.0, 1: 0.1})])
    assert untested.adjusted is None
    assert tested.adjusted == tested.p


@pytest.mark.parametrize(
    ("cells", "lower", "winner"),
    [
        ({"a": [0.5, 0.6, 0.7], "b": [0.7, 0.81, 0.9]}, False, "b"),
        ({"a": [0.5, 0.6, 0.7], "b": [0.7, 0.81, 0.9]}, True, "a"),
        ({"a": [0.5, 0.6, 0.7], "b": [0.9, 0.5, 0.8]}, False, None),  # a better mean that no test supports
        ({"a": [0.5, 0.6, 0.7], "b": [0.7, 0.81, 0.9], "c": [0.71, 0.79, 0.9]}, False, None),  # b beats a, but not c
        ({"a": [0.5], "b": [0.9]}, False, None),
        ({"a": [0.5, 0.6]}, False, None),
    ],
)
def test_the_best_is_what_beats_every_other(cells: dict[str, list[float]], lower: bool, winner: str | None):
    assert best({name: dict(enumerate(values)) for name, values in cells.items()}, lower=lower) == winner


# ------------------------------------------------------------------------------------------------------------ readings
def test_a_run_is_read_as_it_was_left(tmp_path: Path):
    run = read_run(make_run(tmp_path / "run", "clmae", 3, {"knn/top1": 0.25}))
    assert (run.masker, run.seed, run.finished, run.steps, run.images) == ("clmae", 3, True, 10, 40)
    assert run.scores == {"knn/top1": 0.25}
    assert (run.speed, run.seconds) == (8.0, 5.0)
    assert run.curves["loss"][:2] == [(0.0, 1.0), (1.0, 0.5)]
    assert run.picture == tmp_path / "run" / "masks" / "curriculum.png"


def test_a_long_curve_is_the_mean_of_pieces(tmp_path: Path):
    run = read_run(make_run(tmp_path / "run", steps=4 * POINTS))
    assert len(run.curves["factor"]) == POINTS
    assert run.curves["factor"][0] == pytest.approx((1.5, 1 - 1.5 / 5))


def test_a_line_that_was_cut_off_is_no_step(tmp_path: Path):
    path = make_run(tmp_path / "run")
    with (path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 10, "lo')
    assert read_run(path).steps == 10


@pytest.mark.parametrize(
    ("file", "text"), [("recipe.toml", "= broken"), ("evaluation.json", "{"), ("evaluation.json", "[]")]
)
def test_a_damaged_file_is_named(tmp_path: Path, file: str, text: str):
    path = make_run(tmp_path / "run")
    (path / file).write_text(text)
    with pytest.raises(DataError, match=re.escape(str(path / file))):
        read_run(path)


def test_keys_are_flattened_as_the_recipe_shows_them():
    from maskzoo.compare import readings
    from maskzoo.plain import shown

    plain = {"a": {"b": [1, 2], "c": [{"use": "x"}, {"use": "y", "d": {"e": 1}}]}, "f": "g"}
    assert readings.shown(plain) == shown(plain)


def test_what_decides_no_figure_is_what_may_change_on_resuming():
    from maskzoo.compare.cells import ASIDE
    from maskzoo.plain import FREE_KEYS

    assert FREE_KEYS | {"train.seed"} == ASIDE


@pytest.mark.parametrize(
    ("file", "change"),
    [
        ("recipe.toml", {"masking": "random"}),
        ("recipe.toml", {"train": {"seed": "x"}}),
        ("recipe.toml", {"train": {"batch_size": "x"}}),
        ("evaluation.json", {"after": [1]}),
        ("evaluation.json", {"settings": [1]}),
        ("environment.json", {"plugins": None}),
        ("environment.json", {"plugins": [3], "versions": None}),
        ("metrics.jsonl", {"step": 99, "progress": "x"}),
    ],
)
def test_a_file_of_another_form_costs_no_more_than_its_run(tmp_path: Path, file: str, change: dict[str, Any]):
    paths = make_runs(tmp_path, {"random": [0.1, 0.2], "clmae": [0.3]})
    path = paths[1] / file
    if file == "recipe.toml":
        path.write_text(tomli_w.dumps({**tomllib.loads(path.read_text()), **change}))
    elif file == "metrics.jsonl":
        path.write_text(path.read_text() + json.dumps(change) + "\n")
    else:
        path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    comparison = gather(paths)
    assert {cell.name for cell in comparison.cells} >= {"random", "clmae"}
    left_out = [remark for remark in comparison.remarks if "it is left out" in remark and str(paths[1]) in remark]
    assert len(left_out) == (0 if file == "environment.json" else 1)


# --------------------------------------------------------------------------------------------------------------- cells
def test_a_logger_makes_no_other_cell(tmp_path: Path):
    train = {"seed": 1, "batch_size": 4, "epochs": 2, "loggers": [{"use": "tensorboard"}]}
    paths = [make_run(tmp_path / "a"), make_run(tmp_path / "b", changes={"train": train})]
    assert {cell.name: sorted(cell.runs) for cell in gather(paths).cells} == {"random": [0, 1]}


def test_runs_of_two_recipes_are_never_one_cell(tmp_path: Path):
    paths = make_runs(tmp_path, {"random": [0.1, 0.2], "clmae": [0.3, 0.4]})
    other = make_run(tmp_path / "other", seed=2, changes={"train": {"seed": 2, "batch_size": 4, "epochs": 99}})
    names = dict.fromkeys([*paths[:2], other], "random") | dict.fromkeys(paths[2:], "clmae")
    comparison = gather(names)
    assert sorted(comparison.cell("random").runs) == [0, 1]
    (remark,) = comparison.remarks
    assert f"'{other}' is not of the recipe of '{paths[0]}' (train.epochs differs)" in remark


def test_cells_are_the_runs_of_one_recipe_whatever_the_seed_and_the_device(tmp_path: Path):
    paths = make_runs(tmp_path, {"random": [0.1, 0.2], "clmae": [0.3, 0.4]})
    elsewhere = {"train": {"seed": 2, "batch_size": 4, "epochs": 2, "device": "cuda"}}
    paths.append(make_run(tmp_path / "third", changes=elsewhere))
    comparison = gather(paths)
    assert {cell.name: sorted(cell.runs) for cell in comparison.cells} == {"random": [0, 1, 2], "clmae": [0, 1]}
    assert comparison.baseline == "random"
    assert comparison.differing() == ["masking.strategy.use"]
    assert "'clmae' lacks seed 2" in comparison.remarks


def test_cells_of_one_masker_are_named_by_what_tells_them_apart(tmp_path: Path):
    def masking(ratio: float, use: str, depth: int) -> dict[str, Any]:
        strategy = {"use": "clmae", "depth": depth}
        return {"masking": {"strategy": strategy, "curriculum": {"use": use}, "ratio": {"value": ratio}}}

    kinds = [(0.75, "adversary", 5), (0.75, "partner", 5), (0.6, "partner", 5), (0.6, "partner", 1)]
    paths = [make_run(tmp_path / str(n), "clmae", changes=masking(*kind)) for n, kind in enumerate(kinds)]
    paths.append(make_run(tmp_path / "r", "random"))
    names = [cell.name for cell in gather(paths).cells]
    assert len(set(names)) == 5
    assert names[0].startswith("clmae+adversary")
    assert "depth=1" in names[3]
    assert names[4] == "random"


def test_the_same_seed_twice_is_said_and_shown_once(tmp_path: Path):
    paths = [make_run(tmp_path / "a", scores={"s": 1.0}), make_run(tmp_path / "b", scores={"s": 2.0})]
    comparison = gather(paths)
    assert comparison.cells[0].values("s") == {0: 1.0}
    assert any("the first of the two is shown" in remark for remark in comparison.remarks)


def test_what_is_wrong_with_a_run_is_a_sentence_and_the_rest_is_compared(tmp_path: Path):
    paths = make_runs(tmp_path, {"random": [0.1, 0.2], "clmae": [0.3, 0.4]})
    paths += [
        make_run(tmp_path / "half", "block", finished=False),
        tmp_path / "nowhere",
        make_run(tmp_path / "nan", "random", 2, {"knn/top1": math.nan}),
        make_run(tmp_path / "unlabelled", "random", 3, {}),
        make_run(tmp_path / "other", "clmae", 4, {"linear/top1": 0.5}),
        make_run(tmp_path / "foreign", "clmae", 5, plugins=("maskzoo-gone 1.2", "pytest 0.0.1")),
    ]
    comparison = gather(paths)
    remarks = "\n".join(comparison.remarks)
    for words in (
        r"half' never finished \(it has come 44% of its way\)",
        "nowhere' is no run: it has no recipe.toml",
        "knn/top1 of '.*nan' is not a number",
        "unlabelled' has no score: knn found nothing to measure",
        "other' has no knn/top1: it was not measured there",
        "the plugin distribution 'maskzoo-gone' 1.2 is not installed any more: '.*foreign'",
        "the plugin distribution 'pytest' was 0.0.1 then and is",
    ):
        assert re.search(words, remarks), words
    assert comparison.summaries("knn/top1")["random"].mean == pytest.approx(0.15)


def test_scores_on_different_data_are_not_tested_against_each_other(tmp_path: Path):
    paths = make_runs(tmp_path, {"random": [0.1, 0.2, 0.3]})
    paths += [
        make_run(
            tmp_path / f"c{seed}", "clmae", seed, {"knn/top1": 0.8 + seed / 9.9}, changes={"data": {"use": "cifar10"}}
        )
        for seed in range(3)
    ]
    comparison = gather(paths)
    assert any("different data (cifar10, digits)" in remark for remark in comparison.remarks)
    assert comparison.differences("knn/top1") == {}
    assert comparison.best("knn/top1") is None
    assert "other data" in markdown(comparison)


def test_a_baseline_that_is_not_there_is_refused_or_replaced(tmp_path: Path):
    paths = make_runs(tmp_path, {"random": [0.1], "clmae": [0.3]})
    with pytest.raises(RecipeError, match="no cell is called 'blok'; they are random, clmae"):
        gather(paths, "blok")
    half = make_run(tmp_path / "half", "block", finished=False)
    for absent in (half, tmp_path / "never-begun"):
        comparison = gather({absent: "block", paths[0]: "random"}, "block")
        assert comparison.baseline == "random"
        assert any("'random' takes its place" in remark for remark in comparison.remarks)


def test_nothing_to_compare_is_an_error_that_says_why(tmp_path: Path):
    with pytest.raises(RecipeError, match=r"there is no finished run.*never finished"):
        gather([make_run(tmp_path / "half", finished=False)])


@pytest.mark.parametrize(
    ("score", "better", "unit"),
    [
        ("knn/top1", "higher", (100.0, 1, "%")),
        ("classifier/top1", "higher", (100.0, 1, "%")),
        ("reconstruction/loss on fixed masks", "lower", (1.0, 3, "")),
        ("foreign/top1 error", None, (1.0, 3, "")),
        ("foreign/loss", None, (1.0, 3, "")),
        ("foreign/rate", None, (1.0, 3, "")),
    ],
)
def test_what_is_better_and_in_which_unit_is_declared_and_never_guessed(
    tmp_path: Path, score: str, better: str | None, unit: tuple[float, int, str]
):
    comparison = gather([make_run(tmp_path / "a", scores={score: 0.3})])
    assert comparison.scores == [score]
    assert (comparison.better(score), comparison.unit(score)) == (better, unit)


def test_what_an_evaluator_chose_is_no_score(tmp_path: Path):
    run = make_run(
        tmp_path / "a", scores={"linear/top1": 0.5, "linear/penalty": 3.0, "fewshot/top1": 0.2, "fewshot/top1 +-": 0.1}
    )
    assert gather([run]).scores == ["linear/top1", "fewshot/top1"]


# -------------------------------------------------------------------------------------------------------------- tables
CLEAR = {"random": [0.50, 0.60, 0.70], "clmae": [0.601, 0.70, 0.802]}
UNCLEAR = {"random": [0.50, 0.60, 0.70], "clmae": [0.80, 0.55, 0.75]}


def test_bold_stands_only_where_the_test_supports_it(tmp_path: Path):
    assert "**70.1 ± 25.0**" in markdown(gather(make_runs(tmp_path / "a", CLEAR)))
    assert "**" not in markdown(gather(make_runs(tmp_path / "b", UNCLEAR)))
    assert r"\textbf{70.1 $\pm$ 25.0}" in latex(gather(make_runs(tmp_path / "c", CLEAR)))


def test_one_seed_is_not_enough_to_tell(tmp_path: Path):
    text = markdown(gather(make_runs(tmp_path, {"random": [0.5], "clmae": [0.9]})))
    assert text.count("not enough seeds to tell") == 2  # in the row, and below
    assert "| 90.0 |" in text


@pytest.mark.parametrize(("seeds", "said"), [(2, True), (3, True), (4, False)])
def test_few_seeds_are_said_to_be_few(tmp_path: Path, seeds: int, said: bool):
    scores = {"random": [0.1 * n for n in range(seeds)], "clmae": [0.3 + 0.11 * n for n in range(seeds)]}
    assert ("intervals are wide" in markdown(gather(make_runs(tmp_path, scores)))) is said


def test_latex_is_whole_and_escaped(tmp_path: Path):
    paths = make_runs(tmp_path, CLEAR)
    names = dict(zip(paths, ["a_b & 50%"] * 3 + ["x^2 #1 {y} ~$\\"] * 3, strict=True))
    text = latex(gather(names))
    (environment,) = re.findall(r"\\begin{tabular}{@{}(\w+)@{}}", text)
    body = text[text.index("\\midrule") : text.index("\\bottomrule")].splitlines()[1:]
    assert len([line for line in body if line.strip()]) == 2
    for line in text.splitlines():
        if line.endswith(r"\\"):
            spanned = sum(int(columns) - 1 for columns in re.findall(r"\\multicolumn{(\d)}", line))
            assert len(re.findall(r"(?<!\\)&", line)) + spanned == len(environment) - 1
    assert r"a\_b \& 50\%" in text
    assert r"x\textasciicircum{}2 \#1 \{y\} \textasciitilde{}\$\textbackslash{}" in text
    assert text.count(r"\begin{") == text.count(r"\end{") == 2
    assert not re.search(r"(?<!\\)[_#]|[^\x00-\x7f]", text.split("\n", 1)[1].replace("\\begin", ""))


@pytest.mark.parametrize(
    ("text", "set_as"), [("to 'a b', not", "to `a b', not"), ("Student's t", "Student's t"), ("('x')", "(`x')")]
)
def test_latex_opens_its_quotation_marks(text: str, set_as: str):
    assert quoted(text) == set_as


def test_latex_stars_what_a_test_supports_and_nothing_else(tmp_path: Path):
    assert r"& +10.1$^{*}$ &" in latex(gather(make_runs(tmp_path / "a", CLEAR)))
    unclear = latex(gather(make_runs(tmp_path / "b", UNCLEAR)))
    assert "$^{*}$" not in unclear
    assert r"60.0 $\pm$ 24.8 & -- &" in unclear


def test_more_scores_than_a_page_is_wide_come_in_several_floats(tmp_path: Path):
    scores = {f"e{number}/top1": 0.1 * number for number in range(5)}
    paths = [make_run(tmp_path / masker, masker, scores=scores) for masker in ("random", "clmae")]
    first, second = latex(gather(paths)).split("\\begin{table*}")[1:]
    assert [text.count(r"\multicolumn{2}{c}{e") for text in (first, second)] == [3, 2]
    assert (r"& min \\" in first, r"& min \\" in second) == (True, False)


@pytest.mark.parametrize(
    ("text", "set_as"), [('a"b', "a''b"), ("é", "e"), ("照", "U+7167"), ("\u03b1±", r"U+03B1$\pm$"), ("½", "U+00BD")]
)
def test_latex_needs_no_alphabet_but_its_own(text: str, set_as: str):
    assert escaped(text) == set_as


@pytest.mark.slow
def test_a_name_with_dollars_is_no_formula(tmp_path: Path):
    paths = make_runs(tmp_path, CLEAR)
    report(tmp_path / "out", {path: "a $x$ $y" if "random" in path.name else "b_$^{" for path in paths})
    assert "a $x$ $y" in (tmp_path / "out" / "report.html").read_text()


def test_a_report_on_kept_sources_keeps_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("maskzoo.compare.figures.draw_all", lambda comparison, folder: {})
    out = tmp_path / "out"
    report(out, make_runs(tmp_path, {"random": [0.1], "clmae": [0.2]}))
    sources = sorted((out / "sources").iterdir())
    before = [(path / "recipe.toml").read_text() for path in sources]
    report(out, sources)
    assert [(path / "recipe.toml").read_text() for path in sorted((out / "sources").iterdir())] == before


@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="pdflatex is not installed")
@pytest.mark.parametrize("number", [0, 1, 4])
def test_latex_compiles_and_fits_the_page(tmp_path: Path, number: int):
    scores = {f"evaluator_{n}/top1 & 5%": 0.1234 + 0.1 * n for n in range(number)}
    paths = [
        make_run(
            tmp_path / f"{masker}{seed}", masker, seed, {name: value + 0.017 * seed for name, value in scores.items()}
        )
        for masker in ("random", "clmae", "attmask")
        for seed in range(3)
    ]
    for path in paths:
        held = json.loads((path / "evaluation.json").read_text())
        (path / "evaluation.json").write_text(json.dumps({**held, "before": scores}))  # whose row has a long name
    preamble = r"\documentclass{article}\usepackage{booktabs}\begin{document}"
    (tmp_path / "paper.tex").write_text(preamble + latex(gather(paths)) + r"\end{document}")
    done = subprocess.run(
        ["pdflatex", "-halt-on-error", "-interaction=nonstopmode", "paper.tex"],
        cwd=tmp_path, capture_output=True, text=True, timeout=120, errors="replace",
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-2000:]
    assert not re.search(r"Overfull \\hbox \((\d+)", done.stdout), done.stdout[-2000:]


def test_escaping_leaves_nothing_that_latex_would_take_for_a_command():
    assert escaped("a_b<c>|d±e") == r"a\_b\textless{}c\textgreater{}\textbar{}d$\pm$e"


def test_results_are_one_line_a_run(tmp_path: Path):
    rows = list(csv.DictReader(io.StringIO(results_csv(gather(make_runs(tmp_path, CLEAR))))))
    assert [(row["cell"], row["seed"], row["knn/top1"]) for row in rows[::3]] == [
        ("random", "0", "0.5"),
        ("clmae", "0", "0.601"),
    ]
    assert len(rows) == 6


def test_statistics_are_those_of_the_table(tmp_path: Path):
    rows = list(csv.DictReader(io.StringIO(statistics_csv(gather(make_runs(tmp_path, CLEAR))))))
    assert [row["cell"] for row in rows] == ["random", "clmae"]
    test = stats.ttest_rel(CLEAR["clmae"], CLEAR["random"])
    assert float(rows[1]["p"]) == pytest.approx(test.pvalue)
    assert (float(rows[1]["difference_low"]), float(rows[1]["difference_high"])) == pytest.approx(
        tuple(test.confidence_interval())
    )
    assert rows[0]["p"] == ""


@pytest.mark.parametrize(("value", "text"), [(0.04, "0.0"), (-0.04, "0.0"), (-1.26, "-1.3"), (2.0, "+2.0")])
def test_a_difference_has_its_sign_and_zero_has_none(value: float, text: str):
    assert signed(value, 1) == text


# -------------------------------------------------------------------------------------------------------------- report
class Page(HTMLParser):
    """What a page loads, the tags it leaves open, and its words."""

    def __init__(self) -> None:
        super().__init__()
        self.loads: list[str] = []
        self.open: list[str] = []
        self.words = ""
        self.ids: list[str] = []

    def handle_starttag(self, tag: str, given: list[tuple[str, str | None]]) -> None:
        for name, value in given:
            if tag == "a":  # loads nothing until it is followed
                continue
            if name in ("src", "href", "xlink:href", "data", "action"):
                self.loads.append(value or "")
            if name == "id":
                self.ids.append(value or "")
        if tag not in ("meta", "img", "br", "link"):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, given: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, given)
        if tag not in ("meta", "img", "br", "link"):
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words += data


@pytest.mark.slow
def test_the_report_is_one_whole_page_that_loads_nothing(tmp_path: Path):
    paths = make_runs(tmp_path, CLEAR)
    out = tmp_path / "out"
    report(out, {path: f"<{read_run(path).masker}>" for path in paths}, remarks=["one <b>remark</b>"])
    text = (out / "report.html").read_text()
    page = Page()
    page.feed(text)
    assert page.open == []
    assert page.loads
    assert all(load.startswith(("data:image/png;base64,", "#")) for load in page.loads)
    assert {load[1:] for load in page.loads if load.startswith("#")} <= set(page.ids)
    assert len(page.ids) == len(set(page.ids))
    assert "url(http" not in text
    assert "@import" not in text
    assert base64.b64encode(PIXEL).decode() in text
    for words in ("<random>", "one <b>remark</b>", "70.1 ± 25.0", "masking.strategy.use", "Curriculum factor"):
        assert words in page.words, words
    assert "<strong>70.1" in text


@pytest.mark.slow
def test_beside_the_page_lies_all_that_it_takes_to_do_a_run_again(tmp_path: Path):
    paths = make_runs(tmp_path, CLEAR)
    out = tmp_path / "out"
    report(out, paths)
    for path, name in zip(
        paths, ["random-s0", "random-s1", "random-s2", "clmae-s0", "clmae-s1", "clmae-s2"], strict=True
    ):
        for file in ("recipe.toml", "environment.json"):
            assert (out / "sources" / name / file).read_bytes() == (path / file).read_bytes()
    assert {path.name for path in (out / "figures").iterdir()} >= {"loss.pdf", "loss.svg", "compute-knn-top1.pdf"}
    assert (out / "figures" / "loss.pdf").read_bytes().startswith(b"%PDF")
    assert {"table.md", "table.tex", "results.csv", "statistics.csv"} <= {path.name for path in out.iterdir()}


def test_cells_whose_names_come_to_one_folder_keep_their_own_sources(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("maskzoo.compare.figures.draw_all", lambda comparison, folder: {})
    paths = make_runs(tmp_path, {"random": [0.1], "clmae": [0.2]})
    out = tmp_path / "out"
    report(out, {paths[0]: "a b", paths[1]: "A/b"})
    assert sorted(path.name for path in (out / "sources").iterdir()) == ["A-b-2-s0", "a-b-s0"]


def test_runs_without_figures_or_pictures_are_reported_all_the_same(tmp_path: Path):
    path = make_run(tmp_path / "bare", scores={})
    for file in ("metrics.jsonl", "environment.json", "masks/curriculum.png"):
        (path / file).unlink()
    report(tmp_path / "out", [path])
    assert "no score, only what it took" in (tmp_path / "out" / "report.html").read_text()


def test_a_report_on_runs_says_its_remarks_and_spares_a_folder_of_something_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("maskzoo.compare.figures.draw_all", lambda comparison, folder: {})
    paths = [*make_runs(tmp_path, CLEAR), tmp_path / "nowhere"]
    console = Console(record=True, width=200)
    report_on(tmp_path / "out", paths, "clmae", console)
    said = console.export_text()
    assert "nowhere' is no run" in said
    assert "-10.1" in said
    refuse_foreign(tmp_path / "out")
    for foreign in (paths[0], tmp_path):
        with pytest.raises(RecipeError, match="holds something else already"):
            refuse_foreign(foreign)


@pytest.mark.parametrize("name", ["clmae+partner-neutral-adversary@0.75", "../../etc", "a:b*c?", ".", "", "x" * 300])
def test_a_folder_of_a_cell_is_safe_in_any_file_system(name: str):
    assert re.fullmatch(r"[\w+=@][\w.+=@-]{0,79}", folder_name(name))


def test_the_report_imports_no_torch():
    code = "import sys, maskzoo.compare.report, maskzoo.compare.figures\nsys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], timeout=60).returncode == 0
