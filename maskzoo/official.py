"""Published checkpoints as live objects: their weights, unchanged, under our contracts.

Sizes are read off the shapes; the few things that shapes do not tell are options. Nothing of the published programs is
needed, only their state dictionaries.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Literal, cast

from torch import Tensor, nn

from maskzoo.backbones.vit import VitBackbone
from maskzoo.errors import ContractError
from maskzoo.objectives.reconstruct import Reconstruct
from maskzoo.protocols import Backbone
from maskzoo.registry import Registry

Kind = Literal["mae", "cl-mae"]
MASKER = "masking_net."


def load(
    state_dict: Mapping[str, Any],
    kind: Kind,
    *,
    num_heads: int = 12,
    decoder_num_heads: int = 16,
    norm_pix: bool = False,
    masker_heads: int = 4,
) -> tuple[Reconstruct, Any | None]:
    """The objective, and the strategy if the method has one, that a published state dictionary holds.

    `state_dict` maps names to tensors, or has such a mapping under "model". `num_heads`, `decoder_num_heads` and, for
    "cl-mae", `masker_heads` are those of the attention layers; `norm_pix` says whether the target was normalised.
    Images and grids are square. Raises ContractError where tensors are missing, left over, or of another shape.
    """
    loaders = {"mae": _load_mae, "cl-mae": _load_cl_mae}
    if kind not in loaders:
        raise ContractError(f"no published kind '{kind}'; known: {', '.join(loaders)}")
    state = dict(state_dict.get("model", state_dict))
    return loaders[kind](state, num_heads, decoder_num_heads, norm_pix, masker_heads)


def _load_mae(
    state: dict[str, Tensor], num_heads: int, decoder_num_heads: int, norm_pix: bool, _: int
) -> tuple[Reconstruct, None]:
    if "decoder_embed.weight" not in state and "patch_embed.proj.weight" in state:
        raise ContractError("this checkpoint holds the encoder alone, without the decoder; take the one with both")
    _require(state, "patch_embed.proj.weight", "pos_embed", "decoder_embed.weight", "decoder_pos_embed")
    dim, channels, patch, _width = state["patch_embed.proj.weight"].shape
    side = math.isqrt(state["pos_embed"].shape[1] - 1)
    depth = _depth(state, "blocks.")
    backbone = VitBackbone(
        timm="vit_tiny_patch16_224",
        patch_size=patch,
        image_size=side * patch,
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
        norm_pix=norm_pix,
    )
    objective.setup(cast(Backbone, backbone))
    decoder = ("decoder_", "mask_token")
    renamed = {name if name.startswith(decoder) else f"backbone.model.{name}": tensor for name, tensor in state.items()}
    _fill(objective, renamed)
    return objective, None


def _load_cl_mae(
    state: dict[str, Tensor], num_heads: int, decoder_num_heads: int, norm_pix: bool, masker_heads: int
) -> tuple[Reconstruct, Any]:
    masker = {name.removeprefix(MASKER): tensor for name, tensor in state.items() if name.startswith(MASKER)}
    _require(masker, "cls_token", "pos_embed", "mlp_head.1.weight", prefix=MASKER)
    rest = {name: tensor for name, tensor in state.items() if not name.startswith(MASKER)}
    objective, _ = _load_mae(rest, num_heads, decoder_num_heads, norm_pix, masker_heads)
    dim, depth = masker["cls_token"].shape[2], _depth(masker, "blocks.")
    strategy: Any = Registry().find("strategy", "clmae")(
        depth=depth, heads=masker_heads, mlp_ratio=_mlp_ratio(masker, "blocks.", dim, depth)
    )
    strategy.setup(objective)
    # The published masker adds a position, never trained and zero, to its class token; we have the token alone.
    masker["cls_token"] = masker["cls_token"] + masker.pop("pos_embed")[:, :1]
    _fill(strategy, masker)
    return objective, strategy


def _require(state: Mapping[str, Tensor], *names: str, prefix: str = "") -> None:
    missing = [prefix + name for name in names if name not in state]
    if missing:
        raise ContractError(f"this is no such checkpoint: it lacks {', '.join(missing)}")


def _depth(state: Mapping[str, Tensor], prefix: str) -> int:
    numbers = {int(name.removeprefix(prefix).split(".")[0]) for name in state if name.startswith(prefix)}
    return max(numbers, default=-1) + 1


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
