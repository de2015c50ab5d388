"""Relative positions of windows, of Swin and BEiT, brought to windows of another size.

Shapes: R rows of a table, h heads.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from timm.layers import resize_rel_pos_bias_table
from torch import Tensor

from maskzoo.grids import Grid, grids_of, told_by
from maskzoo.origins import Origin, by, grid_of, likely_grids, shape

TABLE = "relative_position_bias_table"
Tables = Mapping[str, Tensor]


def relative(model: Any, inner: Tables, origin: Origin) -> tuple[dict[str, Tensor], list[str]]:
    """Tables [R, h] of the windows that this model has; a BEiT's end in three rows of its class token."""
    found, groups = dict(inner), dict[tuple[str, int], list[str]]()
    for name, table in inner.items():
        own, window = _own(model, name)
        if own is None or window is None or table.ndim != own.ndim:
            continue
        if table.ndim == 2 and table.shape[1] == own.shape[1]:
            stage = name.split(".blocks.")[0] if name.count(".blocks.") else ""  # tables of a stage have one window
            groups.setdefault((stage, len(table)), []).append(name)
        elif table.ndim == 3 and table.shape != own.shape:  # of a MaxViT, by row and column
            found[name] = _resized(table, window, own.shape)
    if groups:
        _check_said({len(inner[names[0]]) - _extra(model, names[0]) for names in groups.values()}, inner, origin)
    told = dict[str, int]()
    for names in groups.values():
        new = _own(model, names[0])[1]
        assert new is not None
        old, how = _old(model, [inner[name] for name in names], names[0], origin)
        if old == new:
            continue
        line = f"weights: relative positions of windows of {by(old)}{how} were resized to {by(new)}"
        told[line] = told.get(line, 0) + len(names)
        for name in names:
            found[name] = _resized(inner[name], new, _own(model, name)[0].shape, old)
    return found, [f"{line}, in {count} table{'s' * (count > 1)} (as timm does)" for line, count in told.items()]


def _resized(table: Tensor, window: Grid, size: Sequence[int], old: Grid | None = None) -> Tensor:
    with warnings.catch_warnings():  # of torch, about how timm indexes
        warnings.simplefilter("ignore", UserWarning)
        made: Tensor = resize_rel_pos_bias_table(table, window, tuple(size), old)
    return made


def _own(model: Any, name: str) -> tuple[Any, Grid | None]:
    """A model's own table of that name, and the window that it is of."""
    if model is None or not name.endswith(f".{TABLE}"):
        return None, None
    try:
        module = model.get_submodule(name.removesuffix(f".{TABLE}"))
    except AttributeError:
        return None, None
    window = getattr(module, "window_size", None)
    return getattr(module, TABLE, None), None if window is None else (int(window[0]), int(window[1]))


def _extra(model: Any, name: str) -> int:
    """Rows of a table that are of no place."""
    own, window = _own(model, name)
    assert window is not None
    return len(own) - _places(window)


def _places(window: Grid) -> int:
    return (2 * window[0] - 1) * (2 * window[1] - 1)


def _check_said(counts: set[int], inner: Tables, origin: Origin) -> None:
    """Refuse a window of the user's that no table has; where there are absolute positions, the word is for them too."""
    if origin.grid is not None and origin.model is None and _places(origin.grid) not in counts:
        raise origin.refused(
            f"does not fit weights.grid: windows of {by(origin.grid)} have {_places(origin.grid)} relative positions, "
            f"and its tables have {', '.join(map(str, sorted(counts)))}"
        )


def _old(model: Any, tables: Sequence[Tensor], name: str, origin: Origin) -> tuple[Grid, str]:
    """The window that tables [R, h] of the same stage are of, and how that is known, for a message."""
    count, held = len(tables[0]) - _extra(model, name), shape(tables[0], name)
    theirs, known = _own(origin.model, name)
    if theirs is not None and known is not None and theirs.shape == tables[0].shape:
        return known, ""
    if origin.grid is not None and _places(origin.grid) == count:
        return origin.grid, ""
    sides = [grid for grid in grids_of(count) if grid[0] % 2 and grid[1] % 2] if count > 0 else []
    if not sides:
        raise origin.refused(f"does not fit this backbone: {held} is of no window")
    told = told_by(torch.cat([table[:count].detach().float() for table in tables], dim=1), sides)
    if told is not None:
        return _window(told), "" if told[0] == told[1] else ", as the table tells,"
    likely = [window for window in (_own(origin.usual, name)[1],) if window is not None]
    if grid_of(model) == _own(model, name)[1]:  # of a BEiT, whose window is the whole grid
        likely += likely_grids(model, origin)
    return origin.guessed([_window(side) for side in sides], iter(likely), held, count, "windows"), ""


def _window(sides: Grid) -> Grid:
    """The window of a table that has so many rows and columns."""
    return (sides[0] + 1) // 2, (sides[1] + 1) // 2


def told_of_continuous(model: Any, origin: Origin) -> list[str]:
    """What is to be told where relative positions are a function of the distance, which Swin V2 has."""
    there, here = _shares(origin.model), _shares(model)
    if not there or len(there) != len(here) or there == here:
        return []
    keeping = [max(window) for window in there]
    return [
        "weights: relative positions are a function of the distance as a share of the window, whose size is another "
        f"here; backbone.options.pretrained_window_sizes = {keeping} would keep distances as they were"
    ]


def _shares(model: Any) -> list[Grid]:
    """Of each stage the window of which distances are shares."""
    found = []
    for name, module in [] if model is None else model.named_modules():
        trained = getattr(module, "pretrained_window_size", None)
        if trained is not None and name.endswith("blocks.0.attn"):
            high, wide = trained if trained[0] > 0 else module.window_size
            found.append((int(high), int(wide)))
    return found
