"""The loop: whose step moves what, and that a seed decides everything."""

from __future__ import annotations

import copy

import pytest
import torch
from helpers import random_batches, random_images, same_state, state_of, strategy_of, tiny_objective, tiny_session
from torch import Tensor, nn

from maskzoo import ContractError, Mask, MaskingContext, RecipeError, Strategy, define
from maskzoo.engine import Mover
from maskzoo.protocols import Batch
from maskzoo.train import Figures, LearnerStep, ModelStep, look, move_learners, train, unchanged

NESTED = {
    "use": "switch",
    "at": [0.4],
    "parts": [
        "random",
        {"use": "mix", "parts": ["clmae", {"use": "attmask", "curriculum": "linear:0:-0.5"}], "weights": [1, 2]},
    ],
}


def losses(session) -> list[float]:
    return [figures["loss"] for figures in train(session, random_batches(session.steps))]


@pytest.mark.parametrize("strategy", ["random", "block", "attmask", "clmae", NESTED])
@pytest.mark.sampled(2)
def test_same_seed_same_run_to_the_bit(strategy):
    first, second = tiny_session(strategy), tiny_session(strategy)
    assert losses(first) == losses(second)
    assert same_state(first.objective, state_of(second.objective))
    assert same_state(first.strategy, state_of(second.strategy))


def test_another_seed_is_another_run():
    assert losses(tiny_session()) != losses(tiny_session(train={"steps": 4, "seed": 1}))


@pytest.mark.slow
def test_every_masker_starts_with_the_same_model():
    states = [state_of(tiny_session(strategy).objective) for strategy in ("random", "clmae", "attmask", NESTED)]
    for state in states[1:]:
        assert all(torch.equal(state[name], value) for name, value in states[0].items())


def test_strategy_step_leaves_the_model_alone():
    session = tiny_session("clmae")
    context = look(session, next(random_batches(1)))
    before = state_of(session.objective)
    loss, _ = LearnerStep(session.strategy)(context)
    loss.backward(inputs=list(session.strategy.parameters()))
    assert all(parameter.grad is None for parameter in session.objective.parameters())
    assert all(parameter.grad is not None for parameter in session.strategy.parameters())
    for group in session.strategy_mover.optimizer.param_groups:
        group["lr"] = 0.1
    session.strategy_mover.optimizer.step()
    assert same_state(session.objective, before)


def test_model_step_leaves_the_strategy_alone():
    session = tiny_session("clmae")
    before = state_of(session.strategy)
    _, _, loss, _ = ModelStep(session.objective, session.strategy)(look(session, next(random_batches(1))))
    loss.backward()
    assert all(parameter.grad is None for parameter in session.strategy.parameters())
    for group in session.mover.optimizer.param_groups:
        group["lr"] = 0.1
    session.mover.optimizer.step()
    assert same_state(session.strategy, before)


def test_no_optimizer_moves_the_other_players_parameters():
    session = tiny_session("clmae")
    of_model = {id(p) for group in session.mover.optimizer.param_groups for p in group["params"]}
    of_masker = {id(p) for group in session.strategy_mover.optimizer.param_groups for p in group["params"]}
    assert not of_model & of_masker
    assert of_masker == {id(p) for p in session.strategy.parameters()}
    assert of_model == {id(p) for p in session.objective.parameters() if p.requires_grad}


def test_buffers_of_the_model_are_put_back():
    module = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4))
    before = state_of(module)
    with unchanged(module):
        module(random_images())
        assert not same_state(module, before)
    assert same_state(module, before)


def test_the_whole_strategy_step_leaves_a_model_with_batch_norm_bit_equal():
    """Inside the loop: after the model's step is undone by lr 0, nothing but its own forward may have moved buffers."""
    plain, learning = tiny_session("random"), tiny_session("clmae")
    for session in (plain, learning):
        session.objective.decoder_norm = nn.Sequential(Rows(), nn.BatchNorm1d(64), Rows())
        session.lr = lambda progress: 0.0
    learning.strategy.mask = plain.strategy.mask  # the same hard masks, so the model's own forward is the same
    for session in (plain, learning):
        list(train(session, random_batches(3)))
    assert same_state(learning.objective, state_of(plain.objective))
    assert plain.objective.decoder_norm[1].num_batches_tracked == 3


class Rows(nn.Module):
    """Drops the prefix, or puts a row back, so that BatchNorm1d sees [B, N, D]."""

    def forward(self, tokens: Tensor) -> Tensor:
        return tokens[:, 1:] if tokens.shape[1] == 65 else torch.cat([tokens[:, :1], tokens], dim=1)


def test_both_steps_of_a_batch_see_the_same_noise():
    session = tiny_session("random")
    context = look(session, next(random_batches(1)))
    assert torch.equal(context.noise(), context.noise())
    assert torch.equal(session.strategy.mask(context).hidden, session.strategy.mask(context).hidden)


def test_the_teacher_follows_the_student_by_its_schedule():
    session = tiny_session("attmask", teacher={"decay": 0.5})
    before = copy.deepcopy(session.teacher.module)
    list(train(session, random_batches(1)))
    for old, new, student in zip(
        before.parameters(), session.teacher.module.parameters(), session.objective.parameters(), strict=True
    ):
        torch.testing.assert_close(new, 0.5 * old + 0.5 * student)


def test_there_is_no_teacher_where_nobody_asks_for_one():
    assert tiny_session("random").teacher is None
    assert tiny_session(NESTED).teacher is not None


def test_figures_are_plain_numbers_in_a_fixed_order():
    session = tiny_session("clmae")
    first = next(train(session, random_batches(1)))
    assert list(first)[:4] == ["step", "epoch", "progress", "loss"]
    assert {"factor", "ratio", "hidden", "lr", "clmae/kl", "clmae/diversity", "clmae/binary"} <= set(first)
    assert first["factor"] == 1.0
    assert first["hidden"] == 48
    assert all(type(value) in (int, float) for value in first.values())


def test_the_factor_and_the_ratio_move_with_every_step():
    session = tiny_session("clmae", masking={"ratio": "linear:0.25:0.75"}, train={"steps": 5})
    figures = list(train(session, random_batches(5)))
    assert [figure["factor"] for figure in figures] == [1.0, 0.5, 0.0, -0.5, -1.0]
    assert [figure["hidden"] for figure in figures] == [16, 24, 32, 40, 48]


def test_a_moving_ratio_is_clamped_to_one_patch():
    session = tiny_session(masking={"ratio": "linear:0:0.75"}, train={"steps": 3})
    figures = list(train(session, random_batches(3)))
    assert [figure["hidden"] for figure in figures] == [1, 24, 48]


def test_a_switch_to_a_part_that_does_not_learn_costs_no_second_forward():
    session = tiny_session({"use": "switch", "at": [0.5], "parts": ["clmae", "random"]}, train={"steps": 4})
    calls = []
    session.objective.register_forward_hook(lambda *_: calls.append(session.step))
    figures = list(train(session, random_batches(4)))
    assert calls == [0, 0, 1, 1, 2, 3]
    assert "clmae/0/loss" in figures[1]
    assert "clmae/0/loss" not in figures[2]


def test_a_learner_that_is_off_stays_as_it_is():
    session = tiny_session({"use": "switch", "at": [0.5], "parts": ["clmae", "random"]}, train={"steps": 4})
    loop = train(session, random_batches(4))
    next(loop), next(loop)
    before = state_of(session.strategy)
    list(loop)
    assert same_state(session.strategy, before)


@define
class Joint(Strategy):
    """Learns one bias for each patch, by what the model loses there, in the model's own step."""

    name = "joint"
    learning = "joint"

    def setup(self, objective) -> None:
        self.bias = nn.Parameter(torch.zeros(64))

    def scores(self, context: MaskingContext) -> Tensor:
        return context.noise() + self.bias

    def loss(self, context, mask, outcome) -> Tensor:
        assert mask.scores.requires_grad
        outcome.metrics["bias"] = self.bias.mean()
        return -(mask.scores.sigmoid() * outcome.patch_loss.detach()).mean()


def test_a_joint_learner_is_moved_by_the_models_optimizer():
    session = tiny_session()
    strategy = Joint()
    strategy.setup(session.objective)
    session.strategy = strategy
    session.mover.optimizer.add_param_group({"params": list(strategy.parameters())})
    figures = list(train(session, random_batches(3)))
    assert session.strategy_mover is None
    assert strategy.bias.abs().min() > 0
    assert figures[-1]["joint/bias"] != 0
    assert figures[-1]["joint/loss"] != figures[-1]["loss"]


def test_after_step_is_called_without_gradient_for_every_active_strategy():
    seen = []

    @define
    class Watcher(Strategy):
        name = "watcher"

        def scores(self, context):
            return context.noise()

        def after_step(self, context, mask, outcome):
            seen.append((context.step, mask.count, torch.is_grad_enabled(), outcome.patch_loss.shape))

    session = tiny_session()
    session.strategy = Watcher()
    list(train(session, random_batches(2)))
    assert seen == [(0, 48, False, (6, 64)), (1, 48, False, (6, 64))]


@pytest.mark.slow
def test_a_loop_taken_up_in_the_middle_goes_on_as_if_it_had_not_stopped():
    whole = tiny_session("clmae")
    expected = list(train(whole, random_batches(4)))
    batches = list(random_batches(4))
    session = tiny_session("clmae")
    first = list(train(session, batches[:2]))
    torch.manual_seed(123)  # whatever happened in between
    assert first + list(train(session, batches[2:])) == expected


@pytest.mark.slow
def test_drop_path_draws_depend_on_seed_and_step_alone():
    from helpers import TINY_BACKBONE

    backbone = {**TINY_BACKBONE, "drop_path": 0.5}
    expected = losses(tiny_session("clmae", backbone=backbone))
    torch.manual_seed(99)
    assert losses(tiny_session("clmae", backbone=backbone)) == expected
    assert losses(tiny_session("clmae")) != expected


def test_one_channel_and_a_non_square_grid_train():
    from helpers import noise_images

    session = tiny_session("clmae", noise_images(channels=1, height=32, width=48))
    images = random_images(channels=1, height=32, width=48)
    (figures,) = train(session, [Batch(images, None, torch.arange(6))])
    assert session.objective.backbone.grid == (8, 12)
    assert figures["hidden"] == 72


def test_every_strategy_hides_exactly_the_count_on_a_real_model():
    objective = tiny_objective()
    for use in ("random", "block", "attmask", "clmae", NESTED):
        strategy = strategy_of(use, objective)
        mask = strategy.mask(MaskingContext.of(objective, random_images(), 0.75, factor=-0.5, progress=0.7, step=0))
        assert mask.hidden.sum(dim=1).tolist() == [48] * 6


def test_a_joint_learner_cannot_overwrite_the_models_figures():
    @define
    class Loud(Joint):
        name = "loud"

        def loss(self, context, mask, outcome):
            outcome.metrics["loss"] = torch.tensor(777.0)
            return super().loss(context, mask, outcome)

    session = tiny_session()
    session.strategy = Loud()
    session.strategy.setup(session.objective)
    (figures,) = train(session, random_batches(1))
    assert figures["loss"] < 100
    assert figures["loud/loss"] < 100


def test_a_learner_may_have_frozen_parameters():
    session = tiny_session("clmae")
    session.strategy.cls_token.requires_grad_(False)
    before = session.strategy.cls_token.clone()
    list(train(session, random_batches(2)))
    assert torch.equal(session.strategy.cls_token, before)


def test_a_mask_of_another_count_is_refused():
    @define
    class Short(Strategy):
        name = "short"

        def mask(self, context):
            return Mask.hide_top(context.noise(), context.count - 8)

    session = tiny_session()
    session.strategy = Short()
    with pytest.raises(ContractError, match="'short' hid 40 patches, not 48"):
        next(train(session, random_batches(1)))


def test_two_learners_are_trained_in_one_step_each_by_its_own_loss():
    session = tiny_session({"use": "mix", "parts": ["clmae", {"use": "clmae", "depth": 1}]})
    context = look(session, next(random_batches(1)))
    gradients = {}

    class Still(torch.optim.SGD):
        def step(self):
            gradients.update({name: value.grad.clone() for name, value in session.strategy.named_parameters()})

    session.strategy_mover = Mover(Still(session.strategy.parameters(), lr=1.0))
    steps = {learner: LearnerStep(learner) for learner in session.strategy.learners()}
    figures = Figures()
    figures.add({"grad_norm": torch.ones(())})  # the model's step was sound
    move_learners(session, steps, [context], figures)
    for position, (learner, seen) in enumerate(session.strategy.active(context)):
        mask = learner.soft_mask(seen)
        learner.zero_grad()
        loss = learner.loss(seen, mask, session.objective(context.images, mask))
        loss.backward(inputs=list(learner.parameters()))
        for name, parameter in learner.named_parameters():
            expected = gradients[f"parts.{position}.strategy.{name}"]
            torch.testing.assert_close(parameter.grad, expected, rtol=1e-4, atol=1e-7)


def test_a_moving_ratio_that_begins_at_nothing_leaves_the_masker_finite():
    session = tiny_session("clmae", masking={"ratio": "linear:0:0.75"})
    figures = list(train(session, random_batches(4)))
    assert all(torch.isfinite(torch.tensor(list(step.values()))).all() for step in figures)
    assert all(parameter.isfinite().all() for parameter in session.strategy.parameters())


@pytest.mark.parametrize("curriculum", ["constant:5", "linear:3:-9"])
def test_a_factor_beyond_partner_and_adversary_is_refused(curriculum):
    with pytest.raises(RecipeError, match=r"recipe\.masking\.curriculum: must be between -1 and 1"):
        tiny_session("attmask", masking={"curriculum": curriculum})
    part = {"use": "attmask", "curriculum": curriculum}
    with pytest.raises(RecipeError, match="a part's curriculum: must be between -1 and 1"):
        tiny_session({"use": "mix", "parts": [part]})


def test_an_annotated_declaration_is_refused_instead_of_becoming_an_option():
    with pytest.raises(ContractError, match="needs would become an option"):

        @define
        class Annotated(Strategy):
            name = "annotated"
            needs: frozenset = frozenset()
