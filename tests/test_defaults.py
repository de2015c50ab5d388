"""Which recipe a command line means: what is left open, what a flag keeps, and what it leaves out."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from helpers import noise_images
from made_up import registry_with
from PIL import Image

from maskzoo import Recipe, RecipeError, Registry, Strategy, define
from maskzoo.build import build, make_backbone
from maskzoo.cli import main
from maskzoo.cost import flops_per_image
from maskzoo.defaults import packaged, settled
from maskzoo.flags import changed
from maskzoo.recipe import make, make_dial, put_beside, read, write

ROOT = Path(__file__).parents[1]
REGISTRY = Registry()


def plain(*settings: str, recipe: Path | None = None, said: list[str] | None = None, **flags: str) -> dict[str, Any]:
    """What a command line makes of a recipe."""
    notes: list[str] = [] if said is None else said
    return changed(recipe, REGISTRY, settings, note=notes.append, **flags)


def resolved(use: Any, kind: Any = "objective") -> Any:
    return make(REGISTRY, kind, use, "here")


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Twenty-two images of noise."""
    for number in range(22):
        pixels = torch.randint(256, (40, 40, 3), generator=torch.Generator().manual_seed(number), dtype=torch.uint8)
        (tmp_path / "photos").mkdir(exist_ok=True)
        Image.fromarray(pixels.numpy()).save(tmp_path / "photos" / f"{number}.png")
    return tmp_path / "photos"


def written(folder: Path, **sections: Any) -> Path:
    (folder / "recipe.toml").write_text(write(sections))
    return folder / "recipe.toml"


# ------------------------------------------------------------------------------------------------- which recipe it is
@pytest.mark.parametrize("flags", [{}, {"objective": "reconstruct"}, {"data": "digits"}, {"masker": "clmae"}], ids=str)
def test_what_names_nothing_new_is_the_shipped_digits_recipe(flags: dict[str, str]):
    made, shipped = Recipe.from_plain(plain(**flags)), Recipe.from_plain(packaged("digits"))
    assert (made.backbone, made.optimizer, made.train) == (shipped.backbone, shipped.optimizer, shipped.train)
    assert made.objective == shipped.objective
    assert made.train.batch_size == 16


def test_the_shipped_recipe_is_among_the_recipes():
    assert read(ROOT / "recipes" / "digits.toml") == packaged("digits")


@pytest.mark.parametrize(
    "flags",
    [{"backbone": "vit_base_patch16_224"}, {"objective": "distill"}, {"data": "cifar10"}, {"backbone": "resnet18"}],
    ids=str,
)
def test_a_flag_for_anything_else_brings_the_classes_own_defaults(flags: dict[str, str]):
    recipe = settled(Recipe.from_plain(plain(**flags)), 50_000)
    objective = resolved(recipe.objective)
    assert (objective.decoder_dim, objective.decoder_depth) == (512, 8)
    assert (recipe.train.epochs, recipe.train.batch_size) == (100, 256)
    assert recipe.optimizer.lr["start"] == pytest.approx(1.5e-4)


def test_a_named_backbone_is_the_real_one_even_where_the_digits_recipe_shrinks_it():
    backbone = make_backbone(plain(backbone="vit_tiny_patch16_224")["backbone"], noise_images(), REGISTRY)
    assert backbone.dim == 192


@pytest.mark.slow
def test_your_own_images_alone_are_learnt_by_a_small_vit(photos: Path):
    recipe = Recipe.from_plain(plain(data=str(photos)))
    assert make_backbone(recipe.backbone, noise_images(), REGISTRY).dim == 384
    assert resolved(recipe.objective).target == "norm_pixels"


def test_a_recipe_file_that_leaves_sections_open_gets_the_classes_defaults_too(tmp_path: Path):
    recipe = Recipe.from_plain(plain(recipe=written(tmp_path, data="digits")))
    assert resolved(recipe.objective).decoder_dim == 512
    assert recipe.train.epochs == 100


# ------------------------------------------------------------------------------------------------- what is left open
@pytest.mark.parametrize(
    ("images", "shares", "batch"),
    [(22, 1, 5), (2, 1, 1), (1437, 1, 256), (1000, 1, 250), (0, 1, 256), (22, 2, 4), (22, 8, 8)],
)
def test_a_batch_is_a_quarter_of_the_images_and_at_most_256(images: int, shares: int, batch: int):
    assert settled(Recipe(), images, shares).train.batch == batch


def test_the_rate_follows_the_batch_and_a_table_without_use_changes_one_option_of_it():
    recipe = Recipe.from_plain({"optimizer": {"lr": {"warmup": 0.2}}, "train": {"batch_size": 64}})
    lr = settled(recipe, 1000).optimizer.lr
    assert lr == {"use": "cosine", "start": 1.5e-4 / 4, "end": 0.0, "warmup": 0.2}
    assert settled(Recipe.from_plain({"optimizer": {"lr": 0.1}}), 1000).optimizer.lr == 0.1


def test_a_maskers_own_rate_is_the_models_where_it_is_left_open():
    own = {"masking": {"optimizer": {"weight_decay": 0.0}}, "optimizer": {"lr": 0.25}}
    assert settled(Recipe.from_plain(own), 1000).masking.optimizer.lr == 0.25


def test_a_session_writes_down_what_was_open():
    small = {"timm": "test_vit", "patch_size": 8}
    recipe = Recipe.from_plain({"backbone": small, "objective": "reconstruct:16:1", "train": {"precision": "fp32"}})
    session = build(recipe, noise_images(40), REGISTRY, steps_in_epoch=4)
    assert session.recipe["train"]["batch_size"] == 10
    assert session.recipe["optimizer"]["lr"]["start"] == pytest.approx(1.5e-4 * 10 / 256)
    assert session.steps == 400


def test_a_run_says_what_it_trains_with_before_it_begins(photos: Path, tmp_path: Path):
    small = ["--backbone", "test_vit", "--objective", "reconstruct:16:1"]
    quick = ["--set", "train.steps=1", "--set", "evaluation=[]", "--set", "train.pictures=0"]
    arguments = ["train", "--data", str(photos), *small, *quick, "--out", str(tmp_path / "run")]
    result = CliRunner().invoke(main, arguments, env={"COLUMNS": "200"})
    assert result.exit_code == 0, result.output
    before = result.output.split("step 1/1")[0]
    for words in ("steps of 5 images", "epochs", "cosine", "decoder_dim 16, decoder_depth 1"):
        assert words in before


# ----------------------------------------------------------------------------------------------- what a flag keeps
def test_a_name_that_the_recipe_has_keeps_its_options(tmp_path: Path):
    sections: dict[str, Any] = {
        "data": {"use": "cifar10", "root": "there"},
        "backbone": {"timm": "vit_tiny_patch16_224", "options": {"depth": 2}},
        "objective": {"use": "reconstruct", "decoder_dim": 64},
        "masking": {
            "strategy": {"use": "clmae", "depth": 2},
            "curriculum": {"use": "linear", "start": 0.5},
            "ratio": {"use": "linear", "start": 0.25, "end": 0.5},
        },
    }
    flags = {"data": "cifar10", "backbone": "vit_tiny_patch16_224", "objective": "reconstruct"}
    more = {"masker": "clmae", "schedule": "linear", "ratio": "linear"}
    assert plain(recipe=written(tmp_path, **sections), **flags, **more) == sections


def test_options_behind_a_name_go_before_those_of_the_recipe(tmp_path: Path):
    sections = {"masking": {"strategy": {"use": "clmae", "depth": 2, "heads": 2}}}
    made = plain(recipe=written(tmp_path, **sections), masker="clmae:3")
    assert made["masking"]["strategy"] == {"use": "clmae", "depth": 3, "heads": 2}


@pytest.mark.parametrize(
    ("name", "recipe", "kept"),
    [
        ("resnet18", "mae-cifar10", {}),
        ("swin_tiny_patch4_window7_224", "compare-cifar10", {}),
        ("test_vit", "compare-cifar10", {"patch_size": 4, "position": "sin-cos", "init": "mae"}),
        ("beit_base_patch16_224", "clmae-cifar10", {"patch_size": 4}),
        ("resnet18", "masksub-finetune", {"image_size": 224, "drop_path": 0.1}),
    ],
)
def test_a_backbone_of_another_family_takes_over_what_it_has_too_and_says_what_not(
    name: str, recipe: str, kept: dict[str, Any]
):
    said: list[str] = []
    path = ROOT / "recipes" / f"{recipe}.toml"
    made = plain(recipe=path, said=said, backbone=name)
    assert made["backbone"] == {"timm": name, **kept}
    left_out = read(path)["backbone"].keys() - {"timm", *kept}
    assert len(said) == bool(left_out)
    assert all(f"backbone.{key}" in said[0] for key in left_out)


@pytest.mark.slow
def test_cost_of_a_recipe_with_a_backbone_of_another_family_is_counted():
    result = CliRunner().invoke(
        main, ["cost", str(ROOT / "recipes/compare-cifar10.toml"), "--backbone", "resnet10t", "--device", "cpu"]
    )
    assert result.exit_code == 0, result.output


def test_another_objective_takes_over_its_decoder_and_leaves_a_target_out(tmp_path: Path):
    said: list[str] = []
    old = {"use": "reconstruct", "decoder_dim": 64, "target": "pixels", "loss": "l1"}
    made = plain(recipe=written(tmp_path, objective=old), objective="distill", said=said)
    assert resolved(made["objective"]).decoder_dim == 64
    assert "target" not in made["objective"]
    assert "objective.target" in said[0]


def test_an_option_is_not_taken_over_where_its_value_is_none_there(tmp_path: Path):
    old = {"use": "masksub", "loss": "binary"}
    made = plain(recipe=written(tmp_path, objective=old), objective="reconstruct")
    assert made["objective"] == "reconstruct"


@pytest.mark.parametrize(
    ("old", "masker"),
    [
        ({"use": "mix", "parts": ["random", "block"], "weights": [1, 2]}, "union"),
        ({"use": "attmask", "hints": 0.1}, "block"),
        ({"use": "clmae", "depth": 5}, "clmae-of-another"),
    ],
)
def test_another_masker_takes_no_option_over_and_says_which_are_left_out(old: dict, masker: str, tmp_path: Path):
    @define
    class Another(Strategy):
        name = "clmae-of-another"
        depth: int = 1

    said: list[str] = []
    given = {"recipe": written(tmp_path, masking={"strategy": old}), "masker": masker, "note": said.append}
    assert changed(registry=registry_with(Another), settings=(), **given)["masking"]["strategy"] == masker
    assert all(f"strategy.{key}" in said[0] for key in old.keys() - {"use"})
    given["masker"] = f"{masker}:3"
    assert changed(registry=registry_with(Another), settings=(), **given)["masking"]["strategy"] == f"{masker}:3"


def test_a_curriculum_stays_with_a_masker_that_follows_one_and_goes_with_one_that_does_not(tmp_path: Path):
    said: list[str] = []
    path = written(tmp_path, masking={"strategy": "attmask", "curriculum": "linear:0:-0.5"})
    assert plain(recipe=path, masker="clmae")["masking"]["curriculum"] == "linear:0:-0.5"
    assert plain(recipe=path, masker="random", said=said)["masking"] == {"strategy": "random"}
    assert "curriculum" in said[0]
    assert plain(recipe=path, masker="random", schedule="adversary")["masking"]["curriculum"] == "adversary"


def test_another_folder_keeps_how_images_are_read(photos: Path, tmp_path: Path):
    path = written(tmp_path, data={"use": "folder", "root": "old", "size": 48})
    assert plain(recipe=path, data=str(photos))["data"] == {"use": "folder", "root": str(photos), "size": 48}


def test_a_flag_with_a_name_that_is_none_is_refused_where_it_is_made(tmp_path: Path):
    path = written(tmp_path, objective={"use": "reconstruct", "decoder_dim": 64})
    assert plain(recipe=path, objective="reconstrct")["objective"] == "reconstrct"


# ------------------------------------------------------------------------------------------------------ single keys
def test_a_key_is_set_beside_the_defaults_of_an_open_section_at_any_depth():
    made: dict[str, Any] = {"masking": {"ratio": 0.5}}
    put_beside(made, "masking.strategy.hints", 0.1)
    put_beside(made, "teacher.decay.start", 0.9)
    assert made["masking"] == {"ratio": 0.5, "strategy": {"use": "random", "hints": 0.1}}
    assert made["teacher"]["decay"] == {"use": "cosine", "start": 0.9, "end": 1.0}


def test_an_option_of_an_evaluator_is_set_by_its_name(tmp_path: Path):
    path = written(tmp_path, evaluation=["knn", {"use": "linear", "epochs": 9}, "linear"])
    made = plain("linear.epochs=5", "linear.lr=1", recipe=path)["evaluation"]
    assert made == ["knn", *[{"use": "linear", "epochs": 5, "lr": 1}] * 2]
    assert plain("knn.k=5")["evaluation"][0] == {"use": "knn", "k": 5}


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ("linear.epochs=5", "evaluation="),
        ("attmask.hints=0.1", "masking.strategy.hints"),
        ("reconstruct.decoder_dim=8", "objective.decoder_dim"),
        ("tensorboard.flush_seconds=1", "train.loggers[0].flush_seconds"),
    ],
)
def test_an_option_below_a_plugins_name_is_refused_with_the_right_key(setting: str, words: str):
    with pytest.raises(RecipeError) as caught:
        plain(setting)
    assert setting.split("=")[0] in str(caught.value)
    assert words in str(caught.value)


def test_every_recipe_says_what_it_is_trained_with():
    for path in sorted((ROOT / "recipes").glob("*.toml")):
        sections = tomllib.loads(path.read_text())
        assert {"data", "backbone", "objective", "optimizer", "train"} <= sections.keys(), path
        assert "batch_size" in sections["train"], path
        assert "lr" in sections["optimizer"], path


@pytest.mark.slow
def test_what_digits_cost_is_what_they_cost_before():
    assert flops_per_image(Recipe.from_plain(plain()), REGISTRY).total == pytest.approx(0.02533e9, rel=1e-3)


# ---------------------------------------------------------------------------------------------------------- resuming
def refusal(*arguments: str) -> str:
    result = CliRunner().invoke(main, list(arguments), env={"COLUMNS": "400"})
    assert result.exit_code == 2, result.output
    (line,) = result.stderr.strip().splitlines()
    return line


def test_a_misspelt_run_is_not_begun_anew_but_the_nearest_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    for name in ("mine", "other"):
        (tmp_path / "runs" / name).mkdir(parents=True)
        (tmp_path / "runs" / name / "recipe.toml").write_text("")
    for out in ("runs/mein", "mine", "run/mine"):
        line = refusal("train", "--out", out, "--resume")
        assert line.startswith("Error: --resume: ")
        assert "'runs/mine'" in line
        assert not Path(out).exists()
    assert "--out" in refusal("train", "--out", "runs/mein", "--resume", "--device", "cpu")
    (tmp_path / "empty").mkdir()
    refusal("train", "--out", "empty", "--resume")
    assert not any((tmp_path / "empty").iterdir())


# ------------------------------------------------------------------------------------------- numbers that cannot be
@pytest.mark.parametrize(
    ("arguments", "path"),
    [
        ("--seed -1", "recipe.train.seed"),
        ("--seed 9223372036854775808", "recipe.train.seed"),
        ("--epochs 0", "recipe.train.epochs"),
        ("--set train.seed=-1", "recipe.train.seed"),
        ("--set train.seed=1.5", "recipe.train.seed"),
        ("--set train.epochs=1.5", "recipe.train.epochs"),
        ("--set weights=", "recipe.weights"),
        ("--data cifar10 --set data.root=", "recipe.data.root"),
        ("--set data.use=folder --set data.root=", "recipe.data.root"),
        ("--set data.use=shards --set data.root=", "recipe.data.root"),
        ("--set data.use=fashion-mnist --set data.root=", "recipe.data.root"),
        ("--set evaluation=[{use='linear',seed=-1}]", "recipe.evaluation[0].seed"),
        ("--ratio linear:0.5", "recipe.masking.ratio"),
    ],
)
def test_a_value_that_cannot_be_is_refused_with_its_key(arguments: str, path: str, tmp_path: Path):
    line = refusal("train", *arguments.split(), "--out", str(tmp_path / "out"))
    assert line.startswith(f"Error: {path}: ")
    assert not (tmp_path / "out").exists()


def test_a_fraction_of_an_epoch_is_refused_by_the_command_line():
    result = CliRunner().invoke(main, ["train", "--epochs", "1.5"])
    assert result.exit_code == 2
    assert "--epochs" in result.output


@pytest.mark.parametrize(
    ("use", "open_ends"),
    [
        ("linear:0.5", "leaves end open"),
        ("linear", "leaves start and end open"),
        ("step:0.5", "leaves end open"),
        ("cyclic:0.5", "leaves end open"),
        ({"use": "cosine", "end": 0.0}, "leaves start open"),
    ],
    ids=str,
)
def test_a_schedule_of_anything_but_the_factor_has_to_say_both_of_its_ends(use: Any, open_ends: str):
    with pytest.raises(RecipeError, match=open_ends):
        make_dial(REGISTRY, use, "recipe.optimizer.lr")
    with pytest.raises(RecipeError, match=rf"weights\[1\]: .*{open_ends}"):
        make(REGISTRY, "strategy", {"use": "mix", "parts": ["random", "block"], "weights": [1, use]}, "here")
    make(REGISTRY, "schedule", use, "recipe.masking.curriculum")


def test_a_wrong_key_of_a_schedule_goes_before_its_open_ends():
    with pytest.raises(RecipeError, match="stat: no such key; did you mean 'start'"):
        make_dial(REGISTRY, {"use": "linear", "stat": 1}, "recipe.masking.ratio")
