"""The ViT backbone over timm's families: what it hides, what it sees, where things are, and what it refuses.

Shapes: B images, N patches, V visible, P prefix tokens, D channels.
"""

from __future__ import annotations

import copy
import functools
import math
import pickle
from collections.abc import Mapping
from typing import Any

import attrs
import numpy as np
import pytest
import torch
from helpers import TINY_BACKBONE, random_batches, state_of, tiny_session
from torch import Tensor, nn

from maskzoo import ContractError, Mask, RecipeError
from maskzoo.backbones.vit import VitBackbone, sin_cos, with_mask_token
from maskzoo.teacher import Teacher
from maskzoo.train import train

pytestmark = pytest.mark.sampled(4)

TINY = {"embed_dim": 48, "depth": 2, "num_heads": 4}
GRID = (3, 4)
PATCHES = math.prod(GRID)
HIDDEN = 7
IMAGES = 2
FIRST, SECOND = 1, 10  # two patches in different rows and columns, to exchange


@attrs.frozen
class Case:
    """A timm model, made small, and what is known of its family."""

    timm: str
    prefix: int
    patch: int = 16
    options: Mapping[str, Any] = attrs.field(factory=dict, eq=False)
    classes: bool = True  # has a class token
    hybrid: bool = False  # a convolutional stem, through which neighbouring patches see each other
    absolute: bool = True  # adds positions to its tokens
    attention: bool = True  # has an attention that can be read
    note: str = ""
    dim: int = 48

    def __str__(self) -> str:
        return f"{self.timm}{'-' * bool(self.note)}{self.note}"


def tiny(timm: str, prefix: int, patch: int = 16, **known: Any) -> Case:
    more = known.pop("options", {})
    return Case(timm, prefix, patch, {**TINY, **more}, **known)


PLAIN = tiny("vit_tiny_patch16_224", 1)
DYNAMIC = tiny("vit_tiny_patch16_224", 1, options={"dynamic_img_size": True}, note="dynamic")
REGISTERS = tiny("vit_small_patch14_reg4_dinov2", 5, 14)  # layer scale, too
SIGLIP = tiny("vit_base_patch16_siglip_224", 0, classes=False)
PRE_NORM = tiny("vit_base_patch16_clip_224", 1)
DISTILLED = tiny("deit_tiny_distilled_patch16_224", 2, options={"global_pool": "token"})
STEM = tiny("vit_tiny_r_s16_p8_224", 1, 32, hybrid=True)
DEEP_STEM = tiny("vit_small_r26_s32_224", 1, 32, hybrid=True)
EVA02 = tiny("eva02_tiny_patch14_224", 1, 14)
DINOV3 = tiny("vit_small_patch16_dinov3", 5, absolute=False)
MIXED = tiny("vit_small_patch16_rope_mixed_224", 1, absolute=False)
CASES = [
    PLAIN,
    tiny("vit_tiny_patch16_224", 0, options={"class_token": False}, classes=False, note="no-class"),
    DYNAMIC,
    REGISTERS,
    tiny("vit_wee_patch16_reg1_gap_256", 1, classes=False),
    SIGLIP,
    tiny("deit3_small_patch16_224", 1),  # no_embed_class, layer scale
    PRE_NORM,
    DISTILLED,
    STEM,
    DEEP_STEM,
    Case("vitamin_small_224", 0, 16, {"depth": 2}, classes=False, hybrid=True, dim=384),
    tiny("vit_base_patch16_rpn_224", 0, classes=False),  # norms after each part
    tiny("beit3_base_patch16_224", 1),  # norms inside each part
    tiny("vit_base_patch16_radio_v3", 8),  # no final norm
    tiny("vit_dwee_patch16_reg1_gap_256", 1, classes=False),  # differential attention
    tiny("vit_base_patch16_xp_224", 1, attention=False),  # attention and mlp in parallel
    EVA02,
    tiny("eva02_enormous_patch14_clip_224", 1, 14),  # Eva without rotary positions, norms after each part
    DINOV3,
    tiny("vit_base_patch16_sapiens2", 9, options={"num_kv_heads": (4, 2)}, absolute=False),  # grouped queries
    MIXED,
    tiny("vit_small_patch16_rope_mixed_ape_224", 1),
    tiny("vit_small_patch16_rope_224", 1, absolute=False),
    tiny("vit_pe_core_tiny_patch16_384", 1),  # Eva, norm before the blocks
    tiny("vit_medium_patch16_rope_reg1_gap_256", 1, classes=False, absolute=False),
]
every_model = pytest.mark.parametrize("case", CASES, ids=str)
ATTENTIVE = [case for case in CASES if case.attention and case is not DEEP_STEM]  # whose blocks are STEM's
every_attentive_model = pytest.mark.parametrize("case", ATTENTIVE, ids=str)
FAMILIES = [PLAIN, PRE_NORM, DISTILLED, STEM, EVA02, DINOV3, MIXED]


# --------------------------------------------------------------------------------------------------------- what is used
def build(case: Case = PLAIN, seed: int = 0, **options: Any) -> VitBackbone:
    """A small model in eval mode, its weights shaken so that no layer scale or zero bias hides a mistake."""
    if "data_size" not in options:
        options.setdefault("image_size", (GRID[0] * case.patch, GRID[1] * case.patch))
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        backbone = VitBackbone(timm=case.timm, options=case.options, **options).eval()
        with torch.no_grad():
            for name, parameter in backbone.named_parameters():
                if "patch_embed" not in name and parameter.requires_grad:
                    parameter.add_(torch.randn_like(parameter) * 0.15)
    return backbone


@functools.cache
def shared(case: Case) -> VitBackbone:
    """One build for all tests that change nothing."""
    return build(case)


def built_or_refused_by(key: str, case: Case, **options: Any) -> VitBackbone | None:
    """The model; None where it is refused for the right reason."""
    try:
        return build(case, **options)
    except RecipeError as problem:
        if problem.key != key:
            raise
        return None


def uniform(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


def pictures(backbone: VitBackbone, batch: int = IMAGES, seed: int = 1) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(batch, backbone.channels, *backbone.image_size, generator=generator)


def some_hidden(backbone: VitBackbone, count: int | None = None, batch: int = IMAGES, seed: int = 2) -> Mask:
    patches = math.prod(backbone.grid)
    return Mask.hide_top(uniform(batch, patches, seed=seed), patches * HIDDEN // PATCHES if count is None else count)


def square(backbone: VitBackbone, patch: int) -> tuple[slice, slice, slice]:
    """Where the pixels of a patch are in an image [C, H, W]: patches are counted along the rows."""
    height, width = backbone.patch_size
    row, column = divmod(patch, backbone.grid[1])
    return (
        slice(None),
        slice(row * height, (row + 1) * height),
        slice(column * width, (column + 1) * width),
    )


def with_hidden_pixels(backbone: VitBackbone, images: Tensor, mask: Mask, value: float) -> Tensor:
    images = images.clone()
    for number, patch in mask.hidden.nonzero().tolist():
        images[number][square(backbone, patch)] = value
    return images


def exchanged(backbone: VitBackbone, images: Tensor, first: int = FIRST, second: int = SECOND) -> Tensor:
    """The images with the content of two patches exchanged."""
    result = images.clone()
    for number in range(len(images)):
        result[number][square(backbone, first)] = images[number][square(backbone, second)]
        result[number][square(backbone, second)] = images[number][square(backbone, first)]
    return result


def rows_exchanged(backbone: VitBackbone, tokens: Tensor, first: int, second: int, prefix: int) -> Tensor:
    order = list(range(tokens.shape[1]))
    order[prefix + first], order[prefix + second] = order[prefix + second], order[prefix + first]
    return tokens[:, order]


def masked_dense(backbone: VitBackbone, images: Tensor, mask: Mask) -> Tensor:
    """[B, P + N, D]: timm's own forward of all tokens, where no token attends to a hidden one."""
    prefix = torch.ones(len(images), backbone.prefix, dtype=torch.bool)
    attend = torch.cat([prefix, ~mask.hidden], dim=1)[:, None, None]  # [B, 1, 1, P + N], True = attend
    zeroed = with_hidden_pixels(backbone, images, mask, 0.0)
    return backbone.model.forward_features(zeroed, attn_mask=attend)


def prefix_and_visible(backbone: VitBackbone, whole: Tensor, mask: Mask) -> Tensor:
    rows = [
        torch.cat([tokens[: backbone.prefix], tokens[backbone.prefix :][~hidden]])
        for tokens, hidden in zip(whole, mask.hidden, strict=True)
    ]
    return torch.stack(rows)


def before_the_blocks(backbone: VitBackbone, run: Any) -> Tensor:
    """[B, P + N, D]: the tokens that a run hands to the blocks, or to the norm before them where there is one."""
    seen: list[Tensor] = []
    handle = backbone.model.norm_pre.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    try:
        run()
    finally:
        handle.remove()
    assert len(seen) == 1
    return seen[0]


def mae_table(grid: tuple[int, int], dim: int) -> np.ndarray:
    """[N, dim]: MAE's fixed positions. Half of the channels tell the column, half the row; each is sines, cosines."""
    table = np.zeros((grid[0] * grid[1], dim))
    quarter = dim // 4
    for row in range(grid[0]):
        for column in range(grid[1]):
            for half, place in enumerate([column, row]):
                for index in range(quarter):
                    angle = place / 10000 ** (2 * index / (dim / 2))
                    table[row * grid[1] + column, half * 2 * quarter + index] = math.sin(angle)
                    table[row * grid[1] + column, half * 2 * quarter + quarter + index] = math.cos(angle)
    return table


# --------------------------------------------------------------------------------------------------------- hard masks
@every_model
def test_nothing_in_a_hidden_pixel_reaches_the_latent(case: Case):
    backbone = shared(case)
    images, mask = pictures(backbone), some_hidden(backbone)
    with torch.no_grad():
        latent = backbone(images, mask)
        assert latent.isfinite().all()
        for value in (17.0, math.nan, -math.inf):
            assert torch.equal(backbone(with_hidden_pixels(backbone, images, mask, value), mask), latent), value


@every_model
def test_something_in_a_visible_pixel_reaches_the_latent(case: Case):
    backbone = shared(case)
    images, mask = pictures(backbone), some_hidden(backbone)
    shown = Mask(~mask.hidden, PATCHES - HIDDEN)
    with torch.no_grad():
        difference = backbone(with_hidden_pixels(backbone, images, shown, 0.0), mask) - backbone(images, mask)
    assert (difference.abs().amax(dim=2) > 1e-4).all()


@every_model
def test_gradients_are_finite_and_whole_with_nan_in_hidden_pixels(case: Case):
    backbone = shared(case)
    images, mask = pictures(backbone), some_hidden(backbone)
    broken = with_hidden_pixels(backbone, images, mask, math.nan).requires_grad_()
    latent = backbone(broken, mask)
    loss = (latent * uniform(*latent.shape, seed=5)).sum()
    *gradients, of_pixels = torch.autograd.grad(loss, [*backbone.parameters(), broken], allow_unused=True)
    for (name, _), gradient in zip(backbone.named_parameters(), gradients, strict=True):
        assert gradient is not None, f"{name} has no part in the latent, which DDP would not forgive"
        assert gradient.isfinite().all(), name
    hidden = with_hidden_pixels(backbone, torch.zeros_like(images), mask, 1.0).bool()
    assert of_pixels.isfinite().all()
    assert (of_pixels[hidden] == 0).all()
    assert (of_pixels[~hidden] != 0).any()


@every_model
def test_dropping_hidden_patches_equals_attending_to_none_of_them(case: Case):
    backbone = shared(case)
    images, mask = pictures(backbone), some_hidden(backbone)
    with torch.no_grad():
        latent = backbone(images, mask)
        reference = prefix_and_visible(backbone, masked_dense(backbone, images, mask), mask)
    assert latent.shape == (IMAGES, case.prefix + PATCHES - HIDDEN, case.dim)
    torch.testing.assert_close(latent, reference, rtol=1e-5, atol=1e-5)


@every_model
def test_the_whole_image_gives_what_timm_gives(case: Case):
    backbone = shared(case)
    images = pictures(backbone)
    with torch.no_grad():
        whole = backbone(images)
        assert torch.equal(whole, backbone.model.forward_features(images))
        nothing_hidden = backbone(images, some_hidden(backbone, 0))
    assert whole.shape == (IMAGES, case.prefix + PATCHES, case.dim)
    assert backbone.prefix == case.prefix
    assert (backbone.dim, backbone.token_dim, backbone.grid) == (case.dim, case.dim, GRID)
    torch.testing.assert_close(nothing_hidden, whole, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("case", [PLAIN, REGISTERS, DINOV3, MIXED, STEM], ids=str)
def test_prefix_tokens_stay_when_every_patch_is_hidden(case: Case):
    backbone = shared(case)
    with torch.no_grad():
        latent = backbone(pictures(backbone), some_hidden(backbone, PATCHES))
    assert latent.shape == (IMAGES, case.prefix, case.dim)
    assert latent.isfinite().all()
    torch.testing.assert_close(latent[0], latent[1])


@pytest.mark.parametrize("case", [PLAIN, DINOV3, MIXED], ids=str)
def test_an_image_is_encoded_as_if_it_were_alone(case: Case):
    backbone = shared(case)
    images, mask = pictures(backbone, 3), some_hidden(backbone, batch=3)
    with torch.no_grad():
        together = backbone(images, mask)
        for number in range(3):
            alone = backbone(images[number : number + 1], Mask(mask.hidden[number : number + 1], HIDDEN))
            torch.testing.assert_close(alone[0], together[number], rtol=1e-5, atol=1e-5)


@every_model
def test_exchanging_two_patches_is_more_than_exchanging_two_rows_of_the_latent(case: Case):
    backbone = shared(case)
    images = pictures(backbone)
    hidden = torch.zeros(IMAGES, PATCHES, dtype=torch.bool)
    hidden[:, [0, 4, 7]] = True
    visible = [patch for patch in range(PATCHES) if patch not in (0, 4, 7)]
    first, second = visible.index(FIRST), visible.index(SECOND)
    mask = Mask(hidden, 3)
    with torch.no_grad():
        latent = backbone(images, mask)
        other = backbone(exchanged(backbone, images), mask)
    assert (other - rows_exchanged(backbone, latent, first, second, case.prefix)).abs().max() > 1e-3
    assert (other - latent).abs().max() > 1e-3


def test_a_mask_whose_count_differs_by_image_is_refused():
    backbone = shared(PLAIN)
    hidden = torch.zeros(IMAGES, PATCHES, dtype=torch.bool)
    hidden[0, :3] = hidden[1, :5] = True
    with pytest.raises(ContractError):
        backbone(pictures(backbone), Mask(hidden, None))


def test_images_of_another_size_or_depth_are_refused():
    for case in (PLAIN, DYNAMIC, DINOV3):
        backbone = shared(case)
        for shape in [(3, 48, 48), (1, 48, 64), (3, 64, 48)]:
            with pytest.raises(ContractError, match="built for images"):
                backbone(torch.zeros(2, *shape))


def test_a_hard_mask_of_another_grid_is_refused():
    backbone = shared(PLAIN)
    with pytest.raises(ContractError):
        backbone(pictures(backbone), Mask.hide_top(uniform(IMAGES, PATCHES + 1), 3))


def test_a_soft_mask_of_another_grid_is_refused():
    backbone = shared(PLAIN)
    with pytest.raises(ContractError):
        backbone(pictures(backbone), Mask.soft(uniform(IMAGES, 1), 1))


def test_a_mask_for_another_number_of_images_is_refused():
    backbone = shared(PLAIN)
    with pytest.raises(ContractError):
        backbone(pictures(backbone, 1), some_hidden(backbone, batch=4))


# --------------------------------------------------------------------------------------------------------- soft masks
@every_model
def test_a_soft_mask_scales_the_tokens_after_position_and_nothing_else(case: Case):
    backbone = shared(case)
    images = pictures(backbone)
    chances = uniform(IMAGES, PATCHES, seed=3)
    mask = Mask.soft(chances.requires_grad_(), HIDDEN)
    with torch.no_grad():
        whole = before_the_blocks(backbone, lambda: backbone.model.forward_features(images))
        soft = before_the_blocks(backbone, lambda: backbone(images, mask))
        fully_visible = backbone(images, Mask.soft(torch.zeros(IMAGES, PATCHES), HIDDEN))
        torch.testing.assert_close(fully_visible, backbone(images), rtol=1e-6, atol=1e-6)
        assert torch.equal(soft[:, : case.prefix], whole[:, : case.prefix])
        torch.testing.assert_close(soft[:, case.prefix :], whole[:, case.prefix :] * (1 - chances)[..., None])
    latent = backbone(images, mask)
    assert latent.shape == (IMAGES, case.prefix + PATCHES, case.dim)
    (gradient,) = torch.autograd.grad((latent * uniform(*latent.shape, seed=5)).sum(), chances)
    assert gradient.isfinite().all()
    assert (gradient != 0).all()


# ------------------------------------------------------------------------------------------------------------- tokens
@every_model
def test_tokens_are_what_the_first_block_sees_and_tell_where_they_are(case: Case):
    backbone = shared(case)
    images = pictures(backbone)
    with torch.no_grad():
        tokens = backbone.tokens(images)
        seen = before_the_blocks(backbone, lambda: backbone.model.forward_features(images))[:, case.prefix :]
        other = backbone.tokens(exchanged(backbone, images))
    assert tokens.shape == (IMAGES, PATCHES, backbone.token_dim)
    expected = seen if case.absolute else seen + torch.from_numpy(mae_table(GRID, backbone.token_dim)).float()
    torch.testing.assert_close(tokens, expected, rtol=1e-6, atol=1e-6)
    difference = (other - rows_exchanged(backbone, tokens, FIRST, SECOND, 0)).abs().amax(dim=2)  # [B, N]
    assert (difference[:, [FIRST, SECOND]] > 1e-2).all()
    if not case.hybrid:
        unmoved = [patch for patch in range(PATCHES) if patch not in (FIRST, SECOND)]
        assert (difference[:, unmoved] == 0).all()


@pytest.mark.parametrize("case", [case for case in CASES if not case.hybrid], ids=str)
@pytest.mark.sampled(1)
def test_patches_are_counted_along_the_rows(case: Case):
    backbone = shared(case)
    images = pictures(backbone, PATCHES)
    changed = images.clone()
    for patch in range(PATCHES):
        changed[patch][square(backbone, patch)] += 1.0
    with torch.no_grad():
        difference = (backbone.tokens(changed) - backbone.tokens(images)).abs().amax(dim=2)  # [N images, N]
    assert torch.equal(difference > 1e-6, torch.eye(PATCHES, dtype=torch.bool))


def test_a_model_without_any_position_gets_the_fixed_table_in_its_tokens_alone():
    backbone = build(tiny("vit_tiny_patch16_224", 1, options={"pos_embed": "none"}, note="no-position"))
    images = pictures(backbone)
    with torch.no_grad():
        embedded = backbone.model.patch_embed(images)
        table = torch.from_numpy(mae_table(GRID, 48)).float()
        torch.testing.assert_close(backbone.tokens(images), embedded + table, rtol=1e-6, atol=1e-6)
        latent, other = backbone(images), backbone(exchanged(backbone, images))
    torch.testing.assert_close(other, rows_exchanged(backbone, latent, FIRST, SECOND, 1), rtol=1e-5, atol=1e-5)
    assert not any("_position" in name for name in backbone.state_dict())


# ------------------------------------------------------------------------------------------------ features, attention
@functools.cache
def attention_of_timm(case: Case) -> list[Tensor]:
    """Of each block, [B, heads, P + N, P + N], from a copy whose modules are all unfused."""
    model = copy.deepcopy(shared(case).model)
    seen: list[Tensor] = []
    for block in model.blocks:
        block.attn.fused_attn = False
        block.attn.attn_drop.register_forward_hook(lambda _, inputs, output: seen.append(output))
    with torch.no_grad():
        model.forward_features(pictures(shared(case)))
    assert len(seen) == len(model.blocks)
    return seen


@every_attentive_model
def test_inspect_gives_the_attention_and_the_features_of_each_block(case: Case):
    backbone = shared(case)
    images = pictures(backbone)
    assert backbone.provides == {"attention", "features"}
    reference = attention_of_timm(case)
    flags = [block.attn.fused_attn for block in backbone.model.blocks]
    outputs: list[Tensor] = []
    handles = [
        block.register_forward_hook(lambda _, i, output: outputs.append(output)) for block in backbone.model.blocks
    ]
    with torch.no_grad():
        latent = backbone(images)
        for handle in handles:
            handle.remove()
        for block in (0, 1, -1, -2):
            features, attention = backbone.inspect(images, block)
            assert attention.dtype == torch.float32
            torch.testing.assert_close(attention, reference[block], rtol=1e-4, atol=1e-5)
            torch.testing.assert_close(attention.sum(dim=-1), torch.ones(attention.shape[:-1]), rtol=0, atol=1e-5)
            # The unfused arithmetic rounds otherwise than the fused.
            expected = latent if block in (1, -1) else outputs[0]
            torch.testing.assert_close(features, expected, rtol=1e-4, atol=1e-4)
        usual, _ = backbone.inspect(images)
        assert torch.equal(usual, backbone.inspect(images, 1)[0])
    assert (reference[0] - reference[0].mean()).abs().max() > 1e-2, "a flat attention would prove nothing"
    assert [block.attn.fused_attn for block in backbone.model.blocks] == flags
    assert not any(block.attn.attn_drop._forward_pre_hooks for block in backbone.model.blocks)


@pytest.mark.filterwarnings("ignore:Mismatch dtype between input and weight")  # torch's RMSNorm under autocast
@every_attentive_model
def test_attention_is_the_class_tokens_row_or_the_mean_row_of_the_patches(case: Case):
    backbone = shared(case)
    images = pictures(backbone)
    rows = attention_of_timm(case)[-1].mean(dim=1)  # [B, P + N, P + N]
    expected = rows[:, 0, case.prefix :] if case.classes else rows[:, case.prefix :, case.prefix :].mean(dim=1)
    with torch.no_grad():
        attention = backbone.attention(images)
        with torch.autocast("cpu", torch.bfloat16):
            coarse = backbone.attention(images)
    assert attention.shape == (IMAGES, PATCHES)
    assert attention.dtype == torch.float32
    torch.testing.assert_close(attention, expected, rtol=1e-4, atol=1e-5)
    assert coarse.dtype == torch.float32
    torch.testing.assert_close(coarse, expected, rtol=0, atol=0.05)


@pytest.mark.parametrize("case", [case for case in CASES if not case.attention], ids=str)
def test_a_model_whose_attention_cannot_be_read_says_so(case: Case):
    backbone = shared(case)
    images = pictures(backbone)
    assert backbone.provides == {"features"}
    with torch.no_grad():
        features, attention = backbone.inspect(images)
        assert attention is None
        assert torch.equal(features, backbone(images))
    with pytest.raises(ContractError, match="no attention"):
        backbone.attention(images)
    assert VitBackbone.provides == {"attention", "features"}, "the class itself must stay as it was"


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("case", [PLAIN, EVA02, MIXED], ids=str)
def test_a_failing_block_leaves_the_attention_as_it_was(case: Case, fused: bool):
    backbone = copy.deepcopy(shared(case))
    images = pictures(backbone)
    for block in backbone.model.blocks:
        block.attn.fused_attn = fused
    before = backbone(images)

    def fail(module: nn.Module, inputs: tuple[Any, ...]) -> None:
        raise RuntimeError("a plugin's hook fails")

    handle = backbone.model.blocks[1].mlp.register_forward_pre_hook(fail)
    with pytest.raises(RuntimeError, match="hook fails"):
        backbone.inspect(images)
    handle.remove()
    assert [block.attn.fused_attn for block in backbone.model.blocks] == [fused, fused]
    assert not any(block.attn.attn_drop._forward_pre_hooks for block in backbone.model.blocks)
    assert torch.equal(backbone(images), before)


@pytest.mark.parametrize("block", [2, -3, 100])
def test_a_block_that_is_not_there_is_refused(block: int):
    backbone = shared(PLAIN)
    with pytest.raises(IndexError):
        backbone.inspect(pictures(backbone), block)


# ---------------------------------------------------------------------------------------------------- sizes, channels
@pytest.mark.parametrize(
    ("case", "channels"), [(PLAIN, 1), (PLAIN, 4), (PLAIN, 7), (STEM, 1), (DINOV3, 4), (DISTILLED, 7)], ids=str
)
def test_images_of_any_number_of_channels_are_taken(case: Case, channels: int):
    backbone = build(case, channels=channels)
    images, mask = pictures(backbone), some_hidden(backbone)
    assert images.shape[1] == channels
    with torch.no_grad():
        latent = backbone(images, mask)
        reference = prefix_and_visible(backbone, masked_dense(backbone, images, mask), mask)
        torch.testing.assert_close(latent, reference, rtol=1e-5, atol=1e-5)
        for channel in range(channels):
            changed = images.clone()
            changed[:, channel] += uniform(*changed[:, channel].shape, seed=7)
            assert not torch.equal(backbone(changed, mask), latent), "every channel must count"
        assert torch.equal(backbone(with_hidden_pixels(backbone, images, mask, math.nan), mask), latent)


@pytest.mark.parametrize(("size", "grid"), [((32, 64), (4, 8)), ((48, 32), (6, 4))])
@pytest.mark.parametrize("case", [PLAIN, DYNAMIC, EVA02, DINOV3, MIXED], ids=str)
def test_positions_are_right_on_images_that_are_not_square(case: Case, size: tuple[int, int], grid: tuple[int, int]):
    backbone = build(case, image_size=size, patch_size=8)
    assert (backbone.grid, backbone.patch_size, backbone.image_size) == (grid, (8, 8), size)
    images, mask = pictures(backbone), some_hidden(backbone)
    patches = math.prod(grid)
    with torch.no_grad():
        latent = backbone(images, mask)
        reference = prefix_and_visible(backbone, masked_dense(backbone, images, mask), mask)
        torch.testing.assert_close(latent, reference, rtol=1e-5, atol=1e-5)
        assert torch.equal(backbone(with_hidden_pixels(backbone, images, mask, math.nan), mask), latent)
        whole, tokens = backbone(images), backbone.tokens(images)
        # Neighbours in a row, neighbours in a column, and the two that a transposed grid would confuse.
        for first, second in [(0, 1), (0, grid[1]), (1, grid[1]), (0, patches - 1)]:
            other = exchanged(backbone, images, first, second)
            moved = backbone.tokens(other) - rows_exchanged(backbone, tokens, first, second, 0)
            assert (moved.abs().amax(dim=2)[:, [first, second]] > 1e-3).all()
            rows = rows_exchanged(backbone, whole, first, second, case.prefix)
            assert (backbone(other) - rows).abs().max() > 1e-3
        place = images.clone()
        place[:, square(backbone, grid[1] + 2)[0], 8:16, 16:24] += 1.0
        changed = (backbone.tokens(place) - tokens).abs().amax(dim=2) > 1e-6
        assert changed.nonzero()[:, 1].tolist() == [grid[1] + 2] * IMAGES


@pytest.mark.parametrize("case", [MIXED, DINOV3, EVA02], ids=str)
def test_rotary_positions_know_rows_from_columns_on_images_that_are_not_square(case: Case):
    """A row of patches and a column of patches, alike in content and in number, must be told apart."""
    if case.absolute:  # rotary positions alone are in question
        case = attrs.evolve(case, options={**case.options, "use_abs_pos_emb": False}, absolute=False)
    backbone = build(case, image_size=(32, 48), patch_size=8)
    image = pictures(backbone, 1)
    lying, upright = [0, 1, 2], [0, 6, 12]
    latents = []
    for places in (lying, upright):
        content = torch.zeros_like(image)
        for source, place in zip(lying, places, strict=True):
            content[0][square(backbone, place)] = image[0][square(backbone, source)]
        hidden = torch.ones(1, 24, dtype=torch.bool)
        hidden[0, places] = False
        with torch.no_grad():
            latents.append(backbone(content, Mask(hidden, 21)))
    assert (latents[0] - latents[1]).abs().max() > 1e-4


@pytest.mark.parametrize(
    ("data_size", "expected"),
    [
        ((224, 224), (224, 224)),
        ((64, 64), (64, 64)),
        ((32, 32), (64, 64)),
        ((28, 28), (64, 64)),
        ((96, 16), (96, 64)),
        ((48, 80), (64, 80)),
    ],
)
def test_the_datas_own_size_is_taken_and_raised_to_four_patches_a_side(data_size, expected):
    backbone = VitBackbone(options=TINY, data_size=data_size)
    assert backbone.image_size == expected
    assert backbone.patch_size == (16, 16)
    assert backbone.grid == (expected[0] // 16, expected[1] // 16)
    assert backbone.model.patch_embed.img_size == expected


@pytest.mark.parametrize(
    ("data_size", "patch", "image_size"),
    [
        ((224, 224), 16, (224, 224)),
        ((96, 64), 8, (96, 64)),
        ((32, 32), 4, (32, 32)),
        ((28, 28), 4, (28, 28)),
        ((31, 27), 4, (32, 28)),
        ((5, 5), 2, (14, 14)),
    ],
)
def test_an_automatic_patch_is_the_largest_that_gives_seven_a_side(data_size, patch: int, image_size):
    backbone = VitBackbone(options=TINY, data_size=data_size, patch_size="auto")
    assert backbone.patch_size == (patch, patch)
    assert backbone.image_size == image_size
    assert backbone.grid == (image_size[0] // patch, image_size[1] // patch)
    with torch.no_grad():
        assert backbone(torch.zeros(1, 3, *image_size)).shape == (1, 1 + math.prod(backbone.grid), 48)


def test_an_automatic_patch_follows_an_explicit_image_size():
    backbone = VitBackbone(options=TINY, data_size=(224, 224), image_size=32, patch_size="auto")
    assert (backbone.image_size, backbone.patch_size) == ((32, 32), (4, 4))


def test_explicit_sizes_are_obeyed():
    small = VitBackbone(options=TINY, data_size=(224, 224), image_size=32)
    assert (small.image_size, small.grid) == ((32, 32), (2, 2)), "what was asked for is not raised"
    oblong = VitBackbone(options=TINY, image_size=(24, 32), patch_size=(6, 16))
    assert (oblong.image_size, oblong.patch_size, oblong.grid) == ((24, 32), (6, 16), (4, 2))
    images, mask = pictures(oblong), some_hidden(oblong)
    with torch.no_grad():
        latent = oblong.eval()(images, mask)
        assert torch.equal(oblong(with_hidden_pixels(oblong, images, mask, math.nan), mask), latent)
    raised = VitBackbone(options=TINY, data_size=(28, 28), patch_size=8)
    assert (raised.image_size, raised.grid) == ((32, 32), (4, 4))


def test_drop_path_reaches_the_blocks_and_only_training_feels_it():
    backbone = build(drop_path=0.5)
    images, mask = pictures(backbone), some_hidden(backbone)
    assert torch.equal(backbone(images, mask), backbone(images, mask))
    backbone.train()
    with torch.no_grad():
        outputs = [backbone(images, mask) for _ in range(8)]
    assert any(not torch.equal(output, outputs[0]) for output in outputs)


@pytest.mark.parametrize("case", [DINOV3, MIXED, STEM], ids=str)
def test_training_mode_leaks_nothing_either(case: Case):
    backbone = copy.deepcopy(shared(case)).train()
    images, mask = pictures(backbone), some_hidden(backbone)
    torch.manual_seed(0)
    latent = backbone(images, mask)
    torch.manual_seed(0)
    assert torch.equal(backbone(with_hidden_pixels(backbone, images, mask, math.nan), mask), latent)


def test_a_latent_under_autocast_is_finite_and_near():
    for case in FAMILIES:
        backbone = shared(case)
        images, mask = pictures(backbone), some_hidden(backbone)
        soft = Mask.soft(uniform(IMAGES, PATCHES), HIDDEN)
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
            hard_latent, soft_latent = backbone(images, mask), backbone(images, soft)
        with torch.no_grad():
            torch.testing.assert_close(hard_latent.float(), backbone(images, mask), rtol=0, atol=0.5)
            torch.testing.assert_close(soft_latent.float(), backbone(images, soft), rtol=0, atol=0.5)


# ---------------------------------------------------------------------------------------------------- sin-cos position
@pytest.mark.parametrize("grid", [(4, 4), (3, 5), (5, 3), (1, 7), (2, 1)])
@pytest.mark.parametrize("dim", [4, 16, 48])
def test_the_fixed_table_is_maes(grid: tuple[int, int], dim: int):
    np.testing.assert_allclose(sin_cos(grid, dim).numpy(), mae_table(grid, dim), rtol=0, atol=2e-6)


@pytest.mark.parametrize(("grid", "dim"), [((4, 4), 6), ((4, 4), 50), ((4,), 8), ((2, 2, 2), 8)])
def test_a_table_that_cannot_be_is_refused(grid: tuple[int, ...], dim: int):
    with pytest.raises(RecipeError):
        sin_cos(grid, dim)


@pytest.mark.parametrize("case", [PLAIN, REGISTERS, SIGLIP, DISTILLED, DYNAMIC, STEM, EVA02], ids=str)
def test_sin_cos_positions_are_maes_and_not_trained(case: Case):
    backbone = build(case, position="sin-cos")
    table = backbone.model.pos_embed
    assert not table.requires_grad
    before_the_patches = table.shape[1] - PATCHES
    assert before_the_patches in (0, case.prefix)
    assert (table[:, :before_the_patches] == 0).all()
    expected = mae_table(GRID, backbone.token_dim)
    np.testing.assert_allclose(table[0, before_the_patches:].numpy(), expected, rtol=0, atol=2e-6)
    images, mask = pictures(backbone), some_hidden(backbone)
    latent = backbone(images, mask)
    latent.sum().backward()
    assert table.grad is None
    with torch.no_grad():
        reference = prefix_and_visible(backbone, masked_dense(backbone, images, mask), mask)
        torch.testing.assert_close(latent, reference, rtol=1e-5, atol=1e-5)
        blank = backbone.model.patch_embed(images).reshape(IMAGES, PATCHES, -1)
        table_alone = backbone.tokens(images) - blank
    np.testing.assert_allclose(table_alone[0].numpy(), expected, rtol=0, atol=1e-5)


def test_timms_positions_are_trained():
    backbone = shared(PLAIN)
    assert backbone.model.pos_embed.requires_grad


@pytest.mark.parametrize("case", [DINOV3, MIXED], ids=str)
def test_sin_cos_positions_are_refused_or_added_where_the_model_has_none(case: Case):
    backbone = built_or_refused_by("position", case, position="sin-cos")
    if backbone is None:
        return
    images = pictures(backbone)
    seen = before_the_blocks(backbone, lambda: backbone(images))[:, case.prefix :]
    torch.testing.assert_close(seen, backbone.tokens(images))


# ---------------------------------------------------------------------------------------------- copies, and building
@pytest.mark.parametrize("case", [*FAMILIES, REGISTERS], ids=str)
def test_a_copy_and_a_pickle_give_the_same_latent_and_are_apart(case: Case):
    backbone = shared(case)
    images, mask = pictures(backbone), some_hidden(backbone)
    with torch.no_grad():
        latent = backbone(images, mask)
        for twin in (copy.deepcopy(backbone), pickle.loads(pickle.dumps(backbone)), Teacher(backbone).module):
            assert torch.equal(twin(images, mask), latent)
            assert torch.equal(twin.tokens(images), backbone.tokens(images))
            assert twin.provides == backbone.provides
        for parameter in twin.parameters():
            parameter.zero_()
        assert torch.equal(backbone(images, mask), latent)


@pytest.mark.parametrize("case", [PLAIN, MIXED], ids=str)
def test_two_builds_under_one_seed_are_equal(case: Case):
    states = []
    for _ in range(2):
        torch.manual_seed(3)
        states.append(VitBackbone(timm=case.timm, options=case.options, data_size=(1, 1)).state_dict())
    assert states[0].keys() == states[1].keys()
    assert all(torch.equal(value, states[1][name]) for name, value in states[0].items())
    other = VitBackbone(timm=case.timm, options=case.options, data_size=(1, 1)).state_dict()  # the generator has moved
    assert any(not torch.equal(value, other[name]) for name, value in states[0].items())


def test_a_state_dict_loads_into_timms_own_model():
    backbone = shared(REGISTERS)
    state = backbone.state_dict()
    assert all(name.startswith("model.") for name in state)
    model = copy.deepcopy(backbone.model)
    model.load_state_dict({name.removeprefix("model."): value for name, value in state.items()}, strict=True)


# --------------------------------------------------------------------------------------------------------- mask tokens
TOKEN_CASES = [*FAMILIES, DYNAMIC, REGISTERS, SIGLIP]
every_token_case = pytest.mark.parametrize("case", TOKEN_CASES, ids=str)


@functools.cache
def with_token(case: Case) -> VitBackbone:
    return build(case, mask_token=True)


@every_token_case
def test_behind_a_mask_token_nothing_hidden_reaches_the_latent_and_every_patch_stays(case: Case):
    backbone = with_token(case)
    images, mask = pictures(backbone), some_hidden(backbone)
    with torch.no_grad():
        latent = backbone(images, mask)
        assert latent.shape == (IMAGES, case.prefix + PATCHES, case.dim)
        assert latent.isfinite().all()
        for value in (17.0, math.nan, -math.inf):
            assert torch.equal(backbone(with_hidden_pixels(backbone, images, mask, value), mask), latent), value
        shown = with_hidden_pixels(backbone, images, mask.inverted(), 0.0)
        assert ((backbone(shown, mask) - latent).abs().amax(dim=2) > 1e-4).all()
    assert backbone.dense
    assert not VitBackbone.dense, "the class itself must stay as it was"


@every_token_case
def test_the_mask_token_stands_in_every_hidden_place_before_positions_are_added(case: Case):
    backbone = with_token(case)
    images, mask = pictures(backbone), some_hidden(backbone)
    zeroed = with_hidden_pixels(backbone, images, mask, 0.0)  # through a convolutional stem, neighbours see zeros
    with torch.no_grad():
        seen = before_the_blocks(backbone, lambda: backbone(images, mask))
        expected = before_the_blocks(backbone, lambda: backbone.model.forward_features(zeroed))
        embedded = backbone.model.patch_embed(zeroed).reshape(IMAGES, PATCHES, -1)
        patches = expected[:, case.prefix :]
        patches[mask.hidden] += (backbone._mask_token - embedded)[mask.hidden]
    torch.testing.assert_close(seen, expected, rtol=1e-5, atol=1e-5)


@every_token_case
def test_a_mask_token_gets_the_positions_of_its_place(case: Case):
    backbone = with_token(case)
    images, mask = pictures(backbone), some_hidden(backbone)

    def covered(module: nn.Module, inputs: tuple[Tensor], output: Tensor) -> Tensor:
        patches = output.reshape(IMAGES, PATCHES, -1).clone()
        patches[mask.hidden] = backbone._mask_token
        return patches.reshape(output.shape)

    with torch.no_grad():
        latent = backbone(images, mask)
        handle = backbone.model.patch_embed.register_forward_hook(covered)
        try:
            whole = backbone.model.forward_features(with_hidden_pixels(backbone, images, mask, 0.0))
        finally:
            handle.remove()
    assert torch.equal(latent, whole)


@every_token_case
def test_exchanging_two_patches_among_mask_tokens_is_more_than_exchanging_two_rows(case: Case):
    backbone = with_token(case)
    images = pictures(backbone)
    hidden = torch.zeros(IMAGES, PATCHES, dtype=torch.bool)
    hidden[:, [0, 4, 7]] = True
    mask = Mask(hidden, 3)
    with torch.no_grad():
        latent, other = backbone(images, mask), backbone(exchanged(backbone, images), mask)
        everything = backbone(images, some_hidden(backbone, PATCHES))
    assert (other - rows_exchanged(backbone, latent, FIRST, SECOND, case.prefix)).abs().max() > 1e-3
    assert torch.equal(everything[0], everything[1]), "nothing of an image is left"


@every_token_case
def test_gradients_behind_a_mask_token_are_finite_and_reach_it(case: Case):
    backbone = with_token(case)
    images, mask = pictures(backbone), some_hidden(backbone)
    broken = with_hidden_pixels(backbone, images, mask, math.nan)
    latent = backbone(broken, mask)
    gradients = torch.autograd.grad((latent * uniform(*latent.shape, seed=5)).sum(), list(backbone.parameters()))
    for (name, _), gradient in zip(backbone.named_parameters(), gradients, strict=True):
        assert gradient.isfinite().all(), name
        assert name != "_mask_token" or (gradient != 0).all()


@every_token_case
def test_a_soft_mask_blends_with_the_mask_token_and_without_doubt_is_a_hard_one(case: Case):
    backbone = with_token(case)
    images, mask = pictures(backbone), some_hidden(backbone)
    chances = uniform(IMAGES, PATCHES, seed=3).requires_grad_()
    soft = Mask.soft(chances, HIDDEN)
    with torch.no_grad():
        seen = before_the_blocks(backbone, lambda: backbone(images, soft))
        expected = before_the_blocks(backbone, lambda: backbone.model.forward_features(images))
        embedded = backbone.model.patch_embed(images).reshape(IMAGES, PATCHES, -1)
        expected[:, case.prefix :] += chances[..., None] * (backbone._mask_token - embedded)
        torch.testing.assert_close(seen, expected, rtol=1e-5, atol=1e-5)
        visible = Mask.soft(torch.zeros(IMAGES, PATCHES), HIDDEN)
        torch.testing.assert_close(backbone(images, visible), backbone(images), rtol=1e-6, atol=1e-6)
        if not case.hybrid:  # through whose stem a soft mask lets every pixel
            decided = Mask.soft(mask.hidden.float(), HIDDEN)
            torch.testing.assert_close(backbone(images, decided), backbone(images, mask), rtol=1e-5, atol=1e-5)
    latent = backbone(images, soft)
    (gradient,) = torch.autograd.grad((latent * uniform(*latent.shape, seed=5)).sum(), chances)
    assert gradient.isfinite().all()
    assert (gradient != 0).all()


def test_the_gradient_of_a_blend_is_what_a_patch_is_worth_over_the_mask_token():
    tokens, token, weights = uniform(IMAGES, PATCHES, 5), uniform(5, seed=1), uniform(IMAGES, PATCHES, 5, seed=2)
    chances = uniform(IMAGES, PATCHES, seed=3).requires_grad_()
    blended = with_mask_token(tokens, Mask.soft(chances, HIDDEN), token)
    (gradient,) = torch.autograd.grad((blended * weights).sum(), chances)
    torch.testing.assert_close(gradient, ((token - tokens) * weights).sum(dim=2), rtol=1e-5, atol=1e-6)


@every_token_case
def test_a_mask_token_changes_nothing_else(case: Case):
    size = (2 * case.patch, 2 * case.patch)
    states, latents = [], []
    for asked in (False, True):
        torch.manual_seed(3)
        backbone = VitBackbone(timm=case.timm, options=case.options, image_size=size, mask_token=asked).eval()
        states.append(backbone.state_dict())
        with torch.no_grad():
            latents.append(torch.cat([backbone(pictures(backbone)), backbone.inspect(pictures(backbone))[0]]))
    token = states[1].pop("_mask_token")
    assert token.shape == (backbone.token_dim,)
    assert 0.01 < token.std() < 0.03
    assert list(states[0]) == list(states[1])
    assert all(torch.equal(value, states[1][name]) for name, value in states[0].items())
    assert torch.equal(*latents)


@pytest.mark.parametrize("case", [PLAIN, DINOV3, MIXED], ids=str)
def test_images_may_hide_different_numbers_of_patches_behind_a_mask_token(case: Case):
    backbone = with_token(case)
    images = pictures(backbone, 3)
    hidden = torch.cat([some_hidden(backbone, count, 1).hidden for count in (2, 5, 11)])
    with torch.no_grad():
        together = backbone(images, Mask(hidden, None))
        for number, count in enumerate((2, 5, 11)):
            alone = backbone(images[number : number + 1], Mask(hidden[number : number + 1], count))
            torch.testing.assert_close(alone[0], together[number], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("case", [PLAIN, DYNAMIC, DINOV3], ids=str)
def test_a_model_with_a_mask_token_can_be_copied_and_run_in_bfloat16(case: Case):
    backbone = with_token(case)
    images, mask = pictures(backbone), some_hidden(backbone)
    with torch.no_grad():
        latent = backbone(images, mask)
        for twin in (copy.deepcopy(backbone), pickle.loads(pickle.dumps(backbone)), Teacher(backbone).module):
            assert torch.equal(twin(images, mask), latent)
            assert twin.dense
        for asked in (mask, Mask.soft(uniform(IMAGES, PATCHES), HIDDEN)):
            with torch.autocast("cpu", torch.bfloat16):
                coarse = backbone(images, asked)
            torch.testing.assert_close(coarse.float(), backbone(images, asked), rtol=0, atol=0.5)


@pytest.mark.parametrize("strategy", ["random", {"use": "clmae", "depth": 1}], ids=["random", "clmae"])
def test_a_run_moves_the_mask_token(strategy: Any):
    session = tiny_session(strategy, backbone={**TINY_BACKBONE, "mask_token": True}, train={"steps": 2})
    before = state_of(session.objective)
    figures = list(train(session, random_batches(2)))
    assert len(figures) == 2
    assert all(math.isfinite(value) for step in figures for value in step.values())
    assert not torch.equal(session.objective.backbone._mask_token, before["backbone._mask_token"])


# -------------------------------------------------------------------------------------------------------------- errors
@pytest.mark.parametrize(
    ("options", "key", "sentence"),
    [
        ({"timm": "vit_tiny_patch16_225"}, "timm", "did you mean 'vit_tiny_patch16_224'"),
        ({"timm": "vit_tiny_patch16_224.nonsense"}, "timm", "nonsense"),
        ({"timm": "resnet18"}, "timm", "is a ResNet"),
        ({"timm": "swin_tiny_patch4_window7_224"}, "timm", "is a SwinTransformer"),
        ({"timm": "beit_base_patch16_224"}, "timm", "is a Beit"),
        ({"timm": "vit_relpos_small_patch16_224"}, "timm", "is a VisionTransformerRelPos"),
        ({"image_size": 100}, "image_size", "nearest sizes are 96 x 96"),
        ({"image_size": (64, 65)}, "image_size", "nearest sizes are 64 x 64"),
        ({"image_size": 10, "patch_size": (3, 5)}, "image_size", "nearest sizes are 9 x 10"),
        ({"options": {"bananas": 3}}, "options", "bananas"),
        ({"options": {"embed_dim": 50, "num_heads": 4}}, "options", "divisible"),
        ({"options": {"global_pool": "nonsense"}}, "options", "pooling"),
        ({"options": {"img_size": 64}}, "options", "img_size"),
    ],
)
def test_what_cannot_be_built_is_refused_with_its_key(options: dict[str, Any], key: str, sentence: str):
    with pytest.raises(RecipeError, match=sentence) as caught:
        VitBackbone(**{"options": TINY, **options})
    assert caught.value.key == key


@pytest.mark.parametrize("rate", [-0.1, 1.0])
def test_an_impossible_drop_path_is_refused(rate: float):
    with pytest.raises(ValueError, match="drop_path"):
        VitBackbone(options=TINY, drop_path=rate)


def test_a_distilled_model_is_built_as_it_comes():
    assert VitBackbone(timm="deit_tiny_distilled_patch16_224", options=TINY, data_size=(1, 1)).prefix == 2


def test_a_patch_size_among_the_options_is_refused_or_obeyed():
    backbone = built_or_refused_by("options", tiny(PLAIN.timm, 1, options={"patch_size": 8}), image_size=64)
    if backbone is None:
        return
    assert backbone.patch_size == (8, 8)
    backbone(pictures(backbone), some_hidden(backbone))


@pytest.mark.parametrize("patch", [8, 16, "auto"])
def test_another_patch_size_of_a_hybrid_is_refused_or_obeyed(patch: int | str):
    backbone = built_or_refused_by("patch_size", STEM, image_size=64, patch_size=patch)
    if backbone is None:
        return
    assert (backbone.grid[0] * backbone.patch_size[0], backbone.grid[1] * backbone.patch_size[1]) == (64, 64)
    backbone(pictures(backbone), some_hidden(backbone))


def test_timms_own_patch_dropout_is_refused():
    options = {**TINY, "patch_drop_rate": 0.5}
    with pytest.raises(RecipeError):
        VitBackbone(timm=MIXED.timm, options=options, data_size=(64, 64))


@pytest.mark.parametrize(
    ("options", "key"),
    [
        ({"patch_size": 0}, "patch_size"),
        ({"image_size": 0}, "image_size"),
        ({"image_size": -16}, "image_size"),
        ({"channels": 0}, "channels"),
        ({"options": {**TINY, "depth": 0}}, "options"),
        ({"options": {**TINY, "use_naflex": True}}, "options"),
        ({"options": {"embed_dim": 50, "depth": 1, "num_heads": 5}, "position": "sin-cos"}, "position"),
    ],
)
@pytest.mark.filterwarnings("ignore:Initializing zero-element tensors")
def test_nonsense_is_refused_with_the_key_that_holds_it(options: dict[str, Any], key: str):
    with pytest.raises(RecipeError) as caught:
        VitBackbone(**{"options": TINY, "data_size": (64, 64), **options})
    assert caught.value.key == key


def test_maes_initial_weights_are_xavier_uniform_and_its_tokens_of_deviation_002():
    torch.manual_seed(0)
    backbone = VitBackbone(patch_size=4, data_size=(32, 32), init="mae", options={"embed_dim": 96, "num_heads": 3})
    linear = backbone.model.blocks[0].mlp.fc1
    embedding = backbone.model.patch_embed.proj
    for weight, fan in ((linear.weight, 96 + 384), (embedding.weight, 3 * 16 + 96)):
        bound = (6 / fan) ** 0.5
        assert 0.97 * bound < weight.abs().max() <= bound
        assert abs(weight.std() / (bound / 3**0.5) - 1) < 0.05
    assert not linear.bias.any()
    assert 0.015 < backbone.model.cls_token.std() < 0.025


@pytest.mark.parametrize("pooling", ["map", "avg"])
def test_a_pooling_that_is_never_run_is_not_trained(pooling: str):
    options = {"embed_dim": 24, "depth": 1, "num_heads": 2, "global_pool": pooling}
    backbone = VitBackbone(timm="vit_base_patch16_siglip_224", image_size=32, patch_size=8, options=options)
    backbone(pictures(backbone), some_hidden(backbone)).square().sum().backward()
    idle = [name for name, value in backbone.named_parameters() if value.requires_grad and value.grad is None]
    assert not idle
