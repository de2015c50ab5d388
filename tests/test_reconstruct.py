"""Rebuilding pixels: the patches, their target, the loss, the decoder, and the picture.

Shapes: B images, N patches, V visible, P prefix tokens, D channels of the encoder, E channels of the decoder.
"""

from __future__ import annotations

import copy
import functools
import itertools
import math
from typing import Any

import numpy as np
import pytest
import torch
from helpers import REGISTRY
from torch import Tensor

from maskzoo import ContractError, Mask, Recipe, RecipeError
from maskzoo.backbones.swin import SwinBackbone
from maskzoo.backbones.vit import VitBackbone
from maskzoo.objectives.hog import hog
from maskzoo.objectives.reconstruct import Reconstruct, patchify, unpatchify
from maskzoo.recipe import completed, make

IMAGES = 3
GRID = (3, 4)
PATCHES = math.prod(GRID)
PATCH = (8, 4)
HIDDEN = 8
WIDTH = 32


def build(
    seed: int = 0,
    channels: int = 3,
    backbone: dict[str, Any] | None = None,
    kind: type[VitBackbone] = VitBackbone,
    **options: Any,
) -> Reconstruct:
    """A small objective in eval mode, its weights shaken so that nothing begins at zero."""
    torch.manual_seed(seed)
    encoder = kind(
        **{
            "timm": "vit_tiny_patch16_224",
            "image_size": (GRID[0] * PATCH[0], GRID[1] * PATCH[1]),
            "patch_size": PATCH,
            "channels": channels,
            "options": {"embed_dim": 24, "depth": 1, "num_heads": 2},
            **(backbone or {}),
        }
    )
    objective = Reconstruct(**{"decoder_dim": WIDTH, "decoder_depth": 1, **options})
    objective.setup(encoder)
    with torch.no_grad():
        for parameter in objective.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter) * 0.1)
    return objective.eval()


@functools.cache
def shared(target: str = "norm_pixels") -> Reconstruct:
    """One build for all tests that change nothing."""
    with torch.random.fork_rng():
        return build(target=target)


def uniform(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


def pictures(objective: Reconstruct, batch: int = IMAGES) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(batch, objective.backbone.channels, *objective.backbone.image_size, generator=generator)


def some_hidden(count: int = HIDDEN, batch: int = IMAGES) -> Mask:
    return Mask.hide_top(uniform(batch, PATCHES, seed=2), count)


def soft(batch: int = IMAGES) -> Mask:
    return Mask.soft(uniform(batch, PATCHES, seed=3), HIDDEN)


def hidden_pixels(mask: Mask) -> Tensor:
    """[B, 1, H, W], by brute force."""
    pixels = torch.zeros(len(mask.hidden), 1, GRID[0] * PATCH[0], GRID[1] * PATCH[1], dtype=torch.bool)
    for image, patch in mask.hidden.nonzero().tolist():
        row, column = divmod(patch, GRID[1])
        pixels[image, :, row * PATCH[0] : (row + 1) * PATCH[0], column * PATCH[1] : (column + 1) * PATCH[1]] = True
    return pixels


# ------------------------------------------------------------------------------------------------------------- patches
@pytest.mark.parametrize("channels", [1, 3, 5])
@pytest.mark.parametrize(("grid", "patch"), [((2, 2), (4, 4)), ((3, 5), (2, 2)), ((2, 3), (4, 2)), ((4, 1), (1, 3))])
def test_patches_are_in_the_order_row_column_channel(channels: int, grid: tuple[int, int], patch: tuple[int, int]):
    images = uniform(2, channels, grid[0] * patch[0], grid[1] * patch[1])
    patches = patchify(images, patch)
    assert patches.shape == (2, grid[0] * grid[1], patch[0] * patch[1] * channels)
    for image, row, column in itertools.product(range(2), range(grid[0]), range(grid[1])):
        values = [
            images[image, channel, row * patch[0] + y, column * patch[1] + x]
            for y in range(patch[0])
            for x in range(patch[1])
            for channel in range(channels)
        ]
        assert torch.equal(patches[image, row * grid[1] + column], torch.stack(values))
    assert torch.equal(unpatchify(patches, grid, patch), images)


@pytest.mark.parametrize("channels", [1, 3])
def test_the_normalised_target_has_the_unbiased_variance_of_each_patch(channels: int):
    objective = build(channels=channels)
    images = pictures(objective) * 3 + 1
    images[0, :, : PATCH[0], : PATCH[1]] = 0.5  # a flat patch has no variance but the 1e-6, a faint one little more
    images[1, :, : PATCH[0], : PATCH[1]] = (images[1, :, : PATCH[0], : PATCH[1]] - 1) * 2**-10
    patches = patchify(images, PATCH).double().numpy()
    expected = np.empty_like(patches)
    for image, patch in np.ndindex(IMAGES, PATCHES):
        pixels = patches[image, patch]
        variance = ((pixels - pixels.mean()) ** 2).sum() / (len(pixels) - 1)
        expected[image, patch] = (pixels - pixels.mean()) / math.sqrt(variance + 1e-6)
    target = objective.targets(images)
    assert target.dtype == torch.float32
    np.testing.assert_allclose(target.numpy(), expected, rtol=1e-4, atol=1e-4)
    assert (target[0, 0] == 0).all()


def test_the_plain_target_is_the_pixels_themselves():
    objective = shared("pixels")
    images = pictures(objective)
    assert torch.equal(objective.targets(images), patchify(images, PATCH))
    assert objective.targets(images.bfloat16()).dtype == torch.float32


@pytest.mark.filterwarnings("ignore:var")
def test_patches_of_one_value_have_a_finite_normalised_target_or_are_refused():
    try:
        objective = build(channels=1, backbone={"image_size": (3, 4), "patch_size": 1})
    except RecipeError:
        return
    assert objective.targets(pictures(objective)).isfinite().all()


# ---------------------------------------------------------------------------------------------------------------- loss
@pytest.mark.parametrize("target", ["norm_pixels", "pixels"])
@pytest.mark.parametrize("mask", [some_hidden(), some_hidden(1), some_hidden(PATCHES), soft()], ids=range(4))
def test_the_loss_is_the_weighted_mean_of_each_patchs_squared_error(target: str, mask: Mask):
    objective = shared(target)
    images = pictures(objective)
    with torch.no_grad():
        outcome = objective(images, mask)
    assert outcome.prediction.shape == (IMAGES, PATCHES, PATCH[0] * PATCH[1] * 3)
    assert outcome.prediction.isfinite().all()
    assert outcome.patch_loss.shape == (IMAGES, PATCHES)
    prediction, target = outcome.prediction.double().numpy(), objective.targets(images).double().numpy()
    total = weights = 0.0
    for image, patch in np.ndindex(IMAGES, PATCHES):
        error = sum((p - t) ** 2 for p, t in zip(prediction[image, patch], target[image, patch], strict=True))
        error /= target.shape[2]
        assert outcome.patch_loss[image, patch].item() == pytest.approx(error, rel=1e-4)
        total += error * mask.weights[image, patch].item()
        weights += mask.weights[image, patch].item()
    assert outcome.loss.shape == ()
    assert outcome.loss.item() == pytest.approx(total / weights, rel=1e-5)
    if mask.visibility is None:
        assert outcome.loss.item() == pytest.approx(outcome.patch_loss[mask.hidden].mean().item(), rel=1e-5)


def test_weights_of_ones_own_are_respected():
    objective = shared()
    images, hidden = pictures(objective), some_hidden().hidden
    weights = uniform(IMAGES, PATCHES, seed=9)
    with torch.no_grad():
        outcome = objective(images, Mask(hidden, HIDDEN, weights=weights))
    assert outcome.loss.item() == pytest.approx(((outcome.patch_loss * weights).sum() / weights.sum()).item())


def test_the_loss_does_not_look_at_the_target_of_visible_patches(monkeypatch: pytest.MonkeyPatch):
    objective = copy.deepcopy(shared())
    images, mask = pictures(objective), some_hidden()
    target = objective.targets(images)
    with torch.no_grad():
        loss = objective(images, mask).loss
        for hidden_alone, same in [(False, True), (True, False)]:
            where = mask.hidden if hidden_alone else ~mask.hidden
            other = torch.where(where[..., None], target + 5, target)
            monkeypatch.setattr(objective, "targets", lambda images, other=other: other)
            assert torch.equal(objective(images, mask).loss, loss) == same


def test_hidden_pixels_reach_the_target_and_nothing_else():
    objective = shared("pixels")
    images, mask = pictures(objective), some_hidden()
    pixels = hidden_pixels(mask)
    with torch.no_grad():
        clean = objective(images, mask)
        broken = objective(images.masked_fill(pixels, math.nan), mask)
    assert torch.equal(broken.latent, clean.latent)
    assert torch.equal(broken.decoder_input, clean.decoder_input)
    assert torch.equal(broken.prediction, clean.prediction)
    assert torch.equal(broken.patch_loss.isnan(), mask.hidden)
    assert torch.equal(broken.patch_loss[~mask.hidden], clean.patch_loss[~mask.hidden])
    assert broken.loss.isnan()


@pytest.mark.parametrize("mask", [some_hidden(), soft()], ids=["hard", "soft"])
def test_the_loss_is_float32_and_finite_under_autocast(mask: Mask):
    objective = copy.deepcopy(shared())
    images = pictures(objective)
    with torch.no_grad():
        exact = objective(images, mask)
    with torch.autocast("cpu", torch.bfloat16):
        outcome = objective(images, mask)
    assert outcome.loss.dtype == outcome.patch_loss.dtype == outcome.prediction.dtype == torch.float32
    torch.testing.assert_close(outcome.loss, exact.loss, rtol=0.05, atol=0.05)
    outcome.loss.backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in objective.parameters())


def test_gradients_reach_every_parameter_under_a_hard_mask():
    objective = build(decoder_depth=2)
    objective(pictures(objective), some_hidden()).loss.backward()
    for name, parameter in objective.named_parameters():
        assert parameter.grad is not None, f"{name}, which DDP would not forgive"
        assert parameter.grad.isfinite().all(), name
        assert (parameter.grad != 0).any(), name


def test_a_mask_that_hides_nothing_has_a_finite_loss_or_is_refused():
    objective = shared()
    try:
        loss = objective(pictures(objective), some_hidden(0)).loss
    except ContractError:
        return
    assert loss.isfinite()


@pytest.mark.parametrize("mask", [some_hidden(), soft()], ids=["hard", "soft"])
@pytest.mark.parametrize("target", ["norm_pixels", "pixels", "hog"])
def test_the_loss_may_be_the_absolute_difference(target: str, mask: Mask):
    objective = build(loss="l1", target=target)
    images = pictures(objective)
    with torch.no_grad():
        outcome = objective(images, mask)
    apart = (outcome.prediction.double() - objective.targets(images).double()).abs().mean(dim=2)
    torch.testing.assert_close(outcome.patch_loss.double(), apart, rtol=1e-5, atol=1e-6)
    assert outcome.loss.item() == pytest.approx(((apart * mask.weights).sum() / mask.weights.sum()).item(), rel=1e-5)


def test_gradients_of_the_image_are_a_target_that_makes_no_picture():
    objective = build(target="hog", channels=2)
    images, mask = pictures(objective), some_hidden()
    with torch.no_grad():
        outcome = objective(images, mask)
    assert torch.equal(objective.targets(images), hog(images, PATCH))
    assert outcome.prediction.shape == (IMAGES, PATCHES, 2 * 9)  # a cell of 8 x 4, with 9 bins a channel
    expected = (outcome.prediction - hog(images, PATCH)).square().mean(dim=2)
    torch.testing.assert_close(outcome.patch_loss, expected)
    assert objective.picture(images, mask) is None


# --------------------------------------------------------------------------------------------------------- linear head
def small_swin(channels: int = 3) -> SwinBackbone:
    options = {"embed_dim": 12, "depths": [1, 1], "num_heads": [1, 2]}
    return SwinBackbone(image_size=(24, 32), window_size=4, channels=channels, options=options)


def linear(encoder: Any, **options: Any) -> Reconstruct:
    objective = Reconstruct(decoder="linear", **options)
    objective.setup(encoder)
    return objective.eval()


def dense_vit() -> VitBackbone:
    options = {"embed_dim": 24, "depth": 1, "num_heads": 2}
    return VitBackbone(image_size=(24, 32), patch_size=8, options=options, mask_token=True)


@pytest.mark.parametrize("mask", [some_hidden(), soft()], ids=["hard", "soft"])
@pytest.mark.parametrize("encoder", [small_swin, dense_vit])
def test_a_linear_head_maps_each_patchs_own_latent(encoder: Any, mask: Mask):
    objective = linear(encoder())
    assert {name for name, _ in objective.named_parameters() if not name.startswith("backbone.")} == {
        "decoder_pred.weight",
        "decoder_pred.bias",
    }
    images = pictures(objective)
    outcome = objective(images, mask)
    prefix = objective.backbone.prefix
    assert outcome.latent.shape == (IMAGES, prefix + PATCHES, objective.backbone.dim)
    assert outcome.decoder_input is outcome.latent
    weight, bias = objective.decoder_pred.weight, objective.decoder_pred.bias
    torch.testing.assert_close(outcome.prediction, outcome.latent[:, prefix:] @ weight.T + bias)
    assert outcome.prediction.shape == (IMAGES, PATCHES, 8 * 8 * 3)
    outcome.loss.backward()
    assert all(p.grad.isfinite().all() and (p.grad != 0).any() for p in (weight, bias))
    picture, _ = objective.picture(images, mask)
    assert picture.shape == images.shape


def test_a_linear_head_is_refused_where_hidden_patches_leave_no_latent():
    with pytest.raises(RecipeError, match=r"drops hidden patches.*mask_token = true") as caught:
        build(decoder="linear")
    assert caught.value.key == "decoder"


@pytest.mark.parametrize("decoder", ["linear", "transformer"])
@pytest.mark.parametrize("encoder", [small_swin, dense_vit])
def test_every_parameter_over_a_dense_encoder_gets_a_gradient(encoder: Any, decoder: str):
    objective = Reconstruct(decoder=decoder, decoder_dim=16, decoder_depth=1)
    objective.setup(encoder())
    objective(pictures(objective), some_hidden()).loss.backward()
    for name, parameter in objective.named_parameters():
        assert parameter.grad is not None, f"{name}, which DDP would not forgive"


@pytest.mark.slow
def test_a_linear_head_learns_one_batch_by_heart():
    torch.manual_seed(0)
    objective = linear(small_swin(), loss="l1", target="pixels").train()
    images, mask = pictures(objective, 2), some_hidden(6, 2)
    optimizer = torch.optim.Adam(objective.parameters(), lr=5e-3)
    losses = []
    for _ in range(60):
        optimizer.zero_grad()
        loss = objective(images, mask).loss
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] * 0.75  # a head that sees nothing stays near 0.8, the mean of |noise|


# -------------------------------------------------------------------------------------------------------------- fusion
class Staged(VitBackbone):
    """A ViT without a class token that shows, as two stages, its embedding's first channels and its latent."""

    stage_dims = (10, 24)

    def stages(self, images: Tensor, mask: Mask | None = None) -> list[Tensor]:
        patches = self.tokens(images)
        early = patches if mask is None or mask.visibility is not None else mask.keep(patches)
        return [early[..., :10], self(images, mask)]


STAGED = {"options": {"embed_dim": 24, "depth": 1, "num_heads": 2, "class_token": False}}


@pytest.mark.parametrize("mask", [some_hidden(), soft()], ids=["hard", "soft"])
def test_what_several_stages_see_is_mapped_summed_and_normalised(mask: Mask):
    objective = build(backbone=STAGED, kind=Staged)
    images = pictures(objective)
    outcome = objective(images, mask)
    first, second = objective.backbone.stages(images, mask)
    early, late = objective.fusion_maps
    total = first @ early.weight.T + early.bias + second @ late.weight.T + late.bias
    normalised = (total - total.mean(dim=2, keepdim=True)) / (
        total.var(dim=2, correction=0, keepdim=True) + 1e-6
    ).sqrt()
    expected = normalised * objective.fusion_norm.weight + objective.fusion_norm.bias
    torch.testing.assert_close(outcome.latent, expected, rtol=1e-4, atol=1e-5)
    embedded = objective.decoder_embed(outcome.latent)
    whole = mask.restore(embedded, objective.mask_token) + objective.decoder_pos_embed
    torch.testing.assert_close(outcome.decoder_input, whole)
    outcome.loss.backward()
    assert all((p.grad != 0).any() for layer in (early, late, objective.fusion_norm) for p in layer.parameters())


def test_without_fusion_the_decoder_sees_the_latent_alone():
    objective = build(backbone=STAGED, kind=Staged, fusion=False)
    images, mask = pictures(objective), some_hidden()
    assert torch.equal(objective(images, mask).latent, objective.backbone(images, mask))


def test_fusion_builds_nothing_without_stages_and_leaves_the_other_weights_as_they_were():
    assert build(fusion=True).state_dict().keys() == build(fusion=False).state_dict().keys()
    assert not [name for name in build().state_dict() if "fusion" in name]

    def weights(fusion: bool) -> dict[str, Tensor]:
        torch.manual_seed(0)
        objective = Reconstruct(decoder_dim=16, decoder_depth=1, fusion=fusion)
        objective.setup(Staged(image_size=(24, 32), patch_size=8, **STAGED))
        return objective.state_dict()

    fused, plain = weights(True), weights(False)
    assert plain.keys() < fused.keys()
    assert all(torch.equal(fused[name], value) for name, value in plain.items())


# ------------------------------------------------------------------------------------------------------------- decoder
@pytest.mark.parametrize(
    ("timm", "options", "prefix"),
    [
        ("vit_tiny_patch16_224", {}, 1),
        ("vit_tiny_patch16_224", {"class_token": False}, 0),
        ("vit_small_patch16_dinov3", {}, 5),
    ],
)
def test_prefix_tokens_pass_through_the_decoder_without_a_place(timm: str, options: dict[str, Any], prefix: int):
    objective = build(backbone={"timm": timm, "options": {"embed_dim": 24, "depth": 1, "num_heads": 2, **options}})
    images, mask = pictures(objective), some_hidden()
    with torch.no_grad():
        outcome = objective(images, mask)
        embedded = objective.decoder_embed(outcome.latent)
    assert outcome.decoder_input.shape == (IMAGES, prefix + PATCHES, WIDTH)
    assert outcome.prediction.shape[1] == PATCHES
    assert (objective.decoder_pos_embed[:, :prefix] == 0).all()
    assert torch.equal(outcome.decoder_input[:, :prefix], embedded[:, :prefix])


def test_the_class_token_has_a_say_in_the_predictions():
    objective = copy.deepcopy(shared())
    images, mask = pictures(objective), some_hidden()
    with torch.no_grad():
        latent = objective(images, mask).latent
        clean = objective(images, mask).prediction
        # Changed behind the encoder, so that the decoder alone can carry it.
        handle = objective.decoder_embed.register_forward_pre_hook(
            lambda _, inputs: (torch.cat([inputs[0][:, :1] + 1, inputs[0][:, 1:]], dim=1),)
        )
        changed = objective(images, mask)
        handle.remove()
    assert torch.equal(changed.latent, latent)
    assert ((changed.prediction - clean).abs().amax(dim=2) > 1e-5).all()


def test_the_decoder_gets_visible_patches_and_mask_tokens_each_in_its_place():
    objective = shared()
    images, mask = pictures(objective), some_hidden()
    with torch.no_grad():
        outcome = objective(images, mask)
        embedded = objective.decoder_embed(outcome.latent)[:, 1:]
        without_place = (outcome.decoder_input - objective.decoder_pos_embed)[:, 1:]
    for image in range(IMAGES):
        visible = (~mask.hidden[image]).nonzero()[:, 0].tolist()
        for patch in range(PATCHES):
            expected = embedded[image, visible.index(patch)] if patch in visible else objective.mask_token[0, 0]
            torch.testing.assert_close(without_place[image, patch], expected.detach(), rtol=1e-5, atol=1e-5)


def test_the_decoder_knows_where_patches_are():
    objective = copy.deepcopy(shared())
    images, mask = pictures(objective), some_hidden()
    with torch.no_grad():
        sighted = objective(images, mask).prediction
        objective.decoder_pos_embed.zero_()
        blind = objective(images, mask).prediction
    for image in range(IMAGES):
        hidden = mask.hidden[image]
        # Without positions every mask token is like any other.
        torch.testing.assert_close(blind[image, hidden], blind[image, hidden][:1].expand(HIDDEN, -1))
        apart = torch.cdist(sighted[image, hidden], sighted[image, hidden]) + torch.eye(HIDDEN)
        assert apart.min() > 1e-3


def test_the_decoders_positions_are_fixed_and_saved():
    objective = shared()
    assert "decoder_pos_embed" in objective.state_dict()
    assert "decoder_pos_embed" not in dict(objective.named_parameters())
    assert objective.decoder_pos_embed.shape == (1, 1 + PATCHES, WIDTH)
    assert len({tuple(row) for row in objective.decoder_pos_embed[0, 1:].tolist()}) == PATCHES
    # Columns first: the first half of the channels is the same along a column, the second along a row.
    table = objective.decoder_pos_embed[0, 1:].reshape(*GRID, WIDTH)
    assert (table[..., : WIDTH // 2] == table[:1, :, : WIDTH // 2]).all()
    assert (table[..., WIDTH // 2 :] == table[:, :1, WIDTH // 2 :]).all()


def test_no_mask_token_is_used_under_a_soft_mask():
    objective = copy.deepcopy(shared())
    images = pictures(objective)
    chances = uniform(IMAGES, PATCHES, seed=3).requires_grad_()
    outcome = objective(images, Mask.soft(chances, HIDDEN))
    assert outcome.latent.shape[1] == 1 + PATCHES
    outcome.loss.backward()
    assert objective.mask_token.grad is None or (objective.mask_token.grad == 0).all()
    assert chances.grad.isfinite().all()
    assert (chances.grad != 0).all()
    with torch.no_grad():
        objective.mask_token.add_(1)
        assert torch.equal(objective(images, Mask.soft(chances, HIDDEN)).prediction, outcome.prediction)


def test_a_decoder_without_blocks_predicts_a_hidden_patch_from_its_place_alone():
    objective = build(decoder_depth=0)
    assert len(objective.decoder_blocks) == 0
    images, mask = pictures(objective), some_hidden()
    outcome = objective(images, mask)
    assert outcome.loss.isfinite()
    outcome.loss.backward()
    with torch.no_grad():
        other = objective(images + 1, mask).prediction
    assert torch.equal(other[mask.hidden], outcome.prediction[mask.hidden])


@pytest.mark.parametrize(
    ("width", "asked", "heads"),
    [(512, None, 16), (64, None, 2), (32, None, 1), (4, None, 1), (48, None, 1), (48, 6, 6)],
)
@pytest.mark.sampled(2)
def test_the_decoder_has_a_head_for_each_32_channels_or_as_many_as_asked(width: int, asked: int | None, heads: int):
    objective = build(decoder_dim=width, decoder_heads=asked)
    assert objective.decoder_heads == heads
    assert objective.decoder_blocks[0].attn.num_heads == heads
    assert objective(pictures(objective), some_hidden()).loss.isfinite()


@pytest.mark.parametrize(
    ("options", "key"),
    [
        ({"decoder_dim": 50}, "decoder_dim"),
        ({"decoder_dim": 511}, "decoder_dim"),
        ({"decoder_dim": 64, "decoder_heads": 3}, "decoder_heads"),
        ({"decoder_dim": 64, "decoder_heads": 128}, "decoder_heads"),
    ],
)
def test_a_decoder_that_cannot_be_is_refused_with_its_key(options: dict[str, int], key: str):
    with pytest.raises(RecipeError) as caught:
        Reconstruct(**options)
    assert caught.value.key == key


@pytest.mark.parametrize("options", [{"decoder_dim": 0}, {"decoder_depth": -1}, {"mlp_ratio": 0.0}])
def test_values_out_of_range_are_refused(options: dict[str, float]):
    with pytest.raises(ValueError, match=next(iter(options))):
        Reconstruct(**options)


@pytest.mark.parametrize("width", [100, 200, 360])
def test_a_width_that_4_divides_needs_no_word_about_heads(width: int):
    objective = Reconstruct(decoder_dim=width)
    assert width % objective.decoder_heads == 0


@pytest.mark.parametrize("heads", [0, -4])
def test_heads_must_be_at_least_one(heads: int):
    with pytest.raises((RecipeError, ValueError)):
        Reconstruct(decoder_dim=64, decoder_heads=heads)


# ------------------------------------------------------------------------------------------------------------- picture
def foresee(objective: Reconstruct, images: Tensor) -> None:
    """Let the decoder predict the target itself."""
    target = objective.targets(images)
    prefix = torch.zeros(len(images), objective.backbone.prefix, target.shape[2])
    objective.decoder_pred.register_forward_hook(lambda *_: torch.cat([prefix, target], dim=1))


@pytest.mark.parametrize("target", ["norm_pixels", "pixels"])
def test_a_picture_keeps_visible_pixels_and_shows_the_prediction_elsewhere(target: str):
    objective = shared(target)
    images, mask = pictures(objective) * 2 + 3, some_hidden()
    pixels = hidden_pixels(mask).expand_as(images)
    with torch.no_grad():
        picture, note = objective.picture(images, mask)
        prediction = objective(images, mask).prediction
    assert picture.shape == images.shape
    assert torch.equal(picture[~pixels], images[~pixels])
    assert not torch.isclose(picture[pixels], images[pixels]).all()
    assert bool(note) == (target == "norm_pixels")
    if note:
        patches = patchify(images, PATCH)
        prediction = prediction * (patches.var(dim=2, keepdim=True) + 1e-6).sqrt() + patches.mean(dim=2, keepdim=True)
    expected = unpatchify(prediction, GRID, PATCH)
    torch.testing.assert_close(picture[pixels], expected[pixels], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("target", ["norm_pixels", "pixels"])
def test_a_perfect_prediction_gives_the_image_back(target: str):
    objective = copy.deepcopy(shared(target))
    images, mask = pictures(objective) * 2 + 3, some_hidden()
    foresee(objective, images)
    with torch.no_grad():
        assert objective(images, mask).loss == 0
        picture, _ = objective.picture(images, mask)
    torch.testing.assert_close(picture, images, rtol=1e-5, atol=1e-5)


# ------------------------------------------------------------------------------------------------------------ learning
@pytest.mark.parametrize("target", ["norm_pixels", "pixels"])
def test_a_tiny_model_learns_one_batch_by_heart(target: str):
    objective = build(target=target, decoder_depth=2, decoder_dim=64).train()
    images, mask = pictures(objective, 2), some_hidden(6, 2)
    optimizer = torch.optim.Adam(objective.parameters(), lr=4e-3)
    losses = []
    for _ in range(60):
        optimizer.zero_grad()
        loss = objective(images, mask).loss
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] / 5


def test_two_builds_under_one_seed_are_equal_and_a_state_dict_makes_them_so():
    first, second, third = build(3).state_dict(), build(3).state_dict(), build(4)
    assert first.keys() == second.keys()
    assert all(torch.equal(value, second[name]) for name, value in first.items())
    assert not torch.equal(third.mask_token, first["mask_token"])
    third.load_state_dict(first)
    images, mask = pictures(third), some_hidden()
    with torch.no_grad():
        assert torch.equal(third(images, mask).loss, build(3)(images, mask).loss)


# --------------------------------------------------------------------------------------------------------- old recipes
@pytest.mark.parametrize(("norm_pix", "target"), [(True, "norm_pixels"), (False, "pixels")])
@pytest.mark.parametrize("use", ["reconstruct", "reconstruct:16:1"])
def test_a_recipe_that_says_norm_pix_means_a_target(norm_pix: bool, target: str, use: str):
    said = {"use": use, "norm_pix": norm_pix, "decoder_depth": 1}
    recipe = Recipe.from_plain({"objective": said})
    assert recipe.objective == {"use": use, "target": target, "decoder_depth": 1}
    assert make(REGISTRY, "objective", recipe.objective, "recipe.objective").target == target
    assert said["norm_pix"] == norm_pix  # the caller's own values stay as they were


@pytest.mark.parametrize(
    "objective",
    [
        {"use": "reconstruct", "norm_pix": True, "target": "pixels"},
        {"use": "reconstruct", "norm_pix": "yes"},
        {"use": "distill", "norm_pix": True},
    ],
)
def test_norm_pix_is_an_error_anywhere_else(objective: dict[str, Any]):
    with pytest.raises(RecipeError, match=r"^recipe\.objective\.norm_pix: "):
        make(REGISTRY, "objective", Recipe.from_plain({"objective": objective}).objective, "recipe.objective")


@pytest.mark.parametrize("objective", ["reconstruct", "distill", 3.0])
def test_an_objective_that_is_only_named_is_left_as_it_is(objective: Any):
    assert Recipe.from_plain({"objective": objective}).objective == objective


def test_an_old_recipe_is_completed_by_the_options_that_came_since():
    old = {
        "objective": {"use": "reconstruct", "decoder_dim": 16, "target": "pixels"},
        "masking": {
            "ratio": {"use": "constant", "value": 0.5},
            "strategy": {"use": "mix", "parts": [{"use": "attmask"}, {"use": "gone", "count": 3}]},
        },
        "optimizer": {"use": "adamw", "options": {"use": "anything"}},
        "train": {"seed": 1},
    }
    new = completed(old, REGISTRY)
    assert (
        new["objective"] | {"decoder": "transformer", "fusion": True, "decoder_depth": 8, "loss": "mse"}
        == (new["objective"])
    )
    assert (new["objective"]["decoder_dim"], new["objective"]["target"]) == (16, "pixels")
    assert new["objective"]["decoder_heads"] is None
    attmask, gone = new["masking"]["strategy"]["parts"]
    assert attmask == {"use": "attmask", "hints": 0.0}
    assert gone == {"use": "gone", "count": 3}
    assert {name: new[name] for name in ("optimizer", "train")} == {name: old[name] for name in ("optimizer", "train")}
    assert new["masking"]["ratio"] == {"use": "constant", "value": 0.5}
