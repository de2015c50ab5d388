"""The Swin backbone: what it hides behind its mask token, what it sees, where things are, and what it refuses.

Shapes: B images, N mask units, D channels, h x w tokens of the first stage.
"""

from __future__ import annotations

import copy
import functools
import math
import pickle
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import attrs
import pytest
import timm
import torch
from helpers import REGISTRY, noise_images, random_batches, same_state, state_of, tiny_session
from test_vit import exchanged, mae_table, pictures, rows_exchanged, some_hidden, square, uniform, with_hidden_pixels
from torch import Tensor

from maskzoo import ContractError, Mask, RecipeError
from maskzoo.backbones.swin import SwinBackbone
from maskzoo.build import make_backbone
from maskzoo.teacher import Teacher
from maskzoo.train import train

pytestmark = pytest.mark.sampled(3)

TINY = {"embed_dim": 16, "depths": (2, 1, 1, 1), "num_heads": (1, 2, 2, 4)}  # the second block's windows are shifted
V1, V2 = "swin_tiny_patch4_window7_224", "swinv2_tiny_window8_256"
IMAGES = 2
HIDDEN = 5
FIRST, SECOND = 1, 10  # two units in different rows and columns, to exchange


@attrs.frozen
class Case:
    """A timm model, made small, at a size."""

    timm: str = V1
    size: tuple[int, int] = (96, 128)
    window: int | None = None
    options: Mapping[str, Any] = attrs.field(factory=dict, eq=False)
    grid: tuple[int, int] = (3, 4)
    note: str = ""

    def __str__(self) -> str:
        return f"{self.timm}-{self.size[0]}x{self.size[1]}{'-' * bool(self.note)}{self.note}"


OBLONG, OBLONG_2 = Case(), Case(V2)
SQUARE = Case(size=(128, 128), grid=(4, 4))
PADDED, PADDED_2 = Case(window=5, note="padded"), Case(V2, window=5, note="padded")  # 5 divides no side of any stage
FINE = Case(size=(32, 24), options={"patch_size": 1}, grid=(4, 3), note="fine")
CASES = [
    OBLONG,
    OBLONG_2,
    SQUARE,
    PADDED,
    PADDED_2,
    FINE,
    Case("swin_s3_tiny_224", note="windows-by-stage"),
    Case(window=6, options={"always_partition": True}, note="always-partition"),
    Case(options={"dynamic_img_size": True}, window=5, note="dynamic"),
    Case(options={"depths": (2, 2), "num_heads": (1, 2)}, size=(24, 32), window=4, note="two-stages"),
]
every_case = pytest.mark.parametrize("case", CASES, ids=str)
few_cases = pytest.mark.parametrize("case", [OBLONG, PADDED_2], ids=str)


# --------------------------------------------------------------------------------------------------------- what is used
def build(case: Case = OBLONG, seed: int = 0, **options: Any) -> SwinBackbone:
    """A small model in eval mode, its weights shaken: V2's begin with norms of zero, which would hide any mistake."""
    options = {"image_size": case.size, "window_size": case.window, "options": {**TINY, **case.options}, **options}
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        backbone = SwinBackbone(timm=case.timm, **options).eval()
        with torch.no_grad():
            for name, parameter in backbone.named_parameters():
                if "patch_embed.proj" not in name:
                    parameter.add_(torch.randn_like(parameter) * 0.15)
    return backbone


@functools.cache
def shared(case: Case) -> SwinBackbone:
    """One build for all tests that change nothing."""
    return build(case)


def hidden_some(backbone: SwinBackbone, count: int = HIDDEN, batch: int = IMAGES) -> Mask:
    return some_hidden(backbone, count, batch)


def before_the_stages(backbone: SwinBackbone, run: Callable[[], Any]) -> Tensor:
    """[B, h, w, D]: the tokens that a run hands to the first stage."""
    seen: list[Tensor] = []
    handle = backbone.model.layers.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    try:
        run()
    finally:
        handle.remove()
    assert len(seen) == 1
    return seen[0]


def on_tokens(backbone: SwinBackbone, values: Tensor) -> Tensor:
    """Values of units [B, N] as those of the first stage's tokens [B, h, w], one after the other."""
    rows, columns = backbone.model.patch_embed.grid_size
    high, wide = rows // backbone.grid[0], columns // backbone.grid[1]
    result = torch.empty(len(values), rows, columns, dtype=values.dtype)
    for row in range(rows):
        for column in range(columns):
            result[:, row, column] = values[:, row // high * backbone.grid[1] + column // wide]
    return result


# --------------------------------------------------------------------------------------------------------- hard masks
@every_case
def test_nothing_in_a_hidden_pixel_reaches_the_latent(case: Case):
    backbone = shared(case)
    images, mask = pictures(backbone), hidden_some(backbone)
    with torch.no_grad():
        latent = backbone(images, mask)
        assert latent.isfinite().all()
        for value in (17.0, math.nan, -math.inf):
            assert torch.equal(backbone(with_hidden_pixels(backbone, images, mask, value), mask), latent), value


@every_case
def test_something_in_a_visible_pixel_reaches_every_unit(case: Case):
    backbone = shared(case)
    images, mask = pictures(backbone), hidden_some(backbone)
    with torch.no_grad():
        shown = with_hidden_pixels(backbone, images, mask.inverted(), 0.0)
        difference = backbone(shown, mask) - backbone(images, mask)
    assert (difference.abs().amax(dim=2) > 1e-4).all()  # hidden ones, too: they are what a decoder sees


@every_case
def test_gradients_are_finite_and_whole_with_nan_in_hidden_pixels(case: Case):
    backbone = shared(case)
    images, mask = pictures(backbone), hidden_some(backbone)
    broken = with_hidden_pixels(backbone, images, mask, math.nan).requires_grad_()
    latent = backbone(broken, mask)
    loss = (latent * uniform(*latent.shape, seed=5)).sum()
    *gradients, of_pixels = torch.autograd.grad(loss, [*backbone.parameters(), broken], allow_unused=True)
    for (name, _), gradient in zip(backbone.named_parameters(), gradients, strict=True):
        assert gradient is not None, f"{name} has no part in the latent, which DDP would not forgive"
        assert gradient.isfinite().all(), name
        assert gradient.any() or name.endswith("relative_position_bias_table"), name
    hidden = with_hidden_pixels(backbone, torch.zeros_like(images), mask, 1.0).bool()
    assert of_pixels.isfinite().all()
    assert (of_pixels[hidden] == 0).all()
    assert (of_pixels[~hidden] != 0).any()


@every_case
def test_the_mask_token_stands_in_every_hidden_place_and_nowhere_else(case: Case):
    backbone = shared(case)
    images, mask = pictures(backbone), hidden_some(backbone)
    with torch.no_grad():
        seen = before_the_stages(backbone, lambda: backbone(images, mask))
        embedded = backbone.model.patch_embed(images)
    hidden = on_tokens(backbone, mask.hidden)
    assert torch.equal(seen[hidden], backbone.mask_token.expand_as(seen[hidden]))
    # The convolution adds up in another order where its input is not the same.
    torch.testing.assert_close(seen[~hidden], embedded[~hidden], rtol=1e-5, atol=1e-5)


@every_case
def test_the_whole_image_gives_what_timm_gives(case: Case):
    backbone = shared(case)
    images = pictures(backbone)
    with torch.no_grad():
        whole = backbone(images)
        assert torch.equal(whole, backbone.model.forward_features(images).flatten(1, 2))
        torch.testing.assert_close(backbone(images, hidden_some(backbone, 0)), whole, rtol=1e-6, atol=1e-6)
        features, attention = backbone.inspect(images)
    assert whole.shape == (IMAGES, math.prod(case.grid), backbone.dim)
    assert torch.equal(features, whole)
    assert attention is None
    assert (backbone.prefix, backbone.dense, backbone.provides) == (0, True, {"features"})
    assert backbone.grid == case.grid
    assert backbone.image_size == case.size
    assert backbone.patch_size == (case.size[0] // case.grid[0], case.size[1] // case.grid[1])


@every_case
def test_exchanging_two_units_is_more_than_exchanging_two_rows_of_the_latent(case: Case):
    backbone = shared(case)
    images = pictures(backbone)
    hidden = torch.zeros(IMAGES, math.prod(case.grid), dtype=torch.bool)
    hidden[:, [0, 4, 7]] = True
    mask = Mask(hidden, 3)
    with torch.no_grad():
        latent, other = backbone(images, mask), backbone(exchanged(backbone, images, FIRST, SECOND), mask)
    assert (other - rows_exchanged(backbone, latent, FIRST, SECOND, 0)).abs().max() > 1e-3
    assert (other - latent).abs().max() > 1e-3


@every_case
def test_a_unit_of_the_latent_is_where_its_pixels_are(case: Case):
    backbone = copy.deepcopy(shared(case))
    for stage in backbone.model.layers:
        for block in stage.blocks:  # without attention, places do not hear of each other
            torch.nn.init.zeros_(block.attn.proj.weight)
    units = math.prod(case.grid)
    images = pictures(backbone, units)
    changed = images.clone()
    for unit in range(units):
        changed[unit][square(backbone, unit)] += uniform(*changed[unit][square(backbone, unit)].shape)
    with torch.no_grad():
        for read in (backbone, backbone.tokens):
            difference = (read(changed) - read(images)).abs().amax(dim=2)  # [N images, N]
            assert torch.equal(difference > 1e-4, torch.eye(units, dtype=torch.bool))


@few_cases
def test_hiding_everything_leaves_nothing_of_an_image(case: Case):
    backbone = shared(case)
    with torch.no_grad():
        latent = backbone(pictures(backbone), hidden_some(backbone, math.prod(case.grid)))
    assert latent.isfinite().all()
    assert torch.equal(latent[0], latent[1])


@few_cases
def test_an_image_is_encoded_as_if_it_were_alone_whatever_others_hide(case: Case):
    backbone = shared(case)
    images = pictures(backbone, 3)
    hidden = torch.cat([hidden_some(backbone, count, 1).hidden for count in (2, 5, 11)])
    with torch.no_grad():
        together = backbone(images, Mask(hidden, None))
        for number, count in enumerate((2, 5, 11)):
            alone = backbone(images[number : number + 1], Mask(hidden[number : number + 1], count))
            torch.testing.assert_close(alone[0], together[number], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("shape", [(3, 128, 96), (1, 96, 128), (3, 64, 128)])
def test_images_of_another_size_or_depth_are_refused(shape: tuple[int, ...]):
    for case in (OBLONG, CASES[8]):
        for run in (shared(case), shared(case).tokens, lambda x, of=case: shared(of)(x, hidden_some(shared(of)))):
            with pytest.raises(ContractError, match="built for images"):
                run(torch.zeros(2, *shape))


@pytest.mark.parametrize(("images", "patches"), [(IMAGES, 13), (IMAGES, 1), (1, 12), (IMAGES, 768)])
def test_a_mask_of_another_grid_or_number_of_images_is_refused(images: int, patches: int):
    backbone = shared(OBLONG)
    for mask in (Mask.hide_top(uniform(images, patches), 1), Mask.soft(uniform(images, patches), 1)):
        with pytest.raises(ContractError, match="the mask is"):
            backbone(pictures(backbone), mask)


# --------------------------------------------------------------------------------------------------------- soft masks
@every_case
def test_a_soft_mask_blends_the_tokens_with_the_mask_token(case: Case):
    backbone = shared(case)
    images = pictures(backbone)
    chances = uniform(IMAGES, math.prod(case.grid), seed=3).requires_grad_()
    mask = Mask.soft(chances, HIDDEN)
    with torch.no_grad():
        seen = before_the_stages(backbone, lambda: backbone(images, mask))
        visible = on_tokens(backbone, 1 - chances.detach())[..., None]
        expected = visible * backbone.model.patch_embed(images) + (1 - visible) * backbone.mask_token
        torch.testing.assert_close(seen, expected, rtol=1e-6, atol=1e-6)
    latent = backbone(images, mask)
    of_chances, of_token = torch.autograd.grad(
        (latent * uniform(*latent.shape, seed=5)).sum(), [chances, backbone.mask_token]
    )
    for gradient in (of_chances, of_token):
        assert gradient.isfinite().all()
        assert (gradient != 0).all()


@every_case
def test_a_soft_mask_without_doubt_is_a_hard_one(case: Case):
    backbone = shared(case)
    images, mask = pictures(backbone), hidden_some(backbone)
    with torch.no_grad():
        visible = Mask.soft(torch.zeros(IMAGES, math.prod(case.grid)), HIDDEN)
        torch.testing.assert_close(backbone(images, visible), backbone(images), rtol=1e-6, atol=1e-6)
        decided = Mask.soft(mask.hidden.float(), HIDDEN)
        torch.testing.assert_close(backbone(images, decided), backbone(images, mask), rtol=1e-5, atol=1e-5)


# ------------------------------------------------------------------------------------------------------------- tokens
@every_case
def test_tokens_are_the_mean_of_each_units_and_tell_where_it_is(case: Case):
    backbone = shared(case)
    images = pictures(backbone)
    rows, columns = backbone.model.patch_embed.grid_size
    high, wide = rows // case.grid[0], columns // case.grid[1]
    with torch.no_grad():
        tokens, embedded = backbone.tokens(images), backbone.model.patch_embed(images)
        means = [
            embedded[:, row * high : (row + 1) * high, column * wide : (column + 1) * wide].mean(dim=(1, 2))
            for row in range(case.grid[0])
            for column in range(case.grid[1])
        ]
    table = torch.from_numpy(mae_table(case.grid, 16)).float()
    assert backbone.token_dim == 16
    torch.testing.assert_close(tokens, torch.stack(means, dim=1) + table, rtol=1e-5, atol=1e-5)
    assert "_position" not in backbone.state_dict()


def test_it_has_no_attention_to_read_and_shows_its_last_features_alone():
    backbone = shared(OBLONG)
    with pytest.raises(ContractError, match="no attention"):
        backbone.attention(pictures(backbone))
    with pytest.raises(ContractError, match="last features"):
        backbone.inspect(pictures(backbone), 0)


# ---------------------------------------------------------------------------------------------- windows, sizes, weights
def blocks(model: Any) -> list[Any]:
    return [block for stage in model.layers for block in stage.blocks]


@pytest.mark.filterwarnings("ignore:.*searchsorted", "ignore:.*non-tuple sequence")  # timm's interpolation
@every_case
def test_windows_and_weights_are_those_of_a_timm_model_brought_to_that_size(case: Case):
    backbone = shared(case)
    options = {name: value for name, value in case.options.items() if name != "patch_size"}
    reference = timm.create_model(case.timm, num_classes=0, **{**TINY, **options}).eval()
    reference.set_input_size(
        img_size=case.size, patch_size=case.options.get("patch_size"), window_size=case.window and (case.window,) * 2
    )
    for ours, theirs in zip(blocks(backbone.model), blocks(reference), strict=True):
        assert ours.window_size == theirs.window_size
        assert ours.shift_size == theirs.shift_size
        assert tuple(ours.input_resolution) == tuple(theirs.input_resolution)
    state = {name.removeprefix("model."): value for name, value in backbone.state_dict().items()}
    assert "mask_token" in state
    del state["mask_token"]
    reference.load_state_dict(state, strict=True)
    images = pictures(backbone)
    with torch.no_grad():
        assert torch.equal(reference.forward_features(images).flatten(1, 2), backbone(images))


def test_the_windows_of_the_padded_case_do_not_divide_what_they_cut():
    for case in (PADDED, PADDED_2):
        cut = [(block.input_resolution, block.window_size) for block in blocks(shared(case).model)]
        assert sum(side % window > 0 for sides, windows in cut for side, window in zip(sides, windows, strict=True)) > 4
        assert any(any(block.shift_size) for block in blocks(shared(case).model))


@pytest.mark.filterwarnings("ignore:.*searchsorted", "ignore:.*non-tuple sequence")
@pytest.mark.parametrize("case", [SQUARE, OBLONG, PADDED, OBLONG_2, FINE], ids=str)
def test_pretrained_weights_are_brought_to_the_size_by_timm(
    case: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    options = {name: value for name, value in case.options.items() if name != "patch_size"}
    own = timm.create_model(case.timm, **{**TINY, **options}).eval()
    with torch.no_grad():
        for parameter in own.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    torch.save(own.state_dict(), tmp_path / "weights.pth")
    create = functools.partial(timm.create_model, pretrained_cfg_overlay={"file": str(tmp_path / "weights.pth")})
    monkeypatch.setattr(timm, "create_model", create)  # nothing is fetched in tests
    monkeypatch.setattr("maskzoo.backbones.adapter.refuse_unreachable", lambda name: None)
    backbone = SwinBackbone(
        timm=case.timm,
        image_size=case.size,
        window_size=case.window,
        pretrained=True,
        options={**TINY, **case.options},
    ).eval()
    own.set_input_size(img_size=case.size, patch_size=case.options.get("patch_size"), window_size=case.window)
    images = pictures(backbone)
    with torch.no_grad():
        expected = own.forward_features(images).flatten(1, 2)
        torch.testing.assert_close(backbone(images), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", [V1, V2])
def test_initial_weights_are_timms_and_the_mask_token_comes_after_them(name: str):
    torch.manual_seed(3)
    backbone = SwinBackbone(timm=name, image_size=(128, 128), options=TINY)
    torch.manual_seed(3)
    windows = [block.window_size for block in blocks(backbone.model) if block.shift_size == (0, 0)]
    reference = timm.create_model(name, num_classes=0, img_size=128, drop_path_rate=0.0, window_size=windows, **TINY)
    assert same_state(reference, backbone.model.state_dict())
    assert backbone.mask_token.shape == (16,)
    assert backbone.mask_token.requires_grad
    assert 0.01 < backbone.mask_token.std() < 0.03


@pytest.mark.slow
def test_the_model_at_its_own_size_is_timms_to_the_bit():
    torch.manual_seed(3)
    backbone = SwinBackbone(timm="swin_s3_tiny_224", options=TINY)
    torch.manual_seed(3)
    reference = timm.create_model("swin_s3_tiny_224", num_classes=0, **TINY)
    assert (backbone.image_size, backbone.grid) == ((224, 224), (7, 7))
    assert same_state(reference, backbone.model.state_dict())


@pytest.mark.parametrize(
    ("case", "kinds"), [(OBLONG, ("relative_position_bias_table",)), (OBLONG_2, ("cpb_mlp", "logit_scale"))], ids=str
)
def test_relative_positions_are_not_decayed(case: Case, kinds: tuple[str, ...]):
    backbone = shared(case)
    named = dict(backbone.named_parameters())
    undecayed = backbone.no_weight_decay()
    assert undecayed == {name for name in named if any(kind in name for kind in kinds)}
    assert {name for name in named if "_bias_table" in name or "cpb_mlp" in name} <= undecayed
    assert all(f"model.{name}" in undecayed for name in backbone.model.no_weight_decay())


@pytest.mark.parametrize("channels", [1, 4])
@few_cases
def test_images_of_any_number_of_channels_are_taken(case: Case, channels: int):
    backbone = build(case, channels=channels)
    images, mask = pictures(backbone), hidden_some(backbone)
    assert images.shape[1] == channels
    with torch.no_grad():
        latent = backbone(images, mask)
        for channel in range(channels):
            changed = images.clone()
            changed[:, channel] += uniform(*changed[:, channel].shape, seed=7)
            assert not torch.equal(backbone(changed, mask), latent), "every channel must count"
        assert torch.equal(backbone(with_hidden_pixels(backbone, images, mask, math.nan), mask), latent)


@pytest.mark.parametrize(
    ("data_size", "options", "expected", "unit"),
    [
        ((224, 224), {}, (224, 224), 32),
        ((32, 32), {}, (128, 128), 32),
        ((96, 160), {}, (128, 160), 32),
        ((32, 32), {"patch_size": 1}, (32, 32), 8),
        ((32, 32), {"patch_size": [2, 2]}, (64, 64), 16),
        ((28, 28), {"depths": [1, 1], "num_heads": [1, 2]}, (32, 32), 8),
    ],
)
def test_the_datas_own_size_is_taken_and_raised_to_four_units_a_side(data_size, options, expected, unit: int):
    backbone = SwinBackbone(options={**TINY, **options}, data_size=data_size)
    assert backbone.image_size == expected
    assert backbone.patch_size == (unit, unit)
    assert backbone.grid == (expected[0] // unit, expected[1] // unit)
    with torch.no_grad():
        assert backbone(torch.zeros(1, 3, *expected)).shape == (1, math.prod(backbone.grid), backbone.dim)


# ------------------------------------------------------------------------------------------------- training, and copies
@few_cases
def test_training_differs_only_where_paths_are_dropped(case: Case):
    backbone = copy.deepcopy(shared(case))
    images, mask = pictures(backbone), hidden_some(backbone)
    with torch.no_grad():
        assert torch.equal(backbone.train()(images, mask), shared(case)(images, mask))
        dropping = build(case, drop_path=0.6)
        assert torch.equal(dropping(images, mask), shared(case)(images, mask))
        outputs = [dropping.train()(images, mask) for _ in range(4)]
        assert any(not torch.equal(output, outputs[0]) for output in outputs)
        torch.manual_seed(0)
        latent = dropping(images, mask)
        torch.manual_seed(0)
        assert torch.equal(dropping(with_hidden_pixels(backbone, images, mask, math.nan), mask), latent)


@few_cases
def test_a_latent_under_autocast_is_finite_and_near(case: Case):
    backbone = shared(case)
    images, mask = pictures(backbone), hidden_some(backbone)
    soft = Mask.soft(uniform(IMAGES, math.prod(case.grid)), HIDDEN)
    for asked in (mask, soft, None):
        with torch.no_grad():
            exact = backbone(images, asked)
            with torch.autocast("cpu", torch.bfloat16):
                coarse = backbone(images, asked)
        torch.testing.assert_close(coarse.float(), exact, rtol=0, atol=0.5)
        assert (coarse.float() - exact).abs().mean() < 0.05


@few_cases
def test_a_copy_and_a_pickle_give_the_same_latent_and_are_apart(case: Case):
    backbone = shared(case)
    images, mask = pictures(backbone), hidden_some(backbone)
    before = state_of(backbone)
    with torch.no_grad():
        for twin in (copy.deepcopy(backbone), pickle.loads(pickle.dumps(backbone)), Teacher(backbone).module):
            assert torch.equal(twin(images, mask), backbone(images, mask))
            assert torch.equal(twin.tokens(images), backbone.tokens(images))
            for parameter in twin.parameters():
                parameter.zero_()
    assert same_state(backbone, before)


@pytest.mark.parametrize("name", [V1, V2])
@pytest.mark.parametrize("strategy", ["random", {"use": "clmae", "depth": 1}], ids=["random", "clmae"])
@pytest.mark.sampled(1)
def test_a_run_moves_the_model_and_its_mask_token(strategy: Any, name: str):
    session = tiny_session(strategy, noise_images(), backbone={"timm": name, "options": TINY}, train={"steps": 2})
    assert type(session.objective.backbone) is SwinBackbone
    before = state_of(session.objective)
    figures = list(train(session, random_batches(2, height=128, width=128)))
    assert len(figures) == 2
    assert all(math.isfinite(value) for step in figures for value in step.values())
    after = session.objective.state_dict()
    for part in ("backbone.mask_token", "backbone.model.patch_embed.proj.weight", "decoder_pred.weight"):
        assert not torch.equal(after[part], before[part]), part


@pytest.mark.parametrize("name", [V1, "swin_s3_tiny_224", "swinv2_tiny_window16_256"])
def test_the_name_of_a_timm_model_alone_finds_this_adapter(name: str):
    backbone: Any = make_backbone({"timm": name, "options": TINY}, noise_images(channels=1), REGISTRY)
    assert type(backbone) is SwinBackbone
    assert (backbone.channels, backbone.image_size) == (1, (128, 128))


# -------------------------------------------------------------------------------------------------------------- errors
@pytest.mark.parametrize(
    ("options", "key", "sentence"),
    [
        ({"timm": "vit_tiny_patch16_224"}, "timm", "is a VisionTransformer"),
        ({"timm": "swin_tiny_patch4_window7_225"}, "timm", "did you mean"),
        ({"timm": "swinv2_cr_tiny_224"}, "timm", "is a SwinTransformerV2Cr"),
        ({"image_size": 100}, "image_size", "nearest sizes are 96 x 96"),
        ({"image_size": 0}, "image_size", "at least 1 pixel"),
        ({"channels": 0}, "channels", "at least one channel"),
        ({"options": {**TINY, "bananas": 3}}, "options", "bananas"),
        ({"options": {**TINY, "img_size": 64}}, "options", "img_size"),
        ({"options": {**TINY, "window_size": 4}}, "options", "option of the backbone itself"),
        ({"options": {**TINY, "embed_dim": 18}}, "options", "divisible by 4"),
        ({"options": {**TINY, "patch_size": 0}}, "options", "patch_size takes positive whole numbers"),
        ({"options": {**TINY, "patch_size": "big"}}, "options", "patch_size takes positive whole numbers"),
        ({"options": {**TINY, "patch_size": (4, 4, 4)}}, "options", "patch_size takes positive whole numbers"),
        ({"options": {**TINY, "depths": 3}}, "options", "depths takes positive whole numbers"),
        ({"options": {**TINY, "depths": ()}}, "options", "depths takes positive whole numbers"),
        ({"options": {**TINY, "depths": (1, 1, 0, 1)}}, "options", "depths takes positive whole numbers"),
        ({"options": {**TINY, "depths": (1, 1, 1, 1, 1)}, "image_size": 128}, "options", "cannot build"),
    ],
)
def test_what_cannot_be_built_is_refused_with_its_key(options: dict[str, Any], key: str, sentence: str):
    with pytest.raises(RecipeError, match=sentence) as caught:
        SwinBackbone(**{"options": TINY, "data_size": (128, 128), **options})
    assert caught.value.key == key


@pytest.mark.parametrize("window", [0, -7])
def test_an_impossible_window_is_refused(window: int):
    with pytest.raises(ValueError, match="window_size"):
        SwinBackbone(options=TINY, window_size=window)
