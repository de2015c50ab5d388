"""What a folder is read as, and what is told of what is not used: one table."""

from __future__ import annotations

import os
import tempfile
import unicodedata
from pathlib import Path

import pytest
from helpers import tiny_recipe
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from maskzoo import DataError, RecipeError
from maskzoo.build import build, fingerprint
from maskzoo.data.finding import find
from maskzoo.data.folder import Folder
from maskzoo.data.layout import ReadAs
from maskzoo.data.through_timm import ThroughTimm
from maskzoo.recipe import make
from maskzoo.registry import Registry

NFC, NFD = (unicodedata.normalize(form, "café") for form in ("NFC", "NFD"))


def fill(root: Path, files: str) -> Path:
    """Files as 'cat/*.jpg:3 notes/a.txt': images that nobody opens, so many of each pattern; 'empty/' is a folder."""
    for word in files.split():
        pattern, _, count = word.partition(":")
        for number in range(int(count or 1)):
            path = root / pattern.replace("*", str(number))
            if pattern.endswith("/"):
                path.mkdir(parents=True, exist_ok=True)
                continue
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(b"")
    return root


# files; reading, classes, training and test images; words that are told
READ = [
    ("*.jpg:12", "unlabelled", None, 12, 0, ""),
    ("cat/*.jpg:10 dog/*.jpg:10", "classes", "cat dog", 18, 2, "2 classes (cat, dog), 18 training and 2 test images"),
    # a class called train
    ("bus/*.jpg:20 car/*.jpg:20 train/*.jpg:20", "classes", "bus car train", 54, 6, "'train' is read as a class"),
    ("bus/*.jpg:5 Train/*.jpg:5", "classes", "Train bus", 9, 1, "'Train' is read as a class"),
    ("bus/a/*.jpg:5 bus/b/*.jpg:5 train/ice/*.jpg:5 train/tgv/*.jpg:5", "classes", "bus train", 18, 2, "as a class"),
    ("bus/*.jpg:5 test/*.jpg:5", "classes", "bus test", 9, 1, ""),
    ("bus/*.jpg:5 val/*.jpg:5 validation/*.jpg:5", "classes", "bus val validation", 14, 1, ""),
    # splits
    ("train/cat/*.jpg:5 train/dog/*.jpg:5 test/cat/*.jpg:2 test/dog/*.jpg:2", "splits", "cat dog", 10, 4, "in test/"),
    ("train/cat/*.jpg:5 train/dog/*.jpg:5", "splits", "cat dog", 10, 0, "no test images"),
    ("Train/cat/*.jpg:5 Train/dog/*.jpg:5 Valid/cat/*.jpg:2", "splits", "cat dog", 10, 2, "in Valid/"),
    ("training_set/a/*.jpg:5 training_set/b/*.jpg:5 test_set/a/*.jpg:2", "splits", "a b", 10, 2, ""),
    ("training_set/training_set/a/*.jpg:5 training_set/training_set/b/*.jpg:5 test_set/test_set/a/*.jpg:2",
     "splits", "a b", 10, 2, "in training_set/training_set/"),
    ("train2017/*.jpg:9 val2017/*.jpg:2 test2017/*.jpg:3 annotations/a.json", "splits", None, 9, 3,
     "val2017/ (2 images; one test split is used)"),
    ("train/*.jpg:9 test/*.jpg:2", "splits", None, 9, 2, ""),
    ("train/a/*.jpg:5 train/b/*.jpg:5 test/a/*.jpg:2 val/a/*.jpg:3", "splits", "a b", 10, 2,
     "val/ (3 images; one test split is used)"),
    ("train/a/*.jpg:5 train/b/*.jpg:5 notes/n.txt:1 masks/", "splits", "a b", 10, 0,
     "folders masks/ (empty), notes/ (1 file .txt)"),
    ("train/a/*.jpg:5 train/b/*.jpg:5 test/a/*.jpg:2 masks/*.png:7", "splits", "a b", 10, 2,
     "masks/ (7 images beside the splits)"),
    ("train/a/*.jpg:5 train/b/*.jpg:5 cover.jpg", "splits", "a b", 10, 0, "1 image beside the splits"),
    ("train/a/*.jpg:5 train/b/*.jpg:5 __MACOSX/train/a/._*.jpg:5 .DS_Store", "splits", "a b", 10, 0, ""),
    # ImageNet's: test images without labels
    ("train/a/*.jpg:5 train/b/*.jpg:5 val/a/*.jpg:2 test/*.jpg:7", "splits", "a b", 10, 2,
     "test/ (7 images without labels)"),
    ("train/a/*.jpg:5 train/b/*.jpg:5 val/a/*.jpg:2 test/", "splits", "a b", 10, 2, "folder test/ (empty)"),
    ("train/a/*.jpg:5 train/b/*.jpg:5 val/a/*.jpg:2 test/images/*.jpg:7", "splits", "a b", 10, 2,
     "test/ (7 images without labels)"),
    ("train/a/*.jpg:5 train/b/*.jpg:5 val/a/*.jpg:2 test/00/*.jpg:7 test/01/*.jpg:1", "splits", "a b", 10, 2,
     "test/ (8 images of other classes)"),
    ("train/a/*.jpg:5 train/b/*.jpg:5 test/*.jpg:7", "splits", "a b", 10, 0, "test/ (7 images without labels)"),
    ("train/*.jpg:5 test/a/*.jpg:3 test/b/*.jpg:3", "splits", None, 5, 6, "no labels"),
    # one folder is no class
    ("images/*.jpg:24", "unlabelled", None, 24, 0, "no labels (there is only one folder, 'images')"),
    ("data/images/*.jpg:24 data/readme.txt", "unlabelled", None, 24, 0, "in data/images/"),
    ("cat/*.jpg:3 cat/more/*.jpg:4", "unlabelled", None, 7, 0, "only one folder, 'cat'"),
    ("train/images/*.jpg:5 test/images/*.jpg:2", "splits", None, 5, 2, "no labels"),
    ("train/images/*.jpg:5 train/labels/*.txt:5 valid/images/*.jpg:2 valid/labels/*.txt:2", "splits", None, 5, 2,
     "folders train/labels/ (5 files .txt), valid/labels/ (2 files .txt)"),
    ("train/cat/*.jpg:5 test/cat/*.jpg:2 test/dog/*.jpg:2", "splits", None, 5, 4, "no label"),
    ("photos/cat/*.jpg:10 photos/dog/*.jpg:10", "classes", "cat dog", 18, 2, "in photos/"),
    ("data/train/a/*.jpg:5 data/train/b/*.jpg:5 data/val/a/*.jpg:2", "splits", "a b", 10, 2, "in data/train/"),
    ("images/train/*.jpg:5 images/val/*.jpg:2 labels/train/*.txt:5 labels/val/*.txt:2", "splits", None, 5, 2,
     "folder labels/ (7 files .txt)"),
    ("test/*.jpg:5", "unlabelled", None, 5, 0, ""),
    # endings
    ("cat/*.JPG:5 dog/*.Jpeg:5", "classes", "cat dog", 9, 1, ""),
    ("cat/*.jpg:5 dog/*.jpg:5 cat/*.heic:2 dog/a.txt x.csv", "classes", "cat dog", 9, 1,
     "2 files .heic, 1 file .csv, 1 file .txt"),
    ("cat/*.jpg:5 dog/*.jpg:5 docs/read.md LICENSE", "classes", "cat dog", 9, 1,
     "not used: 1 file without an ending; folder docs/ (1 file .md)"),
    ("cat/*.jpg:5 cat/.x.jpg dog/*.jpg:5", "classes", "cat dog", 9, 1, "1 image with a name that begins with a dot"),
    ("cat/*.jpg:5 dog/*.jpg:5 cat/._*.jpg:5 cat/Thumbs.db cat/.DS_Store .ipynb_checkpoints/*.jpg:2 dog/desktop.ini "
     "@eaDir/x@SynoPhoto.jpg cat/@eaDir/*.jpg:3", "classes", "cat dog", 9, 1, ""),
    ("*.jpg:5 *_mask.png:5 9_mask.png", "unlabelled", None, 11, 0,
     "are 5 images called as a mask of another beside it ('0_mask.png')"),
    ("train/a/*.jpg:5 train/b/*.jpg:5 dev/a/*.jpg:2 eval/a/*.jpg:1", "splits", "a b", 10, 2, "in dev/"),
    ("a/1/2/3/*.jpg:3 b/*.jpg:2 empty/", "classes", "a b", 5, 0, "folder empty/ (empty)"),
    ("a/*.jpg:3 b/*.jpg:2", "classes", "a b", 5, 0, "5 training images, too few to hold every tenth out for testing"),
    ("a/*.jpg:9 b/*.jpg:2", "classes", "a b", 10, 1, "10 training and 1 test image (every tenth held out)"),
]  # fmt: skip


@pytest.mark.parametrize(("files", "reading", "classes", "train", "test", "told"), READ)
def test_a_folder_is_read_by_the_table_and_that_is_told(
    files: str, reading: str, classes: str | None, train: int, test: int, told: str, tmp_path: Path
):
    found = find(fill(tmp_path, files))
    layout = found.layout
    assert layout.reading == reading
    assert layout.classes == (None if classes is None else tuple(classes.split()))
    assert (layout.train, layout.test) == (train, test) == (len(found.train), len(found.test))
    assert told in "\n".join(layout.lines())
    if told == "":
        assert "not used" not in "\n".join(layout.lines())
    if classes is not None:
        assert found.train_labels is not None
        assert sum(here for here, _ in layout.counts.values()) == train
        for file, label in zip(found.train, found.train_labels, strict=True):
            assert layout.classes[label] in Path(file).parts


REFUSED = [
    ("*.jpg:3 cat/*.jpg:10 dog/*.jpg:4", None, r"both loose images \(3, '0.jpg'\) .*\(cat, dog; 14\).*read_as"),
    ("train/*.jpg:4 test/*.jpg:4 masks/*.png:4", None, r"two ways: 'train' is .*masks are not used .*3 folders"),
    ("bus/*.jpg:4 car/*.jpg:4 train/*.jpg:4 val/*.jpg:4", None, r"in two ways.*\"splits\"\).*\"classes\"\)"),
    ("train/a/*.jpg:4 train/b/*.jpg:4 extra/*.jpg:4", None, "in two ways"),
    ("train/a/*.jpg:4 train/b/*.jpg:4 extra/a/*.jpg:4 extra/b/*.jpg:1", None, "in two ways"),
    ("train/*.jpg:4 training/*.jpg:4", None, "holds train, training, each of which could be"),
    ("val/a/*.jpg:4 test/b/*.jpg:4", None, "holds test, val, and no 'train'"),
    ("train/ test/a/*.jpg:4 test/b/*.jpg:4", None, "holds test, and no images in 'train'; fill it"),
    ("images/*.jpg:4 masks/*.png:4", None, r"look like images and their masks.*data.root.*images'.*read_as"),
    ("train/images/*.jpg:4 train/masks/*.png:4", None, "look like images and their masks"),
    ("cat/*.jpg:4 dog/*.heic:4 dog/a.txt", None, r"dog' holds 4 files .heic, 1 file .txt, and none that ends .*\.jpg"),
    ("cat/*.jpg:4 dog/*.xyz:4", None, "dog' holds 4 files .xyz"),
    ("train/cat/*.jpg:4 train/dog/*.heic:4 test/cat/*.jpg:4", None, "dog' holds 4 files .heic"),
    ("train/a/*.jpg:4 train/b/*.jpg:4 test/a/*.jpg:1 test/c/*.jpg:1", None, "has the class 'c', which the training"),
    ("train/a/*.jpg:4 train/b/*.jpg:4 test/c/*.jpg:1", None, "has the class 'c'.*theirs are a, b"),
    ("*.txt:3", None, r"holds no images; these would be files that end in \.jpg.*; there are 3 files .txt"),
    ("*.zip:2", None, "there are 2 files .zip. Unpack"),
    ("*.tar:2", None, "shards"),
    ("*.parquet:2", None, "Hugging Face"),
    (f"{NFC}/*.jpg:2 {NFD}/*.jpg:2", None, "2 folders called 'café'"),
    ("cat/*.jpg:4 dog/*.jpg:4", "splits", "no folder 'train'"),
    ("*.jpg:4", "classes", "no two folders of images"),
]  # fmt: skip


@pytest.mark.parametrize(("files", "read_as", "words"), REFUSED)
def test_what_the_table_does_not_tell_is_refused_with_what_would_be_right(
    files: str, read_as: ReadAs | None, words: str, tmp_path: Path
):
    with pytest.raises(DataError, match=words) as caught:
        find(fill(tmp_path, files), read_as)
    assert "\n" not in str(caught.value)


ASKED = [
    ("bus/*.jpg:5 train/*.jpg:5", "splits", None, 5, 0),
    ("bus/*.jpg:5 train/*.jpg:5", "classes", "bus train", 9, 1),
    ("bus/*.jpg:5 train/*.jpg:5", "unlabelled", None, 10, 0),
    ("train/a/*.jpg:5 train/b/*.jpg:5 test/a/*.jpg:5", "classes", "test train", 14, 1),
    ("train/a/*.jpg:5 train/b/*.jpg:5 test/a/*.jpg:5", "unlabelled", None, 15, 0),
    ("x.jpg cat/*.jpg:5 dog/*.jpg:5", "classes", "cat dog", 9, 1),
    ("x.jpg cat/*.jpg:5 dog/*.jpg:5", "unlabelled", None, 11, 0),
    ("images/*.jpg:5 masks/*.jpg:5", "classes", "images masks", 9, 1),
    ("cat/*.jpg:5 dog/*.heic:5", "unlabelled", None, 5, 0),
]


@pytest.mark.parametrize(("files", "read_as", "classes", "train", "test"), ASKED)
def test_read_as_decides(files: str, read_as: ReadAs, classes: str | None, train: int, test: int, tmp_path: Path):
    layout = find(fill(tmp_path, files), read_as).layout
    assert layout.classes == (None if classes is None else tuple(classes.split()))
    assert (layout.train, layout.test) == (train, test)


ARRAYS = (".jpg", ".npy", ".npz", ".h5")
MIXED = [
    ("cat/*.jpg:5 dog/*.jpg:5 labels.npy cat/*.npy:5", "cat dog", 9, "6 files .npy"),
    ("cat/*.npy:6 dog/*.npy:6 cover.jpg", "cat dog", 11, "1 file .jpg"),
    ("cat/*.npy:6 dog/*.npy:6", "cat dog", 11, ""),
]


@pytest.mark.parametrize(("files", "classes", "train", "told"), MIXED)
def test_arrays_are_images_unless_they_lie_beside_pictures(
    files: str, classes: str, train: int, told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("maskzoo.data.finding.EXTENSIONS", ARRAYS)
    layout = find(fill(tmp_path, files)).layout
    assert (layout.classes, layout.train) == (tuple(classes.split()), train)
    assert told in "\n".join(layout.lines())


def test_endings_say_what_is_an_image(tmp_path: Path):
    fill(tmp_path, "cat/*.jpg:5 dog/*.jpg_large:5 cat/*.npy:5")
    with pytest.raises(DataError, match=r"5 files \.jpg_large, .*`data\.endings`"):
        find(tmp_path)
    assert find(tmp_path, None, [".jpg", ".jpg_large"]).layout.train == 9
    with pytest.raises(DataError, match="none of the 9 images that were looked at can be read"):
        Folder(root=str(tmp_path), endings=(".JPG", ".jpg_large"), size=8)
    assert find(tmp_path, None, [".npy", ".jpg_large"]).layout.train == 9
    for wrong in ((), ("jpg",), (".",)):
        with pytest.raises(RecipeError, match="endings with their dot"):
            Folder(root=str(tmp_path), endings=wrong)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("photo.JPG", "is a single image; `data.root` must name a folder of images"),
        ("photos.zip", "is an archive; `data.root` must name a folder of images, so unpack it"),
        ("photos.tar", "so unpack it, or name its folder with data.use = .shards."),
        ("notes.txt", "is a file; `data.root` must name a folder of images"),
    ],
)
def test_a_root_that_is_a_file_is_refused_with_what_to_do(name: str, words: str, tmp_path: Path):
    (tmp_path / name).write_bytes(b"x")
    with pytest.raises(DataError, match=words):
        Folder(root=str(tmp_path / name))


def test_an_unknown_reading_is_refused_by_its_key(tmp_path: Path):
    fill(tmp_path, "a/*.jpg:2")
    with pytest.raises(RecipeError, match="read_as"):
        make(Registry(), "dataset", {"use": "folder", "root": str(tmp_path), "read_as": "trains"}, "recipe.data")


def test_composed_and_decomposed_accents_are_one_class(tmp_path: Path):
    fill(tmp_path, f"train/{NFC}/*.jpg:4 train/bar/*.jpg:4 test/{NFD}/*.jpg:3")
    found = find(tmp_path)
    assert found.layout.classes == ("bar", NFC)
    assert found.test_labels == [1, 1, 1]
    assert "the class café is encoded in two ways" in "\n".join(found.layout.lines())


@pytest.mark.parametrize("objective", ["classify", "masksub"])
def test_what_needs_labels_is_told_that_a_single_folder_is_none(objective: str, tmp_path: Path):
    (tmp_path / "images").mkdir()
    for number in range(4):
        Image.new("RGB", (8, 8), (number, 0, 0)).save(tmp_path / "images" / f"{number}.png")
    dataset = Folder(root=str(tmp_path), size=8)
    recipe = tiny_recipe(objective=objective, train={"steps": 2, "batch_size": 2})
    with pytest.raises(RecipeError, match=rf"'{objective}' needs labels, .* there is only one folder, 'images'"):
        build(recipe, dataset, Registry(), steps_in_epoch=2)


def test_files_without_an_ending_are_read_if_they_begin_as_images_do(tmp_path: Path):
    for name in ("cat", "dog"):
        (tmp_path / name).mkdir()
        for number in range(3):
            with (tmp_path / name / f"photo-{number}").open("wb") as file:
                Image.new("RGB", (4, 4), (number, 0, 0)).save(file, "JPEG")
        (tmp_path / name / "README").write_text("hello")
    dataset = Folder(root=str(tmp_path))
    assert len(dataset.train) == 6
    assert dataset.train[0].image.shape == (3, 4, 4)
    assert "2 files without an ending" in dataset.remarks[1]


def test_a_class_whose_images_have_a_wrong_ending_is_refused(tmp_path: Path):
    fill(tmp_path, "cat/*.jpg:3 dog/")
    with (tmp_path / "dog" / "1.txt").open("wb") as file:
        Image.new("RGB", (4, 4)).save(file, "PNG")
    with pytest.raises(DataError, match=r"dog' holds 1 file \.txt"):
        find(tmp_path)


# ------------------------------------------------------------------------------------------------- timm's own reader
def test_timm_takes_composed_and_decomposed_accents_for_one_class_and_tells_what_it_passes_over(tmp_path: Path):
    for place, number in ((f"train/{NFC}", 3), ("train/bar", 3), (f"test/{NFD}", 2)):
        for count in range(number):
            (tmp_path / place).mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (8, 8)).save(tmp_path / place / f"{count}.png")
    fill(tmp_path, "train/bar/*.gif:4")
    dataset = ThroughTimm(root=str(tmp_path), test_split="test")
    assert dataset.classes == ["bar", NFC]
    assert [dataset.test[number].label for number in range(2)] == [1, 1]
    assert "not used: 4 files .gif" in dataset.remarks[0]


def test_test_images_that_timm_would_drop_are_refused(tmp_path: Path):
    for place in ("train/a", "train/b", "test/a", "test/c"):
        (tmp_path / place).mkdir(parents=True)
        Image.new("RGB", (8, 8)).save(tmp_path / place / "1.png")
    with pytest.raises(DataError, match=r"has class 'c' \(1 image\), which the training images do not have"):
        ThroughTimm(root=str(tmp_path), test_split="test")


# --------------------------------------------------------------------------------------------------------------- links
def test_links_are_followed_and_those_that_lead_back_up_or_nowhere_do_no_harm(tmp_path: Path):
    fill(tmp_path, "elsewhere/*.jpg:3 data/cat/*.jpg:2 data/dog/*.jpg:2")
    data = tmp_path / "data"
    (data / "emu").symlink_to(tmp_path / "elsewhere")
    (data / "cat" / "loop").symlink_to(data / "cat")
    (data / "cat" / "up").symlink_to(tmp_path)
    (data / "dog" / "itself").symlink_to(data / "dog" / "itself")
    (data / "dog" / "gone.jpg").symlink_to(tmp_path / "nowhere")
    (data / "fox").symlink_to(tmp_path / "unmounted")
    layout = find(data).layout
    assert layout.counts == {"cat": (2, 0), "dog": (3, 0), "emu": (3, 0)}
    assert "links that lead nowhere: fox, dog/itself" in layout.lines()[1]


def test_a_folder_that_is_linked_twice_into_a_class_counts_once_and_into_two_classes_twice(tmp_path: Path):
    fill(tmp_path, "elsewhere/*.jpg:3 data/cat/ data/dog/")
    for place in ("cat/one", "cat/two", "dog/one"):
        (tmp_path / "data" / place).symlink_to(tmp_path / "elsewhere")
    assert find(tmp_path / "data").layout.counts == {"cat": (3, 0), "dog": (3, 0)}


def test_a_pipe_with_an_image_s_name_is_no_image(tmp_path: Path):
    fill(tmp_path, "a/*.jpg:3 b/*.jpg:3")
    os.mkfifo(tmp_path / "a" / "pipe.jpg")
    assert find(tmp_path).layout.train == 6


@pytest.mark.parametrize("closed", ["dog", "cat/inner", "train/cat", "lost+found"])
def test_what_cannot_be_listed_is_refused_where_it_would_be_data(
    closed: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    fill(tmp_path, f"cat/*.jpg:3 dog/*.jpg:3 {closed}/")
    listed = os.scandir

    def scandir(path: str) -> object:
        if str(path).endswith(closed):
            raise PermissionError(13, "Permission denied")
        return listed(path)

    monkeypatch.setattr("maskzoo.data.survey.os.scandir", scandir)
    if closed == "lost+found":
        assert find(tmp_path).layout.classes == ("cat", "dog")
        return
    with pytest.raises(DataError, match=rf"{closed}' cannot be listed \(Permission denied\); make it readable"):
        find(tmp_path)


# ------------------------------------------------------------------------------------------------------------- told
def test_long_lists_are_shortened(tmp_path: Path):
    fill(tmp_path, " ".join(f"class-{number:03}/1.jpg n{number}/a.txt" for number in range(30)))
    lines = find(tmp_path).layout.lines()
    assert len(lines) == 2
    assert "30 classes (class-000, class-001, class-002, class-003 and 26 more)" in lines[0]
    assert (
        "folders n0/ (1 file .txt), n1/ (1 file .txt), n10/ (1 file .txt), n11/ (1 file .txt) and 26 more" in lines[1]
    )


def test_names_are_told_so_that_a_terminal_obeys_none(tmp_path: Path):
    fill(tmp_path, "a\x1b[31m/*.jpg:2 b/*.jpg:2 c\x1b/x.txt d.\x1b")
    assert "\x1b" not in "".join(find(tmp_path).layout.lines())


def test_images_are_in_the_order_that_they_ever_were(tmp_path: Path):
    fill(tmp_path, "b/2/*.jpg:2 b/*.jpg:2 b/10.jpg a/*.jpg:1 B/*.jpg:1")
    found = find(tmp_path)
    inside = [os.path.relpath(file, tmp_path) for file in found.train]
    assert inside == ["B/0.jpg", "a/0.jpg", "b/0.jpg", "b/1.jpg", "b/10.jpg", "b/2/0.jpg", "b/2/1.jpg"]


def test_fingerprints_of_labelled_folders_are_those_of_older_versions(tmp_path: Path):
    for name in ("cat", "dog"):
        for number in range(10):
            (tmp_path / name).mkdir(exist_ok=True)
            Image.new("RGB", (8, 8), (number, 0, 0)).save(tmp_path / name / f"{number}.png")
    assert fingerprint(Folder(str(tmp_path))) == "18 images, 67b79690f3aefd61"


# ------------------------------------------------------------------------------------------------- nothing is dropped
NAMES = ["cat", "dog", "train", "test", "val", "images", "Train", "masks", "runs", "a"]
FILES = ["0.jpg", "1.JPG", "2.png", "x.txt", "y.heic", ".DS_Store", "noend", "f.npy"]
TREES = st.recursive(
    st.lists(st.sampled_from(FILES), max_size=4, unique=True),
    lambda inner: st.dictionaries(st.sampled_from(NAMES), inner, max_size=4).map(lambda folders: folders),
    max_leaves=12,
)


def plant(root: Path, tree: object) -> None:
    root.mkdir(parents=True, exist_ok=True)
    if isinstance(tree, dict):
        for name, inner in tree.items():
            plant(root / name, inner)
    else:
        for name in tree:  # type: ignore[attr-defined]
            (root / name).touch()


@settings(max_examples=25)
@given(tree=TREES, loose=st.lists(st.sampled_from(FILES), max_size=2, unique=True))
@pytest.mark.parametrize("read_as", [None, "classes", "splits", "unlabelled"])
def test_every_image_is_read_or_told_and_every_refusal_says_what_to_do(
    read_as: ReadAs | None, tree: object, loose: list[str]
):
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        plant(root, tree)
        plant(root, loose)
        try:
            found = find(root, read_as)
        except DataError as refused:
            words = str(refused)
            assert any(mark in words for mark in (";", "`data."))
            return
        there = {str(path) for path in root.rglob("*") if path.suffix.lower() in (".jpg", ".png", ".npy")}
        used = {*found.train, *found.test}
        assert used <= there
        assert len(found.train) + len(found.test) == len(used) == found.layout.train + found.layout.test
        if there - used:
            assert found.layout.unused
        if found.classes is not None:
            assert len(found.classes) > 1
            assert len(set(found.classes)) == len(found.classes)
            assert set(found.train_labels or ()) | set(found.test_labels or ()) == set(range(len(found.classes)))
