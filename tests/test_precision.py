"""Scores and losses in half precision, which a network gives under autocast: the core casts them."""

from __future__ import annotations

import math
from typing import Any

import numpy
import pytest
import torch
from helpers import random_batches, random_images, same_state, state_of, tiny_objective, tiny_recipe
from made_up import registry_with, session_with
from maskzoo_compose import Mix, Switch, Union
from torch import Tensor, nn

from maskzoo import ContractError, Mask, MaskingContext, Objective, Outcome, RankedStrategy, Strategy, define
from maskzoo.cost import Shape, flops_per_image
from maskzoo.train import train

HALF = [torch.bfloat16, torch.float16]
OBJECTIVE = tiny_objective()


def context(**dials: float) -> MaskingContext:
    return MaskingContext.of(OBJECTIVE, random_images(), 0.5, **{"step": 0, **dials})


class Convolving(Strategy):
    """As a newcomer writes it: a convolution, whose output is half precision under autocast, and no cast."""

    def setup(self, objective: Objective) -> None:
        patch = objective.backbone.patch_size[0]
        self.layer = nn.Conv2d(objective.backbone.channels, 1, patch, stride=patch)

    def scores(self, context: MaskingContext) -> Tensor:
        self.dtype = (scores := self.layer(context.images).flatten(1).sigmoid()).dtype
        return scores


@define
class Alternating(Convolving):
    name = "alternating"
    learning = "alternate"
    default_curriculum = "adversary"

    def loss(self, context: MaskingContext, mask: Mask, outcome: Outcome) -> Tensor:
        assert mask.visibility.dtype == mask.weights.dtype == mask.scores.dtype == torch.float32
        return (context.factor * outcome.loss + mask.weights.mean()).to(torch.bfloat16)


@define
class Joint(Convolving):
    name = "joint"
    learning = "joint"

    def loss(self, context: MaskingContext, mask: Mask, outcome: Outcome) -> Tensor:
        assert mask.scores.dtype == torch.float32
        return ((mask.scores - outcome.patch_loss.detach()) ** 2).mean().to(torch.bfloat16)


@define
class Given(Strategy):
    """Gives what it is told to give."""

    name = "given"

    def scores(self, context: MaskingContext) -> Any:
        return self.values


@define
class GivenHardness(RankedStrategy):
    name = "given-hardness"

    def hardness(self, context: MaskingContext) -> Any:
        return self.values


def given(values: Any, cls: type = Given) -> Any:
    strategy = cls()
    strategy.values = values
    return strategy


PARTS = {
    "mix": lambda one: {"use": "mix", "parts": [one, "random"]},
    "union": lambda one: {"use": "union", "parts": [one, "random"]},
    "switch": lambda one: {"use": "switch", "parts": ["random", one], "at": [0.4]},
    "nested": lambda one: {"use": "switch", "parts": [{"use": "mix", "parts": ["random", one]}, one], "at": [0.4]},
}
USES = ["alternating", "joint", *(make("alternating") for make in PARTS.values()), PARTS["switch"]("joint")]


@pytest.mark.parametrize(
    ("use", "precision"),
    [*((use, "bf16") for use in USES), ("alternating", "fp16"), ("joint", "fp16")],
)
def test_a_learner_that_casts_nothing_learns_in_half_precision(use: Any, precision: str):
    session = session_with([Alternating, Joint], use, train={"steps": 2, "precision": precision, "device": "cpu"})
    learner = session.strategy.learners()[-1]
    before = state_of(learner)
    figures = list(train(session, random_batches(2)))
    assert learner.dtype == {"bf16": torch.bfloat16, "fp16": torch.float16}[precision]
    assert [line["skipped"] for line in figures] == [0, 0]
    assert not same_state(learner, before)
    assert all(math.isfinite(value) for line in figures for value in line.values())


def test_what_a_learner_in_half_precision_costs_is_counted():
    recipe = tiny_recipe("alternating", train={"precision": "bf16", "steps": 4})
    assert flops_per_image(recipe, registry_with(Alternating), Shape((32, 32))).strategy > 0


@pytest.mark.parametrize("dtype", HALF)
def test_scores_in_half_precision_hide_what_they_hide_in_full(dtype: torch.dtype):
    scores = context().noise().to(dtype)
    for use in (lambda one: one, lambda one: Mix([one]), lambda one: Union([one]), lambda one: Switch([one])):
        half, full = use(given(scores)).mask(context()), use(given(scores.float())).mask(context())
        assert half.hidden.equal(full.hidden)
        assert half.scores.dtype == torch.float32
    soft = given(scores).soft_mask(context())
    assert soft.visibility.equal(1 - scores.float())


@pytest.mark.parametrize("dtype", HALF)
def test_a_hardness_and_a_mask_of_ones_own_may_be_in_half_precision(dtype: torch.dtype):
    values = context().noise().to(dtype)
    assert (
        given(values, GivenHardness)
        .mask(context())
        .hidden.equal(given(values.float(), GivenHardness).mask(context()).hidden)
    )
    for make in (Mask.hide_top, Mask.soft):
        mask = make(values, 20)
        assert mask.scores.dtype == mask.weights.dtype == torch.float32
        assert mask.hidden.equal(make(values.float(), 20).hidden)


@pytest.mark.parametrize(
    ("values", "said"),
    [
        (torch.zeros(6, 64).double(), r"float64 \[6, 64\]"),
        (torch.zeros(6, 64).long(), r"int64 \[6, 64\]"),
        (torch.zeros(6, 64).bool(), r"bool \[6, 64\]"),
        (torch.zeros(6, 63).bfloat16(), r"float32 \[6, 63\]"),
        (torch.zeros(6, 64, device="meta"), "on meta"),
        (None, "of type NoneType"),
        (numpy.zeros((6, 64), dtype=numpy.float32), "of type ndarray"),
        ([[0.0] * 64] * 6, "of type list"),
    ],
)
def test_other_scores_are_refused_and_told_what_would_be_right(values: Any, said: str):
    for choose in (given(values).mask, Mix([given(values), given(values)]).mask):
        with pytest.raises(ContractError, match=rf"strategy 'given' .* gave scores .*{said}.*float32 \[6, 64\] on cpu"):
            choose(context())


@pytest.mark.parametrize("values", [None, numpy.zeros((6, 64)), torch.zeros(6, 64, dtype=torch.complex64)])
def test_a_hardness_that_is_no_tensor_of_numbers_is_refused_by_its_name(values: Any):
    with pytest.raises(ContractError, match=r"strategy 'given-hardness' .* gave hardness"):
        given(values, GivenHardness).mask(context())


def test_a_tensor_made_without_a_device_is_no_obstacle_to_counting():
    @define
    class Careless(Strategy):
        name = "careless"

        def scores(self, context: MaskingContext) -> Tensor:
            return torch.arange(context.patches).float().expand(len(context.images), -1)

    recipe = tiny_recipe("careless")
    assert flops_per_image(recipe, registry_with(Careless), Shape((32, 32))).device == "cpu"
