"""What a run shows: the same images at several moments of training, what was hidden of them, and how it was rebuilt."""

from __future__ import annotations

import io
import textwrap
from collections.abc import Sequence
from pathlib import Path

import attrs
import matplotlib
import numpy
import torch
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor

from maskzoo.bands import shown_channels
from maskzoo.mask import Mask
from maskzoo.plain import printable, replace
from maskzoo.views import View

HIDDEN = (0.20, 0.22, 0.27)  # the colour over hidden patches: in no photograph by chance, and dark in print
INK = "#1f2430"
OWNER = "MaskZoo masks"  # what a picture says of itself, so that it is known among images
LETTERS = 18  # of a note, an inch
ROW_TITLES = ("image", "what is seen", "rebuilt")


@attrs.frozen(eq=False)
class Moment:
    """What was drawn at one step; all images [B, C, H, W] float in [0, 1]."""

    step: int
    factor: float | None  # None where the factor means nothing to the strategy
    ratio: float
    images: Tensor
    seen: Tensor
    rebuilt: Tensor | None = None  # None: the objective rebuilds nothing that could be shown

    @property
    def caption(self) -> str:
        """The step and the dials, in words."""
        dial = f"ratio {self.ratio:.2f}" if self.factor is None else f"factor {signed(self.factor)}"
        return f"step {self.step}\n{dial}"


def signed(factor: float) -> str:
    """A factor to two places, with its sign; never -0.00."""
    return f"{round(factor, 2) + 0.0:+.2f}"


def covered(images: Tensor, mask: Mask, grid: tuple[int, ...], patch: tuple[int, ...]) -> Tensor:
    """Images [B, C, H, W] in [0, 1] as colour [B, 3, H, W], with the hidden patches under a flat colour."""
    hidden = mask.hidden_on(grid, patch).view(-1, 1, *images.shape[2:])
    flat = torch.tensor(HIDDEN, device=images.device).view(1, 3, 1, 1)
    return torch.where(hidden, flat, coloured(images))


def coloured(images: Tensor) -> Tensor:
    """Images [B, C, H, W] of any number of channels in [0, 1] as [B, 3, H, W], as `maskzoo.bands` chooses them."""
    return View(shown_channels(images.shape[1]))(images)


def drawn_by(file: Path, owner: str) -> bool:
    """Whether a file is a PNG that says of itself that this owner drew it."""
    try:
        with Image.open(file, formats=["PNG"]) as image:
            return bool(image.info.get("Software") == owner)
    except Exception:  # whatever it is, it is none
        return False


def draw_moment(moment: Moment, path: Path, note: str = "") -> None:
    """One PNG: the images, what is seen of them, and, if the model rebuilds any, what it makes of that."""
    rows = [row for row in (moment.images, moment.seen, moment.rebuilt) if row is not None]
    _draw(rows, list(ROW_TITLES[: len(rows)]), path, title=moment.caption.replace("\n", ", "), note=note)


def draw_curriculum(moments: Sequence[Moment], path: Path, title: str, note: str = "") -> None:
    """One PNG of the whole run: the images, then what was seen of them at each moment, from first to last."""
    rows = [moments[0].images, *(moment.seen for moment in moments)]
    titles = ["image", *(moment.caption for moment in moments)]
    _draw(rows, titles, path, title=title, note=note)


def _draw(rows: Sequence[Tensor], titles: Sequence[str], path: Path, title: str, note: str) -> None:
    with matplotlib.rc_context({"font.size": 9, "font.family": "DejaVu Sans", "text.color": INK}):
        columns = len(rows[0])
        notes = textwrap.wrap(printable(note), int((1.25 + columns) * LETTERS)) if note else []
        below = 0.25 + 0.13 * (len(notes) - 1) if notes else 0.0  # inches
        figure = Figure(figsize=(1.25 + columns, 0.45 + len(rows) + below), dpi=130)
        figure.patch.set_facecolor("white")
        top = 1 - 0.40 / figure.get_figheight()
        grid = figure.add_gridspec(
            len(rows),
            columns,
            left=1.2 / figure.get_figwidth(),
            right=0.995,
            top=top,
            bottom=((0.03 + below) if notes else 0.05) / figure.get_figheight(),
            wspace=0.05,
            hspace=0.05,
        )
        for number, (images, row_title) in enumerate(zip(rows, titles, strict=True)):
            for column, image in enumerate(coloured(images)):
                axes = figure.add_subplot(grid[number, column])
                axes.imshow(_pixels(image), interpolation="nearest")
                axes.set_axis_off()
                if column == 0:
                    axes.text(-0.12, 0.5, printable(row_title), transform=axes.transAxes, ha="right", va="center")
        figure.text(0.01, 1 - 0.12 / figure.get_figheight(), printable(title), ha="left", va="top", fontweight="bold")
        if notes:
            lines = "\n".join(notes)
            figure.text(0.01, 0.08 / figure.get_figheight(), lines, ha="left", va="bottom", fontsize=7.5)
        drawn = io.BytesIO()
        figure.savefig(drawn, format="png", metadata={"Software": OWNER})
        path.parent.mkdir(parents=True, exist_ok=True)
        replace(path, drawn.getvalue())


def _pixels(image: Tensor) -> numpy.ndarray:
    pixels: numpy.ndarray = (image.detach().float().clamp(0, 1) * 255).round().byte().permute(1, 2, 0).cpu().numpy()
    return pixels
