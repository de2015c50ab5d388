"""What a part of a composite is given is its own, or the composite is refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from helpers import random_batches, random_images, same_state, state_of, tiny_objective, tiny_recipe
from made_up import registry_with, session_with
from maskzoo_compose import Mix, Switch, Union
from torch import Tensor, nn

from maskzoo import Mask, MaskingContext, Objective, Outcome, Part, RecipeError, Strategy, define
from maskzoo.recipe import make
from maskzoo.train import train


@define
class Joint(Strategy):
    """Predicts the loss of each patch from a constant, and learns by what the mask says were its scores."""

    name = "joint"
    learning = "joint"

    def setup(self, objective: Objective) -> None:
        self.level = nn.Parameter(torch.zeros(()))

    def scores(self, context: MaskingContext) -> Tensor:
        self.given = context.noise() + self.level
        return self.given

    def loss(self, context: MaskingContext, mask: Mask, outcome: Outcome) -> Tensor:
        assert mask.scores is self.given, "the scores of the mask are another part's"
        return ((mask.scores - 1) ** 2).mean()


@define
class OwnMask(Strategy):
    """Has a way of its own to its mask."""

    name = "own-mask"

    def scores(self, context: MaskingContext) -> Tensor:
        return context.noise()

    def mask(self, context: MaskingContext) -> Mask:
        return super().mask(context)


@define
class OwnSoftMask(Joint):
    name = "own-soft-mask"
    learning = "alternate"

    def scores(self, context: MaskingContext) -> Tensor:
        return (context.noise() + self.level).clamp(0, 1)

    def soft_mask(self, context: MaskingContext) -> Mask:
        self.asked = True
        return super().soft_mask(context)

    def loss(self, context: MaskingContext, mask: Mask, outcome: Outcome) -> Tensor:
        return mask.weights.mean()


MADE_UP = [Joint, OwnMask, OwnSoftMask]


def composite(kind: str, *parts: Any) -> dict[str, Any]:
    at = [(number + 1) / len(parts) for number in range(len(parts) - 1)]
    return {"use": kind, "parts": list(parts), **({"at": at} if kind == "switch" else {})}


REFUSED = {
    "mix": composite("mix", "joint", "random"),
    "union": composite("union", "random", "joint"),
    "mix in switch": composite("switch", "random", composite("mix", "joint", "random")),
    "switch in mix": composite("mix", "random", composite("switch", "random", "joint")),
    "switch in union": composite("union", composite("switch", "joint", "random"), "random"),
    "curriculum of its own": composite("mix", {"use": "joint"}, "attmask"),
}


@pytest.mark.parametrize("use", REFUSED.values(), ids=REFUSED)
def test_a_joint_learner_that_would_see_other_scores_is_refused_with_its_path(use: Any):
    with pytest.raises(RecipeError, match=r"recipe\.masking\.strategy\S*\.parts: 'joint' learns jointly"):
        make(registry_with(*MADE_UP), "strategy", use, "recipe.masking.strategy")


@pytest.mark.parametrize("kind", [Mix, Union])
def test_also_outside_a_recipe(kind: type):
    with pytest.raises(ValueError, match="learns jointly"):
        kind(parts=[Part(Joint()), OwnSoftMask()])


ALLOWED = {
    "switch": composite("switch", "random", "joint", "random"),
    "switch of switches": composite("switch", {**composite("switch", "random", "joint"), "at": [0.2]}, "joint"),
    "mix of one": composite("mix", "joint"),
    "switch beside a mix": composite("switch", composite("mix", "random", "attmask"), "joint"),
}


@pytest.mark.parametrize("use", ALLOWED.values(), ids=ALLOWED)
@pytest.mark.sampled(1)
def test_where_one_part_has_a_say_a_joint_learner_sees_its_own_scores_and_learns(use: Any):
    session = session_with(MADE_UP, use, train={"steps": 6})
    before = state_of(session.strategy)
    figures = list(train(session, random_batches(6)))
    assert any(name.startswith("joint") and name.endswith("/loss") for line in figures for name in line)
    assert not same_state(session.strategy, before)


def test_a_joint_learner_rests_while_another_part_has_the_say():
    session = session_with(MADE_UP, composite("switch", "joint", "random"), train={"steps": 6})
    (learner,) = session.strategy.learners()
    levels = [learner.level.item() for _ in train(session, random_batches(6))]
    assert levels[2] != 0
    assert len(set(levels[2:])) == 1


@pytest.mark.parametrize("kind", ["mix", "union", "switch"])
def test_a_part_with_a_mask_of_its_own_is_refused_and_not_passed_over(kind: str):
    for use in (
        composite(kind, "random", "own-mask"),
        composite("mix", "random", composite(kind, "random", "own-mask")),
    ):
        with pytest.raises(RecipeError, match=r"\.parts: \[1\] 'own-mask' has a mask\(\) of its own, which '.*' would"):
            make(registry_with(*MADE_UP), "strategy", use, "recipe.masking.strategy")
    make(registry_with(*MADE_UP), "strategy", "own-mask", "recipe.masking.strategy")


def test_a_class_that_is_no_strategy_of_ours_is_refused_for_the_same_reason():
    class Plain(nn.Module):
        name, needs, learning, default_curriculum = "plain", frozenset(), "no", None

        def scores(self, context: MaskingContext) -> Tensor:
            return context.noise()

        def mask(self, context: MaskingContext) -> Mask:
            return Mask.hide_top(context.noise(), context.count)

    with pytest.raises(ValueError, match=r"\[0\] 'plain' has a mask\(\) of its own"):
        Switch(parts=[Plain()])


@pytest.mark.parametrize("kind", ["mix", "switch"])
def test_a_soft_mask_of_its_own_is_used_in_a_composite_as_alone(kind: str):
    session = session_with(MADE_UP, composite(kind, "own-soft-mask", "random"), train={"steps": 2})
    list(train(session, random_batches(1)))
    assert session.strategy.learners()[0].asked


def test_composites_without_such_parts_hide_what_they_hid():
    objective, images = tiny_objective(), random_images()
    recipe = tiny_recipe(composite("mix", "random", "block"))
    strategy = make(registry_with(), "strategy", recipe.masking.strategy, "strategy")
    context = MaskingContext.of(objective, images, 0.5, step=0)
    assert strategy.mask(context).hidden.sum(dim=1).tolist() == [32] * 6
