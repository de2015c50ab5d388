"""Labels in a table beside the images: found by name, counted where they do not fit, refused where they cannot."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from PIL import Image

from maskzoo import DataError, MaskZooError, RecipeError
from maskzoo.build import described, fingerprint
from maskzoo.cli import main as commands
from maskzoo.data.folder import Folder
from maskzoo.data.remarks import remarks_of


def images(root: Path, *names: str) -> Path:
    for number, name in enumerate(names):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8), (number % 256, 9, 9)).save(root / name, format="PNG")
    return root


def table(root: Path, text: str | bytes, name: str = "labels.csv") -> str:
    (root / name).write_bytes(text if isinstance(text, bytes) else text.encode())
    return name


def labels(root: Path, text: str | bytes = "", **options: Any) -> dict[str, str | None]:
    """The class of each image, by its path below the root, as a run is given it."""
    options = {"labels": "labels.csv", **options}
    if text:
        table(root, text)
    return given(Folder(root=str(root), **options))


def given(data: Folder) -> dict[str, str | None]:
    found = {}
    for split in (data.train, data.test):
        for number, file in enumerate(split.files):  # type: ignore[attr-defined]
            label = split[number].label
            found[str(Path(file).relative_to(data.root))] = None if label is None else (data.classes or ())[label]
    return found


TWO = {"a.png": "cat", "b.png": "dog"}


@pytest.mark.parametrize(
    "text",
    [
        "file,label\na.png,cat\nb.png,dog\n",
        "File Name;CLASS\r\na.png;cat\r\nb.png;dog\r\n",
        "\ufeffimage_id\tcategory\na\tcat\nb\tdog",
        'ID,notes,Target\na,"x, y",cat\n"b","two\nlines",dog\n\n',
        "sep=;\nfile;label\na.png;cat\nb.png;dog\n",
        ",filename,label\n0,a.png,cat\n1,b.png,dog\n",
        "path,label,split\n.\\a.png,cat,train\n./b.png,dog,train\n",
        "id,filename,label\n1,a.png,cat\n2,b.png,dog\n",
        " file , label \n A.PNG , cat \n b.png , dog \n",
        "path,label\n/home/them/set/a.png,cat\n/home/them/set/b.png,dog\n",
        "path,label\nC:\\set\\a.png,cat\nC:\\set\\b.png,dog\n",
        "file,label\na.png,cat\na,cat\nb.png,dog\n",
    ],
)
def test_columns_are_found_by_their_names_however_they_are_written(text: str, tmp_path: Path):
    assert labels(images(tmp_path, "a.png", "b.png"), text) == TWO


def test_columns_can_be_given(tmp_path: Path):
    root = images(tmp_path, "a.png", "b.png")
    text = "patient,scan,dx\n1,a,cat\n1,b,dog\n"
    assert labels(root, text, label_columns=("scan", "dx")) == TWO
    with pytest.raises(RecipeError, match=r"no column 'diagnosis'; it has 'patient', 'scan', 'dx'"):
        labels(root, text, label_columns=("scan", "diagnosis"))
    with pytest.raises(RecipeError, match=r"data\.labels"):
        Folder(root=str(root), label_columns=("scan", "dx"))


@pytest.mark.parametrize(
    ("values", "classes"),
    [
        (["10", "9", "1"], ["1", "9", "10"]),
        (["3.0", "10.0", "3"], ["3", "10"]),
        (["b10", "b9", "B"], ["B", "b10", "b9"]),
        (["x", "10", "9"], ["10", "9", "x"]),
        (["True", "False", "True"], ["False", "True"]),
        (["1", "-1", "2"], ["1", "2"]),
        (["1.0", "nan", "2.0"], ["1", "2"]),
        (["cat", "", "dog"], ["cat", "dog"]),
    ],
)
def test_classes_are_sorted_as_numbers_or_by_the_alphabet(values: Sequence[str], classes: list[str], tmp_path: Path):
    names = [f"{number}.png" for number in range(len(values))]
    root = images(tmp_path, *names)
    rows = "".join(f"{name},{value}\n" for name, value in zip(names, values, strict=True))
    table(root, f"file,label\n{rows}")
    data = Folder(root=str(root), labels="labels.csv")
    assert data.classes == classes
    told = given(data)
    for name, value in zip(names, values, strict=True):
        wanted = None if value in ("", "nan", "-1") else value.removesuffix(".0")
        assert told[name] == wanted


def test_what_has_no_row_and_what_has_no_file_is_counted(tmp_path: Path):
    root = images(tmp_path, "images/a.png", "images/b.png", "images/c.png", "images/d.png")
    told = labels(root, "file,label\nimages/a.png,cat\nb,dog\nc.png,\ngone.png,dog\nlost.png,emu\n")
    assert told == {"images/a.png": "cat", "images/b.png": "dog", "images/c.png": None, "images/d.png": None}
    data = Folder(root=str(root), labels="labels.csv")
    assert data.classes == ["cat", "dog"]
    said = "\n".join(remarks_of(data))
    assert "2 classes (cat, dog) of labels.csv" in said
    assert "2 rows of labels.csv name no image that is there (gone.png)" in said
    assert "1 image has no row in labels.csv ('images/d.png')" in said
    assert "2 of 4 training images have no label" in said
    assert "1 file .csv" not in said


def test_images_without_a_label_can_be_left_out(tmp_path: Path):
    root = images(tmp_path, "a.png", "b.png", "c.png", "d.png")
    table(root, "file,label\na,cat\nb,dog\nc,\n")
    data = Folder(root=str(root), labels=str(root / "labels.csv"), labelled_only=True)
    assert given(data) == TWO
    assert described(data)["labels"] == "labels.csv"  # it moves with the images
    assert "not used: 2 training images without a label in labels.csv" in remarks_of(data)
    with pytest.raises(RecipeError, match=r"data\.labels"):
        Folder(root=str(root), labelled_only=True)


def test_images_and_their_masks_with_a_table_are_refused_with_what_to_do(tmp_path: Path):
    root = images(tmp_path, "images/a.png", "images/b.png", "masks/a.png", "masks/b.png")
    text = "file,label\nimages/a.png,cat\nimages/b.png,dog\n"
    with pytest.raises(DataError, match=r"images with data\.root, and the table with data\.labels"):
        labels(root, text)
    assert labels(root / "images", labels=str(root / "labels.csv")) == TWO


def test_paths_with_folders_and_accents_find_their_images(tmp_path: Path):
    composed, apart = (unicodedata.normalize(form, "café") for form in ("NFC", "NFD"))
    root = images(tmp_path, f"x/{apart}.png", "x/1.2.840.png", "y/z/1.png", "z/1.png")
    text = f"path,label\nx\\{composed}.png,a\nx/1.2.840,b\ny\\z\\1.png,c\nz/1.png,d\n"
    assert set(labels(root, text).values()) == {"a", "b", "c", "d"}


def test_the_paths_of_another_computer_are_told(tmp_path: Path):
    root = images(tmp_path / "set", "images/a.png", "images/b.png")
    table(root, "path,label\n/kaggle/set/images/a.png,cat\n/kaggle/set/images/b.png,dog\n")
    data = Folder(root=str(root), labels="labels.csv")
    assert given(data) == {"images/a.png": "cat", "images/b.png": "dog"}
    assert any("read without '/kaggle/set/'" in one for one in data.remarks)


def test_a_table_outside_of_the_images_may_name_them_from_where_it_lies(tmp_path: Path):
    root = images(tmp_path / "images", "a.png", "b.png")
    table(tmp_path, "file,label\nimages/a.png,cat\nimages/b.png,dog\n")
    assert labels(root, labels="../labels.csv") == TWO
    assert labels(root, labels=str(tmp_path / "labels.csv")) == TWO


def test_train_csv_beside_train_labels_its_images(tmp_path: Path):
    names = [f"{number:032x}" for number in range(20)]
    root = images(tmp_path, *(f"train/{name}.png" for name in names), "test/a.png", f"test/{names[0]}.png")
    table(root, "id,label\n" + "".join(f"{name},{number % 2}\n" for number, name in enumerate(names)), "train.csv")
    data = Folder(root=str(root), labels="train.csv")
    assert (len(data.train), len(data.test), data.classes) == (18, 2, ["0", "1"])
    said = "\n".join(data.remarks)
    assert "test/ (2 images without labels)" in said
    assert "no row" not in said


def test_folders_of_splits_are_splits_where_the_table_has_none(tmp_path: Path):
    root = images(tmp_path, *(f"{split}/{number}.png" for split in ("train", "val") for number in range(4)))
    rows = "".join(f"{split}/{number}.png,{number % 2}\n" for split in ("train", "val") for number in range(4))
    table(root, f"file,label\n{rows}")
    data = Folder(root=str(root), labels="labels.csv")
    assert (len(data.train), len(data.test), data.layout.test_folder) == (4, 4, "val")
    whole = Folder(root=str(root), labels="labels.csv", read_as="unlabelled")
    assert (len(whole.train), len(whole.test)) == (8, 0)


def test_a_column_of_splits_divides_the_images(tmp_path: Path):
    root = images(tmp_path, *(f"{number}.png" for number in range(8)))
    splits = ["train", "Train", "training", "val", "valid", "test", "", "train"]
    labelled = ["a", "b", "a", "b", "a", "", "a", "b"]
    rows = "".join(
        f"{number},{label},{split}\n" for number, (label, split) in enumerate(zip(labelled, splits, strict=True))
    )
    table(root, f"id,label,Split\n{rows}")
    data = Folder(root=str(root), labels="labels.csv")
    assert [Path(file).stem for file in data.train.files] == ["0", "1", "2", "7"]  # type: ignore[attr-defined]
    assert len(data.test) == 1
    said = "\n".join(data.remarks)
    for words in ("1 test image (split 'val' of labels.csv)", "1 image of the split 'test'", "1 image without a split"):
        assert words in said


def test_images_are_held_out_as_of_class_folders(tmp_path: Path):
    names = [f"{kind}/{number}.png" for kind in ("cat", "dog") for number in range(20)]
    root = images(tmp_path, *names)
    folders = Folder(root=str(root))
    table(root, "file,label\n" + "".join(f"{name},{name[:3]}\n" for name in names))
    data = Folder(root=str(root), labels="labels.csv")
    assert given(data) == given(folders)
    assert data.test.files == folders.test.files  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("file,label\na.png,cat\na,dog\n", "two rows of 'a.png' with different labels ('cat' and 'dog')"),
        ("file,label,split\na,cat,train\na.png,cat,test\n", "two rows of 'a.png' with different splits"),
        ("file,label\nx/c,cat\nc,dog\n", "'c' in 'labels.csv' fits several images, 'x/c.png' and 'y/c.png'"),
        ("picture,label\na,cat\n", "no column for the file"),
        ("file,score\na,1\n", "no column for the label"),
        ("file,label,category\na,1,cat\n", "several columns for the label"),
        ("file,label\n", "no rows"),
        (b" ", "is empty"),
        ("file,label\na,\n", "no label in any row"),
        ("file,label\ngone,cat\n", "no row of 'labels.csv' names an image"),
        ("file,label\na,0.5\nb,1.5\n", "classes are names or whole numbers"),
        ("file,label\na\n", "1 value in line 2, and 2 columns"),
        ("file,label\na,cat,more\n", "3 values in line 2"),
        ('file,label\na,"cat\n', "cannot be read as CSV"),
        ("file,label,split\na,cat,3\n", "the split '3'"),
        ("file,label,split\na,cat,test\n", "of the split 'train'"),
        ("file,label\na,ca\xe9\n".encode("latin-1"), "UTF-8"),
        ("file,label\na,cat\n".encode("utf-16"), "UTF-8"),
    ],
)
def test_a_table_that_does_not_fit_is_refused(text: str | bytes, words: str, tmp_path: Path):
    root = images(tmp_path, "a.png", "b.png", "x/c.png", "y/c.png")
    with pytest.raises(DataError) as refused:
        labels(root, text)
    assert words in str(refused.value)
    assert str(refused.value).startswith("recipe.data.labels: ")


def test_a_table_that_is_not_there_is_refused_with_what_there_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    root = images(tmp_path / "set", "a.png", "b.png")
    table(root, "file,label\na,cat\nb,dog\n", "train.csv")
    with pytest.raises(RecipeError, match=r"does not exist; in the folder of images there is train\.csv") as refused:
        labels(root)
    assert refused.value.key == "labels"
    monkeypatch.chdir(tmp_path)
    with pytest.raises(RecipeError, match=r"read from data\.root"):
        labels(root, labels="set/train.csv")
    with pytest.raises(RecipeError, match="not a table"):
        labels(root, labels=str(tmp_path))
    with pytest.raises(RecipeError, match="labels from folders"):
        labels(root, labels="train.csv", read_as="classes")


def test_a_table_in_parquet_is_read_as_one_in_csv(tmp_path: Path):
    arrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    root = images(tmp_path, "1.png", "2.png", "3.png")
    columns = {"image_id": [1.0, 2.0, 3.0], "label": [3.0, None, 10.0]}
    parquet.write_table(arrow.table(columns), root / "labels.parquet")
    assert labels(root, labels="labels.parquet") == {"1.png": "3", "2.png": None, "3.png": "10"}
    parquet.write_table(arrow.table({"id": ["1", "2"], "label": [["a"], ["b"]]}), root / "lists.parquet")
    (root / "broken.parquet").write_bytes(b"PAR1 and nothing else")
    for name, words in (("lists.parquet", "holds list values"), ("broken.parquet", "cannot be read as Parquet")):
        with pytest.raises(DataError, match=words):
            labels(root, labels=name)


def test_parquet_without_its_library_is_one_message(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    root = images(tmp_path, "1.png")
    table(root, b"PAR1", "labels.parquet")
    monkeypatch.setitem(__import__("sys").modules, "pyarrow.parquet", None)
    with pytest.raises(RecipeError, match=r"pip install 'maskzoo\[data\]'") as refused:
        labels(root, labels="labels.parquet")
    assert refused.value.key == "labels"


def test_a_table_that_may_be_of_labels_is_mentioned(tmp_path: Path):
    root = images(tmp_path, "images/a.png", "images/b.png")
    table(root, "file,label\na,cat\nb,dog\n")
    table(root, "time,loss\n1,2\n", "log.csv")
    said = Folder(root=str(root)).remarks
    assert [one for one in said if "data.labels" in one] == [
        "labels.csv has a column 'label': data.labels = 'labels.csv'"
    ]
    assert not any("data.labels" in one for one in Folder(root=str(root), labels="labels.csv").remarks)


def test_other_labels_are_other_data_and_a_moved_folder_is_the_same(tmp_path: Path):
    root = images(tmp_path / "one", "a.png", "b.png", "c.png")
    found = []
    for last in ("cat", "dog"):
        table(root, f"file,label\na,cat\nb,dog\nc,{last}\n")
        found.append(fingerprint(Folder(root=str(root), labels="labels.csv")))
    assert found[0] != found[1]
    root.rename(tmp_path / "two")
    data = Folder(root=str(tmp_path / "two"), labels="labels.csv")
    assert fingerprint(data) == found[1]
    assert described(data)["labels"] == "labels.csv"


SMALL = {
    "train.pictures": "0", "train.batch_size": "4", "train.device": "cpu", "train.precision": "fp32",
    "train.checkpoint_steps": "2", "evaluation": '["classifier"]',
    "backbone": '{timm="vit_tiny_patch16_224",patch_size=8,image_size=16,options={embed_dim=16,depth=1,num_heads=2}}',
}  # fmt: skip


@pytest.mark.slow
def test_a_run_with_a_table_is_trained_resumed_and_evaluated(tmp_path: Path):
    root = images(tmp_path / "data", *(f"images/{number}.png" for number in range(24)))
    text = "file,label\n" + "".join(f"images/{number}.png,{('cat', 'dog')[number % 2]}\n" for number in range(24))
    table(root, text)
    words = [word for key, value in SMALL.items() for word in ("--set", f"{key}={value}")]

    def maskzoo(*more: object) -> str:
        done = CliRunner().invoke(commands, [str(word) for word in more], env={"COLUMNS": "300"}, prog_name="maskzoo")
        assert not isinstance(done.exception, MaskZooError)
        return f"{done.exit_code} {' '.join(done.output.split())}"

    train = ["train", "--data", root, "--set", "data.labels=labels.csv", "--objective", "classify", "--ratio", "0"]
    train += ["--out", tmp_path / "run", *words]
    first = maskzoo(*train, "--set", "train.steps=2")
    assert first.startswith("0 ")
    assert "2 classes (cat, dog) of labels.csv" in first
    assert 'labels = "labels.csv"' in (tmp_path / "run" / "recipe.toml").read_text()
    assert maskzoo(*train, "--set", "train.steps=2", "--resume").startswith("0 ")
    assert maskzoo("evaluate", tmp_path / "run").startswith("0 ")
    table(root, "file,label\nnothing.png,cat\n")
    refused = maskzoo("evaluate", tmp_path / "run")
    assert refused.startswith("2 ")
    assert "Error: recipe.data.labels: " in refused
