"""Pixels that were not measured: filled before resizing, followed through crops and flips, and out of every loss."""

from __future__ import annotations

import copy
import math
from typing import Any

import attrs
import pytest
import torch
from helpers import REGISTRY, Images, noise_images, tiny_objective, tiny_session, with_holes
from torch import Tensor

from maskzoo import ContractError, Mask, Sample
from maskzoo.data.batches import batches
from maskzoo.data.prepare import cut_extra, cut_image, middle, prepare, prepare_extra
from maskzoo.data.whole import whole_batches
from maskzoo.evaluation.features import WholeImages
from maskzoo.evaluation.reconstruction import Reconstruction
from maskzoo.gallery import whole_images
from maskzoo.objectives.reconstruct import patchify
from maskzoo.protocols import Batch
from maskzoo.recipe import make
from maskzoo.train import train

STORED = (math.nan, 1e9, 0.0)
MEAN, STD = (0.5,) * 3, (0.25,) * 3


def some(dataset: Any, size: tuple[int, int] = (32, 32), **options: Any) -> list[Batch]:
    return list(batches(dataset, size=size, **{"batch_size": 8, "seed": 1, "start": 0, "steps": 2, **options}))


def grads(module: Any) -> list[Tensor]:
    return [p.grad for p in module.parameters() if p.requires_grad and p.grad is not None]


def learned(objective: Any, images: Tensor, mask: Mask) -> tuple[Tensor, list[Tensor]]:
    """The loss, and all gradients, of one step of a copy."""
    objective = copy.deepcopy(objective)
    loss = objective(images, mask).loss
    loss.backward()
    return loss.detach(), grads(objective)


# -------------------------------------------------------------------------------------------------------------- loading
@pytest.mark.parametrize("kind", [torch.uint8, torch.uint16, torch.float32], ids=str)
def test_nothing_that_is_stored_in_such_a_pixel_reaches_a_batch(kind: torch.dtype) -> None:
    holes = with_holes(noise_images(16))
    made = []
    for stored in (0.0, 1.0) if kind != torch.float32 else STORED:
        levels = torch.where(holes.valid, holes.images, stored)
        white = {torch.uint8: 255, torch.uint16: 65535, torch.float32: 1}[kind]
        dataset = attrs.evolve(holes, images=(levels * white).to(torch.int32).to(kind) if white > 1 else levels)
        made.append(some(dataset, (24, 40)))
    for batch, *others in zip(*made, strict=True):
        assert batch.images.isfinite().all()
        assert all(torch.equal(batch.images, other.images) for other in others)
        assert batch.extras["valid"].shape == batch.images.shape
        assert 0.05 < batch.extras["valid"].float().mean() < 0.95


@pytest.mark.parametrize(
    ("shape", "size"),
    [
        ((20, 31), (8, 8)),
        ((9, 9), (9, 30)),
        ((8, 8), (16, 16)),
        ((34, 25), (11, 8)),
        ((50, 3), (7, 9)),
        ((6, 6), (6, 6)),
    ],
)
def test_a_resized_pixel_is_valid_if_no_other_kind_of_pixel_has_a_part_in_it(
    shape: tuple[int, int], size: tuple[int, int]
) -> None:
    place = middle(*shape, size)
    plain = torch.rand(1, *shape, generator=torch.Generator().manual_seed(0))
    for row, column in [(0, 0), (shape[0] // 2, shape[1] // 2), (shape[0] // 3, shape[1] - 1)]:
        valid = torch.ones(1, *shape, dtype=torch.bool)
        valid[0, row, column] = False
        other = torch.where(valid, plain, 1e6)
        moved = (cut_image(other, place, size, (0.5,)) - cut_image(plain, place, size, (0.5,))).abs() > 1
        found = cut_extra(valid, place, size, "valid")
        assert not (found & moved).any()
        assert (~found).sum() <= moved.sum() * 2.3 + 2  # but not many more than need be


def test_the_whole_image_and_its_mask_are_cut_alike() -> None:
    image, valid = torch.full((1, 8, 16), 0.25), torch.ones(1, 8, 16, dtype=torch.bool)
    valid[0, :, 4:6] = False
    image[~valid] = math.nan
    assert torch.equal(prepare_extra(valid, (8, 8), "valid"), valid[..., 4:12])
    assert torch.equal(prepare(image, (8, 8), (0.5,), (0.25,), valid), torch.where(valid, -1.0, 0.0)[..., 4:12])


def test_an_image_without_a_mask_is_all_measured_beside_one_with() -> None:
    @attrs.define(eq=False, slots=False)
    class Half(Images):
        def __getitem__(self, index: int) -> Sample:
            sample = super().__getitem__(index)
            return sample if index % 2 else attrs.evolve(sample, extras={})

    plain = noise_images(16)
    dataset = Half(plain.images.float() / 255, valid=with_holes(plain).valid)
    for batch in some(dataset):
        measured = batch.extras["valid"].flatten(1).all(dim=1)
        assert torch.equal(measured, batch.index % 2 == 0)
    (whole,) = whole_batches(dataset, range(6), size=(32, 32), mean=MEAN, std=STD, batch_size=6)
    assert whole.valid is not None
    assert torch.equal(whole.valid.flatten(1).all(dim=1), torch.arange(6) % 2 == 0)


def test_pictures_are_of_filled_images_too() -> None:
    batch = whole_images(with_holes(noise_images(8)), (32, 32), 4)
    assert batch.images.isfinite().all()
    assert (batch.images[~batch.extras["valid"]] == 0).all()


# ---------------------------------------------------------------------------------------------------------------- masks
def masks() -> tuple[Mask, Tensor, Tensor]:
    """A mask over 2 x 3 patches of 2 x 2 pixels, which pixels are valid, and which patches have one."""
    valid = torch.zeros(1, 2, 4, 6, dtype=torch.bool)
    valid[0, 1, 1, 0] = valid[0, 0, 2, 3] = valid[0, :, 3, 5] = True
    noise = torch.tensor([[0.9, 0.8, 0.7, 0.6, 0.5, 0.4]])
    return Mask.hide_top(noise, 3), valid, torch.tensor([[True, False, False, False, True, True]])


def test_a_patch_without_a_measured_pixel_weighs_nothing() -> None:
    mask, valid, measured = masks()
    over = mask.over(valid, (2, 3))
    assert torch.equal(over.measured, measured)
    assert torch.equal(over.hidden, mask.hidden)
    assert over.weights.tolist() == [[1, 0, 0, 0, 0, 0]]
    assert over.inverted().weights.tolist() == [[0, 0, 0, 0, 1, 1]]
    finer = over.enlarge((2, 3), 2)
    assert torch.equal(finer.weights, mask.enlarge((2, 3), 2).weights * finer.measured)
    assert torch.equal(finer.inverted().weights.bool(), ~finer.hidden & finer.measured)


def test_a_patch_without_a_measured_pixel_weighs_nothing_under_a_soft_mask_and_has_no_gradient() -> None:
    _, valid, measured = masks()
    chances = torch.tensor([[0.9, 0.8, 0.7, 0.6, 0.5, 0.4]], requires_grad=True)
    soft = Mask.soft(chances, 3).over(valid, (2, 3))
    assert torch.equal(soft.weights, chances * measured)
    torch.testing.assert_close(soft.inverted().weights, (1 - chances) * measured)
    soft.mean(torch.arange(6.0)[None]).backward()
    assert torch.equal(chances.grad != 0, measured)


@pytest.mark.parametrize(
    "valid", [torch.ones(1, 2, 4, 6), torch.ones(2, 2, 4, 6) > 0, torch.ones(1, 2, 5, 6) > 0, torch.ones(1, 4, 6) > 0]
)
def test_what_is_no_mask_of_these_images_is_refused(valid: Tensor) -> None:
    with pytest.raises(ContractError, match=r"extras\['valid'\] must be bool \[1, C, \*size\]"):
        masks()[0].over(valid, (2, 3))


# ----------------------------------------------------------------------------------------------------------- objectives
TARGETS = [
    {"target": "pixels"},
    {"target": "norm_pixels"},
    {"target": "norm_pixels", "loss": "l1"},
    {"target": "hog"},
]


def case(**options: Any) -> tuple[Any, Tensor, Tensor, Mask]:
    """An objective, images, which of their pixels are valid, and a mask of half of the patches."""
    objective = tiny_objective(**options)
    (batch,) = some(with_holes(noise_images(8)), steps=1)
    noise = torch.rand(8, math.prod(objective.backbone.grid), generator=torch.Generator().manual_seed(0))
    return objective, batch.images, batch.extras["valid"], Mask.hide_top(noise, noise.shape[1] // 2)


@pytest.mark.parametrize("options", TARGETS, ids=str)
def test_where_all_is_measured_a_step_is_what_it_always_was_to_the_bit(options: dict[str, Any]) -> None:
    objective, images, valid, mask = case(**options)
    plain = learned(objective, images, mask)
    marked = learned(objective, images, mask.over(torch.ones_like(valid), objective.backbone.grid))
    assert torch.equal(plain[0], marked[0])
    assert all(torch.equal(one, other) for one, other in zip(plain[1], marked[1], strict=True))


@pytest.mark.parametrize("options", TARGETS, ids=str)
def test_a_step_depends_on_nothing_that_is_stored_where_nothing_was_measured(options: dict[str, Any]) -> None:
    objective = tiny_objective(**options)
    steps = []
    for stored in STORED:
        (batch,) = some(with_holes(noise_images(8), stored), steps=1)
        noise = torch.rand(8, math.prod(objective.backbone.grid), generator=torch.Generator().manual_seed(0))
        mask = Mask.hide_top(noise, noise.shape[1] // 2).over(batch.extras["valid"], objective.backbone.grid)
        steps.append(learned(objective, batch.images, mask))
    first, *others = steps
    assert first[0].isfinite()
    assert first[0] > 0
    for other in others:
        assert torch.equal(first[0], other[0])
        assert all(torch.equal(one, another) for one, another in zip(first[1], other[1], strict=True))


@pytest.mark.parametrize("options", TARGETS, ids=str)
def test_the_loss_of_hidden_patches_is_that_of_their_valid_pixels(options: dict[str, Any]) -> None:
    objective, images, valid, mask = case(**options)
    patch, grid = objective.backbone.patch_size, objective.backbone.grid
    hidden = mask.hidden_on(grid, patch).view(8, 1, 32, 32)
    over = mask.over(valid, grid)
    loss = objective(images, over).loss
    assert loss > 0
    other = torch.where(hidden & ~valid, 7.0, images)  # the encoder does not see these
    assert torch.equal(objective(other, over).loss, loss)
    assert not torch.equal(objective(other, mask).loss, objective(images, mask).loss)


def test_pixels_are_normalised_by_the_moments_of_the_valid_ones() -> None:
    objective, images, valid, _ = case(target="norm_pixels")
    targets = objective.targets(images, valid)
    cut = patchify(valid, objective.backbone.patch_size)
    pixels = patchify(images, objective.backbone.patch_size)
    for image, patch in ((0, 5), (3, 17), (5, 40)):
        known = cut[image, patch]
        some_of = pixels[image, patch][known]
        if len(some_of) > 1:
            expected = (some_of - some_of.mean()) / (some_of.var() + 1e-6).sqrt()
            torch.testing.assert_close(targets[image, patch][known], expected)
    assert targets.isfinite().all()


@pytest.mark.parametrize("options", [*TARGETS, {"use": "distill"}], ids=str)
def test_a_batch_without_a_measured_hidden_pixel_has_loss_0_and_finite_gradients(options: dict[str, Any]) -> None:
    if options.get("use") == "distill":
        objective = make(REGISTRY, "objective", {"use": "distill", "decoder_dim": 16, "decoder_depth": 1}, "objective")
        objective.setup(tiny_objective().backbone)
    else:
        objective = tiny_objective(**options)
    images = torch.zeros(2, 3, 32, 32)
    mask = Mask.hide_top(torch.rand(2, math.prod(objective.backbone.grid)), 20).over(
        images > 1, objective.backbone.grid
    )
    outcome = objective(images, mask, teacher=copy.deepcopy(objective))
    outcome.loss.backward()
    assert outcome.loss == 0
    assert outcome.patch_loss.isfinite().all()
    assert all(grad.isfinite().all() for grad in grads(objective))


@pytest.mark.parametrize(
    "strategy",
    [
        "random",
        "block",
        "clmae",
        "attmask",
        {"use": "mix", "parts": ["random", "clmae"]},
        {"use": "union", "parts": ["random", "attmask"]},
    ],
    ids=str,
)
@pytest.mark.parametrize("objective", ["reconstruct", "distill"])
@pytest.mark.sampled(5)
def test_every_masker_trains_on_images_with_holes(strategy: Any, objective: str) -> None:
    dataset = with_holes(noise_images(16))
    chosen = {"use": objective, "decoder_dim": 16, "decoder_depth": 1}
    session = tiny_session(strategy, dataset, objective=chosen, train={"steps": 2, "batch_size": 8})
    for figures in train(session, some(dataset)):
        assert figures["skipped"] == 0
        assert math.isfinite(figures["loss"])
        assert figures["loss"] > 0


def test_a_run_of_images_without_a_measured_pixel_moves_on() -> None:
    dataset = with_holes(noise_images(16))
    dataset = attrs.evolve(dataset, valid=torch.zeros_like(dataset.valid))
    session = tiny_session("clmae", dataset, train={"steps": 2, "batch_size": 8})
    assert [figures["loss"] for figures in train(session, some(dataset))] == [0, 0]
    assert all(parameter.isfinite().all() for parameter in session.objective.parameters())


# ----------------------------------------------------------------------------------------------------------- evaluation
def test_the_reconstruction_loss_counts_measured_pixels_alone() -> None:
    objective = tiny_objective()
    plain = noise_images(10)

    def loss(dataset: Images) -> float:
        (metric,) = Reconstruction()(
            WholeImages(objective.backbone, dataset, (32, 32), objective=objective, batch_size=4), dataset
        )
        return metric.value

    floats = attrs.evolve(plain, images=plain.images.float() / 255)
    assert loss(floats) == loss(attrs.evolve(floats, valid=torch.ones(plain.images.shape, dtype=torch.bool)))
    lossy = {loss(with_holes(plain, stored)) for stored in STORED}
    assert len(lossy) == 1
    assert math.isfinite(lossy.pop())
    with pytest.raises(ContractError, match="no hidden patch has a pixel that was measured"):
        loss(attrs.evolve(floats, valid=torch.zeros(plain.images.shape, dtype=torch.bool)))
