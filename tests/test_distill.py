"""Foretelling the teacher's features: the target, the loss, who gets a gradient, and whole runs.

Shapes: B images, N patches, P prefix tokens, D channels of the encoder.
"""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from helpers import random_images, same_state, state_of, tiny_session
from torch import Tensor

from maskzoo import ContractError, Mask, Teacher
from maskzoo.backbones.swin import SwinBackbone
from maskzoo.backbones.vit import VitBackbone
from maskzoo.objectives.distill import Distill
from maskzoo.protocols import Batch
from maskzoo.train import train

TINY = {"embed_dim": 24, "depth": 1, "num_heads": 2}
BACKBONES = {
    "vit": lambda: VitBackbone(image_size=(24, 32), patch_size=8, options=TINY),
    "registers": lambda: VitBackbone(
        timm="vit_small_patch16_dinov3", image_size=(24, 32), patch_size=8, options={**TINY, "num_heads": 2}
    ),
    "dense vit": lambda: VitBackbone(image_size=(24, 32), patch_size=8, options=TINY, mask_token=True),
    "swin": lambda: SwinBackbone(
        image_size=(24, 32), window_size=4, options={"embed_dim": 12, "depths": [1, 1], "num_heads": [1, 2]}
    ),
}
PATCHES = 12
HIDDEN = 8


def build(backbone: str = "vit", seed: int = 0, **options: Any) -> Distill:
    """A small objective in eval mode, its weights shaken so that nothing begins at zero."""
    torch.manual_seed(seed)
    objective = Distill(**{"decoder_dim": 16, "decoder_depth": 1, **options})
    objective.setup(BACKBONES[backbone]())
    with torch.no_grad():
        for parameter in objective.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return objective.eval()


def pictures(batch: int = 3, seed: int = 1) -> Tensor:
    return random_images(batch, height=24, width=32, seed=seed)


def chances(batch: int = 3) -> Tensor:
    return torch.rand(batch, PATCHES, generator=torch.Generator().manual_seed(2))


def some_hidden(batch: int = 3) -> Mask:
    return Mask.hide_top(chances(batch), HIDDEN)


@pytest.mark.parametrize("backbone", BACKBONES)
def test_the_target_is_what_the_teacher_makes_of_whole_images_normalised_by_patch(backbone: str):
    objective, teacher = build(backbone), build(backbone, seed=1)
    images = pictures()
    target = objective.targets(images, teacher)
    assert target.shape == (3, PATCHES, objective.backbone.dim)
    assert target.dtype == torch.float32
    with torch.no_grad():
        latent = teacher.backbone(images)[:, teacher.backbone.prefix :].double().numpy()
    for image, patch in np.ndindex(3, PATCHES):
        features = latent[image, patch]
        expected = (features - features.mean()) / np.sqrt(features.var() + 1e-5)
        np.testing.assert_allclose(target[image, patch].numpy(), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("beta", [1.0, 0.3, 2.0])
@pytest.mark.parametrize("kind", ["hard", "soft"])
@pytest.mark.parametrize("backbone", BACKBONES)
def test_the_loss_is_the_weighted_mean_of_each_patchs_smooth_distance(backbone: str, kind: str, beta: float):
    objective, teacher = build(backbone, beta=beta), build(backbone, seed=1)
    images = pictures()
    mask = some_hidden() if kind == "hard" else Mask.soft(chances(), HIDDEN)
    with torch.no_grad():
        outcome = objective(images, mask, teacher=teacher)
    prediction, target = outcome.prediction.double(), objective.targets(images, teacher).double()
    assert prediction.shape == target.shape
    apart = (prediction - target).abs()
    assert (apart < beta).any() and (apart > beta).any()  # noqa: PT018
    smooth = torch.where(apart < beta, apart**2 / (2 * beta), apart - beta / 2).mean(dim=2)
    torch.testing.assert_close(outcome.patch_loss.double(), smooth, rtol=1e-5, atol=1e-6)
    expected = (smooth * mask.weights).sum() / mask.weights.sum()
    assert outcome.loss.item() == pytest.approx(expected.item(), rel=1e-5)
    assert outcome.decoder_input.shape == (3, objective.backbone.prefix + PATCHES, 16)
    assert outcome.latent.shape[2] == objective.backbone.dim


def test_a_hidden_pixel_reaches_the_target_and_not_the_prediction():
    objective, teacher = build(), build(seed=1)
    images, mask = pictures(), some_hidden()
    other = torch.where(mask.hidden_on((3, 4), 8).view(3, 1, 24, 32), images + 1, images)
    with torch.no_grad():
        first, second = (objective(these, mask, teacher=teacher) for these in (images, other))
    assert torch.equal(first.prediction, second.prediction)
    assert ((first.patch_loss - second.patch_loss).abs() > 1e-6).all()


def test_the_teacher_is_looked_at_and_nothing_else_of_it():
    objective, teacher = build(), build(seed=1)
    outcome = objective(pictures(), some_hidden(), teacher=teacher)
    decoder_of_another = build(seed=2)
    decoder_of_another.backbone = teacher.backbone
    assert torch.equal(objective(pictures(), some_hidden(), teacher=decoder_of_another).loss, outcome.loss)
    assert not torch.equal(objective(pictures(), some_hidden(), teacher=objective).loss, outcome.loss)


@pytest.mark.parametrize("backbone", BACKBONES)
def test_every_parameter_gets_a_gradient_and_the_teacher_none(backbone: str):
    objective, teacher = build(backbone), build(backbone, seed=1)
    teacher.requires_grad_(True)
    objective(pictures(), some_hidden(), teacher=teacher).loss.backward()
    for name, parameter in objective.named_parameters():
        assert parameter.grad is not None, f"{name}, which DDP would not forgive"
        assert parameter.grad.isfinite().all(), name
        assert (parameter.grad != 0).any(), name
    assert all(parameter.grad is None for parameter in teacher.parameters())


@pytest.mark.parametrize("backbone", BACKBONES)
def test_a_soft_mask_carries_a_gradient_to_the_chances(backbone: str):
    objective, teacher = build(backbone), build(backbone, seed=1)
    scores = chances().requires_grad_()
    outcome = objective(pictures(), Mask.soft(scores, HIDDEN), teacher=teacher)
    (outcome.patch_loss.sum()).backward()  # by the visibility alone, since the weights are in the mean
    assert scores.grad.isfinite().all()
    assert (scores.grad != 0).all()


def test_the_spread_of_the_target_tells_collapsed_from_telling_features():
    objective, teacher = build(), build(seed=1)
    images, mask = pictures(), some_hidden()

    def spread(images: Tensor) -> float:
        metric = objective(images, mask, teacher=teacher).metrics["target_spread"]
        assert not metric.requires_grad
        return metric.item()

    expected = objective.targets(images, teacher).double().numpy().std(axis=0).mean()
    assert spread(images) == pytest.approx(expected, rel=1e-5)
    assert spread(images) > 0.01
    assert spread(images[:1].expand(3, -1, -1, -1)) == pytest.approx(0.0, abs=1e-5)
    one = objective(images[:1], Mask.hide_top(chances(1), HIDDEN), teacher=teacher)
    assert one.metrics["target_spread"] == 0


def test_the_loss_is_float32_and_finite_under_autocast():
    objective, teacher = build(), build(seed=1)
    images, mask = pictures(), some_hidden()
    exact = objective(images, mask, teacher=teacher)
    with torch.autocast("cpu", torch.bfloat16):
        outcome = objective(images, mask, teacher=teacher)
        assert objective.targets(images, teacher).dtype == torch.float32
    assert outcome.loss.dtype == outcome.patch_loss.dtype == outcome.prediction.dtype == torch.float32
    torch.testing.assert_close(outcome.loss, exact.loss, rtol=0.05, atol=0.05)


def test_no_teacher_no_class_no_picture():
    objective = build()
    with pytest.raises(ContractError, match="'distill' learns from a teacher, and there is none"):
        objective(pictures(), some_hidden())
    assert objective.predict(pictures()) is None
    assert objective.picture(pictures(), some_hidden()) is None
    with pytest.raises(ValueError, match="beta"):
        Distill(beta=0.0)


@pytest.mark.parametrize("backbone", ["vit", "swin"])
@pytest.mark.sampled(1)
def test_a_tiny_model_learns_what_a_fixed_teacher_says_of_one_batch(backbone: str):
    objective, teacher = build(backbone, decoder_dim=32).train(), Teacher(build(backbone, seed=1))
    before = state_of(teacher)
    images, mask = pictures(), some_hidden()
    optimizer = torch.optim.Adam(objective.parameters(), lr=5e-3)
    losses = []
    for _ in range(60):
        optimizer.zero_grad()
        loss = objective(images, mask, teacher=teacher.module).loss
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] / 3
    assert same_state(teacher, before)


DISTILL = {"use": "distill", "decoder_dim": 16, "decoder_depth": 1}


@pytest.mark.parametrize("masker", ["random", "attmask", "clmae"])
@pytest.mark.slow
def test_a_run_distils_under_any_masker_without_labels(masker: str):
    session = tiny_session(
        masker, objective=DISTILL, train={"steps": 12}, optimizer={"lr": 5e-3}, teacher={"decay": 1.0}
    )
    assert session.teacher is not None
    student, teacher = state_of(session.objective), state_of(session.teacher)
    strategy = state_of(session.strategy)
    batch = Batch(random_images(), None, torch.arange(6))
    figures = list(train(session, [batch] * 12))
    assert all(np.isfinite(list(figure.values())).all() for figure in figures)
    assert figures[-1]["loss"] < figures[0]["loss"] * 0.9
    assert figures[0]["target_spread"] > 0
    assert not same_state(session.objective, student)
    assert same_state(session.teacher, teacher)  # which follows not at all at a decay of 1
    assert same_state(session.strategy, strategy) == (masker != "clmae")


def test_the_target_moves_with_the_teacher():
    session = tiny_session("random", objective=DISTILL, train={"steps": 2}, teacher={"decay": 0.5})
    probe = copy.deepcopy(session.objective).eval()
    images = random_images()
    before = probe.targets(images, session.teacher.module)
    list(train(session, [Batch(images, None, torch.arange(6))] * 2))
    assert not torch.allclose(probe.targets(images, session.teacher.module), before)
