"""Where weights come from, and what is known of the sizes that they were trained at."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import attrs
import torch
from torch import Tensor

from maskzoo.backbones import skeleton
from maskzoo.backbones.adapter import without_fetching
from maskzoo.errors import DataError, RecipeError
from maskzoo.grids import Grid, grids_of
from maskzoo.plain import read_json
from maskzoo.recipe import make
from maskzoo.registry import Registry

LISTED = 6  # grids in a message


@attrs.frozen(eq=False)
class Origin:
    """A run, or a file with what is known of it; models are without values."""

    path: Path
    key: str
    grid: Grid | None  # as the user says
    backbone: Any  # that was trained; None where nothing tells
    usual: Any  # the timm model of our backbone's name at its own size; None where there is none
    image_size: tuple[int, int] | None = None  # of timm's config beside a file

    @property
    def model(self) -> Any:
        """The timm model that was trained."""
        return getattr(self.backbone, "model", None)

    def refused(self, what: str) -> RecipeError:
        """The error that says what is wrong with these weights."""
        return RecipeError(f"{self.key}: '{self.path}' {what}")

    def said(self, count: int, held: str, prefix: int = 0) -> Grid:
        """The grid that the user says, which has to have as many positions as the table."""
        assert self.grid is not None
        if math.prod(self.grid) != count:
            rest = f" besides {prefix} of other tokens" if prefix else ""
            raise self.refused(
                f"does not fit weights.grid: {by(self.grid)} has {math.prod(self.grid)} positions, and {held} has "
                f"{count}{rest}, which are {listed(grids_of(count))}"
            )
        return self.grid

    def guessed(self, grids: Sequence[Grid], likely: Iterator[Grid], held: str, count: int, of: str = "a grid") -> Grid:
        """The grid of a table that does not tell: a likely one, or the only one; else RecipeError names them all."""
        for grid in likely:
            if grid in grids:
                return grid
        if len(grids) == 1 and min(grids[0]) > 1:
            return grids[0]
        raise self.refused(
            f"does not tell where its positions lie: {held} has {count}, which are {of} of {listed(grids)}, and the "
            "values do not tell which. Say it: weights = { file = ..., grid = [ROWS, COLUMNS] }, or "
            "--set 'weights.grid=[ROWS,COLUMNS]'"
        )


def origin_of(
    backbone: Any, path: Path, key: str, grid: Grid | None = None, recipe: Mapping[str, Any] | None = None
) -> Origin:
    """What is known of weights at a path, by the options of a run's backbone or by a config.json beside a file."""
    image_size = None
    if recipe is None:
        recipe, image_size = _beside(path)
    name = getattr(backbone, "timm", None)
    usual = skeleton(name) if isinstance(name, str) else None
    return Origin(path, key, grid, None if recipe is None else _built(recipe), usual, image_size)


def _beside(path: Path) -> tuple[Mapping[str, Any] | None, tuple[int, int] | None]:
    """What a config.json beside a file tells: the backbone's options, if MaskZoo wrote it, or the images' size."""
    try:
        config: Any = read_json(path.parent / "config.json", missing=None) if path.is_file() else None
        if isinstance(config, Mapping) and "maskzoo" in config and isinstance(config.get("backbone"), Mapping):
            return config["backbone"], None
        height, width = config["pretrained_cfg"]["input_size"][-2:]
        return None, (int(height), int(width))
    except (DataError, OSError, KeyError, TypeError, ValueError):  # it is of something else
        return None, None


def _built(recipe: Mapping[str, Any]) -> Any:
    """A backbone that was trained, without values; None where it cannot be built any more."""
    try:
        with torch.device("meta"), torch.random.fork_rng(devices=[]), without_fetching():
            return make(Registry(), "backbone", dict(recipe), "backbone")
    except Exception:  # its plugin may be gone, or want values
        return None


def grid_of(model: Any) -> Grid | None:
    """The grid that a timm model's table of absolute positions is of."""
    patches = getattr(getattr(model, "patch_embed", None), "grid_size", None)
    found = getattr(model, "tokens_spatial_shape", patches)
    return None if found is None or len(found) != 2 else (int(found[0]), int(found[1]))


def likely_grids(model: Any, origin: Origin) -> Iterator[Grid]:
    """Grids that weights were made for if they have as many positions: a config's, and the timm model's own."""
    kernel = getattr(getattr(model, "patch_embed", None), "proj", None)
    if origin.image_size is not None and isinstance(kernel, torch.nn.Conv2d):
        yield origin.image_size[0] // kernel.stride[0], origin.image_size[1] // kernel.stride[1]
    usual = grid_of(origin.usual)
    if usual is not None:
        yield usual


def by(grid: Sequence[int]) -> str:
    """A grid in a message."""
    return f"{grid[0]} x {grid[1]}"


def listed(grids: Sequence[Grid]) -> str:
    """Grids in a message, the first ones of many."""
    told = [by(grid) for grid in grids]
    if len(grids) > LISTED + 1:
        return f"{', '.join(told[:LISTED])} or {len(grids) - LISTED} others"
    return " or ".join(filter(None, (", ".join(told[:-1]), told[-1])))


def shape(table: Tensor, name: str) -> str:
    """A tensor in a message."""
    return f"{name} {list(table.shape)}"
