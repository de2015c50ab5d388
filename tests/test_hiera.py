"""The Hiera backbone: which mask units it drops, where the others are found, and what it refuses.

Shapes: B images, N mask units, V visible, t tokens of a unit, D channels.
"""

from __future__ import annotations

import copy
import functools
import math
import pickle
from typing import Any

import pytest
import timm
import torch
from helpers import REGISTRY, noise_images, random_batches, same_state, state_of, tiny_session
from torch import Tensor

from maskzoo import ContractError, Mask, RecipeError
from maskzoo.backbones.hiera import HieraBackbone
from maskzoo.build import make_backbone
from maskzoo.teacher import Teacher
from maskzoo.train import train

pytestmark = pytest.mark.sampled(4)

TINY = {"embed_dim": 16, "num_heads": 1, "stages": (1, 2, 1, 1)}
WINDOWED = "hiera_small_abswin_256"  # positions of a unit's tokens, repeated, plus a global table
NAMES = ["hiera_tiny_224", WINDOWED]
GRID = (2, 4)
UNITS = math.prod(GRID)
HIDDEN = 5
IMAGES = 2
every_model = pytest.mark.parametrize("name", NAMES)


# --------------------------------------------------------------------------------------------------------- what is used
def build(name: str = NAMES[0], **options: Any) -> HieraBackbone:
    """A small model in eval mode, its weights shaken so that no zero hides a mistake."""
    if "data_size" not in options:
        options.setdefault("image_size", (GRID[0] * 32, GRID[1] * 32))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        backbone = HieraBackbone(**{"timm": name, "options": TINY, **options}).eval()
        with torch.no_grad():
            for parameter in backbone.parameters():
                parameter.add_(torch.randn_like(parameter) * 0.15)
    return backbone


@functools.cache
def shared(name: str = NAMES[0]) -> HieraBackbone:
    """One build for all tests that change nothing."""
    return build(name)


def uniform(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


def pictures(backbone: HieraBackbone, batch: int = IMAGES) -> Tensor:
    return torch.randn(batch, backbone.channels, *backbone.image_size, generator=torch.Generator().manual_seed(1))


def some_hidden(count: int = HIDDEN, batch: int = IMAGES, seed: int = 2) -> Mask:
    return Mask.hide_top(uniform(batch, UNITS, seed=seed), count)


def square(unit: int) -> tuple[slice, slice, slice]:
    """Where the pixels of a unit are in an image [C, H, W]: units are counted along the rows."""
    row, column = divmod(unit, GRID[1])
    return slice(None), slice(row * 32, row * 32 + 32), slice(column * 32, column * 32 + 32)


def with_hidden_pixels(images: Tensor, mask: Mask, value: float) -> Tensor:
    images = images.clone()
    for number, unit in mask.hidden.nonzero().tolist():
        images[number][square(unit)] = value
    return images


def map_by_unit(features: Tensor) -> Tensor:
    """A map [B, h, w, D] as [B, N, t * D], cut with slices alone."""
    tall, wide = features.shape[1] // GRID[0], features.shape[2] // GRID[1]
    cut = [
        features[:, row * tall : (row + 1) * tall, column * wide : (column + 1) * wide].flatten(1)
        for row in range(GRID[0])
        for column in range(GRID[1])
    ]
    return torch.stack(cut, dim=1)


# --------------------------------------------------------------------------------------------------------- hard masks
@every_model
def test_nothing_in_a_hidden_pixel_reaches_the_latent_or_a_stage(name: str):
    backbone = shared(name)
    images, mask = pictures(backbone), some_hidden()
    with torch.no_grad():
        latent, stages = backbone(images, mask), backbone.stages(images, mask)
        assert latent.isfinite().all()
        for value in (17.0, math.nan, -math.inf):
            broken = with_hidden_pixels(images, mask, value)
            assert torch.equal(backbone(broken, mask), latent), value
            assert all(map(torch.equal, backbone.stages(broken, mask), stages)), value


@every_model
def test_something_in_a_visible_pixel_reaches_the_latent(name: str):
    backbone = shared(name)
    images, mask = pictures(backbone), some_hidden()
    with torch.no_grad():
        difference = backbone(with_hidden_pixels(images, mask.inverted(), 0.0), mask) - backbone(images, mask)
    assert (difference.abs().amax(dim=2) > 1e-4).all()


@every_model
def test_the_latent_and_the_stages_are_what_timm_makes_of_its_own_mask(name: str):
    backbone = shared(name)
    images, mask = pictures(backbone), some_hidden()
    shown = mask.inverted().hidden  # timm's polarity
    with torch.no_grad():
        reference, stages = backbone.model.forward_features(images, mask=shown, return_intermediates=True)
        latent, ours = backbone(images, mask), backbone.stages(images, mask)
    assert latent.shape == (IMAGES, UNITS - HIDDEN, 128)
    torch.testing.assert_close(latent, backbone.model.head.norm(reference), rtol=1e-6, atol=1e-6)
    assert backbone.stage_dims == (64 * 16, 16 * 32, 4 * 64, 1 * 128)
    assert [stage.shape for stage in ours] == [(IMAGES, UNITS - HIDDEN, dim) for dim in backbone.stage_dims]
    for stage, expected in zip(ours[:-1], stages[:-1], strict=True):
        torch.testing.assert_close(stage, expected.flatten(2), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(ours[-1], latent, rtol=1e-6, atol=1e-6)


@every_model
def test_whole_images_give_what_timm_gives_unit_after_unit_along_the_rows(name: str):
    backbone = shared(name)
    images = pictures(backbone)
    with torch.no_grad():
        _, maps = backbone.model.forward_features(images, return_intermediates=True)
        whole, stages = backbone(images), backbone.stages(images)
        nothing_hidden = backbone(images, some_hidden(0))
        pooled = backbone.model.head(backbone.model.forward_features(images), pre_logits=True)
    assert whole.shape == (IMAGES, UNITS, 128)
    assert (backbone.grid, backbone.patch_size, backbone.dim) == (GRID, (32, 32), 128)
    assert (backbone.prefix, backbone.dense, backbone.provides) == (0, False, {"features"})
    expected = backbone.model.head.norm(map_by_unit(maps[-1]))
    torch.testing.assert_close(whole, expected, rtol=1e-6, atol=1e-6)
    for stage, of_timm in zip(stages[:-1], maps[:-1], strict=True):
        assert torch.equal(stage, map_by_unit(of_timm))
    torch.testing.assert_close(stages[-1], whole, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(nothing_hidden, whole, rtol=1e-6, atol=1e-6)
    assert torch.equal(backbone.inspect(images)[0], whole)
    assert backbone.inspect(images)[1] is None
    assert pooled.shape == (IMAGES, 128)


def test_a_pixel_inside_a_unit_changes_the_early_stages_of_that_unit_alone():
    backbone = shared()
    images, mask = pictures(backbone), some_hidden()
    index = mask.visible_index[0].tolist()
    with torch.no_grad():
        before = backbone.stages(images, mask)
        for place, unit in enumerate(index):
            changed = images.clone()
            row, column = divmod(unit, GRID[1])
            changed[0, :, row * 32 + 16, column * 32 + 16] += 3.0
            after = backbone.stages(changed, mask)
            for stage in (0, 1):
                moved = (after[stage] - before[stage]).abs().amax(dim=2) > 1e-6
                assert moved.nonzero().tolist() == [[0, place]]
            assert ((after[3] - before[3]).abs().amax(dim=2) > 1e-6)[0].all(), "the last stage attends to all"


def test_an_image_is_encoded_as_if_it_were_alone_also_beside_others_of_another_mask():
    backbone = shared()
    images, mask = pictures(backbone, 3), some_hidden(batch=3)
    with torch.no_grad():
        together = backbone(images, mask)
        for number in range(3):
            alone = backbone(images[number : number + 1], Mask(mask.hidden[number : number + 1], HIDDEN))
            torch.testing.assert_close(alone[0], together[number], rtol=1e-5, atol=1e-5)


@every_model
def test_exchanging_two_units_is_more_than_exchanging_two_rows_of_the_latent(name: str):
    backbone = shared(name)
    images = pictures(backbone)
    swapped = images.clone()
    for number in range(IMAGES):
        swapped[number][square(1)], swapped[number][square(6)] = images[number][square(6)], images[number][square(1)]
    order = [0, 6, 2, 3, 4, 5, 1, 7]
    with torch.no_grad():
        latent, other = backbone(images), backbone(swapped)
    assert (other - latent).abs().max() > 1e-3
    assert (other - latent[:, order]).abs().max() > 1e-3


@pytest.mark.parametrize(
    "mask",
    [
        pytest.param(
            lambda: Mask(torch.tensor([[True] * 3 + [False] * 5, [True] * 5 + [False] * 3]), None), id="unequal"
        ),
        pytest.param(lambda: Mask(torch.tensor([[True] * 4 + [False] * 4] * 2), None), id="unknown"),
        pytest.param(lambda: Mask.hide_top(uniform(IMAGES, UNITS + 1), 3), id="another-grid"),
        pytest.param(lambda: Mask.soft(uniform(IMAGES, UNITS // 2), 3), id="another-grid-soft"),
        pytest.param(lambda: Mask.hide_top(uniform(IMAGES + 1, UNITS), 3), id="another-batch"),
    ],
)
def test_a_mask_that_would_mix_images_is_refused(mask: Any):
    backbone = shared()
    for see in (backbone, backbone.stages):
        with pytest.raises(ContractError):
            see(pictures(backbone), mask())


def test_images_of_another_size_or_depth_are_refused():
    backbone = shared()
    for shape in [(3, 64, 64), (1, 64, 128), (3, 128, 64)]:
        for see in (backbone, backbone.tokens, backbone.stages):
            with pytest.raises(ContractError, match="built for images"):
                see(torch.zeros(2, *shape))


@every_model
def test_gradients_are_finite_and_whole_with_nan_in_hidden_pixels(name: str):
    backbone = shared(name)
    mask = some_hidden()
    broken = with_hidden_pixels(pictures(backbone), mask, math.nan).requires_grad_()
    latent = backbone(broken, mask)
    loss = (latent * uniform(*latent.shape, seed=5)).sum()
    *gradients, of_pixels = torch.autograd.grad(loss, [*backbone.parameters(), broken], allow_unused=True)
    for (parameter, _), gradient in zip(backbone.named_parameters(), gradients, strict=True):
        assert gradient is not None, f"{parameter} has no part in the latent, which DDP would not forgive"
        assert gradient.isfinite().all(), parameter
    hidden = with_hidden_pixels(torch.zeros_like(broken), mask, 1.0).bool()
    assert of_pixels.isfinite().all()
    assert (of_pixels[hidden] == 0).all()
    assert (of_pixels[~hidden] != 0).any()


# --------------------------------------------------------------------------------------------------------- soft masks
@every_model
def test_a_soft_mask_scales_the_tokens_of_a_unit_after_position(name: str):
    backbone = shared(name)
    images = pictures(backbone)
    chances = uniform(IMAGES, UNITS, seed=3).requires_grad_()
    with torch.no_grad():
        whole = backbone(images)
        fully_visible = backbone(images, Mask.soft(torch.zeros(IMAGES, UNITS), HIDDEN))
        torch.testing.assert_close(fully_visible, whole, rtol=1e-6, atol=1e-6)
        model = backbone.model
        embedded = model._pos_embed(model.patch_embed(images)).clone().view(IMAGES, 16, 32, 16)
        for number in range(IMAGES):
            for unit in range(UNITS):
                row, column = divmod(unit, GRID[1])
                embedded[number, row * 8 : row * 8 + 8, column * 8 : column * 8 + 8] *= 1 - chances[number, unit]
        tokens = model.unroll(embedded.flatten(1, 2))
        for block in model.blocks:
            tokens = block(tokens)
        mask = Mask.soft(chances, HIDDEN)
        torch.testing.assert_close(backbone(images, mask), model.head.norm(tokens), rtol=1e-5, atol=1e-5)
        assert backbone.stages(images, mask)[0].shape == (IMAGES, UNITS, 1024)
    latent = backbone(images, Mask.soft(chances, HIDDEN))
    (gradient,) = torch.autograd.grad((latent * uniform(*latent.shape, seed=5)).sum(), chances)
    assert gradient.isfinite().all()
    assert (gradient != 0).all()


# ------------------------------------------------------------------------------------------------------ tokens, decay
@every_model
def test_tokens_are_the_mean_of_a_units_embedded_tokens_with_position(name: str):
    backbone = shared(name)
    images = pictures(backbone)
    with torch.no_grad():
        seen: list[Tensor] = []
        handle = backbone.model.unroll.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
        backbone.model.forward_features(images)
        handle.remove()
        expected = map_by_unit(seen[0].view(IMAGES, 16, 32, 16)).view(IMAGES, UNITS, 64, 16).mean(dim=2)
        tokens = backbone.tokens(images)
    assert tokens.shape == (IMAGES, UNITS, backbone.token_dim) == (IMAGES, UNITS, 16)
    torch.testing.assert_close(tokens, expected, rtol=1e-6, atol=1e-6)
    blank = backbone.tokens(torch.zeros_like(images))
    assert (blank[:, 0] - blank[:, 5]).abs().max() > 1e-3, "equal units at different places must differ"


def test_only_positions_are_spared_from_weight_decay():
    assert shared().no_weight_decay() == {"model.pos_embed"}
    assert shared(WINDOWED).no_weight_decay() == {"model.pos_embed", "model.pos_embed_win"}


# ------------------------------------------------------------------------------------------------- in runs and in files
@pytest.mark.parametrize("channels", [1, 4])
def test_weights_go_back_into_timms_own_model(channels: int):
    backbone = build(channels=channels)
    state = {name.removeprefix("model."): value for name, value in backbone.state_dict().items()}
    model = timm.create_model(NAMES[0], img_size=(64, 128), in_chans=channels, num_classes=0, **TINY).eval()
    model.load_state_dict(state)
    with torch.no_grad():
        images = pictures(backbone)
        torch.testing.assert_close(model.head.norm(model.forward_features(images)), backbone(images))


@every_model
def test_a_copy_and_a_pickle_give_the_same_latent_and_are_apart(name: str):
    backbone = shared(name)
    images, mask, before = pictures(backbone), some_hidden(), state_of(backbone)
    with torch.no_grad():
        for twin in (copy.deepcopy(backbone), pickle.loads(pickle.dumps(backbone)), Teacher(backbone).module):
            assert torch.equal(twin(images, mask), backbone(images, mask))
            for parameter in twin.parameters():
                parameter.zero_()
    assert same_state(backbone, before)


def test_bfloat16_comes_close():
    backbone = shared()
    images = pictures(backbone)
    for mask in (some_hidden(), Mask.soft(uniform(IMAGES, UNITS), HIDDEN), None):
        with torch.no_grad():
            exact = backbone(images, mask)
            with torch.autocast("cpu", torch.bfloat16):
                coarse = backbone(images, mask)
        assert coarse.isfinite().all()
        assert (coarse.float() - exact).abs().mean() < 0.1


def test_drop_path_reaches_timm():
    assert {type(block.drop_path1).__name__ for block in build(drop_path=0.5).model.blocks} == {"Identity", "DropPath"}


@pytest.mark.parametrize("strategy", ["random", {"use": "clmae", "depth": 1}], ids=["random", "clmae"])
@pytest.mark.sampled(1)
def test_a_run_moves_the_model(strategy: Any):
    session = tiny_session(
        strategy, noise_images(channels=4), backbone={"timm": NAMES[0], "options": TINY}, train={"steps": 2}
    )
    assert type(session.objective.backbone) is HieraBackbone
    before = state_of(session.objective)
    figures = list(train(session, random_batches(2, channels=4, height=128, width=128)))
    assert len(figures) == 2
    assert all(math.isfinite(value) for step in figures for value in step.values())
    after = session.objective.state_dict()
    for part in ("backbone.model.pos_embed", "backbone.model.blocks.4.mlp.fc2.bias", "decoder_pred.weight"):
        assert not torch.equal(after[part], before[part]), part


@pytest.mark.parametrize("name", ["hiera_base_224", WINDOWED])
def test_the_name_of_a_timm_model_alone_finds_this_adapter(name: str):
    backbone: Any = make_backbone({"timm": name, "options": TINY}, noise_images(channels=1), REGISTRY)
    assert type(backbone) is HieraBackbone
    assert (backbone.channels, backbone.image_size) == (1, (128, 128))


# -------------------------------------------------------------------------------------------------------------- errors
@pytest.mark.parametrize(
    ("options", "key", "sentence"),
    [
        ({"timm": "vit_tiny_patch16_224"}, "timm", "is a VisionTransformer"),
        ({"timm": "hieradet_small"}, "timm", "is a HieraDet"),
        ({"image_size": (64, 100)}, "image_size", "nearest sizes are 64 x 96"),
        ({"options": {**TINY, "q_pool": 2}}, "options", "q_pool cannot be given here; a mask unit is one token"),
        ({"options": {**TINY, "mask_unit_size": (4, 4)}}, "options", "mask_unit_size cannot"),
        ({"options": {**TINY, "patch_stride": (2, 2)}}, "options", "other mask units"),
        ({"options": {**TINY, "stages": (1, 1, 1, 1, 1)}}, "options", "hiera_tiny_224"),
        ({"options": {**TINY, "stages": (1, 1, 1)}}, "options", "cannot build"),
        ({"options": {**TINY, "img_size": 64}}, "options", "img_size cannot"),
        ({"options": {**TINY, "patch_drop_rate": 0.5}}, "options", "mask's business"),
        ({"options": {**TINY, "sep_pos_embed": True}}, "options", "video"),
        ({"options": {**TINY, "bananas": 3}}, "options", "bananas"),
    ],
)
def test_what_cannot_be_built_is_refused_with_its_key(options: dict[str, Any], key: str, sentence: str):
    with pytest.raises(RecipeError, match=sentence) as caught:
        HieraBackbone(**{"options": TINY, "data_size": (128, 128), **options})
    assert caught.value.key == key


def test_a_block_other_than_the_last_is_refused():
    with pytest.raises(ContractError, match="last features alone"):
        shared().inspect(pictures(shared()), 0)
    with pytest.raises(ContractError, match="no attention"):
        shared().attention(pictures(shared()))
