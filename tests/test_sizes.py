"""Images of any size are brought to a bounded number of patches, which is told; what was asked for is obeyed."""

from __future__ import annotations

import io
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result
from helpers import noise_images, tiny_recipe
from PIL import Image

from maskzoo import RecipeError, Registry
from maskzoo.backbones.sizes import any_size, automatic_patch, automatic_size, patch_for
from maskzoo.backbones.vit import VitBackbone
from maskzoo.build import make_backbone
from maskzoo.cli import main
from maskzoo.cost import Shape, cost_table, shape_of, untaught
from maskzoo.data.folder import Folder
from maskzoo.data.sizes import common_size
from maskzoo.recipe import Recipe, read
from maskzoo.run import run
from maskzoo.terminal import Console

REGISTRY = Registry()
RECIPES = Path(__file__).parent.parent / "recipes"
TINY = {"embed_dim": 24, "depth": 1, "num_heads": 2}
AUTO = {"timm": "vit_tiny_patch16_224", "patch_size": "auto", "options": TINY}
ADAPTERS: dict[str, dict[str, Any]] = {
    "auto": AUTO,
    "vit": {"timm": "vit_tiny_patch16_224", "options": TINY},
    "eva": {"timm": "eva02_tiny_patch14_224", "options": {"embed_dim": 24, "depth": 1, "num_heads": 2}},
    "beit": {"timm": "beit_base_patch16_224", "options": TINY},
    "swin": {
        "timm": "swin_tiny_patch4_window7_224",
        "options": {"embed_dim": 16, "depths": [1, 1, 1, 1], "num_heads": [1, 2, 2, 4]},
    },
    "hiera": {"timm": "hiera_tiny_224", "options": {"embed_dim": 16, "num_heads": 1, "stages": [1, 1, 1, 1]}},
    "cnn": {"timm": "resnet18", "options": {"layers": [1, 1, 1, 1], "channels": [8, 8, 16, 24]}},
}
ODD = [(1, 1), (1, 2000), (3000, 20), (31, 31), (97, 97), (222, 222), (225, 225), (375, 500), (1008, 756)]


def shaped(height: int, width: int) -> Shape:
    return Shape((height, width))


# ------------------------------------------------------------------------------------------------- what is as it was
def divided(sides: tuple[int, int]) -> int | None:
    """The patch that divisibility alone gave, where it gave between 7 and 32 patches a side of 2 pixels or more."""
    for patch in (16, 8, 4, 2):
        if all(side % patch == 0 and side // patch >= 7 for side in sides):
            return patch if max(sides) // patch <= 32 else None
    return None


def test_sizes_that_a_usual_patch_cuts_into_7_to_32_a_side_stay_as_they_are():
    kept = [(one, patch) for one in range(1, 513) for shape in (1, 2, 3) if (patch := divided((one, one * shape)))]
    assert len(kept) > 100
    for sizes in [(side, side * shape) for side in range(1, 513) for shape in (1, 2, 3)]:
        patch = divided(sizes)
        if patch is not None:
            for size in (sizes, sizes[::-1]):
                choice = automatic_patch(size)
                assert (choice.size, choice.unit, choice.told) == (size, (patch, patch), "")


@pytest.mark.parametrize(
    ("recipe", "size", "patch"),
    [
        *((name, 32, 4) for name in ("attmask-curriculum-cifar10", "clmae-cifar10", "compare-cifar10", "mae-cifar10")),
        *((name, 32, 4) for name in ("digits", "smoke")),
        ("masksub-cifar10", 32, 8),
        ("masksub-finetune", 224, 16),
        ("simmim-cifar10", 128, 32),
    ],
)
@pytest.mark.sampled(1)
def test_the_recipes_keep_their_sizes(recipe: str, size: int, patch: int):
    made = Recipe.from_plain(read(RECIPES / f"{recipe}.toml"))
    with torch.device("meta"):
        backbone = make_backbone(untaught(made.backbone), shape_of(made, REGISTRY), REGISTRY)
    assert (backbone.image_size, backbone.patch_size) == ((size, size), (patch, patch))


# ---------------------------------------------------------------------------------------------------- what is bounded
SHAPES = [(1, 1), (3, 4), (2, 3), (1, 2), (1, 3), (1, 5), (1, 8)]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_any_size_ends_in_a_sensible_number_of_patches(shape: tuple[int, int]):
    for side in [*range(1, 130), *range(130, 2000, 37)]:
        sizes = side * shape[0], side * shape[1]
        for size in (sizes, sizes[::-1]):
            choice = automatic_patch(size)
            rows, columns = choice.units
            assert choice.unit[0] == choice.unit[1] in (2, 4, 8, 16)
            assert choice.size == (rows * choice.unit[0], columns * choice.unit[0])
            assert 7 <= min(rows, columns) <= 32
            assert rows * columns <= 1024
            assert min(side, 14) <= min(choice.size), "nothing is made smaller than its patches need"
            if min(size) >= 14:
                assert 0.9 < (columns / rows) / (size[1] / size[0]) < 1.1, "the image's shape is kept"


@pytest.mark.parametrize("unit", [4, 8, 14, 16, 32, 64])
def test_units_that_are_given_cut_any_size_too(unit: int):
    most = 4096 if unit < 14 else 1024
    for size in [*ODD, (30, 500), (500, 499), (2000, 1999), (640, 480), (1024, 1024), (64, 1000)]:
        choice = automatic_size(size, (unit, unit), most)
        rows, columns = choice.units
        assert choice.size == (rows * unit, columns * unit)
        assert min(rows, columns) >= 4
        assert rows * columns <= most


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        ((222, 222), (224, 224)),
        ((225, 225), (224, 224)),
        ((250, 250), (224, 224)),
        ((299, 299), (224, 224)),
        ((375, 500), (224, 304)),
        ((3000, 4000), (224, 304)),
        ((1024, 1024), (224, 224)),
        ((97, 97), (96, 96)),
        ((31, 31), (32, 32)),
        ((1, 1), (14, 14)),
    ],
)
def test_sizes_that_no_patch_cuts_are_rounded_to_one_that_does(size: tuple[int, int], expected: tuple[int, int]):
    choice = automatic_patch(size)
    assert choice.size == expected
    assert 7 <= min(choice.units) <= max(choice.units) <= 19
    if min(size) > 200:
        assert 14 in choice.units
    assert choice.told.startswith(
        f"images of {size[0]} x {size[1]} are brought to {expected[0]} x {expected[1]} and cut"
    )


@pytest.mark.parametrize("name", ADAPTERS)
@pytest.mark.parametrize("size", ODD, ids=str)
@pytest.mark.sampled(7)
def test_every_adapter_takes_images_of_any_size(name: str, size: tuple[int, int]):
    backbone: Any = make_backbone(ADAPTERS[name], shaped(*size), REGISTRY)
    rows, columns = backbone.grid
    assert backbone.image_size == (rows * backbone.patch_size[0], columns * backbone.patch_size[1])
    assert min(rows, columns) >= 4
    assert rows * columns <= 1024
    assert math.prod(backbone.image_size) <= 512**2
    if backbone.image_size != size:
        assert backbone.remarks[0].startswith(f"images of {size[0]} x {size[1]} are brought to")
    with torch.no_grad():
        images = torch.zeros(1, 3, *backbone.image_size)
        assert backbone.eval()(images).shape[1] == backbone.prefix + rows * columns


def test_an_image_that_loses_its_shape_is_told():
    assert "8 times as" not in automatic_patch((20, 150)).told
    assert "in which they are 16 times as wide for their height as they were" in automatic_patch((3000, 20)).told
    assert "times as" in automatic_size((96, 16), (16, 16), 1024).told  # raised to four patches a side


# ----------------------------------------------------------------------------------------------- what was asked for
@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"image_size": 100}, "100 x 100 pixels cannot be cut into patches of 16 x 16; the nearest sizes are 96 x 96"),
        ({"image_size": 97, "patch_size": "auto"}, "no automatic patch cuts .* 97 x 97 .* is 96 x 96, in patches of 8"),
        ({"image_size": (31, 31), "patch_size": "auto"}, "nearest size is 32 x 32, in patches of 4"),
    ],
)
def test_a_size_that_was_asked_for_and_cannot_be_cut_is_refused(options: dict[str, Any], sentence: str):
    with pytest.raises(RecipeError, match=sentence) as caught:
        VitBackbone(options=TINY, **options)
    assert caught.value.key == "image_size"


def test_a_size_that_was_asked_for_gets_whichever_patch_cuts_it():
    assert [patch_for((side, side)) for side in (224, 225, 250, 28, 1024, 8)] == [16, 15, 25, 4, 16, 2]
    assert [patch_for((side, side)) for side in (97, 31, 1)] == [None, None, None]
    backbone = VitBackbone(options=TINY, image_size=225, patch_size="auto", data_size=(500, 400))
    assert (backbone.image_size, backbone.grid, backbone.remarks) == ((225, 225), (15, 15), [])


def test_more_than_4096_patches_are_refused_with_their_price_unless_they_are_confirmed():
    with pytest.raises(RecipeError, match=r"has 9,409 patches, which takes about [\d.]+ GFLOP forward and [\d.]+ GB"):
        VitBackbone(options=TINY, image_size=97, patch_size=1)
    with pytest.raises(RecipeError, match="most_patches = 9409"):
        VitBackbone(options=TINY, image_size=97, patch_size=1, most_patches=9408)
    meant = VitBackbone(options=TINY, image_size=97, patch_size=1, most_patches=9409)
    assert meant.grid == (97, 97)
    with any_size():  # a run that was made before anybody had to confirm
        assert VitBackbone(options=TINY, image_size=97, patch_size=1).grid == (97, 97)
    with pytest.raises(RecipeError, match="more than 131,072"):
        VitBackbone(options=TINY, image_size=509, patch_size=1, most_patches=2**17)
    assert VitBackbone(options=TINY, image_size=64, patch_size=1).grid == (64, 64), "4,096 are not too many"


def test_networks_of_several_stages_tell_their_price_as_a_multiple():
    with pytest.raises(RecipeError, match="times the time and memory of one of 224 x 224"):
        make_backbone({**ADAPTERS["swin"], "image_size": 32 * 65}, shaped(224, 224), REGISTRY)


def test_a_convolutional_network_takes_images_of_512_pixels():
    assert make_backbone(ADAPTERS["cnn"], shaped(512, 512), REGISTRY).grid == (16, 16)
    assert make_backbone({**ADAPTERS["cnn"], "image_size": 512}, shaped(32, 32), REGISTRY).grid == (16, 16)


# ------------------------------------------------------------------------------------------------------- of a data set
def test_a_stray_image_among_many_does_not_change_the_size():
    assert common_size([(64, 64)] * 32) == ((64, 64), [])
    assert common_size([]) == ((224, 224), [])
    size, told = common_size([(64, 64)] * 122 + [(60, 64), (10, 20), (3, 3)])
    assert (size, told) == (
        (64, 64),
        ["of 125 images that were looked at, 122 are 64 x 64, and the others are brought to that"],
    )
    size, told = common_size([(64, 64), (80, 64)] * 10)
    assert size == (224, 224)
    assert told == [
        "images differ in size (of 20 images that were looked at, 10 are 64 x 64), so all are brought to "
        "224 x 224 (data.size)"
    ]


def folder_of(root: Path, *sizes: tuple[int, int], exif: int | None = None) -> Path:
    """Images of noise of these heights and widths."""
    root.mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(0)
    for number, (height, width) in enumerate(sizes):
        image = Image.fromarray(random.integers(0, 256, (height, width, 3), dtype=np.uint8))
        tags = Image.Exif()
        if exif is not None:
            tags[274] = exif
        image.save(root / f"{number:03d}.png", exif=tags)
    return root


def test_wherever_the_stray_image_lies_a_folder_has_the_size_of_the_others(tmp_path: Path):
    for place in range(0, 40, 13):
        sizes = [(20, 30)] * 40
        sizes[place] = (7, 9)
        data = Folder(root=str(folder_of(tmp_path / str(place), *sizes)))
        assert data.size == (20, 30)
        assert "of 40 images that were looked at, 39 are 20 x 30" in data.remarks[-1]


def test_the_size_of_images_that_their_camera_turned_is_the_upright_one(tmp_path: Path):
    data = Folder(root=str(folder_of(tmp_path, *[(20, 30)] * 4, exif=6)))
    assert data.size == (30, 20) == tuple(data.train[0].image.shape[1:])


# ----------------------------------------------------------------------------------------------------------- in a run
def maskzoo(*arguments: str) -> Result:
    return CliRunner().invoke(main, list(arguments), env={"COLUMNS": "400"}, prog_name="maskzoo")


def test_cost_tells_the_size_and_the_patches(tmp_path: Path):
    table = cost_table(
        tiny_recipe(
            data={"use": "folder", "root": str(folder_of(tmp_path, *[(75, 100)] * 8))},
            backbone=AUTO,
            train={"steps": 2, "batch_size": 4},
        ),
        REGISTRY,
    )
    assert "images of 75 x 100 are brought to 72 x 96 and cut into 9 x 12 patches of 8" in table.remarks


def test_a_run_tells_keeps_and_reopens_the_size_that_was_chosen(tmp_path: Path):
    folder = folder_of(tmp_path / "data", *[(25, 34)] * 8)
    recipe = tiny_recipe(
        data={"use": "folder", "root": str(folder)},
        backbone=AUTO,
        train={"steps": 1, "batch_size": 4, "pictures": 0},
        evaluation=[],
    )
    text = io.StringIO()
    run(recipe, REGISTRY, Console(file=text, width=400), tmp_path / "run")
    told = "images of 25 x 34 are brought to 24 x 32 and cut into 12 x 16 patches of 2"
    assert told in text.getvalue()
    assert told in (tmp_path / "run" / "environment.json").read_text(encoding="utf-8")
    kept = read(tmp_path / "run" / "recipe.toml")
    assert (kept["backbone"]["image_size"], kept["backbone"]["patch_size"]) == ([24, 32], [2, 2])
    again: Any = make_backbone(Recipe.from_plain(kept).backbone, noise_images(height=25, width=34), REGISTRY)
    assert (again.image_size, again.patch_size) == ((24, 32), (2, 2))


CASES = [*ODD, (20, 3000), (250, 250), (31, 97), (8, 8)]
QUICK = ["--set", "train.steps=2", "--batch-size", "2", "--set", "train.checkpoint_steps=1"]


@pytest.mark.slow
@pytest.mark.parametrize("size", CASES, ids=str)
def test_a_folder_of_any_size_is_trained_on_measured_drawn_and_exported(size: tuple[int, int], tmp_path: Path):
    for name in ("a", "b"):
        folder_of(tmp_path / "data" / name, *[size] * 8)
    backbone = "backbone={timm='vit_tiny_patch16_224',patch_size='auto',options={embed_dim=24,depth=1,num_heads=2}}"
    decoder = "objective={use='reconstruct',decoder_dim=16,decoder_depth=1}"
    out, images = str(tmp_path / "run"), str(tmp_path / "data" / "a" / "000.png")
    for arguments in (
        ["train", "--data", str(tmp_path / "data"), "--set", backbone, "--set", decoder, *QUICK, "--out", out],
        ["evaluate", out, "--with", "knn:1"],
        ["preview", images, "--run", out, "--out", str(tmp_path / "preview.png")],
        ["export", out, str(tmp_path / "export")],
    ):
        done = maskzoo(*arguments)
        assert done.exit_code == 0, (arguments, done.output, done.exception)
    assert (tmp_path / "preview.png").exists()
    assert (tmp_path / "run" / "masks" / "curriculum.png").exists()
