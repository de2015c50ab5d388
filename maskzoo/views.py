"""How images of any number of channels and of any range are seen: as colour, the same way in all rows of a picture.

Shapes: B images, C channels, H height, W width.
"""

from __future__ import annotations

from collections.abc import Sequence

import attrs
import numpy
import torch
from torch import Tensor

from maskzoo.bands import shown_channels, told_channels, wrong_channels

LOWEST, HIGHEST = 2, 98  # percentiles of the levels that are shown as black and as white
INVALID = (0.84, 0.36, 0.62)  # the colour of pixels that were not measured: no grey, and lighter than hidden patches
INVALID_WORD = "pink"


@attrs.frozen(eq=False)
class View:
    """Which channels are shown, and which of their levels are black and white."""

    shown: tuple[int, ...]  # channels, counted from 1: one, two or three
    black: tuple[float, ...] | None = None  # a level of each; None: 0 and 1
    white: tuple[float, ...] | None = None
    invalid: Tensor | None = None  # [B, 1, H, W] bool, True where a pixel was not measured
    caption: str = ""  # what a reader has to know; nothing of ordinary images

    def __call__(self, levels: Tensor) -> Tensor:
        """Levels [B, C, H, W] as colour [B, 3, H, W], in [0, 1] where they were or where black and white are given."""
        places = [channel - 1 for channel in self.shown]
        seen = levels[:, : len(places)] if places == list(range(len(places))) else levels[:, places]
        if self.black is not None and self.white is not None:
            low, high = (
                torch.tensor(ends, dtype=torch.float32, device=levels.device).view(1, -1, 1, 1)
                for ends in (self.black, self.white)
            )
            seen = ((seen.float() - low) / (high - low)).clamp(0, 1)
        if len(places) == 1:
            seen = seen.expand(-1, 3, -1, -1)
        elif len(places) == 2:
            seen = torch.stack([seen[:, 0], seen.mean(dim=1), seen[:, 1]], dim=1)
        if self.invalid is None:
            return seen
        flat = torch.tensor(INVALID, device=levels.device).view(1, 3, 1, 1)
        return torch.where(self.invalid.to(levels.device), flat, seen)


def view_of(
    levels: Tensor, *, eight_bits: bool, valid: Tensor | None = None, shown: Sequence[int] | None = None
) -> View | None:
    """The view of images of these levels [B, C, H, W]; None for ordinary ones, which are shown as they are.

    Images of other than 8 bits are stretched from the 2nd to the 98th percentile of the levels that are `valid`
    [B, C, H, W]: grey, RGB and RGBA together, other channels each by itself. A data set may say which channels are
    `shown`, counted from 1. Raises ValueError for channels that there are not.
    """
    channels = levels.shape[1]
    chosen = tuple(shown_channels(channels) if shown is None else shown)
    if wrong := wrong_channels(chosen, channels):
        raise ValueError(f"shown {wrong}")
    places = [one - 1 for one in chosen]
    measured = torch.ones_like(levels, dtype=torch.bool) if valid is None else valid
    invalid = ~measured[:, places].all(dim=1, keepdim=True)
    usual = channels in (1, 3, 4) and chosen == shown_channels(channels)
    if usual and eight_bits and not invalid.any():
        return None
    captions = [told_channels(chosen, channels)]
    black = white = None
    if not eight_bits:
        seen, there = (one[:, places].transpose(0, 1).flatten(1) for one in (levels.float(), measured))  # [c, pixels]
        ends = [_ends(seen[there])] * len(places) if usual else [_ends(v[t]) for v, t in zip(seen, there, strict=True)]
        black, white = (tuple(values) for values in zip(*ends, strict=True))
        captions.append(f"black and white are the {LOWEST}nd and {HIGHEST}th percentile")
    if invalid.any():
        captions.append(f"{INVALID_WORD} was not measured")
    caption = "; ".join(caption for caption in captions if caption)
    return View(chosen, black, white, invalid if invalid.any() else None, caption)


def _ends(levels: Tensor) -> tuple[float, float]:
    """Two percentiles of levels of any shape, of those that are finite; apart from each other."""
    finite = levels[levels.isfinite()].cpu().numpy()
    if not finite.size:
        return 0.0, 1.0
    low, high = (float(end) for end in numpy.percentile(finite, (LOWEST, HIGHEST)))
    if low == high:  # nearly all are alike: what differs is still seen
        low, high = float(finite.min()), float(finite.max())
    return (low, high) if high > low else (low - 0.5, low + 0.5)
