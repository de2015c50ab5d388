"""What a file holds of an image: stored numbers, and what the file says of them, before any of it is interpreted.

Shapes: S stored bands, H height, W width.
"""

from __future__ import annotations

import logging
import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import attrs
import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from maskzoo.bounds import MOST_WIDTH
from maskzoo.data.library import library
from maskzoo.errors import DataError, MaskZooError, RecipeError

MOST_VALUES, MOST_BYTES = 2**30, 2**32  # of an image, in all its bands
TRANSPOSED = (5, 6, 7, 8)  # EXIF orientations that exchange height and width
for _noisy in ("tifffile", "pydicom", "PIL.TiffImagePlugin"):  # what they tell of a broken file is in the error
    logging.getLogger(_noisy).setLevel(logging.CRITICAL + 1)


@attrs.frozen(eq=False)
class Stored:
    """An image as it is stored, upright; its numbers are decoded when they are asked for."""

    height: int
    width: int
    bands: int  # S
    kind: str  # of its numbers, as NumPy names it: "uint8", "uint16", "int16", "float32", ...
    values: Callable[[], NDArray[Any]]  # [H, W, S] of that kind
    colours: str = ""  # what the bands of a picture are: "L" (grey), "LA", "RGB", "RGBA"; "": not colours
    bits: int | None = None  # that the numbers use, where the file says so and it is less than their kind has
    nodata: float | None = None  # the value that stands for a missing one, where the file says so
    inverted: bool = False  # whether 0 is white
    moving: bool = False  # whether this is the first picture of an animation
    mask: Callable[[], NDArray[np.bool_]] | None = None  # [H, W], True where the file says that a pixel was measured


@contextmanager
def naming(name: str) -> Iterator[None]:
    """Whatever is raised by reading an image as a DataError that names it: Pillow, for one, raises nearly everything.

    Warnings are silenced meanwhile.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            yield
        except MaskZooError:
            raise
        except UnidentifiedImageError as error:
            raise DataError(f"{name} is no image; mend or remove it") from error
        except Exception as error:
            words = " ".join(str(error).split()) or type(error).__name__
            raise DataError(f"{name} cannot be decoded ({words}); mend or remove it") from error


def reader(module: str, name: str, what: str) -> Any:
    """The optional library that reads such a file; RecipeError, which names the file, where it is missing."""
    try:
        return library(module, "maskzoo[images]")
    except RecipeError as problem:
        raise RecipeError(f"{name} is {what}: {problem}") from problem


def upright(values: NDArray[Any], orientation: int) -> NDArray[Any]:
    """Values [H, W, S] as an EXIF orientation (1 to 8) wants them seen; any other number changes nothing."""
    if orientation in TRANSPOSED:
        values = values.transpose(1, 0, 2)
    if orientation in (3, 4, 7, 8):
        values = values[::-1]
    if orientation in (2, 3, 6, 7):
        values = values[:, ::-1]
    return values


def refuse_absurd(shape: Sequence[int], kind: Any, name: str) -> None:
    """Raise DataError for a shape (H, W, S) or a kind of number that no image has, before memory is asked for."""
    height, width, bands = shape
    most = 2 * (Image.MAX_IMAGE_PIXELS or MOST_VALUES)
    most_values = min(MOST_VALUES, MOST_BYTES // max(1, np.dtype(kind).itemsize))
    if min(shape) < 1:
        raise DataError(f"{name} has no pixels (its shape is {list(shape)}); remove it")
    if height * width > most or bands > MOST_WIDTH or math.prod(shape) > most_values:
        raise DataError(
            f"{name} claims {height:,} x {width:,} pixels of {bands:,} bands, more than can be read; cut it"
        )
    if np.dtype(kind).kind == "c":
        raise DataError(f"{name} holds complex numbers; store their real and imaginary parts as two bands")
    if np.dtype(kind).kind not in "buif" or np.dtype(kind).itemsize > 8:
        raise DataError(f"{name} holds no numbers of an image but {np.dtype(kind)}; store integers or floating point")
