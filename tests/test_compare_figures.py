"""The figures of a comparison: every cell can be seen, told from the others, and read."""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping
from pathlib import Path

import matplotlib
import numpy
import pytest
from attrs import evolve
from matplotlib import rc_context
from matplotlib.figure import Figure
from test_compare import CLEAR, make_run, make_runs

from maskzoo.compare.cells import Cell, Comparison, gather
from maskzoo.compare.drawing import LONGEST, STYLE, add_legend, file_name, looks, new_figure, short_names
from maskzoo.compare.figures import _aside, _curves, _figures, _shows
from maskzoo.compare.rows import draw_forest, draw_scores, in_forest

MANY = [f"cell {number}" for number in range(30)]


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> Comparison:
    """Thirty cells of three seeds, all at the same cost."""
    folder = tmp_path_factory.mktemp("many")
    run = gather([make_run(folder / "run")]).cells[0].first
    cells = [
        Cell(
            name,
            {seed: evolve(run, scores={"knn/top1": 0.5 + 0.001 * n + 0.01 * seed * (1 + n % 3)}) for seed in range(3)},
        )
        for n, name in enumerate(MANY)
    ]
    return Comparison(cells, MANY[0], flops=dict.fromkeys(MANY, 1e9))


def test_thirty_cells_have_thirty_looks(many: Comparison):
    made = looks(many)
    assert len({(look.colour, look.mark, look.dash) for look in made.values()}) == len(MANY)
    assert len({(look.colour, look.mark) for look in made.values()}) == len(MANY)  # where no line is drawn


def test_cells_of_equal_cost_have_a_row_each(many: Comparison):
    with matplotlib.rc_context(STYLE):
        figure = draw_scores(many, "knn/top1")
    scores, costs = figure.axes
    assert [label.get_text() for label in scores.get_yticklabels()] == MANY
    for axes in (scores, costs):
        rows = [line.get_ydata()[0] for line in axes.lines if len(line.get_xdata()) == 1]
        assert sorted(rows) == list(range(len(MANY)))


def test_a_forest_has_a_row_for_each_cell_and_a_panel_for_each_declared_metric(tmp_path: Path):
    def scores(value: float) -> Mapping[str, float]:
        return {"thing/distance": 1.0, "knn/top1": value, "reconstruction/loss on fixed masks": 1 - value}

    paths = [
        make_run(tmp_path / f"{masker}{seed}", masker, seed, scores(value))
        for masker, values in {**CLEAR, "block": [0.5, 0.62, 0.66]}.items()
        for seed, value in enumerate(values)
    ]
    comparison = gather(paths)
    assert in_forest(comparison) == ["knn/top1", "reconstruction/loss on fixed masks"]
    with matplotlib.rc_context(STYLE):
        accuracy, loss = draw_forest(comparison, in_forest(comparison)).axes
    assert [label.get_text() for label in accuracy.get_yticklabels()] == ["clmae", "block"]
    assert "higher is better \u2192" in accuracy.get_xlabel()
    assert "\u2190 lower is better" in loss.get_xlabel()
    means = [line for line in accuracy.lines if len(line.get_xdata()) == 1 and line.get_marker() not in ("None", "")]
    assert [line.get_xdata()[0] for line in means] == pytest.approx([10.1, -100 / 150], abs=0.01)
    supported, unclear = (line.get_markerfacecolor() for line in means)
    assert (supported != "white", unclear) == (True, "white")
    dots = [len(found.get_offsets()) for found in accuracy.collections]
    assert dots == [3, 3]  # the seeds


def test_two_seeds_are_shown_as_dots_without_an_interval(tmp_path: Path):
    comparison = gather(make_runs(tmp_path, {"random": [0.5, 0.6], "clmae": [0.7, 0.72]}))
    with matplotlib.rc_context(STYLE):
        (panel,) = draw_forest(comparison, ["knn/top1"]).axes
    assert [len(line.get_xdata()) for line in panel.lines] == [2, 1]  # the line at zero, and the mean


def test_what_lies_far_off_does_not_press_the_cells_together(tmp_path: Path):
    paths = make_runs(tmp_path, {"random": [0.5, 0.51, 0.52], "clmae": [0.51, 0.53, 0.54]})
    for path, seed in zip(paths, [0, 1, 2] * 2, strict=True):
        held = json.loads((path / "evaluation.json").read_text())
        (path / "evaluation.json").write_text(json.dumps({**held, "before": {"knn/top1": 0.1 + seed / 100}}))
    with matplotlib.rc_context(STYLE):
        (panel,) = draw_forest(gather(paths), ["knn/top1"]).axes
    assert panel.get_xlim()[0] > -10
    assert any("-40.0" in text.get_text() for text in panel.texts)


@pytest.mark.parametrize(
    ("curriculum", "use", "values", "drawn"),
    [
        (True, "constant", 0.0, True),
        (None, "neutral", 0.0, True),
        (None, "constant", 0.0, False),
        (None, "constant", -1.0, True),
        (False, "constant", 0.0, False),
    ],
)
def test_a_neutral_cell_is_in_the_plot_of_factors(
    tmp_path: Path, curriculum: bool | None, use: str, values: float, drawn: bool
):
    masking = {"strategy": {"use": "attmask"}, "curriculum": {"use": use}}
    path = make_run(tmp_path / "run", changes={"masking": masking})
    lines = [{"step": step, "loss": 1.0, "factor": values} for step in range(4)]
    (path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    if curriculum is not None:
        held = json.loads((path / "environment.json").read_text())
        (path / "environment.json").write_text(json.dumps({**held, "curriculum": curriculum}))
    assert _shows(gather([path]).cells[0], "factor") is drawn


def test_curves_that_coincide_are_drawn_side_by_side():
    at = numpy.arange(5.0)
    rising, flat = (at, at[None] / 4), (at, numpy.zeros((2, 5)))
    moved = _aside([flat, rising, flat, flat], "factor")
    means = [values.mean(axis=0) for _, values in moved]
    assert len({float(mean[2]) for mean in means}) == 4
    assert numpy.array_equal(means[1], rising[1][0])
    assert _aside([flat, flat], "loss") == [flat, flat]
    far = [values.mean() for _, values in _aside([flat] * 20, "factor")]
    assert len(set(far)) == 20
    assert max(map(abs, far)) < 0.2  # a factor of 0 is still read as one


def test_the_warning_about_losses_is_inside_the_figure(tmp_path: Path):
    comparison = gather(make_runs(tmp_path, {"random": [0.1], "clmae": [0.2]}))
    with matplotlib.rc_context(STYLE):
        figure = next(one for one in _figures(comparison) if one.file == "loss").draw()
    assert "not to be compared" in figure.axes[0].get_title(loc="left")


LONG = ["edges+linear:0:-0.5", "random optimizer.weight_decay=0.05 train.accumulate=4", "x" * 500, "y" * 70 + "$a$"]


def test_a_legend_is_never_cut_and_knows_no_formula(tmp_path: Path):
    paths = [make_run(tmp_path / str(n), changes={"masking": {"strategy": {"use": f"m{n}"}}}) for n in range(12)]
    names = dict(zip(paths, [*LONG, *"abcdefgh"], strict=True))
    comparison = gather(names)
    with matplotlib.rc_context(STYLE):
        figure = _curves(comparison, comparison.trained, "loss", "Loss $x$", "loss")
        figure.draw_without_rendering()
    (legend,) = figure.legends
    width, height = figure.get_size_inches() * figure.dpi
    box = legend.get_window_extent()
    assert (box.x0 >= -1, box.y0 >= -1, box.x1 <= width + 1, box.y1 <= height + 1) == (True,) * 4
    texts = legend.get_texts()
    assert [text.get_text() for text in texts] == list(short_names(list(names.values())).values())
    assert not any(text.get_parse_math() for text in texts)
    assert legend.get_window_extent().y1 <= figure.axes[0].get_tightbbox().y0 + 2  # below the plot, not over it


def test_a_wide_legend_widens_its_figure():
    figure: Figure = new_figure(3.0)
    (line,) = figure.add_subplot().plot([0, 1])
    add_legend(figure, {"x" * LONGEST: line})
    assert figure.get_figwidth() > 3.0


def test_names_in_figures_are_short_harmless_and_distinct():
    names = ["a" * 200 + "1" + "b" * 200, "a" * 200 + "2" + "b" * 200, "two\nlines", "esc\x1b[31m", "plain"]
    made = short_names(names)
    assert len(set(made.values())) == len(names)
    assert all(len(name) <= LONGEST + 3 for name in made.values())
    assert (made["two\nlines"], made["esc\x1b[31m"], made["plain"]) == ("two lines", "esc\\x1b[31m", "plain")


@pytest.mark.parametrize(
    ("title", "name"),
    [
        ("compute-fewshot/top1, 1 a class", "compute-fewshot-top1-1-a-class"),
        ("compute-knn (k 20)/top1 on x.y", "compute-knn-k-20-top1-on-x-y"),
        ("compute-+-", "compute"),
        ("../../etc", "etc"),
        ("\u7167", "figure"),
        ("a" * 300, "a" * 60),
    ],
)
def test_files_of_figures_have_tidy_names(title: str, name: str):
    assert file_name(title, []) == name
    assert file_name(title, [name]) == f"{name}-2"


def test_no_two_numbers_below_an_axis_touch(tmp_path: Path):
    paths = [make_run(tmp_path / f"a{seed}", seed=seed, scores={"foreign/rate": 0.0001}) for seed in range(2)]
    with rc_context(STYLE):
        figure = draw_scores(gather(paths), "foreign/rate")
    figure.draw_without_rendering()
    for axes in figure.axes:
        boxes = sorted((label.get_window_extent() for label in axes.get_xticklabels()), key=lambda box: float(box.x0))
        assert all(left.x1 < right.x0 for left, right in itertools.pairwise(boxes))
