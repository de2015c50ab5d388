"""Networks that end in a feature map: what zeroed pixels and masked convolutions see, and what is refused.

Shapes: B images, N mask units, V visible, D channels, h x w positions of a map.
"""

from __future__ import annotations

import copy
import functools
import math
import pickle
from collections.abc import Mapping
from typing import Any

import attrs
import pytest
import timm
import torch
from helpers import REGISTRY, noise_images, random_batches, same_state, state_of, tiny_session
from torch import Tensor, nn

from maskzoo import ContractError, Mask, RecipeError
from maskzoo.backbones import skeleton
from maskzoo.backbones.cnn import CnnBackbone
from maskzoo.backbones.vit import sin_cos
from maskzoo.build import make_backbone
from maskzoo.engine import recompute
from maskzoo.teacher import Teacher
from maskzoo.train import train

pytestmark = pytest.mark.sampled(3)

SHALLOW = {"layers": (1, 1, 1, 1), "channels": (8, 8, 16, 24)}
NARROW = {"depths": (1, 1, 2, 1), "dims": (8, 8, 16, 16)}
GRID = (2, 4)
UNITS = math.prod(GRID)
HIDDEN = 5
IMAGES = 3


@attrs.frozen
class Case:
    """A timm model, made small."""

    timm: str
    options: Mapping[str, Any] = attrs.field(eq=False)
    note: str = ""
    unit: int = 32

    def __str__(self) -> str:
        return f"{self.timm}{'-' * bool(self.note)}{self.note}"


RESNET = Case("resnet18", SHALLOW)
CONVNEXT = Case("convnext_atto", NARROW)
CONVNEXT_V2 = Case("convnextv2_atto", NARROW)
SPARSE = [
    RESNET,
    Case("resnet18", {**SHALLOW, "act_layer": "silu"}, "silu"),  # whose maxima may be negative
    Case("resnet18", {**SHALLOW, "output_stride": 16}, "dilated", 16),
    Case("resnet10t", SHALLOW),  # a deep stem, average pooling in the shortcut
    Case("seresnet50", {**SHALLOW, "channels": (8, 8, 8, 8)}),  # bottlenecks that look at the whole map
    Case("ecaresnet26t", {**SHALLOW, "channels": (8, 8, 8, 8)}),
    Case("resnet50_gn", {**SHALLOW, "channels": (32, 32, 32, 32)}),  # group norm
    CONVNEXT,
    Case("convnext_tiny", NARROW, "channels-last"),
    Case("convnext_atto_ols", NARROW),  # an overlapping stem
    Case("convnext_atto", {**NARROW, "output_stride": 16}, "dilated", 16),
    CONVNEXT_V2,
    Case("convnextv2_tiny", NARROW, "channels-last"),
]
FEW = [RESNET, CONVNEXT, CONVNEXT_V2]
NO_PATH = Case("densenet121", {"growth_rate": 8, "block_config": (1, 1, 1, 1)})  # timm gives it no drop path
OTHERS = [Case("regnetx_002", {}), NO_PATH]
every_sparse_model = pytest.mark.parametrize("case", SPARSE, ids=str)
few_models = pytest.mark.parametrize("case", FEW, ids=str)
both_ways = pytest.mark.parametrize("hidden", ["zero-pixels", "masked-convolution"])
modes = pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])


# --------------------------------------------------------------------------------------------------------- what is used
def build(case: Case = RESNET, hidden: str = "zero-pixels", **options: Any) -> CnnBackbone:
    """A small model in eval mode, its weights shaken so that no layer scale or zero bias hides a mistake."""
    if "data_size" not in options:
        options.setdefault("image_size", (GRID[0] * case.unit, GRID[1] * case.unit))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        backbone = CnnBackbone(**{"timm": case.timm, "options": case.options, "hidden": hidden, **options}).eval()
        with torch.no_grad():
            for parameter in backbone.parameters():
                parameter.add_(torch.randn_like(parameter) * 0.1)
            for name, buffer in backbone.named_buffers():
                if name.endswith("running_mean"):
                    buffer.add_(torch.randn_like(buffer) * 0.1)
    return backbone


@functools.cache
def shared(case: Case = RESNET, hidden: str = "zero-pixels") -> CnnBackbone:
    """One build for all tests that change nothing."""
    return build(case, hidden)


def uniform(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


def pictures(backbone: CnnBackbone, batch: int = IMAGES) -> Tensor:
    return torch.randn(batch, backbone.channels, *backbone.image_size, generator=torch.Generator().manual_seed(1))


def some_hidden(count: int = HIDDEN, batch: int = IMAGES, seed: int = 2) -> Mask:
    return Mask.hide_top(uniform(batch, UNITS, seed=seed), count)


def with_hidden_pixels(backbone: CnnBackbone, images: Tensor, mask: Mask, value: float) -> Tensor:
    images, (height, width) = images.clone(), backbone.patch_size
    for number, unit in mask.hidden.nonzero().tolist():
        row, column = divmod(unit, GRID[1])
        images[number, :, row * height : (row + 1) * height, column * width : (column + 1) * width] = value
    return images


def flat(features: Tensor) -> Tensor:
    return features.flatten(2).transpose(1, 2)


def stages_of(backbone: CnnBackbone) -> list[nn.Module]:
    model = backbone.model
    if hasattr(model, "stages"):
        return [model.stem, *model.stages]
    return [model.act1, model.maxpool, model.layer1, model.layer2, model.layer3, model.layer4]


# --------------------------------------------------------------------------------------------------- zero pixels, both
@pytest.mark.parametrize("case", [*FEW, *OTHERS], ids=str)
@pytest.mark.sampled(1)
def test_zeroed_pixels_give_what_timm_makes_of_a_blanked_image(case: Case):
    backbone = shared(case)
    images, mask = pictures(backbone), some_hidden()
    with torch.no_grad():
        latent = backbone(images, mask)
        blanked = with_hidden_pixels(backbone, images, mask, 0.0)
        assert torch.equal(latent, flat(backbone.model.forward_features(blanked)))
        assert torch.equal(backbone(images), flat(backbone.model.forward_features(images)))
        assert torch.equal(backbone.inspect(images)[0], backbone(images))
    assert latent.shape == (IMAGES, UNITS, backbone.dim)
    assert (backbone.grid, backbone.patch_size) == (GRID, (32, 32))
    assert (backbone.prefix, backbone.dense, backbone.provides) == (0, True, {"features"})
    assert not torch.equal(latent, backbone(images))


@both_ways
@few_models
@pytest.mark.sampled(1)
def test_nothing_in_a_hidden_pixel_reaches_the_latent(case: Case, hidden: str):
    backbone = shared(case, hidden)
    images, mask = pictures(backbone), some_hidden()
    with torch.no_grad():
        latent = backbone(images, mask)
        assert latent.isfinite().all()
        for value in (17.0, math.nan, -math.inf):
            assert torch.equal(backbone(with_hidden_pixels(backbone, images, mask, value), mask), latent), value
        difference = backbone(with_hidden_pixels(backbone, images, mask.inverted(), 0.0), mask) - latent
    assert (difference.abs().amax(dim=2) > 1e-5).all()


@both_ways
@few_models
def test_gradients_are_finite_and_whole_with_nan_in_hidden_pixels(case: Case, hidden: str):
    backbone = build(case, hidden).train()
    mask = some_hidden()
    broken = with_hidden_pixels(backbone, pictures(backbone), mask, math.nan).requires_grad_()
    latent = backbone(broken, mask)
    trained = {name: parameter for name, parameter in backbone.named_parameters() if parameter.requires_grad}
    loss = (latent * uniform(*latent.shape, seed=5)).sum()
    *gradients, of_pixels = torch.autograd.grad(loss, [*trained.values(), broken], allow_unused=True)
    for name, gradient in zip(trained, gradients, strict=True):
        assert gradient is not None, f"{name} has no part in the latent, which DDP would not forgive"
        assert gradient.isfinite().all(), name
    at_hidden = with_hidden_pixels(backbone, torch.zeros_like(broken), mask, 1.0).bool()
    assert of_pixels.isfinite().all()
    assert (of_pixels[at_hidden] == 0).all()
    assert (of_pixels[~at_hidden] != 0).any()
    assert {name for name, parameter in backbone.named_parameters() if not parameter.requires_grad} == (
        set() if case is RESNET else {"model.head.norm.weight", "model.head.norm.bias"}
    )


@both_ways
@few_models
def test_a_soft_mask_scales_the_pixels_of_a_unit(case: Case, hidden: str):
    backbone = shared(case, hidden)
    images = pictures(backbone)
    chances = uniform(IMAGES, UNITS, seed=3).requires_grad_()
    with torch.no_grad():
        fully_visible = backbone(images, Mask.soft(torch.zeros(IMAGES, UNITS), HIDDEN))
        assert torch.equal(fully_visible, backbone(images))
        scaled = images.clone()
        for number in range(IMAGES):
            for unit in range(UNITS):
                row, column = divmod(unit, GRID[1])
                scaled[number, :, row * 32 : row * 32 + 32, column * 32 : column * 32 + 32] *= 1 - chances[number, unit]
        torch.testing.assert_close(backbone(images, Mask.soft(chances, HIDDEN)), backbone(scaled))
    latent = backbone(images, Mask.soft(chances, HIDDEN))
    assert latent.shape == (IMAGES, UNITS, backbone.dim)
    (gradient,) = torch.autograd.grad((latent * uniform(*latent.shape, seed=5)).sum(), chances)
    assert gradient.isfinite().all()
    assert (gradient != 0).all()


# ------------------------------------------------------------------------------------------------- masked convolutions
@modes
@every_sparse_model
def test_what_is_visible_is_treated_like_an_image_that_ends_where_it_ends(case: Case, training: bool):
    sparse = shared(case, "masked-convolution")
    images, (rows, columns) = pictures(sparse), sparse.grid
    halves = images.chunk(2, dim=3)
    for side in (0, 1):  # windows of an even stride look further to the left
        backbone = copy.deepcopy(sparse).train(training)
        plain, zeroed = copy.deepcopy(backbone.model), copy.deepcopy(backbone.model)
        hidden = torch.zeros(IMAGES, rows, columns, dtype=torch.bool)
        hidden.chunk(2, dim=2)[1 - side].fill_(True)
        mask = Mask(hidden.flatten(1), rows * columns // 2)
        with torch.no_grad():
            latent = backbone(images, mask)
            expected = flat(plain.forward_features(halves[side]))
            blanked = with_hidden_pixels(backbone, images, mask, 0.0)
            blind = flat(zeroed.forward_features(blanked).chunk(2, dim=3)[side])
        assert latent.shape == expected.shape
        torch.testing.assert_close(latent, expected, rtol=1e-5, atol=1e-5)
        assert latent.std() > 1e-2
        assert (blind - expected).abs().max() > 1e-3, "zeroed pixels alone would do"
        for name, buffer in backbone.model.named_buffers():  # running statistics: those of what is visible
            torch.testing.assert_close(buffer, dict(plain.named_buffers())[name], rtol=1e-5, atol=1e-6)


@modes
@few_models
def test_without_a_mask_or_with_nothing_hidden_it_is_timms_own_model(case: Case, training: bool):
    backbone = copy.deepcopy(shared(case, "masked-convolution")).train(training)
    plain = copy.deepcopy(backbone.model)
    images = pictures(backbone)
    nothing = Mask(torch.zeros(IMAGES, math.prod(backbone.grid), dtype=torch.bool), 0)
    with torch.no_grad():
        expected = flat(plain.forward_features(images))
        assert torch.equal(backbone(images), expected)
        torch.testing.assert_close(backbone(images, nothing), expected, rtol=1e-4, atol=1e-5)
    assert backbone.dense is False
    assert CnnBackbone.dense is True, "the class itself must stay as it was"


def test_running_statistics_are_those_of_visible_positions():
    backbone = build(RESNET, "masked-convolution").train()
    images, mask = pictures(backbone), some_hidden()
    norm = backbone.model.bn1
    before = norm.running_mean.clone(), norm.running_var.clone()
    zeroed = with_hidden_pixels(backbone, images, mask, 0.0)
    with torch.no_grad():
        backbone(images, mask)
        stem = backbone.model.conv1(zeroed)  # [B, D, h, w]
    visible = torch.stack(
        [
            stem[number, :, unit // 4 * 16 : unit // 4 * 16 + 16, unit % 4 * 16 : unit % 4 * 16 + 16].flatten(1)
            for number, unit in mask.inverted().hidden.nonzero().tolist()
        ],
        dim=1,
    ).flatten(1)  # [D, visible positions]
    expected = 0.9 * before[0] + 0.1 * visible.mean(dim=1)
    torch.testing.assert_close(norm.running_mean, expected, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(norm.running_var, 0.9 * before[1] + 0.1 * visible.var(dim=1), rtol=1e-5, atol=1e-6)
    assert norm.num_batches_tracked == 1


@few_models
def test_hidden_positions_are_exactly_zero_after_every_stage(case: Case):
    backbone = copy.deepcopy(shared(case, "masked-convolution")).train()
    images, mask = pictures(backbone), some_hidden()
    seen: list[Tensor] = []
    for stage in stages_of(backbone):
        stage.register_forward_hook(lambda _, inputs, output: seen.append(output.detach().clone()))
    backbone(with_hidden_pixels(backbone, images, mask, math.nan), mask)
    assert len(seen) == len(stages_of(backbone))
    for features in seen:
        hidden = mask.hidden_on(GRID, [features.shape[2] // GRID[0], features.shape[3] // GRID[1]])
        energy = features.abs().sum(dim=1).flatten(1)
        assert (energy[hidden] == 0).all()
        assert (energy[~hidden] > 0).float().mean() > 0.9


def test_an_image_is_encoded_as_if_it_were_alone():
    for case in FEW:
        backbone = shared(case, "masked-convolution")
        images, mask = pictures(backbone), some_hidden()
        with torch.no_grad():
            together = backbone(images, mask)
            for number in range(IMAGES):
                alone = backbone(images[number : number + 1], Mask(mask.hidden[number : number + 1], HIDDEN))
                torch.testing.assert_close(alone[0], together[number], rtol=1e-5, atol=1e-5)


def test_a_mask_is_forgotten_also_when_the_model_fails():
    backbone = build(RESNET, "masked-convolution")
    images, mask = pictures(backbone), some_hidden()
    expected = backbone(images)

    def fail(module: nn.Module, inputs: tuple[Any, ...]) -> None:
        raise RuntimeError("a plugin's hook fails")

    handle = backbone.model.layer3.register_forward_pre_hook(fail)
    with pytest.raises(RuntimeError, match="hook fails"):
        backbone(images, mask)
    handle.remove()
    assert torch.equal(backbone(images), expected)
    other = some_hidden(seed=9)
    assert torch.equal(backbone(images, other), copy.deepcopy(backbone)(images, other))


def test_a_mask_whose_count_differs_by_image_is_for_zeroed_pixels_alone():
    hidden = torch.zeros(IMAGES, UNITS, dtype=torch.bool)
    hidden[0, :3] = hidden[1, :5] = True
    images = pictures(shared())
    with torch.no_grad():
        assert shared()(images, Mask(hidden, None)).shape == (IMAGES, UNITS, 24)
    sparse = shared(RESNET, "masked-convolution")
    with pytest.raises(ContractError, match="differs by image"):
        sparse(images, Mask(hidden, None))
    assert sparse(images).shape == (IMAGES, UNITS, 24)


@pytest.mark.slow
def test_recomputing_masked_convolutions_is_refused_since_the_mask_is_gone_by_then():
    backbone = build(CONVNEXT, "masked-convolution")
    recompute(backbone)
    with pytest.raises(ContractError, match="recompute"):
        backbone(pictures(backbone), some_hidden())
    backbone(pictures(backbone))
    with torch.no_grad():
        backbone(pictures(backbone), some_hidden())
    timms_own = build(CONVNEXT, "masked-convolution")
    timms_own.model.set_grad_checkpointing()
    with pytest.raises(ContractError, match="recompute"):
        timms_own(pictures(backbone), some_hidden())


# ------------------------------------------------------------------------------------------------------ tokens, decay
@modes
@few_models
def test_tokens_are_the_first_stage_averaged_over_units_plus_positions_and_move_no_statistics(
    case: Case, training: bool
):
    backbone = build(case).train(training)
    images, before = pictures(backbone), state_of(backbone)
    tokens = backbone.tokens(images)
    assert same_state(backbone, before)
    assert all(module.training == training for module in backbone.modules())
    assert tokens.shape == (IMAGES, UNITS, backbone.token_dim)
    assert torch.equal(tokens, backbone.eval().tokens(images))
    seen: list[Tensor] = []
    first = backbone.model.stages[0] if case is not RESNET else backbone.model.act1
    first.register_forward_hook(lambda _, inputs, output: seen.append(output.clone()))
    with torch.no_grad():
        backbone.model.forward_features(images)
    table = sin_cos(GRID, backbone.token_dim)
    side = seen[0].shape[2] // GRID[0]
    for unit in range(UNITS):
        row, column = divmod(unit, GRID[1])
        part = seen[0][:, :, row * side : (row + 1) * side, column * side : (column + 1) * side]
        torch.testing.assert_close(tokens[:, unit], part.mean(dim=(2, 3)) + table[unit], rtol=1e-5, atol=1e-5)
    assert not any("_position" in name for name in backbone.state_dict())


def test_tokens_let_gradients_through():
    backbone = build().train()
    images = pictures(backbone).requires_grad_()
    backbone.tokens(images).square().sum().backward()
    assert images.grad is not None
    assert (images.grad != 0).any()


def test_names_without_weight_decay_are_those_of_timm():
    backbone = shared()
    assert backbone.no_weight_decay() == set()
    backbone = copy.deepcopy(backbone)
    backbone.model.no_weight_decay = lambda: {"conv1.weight", "not.there"}
    assert backbone.no_weight_decay() == {"model.conv1.weight"}


# ------------------------------------------------------------------------------------------------- in runs and in files
@both_ways
@pytest.mark.parametrize("channels", [1, 4])
def test_weights_go_back_into_timms_own_model(channels: int, hidden: str):
    backbone = build(CONVNEXT_V2, hidden, channels=channels)
    state = {name.removeprefix("model."): value for name, value in backbone.state_dict().items()}
    model = timm.create_model(CONVNEXT_V2.timm, in_chans=channels, num_classes=0, **NARROW).eval()
    model.load_state_dict(state)
    with torch.no_grad():
        images = pictures(backbone)
        assert torch.equal(flat(model.forward_features(images)), backbone(images))


@both_ways
@few_models
def test_a_copy_and_a_pickle_give_the_same_latent_and_are_apart(case: Case, hidden: str):
    backbone = shared(case, hidden)
    images, mask, before = pictures(backbone), some_hidden(), state_of(backbone)
    with torch.no_grad():
        for twin in (copy.deepcopy(backbone), pickle.loads(pickle.dumps(backbone)), Teacher(backbone).module):
            assert torch.equal(twin(images, mask), backbone(images, mask))
            with backbone._visible.under(some_hidden(seed=7)):  # a mask in force in one is none in the other
                assert torch.equal(twin(images), flat(twin.model.forward_features(images)))
            assert torch.equal(twin(images), backbone(images))
            for parameter in twin.parameters():
                parameter.zero_()
    assert same_state(backbone, before)


@both_ways
@few_models
def test_bfloat16_comes_close(case: Case, hidden: str):
    backbone = shared(case, hidden)
    images = pictures(backbone)
    for mask in (some_hidden(), Mask.soft(uniform(IMAGES, UNITS), HIDDEN), None):
        with torch.no_grad():
            exact = backbone(images, mask)
            with torch.autocast("cpu", torch.bfloat16):
                coarse = backbone(images, mask)
        assert coarse.isfinite().all()
        assert (coarse.float() - exact).abs().mean() < 0.03 * exact.abs().mean() + 0.01


@both_ways
@pytest.mark.parametrize("strategy", ["random", {"use": "clmae", "depth": 1}], ids=["random", "clmae"])
@pytest.mark.parametrize("case", [RESNET, CONVNEXT_V2], ids=str)
def test_a_run_moves_the_model(case: Case, strategy: Any, hidden: str):
    session = tiny_session(
        strategy,
        noise_images(channels=1),
        backbone={"timm": case.timm, "options": dict(case.options), "hidden": hidden, "image_size": 64},
        masking={"ratio": 0.5},
        train={"steps": 2},
    )
    assert type(session.objective.backbone) is CnnBackbone
    before = state_of(session.objective)
    figures = list(train(session, random_batches(2, channels=1, height=64, width=64)))
    assert len(figures) == 2
    assert all(math.isfinite(value) for step in figures for value in step.values())
    after = session.objective.state_dict()
    moved = {name for name in before if not torch.equal(after[name], before[name])}
    assert {"decoder_pred.weight", "backbone.model.stem.0.weight", "backbone.model.conv1.weight"} & moved
    if case is RESNET:
        assert after["backbone.model.bn1.num_batches_tracked"] == 2, "only the model's own steps count"


@pytest.mark.parametrize("name", ["resnet50", "convnextv2_atto", "efficientnet_b0"])
@pytest.mark.sampled(1)
def test_a_network_that_ends_in_one_map_is_taken(name: str):
    assert CnnBackbone.adapts(skeleton(name))


@pytest.mark.parametrize(
    "name",
    [
        "vit_tiny_patch16_224",  # tokens
        "swin_tiny_patch4_window7_224",  # a map with its channels last
        "hiera_tiny_224",
        "mambaout_femto",
        "mvitv2_tiny",
        "inception_v4",  # positions that cut no image evenly
        "coat_lite_tiny",
    ],
)
def test_a_model_of_another_kind_is_not_taken(name: str):
    assert not CnnBackbone.adapts(skeleton(name))


@pytest.mark.parametrize("case", FEW, ids=str)
def test_the_name_of_a_timm_model_alone_finds_this_adapter(case: Case):
    table = {"timm": case.timm, "options": dict(case.options)}
    backbone: Any = make_backbone(table, noise_images(channels=1), REGISTRY)
    assert type(backbone) is CnnBackbone
    assert (backbone.channels, backbone.image_size, backbone.grid) == (1, (128, 128), (4, 4))


def test_options_that_change_the_stride_change_the_unit():
    backbone = shared(SPARSE[2])
    assert (backbone.patch_size, backbone.grid) == ((16, 16), GRID)
    assert build(RESNET, data_size=(32, 200 + 56)).grid == (4, 8)


@pytest.mark.slow
def test_drop_path_reaches_timm_and_a_network_without_any_is_built_only_if_none_is_asked_for():
    backbone = build(CONVNEXT, drop_path=0.5)
    assert any(type(module).__name__ == "DropPath" for module in backbone.model.modules())
    assert shared(NO_PATH).dim > 0
    with pytest.raises(RecipeError, match="drop_path_rate") as caught:
        build(NO_PATH, drop_path=0.1)
    assert caught.value.key == "options"


# -------------------------------------------------------------------------------------------------------------- errors
@pytest.mark.parametrize(
    ("options", "key", "sentence"),
    [
        ({"timm": "vit_tiny_patch16_224", "options": {}}, "timm", "is a VisionTransformer"),
        ({"timm": "resnet19"}, "timm", "did you mean"),
        ({"image_size": (64, 100)}, "image_size", "nearest sizes are 64 x 96"),
        ({"channels": 0}, "channels", "at least one channel"),
        ({"options": {**SHALLOW, "bananas": 3}}, "options", "bananas"),
        ({"timm": "efficientformerv2_s0", "options": {}}, "image_size", "cannot be shown images of 128 x 128"),
        ({"timm": "regnetx_002", "options": {}, "hidden": "masked-convolution"}, "hidden", "is a RegNet"),
        ({"timm": "skresnet18", "options": {}, "hidden": "masked-convolution"}, "hidden", "SelectiveKernel"),
        ({"options": {**SHALLOW, "act_layer": "sigmoid"}, "hidden": "masked-convolution"}, "hidden", "Sigmoid"),
        ({"options": {**SHALLOW, "drop_block_rate": 0.1}, "hidden": "masked-convolution"}, "hidden", "DropBlock"),
    ],
)
def test_what_cannot_be_built_is_refused_with_its_key(options: dict[str, Any], key: str, sentence: str):
    with pytest.raises(RecipeError, match=sentence) as caught:
        CnnBackbone(**{"options": SHALLOW, "data_size": (128, 128), **options})
    assert caught.value.key == key


def test_images_and_masks_of_another_size_are_refused():
    backbone = shared()
    for see in (backbone, backbone.tokens):
        with pytest.raises(ContractError, match="built for images"):
            see(torch.zeros(2, 3, 64, 64))
    with pytest.raises(ContractError, match="have patches"):
        backbone(pictures(backbone), some_hidden(batch=2))
    with pytest.raises(ContractError, match="have patches"):
        backbone(pictures(backbone), Mask.soft(uniform(IMAGES, 2 * UNITS), 3))
