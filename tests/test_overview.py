"""`maskzoo data`: what is wrong with images is told before a run begins, and nothing is changed by looking."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result
from helpers import Images
from PIL import Image
from test_timm_data import write_shards

from maskzoo.cli import main
from maskzoo.overview.looking import BINS, choose, levels_of, look, thumbnail
from maskzoo.overview.printing import wrapped
from maskzoo.overview.summary import MADE_BY

pytestmark = pytest.mark.slow

TINY = '{timm="vit_tiny_patch16_224",patch_size="auto",options={embed_dim=8,depth=1,num_heads=1}}'


@pytest.fixture(autouse=True)
def own_caches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def noise(file: Path, seed: int, size: tuple[int, int] = (12, 16), **options: Any) -> Path:
    """An image file of noise, (height, width)."""
    file.parent.mkdir(parents=True, exist_ok=True)
    values = np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)
    Image.fromarray(values).save(file, **options)
    return file


def photos(root: Path, **counts: int) -> Path:
    """A folder of so many images of each class, no two of them alike."""
    for number, (name, count) in enumerate(counts.items()):
        for place in range(count):
            noise(root / name / f"{place}.png", 1000 * number + place)
    return root


def data(*arguments: str | Path, code: int = 0) -> Result:
    """`maskzoo data`."""
    done = CliRunner().invoke(main, ["data", "--set", f"backbone={TINY}", *map(str, arguments)])
    assert done.exit_code == code, done.output
    return done


def told(tmp_path: Path, *arguments: str | Path) -> Any:
    """What it writes for programs."""
    file = tmp_path / "told.json"
    data(*arguments, "--json", file)
    return json.loads(file.read_text())


# ------------------------------------------------------------------------------------------------------- what it tells
def test_it_tells_what_is_there(tmp_path: Path):
    root = photos(tmp_path / "photos", ant=12, bee=8)
    held = told(tmp_path, root)
    assert {name: split["images"] for name, split in held["splits"].items()} == {"train": 18, "test": 2}
    assert [one["name"] for one in held["classes"]] == ["ant", "bee"]
    assert sum(one["train"] + one["test"] for one in held["classes"]) == 20
    assert held["files"]["formats"] == {"PNG": 20}
    assert held["files"]["bands"] == {"RGB": 20}
    assert held["sizes"]["commonest"] == [[12, 16, 20]]
    assert held["run"]["grid"]
    assert held["concerns"] == []
    output = data(root).output
    assert "all 20 images: none broken" in output
    assert "12 x 16, all of them" in output


def test_levels_are_those_of_the_pixels(tmp_path: Path):
    for number, value in enumerate((0, 51, 204, 255)):
        (tmp_path / "d").mkdir(exist_ok=True)
        Image.new("RGB", (8, 8), (value, value, 255 - value)).save(tmp_path / f"d/{number}.png")
    red, _, blue = told(tmp_path, tmp_path / "d")["channels"]
    assert (red["least"], red["most"]) == (blue["least"], blue["most"]) == (0.0, 1.0)
    assert red["mean"] == pytest.approx(0.5)
    assert red["std"] == pytest.approx(np.std([0, 0.2, 0.8, 1]), abs=1e-5)


def test_broken_files_are_named_and_counted(tmp_path: Path):
    root = photos(tmp_path / "photos", ant=6, bee=6)
    (root / "ant/9.jpg").write_bytes(b"\xff\xd8\xff but no more")
    held = told(tmp_path, root)
    assert held["counts"]["broken"] == 1
    assert "ant/9.jpg" in held["broken"][0]["problem"]
    assert "1 of 13 images cannot be read" in held["concerns"][0]


def test_test_images_that_are_training_images_are_told_first(tmp_path: Path):
    root = tmp_path / "photos"
    photos(root / "train", ant=3, bee=3)
    photos(root / "test", owl=0)
    for name in ("ant", "bee"):
        noise(root / f"test/{name}/new.png", 77 + len(name) + ord(name[0]))
    shutil.copy(root / "train/ant/1.png", root / "test/ant/other name.png")
    held = told(tmp_path, root)
    assert held["leaks"] == [["test/ant/other name.png", "train/ant/1.png"]]
    assert held["concerns"][0].startswith("1 test image is also among the training images")


def test_the_same_image_in_two_classes_is_told(tmp_path: Path):
    root = photos(tmp_path / "photos", ant=4, bee=4)
    Image.open(root / "ant/0.png").save(root / "bee/again.bmp")  # another file of the same pixels
    held = told(tmp_path, root, "--all")
    assert held["counts"] == {"broken": 0, "leaks": 0, "copies": 1, "contradictions": 1}
    assert held["contradictions"] == [["ant/0.png", "bee/again.bmp"]]


def test_imbalance_grey_and_empty_channels_are_told(tmp_path: Path):
    root = tmp_path / "photos"
    for name, count in (("many", 22), ("few", 2)):
        for number in range(count):
            (root / name).mkdir(parents=True, exist_ok=True)
            Image.new("L", (8, 8), 0).save(root / name / f"{number}.png")
    concerns = " ".join(told(tmp_path, root)["concerns"])
    assert "times as many training images as the smallest" in concerns
    assert "channel 1 has the same value everywhere" in concerns
    assert "data.channels = 1" in concerns


def test_what_cameras_turn_and_what_is_transparent_is_counted(tmp_path: Path):
    root = photos(tmp_path / "photos", ant=3)
    exif = Image.Exif()
    exif[0x0112] = 6
    noise(root / "ant/turned.jpg", 5, exif=exif)
    Image.new("RGBA", (16, 12), (9, 9, 9, 40)).save(root / "ant/glass.png")
    files = told(tmp_path, root)["files"]
    assert (files["turned"], files["transparent"]) == (1, 1)


def test_deep_and_many_bands_are_told_with_their_range(tmp_path: Path):
    root = tmp_path / "grey"
    root.mkdir()
    for number in range(3):
        values = np.random.default_rng(number).integers(0, 4096, (16, 16), dtype=np.uint16)
        values[0, 0] = 4095
        Image.fromarray(values).save(root / f"{number}.png")
    held = told(tmp_path, root, "--set", "data.channels=1")
    assert held["files"]["numbers"] == {"uint16": 3}
    assert held["range"] == [0, 4095]
    assert held["channels"][0]["most"] == 1.0


def test_a_run_that_would_be_refused_is_told(tmp_path: Path):
    root = photos(tmp_path / "photos", ant=3)
    held = told(tmp_path, root, "--set", "backbone.image_size=17", "--set", "backbone.patch_size=16")
    assert "a run would be refused" in held["concerns"][-1]
    assert "17" in held["run"]["refused"]


# ------------------------------------------------------------------------------------------------------- what it takes
@pytest.mark.slow
def test_shards_a_recipe_a_run_and_names_are_taken(tmp_path: Path):
    write_shards(tmp_path / "shards", 2)
    (tmp_path / "recipe.toml").write_text(f'[data]\nuse = "shards"\nroot = "{tmp_path}/shards"\n')
    for source in (f"shards:{tmp_path}/shards", tmp_path / "recipe.toml"):
        held = told(tmp_path, source)
        assert (held["splits"]["train"]["images"], held["data"]["use"]) == (12, "shards")
        assert held["files"]["formats"] == {"PNG": 12}
    assert told(tmp_path, "digits", "--look", "20")["splits"]["train"]["looked_at"] == 15
    assert "neither a folder nor a data set" in data(tmp_path / "nothing", code=2).output


@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")
def test_of_a_stream_the_classes_of_what_was_seen_are_counted(tmp_path: Path):
    pytest.importorskip("webdataset")
    write_shards(tmp_path / "shards", 4)
    source = f'data={{use="timm",source="wds/",root="{tmp_path}/shards",train_split="train-{{0000..0003}}.tar",'
    held = told(tmp_path, "--set", source + "train_images=24,class_count=3}", "--look", "9")
    assert sum(one["train"] for one in held["classes"]) == 9
    assert {one["counted"] for one in held["classes"]} == {"seen"}


def test_images_looked_at_are_spread_over_both_splits():
    images = Images(torch.zeros(1000, 1, 4, 4, dtype=torch.uint8))
    places = choose(images, 100)
    assert [sum(name == split for name, _ in places) for split in ("train", "test")] == [75, 25]
    assert [position for name, position in places if name == "test"] == list(range(0, 1000, 40))
    assert len(choose(images, None)) == 2000
    assert choose(Images(torch.zeros(0, 1, 4, 4, dtype=torch.uint8)), 10) == []


def test_missing_pixels_count_in_no_level():
    image = torch.tensor([[[0.25, 9e9], [0.75, 0.5]]])
    valid = torch.tensor([[[True, False], [True, True]]])
    held = levels_of(image, valid)
    assert (held.low[0], held.high[0], held.count[0], held.mean[0]) == (0.25, 0.75, 3, 0.5)
    assert held.bins.shape == (1, BINS)
    assert float(thumbnail(image, valid).max()) <= 1.0
    nothing = levels_of(image, torch.zeros_like(valid))
    assert nothing.count[0] == 0


def test_sixteen_bits_are_levels_too():
    held = levels_of(torch.tensor([[[0, 65535]]], dtype=torch.uint16), None)
    assert (held.low[0], held.high[0], held.mean[0]) == (0.0, 1.0, 0.5)


@pytest.mark.parametrize("channels", [2, 5, 1, 3])
@pytest.mark.sampled(2)
def test_any_number_of_channels_has_a_page(tmp_path: Path, channels: int):
    from maskzoo.overview.drawing import draw_overview
    from maskzoo.overview.summary import MADE_BY, summary
    from maskzoo.pictures import drawn_by
    from maskzoo.recipe import Recipe, parse
    from maskzoo.registry import Registry

    generator = torch.Generator().manual_seed(channels)
    images = Images(torch.randint(0, 256, (6, channels, 8, 8), generator=generator, dtype=torch.uint8), [0, 1] * 3)
    seen = look(images, None)
    held = summary(images, seen, Recipe(backbone=parse(TINY)), Registry())
    draw_overview(held, seen, tmp_path / "page.png")
    assert drawn_by(tmp_path / "page.png", MADE_BY)
    assert len(held["channels"]) == channels
    assert held["counts"]["leaks"] == 6, "the test images of this data set are its training images"


# ------------------------------------------------------------------------------------------------------- what it leaves
def test_nothing_about_the_data_is_changed(tmp_path: Path):
    root = photos(tmp_path / "photos", ant=3, bee=3)
    before = {file: (file.read_bytes(), file.stat().st_mtime_ns) for file in root.rglob("*") if file.is_file()}
    data(root)
    assert {file: (file.read_bytes(), file.stat().st_mtime_ns) for file in root.rglob("*") if file.is_file()} == before


@pytest.mark.sampled(1)
@pytest.mark.parametrize("option", ["--png", "--json"])
def test_only_what_it_wrote_itself_is_written_over(tmp_path: Path, option: str):
    root, file = photos(tmp_path / "photos", ant=3), tmp_path / "out/it"
    for _ in range(2):
        data(root, option, file)
        assert MADE_BY.encode() in file.read_bytes()
    for other in (b"mine", b'{"made_by": "me"}', b""):
        file.write_bytes(other)
        assert "was not written by this command" in data(root, option, file, code=2).output
        assert file.read_bytes() == other


@pytest.mark.slow
def test_its_page_in_a_folder_of_images_is_no_image(tmp_path: Path):
    root = photos(tmp_path / "photos", ant=3)
    data(root, "--png", root / "ant/page.png")
    assert told(tmp_path, root)["splits"]["train"]["images"] == 3


def test_lines_fit_and_what_is_to_be_copied_stays_whole():
    lines = [line.plain for line in wrapped(("sizes", "word " * 40), 60)]
    assert max(map(len, lines)) <= 60
    assert all(line.startswith(" " * 15) for line in lines[1:])
    assert len(list(wrapped("  --set 'data.mean=[" + "0.1, " * 40 + "]'", 60))) == 1
