"""Looking at images once: what each file holds, and what all of them come to.

Shapes: C channels, H height, W width.
"""

from __future__ import annotations

import hashlib
import os
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from threading import Lock
from typing import IO, Any

import attrs
import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from maskzoo.data.formats import stored
from maskzoo.data.looking import is_transparent, places_of
from maskzoo.data.prepare import levels as as_levels
from maskzoo.errors import DataError
from maskzoo.pictures import coloured
from maskzoo.protocols import Dataset, Sample, Split, Stream

LOOKED_AT = 256  # images, unless more are asked for
AT_ONCE = 4  # images that are read side by side
SAMPLED = 2**18  # pixels of an image, evenly spread, whose levels are counted
BINS = 256  # of a channel's levels from 0 to 1
THUMBNAIL = 128  # pixels of the longer side
THUMBNAILS = 16
TURNED = 0x0112  # EXIF's orientation
SIGNATURES = (  # how files begin
    (b"\xff\xd8\xff", "JPEG"),
    (b"\x89PNG", "PNG"),
    (b"GIF8", "GIF"),
    (b"BM", "BMP"),
    (b"II*\0", "TIFF"),
    (b"MM\0*", "TIFF"),
    (b"II+\0", "BigTIFF"),
    (b"MM\0+", "BigTIFF"),
    (b"\x93NUMPY", "NPY"),
    (b"PK\x03\x04", "NPZ"),
    (b"\x89HDF", "HDF5"),
    (b"\0\0\0\x0cjP", "JPEG 2000"),
    (b"\xff\x4f\xff\x51", "JPEG 2000"),
)


@attrs.frozen(eq=False)
class SeenImage:
    """What was seen of one image."""

    split: str  # "train" or "test"
    position: int
    name: str
    label: int | None
    height: int
    width: int
    digest: bytes  # of its pixels
    format: str = ""  # of its file; empty where that is not known
    kind: str = ""  # of its numbers, as they are stored
    bands: str = ""  # as they are stored: "RGB", "12 bands"
    turned: bool = False  # by what its camera says
    transparent: bool = False
    missing: float = 0.0  # share of the pixels
    grey: bool = False  # whether its three channels are the same
    thumbnail: Tensor | None = None  # [3, H, W] in [0, 1]
    levels: Levels | None = None


@attrs.define(eq=False)
class Levels:
    """The levels of pixels by channel, as far as they were measured."""

    count: NDArray[np.float64]  # [C]
    total: NDArray[np.float64]  # [C]
    squares: NDArray[np.float64]  # [C]
    low: NDArray[np.float64]  # [C]
    high: NDArray[np.float64]  # [C]
    bins: NDArray[np.int64]  # [C, BINS] of [0, 1]; what lies outside is in the first and the last

    def add(self, other: Levels) -> None:
        """Add those of another image."""
        self.count, self.total = self.count + other.count, self.total + other.total
        self.squares, self.bins = self.squares + other.squares, self.bins + other.bins
        self.low, self.high = np.minimum(self.low, other.low), np.maximum(self.high, other.high)

    @property
    def mean(self) -> NDArray[np.float64]:
        """[C]."""
        return self.total / np.maximum(self.count, 1)

    @property
    def std(self) -> NDArray[np.float64]:
        """[C]."""
        variance: NDArray[np.float64] = np.maximum(self.squares / np.maximum(self.count, 1) - self.mean**2, 0)
        return np.sqrt(variance)

    def at(self, share: float) -> NDArray[np.float64]:
        """[C] the level below which this share of the pixels lies, to within a bin."""
        running = self.bins.cumsum(1) / np.maximum(self.bins.sum(1, keepdims=True), 1)
        found = (running >= share).argmax(1) / (BINS - 1)
        clipped: NDArray[np.float64] = np.clip(found, self.low, self.high)
        return clipped


@attrs.define(eq=False)
class Look:
    """All that was seen."""

    images: list[SeenImage] = attrs.field(factory=list)  # in the order of their splits and positions
    broken: dict[tuple[str, int], str] = attrs.field(factory=dict)  # split and position -> message
    asked: Counter[str] = attrs.field(factory=Counter)  # images that were looked at, by split
    levels: Levels | None = None
    per_second: float = 0.0  # images that were read, by AT_ONCE threads

    def copies(self) -> list[list[SeenImage]]:
        """Images whose pixels are the same, group by group."""
        groups: dict[bytes, list[SeenImage]] = {}
        for image in self.images:
            groups.setdefault(image.digest, []).append(image)
        return [group for group in groups.values() if len(group) > 1]

    def leaks(self) -> list[tuple[SeenImage, SeenImage]]:
        """Test images that are among the training images, each with one of those."""
        found = []
        for group in self.copies():
            trained = [image for image in group if image.split == "train"]
            found += [(image, trained[0]) for image in group if image.split == "test" and trained]
        return found

    def contradictions(self) -> list[list[SeenImage]]:
        """Images whose pixels are the same and whose labels are not."""
        return [group for group in self.copies() if len({image.label for image in group} - {None}) > 1]


def look(dataset: Dataset, most: int | None, moved: Callable[[int, int], None] = lambda done, of: None) -> Look:
    """Look at `most` images, evenly spread over both splits, or at all; `moved` is told how many of them are done.

    What cannot be read is kept as broken. A stream is read in its order, from its beginning.
    """
    chosen = choose(dataset, most)
    found, lock, took = Look(asked=Counter(split for split, _ in chosen)), Lock(), time.perf_counter()
    kept = {chosen[number] for number in places_of(len(chosen), THUMBNAILS)}
    streams = any(isinstance(split, Stream) for split in (dataset.train, dataset.test))

    def one(place: tuple[str, int]) -> None:
        seen: SeenImage | str
        try:
            seen = _seen(dataset, *place, shown=place in kept)
        except DataError as error:
            seen = str(error)
        with lock:
            if isinstance(seen, str):
                found.broken[place] = seen
            else:
                found.images.append(attrs.evolve(seen, levels=None))
                _add(found, seen.levels)
            moved(len(found.images) + len(found.broken), len(chosen))

    with ThreadPoolExecutor(1 if streams else AT_ONCE) as pool:
        for _ in pool.map(one, chosen):
            pass
    order = {place: number for number, place in enumerate(chosen)}
    found.images.sort(key=lambda image: order[image.split, image.position])
    found.broken = {place: found.broken[place] for place in chosen if place in found.broken}
    found.per_second = len(chosen) / max(time.perf_counter() - took, 1e-9)
    return found


def choose(dataset: Dataset, most: int | None) -> list[tuple[str, int]]:
    """The images to look at, evenly spread: at most a quarter of them test images, unless there are few others."""
    splits: Mapping[str, Split] = {"train": dataset.train, "test": dataset.test}
    sizes = {name: len(split) for name, split in splits.items()}
    counts = dict(sizes)
    if most is not None and sum(sizes.values()) > most:
        counts["test"] = min(sizes["test"], max(most // 4, most - sizes["train"]))
        counts["train"] = min(sizes["train"], most - counts["test"])
    places: list[tuple[str, int]] = []
    for name, count in counts.items():
        in_order = isinstance(splits[name], Stream)
        places += [(name, number) for number in (range(count) if in_order else places_of(sizes[name], count))]
    return places


def _add(found: Look, levels: Levels | None) -> None:
    if found.levels is None:
        found.levels = levels
    elif levels is not None and levels.count.shape == found.levels.count.shape:
        found.levels.add(levels)


# ----------------------------------------------------------------------------------------------------------- one image
def _seen(dataset: Dataset, split_name: str, position: int, *, shown: bool) -> SeenImage:
    """An image as it is stored, where the split tells, and as a run sees it."""
    split: Any = dataset.train if split_name == "train" else dataset.test
    facts: dict[str, Any] = {"name": f"{split_name} image {position}"}
    sample: Sample
    if hasattr(split, "stored") and hasattr(split, "reading"):
        file, name = split.stored(position)
        facts["name"] = file if isinstance(file, str) else name
        facts |= _about(file)
        with stored(file, name, split.reading.array, split.reading.stored_bands) as held:
            pixels = split.reading.pixels(held, name or f"'{file}'")
            bands = f"{held.bands} {'band' if held.bands == 1 else 'bands'}"
            facts |= {"kind": held.kind, "bands": held.colours or bands}
            facts["transparent"] = is_transparent(held)
        labels = getattr(split, "labels", None)
        sample = pixels.sample(None if labels is None else int(labels[position]))
    else:
        sample = split[position]
    image, valid = sample.image, sample.extras.get("valid")
    label = None if sample.label is None or sample.label < 0 else int(sample.label)
    return SeenImage(
        split=split_name,
        position=position,
        label=label,
        height=int(image.shape[1]),
        width=int(image.shape[2]),
        digest=hashlib.blake2b(
            f"{image.dtype} {tuple(image.shape)}".encode() + image.contiguous().numpy().tobytes(), digest_size=16
        ).digest(),
        grey=len(image) == 3 and torch.equal(image[0], image[1]) and torch.equal(image[1], image[2]),
        missing=0.0 if valid is None else 1.0 - float(valid.float().mean()),
        thumbnail=thumbnail(image, valid) if shown else None,
        levels=levels_of(image, valid),
        **facts,
    )


def _about(file: str | IO[bytes] | Image.Image) -> dict[str, Any]:
    """The format of a file, by how it begins, and whether its camera wants it turned."""
    if isinstance(file, Image.Image):
        return {"format": file.format or ""}
    try:
        if isinstance(file, str):
            with open(file, "rb") as opened:
                return _begins(opened)
        return _begins(file)
    except OSError:  # the reader will tell
        return {}


def _begins(file: IO[bytes]) -> dict[str, Any]:
    start = file.read(132)
    file.seek(0)
    format = next((name for signature, name in SIGNATURES if start.startswith(signature)), "")
    if start[8:12] == b"WEBP":
        format = "WebP"
    elif start[4:8] == b"ftyp":
        format = "AVIF"
    elif start[128:] == b"DICM":
        format = "DICOM"
    turned = False
    if format in ("JPEG", "PNG", "WebP", "TIFF"):
        try:
            with Image.open(file) as image:
                turned = image.getexif().get(TURNED, 1) in range(2, 9)
        except Exception:  # Pillow raises nearly everything; the reader will tell
            pass
        file.seek(0)
    return {"format": format, "turned": turned}


def levels_of(image: Tensor, valid: Tensor | None) -> Levels:
    """The levels of an image [C, H, W]: its ends are those of all pixels, the rest those of some, evenly spread."""
    step = max(1, round((image[0].numel() / SAMPLED) ** 0.5))
    rows: list[list[float]] = []
    bins: list[NDArray[np.int64]] = []
    for channel, values in enumerate(image):
        known = None if valid is None else valid[channel]
        scaled = as_levels(values)
        every = scaled if known is None else scaled[known]
        some = scaled[::step, ::step]
        some = (some if known is None else some[known[::step, ::step]]).double()
        empty = every.numel() == 0
        bins.append(torch.bincount((some.clamp(0, 1) * (BINS - 1)).round().long().reshape(-1), minlength=BINS).numpy())
        ends = (np.inf, -np.inf) if empty else (float(every.min()), float(every.max()))
        rows.append([some.numel(), float(some.sum()), float(some.square().sum()), *ends])
    count, total, squares, low, high = np.array(rows, dtype=np.float64).T
    return Levels(count, total, squares, low, high, np.stack(bins))


def thumbnail(image: Tensor, valid: Tensor | None) -> Tensor:
    """An image [C, H, W] as colours [3, h, w] in [0, 1], small, with grey where nothing was measured."""
    levels = as_levels(image)
    if valid is not None:
        levels = torch.where(valid, levels, 0.5)
    longer = max(levels.shape[1:])
    height, width = (max(1, round(side * min(1.0, THUMBNAIL / longer))) for side in levels.shape[1:])
    small = torch.nn.functional.adaptive_avg_pool2d(levels.clamp(0, 1)[None], (height, width))
    return coloured(small)[0]


def below(name: str, root: str | None) -> str:
    """A file's name for people: below the root of its data, where it is."""
    return os.path.relpath(name, root) if root and name.startswith(os.path.join(root, "")) else name


def spread(images: Sequence[SeenImage], count: int) -> Iterator[SeenImage]:
    """Some of the images, evenly spread."""
    return (images[number] for number in places_of(len(images), count))
