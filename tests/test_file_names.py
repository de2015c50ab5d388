"""Names of any bytes: of classes, of images and of the folder itself, from the disk to every file that a run leaves."""

from __future__ import annotations

import io
import json
import os
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from helpers import REGISTRY, TINY_BACKBONE
from PIL import Image

from maskzoo import DataError, Recipe
from maskzoo.build import fingerprint
from maskzoo.cli import main
from maskzoo.data.finding import find
from maskzoo.data.folder import Folder
from maskzoo.data.remarks import remarks_of
from maskzoo.run import run
from maskzoo.terminal import Console

ODD = [
    b"caf\xe9",
    "写真 📷".encode(),
    b"a\x1b[31m",
    b"two\nlines",
    "ru\u202etl".encode(),
    b"\xff\xfe",
    b"it's [1] {2} 100%",
]


def photos(root: bytes, classes: list[bytes], each: int = 6) -> str:
    """Class folders of images, all of whose names are bytes."""
    for place, name in enumerate(classes):
        folder = os.path.join(root, name)
        try:
            os.makedirs(folder)
        except OSError:
            pytest.skip("this file system takes UTF-8 alone")
        for number in range(each):
            file = io.BytesIO()
            Image.new("RGB", (16, 16), (30 * number, 40 * place, 9)).save(file, "PNG")
            with open(os.path.join(folder, name + f" {number}.png".encode()), "wb") as opened:
                opened.write(file.getvalue())
    return os.fsdecode(root)


@pytest.mark.parametrize("name", ODD)
def test_a_folder_of_any_name_is_read_and_told_in_letters_that_can_be_printed(name: bytes, tmp_path: Path):
    root = photos(os.path.join(os.fsencode(tmp_path), name), [name, b"plain"])
    dataset = Folder(root)
    assert len(dataset.train) + len(dataset.test) == 12
    assert {dataset.train[number].label for number in range(len(dataset.train))} == {0, 1}
    assert dataset.classes is not None
    told = "\n".join([*remarks_of(dataset), *dataset.classes, fingerprint(dataset)])
    told.encode()
    assert "\x1b" not in "".join(remarks_of(dataset))
    assert all("\n" not in line for line in remarks_of(dataset))


def test_classes_that_are_no_text_show_their_bytes_and_are_known_in_the_test_images_too(tmp_path: Path):
    for split in (b"train", b"test"):
        photos(os.path.join(os.fsencode(tmp_path), split), [b"caf\xe9", b"plain"], 2)
    found = find(tmp_path)
    assert found.classes == ["caf\\xe9", "plain"]
    assert found.test_labels == [0, 0, 1, 1]


def test_two_classes_that_show_alike_are_refused(tmp_path: Path):
    photos(os.fsencode(tmp_path), [b"caf\xe9", b"caf\\xe9"], 2)
    with pytest.raises(DataError, match="2 folders called"):
        find(tmp_path)


def test_what_is_refused_about_such_a_folder_can_be_printed(tmp_path: Path):
    photos(os.fsencode(tmp_path), [b"caf\xe9", b"b"], 1)
    (tmp_path / os.fsdecode(b"loose \xe9.png")).write_bytes(b"")
    result = CliRunner().invoke(main, ["train", "--data", str(tmp_path)])
    assert result.exit_code == 2
    assert "loose \\xe9.png" in result.output
    assert "caf\\xe9" in result.output


@pytest.mark.slow
@pytest.mark.parametrize("use", ["folder", "timm"])
def test_all_that_a_run_leaves_of_such_data_can_be_read(use: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    classes = [b"caf\xe9", b"a\x1b[31m", b"plain"]
    for split in (b"train", b"test"):
        photos(os.path.join(os.fsencode(tmp_path), b"photos", split), classes, 4)
    root = str(tmp_path / "photos")
    splits = {"train_split": "train", "test_split": "test"} if use == "timm" else {}
    plain: dict[str, Any] = {
        "data": {"use": use, "root": root, "size": 16, **splits},
        "backbone": {**TINY_BACKBONE, "image_size": 16},
        "objective": "masksub",
        "evaluation": ["knn", "classifier", {"use": "linear", "epochs": 2}],
        "train": {"steps": 2, "batch_size": 4, "pictures": 2, "precision": "fp32"},
    }
    file = io.StringIO()
    run(Recipe.from_plain(plain), REGISTRY, Console(file=file, width=200), tmp_path / "run")
    assert "\x1b" not in file.getvalue()
    file.getvalue().encode()
    for name in ("environment.json", "evaluation.json"):
        json.loads((tmp_path / "run" / name).read_text(encoding="utf-8"))
    (tmp_path / "run" / "recipe.toml").read_text(encoding="utf-8")
    image = os.path.join(root, "train", os.fsdecode(b"caf\xe9"), os.fsdecode(b"caf\xe9 0.png"))
    for words in (
        ["evaluate", "run", "--with", 'knn,{use="linear",epochs=2}'],
        ["export", "run", "model"],
        ["export", "run", "weights", "--to", "safetensors"],
        ["compare", "run", "--out", "report"],
        ["preview", image, "--run", "run"],
        ["train", "--out", "run", "--resume"],
        ["cost", "--data", root],
    ):
        result = CliRunner().invoke(main, words)
        assert result.exit_code == 0, (words, result.output)
        result.output.encode()
        assert "\x1b" not in result.output
    for path in (tmp_path / "report").rglob("*.*"):
        if path.suffix in (".html", ".json", ".csv", ".tex", ".svg", ".md", ".txt"):
            path.read_text(encoding="utf-8")
    for path in [*(tmp_path / "model").glob("*.json"), *(tmp_path / "weights").glob("*.json")]:
        path.read_text(encoding="utf-8").encode()
        json.loads(path.read_text(encoding="utf-8"))


@pytest.mark.slow
def test_a_root_that_no_recipe_can_hold_is_refused_with_what_to_do_and_a_link_to_it_is_read(tmp_path: Path):
    root = photos(os.path.join(os.fsencode(tmp_path), b"caf\xe9"), [b"cat", b"dog"])
    tiny = ["--set", "train.steps=1", "--set", "evaluation=[]", "--batch-size", "2", "--device", "cpu"]
    result = CliRunner().invoke(main, ["train", "--data", root, *tiny, "--out", str(tmp_path / "one")])
    assert result.exit_code == 2
    assert "caf\\xe9" in result.output
    assert "link" in result.output
    (tmp_path / "link").symlink_to(root)
    words = ["train", "--data", str(tmp_path / "link"), *tiny, "--out", str(tmp_path / "two")]
    result = CliRunner().invoke(main, words)
    assert result.exit_code == 0, result.output
