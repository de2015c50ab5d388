"""Upper bounds that no real use reaches and a slip of the finger does, said before anything is started or built."""

from __future__ import annotations

import os
from typing import Any

import attrs

from maskzoo.errors import RecipeError

MOST_WORKERS = 512  # processes that read images, of each process that trains
MOST_STEPS = 10**12
MOST_EPOCHS = 10**7
MOST_IMAGES = 2**24  # of a batch
MOST_BLOCKS = 1000  # of a network
MOST_WIDTH = 2**16  # channels, heads
MOST_SIDE = 2**15  # pixels
MOST_PATCHES = 2**17  # of an image; attention among twice as many takes minutes an image
MOST_UNASKED = 64 * 64  # of them, unless a recipe confirms more
MOST_SHARDS = 100_000
MOST_CLASSES = 10**7


def between(least: float, most: float) -> Any:
    """A validator of an attrs field: a number from `least` to `most`, both included."""
    return [attrs.validators.ge(least), attrs.validators.le(most)]


def refuse_beyond_memory(parameters: float, what: str, key: str = "") -> None:
    """Raise RecipeError where so many parameters alone, of 4 bytes each, are more than the machine's memory."""
    there = machine_memory()
    if there is not None and parameters * 4 > there:
        raise RecipeError(
            f"{what} has {parameters / 1e9:,.1f} billion parameters, for which the memory of this machine "
            f"({there / 1e9:,.0f} GB) does not suffice",
            key=key,
        )


def machine_memory() -> int | None:
    """Bytes of memory that this machine has, None where it does not say."""
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):
        return None
