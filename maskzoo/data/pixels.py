"""What an image file's pixels become: the one place that decides range, bits, bands, alpha and orientation.

Shapes: C channels, H height, W width.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO, Any

import attrs
import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from maskzoo.errors import DataError, RecipeError
from maskzoo.protocols import Sample, Split, define

EXTENSIONS = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tiff", ".tif")
# By content, not by name: misnamed files are common, and Pillow's rarer formats (PostScript!) have no business here.
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF")
MODES = {1: "L", 3: "RGB", 4: "RGBA"}
STATISTICS = {  # ImageNet's; grey is their weighted sum, and nothing is known of an alpha channel
    1: ((0.459,), (0.226,)),
    3: ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    4: ((0.485, 0.456, 0.406, 0.5), (0.229, 0.224, 0.225, 0.5)),
}


@attrs.frozen(eq=False)
class Pixels:
    """What was read of one image."""

    image: Tensor  # [C, H, W] uint8, uint16 or float32, as of `Sample.image`
    valid: Tensor | None = None  # [C, H, W] bool, True where a value was measured; None: everywhere

    def sample(self, label: int | None) -> Sample:
        """The same as a data set hands it over."""
        return Sample(self.image, label, {} if self.valid is None else {"valid": self.valid})


@attrs.frozen
class Reading:
    """How the images of a data set are read, decided once for all of them."""

    channels: int = 3
    range: tuple[float, float] | None = None  # stored values that become the levels 0 and 1; None: the type's own
    bands: tuple[int, ...] | None = None  # which of a file's bands become channels, and in which order, from 1
    nodata: float | None = None  # the stored value that stands for none
    background: tuple[int, int, int] = (255, 255, 255)  # what shows through where an image is transparent

    def read(self, file: str | IO[bytes], name: str = "") -> Pixels:
        """The image in a file; DataError, naming it (by `name` if the file has none), where it cannot be had."""
        with opened(file, name) as image:
            return self.of(image, name or f"'{file}'")

    def of(self, image: Image.Image, name: str) -> Pixels:
        """The pixels of an image that Pillow holds, upright; DataError, naming it, where their range is not known."""
        return Pixels(pixels_of(_upright(image), self.channels, name))


@define
class ReadsImages:
    """The options by which a data set says how its images are read, and what follows from them."""

    # channels of an image: 1 grey, 3 RGB, 4 RGBA, or as many as the files have bands; unless given, 3
    channels: int | None = attrs.field(
        default=None, kw_only=True, validator=attrs.validators.optional(attrs.validators.in_(tuple(MODES)))
    )
    mean: tuple[float, ...] | None = attrs.field(default=None, kw_only=True)  # of each channel; ImageNet's unless given
    std: tuple[float, ...] | None = attrs.field(default=None, kw_only=True)  # of each channel; ImageNet's unless given

    def decide(self, train: Split) -> Reading:
        """How images are read; settles the options that were left open. RecipeError where they do not fit."""
        self.channels = self.channels or 3
        mean, std = STATISTICS[self.channels]
        self.mean, self.std = self.mean or mean, self.std or std
        for key in ("mean", "std"):
            if len(getattr(self, key)) != self.channels:
                raise RecipeError(f"must have {self.channels} values, one for each channel", key=key)
        return Reading(self.channels)


@contextmanager
def opened(file: str | IO[bytes], name: str = "") -> Iterator[Image.Image]:
    """The image in `file`, its header read and its pixels not yet; Pillow's warnings are silenced meanwhile.

    Whatever goes wrong with the image becomes a DataError that names it, by `name` if the file has none: Pillow raises
    nearly everything.
    """
    name = name or f"'{file}'"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            with Image.open(file, formats=FORMATS) as image:
                yield image
        except DataError:
            raise
        except UnidentifiedImageError as error:
            raise DataError(f"{name} is no image; mend or remove it") from error
        except Exception as error:
            raise DataError(f"{name} cannot be decoded ({error}); mend or remove it") from error


def _upright(image: Image.Image) -> Image.Image:
    """The image as its camera wants it seen, or as it is stored where what the camera says cannot be read."""
    try:
        return ImageOps.exif_transpose(image)
    except Exception:  # Pillow raises nearly everything
        return image


def pixels_of(image: Image.Image, channels: int, name: str) -> Tensor:
    """The pixels of an image as uint8 [C, H, W]; DataError, naming it, where their range is not known."""
    if image.mode.startswith(("I", "F")):
        image = _eight_bits(image, name)
    pixels: Any = np.array(image if image.mode == MODES[channels] else image.convert(MODES[channels]))
    return torch.from_numpy(pixels.reshape(*pixels.shape[:2], channels)).permute(2, 0, 1)


def _eight_bits(image: Image.Image, name: str) -> Image.Image:
    """The grey image in 8 bits; Pillow would clip what is above 255."""
    pixels = np.asarray(image)
    if image.mode == "F" or pixels.min() < 0 or pixels.max() > 65535:
        raise DataError(f"{name} has pixels of 32 bits, whose range nobody knows; convert it to 8 or 16 bits")
    return Image.fromarray((pixels / 257).round().astype(np.uint8))
