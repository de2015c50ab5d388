"""Weights of any grid in a backbone of any other: as the true interpolation, or refused with what could be meant."""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from helpers import noise_images, random_images, tiny_session
from safetensors.torch import save_file
from timm.layers import resample_abs_pos_embed, resize_rel_pos_bias_table
from torch import Tensor

from maskzoo import ContractError, RecipeError, checkpoint, official
from maskzoo.backbones.beit import BeitBackbone
from maskzoo.backbones.cnn import CnnBackbone
from maskzoo.backbones.hiera import HieraBackbone
from maskzoo.backbones.swin import SwinBackbone
from maskzoo.backbones.vit import VitBackbone, sin_cos
from maskzoo.grids import grids_of, told_by
from maskzoo.recipe import describe
from maskzoo.resizing import resized

pytestmark = pytest.mark.filterwarnings("ignore:Using a non-tuple sequence", "ignore:torch.searchsorted")  # timm's
FILE = Path("weights.pth")
PATCH = 4
Grid = tuple[int, int]
NARROW: dict[str, Any] = {"embed_dim": 16, "depth": 1, "num_heads": 2}
STAGES: dict[str, Any] = {"patch_size": 2, "embed_dim": 8, "depths": (1, 2), "num_heads": (1, 2)}
VITS = {
    "vit": ("vit_tiny_patch16_224", {}),
    "deit with a distillation token": ("deit_tiny_distilled_patch16_224", {}),
    "registers": ("vit_tiny_patch16_224", {"reg_tokens": 2}),
    "registers without positions": ("vit_tiny_patch16_224", {"reg_tokens": 2, "no_embed_class": True}),
    "siglip without class token": ("vit_base_patch16_siglip_224", {"mlp_ratio": 2.0}),
    "eva": ("eva02_tiny_patch14_224", {}),
}


def vit(grid: Grid, of: str = "vit", patch: int = PATCH, **more: Any) -> Any:
    name, options = VITS[of]
    size = grid[0] * patch, grid[1] * patch
    return VitBackbone(timm=name, image_size=size, patch_size=patch, options={**NARROW, **options}, **more)


def beit(grid: Grid, **options: Any) -> Any:
    size = grid[0] * PATCH, grid[1] * PATCH
    return BeitBackbone(
        timm="beit_base_patch16_224", image_size=size, patch_size=PATCH, options={**NARROW, "depth": 2, **options}
    )


def swin(grid: Grid, window: int | None = None, name: str = "swin_tiny_patch4_window7_224") -> Any:
    return SwinBackbone(timm=name, image_size=(grid[0] * 4, grid[1] * 4), window_size=window, options=STAGES)


def hiera(grid: Grid, name: str = "hiera_tiny_224", **options: Any) -> Any:
    small = {"embed_dim": 8, "num_heads": 1, "stages": (1, 1, 1, 1), **options}
    return HieraBackbone(timm=name, image_size=(grid[0] * 32, grid[1] * 32), options=small)


def loaded(backbone: Any, source: Any, **known: Any) -> tuple[dict[str, Tensor], list[str]]:
    """What becomes of a backbone's tensors, or of a state, on the way into another backbone."""
    state = source if isinstance(source, Mapping) else source.state_dict()
    return resized(backbone, state, FILE, "recipe.weights", **known)


def of_a_run(backbone: Any) -> dict[str, Any]:
    """The backbone of a resolved recipe."""
    return describe(backbone)  # type: ignore[no-any-return]


def spread(backbone: Any) -> Any:
    """The backbone with values everywhere, also where timm begins with zeros."""
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for name, parameter in backbone.named_parameters():
            if "table" in name or "pos_embed" in name:
                parameter.copy_(torch.randn(parameter.shape, generator=generator))
    return backbone


def smooth(grid: Grid, dim: int = 16, seed: int = 0, noise: float = 0.1) -> Tensor:
    """[N, dim] positions like trained ones: slow waves over rows and columns, and some noise."""
    generator = torch.Generator().manual_seed(seed)
    rows, columns = (torch.arange(side)[:, None] for side in grid)
    speed, phase = torch.rand(4, dim, generator=generator).mul(0.6), torch.rand(2, dim, generator=generator).mul(6.3)
    waves = torch.sin(rows * speed[0] + phase[0])[:, None] * torch.cos(columns * speed[1] + phase[1])
    return (waves + noise * torch.randn(waves.shape, generator=generator)).flatten(0, 1)


def file_of(grid: Grid, table: Tensor | None = None, of: str = "vit") -> dict[str, Tensor]:
    """A file of a ViT of that grid, its patches' positions as given."""
    state = dict(vit(grid, of).state_dict())
    if table is not None:
        prefix = state["model.pos_embed"].shape[1] - len(table)
        state["model.pos_embed"] = torch.cat([state["model.pos_embed"][:, :prefix], table[None]], dim=1)
    return state


# -------------------------------------------------------------------------------------------------------- from a run
@pytest.mark.parametrize("new", [(4, 4), (2, 8), (8, 2), (5, 3), (6, 6)], ids=str)
@pytest.mark.parametrize("old", [(2, 8), (4, 4), (2, 6), (3, 5)], ids=str)
@pytest.mark.parametrize("of", VITS)
@pytest.mark.sampled(4)
def test_positions_of_a_run_are_those_that_timm_makes_when_it_knows_the_grid(of: str, old: Grid, new: Grid):
    source, target = spread(vit(old, of)), vit(new, of)
    found, told = loaded(target, source, recipe=of_a_run(source))
    expected = copy.deepcopy(source.model)
    expected.set_input_size(img_size=target.image_size)
    assert torch.equal(found["model.pos_embed"], expected.pos_embed)
    line = f"weights: positions of {old[0]} x {old[1]} were resized to {new[0]} x {new[1]} (bicubic, as timm does)"
    assert told == ([] if old == new else [line])
    target.load_state_dict(found)
    images = random_images(height=target.image_size[0], width=target.image_size[1])
    torch.testing.assert_close(target.eval()(images), expected.eval().forward_features(images))


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize(("old", "new"), [((2, 8), (4, 4)), ((4, 4), (2, 8)), ((3, 2), (5, 5)), ((1, 4), (3, 3))])
@pytest.mark.sampled(2)
def test_relative_positions_of_a_beit_are_those_that_timm_makes(shared: bool, old: Grid, new: Grid):
    options = {"use_rel_pos_bias": not shared, "use_shared_rel_pos_bias": shared, "use_abs_pos_emb": shared}
    source, target = spread(beit(old, **options)), beit(new, **options)
    found, told = loaded(target, source, recipe=of_a_run(source))
    expected = copy.deepcopy(source.model)
    expected.set_input_size(img_size=target.image_size)
    for name, value in expected.state_dict().items():
        assert torch.equal(found[f"model.{name}"], value), name
    tables = "1 table" if shared else "2 tables"
    assert told[-1] == (
        f"weights: relative positions of windows of {old[0]} x {old[1]} were resized to {new[0]} x {new[1]}, "
        f"in {tables} (as timm does)"
    )


@pytest.mark.parametrize(("old", "new"), [((2, 8), (4, 4)), ((6, 6), (7, 7)), ((4, 4), (2, 6))], ids=str)
def test_windows_of_a_swin_are_those_that_timm_makes(old: Grid, new: Grid):
    source, target = (swin(grid, 8) for grid in (old, new))  # a window is not larger than the map
    found, told = loaded(target, spread(source), recipe=of_a_run(source))
    expected = copy.deepcopy(source.model)
    windows = [stage.blocks[0].window_size for stage in target.model.layers]
    expected.set_input_size(img_size=target.image_size, window_size=windows)
    for name, value in expected.state_dict().items():
        assert torch.equal(found[f"model.{name}"], value), name
    changed = {line.split(" windows of ")[1].split(" were ")[0] for line in told}
    stages = [[stage.blocks[0].window_size for stage in backbone.model.layers] for backbone in (source, target)]
    assert changed == {f"{one[0]} x {one[1]}" for one, other in zip(*stages, strict=True) if one != other}
    target.load_state_dict(found)


@pytest.mark.parametrize(("old", "new"), [((2, 8), (4, 4)), ((1, 3), (2, 2))])
def test_positions_of_a_hiera_lie_on_its_grid_of_tokens(old: Grid, new: Grid):
    source, target = hiera(old), hiera(new)
    found, told = loaded(target, source, recipe=of_a_run(source))
    tokens = [[side * 8 for side in grid] for grid in (old, new)]
    expected = resample_abs_pos_embed(source.model.pos_embed, tokens[1], tokens[0], num_prefix_tokens=0)
    assert torch.equal(found["model.pos_embed"], expected)
    assert [line.split(" (")[0] for line in told] == [
        f"weights: positions of {tokens[0][0]} x {tokens[0][1]} were resized to {tokens[1][0]} x {tokens[1][1]}"
    ]
    target.load_state_dict(found)


def test_absolute_windows_of_a_hiera_follow_by_themselves_and_its_global_map_is_resized():
    source = hiera((2, 2), "hiera_base_abswin_256", global_pos_size=(4, 6))
    same, other = (hiera((1, 3), "hiera_base_abswin_256", global_pos_size=size) for size in ((4, 6), (3, 3)))
    found, told = loaded(same, source, recipe=of_a_run(source))
    assert told == []
    assert torch.equal(found["model.pos_embed"], source.model.pos_embed)
    found, told = loaded(other, source, recipe=of_a_run(source))
    assert told == ["weights: positions of 4 x 6 were resized to 3 x 3 (bicubic, as timm does)"]
    other.load_state_dict(found)


def test_a_continuous_bias_needs_no_resizing_and_the_new_share_of_the_window_is_told():
    source, target = (swin(grid, 8, "swinv2_tiny_window8_256") for grid in ((2, 4), (4, 4)))
    found, told = loaded(target, source, recipe=of_a_run(source))
    assert [line.split("pretrained_window_sizes = ")[1].split(" ")[0] for line in told] == ["[8,"]
    target.load_state_dict(found, strict=False)
    assert loaded(source, source, recipe=of_a_run(source))[1] == []


def test_a_convolutional_network_has_nothing_to_be_resized():
    source, target = (CnnBackbone(timm="test_convnext", image_size=size) for size in (64, (64, 96)))
    found, told = loaded(target, source, recipe=of_a_run(source))
    assert (told == [] and all(found[name] is value for name, value in source.state_dict(keep_vars=False).items())) or (
        told == [] and all(torch.equal(found[name], value) for name, value in source.state_dict().items())
    )


@pytest.mark.parametrize("build", [vit, beit, swin, hiera], ids=lambda one: one.__name__)
def test_the_same_size_stays_equal_to_the_bit(build: Any):
    for grid in ((2, 4), (3, 3)):
        source = spread(build(grid))
        found, told = loaded(build(grid), source, recipe=of_a_run(source))
        assert told == []
        assert all(torch.equal(found[name], value) for name, value in source.state_dict().items())


@pytest.mark.parametrize(("old", "new"), [((4, 8), (8, 16)), ((8, 2), (4, 4))])
def test_a_ramp_of_positions_stays_a_ramp(old: Grid, new: Grid):
    def ramp(grid: Grid) -> Tensor:
        rows, columns = ((torch.arange(side) + 0.5) / side for side in grid)  # of the image, not of the grid
        return torch.stack(torch.meshgrid(rows, columns, indexing="ij"), dim=-1)

    source, target = vit(old), vit(new)
    state = file_of(old, ramp(old).flatten(0, 1).repeat(1, 8))
    found, _ = loaded(target, state, recipe=of_a_run(source))
    got = found["model.pos_embed"][0, 1:, :2].view(*new, 2)
    inside = got[1:-1, 1:-1] if min(new) > 4 else got
    expected = ramp(new)[1:-1, 1:-1] if min(new) > 4 else ramp(new)
    assert (inside - expected).abs().max() < 0.1  # bicubic, which bends at the borders


def test_kernels_of_patches_of_another_size_are_told():
    source, target = vit((2, 3), patch=8), vit((2, 3), patch=4)
    found, told = loaded(target, source, recipe=of_a_run(source))
    assert told == ["weights: the kernels of patches of 8 x 8 pixels were resized to 4 x 4 (as timm does)"]
    assert found["model.patch_embed.proj.weight"].shape[-2:] == (4, 4)


def test_other_channels_do_not_keep_positions_from_being_resized():
    source, target = vit((2, 8)), vit((4, 4), channels=1)
    found, _ = loaded(target, source, recipe=of_a_run(source))
    assert found["model.pos_embed"].shape == (1, 17, 16)
    assert not torch.equal(found["model.pos_embed"], source.model.pos_embed)


@pytest.mark.slow
def test_a_run_of_oblong_images_begins_one_of_square_ones(tmp_path: Path):
    backbone = {"timm": "vit_tiny_patch16_224", "patch_size": 8, "options": NARROW}
    before = tiny_session(dataset=noise_images(height=16, width=64), backbone={**backbone, "image_size": [16, 64]})
    (tmp_path / "checkpoints").mkdir()
    checkpoint.save(before, tmp_path / "checkpoints")
    after = tiny_session(dataset=noise_images(), backbone=backbone, weights=str(tmp_path))
    table = before.objective.backbone.model.pos_embed  # type: ignore[attr-defined]
    expected = resample_abs_pos_embed(table, [4, 4], [2, 8])
    assert torch.equal(after.objective.backbone.model.pos_embed, expected)  # type: ignore[attr-defined]
    assert "weights: positions of 2 x 8 were resized to 4 x 4 (bicubic, as timm does)" in after.remarks


# ------------------------------------------------------------------------------------------------------- from a file
@pytest.mark.parametrize("grid", [(4, 4), (2, 8), (8, 2), (14, 14), (7, 28), (8, 32), (3, 12), (6, 6)], ids=str)
def test_a_trained_table_tells_its_grid(grid: Grid):
    for seed in range(4):
        assert told_by(smooth(grid, 32, seed), grids_of(math.prod(grid))) == grid


@pytest.mark.parametrize("grid", [(4, 4), (2, 8), (8, 2), (14, 14), (7, 28), (2, 98), (3, 12)], ids=str)
@pytest.mark.parametrize("kind", ["sin-cos", "rows first", "half precision", "ramp"])
def test_a_fixed_table_tells_its_grid_exactly(grid: Grid, kind: str):
    table = sin_cos(grid, 16)
    if kind == "rows first":
        table = table.roll(8, dims=1)
    if kind == "half precision":
        table = table.half()
    if kind == "ramp":
        rows, columns = torch.arange(grid[0])[:, None, None], torch.arange(grid[1])[None, :, None]
        table = (rows * torch.linspace(1, 2, 8) - columns * torch.linspace(-1, 1.5, 8)).flatten(0, 1)
    assert told_by(table, grids_of(math.prod(grid))) == grid


def test_a_table_of_drawn_values_tells_nothing():
    generator = torch.Generator().manual_seed(0)
    tables = [torch.randn(count, dim, generator=generator) for count in (16, 36, 196) for dim in (8, 192)] * 4
    assert [told_by(table, grids_of(len(table))) for table in tables] == [None] * len(tables)


@pytest.mark.parametrize("old", [(2, 8), (4, 4), (8, 2)], ids=str)
def test_a_file_is_read_as_its_table_tells(old: Grid):
    state, target = file_of(old, smooth(old)), vit((4, 4))
    found, told = loaded(target, state)
    expected = resample_abs_pos_embed(state["model.pos_embed"], [4, 4], list(old))
    assert torch.equal(found["model.pos_embed"], expected)
    line = (
        f"weights: positions of {old[0]} x {old[1]}, as the table tells, were resized to 4 x 4 (bicubic, as timm does)"
    )
    assert told == ([] if old == (4, 4) else [line])


def test_a_file_that_tells_nothing_is_refused_with_what_it_could_be():
    state, target = file_of((2, 8)), vit((4, 4))
    with pytest.raises(RecipeError) as refused:
        loaded(target, state)
    assert str(refused.value) == (
        "recipe.weights: 'weights.pth' does not tell where its positions lie: pos_embed [1, 17, 16] has 16, which are "
        "a grid of 4 x 4, 2 x 8 or 8 x 2, and the values do not tell which. Say it: weights = { file = ..., "
        "grid = [ROWS, COLUMNS] }, or --set 'weights.grid=[ROWS,COLUMNS]'"
    )
    found, told = loaded(target, state, grid=(2, 8))
    assert torch.equal(found["model.pos_embed"], resample_abs_pos_embed(state["model.pos_embed"], [4, 4], [2, 8]))
    assert told == ["weights: positions of 2 x 8 were resized to 4 x 4 (bicubic, as timm does)"]
    found, told = loaded(target, state, grid=(4, 4))
    assert told == []
    assert torch.equal(found["model.pos_embed"], state["model.pos_embed"])


@pytest.mark.parametrize("new", [(4, 4), (6, 6)], ids=str)
def test_a_grid_that_is_no_square_is_not_taken_for_one(new: Grid):
    with pytest.raises(
        RecipeError, match=r"pos_embed \[1, 13, 16\] has 12, which are a grid of 3 x 4, 4 x 3, 2 x 6 or 6 x 2"
    ):
        loaded(vit(new), file_of((2, 6)))
    found, _ = loaded(vit(new), file_of((2, 6)), grid=(2, 6))
    assert found["model.pos_embed"].shape == (1, 1 + math.prod(new), 16)


def test_a_count_that_only_one_grid_has_is_that_one():
    assert loaded(vit((4, 4)), file_of((3, 3)))[1] == [
        "weights: positions of 3 x 3 were resized to 4 x 4 (bicubic, as timm does)"
    ]


def test_weights_of_timms_own_size_are_read_as_such():
    model = timm.create_model("vit_tiny_patch16_224", **NARROW)
    state = {f"model.{name}": value for name, value in model.state_dict().items() if not name.startswith("head")}
    target = VitBackbone(timm="vit_tiny_patch16_224", image_size=224, options=NARROW)
    found, told = loaded(target, state)
    assert told == []
    assert torch.equal(found["model.pos_embed"], model.pos_embed)


@pytest.mark.parametrize("grid", [(3, 5), (2, 9), (1, 16), (0, 0)], ids=str)
def test_a_grid_of_the_users_has_as_many_positions_as_the_table(grid: Grid):
    if grid == (1, 16):
        assert loaded(vit((4, 4)), file_of((2, 8)), grid=grid)[1]
        return
    with pytest.raises(RecipeError, match=rf"weights\.grid: {grid[0]} x {grid[1]} has \d+ positions, and pos_embed"):
        loaded(vit((4, 4)), file_of((2, 8)), grid=grid)


def test_a_run_says_its_grid_itself():
    source = vit((2, 8))
    with pytest.raises(RecipeError, match=r"has positions of 2 x 8, and weights\.grid says 4 x 4"):
        loaded(vit((4, 4)), source, recipe=of_a_run(source), grid=(4, 4))


@pytest.mark.parametrize(("theirs", "ours"), [("registers", "vit"), ("registers without positions", "registers")])
def test_positions_of_other_tokens_than_there_are_here_are_refused(theirs: str, ours: str):
    for grid in ((3, 3), (4, 4)):
        source = vit(grid, theirs)
        state = {name: value for name, value in source.state_dict().items() if ours != "vit" or "reg" not in name}
        with pytest.raises(RecipeError, match=r"other tokens \(a class token, registers\), and this backbone has"):
            loaded(vit((4, 4), ours), state, recipe=of_a_run(source))
        with pytest.raises(RecipeError, match=r"^recipe\.weights: 'weights\.pth' does not"):
            loaded(vit((4, 4), ours), state)


def test_a_trained_table_without_a_row_for_the_class_token_is_not_taken_for_an_oblong():
    state = {**vit((2, 2)).state_dict(), "model.pos_embed": smooth((14, 14))[None]}  # 1 + 195, which 13 x 15 would be
    with pytest.raises(RecipeError, match=r"pos_embed \[1, 196, 16\] is 14 x 14 positions and 0 of other tokens"):
        loaded(vit((4, 4)), state)


@pytest.mark.parametrize("rows", [0, 1, 3, 8, 14])
def test_a_table_of_no_grid_is_one_message_with_the_shape_that_it_has(rows: int):
    state = {**vit((2, 2)).state_dict(), "model.pos_embed": torch.randn(1, rows, 16)}
    with pytest.raises(RecipeError, match=rf"^recipe\.weights: 'weights\.pth' .*pos_embed \[1, {rows}, 16\]"):
        loaded(vit((4, 4)), state)


@pytest.mark.parametrize("shape", [(17, 16), (1, 4, 4, 16), (1, 17, 8), (16,)], ids=str)
def test_a_table_of_another_kind_is_left_to_the_check_of_shapes(shape: tuple[int, ...]):
    table = torch.zeros(shape)
    found, told = loaded(vit((4, 4)), {**vit((2, 2)).state_dict(), "model.pos_embed": table})
    assert told == []
    assert found["model.pos_embed"] is table


def test_what_is_missing_is_not_hidden_by_a_question_about_the_grid():
    state = {name: value for name, value in file_of((2, 8)).items() if "norm1" not in name}
    found, told = loaded(vit((4, 4)), state)
    assert told == []
    assert found.keys() == state.keys()


@pytest.mark.parametrize("window", [2, 4, 7])
def test_windows_of_published_swins_need_no_word(window: int):
    source, target = swin((8, 8), window), swin((8, 8), 3)
    found, told = loaded(target, source)
    own = target.model.layers[0].blocks[0].attn
    table = source.model.layers[0].blocks[0].attn.relative_position_bias_table
    expected = resize_rel_pos_bias_table(table, (3, 3), own.relative_position_bias_table.shape, (window, window))
    assert torch.equal(found["model.layers.0.blocks.0.attn.relative_position_bias_table"], expected)
    old = f"{window} x {window}"
    assert told == [
        f"weights: relative positions of windows of {old} were resized to 3 x 3, in 3 tables (as timm does)"
    ]


def test_windows_that_tell_nothing_are_refused_until_they_are_said():
    source, target = swin((8, 8), 8), swin((8, 8), 4)
    with pytest.raises(
        RecipeError, match=r"has 225, which are windows of 8 x 8, 5 x 13, 13 x 5, 3 x 23, 23 x 3, 2 x 38 or 38 x 2"
    ):
        loaded(target, source)
    assert "windows of 8 x 8 were resized to 4 x 4" in loaded(target, source, grid=(8, 8))[1][0]
    with pytest.raises(
        RecipeError, match=r"weights\.grid: windows of 3 x 8 have 75 relative positions, and its tables"
    ):
        loaded(target, source, grid=(3, 8))


def test_a_beit_that_begins_with_zeros_is_of_any_grid():
    found, _ = loaded(beit((4, 4)), beit((14, 14)))
    assert found["model.blocks.0.attn.relative_position_bias_table"].count_nonzero() == 0
    assert loaded(beit((4, 4)), beit((4, 4)))[1] == []


# ------------------------------------------------------------------------------------------------- a config beside it
def test_what_lies_beside_an_export_tells_its_grid(tmp_path: Path):
    source, target = vit((2, 8)), vit((4, 4))
    file = tmp_path / "encoder.safetensors"
    save_file({"a": torch.zeros(1)}, file)
    (tmp_path / "config.json").write_text(json.dumps({"backbone": describe(source), "maskzoo": "0"}))
    found, told = resized(target, source.state_dict(), file, "recipe.weights")
    assert told == ["weights: positions of 2 x 8 were resized to 4 x 4 (bicubic, as timm does)"]
    (tmp_path / "config.json").write_text(json.dumps({"pretrained_cfg": {"input_size": [3, 8, 32]}}))
    assert torch.equal(
        resized(target, source.state_dict(), file, "recipe.weights")[0]["model.pos_embed"], found["model.pos_embed"]
    )
    for odd in ("[1]", "{", '{"pretrained_cfg": {"input_size": 3}}', '{"maskzoo": 1, "backbone": {"use": "none"}}'):
        (tmp_path / "config.json").write_text(odd)
        with pytest.raises(RecipeError, match="4 x 4, 2 x 8 or 8 x 2"):
            resized(target, source.state_dict(), file, "recipe.weights")


# ---------------------------------------------------------------------------------------------------- fixed positions
def test_fixed_positions_follow_and_are_told():
    source, target = vit((2, 8), position="sin-cos"), vit((4, 4), position="sin-cos")
    found, told = loaded(target, source)
    assert "model.pos_embed" not in found
    assert told == ["weights: the fixed positions are those of 4 x 4 in place of 2 x 8"]
    assert loaded(target, vit((4, 4), position="sin-cos"))[1] == []


@pytest.mark.parametrize("known", [True, False])
def test_learned_positions_are_not_replaced_by_fixed_ones(known: bool):
    source = vit((3, 3))
    with pytest.raises(RecipeError, match=r'learned positions.*backbone\.position is "sin-cos"; set it to "timm"'):
        loaded(vit((4, 4), position="sin-cos"), source, **({"recipe": of_a_run(source)} if known else {}))


def test_fixed_positions_become_learned_ones():
    state = vit((2, 8), position="sin-cos").state_dict()
    found, told = loaded(vit((2, 8)), state)
    assert told == []
    assert torch.equal(found["model.pos_embed"], state["model.pos_embed"])
    found, told = loaded(vit((4, 4)), state)
    assert "2 x 8, as the table tells, were resized to 4 x 4" in told[0]


# -------------------------------------------------------------------------------------------------- published objects
def published_mae(grid: Grid) -> dict[str, Tensor]:
    from maskzoo.objectives.reconstruct import Reconstruct

    backbone = vit(grid, position="sin-cos")
    objective = Reconstruct(decoder_dim=16, decoder_depth=1, decoder_heads=2)
    objective.setup(backbone)
    return {name.removeprefix("backbone.model."): value for name, value in objective.state_dict().items()}


@pytest.mark.parametrize("grid", [(2, 8), (8, 2), (4, 4), (2, 6), (3, 5)], ids=str)
def test_a_published_mae_is_of_the_grid_that_its_fixed_positions_say(grid: Grid):
    objective, _ = official.load(published_mae(grid), "mae", num_heads=2, decoder_num_heads=2)
    assert objective.backbone.grid == grid
    assert objective.backbone.patch_size == (PATCH, PATCH)


def test_a_published_mae_whose_positions_say_nothing_is_refused():
    state = published_mae((2, 8))
    state["pos_embed"] = torch.randn(1, 17, 16)
    with pytest.raises(ContractError, match=r"pos_embed.*sin-cos"):
        official.load(state, "mae", num_heads=2, decoder_num_heads=2)
