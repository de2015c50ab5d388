"""What image files hold is read exactly, by one rule for training, evaluation and preview, or refused by name."""

from __future__ import annotations

import io
import itertools
import struct
import warnings
import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from numpy.typing import NDArray
from PIL import Image, ImageOps

from maskzoo.cli import main
from maskzoo.data.folder import Folder
from maskzoo.data.pixels import Reading
from maskzoo.data.stored import upright
from maskzoo.errors import DataError, MaskZooError, RecipeError
from maskzoo.preview import NamedFiles, read
from maskzoo.recipe import describe, differing, make
from maskzoo.registry import Registry

tifffile = pytest.importorskip("tifffile")
h5py = pytest.importorskip("h5py")
REGISTRY = Registry()
TRIALS = Path(__file__).parent.parent.parent / "shared" / "trials"
DTYPES = ("uint8", "uint16", "uint32", "int8", "int16", "int32", "float16", "float32", "float64")
WIDE = (0.0, 1.0)  # a range that changes no value


def numbers(shape: tuple[int, ...], dtype: str, seed: int = 0) -> NDArray[Any]:
    """Values that a float32 holds exactly, from the ends of the kind too where it does."""
    drawn = np.random.default_rng(seed)
    if dtype.startswith("float"):
        return drawn.integers(-1000, 1000, shape).astype(dtype) / 8
    limits = np.iinfo(dtype)
    return drawn.integers(max(limits.min, -(2**23)), min(limits.max, 2**23) + 1, shape).astype(dtype)


def png_of_16_bits(values: NDArray[Any]) -> bytes:
    """A PNG of [H, W, 1 to 4], which Pillow does not write."""
    height, width, bands = values.shape
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    head = struct.pack(">IIBBBBB", width, height, 16, {1: 0, 2: 4, 3: 2, 4: 6}[bands], 0, 0, 0)

    def chunk(name: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def write(path: Path, values: NDArray[Any], how: str = "") -> Path:
    """Values [H, W, S] in a file of some kind, by the file's ending."""
    path.parent.mkdir(parents=True, exist_ok=True)
    first = np.moveaxis(values, -1, 0)
    match path.suffix, how:
        case ".npy", "grey":
            np.save(path, values[..., 0])
        case ".npy", "first":
            np.save(path, first)
        case ".npy", "fortran":
            np.save(path, np.asfortranarray(values))
        case ".npy", "big":
            np.save(path, values.astype(values.dtype.newbyteorder(">")))
        case ".npy", _:
            np.save(path, values)
        case ".npz", _:
            np.savez_compressed(path, image=values)
        case ".h5", _:
            with h5py.File(path, "w") as file:
                file.create_dataset("group/image", data=first, compression="gzip")
        case ".tif", "pages":
            tifffile.imwrite(path, first, photometric="minisblack")
        case ".tif", "planar":
            tifffile.imwrite(path, first, photometric="minisblack", planarconfig="separate" if len(first) > 1 else None)
        case ".tif", _:
            options = dict(zip(("compression", "predictor", "bigtiff", "byteorder"), HOW[how], strict=True))
            tifffile.imwrite(
                path, values, photometric="minisblack", planarconfig="contig" if len(first) > 1 else None, **options
            )
        case ".png", _:
            path.write_bytes(png_of_16_bits(values))
    return path


HOW: dict[str, tuple[Any, ...]] = {
    "": (None, None, False, "<"),
    "zlib": ("zlib", True, False, "<"),
    "big": (None, None, True, ">"),
}
LOSSLESS = [
    *(
        ((".npy", how), dtype, 1 if how == "grey" else bands)
        for how in ("grey", "first", "last", "fortran", "big")
        for dtype, bands in itertools.product(DTYPES, (1, 3, 12))
    ),
    *(((kind, ""), dtype, bands) for kind in (".npz", ".h5") for dtype, bands in itertools.product(DTYPES, (1, 2, 5))),
    *(
        ((".tif", how), dtype, bands)
        for how in ("pages", "planar", "", "big", "zlib")
        for dtype, bands in itertools.product(DTYPES, (1, 2, 3, 4, 13))
        if not (how == "zlib" and dtype.startswith("float"))
    ),
    *(((".png", ""), "uint16", bands) for bands in (1, 2, 3, 4)),
]


@pytest.mark.sampled(40)
@pytest.mark.parametrize(("file", "dtype", "bands"), LOSSLESS, ids=str)
def test_what_is_written_is_what_is_read(file: tuple[str, str], dtype: str, bands: int, tmp_path: Path):
    values = numbers((30, 41, bands), dtype)
    path = write(tmp_path / f"image{file[0]}", values, file[1])
    span = None if dtype in ("uint8", "uint16") else WIDE
    pixels = Reading(bands, span, gaps=dtype.startswith("float")).read(str(path))
    assert pixels.image.dtype == (torch.float32 if span else getattr(torch, dtype))
    assert np.array_equal(pixels.image.permute(1, 2, 0).numpy(), values.astype(np.float32) if span else values)
    assert pixels.valid is None or bool(pixels.valid.all())
    assert Reading(bands).size(str(path)) == (30, 41)
    third = Reading(1, span, bands=(bands,), gaps=dtype.startswith("float")).read(str(path)).image
    if file[1] != "grey":
        assert np.array_equal(third[0].numpy(), values[..., -1])


# ----------------------------------------------------------------------------------------------------- bits and range
@pytest.mark.parametrize(("bits", "largest"), [(8, 255), (10, 900), (12, 4063), (14, 10_000)])
def test_the_range_of_a_data_set_is_the_bits_that_hold_its_largest_value(bits: int, largest: int, tmp_path: Path):
    for number in range(5):
        values = np.arange(64, dtype=np.uint16).reshape(8, 8) * (largest // 63)
        Image.fromarray(np.minimum(values, largest) + (number == 3) * (largest - values[-1, -1])).save(
            tmp_path / f"{number}.png"
        )
    dataset = Folder(root=str(tmp_path))
    assert dataset.range == (0, 2**bits - 1)
    assert dataset.channels == 3
    assert any(f"taken as {bits} bits (data.range = [0, {2**bits - 1}])" in one for one in dataset.remarks)
    image = dataset.train[3].image
    assert image.dtype == torch.float32
    assert image.max().item() == pytest.approx(largest / (2**bits - 1), rel=0.02)
    assert all(0 < value < 1 for value in (*dataset.mean, *dataset.std))


def test_all_16_bits_stay_as_they_are_and_a_range_that_is_given_is_kept(tmp_path: Path):
    values = np.linspace(0, 65535, 64).astype(np.uint16).reshape(8, 8)
    Image.fromarray(values).save(tmp_path / "a.png")
    dataset = Folder(root=str(tmp_path))
    assert (dataset.range, dataset.train[0].image.dtype) == (None, torch.uint16)
    image = Folder(root=str(tmp_path), range=(1000, 3000)).train[0].image
    assert torch.allclose(image[0], torch.from_numpy((values.astype(np.float32) - 1000) / 2000))


@pytest.mark.parametrize(
    ("dtype", "low", "high", "expected"),
    [
        ("float32", 0.1, 0.9, (0, 1)),
        ("float64", 0, 255, None),
        ("float32", -3, 7, None),
        ("int16", -1024, 3071, None),
        ("uint32", 0, 100_000, (0, 2**20 - 1)),
    ],
)
def test_numbers_of_other_kinds_get_one_range_for_all_images(
    dtype: str, low: float, high: float, expected: Any, tmp_path: Path
):
    for number in range(3):
        values = np.linspace(low, high, 64).astype(dtype).reshape(8, 8)
        np.save(tmp_path / f"{number}.npy", values if number else values[:, ::-1])
    dataset = Folder(root=str(tmp_path))
    assert dataset.channels == 1
    assert expected in (None, dataset.range)
    image = dataset.train[1].image
    assert image.dtype == torch.float32
    assert -0.01 <= image.min().item() < image.max().item() <= 1.01
    again = make(REGISTRY, "dataset", describe(dataset), "data")
    assert describe(again) == describe(dataset)
    assert again.reading == dataset.reading
    assert not any("range" in one for one in again.remarks), "nothing is looked at again"


def test_an_image_of_another_kind_is_refused_naming_both(tmp_path: Path):
    for number in range(6):
        Image.fromarray(np.full((8, 8), 4000, dtype=np.uint16)).save(tmp_path / f"{number}.png")
    Image.fromarray(np.full((8, 8), 200, dtype=np.uint8)).save(tmp_path / "6.png")
    dataset = Folder(root=str(tmp_path))
    with pytest.raises(DataError, match=r"6\.png' holds numbers of the kind uint8, .* of the kind uint16"):
        dataset.train[6]
    assert any("1 of 7 images looked at hold numbers of the kind uint8" in one for one in dataset.remarks)


def test_floats_of_any_width_go_together_and_values_far_out_are_told(tmp_path: Path):
    for number, dtype in enumerate(("float16", "float32", "float64")):
        values = np.random.default_rng(number).random((64, 64)).astype(dtype) * 3
        values[0, 0] = -9999
        np.save(tmp_path / f"{number}.npy", values)
    dataset = Folder(root=str(tmp_path))
    assert dataset.kinds == ("float",)
    assert all(dataset.train[number].image.dtype == torch.float32 for number in range(3))
    assert any("set data.nodata" in one for one in dataset.remarks)
    mended = Folder(root=str(tmp_path), nodata=-9999)
    assert not any("set data.nodata" in one for one in mended.remarks)
    assert mended.std[0] == pytest.approx(0.29, abs=0.02)


def test_8_and_16_bits_go_together_where_all_bits_are_in_use(tmp_path: Path):
    Image.fromarray(np.full((8, 8), 60_000, dtype=np.uint16)).save(tmp_path / "0.png")
    Image.fromarray(np.full((8, 8), 200, dtype=np.uint8)).save(tmp_path / "1.png")
    dataset = Folder(root=str(tmp_path))
    assert [dataset.train[number].image.dtype for number in (0, 1)] == [torch.uint16, torch.uint8]
    Image.fromarray(np.full((8, 8), 4000, dtype=np.uint16)).save(tmp_path / "0.png")
    dataset = Folder(root=str(tmp_path))
    assert (dataset.kinds, dataset.range) == (("uint16",), (0, 4095))
    with pytest.raises(DataError, match=r"1\.png' holds numbers of the kind uint8"):
        dataset.train[1]


# ------------------------------------------------------------------------------------------------------------ channels
@pytest.mark.parametrize("bands", [1, 2, 3, 4, 5, 12])
def test_images_have_as_many_channels_as_files_have_bands(bands: int, tmp_path: Path):
    for number in range(3):
        write(tmp_path / f"{number}.tif", numbers((8, 8, bands), "uint16", number), "pages")
    dataset = Folder(root=str(tmp_path))
    assert dataset.channels == (3 if bands == 1 else bands)  # grey of 16 bits is a picture, as ever
    assert dataset.train[0].image.shape == (dataset.channels, 8, 8)
    assert len(dataset.mean) == len(dataset.std) == dataset.channels
    if bands not in (1, 2):
        with pytest.raises(DataError, match=r"has \d+ bands, .* choose with data\.bands, e\.g\. \[1, 2\]"):
            Folder(root=str(tmp_path), channels=2).train[0]


def test_bands_are_chosen_and_put_in_order(tmp_path: Path):
    values = numbers((8, 8, 12), "uint8")
    write(tmp_path / "a.tif", values, "planar")
    dataset = Folder(root=str(tmp_path), bands=(4, 3, 2))
    assert dataset.channels == 3
    assert np.array_equal(dataset.train[0].image.permute(1, 2, 0).numpy(), values[..., [3, 2, 1]])
    with pytest.raises(RecipeError, match="3 bands make no 1 channels"):
        Folder(root=str(tmp_path), bands=(1, 2, 3), channels=1)
    with pytest.raises(RecipeError, match="the first is 1"):
        Folder(root=str(tmp_path), bands=(0,))
    with pytest.raises(DataError, match=r"a\.tif' has no band 13"):
        Folder(root=str(tmp_path), bands=(13,)).train[0]


def test_statistics_are_measured_over_valid_pixels_and_a_constant_channel_divides_by_nothing(tmp_path: Path):
    values = np.random.default_rng(0).random((4, 16, 16, 3)).astype(np.float32)
    values[..., 2] = 0.25
    values[:, :4, :, 0] = np.nan
    for number, one in enumerate(values):
        np.save(tmp_path / f"{number}.npy", one)
    dataset = Folder(root=str(tmp_path))
    assert dataset.mean == pytest.approx(np.nanmean(values, axis=(0, 1, 2)), abs=1e-5)
    assert dataset.std == pytest.approx([*np.nanstd(values, axis=(0, 1, 2))[:2], 1], abs=1e-5)
    assert any("channel 3 is constant" in one for one in dataset.remarks)
    given = Folder(root=str(tmp_path), mean=(0.1, 0.2, 0.3))
    assert (given.mean, given.std) == ((0.1, 0.2, 0.3), dataset.std)
    with pytest.raises(RecipeError, match="must have 3 values"):
        Folder(root=str(tmp_path), mean=(0.5,))
    with pytest.raises(RecipeError, match="greater than 0"):
        Folder(root=str(tmp_path), std=(0.5, 0, 1))


def test_pictures_of_8_bits_are_as_ever(tmp_path: Path):
    pixels = numbers((9, 7, 3), "uint8")
    Image.fromarray(pixels).save(tmp_path / "a.png")
    dataset = Folder(root=str(tmp_path))
    assert (dataset.channels, dataset.range, dataset.kinds, dataset.gaps) == (3, None, ("uint8",), False)
    assert (dataset.mean, dataset.std) == ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    assert np.array_equal(dataset.train[0].image.permute(1, 2, 0).numpy(), pixels)
    grey = np.asarray(Image.fromarray(pixels).convert("L"))
    assert np.array_equal(Reading(1).read(str(tmp_path / "a.png")).image[0].numpy(), grey)
    assert dataset.train[0].extras == {}


# -------------------------------------------------------------------------------------------------------- transparency
@pytest.mark.parametrize(("mode", "name"), [("RGBA", "a.png"), ("LA", "a.png"), ("RGBA", "a.webp"), ("RGBA", "a.tif")])
def test_what_is_transparent_is_laid_over_the_background(mode: str, name: str, tmp_path: Path):
    icon = Image.new(mode, (4, 4), 0)
    icon.putpixel((0, 0), (*(10,) * (len(mode) - 1), 255))
    icon.putpixel((1, 0), (*(0,) * (len(mode) - 1), 128))
    icon.save(tmp_path / name, **({"lossless": True, "exact": True} if name.endswith("webp") else {}))
    dataset = Folder(root=str(tmp_path))
    assert dataset.train[0].image[:, 0, :3].tolist() == [[10, 127, 255]] * 3
    assert any("1 of 1 images looked at are transparent in parts: laid over white" in one for one in dataset.remarks)
    assert Folder(root=str(tmp_path), background="black").train[0].image[:, 0, :3].tolist() == [[10, 0, 0]] * 3
    red = Folder(root=str(tmp_path), background="#ff0000").train[0].image[:, 0, 2].tolist()
    assert red == [255, 0, 0]
    kept = Folder(root=str(tmp_path), channels=4).train[0].image
    assert kept[:, 0, 0].tolist() == [10, 10, 10, 255]
    assert kept[3, 0, :3].tolist() == [255, 128, 0]
    with pytest.raises(RecipeError, match="is no colour"):
        Folder(root=str(tmp_path), background="whitish")


def test_a_palette_and_a_colour_may_be_transparent_too_and_opaque_alpha_changes_nothing(tmp_path: Path):
    palette = Image.new("P", (4, 4), 1)
    palette.putpalette([10, 20, 30, 40, 50, 60])
    palette.save(tmp_path / "a.png", transparency=bytes([255, 0]))
    assert Reading(3).read(str(tmp_path / "a.png")).image.unique().tolist() == [255]
    Image.new("RGB", (4, 4), (1, 2, 3)).save(tmp_path / "b.png", transparency=(1, 2, 3))
    assert Reading(1, background="black").read(str(tmp_path / "b.png")).image.unique().tolist() == [0]
    pixels = numbers((4, 4, 4), "uint8")
    pixels[..., 3] = 255
    Image.fromarray(pixels).save(tmp_path / "c.png")
    assert np.array_equal(Reading(3).read(str(tmp_path / "c.png")).image.permute(1, 2, 0).numpy(), pixels[..., :3])
    wide = np.full((2, 2, 4), 65535, dtype=np.uint16)
    wide[..., 3] = [[65535, 0], [0, 0]]
    wide[0, 0, :3] = 257
    write(tmp_path / "d.png", wide)
    assert Reading(3, background="black").read(str(tmp_path / "d.png")).image[0].tolist() == [[257, 0], [0, 0]]


# --------------------------------------------------------------------------------------------------------- orientation
@pytest.mark.parametrize("kind", ["jpg", "png", "webp", "tif"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_all_see_an_image_as_its_camera_wants_it_seen(orientation: int, kind: str, tmp_path: Path):
    pixels = np.kron(np.arange(12, dtype=np.uint8).reshape(3, 4) * 20, np.ones((8, 8), dtype=np.uint8))
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / f"a.{kind}"
    Image.fromarray(pixels).save(path, exif=exif)
    Image.fromarray(pixels).save(
        tmp_path / "same", format="PNG" if kind == "tif" else kind.replace("jpg", "JPEG"), exif=exif
    )
    with Image.open(tmp_path / "same") as image:  # Pillow turns a TIFF twice
        wanted = np.asarray(ImageOps.exif_transpose(image).convert("L"))
    (tmp_path / "same").unlink()
    dataset = Folder(root=str(tmp_path), channels=1)
    assert np.array_equal(dataset.train[0].image[0].numpy(), wanted)
    assert dataset.size == wanted.shape
    assert np.array_equal(read(path, Reading(1)).image[0].numpy(), wanted)
    assert np.abs(upright(pixels[..., None], orientation)[..., 0].astype(int) - wanted).max() < 12


# ------------------------------------------------------------------------------------------------------ missing values
def test_values_that_are_not_finite_are_missing_and_an_image_without_any_is_refused(tmp_path: Path):
    values = np.ones((2, 8, 8), dtype=np.float32) / 2
    values[0, :2], values[1, 0, 0] = np.nan, np.inf
    np.save(tmp_path / "0.npy", values)
    np.save(tmp_path / "1.npy", np.full_like(values, 0.5))
    np.save(tmp_path / "2.npy", np.full_like(values, np.nan))
    dataset = Folder(root=str(tmp_path), channels=2)
    sample = dataset.train[0]
    assert torch.equal(sample.extras["valid"], torch.from_numpy(np.isfinite(values)))
    assert bool(torch.isfinite(sample.image).all())
    assert bool(dataset.train[1].extras["valid"].all())
    with pytest.raises(DataError, match=r"2\.npy' has no valid pixel"):
        dataset.train[2]


def test_a_value_that_stands_for_none_is_given_or_told_by_the_files(tmp_path: Path):
    values = numbers((8, 8), "int16")
    values[0, :3] = -9999
    for folder, tags in (("told", [(42113, "s", 0, "-9999", True)]), ("given", [])):
        (tmp_path / folder).mkdir()
        tifffile.imwrite(tmp_path / folder / "a.tif", values, extratags=tags)
    told, given = Folder(root=str(tmp_path / "told")), Folder(root=str(tmp_path / "given"), nodata=-9999)
    for dataset in (told, given):
        assert torch.equal(dataset.train[0].extras["valid"][0], torch.from_numpy(values != -9999))
        assert dataset.range is not None
        assert dataset.range[0] > -9000 or values[values != -9999].min() < -9000
    assert any("-9999 stands for a missing value" in one for one in told.remarks)
    assert describe(told)["nodata"] == -9999


# ----------------------------------------------------------------------------------------------------- what is refused
def npy_with(shape: str, descr: str = "'<u2'", content: bytes = b"") -> bytes:
    header = f"{{'descr': {descr}, 'fortran_order': False, 'shape': {shape}, }}".encode()
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header + content


REFUSED = {
    "objects.npy": (npy_with("(2, 2)", "'|O'", b"cos\nsystem\n"), "pickled objects"),
    "huge.npy": (npy_with("(1000000, 1000000)"), "more than can be read"),
    "long.npy": (npy_with("(100, 100)"), "cut short"),
    "negative.npy": (npy_with("(-3, 4)"), "no pixels"),
    "none.npy": (npy_with("(0, 4)"), "no pixels"),
    "volume.npy": (npy_with("(3, 4, 5, 6)"), r"\[H, W\]"),
    "line.npy": (npy_with("(3,)"), r"\[H, W\]"),
    "either.npy": (npy_with("(12, 40, 12)"), "either end may be the bands"),
    "fields.npy": (npy_with("(2, 2)", "[('a', '<u2')]"), "no numbers of an image"),
    "complex.npy": (npy_with("(2, 2)", "'<c8'"), "real and imaginary parts"),
    "text.npy": (npy_with("(2, 2)", "'<U3'"), "no numbers of an image"),
    "header.npy": (b"\x93NUMPY\x01\x00\xff\xff{", "cannot be decoded"),
    "zip.npz": (b"PK\x03\x04rubbish", "cannot be decoded"),
    "cut.h5": (b"\x89HDF\r\n\x1a\n", "cannot be decoded"),
    "cut.tif": (b"II*\0\x08\0\0\0", r"cannot be decoded|no page"),
    "cut.dcm": (b"\0" * 128 + b"DICM", r"cannot be decoded|without an image"),
    "script.png": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n", "is no image"),
    "empty.png": (b"", "is no image"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_an_image_is_refused_by_name(name: str, tmp_path: Path):
    content, words = REFUSED[name]
    (tmp_path / name).write_bytes(content)
    for source in (str(tmp_path / name), io.BytesIO(content)):
        with pytest.raises(DataError, match=words) as caught:
            Reading(3).read(source, name)
        assert name in str(caught.value)


def test_one_array_of_several_is_named(tmp_path: Path):
    np.savez(tmp_path / "a.npz", first=np.zeros((8, 8), np.uint8), second=np.full((8, 8), 7, np.uint8))
    with pytest.raises(DataError, match=r"holds 2 arrays \('first', 'second'\); say which with data\.array"):
        Reading(1).read(str(tmp_path / "a.npz"))
    assert Reading(1, array="second").read(str(tmp_path / "a.npz")).image.unique().tolist() == [7]
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["x"], file["g/y"] = np.zeros((8, 8), np.uint8), np.full((8, 8), 9, np.uint8)
        file["z"] = h5py.ExternalLink("/etc/passwd", "/")
    assert Reading(1, array="g/y").read(str(tmp_path / "a.h5")).image.unique().tolist() == [9]
    with pytest.raises(DataError, match=r"no array 'z' .* it holds 'g/y', 'x'"):
        Reading(1, array="z").read(str(tmp_path / "a.h5"))


def test_a_bomb_in_an_archive_is_not_unpacked(tmp_path: Path):
    with zipfile.ZipFile(tmp_path / "a.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("image.npy", npy_with("(200000, 200000)", "'|u1'", bytes(10_000_000)))
    with pytest.raises(DataError, match="more than can be read"):
        Reading(1).read(str(tmp_path / "a.npz"))


def test_pages_that_are_not_alike_are_refused_and_smaller_copies_are_passed_over(tmp_path: Path):
    with tifffile.TiffWriter(tmp_path / "a.tif") as file:
        file.write(numbers((16, 16), "uint8"))
        file.write(numbers((8, 8), "uint8"))
    with pytest.raises(DataError, match=r"2 pages that are not alike \(16 x 16 of 1 x uint8, 8 x 8"):
        Reading(3).read(str(tmp_path / "a.tif"))
    with tifffile.TiffWriter(tmp_path / "b.tif") as file:
        file.write(numbers((16, 16), "uint8"))
        file.write(numbers((8, 8), "uint8"), subfiletype=1)
    assert Reading(3).read(str(tmp_path / "b.tif")).image.shape == (3, 16, 16)


def test_a_mask_in_a_tiff_says_which_pixels_are_valid(tmp_path: Path):
    mask = np.zeros((16, 16), bool)
    mask[4:] = True
    with tifffile.TiffWriter(tmp_path / "a.tif") as file:
        file.write(numbers((16, 16, 3), "uint8"), photometric="rgb")
        file.write(mask, subfiletype=4, photometric="mask")
    sample = Folder(root=str(tmp_path)).train[0]
    assert torch.equal(sample.extras["valid"], torch.from_numpy(mask).expand(3, 16, 16))
    with pytest.raises(DataError, match=r"missing pixels.*data\.gaps"):
        Folder(root=str(tmp_path), gaps=False).train[0]


def test_the_first_picture_of_an_animation_counts_and_that_is_told(tmp_path: Path):
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    for name in ("a.gif", "b.webp", "c.png"):
        frames[0].save(
            tmp_path / name, save_all=True, append_images=frames[1:], **({"lossless": True} if "w" in name else {})
        )
    dataset = Folder(root=str(tmp_path))
    assert all(
        dataset.train[number].image[:, 0, 0].tolist() == [255, 0, 0]
        or (number == 0 and dataset.train[0].image[0, 0, 0] > 250)
        for number in range(3)
    )
    assert any("3 of 3 images looked at are animations" in one for one in dataset.remarks)


# ------------------------------------------------------------------------------------------------------------ medicine
def dicom_file(path: Path, values: NDArray[Any], **tags: Any) -> Path:
    pydicom = pytest.importorskip("pydicom")
    made = pydicom.Dataset()
    made.file_meta = pydicom.dataset.FileMetaDataset()
    made.file_meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
    made.SOPClassUID, made.SOPInstanceUID = "1.2.840.10008.5.1.4.1.1.7", "1.2.3"
    made.Rows, made.Columns = values.shape[:2]
    made.SamplesPerPixel, made.PhotometricInterpretation = 1, "MONOCHROME2"
    made.BitsAllocated, made.BitsStored, made.HighBit = 16, 12, 11
    made.PixelRepresentation = int(values.dtype.kind == "i")
    for name, value in tags.items():
        setattr(made, name, value)
    made.PixelData = values.tobytes()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        made.save_as(path, enforce_file_format=True)
    return path


def test_dicom_is_rescaled_and_white_is_one(tmp_path: Path):
    values = np.linspace(0, 4095, 64).astype(np.uint16).reshape(8, 8)
    (tmp_path / "plain").mkdir()
    dicom_file(tmp_path / "plain" / "a.dcm", values)
    plain = Folder(root=str(tmp_path / "plain"))
    assert (plain.channels, plain.range, plain.kinds) == (1, (0, 4095), ("uint16",))
    assert torch.allclose(plain.train[0].image[0], torch.from_numpy(values / 4095).float())
    assert any("say they use 12 bits" in one for one in plain.remarks)
    (tmp_path / "white").mkdir()
    dicom_file(tmp_path / "white" / "a.dcm", values, PhotometricInterpretation="MONOCHROME1")
    white = Folder(root=str(tmp_path / "white")).train[0].image
    assert torch.allclose(white, 1 - plain.train[0].image, atol=1e-6)
    (tmp_path / "ct").mkdir()
    dicom_file(tmp_path / "ct" / "a.dcm", values, RescaleSlope=2, RescaleIntercept=-1024)
    found = Folder(root=str(tmp_path / "ct"), range=(-1024, 1024)).train[0]
    assert torch.allclose(found.image[0], torch.from_numpy(values * 2.0 / 2048).float(), atol=1e-6)
    frames = dicom_file(tmp_path / "many.dcm", values, NumberOfFrames=3)
    with pytest.raises(DataError, match=r"many\.dcm' has 3 frames"):
        Reading(1).read(str(frames))


# ------------------------------------------------------------------------------------------------- a recipe, a preview
def differing_data(then: dict[str, Any], now: dict[str, Any]) -> list[str]:
    return [one for one in differing(then, now, REGISTRY) if one.startswith("recipe.data.")]


def test_a_run_from_before_these_options_is_the_same_run(tmp_path: Path):
    Image.fromarray(numbers((9, 7, 3), "uint8")).save(tmp_path / "a.png")
    now = {"data": describe(Folder(root=str(tmp_path)))}
    then = {"data": {key: now["data"][key] for key in ("use", "root", "size", "channels", "flip")}}
    assert differing_data(then, now) == []
    (other,) = differing_data(then, {"data": {**now["data"], "mean": [0.5, 0.5, 0.5]}})
    assert other == "recipe.data.mean is [0.485, 0.456, 0.406] there and [0.5, 0.5, 0.5] here"
    Image.fromarray(numbers((9, 7), "uint16") // 16).save(tmp_path / "a.png")
    deeper = {"data": describe(Folder(root=str(tmp_path)))}
    assert any("recipe.data.range is none there" in one.lower() for one in differing_data(then, deeper))


def test_a_missing_library_is_one_message(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    write(tmp_path / "a.tif", numbers((8, 8, 5), "uint16"))
    monkeypatch.setitem(__import__("sys").modules, "tifffile", None)
    with pytest.raises(MaskZooError, match=r"a\.tif' is a TIFF .*pip install 'maskzoo\[images\]'"):
        Folder(root=str(tmp_path))


def test_files_that_are_named_are_read_as_a_data_set(tmp_path: Path):
    write(tmp_path / "a.tif", numbers((8, 8, 12), "uint16"))
    named = NamedFiles([tmp_path / "a.tif"], Reading(12))
    assert named[0].image.shape == (12, 8, 8)


@pytest.mark.skipif(not TRIALS.is_dir(), reason="the reports' own files are not here")
def test_files_of_reports_are_right():
    grey = str(TRIALS / "grey-12-bit.png")
    assert len(np.unique(Reading(3, range=(0, 4095)).read(grey).image[0].numpy())) == 32
    assert Reading(12).read(str(TRIALS / "twelve-bands.tif")).image.shape[0] == 12
    with pytest.raises(DataError, match="has 12 bands"):
        Reading(3).read(str(TRIALS / "twelve-bands.tif"))
    assert len(Reading(3).read(str(TRIALS / "icon.png")).image.unique()) > 1
    assert Reading(3).read(str(TRIALS / "orientation-6.jpg")).image.shape == (3, 60, 40)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["bands", "holes", "bits"])
def test_a_run_on_such_files_is_trained_evaluated_and_previewed(kind: str, tmp_path: Path):
    drawn = np.random.default_rng(0)
    for label, number in itertools.product("ab", range(12)):
        values = drawn.random((16, 16, 12)) * (0.3 if label == "a" else 1)
        place = tmp_path / "data" / label
        if kind == "bands":
            write(place / f"{number}.tif", (values * 10_000).astype(np.uint16), "pages")
        elif kind == "holes":
            values[:4, :4] = np.nan
            write(place / f"{number}.npy", (values[..., :5] * 40 - 5).astype(np.float32), "first")
        else:
            place.mkdir(parents=True, exist_ok=True)
            Image.fromarray((values[..., 0] * 4095).astype(np.uint16)).save(place / f"{number}.png")
    model = 'backbone={timm="vit_tiny_patch16_224",patch_size=4,options={embed_dim=16,depth=1,num_heads=1}}'
    run, one = str(tmp_path / "run"), sorted((tmp_path / "data" / "a").iterdir())[0]
    settings = ["train.steps=2", "train.batch_size=4", "train.precision=fp32", model]
    chosen = [word for setting in settings for word in ("--set", setting)]
    trained = CliRunner().invoke(main, ["train", "--data", str(tmp_path / "data"), "--out", run, *chosen])
    assert (trained.exit_code, "nan" in trained.output.lower()) == (0, False), trained.output
    assert CliRunner().invoke(main, ["evaluate", run]).exit_code == 0
    arguments = ["preview", "--run", run, "--moments", "2", "--out", str(tmp_path / "p.png"), str(one)]
    assert CliRunner().invoke(main, arguments).exit_code == 0
    assert CliRunner().invoke(main, ["train", "--out", run, "--resume"]).exit_code == 0


@pytest.mark.parametrize("value", [-9999.0, 1e20])
def test_a_value_far_from_all_others_is_suspected_to_mean_none(value: float, tmp_path: Path):
    for number in range(4):
        field = np.random.default_rng(number).random((1, 16, 16)).astype(np.float32)
        field[:, :3] = value
        tifffile.imwrite(tmp_path / f"{number}.tif", field, photometric="minisblack")
    told = " ".join(Folder(root=str(tmp_path)).remarks)
    assert f"set data.nodata = {value:.10g}" in told
    named = Folder(root=str(tmp_path), nodata=value)
    assert named.range == (0.0, 1.0)
    assert "set data.nodata" not in " ".join(named.remarks)
    assert not bool(named.train[0].extras["valid"][:, :3].any())


def test_a_square_with_a_few_bands_more_or_less_is_a_square(tmp_path: Path):
    for name, shape in (("first", (12, 16, 16)), ("last", (16, 16, 20)), ("small", (3, 4, 4))):
        (tmp_path / name).mkdir()
        np.save(tmp_path / name / "0.npy", np.random.default_rng(0).random(shape).astype(np.float32))
        assert tuple(Folder(root=str(tmp_path / name)).train[0].image.shape) == {
            "first": (12, 16, 16), "last": (20, 16, 16), "small": (3, 4, 4)
        }[name]  # fmt: skip
