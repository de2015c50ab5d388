from __future__ import annotations

import io
import itertools
import json
import logging
import tarfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from test_data import fashion_files
from torch import Tensor

from maskzoo.data.batches import batches
from maskzoo.data.contents import cache_folder
from maskzoo.data.fashion_mnist import FashionMnist
from maskzoo.data.shards import Shards
from maskzoo.data.through_timm import ThroughTimm
from maskzoo.errors import DataError, RecipeError
from maskzoo.evaluation.features import evenly_spread
from maskzoo.protocols import Batch, Stream
from maskzoo.recipe import describe, make
from maskzoo.registry import Registry

pytestmark = [
    # What a machine with few cores, or a Python that dislikes forks, has to say of workers.
    pytest.mark.filterwarnings("ignore:This DataLoader will create", "ignore:.*multi-threaded.*fork"),
    # What the libraries below do at their import, or with files that they leave to the collector.
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::ResourceWarning"),
]


@pytest.fixture(autouse=True)
def own_caches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def picture(number: int, format: str = "PNG") -> bytes:
    """An image whose every pixel says its number."""
    held = io.BytesIO()
    Image.new("RGB", (12, 10), (number, number, number)).save(held, format)
    return held.getvalue()


def number_of(image: Tensor) -> int:
    return int(image[0, 5, 5])


def write_shards(
    root: Path, shards: int = 4, each: int = 6, name: str = "train", label: str = "cls", first: int = 0
) -> Path:
    """Shards of images that are numbered through; image n is of class n % 3."""
    root.mkdir(parents=True, exist_ok=True)
    for shard in range(shards):
        with tarfile.open(root / f"{name}-{shard:04d}.tar", "w") as tar:
            for number in range(first + shard * each, first + (shard + 1) * each):
                files = {"png": picture(number)}
                if label == "cls":
                    files["cls"] = f"{number % 3}\n".encode()
                elif label == "json":
                    files["json"] = json.dumps({"class": number % 3, "author": "nobody"}).encode()
                for ending, content in files.items():
                    member = tarfile.TarInfo(f"part/{number:05d}.{ending}")
                    member.size = len(content)
                    tar.addfile(member, io.BytesIO(content))
    return root


def write_folder(root: Path, classes: Sequence[str] = ("ant", "bee", "cat"), each: int = 4, first: int = 0) -> Path:
    numbers = itertools.count(first)
    for name in classes:
        (root / name).mkdir(parents=True, exist_ok=True)
        for _ in range(each):
            number = next(numbers)
            (root / name / f"{number}.png").write_bytes(picture(number))
    return root


def some(dataset: Any, **options: Any) -> list[Batch]:
    options = {"size": (8, 8), "batch_size": 4, "seed": 0, "start": 0, "steps": 8} | options
    return list(batches(dataset, **options))


def same(first: Sequence[Batch], second: Sequence[Batch]) -> bool:
    return len(first) == len(second) and all(
        torch.equal(one.images, other.images)
        and torch.equal(one.index, other.index)
        and (one.labels is None) == (other.labels is None)
        and (one.labels is None or torch.equal(one.labels, other.labels))
        for one, other in zip(first, second, strict=True)
    )


# -------------------------------------------------------------------------------------------------------------- shards
def test_shards_are_a_split_of_the_images_where_they_lie(tmp_path: Path) -> None:
    write_shards(tmp_path / "data")
    write_shards(tmp_path / "data", name="val", shards=1, first=100)
    dataset = Shards(root=str(tmp_path / "data"), test_split="val-*.tar")
    assert (len(dataset.train), len(dataset.test)) == (24, 6)
    assert [number_of(dataset.train[index].image) for index in range(24)] == list(range(24))
    assert [dataset.train[index].label for index in range(24)] == [number % 3 for number in range(24)]
    assert number_of(dataset.test[5].image) == 105
    assert (dataset.size, dataset.channels, dataset.classes) == ((10, 12), 3, ["0", "1", "2"])
    assert not isinstance(dataset.train, Stream)
    whole = some(dataset, steps=12)
    assert same(some(dataset, steps=12, workers=2), whole)
    assert same(some(dataset, start=7, steps=12, workers=1), whole[7:])


@pytest.mark.parametrize("split", ["train-*.tar", "train-{0000..0003}.tar", "train-000{0..3}.tar", "training"])
def test_shards_are_named_by_a_pattern_a_range_or_a_list(tmp_path: Path, split: str) -> None:
    write_shards(tmp_path)
    files = [f"train-{number:04d}.tar" for number in range(4)]
    (tmp_path / "_info.json").write_text(json.dumps({"splits": {"training": {"filenames": files}}}))
    assert len(Shards(root=str(tmp_path), train_split=split).train) == 24


def test_labels_are_found_in_json_or_not_at_all(tmp_path: Path) -> None:
    write_shards(tmp_path / "json", label="json")
    labelled = Shards(root=str(tmp_path / "json"), label_key="json:class")
    assert [labelled.train[index].label for index in range(4)] == [0, 1, 2, 0]
    assert Shards(root=str(tmp_path / "json")).classes is None
    write_shards(tmp_path / "bare", label="")
    assert Shards(root=str(tmp_path / "bare")).train[0].label is None
    with pytest.raises(DataError, match=r"holds 'nobody' instead of a class's number.*label_key"):
        Shards(root=str(tmp_path / "json"), label_key="json:author")
    with pytest.raises(DataError, match="label_key"):
        Shards(root=str(tmp_path / "json"), label_key="json:taste")


@pytest.mark.parametrize(
    "kept",
    [None, [[-1, 5, 0]], [[0, 10**9, 0]], [[0, 5, -7]], [[0.0, 5.0, 0.0]], [0, 5, 0], [[0, 5]], "text"],
    ids=repr,
)
def test_a_damaged_index_of_shards_is_made_anew(kept: object, tmp_path: Path) -> None:
    root = write_shards(tmp_path / "data", shards=1)
    Shards(root=str(root))
    (index,) = cache_folder().glob("*.npz")
    if kept is None:
        index.write_bytes(b"")  # as a power cut leaves it
    else:
        np.savez(index, table=kept, about=np.array('{"passed": {}, "alone": 0, "example": ""}'))
    data = Shards(root=str(root)).train
    assert [number_of(data[place].image) for place in range(len(data))] == list(range(6))


def test_what_shards_hold_is_kept_and_looked_up_anew_when_they_change(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = write_shards(tmp_path / "data")
    Shards(root=str(root))
    assert len(list(cache_folder().iterdir())) == 4
    with monkeypatch.context() as patch:
        patch.setattr("tarfile.open", None)  # not needed any more
        assert len(Shards(root=str(root)).train) == 24
    write_shards(root, shards=1, each=9)
    assert len(Shards(root=str(root)).train) == 27
    monkeypatch.setenv("XDG_CACHE_HOME", "/dev/null")  # where nothing can be kept
    assert len(Shards(root=str(root)).train) == 27


def test_a_broken_image_in_a_shard_is_named_and_replaced(tmp_path: Path) -> None:
    root = write_shards(tmp_path / "data")
    dataset = Shards(root=str(root))
    place = int(dataset.train.start[7])
    with (root / "train-0001.tar").open("r+b") as shard:
        shard.seek(place)
        shard.write(b"rubbish!" * 4)
    with pytest.raises(DataError, match=rf"the image at byte {place} of '.*train-0001\.tar' is no image"):
        dataset.train[7]
    (told,) = [sentence for batch in some(dataset, steps=6) for sentence in batch.broken]
    assert "train-0001.tar" in told


def test_shards_that_are_missing_broken_or_empty_are_told_of_with_a_sentence(tmp_path: Path) -> None:
    root = write_shards(tmp_path / "data")
    with pytest.raises(RecipeError, match=r"no shard in '.*' is meant by 'val-\*\.tar'") as caught:
        Shards(root=str(root), test_split="val-*.tar")
    assert caught.value.key == "test_split"
    with pytest.raises(RecipeError, match="among the training images too"):
        Shards(root=str(root), test_split="train-0001.tar")
    with pytest.raises(DataError, match=r"train-0004\.tar' is missing"):
        Shards(root=str(root), train_split="train-{0000..0004}.tar")
    with pytest.raises(DataError, match=r"hold no images.*jpg, jpeg, png, webp"):
        Shards(root=str(write_text_shard(tmp_path / "texts")))
    with pytest.raises(RecipeError, match="label 2") as caught:
        Shards(root=str(root), class_count=2)
    assert caught.value.key == "class_count"
    content = (root / "train-0002.tar").read_bytes()
    for broken in (content[:3000], b"no tar file", b"\x1f\x8b" + content):
        (root / "train-0002.tar").write_bytes(broken)
        with pytest.raises(DataError, match=r"train-0002\.tar' is no whole, uncompressed tar file"):
            Shards(root=str(root))


def write_text_shard(root: Path) -> Path:
    root.mkdir()
    with tarfile.open(root / "train-0.tar", "w") as tar:
        tar.addfile(tarfile.TarInfo("a.txt"))
    return root


def test_shards_whose_folder_is_gone_are_told_of_as_a_folder(tmp_path: Path) -> None:
    dataset = Shards(root=str(write_shards(tmp_path / "data")))
    (tmp_path / "data").rename(tmp_path / "elsewhere")
    with pytest.raises(DataError, match=r"^the folder '.*data' cannot be opened any more"):
        some(dataset)


# ------------------------------------------------------------------------------------------------- timm, by its readers
def test_timm_opens_a_folder_with_the_training_classes_for_both_splits(tmp_path: Path) -> None:
    write_folder(tmp_path / "train")
    write_folder(tmp_path / "val", ("bee", "cat"), first=50)
    dataset = ThroughTimm(root=str(tmp_path), test_split="val")
    assert dataset.classes == ["ant", "bee", "cat"]
    assert (len(dataset.train), len(dataset.test)) == (12, 8)
    assert {number_of(dataset.test[i].image): dataset.test[i].label for i in (0, 7)} == {50: 1, 57: 2}
    assert dataset.train[0].image.dtype == torch.uint8
    assert dataset.size == (10, 12)
    assert len(dataset.train.files) == 12
    whole = some(dataset)
    assert same(some(dataset, workers=2), whole)


def test_timm_finding_one_folder_for_both_splits_is_refused(tmp_path: Path) -> None:
    write_folder(tmp_path)
    with pytest.raises(RecipeError, match="the test images would be the training images") as caught:
        ThroughTimm(root=str(tmp_path), test_split="validation")
    assert caught.value.key == "test_split"
    dataset = ThroughTimm(root=str(tmp_path), labels=False)
    assert (len(dataset.train), len(dataset.test), dataset.classes) == (12, 0, None)
    assert dataset.train[3].label is None


def test_timm_opens_a_tar_file_that_several_workers_may_read(tmp_path: Path) -> None:
    write_folder(tmp_path / "photos", each=30)
    with tarfile.open(tmp_path / "photos.tar", "w") as tar:
        tar.add(tmp_path / "photos", arcname=".")
    dataset = ThroughTimm(root=str(tmp_path / "photos.tar"))
    assert dataset.classes == ["ant", "bee", "cat"]
    for index in (0, 89):
        sample = dataset.train[index]  # read here before the workers are forked
        assert sample.label == number_of(sample.image) // 30
    options = {"size": (10, 12), "scale": (1.0, 1.0), "flip": False, "steps": 22}
    for batch in some(dataset, workers=2, **options):
        values = (batch.images[:, 0, 5, 5] * dataset.std[0] + dataset.mean[0]) * 255
        assert torch.equal((values.round() // 30).long(), batch.labels)


def test_timm_opens_torchvisions_data_sets(tmp_path: Path) -> None:
    fashion_files(tmp_path / "FashionMNIST" / "raw")
    dataset = ThroughTimm(source="torch/fashion_mnist", root=str(tmp_path), test_split="test", channels=1)
    assert (len(dataset.train), len(dataset.test), len(dataset.classes)) == (12, 5, 10)
    assert (dataset.size, dataset.train[11].label) == ((28, 28), 1)
    assert torch.equal(dataset.train[3].image, FashionMnist(root=str(tmp_path)).train[3].image)
    write_folder(tmp_path / "photos")
    photos = {"source": "torch/image_folder", "root": str(tmp_path / "photos")}
    assert ThroughTimm(**photos).classes == ["ant", "bee", "cat"]
    with pytest.raises(RecipeError, match="the test images would be the training images"):
        ThroughTimm(**photos, test_split="val")


def test_a_broken_image_is_named_and_a_vanished_folder_too(tmp_path: Path) -> None:
    write_folder(tmp_path / "data")
    dataset = ThroughTimm(root=str(tmp_path / "data"))
    broken = dataset.train.files.index("bee/5.png")
    (tmp_path / "data" / "bee" / "5.png").write_bytes(b"rubbish")
    with pytest.raises(DataError, match=rf"image {broken} of '.*data' \('.*5\.png'\) is no image"):
        dataset.train[broken]
    (tmp_path / "data").rename(tmp_path / "elsewhere")
    with pytest.raises(DataError, match=r"^the folder '.*data' cannot be opened any more"):
        some(dataset)


def test_what_timm_cannot_open_is_told_of_in_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"timm cannot open the split 'train' of '' in '.*nowhere'") as caught:
        ThroughTimm(root=str(tmp_path / "nowhere"))
    assert "\n" not in str(caught.value)
    with pytest.raises(RecipeError, match="say where the images are"):
        ThroughTimm()
    with pytest.raises(RecipeError, match="MaskZoo's to set"):
        ThroughTimm(root=str(tmp_path), options={"seed": 3})
    with pytest.raises(DataError, match="Unknown torchvision dataset nonsense"):
        ThroughTimm(source="torch/nonsense", root=str(tmp_path))
    with pytest.raises(RecipeError, match="unexpected keyword") as refused:
        ThroughTimm(root=str(write_folder(tmp_path / "data")), options={"colour": "blue"})
    assert refused.value.key == "options"


@pytest.mark.parametrize(
    ("source", "package", "install"),
    [
        ("hfds/anything", "datasets", r"pip install 'maskzoo\[data\]'"),
        ("HFIDS/anything", "datasets", r"pip install 'maskzoo\[data\]'"),
        ("wds/anything", "webdataset", r"pip install 'maskzoo\[data\]'"),
        ("tfds/anything", "tensorflow-datasets", "pip install tensorflow tensorflow-datasets"),
    ],
)
def test_a_package_that_is_not_installed_is_named_with_the_way_to_get_it(
    source: str, package: str, install: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("maskzoo.data.through_timm.find_spec", lambda name: None)
    with pytest.raises(RecipeError, match=f"needs the package {package}, which is not installed: {install}") as caught:
        ThroughTimm(source=source)
    assert caught.value.key == "source"


def test_a_recipe_names_timms_data_by_use(tmp_path: Path) -> None:
    write_folder(tmp_path)
    use = {"use": "timm", "root": str(tmp_path), "size": [16, 16], "mean": [0.5, 0.5, 0.5]}
    dataset = make(Registry(), "dataset", use, "recipe.data")
    assert (dataset.size, dataset.mean) == ((16, 16), (0.5, 0.5, 0.5))
    assert describe(dataset)["use"] == "timm"
    assert make(Registry(), "dataset", describe(dataset), "recipe.data").size == (16, 16)
    with pytest.raises(RecipeError, match=r"^recipe\.data\.mean: must have 3 values"):
        make(Registry(), "dataset", {**use, "mean": [0.5]}, "recipe.data")


# --------------------------------------------------------------------------------------------------------- hugging face
@pytest.fixture
def hugging(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A data set of two parquet files, with a column of images, one of labels and one of texts."""
    datasets = pytest.importorskip("datasets")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("datasets.config.SLEEP_TIME_ON_THREADS_SHUTDOWN", 0)  # 5 s at the end of each share
    datasets.disable_progress_bars()
    features = datasets.Features(
        {
            "image": datasets.Image(),
            "label": datasets.ClassLabel(names=["ant", "bee", "cat"]),
            "title": datasets.Value("string"),
        }
    )
    for split, numbers in (("train", range(24)), ("test", range(100, 108))):
        rows = [{"image": {"bytes": picture(n), "path": None}, "label": n % 3, "title": f"no. {n}"} for n in numbers]
        whole = datasets.Dataset.from_list(rows, features=features)
        (tmp_path / "hf" / "data").mkdir(parents=True, exist_ok=True)
        for part in range(4):
            whole.shard(4, part).to_parquet(tmp_path / "hf" / "data" / f"{split}-0000{part}-of-00004.parquet")
    return tmp_path / "hf"


@pytest.mark.slow
def test_timm_opens_a_data_set_of_hugging_faces(hugging: Path, tmp_path: Path) -> None:
    dataset = ThroughTimm(source=f"hfds/{hugging}", root=str(tmp_path / "hub"), test_split="test")
    assert (len(dataset.train), len(dataset.test), dataset.classes) == (24, 8, ["ant", "bee", "cat"])
    assert dataset.train[10].label == number_of(dataset.train[10].image) % 3
    assert number_of(dataset.test[7].image) == 107
    assert not isinstance(dataset.train, Stream)
    whole = some(dataset)
    assert same(some(dataset, workers=2), whole)
    with pytest.raises(RecipeError, match=r"label 'no\. 0', which is no class's number"):
        ThroughTimm(
            source=f"hfds/{hugging}", root=str(tmp_path / "hub"), options={"target_key": "title"}, class_count=3
        )
    unlabelled = {"target_key": "title"}
    dataset = ThroughTimm(source=f"hfds/{hugging}", root=str(tmp_path / "hub"), options=unlabelled, labels=False)
    assert dataset.train[0].label is None
    with pytest.raises(RecipeError, match=r"has no 'sex'; name what there is with options\.input_key"):
        ThroughTimm(source=f"hfds/{hugging}", root=str(tmp_path / "hub"), options={"target_key": "sex"}, class_count=3)


@pytest.mark.slow
def test_timm_streams_a_data_set_of_hugging_faces(hugging: Path, tmp_path: Path) -> None:
    common = {"source": f"hfids/{hugging}", "root": str(tmp_path / "hub"), "size": 8, "shares": 2, "class_count": 3}
    dataset = ThroughTimm(**common, train_images=24, test_split="test", test_images=8)
    assert isinstance(dataset.train, Stream)
    check_a_stream(dataset)
    assert sorted(number_of(dataset.test[index].image) for index in range(8)) == list(range(100, 108))
    with pytest.raises(DataError, match="Dataset length is unknown"):
        ThroughTimm(**common)


# ------------------------------------------------------------------------------------------------- webdataset's streams
def check_a_stream(dataset: ThroughTimm) -> None:
    """A stream of images 0 to 23 is shuffled, complete, and the same for any number of workers and processes."""
    whole = some(dataset, steps=12)
    for epoch in (whole[:6], whole[6:]):
        index = torch.cat([batch.index for batch in epoch])
        assert sorted(index.tolist()) == list(range(24))
    for order in (0, 1):
        seen = [number_of(s.image) for share in range(dataset.train.shares) for s in dataset.train.read(order, share)]
        assert sorted(seen) == list(range(24))
        assert seen != sorted(seen)
    labels = torch.cat([batch.labels for batch in whole])
    assert not torch.equal(labels[:24], labels[24:])
    for workers in (1, 2, 4):
        assert same(some(dataset, steps=12, workers=workers), whole)
    assert same(some(dataset, start=3, steps=12, workers=2), whole[3:])
    halves = [some(dataset, steps=12, rank=rank, world=2, workers=rank) for rank in range(2)]
    assert torch.equal(torch.cat([halves[0][9].images, halves[1][9].images]), whole[9].images)
    chosen = [dataset.train[index] for index in evenly_spread(24, 10)]
    assert [sample.label for sample in chosen] == [number_of(sample.image) % 3 for sample in chosen]
    assert number_of(dataset.train[0].image) == number_of(dataset.train[0].image)


@pytest.mark.slow
def test_timm_streams_webdatasets_shards(tmp_path: Path) -> None:
    pytest.importorskip("webdataset")
    write_shards(tmp_path)
    write_shards(tmp_path, name="val", shards=1, first=100)
    dataset = ThroughTimm(
        source="wds/anything",
        root=str(tmp_path),
        train_split="train-{0000..0003}.tar|24",
        test_split="val-0000.tar|6",
        class_count=3,
        size=8,
    )
    assert isinstance(dataset.train, Stream)
    check_a_stream(dataset)
    assert sorted(number_of(dataset.test[index].image) for index in range(6)) == list(range(100, 106))
    with pytest.raises(RecipeError, match="8 shares cannot be made of the 4 shards of 'wds/x'; at most 4") as caught:
        ThroughTimm(
            source="wds/x", root=str(tmp_path), train_split="train-{0000..0003}.tar|24", shares=8, class_count=3
        )
    assert caught.value.key == "shares"
    with pytest.raises(RecipeError, match="does not tell its classes"):
        ThroughTimm(source="wds/x", root=str(tmp_path), train_split="train-{0000..0003}.tar|24")
    with pytest.raises(DataError, match="num_samples not specified"):
        ThroughTimm(source="wds/x", root=str(tmp_path), train_split="train-{0000..0003}.tar", class_count=3)


def test_a_broken_image_in_a_stream_is_left_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    pytest.importorskip("webdataset")
    write_shards(tmp_path)
    place = int(Shards(root=str(tmp_path)).train.start[7])
    with (tmp_path / "train-0001.tar").open("r+b") as shard:
        shard.seek(place)
        shard.write(b"rubbish!" * 4)
    options = {"source": "wds/x", "root": str(tmp_path), "class_count": 3, "size": 8}
    dataset = ThroughTimm(train_split="train-{0000..0003}.tar|24", **options)
    with caplog.at_level(logging.WARNING):
        labels = torch.cat([batch.labels for batch in some(dataset, steps=6)])
    assert len(labels) == 24
    assert "cannot identify image file" in caplog.text
