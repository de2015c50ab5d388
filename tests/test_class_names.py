"""Class names travel with the weights: what a number means is the same wherever the number goes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import attrs
import pytest
import timm
import torch
from helpers import REGISTRY, Images, noise_images, tiny_session
from PIL import Image
from test_evaluators import encoder_of, small
from timm.data import create_dataset

from maskzoo import Recipe, checkpoint
from maskzoo.errors import ContractError, RecipeError
from maskzoo.evaluation.classifier import Classifier, same_classes
from maskzoo.export import export
from maskzoo.provenance import facts
from maskzoo.trained import Trained


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


def test_plain_weights_say_their_classes_too(tmp_path: Path) -> None:
    export(run_of("ant", "bee"), "safetensors", tmp_path / "e")
    assert json.loads((tmp_path / "e" / "config.json").read_text())["label_names"] == ["ant", "bee"]


def test_what_has_no_classifier_names_no_outputs(tmp_path: Path) -> None:
    said = export(run_of("ant", "bee", objective="reconstruct"), "timm", tmp_path / "e")
    assert not any("names" in one for one in said)
    assert "label_names" not in json.loads((tmp_path / "e" / "config.json").read_text())
    assert not (tmp_path / "e" / "classes.txt").exists()


def test_an_older_run_whose_data_are_gone_says_that_the_names_are_lacking(tmp_path: Path) -> None:
    said = " ".join(export(attrs.evolve(run_of("ant", "bee"), classes=None), "timm", tmp_path / "e"))
    assert "the names of the 2 classes are left out: the checkpoint has none, and the data" in said
    assert "label_names" not in json.loads((tmp_path / "e" / "config.json").read_text())
