"""Files beside images: maps of parts and masks of valid pixels, which go where the image goes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from maskzoo import DataError, RecipeError
from maskzoo.data.batches import batches
from maskzoo.data.folder import Folder

ORIENTATION = 0x0112


def halves(wide: int = 24, high: int = 16) -> np.ndarray:
    """[H, W]: 0 in the left half, 200 in the right."""
    image = np.zeros((high, wide), np.uint8)
    image[:, wide // 2 :] = 200
    return image


def photos(folder: Path, count: int = 8, ending: str = ".png", **saved: Any) -> Path:
    for number in range(count):
        file = folder / "photos" / "ab"[number % 2] / f"{number}{ending}"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(halves()).convert("RGB").save(file, **saved)
    return folder / "photos"


def beside(folder: Path, name: str, count: int = 8, what: str = "palette") -> Path:
    """Files in which the left half is 1 and the right half is 7."""
    for number in range(count):
        file = folder / name / "ab"[number % 2] / f"{number}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        values = np.where(halves() > 0, 7, 1)
        if what == "npy":
            np.save(file.with_suffix(".npy"), values.astype(np.float32) / 2)
        elif what == "palette":
            image = Image.fromarray(values.astype(np.uint8), "P")
            image.putpalette([value for index in range(256) for value in (index, 255 - index, 9)])
            image.save(file)
        else:
            Image.fromarray(values.astype(np.uint8)).save(file)
    return folder / name


@pytest.mark.parametrize("what", ["palette", "grey", "npy"])
def test_parts_go_through_crops_and_flips_with_their_image(what: str, tmp_path: Path) -> None:
    root, parts = photos(tmp_path), beside(tmp_path, "parts", what=what)
    dataset = Folder(str(root), extras={"parts": str(parts)})
    sample = dataset.train[0]
    assert sample.extras["parts"].shape == sample.image.shape[-2:]
    (batch,) = batches(dataset, size=(16, 16), batch_size=4, seed=0, start=0, steps=1)
    found = batch.extras["parts"]
    assert found.dtype == (torch.float32 if what == "npy" else torch.int64)
    left, right = (0.5, 3.5) if what == "npy" else (1, 7)
    dark = batch.images[:, 0] < 0
    assert ((found > (left + right) / 2) == ~dark).float().mean() > 0.95
    if what != "npy":
        assert set(found.unique().tolist()) <= {1, 7}


def test_a_mask_of_valid_pixels_counts_where_it_is_not_0(tmp_path: Path) -> None:
    root = photos(tmp_path)
    for number in range(8):
        file = tmp_path / "valid" / "ab"[number % 2] / f"{number}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(255 - halves() // 200 * 255).save(file)
    sample = Folder(str(root), extras={"valid": str(tmp_path / "valid")}).train[0]
    assert sample.extras["valid"].dtype == torch.bool
    assert torch.equal(sample.extras["valid"], sample.image == 0)


def test_splits_have_theirs_at_the_same_paths(tmp_path: Path) -> None:
    for split in ("train", "test"):
        photos(tmp_path / split)
        (tmp_path / "root" / split).parent.mkdir(exist_ok=True)
        (tmp_path / split / "photos").rename(tmp_path / "root" / split)
        beside(tmp_path / "parts", split)
    dataset = Folder(str(tmp_path / "root"), extras={"parts": str(tmp_path / "parts")})
    assert all("parts" in split[index].extras for split in (dataset.train, dataset.test) for index in range(8))


def test_an_image_that_lacks_one_is_counted_and_refused_by_name(tmp_path: Path) -> None:
    root, parts = photos(tmp_path), beside(tmp_path, "parts")
    (parts / "a" / "4.png").unlink()
    dataset = Folder(str(root), extras={"parts": str(parts)})
    assert any("1 of 8 images have no 'parts'" in line and "4.png" in line for line in dataset.remarks)
    (place,) = (place for place, file in enumerate(dataset.train.files) if file.endswith("4.png"))
    with pytest.raises(DataError, match=r"4\.png' has no 'parts' in"):
        dataset.train[place]


def test_a_folder_that_holds_nothing_beside_any_image_is_refused(tmp_path: Path) -> None:
    root = photos(tmp_path)
    (tmp_path / "parts").mkdir()
    with pytest.raises(DataError, match=r"extras\.parts: '.*parts' has nothing beside any of the images"):
        Folder(str(root), extras={"parts": str(tmp_path / "parts")})
    with pytest.raises(RecipeError, match="is no folder"):
        Folder(str(root), extras={"parts": str(tmp_path / "nowhere")})
    with pytest.raises(RecipeError, match="are read as images of the data set"):
        Folder(str(root), extras={"parts": str(root / "a")})


def test_two_files_beside_one_image_are_refused(tmp_path: Path) -> None:
    root, parts = photos(tmp_path), beside(tmp_path, "parts")
    np.save(parts / "a" / "0.npy", np.zeros((16, 24)))
    with pytest.raises(DataError, match="would lie beside the same image"):
        Folder(str(root), extras={"parts": str(parts)})


def test_a_file_of_another_size_or_in_colour_is_refused_by_name(tmp_path: Path) -> None:
    root, parts = photos(tmp_path, 2), beside(tmp_path, "parts", 2)
    Image.fromarray(halves(10, 10)).save(parts / "a" / "0.png")
    Image.fromarray(halves()).convert("RGB").save(parts / "b" / "1.png")
    dataset = Folder(str(root), extras={"parts": str(parts)}, read_as="classes")
    with pytest.raises(DataError, match=r"0\.png' is 10 x 10 pixels, and its image '.*0\.png' 24 x 16"):
        dataset.train[0]
    with pytest.raises(DataError, match=r"1\.png' is in colour"):
        dataset.train[1]


@pytest.mark.parametrize(
    ("orientation", "upright", "expected"),
    [
        (6, False, "the image is turned by its EXIF data, and this is not"),
        (6, True, ""),
        (3, False, "nothing tells whether"),
        (1, False, ""),
    ],
)
def test_a_camera_that_was_turned_is_never_guessed_about(
    orientation: int, upright: bool, expected: str, tmp_path: Path
) -> None:
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    root, parts = photos(tmp_path, 2, ".jpg", exif=exif), beside(tmp_path, "parts", 2)
    if upright:
        for file in parts.rglob("*.png"):
            Image.open(file).transpose(Image.Transpose.ROTATE_270).save(file)
    dataset = Folder(str(root), extras={"parts": str(parts)})
    if expected:
        with pytest.raises(DataError, match=expected):
            dataset.train[0]
    else:
        sample = dataset.train[0]
        assert torch.equal(sample.extras["parts"] == 7, sample.image[0] > 100)


def test_side_data_that_name_their_orientation_are_turned_with_their_image(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[ORIENTATION] = 3
    root, parts = photos(tmp_path, 2, ".jpg", exif=exif), beside(tmp_path, "parts", 2)
    for file in parts.rglob("*.png"):
        Image.open(file).save(file, exif=exif)
    sample = Folder(str(root), extras={"parts": str(parts)}).train[0]
    assert torch.equal(sample.extras["parts"] == 7, sample.image[0] > 100)
    assert sample.extras["parts"][0, 0] == 7
