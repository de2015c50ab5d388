"""The overview of a data set as one page: classes, sizes, levels and some of the images.

Shapes: H height, W width.
"""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure

from maskzoo.overview.looking import BINS, THUMBNAILS, Look, SeenImage
from maskzoo.overview.summary import MADE_BY
from maskzoo.pictures import INK
from maskzoo.plain import printable, replace

WIDTH, HEIGHT, DOTS = 10.0, 10.4, 130  # inches, inches, and dots an inch
BARS = 20  # classes that have a bar
LONGEST_NAME, LONGEST_LINE = 22, 150  # letters of a name, and of a line, on the page
TRAIN, TEST, GREY = "#3b6ea5", "#e0a030", "#7a8190"
HUES = {1: ("#444a55",), 3: ("#c0392b", "#2e8b57", "#2f5fb3"), 4: ("#c0392b", "#2e8b57", "#2f5fb3", "#8a8a8a")}
COLUMNS = 8  # of the images


def draw_overview(told: Mapping[str, Any], look: Look, path: Path) -> None:
    """One PNG. Raises OSError where it cannot be written."""
    look_of_text = {"font.family": "DejaVu Sans", "font.size": 9, "text.color": INK, "text.parse_math": False}
    look_of_axes = {"axes.spines.top": False, "axes.spines.right": False, "axes.edgecolor": GREY}
    look_of_titles = {"axes.titleweight": "bold", "axes.titlesize": 10, "axes.titlelocation": "left"}
    with matplotlib.rc_context({**look_of_text, **look_of_axes, **look_of_titles}):
        figure = Figure(figsize=(WIDTH, HEIGHT), dpi=DOTS, facecolor="white")
        grid = figure.add_gridspec(
            *(3, 2),
            left=0.13,
            right=0.97,
            top=0.885,
            bottom=0.03,
            hspace=0.33,
            wspace=0.24,
            height_ratios=(1.15, 0.75, 1.05),
        )
        _head(figure, told)
        _classes(figure.add_subplot(grid[0, 0]), told)
        _sizes(figure.add_subplot(grid[0, 1]), told, look.images)
        _levels(figure.add_subplot(grid[1, :]), told, look)
        _images(figure, grid[2, :], told, look)
        drawn = io.BytesIO()
        figure.savefig(drawn, format="png", metadata={"Software": MADE_BY})
    replace(path, drawn.getvalue())


def _head(figure: Any, told: Mapping[str, Any]) -> None:
    data, splits = told["data"], told["splits"]
    name = data.get("root") or data.get("path") or data.get("source") or data["use"]
    counts = ", ".join(f"{split['images']:,} {which}" for which, split in splits.items())
    looked = sum(split["looked_at"] for split in splits.values())
    figure.text(0.03, 0.98, _short(str(name), 90), fontsize=13, fontweight="bold", va="top")
    figure.text(
        0.03,
        0.957,
        f"images: {counts}; looked at {looked:,}, {told['counts']['broken'] or 'none'} broken. {_taken(told['run'])}",
        va="top",
    )
    for number, line in enumerate(told["concerns"][:2]):
        words = line if len(line) <= LONGEST_LINE else f"{line[: LONGEST_LINE - 3]}..."
        figure.text(0.03, 0.937 - 0.017 * number, f"! {words}", va="top", fontsize=8, color="#a03020")


def _taken(run: Mapping[str, Any]) -> str:
    if "refused" in run:
        return ""
    size, grid = (" x ".join(map(str, run[key])) for key in ("size", "grid"))
    return f"A run takes {size} pixels, {grid} patches."


def _classes(axes: Any, told: Mapping[str, Any]) -> None:
    classes = told["classes"]
    axes.set_title("Images of each class")
    if not classes:
        _nothing(axes, "no labels")
        return
    ranked = sorted(classes, key=lambda one: -one["train"])
    shown = ranked if len(ranked) <= BARS else [*ranked[: BARS // 2], *ranked[-BARS // 2 :]]
    places = np.arange(len(shown), dtype=float)
    if len(shown) < len(ranked):
        places[BARS // 2 :] += 1
        axes.text(0, BARS // 2, f" ... {len(ranked) - len(shown):,} more", va="center", fontsize=8, color=GREY)
    left = np.zeros(len(shown))
    for split, colour in (("train", TRAIN), ("test", TEST)):
        counts = np.array([one[split] for one in shown], dtype=float)
        axes.barh(places, counts, left=left, color=colour, height=0.72, label=split)
        left += counts
    axes.set_yticks(places, [_short(one["name"], LONGEST_NAME) for one in shown], fontsize=8)
    axes.invert_yaxis()
    axes.tick_params(axis="y", length=0)
    axes.xaxis.set_major_locator(matplotlib.ticker.MaxNLocator(5, integer=True))
    axes.legend(frameon=False, loc="lower right", bbox_to_anchor=(1.0, 0.99), ncols=2, fontsize=8, borderaxespad=0)


def _sizes(axes: Any, told: Mapping[str, Any], images: Sequence[SeenImage]) -> None:
    axes.set_title("Sizes, in pixels")
    if not images:
        _nothing(axes, "no image could be read")
        return
    for split, colour in (("train", TRAIN), ("test", TEST)):
        held = Counter((image.width, image.height) for image in images if image.split == split)
        if held:
            areas = [14 + 70 * count / held.total() for count in held.values()]
            axes.scatter(*zip(*held, strict=True), s=areas, color=colour, alpha=0.55, lw=0, label=split)
    most = max(max(image.width, image.height) for image in images) * 1.08
    axes.plot([0, most], [0, most], color=GREY, lw=0.7, ls=":")
    if "size" in told["run"]:
        height, width = told["run"]["size"]
        axes.plot([width], [height], marker="+", ms=11, mew=1.6, color=INK, ls="", label="a run")
    axes.set(xlim=(0, most), ylim=(0, most), xlabel="width", ylabel="height")
    axes.legend(frameon=False, loc="upper left", fontsize=8)


def _levels(axes: Any, told: Mapping[str, Any], look: Look) -> None:
    axes.set_title("Levels of each channel")
    if look.levels is None:
        _nothing(axes, "no image could be read")
        return
    bins = look.levels.bins / np.maximum(look.levels.bins.sum(1, keepdims=True), 1)
    hues = HUES.get(len(bins)) or [matplotlib.colormaps["viridis"](place) for place in np.linspace(0, 0.9, len(bins))]
    names = {3: ("red", "green", "blue"), 4: ("red", "green", "blue", "alpha"), 1: ("grey",)}.get(len(bins), ())
    places = np.linspace(0, 1, BINS)
    for number, row in enumerate(bins):
        name = names[number] if number < len(names) else f"channel {number + 1}"
        label = name if len(bins) <= 6 else None
        axes.step(places, row, where="mid", color=hues[number], lw=1.1, label=label)
    top = np.sort(bins.max(0))[-max(2, BINS // 50)] * 1.15  # a few tall bins, of black or white, may be cut
    axes.set(xlim=(-0.005, 1.005), ylim=(0, top or 1), yticks=[])
    axes.spines["left"].set_visible(False)
    low, high = told["range"] or (None, None)
    axes.set_xlabel("level" if low is None else f"level (stored values {low:.6g} to {high:.6g})")
    if len(bins) <= 6:
        above = {"loc": "lower right", "bbox_to_anchor": (1.0, 0.99), "borderaxespad": 0}
        axes.legend(frameon=False, fontsize=8, ncols=len(bins), **above)


def _images(figure: Any, place: Any, told: Mapping[str, Any], look: Look) -> None:
    shown = [image for image in look.images if image.thumbnail is not None][:THUMBNAILS]
    inner = place.subgridspec(max(1, -(-THUMBNAILS // COLUMNS)), COLUMNS, wspace=0.06, hspace=0.22)
    classes = told["classes"]
    for number in range(THUMBNAILS):
        axes = figure.add_subplot(inner[number // COLUMNS, number % COLUMNS])
        axes.set_axis_off()
        if number == 0:
            axes.set_title("Some of the images", pad=6)
        if number >= len(shown):
            continue
        image = shown[number]
        assert image.thumbnail is not None
        axes.imshow(image.thumbnail.permute(1, 2, 0).numpy(), interpolation="nearest", vmin=0, vmax=1)
        known = classes and image.label is not None and image.label < len(classes)
        name = classes[image.label]["name"] if known else printable(Path(image.name).name)
        axes.text(0.5, -0.04, _short(name, 16), transform=axes.transAxes, ha="center", va="top", fontsize=7.5)


def _nothing(axes: Any, words: str) -> None:
    axes.text(0.5, 0.5, words, transform=axes.transAxes, ha="center", va="center", color=GREY)
    axes.set_axis_off()


def _short(text: str, letters: int) -> str:
    return text if len(text) <= letters else f"{text[: letters // 2 - 1]}...{text[-(letters // 2 - 2) :]}"
