"""What may go wrong while something is evaluated: a sentence each, and the rest is measured all the same."""

from __future__ import annotations

import io
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from helpers import Images, measured_by
from PIL import Image
from rich.console import Console

from maskzoo import Dataset, Encoder, Registry
from maskzoo.backbones.adapter import without_fetching
from maskzoo.backbones.vit import VitBackbone
from maskzoo.checkpoint import found
from maskzoo.compare.cells import gather
from maskzoo.data.pixels import STATISTICS
from maskzoo.errors import ContractError, DataError, RecipeError
from maskzoo.evaluate import Subject, Wishes, _evaluate, evaluate_backbone, evaluate_run
from maskzoo.evaluation.classifier import Classifier
from maskzoo.evaluation.features import WholeImages
from maskzoo.evaluation.knn import KNearestNeighbours
from maskzoo.export import export
from maskzoo.protocols import define
from maskzoo.recipe import Recipe
from maskzoo.run import run
from maskzoo.trained import open_run
from maskzoo.weights import load_weights

REGISTRY = Registry()
SMALL = {"timm": "vit_tiny_patch16_224", "patch_size": 8, "options": {"embed_dim": 24, "depth": 1, "num_heads": 2}}


def said(console: Console) -> str:
    return " ".join(console.export_text().split())


def listening() -> Console:
    return Console(record=True, width=200, file=io.StringIO())


def trained(out: Path, **sections: Any) -> Path:
    plain = {
        "backbone": SMALL,
        "objective": {"use": "reconstruct", "decoder_dim": 16, "decoder_depth": 1},
        "evaluation": [],
        "train": {"steps": 2, "pictures": 0, "device": "cpu", "precision": "fp32", "checkpoint_steps": 1},
        **sections,
    }
    run(Recipe.from_plain(plain), REGISTRY, Console(quiet=True), out)
    return out


@pytest.fixture(scope="module")
def digits_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return trained(tmp_path_factory.mktemp("runs") / "run")


@define
class Throws:
    """A plugin's evaluator that throws what it is given."""

    name: ClassVar[str] = "throws"
    error: ClassVar[Exception] = ValueError("Input X\ncontains NaN")

    def __call__(self, encoder: Encoder, dataset: Dataset) -> Iterator[tuple[str, float]]:
        raise self.error
        yield "never", 0.0


@define
class Tensors:
    """A plugin's evaluator that yields a tensor where a number is asked for."""

    name: ClassVar[str] = "tensors"

    def __call__(self, encoder: Encoder, dataset: Dataset) -> Iterator[tuple[str, Any]]:
        yield "top1", torch.tensor(0.25)


def subject(folder: Path, dataset: Any, **more: Any) -> Subject:
    backbone = VitBackbone(**SMALL, channels=dataset.channels, data_size=dataset.size).eval()
    return Subject(folder, backbone, None, dataset, {"model": "small"}, (dataset.mean, dataset.std), **more)


def labelled(images: int = 12, **more: Any) -> Images:
    values = torch.randint(0, 256, (images, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    return Images(values, [index % 3 for index in range(images)], **more)


# ----------------------------------------------------------------------------------------------------------- the others
@pytest.mark.parametrize(
    ("error", "words"),
    [
        (ValueError("Input X\ncontains NaN"), "throws: not measured: ValueError: Input X"),
        (torch.OutOfMemoryError("CUDA out of memory"), "throws: not measured: OutOfMemoryError: CUDA out of memory"),
        (RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed."), "a worker process of the data loader"),
        (ContractError("throws: no part"), "throws: not measured: no part"),
    ],
)
def test_whatever_one_evaluator_throws_the_others_measure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception, words: str
):
    monkeypatch.setattr(Throws, "error", error)
    console = listening()
    entries = _evaluate(subject(tmp_path, labelled()), [Throws(), Tensors()], Wishes(device="cpu"), console)
    assert [[one["value"] for one in entry["metrics"]] for entry in entries] == [[0.25]]
    assert words in said(console)


@pytest.mark.slow
def test_an_evaluator_of_the_recipe_whose_plugin_is_gone_is_said_and_the_others_measure(tmp_path: Path):
    out = trained(tmp_path / "run")
    for path in found(out / "checkpoints"):  # as a run that was made with the plugin
        state = torch.load(path, weights_only=True)
        state["recipe"]["evaluation"] = [{"use": "gone"}, "knn"]
        torch.save(state, path)
    console = listening()
    (entry,) = evaluate_run(out, Wishes(device="cpu"), REGISTRY, console)
    assert entry["evaluator"]["use"] == "knn"
    assert "gone: not measured: --with gone.use: no evaluator named 'gone'" in said(console)
    with pytest.raises(RecipeError, match="no evaluator named 'gone'"):
        evaluate_run(out, Wishes(evaluators="gone,knn", device="cpu"), REGISTRY, console)


# --------------------------------------------------------------------------------------------------------------- images
def folder_of_images(root: Path, broken: int, images: int = 10) -> Path:
    """Two classes in both splits; of the test images of the first, some are no images."""
    for split in ("train", "test"):
        for kind in ("cat", "dog"):
            (root / split / kind).mkdir(parents=True)
            for number in range(images):
                path = root / split / kind / f"{number}.png"
                Image.new("RGB", (32, 32), (number * 20, 40 if kind == "cat" else 200, 90)).save(path)
                if split == "test" and kind == "cat" and number < broken:
                    path.write_bytes(b"no picture")
    return root


@pytest.mark.slow
def test_images_that_cannot_be_read_are_counted_and_said(tmp_path: Path):
    console = listening()
    data = {"use": "folder", "root": str(folder_of_images(tmp_path / "data", broken=1))}
    wishes = Wishes(data=data, device="cpu")
    (entry,) = evaluate_backbone("vit_tiny_patch16_224", None, False, tmp_path / "out", wishes, REGISTRY, console)
    assert entry["left_out"] == 1
    wishes = Wishes(data=data, evaluators="knn,linear,finetune", settings=("linear.epochs=1", "finetune.epochs=1"))
    entries = evaluate_backbone("test_vit", None, False, tmp_path / "other", wishes, REGISTRY, console)
    assert [one["left_out"] for one in entries] == [1, 1, 1]  # of features that were remembered, and of other loaders
    assert "knn: 1 images cannot be read and are left out, e.g. " in said(console)


def test_too_many_unreadable_images_are_no_measurement(tmp_path: Path):
    console = listening()
    data = {"use": "folder", "root": str(folder_of_images(tmp_path / "data", broken=5))}
    wishes = Wishes(data=data, device="cpu")
    with pytest.raises(RecipeError, match="nothing could be measured"):
        evaluate_backbone("vit_tiny_patch16_224", None, False, tmp_path / "out", wishes, REGISTRY, console)
    assert "knn: not measured: 5 of 20 images cannot be read, too many" in said(console)


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (DataError("the disk is full of holes"), "the disk is full of holes"),
        (torch.OutOfMemoryError("no memory\nat all"), "OutOfMemoryError: no memory"),
    ],
)
@pytest.mark.sampled(1)
def test_a_run_says_which_of_its_evaluations_could_not_be_made_and_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception, words: str
):
    calls = []

    def call(self: Any, encoder: Encoder, dataset: Dataset) -> Iterator[tuple[str, float]]:
        calls.append(0)
        if len(calls) > 1:
            raise error
        yield "top1", 0.5

    monkeypatch.setattr(KNearestNeighbours, "__call__", call)
    out = trained(tmp_path / "run", evaluation=["knn", "reconstruction"])
    assert list(measured_by(out, "before")) == ["knn/top1", "reconstruction/loss on fixed masks"]
    assert list(measured_by(out, "after")) == ["reconstruction/loss on fixed masks"]
    assert f"knn was not measured after training: {words}" in (out / "warnings.txt").read_text()
    (remark,) = gather([out]).remarks
    assert remark == f"'{out}' has no score of knn: {words}; maskzoo evaluate measures it again"
    monkeypatch.undo()
    evaluate_run(out, Wishes(evaluators="knn", device="cpu"), REGISTRY, Console(quiet=True))
    assert "knn/top1" in gather([out]).cells[-1].first.scores


def test_what_raises_before_training_stops_the_run_in_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def call(self: Any, encoder: Encoder, dataset: Dataset) -> Iterator[tuple[str, float]]:
        raise KeyError("a plugin's own mistake")
        yield "never", 0.0

    monkeypatch.setattr(KNearestNeighbours, "__call__", call)
    with pytest.raises(KeyError, match="a plugin's own mistake"):
        trained(tmp_path / "run", evaluation=["knn"])


@pytest.mark.slow
def test_two_fine_tunings_have_the_same_names_before_and_after_training(tmp_path: Path):
    tuned = [{"use": "finetune", "epochs": epochs, "batch_size": 256} for epochs in (1, 2)]
    out = trained(tmp_path / "run", evaluation=tuned, data="digits:8")
    before = measured_by(out, "before")
    assert list(before) == list(measured_by(out, "after"))
    assert all(name.startswith("finetune") and name.endswith("/top1") and "precision" not in name for name in before)
    assert len(before) == 2


# -------------------------------------------------------------------------------------------------- damaged on the disk
@pytest.mark.parametrize("text", ['{"evaluations": [', "[]", "3"])
@pytest.mark.sampled(1)
def test_a_damaged_record_is_said_before_anything_is_measured(digits_run: Path, text: str):
    path = digits_run / "evaluation.json"
    path.write_text(text)
    try:
        with pytest.raises(RecipeError, match=r"evaluation\.json' cannot be read.*rename it"):
            evaluate_run(digits_run, Wishes(evaluators="throws-if-called", device="cpu"), _WithThrows(), listening())
        assert path.read_text() == text
    finally:
        path.unlink()


class _WithThrows(Registry):
    """The registry with an evaluator that must not be called."""

    def find(self, kind: str, name: str) -> type:
        return Throws if name == "throws-if-called" else super().find(kind, name)


@pytest.mark.slow
def test_the_newest_checkpoint_that_is_whole_is_taken_and_the_damaged_one_said(tmp_path: Path):
    out = trained(tmp_path / "run")
    newest = found(out / "checkpoints")[-1]
    newest.write_bytes(newest.read_bytes()[:-100])
    console = listening()
    (entry,) = evaluate_run(out, Wishes(evaluators="knn", device="cpu"), REGISTRY, console)
    assert entry["step"] == 1
    words = said(console)
    assert f"'{newest}' cannot be read" in words
    assert "going back to step 1" in words
    backbone = VitBackbone(**SMALL, channels=1, data_size=(32, 32))
    load_weights(backbone, out)  # goes back as well


@pytest.mark.parametrize("place", range(8))
def test_a_damaged_file_of_weights_is_a_sentence(tmp_path: Path, place: int):
    backbone = VitBackbone(**SMALL)
    file = tmp_path / "weights.pth"
    torch.save({"model": backbone.model.state_dict()}, file)
    content = bytearray(file.read_bytes())
    content[len(content) * (2 * place + 1) // 16] ^= 0xFF
    file.write_bytes(content)
    with pytest.raises(RecipeError, match=r"weights\.pth'"):
        load_weights(backbone, file)


# ------------------------------------------------------------------------------------------- what the model has learnt
def test_a_classifier_is_asked_only_about_the_classes_that_it_has_learnt(tmp_path: Path):
    data = labelled()
    encoder = WholeImages(subject(tmp_path, data).backbone, data, (32, 32), classes=["a", "b", "c"])
    with pytest.raises(ContractError, match="classes of these data are not those that it has learnt"):
        list(Classifier()(encoder, data))


def test_images_are_normalised_as_where_the_run_has_learnt(digits_run: Path, tmp_path: Path):
    console = listening()
    (own,) = evaluate_run(digits_run, Wishes(evaluators="knn", device="cpu"), REGISTRY, console)
    data = {"use": "folder", "root": str(folder_of_images(tmp_path / "data", broken=0)), "channels": 1}
    (other,) = evaluate_run(digits_run, Wishes(evaluators="knn", data=data, device="cpu"), REGISTRY, console)
    assert other["data"]["use"] == "folder"
    assert other["normalisation"] == own["normalisation"] != {"mean": list(STATISTICS[1][0]), "std": [0.226]}


@pytest.mark.slow
def test_a_file_of_weights_has_images_normalised_as_imagenet_is(tmp_path: Path):
    backbone = VitBackbone(timm="vit_tiny_patch16_224", image_size=32, patch_size=8)
    torch.save(backbone.model.state_dict(), tmp_path / "weights.pth")
    wishes = Wishes(
        data={"use": "folder", "root": str(folder_of_images(tmp_path / "data", broken=0))},
        device="cpu",
        settings=("backbone.patch_size=8", "backbone.image_size=32", "weights.grid=[4,4]"),
    )
    file = tmp_path / "weights.pth"
    (entry,) = evaluate_backbone("vit_tiny_patch16_224", file, False, tmp_path / "out", wishes, REGISTRY, listening())
    assert entry["normalisation"] == {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}


def test_the_final_norm_of_a_model_that_pools_first_is_not_lost():
    options = {"global_pool": "avg", "embed_dim": 24, "depth": 1, "num_heads": 2}
    backbone = VitBackbone(timm="vit_tiny_patch16_224", image_size=32, patch_size=8, options=options).eval()
    with torch.no_grad():
        backbone.model.norm.weight.fill_(3.0)
        latent = backbone(torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0)))
    torch.testing.assert_close(latent.square().mean(dim=2), torch.full((2, 17), 9.0), rtol=0.01, atol=0)


def test_a_run_of_pretrained_weights_is_rebuilt_without_fetching_them(monkeypatch: pytest.MonkeyPatch):
    import timm

    asked, create = [], timm.create_model

    def recording(name: str, pretrained: bool = False, **options: Any) -> Any:
        asked.append(pretrained)
        return create(name, pretrained=False, **options)

    monkeypatch.setattr("timm.create_model", recording)
    monkeypatch.setattr("maskzoo.backbones.adapter.refuse_unreachable", lambda name: None)
    with without_fetching():
        rebuilt = VitBackbone(**SMALL, pretrained=True)
    assert asked.count(True) == 0
    VitBackbone(**SMALL, pretrained=True)
    assert asked.count(True) == 1
    assert rebuilt.pretrained


# ------------------------------------------------------------------------------------------------------ edited recipes
def test_an_edited_recipe_makes_no_other_model_of_a_run(digits_run: Path, tmp_path: Path):
    edited = Path(shutil.copytree(digits_run, tmp_path / "edited"))
    recipe = (edited / "recipe.toml").read_text()
    assert "num_heads = 2" in recipe  # one head has weights of the same shapes
    (edited / "recipe.toml").write_text(recipe.replace("num_heads = 2", "num_heads = 1"))
    as_trained, opened = open_run(digits_run, REGISTRY), open_run(edited, REGISTRY)
    images = torch.rand(2, 1, *opened.image_size, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert torch.equal(opened.backbone(images), as_trained.backbone(images))
    assert as_trained.remarks == []
    (remark,) = opened.remarks
    assert "backbone.options.num_heads is 1 there, and 2 in the checkpoint" in remark
    console = listening()
    evaluate_run(edited, Wishes(evaluators="knn:1", device="cpu"), REGISTRY, console)
    assert "was edited (recipe.backbone.options.num_heads" in said(console)
    assert export(opened, "safetensors", tmp_path / "exported")
    assert '"num_heads": 2' in (tmp_path / "exported" / "config.json").read_text()
