"""Which patches of which image are hidden: the only place that builds, inverts or enlarges a boolean mask.

Shapes: B images, N patches (mask units), V visible, H hidden (V + H = N), D channels; C channels of an image.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence

import attrs
import torch
from torch import Tensor

from maskzoo import processes
from maskzoo.errors import ContractError
from maskzoo.seeds import stream


def _weights_of_hidden(mask: Mask) -> Tensor:
    """By how much each patch is hidden: wholly or not, or by its chance under a soft mask."""
    return mask.hidden.to(torch.float32) if mask.visibility is None else 1.0 - mask.visibility.to(torch.float32)


@attrs.frozen(eq=False)
class Mask:
    """Which patches are hidden, and how much each counts in the loss. True means hidden, always.

    A *hard* mask has no `visibility`: a hidden patch is gone. A *soft* mask lets every patch through, scaled by its
    `visibility`, so that a loss can reach the scores that made it.
    """

    hidden: Tensor  # [B, N] bool, True = hidden
    count: int | None  # H, known without asking the device; None: differs by image (dense encoders only)
    visibility: Tensor | None = None  # [B, N] in [0, 1], differentiable; soft masks only
    weights: Tensor = attrs.field(  # [B, N] float32, how much each counts in the loss; unless given: how much is hidden
        default=attrs.Factory(_weights_of_hidden, takes_self=True)
    )
    scores: Tensor | None = None  # [B, N], what it was made from, with its graph if there is one
    valid: Tensor | None = None  # [B, C, *size] bool, which pixels of the images were measured; None: all
    measured: Tensor | None = None  # [B, N] bool, which patches have any of those; see `over`

    def __attrs_post_init__(self) -> None:
        hidden = self.hidden
        if hidden.dtype != torch.bool or hidden.ndim != 2:
            raise ContractError(
                f"Mask.hidden must be a bool tensor [B, N] (True = hidden), got {hidden.dtype} {list(hidden.shape)}"
            )
        if self.count is not None and not 0 <= self.count <= hidden.shape[1]:
            raise ContractError(f"Mask.count is {self.count}, but there are {hidden.shape[1]} patches")
        # On a GPU the question would hold up the step.
        if self.count is not None and hidden.device.type == "cpu" and bool((hidden.sum(dim=1) != self.count).any()):
            raise ContractError(
                f"Mask.count is {self.count}, but the rows hide {sorted(set(hidden.sum(dim=1).tolist()))}"
            )
        for name in ("visibility", "weights", "scores", "measured"):
            value = getattr(self, name)
            if value is not None and value.shape != hidden.shape:
                raise ContractError(f"Mask.{name} is {list(value.shape)}, but Mask.hidden is {list(hidden.shape)}")

    @classmethod
    def hide_top(cls, scores: Tensor, count: int, ties: Tensor | None = None) -> Mask:
        """Hide the `count` patches of each image whose `scores` [B, N] are highest.

        Equal scores are settled by the noise `ties` [B, N], the larger hidden first; without it by a fixed
        pseudo-random order, which differs by image. Never by position: a strategy with few distinct scores would
        always hide the same corner. NaN counts as the highest score. Scores are ranked, and kept, in float32. Raises
        ContractError for an impossible count.
        """
        _check_scores(scores, count)
        scores = scores.to(torch.float32)
        if ties is not None and ties.shape != scores.shape:
            raise ContractError(f"ties are {list(ties.shape)}, but the scores are {list(scores.shape)}")
        if count == scores.shape[1] or count == 0:  # nothing to rank
            return cls(torch.full(scores.shape, count > 0, device=scores.device), count, scores=scores)
        if ties is None:
            ties = torch.rand(scores.shape, generator=stream(0, "ties")).to(scores.device)
        by_noise = ties.argsort(dim=1, descending=True)
        # "+ 0.0" makes -0.0 and 0.0 the equals that a radix sort would tell apart.
        settled = scores.detach().gather(1, by_noise) + 0.0
        order = by_noise.gather(1, settled.argsort(dim=1, descending=True, stable=True))
        hidden = torch.zeros(scores.shape, dtype=torch.bool, device=scores.device)
        hidden.scatter_(1, order[:, :count], True)
        return cls(hidden, count, scores=scores)

    @classmethod
    def soft(cls, scores: Tensor, count: int, ties: Tensor | None = None) -> Mask:
        """Let every patch through, scaled by 1 - `scores`: chances of hiding [B, N] in [0, 1], differentiable.

        A patch counts in the loss by its chance of hiding. `hidden` marks the `count` patches that the hard mask of
        the same scores and `ties` hides.
        """
        top = cls.hide_top(scores, count, ties)
        scores = scores.to(torch.float32)
        return cls(top.hidden, count, visibility=1.0 - scores, weights=scores, scores=scores)

    def inverted(self) -> Mask:
        """The mask that hides what this one shows, and shows what it hides; of a soft one, with 1 - visibility.

        Its weights are those that follow from what it hides, also where this one's were set otherwise, and hiding the
        top of its scores gives it again.
        """
        patches, soft = self.hidden.shape[1], self.visibility is not None
        inverted = Mask(
            ~self.hidden,
            None if self.count is None else patches - self.count,
            visibility=1.0 - self.visibility if self.visibility is not None else None,
            scores=None if self.scores is None else 1.0 - self.scores if soft else -self.scores,
        )
        if self.measured is None:
            return inverted
        return attrs.evolve(inverted, valid=self.valid, measured=self.measured).weighing(self.measured)

    def over(self, valid: Tensor, grid: Sequence[int]) -> Mask:
        """The same mask over images of which only the `valid` pixels, bool [B, C, *size], were measured.

        A patch of the `grid` without any weighs nothing from here on, also in what `inverted`, `enlarge` and
        `weighing` make of it. Raises ContractError where that is no such tensor.
        """
        size = valid.shape[2:]
        fits = valid.dtype == torch.bool and valid.shape[0] == self.hidden.shape[0] and len(size) == len(grid)
        if not fits or any(side % units for side, units in zip(size, grid, strict=True)):
            raise ContractError(
                f"extras['valid'] must be bool [{self.hidden.shape[0]}, C, *size] with a size that the grid "
                f"{tuple(grid)} divides, got {valid.dtype} {list(valid.shape)}"
            )
        cut = [part for side, units in zip(size, grid, strict=True) for part in (units, side // units)]
        units = valid.any(dim=1).reshape(-1, *cut)  # [B, rows, height of a patch, columns, width, ...]
        measured = units.any(dim=tuple(range(2, units.ndim, 2))).reshape(self.hidden.shape)
        return attrs.evolve(self, valid=valid, measured=measured).weighing(measured)

    def weighing(self, shares: Tensor) -> Mask:
        """The same mask, each patch weighing only its share, `shares` [B, N] from 0 to 1, of what it does."""
        return attrs.evolve(self, weights=self.weights * shares)

    @functools.cached_property
    def visible_index(self) -> Tensor:
        """[B, V] int64: the visible patches of each image, in ascending order."""
        if self.count is None:
            raise ContractError("a mask whose count differs by image has no rectangular visible_index [B, V]")
        visible = self.hidden.shape[1] - self.count
        return self.hidden.to(torch.uint8).argsort(dim=1, stable=True)[:, :visible]

    def keep(self, tokens: Tensor) -> Tensor:
        """The visible of `tokens` [B, N, ...] as [B, V, ...], in ascending order of position."""
        index = self.visible_index
        trailing = (1,) * (tokens.ndim - 2)
        return tokens.gather(1, index.reshape(*index.shape, *trailing).expand(*index.shape, *tokens.shape[2:]))

    def restore(self, tokens: Tensor, filler: Tensor) -> Tensor:
        """Put the visible `tokens` [B, V, D] back among `filler` (broadcastable to [B, N, D]) as [B, N, D].

        A sequence that is whole already, as a dense encoder or a soft mask leaves it, passes through unchanged.
        """
        patches = self.hidden.shape[1]
        if tokens.shape[1] == patches:
            return tokens
        index = self.visible_index
        if tokens.shape[1] != index.shape[1]:
            raise ContractError(
                f"restore expects {index.shape[1]} visible or all {patches} tokens an image, got {tokens.shape[1]}"
            )
        whole = filler.to(tokens.dtype).expand(tokens.shape[0], patches, tokens.shape[2])
        return whole.scatter(1, index[..., None].expand(-1, -1, tokens.shape[2]), tokens)

    def cover(self, tokens: Tensor, filler: Tensor) -> Tensor:
        """Replace the hidden of `tokens` [B, N, ...] by `filler` (broadcastable) where they are.

        No arithmetic is done, since NaN would survive it.
        """
        hidden = self.hidden.reshape(*self.hidden.shape, *(1,) * (tokens.ndim - 2))
        return torch.where(hidden, filler.to(tokens.dtype), tokens)

    def enlarge(self, grid: Sequence[int], factor: int | Sequence[int]) -> Mask:
        """The same mask on a finer grid: each unit of `grid` becomes `factor` tokens along each of its dimensions.

        `grid` may have any number of dimensions; their product is N. Returns a mask of [B, prod(grid * factor)].
        """
        factors = self._factors(grid, factor)
        return Mask(
            _finer(self.hidden, grid, factors),
            None if self.count is None else self.count * math.prod(factors),
            visibility=None if self.visibility is None else _finer(self.visibility, grid, factors),
            weights=_finer(self.weights, grid, factors),
            scores=None if self.scores is None else _finer(self.scores, grid, factors),
            valid=self.valid,
            measured=None if self.measured is None else _finer(self.measured, grid, factors),
        )

    def hidden_on(self, grid: Sequence[int], factor: int | Sequence[int]) -> Tensor:
        """[B, prod(grid * factor)] bool: `hidden` alone on the finer grid of `enlarge`, e.g. for pixels."""
        return _finer(self.hidden, grid, self._factors(grid, factor))

    def mean(self, values: Tensor) -> Tensor:
        """The mean [] of `values` [B, N] by the mask's weights, with gradient: what an objective makes its loss of.

        The weights are summed over all processes, so that the average of what each of them gets is the mean over the
        global batch, even where one's images weigh more than another's. A mask that weighs nothing gives 0.
        """
        weights = self.weights.float()
        whole = processes.total(weights.sum()) / processes.world()
        return (values * weights).sum() / whole.clamp(min=1e-6)

    def _factors(self, grid: Sequence[int], factor: int | Sequence[int]) -> tuple[int, ...]:
        factors = (factor,) * len(grid) if isinstance(factor, int) else tuple(factor)
        if math.prod(grid) != self.hidden.shape[1] or len(factors) != len(grid) or min(factors, default=1) < 1:
            raise ContractError(
                f"cannot enlarge a mask of {self.hidden.shape[1]} units on grid {tuple(grid)} by {factors}"
            )
        return factors


def _finer(values: Tensor, grid: Sequence[int], factors: Sequence[int]) -> Tensor:
    """Values [B, N] of the units of a grid, repeated for each of their tokens."""
    values = values.reshape(-1, *grid)
    for dimension, times in enumerate(factors, start=1):
        values = values.repeat_interleave(times, dim=dimension)
    return values.flatten(1)


def _check_scores(scores: Tensor, count: int) -> None:
    if scores.ndim != 2 or not scores.is_floating_point():
        raise ContractError(f"scores must be floating point [B, N], got {scores.dtype} {list(scores.shape)}")
    if not 0 <= count <= scores.shape[1]:
        raise ContractError(f"cannot hide {count} of {scores.shape[1]} patches")
