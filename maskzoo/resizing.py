"""What depends on the size of images, patches and windows, brought from the size of the trained weights to another.

timm's own functions do it. Its loaders take every old grid for a square; here it is what a run or a file tells.
Shapes: N patches of a grid, P prefix tokens, D channels.
"""

from __future__ import annotations

import copy
import math
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from timm.layers import resample_abs_pos_embed, resample_abs_pos_embed_nhwc
from timm.models.eva import Eva
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor

from maskzoo.backbones.vit import sin_cos
from maskzoo.errors import RecipeError
from maskzoo.grids import Grid, grids_of, likeness, told_by
from maskzoo.origins import Origin, by, grid_of, likely_grids, origin_of, shape
from maskzoo.windows import TABLE, relative, told_of_continuous

KERNELS = ("patch_embed.proj.weight", "conv1.weight")  # of patches, as timm and CLIP call them
MAPS = re.compile(r"pos_embed\d*")  # positions that have rows and columns of their own
UNKNOWN = re.compile(r".*\battention_biases|levels\.\d+\.pos_embed")  # of sizes, and resized by nothing in timm
SIZED = re.compile(rf"pos_embed|{TABLE}|attention_biases|rel_pos|relative_|attn_mask")
NORM = re.compile(r"(fc_)?norm\b")  # the last one, which is before or behind the pooling
MOST_PREFIX = 9  # tokens before the patches, in any model
SAME = 1e-2  # how far fixed positions may be off, in weights of 16 bits


def resized(
    backbone: Any,
    state: Mapping[str, Tensor],
    path: Path,
    key: str,
    *,
    grid: Grid | None = None,
    recipe: Mapping[str, Any] | None = None,
) -> tuple[dict[str, Tensor], list[str]]:
    """The state with all that depends on sizes brought to the backbone's, as timm does it; what was done, as messages.

    `state` is by the backbone's names ("model.pos_embed"), or by those that timm's own loader of the family renames.
    Where its positions come from: `recipe`, the options of the backbone that a run has trained (its key `backbone`),
    else `grid`, rows and columns as the user says (of a Swin: of its windows), else what the tables themselves and a
    config.json beside the file tell. `key` and `path` are where the state is from, for messages. What has its size
    already is returned as it is. Raises RecipeError for what cannot fit, and where nothing tells which grid it is.
    """
    model = backbone.model
    origin = origin_of(backbone, path, key, grid, recipe)
    given = {name.removeprefix("model."): value for name, value in state.items() if name.startswith("model.")}
    inner, told = _renamed(model, given, origin), list[str]()
    if not _is_another(model, inner):
        _refuse_unknown(backbone, inner, origin)
        told = [*_told_of_kernels(given, inner), *told_of_continuous(model, origin)]
        for step in (_positions, relative, _maps):
            inner, more = step(model, inner, origin)
            told += more
    rest = {name: value for name, value in state.items() if not name.startswith("model.")}
    return rest | {f"model.{name}": value for name, value in inner.items()}, told


def _is_another(model: Any, inner: Mapping[str, Tensor]) -> bool:
    """Whether the tensors are of another model, as the caller is going to say: then no grid is asked for."""
    own = {name: value for name, value in model.named_parameters() if value.requires_grad and not SIZED.search(name)}
    parts = {name.split(".")[0] for name in own}
    missing = [name for name in own if name not in inner and not NORM.match(name)]
    extra = [name for name in inner if name.split(".")[0] in parts and name not in model.state_dict()]
    extra = [name for name in extra if not SIZED.search(name) and not NORM.match(name)]
    return bool(missing or extra) or any(
        value.ndim != inner[name].ndim or len(value) != len(inner[name])  # channels and patches may be others
        if name == KERNELS[0]
        else value.shape != inner[name].shape
        for name, value in own.items()
        if name in inner
    )


# ------------------------------------------------------------------------------------------------------------ renaming
def _renamed(model: Any, given: Mapping[str, Tensor], origin: Origin) -> dict[str, Tensor]:
    """The tensors by timm's names, and kernels of patches resized, by timm's loader; positions are left as they are."""
    loader = getattr(sys.modules[type(model).__module__], "checkpoint_filter_fn", None)
    if loader is None:
        return dict(given)
    shown, apart = model, [name for name in given if name.endswith(TABLE)]  # their size would be guessed
    if isinstance(model, VisionTransformer | Eva):
        if not any(name.startswith("radio_model.") for name in given):  # which has a way of its own
            shown = copy.copy(model)  # one without positions, so that none are resized
            shown._parameters = {**model._parameters, "pos_embed": None}
    elif getattr(getattr(model, "pos_embed", None), "ndim", 0) == 3:
        apart.append("pos_embed")
    kept = {name: given[name] for name in apart if name in given}
    try:
        return {**loader({name: value for name, value in given.items() if name not in kept}, shown), **kept}
    except Exception as problem:  # tensors of other shapes than the family's
        told = ", ".join(shape(value, name) for name, value in given.items() if name.endswith(KERNELS))
        reason = str(problem) or type(problem).__name__
        raise origin.refused(f"does not fit this backbone: timm cannot read it ({told}): {reason}") from None


def _told_of_kernels(given: Mapping[str, Tensor], inner: Mapping[str, Tensor]) -> list[str]:
    before = [value for name, value in given.items() if name.endswith(KERNELS) and value.ndim == 4]
    after = inner.get(KERNELS[0])
    if not before or after is None or after.ndim != 4 or before[0].shape[2:] == after.shape[2:]:
        return []
    old, new = by(before[0].shape[2:]), by(after.shape[2:])
    return [f"weights: the kernels of patches of {old} pixels were resized to {new} (as timm does)"]


# -------------------------------------------------------------------------------------------------- absolute positions
def _positions(model: Any, inner: dict[str, Tensor], origin: Origin) -> tuple[dict[str, Tensor], list[str]]:
    """Tables [1, P + N, D]: of this grid."""
    table, own, new = inner.get("pos_embed"), getattr(model, "pos_embed", None), grid_of(model)
    if table is None or own is None or new is None or {table.ndim, own.ndim} != {3} or table.shape[2] != own.shape[2]:
        return inner, []
    prefix = own.shape[1] - math.prod(new)
    if table.shape[1] <= prefix:
        held = shape(table, "pos_embed")
        raise origin.refused(f"does not fit this backbone: {held} has no row besides the {prefix} of other tokens")
    if not own.requires_grad:
        return {name: value for name, value in inner.items() if name != "pos_embed"}, _fixed(table, own, new, origin)
    old, how = _old_grid(model, table, prefix, origin)
    if old == new:
        return inner, []
    table = resample_abs_pos_embed(table, new_size=list(new), old_size=list(old), num_prefix_tokens=prefix)
    told = f"weights: positions of {by(old)}{how} were resized to {by(new)} (bicubic, as timm does)"
    return {**inner, "pos_embed": table}, [told]


def _fixed(table: Tensor, own: Tensor, new: Grid, origin: Origin) -> list[str]:
    """What is to be told where the backbone's positions are fixed, and follow from its grid."""
    prefix, dim = own.shape[1] - math.prod(new), own.shape[2]
    patches = table[0, prefix:].float()
    fitting = (grid for grid in grids_of(len(patches)) if _same(patches, sin_cos(grid, dim)))
    old = new if table.shape == own.shape and _same(table[0, prefix:], own[0, prefix:]) else next(fitting, None)
    if old is None:
        raise origin.refused(
            f"has learned positions, or fixed ones of another kind ({shape(table, 'pos_embed')}), and those of this "
            'backbone are fixed: backbone.position is "sin-cos"; set it to "timm" to load them'
        )
    told = [f"weights: the fixed positions are those of {by(new)} in place of {by(old)}"] if old != new else []
    if prefix and not _same(table[0, :prefix], own[0, :prefix]):
        told.append("weights: the position of the class token was left out, since fixed positions have none")
    return told


def _same(one: Tensor, other: Tensor) -> bool:
    return bool((one.float() - other.float()).abs().max() < SAME)


def _old_grid(model: Any, table: Tensor, prefix: int, origin: Origin) -> tuple[Grid, str]:
    """The grid of a table [1, P + N, D], and how that is known, for a message."""
    count, held = table.shape[1] - prefix, shape(table, "pos_embed")
    theirs, known = getattr(origin.model, "pos_embed", None), grid_of(origin.model)
    if theirs is not None and known is not None and theirs.shape == table.shape:
        if origin.grid not in (None, known):
            raise origin.refused(f"has positions of {by(known)}, and weights.grid says {by(origin.grid or ())}")
        if math.prod(known) != count:
            other = table.shape[1] - math.prod(known)
            raise _other_prefix(known, other, prefix, held, origin)
        return known, ""
    if origin.grid is not None:
        return origin.said(count, held, prefix), ""
    grids = grids_of(count)
    found = told_by(table[0, prefix:], grids)
    _refuse_other_prefix(table, prefix, found, origin)
    if found is not None:
        return found, "" if found[0] == found[1] else ", as the table tells,"
    return origin.guessed(grids, likely_grids(model, origin), held, count), ""


def _refuse_other_prefix(table: Tensor, prefix: int, found: Grid | None, origin: Origin) -> None:
    """Refuse a trained table [1, P + N, D] that is rather a square with another number of rows for other tokens."""
    rows = table[0].detach().double()
    if found is not None and found[0] == found[1]:
        return
    for other in range(min(MOST_PREFIX, len(rows) - 3)):
        side = math.isqrt(len(rows) - other)
        if other == prefix or side**2 != len(rows) - other:
            continue
        square, there = (side, side), rows[other:] - rows[other:].mean(dim=0)
        if told_by(there, [square]) is None:
            continue
        here = rows[prefix:] - rows[prefix:].mean(dim=0)
        if found is None or likeness(there, square) > likeness(here, found):
            raise _other_prefix(square, other, prefix, shape(table, "pos_embed"), origin)


def _other_prefix(grid: Grid, there: int, here: int, held: str, origin: Origin) -> RecipeError:
    return origin.refused(
        f"does not fit this backbone: {held} is {by(grid)} positions and {there} of other tokens (a class token, "
        f"registers), and this backbone has {here} of those; with options.no_embed_class = true it has none"
    )


# -------------------------------------------------------------------------------------------------------------- others
def _maps(model: Any, inner: dict[str, Tensor], origin: Origin) -> tuple[dict[str, Tensor], list[str]]:
    """Positions that have their grid for a shape, [1, D, rows, columns] or [1, rows, columns, D]."""
    found, told = dict(inner), list[str]()
    for name, table in inner.items():
        own = getattr(model, name, None) if MAPS.fullmatch(name) else None
        if own is None or table.ndim != 4 or own.ndim != 4 or table.shape == own.shape:
            continue
        if table.shape[1] == own.shape[1]:
            old, new = table.shape[2:], own.shape[2:]
            by_row = resample_abs_pos_embed_nhwc(table.permute(0, 2, 3, 1), list(new))
            found[name] = by_row.permute(0, 3, 1, 2).contiguous()
        elif table.shape[3] == own.shape[3]:
            old, new = table.shape[1:3], own.shape[1:3]
            found[name] = resample_abs_pos_embed_nhwc(table, list(new))
        else:
            continue
        told.append(f"weights: positions of {by(old)} were resized to {by(new)} (bicubic, as timm does)")
    return found, told


def _refuse_unknown(backbone: Any, inner: Mapping[str, Tensor], origin: Origin) -> None:
    """Refuse tables of another grid that nothing in timm resizes, even where they have as many numbers."""
    names = [name for name in inner if UNKNOWN.fullmatch(name)]
    if names and origin.backbone is not None and origin.backbone.grid != backbone.grid:
        there, here = by(origin.backbone.image_size), by(backbone.image_size)
        raise origin.refused(f"has {names[0]} for images of {there} pixels, which timm cannot resize for {here}")
