"""TIFF: by Pillow wherever it keeps every bit, else by tifffile.

Shapes: S bands, H height, W width.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import IO, Any

import attrs
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from maskzoo.data.stored import TRANSPOSED, Stored, reader, refuse_absurd, upright
from maskzoo.errors import DataError

MOST_PAGES = 10_000
UNSIGNED, SIGNED, FLOATING, VOID = 1, 2, 3, 4  # of the tag SampleFormat
REDUCED, MASK = 1, 4  # bits of the tag NewSubfileType
WHITE_IS_ZERO, BLACK_IS_ZERO, RGB = 0, 1, 2  # of the tag PhotometricInterpretation
ALPHA = (1, 2)  # of the tag ExtraSamples
# (mode, SampleFormat, bits) that Pillow keeps whole: the bands, what they are, and the kind of number.
EXACT = {
    ("1", UNSIGNED, 1): ("L", "uint8"),
    **{("L", UNSIGNED, bits): ("L", "uint8") for bits in (2, 4, 8)},
    **{("P", UNSIGNED, bits): ("RGB", "uint8") for bits in (1, 2, 4, 8)},
    **{(mode, UNSIGNED, 8): (mode, "uint8") for mode in ("LA", "RGB", "RGBA")},
    **{(mode, UNSIGNED, 8): ("RGB", "uint8") for mode in ("CMYK", "YCbCr", "LAB")},
    **{(mode, UNSIGNED, bits): ("L", "uint16") for mode in ("I;16", "I;16B") for bits in (12, 16)},
    ("L", SIGNED, 8): ("", "int8"),
    **{("I", SIGNED, bits): ("", f"int{bits}") for bits in (16, 32)},
    ("I", UNSIGNED, 32): ("", "uint32"),
    ("F", FLOATING, 32): ("", "float32"),
}
SAMPLES = {"CMYK": 4, "P": 1}  # of a pixel, where they are not as many as the bands that are made of them


@attrs.frozen
class _Page:
    """What the tags of a page say."""

    height: int
    width: int
    bands: int
    kind: str
    colours: str
    bits: int | None
    inverted: bool
    turned: int
    nodata: float | None
    number: int = attrs.field(eq=False)


@contextmanager
def tiff(file: IO[bytes], name: str) -> Iterator[Stored]:
    """All bands of all pages, which are of one size and kind; smaller copies are passed over."""
    with _by_pillow(file, name) as found:
        if found is not None:
            yield found
            return
    file.seek(0)
    with _by_tifffile(file, name) as found:
        yield found


# ------------------------------------------------------------------------------------------------------------- Pillow
@contextmanager
def _by_pillow(file: IO[bytes], name: str) -> Iterator[Stored | None]:
    """None where Pillow cannot open each page, or would lose something of one."""
    try:
        image = Image.open(file, formats=("TIFF",))
        pages = list(_pages(image))
    except Image.DecompressionBombError:
        raise
    except Exception:  # another reader may do better, or tell
        yield None
        return
    if any(page is None for page in pages):
        yield None
        return

    def values(page: _Page) -> NDArray[Any]:
        image.seek(page.number)
        image.load()  # which turns it upright
        found = np.asarray(image if image.mode in ("I", "F", "I;16", "I;16B", page.colours) else _plain(image, page))
        if found.dtype.itemsize == np.dtype(page.kind).itemsize:
            found = found.astype(found.dtype.newbyteorder("=")).view(page.kind)
        return found.astype(page.kind, copy=False).reshape(page.height, page.width, page.bands)

    with image:
        yield _joined([page for page in pages if page is not None], values, name)


def _plain(image: Image.Image, page: _Page) -> Image.Image:
    """The image in the mode of its colours; what is signed stays as its bits are."""
    return image.convert(page.colours) if page.colours else image


def _pages(image: Image.Image) -> Iterator[_Page | None]:
    """Each page that is no smaller copy; None for one that Pillow does not keep whole."""
    for number in range(min(getattr(image, "n_frames", 1), MOST_PAGES + 1)):
        image.seek(number)
        tags: Any = image.tag_v2  # type: ignore[attr-defined]
        purpose = int(tags.get(254, 0))
        if purpose & REDUCED:
            continue
        bits, formats = tuple(tags.get(258, (1,))), tuple(tags.get(339, (UNSIGNED,)))
        numbers = UNSIGNED if formats[0] == VOID else formats[0]
        found = EXACT.get((image.mode, numbers, bits[0]))
        samples = int(tags.get(277, 1))
        if found is None or purpose & MASK or samples != SAMPLES.get(image.mode, len(image.getbands())):
            yield None
            return
        if len({*bits}) > 1 or len({*formats}) > 1:
            yield None
            return
        colours, kind = found
        if image.mode == "P" and image.has_transparency_data:
            colours = "RGBA"
        yield _Page(
            *(image.height, image.width, len(colours) or 1, kind, colours),
            bits=_bits(bits[0], tags.get(281), kind),
            inverted=tags.get(262) == WHITE_IS_ZERO and kind != "uint8",
            turned=1,
            nodata=_number(tags.get(42113)),
            number=number,
        )


def _bits(bits: int, greatest: Any, kind: str) -> int | None:
    """The bits in use, by those that are packed or by the tag MaxSampleValue; None where they are all in use."""
    width = np.dtype(kind).itemsize * 8
    if not kind.startswith("uint") or width == 8:
        return None
    greatest = greatest[0] if isinstance(greatest, tuple | list) else greatest
    told = int(greatest).bit_length() if isinstance(greatest, int | float) and greatest > 255 else bits
    return told if told < width else None


def _number(text: Any) -> float | None:
    """The value of the tag GDAL_NODATA."""
    try:
        return None if text is None else float(str(text).strip(" \0"))
    except ValueError:
        return None


# ----------------------------------------------------------------------------------------------------------- tifffile
@contextmanager
def _by_tifffile(file: IO[bytes], name: str) -> Iterator[Stored]:
    tifffile = reader("tifffile", name, "a TIFF that Pillow would not read whole")
    with tifffile.TiffFile(file) as holder:
        if len(holder.pages) > MOST_PAGES:
            raise DataError(f"{name} has more than {MOST_PAGES:,} pages; cut it")
        whole = [page for page in holder.pages if not int(page.keyframe.subfiletype) & REDUCED]
        masks = [page for page in whole if int(page.keyframe.subfiletype) & MASK]
        pages = [page for page in whole if page not in masks]
        hidden = len(pages) == 1 and holder.series and holder.series[0].size > pages[0].size
        if hidden:  # ImageJ writes large stacks with the tags of their first page alone
            raise DataError(f"{name} keeps more than one page behind the tags of the first; save it as pages")
        told = [
            _told(page.keyframe if hasattr(page, "keyframe") else page, number, name)
            for number, page in enumerate(pages)
        ]

        def values(page: _Page) -> NDArray[Any]:
            found = np.asarray(pages[page.number].asarray())
            tall = (page.width, page.height) if page.turned in TRANSPOSED else (page.height, page.width)
            planar = found.ndim == 3 and found.shape[0] == page.bands and found.shape[1:] == tall
            contiguous = found.shape[:2] == tall and found.size == tall[0] * tall[1] * page.bands
            if planar and int(pages[page.number].keyframe.planarconfig) == 2:
                found = found.transpose(1, 2, 0)
            elif not contiguous:
                raise DataError(f"{name} has a page of the shape {list(found.shape)}, which is no image")
            return upright(found.reshape(*tall, page.bands).astype(page.kind, copy=False), page.turned)

        def measured() -> NDArray[np.bool_]:
            found = np.asarray(masks[0].asarray()) != 0
            return np.asarray(upright(found.reshape(*found.shape[:2], 1), told[0].turned)[..., 0])

        found = _joined(told, values, name)
        yield attrs.evolve(found, mask=measured) if masks else found


def _told(page: Any, number: int, name: str) -> _Page:
    """What tifffile says of a page."""
    if page.imagedepth != 1:
        raise DataError(f"{name} is a volume of {page.imagedepth} slices; store each as a page")
    colour = int(page.photometric)
    if colour not in (WHITE_IS_ZERO, BLACK_IS_ZERO, RGB) or page.dtype is None:
        raise DataError(
            f"{name} has colours ({getattr(page.photometric, 'name', colour)}, {page.bitspersample} bits) that are "
            "not read; store it as grey or RGB"
        )
    kind, bands = np.dtype(page.dtype), int(page.samplesperpixel)
    extra = [int(one) for one in page.extrasamples]
    colours = ""
    if kind in (np.dtype(np.uint8), np.dtype(np.uint16)):
        transparent = len(extra) == 1 and extra[0] in ALPHA
        colours = {1: "L", 2: "LA" if transparent else "", 3: "RGB", 4: "RGBA" if transparent else ""}.get(bands, "")
        colours = colours if colour == RGB or bands < 3 else ""
    refuse_absurd((int(page.imagelength), int(page.imagewidth), bands), kind, name)
    turned = int(page.tags.valueof(274, default=1))
    height, width = int(page.imagelength), int(page.imagewidth)
    if turned in TRANSPOSED:
        height, width = width, height
    kind_name = kind.newbyteorder("=").name
    return _Page(
        *(height, width, bands, kind_name, colours),
        bits=_bits(int(page.bitspersample), page.tags.valueof(281), kind_name),
        inverted=colour == WHITE_IS_ZERO,
        turned=turned,
        nodata=_number(page.tags.valueof(42113)),
        number=number,
    )


# --------------------------------------------------------------------------------------------------------------- both
def _joined(pages: Sequence[_Page], values: Any, name: str) -> Stored:
    """The pages as bands of one image."""
    if not pages:
        raise DataError(f"{name} has no page but smaller copies; remove it")
    if len({*pages}) > 1:
        shapes = sorted({f"{page.height} x {page.width} of {page.bands} x {page.kind}" for page in pages})
        raise DataError(
            f"{name} has {len(pages)} pages that are not alike ({', '.join(shapes[:3])}); store each by itself"
        )
    first, bands = pages[0], len(pages) * pages[0].bands
    refuse_absurd((first.height, first.width, bands), first.kind, name)

    def joined() -> NDArray[Any]:
        found = [values(page) for page in pages]
        return found[0] if len(found) == 1 else np.concatenate(found, axis=2)

    return Stored(
        *(first.height, first.width, bands, first.kind),
        values=joined,
        colours=first.colours if len(pages) == 1 else "",
        bits=first.bits,
        nodata=first.nodata,
        inverted=first.inverted,
    )
