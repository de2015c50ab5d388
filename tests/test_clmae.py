"""CL-MAE's masker: its losses' published values, and that it does what its factor says."""

from __future__ import annotations

import math

import pytest
import torch
from helpers import random_images, strategy_of, tiny_objective
from maskzoo_clmae import binary_loss, diversity_loss, kl_loss
from torch import Tensor

from maskzoo import Mask, MaskingContext, Outcome, RecipeError
from maskzoo.train import LearnerStep


@pytest.mark.parametrize(("keep", "value"), [(0.5, 0.3008), (0.4, 0.2126), (0.25, 0.0343), (0.1, 0.00116)])
def test_binary_term_has_the_published_values(keep: float, value: float):
    assert binary_loss(torch.full((3, 7), keep), 0.12).item() == pytest.approx(value, abs=5e-5)


@pytest.mark.parametrize(("keep", "value"), [(0.5, 0.1438), (0.4, 0.0541), (0.3, 0.0064), (0.25, 0.0)])
def test_kl_term_has_the_published_values(keep: float, value: float):
    masks = torch.full((5, 8), keep)
    assert kl_loss(masks, 0.25, "mean").item() == pytest.approx(value, abs=5e-5)
    assert kl_loss(masks, 0.25, "sum").item() == pytest.approx(5 * value, abs=3e-4)


def test_kl_at_the_start_of_published_training_is_the_dominant_term():
    assert 0.1 * kl_loss(torch.full((256, 196), 0.5), 0.25, "sum").item() == pytest.approx(3.68, abs=0.005)


@pytest.mark.parametrize("extreme", [0.0, 1.0])
def test_kl_is_finite_where_everything_is_kept_or_hidden(extreme: float):
    keep = torch.full((2, 4), extreme, requires_grad=True)
    kl_loss(keep, 0.25, "sum").backward()
    assert keep.grad.isfinite().all()


def test_diversity_equals_a_double_loop_over_pairs():
    keep = torch.rand(7, 20, generator=torch.Generator().manual_seed(0))
    pairs = [math.exp(-0.1 * (keep[a] - keep[b]).norm()) for a in range(7) for b in range(a)]
    assert diversity_loss(keep).item() == pytest.approx(sum(pairs) / len(pairs), abs=1e-6)


def test_diversity_of_independent_masks_has_the_derived_value():
    generator = torch.Generator().manual_seed(0)
    for patches, value in ((196, 0.849), (64, 1.225)):
        masks = (torch.rand(200, patches, generator=generator) < 0.25).float()
        assert 2 * diversity_loss(masks).item() == pytest.approx(value, abs=0.01)


def test_diversity_is_safe_for_identical_rows_and_for_one_image():
    same = torch.full((4, 9), 0.5, requires_grad=True)
    loss = diversity_loss(same)
    loss.backward()
    assert loss.item() == 1.0
    assert same.grad.isfinite().all()
    single = torch.full((1, 9), 0.5, requires_grad=True)
    assert diversity_loss(single).item() == 0.0


def test_a_new_masker_is_undecided_and_learns_in_a_batch_of_one():
    objective = tiny_objective()
    strategy = strategy_of("clmae", objective)
    context = MaskingContext.of(objective, random_images(1), 0.75, step=0)
    scores = strategy.scores(context)
    assert scores.dtype == torch.float32
    assert (scores - 0.5).abs().mean() < 0.25
    loss, figures = LearnerStep(strategy)(context)
    loss.backward(inputs=list(strategy.parameters()))
    assert all(parameter.grad.isfinite().all() for parameter in strategy.parameters())
    assert figures["clmae/diversity"].item() == 0.0


def test_the_kl_target_follows_the_ratio():
    objective = tiny_objective()
    strategy = strategy_of({"use": "clmae", "kl_weight": 1.0, "kl_reduction": "mean"}, objective)
    for ratio in (0.25, 0.6, 0.75):
        context = MaskingContext.of(objective, random_images(2), ratio, step=0)
        mask = Mask.soft(torch.full((2, 64), ratio), 16)
        outcome = Outcome(loss=torch.zeros(()), latent=torch.zeros(()))
        assert strategy.terms(context, mask, outcome)["kl"].item() == pytest.approx(0.0, abs=1e-6)


def test_the_loss_is_the_factor_times_the_reconstruction_plus_the_rest():
    objective = tiny_objective()
    strategy = strategy_of("clmae", objective)
    mask = Mask.soft(torch.rand(3, 64, generator=torch.Generator().manual_seed(0)), 48)
    totals = {}
    for factor in (1.0, 0.0, -1.0):
        context = MaskingContext.of(objective, random_images(3), 0.75, factor=factor, step=0)
        totals[factor] = strategy.loss(context, mask, Outcome(loss=torch.tensor(2.5), latent=torch.zeros(()))).item()
    assert totals[1.0] - totals[0.0] == pytest.approx(2.5, abs=1e-5)
    assert totals[-1.0] - totals[0.0] == pytest.approx(-2.5, abs=1e-5)


def test_heads_that_do_not_divide_the_width_are_refused():
    with pytest.raises(ValueError, match="5 heads do not divide the 24 channels"):
        strategy_of({"use": "clmae", "heads": 5}, tiny_objective())


def test_an_unknown_reduction_is_refused():
    with pytest.raises(RecipeError, match=r"strategy\.kl_reduction: expected one of 'sum', 'mean', got 'max'"):
        strategy_of({"use": "clmae", "kl_reduction": "max"})


def half_textured(count: int, seed: int) -> Tensor:
    """Images [count, 3, 16, 16] of a flat and a textured half; which is left and which right differs by image."""
    generator = torch.Generator().manual_seed(seed)
    images = torch.randn(count, 3, 16, 16, generator=generator)
    flat = torch.rand(count, generator=generator) < 0.5
    columns = torch.arange(16) < 8
    images[(flat[:, None] == columns)[:, None, None, :].expand_as(images)] = 0.0
    return images


@pytest.mark.parametrize(("factor", "direction"), [(1.0, -1), (-1.0, 1)])
@pytest.mark.sampled(1)
def test_a_partner_lowers_the_reconstruction_loss_and_an_adversary_raises_it(factor: float, direction: int):
    """The masker trained alone, against a model that stays as it is, on images half flat and half textured."""
    torch.manual_seed(0)
    objective = tiny_objective(size=(16, 16), target="pixels")
    for parameter in objective.parameters():
        parameter.requires_grad_(False)
    # A model that predicts the mean: flat patches cost nothing, textured ones their variance.
    objective.decoder_pred.weight.zero_()
    strategy = strategy_of({"use": "clmae", "depth": 2, "kl_reduction": "mean"}, objective)
    optimizer = torch.optim.AdamW(strategy.parameters(), lr=2e-3)
    step = LearnerStep(strategy)
    held_out = half_textured(64, seed=999)

    def loss_under_its_masks() -> float:
        context = MaskingContext.of(objective, held_out, 0.5, factor=factor, step=0)
        with torch.no_grad():
            return objective(held_out, strategy.mask(context)).loss.item()

    before = loss_under_its_masks()
    for number in range(60):
        context = MaskingContext.of(objective, half_textured(32, seed=number), 0.5, factor=factor, step=0)
        loss, _ = step(context)
        optimizer.zero_grad()
        loss.backward(inputs=list(strategy.parameters()))
        optimizer.step()
    after = loss_under_its_masks()
    assert direction * (after - before) > 0.3, f"{before:.3f} -> {after:.3f}"
