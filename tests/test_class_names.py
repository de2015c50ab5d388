"""Class names travel with the weights: what a number means is the same wherever the number goes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import attrs
import numpy as np
import pytest
import timm
import torch
from click.testing import CliRunner, Result
from helpers import REGISTRY, Images, noise_images, tiny_session
from PIL import Image
from test_evaluators import encoder_of, small
from timm.data import create_dataset, create_transform, resolve_data_config

from maskzoo import Recipe, checkpoint
from maskzoo.cli import main
from maskzoo.data.folder import Folder
from maskzoo.data.labels import older_classes
from maskzoo.data.through_timm import ThroughTimm, label_of
from maskzoo.errors import ContractError, RecipeError
from maskzoo.evaluation.classifier import Classifier, same_classes
from maskzoo.export import export
from maskzoo.measured import entries
from maskzoo.measured import read as read_evaluation
from maskzoo.provenance import facts
from maskzoo.trained import Trained

pytestmark = pytest.mark.slow


@attrs.define(eq=False)
class Named(Images):
    """Images whose classes have names."""

    names: tuple[str, ...] = ("cat", "dog", "emu")

    @property
    def train(self) -> Named:
        return self

    @property
    def test(self) -> Named:
        return self

    @property
    def classes(self) -> list[str] | None:
        return list(self.names)


def named(*names: str) -> Named:
    plain = noise_images(8, labelled=True)
    return Named(plain.images, plain.labels, names=names)


def session_of(*names: str) -> Any:
    return tiny_session("random", named(*names), train={"steps": 2})


# ------------------------------------------------------------------------------------------------------- a resumed run
def test_a_checkpoint_holds_the_names_of_the_classes(tmp_path: Path) -> None:
    session = session_of("cat", "dog", "emu")
    path = checkpoint.save(session, tmp_path)
    assert checkpoint.classes_of(checkpoint.read(path)) == ["cat", "dog", "emu"]
    assert facts(session, named("cat", "dog", "emu"), REGISTRY)["class_names"] == ["cat", "dog", "emu"]


@pytest.mark.sampled(1)
@pytest.mark.parametrize(
    ("names", "said"),
    [
        (("dog", "cat", "emu"), "class 0 is 'cat' there and 'dog' here"),
        (("cat", "dog", "yak"), "class 2 is 'emu' there and 'yak' here"),
        (("cat", "dog", "emu", "yak"), "3 classes there, 4 here; only here: 'yak'"),
    ],
)
def test_a_run_is_not_resumed_on_other_classes_or_another_order(
    names: tuple[str, ...], said: str, tmp_path: Path
) -> None:
    path = checkpoint.save(session_of("cat", "dog", "emu"), tmp_path)
    other = session_of(*names)
    with pytest.raises(RecipeError, match="the classes of the data have changed") as refused:
        checkpoint.load(other, checkpoint.read(path), path)
    assert said in str(refused.value)
    assert other.step == 0


@pytest.mark.slow
def test_a_checkpoint_without_names_is_resumed_as_before(tmp_path: Path) -> None:
    path = checkpoint.save(session_of("cat", "dog", "emu"), tmp_path)
    older = {key: value for key, value in checkpoint.read(path).items() if key != "classes"}
    assert checkpoint.classes_of(older) is None
    checkpoint.load(session_of("dog", "cat", "emu"), older, path)


def test_a_name_is_the_same_however_a_file_system_writes_its_accents(tmp_path: Path) -> None:
    path = checkpoint.save(session_of("caf\u00e9", "dog", "line\nbreak"), tmp_path)
    checkpoint.load(session_of("cafe\u0301", "dog", "line\nbreak"), checkpoint.read(path), path)


# ---------------------------------------------------------------------------------------------------------- evaluation
def accuracy_of(learned: list[str], scores: torch.Tensor, monkeypatch: pytest.MonkeyPatch) -> float:
    dataset = small(train=3, test=6)
    encoder = encoder_of(dataset, classes=learned)
    labels = torch.tensor([dataset.test[index].label for index in range(6)])
    monkeypatch.setattr(encoder, "predictions", lambda split: (scores[labels], labels))
    (metric,) = Classifier()(encoder, dataset)
    return metric.value


def test_a_classifier_is_matched_to_classes_in_another_order_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    # Row: the class of the data (a, b, c); column: the classifier's output. It is right about each image.
    own, other = torch.eye(3), torch.eye(3)[[2, 0, 1]]
    assert accuracy_of(["a", "b", "c"], own, monkeypatch) == 1.0
    assert accuracy_of(["b", "c", "a"], other, monkeypatch) == 1.0
    assert accuracy_of(["b", "c", "a"], own, monkeypatch) == 0.0


def test_classes_that_are_others_are_named() -> None:
    assert same_classes(["b", "a"], ["a", "b"]) == [1, 0]
    assert same_classes(["a", "a"], ["a", "a"]) == [0, 1]  # as they stand
    for learned, names, said in (
        (["a", "b"], ["a", "c"], "class 1 is 'b' there and 'c' here"),
        (["a", "b", "c"], ["a", "b"], "3 classes there, 2 here; only there: 'c'"),
        (["a", "b", "a"], ["b", "a", "a"], "class 0 is 'a' there and 'b' here"),
    ):
        with pytest.raises(ContractError, match="classes of these data") as refused:
            same_classes(learned, names)
        assert said in str(refused.value)


# -------------------------------------------------------------------------------------------------------------- export
def run_of(*names: str, objective: str = "classify") -> Trained:
    """A classifier of these classes, whose data are gone."""
    images = Named(
        torch.zeros(8, 3, 16, 16, dtype=torch.uint8), [index % len(names) for index in range(8)], names=names
    )
    session = tiny_session(
        "random", images, objective={"use": objective}, masking={"ratio": 0.0 if objective == "classify" else 0.5}
    )
    recipe = Recipe.from_plain({**session.recipe, "data": {"use": "folder", "root": "/gone"}})
    objective_of: Any = session.objective
    return Trained(Path("x"), recipe, objective_of.eval(), session.strategy, 3, REGISTRY, classes=session.classes)


def test_an_export_for_timm_says_what_its_outputs_are(tmp_path: Path) -> None:
    names = [str(number) for number in sorted(range(12), key=str)]
    said = export(run_of(*names), "timm", tmp_path / "e")
    assert any("its 12 outputs have names" in one and "classes.txt" in one for one in said)
    assert json.loads((tmp_path / "e" / "config.json").read_text())["label_names"] == names
    assert (tmp_path / "e" / "classes.txt").read_text() == "".join(f"{name}\n" for name in names)
    assert f"class_map='{tmp_path / 'e'}/classes.txt'" in (tmp_path / "e" / "README.md").read_text()
    model = timm.create_model(f"local-dir:{tmp_path / 'e'}", pretrained=True)
    assert list(model.pretrained_cfg["label_names"]) == names
    for name in reversed(names):
        (tmp_path / "data" / name).mkdir(parents=True)
        Image.new("RGB", (4, 4)).save(tmp_path / "data" / name / "a.png")
    read = create_dataset("", root=str(tmp_path / "data"), class_map=str(tmp_path / "e" / "classes.txt"))
    assert {Path(path).parent.name: number for path, number in read.reader.samples} == {
        name: number for number, name in enumerate(names)
    }


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("caf\\xe9", "is not UTF-8"),  # as a folder's name is shown
        ("caf\udce9", "is not UTF-8"),
        ("two\nlines", "line break"),
        ("edge ", "begins or ends with a space"),
    ],
)
@pytest.mark.sampled(2)
def test_a_name_that_timm_cannot_read_from_a_text_is_told(name: str, why: str, tmp_path: Path) -> None:
    said = " ".join(export(run_of("ant", name), "timm", tmp_path / "e"))
    assert "classes.txt, by which timm numbers folders, is left out" in said
    assert why in said
    assert not (tmp_path / "e" / "classes.txt").exists()
    kept = json.loads((tmp_path / "e" / "config.json").read_text())["label_names"]
    assert kept == ["ant", name.encode("utf-8", "backslashreplace").decode()]


@pytest.mark.slow
def test_plain_weights_say_their_classes_too(tmp_path: Path) -> None:
    export(run_of("ant", "bee"), "safetensors", tmp_path / "e")
    assert json.loads((tmp_path / "e" / "config.json").read_text())["label_names"] == ["ant", "bee"]


@pytest.mark.slow
def test_what_has_no_classifier_names_no_outputs(tmp_path: Path) -> None:
    said = export(run_of("ant", "bee", objective="reconstruct"), "timm", tmp_path / "e")
    assert not any("names" in one for one in said)
    assert "label_names" not in json.loads((tmp_path / "e" / "config.json").read_text())
    assert not (tmp_path / "e" / "classes.txt").exists()


@pytest.mark.slow
def test_an_older_run_whose_data_are_gone_says_that_the_names_are_lacking(tmp_path: Path) -> None:
    said = " ".join(export(attrs.evolve(run_of("ant", "bee"), classes=None), "timm", tmp_path / "e"))
    assert "the names of the 2 classes are left out: the checkpoint has none, and the data" in said
    assert "label_names" not in json.loads((tmp_path / "e" / "config.json").read_text())


# ------------------------------------------------------------------------------------------------- one order of classes
def pictures(root: Path, *names: str) -> Path:
    for shade, name in enumerate(names):
        (root / name).mkdir(parents=True)
        for number in range(2):
            Image.new("RGB", (16, 16), (20 * shade, number, 0)).save(root / name / f"{number}.png")
    return root


def test_folder_and_timm_number_one_folder_alike(tmp_path: Path) -> None:
    root = pictures(tmp_path / "data", *map(str, range(12)))
    ours, timms = Folder(root=str(root)), ThroughTimm(root=str(root))
    assert list(ours.classes or ()) == list(timms.classes or ()) == sorted(map(str, range(12)))
    shades = {timms.train[index].label: int(timms.train[index].image[0, 0, 0]) // 20 for index in range(24)}
    assert shades == {number: int(name) for number, name in enumerate(sorted(map(str, range(12))))}
    assert any("numbered by name ('0', '1', '10'" in remark for remark in timms.remarks)
    given = {name: int(name) for name in map(str, range(12))}
    own = ThroughTimm(root=str(root), options={"class_map": given})
    assert list(own.classes or ()) == [str(number) for number in range(12)]  # the user's order stays


def test_an_older_checkpoint_of_counted_folders_is_not_resumed_under_other_numbers(tmp_path: Path) -> None:
    data: Any = ThroughTimm(root=str(pictures(tmp_path / "data", "2", "10")))
    assert (older_classes(data), data.classes) == (["2", "10"], ["10", "2"])
    for objective, ratio in (("classify", 0.0), ("reconstruct", 0.5)):
        session = tiny_session("random", data, objective={"use": objective}, masking={"ratio": ratio})
        path = checkpoint.save(session, tmp_path / objective)
        state = checkpoint.read(path)
        checkpoint.load(session, state, path)
        del state["classes"]
        if objective == "reconstruct":  # which learns nothing from labels
            checkpoint.load(session, state, path)
            continue
        with pytest.raises(RecipeError, match="of an older MaskZoo, which numbered the classes"):
            checkpoint.load(session, state, path)


@pytest.mark.parametrize("target", [2.7, True + 0.5, "emu", [1, 2]])
def test_what_is_no_number_of_a_class_is_none_for_timm_either(target: object) -> None:
    with pytest.raises(RecipeError, match=r"image 1 has the label .*options\.target_key") as refused:
        label_of(target, "image 1")
    assert refused.value.key == "options"


def test_whole_numbers_of_any_kind_are_labels_for_timm_too() -> None:
    kinds = (3, 3.0, "3", torch.tensor(3), torch.tensor([3]), -1, None, float("nan"))
    assert [label_of(target, "x") for target in kinds] == [3, 3, 3, 3, 3, None, None, None]


# ------------------------------------------------------------------------------------------------------- whole programs
SMALL = '{timm="vit_tiny_patch16_224",patch_size=8,image_size=32,options={embed_dim=16,depth=1,num_heads=2}}'


def maskzoo(*words: object) -> Result:
    return CliRunner().invoke(main, [str(word) for word in words], env={"COLUMNS": "300"}, prog_name="maskzoo")


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::ResourceWarning")
@pytest.mark.parametrize("use", ["folder", "timm"])
def test_timm_measures_the_accuracy_that_maskzoo_does(use: str, tmp_path: Path) -> None:
    noise = np.random.default_rng(0)
    for split in ("train", "val"):
        for number in range(12):
            (tmp_path / "data" / split / str(number)).mkdir(parents=True)
            for place in range(6):
                colour = (80 * (number % 3), 60 * (number // 3), 90)
                level = np.full((32, 32, 3), colour) + noise.integers(0, 60, (32, 32, 3))
                image = Image.fromarray(level.astype(np.uint8))
                image.save(tmp_path / "data" / split / str(number) / f"{place}.png")
    settings = [
        "train.steps=150",
        "train.batch_size=24",
        "train.device=cpu",
        "train.precision=fp32",
        "train.pictures=0",
    ]
    settings += ["optimizer.lr=2e-3"]
    settings += [f"backbone={SMALL}", 'evaluation=["classifier"]', f"data.use={use}"]
    settings += ['data.test_split="val"'] if use == "timm" else []
    words = [word for setting in settings for word in ("--set", setting)]
    run, out = tmp_path / "run", tmp_path / "export"
    done = maskzoo(
        "train", "--data", tmp_path / "data", "--out", run, "--objective", "classify", "--ratio", "0", *words
    )
    assert done.exit_code == 0, done.output
    assert maskzoo("export", run, out).exit_code == 0
    (after,) = [one for one in entries(read_evaluation(run / "evaluation.json")) if one.when == "after"]
    ours = after.metrics[0].value
    model = timm.create_model(f"local-dir:{out}", pretrained=True).eval()
    transform = create_transform(**resolve_data_config({}, model=model))
    read = create_dataset("", root=str(tmp_path / "data" / "val"), class_map=str(out / "classes.txt"))
    with torch.no_grad():
        right = [int(model(transform(image)[None]).argmax()) == label for image, label in read]
    assert sum(right) / len(right) == pytest.approx(ours, abs=0.03)
    assert ours > 0.25  # by chance: 0.08
    # Under other names the evaluated data are refused, for the classifier alone.
    (tmp_path / "data" / "val" / "3").rename(tmp_path / "data" / "val" / "three")
    (tmp_path / "data" / "train" / "3").rename(tmp_path / "data" / "train" / "three")
    refused = maskzoo("evaluate", run, "--with", "classifier")
    assert "not those that it has learnt: class 5 is '3' there and '4' here" in refused.output
    assert maskzoo("evaluate", run, "--with", "knn").exit_code == 0
