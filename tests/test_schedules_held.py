"""Schedules wherever they are held: set up at any depth, and one without `setup` works."""

from __future__ import annotations

import pytest
from dark import registry_with
from helpers import noise_images, tiny_recipe

from maskzoo import PluginError, RecipeError
from maskzoo.build import build, make_optimizer, settled_betas
from maskzoo.recipe import OptimizerRecipe, make
from maskzoo.schedules import schedules_in, set_up

SOURCE = """
class Bounce:
    name = "bounce"

    def __call__(self, progress):
        return -abs(2 * progress - 1)

@attrs.define
class Stepping(CurriculumSchedule):
    name: ClassVar[str] = "stepping"
    inner: CurriculumSchedule | None = None
    told: int = 0

    def setup(self, epochs, steps):
        self.told = steps

    def __call__(self, progress):
        return 0.0

@define
class Bad(RankedStrategy):
    name = "dark"
    one: CurriculumSchedule | None = None
    some: dict[str, CurriculumSchedule] = attrs.field(factory=dict)
    deep: dict[str, list[CurriculumSchedule]] = attrs.field(factory=dict)

    def hardness(self, context):
        return context.images.new_zeros(context.images.shape[0], context.patches)
"""


def with_schedules():
    return registry_with(SOURCE, strategies="Bad", schedules="Bounce, Stepping")[0]


def test_a_schedule_without_setup_trains():
    recipe = tiny_recipe("dark", masking={"curriculum": "bounce"})
    session = build(recipe, noise_images(), with_schedules(), steps_in_epoch=4)
    assert session.curriculum(0.5) == 0.0


def test_schedules_in_tables_lists_and_each_other_are_set_up():
    nested = {"use": "stepping", "inner": {"use": "stepping"}}
    use = {"use": "dark", "one": nested, "some": {"a": "stepping"}, "deep": {"b": ["stepping", "bounce"]}}
    session = build(tiny_recipe(use), noise_images(), with_schedules(), steps_in_epoch=4)
    strategy = session.strategy
    stepping = [strategy.one, strategy.one.inner, strategy.some["a"], strategy.deep["b"][0]]
    assert [one.told for one in stepping] == [session.steps] * 4
    assert schedules_in(strategy)[:2] == [strategy.one.inner, strategy.one]  # what others are made of comes first
    recipe = tiny_recipe("random", masking={"ratio": {"use": "stepping", "inner": {"use": "stepping"}}})
    outer = make(with_schedules(), "schedule", recipe.masking.ratio, "ratio")
    set_up(outer, 1.0, 7)
    assert outer.inner.told == 7


@pytest.mark.parametrize("returned", ["None", "'a'", "torch.tensor(0.5)", "np.float32(0.5)", "True", "[0.5]"])
def test_a_schedule_that_gives_no_number_is_the_plugins(returned: str):
    registry, _ = registry_with(
        SOURCE.replace("-abs(2 * progress - 1)", returned), strategies="Bad", schedules="Bounce"
    )
    with pytest.raises(PluginError, match=r"curriculum: schedule 'bounce' \(maskzoo-dark 0\.1 .*a number"):
        build(tiny_recipe("dark", masking={"curriculum": "bounce"}), noise_images(), registry, steps_in_epoch=4)


def test_what_a_schedule_raises_is_the_plugins():
    registry, _ = registry_with(
        SOURCE.replace("-abs(2 * progress - 1)", "self.x"), strategies="Bad", schedules="Bounce"
    )
    with pytest.raises(PluginError, match=r"ratio: maskzoo-dark 0\.1 .*AttributeError"):
        build(tiny_recipe("random", masking={"ratio": "bounce"}), noise_images(), registry, steps_in_epoch=4)


# ---------------------------------------------------------------------------------------------------------- optimizers
def session_with(optimizer, strategy="random", **masking):
    recipe = tiny_recipe(strategy, optimizer=optimizer, masking=masking)
    return build(recipe, noise_images(), with_schedules(), steps_in_epoch=4)


@pytest.mark.slow
def test_an_optimizer_of_three_betas_has_its_own():
    session = session_with({"use": "adan"})
    assert len(session.mover.optimizer.param_groups[0]["betas"]) == 3
    assert "betas" not in session.recipe["optimizer"]
    assert session_with({"use": "adamw"}).recipe["optimizer"]["betas"] == [0.9, 0.95]
    with pytest.raises(RecipeError, match=r"optimizer\.betas: the optimizer 'adan' takes 3"):
        session_with({"use": "adan", "betas": [0.9, 0.95]})
    assert settled_betas(OptimizerRecipe(use="sgd")) == (0.9, 0.95)  # as it was written before


@pytest.mark.parametrize(
    "optimizer", [{"use": "adamw", "options": {"nonsense": 1}}, {"use": "adahessian"}, {"use": "fusedadam"}]
)
def test_an_optimizer_that_cannot_be_used_is_one_message_with_its_key(optimizer):
    from helpers import tiny_objective

    with pytest.raises(RecipeError, match=r"^recipe\.optimizer\.(use|options): ") as caught:
        make_optimizer(OptimizerRecipe(**optimizer), [tiny_objective()], "recipe.optimizer")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("learner", [{"use": "clmae", "depth": 1}, "losspred"])
def test_layer_decay_goes_with_a_learner(learner):
    source = """
@define
class Bad(Strategy):
    name = "losspred"
    learning = "joint"

    def setup(self, objective):
        self.net = torch.nn.Linear(objective.backbone.token_dim, 1)

    def scores(self, context):
        return self.net(context.student.backbone.tokens(context.images))[..., 0].float()

    def loss(self, context, mask, outcome):
        return mask.scores.square().mean()
"""
    registry = registry_with(source)[0]
    recipe = tiny_recipe(learner, optimizer={"layer_decay": 0.75})
    session = build(recipe, noise_images(), registry, steps_in_epoch=4)
    scales = {group.get("lr_scale", 1.0) for group in session.mover.optimizer.param_groups}
    assert max(scales) == 1.0 or learner != "losspred"
    moved = {id(one) for mover in (session.mover, session.strategy_mover) if mover for one in mover.parameters}
    assert {id(one) for one in session.strategy.parameters()} <= moved
    with pytest.raises(RecipeError, match=r"masking\.optimizer\.layer_decay"):
        build(
            tiny_recipe({"use": "clmae", "depth": 1}, masking={"optimizer": {"layer_decay": 0.5}}),
            noise_images(),
            registry,
            steps_in_epoch=4,
        )
