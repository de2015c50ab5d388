"""What MaskZoo writes below a folder of images never becomes images to learn from."""

from __future__ import annotations

import io
import shutil
from pathlib import Path
from typing import Any

import attrs
import pytest
import torch
from click.testing import CliRunner
from helpers import REGISTRY, TINY_BACKBONE, TINY_OBJECTIVE
from PIL import Image

from maskzoo import DataError, Recipe
from maskzoo.build import fingerprint
from maskzoo.cli import main
from maskzoo.compare.keeping import RECORD
from maskzoo.data.finding import find
from maskzoo.data.folder import Folder
from maskzoo.data.through_timm import ThroughTimm
from maskzoo.marks import COMPARISON
from maskzoo.pictures import Moment, draw_moment
from maskzoo.plain import read_json, write_json
from maskzoo.recipe import make, read
from maskzoo.run import run
from maskzoo.sheet import Column, draw
from maskzoo.terminal import Console


def photos(root: Path) -> Path:
    for name in ("cat", "dog"):
        (root / name).mkdir(parents=True)
        for number in range(10):
            shade = (20 * number, 9 * number, 100 * (name == "cat"))
            Image.new("RGB", (16, 16), shade).save(root / name / f"{number}.png")
    return root


def a_run(folder: Path) -> Path:
    """What tells a folder as a run's, with a picture in it."""
    (folder / "masks").mkdir(parents=True)
    write_json(folder / "environment.json", {"generator": "MaskZoo run"})
    (folder / "recipe.toml").write_text("")
    Image.new("RGB", (9, 9)).save(folder / "masks" / "step-00000000.png")  # an older one has no mark
    return folder


def a_comparison(folder: Path) -> Path:
    (folder / "figures").mkdir(parents=True)
    write_json(folder / RECORD, {"generator": COMPARISON, "files": [], "recipes": [], "runs": []})
    Image.new("RGB", (9, 9)).save(folder / "figures" / "masks.png")
    a_run(folder / "runs" / "one")
    return folder


def a_preview(file: Path) -> Path:
    draw([Column("image", torch.rand(1, 3, 8, 8))], ["a"], file, title="random")
    return file


@pytest.mark.parametrize("place", ["", "cat", "cat/old", "train", "new/and/deep"])
@pytest.mark.parametrize("what", ["run", "comparison", "preview"])
def test_runs_comparisons_and_previews_are_told_and_never_read(what: str, place: str, tmp_path: Path):
    root = photos(tmp_path / "photos")
    before, known = find(root), fingerprint(Folder(str(root)))
    (root / place).mkdir(parents=True, exist_ok=True)
    if what == "run":
        a_run(root / place / "mine")
    elif what == "comparison":
        a_comparison(root / place / "mine")
    else:
        a_preview(root / place / "mine.png")
    after = find(root)
    assert (after.train, after.test, after.classes) == (before.train, before.test, before.classes)
    assert fingerprint(Folder(str(root))) == known
    told = after.layout.lines()
    kind = "picture" if what == "preview" else what
    assert f"{f'{place}/' if place else ''}mine{'.png' if what == 'preview' else '/'} (a {kind} of MaskZoo)" in told[1]
    assert "empty" not in told[1]


def test_many_runs_are_told_in_few_words(tmp_path: Path):
    root = photos(tmp_path / "photos")
    for number in range(30):
        a_run(root / "runs" / f"random-{number}")
    a_preview(root / "preview.png")
    told = find(root).layout.lines()
    assert told[1:] == ["not used: preview.png (a picture of MaskZoo); runs/ (30 runs of MaskZoo)"]


def test_pictures_of_masks_are_known_wherever_they_are_put(tmp_path: Path):
    root = photos(tmp_path / "photos")
    images = torch.rand(2, 3, 8, 8)
    draw_moment(Moment(0, None, 0.75, images, images), root / "cat" / "copied.png", "")
    assert find(root).layout.train == 18


def test_a_picture_that_another_program_drew_is_an_image(tmp_path: Path):
    root = photos(tmp_path / "photos")
    with Image.open(a_preview(tmp_path / "preview.png")) as image:
        image.convert("RGB").save(root / "cat" / "edited.png")
    assert find(root).layout.train == 19


def test_a_run_is_no_folder_of_images(tmp_path: Path):
    with pytest.raises(DataError, match=r"mine' is a run of MaskZoo, no folder of images"):
        find(a_run(tmp_path / "mine"))
    (tmp_path / "masks").mkdir()
    a_preview(tmp_path / "masks" / "one.png")
    with pytest.raises(DataError, match=r"holds no images.*there are one\.png \(a picture of MaskZoo\)"):
        find(tmp_path / "masks")


def test_splits_beside_runs_are_splits(tmp_path: Path):
    root = photos(tmp_path / "photos" / "train").parent
    a_run(root / "runs" / "one")
    a_preview(root / "preview.png")
    layout = find(root).layout
    assert (layout.reading, layout.classes, layout.train) == ("splits", ("cat", "dog"), 20)


def test_what_timm_would_read_of_a_run_is_refused(tmp_path: Path):
    root = photos(tmp_path / "photos")
    assert len(ThroughTimm(root=str(root)).train) == 20
    a_run(root / "runs" / "one")
    with pytest.raises(DataError, match=r"timm reads '.*runs.*MaskZoo.*data\.use = .folder."):
        ThroughTimm(root=str(root))


# --------------------------------------------------------------------------------------------------- the whole program
def trained(root: Path, out: Path | None, **more: Any) -> tuple[Path, str]:
    plain = {
        "data": {"use": "folder", "root": str(root)},
        "backbone": {**TINY_BACKBONE, "image_size": 16},
        "objective": TINY_OBJECTIVE,
        "evaluation": ["knn"],
        "train": {"steps": 2, "batch_size": 4, "pictures": 2, "precision": "fp32"},
    }
    console = Console(file=io.StringIO(), width=1000)
    return run(Recipe.from_plain(plain), REGISTRY, console, out, **more), console.file.getvalue()


def metrics(evaluation: dict[str, Any]) -> list[Any]:
    return [one["metrics"] for one in evaluation["evaluations"]]


@pytest.mark.slow
def test_a_second_run_from_inside_the_folder_sees_what_the_first_saw(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    root = photos(tmp_path / "photos")
    monkeypatch.chdir(root)
    first, told = trained(Path(), None)
    assert "not used" not in told
    for words in (
        ["preview", "cat/1.png"],
        ["preview", "cat/1.png", "--out", "dog/look.png"],
        ["export", str(first), "model"],
        ["export", str(first), "cat/weights", "--to", "safetensors"],
        ["compare", str(first), "--out", "report"],
    ):
        result = CliRunner().invoke(main, words)
        assert result.exit_code == 0, result.output
    shutil.copy(next((first / "masks").glob("*.png")), "copy.png")
    second, told = trained(Path(), None)
    assert "a run of MaskZoo" in told
    assert "2 classes (cat, dog), 18 training and 2 test images" in told
    one, other = (read_json(path / "environment.json") for path in (first, second))
    assert (one["images"], one["classes"]) == (other["images"], other["classes"])
    before = read_json(first / "evaluation.json")
    assert metrics(before) == metrics(read_json(second / "evaluation.json"))
    trained(Path(), first, resume=True)
    assert CliRunner().invoke(main, ["evaluate", str(first), "--with", "knn"]).exit_code == 0
    after = read_json(first / "evaluation.json")
    assert all(one in metrics(before) for one in metrics(after))
    data = read(first / "recipe.toml")["data"]
    assert find(data["root"]).classes == ["cat", "dog"]
    assert attrs.asdict(make(REGISTRY, "dataset", data, "data").layout)["train"] == 18
