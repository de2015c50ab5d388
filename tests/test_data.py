from __future__ import annotations

import gzip
import hashlib
import os
import pickle
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from maskzoo.data import maskzoo_datasets
from maskzoo.data.cifar10 import CLASSES, Cifar10
from maskzoo.data.digits import Digits
from maskzoo.data.fashion_mnist import SYSTEM_FOLDER, FashionMnist, read_idx
from maskzoo.data.folder import Folder
from maskzoo.data.pixels import Reading
from maskzoo.errors import DataError


def write_image(path: Path, size: tuple[int, int] = (8, 8), mode: str = "RGB", **options: Any) -> Path:
    """An image of noise, height and width in pixels; the same for the same file name."""
    path.parent.mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(sum(path.name.encode()))
    pixels = random.integers(0, 256, (*size, len(Image.new(mode, (1, 1)).getbands())), dtype=np.uint8)
    Image.fromarray(pixels.squeeze(-1) if mode == "L" else pixels, mode=None).save(path, **options)
    return path


def class_folders(root: Path, classes: tuple[str, ...] = ("cat", "dog"), images: int = 10) -> Path:
    for name in classes:
        for number in range(images):
            write_image(root / name / f"{number}.png")
    return root


def write_idx(path: Path, values: np.ndarray, packed: bool = False) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    content = bytes((0, 0, 8, values.ndim)) + struct.pack(f">{values.ndim}I", *values.shape) + values.tobytes()
    path.write_bytes(gzip.compress(content) if packed else content)


def fashion_files(folder: Path, packed: bool = False) -> Path:
    ending = ".gz" if packed else ""
    for part, images in (("train", 12), ("t10k", 5)):
        pixels = np.random.default_rng(images).integers(0, 256, (images, 28, 28), dtype=np.uint8)
        write_idx(folder / f"{part}-images-idx3-ubyte{ending}", pixels, packed)
        write_idx(folder / f"{part}-labels-idx1-ubyte{ending}", np.arange(images, dtype=np.uint8) % 10, packed)
    return folder


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError("no route to host")

    monkeypatch.setattr("urllib.request.urlopen", refuse)


# ---------------------------------------------------------------------------------------------------- the hook, digits
def test_every_data_set_has_a_name_and_a_sentence() -> None:
    classes = maskzoo_datasets()
    assert [cls.name for cls in classes] == ["digits", "fashion-mnist", "cifar10", "folder", "shards", "hf", "timm"]
    assert all((cls.__doc__ or "").strip().endswith(".") for cls in classes)


def test_digits_are_split_the_same_way_each_time_with_every_class_on_both_sides() -> None:
    first, second = Digits(), Digits()
    assert (len(first.train), len(first.test)) == (1437, 360)
    assert torch.equal(first.test[7].image, second.test[7].image)
    counts = torch.bincount(first.test.labels)
    assert counts.min() >= 34
    assert counts.max() <= 38
    assert (first.channels, first.size, first.flip, len(first.classes)) == (1, (32, 32), False, 10)


def test_digits_use_the_whole_range_of_grey_and_their_own_mean() -> None:
    digits = Digits()
    images = digits.train.images
    assert images.dtype == torch.uint8
    assert images.shape == (1437, 1, 32, 32)
    assert (images.min(), images.max()) == (0, 255)
    assert images.double().mean().item() / 255 == pytest.approx(digits.mean[0], abs=1e-4)


def test_digits_come_in_other_sizes_but_not_smaller_than_they_are() -> None:
    assert Digits(upsample=16).train[0].image.shape == (1, 16, 16)
    assert Digits(upsample=16).size == (16, 16)
    with pytest.raises(ValueError, match="upsample"):
        Digits(upsample=4)


# ------------------------------------------------------------------------------------------------------- fashion-mnist
@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("folder", [".", "FashionMNIST/raw"])
def test_fashion_mnist_is_found_packed_or_not_in_the_root_or_where_torchvision_puts_it(
    tmp_path: Path, packed: bool, folder: str
) -> None:
    fashion_files(tmp_path / folder, packed)
    dataset = FashionMnist(root=str(tmp_path))
    assert (len(dataset.train), len(dataset.test)) == (12, 5)
    assert dataset.train[11].label == 1
    assert dataset.train[11].image.shape == (1, 28, 28)
    assert dataset.train[0].image.dtype == torch.uint8


@pytest.mark.skipif(not SYSTEM_FOLDER.is_dir(), reason="Debian's package dataset-fashion-mnist is not installed")
def test_fashion_mnist_of_this_system_is_whole_and_its_mean_is_as_written_down() -> None:
    dataset = FashionMnist()
    assert (len(dataset.train), len(dataset.test)) == (60_000, 10_000)
    pixels = dataset.train.images.float() / 255
    assert pixels.mean().item() == pytest.approx(dataset.mean[0], abs=1e-4)
    assert pixels.std().item() == pytest.approx(dataset.std[0], abs=1e-4)


def broken_idx() -> dict[str, bytes]:
    whole = bytes((0, 0, 8, 1)) + struct.pack(">I", 1000) + bytes(range(250)) * 4
    return {
        "truncated": whole[:-3],
        "truncated gzip": gzip.compress(whole)[:40],
        "gzip of rubbish": b"\x1f\x8b" + bytes(50),
        "too long": whole + b"\x00",
        "empty": b"",
        "header only": whole[:6],
        "other type": bytes((0, 0, 13, 1)) + whole[4:],
        "other dimensions": bytes((0, 0, 8, 3)) + whole[4:],
        "html": b"<html>not found</html>",
    }


@pytest.mark.parametrize("kind", broken_idx())
def test_a_broken_idx_file_is_named(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "train-labels-idx1-ubyte.gz"
    path.write_bytes(broken_idx()[kind])
    with pytest.raises(DataError, match=r"train-labels-idx1-ubyte\.gz"):
        read_idx(path, dimensions=1)


def test_labels_that_do_not_match_the_images_are_refused(tmp_path: Path) -> None:
    fashion_files(tmp_path)
    labels = tmp_path / "train-labels-idx1-ubyte"
    write_idx(labels, np.arange(11, dtype=np.uint8) % 10)
    with pytest.raises(DataError, match=r"11 labels.*12 images"):
        FashionMnist(root=str(tmp_path))
    write_idx(labels, np.full(12, 10, dtype=np.uint8))
    with pytest.raises(DataError, match="label 10"):
        FashionMnist(root=str(tmp_path))


@pytest.mark.usefixtures("no_network")
def test_without_fashion_mnist_and_network_one_sentence_says_where_it_was_looked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("maskzoo.data.fashion_mnist.SYSTEM_FOLDER", tmp_path / "system")
    with pytest.raises(DataError, match=r"no route to host.*`data.root`") as caught:
        FashionMnist(root=str(tmp_path / "mine"))
    assert str(tmp_path / "system") in str(caught.value)
    assert "\n" not in str(caught.value)


# ------------------------------------------------------------------------------------------------------------- cifar10
def write_cifar_batches(folder: Path, monkeypatch: pytest.MonkeyPatch, content: Callable[[int], Any]) -> None:
    """Small batch files whose checksums pass for the originals'."""
    from torchvision.datasets import CIFAR10

    folder.mkdir(parents=True, exist_ok=True)
    lists: dict[str, list[list[str]]] = {"train_list": [], "test_list": []}
    for number, name in enumerate([*(f"data_batch_{number}" for number in range(1, 6)), "test_batch"]):
        (folder / name).write_bytes(pickle.dumps(content(number)))
        checksum = hashlib.md5((folder / name).read_bytes(), usedforsecurity=False).hexdigest()
        lists["test_list" if name == "test_batch" else "train_list"].append([name, checksum])
    for attribute, files in lists.items():
        monkeypatch.setattr(CIFAR10, attribute, files)


def cifar_batch(number: int) -> dict[str, Any]:
    return {"data": np.full((4, 3072), number, dtype=np.uint8), "labels": [0, 1, 2, 9]}


@pytest.mark.parametrize("folder", [".", "cifar-10-batches-py"])
def test_cifar10_reads_the_python_batches_in_the_root_or_below_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, folder: str
) -> None:
    write_cifar_batches(tmp_path / folder, monkeypatch, cifar_batch)
    dataset = Cifar10(root=str(tmp_path))
    assert (len(dataset.train), len(dataset.test)) == (20, 4)
    assert dataset.train[19].label == 9
    assert torch.equal(dataset.train[4].image, torch.ones(3, 32, 32, dtype=torch.uint8))


class Bomb:
    """Makes a folder when it is unpickled."""

    def __init__(self, place: Path) -> None:
        self.place = place

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.place),)


def test_cifar10_never_opens_a_pickle_that_is_not_the_original(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_cifar_batches(tmp_path, monkeypatch, cifar_batch)
    (tmp_path / "data_batch_3").write_bytes(pickle.dumps(Bomb(tmp_path / "burst")))
    with pytest.raises(DataError, match=r"data_batch_3.*MD5"):
        Cifar10(root=str(tmp_path))
    assert not (tmp_path / "burst").exists()


def test_cifar10_reads_image_folders(tmp_path: Path) -> None:
    for part in ("train", "test"):
        for name in CLASSES:
            write_image(tmp_path / part / name / "1.png", (32, 32))
    dataset = Cifar10(root=str(tmp_path))
    assert [dataset.train[index].label for index in range(10)] == list(range(10))
    assert (dataset.size, dataset.classes, dataset.channels, dataset.flip) == ((32, 32), CLASSES, 3, True)
    write_image(tmp_path / "train" / "zebra" / "1.png")
    with pytest.raises(DataError, match="airplane"):
        Cifar10(root=str(tmp_path))


@pytest.mark.usefixtures("no_network")
def test_without_cifar10_and_network_one_sentence_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no route to host.*`data.root` names") as caught:
        Cifar10(root=str(tmp_path / "mine"))
    assert str(tmp_path / "mine") in str(caught.value)
    assert "\n" not in str(caught.value)


# ------------------------------------------------------------------------------------------------- folders and splits
def test_a_folder_of_class_folders_holds_out_every_tenth_image_always_the_same(tmp_path: Path) -> None:
    class_folders(tmp_path)
    first, second = Folder(root=str(tmp_path)), Folder(root=str(tmp_path))
    assert (len(first.train), len(first.test)) == (18, 2)
    assert first.classes == ["cat", "dog"]
    assert first.test.files == second.test.files
    assert not set(first.test.files) & set(first.train.files)
    for split in (first.train, first.test):
        for file, label in zip(split.files, split.labels, strict=True):
            assert Path(file).parent.name == first.classes[label]


def test_a_flat_folder_has_no_labels_and_no_test_images(tmp_path: Path) -> None:
    for number in range(12):
        write_image(tmp_path / f"{number}.png")
    dataset = Folder(root=str(tmp_path))
    assert (len(dataset.train), len(dataset.test), dataset.classes) == (12, 0, None)
    assert dataset.train[0].label is None


@pytest.mark.parametrize("name", ["test", "val", "validation"])
def test_folders_train_and_test_are_the_splits(tmp_path: Path, name: str) -> None:
    class_folders(tmp_path / "train", ("ant", "bee", "cat"), 2)
    class_folders(tmp_path / name, ("bee",), 3)
    dataset = Folder(root=str(tmp_path))
    assert (len(dataset.train), len(dataset.test)) == (6, 3)
    assert {dataset.test[index].label for index in range(3)} == {1}


def test_a_folder_train_alone_is_all_there_is(tmp_path: Path) -> None:
    class_folders(tmp_path / "train")
    dataset = Folder(root=str(tmp_path))
    assert (len(dataset.train), len(dataset.test)) == (20, 0)


def test_a_test_class_that_training_lacks_is_refused(tmp_path: Path) -> None:
    class_folders(tmp_path / "train", ("ant", "bee"), 1)
    class_folders(tmp_path / "test", ("wasp",), 1)
    with pytest.raises(DataError, match=r"'wasp'.*ant, bee"):
        Folder(root=str(tmp_path))


def test_unlabelled_test_images_beside_labelled_training_images_are_told_and_not_used(tmp_path: Path) -> None:
    class_folders(tmp_path / "train", images=1)
    write_image(tmp_path / "test" / "1.png")
    dataset = Folder(root=str(tmp_path))
    assert (len(dataset.train), len(dataset.test)) == (2, 0)
    assert "test/ (1 image without labels)" in dataset.remarks[1]


def test_images_at_any_depth_of_a_class_folder_count_and_hidden_ones_do_not(tmp_path: Path) -> None:
    write_image(tmp_path / "cat" / "a" / "b" / "1.JPG", format="JPEG")
    write_image(tmp_path / "dog" / "2.TiFF", format="TIFF")
    write_image(tmp_path / "dog" / "3.webp")
    (tmp_path / "dog" / "._3.webp").write_bytes(b"a resource fork")
    (tmp_path / "dog" / "notes.txt").write_text("hello")
    (tmp_path / "empty").mkdir()
    write_image(tmp_path / ".cache" / "4.png")
    dataset = Folder(root=str(tmp_path))
    assert dataset.classes == ["cat", "dog"]
    assert len(dataset.train) + len(dataset.test) == 3


def test_a_link_that_leads_back_up_does_not_hang(tmp_path: Path) -> None:
    class_folders(tmp_path, images=2)
    (tmp_path / "cat" / "loop").symlink_to(tmp_path / "cat", target_is_directory=True)
    assert len(Folder(root=str(tmp_path)).train) == 4


def test_what_is_no_folder_of_images_is_refused_with_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"does not exist; `data.root` must name a folder"):
        Folder(root=str(tmp_path / "nowhere"))
    with pytest.raises(DataError, match=r"holds no images; .*\.jpg, \.jpeg, \.png"):
        Folder(root=str(tmp_path))
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "a.txt").write_text("hello")
    with pytest.raises(DataError, match="holds no images"):
        Folder(root=str(tmp_path))
    with pytest.raises(DataError, match="is a file"):
        Folder(root=str(tmp_path / "texts" / "a.txt"))
    write_image(tmp_path / "loose.png")
    write_image(tmp_path / "class" / "1.png")
    with pytest.raises(DataError, match="both loose images"):
        Folder(root=str(tmp_path))
    with pytest.raises(ValueError, match="channels"):
        Folder(root=str(tmp_path), channels=0)


# ---------------------------------------------------------------------------------------------------------- image size
def test_the_size_is_the_images_own_if_they_share_one(tmp_path: Path) -> None:
    for number in range(4):
        write_image(tmp_path / f"{number}.png", (12, 20))
    assert Folder(root=str(tmp_path)).size == (12, 20)
    assert Folder(root=str(tmp_path), size=64).size == (64, 64)
    assert Folder(root=str(tmp_path), size=(64, 32)).size == (64, 32)


def test_the_size_is_224_if_images_differ_and_unreadable_ones_have_no_say(tmp_path: Path) -> None:
    for number in range(4):
        write_image(tmp_path / f"{number}.png", (12, 20))
    (tmp_path / "4.png").write_bytes(b"rubbish")
    assert Folder(root=str(tmp_path)).size == (12, 20)
    write_image(tmp_path / "5.png", (12, 21))
    assert Folder(root=str(tmp_path)).size == (224, 224)


# ------------------------------------------------------------------------------------------------------------ decoding
def test_an_image_comes_as_bytes_in_the_channels_asked_for(tmp_path: Path) -> None:
    path = write_image(tmp_path / "a.png", (5, 7))
    pixels = np.array(Image.open(path))
    assert np.array_equal(Reading(3).read(str(path)).image.permute(1, 2, 0).numpy(), pixels)
    for channels in (1, 4):
        image = Reading(channels).read(str(path)).image
        assert image.shape == (channels, 5, 7)
        assert image.dtype == torch.uint8
    assert Reading(4).read(str(path)).image[3].eq(255).all()


def test_a_png_with_the_wrong_extension_is_read_by_its_content(tmp_path: Path) -> None:
    path = write_image(tmp_path / "a.jpg", format="PNG")
    assert Reading(3).read(str(path)).image.shape == (3, 8, 8)


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_sixteen_bits_are_kept_not_clipped(tmp_path: Path, channels: int) -> None:
    values = np.array([[0, 257], [32896, 65535]], dtype=np.uint16)
    for name in ("a.png", "a.tiff"):
        Image.fromarray(values).save(tmp_path / name)
        image = Reading(channels).read(str(tmp_path / name)).image
        assert image[0].tolist() == values.tolist()
        assert image.dtype == torch.uint16
        assert image.shape == (channels, 2, 2)


def test_numbers_whose_range_is_not_known_are_refused_by_name(tmp_path: Path) -> None:
    Image.fromarray(np.ones((2, 2), dtype=np.int32)).save(tmp_path / "a.tiff")
    with pytest.raises(DataError, match=r"a\.tiff.*int32.*data\.range"):
        Reading(1).read(str(tmp_path / "a.tiff"))


def test_palettes_transparency_and_print_colours_are_read_without_a_warning(tmp_path: Path) -> None:
    palette = Image.new("P", (4, 4), 1)
    palette.putpalette([10, 20, 30, 40, 50, 60])
    palette.save(tmp_path / "a.png", transparency=bytes([255, 0]))  # Pillow warns of this one
    assert Reading(3).read(str(tmp_path / "a.png")).image[:, 0, 0].tolist() == [255, 255, 255]
    assert Reading(4).read(str(tmp_path / "a.png")).image[:, 0, 0].tolist() == [40, 50, 60, 0]
    for mode, name in (("CMYK", "b.jpg"), ("1", "c.png"), ("LA", "d.png"), ("YCbCr", "e.jpg")):
        Image.new(mode, (4, 4)).save(tmp_path / name)
        assert Reading(3).read(str(tmp_path / name)).image.shape == (3, 4, 4)


@pytest.mark.parametrize("name", ["a.jpg", "a.png", "a.webp", "a.bmp", "a.tif"])
def test_a_truncated_image_is_named(tmp_path: Path, name: str) -> None:
    path = write_image(tmp_path / name, (64, 64))
    content = path.read_bytes()
    for share in (0.0, 0.01, 0.5, 0.9):
        path.write_bytes(content[: int(len(content) * share)])
        with pytest.raises(DataError, match=name):
            Reading(3).read(str(path))


def test_what_is_no_image_or_gone_is_named(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    path.write_text("%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n")
    with pytest.raises(DataError, match=r"a\.png' is no image"):
        Reading(3).read(str(path))
    path.unlink()
    with pytest.raises(DataError, match=r"a\.png"):
        Reading(3).read(str(path))


def test_an_enormous_image_is_refused_by_name_not_decoded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_image(tmp_path / "a.png", (30, 30))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(DataError, match=r"a\.png"):
        Reading(3).read(str(path))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 500)  # only a warning
    assert Reading(3).read(str(path)).image.shape == (3, 30, 30)
