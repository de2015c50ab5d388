"""The BEiT backbone: what it hides behind its mask token, what it attends to, where things are, and what it refuses.

Shapes: B images, N patches, D channels.
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
from torch import Tensor, nn

from maskzoo import ContractError, Mask, RecipeError
from maskzoo.backbones.beit import BeitBackbone
from maskzoo.build import make_backbone
from maskzoo.teacher import Teacher
from maskzoo.train import train

pytestmark = pytest.mark.sampled(4)

TINY = {"embed_dim": 24, "depth": 2, "num_heads": 2}
GRID = (3, 4)
PATCHES = math.prod(GRID)
IMAGES = 2
HIDDEN = 5
FIRST, SECOND = 1, 10  # two patches in different rows and columns, to exchange


@attrs.frozen
class Case:
    """A timm model, made small, and how it tells positions."""

    timm: str = "beit_base_patch16_224"
    options: Mapping[str, Any] = attrs.field(factory=dict, eq=False)
    absolute: bool = False
    note: str = ""

    def __str__(self) -> str:
        return f"{self.timm}{'-' * bool(self.note)}{self.note}"


PLAIN = Case()
SHARED = Case(options={"use_rel_pos_bias": False, "use_shared_rel_pos_bias": True}, note="shared-bias")
ABSOLUTE = Case(options={"use_rel_pos_bias": False, "use_abs_pos_emb": True}, absolute=True, note="absolute")
CASES = [
    PLAIN,
    Case("beitv2_base_patch16_224"),
    SHARED,
    ABSOLUTE,
    Case(options={"use_abs_pos_emb": True, "use_shared_rel_pos_bias": True}, absolute=True, note="all-positions"),
    Case(options={"global_pool": "token", "swiglu_mlp": True, "init_values": None}, note="token-pooling"),
]
every_case = pytest.mark.parametrize("case", CASES, ids=str)
few_cases = pytest.mark.parametrize("case", [PLAIN, ABSOLUTE], ids=str)


# --------------------------------------------------------------------------------------------------------- what is used
def build(case: Case = PLAIN, seed: int = 0, **options: Any) -> BeitBackbone:
    """A small model in eval mode, its weights shaken: relative positions begin with zeros, which hide mistakes."""
    options = {"image_size": (24, 32), "patch_size": 8, "options": {**TINY, **case.options}, **options}
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        backbone = BeitBackbone(timm=case.timm, **options).eval()
        with torch.no_grad():
            for name, parameter in backbone.named_parameters():
                if "patch_embed" not in name:
                    parameter.add_(torch.randn_like(parameter) * 0.3)
    return backbone


@functools.cache
def shared(case: Case) -> BeitBackbone:
    """One build for all tests that change nothing."""
    return build(case)


def hidden_some(backbone: BeitBackbone, count: int = HIDDEN, batch: int = IMAGES) -> Mask:
    return some_hidden(backbone, count, batch)


def before_the_blocks(backbone: BeitBackbone, run: Callable[[], Any]) -> Tensor:
    """[B, 1 + N, D]: the tokens that a run hands to the first block."""
    seen: list[Tensor] = []
    handle = backbone.model.blocks[0].register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    try:
        run()
    finally:
        handle.remove()
    assert len(seen) == 1
    return seen[0]


def absolute(backbone: BeitBackbone) -> Tensor | float:
    return 0.0 if backbone.model.pos_embed is None else backbone.model.pos_embed[:, 1:]


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
def test_something_in_a_visible_pixel_reaches_every_token(case: Case):
    backbone = shared(case)
    images, mask = pictures(backbone), hidden_some(backbone)
    with torch.no_grad():
        shown = with_hidden_pixels(backbone, images, mask.inverted(), 0.0)
        difference = backbone(shown, mask) - backbone(images, mask)
    assert (difference.abs().amax(dim=2) > 1e-4).all()


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
        assert gradient.any(), name
    hidden = with_hidden_pixels(backbone, torch.zeros_like(images), mask, 1.0).bool()
    assert of_pixels.isfinite().all()
    assert (of_pixels[hidden] == 0).all()
    assert (of_pixels[~hidden] != 0).any()


@every_case
def test_the_mask_token_stands_in_every_hidden_place_before_positions_are_added(case: Case):
    backbone = shared(case)
    images, mask = pictures(backbone), hidden_some(backbone)
    with torch.no_grad():
        seen = before_the_blocks(backbone, lambda: backbone(images, mask))
        whole = before_the_blocks(backbone, lambda: backbone.model.forward_features(images))
        expected = (backbone.mask_token + absolute(backbone)).expand(IMAGES, PATCHES, -1)
    torch.testing.assert_close(seen[:, 1:][mask.hidden], expected[mask.hidden], rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(seen[:, 1:][~mask.hidden], whole[:, 1:][~mask.hidden], rtol=1e-5, atol=1e-5)
    assert torch.equal(seen[:, 0], whole[:, 0])


@every_case
def test_the_whole_image_gives_what_timm_gives(case: Case):
    backbone = shared(case)
    images = pictures(backbone)
    with torch.no_grad():
        whole = backbone(images)
        assert torch.equal(whole, backbone.model.forward_features(images))
        torch.testing.assert_close(backbone(images, hidden_some(backbone, 0)), whole, rtol=1e-6, atol=1e-6)
    assert whole.shape == (IMAGES, 1 + PATCHES, 24)
    assert (backbone.prefix, backbone.dense, backbone.grid, backbone.patch_size) == (1, True, GRID, (8, 8))
    assert (backbone.dim, backbone.token_dim) == (24, 24)


@every_case
def test_the_latent_carries_the_final_norm(case: Case):
    backbone = copy.deepcopy(shared(case))
    nn.init.ones_(backbone.model.norm.weight)
    nn.init.zeros_(backbone.model.norm.bias)
    with torch.no_grad():
        latent = backbone(pictures(backbone), hidden_some(backbone))
    torch.testing.assert_close(latent.mean(dim=2), torch.zeros(latent.shape[:2]), rtol=0, atol=1e-5)
    torch.testing.assert_close(latent.var(dim=2, unbiased=False), torch.ones(latent.shape[:2]), rtol=0, atol=1e-3)


@every_case
def test_exchanging_two_patches_is_more_than_exchanging_two_rows_of_the_latent(case: Case):
    backbone = shared(case)
    images = pictures(backbone)
    hidden = torch.zeros(IMAGES, PATCHES, dtype=torch.bool)
    hidden[:, [0, 4, 7]] = True
    mask = Mask(hidden, 3)
    with torch.no_grad():
        latent, other = backbone(images, mask), backbone(exchanged(backbone, images, FIRST, SECOND), mask)
    assert (other - rows_exchanged(backbone, latent, FIRST, SECOND, 1)).abs().max() > 1e-3
    assert (other - latent).abs().max() > 1e-3


@every_case
def test_a_patch_of_the_latent_is_where_its_pixels_are(case: Case):
    backbone = copy.deepcopy(shared(case))
    for block in backbone.model.blocks:  # without attention, places do not hear of each other
        nn.init.zeros_(block.attn.proj.weight)
    images = pictures(backbone, PATCHES)
    changed = images.clone()
    for patch in range(PATCHES):
        changed[patch][square(backbone, patch)] += uniform(*changed[patch][square(backbone, patch)].shape)
    with torch.no_grad():
        for read in (lambda x: backbone(x)[:, 1:], backbone.tokens):
            difference = (read(changed) - read(images)).abs().amax(dim=2)  # [N images, N]
            assert torch.equal(difference > 1e-4, torch.eye(PATCHES, dtype=torch.bool))


@every_case
def test_hiding_everything_leaves_nothing_of_an_image(case: Case):
    backbone = shared(case)
    with torch.no_grad():
        latent = backbone(pictures(backbone), hidden_some(backbone, PATCHES))
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


@pytest.mark.parametrize("shape", [(3, 32, 24), (1, 24, 32), (3, 32, 32)])
def test_images_of_another_size_or_depth_are_refused(shape: tuple[int, ...]):
    backbone = shared(PLAIN)
    masked = functools.partial(backbone, mask=hidden_some(backbone))
    for run in (backbone, masked, backbone.tokens, backbone.inspect, backbone.attention):
        with pytest.raises(ContractError, match="built for images"):
            run(torch.zeros(2, *shape))


@pytest.mark.parametrize(("images", "patches"), [(IMAGES, 13), (IMAGES, 1), (1, 12)])
def test_a_mask_of_another_grid_or_number_of_images_is_refused(images: int, patches: int):
    backbone = shared(PLAIN)
    for mask in (Mask.hide_top(uniform(images, patches), 1), Mask.soft(uniform(images, patches), 1)):
        with pytest.raises(ContractError, match="the mask is"):
            backbone(pictures(backbone), mask)


# --------------------------------------------------------------------------------------------------------- soft masks
@every_case
def test_a_soft_mask_blends_the_patches_with_the_mask_token(case: Case):
    backbone = shared(case)
    images = pictures(backbone)
    chances = uniform(IMAGES, PATCHES, seed=3).requires_grad_()
    mask = Mask.soft(chances, HIDDEN)
    with torch.no_grad():
        seen = before_the_blocks(backbone, lambda: backbone(images, mask))[:, 1:]
        visible = (1 - chances)[..., None]
        blended = visible * backbone.model.patch_embed(images) + (1 - visible) * backbone.mask_token
        torch.testing.assert_close(seen, blended + absolute(backbone), rtol=1e-5, atol=1e-5)
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
        visible = Mask.soft(torch.zeros(IMAGES, PATCHES), HIDDEN)
        torch.testing.assert_close(backbone(images, visible), backbone(images), rtol=1e-6, atol=1e-6)
        decided = Mask.soft(mask.hidden.float(), HIDDEN)
        torch.testing.assert_close(backbone(images, decided), backbone(images, mask), rtol=1e-5, atol=1e-5)


# ------------------------------------------------------------------------------------------------ tokens and attention
@every_case
def test_tokens_are_embedded_patches_plus_position(case: Case):
    backbone = shared(case)
    images = pictures(backbone)
    with torch.no_grad():
        embedded = backbone.model.patch_embed(images)
        position = absolute(backbone) if case.absolute else torch.from_numpy(mae_table(GRID, 24)).float()
        torch.testing.assert_close(backbone.tokens(images), embedded + position, rtol=1e-5, atol=1e-5)
    assert "_position" not in backbone.state_dict()


def relative(table: Tensor) -> Tensor:
    """[heads, 1 + N, 1 + N]: the bias of each pair, from a table whose last three rows are those of the class token."""
    bias = torch.empty(1 + PATCHES, 1 + PATCHES, table.shape[1])
    bias[0, 1:], bias[1:, 0], bias[0, 0] = table[-3], table[-2], table[-1]
    for query in range(PATCHES):
        for key in range(PATCHES):
            rows = query // GRID[1] - key // GRID[1] + GRID[0] - 1
            columns = query % GRID[1] - key % GRID[1] + GRID[1] - 1
            bias[1 + query, 1 + key] = table[rows * (2 * GRID[1] - 1) + columns]
    return bias.permute(2, 0, 1)


def attention_by_hand(backbone: BeitBackbone, number: int, tokens: Tensor) -> Tensor:
    """[B, heads, 1 + N, 1 + N]: softmax of what a block's queries and keys say of its input, plus positions."""
    block = backbone.model.blocks[number]
    bias = torch.cat([block.attn.q_bias, torch.zeros(24), block.attn.v_bias])
    query, key, _ = (block.norm1(tokens) @ block.attn.qkv.weight.T + bias).chunk(3, dim=-1)
    query, key = (part.unflatten(-1, (2, 12)).transpose(1, 2) for part in (query, key))
    logits = query @ key.transpose(-2, -1) / 12**0.5
    if block.attn.relative_position_bias_table is not None:
        logits = logits + relative(block.attn.relative_position_bias_table)
    if backbone.model.rel_pos_bias is not None:
        logits = logits + relative(backbone.model.rel_pos_bias.relative_position_bias_table)
    return logits.softmax(dim=-1)


@every_case
def test_attention_is_the_softmax_with_relative_positions(case: Case):
    backbone = shared(case)
    images = pictures(backbone)
    inputs: list[Tensor] = []
    hooks = [
        block.register_forward_pre_hook(lambda _, given: inputs.append(given[0])) for block in backbone.model.blocks
    ]
    with torch.no_grad():
        latent = backbone(images)
        for hook in hooks:
            hook.remove()
        flags = [block.attn.fused_attn for block in backbone.model.blocks]
        for number, block in ((0, 0), (1, 1), (0, -2), (1, -1)):
            features, attention = backbone.inspect(images, block)
            by_hand = attention_by_hand(backbone, number, inputs[number])
            torch.testing.assert_close(attention, by_hand, rtol=1e-4, atol=1e-5)
            torch.testing.assert_close(features, latent if number else inputs[1], rtol=1e-4, atol=1e-4)
        rows = by_hand.mean(dim=1)[:, 0, 1:]
        torch.testing.assert_close(backbone.attention(images), rows, rtol=1e-4, atol=1e-5)
        with torch.autocast("cpu", torch.bfloat16):
            coarse = backbone.attention(images)
    assert coarse.dtype == torch.float32
    torch.testing.assert_close(coarse, rows, rtol=0, atol=0.05)
    assert rows.shape == (IMAGES, PATCHES)
    assert (rows.amax(dim=1) > 1.5 * rows.amin(dim=1)).all(), "a flat attention would prove nothing"
    assert [block.attn.fused_attn for block in backbone.model.blocks] == flags
    assert not any(block.attn.attn_drop._forward_pre_hooks for block in backbone.model.blocks)
    assert backbone.provides == {"attention", "features"}


@pytest.mark.parametrize("block", [2, -3])
def test_a_block_that_is_not_there_is_refused(block: int):
    with pytest.raises(IndexError):
        shared(PLAIN).inspect(pictures(shared(PLAIN)), block)


# ---------------------------------------------------------------------------------------------------- sizes and weights
@every_case
def test_weights_load_into_timms_own_model(case: Case):
    backbone = shared(case)
    pooling = {"global_pool": "", **case.options}
    reference = timm.create_model(case.timm, num_classes=0, img_size=(24, 32), patch_size=8, **TINY, **pooling).eval()
    state = {name.removeprefix("model."): value for name, value in backbone.state_dict().items()}
    del state["mask_token"]
    reference.load_state_dict(state, strict=True)
    images = pictures(backbone)
    with torch.no_grad():
        assert torch.equal(reference.forward_features(images), backbone(images))


@every_case
def test_initial_weights_are_timms_and_the_mask_token_comes_after_them(case: Case):
    pooling = {"global_pool": "", **case.options}
    torch.manual_seed(3)
    backbone = BeitBackbone(timm=case.timm, image_size=32, patch_size=8, options={**TINY, **case.options})
    torch.manual_seed(3)
    reference = timm.create_model(case.timm, num_classes=0, img_size=32, patch_size=8, **TINY, **pooling)
    assert same_state(reference, backbone.model.state_dict())
    assert backbone.mask_token.shape == (24,)
    assert 0.01 < backbone.mask_token.std() < 0.03


@pytest.mark.filterwarnings("ignore:.*searchsorted", "ignore:.*non-tuple sequence")  # timm's interpolation
@pytest.mark.parametrize("size", [(24, 32), (32, 32), (48, 48)], ids=str)
@pytest.mark.parametrize("pooling", ["avg", "token"])
def test_pretrained_weights_are_brought_to_the_size_and_keep_their_final_norm(
    size: tuple[int, int], pooling: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    name = "beit_base_patch16_224"
    own = timm.create_model(name, img_size=32, patch_size=8, global_pool=pooling, num_classes=5, **TINY).eval()
    with torch.no_grad():
        for parameter in own.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    torch.save(own.state_dict(), tmp_path / "weights.pth")
    create = functools.partial(timm.create_model, pretrained_cfg_overlay={"file": str(tmp_path / "weights.pth")})
    monkeypatch.setattr(timm, "create_model", create)  # nothing is fetched in tests
    monkeypatch.setattr("maskzoo.backbones.adapter.refuse_unreachable", lambda name: None)
    backbone = BeitBackbone(
        timm=name, image_size=size, patch_size=8, pretrained=True, options={**TINY, "global_pool": pooling}
    ).eval()
    own.set_input_size(img_size=size)
    images = pictures(backbone)
    with torch.no_grad():
        expected = own.fc_norm(own.forward_features(images))  # one of the two is the identity
        torch.testing.assert_close(backbone(images), expected, rtol=1e-4, atol=1e-4)
    assert not any("fc_norm" in name for name, _ in backbone.named_parameters())


@every_case
def test_positions_and_the_class_token_are_not_decayed(case: Case):
    backbone = shared(case)
    named = dict(backbone.named_parameters())
    kinds = ("pos_embed", "cls_token", "relative_position_bias_table")
    assert backbone.no_weight_decay() == {name for name in named if name.endswith(kinds)}
    assert len(backbone.no_weight_decay()) >= 2


@pytest.mark.parametrize("channels", [1, 4])
def test_images_of_any_number_of_channels_are_taken(channels: int):
    backbone = build(channels=channels)
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
    ("options", "size", "patch"),
    [
        ({"data_size": (224, 224)}, (224, 224), (16, 16)),
        ({"data_size": (32, 96)}, (64, 96), (16, 16)),
        ({"data_size": (28, 28), "patch_size": 4}, (28, 28), (4, 4)),
        ({"image_size": (24, 32), "patch_size": (6, 16)}, (24, 32), (6, 16)),
    ],
)
def test_the_datas_own_size_is_taken_and_raised_to_four_patches_a_side(options: dict[str, Any], size, patch):
    backbone = BeitBackbone(options=TINY, **options).eval()
    assert (backbone.image_size, backbone.patch_size) == (size, patch)
    assert backbone.grid == (size[0] // patch[0], size[1] // patch[1])
    images, mask = pictures(backbone, 1), hidden_some(backbone, 3, 1)
    with torch.no_grad():
        latent = backbone(images, mask)
        assert latent.shape == (1, 1 + math.prod(backbone.grid), 24)
        assert torch.equal(backbone(with_hidden_pixels(backbone, images, mask, math.nan), mask), latent)


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


@every_case
def test_a_latent_under_autocast_is_finite_and_near(case: Case):
    backbone = shared(case)
    images, mask = pictures(backbone), hidden_some(backbone)
    for asked in (mask, Mask.soft(uniform(IMAGES, PATCHES), HIDDEN), None):
        with torch.no_grad():
            exact = backbone(images, asked)
            with torch.autocast("cpu", torch.bfloat16):
                coarse = backbone(images, asked)
        torch.testing.assert_close(coarse.float(), exact, rtol=0, atol=0.5)
        assert (coarse.float() - exact).abs().mean() < 0.05


@every_case
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


@pytest.mark.parametrize(
    "strategy", ["random", "attmask", {"use": "clmae", "depth": 1}], ids=["random", "attmask", "clmae"]
)
def test_a_run_moves_the_model_and_its_mask_token(strategy: Any):
    table = {"timm": PLAIN.timm, "patch_size": 8, "options": TINY}
    session = tiny_session(strategy, noise_images(), backbone=table, train={"steps": 2})
    assert type(session.objective.backbone) is BeitBackbone
    before = state_of(session.objective)
    figures = list(train(session, random_batches(2)))
    assert len(figures) == 2
    assert all(math.isfinite(value) for step in figures for value in step.values())
    after = session.objective.state_dict()
    for part in ("backbone.mask_token", "backbone.model.cls_token", "decoder_pred.weight"):
        assert not torch.equal(after[part], before[part]), part


@pytest.mark.parametrize("name", ["beit_base_patch16_224", "beitv2_large_patch16_224"])
def test_the_name_of_a_timm_model_alone_finds_this_adapter(name: str):
    backbone: Any = make_backbone({"timm": name, "options": TINY}, noise_images(channels=1), REGISTRY)
    assert type(backbone) is BeitBackbone
    assert (backbone.channels, backbone.image_size) == (1, (64, 64))


# -------------------------------------------------------------------------------------------------------------- errors
@pytest.mark.filterwarnings("ignore:Initializing zero-element tensors")
@pytest.mark.parametrize(
    ("options", "key", "sentence"),
    [
        ({"timm": "vit_tiny_patch16_224"}, "timm", "is a VisionTransformer"),
        ({"timm": "beit_base_patch16_225"}, "timm", "did you mean"),
        ({"image_size": 100}, "image_size", "nearest sizes are 96 x 96"),
        ({"image_size": 0}, "image_size", "at least 1 pixel"),
        ({"patch_size": 0}, "patch_size", "at least 1 pixel"),
        ({"channels": 0}, "channels", "at least one channel"),
        ({"options": {**TINY, "depth": 0}}, "options", "no blocks"),
        ({"options": {**TINY, "bananas": 3}}, "options", "bananas"),
        ({"options": {**TINY, "img_size": 64}}, "options", "img_size"),
        ({"options": {**TINY, "patch_size": 8}}, "options", "option of the backbone itself"),
        ({"options": {**TINY, "embed_dim": 18}}, "options", "divisible by 4"),
        ({"options": {**TINY, "global_pool": "nonsense"}}, "options", "pooling"),
    ],
)
def test_what_cannot_be_built_is_refused_with_its_key(options: dict[str, Any], key: str, sentence: str):
    with pytest.raises(RecipeError, match=sentence) as caught:
        BeitBackbone(**{"options": TINY, "data_size": (64, 64), **options})
    assert caught.value.key == key
