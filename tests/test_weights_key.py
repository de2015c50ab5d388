"""The key `weights` of a recipe: a text, or a table that chooses a part of the file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from click.testing import CliRunner

from maskzoo import Recipe, RecipeError, Registry
from maskzoo.cli import main
from maskzoo.compare.readings import read
from maskzoo.flags import changed
from maskzoo.plain import parse_toml
from maskzoo.recipe import WeightsRecipe, plain_of, write

REGISTRY = Registry()


def told_by(*settings: str, recipe: Path | None = None, **options: Any) -> Any:
    return plain_of(Recipe.from_plain(changed(recipe, REGISTRY, settings, **options)))["weights"]


def test_a_text_alone_is_the_file_and_stays_a_text_in_the_resolved_recipe():
    recipe = Recipe.from_plain({"weights": "mae.pth"})
    assert recipe.weights == WeightsRecipe("mae.pth")
    assert plain_of(recipe)["weights"] == "mae.pth"
    assert plain_of(Recipe.from_plain({"weights": {"file": "mae.pth"}}))["weights"] == "mae.pth"


def test_a_table_reads_back_to_the_same():
    held = {"file": "ijepa.pth", "part": "target_encoder", "grid": [2, 8]}
    recipe = Recipe.from_plain({"weights": held})
    assert plain_of(recipe)["weights"] == held
    assert Recipe.from_plain(parse_toml(write(plain_of(recipe)), "it")) == recipe


def test_a_part_may_be_set_whichever_way_the_file_was_named(tmp_path: Path):
    both = {"file": "x.pth", "part": "teacher"}
    assert told_by("weights.part=teacher", weights="x.pth") == both
    assert told_by("weights.file=x.pth", "weights.part=teacher") == both
    assert told_by("weights=x.pth", "weights.part=teacher") == both
    assert told_by('weights={file="x.pth",part="teacher"}') == both
    (tmp_path / "recipe.toml").write_text('weights = "x.pth"')
    assert told_by("weights.part=teacher", recipe=tmp_path / "recipe.toml") == both
    (tmp_path / "recipe.toml").write_text('weights = { file = "y.pth", part = "student" }')
    assert told_by(recipe=tmp_path / "recipe.toml", weights="x.pth") == "x.pth"  # another file has parts of its own


@pytest.mark.parametrize(
    ("held", "message"),
    [
        ("", "recipe.weights: is empty"),
        (5, "recipe.weights: expected a text or a table, got 5"),
        ({"part": "teacher"}, "recipe.weights.file: is required"),
        ({"file": " "}, "recipe.weights.file: is empty"),
        ({"file": "x", "part": ""}, "recipe.weights.part: is empty"),
        ({"file": "x", "grid": [2]}, "recipe.weights.grid: expected 2 values"),
        ({"file": "x", "grid": [0, 8]}, "recipe.weights.grid: must be"),
        ({"file": "x", "parts": "teacher"}, "recipe.weights.parts: no such key; did you mean 'part'"),
    ],
)
def test_what_is_wrong_with_it_is_said_with_its_key(held: Any, message: str):
    with pytest.raises(RecipeError) as caught:
        Recipe.from_plain({"weights": held})
    assert str(caught.value).startswith(message)


@pytest.mark.slow
def test_an_evaluation_takes_a_part_and_a_comparison_names_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    options = {"embed_dim": 8, "depth": 1, "num_heads": 1}
    model = timm.create_model("vit_tiny_patch16_224", img_size=8, patch_size=4, in_chans=1, num_classes=0, **options)
    state = model.state_dict()
    torch.save({"student": state, "teacher": {name: value + 1 for name, value in state.items()}}, "both.pth")
    words = (
        "--backbone vit_tiny_patch16_224 --data digits --with knn --device cpu --workers 0 --out e --weights both.pth"
    )
    keys = ["--set", "backbone.patch_size=4", "--set", f"backbone.options={str(options).replace(':', '=')}"]
    refused = CliRunner().invoke(main, ["evaluate", *words.split(), *keys])
    assert refused.exit_code == 2
    assert "--weights: 'both.pth' holds 'student'" in str(refused.exception or refused.output) + refused.output
    for part in ("student", "teacher"):
        done = CliRunner().invoke(main, ["evaluate", *words.split(), *keys, "--set", f"weights.part={part}"])
        assert done.exit_code == 0, done.output
        assert f"weights: taken from '{part}'" in done.output
    named = [f"vit_tiny_patch16_224 (both {part})" for part in ("student", "teacher")]
    assert [one.model for one in read(tmp_path / "e")] == named


def test_show_lists_the_keys_of_the_table():
    told = CliRunner().invoke(main, ["show", "weights"]).output
    assert all(f"weights.{key}" in told for key in ("file", "part", "grid"))
