"""Published checkpoints as live objects: their weights, unchanged, under our contracts.

Sizes are read off the shapes; the few things that shapes do not tell are options. Nothing of the published programs is
needed, only their state dictionaries.
"""

from __future__ import annotations

import inspect
import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn

from maskzoo.backbones.swin import SwinBackbone
from maskzoo.backbones.vit import VitBackbone, sin_cos
from maskzoo.errors import ContractError, MaskZooError
from maskzoo.grids import Grid, grids_of, told_by
from maskzoo.objectives.reconstruct import Reconstruct
from maskzoo.origins import by, listed
from maskzoo.protocols import Backbone
from maskzoo.registry import Registry
from maskzoo.windows import TABLE

Kind = Literal["mae", "cl-mae", "simmim-swin"]
Loaded = tuple[Reconstruct, Any | None]
MASKER = "masking_net."
ENCODER = "encoder."
SAME = 1e-2  # how far positions may be off, in weights of 16 bits
COMPUTED = ("attn_mask", "relative_position_index")  # of a Swin's blocks, which follow from its sizes


def load(state_dict: Mapping[str, Any], kind: Kind, **options: Any) -> Loaded:
    """The objective, and the strategy if the method has one, that a published state dictionary holds.

    `state_dict` maps names to tensors, or has such a mapping under "model". The grid of a MAE is the one of its fixed
    positions; a Swin's images and windows are square. Options, by kind, of what shapes do not tell:

    "mae", "cl-mae": `num_heads` (12) and `decoder_num_heads` (16) of the attention layers; `norm_pix` (False), whether
    the target was normalised; `masker_heads` (4) for "cl-mae".

    "simmim-swin": nothing has to be said; `num_heads` (of each stage), `window_size` and `encoder_stride` are checked
    against what is there. `image_size` is read off the windows, which a stage smaller than a window cuts, or off the
    attention masks of published files. Where neither tells, the last stage is taken to be one window, as published,
    until the encoder is given images of another size that whole windows cut: then it becomes one for these.

    Raises ContractError for an option that the kind does not have, and where tensors are missing, left over, or of
    another shape.
    """
    loaders: dict[str, Callable[..., Loaded]] = {
        "mae": _load_mae,
        "cl-mae": _load_cl_mae,
        "simmim-swin": _load_simmim_swin,
    }
    if kind not in loaders:
        raise ContractError(f"no published kind '{kind}'; known: {', '.join(loaders)}")
    known = list(inspect.signature(loaders[kind]).parameters)[1:]
    strange = sorted(options.keys() - set(known))
    if strange:
        raise ContractError(f"'{kind}' has no option {', '.join(strange)}; its options are {', '.join(known)}")
    held = state_dict.get("model", state_dict)
    if not isinstance(held, Mapping):
        raise ContractError("this is no such checkpoint: it is no mapping of names to tensors")
    try:
        return loaders[kind](dict(held), **options)
    except MaskZooError:
        raise
    except Exception as problem:  # sizes are read off shapes that may be any
        raise ContractError(f"the checkpoint does not fit: {type(problem).__name__}: {problem}") from problem


def _load_mae(
    state: dict[str, Tensor], *, num_heads: int = 12, decoder_num_heads: int = 16, norm_pix: bool = False
) -> Loaded:
    if "decoder_embed.weight" not in state and "patch_embed.proj.weight" in state:
        raise ContractError("this checkpoint holds the encoder alone, without the decoder; take the one with both")
    _require(state, "patch_embed.proj.weight", "pos_embed", "decoder_embed.weight", "decoder_pos_embed")
    dim, channels, *patch = state["patch_embed.proj.weight"].shape
    grid = _grid_of(state["pos_embed"][0, 1:])
    depth = _depth(state, "blocks.")
    backbone = VitBackbone(
        timm="vit_tiny_patch16_224",
        patch_size=(patch[0], patch[1]),
        image_size=(grid[0] * patch[0], grid[1] * patch[1]),
        channels=channels,
        position="sin-cos",
        options={
            "embed_dim": dim,
            "depth": depth,
            "num_heads": num_heads,
            "mlp_ratio": _mlp_ratio(state, "blocks.", dim, depth),
        },
    )
    decoder_dim, decoder_depth = state["decoder_embed.weight"].shape[0], _depth(state, "decoder_blocks.")
    objective = Reconstruct(
        decoder_dim=decoder_dim,
        decoder_depth=decoder_depth,
        decoder_heads=decoder_num_heads,
        mlp_ratio=_mlp_ratio(state, "decoder_blocks.", decoder_dim, decoder_depth),
        target="norm_pixels" if norm_pix else "pixels",
    )
    objective.setup(cast(Backbone, backbone))
    decoder = ("decoder_", "mask_token")
    renamed = {name if name.startswith(decoder) else f"backbone.model.{name}": tensor for name, tensor in state.items()}
    _fill(objective, renamed)
    return objective, None


def _grid_of(positions: Tensor) -> Grid:
    """The grid whose fixed sin-cos positions [N, D] these are, or else where neighbours are alike."""
    grids = grids_of(len(positions))
    for grid in grids:
        if (positions.float() - sin_cos(grid, positions.shape[1])).abs().max() < SAME:
            return grid
    told = told_by(positions, grids)
    if told is None:
        raise ContractError(
            f"the checkpoint does not fit: its {len(positions)} positions (pos_embed) are not the fixed sin-cos ones "
            f"of a grid of {listed(grids)}"
        )
    return told


def _load_cl_mae(
    state: dict[str, Tensor],
    *,
    num_heads: int = 12,
    decoder_num_heads: int = 16,
    norm_pix: bool = False,
    masker_heads: int = 4,
) -> Loaded:
    masker = {name.removeprefix(MASKER): tensor for name, tensor in state.items() if name.startswith(MASKER)}
    _require(masker, "cls_token", "pos_embed", "mlp_head.1.weight", prefix=MASKER)
    rest = {name: tensor for name, tensor in state.items() if not name.startswith(MASKER)}
    objective, _ = _load_mae(rest, num_heads=num_heads, decoder_num_heads=decoder_num_heads, norm_pix=norm_pix)
    dim, depth = masker["cls_token"].shape[2], _depth(masker, "blocks.")
    strategy: Any = Registry().find("strategy", "clmae")(
        depth=depth, heads=masker_heads, mlp_ratio=_mlp_ratio(masker, "blocks.", dim, depth)
    )
    strategy.setup(objective)
    # The published masker adds a position, never trained and zero, to its class token; we have the token alone.
    masker["cls_token"] = masker["cls_token"] + masker.pop("pos_embed")[:, :1]
    _fill(strategy, masker)
    return objective, strategy


def _load_simmim_swin(
    state: dict[str, Tensor],
    *,
    num_heads: Sequence[int] | None = None,
    window_size: int | None = None,
    encoder_stride: int | None = None,
    image_size: int | None = None,
) -> Loaded:
    _require(state, *(ENCODER + name for name in ("patch_embed.proj.weight", "mask_token")), "decoder.0.weight")
    dim, channels, patch, _width = state[f"{ENCODER}patch_embed.proj.weight"].shape
    depths = [_depth(state, f"{ENCODER}layers.{stage}.blocks.") for stage in range(_depth(state, f"{ENCODER}layers."))]
    stride = patch << len(depths) - 1
    tables = [
        _found(state, f"{ENCODER}layers.{stage}.blocks.0.attn.relative_position_bias_table").shape
        for stage in range(len(depths))
    ]
    _refuse_oblong(state, tables)
    windows = [(math.isqrt(rows) + 1) // 2 for rows, _ in tables]
    heads = [count for _, count in tables]
    _agree("num_heads", num_heads if num_heads is None else list(num_heads), heads)
    _agree("encoder_stride", encoder_stride, stride)
    if state["decoder.0.weight"].shape[0] != channels * stride**2:
        rows, pixels = state["decoder.0.weight"].shape[0], f"{channels} x {stride} x {stride}"
        raise ContractError(f"the checkpoint's shapes do not fit: its decoder gives {rows} values, not {pixels} pixels")
    if window_size is not None and window_size < max(windows):
        _agree("window_size", window_size, max(windows))
    window = window_size or max(windows)
    told = image_size or _swin_image(state, windows, window, patch)
    backbone = SwinBackbone(
        timm="swin_tiny_patch4_window7_224",
        image_size=told or windows[-1] * stride,
        window_size=window,
        channels=channels,
        options={
            "patch_size": patch,
            "embed_dim": dim,
            "depths": depths,
            "num_heads": heads,
            "mlp_ratio": _mlp_ratio(state, f"{ENCODER}layers.0.blocks.", dim, depths[0]),
            "qkv_bias": f"{ENCODER}layers.0.blocks.0.attn.qkv.bias" in state,
        },
    )
    objective = Reconstruct(decoder="linear", loss="l1", target="pixels")
    objective.setup(cast(Backbone, backbone))
    _fill(
        objective,
        dict(
            _simmim_named(name, tensor, channels, stride)
            for name, tensor in state.items()
            if not name.endswith(COMPUTED)
        ),
    )
    if told is None:
        backbone.register_forward_pre_hook(_fit_images)
    return objective, None


def _refuse_oblong(state: Mapping[str, Tensor], tables: Sequence[Sequence[int]]) -> None:
    """Refuse windows that are no squares, of which images would be none either."""
    for stage, (rows, _) in enumerate(tables):
        names = [name for name in state if re.fullmatch(rf"{ENCODER}layers\.{stage}\.blocks\.\d+\.attn\.{TABLE}", name)]
        sides = [grid for grid in grids_of(rows) if grid[0] % 2 and grid[1] % 2]
        same = [state[name].float() for name in names if len(state[name]) == rows]
        told = told_by(torch.cat(same, dim=1), sides) if sides else None
        if math.isqrt(rows) ** 2 != rows or rows % 2 == 0 or (told is not None and told[0] != told[1]):
            kind = f"windows of {by(((told[0] + 1) // 2, (told[1] + 1) // 2))}" if told else "no square window"
            raise ContractError(
                f"the checkpoint does not fit: the {rows} relative positions of its stage {stage} are of {kind}, and "
                "windows are square here"
            )


def _simmim_named(name: str, tensor: Tensor, channels: int, stride: int) -> tuple[str, Tensor]:
    """A tensor under our name: stages begin, rather than end, by merging patches; pixels go row, column, channel."""
    if name == f"{ENCODER}mask_token":
        return "backbone.mask_token", tensor.flatten()
    if name.startswith("decoder.0."):  # a 1x1 convolution before a pixel shuffle, which goes channel, row, column
        shuffled = tensor.reshape(channels, stride, stride, -1).permute(1, 2, 0, 3).reshape(tensor.shape[0], -1)
        return f"decoder_pred.{name.removeprefix('decoder.0.')}", shuffled.squeeze(1) if tensor.ndim == 1 else shuffled
    name = re.sub(r"layers\.(\d+)\.downsample", lambda found: f"layers.{int(found[1]) + 1}.downsample", name)
    return f"backbone.model.{name.removeprefix(ENCODER)}", tensor


def _swin_image(state: Mapping[str, Tensor], windows: Sequence[int], window: int, patch: int) -> int | None:
    """Pixels a side of the images, if a stage tells: by its attention masks, or by its windows, cut to its own size."""
    told = {cut * (patch << stage) for stage, cut in enumerate(windows) if cut < window}
    for stage, whole in enumerate(windows):
        masks = [state[name] for name in state if re.fullmatch(rf"{ENCODER}layers\.{stage}\..*attn_mask", name)]
        oblong = [len(mask) for mask in masks if math.isqrt(len(mask)) ** 2 != len(mask)]
        if oblong:
            raise ContractError(f"the checkpoint does not fit: {oblong[0]} windows are of no square images")
        told |= {math.isqrt(len(mask)) * whole * (patch << stage) for mask in masks}  # [windows, w * w, w * w] each
    if len(told) > 1:
        sides = ", ".join(str(side) for side in sorted(told))
        raise ContractError(
            f"the checkpoint does not fit: with windows of {window}, its stages are of images of {sides} pixels a side"
        )
    return next(iter(told), None)


def _fit_images(backbone: SwinBackbone, given: tuple[Any, ...]) -> None:
    """Make a Swin, whose positions are all relative, one for images of this size, if whole windows cut its last stage.

    It refuses the others itself.
    """
    height, width = given[0].shape[2:]
    window = cast(int, backbone.window_size)
    units = height / backbone.patch_size[0], width / backbone.patch_size[1]
    if (height, width) == backbone.image_size or any(side % window for side in units):
        return
    backbone.model.set_input_size(img_size=(height, width), window_size=window)
    backbone.image_size, backbone.grid = (height, width), (int(units[0]), int(units[1]))
    position = sin_cos(backbone.grid, backbone.token_dim)
    backbone.register_buffer("_position", position.to(given[0].device), persistent=False)


def _agree(option: str, said: Any, there: Any) -> None:
    if said is not None and said != there:
        raise ContractError(f"the checkpoint does not fit: {option} is {there} there, not {said}")


def _found(state: Mapping[str, Tensor], name: str) -> Tensor:
    _require(state, name)
    return state[name]


def _require(state: Mapping[str, Tensor], *names: str, prefix: str = "") -> None:
    missing = [prefix + name for name in names if name not in state]
    if missing:
        raise ContractError(f"this is no such checkpoint: it lacks {', '.join(missing)}")


def _depth(state: Mapping[str, Tensor], prefix: str) -> int:
    numbers = {name.removeprefix(prefix).split(".")[0] for name in state if name.startswith(prefix)}
    if numbers != {str(number) for number in range(len(numbers))}:  # a number of many digits would be built
        raise ContractError(f"the checkpoint does not fit: its {prefix}... are not numbered 0, 1, 2, ...")
    return len(numbers)


def _mlp_ratio(state: Mapping[str, Tensor], prefix: str, dim: int, depth: int) -> float:
    return state[f"{prefix}0.mlp.fc1.weight"].shape[0] / dim if depth else 4.0


def _fill(module: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Load every tensor, and say which do not fit."""
    try:
        missing, unexpected = module.load_state_dict(dict(state), strict=False)
    except RuntimeError as problem:
        raise ContractError(f"the checkpoint's shapes do not fit: {problem}") from problem
    if missing or unexpected:
        raise ContractError(f"the checkpoint does not fit: missing {missing}, left over {unexpected}")
