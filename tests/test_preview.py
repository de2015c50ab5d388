"""What a masker does to image files, drawn without training."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result
from helpers import REGISTRY, tiny_recipe
from PIL import Image
from rich.console import Console

from maskzoo import MaskZooError, RecipeError
from maskzoo.backbones.adapter import without_fetching
from maskzoo.cli import main
from maskzoo.data.pixels import Reading
from maskzoo.pictures import HIDDEN
from maskzoo.preview import Wish, look, players_of, preview, read, shown
from maskzoo.run import run
from maskzoo.sheet import Column, draw, half_blocks

CLMAE = {"use": "clmae", "depth": 1, "heads": 2}


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """A tall grey photo and a wide coloured one, both bright."""
    folder = tmp_path_factory.mktemp("photos")
    Image.fromarray(np.full((90, 40), 200, dtype=np.uint8)).save(folder / "grey.png")
    Image.fromarray(np.full((30, 77, 3), 220, dtype=np.uint8)).save(folder / "wide.jpg")
    return [folder / "grey.png", folder / "wide.jpg"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    sections = {"train": {"steps": 2, "batch_size": 4, "pictures": 0}, "evaluation": []}
    recipe = tiny_recipe(CLMAE, data="digits", masking={"ratio": 0.5}, **sections)
    return run(recipe, REGISTRY, Console(quiet=True), tmp_path_factory.mktemp("runs") / "run")


def columns_of(wish: Wish) -> list[Column]:
    players = players_of(wish, REGISTRY)
    shape = 1, players.objective.backbone.channels, *players.size
    return look(torch.randn(shape, generator=torch.Generator().manual_seed(0)), players, wish)


def hidden_shares(wish: Wish) -> list[float]:
    """The share of pixels under the flat colour, for each moment, of white images."""
    players = players_of(wish, REGISTRY)
    backbone = players.objective.backbone
    images = torch.ones(2, backbone.channels, *players.size)
    flat = torch.tensor(HIDDEN).view(1, 3, 1, 1)
    return [float((column.seen == flat).all(dim=1).float().mean()) for column in look(images, players, wish)]


# ------------------------------------------------------------------------------------------------------------- masks
@pytest.mark.parametrize("masker", ["random", "block", {"use": "mix", "parts": ["random", "block"], "weights": [1, 1]}])
def test_maskers_that_look_at_nothing_need_no_run(masker: Any):
    wish = Wish(masker, ratio={"use": "linear", "start": 0.25, "end": 0.75}, moments=3)
    assert hidden_shares(wish) == pytest.approx([0.25, 0.5, 0.75], abs=0.01)


@pytest.mark.slow
def test_each_moment_draws_anew_and_a_seed_draws_the_same():
    def seen(seed: int) -> list[torch.Tensor]:
        wish = Wish("random", moments=2, seed=seed)
        players = players_of(wish, REGISTRY)
        return [column.seen for column in look(torch.ones(1, 3, *players.size), players, wish)]

    first, again, other = seen(0), seen(0), seen(1)
    assert torch.equal(first[0], again[0])
    assert not torch.equal(first[0], first[1])
    assert not torch.equal(first[0], other[0])


def test_a_curriculum_moves_what_attention_hides():
    wish = Wish("attmask", schedule="partner-neutral-adversary", moments=3, backbone="test_vit")
    players = players_of(wish, REGISTRY)
    assert players.note == "as seen by an untrained test_vit: its weights are random"
    images = torch.randn(1, 3, *players.size, generator=torch.Generator().manual_seed(0))
    columns = look(images, players, wish)
    assert [column.caption.split("\n")[1] for column in columns] == ["factor +1.00", "factor +0.00", "factor -1.00"]
    most = players.objective.backbone.attention(images).argmax()
    cells = shown(images, players), columns[0].seen, columns[2].seen
    side = players.objective.backbone.patch_size[0]
    row, column = divmod(int(most), players.objective.backbone.grid[1])
    whole, partner, adversary = (
        cell[0, :, row * side : (row + 1) * side, column * side : (column + 1) * side] for cell in cells
    )
    assert torch.equal(partner, whole)
    assert torch.equal(adversary, torch.tensor(HIDDEN).view(3, 1, 1).expand_as(adversary))


@pytest.mark.parametrize(
    ("wish", "sentence"),
    [
        (Wish("attmask"), r"--masker: 'attmask' looks through a model's eyes; say which with --run RUN, or"),
        (Wish("pooled-query"), r"--masker: 'pooled-query' looks through a model's eyes"),
        (Wish(CLMAE), r"--masker: 'clmae' learns, so there is nothing to show without --run RUN"),
        (Wish({"use": "mix", "parts": ["random", CLMAE], "weights": [1, 1]}), "nothing to show without --run RUN"),
        (Wish("attmask", backbone="test_resnet"), "needs attention, which backbone 'test_resnet' does not provide"),
        (Wish("random", schedule="adversary"), r"^--schedule: strategy 'random' knows no hardness"),
        (Wish("random", ratio=1.5), r"^--ratio: .* got 1\.5"),
        (Wish("random", pretrained=True), r"^--pretrained: say with --backbone NAME which model's weights"),
        (
            Wish("attmask", backbone="resnet_18"),
            r"^--backbone: no timm model named 'resnet_18'; did you mean 'resnet18'",
        ),
        (Wish("attmask", backbone="swin"), r"^--masker: strategy 'attmask' needs attention, which backbone 'swin_"),
        (Wish("blok"), r"--masker\.use: no strategy named 'blok'; did you mean 'block'\?"),
    ],
    ids=str,
)
@pytest.mark.sampled(4)
def test_what_cannot_be_shown_is_refused(wish: Wish, sentence: str):
    with pytest.raises(RecipeError, match=sentence):
        players_of(wish, REGISTRY)


# --------------------------------------------------------------------------------------------------------------- a run
@pytest.mark.slow
def test_a_run_shows_its_own_masker_by_its_own_dials(trained: Path):
    players = players_of(Wish(run=trained), REGISTRY)
    assert players.strategy.name == "clmae"
    assert (players.curriculum(0.0), players.ratio(0.0)) == (1.0, 0.5)
    learnt = "what it has learnt is as the run left it, at every moment"
    assert players.note == f"as seen by the model of '{trained}' at step 2; {learnt}"
    assert hidden_shares(Wish(run=trained, ratio="linear:0.25:0.75", moments=2)) == pytest.approx([0.25, 0.75])
    assert hidden_shares(Wish("attmask", ratio=0.25, run=trained, moments=1)) == pytest.approx([0.25])


@pytest.mark.slow
def test_what_does_not_move_is_one_column(trained: Path):
    assert [column.caption for column in columns_of(Wish(run=trained))] == ["as learnt\nstep 2\nratio 0.50"]
    moving = columns_of(Wish(run=trained, ratio="linear:0.25:0.75", moments=2))
    assert [column.caption for column in moving] == ["0% of training\nratio 0.25", "100% of training\nratio 0.75"]
    constant = columns_of(Wish("attmask", schedule="adversary", backbone="test_vit"))
    assert [column.caption for column in constant] == ["at every moment\nfactor -1.00\nratio 0.75"]
    assert len(columns_of(Wish("attmask", schedule=0.0, backbone="test_vit"))) == 5  # neutral is at random


def test_a_registered_backbone_is_looked_through_as_a_timm_model_is():
    assert len(columns_of(Wish("attmask", backbone="vit", moments=1))) == 1


def test_images_are_normalised_as_timms_weights_are_used_to():
    with without_fetching():
        players = players_of(Wish("attmask", backbone="vit_tiny_patch16_224", pretrained=True), REGISTRY)
    assert (players.mean, players.std) == ((0.5,) * 3, (0.5,) * 3)
    assert players.note == "as seen by timm vit_tiny_patch16_224, pretrained"


def test_a_run_cannot_show_what_it_has_not_taught(trained: Path):
    with pytest.raises(RecipeError, match=r"'mix' learns, and the run .* taught 'clmae'"):
        players_of(Wish({"use": "mix", "parts": ["random", CLMAE], "weights": [1, 1]}, run=trained), REGISTRY)
    with pytest.raises(RecipeError, match="the run has one"):
        players_of(Wish(run=trained, backbone="test_vit"), REGISTRY)


# ------------------------------------------------------------------------------------------------------------- drawing
def shown_by(*arguments: str) -> Result:
    return CliRunner().invoke(main, ["preview", *arguments], env={"COLUMNS": "300"})


@pytest.mark.slow
def test_the_command_draws_files_of_any_size(files: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    arguments = ["--masker", "block", "--moments", "2", *map(str, files)]
    result = shown_by(*arguments)
    assert (result.exit_code, result.output.strip()) == (0, "block: preview.png")
    with Image.open("preview.png") as picture:
        assert picture.width > picture.height > 300  # three columns, two rows
    assert shown_by(*arguments).exit_code == 0  # its own picture may be drawn anew
    assert [path.name for path in tmp_path.iterdir()] == ["preview.png"]


def test_a_picture_that_is_no_preview_is_not_overwritten(files: list[Path]):
    before = files[0].read_bytes()
    result = shown_by("--out", str(files[0]), str(files[1]))
    assert (result.exit_code, "exists, and is no preview" in result.output) == (2, True)
    assert files[0].read_bytes() == before


def test_a_file_that_is_no_image_is_named(tmp_path: Path):
    (tmp_path / "text.png").write_text("no image")
    result = shown_by("--out", str(tmp_path / "new.png"), str(tmp_path / "text.png"))
    assert (result.exit_code, "text.png' is no image" in result.output) == (2, True)
    assert not (tmp_path / "new.png").exists()


@pytest.mark.slow
def test_an_image_that_cannot_be_had_is_named(files: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def said_of(file: Path) -> str:
        result = shown_by("--out", str(tmp_path / "new.png"), str(file))
        assert (result.exit_code, list(tmp_path.iterdir())) == (2, [])
        return result.output

    assert f"IMAGE: there is no '{tmp_path / 'gone.png'}'" in said_of(tmp_path / "gone.png")
    assert f"IMAGE: there is no '{files[0] / 'inside'}'" in said_of(files[0] / "inside")
    assert f"IMAGE: '{tmp_path}' is a folder; name image files" in said_of(tmp_path)
    assert "cannot be opened (File name too long)" in said_of(tmp_path / ("n" * 300))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    assert "is larger than 2,000 pixels; shrink it" in said_of(files[0])


def test_a_photo_is_turned_as_its_camera_says(tmp_path: Path):
    exif = Image.Exif()
    exif[0x0112] = 6  # the orientation: to be turned by 90 degrees
    left_white = np.zeros((16, 48), dtype=np.uint8)
    left_white[:, :24] = 255
    Image.fromarray(left_white).save(tmp_path / "turned.jpg", exif=exif)
    turned = read(tmp_path / "turned.jpg", Reading(3)).image
    assert turned.shape == (3, 48, 16)
    assert (turned[:, :20] > 200).all()


@pytest.mark.parametrize("name", ["file/new.png", "n" * 300, "/proc/x.png"])
def test_a_picture_that_cannot_be_written_is_said_before_it_is_drawn(
    name: str, files: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    (tmp_path / "file").write_text("mine")
    monkeypatch.setattr("maskzoo.preview.look", None)
    with pytest.raises(MaskZooError, match=rf"^--out: '.*{name}' cannot be written: \w"):
        preview(files, Wish(), tmp_path / name, REGISTRY, Console(quiet=True))
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_nothing_but_the_picture_is_written_or_removed(files: list[Path], tmp_path: Path):
    (tmp_path / "new.png.part").write_text("mine")
    (tmp_path / "new.part").mkdir()
    assert shown_by("--moments", "1", "--out", str(tmp_path / "new.png"), str(files[0])).exit_code == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["new.part", "new.png", "new.png.part"]
    assert (tmp_path / "new.png.part").read_text() == "mine"


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--seed", "1" * 20], "is not in the range 0<=x<=9223372036854775807"),
        (["--moments", "21"], "--moments: must be between 1 and 20, got 21"),
        (["x.png"] * 100, "IMAGE: 101 files are too many for one picture; name at most 100"),
    ],
)
def test_numbers_out_of_range_are_refused(arguments: list[str], sentence: str, files: list[Path], tmp_path: Path):
    result = shown_by(*arguments, "--out", str(tmp_path / "new.png"), str(files[0]))
    assert (result.exit_code, sentence in result.output) == (2, True), result.output


@pytest.mark.slow
def test_no_text_leaves_the_picture(tmp_path: Path):
    path = "/a/path" * 30
    words = f"as seen by the model of '{path}' at step 2; " + "what it has $learnt$ is as the run left it, " * 4
    columns = [Column("image", torch.ones(2, 3, 8, 8)), Column("50% of training\nratio 0.50", torch.ones(2, 3, 8, 8))]
    draw(columns, [path + ".jpg", "b.jpg"], tmp_path / "new.png", title=words, note=words)
    with Image.open(tmp_path / "new.png") as picture:
        pixels = np.asarray(picture.convert("L"))
    assert pixels.shape[1] == 650  # 5 inches
    edges = (pixels[:5], pixels[-5:], pixels[:, :5], pixels[:, -5:])
    assert all((edge == 255).all() for edge in edges)
    ink = (pixels < 128).any(axis=1)
    lines = int((ink[1:] & ~ink[:-1]).sum())
    assert lines > 15  # title and note of at least five each, a name of at least three, captions and the other name


def test_each_row_of_a_picture_is_named(files: list[Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    seen: list[str] = []
    (tmp_path / "wide.jpg").write_bytes(files[1].read_bytes())
    monkeypatch.setattr("maskzoo.preview.draw", lambda columns, names, *_, **__: seen.extend(names))
    preview([*files, tmp_path / "wide.jpg"], Wish(moments=1), tmp_path / "new.png", REGISTRY, Console(quiet=True))
    assert seen == ["grey.png", str(files[1]), str(tmp_path / "wide.jpg")]


def test_half_blocks_carry_two_pixels_each_in_bands_that_fit_the_terminal():
    red_over_blue = torch.zeros(1, 3, 16, 16)
    red_over_blue[0, 0, :8], red_over_blue[0, 2, 8:] = 1.0, 1.0
    columns = [Column("one", red_over_blue), Column("50% of training\nlines", red_over_blue)]
    lines = half_blocks(columns, ["name"], 33, (4, 4))
    assert [line.plain for line in lines[:2]] == [f"{'one':16} {'50%':16}", f"{'':16} {'lines':16}"]
    *pixels, name = lines[2:]
    assert name.plain == "name"
    assert [line.plain for line in pixels] == ["▀" * 16 + " " + "▀" * 16] * 8
    assert {str(span.style) for span in pixels[0].spans} == {"rgb(255,0,0) on rgb(255,0,0)"}
    assert {str(span.style) for span in pixels[7].spans} == {"rgb(0,0,255) on rgb(0,0,255)"}
    bands = [line.plain.strip() for line in half_blocks(columns, ["name"], 12, (4, 4))]
    assert bands == ["one", *["▀" * 12] * 6, "name", "", "50%", "lines", *["▀" * 12] * 6, "name"]


@pytest.mark.parametrize("grid", [(14, 14), (7, 7), (8, 12), (4, 4), (15, 10)])
@pytest.mark.parametrize("width", [20, 40, 80, 200])
def test_hidden_patches_have_sharp_edges_in_the_terminal(grid: tuple[int, int], width: int):
    rows, across = grid
    checkers = (torch.arange(rows)[:, None] + torch.arange(across)) % 2
    seen = checkers.repeat_interleave(8, 0).repeat_interleave(8, 1).expand(1, 3, -1, -1).float()
    caption = "100% of training\nfactor +0.00\nratio 0.75"
    lines = half_blocks([Column("image", seen), *[Column(caption, seen)] * 5], ["n" * 300], width, grid)
    assert {str(span.style) for line in lines for span in line.spans} <= {
        f"rgb({one},{one},{one}) on rgb({other},{other},{other})" for one in (0, 255) for other in (0, 255)
    }
    assert max(len(line.plain) for line in lines) <= width
    words = " ".join(line.plain for line in lines)
    assert [words.count(word) for word in ("100%", "factor +0.00", "ratio 0.75")] == [5, 5, 5]


@pytest.mark.parametrize(
    ("colours", "terminal", "drawn"), [("truecolor", True, 1), ("256", True, 0), ("truecolor", False, 0)]
)
def test_only_a_terminal_of_all_colours_is_drawn_on(
    colours: Any, terminal: bool, drawn: int, files: list[Path], tmp_path: Path
):
    console = Console(file=io.StringIO(), force_terminal=True, color_system=colours, width=60)
    preview(files, Wish(moments=1), tmp_path / "new.png", REGISTRY, console, terminal=terminal)
    assert ("▀" in console.file.getvalue()) is bool(drawn)  # type: ignore[attr-defined]
