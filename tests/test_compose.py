"""Strategies made of strategies."""

from __future__ import annotations

import pytest
import torch
from helpers import random_images, strategy_of, tiny_objective, tiny_session
from maskzoo_compose import Mix, Switch, Union
from torch import Tensor

from maskzoo import ContractError, MaskingContext, Part, RecipeError, Registry, Strategy, define

OBJECTIVE = tiny_objective()


@define
class Fixed(Strategy):
    """Hides from the left or from the right."""

    name = "fixed"
    rightwards: bool = True

    def scores(self, context: MaskingContext) -> Tensor:
        place = torch.arange(context.patches).float().expand(len(context.images), -1)
        return place if self.rightwards else -place


@define
class Factor(Strategy):
    """Remembers the factor and the noise that it was given."""

    name = "factor"
    default_curriculum = "adversary"

    def scores(self, context: MaskingContext) -> Tensor:
        self.factor, self.noise = context.factor, context.noise()
        return self.noise


def context(ratio: float = 0.5, images: int = 6, **dials: float) -> MaskingContext:
    return MaskingContext.of(OBJECTIVE, random_images(images), ratio, **{"step": 0, **dials})


def test_needs_learning_and_learners_are_those_of_the_parts():
    strategy = strategy_of({"use": "mix", "parts": ["random", {"use": "union", "parts": ["attmask", "clmae"]}]})
    assert strategy.needs == {"teacher", "attention", "patch_loss"}
    assert strategy.learning == "alternate"
    assert [learner.name for learner in strategy.learners()] == ["clmae"]
    assert strategy_of({"use": "mix", "parts": ["random", "block"]}).learning == "no"


def test_parts_are_submodules_whose_parameters_are_found_and_saved():
    strategy = strategy_of({"use": "mix", "parts": ["random", "clmae"]}, OBJECTIVE)
    assert any(name.startswith("parts.1.strategy.blocks.0") for name in strategy.state_dict())


def test_mix_gives_each_image_the_mask_of_one_part_by_the_weights():
    strategy = strategy_of({"use": "mix", "parts": ["random", "random"]})
    strategy.parts[0].strategy, strategy.parts[1].strategy = Fixed(True), Fixed(False)
    strategy.weights = [lambda progress: 3.0, lambda progress: 1.0]
    mask = strategy.mask(context(images=2000))
    rightwards = mask.hidden[:, 32:].all(dim=1)
    leftwards = mask.hidden[:, :32].all(dim=1)
    assert (rightwards ^ leftwards).all()
    assert rightwards.float().mean().item() == pytest.approx(0.75, abs=0.04)


def test_weights_may_move_and_a_part_of_no_weight_is_off():
    strategy = strategy_of({"use": "mix", "parts": ["random", "clmae"], "weights": [1, "linear:0:1"]}, OBJECTIVE)
    assert [s.name for s, _ in strategy.active(context(progress=0.0))] == ["random"]
    assert [s.name for s, _ in strategy.active(context(progress=0.5))] == ["random", "clmae"]


def test_all_weights_zero_is_an_error():
    strategy = strategy_of({"use": "mix", "parts": ["random", "block"], "weights": [0, 0]})
    with pytest.raises(ContractError, match="all weights of 'mix' are zero"):
        strategy.mask(context())


def test_union_takes_from_both_rankings_equally_deep():
    strategy = Union(parts=[Fixed(True), Fixed(False)])
    mask = strategy.mask(context(ratio=0.25))
    expected = torch.zeros(64, dtype=torch.bool)
    expected[:8] = expected[-8:] = True
    assert torch.equal(mask.hidden, expected.expand(6, -1))


def test_union_of_one_part_is_that_part():
    assert torch.equal(Union(parts=[Fixed()]).mask(context()).hidden, Fixed().mask(context()).hidden)


def test_switch_changes_at_its_points():
    strategy = Switch(parts=[Fixed(True), Fixed(False), Fixed(True)], at=[0.25, 0.75])

    def first_hidden(progress: float) -> bool:
        return bool(strategy.mask(context(progress=progress)).hidden[0, 0])

    assert [first_hidden(p) for p in (0.0, 0.24, 0.25, 0.74, 0.75, 1.0)] == [False, False, True, True, False, False]


def test_parts_draw_noise_of_their_own():
    first, second = Factor(), Factor()
    Mix(parts=[first, second]).mask(context())
    assert not torch.equal(first.noise, second.noise)


def test_a_part_follows_its_own_curriculum_and_the_others_the_factor_given():
    own, given = Factor(), Factor()
    ramp = Registry().find("schedule", "linear")(0.0, -0.5)
    Mix(parts=[Part(own, ramp), Part(given)]).mask(context(factor=0.75, progress=0.5))
    assert own.factor == -0.25
    assert given.factor == 0.75


def test_the_first_part_that_knows_a_curriculum_gives_the_default():
    assert strategy_of({"use": "mix", "parts": ["random", "clmae", "attmask"]}).default_curriculum == (
        "partner-neutral-adversary"
    )
    parts = [{"use": "clmae", "curriculum": "partner"}, "attmask"]
    assert strategy_of({"use": "mix", "parts": parts}).default_curriculum == "adversary"
    parts = ["random", {"use": "attmask", "curriculum": "neutral"}]
    assert strategy_of({"use": "switch", "at": [0.5], "parts": parts}).default_curriculum is None


def test_schedules_inside_parts_are_set_up():
    curriculum = {"use": "clmae-official"}
    session = tiny_session(
        {"use": "switch", "at": [0.5], "parts": ["random", {"use": "clmae", "curriculum": curriculum}]},
        train={"steps": 8},
    )
    part = session.strategy.parts[1]
    assert part.curriculum(1.0) == -1.0


def test_parts_whose_counts_differ_are_refused_with_a_ratio_where_they_agree():
    strategy = strategy_of({"use": "mix", "parts": ["random", "attmask"]}, OBJECTIVE)
    assert strategy.mask(context(ratio=0.75)).count == 48
    with pytest.raises(ContractError, match=r"parts\[0\] 'random' 39, parts\[1\] 'attmask' 38; they agree at 0.59375"):
        strategy.mask(context(ratio=0.6))
    assert strategy.mask(context(ratio=0.59375)).count == 38
    with pytest.raises(RecipeError, match=r"recipe\.masking\.ratio: the parts of 'mix' round differently"):
        tiny_session({"use": "mix", "parts": ["random", "attmask"]}, masking={"ratio": 0.6})


@pytest.mark.parametrize(
    ("use", "sentence"),
    [
        ({"use": "mix", "parts": []}, "needs at least one"),
        ({"use": "mix", "parts": ["random", "block"], "weights": [1]}, "weights: there are 2 parts, but 1 weights"),
        ({"use": "switch", "parts": ["random", "block"]}, "at: 2 parts need 1 changes, got 0"),
        ({"use": "switch", "parts": ["random", "block"], "at": [1.5]}, "at: must rise, between 0 and 1"),
        ({"use": "switch", "parts": ["random"] * 3, "at": [0.5, 0.2]}, "at: must rise"),
        ({"use": "mix"}, "parts: is required"),
        ({"use": "mix", "parts": "random"}, "parts: expected"),
    ],
)
def test_bad_options_are_refused(use, sentence: str):
    with pytest.raises(RecipeError, match=sentence):
        strategy_of(use)


def test_a_part_that_is_no_ranking_cannot_be_combined_and_is_named():
    @define
    class Own(Strategy):
        name = "own"

        def mask(self, context):
            raise AssertionError

    with pytest.raises(ValueError, match=r"\[1\] 'own' has no scores"):
        Mix(parts=[Fixed(), Own()])


def test_a_part_that_gives_wrong_scores_is_named():
    @define
    class Wrong(Strategy):
        name = "wrong"

        def scores(self, context):
            return context.noise(3)

    with pytest.raises(ContractError, match=r"strategy 'wrong' .* gave scores"):
        Mix(parts=[Fixed(), Wrong()]).mask(context())


def test_a_parts_setup_error_names_the_part():
    with pytest.raises(RecipeError, match=r"recipe\.masking\.strategy\.parts\[1\]: 5 heads do not divide"):
        tiny_session({"use": "mix", "parts": ["random", {"use": "clmae", "heads": 5}]})


def test_composites_nest_to_any_depth_with_the_exact_count():
    use: object = "random"
    for depth in range(4):
        kind = ["mix", "union", "switch"][depth % 3]
        use = {"use": kind, "parts": [use, "block"], **({"at": [0.5]} if kind == "switch" else {})}
    mask = strategy_of(use, OBJECTIVE).mask(context(ratio=0.6, images=9))
    assert mask.hidden.sum(dim=1).tolist() == [39] * 9


def test_a_composite_has_neither_a_soft_mask_nor_a_loss_of_its_own():
    strategy = strategy_of({"use": "mix", "parts": ["clmae"]}, OBJECTIVE)
    with pytest.raises(ContractError, match="no soft mask of its own"):
        strategy.soft_mask(context())
