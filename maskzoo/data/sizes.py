"""The size that the images of a data set have in common, and what is taken where they have none."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from typing import Any

import attrs

from maskzoo.bounds import MOST_SIDE
from maskzoo.data.looking import places_of
from maskzoo.errors import DataError, RecipeError
from maskzoo.plain import quoted
from maskzoo.protocols import Split, Stream

USUAL_SIZE = (224, 224)
PROBED = 32  # images that are asked for their size
PROBED_FILES = 128  # of those of which the header alone has to be read
COMMON = 0.95  # share of them that has to agree: a stray image is brought to the size of the others

Size = tuple[int, int]  # height and width, in pixels


def a_size(dataset: object, field: attrs.Attribute[Any], value: int | tuple[int, int] | None) -> None:
    """Refuse a height or width, in pixels, that no image has."""
    sides = () if value is None else (value,) if isinstance(value, int) else value
    if any(not 1 <= side <= MOST_SIDE for side in sides):
        raise RecipeError(f"must be between 1 and {MOST_SIDE} pixels a side, got {quoted(value)}", key=field.name)


def settle_size(dataset: Any, split: Split) -> None:
    """Settle the `size` of a data set that has such an option, and add to its `remarks` what there is to tell.

    The size is as asked for, else what at least 95 of 100 images have, else 224 x 224. Images evenly spread over the
    split are looked at, always the same ones; nothing is known of a stream, of which that would mean reading all.
    """
    asked: int | Size | None = dataset.size
    if isinstance(asked, int):
        dataset.size = (asked, asked)
    elif asked is None:
        dataset.size, told = common_size([] if isinstance(split, Stream) else list(_sizes(split)))
        dataset.remarks = [*getattr(dataset, "remarks", ()), *told]


def common_size(sizes: Sequence[Size]) -> tuple[Size, list[str]]:
    """The size that nearly all images of these sizes have, else the usual one, and a message unless all are alike."""
    if not sizes:
        return USUAL_SIZE, []
    counts = Counter(sizes)
    size, count = min(counts.items(), key=lambda one: (-one[1], one[0]))
    if count == len(sizes):
        return size, []
    looked_at = f"of {len(sizes)} images that were looked at, {count} are {_by(size)}"
    if count >= COMMON * len(sizes):
        return size, [f"{looked_at}, and the others are brought to that"]
    return USUAL_SIZE, [f"images differ in size ({looked_at}), so all are brought to {_by(USUAL_SIZE)} (data.size)"]


def _sizes(split: Split) -> Iterator[Size]:
    """The sizes of images that are evenly spread over a split; those that cannot be read are left out."""
    size_at: Callable[[int], Size] | None = getattr(split, "size_at", None)  # where the header says it
    probed = PROBED if size_at is None else PROBED_FILES
    for position in places_of(len(split), probed):
        with suppress(DataError):  # its lookup will tell
            yield _looked_up(split, position) if size_at is None else size_at(position)


def _looked_up(split: Split, position: int) -> Size:
    height, width = split[position].image.shape[-2:]
    return height, width


def _by(size: Size) -> str:
    return f"{size[0]} x {size[1]}"
