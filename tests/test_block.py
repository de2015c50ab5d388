"""Blockwise masking: BEiT's own figures before completion, exact counts after it."""

from __future__ import annotations

import time
from types import SimpleNamespace
from typing import Any

import attrs
import maskzoo_block
import pytest
import torch
from torch import Tensor

from maskzoo import MaskingContext, RecipeError


def objective_on(*grid: int) -> Any:
    """The little of an objective that choosing patches needs."""
    return SimpleNamespace(backbone=SimpleNamespace(grid=grid))


def context_on(*grid: int, batch: int, ratio: float, seed: int = 0) -> MaskingContext:
    return MaskingContext.of(objective_on(*grid), torch.zeros(batch, 1, 1, 1), ratio, seed=seed, step=0)


def draws(batch: int, rounds: int = 24, tries: int = 10, seed: int = 0) -> Tensor:
    return torch.rand(batch, rounds, tries, 4, generator=torch.Generator().manual_seed(seed))


def hidden_neighbours(hidden: Tensor) -> float:
    """The share of neighbours, below and to the right, of hidden patches [B, H, W] that are hidden too."""
    pairs = (hidden[:, 1:] & hidden[:, :-1]).sum() + (hidden[:, :, 1:] & hidden[:, :, :-1]).sum()
    return float(pairs / (2 * hidden.sum()))


def test_blocks_reach_the_counts_of_the_paper_before_completion() -> None:
    hidden = maskzoo_block.rectangles((14, 14), 75, draws(6000), least=16)
    counts = hidden.flatten(1).sum(dim=1)
    assert hidden.shape == (6000, 14, 14)
    assert counts.max() == 75
    assert float(counts.double().mean()) == pytest.approx(74.49, abs=0.2)
    assert 0.65 <= float((counts == 75).double().mean()) <= 0.70


@pytest.mark.slow
def test_more_rounds_than_the_default_change_nothing() -> None:
    default = attrs.fields_dict(maskzoo_block.Block)["rounds"].default
    for grid, count, least in (((14, 14), 75, 16), ((14, 14), 147, 16), ((8, 8), 48, 5)):
        many = draws(1000, rounds=default + 16)
        few = maskzoo_block.rectangles(grid, count, many[:, :default], least)
        assert few.equal(maskzoo_block.rectangles(grid, count, many, least))


@pytest.mark.parametrize("grid", [(14, 14), (7, 13), (3, 20), (2, 2)])
def test_every_block_is_a_rectangle_strictly_smaller_than_the_grid(grid: tuple[int, int]) -> None:
    height, width = grid
    one_round = draws(4000, rounds=1)
    one = maskzoo_block.rectangles(grid, height * width, one_round, least=1, aspect=0.05)
    rows, columns = one.any(dim=2), one.any(dim=1)
    assert one.equal(rows[:, :, None] & columns[:, None, :])
    for sides in (rows, columns):  # no gaps
        assert int((sides[:, 1:] & ~sides[:, :-1]).sum(dim=1).add(sides[:, 0]).max()) <= 1
    assert int(rows.sum(dim=1).max()) == height - 1
    assert int(columns.sum(dim=1).max()) == width - 1
    assert one[:, 0].any()
    assert one[:, -1].any()
    assert one[:, :, 0].any()
    assert one[:, :, -1].any()


def test_blocks_keep_to_the_smallest_and_the_largest_size_and_to_their_aspect() -> None:
    one = maskzoo_block.rectangles((40, 40), 400, draws(4000, rounds=1), least=100, most=200, aspect=0.5)
    sizes = one.flatten(1).sum(dim=1)
    assert 80 <= int(sizes.min()) <= 110  # sides are rounded, so the area is only near its bounds
    assert 190 <= int(sizes.max()) <= 200  # never above
    ratios = one.any(dim=2).sum(dim=1) / one.any(dim=1).sum(dim=1)
    assert 0.45 <= float(ratios.min()) <= 0.55
    assert 1.8 <= float(ratios.max()) <= 2.2
    assert float(ratios.log().mean()) == pytest.approx(0, abs=0.05)


def test_an_image_without_a_valid_try_is_finished() -> None:
    middle = torch.full((1, 3, 1, 4), 0.5)
    middle[:, 1, :, 0] = 0.0  # the smallest block, in the same place: nothing new
    middle[:, 2, :, 2:] = 0.0  # a block in the corner
    once, thrice, corner = (
        int(maskzoo_block.rectangles((8, 8), 40, middle[:, rounds], least=4).sum())
        for rounds in ([0], [0, 1, 2], [0, 2])
    )
    assert 0 < once < corner
    assert thrice == once


@pytest.mark.parametrize("grid", [(1, 1), (1, 9), (9, 1), (7, 13), (2, 2), (14, 14)])
@pytest.mark.parametrize("ratio", [0.0, 0.01, 0.4, 0.75, 0.99, 1.0])
def test_the_count_is_exact_on_every_grid(grid: tuple[int, int], ratio: float) -> None:
    strategy = maskzoo_block.Block()
    strategy.setup(objective_on(*grid))
    mask = strategy.mask(context_on(*grid, batch=64, ratio=ratio))
    patches = grid[0] * grid[1]
    assert mask.count == patches - int(patches * (1 - ratio))
    assert set(mask.hidden.sum(dim=1).tolist()) == {mask.count}


def test_completion_leaves_the_blocks_hidden() -> None:
    strategy, context = maskzoo_block.Block(least=16), context_on(14, 14, batch=64, ratio=75 / 196)
    noise = context.noise(strategy.rounds, strategy.tries, 4, name="blocks")
    blocks = maskzoo_block.rectangles((14, 14), context.count, noise, least=16)
    assert not (blocks.flatten(1) & ~strategy.mask(context).hidden).any()


def test_the_smallest_block_grows_with_the_grid() -> None:
    context = context_on(14, 14, batch=16, ratio=0.4)
    assert maskzoo_block.Block().mask(context).hidden.equal(maskzoo_block.Block(least=16).mask(context).hidden)
    context = context_on(8, 8, batch=16, ratio=0.4)
    assert maskzoo_block.Block().mask(context).hidden.equal(maskzoo_block.Block(least=5).mask(context).hidden)


def test_masks_follow_the_seed_and_the_step_and_differ_by_image() -> None:
    strategy, context = maskzoo_block.Block(), context_on(14, 14, batch=32, ratio=0.4)
    hidden = strategy.mask(context).hidden
    assert hidden.equal(strategy.mask(context).hidden)
    assert not hidden.equal(strategy.mask(attrs.evolve(context, seed=1)).hidden)
    assert not hidden.equal(strategy.mask(attrs.evolve(context, step=1)).hidden)
    assert len({tuple(row) for row in hidden.tolist()}) == 32


def test_hidden_patches_lie_together() -> None:
    context = context_on(14, 14, batch=200, ratio=75 / 196)
    hidden = maskzoo_block.Block().mask(context).hidden.reshape(-1, 14, 14)
    shuffled = context.noise().argsort(dim=1).lt(context.count).reshape(-1, 14, 14)
    assert hidden_neighbours(shuffled) < 0.4
    assert hidden_neighbours(hidden) > 0.7


def test_a_large_batch_takes_a_fraction_of_a_second() -> None:
    strategy, context = maskzoo_block.Block(), context_on(14, 14, batch=256, ratio=75 / 196)
    seconds = []
    for _ in range(5):  # the best of them: other programs may be busy on this machine
        begun = time.perf_counter()
        strategy.mask(context)
        seconds.append(time.perf_counter() - begun)
    assert min(seconds) < 0.5


@pytest.mark.parametrize("grid", [(4,), (4, 4, 4)])
def test_a_grid_without_rectangles_is_refused(grid: tuple[int, ...]) -> None:
    with pytest.raises(RecipeError, match="two dimensions"):
        maskzoo_block.Block().setup(objective_on(*grid))


@pytest.mark.parametrize(
    "options", [{"least": 0}, {"most": 0}, {"aspect": 0.0}, {"aspect": 1.5}, {"tries": 0}, {"rounds": 0}]
)
def test_an_impossible_option_is_refused_in_a_sentence_that_names_it(options: dict[str, Any]) -> None:
    (option,) = options
    with pytest.raises(ValueError, match=f"^{option} is .*, but "):
        maskzoo_block.Block(**options)
