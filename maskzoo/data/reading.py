"""How stored numbers become the channels of an image: range, bits, bands, transparency and missing values.

Shapes: C channels, S stored bands, H height, W width.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import IO, Any

import attrs
import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageColor
from torch import Tensor

from maskzoo.data.formats import stored
from maskzoo.data.stored import Stored
from maskzoo.errors import DataError
from maskzoo.protocols import Sample

File = str | IO[bytes]
STATISTICS = {  # ImageNet's; grey is their weighted sum, and nothing is known of an alpha channel
    1: ((0.459,), (0.226,)),
    3: ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    4: ((0.485, 0.456, 0.406, 0.5), (0.229, 0.224, 0.225, 0.5)),
}
COLOURS = {1: "L", 2: "LA", 3: "RGB", 4: "RGBA"}
KEPT = ("uint8", "uint16")  # kinds of number that stay as they are while all their bits are in use
GREY = (19595, 38470, 7471)  # of red, green and blue in grey, of 65536: Pillow's weights


@attrs.frozen(eq=False)
class Pixels:
    """What was read of one image."""

    image: Tensor  # [C, H, W] uint8, uint16 or float32, as of `Sample.image`
    valid: Tensor | None = None  # [C, H, W] bool, True where a value was measured; None: everywhere

    def sample(self, label: int | None, extras: Mapping[str, Tensor] | None = None) -> Sample:
        """The same as a data set hands it over."""
        return Sample(self.image, label, {**(extras or {}), **({} if self.valid is None else {"valid": self.valid})})


@attrs.frozen
class Reading:
    """How the images of a data set are read, decided once for all of them."""

    channels: int = 3
    range: tuple[float, float] | None = None  # stored values that become the levels 0 and 1; None: all of their kind
    bands: tuple[int, ...] | None = None  # which of a file's bands become channels, and in which order, from 1
    nodata: float | None = None  # the stored value that stands for a missing one
    background: str = "white"  # what shows through where a picture is transparent
    array: str = ""  # which of the arrays in a file
    kinds: tuple[str, ...] | None = None  # of stored numbers that belong here; None: any
    gaps: bool = False  # whether values may be missing, so that `valid` is always told

    def read(self, file: File, name: str = "") -> Pixels:
        """The image in a file; DataError, naming it (by `name` if the file has none), where it cannot be had."""
        return self._read(file, name or f"'{file}'")

    def of(self, image: Image.Image, name: str) -> Pixels:
        """The pixels of an image that Pillow holds; DataError as of `read`."""
        return self._read(image, name)

    def size(self, file: File | Image.Image, name: str = "") -> tuple[int, int]:
        """Height and width of an image, upright, without its pixels; DataError as of `read`."""
        with stored(file, name, self.array, self.stored_bands) as found:
            return found.height, found.width

    def _read(self, source: File | Image.Image, name: str) -> Pixels:
        with stored(source, name, self.array, self.stored_bands) as found:
            return self.pixels(found, name)

    def pixels(self, found: Stored, name: str) -> Pixels:
        """The pixels of an image that is open; DataError as of `read`."""
        self._check(found, name)
        values, valid = self.numbers(found, name)
        colours = found.colours if self.bands is None else ""
        levels = self._levels(values, found, colours, name)
        if valid is not None and levels.dtype == np.float32:
            levels[~valid] = 0  # so that NaN spreads no further
        levels = as_channels(levels, colours, self.channels, self.background)
        if valid is not None:
            if not valid.any():
                raise DataError(f"{name} has no valid pixel; remove it")
            valid = _valid_channels(valid, colours, self.channels)
        return Pixels(_tensor(levels), None if valid is None else _tensor(valid))

    def numbers(self, found: Stored, name: str) -> tuple[NDArray[Any], NDArray[np.bool_] | None]:
        """The stored values of the chosen bands, and which of them were measured (None: all): [H, W, S] both."""
        values = found.values()
        valid = self._valid(found, values, name)
        if values.dtype == bool:
            values = values.astype(np.uint8) * np.uint8(255)
        if self.bands is None:
            return values, valid
        chosen = [band - 1 for band in self.bands]
        return values[..., chosen], None if valid is None else valid[..., chosen]

    @property
    def stored_bands(self) -> int:
        """How many bands an array has, where the channels tell."""
        return 0 if self.bands is not None else self.channels

    def _check(self, found: Stored, name: str) -> None:
        """Raise DataError where the image is not of the kind that its data set is."""
        kind = kind_of(found)
        if self.kinds is not None and kind not in self.kinds:
            raise DataError(
                f"{name} holds numbers of the kind {kind}, and the data set those of the kind "
                f"{' or '.join(self.kinds)} (`data.kinds`); convert it, or name both kinds and a data.range"
            )
        if self.bands is not None:
            if max(self.bands) > found.bands:
                raise DataError(f"{name} has no band {max(self.bands)} (`data.bands`): it has {found.bands}")
        elif not _convertible(found, self.channels):
            pages = f"{found.bands} {'band' if found.bands == 1 else 'bands'}"
            most = ", ".join(str(band) for band in range(1, min(self.channels, found.bands) + 1))
            raise DataError(
                f"{name} has {pages}, from which {self.channels} channels cannot be made; choose with data.bands, "
                f"e.g. [{most}], or set data.channels = {found.bands}"
            )

    def _valid(self, found: Stored, values: NDArray[Any], name: str) -> NDArray[np.bool_] | None:
        """Which stored values [H, W, S] were measured; None: all, and there could be no others."""
        valid = np.ones(values.shape, dtype=bool)
        if values.dtype.kind == "f":
            valid &= np.isfinite(values)
        nodata = found.nodata if self.nodata is None else self.nodata
        if nodata is not None and not np.isnan(nodata):
            valid &= values != (values.dtype.type(nodata) if values.dtype.kind == "f" else nodata)
        if found.mask is not None:
            valid &= found.mask()[..., None]
        if not self.gaps and not valid.all():
            raise DataError(
                f"{name} has missing pixels, and its data set is read as if none were missing; set data.gaps = true"
            )
        return valid if self.gaps else None

    def _levels(self, values: NDArray[Any], found: Stored, colours: str, name: str) -> NDArray[Any]:
        """Values of the range as float32 levels, or of the kind that they are where that has all levels."""
        top = 1.0
        if self.range is None and values.dtype.name in KEPT:
            levels, top = values, np.iinfo(values.dtype).max
        elif self.range is None and values.dtype.kind == "f":
            levels = values.astype(np.float32)
        elif self.range is None:
            raise DataError(
                f"{name} holds numbers of the kind {values.dtype}, whose range is not known; give data.range"
            )
        else:
            low, high = self.range
            levels = ((values.astype(np.float64) - low) / (high - low)).astype(np.float32)
            if colours.endswith("A"):  # transparency knows no range
                levels[..., -1] = values[..., -1] / np.iinfo(values.dtype).max
        return levels.dtype.type(top) - levels if found.inverted else levels


def kind_of(found: Stored) -> str:
    """The kind of an image's numbers: "uint8" to "uint64", "int" or "float", of which the width changes no meaning.

    What is 0 or 1 is read as 0 or 255.
    """
    if found.kind == "bool":
        return "uint8"
    return found.kind if found.kind.startswith("uint") else found.kind.rstrip("0123456789")


def _convertible(found: Stored, channels: int) -> bool:
    """Whether the channels can be made of a picture's colours, or are the bands as they are."""
    return found.bands in (1, channels) or (bool(found.colours) and channels in COLOURS)


def as_channels(levels: NDArray[Any], colours: str, channels: int, background: str = "white") -> NDArray[Any]:
    """Levels [H, W, S] of a picture in these colours as [H, W, C].

    What is transparent is laid over the background, unless there is a channel for it. Other bands stay as they are; of
    a single one there are as many copies as channels.
    """
    wanted = COLOURS.get(channels, "") if colours else ""
    if not wanted:
        return levels if levels.shape[2] == channels else np.repeat(levels, channels, axis=2)
    if colours == wanted:
        return levels
    whole = np.float32(1) if levels.dtype.kind == "f" else levels.dtype.type(np.iinfo(levels.dtype).max)
    alpha = levels[..., -1:] if colours.endswith("A") else None
    colour = levels if alpha is None else levels[..., :-1]
    if colour.shape[2] == 1 and wanted in ("RGB", "RGBA"):
        colour = np.repeat(colour, 3, axis=2)
    if alpha is not None and not wanted.endswith("A"):
        if (alpha != whole).any():
            colour = _over(colour, alpha, background, whole)
        alpha = None
    if colour.shape[2] == 3 and wanted in ("L", "LA"):
        colour = _grey(colour)
    if not wanted.endswith("A"):
        return colour
    return np.concatenate([colour, np.full_like(colour[..., :1], whole) if alpha is None else alpha], axis=2)


def _over(colour: NDArray[Any], alpha: NDArray[Any], background: str, whole: Any) -> NDArray[Any]:
    """Colours [H, W, 1 or 3] laid over the background where they are transparent."""
    behind = np.array(colour_of(background), dtype=np.float64) / 255
    behind = behind if colour.shape[2] == 3 else behind @ np.array(GREY)[:, None] / 65536
    share = alpha.astype(np.float64) / float(whole)
    mixed = colour * share + behind * float(whole) * (1 - share)
    return (mixed if colour.dtype.kind == "f" else mixed.round()).astype(colour.dtype)


def _grey(colour: NDArray[Any]) -> NDArray[Any]:
    """Red, green and blue [H, W, 3] as grey [H, W, 1], of 8 bits as Pillow does it."""
    if colour.dtype.kind == "f":
        return (colour @ (np.array(GREY, dtype=np.float32) / 65536))[..., None]
    wide: Any = colour.astype(np.uint32 if colour.dtype == np.uint8 else np.uint64)
    grey: NDArray[Any] = (wide[..., 0] * GREY[0] + wide[..., 1] * GREY[1] + wide[..., 2] * GREY[2] + 0x8000) >> 16
    return grey[..., None].astype(colour.dtype)


def colour_of(background: str) -> tuple[int, int, int]:
    """Red, green and blue of a colour that is named, or written #rrggbb; ValueError for what is none."""
    red, green, blue = ImageColor.getrgb(background)[:3]
    return red, green, blue


def _valid_channels(valid: NDArray[np.bool_], colours: str, channels: int) -> NDArray[np.bool_]:
    """Which channels [H, W, C] were measured, where that is known of the bands they are made of."""
    if (valid.shape[2] == channels and COLOURS.get(channels, "") in ("", colours)) or not colours:
        return valid if valid.shape[2] == channels else np.repeat(valid, channels, axis=2)
    return np.repeat(valid.all(axis=2, keepdims=True), channels, axis=2)


def _tensor(values: NDArray[Any]) -> Tensor:
    """An array [H, W, C] as a tensor [C, H, W]; copied where torch could not hold it."""
    held = values.flags.writeable and min(values.strides) > 0
    return torch.from_numpy(values if held else values.copy()).permute(2, 0, 1)
