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

from maskzoo import RecipeError
from maskzoo.cli import main
from maskzoo.pictures import HIDDEN
from maskzoo.preview import Column, Wish, half_blocks, look, players_of, preview, shown
from maskzoo.run import run

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
        (Wish("blok"), r"--masker\.use: no strategy named 'blok'; did you mean 'block'\?"),
    ],
    ids=str,
)
def test_what_cannot_be_shown_is_refused(wish: Wish, sentence: str):
    with pytest.raises(RecipeError, match=sentence):
        players_of(wish, REGISTRY)


# --------------------------------------------------------------------------------------------------------------- a run
def test_a_run_shows_its_own_masker_by_its_own_dials(trained: Path):
    players = players_of(Wish(run=trained), REGISTRY)
    assert players.strategy.name == "clmae"
    assert (players.curriculum(0.0), players.ratio(0.0)) == (1.0, 0.5)
    learnt = "what it has learnt is as the run left it, at every moment"
    assert players.note == f"as seen by the model of '{trained}' at step 2; {learnt}"
    assert hidden_shares(Wish(run=trained, moments=2)) == pytest.approx([0.5, 0.5])
    assert hidden_shares(Wish("attmask", ratio=0.25, run=trained, moments=1)) == pytest.approx([0.25])


def test_a_run_cannot_show_what_it_has_not_taught(trained: Path):
    with pytest.raises(RecipeError, match=r"'mix' learns, and the run .* taught 'clmae'"):
        players_of(Wish({"use": "mix", "parts": ["random", CLMAE], "weights": [1, 1]}, run=trained), REGISTRY)
    with pytest.raises(RecipeError, match="the run has one"):
        players_of(Wish(run=trained, backbone="test_vit"), REGISTRY)


# ------------------------------------------------------------------------------------------------------------- drawing
def shown_by(*arguments: str) -> Result:
    return CliRunner().invoke(main, ["preview", *arguments], env={"COLUMNS": "300"})


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


def test_half_blocks_carry_two_pixels_each_and_fit_the_terminal():
    red_over_blue = torch.zeros(1, 3, 16, 16)
    red_over_blue[0, 0, :8], red_over_blue[0, 2, 8:] = 1.0, 1.0
    columns = [Column("one", red_over_blue), Column("two\nlines", red_over_blue)]
    lines = half_blocks(columns, ["name"], width=17)
    assert [line.plain for line in lines[:2]] == ["one      two     ", "         lines   "]
    *pixels, name = lines[2:]
    assert name.plain == "name"
    assert [line.plain for line in pixels] == ["▀" * 8 + " " + "▀" * 8] * 4
    assert {str(span.style) for span in pixels[0].spans} == {"rgb(255,0,0) on rgb(255,0,0)"}
    assert {str(span.style) for span in pixels[3].spans} == {"rgb(0,0,255) on rgb(0,0,255)"}
    assert len(half_blocks(columns, ["name"], width=12)[2].plain) == 8  # only one fits


@pytest.mark.parametrize(
    ("colours", "terminal", "drawn"), [("truecolor", True, 1), ("256", True, 0), ("truecolor", False, 0)]
)
def test_only_a_terminal_of_all_colours_is_drawn_on(
    colours: Any, terminal: bool, drawn: int, files: list[Path], tmp_path: Path
):
    console = Console(file=io.StringIO(), force_terminal=True, color_system=colours, width=60)
    preview(files, Wish(moments=1), tmp_path / "new.png", REGISTRY, console, terminal=terminal)
    assert ("▀" in console.file.getvalue()) is bool(drawn)  # type: ignore[attr-defined]
