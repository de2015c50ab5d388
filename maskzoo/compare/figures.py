"""The curves of a comparison, as SVG for the report and PDF for the paper."""

from __future__ import annotations

import io
import re
import statistics
from collections.abc import Callable, Sequence
from pathlib import Path

import matplotlib
import numpy
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from maskzoo.compare.cells import Cell, Comparison

# Okabe and Ito's colours, which most people can tell apart, and a dash for the rounds after the first.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#5b5b5b")
DASHES = ("-", "--", ":", "-.")
RANGES = {"factor": (-1.1, 1.1), "ratio": (0.0, 1.0)}  # of what is drawn over the steps
PREFIXES = ((1e18, "E"), (1e15, "P"), (1e12, "T"), (1e9, "G"))
INK = "#1f2430"
STYLE = {
    "font.size": 9,
    "font.family": "DejaVu Sans",
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": "#8a8f99",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#e6e8ec",
    "grid.linewidth": 0.7,
    "xtick.color": "#4a4f5a",
    "ytick.color": "#4a4f5a",
    "svg.hashsalt": "maskzoo",  # the same figure, the same file
    "pdf.fonttype": 42,
}


def draw_all(comparison: Comparison, folder: Path) -> dict[str, str]:
    """Draw what there is to draw into a folder, as PDF and SVG; {title: the SVG's text}."""
    drawn = {}
    folder.mkdir(parents=True, exist_ok=True)
    for name, title, draw in _figures(comparison):
        with matplotlib.rc_context(STYLE):
            figure = Figure(figsize=(5.4, 3.5), layout="constrained")
            figure.patch.set_facecolor("white")
            axes = figure.add_subplot()
            draw(axes)
            handles, _ = axes.get_legend_handles_labels()
            if handles:
                figure.legend(loc="outside upper left", ncols=4, frameon=False, fontsize=8, handlelength=1.6)
            figure.savefig(folder / f"{name}.pdf", metadata={"CreationDate": None})
            text = io.StringIO()
            figure.savefig(text, format="svg", metadata={"Date": None})
        (folder / f"{name}.svg").write_text(text.getvalue(), encoding="utf-8")
        drawn[title] = _inline(text.getvalue(), name)
    return drawn


def _figures(comparison: Comparison) -> list[tuple[str, str, Callable[[Axes], None]]]:
    made: list[tuple[str, str, Callable[[Axes], None]]] = []
    cells = comparison.trained
    for name, title, label in (
        ("loss", "Loss, each under its own masks: not to be compared", "loss of the model"),
        ("factor", "Curriculum factor", "factor (+1 partner, -1 adversary)"),
        ("ratio", "Share of hidden patches", "share of patches hidden"),
    ):
        shown = [cell for cell in cells if any(name in run.curves for run in cell.runs.values())]
        moving = [cell for cell in shown if _moves(cell, name) or (name == "factor" and _says_something(cell))]
        if name == "loss" and shown:
            made.append((name, title, lambda axes, n=name, s=shown, y=label: _curves(axes, comparison, s, n, y)))  # type: ignore[misc]
        elif moving:
            made.append((name, title, lambda axes, n=name, s=moving, y=label: _curves(axes, comparison, s, n, y)))  # type: ignore[misc]
    for score in comparison.scores:
        file = "compute-" + re.sub(r"[^\w.-]+", "-", score)
        made.append((file, f"{score} against compute", lambda axes, s=score: _compute(axes, comparison, s)))  # type: ignore[misc]
    return made


def _moves(cell: Cell, name: str) -> bool:
    values = [value for run in cell.runs.values() for _, value in run.curves.get(name, [])]
    return bool(values) and max(values) - min(values) > 1e-6


def _says_something(cell: Cell) -> bool:
    """Whether the factor is anything but neutral throughout."""
    return any(abs(value) > 1e-6 for run in cell.runs.values() for _, value in run.curves.get("factor", []))


def _look(comparison: Comparison, cell: Cell) -> tuple[str, str]:
    """The colour and the dash of a cell, the same in every figure."""
    place = comparison.trained.index(cell)
    return COLOURS[place % len(COLOURS)], DASHES[place // len(COLOURS) % len(DASHES)]


def _curves(axes: Axes, comparison: Comparison, cells: Sequence[Cell], name: str, label: str) -> None:
    """The mean over seeds, and a band from the least to the most of them."""
    several = False
    for cell in cells:
        colour, dash = _look(comparison, cell)
        curves = [run.curves[name] for run in cell.runs.values() if name in run.curves]
        at = numpy.array([step for step, _ in curves[0]])
        values = numpy.array(
            [numpy.interp(at, [step for step, _ in curve], [value for _, value in curve]) for curve in curves]
        )
        if len(values) > 1:
            several = True
            axes.fill_between(at, values.min(axis=0), values.max(axis=0), color=colour, alpha=0.15, linewidth=0)
        axes.plot(at, values.mean(axis=0), color=colour, linestyle=dash, linewidth=1.6, label=unmathed(cell.name))
    axes.set_xlabel("step" + (" (band: least to most of the seeds)" if several else ""))
    axes.set_ylabel(label)
    if name in RANGES:
        axes.set_ylim(*RANGES[name])


def _compute(axes: Axes, comparison: Comparison, score: str) -> None:
    """A dot a run, and a larger one with the interval a cell, over what its training took."""
    factor, _, sign = comparison.unit(score)
    counted = bool(comparison.flops) and all(cell.name in comparison.flops for cell in comparison.trained)
    most = (
        max((comparison.flops[cell.name] * cell.first.images for cell in comparison.trained), default=0)
        if counted
        else 0
    )
    scale, prefix = next((one for one in PREFIXES if most >= one[0]), PREFIXES[-1])
    summaries = comparison.summaries(score)
    for cell in comparison.trained:
        if cell.name not in summaries:
            continue
        colour, _ = _look(comparison, cell)
        values = cell.values(score)
        if counted:
            spent = {seed: cell.runs[seed].images * comparison.flops[cell.name] / scale for seed in values}
        else:
            spent = {seed: (cell.runs[seed].seconds or 0.0) / 60 for seed in values}
        axes.scatter(
            [spent[seed] for seed in values],
            [value * factor for value in values.values()],
            color=colour, s=12, alpha=0.45, linewidths=0,
        )  # fmt: skip
        summary = summaries[cell.name]
        axes.errorbar(
            [statistics.fmean(spent.values())],
            [summary.mean * factor],
            yerr=None if summary.half is None else [summary.half * factor],
            color=colour, marker="o", markersize=6, capsize=3, linewidth=1.3, linestyle="none",
            label=unmathed(cell.name),
        )  # fmt: skip
    axes.set_xlim(left=0)
    axes.set_xlabel(f"training compute ({prefix}FLOPs)" if counted else "training time (minutes, as measured)")
    axes.set_ylabel(unmathed(f"{score} ({sign})" if sign else score))


def unmathed(text: str) -> str:
    """Text in which matplotlib looks for no formula."""
    return text.replace("$", r"\$")


def _inline(svg: str, name: str) -> str:
    """An SVG for the inside of a page: without its prologue, and with names that no other figure of the page has."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'\b(id|clip-path|xlink:href)="(url\()?(#?)', rf'\1="\2\3{name}-', svg)
    return re.sub(r'<svg ([^>]*?)width="[^"]*" height="[^"]*"|<svg ', _responsive, svg, count=1)


def _responsive(match: re.Match[str]) -> str:
    return f'<svg role="img" {match[1] or ""}'
