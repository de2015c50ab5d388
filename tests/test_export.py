"""An encoder written for others gives them the features that the run itself gives."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import attrs
import pytest
import timm
import torch
from click.testing import CliRunner, Result
from helpers import REGISTRY, Images, noise_images, random_images, tiny_recipe, tiny_session
from rich.console import Console
from safetensors.torch import load_file
from test_matrix import BACKBONES
from torch import Tensor, nn

from maskzoo import MaskZooError, Recipe, RecipeError
from maskzoo.backbones.adapter import TimmBackbone
from maskzoo.cli import main
from maskzoo.export import export, features
from maskzoo.run import run
from maskzoo.trained import Trained
from maskzoo.weights import load_weights

pytestmark = pytest.mark.slow

VIT = BACKBONES["vit"]
CASES: dict[str, tuple[dict[str, Any], int]] = {  # a backbone, and the channels of its images
    **{name: (BACKBONES[name], 3) for name in ("vit", "eva", "beit", "swin", "hiera", "convnext", "resnet")},
    "resnet, masked": (BACKBONES["resnet, masked"], 3),
    "vit, mask token": (BACKBONES["vit, mask token"], 3),
    "vit, sin-cos": ({**VIT, "position": "sin-cos"}, 3),
    "vit, 32 x 48 in 4 channels": ({**VIT, "image_size": [32, 48]}, 4),
    "swin, 128 x 192": ({**BACKBONES["swin"], "image_size": [128, 192]}, 3),
}


def trained(backbone: Any, objective: Any, channels: int = 3) -> Trained:
    """A run that has led somewhere, whose data are gone; nothing is where it began."""
    data: Images = noise_images(4, channels=channels, labelled=True)
    session = tiny_session("random", data, backbone=backbone, objective=objective, masking={"ratio": 0.5})
    model: Any = session.objective
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for value in model.state_dict().values():  # running averages too
            if value.is_floating_point():
                value += 0.05 * torch.rand(value.shape, generator=generator)
    return Trained(Path("x"), Recipe.from_plain(session.recipe), model.eval(), session.strategy, 3, REGISTRY)


def opened(folder: Path, **options: Any) -> Any:
    return timm.create_model(f"local-dir:{folder}", pretrained=True, **options).eval().requires_grad_(False)


@pytest.fixture(scope="module")
def plain() -> Trained:
    return trained(VIT, {"use": "reconstruct"})


def images_for(run: Trained) -> Tensor:
    height, width = run.image_size
    return random_images(3, run.backbone.channels, height, width, seed=5)


@pytest.mark.parametrize("name", CASES)
@pytest.mark.sampled(3)
def test_timm_makes_the_same_features(name: str, tmp_path: Path):
    backbone, channels = CASES[name]
    run = trained(backbone, {"use": "masksub"}, channels)
    said = export(run, "timm", tmp_path / "encoder")
    model, images = opened(tmp_path / "encoder"), images_for(run)
    run.objective.requires_grad_(False)
    expected = run.backbone(images)
    torch.testing.assert_close(features(model, images, run.backbone.prefix), expected, rtol=1e-3, atol=1e-4)
    assert expected.std() > 1e-3
    left_out = name in ("hiera", "convnext")  # a norm stands between timm's pooling and its head
    assert ("the classifier is left out: timm pools otherwise in front of it" in said) is left_out
    assert (model.num_classes == 0) is left_out
    if not left_out:
        torch.testing.assert_close(model(images), run.objective.predict(images), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("name", ["vit", "eva", "beit"])
def test_a_classifier_on_the_class_token_is_exported(name: str, tmp_path: Path):
    run = trained(BACKBONES[name], {"use": "classify", "pooling": "class"})
    assert any("behind timm's pooling 'token'" in sentence for sentence in export(run, "timm", tmp_path / "new"))
    images = images_for(run)
    foretold = run.objective.predict(images).detach()
    torch.testing.assert_close(opened(tmp_path / "new")(images), foretold, rtol=1e-3, atol=1e-4)


HEADLESS = {
    **{name: CASES[name] for name in ("vit", "eva", "beit", "swin", "vit, 32 x 48 in 4 channels")},
    "vit, pooled": ({**VIT, "options": {**VIT["options"], "global_pool": "avg"}}, 3),
}


@pytest.mark.parametrize("name", HEADLESS)
@pytest.mark.sampled(1)
def test_an_encoder_without_a_classifier_takes_one_of_timms(name: str, tmp_path: Path):
    backbone, channels = HEADLESS[name]
    run = trained(backbone, {"use": "reconstruct"}, channels)
    export(run, "timm", tmp_path / "new")
    images = images_for(run)
    expected = run.backbone(images).detach()
    for options in ({"num_classes": 5}, {"num_classes": 5, "global_pool": "avg"}):
        model = opened(tmp_path / "new", **options)
        assert model(images).shape == (3, 5)
        torch.testing.assert_close(features(model, images, run.backbone.prefix), expected, rtol=1e-3, atol=1e-4)
    assert opened(tmp_path / "new")(images).shape == (3, run.backbone.dim)


@pytest.mark.slow
def test_what_timm_would_make_otherwise_is_not_written(plain: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("maskzoo.export.features", lambda *_: torch.zeros(2, 17, 24))
    with pytest.raises(MaskZooError, match="does not make the same features"):
        export(plain, "timm", tmp_path / "new")
    assert list(tmp_path.iterdir()) == []


def test_what_timm_says_of_its_own_weights_is_not_said_of_these(plain: Trained, tmp_path: Path):
    export(plain, "timm", tmp_path / "new")
    config = json.loads((tmp_path / "new" / "config.json").read_text())["pretrained_cfg"]
    assert not {"license", "tag", "url", "hf_hub_id", "mean", "std"} & config.keys()
    assert config["input_size"] == [3, 32, 32]


@pytest.mark.parametrize("to", ["timm", "safetensors"])
def test_nothing_is_overwritten(to: str, plain: Trained, tmp_path: Path):
    (tmp_path / "note.txt").write_text("mine")
    for folder in (tmp_path, tmp_path / "note.txt"):
        with pytest.raises(RecipeError, match="exists already, and nothing is overwritten"):
            export(plain, to, folder)
    assert [path.read_text() for path in tmp_path.iterdir()] == ["mine"]


def test_an_empty_folder_is_written_into_wherever_one_stands(
    plain: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    (tmp_path / "inner").mkdir()
    monkeypatch.chdir(tmp_path / "inner")
    export(plain, "safetensors", Path("."))
    assert {path.name for path in Path().iterdir()} == {"encoder.safetensors", "config.json", "README.md"}
    assert [path.name for path in tmp_path.iterdir()] == ["inner"]
    with pytest.raises(RecipeError, match=r"'\.\.' exists already"):
        export(plain, "safetensors", Path(".."))


@pytest.mark.parametrize("name", ["n" * 300, "n" * 253, "file/new"])
def test_a_folder_that_cannot_be_written_is_named(name: str, plain: Trained, tmp_path: Path):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(MaskZooError, match=f"{name}' cannot be written: "):
        export(plain, "safetensors", tmp_path / name)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_data_that_are_gone_are_said(plain: Trained, tmp_path: Path):
    gone = attrs.evolve(plain, recipe=tiny_recipe(data={"use": "folder", "root": str(tmp_path / "nowhere")}))
    said = export(gone, "timm", tmp_path / "new")
    assert said[-1].endswith("cannot be opened; timm will use ImageNet's mean and deviation")
    config = timm.data.resolve_model_data_config(opened(tmp_path / "new"))
    assert (config["mean"], config["std"]) == (timm.data.IMAGENET_DEFAULT_MEAN, timm.data.IMAGENET_DEFAULT_STD)
    assert not any("timm" in sentence for sentence in export(gone, "safetensors", tmp_path / "other"))


def test_a_backbone_that_is_not_timms_goes_into_a_plain_file(
    plain: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("maskzoo.export.TimmBackbone", nn.Conv3d)
    with pytest.raises(RecipeError, match="is no timm model; --to safetensors takes any"):
        export(plain, "timm", tmp_path / "new")
    export(plain, "safetensors", tmp_path / "new")
    assert load_file(tmp_path / "new" / "encoder.safetensors").keys() == plain.backbone.state_dict().keys()


# --------------------------------------------------------------------------------------------------------- a whole run
@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    sections = {"train": {"steps": 2, "batch_size": 4, "pictures": 0}, "evaluation": [], "optimizer": {"lr": 0.01}}
    recipe = tiny_recipe("random", backbone=VIT, objective={"use": "masksub"}, data="digits", **sections)
    return run(recipe, REGISTRY, Console(quiet=True), tmp_path_factory.mktemp("runs") / "run")


def exported(*arguments: str) -> Result:
    return CliRunner().invoke(main, ["export", *arguments])


@pytest.mark.slow
def test_the_command_writes_what_timm_opens_with_fitting_transforms(folder: Path, tmp_path: Path):
    result = exported(str(folder), "--to", "timm", str(tmp_path / "new"))
    assert result.exit_code == 0, result.output
    model = opened(tmp_path / "new")
    config = timm.data.resolve_model_data_config(model)
    digits = REGISTRY.classes("dataset")["digits"]()
    assert config["input_size"] == (1, 32, 32)
    assert (list(config["mean"]), list(config["std"])) == (list(digits.mean), list(digits.std))
    assert (config["crop_pct"], config["interpolation"]) == (1.0, "bicubic")
    assert model.num_classes == 10
    readme = (tmp_path / "new" / "README.md").read_text()
    assert len(readme.splitlines()) == 3  # the model, its classes, and how it came to be
    assert f"timm.create_model('local-dir:{tmp_path / 'new'}', pretrained=True)" in readme
    assert "objective masksub, masker random, data digits, step 2" in readme


def test_the_plain_file_starts_another_run(folder: Path, tmp_path: Path):
    assert exported(str(folder), "--to", "safetensors", str(tmp_path / "new")).exit_code == 0
    config = json.loads((tmp_path / "new" / "config.json").read_text())
    assert config["backbone"]["timm"] == "vit_tiny_patch16_224"
    assert len(config["mean"]) == len(config["std"]) == 1
    other = tiny_session("random", noise_images(4, channels=1), backbone=VIT).objective.backbone
    assert isinstance(other, TimmBackbone)
    load_weights(other, tmp_path / "new" / "encoder.safetensors")
    theirs = load_file(tmp_path / "new" / "encoder.safetensors")
    assert all(torch.equal(theirs[name], value) for name, value in other.model.state_dict().items())


def test_a_folder_that_is_no_run_is_refused(tmp_path: Path):
    result = exported(str(tmp_path), "--to", "timm", str(tmp_path / "new"))
    assert (result.exit_code, "is no run" in result.output) == (2, True)
