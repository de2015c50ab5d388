"""Images in rows and columns with captions: as a sheet of PNG, and in a true-colour terminal.

Shapes: B images, H height, W width.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import attrs
import matplotlib
from matplotlib.backends.backend_agg import RendererAgg
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from rich.text import Text
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d

from maskzoo.pictures import INK
from maskzoo.plain import printable

OWNER = "MaskZoo preview"  # what a picture says of itself, so that it may be drawn anew in its place
LEAST_CELLS, MOST_CELLS = 12, 32  # characters across an image in a terminal, where the patches allow it
SIDE, LEAST_WIDTH = 1.6, 5.0  # inches of an image, and of a picture with few of them
MARGIN, GAP, LINE, SMALL_LINE = 0.08, 0.05, 0.165, 0.135  # inches
SIZE, SMALL_SIZE, DOTS = 9.0, 7.5, 130  # points, points, and dots an inch


@attrs.frozen(eq=False)
class Column:
    """What is seen of the images at one moment of the curriculum."""

    caption: str  # of several lines
    seen: Tensor  # [B, 3, H, W] in [0, 1]

    @property
    def short_caption(self) -> list[str]:
        """Its lines for a terminal, where there is little room."""
        return self.caption.replace(" of training", "").split("\n")


def draw(columns: Sequence[Column], names: Sequence[str], path: Path, *, title: str, note: str = "") -> None:
    """One PNG: a row for each image with its name below, a column for each moment with its caption above."""
    side = max(SIDE, (LEAST_WIDTH - 2 * MARGIN + GAP) / len(columns) - GAP)
    height, width = columns[0].seen.shape[2:]
    tall, room = side * height / width, (side + GAP) * len(columns) - GAP
    look_of_text = {"font.family": "DejaVu Sans", "text.color": INK, "text.parse_math": False}
    with matplotlib.rc_context(look_of_text):
        titles = wrapped(title, room, SIZE, "bold")
        labels = [wrapped(name, room, SMALL_SIZE) for name in names]
        notes = wrapped(note, room, SMALL_SIZE) if note else []
        captions = [column.caption.split("\n") for column in columns]
        rows_at = MARGIN + LINE * (len(titles) + max(map(len, captions))) + 2 * GAP
        high = sum(tall + SMALL_LINE * len(label) + 2 * GAP for label in labels)
        page = Page(room + 2 * MARGIN, rows_at + high + SMALL_LINE * len(notes) + MARGIN)
        page.write(titles, MARGIN, MARGIN, weight="bold")
        for number, caption in enumerate(captions):
            middle = MARGIN + number * (side + GAP) + side / 2
            page.write(caption, middle, rows_at - GAP - LINE * len(caption), ha="center")
        down = rows_at
        for row, label in enumerate(labels):
            for number, column in enumerate(columns):
                page.show(column.seen[row], (MARGIN + number * (side + GAP), down, side, tall))
            page.write(label, MARGIN, down + tall + GAP / 2, size=SMALL_SIZE)
            down += tall + SMALL_LINE * len(label) + 2 * GAP
        page.write(notes, MARGIN, down, size=SMALL_SIZE)
        page.figure.savefig(path, format="png", metadata={"Software": OWNER})


class Page:
    """A white page on which everything has its place in inches, from the left and from the top."""

    def __init__(self, width: float, height: float) -> None:
        self.width, self.height = width, height
        self.figure = Figure(figsize=(width, height), dpi=DOTS, facecolor="white")

    def write(self, lines: Sequence[str], left: float, down: float, size: float = SIZE, **look: Any) -> None:
        """Lines of text, one below the other."""
        spacing = SMALL_LINE if size == SMALL_SIZE else LINE
        for number, line in enumerate(lines):
            top = down + number * spacing
            self.figure.text(left / self.width, 1 - top / self.height, line, va="top", fontsize=size, **look)

    def show(self, image: Tensor, place: tuple[float, float, float, float]) -> None:
        """An image [3, H, W] at a place: left, down, its width and its height."""
        left, down, width, height = place
        bottom = 1 - (down + height) / self.height
        axes = self.figure.add_axes((left / self.width, bottom, width / self.width, height / self.height))
        axes.imshow(image.permute(1, 2, 0).numpy(), interpolation="nearest", aspect="auto")
        axes.set_axis_off()


def wrapped(text: str, width: float, size: float, weight: str = "normal") -> list[str]:
    """A text in lines no wider than so many inches, broken between words, and within those that are wider."""
    font = FontProperties(family="DejaVu Sans", size=size, weight=weight)
    renderer = RendererAgg(1, 1, DOTS)  # the one that draws, since hinting makes letters wider than they are

    def fits(line: str) -> bool:
        return float(renderer.get_text_width_height_descent(line, font, ismath=False)[0]) / DOTS <= width

    lines = [""]
    for word in printable(text).split():
        longer = f"{lines[-1]} {word}".strip()
        if fits(longer):
            lines[-1] = longer
            continue
        rest = word if fits(word) else longer  # one that is broken anyway begins where there is room
        lines = [*lines, ""] if rest == word else [*lines[:-1], ""]
        for letter in rest:
            if not fits(lines[-1] + letter):
                lines.append("")
            lines[-1] += letter
    return [line.strip() for line in lines if line.strip()] or [""]


def half_blocks(columns: Sequence[Column], names: Sequence[str], width: int, grid: tuple[int, int]) -> list[Text]:
    """The same as lines of coloured half blocks, for a terminal `width` characters wide, in as many bands as it takes.

    Where the width allows it, whole pixels of the terminal make a patch of the `grid`, so that its edges are sharp.
    """
    words = max(len(line) for column in columns for line in column.short_caption)
    height, across = columns[0].seen.shape[2:]
    cells, rows = _cells(grid, height / across, len(columns), words, width)
    wide = max(cells, words)
    beside = math.ceil(len(columns) / math.ceil(len(columns) / _fitting(wide, width)))  # bands that are alike
    lines = []
    for first in range(0, len(columns), beside):
        band = columns[first : first + beside]
        if first:
            lines.append(Text())
        captions = [column.short_caption for column in band]
        for number in range(max(map(len, captions))):
            told = (caption[number] if number < len(caption) else "" for caption in captions)
            lines.append(Text(" ".join(f"{word:<{wide}}" for word in told)))
        small = [(adaptive_avg_pool2d(column.seen, (2 * rows, cells)) * 255).round().int().tolist() for column in band]
        for image, name in enumerate(names):
            lines += [_line([column[image] for column in small], row, wide) for row in range(rows)]
            name = printable(name)
            lines += [Text(name[start : start + width]) for start in range(0, len(name), width)]
    return lines


def _fitting(wide: int, width: int) -> int:
    """How many columns of `wide` characters stand side by side, with one between them."""
    return max(1, (width + 1) // (wide + 1))


def _cells(grid: tuple[int, int], aspect: float, columns: int, words: int, width: int) -> tuple[int, int]:
    """How many characters an image is across and down: the most that can be had with the fewest bands.

    A patch of the grid has a whole number of them across, and of halves of them down, unless that would distort the
    image or be wider than the terminal.
    """
    unit = math.lcm(grid[0], 2)
    sizes = []
    for cells in range(grid[1], min(width, max(MOST_CELLS, grid[1])) + 1, grid[1]):
        pixels = max(1, round(cells * aspect / unit)) * unit
        if 0.75 < pixels / (cells * aspect) < 4 / 3:
            bands = math.ceil(columns / _fitting(max(cells, words), width))
            sizes.append((cells >= LEAST_CELLS, -bands, cells, pixels // 2))
    if sizes:
        return max(sizes)[2:]
    cells = min(width, MOST_CELLS, max(LEAST_CELLS, (width + 1) // columns - 1))
    return cells, max(1, round(cells * aspect / 2))


def _line(images: Sequence[Any], row: int, wide: int) -> Text:
    """A line of half blocks: two rows of pixels of each image [3, 2 * rows, cells], each `wide` characters wide."""
    line = Text()
    for number, image in enumerate(images):
        line.append(" " if number else "")
        pairs = zip(*(zip(channel[2 * row], channel[2 * row + 1], strict=True) for channel in image), strict=True)
        for colours in pairs:  # (upper, lower) of red, green and blue
            upper, lower = zip(*colours, strict=True)
            line.append("▀", style="rgb({},{},{}) on rgb({},{},{})".format(*upper, *lower))
        line.append(" " * (wide - len(image[0][0])))
    return line
