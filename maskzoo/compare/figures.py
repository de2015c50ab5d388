"""The figures of a comparison, as SVG for the report and PDF for the paper: first differences, then curves."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from pathlib import Path

import attrs
import matplotlib
import numpy
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from maskzoo.compare.cells import Cell, Comparison
from maskzoo.compare.drawing import STYLE, add_legend, file_name, looks, new_figure, save, short_names, titled
from maskzoo.compare.names import titles
from maskzoo.compare.rows import draw_forest, draw_scores, in_forest

RANGES = {"factor": (-1.15, 1.15), "ratio": (0.0, 1.0)}  # of what is drawn over the steps
CURVES = (
    ("loss", "Loss, each under its own masks: not to be compared", "loss of the model"),
    ("factor", "Curriculum factor", "factor (+1 partner, -1 adversary)"),
    ("ratio", "Share of hidden patches", "share of patches hidden"),
)
BANDS = 8  # cells beyond which bands would hide each other
MARKED = 8  # marks on a curve
STEP_ASIDE, FARTHEST_ASIDE = 0.018, 0.07  # of the axis, by which curves are moved that would lie on another
Curve = tuple[numpy.ndarray, numpy.ndarray]  # steps [T], values [seeds, T]


@attrs.frozen
class Drawn:
    """A figure as the page shows it."""

    title: str
    svg: str
    caption: str = ""  # what must be known to read it
    leads: bool = False  # whether it stands before all tables


@attrs.frozen
class Wanted:
    """A figure that there is something for."""

    file: str
    title: str
    draw: Callable[[], Figure]
    caption: str = ""
    leads: bool = False


def draw_all(comparison: Comparison, folder: Path) -> list[Drawn]:
    """Draw what there is to draw into a folder, as PDF and SVG."""
    folder.mkdir(parents=True, exist_ok=True)
    drawn, taken = [], list[str]()
    for one in _figures(comparison):
        taken.append(file_name(one.file, taken))
        with matplotlib.rc_context(STYLE), warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Glyph .* missing")  # a name in an alphabet that the font has not
            svg = save(one.draw(), folder / taken[-1], one.title)
        drawn.append(Drawn(one.title, svg, one.caption, one.leads))
    return drawn


def _figures(comparison: Comparison) -> list[Wanted]:
    made: list[Wanted] = []
    if scores := in_forest(comparison):
        caption = (
            f"Each row is a cell less '{comparison.baseline}', seed by seed: a dot for each seed, their mean, and its "
            "95 % interval (Student's t; from three pairs on). A filled mark: the paired t-test supports a difference "
            "at 5 % after Holm's correction. What lies far outside is "
            "pointed at from the edge."
        )
        made.append(
            Wanted(
                "forest",
                f"Differences to {comparison.baseline}",
                lambda: draw_forest(comparison, scores),
                caption,
                True,
            )
        )
    for score in comparison.scores:
        title = f"{titles(comparison)[score]} and what it took"
        caption = "A dot for each run, the mean of each cell with its 95 % interval, and beside it what training took."
        made.append(Wanted(f"compute-{score}", title, lambda s=score: draw_scores(comparison, s), caption))  # type: ignore[misc]
    for name, title, label in CURVES:
        cells = [cell for cell in comparison.trained if _shows(cell, name)]
        if cells and (name != "ratio" or any(_moves(cell, name) for cell in cells)):
            caption = _how_drawn(cells, name)
            draw = lambda n=name, c=cells, t=title, y=label: _curves(comparison, c, n, t, y)  # noqa: E731
            made.append(Wanted(name, title, draw, caption))
    return made


def _shows(cell: Cell, name: str) -> bool:
    """Whether a cell has a curve that says something: of the factor, if it means anything to the masker."""
    if not any(name in run.curves for run in cell.runs.values()):
        return False
    if name != "factor":
        return True
    known = cell.first.environment.get("curriculum")
    if isinstance(known, bool):
        return known
    values = [value for run in cell.runs.values() for _, value in run.curves.get(name, [])]
    constant = cell.first.keys.get("masking.curriculum.use") in (None, "constant")  # how none at all is written
    return not constant or any(abs(value) > 1e-6 for value in values)


def _moves(cell: Cell, name: str) -> bool:
    values = [value for run in cell.runs.values() for _, value in run.curves.get(name, [])]
    return bool(values) and max(values) - min(values) > 1e-6


def _how_drawn(cells: Sequence[Cell], name: str) -> str:
    words = []
    if any(len(cell.runs) > 1 for cell in cells):
        words.append("The line is the mean over the seeds")
        if name == "loss" and len(cells) <= BANDS:
            words[-1] += ", the band goes from the lowest to the highest of them"
        words[-1] += "."
    if name in RANGES and _overlap([_means(cell, name) for cell in cells], name):
        words.append("Curves that would lie on each other are drawn side by side.")
    return " ".join(words)


def _curves(comparison: Comparison, cells: Sequence[Cell], name: str, title: str, label: str) -> Figure:
    """The mean over seeds of each cell, with marks at places of its own, and a band where there is room for it."""
    figure = new_figure()
    axes = figure.add_subplot()
    titled(axes, title)
    names, look = short_names([cell.name for cell in cells]), looks(comparison)
    handles: dict[str, Line2D] = {}
    for place, (cell, (at, values)) in enumerate(
        zip(cells, _aside([_means(c, name) for c in cells], name), strict=True)
    ):
        own = look[cell.name]
        if len(values) > 1 and len(cells) <= BANDS and name == "loss":
            axes.fill_between(at, values.min(axis=0), values.max(axis=0), color=own.colour, alpha=0.13, linewidth=0)
        apart = max(1, len(at) // MARKED)
        (handles[names[cell.name]],) = axes.plot(
            at, values.mean(axis=0),
            color=own.colour, linestyle=own.dash, marker=own.mark, markersize=4, linewidth=1.4,
            markevery=(place * apart // max(1, len(cells)) % apart, apart), markeredgecolor="white",
            markeredgewidth=0.4,
        )  # fmt: skip
    _axes(axes, name, label)
    add_legend(figure, handles)
    return figure


def _axes(axes: Axes, name: str, label: str) -> None:
    axes.set_xlabel("step")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_ylabel(label)
    if name in RANGES:
        axes.set_ylim(*RANGES[name])


def _means(cell: Cell, name: str) -> Curve:
    """The steps [T] of the first run, and the values [seeds, T] of all runs there."""
    curves = [run.curves[name] for run in cell.runs.values() if name in run.curves]
    at = numpy.array([step for step, _ in curves[0]])
    rows = [numpy.interp(at, [step for step, _ in curve], [value for _, value in curve]) for curve in curves]
    return at + 1, numpy.array(rows)  # people count steps from 1


def _aside(curves: Sequence[Curve], name: str) -> list[Curve]:
    """The same curves, of which none lies wholly on another: those of dials often do."""
    if name not in RANGES:
        return list(curves)
    whole = RANGES[name][1] - RANGES[name][0]
    moved = []
    for place, (at, values) in enumerate(curves):
        alike = [_coincide((at, values), other, whole * STEP_ASIDE / 4) for other in curves]
        step = whole * min(STEP_ASIDE, FARTHEST_ASIDE / max(1, sum(alike) - 1))
        sign = 1 if values.mean(axis=0)[-1] <= 0 else -1  # towards the middle, where there is room
        moved.append((at, values + sign * sum(alike[:place]) * step))
    return moved


def _overlap(curves: Sequence[Curve], name: str) -> bool:
    moved = _aside(curves, name)
    return any(not numpy.array_equal(one[1], other[1]) for one, other in zip(curves, moved, strict=True))


def _coincide(one: Curve, other: Curve, least: float) -> bool:
    mean = numpy.interp(other[0], one[0], one[1].mean(axis=0))
    return bool(numpy.all(numpy.abs(mean - other[1].mean(axis=0)) < least))
