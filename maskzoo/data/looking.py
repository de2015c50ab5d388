"""What a data set's files hold, by a look at a few of them: on it depends how all of them are read."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from typing import IO, Any, Protocol

import attrs
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from maskzoo.data.formats import stored
from maskzoo.data.reading import Reading, kind_of
from maskzoo.data.stored import Stored
from maskzoo.errors import DataError

LOOKED_AT = 64  # images, evenly spread
MOST_VALUES = 2**27  # that are measured; of large images fewer are looked at, but no fewer than 4
SAMPLED = 2**14  # values of an image from which the ends of a range are estimated
TAILS = (0.1, 99.9)  # per cent: what lies outside of them may lie outside of the levels 0 to 1
FAR = 100  # times the range: where the ends lie no further out, they may have been measured
FEW = 8  # values that are masks and labels rather than measurements
OFTEN, APART = 1e-3, 2.0  # share of all values, and distance in ranges of the others, of what may mean none is there
WIDTHS = (8, 10, 12, 14, 16, 20, 24, 32, 48, 64)  # bits that instruments have


class Files(Protocol):
    """A split whose images can be had as they are stored."""

    def __len__(self) -> int: ...

    def stored(self, index: int) -> tuple[str | IO[bytes] | Image.Image, str]:
        """The file of an image, or the image as Pillow holds it, and a name where the file has none."""
        ...


@attrs.frozen
class Seen:
    """What one file says of its image."""

    position: int
    values: int
    kind: str
    bands: int
    colours: str
    bits: int | None
    nodata: float | None
    moving: bool
    transparent: bool
    masked: bool


@attrs.frozen
class Measured:
    """The values in the images that were looked at."""

    images: int
    low: float
    high: float
    ends: tuple[float, float]  # at the TAILS
    whole: bool  # whether all of them are whole numbers
    fill: tuple[float, float] | None = None  # a value far from all others, which may mean none is there, and its share


def look(files: Files, reading: Reading, *, required: bool) -> list[Seen]:
    """What some of the files say, evenly spread; what cannot be read is passed over, since its lookup will tell.

    DataError where not one can be read, if any is `required`.
    """
    seen: list[Seen] = []
    problems: list[DataError] = []
    for position in places_of(len(files), LOOKED_AT):
        try:
            file, name = files.stored(position)
            with stored(file, name, reading.array, reading.stored_bands) as found:
                seen.append(_seen(found, position, laid_over=reading.channels in (0, 1, 3)))
        except DataError as problem:
            problems.append(problem)
    if required and problems and not seen:
        count = f"the {len(problems)} images" if len(problems) > 1 else "the images"
        raise type(problems[0])(f"none of {count} that were looked at can be read: {problems[0]}") from problems[0]
    return seen


def _seen(found: Stored, position: int, *, laid_over: bool) -> Seen:
    count = found.height * found.width * found.bands
    return Seen(
        *(position, count, kind_of(found), found.bands, found.colours, found.bits, found.nodata, found.moving),
        transparent=laid_over and is_transparent(found),
        masked=found.mask is not None,
    )


def is_transparent(found: Stored) -> bool:
    """Whether an image has an alpha channel through which anything shines."""
    if not found.colours.endswith("A"):
        return False
    alpha = found.values()[..., -1]
    return bool((alpha != np.iinfo(alpha.dtype).max).any())


def commonest(values: Sequence[Any]) -> Any:
    """The value that is there most often, the first of several."""
    return Counter(values).most_common(1)[0][0]


def measure(files: Files, seen: Sequence[Seen], reading: Reading) -> Measured | None:
    """The stored values of the images, by a reading that has no range; None where there is no valid one."""
    low, high, whole = np.inf, -np.inf, True
    samples = []

    def take(found: Stored, name: str) -> None:
        nonlocal low, high, whole
        values, valid = reading.numbers(found, name)
        flat = values.reshape(-1) if valid is None else values[valid]
        if flat.size:
            low, high = min(low, float(flat.min())), max(high, float(flat.max()))
            samples.append(flat[:: max(1, flat.size // SAMPLED)].astype(np.float64))
            whole = whole and bool((samples[-1] == np.floor(samples[-1])).all())

    _read_again(files, seen, reading, take)
    if not samples:
        return None
    values = np.concatenate(samples)
    first, last = np.percentile(values, TAILS)
    return Measured(len(samples), low, high, (float(first), float(last)), whole, fill_of(values))


def fill_of(values: NDArray[np.float64]) -> tuple[float, float] | None:
    """The lowest or highest value if it is often there and far from all others, and its share; else None.

    Such as -9999, -32768 or 1e20, which instruments write where they have measured nothing.
    """
    distinct = np.unique(values)
    if len(distinct) < FEW:
        return None
    for end, rest in ((distinct[0], distinct[1:]), (distinct[-1], distinct[:-1])):
        share = float((values == end).mean())
        if share >= OFTEN and np.abs(rest - end).min() > APART * (rest[-1] - rest[0]):
            return float(end), share
    return None


def statistics(files: Files, seen: Sequence[Seen], reading: Reading) -> tuple[NDArray[Any], NDArray[Any]] | None:
    """Mean and deviation [C] of the levels of the valid pixels; None where a channel has none."""
    sums = np.zeros((3, reading.channels))  # count, sum, sum of squares

    def take(found: Stored, name: str) -> None:
        pixels = reading.pixels(found, name)
        levels = pixels.image.numpy()
        scale = 1.0 if levels.dtype == np.float32 else float(np.iinfo(levels.dtype).max)
        for channel, values in enumerate(levels):
            valid = values.reshape(-1) if pixels.valid is None else values[pixels.valid[channel].numpy()]
            part = valid.astype(np.float64) / scale
            sums[:, channel] += part.size, part.sum(), (part * part).sum()

    _read_again(files, seen, reading, take)
    if not sums[0].all():
        return None
    mean = sums[1] / sums[0]
    return mean, np.sqrt(np.maximum(sums[2] / sums[0] - mean * mean, 0))


def _read_again(files: Files, seen: Sequence[Seen], reading: Reading, take: Callable[[Stored, str], None]) -> None:
    """Give the images that were seen, as far as they are not too large together; what fails is passed over."""
    most = max(4, MOST_VALUES // max(1, max((one.values for one in seen), default=1)))
    for number in places_of(len(seen), most):
        with suppress(DataError):
            file, name = files.stored(seen[number].position)
            with stored(file, name, reading.array, reading.stored_bands) as found:
                take(found, name or f"'{file}'")


def places_of(length: int, count: int) -> Iterator[int]:
    """At most `count` positions of so many, evenly spread."""
    count = min(count, length)
    return (number * length // count for number in range(count))


# ------------------------------------------------------------------------------------------------------------- ranges
def range_of(kind: str, seen: Sequence[Seen], measured: Measured) -> tuple[tuple[float, float] | None, str]:
    """The stored values of the levels 0 and 1 for all images of a data set, and how that was decided.

    None: all values of the kind, of unsigned numbers whose bits are all in use.
    """
    images = f"{measured.images} {'image' if measured.images == 1 else 'images'}"
    if kind.startswith("uint"):
        width, told = int(kind[4:]), {one.bits for one in seen}
        bits = told.pop() if len(told) == 1 else None
        if bits is not None and measured.high < 2**bits:
            return (0.0, 2.0**bits - 1), f"{width}-bit files that say they use {bits} bits"
        bits = next((bits for bits in WIDTHS if measured.high < 2**bits), width) if measured.high > 0 else width
        words = f"{width}-bit files whose largest value in {images} is {measured.high:,.0f}: taken as {bits} bits"
        return (None if bits == width and width <= 16 else (0.0, 2.0**bits - 1)), words
    named = f"numbers of the kind {kind} from {measured.low:.6g} to {measured.high:.6g} in {images}"
    if kind == "float" and measured.low >= 0 and measured.high <= 1:
        return (0.0, 1.0), named
    if kind == "float" and measured.whole and measured.low >= 0 and 127 < measured.high <= 255:
        return (0.0, 255.0), f"{named}, all of them whole"
    low, high = (float(f"{end:.6g}") for end in measured.ends)
    named += f", {TAILS[0]} % below and above the range"
    if max(measured.high - high, low - measured.low) > FAR * max(high - low, 1e-30):
        named += "; the ends are so far out that they may stand for missing values: then set data.nodata"
    return (low, high if high != low else low + 1), named
