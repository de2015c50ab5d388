"""Which size images are brought to, and how they are cut, where a recipe leaves that open: bounded, whatever they are.

A *unit* is what a mask hides or shows: a patch of a ViT, a position of the last map elsewhere. Sizes are (height,
width) in pixels, unless they say units.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import attrs

from maskzoo.bounds import MOST_PATCHES, MOST_SIDE, MOST_UNASKED
from maskzoo.errors import RecipeError
from maskzoo.plain import quoted

PATCHES = (16, 8, 4, 2)  # pixels of an automatic patch, tried in this order
LEAST_UNITS = 4  # a side; smaller images are enlarged
LEAST_PATCHES = 7  # a side, with an automatic patch: MNIST's 28 pixels give 7 x 7 patches of 4
USUAL_SIDE = 224  # pixels of the shorter side, to which large images are brought
LONG_SIDE = 512  # pixels of the longer side, beyond which the shorter one is made smaller too
MOST_AUTOMATIC = 1024  # patches, 32 x 32 of them, where no size or patch was asked for
MOST_PIXELS = LONG_SIDE**2  # of an image, where its size was left open: networks of several stages pay by the pixel
LONGEST, MOST_ASPECT = 64, 8  # units of a long side, and the shape up to which an image keeps its own
_ANY_SIZE: ContextVar[bool] = ContextVar("any_size", default=False)

Size = tuple[int, int]


@attrs.frozen
class Choice:
    """An image's size and its units, and what there is to tell of them."""

    size: Size
    unit: Size
    told: str = ""

    @property
    def units(self) -> Size:
        """Rows and columns."""
        return self.size[0] // self.unit[0], self.size[1] // self.unit[1]


@contextmanager
def any_size() -> Iterator[None]:
    """Take a size inside as it is, however many patches it has: that of a run that has been confirmed it once."""
    token = _ANY_SIZE.set(True)
    try:
        yield
    finally:
        _ANY_SIZE.reset(token)


def automatic_patch(data: Size) -> Choice:
    """Size and patch for images of the `data`'s size, where both are open.

    Where one of PATCHES cuts the images as they are into 7 patches a side or more, and not into too many, they stay as
    they are. Otherwise they keep their shape, their shorter side is brought to 224 pixels at most, and both sides are
    rounded to patches, of which there are at least 7 a side.
    """
    for patch in PATCHES:
        rows, columns = data[0] // patch, data[1] // patch
        exact = (rows * patch, columns * patch) == tuple(data)
        short, long = sorted((rows, columns))
        few = rows * columns <= MOST_AUTOMATIC and long <= max(LONGEST, MOST_ASPECT * short)
        if exact and few and short >= LEAST_PATCHES:
            return Choice(data, (patch, patch))
    patch = next((one for one in PATCHES if round(min(data) / one) >= LEAST_PATCHES), PATCHES[-1])
    return _brought(data, (patch, patch), MOST_AUTOMATIC, LEAST_PATCHES)


def automatic_size(data: Size, unit: Size, most: int) -> Choice:
    """The size for images of the `data`'s size where units are given: the data's, raised to four units a side.

    Where that cannot be cut into units, or into at most so many, images keep their shape, and are brought to a
    shorter side of 224 pixels at most, rounded to units.
    """
    raised = max(data[0], LEAST_UNITS * unit[0]), max(data[1], LEAST_UNITS * unit[1])
    units = [side // step for side, step in zip(raised, unit, strict=True)]
    if not any(side % step for side, step in zip(raised, unit, strict=True)) and math.prod(units) <= most:
        return Choice(raised, unit, _told(data, raised, unit) if raised != tuple(data) else "")
    return _brought(data, unit, most, LEAST_UNITS)


def _brought(data: Size, unit: Size, most: int, least: int) -> Choice:
    """Images of the data's shape, their shorter side as long as it may be, and both rounded to units."""
    short, long = min(data), max(data)
    step = unit[0] if data[0] <= data[1] else unit[1]  # along the shorter side
    other = unit[1] if data[0] <= data[1] else unit[0]
    aspect = long / short * step / other  # units of the longer side for each of the shorter
    pixels = min(short, USUAL_SIDE, max(LEAST_PATCHES * step, LONG_SIDE * short / long))
    fewer = max(least, min(round(pixels / step), math.isqrt(int(most / aspect))))
    longest = min(max(LONGEST, MOST_ASPECT * fewer), max(fewer, most // fewer))
    more = min(max(fewer if step == other else 1, round(fewer * aspect)), longest)
    units = (fewer, more) if data[0] <= data[1] else (more, fewer)
    size = units[0] * unit[0], units[1] * unit[1]
    return Choice(size, unit, _told(data, size, unit))


def _told(data: Size, size: Size, unit: Size) -> str:
    units = size[0] // unit[0], size[1] // unit[1]
    stretched = (size[1] / size[0]) / (data[1] / data[0])
    shape = ""
    if not 0.8 < stretched < 1.25:
        shape = f", in which they are {max(stretched, 1 / stretched):.2g} times as {_way(stretched)} as they were"
    patch = by(unit) if unit[0] != unit[1] else f"{unit[0]}"
    return f"images of {by(data)} are brought to {by(size)} and cut into {by(units)} patches of {patch}{shape}"


def _way(stretched: float) -> str:
    return "wide for their height" if stretched > 1 else "high for their width"


def by(size: Size) -> str:
    """A size as people write it."""
    return f"{size[0]} x {size[1]}"


# ---------------------------------------------------------------------------------------------- what was asked for
def asked_patch(size: Size) -> int:
    """The same as `patch_for`; RecipeError where there is none."""
    patch = patch_for(size)
    if patch is None:
        nearest = automatic_patch(size)
        raise RecipeError(
            f"no automatic patch cuts an image of {by(size)} pixels; the nearest size is {by(nearest.size)}, in "
            f"patches of {nearest.unit[0]}",
            key="image_size",
        )
    return patch


def patch_for(size: Size) -> int | None:
    """Pixels of an automatic patch of images whose size was asked for, if any of 2 to 32 cuts them sensibly.

    One of PATCHES, else whichever gives the number of patches that is nearest to 14 a side.
    """
    usual = [one for one in PATCHES if _cuts(size, one) and min(size) // one >= LEAST_PATCHES]
    if usual and math.prod(side // usual[0] for side in size) <= MOST_UNASKED:
        return usual[0]
    others = [one for one in range(2, min(2 * PATCHES[0], min(size) // LEAST_UNITS) + 1) if _cuts(size, one)]
    few = [one for one in others if math.prod(side // one for side in size) <= MOST_UNASKED]
    if few:
        return min(few, key=lambda one: abs(math.log(min(size) / one / 14)))
    return usual[0] if usual else None


def _cuts(size: Size, patch: int) -> bool:
    return all(side % patch == 0 for side in size)


def refuse_uncut(size: Size, unit: Size) -> None:
    """Raise RecipeError for a size that was asked for and that is no number of units."""
    if any(side % step for side, step in zip(size, unit, strict=True)):
        nearest = [max(1, round(side / step)) * step for side, step in zip(size, unit, strict=True)]
        raise RecipeError(
            f"an image of {by(size)} pixels cannot be cut into patches of {by(unit)}; "
            f"the nearest sizes are {nearest[0]} x {nearest[1]}",
            key="image_size",
        )


def refuse_no_size(size: Size) -> None:
    """Raise RecipeError for a size that no image has."""
    if min(size) < 1:
        raise RecipeError(f"must be at least 1 pixel, got {by(size)}", key="image_size")
    if max(size) > MOST_SIDE:
        raise RecipeError(
            f"must be at most {MOST_SIDE} pixels a side, got {quoted(size[0])} x {quoted(size[1])}", key="image_size"
        )


def refuse_many(size: Size, unit: Size, confirmed: int | None, price: str) -> None:
    """Raise RecipeError for more patches than anybody means by chance, unless so many were `confirmed`."""
    units = math.prod(side // step for side, step in zip(size, unit, strict=True))
    cut = f"an image of {by(size)} pixels in patches of {by(unit)} has {units:,} patches"
    if units > MOST_PATCHES:
        raise RecipeError(f"{cut}, more than {MOST_PATCHES:,}; take larger patches or smaller images", key="image_size")
    if units > max(MOST_UNASKED, confirmed or 0) and not _ANY_SIZE.get():
        raise RecipeError(
            f"{cut}, which takes {price}; take larger patches or smaller images, or, if that is what you mean, give "
            f"most_patches = {units}",
            key="image_size",
        )


def price(model: Any, options: Mapping[str, Any], size: Size, units: int) -> str:
    """What an image of that size costs, roughly: of a transformer in GFLOP and GB, else as a multiple."""
    depth, width = options.get("depth", len(getattr(model, "blocks", ()))), options.get("embed_dim")
    width = width if isinstance(width, int) else getattr(model, "embed_dim", 0)
    if not isinstance(depth, int) or not isinstance(width, int) or depth * width < 1:
        times = math.prod(size) / USUAL_SIDE**2
        return f"{times:,.0f} times the time and memory of one of {USUAL_SIDE} x {USUAL_SIDE}"
    flops = depth * (24 * units * width**2 + 4 * units**2 * width)
    held = depth * 34 * units * width  # bytes, in 16 bits (arXiv 2205.05198, equation 1, without attention's map)
    return f"about {flops / 1e9:,.3g} GFLOP forward and {held / 1e9:,.2g} GB of activations in training"
