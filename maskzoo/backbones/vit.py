"""Any timm vision transformer, shown its visible patches alone, or a learned token in place of each hidden one.

Shapes: B images, N patches, V visible, P prefix tokens, D channels.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, ClassVar, Literal

import torch
from timm.layers import build_sincos2d_pos_embed
from timm.models.deit import VisionTransformerDistilled
from timm.models.eva import Eva
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from maskzoo.backbones import skeleton
from maskzoo.backbones.adapter import NOT_HERE, TimmBackbone, pair
from maskzoo.backbones.sizes import MOST_AUTOMATIC, asked_patch, automatic_patch
from maskzoo.bounds import MOST_UNASKED
from maskzoo.errors import ContractError, RecipeError
from maskzoo.mask import Mask
from maskzoo.protocols import Need, define

OWN_OPTIONS = {**NOT_HERE, "patch_size": "it is an option of the backbone itself"}


@define
class VitBackbone(TimmBackbone):
    """A timm ViT (class token, registers or none; learned, fixed or rotary positions): hidden patches are dropped."""

    name: ClassVar[str] = "vit"
    provides: ClassVar[frozenset[Need]] = frozenset({"attention", "features"})
    dense: ClassVar[bool] = False

    timm: str = "vit_tiny_patch16_224"  # name of the timm model
    # pixels a side; None: timm's own; "auto": what gives 7 patches a side or more, about 14 of large images
    patch_size: int | tuple[int, int] | Literal["auto"] | None = None
    position: Literal["timm", "sin-cos"] = "timm"  # "sin-cos": MAE's fixed table in place of learned positions
    init: Literal["timm", "mae"] = (
        "timm"  # initial weights: timm's, or MAE's (xavier-uniform, tokens of deviation 0.02)
    )
    mask_token: bool = False  # hidden patches stay, as a learned token in place of each (SimMIM, arXiv 2111.09886)

    _position: ClassVar[Tensor | None]  # a buffer: positions for `tokens` where the model itself adds none
    _mask_token: ClassVar[nn.Parameter]  # where `mask_token` asks for one

    def __attrs_post_init__(self) -> None:
        usual = self._usual_patch()
        size, patch = self._cut(usual)
        self.model = self._built(size, None if patch == usual else patch)
        if not self.adapts(self.model) or len(self.model.blocks) == 0:
            raise RecipeError(f"with these options '{self.timm}' has no blocks that could be shown part", key="options")
        if any(cells * unit != side for cells, unit, side in zip(self._grid(), patch, size, strict=True)):
            raise RecipeError(
                f"'{self.timm}' makes a grid of {self._grid()} of {size[0]} x {size[1]} pixels whatever patch is asked "
                f"for; leave patch_size open",
                key="patch_size",
            )
        self.image_size, self.patch_size = size, patch
        self.grid = self._grid()
        self.prefix = self.model.num_prefix_tokens
        self.dim = self.model.num_features
        self.token_dim = self.model.embed_dim
        if not hasattr(self.model.blocks[-1], "attn") or not hasattr(self.model.blocks[-1].attn, "attn_drop"):
            self.provides = frozenset({"features"})  # type: ignore[misc]  # e.g. parallel blocks
        if isinstance(self.model.norm, nn.Identity) and hasattr(self.model, "fc_norm"):
            # timm's weights end in a norm behind a pooling that we never run
            self.model.norm, self.model.fc_norm = self.model.fc_norm, self.model.norm
        for behind in ("attn_pool", "fc_norm"):  # a pooling that we never run; DDP would wait for its gradient
            part = getattr(self.model, behind, None)
            if part is not None:
                part.requires_grad_(False)
        if self.init == "mae" and not self.pretrained:
            self._initialise_as_mae()
        self._place()
        if self.mask_token:
            self.dense = True  # type: ignore[misc]
            self._mask_token = new_mask_token(self.token_dim)  # type: ignore[misc]

    @classmethod
    def adapts(cls, model: nn.Module) -> bool:
        """Whether this adapter is the one for such a timm model."""
        return isinstance(model, VisionTransformer | Eva)

    def forward(self, images: Tensor, mask: Mask | None = None) -> Tensor:
        """The latent of images [B, C, H, W]: [B, P + V, D] under a hard mask unless dense, else [B, P + N, D].

        Hidden pixels are zeroed before anything sees them, so that neither a convolutional stem nor a gradient can
        carry them, and hidden patches are dropped after the position is added. Under a soft mask every patch goes in,
        scaled after the position is added. With a mask token a hidden patch is replaced by it before the position is
        added, and under a soft mask blended with it.
        """
        if mask is None:
            return self._encode(*self._embed(images))
        self._check(images, mask)
        if mask.visibility is None:
            images = self._without_hidden(images, mask)
        if self.mask_token:
            return self._encode(*self._embed(images, mask))
        tokens, rope = self._embed(images)
        prefix, patches = tokens[:, : self.prefix], tokens[:, self.prefix :]
        if mask.visibility is None:
            patches, rope = mask.keep(patches), self._kept_rope(rope, mask)
        else:
            patches = patches * mask.visibility[..., None]
        return self._encode(torch.cat([prefix, patches], dim=1), rope)

    def tokens(self, images: Tensor) -> Tensor:
        """[B, N, D]: embedded patches plus position, as the first block sees them."""
        tokens, _ = self._embed(images)
        patches = tokens[:, self.prefix :]
        return patches if self._position is None else patches + self._position

    def inspect(self, images: Tensor, block: int = -1) -> tuple[Tensor, Tensor | None]:
        """What a block makes of whole images: features [B, P + N, D] and attention [B, heads, P + N, P + N].

        The last block's features carry the final norm, as the latent does. The attention is what the block's unfused
        module computes, rotary position included.
        """
        position = range(len(self.model.blocks))[block]
        seen: list[Tensor] = []
        tokens, rope = self._embed(images)
        tokens = self.model.norm_pre(tokens)
        for number, layer in enumerate(self.model.blocks[: position + 1]):
            if number == position and "attention" in self.provides:
                with unfused(layer.attn, seen):
                    tokens = self._block(layer, tokens, rope, number)
            else:
                tokens = self._block(layer, tokens, rope, number)
        features = self.model.norm(tokens) if position == len(self.model.blocks) - 1 else tokens
        return features, seen[0].float() if seen else None

    def attention(self, images: Tensor) -> Tensor:
        """[B, N] float32: the last block's attention to each patch, mean over heads: the class token's row, or the
        mean of the patches' rows where there is no class token.
        """
        _, attention = self.inspect(images)
        if attention is None:
            raise ContractError(f"'{self.timm}' has no attention that can be read")
        rows = attention.mean(dim=1)  # [B, P + N, P + N]
        if self.model.cls_token is not None:
            return rows[:, 0, self.prefix :]
        return rows[:, self.prefix :, self.prefix :].mean(dim=1)

    # ------------------------------------------------------------------------------------------------------- the parts
    def _embed(self, images: Tensor, mask: Mask | None = None) -> tuple[Tensor, Tensor | None]:
        """[B, P + N, D] tokens with position, and the rotary table of models that have one.

        Under a mask, hidden patches are replaced by the mask token.
        """
        self._check(images)
        patches = self.model.patch_embed(images)  # [B, N, D], or [B, h, w, D]
        if mask is not None:
            flat = patches.reshape(len(images), math.prod(self.grid), -1)
            patches = with_mask_token(flat, mask, self._mask_token).reshape(patches.shape)
        embedded = self.model._pos_embed(patches)
        return embedded if isinstance(embedded, tuple) else (embedded, None)

    def _encode(self, tokens: Tensor, rope: Tensor | None) -> Tensor:
        tokens = self.model.norm_pre(tokens)
        for number, layer in enumerate(self.model.blocks):
            tokens = self._block(layer, tokens, rope, number)
        return self.model.norm(tokens)  # type: ignore[no-any-return]

    def _block(self, layer: nn.Module, tokens: Tensor, rope: Tensor | None, number: int) -> Tensor:
        if rope is None:
            return layer(tokens)  # type: ignore[no-any-return]
        return layer(tokens, rope=rope[number] if self._rope_by_depth else rope)  # type: ignore[no-any-return]

    @property
    def _rope_by_depth(self) -> bool:
        return bool(getattr(self.model, "rope_mixed", False))

    def _kept_rope(self, rope: Tensor | None, mask: Mask) -> Tensor | None:
        """The visible patches' rows of the rotary table, with the dimensions that timm's blocks broadcast over."""
        if rope is None:
            return None
        kept = rope[..., mask.visible_index, :]  # [B, V, .], or [depth, heads, B, V, .]
        return kept.transpose(1, 2) if self._rope_by_depth else kept.unsqueeze(-3)

    # -------------------------------------------------------------------------------------------------------- building
    def _usual_patch(self) -> tuple[int, int]:
        """Pixels of a patch of the timm model as it comes."""
        model = skeleton(self.timm)
        if not self.adapts(model):
            raise RecipeError(
                f"'{self.timm}' is a {type(model).__name__}; the backbone 'vit' takes timm's VisionTransformer and Eva",
                key="timm",
            )
        height, width = model.patch_embed.img_size
        rows, columns = model.patch_embed.grid_size
        return height // rows, width // columns

    def _cut(self, usual: tuple[int, int]) -> tuple[tuple[int, int], tuple[int, int]]:
        """The size of the images and of a patch."""
        asked = self.patch_size
        if asked == "auto" and not hasattr(skeleton(self.timm).patch_embed, "backbone"):  # else its stem decides
            self._refuse_no_image()
            if self.image_size is None:
                choice = automatic_patch(self.data_size)
                self.remarks = [choice.told] if choice.told else []
                return choice.size, choice.unit
            patch = pair(asked_patch(pair(self.image_size)))
            return self._sized(patch), patch
        if asked is None or asked == "auto":
            return self._sized(usual, MOST_AUTOMATIC), usual
        patch = pair(asked)
        if min(patch) < 1:
            raise RecipeError(f"must be at least 1 pixel, got {patch[0]} x {patch[1]}", key="patch_size")
        return self._sized(patch, MOST_UNASKED), patch

    def _built(self, size: tuple[int, int], patch: tuple[int, int] | None) -> Any:
        arguments: dict[str, Any] = {"img_size": size}
        if patch is not None:
            arguments["patch_size"] = patch
        distilled = isinstance(skeleton(self.timm), VisionTransformerDistilled)
        if not self.pretrained and not distilled and "global_pool" not in self.options:
            arguments["global_pool"] = ""  # else timm moves the final norm behind a pooling that we never run
        return self._create(OWN_OPTIONS, **arguments)

    def _grid(self) -> tuple[int, int]:
        rows, columns = self.model.patch_embed.grid_size
        return rows, columns

    def _initialise_as_mae(self) -> None:
        for module in self.model.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        embedding = self.model.patch_embed
        if isinstance(getattr(embedding, "proj", None), nn.Conv2d):
            nn.init.xavier_uniform_(embedding.proj.weight.flatten(1))  # as the linear map of a patch that it is
        for name in ("cls_token", "reg_token"):
            token = getattr(self.model, name, None)
            if token is not None:
                nn.init.normal_(token, std=0.02)

    def _place(self) -> None:
        """Positions: MAE's fixed table where asked for, and one for `tokens` where the model adds none to tokens."""
        table = self.model.pos_embed
        if table is None and self.position == "sin-cos":
            raise RecipeError(f"'{self.timm}' adds no positions to its tokens that could be replaced", key="position")
        if table is None:
            self.register_buffer("_position", sin_cos(self.grid, self.token_dim), persistent=False)
            return
        self.register_buffer("_position", None, persistent=False)
        if self.position == "sin-cos":
            with torch.no_grad():
                table.zero_()
                table[:, -math.prod(self.grid) :] = sin_cos(self.grid, self.token_dim)
            table.requires_grad_(False)


def sin_cos(grid: tuple[int, ...], dim: int, key: str = "position") -> Tensor:
    """[N, dim] fixed sin-cos positions of a 2-D grid, as MAE's. Raises RecipeError where 4 does not divide `dim`."""
    if dim % 4 or len(grid) != 2:
        raise RecipeError(f"2-D sin-cos positions need a width divisible by 4, got {dim} on a grid {grid}", key=key)
    table: Tensor = build_sincos2d_pos_embed(list(grid), dim, interleave_sin_cos=True)
    return table.roll(dim // 2, dims=1)  # MAE's table begins with the columns, timm's with the rows


def new_mask_token(dim: int) -> nn.Parameter:
    """[dim], what is learned to stand where a token is hidden; a vector, which optimizers do not decay."""
    return nn.Parameter(nn.init.trunc_normal_(torch.empty(dim), std=0.02))


def with_mask_token(tokens: Tensor, mask: Mask, token: Tensor) -> Tensor:
    """`tokens` [B, N, D] with the hidden ones replaced by `token` [D]; under a soft mask blended by visibility."""
    if mask.visibility is None:
        return mask.cover(tokens, token)
    visibility = mask.visibility[..., None]
    return visibility * tokens + (1 - visibility) * token


@contextmanager
def unfused(attention: nn.Module, seen: list[Tensor]) -> Iterator[None]:
    """Let this module compute its attention explicitly, and append it to `seen`: [B, heads, P + N, P + N]."""
    fused = attention.fused_attn
    handle = attention.attn_drop.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))  # type: ignore[union-attr]
    attention.fused_attn = False  # type: ignore[assignment]
    try:
        yield
    finally:
        attention.fused_attn = fused
        handle.remove()
