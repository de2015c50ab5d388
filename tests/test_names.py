"""Names that are not UTF-8, or hold control characters: trained on, and printed as what they are."""

from __future__ import annotations

import ast
import io
import os
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from maskzoo import RecipeError
from maskzoo.build import fingerprint
from maskzoo.cli import main
from maskzoo.data.folder import Folder
from maskzoo.folder import RunFolder
from maskzoo.plain import printable, quoted, shortened
from maskzoo.recipe import Recipe
from maskzoo.sheet import wrapped
from maskzoo.terminal import Console

ROOT = Path(__file__).parents[1]
LATIN = os.fsdecode(b"caf\xe9")  # as an archive of an older system unpacks it
TINY = ["--set", "train.steps=1", "--set", "evaluation=[]", "--batch-size", "2", "--device", "cpu"]


def image_file(folder: Path, name: str, shade: int = 0) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((32, 32, 3), shade, dtype=np.uint8)).save(folder / "plain.png")
    try:
        os.rename(folder / "plain.png", folder / name)
    except OSError:
        pytest.skip("this file system takes UTF-8 alone")
    return folder / name


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("naïve 图 \N{GRINNING FACE}\n\t", "naïve 图 \N{GRINNING FACE}\n\t"),
        ("\x1b[31m", "\\x1b[31m"),
        ("a\x07\x08\r\x7f\x00", "a\\x07\\x08\\x0d\\x7f\\x00"),
        ("\x9b31m", "\\x9b31m"),
        ("\u202egnp.exe\u2066", "\\u202egnp.exe\\u2066"),
        ("\u2028", "\\u2028"),
        (LATIN, "caf\\xe9"),
        ("\ud800", "\\ud800"),
    ],
)
def test_printable_shows_what_a_terminal_would_obey_and_leaves_the_rest(text: str, shown: str):
    assert printable(text) == shown
    assert printable(shown) == shown
    shown.encode()


def test_values_in_messages_are_short_whatever_they_are():
    deep: object = 0
    for _ in range(5000):
        deep = [deep]
    for value in (10**5000, -(10**5000), "a" * 5000, [10**5000], deep, list(range(9999))):
        assert len(quoted(value)) < 200
    assert quoted("one") == "'one'"
    assert quoted(2**64) == str(2**64)
    assert quoted(True) == "True"
    assert len(shortened(f"a file {'x' * 5000} is not there")) < 200


def test_a_console_prints_names_harmlessly_also_in_tables_and_markup():
    from rich.table import Table

    file = io.StringIO()
    console = Console(file=file, width=80, force_terminal=True, color_system=None)
    table = Table("name\x1b[2J")
    table.add_row("cell\x1b]0;title\x07")
    console.print(table)
    console.print(f"[bold]{LATIN}\x1b[31m[/bold]", style="yellow")
    with console.status("waiting\x1b[5m"):
        console.log("line\x9b")
    said = file.getvalue()
    said.encode()
    assert "\\x1b[2J" in said
    assert "caf\\xe9\\x1b[31m" in said
    assert not {"\x07", "\x9b"} & set(said)
    assert "\x1b[2J" not in said
    assert "\x1b]0" not in said


@pytest.mark.slow
def test_every_console_of_the_program_is_the_harmless_one():
    for path in (ROOT / "maskzoo").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "Console":
                quiet = [keyword.arg for keyword in node.keywords] == ["quiet"]
                assert quiet or "maskzoo.terminal" in path.read_text(), f"{path}: print through maskzoo.terminal"


@pytest.mark.parametrize(
    "words",
    [
        ["show", "a\x1b[31mb"],
        ["a\x1b[31mb"],
        ["--a\x1b[31mb"],
        ["train", "--a\x1b[31mb"],
        ["train", "--epochs", "\x1b[31m"],
        ["train", "a\x1b[31mb.toml"],
        ["train", "--masker", "a\x1b[31mb"],
        ["train", "--data", "a\x1b[31mb"],
        ["train", "--set", "a\x1b[31mb=1"],
        ["export", "a\x1b[31mb", "x"],
        ["preview", "a\x1b[31mb"],
        ["compare", "a\x1b[31mb"],
    ],
)
def test_what_was_typed_comes_back_without_its_control_characters(words: list[str], tmp_path: Path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(main, words)
    assert result.exit_code == 2, result.output
    assert "\x1b" not in result.output
    assert "\\x1b" in result.output


def test_warnings_are_kept_and_printed_harmlessly(tmp_path: Path):
    file = io.StringIO()
    RunFolder(tmp_path).warn(f"'{LATIN}\x1b[2J' is no image", Console(file=file))
    assert (tmp_path / "warnings.txt").read_text(encoding="utf-8") == "'caf\\xe9\\x1b[2J' is no image\n"
    assert "\x1b" not in file.getvalue()


def test_images_whose_names_are_no_text_are_known_again(tmp_path: Path):
    image_file(tmp_path / "cat", f"{LATIN}.png")
    image_file(tmp_path / LATIN, "b.png")
    there = fingerprint(Folder(str(tmp_path)))
    assert there == fingerprint(Folder(str(tmp_path)))
    image_file(tmp_path / "cat", f"{LATIN}2.png")
    assert there != fingerprint(Folder(str(tmp_path)))


def test_captions_of_pictures_hold_what_a_font_can_draw():
    lines = wrapped(f"{LATIN}\x1b[31m.png \ud800", 5.0, 9.0)
    assert "".join(lines).replace(" ", "") == "caf\\xe9\\x1b[31m.png\\ud800"


@pytest.mark.parametrize("key", ["data", "weights", "backbone"])
def test_a_name_that_a_recipe_cannot_hold_is_refused_by_its_key(key: str):
    plain = {"root": LATIN, "use": "folder"} if key == "data" else LATIN
    with pytest.raises(RecipeError, match=rf"^recipe\.{key}.*caf\\xe9.*UTF-8.*link"):
        Recipe.from_plain({key: plain})


@pytest.mark.slow
@pytest.mark.parametrize("through", ["folder", "timm"])
def test_such_images_are_trained_on_and_broken_ones_are_named(through: str, tmp_path: Path):
    for number in range(12):
        image_file(tmp_path / "data" / "cat", f"{LATIN}{number}.png", shade=20 * number)
    image_file(tmp_path / "data" / f"dog {LATIN}", "a.png")
    image_file(tmp_path / "data" / f"dog {LATIN}", f"{LATIN}\x1b[31m.png").write_bytes(b"no image")
    data = f'data={{use="{through}", root="{tmp_path / "data"}", size=32}}'
    words = ["train", "--set", data, *TINY, "--set", "train.steps=6", "--set", "train.max_broken=1.0"]
    result = CliRunner().invoke(main, [*words, "--out", str(tmp_path / "out")])
    assert result.exit_code == 0, result.output
    assert "\x1b" not in result.output
    assert "caf\\xe9\\x1b[31m.png" in (tmp_path / "out" / "skipped.txt").read_text(encoding="utf-8")
    assert CliRunner().invoke(main, ["train", "--out", str(tmp_path / "out"), "--resume"]).exit_code == 0


@pytest.mark.slow
def test_such_images_are_previewed_and_such_folders_written_to(tmp_path: Path):
    image = image_file(tmp_path / LATIN, f"{LATIN}.png")
    out = tmp_path / LATIN / f"{LATIN} preview.png"
    result = CliRunner().invoke(main, ["preview", str(image), "--out", str(out)])
    assert result.exit_code == 0, result.output
    assert out.exists()
    run = tmp_path / LATIN / "run"
    assert CliRunner().invoke(main, ["train", *TINY, "--out", str(run)]).exit_code == 0
    result = CliRunner().invoke(main, ["evaluate", str(run), "--with", "knn:3"])
    assert result.exit_code == 0, result.output
    result = CliRunner().invoke(main, ["export", str(run), str(tmp_path / LATIN / "model")])
    assert result.exit_code == 2
    assert "caf\\xe9" in result.output
    assert CliRunner().invoke(main, ["export", str(run), str(tmp_path / "model")]).exit_code == 0
    result = CliRunner().invoke(main, ["compare", str(run), "--out", str(tmp_path / LATIN / "report")])
    assert result.exit_code == 0, result.output
