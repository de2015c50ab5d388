"""What a strategy sees and draws, and what its base classes make of its scores."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any, ClassVar

import attrs
import maskzoo_random
import pytest
import torch
from helpers import chance_of_uniform
from torch import Tensor, nn

from maskzoo import ContractError, Mask, MaskingContext, RankedStrategy, Strategy, define


def objective_on(*grid: int) -> Any:
    """The little of an objective that choosing patches needs."""
    return SimpleNamespace(backbone=SimpleNamespace(grid=grid))


def context_on(*grid: int, batch: int = 4, ratio: float = 0.75, **others: Any) -> MaskingContext:
    return MaskingContext.of(objective_on(*grid), torch.zeros(batch, 1, 1, 1), ratio, **{"step": 0, **others})


@define
class Fixed(RankedStrategy):
    """Patch 0 is the easiest, patch N - 1 the hardest."""

    name: ClassVar[str] = "fixed"

    def hardness(self, context: MaskingContext) -> Tensor:
        return torch.arange(context.patches).double().expand(context.images.shape[0], -1)


@define
class Unaskable(RankedStrategy):
    """Has no hardness to give."""

    name: ClassVar[str] = "unaskable"

    def hardness(self, context: MaskingContext) -> Tensor:
        raise AssertionError("asked for a hardness")


@define
class Scored(Strategy):
    """Gives whatever scores it was made with."""

    name: ClassVar[str] = "scored"

    given: Any
    learns: Any = "no"

    def __attrs_post_init__(self) -> None:
        self.learning = self.learns

    def scores(self, context: MaskingContext) -> Tensor:
        return self.given * 1


@define
class Validated(Strategy):
    """Has a validator, and a layer of its own."""

    name: ClassVar[str] = "validated"

    width: int = attrs.field(default=2, validator=attrs.validators.ge(1))

    def setup(self, objective: Any) -> None:
        self.layer = nn.Linear(self.width, 1)


# ----------------------------------------------------------------------------------------------------------- the draws
def test_noise_follows_from_seed_step_stream_and_name() -> None:
    context = context_on(4, 4)
    noise = context.noise()
    assert noise.shape == (4, 16)
    assert noise.dtype == torch.float32
    assert 0 <= float(noise.min()) <= float(noise.max()) < 1
    assert noise.equal(context.noise())
    others = [
        context.noise(name="other"),
        attrs.evolve(context, step=1).noise(),
        attrs.evolve(context, seed=1).noise(),
        attrs.evolve(context, branch="part").noise(),
    ]
    assert not any(other.equal(noise) for other in others)
    assert len({float(other[0, 0]) for other in others}) == 4
    moved = attrs.evolve(context, progress=0.5, factor=0.3, ratio=0.5, count=8)
    assert moved.noise().equal(noise)


def test_noise_has_any_shape_asked_for() -> None:
    assert context_on(4, 4).noise(3, 5, 2).shape == (4, 3, 5, 2)
    assert context_on(2, 3, 4).noise().shape == (4, 24)


def test_draws_neither_use_nor_move_the_global_generator() -> None:
    context = context_on(4, 4)
    torch.manual_seed(0)
    first, chance, before = context.noise(), context.shared("x"), torch.get_rng_state()
    assert torch.get_rng_state().equal(before)
    torch.manual_seed(1)
    before = torch.get_rng_state()
    assert context.noise().equal(first)
    assert context.shared("x") == chance
    maskzoo_random.Random().mask(context)
    assert torch.get_rng_state().equal(before)


@pytest.mark.parametrize("shape", [(), (3,), (2, 5)])
def test_two_processes_draw_the_rows_that_one_would(shape: tuple[int, ...]) -> None:
    half = context_on(4, 4, batch=4)
    shares = [attrs.evolve(half, share=share, shares=2).noise(*shape) for share in (0, 1)]
    assert torch.cat(shares).equal(context_on(4, 4, batch=8).noise(*shape))
    assert not shares[0].equal(shares[1])


def test_two_processes_hide_the_patches_that_one_would() -> None:
    half = context_on(4, 4, batch=4, factor=-0.5)
    hidden = [Fixed().mask(attrs.evolve(half, share=share, shares=2)).hidden for share in (0, 1)]
    assert torch.cat(hidden).equal(Fixed().mask(context_on(4, 4, batch=8, factor=-0.5)).hidden)


def test_a_shared_draw_is_one_number_for_all_processes() -> None:
    context = context_on(4, 4)
    chance = context.shared("which")
    assert 0 <= chance < 1
    assert attrs.evolve(context, share=1, shares=2).shared("which") == chance
    others = [
        context.shared("other"),
        attrs.evolve(context, step=1).shared("which"),
        attrs.evolve(context, seed=1).shared("which"),
        context.part(0, 0.0).shared("which"),
    ]
    assert len({chance, *others}) == 5


def test_parts_draw_for_themselves_at_every_depth() -> None:
    context = context_on(4, 4)
    parts = [context, context.part(0, 0.0), context.part(1, 0.0), context.part(0, 0.0).part(1, 0.0)]
    assert len({tuple(part.noise().flatten().tolist()) for part in parts}) == 4
    assert context.part(1, 0.25).factor == 0.25


# ---------------------------------------------------------------------------------------------------------- the count
@pytest.mark.parametrize(
    ("grid", "ratio", "count"),
    [((14, 14), 0.75, 147), ((14, 14), 0.0, 0), ((7, 13), 0.5, 46), ((1, 1), 0.5, 1), ((3,), 1.0, 3)],
)
def test_a_context_outside_a_run_counts_as_mae_does(grid: tuple[int, ...], ratio: float, count: int) -> None:
    context = context_on(*grid, ratio=ratio)
    assert context.patches == math.prod(grid)
    assert context.count == count == context.patches - int(context.patches * (1 - ratio))


def test_an_objective_is_its_own_teacher_unless_another_is_given() -> None:
    objective, teacher = objective_on(4, 4), objective_on(4, 4)
    images = torch.zeros(2, 1, 1, 1)
    assert MaskingContext.of(objective, images, 0.5, step=0).teacher is objective
    assert MaskingContext.of(objective, images, 0.5, teacher=teacher, step=0).teacher is teacher
    assert MaskingContext.of(objective, images, 0.5, teacher=teacher, step=0).student is objective


@pytest.mark.parametrize(
    ("ratio", "least", "count"), [(0.0, 1, 1), (1.0, 1, 15), (0.5, 1, 8), (0.0, 0, 0), (1.0, 0, 16)]
)
def test_a_moving_ratio_hides_and_shows_at_least_one(ratio: float, least: int, count: int) -> None:
    context = attrs.evolve(context_on(4, 4, ratio=ratio), least_hidden=least, least_shown=least)
    assert context.counted_by(maskzoo_random.Random()).count == count
    assert maskzoo_random.Random().mask(context).count == count


@pytest.mark.parametrize("count", [-1, 17])
def test_a_count_rule_off_the_grid_is_refused_by_name(count: int) -> None:
    @define
    class Miscounting(Strategy):
        name: ClassVar[str] = "miscounting"

        def count(self, ratio: float, patches: int) -> int:
            return count

    with pytest.raises(ContractError, match=f"'miscounting' .*would hide {count} of 16"):
        context_on(4, 4).counted_by(Miscounting())


# ------------------------------------------------------------------------------------------------ strategies at large
def test_random_masks_hide_every_patch_equally_often_and_exactly_the_count() -> None:
    context = context_on(5, 5, batch=4000, ratio=0.75)
    mask = maskzoo_random.Random().mask(context)
    assert set(mask.hidden.sum(dim=1).tolist()) == {mask.count} == {19}
    assert chance_of_uniform(mask.hidden) > 1e-4


@pytest.mark.parametrize(
    "scores",
    [torch.zeros(4, 15), torch.zeros(3, 16), torch.zeros(16), torch.zeros(4, 4, 4), torch.zeros(4, 16).double()],
)
def test_scores_off_the_contract_are_refused_by_the_name_of_the_strategy(scores: Tensor) -> None:
    for choose in (Scored(scores).mask, Scored(scores).soft_mask):
        with pytest.raises(ContractError, match=r"strategy 'scored' .* gave scores"):
            choose(context_on(4, 4))


def test_a_hardness_off_the_contract_is_refused_by_the_name_of_the_strategy() -> None:
    @define
    class Misshapen(RankedStrategy):
        name: ClassVar[str] = "misshapen"

        def hardness(self, context: MaskingContext) -> Tensor:
            return torch.zeros(1, context.patches)

    with pytest.raises(ContractError, match="strategy 'misshapen'"):
        Misshapen().mask(context_on(4, 4))


@pytest.mark.parametrize(("learning", "graph"), [("no", False), ("alternate", False), ("joint", True)])
def test_only_a_joint_learner_has_a_gradient_in_its_hard_mask(learning: str, graph: bool) -> None:
    strategy = Scored(torch.rand(4, 16, generator=torch.Generator().manual_seed(0)).requires_grad_(), learning)
    hard, soft = strategy.mask(context_on(4, 4)), strategy.soft_mask(context_on(4, 4))
    assert hard.scores is not None
    assert hard.scores.requires_grad == graph
    assert soft.visibility is not None
    assert soft.visibility.requires_grad
    assert hard.hidden.equal(soft.hidden)


def test_equal_scores_of_a_strategy_are_settled_anew_at_every_step() -> None:
    context = context_on(4, 4)
    strategy = Scored(torch.zeros(4, 16))
    assert strategy.mask(context).hidden.equal(strategy.mask(context).hidden)
    assert not strategy.mask(context).hidden.equal(strategy.mask(attrs.evolve(context, step=1)).hidden)


def test_a_layer_built_in_setup_is_registered_in_spite_of_validators() -> None:
    strategy = Validated(3)
    strategy.setup(objective_on(4, 4))
    assert [name for name, _ in strategy.named_parameters()] == ["layer.weight", "layer.bias"]
    assert type(strategy).__setattr__ is nn.Module.__setattr__
    assert strategy in {strategy}  # hashable by identity, as modules are
    with pytest.raises(ValueError, match="width"):
        Validated(0)


# --------------------------------------------------------------------------------------------------- curriculum by rank
def test_an_adversary_hides_the_hardest_and_a_partner_the_easiest() -> None:
    hardest = Fixed().mask(context_on(4, 5, ratio=0.4, factor=-1.0)).hidden
    assert hardest.tolist() == [[False] * 12 + [True] * 8] * 4
    easiest = Fixed().mask(context_on(4, 5, ratio=0.4, factor=1.0)).hidden
    assert easiest.tolist() == [[True] * 8 + [False] * 12] * 4


def test_neutral_hides_uniformly_and_asks_for_no_hardness() -> None:
    context = context_on(4, 5, batch=4000, ratio=0.4, factor=0.0)
    assert chance_of_uniform(Unaskable().mask(context).hidden) > 1e-4
    # A factor too small to take a single patch is as good as 0.
    Unaskable().mask(attrs.evolve(context, factor=-0.12))
    with pytest.raises(AssertionError):
        Unaskable().mask(attrs.evolve(context, factor=-0.125))


@pytest.mark.parametrize("sign", [-1, 1])
@pytest.mark.parametrize(("factor", "ratio"), [(0.5, 0.4), (0.5, 0.45), (0.3, 0.75)])
def test_the_share_taken_by_rank_is_rounded_down_and_the_rest_is_uniform(
    sign: int, factor: float, ratio: float
) -> None:
    context = context_on(4, 5, batch=4000, ratio=ratio, factor=sign * factor)
    mask = Fixed().mask(context)
    hidden = mask.hidden if sign < 0 else mask.hidden.flip(1)
    taken = math.floor(factor * context.count)
    assert set(mask.hidden.sum(dim=1).tolist()) == {context.count}
    assert hidden[:, 20 - taken :].all()
    assert chance_of_uniform(hidden[:, : 20 - taken]) > 1e-4


def test_rounding_noise_costs_no_patch() -> None:
    assert math.floor(0.29 * 100) == 28
    hidden = Fixed().mask(context_on(20, 10, batch=200, ratio=0.5, factor=-0.29)).hidden
    assert hidden[:, -29:].all()
    assert not hidden[:, -30].all()


def test_equal_hardness_is_settled_uniformly() -> None:
    @define
    class Flat(RankedStrategy):
        name: ClassVar[str] = "flat"

        def hardness(self, context: MaskingContext) -> Tensor:
            return torch.zeros(context.images.shape[0], context.patches)

    for factor in (-1.0, -0.5, 1.0):
        hidden = Flat().mask(context_on(4, 5, batch=4000, ratio=0.4, factor=factor)).hidden
        assert chance_of_uniform(hidden) > 1e-4


@pytest.mark.parametrize("factor", [-1.0, -0.3, 0.0, 0.3, 1.0])
@pytest.mark.parametrize("ratio", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("grid", [(1, 1), (1, 9), (2, 3, 4)])
def test_scores_are_finite_and_the_count_exact_whatever_the_factor(
    grid: tuple[int, ...], ratio: float, factor: float
) -> None:
    context = context_on(*grid, ratio=ratio, factor=factor)
    mask = Fixed().mask(context)
    assert isinstance(mask, Mask)
    assert mask.scores is not None
    assert mask.scores.isfinite().all()
    assert mask.hidden.sum(dim=1).tolist() == [context.count] * 4
