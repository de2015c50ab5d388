"""Data sets of Hugging Face: found by what they say of themselves, read as any other files, refused in one message."""

from __future__ import annotations

import io
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tomli_w
import torch
from click.testing import CliRunner
from PIL import Image
from programs import small_recipe

from maskzoo.build import fingerprint
from maskzoo.cli import main
from maskzoo.data.batches import batches
from maskzoo.data.hugging_face import HuggingFace
from maskzoo.errors import DataError, RecipeError
from maskzoo.flags import changed, data_of
from maskzoo.recipe import describe, make
from maskzoo.registry import Registry

datasets = pytest.importorskip("datasets")
pyarrow = pytest.importorskip("pyarrow")
parquet = pytest.importorskip("pyarrow.parquet")
pytestmark = [
    pytest.mark.filterwarnings("ignore:This DataLoader will create", "ignore:.*multi-threaded.*fork"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::ResourceWarning"),
]
REGISTRY = Registry()


@pytest.fixture(autouse=True)
def own_caches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    datasets.disable_progress_bars()


def content(number: int, size: tuple[int, int] = (12, 10), format: str = "PNG", mode: str = "RGB") -> bytes:
    """An image whose every pixel says its number."""
    held = io.BytesIO()
    Image.new(mode, size, (number,) * len(mode) if mode == "RGB" else number).save(held, format)
    return held.getvalue()


def table(
    count: int = 10,
    labels: Sequence[Any] | None = (),
    names: Sequence[str] | None = ("ant", "bee"),
    image: str = "image",
    label: str = "label",
    first: int = 0,
) -> Any:
    """A data set of numbered images; image n is of class n % 2 unless other `labels` are given, or none (None)."""
    numbered = range(first, first + count)
    columns: dict[str, Any] = {image: [{"bytes": content(number), "path": None} for number in numbered]}
    features = {image: datasets.Image()}
    if labels is not None:
        columns[label] = list(labels) or [number % 2 for number in numbered]
        kind = "string" if isinstance(columns[label][0], str) else "int64"
        features[label] = datasets.Value(kind) if names is None else datasets.ClassLabel(names=list(names))
    return datasets.Dataset.from_dict(columns, features=datasets.Features(features))


def saved(folder: Path, **splits: Any) -> str:
    datasets.DatasetDict(splits).save_to_disk(str(folder))
    return str(folder)


def write_parquet(file: Path, columns: dict[str, list[Any]]) -> None:
    """Columns as any other program writes them, without the notes of `datasets`."""
    file.parent.mkdir(parents=True, exist_ok=True)
    parquet.write_table(pyarrow.table(columns), file)


def numbers(split: Any) -> list[tuple[int, int | None]]:
    samples = (split[place] for place in range(len(split)))
    return [(int(sample.image[0, 5, 5]), sample.label) for sample in samples]


def made(use: Any) -> HuggingFace:
    dataset: HuggingFace = make(REGISTRY, "dataset", use, "recipe.data")
    return dataset


# ------------------------------------------------------------------------------------------------------------- sources
def test_splits_that_the_library_saved_are_read(tmp_path: Path):
    path = saved(tmp_path / "d", train=table(6), test=table(4, first=6))
    dataset = made(f"hf:{path}")
    assert numbers(dataset.train) == [(number, number % 2) for number in range(6)]
    assert numbers(dataset.test) == [(number, number % 2) for number in range(6, 10)]
    assert (list(dataset.classes or ()), dataset.size, dataset.channels) == (["ant", "bee"], (10, 12), 3)


def test_a_single_table_that_was_saved_is_the_training_images_and_a_tenth_is_held_out(tmp_path: Path):
    table(20).save_to_disk(str(tmp_path / "d"))
    dataset = HuggingFace(path=str(tmp_path / "d"))
    assert (len(dataset.train), len(dataset.test)) == (18, 2)
    assert sorted(number for number, _ in [*numbers(dataset.train), *numbers(dataset.test)]) == list(range(20))
    assert all(label == number % 2 for number, label in numbers(dataset.test))
    assert len(HuggingFace(path=str(tmp_path / "d"), test_split="").test) == 0


def test_columns_of_which_none_is_taken_for_labels_are_told_once(tmp_path: Path):
    columns = {"image": [content(number) for number in range(4)], "label": [0.5, 1.5, 2.5, 3.5], "digit": [1, 2, 3, 4]}
    write_parquet(tmp_path / "d/train.parquet", columns)
    told = " ".join(HuggingFace(path=str(tmp_path / "d")).remarks)
    assert "no column" in told
    assert "'label' (float64), 'digit' (int64)" in told
    assert "data.label_column" in told
    assert not HuggingFace(path=str(tmp_path / "d"), label_column="").remarks
    assert not any("no column" in one for one in HuggingFace(path=str(tmp_path / "d"), label_column="digit").remarks)


@pytest.mark.parametrize("kind", ["parquet", "arrow"])
def test_a_folder_of_tables_is_read(tmp_path: Path, kind: str):
    for split, first in (("train", 0), ("validation", 6)):
        if kind == "parquet":
            table(6, first=first).to_parquet(str(tmp_path / f"d/{split}-00000-of-00001.parquet"))
        else:
            table(6, first=first).save_to_disk(str(tmp_path / f"saved-{split}"))
            (tmp_path / "d").mkdir(exist_ok=True)
            held = tmp_path / f"saved-{split}/data-00000-of-00001.arrow"
            held.rename(tmp_path / f"d/{split}-00000-of-00001.arrow")
    dataset = HuggingFace(path=str(tmp_path / "d"))
    assert dataset.test_split == "validation"
    assert numbers(dataset.test) == [(number, number % 2) for number in range(6, 12)]
    assert list(dataset.classes or ()) == ["ant", "bee"]


def test_a_folder_of_images_is_read_where_they_lie(tmp_path: Path):
    for number in range(8):
        file = tmp_path / f"d/{'train' if number < 6 else 'test'}/{'ab'[number % 2]}/{number}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content(number))
    dataset = HuggingFace(path=str(tmp_path / "d"))
    assert sorted(numbers(dataset.train)) == [(number, number % 2) for number in range(6)]
    assert (len(dataset.test), list(dataset.classes or ())) == (2, ["a", "b"])
    (tmp_path / "d/train/a/0.png").write_bytes(b"no image")
    with pytest.raises(DataError, match=r"row \d of the split 'train' of .*'0\.png'"):
        numbers(dataset.train)


def test_a_table_without_the_libraries_notes_is_read_by_the_names_of_its_columns(tmp_path: Path):
    images = [{"bytes": content(number), "path": f"{number}.png"} for number in range(4)]
    write_parquet(tmp_path / "d/train.parquet", {"image": images, "label": [1, 0, 2, 1]})
    dataset = HuggingFace(path=str(tmp_path / "d"), test_split="")
    assert numbers(dataset.train) == [(0, 1), (1, 0), (2, 2), (3, 1)]
    assert list(dataset.classes or ()) == ["0", "1", "2"]


def test_a_relative_folder_is_kept_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    saved(tmp_path / "d", train=table())
    monkeypatch.chdir(tmp_path)
    dataset = made("hf:./d")
    monkeypatch.chdir("/")
    again = made(describe(dataset))
    assert describe(again) == describe(dataset)
    assert fingerprint(again) == fingerprint(dataset)


# -------------------------------------------------------------------------------------------------------------- labels
def test_test_images_whose_labels_are_secret_give_way_to_labelled_ones(tmp_path: Path):
    path = saved(tmp_path / "d", train=table(), validation=table(4, first=20), test=table(3, labels=[-1] * 3))
    dataset = HuggingFace(path=path)
    assert dataset.test_split == "validation"
    assert any("'test'" in one and "no labels" in one for one in dataset.remarks)
    asked = HuggingFace(path=path, test_split="test")
    assert [label for _, label in numbers(asked.test)] == [None] * 3


def test_test_images_without_the_column_of_labels_have_none(tmp_path: Path):
    path = tmp_path / "d"
    table().to_parquet(str(path / "train.parquet"))
    table(3, labels=None).to_parquet(str(path / "test.parquet"))
    found = HuggingFace(path=saved(tmp_path / "e", train=table(), test=table(3, labels=None)))
    assert [label for _, label in numbers(found.test)] == [None] * 3


def test_labels_below_zero_and_missing_ones_are_none(tmp_path: Path):
    path = saved(tmp_path / "d", train=table(5, labels=[0, -1, None, 1, -100], names=None))
    dataset = HuggingFace(path=path, test_split="")
    assert [label for _, label in numbers(dataset.train)] == [0, None, None, 1, None]


def test_texts_are_classes_in_order_and_one_that_training_lacks_is_refused(tmp_path: Path):
    train, test = (table(3, labels=labels, names=None) for labels in (["sea", "air", "sea"], ["sea", "fog", "air"]))
    dataset = HuggingFace(path=saved(tmp_path / "d", train=train), test_split="")
    assert (list(dataset.classes or ()), [label for _, label in numbers(dataset.train)]) == (["air", "sea"], [1, 0, 1])
    with pytest.raises(DataError, match=r"row 1 of the split 'test' .*'fog'"):
        HuggingFace(path=saved(tmp_path / "e", train=train, test=test))


def test_a_label_beyond_the_classes_is_refused(tmp_path: Path):
    train, test = table(4, labels=[0, 1, 0, 1], names=None), table(3, labels=[0, 1, 7], names=None)
    with pytest.raises(DataError, match=r"row 2 of the split 'test' .* label 7 .*none of the 2 classes"):
        HuggingFace(path=saved(tmp_path / "d", train=train, test=test))


# ------------------------------------------------------------------------------------------------------------- columns
def test_the_columns_are_found_by_what_they_hold(tmp_path: Path):
    held = table(4, image="picture", label="species")
    held = held.add_column("caption", ["a", "b", "c", "d"])
    dataset = HuggingFace(path=saved(tmp_path / "d", train=held), test_split="")
    assert (dataset.image_column, dataset.label_column) == ("picture", "species")
    assert len(HuggingFace(path=str(tmp_path / "d"), label_column="", test_split="").train) == 4
    assert HuggingFace(path=str(tmp_path / "d"), label_column="").classes is None


@pytest.mark.parametrize(
    ("options", "key", "words"),
    [
        ({"image_column": "img"}, "image_column", "there is no column 'img'; its columns are 'image' (image)"),
        ({"image_column": "score"}, "image_column", "holds no images"),
        ({"label_column": "score"}, "label_column", "holds no classes (float64)"),
        ({"label_column": "class"}, "label_column", "there is no column 'class'"),
        ({"train_split": "training"}, "train_split", "there are 'train' (10)"),
        ({"test_split": "dev"}, "test_split", "there is no split 'dev'"),
        ({"test_split": "train"}, "test_split", "would be the training images"),
        ({"path": "no data set!"}, "path", "neither a folder nor a name on the Hub"),
        ({"path": "s3://bucket/x"}, "path", "neither a folder nor a name on the Hub"),
        ({"path": "~nobody-at-all/x"}, "path", "neither a folder nor a name on the Hub"),
    ],
)
def test_what_is_not_there_is_refused_with_what_there_is(tmp_path: Path, options: dict[str, Any], key: str, words: str):
    path = saved(tmp_path / "d", train=table().add_column("score", [0.5] * 10))
    with pytest.raises(RecipeError) as told:
        made({"use": "hf", "path": path, **options})
    assert str(told.value).startswith(f"recipe.data.{key}: ")
    assert words in str(told.value)


def test_of_several_columns_one_has_to_be_named(tmp_path: Path):
    both = datasets.concatenate_datasets(
        [table(4, image="left", label="fine"), table(4, image="right", label="coarse")], axis=1
    )
    path = saved(tmp_path / "d", train=both)
    with pytest.raises(RecipeError, match=r"several columns hold images \(left, right\)"):
        HuggingFace(path=path)
    with pytest.raises(RecipeError, match=r"several columns hold classes \(fine, coarse\)"):
        HuggingFace(path=path, image_column="left")
    assert len(HuggingFace(path=path, image_column="left", label_column="coarse", test_split="").train) == 4


def test_a_data_set_of_texts_is_refused_by_its_columns(tmp_path: Path):
    path = saved(tmp_path / "d", train=datasets.Dataset.from_dict({"text": ["a"], "stars": [1]}))
    with pytest.raises(
        RecipeError, match=r"no column holds images; its columns are 'text' \(string\), 'stars' \(int64\)"
    ):
        HuggingFace(path=path)


# -------------------------------------------------------------------------------------------------------------- images
def test_broken_and_missing_images_are_named_by_their_row(tmp_path: Path):
    held = [content(0), b"rubbish", None, content(3)]
    rows = [None if one is None else {"bytes": one, "path": "x/y.png"} for one in held]
    broken = datasets.Dataset.from_dict({"image": rows}, features=datasets.Features({"image": datasets.Image()}))
    split = HuggingFace(path=saved(tmp_path / "d", train=broken)).train
    with pytest.raises(DataError, match=r"row 1 of the split 'train' of '.*' \('y\.png'\)"):
        split[1]
    with pytest.raises(DataError, match=r"row 2 .* has no image"):
        split[2]
    assert int(split[3].image[0, 0, 0]) == 3


@pytest.mark.parametrize("shape", [(16, 15), (3, 16, 15), (16, 15, 3)])
@pytest.mark.parametrize("dtype", ["uint8", "float32", "uint16"])
def test_arrays_are_read_as_those_in_files(tmp_path: Path, dtype: str, shape: tuple[int, ...]):
    values = [np.linspace(0, 1, int(np.prod(shape))).reshape(shape) + number / 8 for number in range(4)]
    arrays = [(one * 100).astype(dtype) for one in values]
    kind = datasets.Array2D if len(shape) == 2 else datasets.Array3D
    features = datasets.Features({"x": kind(shape=shape, dtype=dtype)})
    held = datasets.Dataset.from_dict({"x": arrays}, features=features)
    dataset = HuggingFace(path=saved(tmp_path / "d", train=held))
    image = dataset.train[1].image
    assert (dataset.channels, tuple(image.shape)) == (1 if len(shape) == 2 else 3, (dataset.channels, 16, 15))
    first, last = (float(one.image.float().mean()) for one in (dataset.train[0], dataset.train[3]))
    assert first < last
    assert fingerprint(dataset) == fingerprint(HuggingFace(path=dataset.path))


@pytest.mark.parametrize(
    "place", ["https://example.org/cat.png", "hf://datasets/a/b/cat.png", "zip://a::https://b/c.zip"]
)
def test_a_place_in_a_table_is_never_fetched_from(tmp_path: Path, place: str):
    write_parquet(
        tmp_path / "d/train.parquet", {"image": [{"bytes": content(0), "path": ""}, {"bytes": None, "path": place}]}
    )
    with pytest.raises(DataError, match="a place elsewhere"):
        HuggingFace(path=str(tmp_path / "d"), size=8).train[1]


def test_workers_give_the_same_batches(tmp_path: Path):
    dataset = HuggingFace(path=saved(tmp_path / "d", train=table(12)), test_split="")
    options: dict[str, Any] = {"size": (8, 8), "batch_size": 4, "seed": 0, "start": 0, "steps": 3}
    plain, shared = ([batch.images for batch in batches(dataset, **options, workers=count)] for count in (0, 2))
    assert all(torch.equal(one, other) for one, other in zip(plain, shared, strict=True))


# ---------------------------------------------------------------------------------------------------------- what it is
def test_a_data_set_is_known_again_wherever_it_lies(tmp_path: Path):
    here = HuggingFace(path=saved(tmp_path / "d", train=table()))
    (tmp_path / "d").rename(tmp_path / "elsewhere")
    there = HuggingFace(path=str(tmp_path / "elsewhere"))
    assert fingerprint(here) == fingerprint(there)
    others = [table(9), table(first=1), table(labels=[0] * 10)]
    for number, other in enumerate(others):
        assert fingerprint(HuggingFace(path=saved(tmp_path / f"o{number}", train=other))) != fingerprint(there)


def test_the_command_line_names_a_data_set(tmp_path: Path):
    path = saved(tmp_path / "d", train=table())
    assert data_of(f"hf:{path}", REGISTRY) == {"use": "hf", "path": path}
    assert data_of("hf:uoft-cs/cifar100", REGISTRY) == {"use": "hf", "path": "uoft-cs/cifar100"}
    plain = changed(None, REGISTRY, ("data.label_column=species",), data="hf:org/name")
    assert plain["data"] == {"use": "hf", "path": "org/name", "label_column": "species"}


def test_image_files_that_the_library_leaves_out_are_told(tmp_path: Path):
    for number, name in enumerate(("train", "bus", "car")):  # of which it takes the first for a split
        (tmp_path / "d" / name).mkdir(parents=True)
        (tmp_path / "d" / name / "x.png").write_bytes(content(number))
    dataset = HuggingFace(path=str(tmp_path / "d"))
    assert len(dataset.train) == 1
    assert any("of 3 image files" in one and "takes 1, as the splits 'train'" in one for one in dataset.remarks)


def test_of_several_configurations_one_has_to_be_named(tmp_path: Path):
    for name, first in (("day", 0), ("night", 5)):
        table(4, first=first).to_parquet(str(tmp_path / f"d/{name}/train.parquet"))
    entries = "".join(f"- config_name: {name}\n  data_files: {name}/*.parquet\n" for name in ("day", "night"))
    (tmp_path / "d/README.md").write_text(f"---\nconfigs:\n{entries}---\n")
    for config in (None, "dusk"):
        with pytest.raises(RecipeError, match=r"say which; .* has 'day', 'night'") as told:
            HuggingFace(path=str(tmp_path / "d"), config=config)
        assert told.value.key == "config"
    assert numbers(HuggingFace(path=str(tmp_path / "d"), config="night").train)[0][0] == 5


def test_a_column_without_any_label_makes_no_classes(tmp_path: Path):
    dataset = HuggingFace(path=saved(tmp_path / "d", train=table(3, labels=[-1, -1, None], names=None)))
    assert dataset.classes is None
    assert any("no labels but those below 0" in one for one in dataset.remarks)


# ------------------------------------------------------------------------------------------------------------- refusals
def test_without_the_hub_there_is_one_message(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    with pytest.raises(DataError, match=r"'no-such/data-set' cannot be fetched, .*save_to_disk"):
        HuggingFace(path="no-such/data-set")
    assert capfd.readouterr() == ("", "")


def test_without_the_library_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(RecipeError, match=r"the library 'datasets' .*pip install 'maskzoo\[data\]'"):
        HuggingFace(path=str(tmp_path))


@pytest.mark.parametrize("kind", ["empty", "texts", "damaged"])
def test_a_folder_that_is_no_data_set_is_one_message(tmp_path: Path, kind: str):
    folder = tmp_path / "d"
    folder.mkdir()
    if kind == "texts":
        (folder / "notes.md").write_text("nothing")
    if kind == "damaged":
        saved(folder, train=table())
        (folder / "train/state.json").write_text("{")
    with pytest.raises((DataError, RecipeError), match=r"cannot be read as a data set|no column"):
        HuggingFace(path=str(folder))


def test_programs_beside_a_data_set_are_never_run(tmp_path: Path):
    folder = tmp_path / "evil"
    folder.mkdir()
    (folder / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nraise SystemExit\n")
    with pytest.raises((DataError, RecipeError)):
        HuggingFace(path=str(folder))
    assert not (tmp_path / "ran").exists()


# ----------------------------------------------------------------------------------------------------------------- runs
@pytest.mark.slow
def test_a_run_trains_and_resumes_from_another_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = saved(tmp_path / "d", train=table(12), test=table(4, labels=[-1] * 4))
    monkeypatch.chdir(tmp_path)
    plain = {**small_recipe(steps=4, checkpoint_steps=2), "objective": "classify", "evaluation": ["knn"]}
    plain["masking"]["ratio"] = 0.0
    (tmp_path / "recipe.toml").write_text(tomli_w.dumps(plain))
    told = CliRunner().invoke(main, ["train", "recipe.toml", "--data", "hf:./d", "--set", "data.size=8", "--out", "r"])
    assert told.exit_code == 0, told.output
    assert "have no labels" in told.output
    assert f'path = "{path}"' in (tmp_path / "r/recipe.toml").read_text()
    monkeypatch.chdir("/")
    again = CliRunner().invoke(main, ["train", "--out", str(tmp_path / "r"), "--resume"])
    assert again.exit_code == 0, again.output
    assert "already finished" in again.output
    (tmp_path / "d").rename(tmp_path / "moved")
    gone = CliRunner().invoke(main, ["train", "--out", str(tmp_path / "r"), "--resume"])
    assert gone.exit_code == 2
    assert "if the data have moved, say where they are with --data" in gone.output
    moved = ["--data", f"hf:{tmp_path}/moved"]
    there = CliRunner().invoke(main, ["train", "--out", str(tmp_path / "r"), "--resume", *moved])
    assert there.exit_code == 0, there.output
    assert f'path = "{tmp_path}/moved"' in (tmp_path / "r/recipe.toml").read_text()
