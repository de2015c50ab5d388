"""Blockwise masking (BEiT, ICLR 2022).

Shapes: B images, H x W patches in the grid, N = H * W, R rounds, T tries.
"""

from __future__ import annotations

import math
from typing import Any, ClassVar

import attrs
import torch
from torch import Tensor

from maskzoo import MaskingContext, Objective, RecipeError, Strategy, define, hookimpl

MOST = {"least": 10**9, "most": 10**9, "tries": 1000, "rounds": 1000}  # far beyond any use; more is a slip


def _a_count(strategy: object, field: attrs.Attribute[Any], value: int | None) -> None:
    if value is not None and value < 1:
        raise ValueError(f"{field.name} is {value}, but it must be at least 1")
    if value is not None and value > MOST[field.name]:
        raise ValueError(f"{field.name} is {value}, but it must be at most {MOST[field.name]}")


def _proper_aspect(strategy: object, field: attrs.Attribute[Any], value: float) -> None:
    if not 0 < value <= 1:
        raise ValueError(f"{field.name} is {value}, but it must be above 0 and at most 1")


def rectangles(
    grid: tuple[int, int], count: int, draws: Tensor, least: int, most: int | None = None, aspect: float = 0.3
) -> Tensor:
    """Cover each image with random blocks until `count` patches are hidden or no try fits: [B, H, W] bool.

    `draws` [B, R, T, 4] is uniform in [0, 1). In each of R rounds an image takes the first of its T tries that hides
    at least one new patch and no more than still may be hidden; an image with no such try is finished. At most `count`
    patches are hidden, often fewer. A block has between `least` and `most` patches (None: `count`), at a ratio of
    height to width between `aspect` and 1 / `aspect`. Source: BEiT, section 2.3 and algorithm 1.
    """
    height, width = grid
    images, rounds = draws.shape[:2]
    hidden = torch.zeros(images, height, width, dtype=torch.bool, device=draws.device)
    remaining = torch.full((images,), count, device=draws.device)  # [B]
    rows = torch.arange(height, device=draws.device)[:, None]
    columns = torch.arange(width, device=draws.device)
    for turn in range(rounds):
        size, shape, down, across = draws[:, turn].unbind(-1)  # [B, T] each
        most_now = remaining[:, None].clamp(max=count if most is None else most)  # [B, 1]
        # As in the paper's code, the bounds simply change places where fewer than `least` may still be hidden.
        area = least + (most_now - least) * size
        ratio = torch.exp((1 - 2 * shape) * math.log(aspect))
        tall = (area * ratio).sqrt().round().long()  # torch rounds half to even, as Python does
        wide = (area / ratio).sqrt().round().long()
        fits = (tall < height) & (wide < width)
        tall, wide = tall.where(fits, 0), wide.where(fits, 0)  # an empty block hides nothing new, so it is refused
        top = (down * (height - tall + 1)).long()
        left = (across * (width - wide + 1)).long()

        new = tall * wide - _hidden_inside(hidden, top, left, tall, wide)
        valid = (new > 0) & (new <= most_now)  # [B, T]
        # Nothing changes in a round without a valid try, but later tries are others: the image must not go on.
        first = valid.to(torch.uint8).argmax(dim=1, keepdim=True)
        taken = valid.gather(1, first)  # [B, 1]
        top, left, tall, wide, new = (values.gather(1, first)[..., None] for values in (top, left, tall, wide, new))
        block = (rows >= top) & (rows < top + tall) & (columns >= left) & (columns < left + wide)  # [B, H, W]
        hidden |= block & taken[..., None]
        remaining = torch.where(taken, remaining[:, None] - new[..., 0], 0)[:, 0]
    return hidden


def _hidden_inside(hidden: Tensor, top: Tensor, left: Tensor, tall: Tensor, wide: Tensor) -> Tensor:
    """How many patches of `hidden` [B, H, W] lie in each of the blocks [B, T], from a summed-area table."""
    table = torch.nn.functional.pad(hidden.long().cumsum(1).cumsum(2), (1, 0, 1, 0)).flatten(1)
    width = hidden.shape[2] + 1

    def above_and_left_of(row: Tensor, column: Tensor) -> Tensor:
        return table.gather(1, row * width + column)

    bottom, right = top + tall, left + wide
    return (
        above_and_left_of(bottom, right)
        - above_and_left_of(top, right)
        - above_and_left_of(bottom, left)
        + above_and_left_of(top, left)
    )


@define
class Block(Strategy):
    """Hide rectangular blocks of patches, and complete them to the exact count at random.

    BEiT itself leaves out what its blocks do not reach (0.5 of 75 patches on average); here single patches make it up.
    On a grid one patch high or wide no block is strictly smaller than the grid, and the mask is random.
    """

    name: ClassVar[str] = "block"
    paper: ClassVar[str] = "Bao et al., BEiT: BERT Pre-Training of Image Transformers, arXiv 2106.08254, ICLR 2022"

    # fewest patches of a block; None: 16 of 196, in proportion
    least: int | None = attrs.field(default=None, validator=_a_count)
    # most patches of a block; None: the whole count
    most: int | None = attrs.field(default=None, validator=_a_count)
    # aspect ratio of a block: log-uniform between this and its inverse
    aspect: float = attrs.field(default=0.3, validator=_proper_aspect)
    tries: int = attrs.field(default=10, validator=_a_count)  # draws for each block before it is given up
    rounds: int = attrs.field(default=24, validator=_a_count)  # the most blocks of an image; 64 x 64 needs 24

    def setup(self, objective: Objective) -> None:
        """Refuse a grid that has no rectangles. Raises RecipeError."""
        grid = tuple(objective.backbone.grid)
        if len(grid) != 2:
            raise RecipeError(
                f"strategy 'block' hides rectangles, for which it needs a grid of two dimensions; "
                f"this backbone's is {' x '.join(map(str, grid))}"
            )

    def scores(self, context: MaskingContext) -> Tensor:
        """Noise [B, N], plus 1 in the blocks."""
        height, width = context.grid
        least = max(1, round(16 * context.patches / 196)) if self.least is None else self.least
        draws = context.noise(self.rounds, self.tries, 4, name="blocks")
        blocks = rectangles((height, width), context.count, draws, least, self.most, self.aspect)
        return context.noise() + blocks.flatten(1)


@hookimpl
def maskzoo_strategies() -> list[type]:
    """Blockwise masking."""
    return [Block]
