"""Histograms of oriented gradients, the target of MaskFeat (arXiv 2112.09133).

Shapes: B images, C channels, H height, W width, N patches.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d, max_pool2d

BINS = 9  # directions, each of 20 degrees; opposite ones are the same
CELL = 8  # pixels a side of a cell, at most
FAINT = 1e-5  # added to the length of a histogram, so that a flat cell has one of zeros


def hog(images: Tensor, patch: tuple[int, ...], valid: Tensor | None = None) -> Tensor:
    """The histograms [B, N, features(C, patch)] float32 of the cells of each patch of images [B, C, H, W].

    In each channel by itself, a pixel's gradient is the difference of its two neighbours, 0 at the images' border. It
    votes with its length for the one bin of its direction (no interpolation between bins or cells), and the mean votes
    of a cell are divided by their L2 norm. So a target hardly depends on the scale of a channel, and not at all on its
    mean: normalised images have nearly the same as the original ones. A pixel has no vote where its gradient would be
    made of one that is not `valid`, bool [B, C, H, W]. The order is row and column of the cell, channel, bin.
    """
    images = images.float()
    across, down = torch.zeros_like(images), torch.zeros_like(images)
    across[..., 1:-1] = images[..., 2:] - images[..., :-2]
    down[..., 1:-1, :] = images[..., 2:, :] - images[..., :-2, :]
    # Turned by hand into the half from 0 to below pi: a remainder would put rounding's -0.0 at the far end.
    sign = torch.where((down < 0) | ((down == 0) & (across < 0)), -1.0, 1.0)
    bins = (torch.atan2(down * sign, across * sign) * (BINS / math.pi)).long().clamp(max=BINS - 1)
    length = torch.hypot(across, down)
    if valid is not None:
        length = torch.where(_with_neighbours(valid), length, 0.0)
    votes = torch.stack([torch.where(bins == number, length, 0.0) for number in range(BINS)], dim=2)
    cell = cell_of(patch)
    cells = avg_pool2d(votes.flatten(1, 2), cell)
    cells = cells.reshape(*votes.shape[:3], *cells.shape[2:])  # [B, C, 9, rows, columns]
    cells = cells / (cells.square().sum(dim=2, keepdim=True) + FAINT**2).sqrt()
    return _by_patch(cells, tuple(side // part for side, part in zip(patch, cell, strict=True)))


def known_cells(valid: Tensor, patch: tuple[int, ...]) -> Tensor:
    """[B, N, features(C, patch)] bool: of which histograms of `hog` any pixel has a vote."""
    votes = avg_pool2d(_with_neighbours(valid).float(), cell_of(patch)) > 0  # [B, C, rows, columns] of cells
    cells = votes[:, :, None].expand(-1, -1, BINS, -1, -1)
    return _by_patch(cells, tuple(side // part for side, part in zip(patch, cell_of(patch), strict=True)))


def _with_neighbours(valid: Tensor) -> Tensor:
    """[B, C, H, W] bool: which pixels are valid with the four next to them, as far as there are four."""
    return max_pool2d((~valid).float(), (3, 1), 1, (1, 0)) + max_pool2d((~valid).float(), (1, 3), 1, (0, 1)) == 0


def features(channels: int, patch: tuple[int, ...]) -> int:
    """How many values `hog` gives of each patch."""
    return math.prod(side // part for side, part in zip(patch, cell_of(patch), strict=True)) * channels * BINS


def cell_of(patch: tuple[int, ...]) -> tuple[int, ...]:
    """Pixels of a cell along each dimension: 8, or the largest number below that which divides the patch."""
    return tuple(next(part for part in range(CELL, 0, -1) if side % part == 0) for side in patch)


def _by_patch(cells: Tensor, inside: tuple[int, ...]) -> Tensor:
    """Histograms [B, C, 9, rows, columns] of cells, of which `inside` make a patch along each dimension, by patch."""
    (high, wide), (batch, channels, bins, rows, columns) = inside, cells.shape
    cut = cells.reshape(batch, channels, bins, rows // high, high, columns // wide, wide)
    return cut.permute(0, 3, 5, 4, 6, 1, 2).reshape(batch, -1, high * wide * channels * bins)
