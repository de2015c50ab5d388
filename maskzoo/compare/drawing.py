"""How the figures of a comparison look: one colour, mark and dash for each cell, names as they are, legends whole."""

from __future__ import annotations

import io
import itertools
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import attrs
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.lines import Line2D
from matplotlib.text import Text
from matplotlib.ticker import MaxNLocator

from maskzoo.compare.cells import UNTRAINED, Comparison
from maskzoo.plain import printable

# Okabe and Ito's colours, which most people can tell apart; marks and dashes tell further cells apart, also in grey.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#5b5b5b")
DASHES = ("-", "--", ":", "-.")
MARKS = ("o", "s", "^", "D", "v", "P", "X", "<", ">", "p", "h")
INK, SOFT = "#1f2430", "#8a8f99"
WIDTH = 5.6  # inches, of a figure whose names are not too long for it
GAP = 4  # pixels between two numbers below an axis
LONGEST = 60  # letters of a name in a figure
STYLE = {
    "font.size": 9,
    "font.family": "DejaVu Sans",
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": SOFT,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.titlesize": 10,
    "axes.titlelocation": "left",
    "grid.color": "#e6e8ec",
    "grid.linewidth": 0.7,
    "xtick.color": "#4a4f5a",
    "ytick.color": "#4a4f5a",
    "svg.hashsalt": "maskzoo",  # the same figure, the same file
    "pdf.fonttype": 42,
}


@attrs.frozen
class Look:
    """The colour, mark and dash of a cell, the same in every figure."""

    colour: str
    mark: str
    dash: str


def looks(comparison: Comparison) -> dict[str, Look]:
    """A look for each cell, never one for two of them (before 308)."""
    made = {
        cell.name: Look(COLOURS[n % len(COLOURS)], MARKS[n % len(MARKS)], DASHES[n // len(COLOURS) % len(DASHES)])
        for n, cell in enumerate(comparison.trained)
    }
    others = [cell.name for cell in comparison.cells if not cell.trained]
    return {**made, **{name: Look(SOFT, "D" if name == UNTRAINED else "*", ":") for name in others}}


def short_names(names: Sequence[str]) -> dict[str, str]:
    """Names for a figure: on one line, harmless, of LONGEST letters at most, and no two alike."""
    made: dict[str, str] = {}
    for name in names:
        text = " ".join(printable(name).split())
        if len(text) > LONGEST:
            text = f"{text[: LONGEST // 2]}\u2026{text[-LONGEST // 2 + 1 :]}"
        number = 1 + sum(re.sub(r" #\d+$", "", other) == text for other in made.values())
        made[name] = text if number == 1 else f"{text} #{number}"
    return made


def new_figure(width: float = WIDTH, height: float = 3.5, apart: float = 0.02) -> Figure:
    """A white figure that lays itself out, its panels `apart` by that share of their width."""
    figure = Figure(figsize=(width, height), layout=ConstrainedLayoutEngine(wspace=apart))
    FigureCanvasAgg(figure)
    figure.patch.set_facecolor("white")
    return figure


def literal(text: Text) -> Text:
    """A text in which matplotlib looks for no formula."""
    text.set_parse_math(False)
    return text


def titled(axes: Axes, title: str) -> None:
    """A title that stays with the figure wherever it goes."""
    literal(axes.set_title(title))


def add_legend(figure: Figure, handles: Mapping[str, Line2D]) -> None:
    """A legend below the plot, in as many columns as fit, for which the figure grows as it must."""
    ends = {"frameon": False, "fontsize": 8, "handlelength": 2.8, "columnspacing": 1.4, "loc": "outside lower left"}
    for columns in range(min(4, len(handles)), 0, -1):
        legend = figure.legend(list(handles.values()), list(handles), ncols=columns, **ends)
        for text in legend.get_texts():
            literal(text)
        box = legend.get_window_extent()
        if box.width <= figure.get_figwidth() * figure.dpi or columns == 1:
            break
        legend.remove()
    width, height = box.width / figure.dpi, box.height / figure.dpi
    figure.set_size_inches(max(figure.get_figwidth(), width + 0.1), figure.get_figheight() + height)


def untangle(figure: Figure) -> None:
    """Take ticks away until no two numbers below an axis touch each other."""
    for ticks in (5, 4, 3, 2):
        figure.draw_without_rendering()
        tight = [axes for axes in figure.axes if axes.get_visible() and _touching(axes)]
        for axes in tight:
            axes.xaxis.set_major_locator(MaxNLocator(ticks))
        if not tight:
            return


def _touching(axes: Axes) -> bool:
    shown = [label for label in axes.get_xticklabels() if label.get_text() and label.get_visible()]
    boxes = sorted((label.get_window_extent() for label in shown), key=lambda box: float(box.x0))
    return any(left.x1 + GAP > right.x0 for left, right in itertools.pairwise(boxes))


def save(figure: Figure, path: Path, title: str) -> str:
    """Write a figure as PDF and SVG beside each other; the SVG as text for the inside of a page."""
    text = io.StringIO()
    ends: dict[str, Any] = {"bbox_inches": "tight", "pad_inches": 0.06}  # whatever sticks out is kept
    figure.savefig(path.with_name(f"{path.name}.pdf"), metadata={"CreationDate": None}, **ends)
    figure.savefig(text, format="svg", metadata={"Date": None}, **ends)
    svg = printable(text.getvalue())
    path.with_name(f"{path.name}.svg").write_text(svg, encoding="utf-8")
    return _inline(svg, path.name, title)


def file_name(title: str, taken: Sequence[str]) -> str:
    """A tidy name for a file, none that is taken: small letters, numbers, single dashes."""
    plain = re.sub(r"[^a-z0-9]+", "-", title.lower()).strip("-")[:60].strip("-") or "figure"
    name, number = plain, 2
    while name in taken:
        name, number = f"{plain}-{number}", number + 1
    return name


def _inline(svg: str, name: str, title: str) -> str:
    """An SVG for the inside of a page: without its prologue, and with names that no other figure of the page has."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>|<!--.*?-->", "", svg, flags=re.DOTALL)
    svg = re.sub(r'\b(id|clip-path|xlink:href)="(url\()?(#?)', rf'\1="\2\3{name}-', svg)
    width = re.search(r'<svg [^>]*?width="([\d.]+)pt"', svg)
    size = f' style="width:{float(width[1]) * 4 / 3:.0f}px"' if width else ""
    label = re.sub(r'[<>&"]', " ", printable(title))
    return re.sub(
        r'<svg ([^>]*?)width="[^"]*" height="[^"]*"|<svg ',
        lambda match: f'<svg role="img" aria-label="{label}"{size} {match[1] or ""}',
        svg,
        count=1,
    )
