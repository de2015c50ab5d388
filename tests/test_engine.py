"""Precision, clipping, skipping, recomputing and compiling: how a step is computed changes no meaning."""

from __future__ import annotations

import copy
import itertools

import attrs
import pytest
import torch
from helpers import TINY_BACKBONE, random_batches, same_state, state_of, tiny_objective, tiny_session
from torch import nn

from maskzoo import RecipeError
from maskzoo import build as building
from maskzoo.engine import Engine, Mover, blocks_of, choose_precision, recompute
from maskzoo.train import LearnerStep, ModelStep, look, train

CPU = torch.device("cpu")


def one_weight(fused: bool) -> tuple[nn.Parameter, Mover]:
    weight = nn.Parameter(torch.ones(3))
    return weight, Mover(torch.optim.AdamW([weight], lr=0.1, weight_decay=0.0, fused=fused))


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_a_gradient_that_is_not_finite_moves_nothing(fused: bool, bad: float):
    weight, mover = one_weight(fused)
    mover.backward((weight * torch.tensor([1.0, bad, 1.0])).sum())
    assert not mover.move().isfinite()
    assert torch.equal(weight.detach(), torch.ones(3))
    assert weight.grad is None
    mover.backward(weight.sum())
    assert mover.move().item() == pytest.approx(3**0.5)
    torch.testing.assert_close(weight.detach(), torch.full((3,), 0.9))  # as if it were the first step


def test_the_gradient_is_clipped_as_a_whole_and_its_norm_reported_before():
    weights = [nn.Parameter(torch.zeros(2)), nn.Parameter(torch.zeros(1))]
    mover = Mover(torch.optim.SGD(weights, lr=1.0), clip=1.0)
    mover.backward((weights[0] * torch.tensor([2.0, 1.0])).sum() + weights[1].sum() * 2)
    assert mover.move().item() == pytest.approx(3.0)
    torch.testing.assert_close(torch.cat([w.detach() for w in weights]), -torch.tensor([2.0, 1.0, 2.0]) / 3)


def test_a_smaller_gradient_than_the_limit_is_left_alone():
    weight = nn.Parameter(torch.zeros(1))
    mover = Mover(torch.optim.SGD([weight], lr=1.0), clip=10.0)
    mover.backward(weight.sum() * 2)
    mover.move()
    assert weight.item() == -2.0


@pytest.mark.parametrize("strategy", ["random", "attmask", "clmae", "block"])
@pytest.mark.sampled(2)
def test_in_bf16_every_weight_still_gets_its_gradient(strategy: str):
    session = tiny_session(strategy, train={"steps": 4, "precision": "bf16"})
    assert session.engine.precision == "bf16"
    step = ModelStep(session.objective, session.strategy)
    with session.engine.autocast():
        _, _, loss, _ = step(look(session, next(random_batches(1))))
    loss.backward()
    idle = [
        name for name, weight in session.objective.named_parameters() if weight.requires_grad and weight.grad is None
    ]
    assert idle == []


def test_losses_scores_and_visibility_are_float32_in_bf16():
    session = tiny_session("clmae", train={"steps": 4, "precision": "bf16"})
    context = look(session, next(random_batches(1)))
    with session.engine.autocast():
        mask, outcome, loss, _ = ModelStep(session.objective, session.strategy)(context)
        soft = session.strategy.soft_mask(context)
        strategy_loss, figures = LearnerStep(session.strategy)(context)
        assert session.objective.decoder_embed(outcome.latent).dtype == torch.bfloat16  # it is at work
    values = [mask.scores, mask.weights, soft.visibility, soft.scores, outcome.patch_loss, outcome.prediction]
    assert {value.dtype for value in [*values, loss, strategy_loss, *figures.values()]} == {torch.float32}


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
@pytest.mark.slow
def test_lower_precision_follows_fp32_closely(precision: str):
    exact = list(train(tiny_session("clmae"), random_batches(4)))
    session = tiny_session("clmae", train={"steps": 4, "precision": precision})
    rounded = list(train(session, random_batches(4)))
    assert not any(step["skipped"] for step in rounded)
    for one, other in zip(exact, rounded, strict=True):
        assert other["loss"] == pytest.approx(one["loss"], rel=0.02)
        assert other["grad_norm"] == pytest.approx(one["grad_norm"], rel=0.1)
    assert rounded[-1]["loss"] != exact[-1]["loss"]
    assert all(weight.dtype == torch.float32 for weight in session.objective.parameters())


@pytest.mark.slow
def test_an_fp16_overflow_is_skipped_and_the_scale_comes_down_and_is_kept():
    session = tiny_session(train={"steps": 4, "precision": "fp16"})
    session.mover.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**40)
    before = state_of(session.objective)
    steps = train(session, random_batches(40))
    first = next(steps)
    assert first["skipped"] == 1.0
    assert same_state(session.objective, before)
    assert any(step["skipped"] == 0.0 for step in steps)
    state = session.mover.state_dict()
    assert state["scaler"]["scale"] < 2.0**40
    other = tiny_session(train={"steps": 4, "precision": "fp16"})
    other.mover.load_state_dict(copy.deepcopy(state))
    assert other.mover.scaler.state_dict() == state["scaler"]


def test_auto_takes_bf16_only_where_the_hardware_has_it(monkeypatch):
    for features, expected in (({"amx_bf16": True}, "bf16"), ({"avx512_bf16": True}, "bf16"), ({}, "fp32")):
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda features=features: features)
        assert choose_precision("auto", CPU) == expected
    monkeypatch.delattr(torch.cpu, "get_capabilities")
    assert choose_precision("auto", CPU) == "fp32"
    assert choose_precision("bf16", CPU) == "bf16"


def test_the_resolved_recipe_says_which_precision_it_was():
    assert tiny_session(train={"steps": 4, "precision": "bf16"}).recipe["train"]["precision"] == "bf16"
    resolved = tiny_session(train={"steps": 4, "precision": "auto"}).recipe["train"]["precision"]
    assert resolved == choose_precision("auto", CPU)
    with pytest.raises(RecipeError, match=r"recipe\.train\.precision"):
        tiny_session(train={"steps": 4, "precision": "fp8"})


def test_a_batch_that_does_not_divide_is_refused_with_one_that_would(monkeypatch):
    with pytest.raises(
        RecipeError, match=r"recipe\.train\.batch_size: .* 16 images do not .* 3 micro-batches .*accumulate.*; 15 would"
    ):
        tiny_session(train={"steps": 4, "batch_size": 16, "accumulate": 3})
    monkeypatch.setattr(building, "world", lambda: 5)
    with pytest.raises(RecipeError, match=r"16 images do not divide among 5 processes; 15 would"):
        tiny_session(train={"steps": 4, "batch_size": 16})


def test_blocks_are_found_in_encoder_and_decoder_alike():
    objective = tiny_objective(decoder_depth=2)
    assert blocks_of(objective) == [*objective.backbone.model.blocks, *objective.decoder_blocks]
    assert blocks_of(nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))) == []  # layers, not blocks of layers


def test_a_network_of_one_block_has_one():
    options = {**TINY_BACKBONE["options"], "depth": 1}
    session = tiny_session(
        {"use": "clmae", "depth": 1},
        backbone={**TINY_BACKBONE, "options": options},
        objective={"use": "reconstruct", "decoder_dim": 16, "decoder_depth": 1},
    )
    objective = session.objective
    assert blocks_of(objective) == [*objective.backbone.model.blocks, *objective.decoder_blocks]
    assert blocks_of(session.strategy) == [*session.strategy.blocks]


def test_the_blocks_of_stages_are_found_and_not_the_stages():
    def stage() -> nn.Module:
        return nn.Sequential(*(nn.Sequential(nn.Linear(2, 2), nn.ReLU()) for _ in range(2)))

    stages = nn.Sequential(stage(), stage())
    assert blocks_of(stages) == [block for each in stages for block in each]


def test_blocks_whose_averages_would_move_twice_are_not_computed_twice():
    options = {"layers": (2, 1, 1, 1), "channels": (8, 8, 16, 16)}
    with pytest.raises(RecipeError, match=r"recipe\.train\.recompute: this backbone has BatchNorms"):
        tiny_session(backbone={"timm": "resnet18", "options": options}, train={"recompute": True})


def test_a_teacher_computes_with_its_own_weights_when_blocks_are_recomputed():
    session = tiny_session("attmask", train={"steps": 4, "recompute": True})
    for weight in session.objective.parameters():
        weight.data.fill_(float("nan"))
    images = next(random_batches(1)).images
    assert session.teacher.module.backbone.attention(images).isfinite().all()


def test_recomputing_really_keeps_no_activations():
    calls = []
    objective = tiny_objective()
    block = objective.backbone.model.blocks[0]
    block.norm1.register_forward_hook(lambda *_: calls.append(1))
    recompute(objective)
    objective.backbone(next(random_batches(1)).images).sum().backward()
    assert len(calls) == 2  # forward, and again in the backward pass


def test_a_skipped_step_leaves_the_statistics_of_a_batch_norm_alone():
    session = tiny_session("clmae")
    session.objective.backbone.norm_of_pixels = nn.BatchNorm2d(3)
    session.objective.backbone.register_forward_pre_hook(
        lambda module, inputs: (module.norm_of_pixels(inputs[0]), *inputs[1:])
    )
    before = state_of(session.objective)
    batch = next(random_batches(1))
    bad = attrs.evolve(batch, images=torch.full_like(batch.images, float("nan")))
    assert next(train(session, [bad]))["skipped"] == 1.0
    assert same_state(session.objective, before)
    next(train(session, [batch]))
    assert not same_state(session.objective, before)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of the compiler's own
def test_compiled_blocks_keep_their_names_and_figures_and_do_not_recompile_as_the_ratio_moves():
    plain = tiny_session("clmae", masking={"ratio": "linear:0.4:0.9"}, train={"steps": 12})
    session = tiny_session("clmae", masking={"ratio": "linear:0.4:0.9"}, train={"steps": 12, "compile": True})
    assert session.objective.state_dict().keys() == plain.objective.state_dict().keys()
    torch._dynamo.utils.counters.clear()
    expected, figures = list(train(plain, random_batches(12))), []
    frames = []
    for step in train(session, random_batches(12)):
        figures.append(step)
        frames.append(torch._dynamo.utils.counters["frames"]["ok"])
    assert frames[0] > 0
    assert frames[-1] == frames[6]  # by then every kind of shape has been met
    for one, other in zip(expected, figures, strict=True):
        assert other["loss"] == pytest.approx(one["loss"], rel=1e-3)


@pytest.mark.slow
def test_learners_move_only_every_so_many_steps():
    session = tiny_session("clmae", masking={"strategy_every": 3}, optimizer={"lr": 1e-3}, train={"steps": 7})
    states, figures = [state_of(session.strategy)], []
    for step in train(session, random_batches(7)):
        figures.append(step)
        states.append(state_of(session.strategy))
    moved = [any(not torch.equal(a[name], b[name]) for name in a) for a, b in itertools.pairwise(states)]
    assert moved == [True, False, False, True, False, False, True]
    assert ["clmae/loss" in step for step in figures] == moved


def test_a_step_of_bad_figures_moves_neither_player_and_tells_no_strategy():
    session = tiny_session("clmae")
    told = []
    session.strategy.after_step = lambda *_: told.append(1)
    before = state_of(session.objective), state_of(session.strategy)
    batch = next(random_batches(1))
    batch = attrs.evolve(batch, images=torch.full_like(batch.images, float("nan")))
    figures = next(train(session, [batch]))
    assert figures["skipped"] == 1.0
    assert same_state(session.objective, before[0])
    assert same_state(session.strategy, before[1])
    assert told == []
    assert next(train(session, random_batches(1)))["skipped"] == 0.0
    assert told == [1]


def test_one_process_needs_no_wrapping():
    step = nn.Linear(2, 2)
    assert Engine(CPU).root(step) is step


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_a_gpu_trains_as_the_cpu_does(precision: str):
    exact = list(
        train(tiny_session("clmae", train={"steps": 4, "device": "cpu", "precision": "fp32"}), random_batches(4))
    )
    session = tiny_session("clmae", train={"steps": 4, "device": "cuda", "precision": precision})
    for one, other in zip(exact, train(session, random_batches(4)), strict=True):
        assert other["loss"] == pytest.approx(one["loss"], rel=1e-4 if precision == "fp32" else 0.03)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_step_waits_for_the_gpu_once():
    session = tiny_session("random", train={"steps": 8, "device": "cuda"})
    steps = train(session, random_batches(8))
    next(steps)
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with pytest.warns(UserWarning, match="synchroniz") as waits:
            next(steps)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert len([wait for wait in waits if "synchroniz" in str(wait.message)]) == 1
