"""What was hidden during training, as small pictures: for each moment of a run the same few images, read by numpy."""

from __future__ import annotations

import base64
import io
import math
import zipfile
from pathlib import Path

import attrs
import numpy
from PIL import Image

from maskzoo.bands import shown_channels
from maskzoo.compare.cells import Cell, Comparison

SHOWN = 4  # images of a moment, in two rows
SIDE = (96, 112)  # pixels: to which small images are enlarged at least, and large ones brought down
GAP = 3  # pixels between images
MOST = 2**26  # bytes of an array in a file, beyond which it is none of ours
MOMENTS = 8  # of a run, at most


@attrs.frozen
class Strip:
    """The pictures of one run: (caption, PNG as base64), the plain images first; or the run's own picture alone."""

    cell: str
    seed: int
    pictures: list[tuple[str, str]]

    @property
    def whole(self) -> bool:
        """Whether it is the run's own picture, with captions of its own."""
        return len(self.pictures) == 1


def strips(comparison: Comparison) -> list[Strip]:
    """The masks of one run of each cell: of a seed that all have, so that the images are the same.

    What cannot be read becomes a remark of the comparison, so this comes before the remarks are printed.
    """
    common = set.intersection(*(set(cell.runs) for cell in comparison.trained)) if comparison.trained else set()
    made = []
    for cell in comparison.trained:
        seed = min(common) if common else min(cell.runs)
        if pictures := _moments(cell, seed, comparison.remarks) or _own(cell, seed, comparison.remarks):
            made.append(Strip(cell.name, seed, pictures))
    return made


def _moments(cell: Cell, seed: int, remarks: list[str]) -> list[tuple[str, str]]:
    """From the numbers that a run has kept of each moment; nothing where there are none, or where one is unreadable."""
    files = sorted((cell.runs[seed].path / "masks").glob("step-*.npz"))
    if len(files) > MOMENTS:
        files = [files[round(place * (len(files) - 1) / (MOMENTS - 1))] for place in range(MOMENTS)]
    pictures: list[tuple[str, str]] = []
    for file in files:
        try:
            held = _read(file)
            if not pictures:
                pictures.append(("images", _png(held["images"])))
            pictures.append((_caption(file, float(held["factor"]), float(held["ratio"])), _png(held["seen"])))
        except (OSError, ValueError, KeyError, EOFError, TypeError, zipfile.BadZipFile, MemoryError) as problem:
            words = str(problem) or type(problem).__name__
            remarks.append(f"'{file}' cannot be read, so its moment is not shown: {words}")
    return pictures


def _read(file: Path) -> dict[str, numpy.ndarray]:
    with zipfile.ZipFile(file) as archive:
        large = [one.filename for one in archive.infolist() if one.file_size > MOST]
    if large:
        raise ValueError(f"{large[0]} is larger than any picture")
    with numpy.load(file, allow_pickle=False) as held:
        return {name: held[name] for name in ("images", "seen", "factor", "ratio")}


def _caption(file: Path, factor: float, ratio: float) -> str:
    step = int(file.stem.partition("-")[2])
    dial = f"ratio {ratio:.2f}" if math.isnan(factor) else f"factor {round(factor, 2) + 0.0:+.2f}"
    return f"step {step + 1:,}, {dial}"


def _png(images: numpy.ndarray) -> str:
    """The first SHOWN of images [B, C, H, W] in two rows, as a PNG in base64."""
    if images.ndim != 4 or images.dtype != numpy.uint8 or 0 in images.shape:
        raise ValueError(f"no images, but {images.dtype} of {list(images.shape)}")
    tiles = [_tile(image) for image in images[:SHOWN]]
    width, height = tiles[0].size
    across = min(2, len(tiles))
    down = math.ceil(len(tiles) / across)
    sheet = Image.new("RGB", (across * (width + GAP) - GAP, down * (height + GAP) - GAP), "white")
    for place, tile in enumerate(tiles):
        sheet.paste(tile, (place % across * (width + GAP), place // across * (height + GAP)))
    file = io.BytesIO()
    sheet.save(file, format="PNG", optimize=True)
    return base64.b64encode(file.getvalue()).decode("ascii")


def _tile(image: numpy.ndarray) -> Image.Image:
    """One image [C, H, W], as colour of the channels that are shown, about SIDE pixels wide."""
    channels = image[[channel - 1 for channel in shown_channels(len(image))]]
    if len(channels) == 1:
        channels = numpy.repeat(channels, 3, axis=0)
    elif len(channels) == 2:
        middle = channels.mean(axis=0).round().astype(numpy.uint8)
        channels = numpy.stack([channels[0], middle, channels[1]])
    tile = Image.fromarray(numpy.ascontiguousarray(channels.transpose(1, 2, 0)))
    longest = max(tile.size)
    if longest < SIDE[0]:
        times = math.ceil(SIDE[0] / longest)
        return tile.resize((tile.width * times, tile.height * times), Image.Resampling.NEAREST)
    if longest > SIDE[1]:
        size = tuple(max(1, round(side * SIDE[1] / longest)) for side in tile.size)
        return tile.resize((size[0], size[1]), Image.Resampling.LANCZOS)
    return tile


def _own(cell: Cell, seed: int, remarks: list[str]) -> list[tuple[str, str]]:
    """The run's own picture of all moments, of runs that kept no numbers."""
    picture = cell.runs[seed].picture
    if picture is None:
        return []
    try:
        data = picture.read_bytes()
    except OSError as problem:
        remarks.append(f"'{picture}' cannot be read: {problem}")
        return []
    if not data.startswith(b"\x89PNG"):
        remarks.append(f"'{picture}' cannot be read: it is no PNG")
        return []
    return [("", base64.b64encode(data).decode("ascii"))]
