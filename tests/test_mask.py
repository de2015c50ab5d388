"""The mask itself: which patches it hides, and how tokens go through it and come back."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from helpers import chance_of_uniform
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from maskzoo import ContractError, Mask

GRIDS = [(1,), (9,), (1, 1), (1, 9), (9, 1), (2, 2), (7, 13), (3, 4, 5), (1, 1, 1)]


def uniform(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


@st.composite
def grids_and_counts(draw: st.DrawFn) -> tuple[tuple[int, ...], int]:
    """A grid, and a count of its patches, often at the ends."""
    grid = draw(st.sampled_from(GRIDS))
    patches = math.prod(grid)
    ends = sorted({0, min(1, patches), patches - 1, patches})
    return grid, draw(st.sampled_from(ends) | st.integers(0, patches))


cases = grids_and_counts()
seeds = st.integers(0, 2**31)
without_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
patient = settings(deadline=None)  # an example may take long on a busy machine


# -------------------------------------------------------------------------------------------------- choosing the hidden
@patient
@given(cases, seeds, st.sampled_from([torch.float32, torch.float64, torch.bfloat16, torch.float16]))
def test_the_highest_scores_are_hidden_and_exactly_as_many_as_asked(
    case: tuple[tuple[int, ...], int], seed: int, dtype: torch.dtype
) -> None:
    grid, count = case
    scores = uniform(3, math.prod(grid), seed=seed).to(dtype)
    mask = Mask.hide_top(scores, count)
    assert mask.count == count
    assert mask.hidden.dtype == torch.bool
    assert mask.hidden.sum(dim=1).tolist() == [count] * 3
    assert mask.scores.dtype == torch.float32
    assert mask.scores.equal(scores.float())
    assert mask.visibility is None
    assert mask.weights.equal(mask.hidden.float())
    for row, hidden in zip(scores.float(), mask.hidden, strict=True):
        if 0 < count < len(row):
            assert row[hidden].min() >= row[~hidden].max()


@patient
@given(cases, seeds)
def test_equal_scores_are_settled_by_the_larger_noise(case: tuple[tuple[int, ...], int], seed: int) -> None:
    grid, count = case
    patches = math.prod(grid)
    ties = uniform(3, patches, seed=seed)
    mask = Mask.hide_top(torch.full((3, patches), 0.5), count, ties=ties)
    assert mask.hidden.equal(Mask.hide_top(ties, count).hidden)
    # Noise has no say where scores differ.
    scores = uniform(3, patches, seed=seed + 1)
    assert Mask.hide_top(scores, count, ties=ties).hidden.equal(Mask.hide_top(scores, count).hidden)


def test_noise_settles_only_the_scores_at_the_edge() -> None:
    scores = torch.tensor([[0.0, 1.0, 1.0, 1.0, 2.0]])
    mask = Mask.hide_top(scores, 2, ties=torch.tensor([[0.9, 0.1, 0.3, 0.2, 0.0]]))
    assert mask.hidden.tolist() == [[False, False, True, False, True]]


@pytest.mark.parametrize("count", [1, 10, 36])
def test_without_noise_equal_scores_are_hidden_equally_often_everywhere(count: int) -> None:
    hidden = Mask.hide_top(torch.zeros(5000, 37), count).hidden
    assert chance_of_uniform(hidden) > 1e-4
    assert hidden.equal(Mask.hide_top(torch.zeros(5000, 37), count).hidden)


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=[pytest.mark.gpu, without_gpu])])
def test_zero_and_minus_zero_are_equals(device: str) -> None:
    scores = torch.zeros(5000, 20, device=device)
    scores[:, ::2] = -0.0
    assert chance_of_uniform(Mask.hide_top(scores, 10).hidden.cpu()) > 1e-4
    ties = uniform(5000, 20).to(device)
    assert Mask.hide_top(scores, 10, ties=ties).hidden.equal(Mask.hide_top(ties, 10).hidden)


def test_many_equal_scores_in_bfloat16_still_give_an_exact_count() -> None:
    scores = torch.sigmoid(uniform(64, 196) / 10).to(torch.bfloat16)
    assert scores.unique().numel() < 20
    assert set(Mask.hide_top(scores, 147).hidden.sum(dim=1).tolist()) == {147}
    assert set(Mask.soft(scores, 147).hidden.sum(dim=1).tolist()) == {147}


def test_infinite_scores_are_ranked_and_nan_counts_as_the_highest() -> None:
    scores = torch.tensor([[-math.inf, math.inf, 0.0, math.nan]])
    hidden = [Mask.hide_top(scores, count).hidden.tolist()[0] for count in (1, 2, 3)]
    assert hidden == [[False, False, False, True], [False, True, False, True], [False, True, True, True]]


def test_ranking_draws_nothing_from_the_global_generator() -> None:
    before = torch.get_rng_state()
    Mask.hide_top(torch.zeros(4, 9), 3)
    assert torch.get_rng_state().equal(before)


def test_no_images_is_an_empty_mask() -> None:
    mask = Mask.hide_top(torch.zeros(0, 9), 3)
    assert mask.hidden.shape == (0, 9)
    assert mask.visible_index.shape == (0, 6)


# ------------------------------------------------------------------------------------------------ tokens there and back
@patient
@given(cases, seeds)
def test_the_visible_index_is_ascending_and_complements_the_hidden(
    case: tuple[tuple[int, ...], int], seed: int
) -> None:
    grid, count = case
    patches = math.prod(grid)
    mask = Mask.hide_top(uniform(3, patches, seed=seed), count)
    assert mask.visible_index.shape == (3, patches - count)
    assert mask.visible_index.dtype == torch.int64
    for index, hidden in zip(mask.visible_index, mask.hidden, strict=True):
        assert index.tolist() == [position for position in range(patches) if not hidden[position]]


@patient
@given(cases, seeds, st.sampled_from([(), (1,), (3,), (2, 3)]))
def test_tokens_come_back_to_their_places(
    case: tuple[tuple[int, ...], int], seed: int, trailing: tuple[int, ...]
) -> None:
    grid, count = case
    patches = math.prod(grid)
    mask = Mask.hide_top(uniform(3, patches, seed=seed), count)
    tokens = uniform(3, patches, *trailing, seed=seed + 1)
    visible = mask.keep(tokens)
    assert visible.shape == (3, patches - count, *trailing)
    for kept, row, hidden in zip(visible, tokens, mask.hidden, strict=True):
        assert kept.equal(row[~hidden])
    if len(trailing) == 1:
        filler = torch.full(trailing, -1.0)
        restored = mask.restore(visible, filler)
        assert restored[~mask.hidden].equal(tokens[~mask.hidden])
        assert (restored[mask.hidden] == -1).all()
        assert restored.equal(mask.cover(tokens, filler))


def test_restore_takes_a_filler_for_each_position_and_the_dtype_of_the_tokens() -> None:
    mask = Mask.hide_top(uniform(2, 9), 4)
    filler = uniform(9, 5, seed=1)
    restored = mask.restore(torch.zeros(2, 5, 5, dtype=torch.bfloat16), filler)
    assert restored.dtype == torch.bfloat16
    for row, hidden in zip(restored, mask.hidden, strict=True):
        assert row[hidden].equal(filler[hidden].bfloat16())
        assert not row[~hidden].any()


def test_gradients_reach_the_tokens_that_are_seen_and_the_filler_of_those_that_are_not() -> None:
    mask = Mask.hide_top(uniform(2, 9), 4)
    tokens, filler = torch.zeros(2, 9, 3, requires_grad=True), torch.zeros(3, requires_grad=True)
    mask.restore(mask.keep(tokens), filler).sum().backward()
    assert tokens.grad is not None
    assert filler.grad is not None
    assert tokens.grad[..., 0].equal((~mask.hidden).float())
    assert filler.grad.tolist() == [8.0] * 3


def test_a_whole_sequence_passes_through_restore_unchanged() -> None:
    mask = Mask.hide_top(uniform(2, 9), 4)
    tokens = uniform(2, 9, 3)
    assert mask.restore(tokens, torch.full((3,), -1.0)) is tokens


def test_a_sequence_of_another_length_is_refused() -> None:
    with pytest.raises(ContractError, match="expects 5 visible or all 9"):
        Mask.hide_top(uniform(2, 9), 4).restore(torch.zeros(2, 6, 3), torch.zeros(3))


@patient
@given(cases, seeds)
def test_cover_lets_nothing_of_the_hidden_through_not_even_nan(case: tuple[tuple[int, ...], int], seed: int) -> None:
    grid, count = case
    mask = Mask.hide_top(uniform(3, math.prod(grid), seed=seed), count)
    tokens = torch.ones(3, math.prod(grid), 2)
    tokens[mask.hidden] = math.nan
    tokens.requires_grad_()
    covered = mask.cover(tokens, torch.zeros(2))
    assert covered[..., 1].equal((~mask.hidden).float())
    (gradient,) = torch.autograd.grad(covered.sum(), tokens)
    assert gradient[..., 0].equal((~mask.hidden).float())


def test_a_count_that_differs_by_image_can_be_covered_and_enlarged_but_not_kept() -> None:
    mask = Mask(torch.tensor([[True, False, False, True], [False, False, False, True]]), None)
    assert mask.cover(torch.ones(2, 4), torch.zeros(())).tolist() == [[0, 1, 1, 0], [1, 1, 1, 0]]
    finer = mask.enlarge((2, 2), 2)
    assert finer.count is None
    assert finer.hidden.sum(dim=1).tolist() == [8, 4]
    for use in (lambda: mask.visible_index, lambda: mask.keep(torch.ones(2, 4))):
        with pytest.raises(ContractError, match="differs by image"):
            use()
    whole = torch.ones(2, 4, 3)
    assert mask.restore(whole, torch.zeros(3)) is whole


# ------------------------------------------------------------------------------------------------------------ enlarging
@pytest.mark.parametrize(
    ("grid", "factor"),
    [((5,), 3), ((2, 3), 2), ((3, 2), (1, 4)), ((1, 1), 7), ((7, 13), (2, 1)), ((2, 3, 2), 2), ((2, 1, 3), (3, 2, 1))],
)
def test_a_mask_is_enlarged_as_by_a_kronecker_product(grid: tuple[int, ...], factor: int | tuple[int, ...]) -> None:
    patches = math.prod(grid)
    factors = (factor,) * len(grid) if isinstance(factor, int) else factor
    count = patches // 2
    mask = Mask.soft(uniform(3, patches), count)
    finer = mask.enlarge(grid, factor)
    assert finer.count == count * math.prod(factors)
    assert finer.hidden.dtype == torch.bool
    assert finer.hidden.sum(dim=1).tolist() == [finer.count] * 3
    for name in ("hidden", "weights", "scores", "visibility"):
        for coarse, fine in zip(getattr(mask, name), getattr(finer, name), strict=True):
            expected = np.kron(coarse.reshape(grid).numpy(), np.ones(factors, dtype=coarse.numpy().dtype))
            assert np.array_equal(fine.numpy(), expected.ravel()), name


def test_enlarging_by_one_changes_nothing_and_leaves_out_what_is_not_there() -> None:
    hidden = torch.tensor([[True, False]])
    finer = Mask(hidden, 1).enlarge((1, 2), 1)
    assert finer.hidden.equal(hidden)
    assert finer.visibility is None
    assert finer.scores is None


def test_weights_of_ones_own_are_enlarged_too() -> None:
    finer = Mask(torch.tensor([[True, False]]), 1, weights=torch.tensor([[0.25, 0.5]])).enlarge((2,), 2)
    assert finer.weights.tolist() == [[0.25, 0.25, 0.5, 0.5]]


def test_an_enlarged_soft_mask_keeps_its_gradient() -> None:
    scores = uniform(2, 4).requires_grad_()
    finer = Mask.soft(scores, 2).enlarge((2, 2), 3)
    assert finer.visibility is not None
    (gradient,) = torch.autograd.grad(finer.visibility.sum(), scores)
    assert gradient.tolist() == [[-9.0] * 4] * 2


@pytest.mark.parametrize(
    ("grid", "factor"),
    [((3, 3), 2), ((2, 2), (2,)), ((2, 2), (2, 2, 2)), ((2, 2), 0), ((2, 2), (1, -1)), ((4,), (2, 2))],
)
def test_a_grid_or_a_factor_that_does_not_fit_is_refused(grid: tuple[int, ...], factor: Any) -> None:
    with pytest.raises(ContractError, match="cannot enlarge"):
        Mask.hide_top(uniform(2, 4), 2).enlarge(grid, factor)


# ----------------------------------------------------------------------------------------------------------- soft masks
@patient
@given(cases, seeds)
def test_a_soft_mask_shows_by_one_minus_the_score_and_counts_by_the_score(
    case: tuple[tuple[int, ...], int], seed: int
) -> None:
    grid, count = case
    scores = uniform(3, math.prod(grid), seed=seed)
    mask = Mask.soft(scores, count)
    assert mask.count == count
    assert mask.hidden.equal(Mask.hide_top(scores, count).hidden)
    assert mask.visibility is not None
    assert mask.visibility.equal(1 - scores)
    assert mask.weights.equal(scores)


def test_gradient_reaches_the_scores_through_visibility_and_weights() -> None:
    scores = uniform(2, 9).requires_grad_()
    mask = Mask.soft(scores, 4)
    assert mask.visibility is not None
    (through_visibility,) = torch.autograd.grad(mask.visibility.sum(), scores)
    (through_weights,) = torch.autograd.grad(mask.weights.sum(), scores)
    assert (through_visibility == -1).all()
    assert (through_weights == 1).all()
    assert not mask.hidden.requires_grad


def test_a_soft_mask_of_bfloat16_scores_is_float32() -> None:
    mask = Mask.soft(uniform(2, 9).bfloat16(), 4)
    assert mask.visibility is not None
    assert mask.visibility.dtype == mask.weights.dtype == torch.float32


def test_a_hard_mask_keeps_its_scores_with_their_graph() -> None:
    scores = uniform(2, 9).requires_grad_()
    mask = Mask.hide_top(scores, 4)
    assert mask.scores is scores
    assert not mask.weights.requires_grad


# ------------------------------------------------------------------------------------------------------------ bad input
@pytest.mark.parametrize(
    "scores",
    [torch.zeros(9), torch.zeros(2, 3, 3), torch.zeros(2, 9, dtype=torch.int64), torch.zeros(2, 9, dtype=torch.bool)],
)
def test_scores_that_are_no_numbers_by_image_and_patch_are_refused(scores: Tensor) -> None:
    for make in (Mask.hide_top, Mask.soft):
        with pytest.raises(ContractError, match=r"floating point \[B, N\]"):
            make(scores, 1)


@pytest.mark.parametrize("count", [-1, 10])
def test_an_impossible_count_is_refused(count: int) -> None:
    for make in (Mask.hide_top, Mask.soft):
        with pytest.raises(ContractError, match=f"cannot hide {count} of 9"):
            make(torch.zeros(2, 9), count)
    with pytest.raises(ContractError, match=f"count is {count}"):
        Mask(torch.zeros(2, 9, dtype=torch.bool), count)


@pytest.mark.parametrize("hidden", [torch.zeros(2, 9), torch.zeros(9, dtype=torch.bool), torch.zeros(2, 3, 3).bool()])
def test_hidden_must_be_bool_by_image_and_patch(hidden: Tensor) -> None:
    with pytest.raises(ContractError, match="must be a bool tensor"):
        Mask(hidden, 0)


@pytest.mark.parametrize("name", ["visibility", "weights", "scores"])
def test_what_goes_with_the_hidden_must_have_their_shape(name: str) -> None:
    with pytest.raises(ContractError, match=f"Mask.{name} is"):
        Mask(torch.zeros(2, 9, dtype=torch.bool), 0, **{name: torch.zeros(2, 8)})
