"""What a stranger meets at the command line: answers to good questions, and one sentence to each bad one."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import ClassVar

import pytest
import torch
from click.testing import CliRunner, Result
from helpers import noise_images
from PIL import Image

from maskzoo import Registry, Strategy, define
from maskzoo.build import make_backbone
from maskzoo.cli import main
from maskzoo.flags import changed
from maskzoo.recipe import read, write
from maskzoo.registry import KINDS
from maskzoo.show import description, first_line

QUICK = ["--set", "train.steps=2", "--batch-size", "16", "--set", "train.pictures=0", "--set", "evaluation=[]"]


# 64 patches as by default, but built in a fraction of the time.
SMALL = ["--set", "backbone.use=vit", "--set", "backbone.timm=test_vit", "--set", "backbone.options.depth=1"]


def maskzoo(*arguments: str) -> Result:
    """Run the program in this process, on a wide terminal."""
    return CliRunner().invoke(main, list(arguments), env={"COLUMNS": "400"}, prog_name="maskzoo")


def train(*arguments: str) -> Result:
    """`maskzoo train`, for two steps if what is asked for is taken after all."""
    return maskzoo("train", *SMALL, *QUICK, *arguments)


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder to be in."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def contents(folder: Path) -> dict[str, str]:
    """Every path below a folder, and a hash of what is in it."""
    return {
        str(path.relative_to(folder)): hashlib.md5(path.read_bytes()).hexdigest() if path.is_file() else "folder"
        for path in folder.rglob("*")
    }


def refused(*arguments: str) -> str:
    """The one sentence with which the program refuses, having touched nothing."""
    before = contents(Path.cwd())
    result = maskzoo(*arguments)
    assert result.exit_code == 2, (result.output, result.exception)
    assert contents(Path.cwd()) == before
    assert isinstance(result.exception, SystemExit)  # not some error that nobody caught
    assert result.stdout == ""
    (line,) = result.stderr.strip().splitlines()
    assert line.startswith("Error: ")
    return line.removeprefix("Error: ")


def refused_training(*arguments: str) -> str:
    small = [] if "--backbone" in arguments else SMALL
    return refused("train", *small, *QUICK, *arguments)


# ------------------------------------------------------------------------------------------------------- wrong names
@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ("--masker atmask", "recipe.masking.strategy.use: no strategy named 'atmask'; did you mean 'attmask'?"),
        (
            "--masker clmae --schedule adversry",
            "recipe.masking.curriculum.use: no schedule named 'adversry'; did you mean 'adversary'?",
        ),
        (
            "--backbone vit_tinny_patch16_224",
            "recipe.backbone.timm: no timm model named 'vit_tinny_patch16_224'; did you mean 'vit_tiny_patch16_224'?",
        ),
        (
            "--objective reconstrct",
            "recipe.objective.use: no objective named 'reconstrct'; did you mean 'reconstruct'?",
        ),
        ("--data digit", "recipe.data: 'digit' is neither a folder nor a data set; did you mean 'digits'?"),
        ("--set train.epoch=3", "recipe.train.epoch: no such key; did you mean 'epochs'?"),
        ("--set trian.epochs=3", "recipe.trian: no such key; did you mean 'train'?"),
        ("--set masking.strategy.hint=0.5 --masker attmask", "recipe.masking.strategy.hint: no such key; did you mean"),
        ("--set optimizer.lr.star=1", "recipe.optimizer.lr.star: no such key; did you mean 'start'?"),
        ("--set optimizer.use=adamww", "recipe.optimizer.use: no optimizer named 'adamww'; did you mean 'adamw'?"),
        ('--set evaluation=["kn"]', "recipe.evaluation[0].use: no evaluator named 'kn'; did you mean 'knn'?"),
        (
            "--set backbone.options.dept=2",
            "recipe.backbone.options: timm cannot build 'test_vit' with img_size (32, 32), ",
        ),
        ("--set nonsense", "--set: expected KEY=VALUE, got 'nonsense'"),
        ("--set =3", "'' is no key; write it like train.epochs"),
        ("--set train.epochs=five", "recipe.train.epochs: expected a whole number, got 'five'"),
        ("--set train.epochs=", "recipe.train.epochs: expected a whole number, got ''"),
    ],
)
@pytest.mark.sampled(8)
def test_a_wrong_name_is_refused_with_its_path_and_the_nearest(arguments: str, sentence: str):
    assert refused_training(*arguments.split()).startswith(sentence)


def test_an_unknown_masker_like_no_other_brings_all_that_are_known():
    sentence = refused_training("--masker", "zzz")
    assert all(name in sentence for name in ("attmask", "block", "clmae", "random"))


# ------------------------------------------------------------------------------------------------------- wrong numbers
@pytest.mark.parametrize(
    ("ratio", "words"),
    [
        ("1.0", "must be at least 0 and less than 1, got 1"),
        ("-0.1", "must be at least 0 and less than 1, got -0.1"),
        ("0", "hides nothing at ratio 0 of 64 patches"),
        ("0.999", "hides everything at ratio 0.999 of 64 patches"),
        ("linear:0.5:1.2", "must be at least 0 and less than 1, got 1.2"),
        ("linear:0.5:0.75:0:3", "gives 4 values, but 'linear' has 3 options"),
    ],
)
def test_a_ratio_that_cannot_be_is_refused(ratio: str, words: str):
    sentence = refused_training("--ratio", ratio)
    assert sentence.startswith("recipe.masking.ratio: ")
    assert words in sentence


def test_a_ratio_that_is_a_word_is_refused_with_what_a_ratio_is():
    assert "number" in refused_training("--ratio", "abc")


@pytest.mark.parametrize(
    ("arguments", "key"),
    [
        ("--epochs 0", "epochs"),
        ("--epochs -1", "epochs"),
        ("--batch-size 0", "batch_size"),
        ("--set train.steps=0", "steps"),
        ("--set train.workers=-1", "workers"),
    ],
)
def test_a_number_out_of_range_is_refused(arguments: str, key: str):
    sentence = refused_training(*arguments.split())
    assert sentence.startswith("recipe.train")
    assert key in sentence


@pytest.mark.parametrize(
    ("setting", "key"),
    [
        ("optimizer.lr=-1", "recipe.optimizer.lr"),
        ("teacher.decay=2", "recipe.teacher.decay"),
        ("train.max_broken=2", "recipe.train.max_broken"),
    ],
)
def test_a_number_that_ruins_the_run_is_refused(setting: str, key: str):
    # A teacher is needed, so that its decay matters.
    assert refused_training("--masker", "attmask", "--set", setting).startswith(key)


def test_a_batch_larger_than_the_data_is_refused():
    assert refused_training("--batch-size", "1438").startswith("recipe.train.batch_size: 1438 is more than the 1437 ")


@pytest.mark.parametrize("option", ["--epochs", "--batch-size", "--seed"])
def test_a_word_where_a_number_belongs_is_refused(option: str):
    result = maskzoo("train", option, "many")
    assert result.exit_code == 2
    assert f"Invalid value for '{option}': 'many' is not a valid integer." in result.stderr


# ------------------------------------------------------------------------------------------------- what does not fit
@pytest.mark.parametrize("masker", ["random", "block"])
def test_a_curriculum_for_a_masker_that_knows_no_hardness_is_refused_with_what_it_has_instead(masker: str):
    sentence = refused_training("--masker", masker, "--schedule", "adversary")
    assert sentence.startswith(f"recipe.masking.curriculum: strategy '{masker}' knows no hardness")
    assert "--ratio" in sentence


@pytest.mark.parametrize("value", ["-1", "0", "0.5"])
@pytest.mark.sampled(1)
def test_a_number_is_a_schedule_at_the_command_line_too(value: str):
    assert train("--masker", "attmask", "--schedule", value).exit_code == 0


def test_a_backbone_that_cannot_be_masked_is_refused():
    sentence = refused_training("--backbone", "mixer_b16_224")
    assert sentence.startswith(
        "recipe.backbone.timm: 'mixer_b16_224' is a MlpMixer, and no backbone adapter takes that"
    )
    assert "vit" in sentence


def test_an_image_that_patches_do_not_divide_is_refused_with_a_size_that_they_do():
    sentence = refused_training("--set", "backbone.image_size=30", "--set", "backbone.patch_size=4")
    assert sentence.startswith("recipe.backbone.image_size: an image of 30 x 30 pixels cannot be cut into patches of 4")
    assert any(size in sentence for size in ("28 x 28", "32 x 32"))


@pytest.mark.parametrize(
    ("setting", "path"),
    [
        ("backbone.patch_size=0", "recipe.backbone.patch_size: "),
        ("backbone.patch_size=-4", "recipe.backbone.patch_size: "),
        ("backbone.options.depth=0", "recipe.backbone.options"),
    ],
)
def test_a_backbone_of_no_size_is_refused_with_its_path(setting: str, path: str):
    assert refused_training("--set", setting).startswith(path)


def test_a_patch_size_that_is_a_word_is_refused_in_one_sentence():
    sentence = refused_training("--set", "backbone.patch_size=big")
    assert "'auto'" in sentence
    assert "got 'b'" not in sentence


def test_a_composite_whose_parts_round_differently_is_refused_with_both_counts_and_a_way_out():
    strategy = 'masking.strategy={ use = "mix", parts = ["random", "attmask"] }'
    sentence = refused_training("--set", strategy, "--ratio", "0.7")
    for words in ("'mix' round differently", "parts[0] 'random' 45", "parts[1] 'attmask' 44", "they agree at 0.703125"):
        assert words in sentence


@pytest.mark.parametrize("device", ["nonsense", "cuda:99"])
def test_a_device_that_is_not_there_is_refused(device: str):
    assert refused_training("--device", device).startswith(f"recipe.train.device: '{device}' cannot be used here: ")


def test_a_device_that_cannot_train_is_refused():
    assert refused_training("--device", "meta").startswith("recipe.train.device: 'meta' cannot be used here")


# ------------------------------------------------------------------------------------------------- files and folders
def test_data_from_an_empty_folder_is_refused(folder: Path):
    (folder / "empty").mkdir()
    assert refused_training("--data", "empty").startswith("recipe.data: 'empty' holds no images")


def test_data_from_a_folder_without_images_is_refused(folder: Path):
    (folder / "notes").mkdir()
    (folder / "notes" / "read.me").write_text("no images")
    assert refused_training("--data", "notes").startswith("recipe.data: 'notes' holds no images")


def test_data_from_a_folder_that_is_not_there_is_refused():
    assert refused_training("--data", "./photos").startswith(
        "recipe.data: './photos' is neither a folder nor a data set"
    )


def test_data_from_a_file_is_refused(folder: Path):
    (folder / "photo.png").write_bytes(b"not even an image")
    assert refused_training("--data", "photo.png").startswith("recipe.data: 'photo.png' is neither a folder nor")


def test_an_out_that_holds_something_is_refused_and_left_alone(folder: Path):
    (folder / "out").mkdir()
    (folder / "out" / "notes.txt").write_text("mine")
    sentence = refused_training("--out", "out")
    assert sentence.startswith("--out: 'out' holds something already")
    assert "--resume" not in sentence  # it is no run


def test_an_out_that_is_a_file_is_refused_and_left_alone(folder: Path):
    (folder / "out").write_text("mine")
    assert refused_training("--out", "out").startswith("--out: 'out' ")


def test_an_out_below_a_file_is_refused(folder: Path):
    (folder / "file").write_text("mine")
    assert refused_training("--out", "file/run").startswith("--out: ")


def test_resuming_without_out_is_refused():
    assert refused_training("--resume") == "--resume: say which run with --out"


def test_resuming_in_a_folder_that_holds_no_run_is_refused_and_leaves_it_alone(folder: Path):
    (folder / "out").mkdir()
    (folder / "out" / "notes.txt").write_text("mine")
    assert refused_training("--resume", "--out", "out").startswith("--resume: 'out' holds something, but no run")


def test_a_recipe_that_is_missing_or_no_toml_or_a_folder_is_refused(folder: Path):
    (folder / "bad.toml").write_text("train = = 3")
    (folder / "dir.toml").mkdir()
    assert refused("train", "missing.toml").startswith("the recipe 'missing.toml' is missing")
    assert refused("train", "bad.toml").startswith("the recipe 'bad.toml' is not valid TOML: ")
    assert refused("train", "dir.toml").startswith("the recipe 'dir.toml' cannot be read")


def test_what_is_wrong_in_a_recipe_file_is_refused_with_its_path(folder: Path):
    (folder / "recipe.toml").write_text('[masking]\nstrategy = { use = "mix", parts = [{ use = "blok" }] }\n')
    sentence = refused_training("recipe.toml")
    assert sentence == "recipe.masking.strategy.parts[0].use: no strategy named 'blok'; did you mean 'block'?"


# --------------------------------------------------------------------------------------------- what the options mean
def plain_values(*arguments: str, recipe: Path | None = None) -> dict[str, object]:
    """The plain values that a command line makes of a recipe."""
    context = main.commands["train"].make_context("train", list(arguments))
    changes = {name: value for name, value in context.params.items() if name not in {"recipe", "out", "resume"}}
    return changed(recipe, Registry(), **changes)


def test_options_come_on_top_of_a_recipe_file_and_set_on_top_of_options(folder: Path):
    path = folder / "recipe.toml"
    path.write_text(write({"train": {"epochs": 1, "seed": 7}, "masking": {"strategy": {"use": "clmae", "depth": 2}}}))
    plain = plain_values("--epochs", "2", "--masker", "attmask", "--set", "train.epochs=3", recipe=path)
    assert plain == {"train": {"epochs": 3, "seed": 7}, "masking": {"strategy": "attmask"}}


def test_the_last_of_two_settings_counts():
    assert plain_values("--set", "train.seed=1", "--set", "train.seed=2")["train"]["seed"] == 2


def test_a_key_set_in_a_section_of_defaults_keeps_the_others_of_it():
    options = plain_values("--set", "backbone.options.depth=2")["backbone"]["options"]
    assert options == {"embed_dim": 48, "depth": 2, "num_heads": 4}


@pytest.mark.slow
def test_another_backbone_keeps_how_images_are_cut_but_not_the_options_of_the_old_one():
    backbone = {"timm": "vit_tiny_patch16_224", "patch_size": 4, "options": {"depth": 4}}
    path = Path("recipe.toml")
    path.write_text(write({"backbone": backbone}))
    plain = plain_values("--backbone", "vit_small_patch16_224", recipe=path)
    backbone = make_backbone(plain["backbone"], noise_images(), Registry())
    assert (backbone.timm, backbone.patch_size) == ("vit_small_patch16_224", (4, 4))
    assert "options" not in plain["backbone"]
    assert plain_values("--backbone", "vit", recipe=path)["backbone"] == {"use": "vit", **read(path)["backbone"]}


def test_data_may_be_a_folder_or_a_name(folder: Path):
    (folder / "photos").mkdir()
    assert plain_values("--data", "photos")["data"] == {"use": "folder", "root": "photos"}
    assert plain_values("--data", "digits")["data"] == "digits"


def test_an_item_of_a_default_list_can_be_set():
    assert plain_values("--set", "evaluation[0].k=5")["evaluation"] == [{"use": "knn", "k": 5}, "classifier"]


def test_an_option_of_a_backbone_that_a_file_names_by_its_timm_name_can_be_set(folder: Path):
    (folder / "recipe.toml").write_text('backbone = "vit_small_patch16_224"')
    plain = plain_values("--set", "backbone.patch_size=4", recipe=folder / "recipe.toml")
    backbone = make_backbone(plain["backbone"], noise_images(), Registry())
    assert (backbone.timm, backbone.patch_size) == ("vit_small_patch16_224", (4, 4))


# ------------------------------------------------------------------------------------------------- list, show, plugins
def test_list_shows_every_kind_with_what_comes_with_maskzoo():
    result = maskzoo("list")
    assert result.exit_code == 0
    words = result.output.split()
    for title in ("strategies", "schedules", "backbones", "objectives", "datasets", "evaluators", "loggers"):
        assert title in words
    registry = Registry()
    assert all(name in words for kind in KINDS for name in registry.classes(kind))


def test_list_strategies_shows_strategies_alone_with_a_sentence_each():
    result = maskzoo("list", "strategies")
    assert result.exit_code == 0
    for name, cls in Registry().classes("strategy").items():
        (line,) = [line for line in result.output.splitlines() if line.split()[:1] == [name]]
        assert first_line(cls) in line
    assert "reconstruct" not in result.output
    assert "adversary-neutral-partner" not in result.output


def test_list_of_two_kinds_shows_both():
    output = maskzoo("list", "objectives", "backbones").output
    assert "reconstruct" in output
    assert "vit" in output
    assert "clmae" not in output


@pytest.mark.parametrize(("kind", "hint"), [("strategy", "strategies"), ("dataset", "datasets"), ("zzz", "strategies")])
def test_a_kind_that_is_none_is_refused_with_the_nearest(kind: str, hint: str):
    sentence = refused("list", kind)
    assert sentence.startswith(f"no kind '{kind}'; ")
    assert hint in sentence


def test_show_tells_what_a_masker_is():
    result = maskzoo("show", "attmask")
    assert result.exit_code == 0
    lines = [" ".join(line.split()) for line in result.output.splitlines()]
    assert lines[0] == "attmask, a strategy"
    assert "needs attention, teacher" in lines
    assert "default curriculum adversary" in lines
    assert "hints float = 0.0" in lines
    assert any(line.startswith("paper Kakogeorgiou et al.") and "2203.12719" in line for line in lines)
    assert any(line.startswith("from maskzoo ") and "entry point 'attmask'" in line for line in lines)


def test_show_tells_of_required_options_and_of_those_without_any():
    assert "value float required" in " ".join(maskzoo("show", "constant").output.split())
    assert "parts list of strategies required" in " ".join(maskzoo("show", "mix").output.split())
    assert "no options" in maskzoo("show", "random").output


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.sampled(3)
def test_show_knows_everything_that_list_names(kind: str):
    for name in Registry().classes(kind):
        result = maskzoo("show", name)
        assert result.exit_code == 0, name
        assert result.output.startswith(f"{name}, a")


@pytest.mark.parametrize(("name", "kind"), [("reconstruct", "objective"), ("knn", "evaluator")])
def test_show_speaks_english(name: str, kind: str):
    assert maskzoo("show", name).output.startswith(f"{name}, an {kind}")


def test_show_of_an_unknown_name_is_refused_with_the_nearest():
    assert refused("show", "atmask") == "nothing is named 'atmask'; did you mean 'attmask'?"
    assert refused("show", "nonsense").startswith("nothing is named 'nonsense'; known: ")


@define
class Bracketed(Strategy):
    """Hide by [a score] of each patch, see [/docs]."""

    name: ClassVar[str] = "bracketed"
    default_curriculum = {"use": "linear", "end": -0.5}


def rendered(renderable: object) -> str:
    from io import StringIO

    from rich.console import Console

    console = Console(file=StringIO(), width=400)
    console.print(renderable, highlight=False)
    return console.file.getvalue()


def test_show_prints_brackets_as_they_are():
    assert "Hide by [a score] of each patch, see [/docs]." in rendered(description("strategy", Bracketed, None))


def test_show_tells_a_default_curriculum_with_options():
    lines = [line for line in rendered(description("strategy", Bracketed, None)).splitlines() if "curriculum" in line]
    assert any("linear" in line and "-0.5" in line for line in lines)


def test_list_prints_brackets_as_they_are(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(Registry, "classes", lambda self, kind: {"bracketed": Bracketed})
    monkeypatch.setattr(Registry, "owner", lambda self, kind, name: None)
    result = maskzoo("list", "strategies")
    assert result.exit_code == 0
    assert "Hide by [a score] of each patch, see [/docs]." in result.output


def test_plugins_lists_every_plugin_with_its_distribution_and_what_it_offers():
    result = maskzoo("plugins")
    assert result.exit_code == 0
    lines = {line.split()[0]: " ".join(line.split()[1:]) for line in result.output.splitlines() if line.strip()}
    for plugin in Registry().plugins:
        offers = ", ".join(offer.name for offer in plugin.offers)
        assert lines[plugin.name] == f"{plugin.distribution} {plugin.version} {offers}"
    assert "could not be loaded" not in result.output


@pytest.mark.parametrize("command", ["train", "list", "show", "plugins"])
def test_every_command_explains_itself(command: str):
    result = maskzoo(command, "--help")
    assert result.exit_code == 0
    assert result.output.startswith(f"Usage: maskzoo {command}")


def test_version_is_told():
    assert maskzoo("--version").output.startswith("maskzoo, version ")


def test_an_unknown_command_is_refused():
    result = maskzoo("tain")
    assert result.exit_code == 2
    assert "No such command 'tain'" in result.stderr


# --------------------------------------------------------------------------------------------------------- it trains
@pytest.fixture
def photos(folder: Path) -> Path:
    """Twenty images of noise in two classes."""
    for number in range(20):
        place = folder / "photos" / ("cats" if number % 2 else "dogs") / f"{number}.png"
        place.parent.mkdir(parents=True, exist_ok=True)
        noise = torch.randint(256, (16, 16, 3), generator=torch.Generator().manual_seed(number), dtype=torch.uint8)
        Image.fromarray(noise.numpy()).save(place)
    return folder / "photos"


DECODER = ["--set", "objective.decoder_dim=16", "--set", "objective.decoder_depth=1"]
TINY = [*SMALL, *DECODER, "--set", "train.steps=2", "--batch-size", "4"]


def test_two_steps_leave_a_run_where_it_was_asked_for(folder: Path, photos: Path):
    result = maskzoo("train", *TINY, "--data", "photos", "--out", "there/run", "--masker", "block")
    assert result.exit_code == 0, (result.output, result.exception)
    run = folder / "there" / "run"
    assert {path.name for path in run.iterdir()} == {
        "recipe.toml",
        "environment.json",
        "metrics.jsonl",
        "evaluation.json",
        "masks",
        "checkpoints",
        "lock",
    }
    assert [json.loads(line)["step"] for line in (run / "metrics.jsonl").read_text().splitlines()] == [0, 1]
    assert read(run / "recipe.toml")["masking"]["strategy"]["use"] == "block"
    assert "there/run" in result.output
    assert not (folder / "runs").exists()

    before = contents(run)
    assert refused("train", *TINY, "--data", "photos", "--out", "there/run").startswith("--out: 'there/run' holds")
    assert contents(run) == before


@pytest.mark.slow
def test_runs_without_out_do_not_get_in_each_others_way(folder: Path, photos: Path):
    for _ in range(2):
        result = maskzoo("train", *TINY, "--data", "photos", "--set", "train.pictures=0", "--set", "evaluation=[]")
        assert result.exit_code == 0, (result.output, result.exception)
    assert {path.name for path in (folder / "runs").iterdir()} == {"random-folder-s0", "random-folder-s0-2"}


def test_a_run_that_is_resumed_under_another_recipe_is_refused_with_the_key(folder: Path, photos: Path):
    quick = [*TINY, "--data", "photos", "--out", "run", "--set", "train.pictures=0", "--set", "evaluation=[]"]
    assert maskzoo("train", *quick).exit_code == 0
    sentence = refused("train", *quick, "--resume", "--ratio", "0.5")
    assert sentence.startswith("--resume: the run in 'run' is of another recipe: ")
    assert "recipe.masking.ratio.value is 0.75 there and 0.5 here" in sentence


@pytest.mark.slow
def test_a_path_with_brackets_is_printed_as_it_is(photos: Path):
    result = maskzoo("train", *TINY, "--data", "photos", "--out", "run[a]", "--set", "train.pictures=0")
    assert "into run[a]" in result.output
