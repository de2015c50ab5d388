"""Figures with a row for each cell, in which nothing can lie on anything else: differences, and scores with costs."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence

import numpy
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from maskzoo.compare.cells import UNTRAINED, Comparison, gap_text
from maskzoo.compare.drawing import SOFT, Look, literal, looks, new_figure, short_names, titled, untangle
from maskzoo.compare.findings import verdict
from maskzoo.compare.names import titles
from maskzoo.compare.statistics import LEAST_PAIRS, summarise

ROW, ABREAST = 0.27, 3  # inches of a row; panels side by side
PANELS = {1: 4.6, 2: 3.6, 3: 2.9}  # inches of a panel, by how many stand side by side
ROOM = 18  # letters of the baseline's name below a panel
PREFIXES = ((1e18, "E"), (1e15, "P"), (1e12, "T"), (1e9, "G"))


def in_forest(comparison: Comparison) -> list[str]:
    """The metrics that have a panel: those whose better direction is declared, where there is anything to compare."""
    return [
        score
        for score in comparison.scores
        if comparison.better(score) is not None
        and any(test.summary is not None for test in comparison.differences(score).values())
    ]


def draw_forest(comparison: Comparison, scores: Sequence[str]) -> Figure:
    """The difference of each cell to the baseline with its interval; the seeds as dots; a panel for each metric."""
    others = [cell.name for cell in comparison.cells if cell.name != comparison.baseline]
    shown = [name for name in others if comparison.cell(name).trained or name == UNTRAINED]
    names, look = short_names(shown), looks(comparison)
    across = min(ABREAST, len(scores))
    down = math.ceil(len(scores) / across)
    room = 0.065 * max(map(len, names.values()))  # for the names, about
    figure = new_figure(room + PANELS[across] * across + 0.4, (ROW * (len(shown) + 0.6) + 1.0) * down, apart=0.06)
    panels = figure.subplots(down, across, squeeze=False, sharey=True)
    for place, panel in enumerate(panels.flat):
        if place >= len(scores):
            panel.set_visible(False)
            continue
        _differences(panel, comparison, scores[place], shown, look)
        _rows(panel, list(names.values()))
    untangle(figure)
    return figure


def _differences(
    axes: Axes, comparison: Comparison, score: str, shown: Sequence[str], look: Mapping[str, Look]
) -> None:
    unit = comparison.unit(score)
    factor, _, sign = unit
    better = comparison.better(score)
    base = comparison.cell(comparison.baseline).values(score)
    tests = comparison.differences(score)
    axes.axvline(0, color=SOFT, linewidth=1)
    for row, name in sorted(enumerate(shown), key=lambda one: one[1] == UNTRAINED):  # last, when the range is known
        held = comparison.cell(name).values(score)
        gaps = [(held[seed] - base[seed]) * factor for seed in sorted(held.keys() & base.keys())]
        if not gaps or (name not in tests and name != UNTRAINED):
            words = "no seed in common" if not gaps else "other data"
            literal(axes.annotate(words, (0.02, row), xycoords=("axes fraction", "data"), color=SOFT, va="center"))
            continue
        test = tests.get(name)
        summary = None if test is None else test.summary
        told = test is not None and verdict(test, better) in ("better", "worse")
        half = None if summary is None or summary.count < LEAST_PAIRS or not summary.half else summary.half * factor
        if name == UNTRAINED:
            _keep_in_sight(axes, row, gaps, unit)
        _row(axes, row, gaps, half, look[name], filled=told)
    titled(axes, titles(comparison)[score])
    points = " (points)" if sign == "%" else ""
    way = "higher is better \u2192" if better == "higher" else "\u2190 lower is better"
    name = short_names([comparison.baseline])[comparison.baseline]
    base_name = name if len(name) <= ROOM else "the baseline"
    literal(axes.set_xlabel(f"difference to {base_name}{points}\n{way}"))


def _keep_in_sight(axes: Axes, row: int, gaps: Sequence[float], unit: tuple[float, int, str]) -> None:
    """Point at what lies far from all cells, such as the untrained model, so that it does not press them together."""
    low, high = axes.get_xlim()
    mean, span = statistics.fmean(gaps), high - low
    if min(gaps) > low - span / 3 and max(gaps) < high + span / 3:
        return
    axes.set_xlim(low, high)
    left = mean < low
    words = gap_text(summarise([gap / unit[0] for gap in gaps]), unit, interval=False)
    axes.annotate(
        f"\u25c2 {words}" if left else f"{words} \u25b8",
        (0.01 if left else 0.99, row), xycoords=("axes fraction", "data"),
        ha="left" if left else "right", va="center", color="#5b5b5b", fontsize=8,
    )  # fmt: skip


def draw_scores(comparison: Comparison, score: str) -> Figure:
    """Each cell's mean with its interval and its runs as dots, and beside it what its training took."""
    summaries = comparison.summaries(score)
    shown = [cell.name for cell in comparison.cells if cell.name in summaries]
    names, look = short_names(shown), looks(comparison)
    spent, label = _spent(comparison)
    figure = new_figure(0.065 * max(map(len, names.values())) + 5.1 + 0.4, ROW * (len(shown) + 0.6) + 0.6)
    left, right = figure.subplots(1, 2, sharey=True, width_ratios=(1.6, 1.0))
    factor, _, sign = comparison.unit(score)
    for row, name in enumerate(shown):
        summary, own = summaries[name], look[name]
        values = [value * factor for value in comparison.cell(name).values(score).values()]
        half = (
            None if summary.half is None or summary.count < LEAST_PAIRS or not summary.half else summary.half * factor
        )
        _row(left, row, values, half, own, filled=True)
        if name in spent:
            right.plot([0, spent[name]], [row, row], color=own.colour, linewidth=1.2, alpha=0.5)
            right.plot([spent[name]], [row], color=own.colour, marker=own.mark, markersize=5)
    literal(left.set_xlabel(f"{titles(comparison)[score]} (%)" if sign == "%" else titles(comparison)[score]))
    right.set_xlabel(label)
    right.set_xlim(left=0)
    for panel in (left, right):
        _rows(panel, list(names.values()))
    untangle(figure)
    return figure


def _row(axes: Axes, row: int, values: Sequence[float], half: float | None, look: Look, *, filled: bool) -> None:
    """One row: a dot for each seed, a little apart, and the mean with its interval."""
    apart = numpy.linspace(-0.22, 0.22, len(values)) if len(values) > 1 else numpy.zeros(1)
    axes.scatter(values, row + apart, color=look.colour, s=15, alpha=0.5, linewidths=0, zorder=2)
    mean = statistics.fmean(values)
    if half is not None:
        axes.plot([mean - half, mean + half], [row, row], color=look.colour, linewidth=1.5, zorder=3)
    axes.plot(
        [mean], [row], color=look.colour, marker=look.mark, markersize=6, markeredgewidth=1.3,
        markerfacecolor=look.colour if filled else "white", zorder=4,
    )  # fmt: skip


def _rows(axes: Axes, names: Sequence[str]) -> None:
    """A row for each name, the first on top."""
    axes.set_yticks(range(len(names)), names)
    for label in axes.get_yticklabels():
        literal(label)
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.tick_params(axis="y", length=0)
    axes.grid(False, axis="y")
    axes.spines["left"].set_visible(False)


def _spent(comparison: Comparison) -> tuple[dict[str, float], str]:
    """What one run of each cell took, and in what: FLOPs where all are counted, else minutes."""
    cells = comparison.trained
    if comparison.flops and all(cell.name in comparison.flops for cell in cells):
        spent = {
            cell.name: statistics.fmean(run.images * comparison.flops[cell.name] for run in cell.runs.values())
            for cell in cells
        }
        scale, prefix = next((one for one in PREFIXES if max(spent.values()) >= one[0]), PREFIXES[-1])
        return {name: value / scale for name, value in spent.items()}, f"training compute ({prefix}FLOPs)"
    seconds = {cell.name: [run.seconds for run in cell.runs.values() if run.seconds is not None] for cell in cells}
    return {name: statistics.fmean(held) / 60 for name, held in seconds.items() if held}, "training time (minutes)"
