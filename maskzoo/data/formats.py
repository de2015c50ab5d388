"""Which reader an image's file has, by its content: Pillow's for pictures, others for arrays, many bands and DICOM."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from maskzoo.data.arrays import hdf5, npy, npz
from maskzoo.data.dicom import dicom
from maskzoo.data.stored import TRANSPOSED, Stored, naming, upright
from maskzoo.data.tiff import tiff
from maskzoo.errors import DataError

PICTURES = (
    *(".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tiff", ".tif", ".gif", ".avif"),
    *(".jpe", ".jfif", ".mpo", ".apng", ".jp2", ".j2k", ".pgm", ".ppm", ".pnm"),
)
ARRAYS = (".npy", ".npz", ".h5", ".hdf5", ".dcm")
EXTENSIONS = (*PICTURES, *ARRAYS)
# By content, not by name: misnamed files are common, and Pillow's rarer formats (PostScript!) have no business here.
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF", "AVIF", "JPEG2000", "PPM")
ANIMATED = ("GIF", "PNG", "WEBP", "AVIF")
COLOURS = {"1": "L", "L": "L", "I;16": "L", "I;16B": "L", "LA": "LA", "La": "LA", "PA": "RGBA", "RGBa": "RGBA"}
SIGNATURES = {b"\x93NUMPY": npy, b"PK\x03\x04": npz, b"\x89HDF\r\n\x1a\n": hdf5}
TIFF_SIGNATURES = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
CODESTREAM = b"\xff\x4f\xff\x51"  # where the header of JPEG 2000 begins; 42 bytes on are the bits of a number


@contextmanager
def stored(source: str | IO[bytes] | Image.Image, name: str = "", array: str = "", bands: int = 0) -> Iterator[Stored]:
    """What a file, or an image that Pillow holds, stores; its numbers can be had while the context lasts.

    Of several arrays in a file it is that called `array`; `bands`, if it is not 0, tells which axis of one is that of
    the bands. Whatever goes wrong is a DataError that names the image, by `name` if it has none.
    """
    name = name or f"'{source}'"
    with naming(name):
        if isinstance(source, Image.Image):
            yield pillow(source, name)
            return
        with open(source, "rb") if isinstance(source, str) else source as file:
            start = file.read(132)
            file.seek(0)
            for signature, read in SIGNATURES.items():
                if start.startswith(signature):
                    with read(file, name, array, bands) as found:
                        yield found
                    return
            if start[128:] == b"DICM":
                yield dicom(file, name)
            elif start.startswith(TIFF_SIGNATURES):
                with tiff(file, name) as found:
                    yield found
            else:
                with Image.open(file, formats=FORMATS) as image:
                    yield pillow(image, name)


@contextmanager
def opened(file: str | IO[bytes], name: str = "") -> Iterator[Image.Image]:
    """The picture in a file as Pillow opens it, its header read and its pixels not yet; DataError, naming it."""
    with naming(name or f"'{file}'"), Image.open(file, formats=FORMATS) as image:
        yield image


def pillow(image: Image.Image, name: str) -> Stored:
    """An image of one page as Pillow holds it."""
    mode, kind, bits = image.mode, "uint8", None
    if mode == "F" or (mode == "I" and image.format != "PPM"):
        kind, colours = ("float32" if mode == "F" else "int32"), ""
    elif mode.startswith("I"):  # in PPM scaled to 16 bits by the greatest value that its header names
        kind, colours = "uint16", "L"
    else:
        colours = COLOURS.get(mode, "RGB")
        if image.has_transparency_data:
            colours = "LA" if colours in ("L", "LA") else "RGBA"
    if image.format == "JPEG2000":
        bits = _bits_of_jpeg2000(image)
        if bits and bits > 8 and kind == "uint8":
            raise DataError(f"{name} has colours of {bits} bits, of which 8 would be read; store it as TIFF or PNG")
    deep, file = _deep_png(image), _file_of(image)
    if deep:
        kind, colours = "uint16", deep.partition(";")[0]
    turned, told = orientation(image), "exif" in image.info

    def values() -> NDArray[Any]:
        if deep:
            return upright(_all_bits(file, deep), turned)
        image.load()
        late = "exif" in image.info and not told and image.format == "PNG"  # it may lie behind the pixels
        around = _turned_by(image.info["exif"]) if late else turned
        plain = image if not colours or kind == "uint16" or image.mode == colours else image.convert(colours)
        found = np.array(plain)
        found = found.astype(kind, copy=False).reshape(*found.shape[:2], -1)
        if bits is not None and kind == "uint16":
            found = found >> (16 - bits)  # Pillow scales them up
        return upright(found, around)

    height, width = (image.width, image.height) if turned in TRANSPOSED else (image.height, image.width)
    return Stored(
        height,
        width,
        len(colours) or 1,
        kind,
        values,
        colours,
        bits=bits if kind == "uint16" and bits and bits < 16 else None,
        moving=image.format in ANIMATED and getattr(image, "n_frames", 1) > 1,
    )


def orientation(image: Image.Image) -> int:
    """How a camera wants the image turned (1 to 8); 1, as it is stored, where what it says cannot be read."""
    try:
        # Of a PNG, Pillow's own would decode the pixels first.
        turned = (Image.Image.getexif(image) if image.format == "PNG" else image.getexif()).get(0x0112, 1)
    except Exception:  # Pillow raises nearly everything
        return 1
    return turned if isinstance(turned, int) and 1 <= turned <= 8 else 1


def _turned_by(content: bytes) -> int:
    """The orientation in EXIF data, as they lie in a file."""
    exif = Image.Exif()
    try:
        exif.load(content)
        turned = exif.get(0x0112, 1)
    except Exception:
        return 1
    return turned if isinstance(turned, int) and 1 <= turned <= 8 else 1


def _file_of(image: Image.Image) -> Any:
    """The file of an image that nothing has decoded yet; Pillow lets go of it then."""
    return getattr(image, "fp", None)


def _deep_png(image: Image.Image) -> str:
    """How the bytes of a PNG lie that has 16 bits in more than one band, of which Pillow would keep 8; "": no such."""
    tiles = image.tile if image.format == "PNG" and hasattr(image, "tile") else []
    layout = tiles[0].args if tiles else None
    return layout if isinstance(layout, str) and layout in ("LA;16B", "RGB;16B", "RGBA;16B") else ""


def _all_bits(file: IO[bytes], layout: str) -> NDArray[Any]:
    """The 16 bits of a PNG: [H, W, S].

    Pillow keeps 8 of them, but which is its decoder's argument: the same bytes in little-endian order give the others.
    """
    if layout == "LA;16B":  # four bytes a pixel
        found = _decoded(file, "RGBA").astype(np.uint16)
        return found[..., 0::2] << 8 | found[..., 1::2]
    high, low = (_decoded(file, layout[:-1] + end).astype(np.uint16) for end in "BL")
    return high << 8 | low


def _decoded(file: IO[bytes], layout: str) -> NDArray[Any]:
    """The 8 bits of each value of a PNG that a layout of its bytes gives: [H, W, S]."""
    file.seek(0)
    image = Image.open(file, formats=("PNG",))
    image.tile = [tile._replace(args=layout) for tile in image.tile]
    return np.array(image)  # the file stays open, which `with` would close


def _bits_of_jpeg2000(image: Image.Image) -> int | None:
    file = _file_of(image)
    if file is None:
        return None
    place = file.tell()
    file.seek(0)
    start = file.read(1 << 16)
    file.seek(place)
    found = start.find(CODESTREAM)
    return (start[found + 42] & 0x7F) + 1 if 0 <= found < len(start) - 42 else None
