"""Any timm BEiT, whose positions are relative, with a learned token in place of what is hidden (2106.08254).

Shapes: B images, N patches, D channels.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from timm.models.beit import Beit
from torch import Tensor, nn

from maskzoo.backbones import skeleton
from maskzoo.backbones.adapter import TimmBackbone, pair
from maskzoo.backbones.sizes import MOST_AUTOMATIC
from maskzoo.backbones.vit import OWN_OPTIONS, new_mask_token, sin_cos, unfused, with_mask_token
from maskzoo.bounds import MOST_UNASKED
from maskzoo.errors import RecipeError
from maskzoo.mask import Mask
from maskzoo.protocols import Need, define


@define
class BeitBackbone(TimmBackbone):
    """A timm BEiT, of the first or second version: hidden patches stay, as a learned mask token in place of each."""

    name: ClassVar[str] = "beit"
    provides: ClassVar[frozenset[Need]] = frozenset({"attention", "features"})

    timm: str = "beit_base_patch16_224"  # name of the timm model
    patch_size: int | tuple[int, int] | None = None  # pixels a side; None: timm's own

    _position: ClassVar[Tensor | None]  # a buffer: positions for `tokens` where the model itself adds none

    def __attrs_post_init__(self) -> None:
        usual = skeleton(self.timm)
        if not self.adapts(usual):
            raise RecipeError(f"'{self.timm}' is a {type(usual).__name__}; the backbone 'beit' takes Beit", key="timm")
        patch = pair(usual.patch_embed.patch_size if self.patch_size is None else self.patch_size)
        if min(patch) < 1:
            raise RecipeError(f"must be at least 1 pixel, got {patch[0]} x {patch[1]}", key="patch_size")
        size = self._sized(patch, MOST_AUTOMATIC if self.patch_size is None else MOST_UNASKED)
        self.model = self._create(OWN_OPTIONS, img_size=size, patch_size=patch)
        if isinstance(self.model.norm, nn.Identity):  # timm's weights end in a norm behind a pooling that we never run
            self.model.norm, self.model.fc_norm = self.model.fc_norm, self.model.norm
        if len(self.model.blocks) == 0:
            raise RecipeError(f"with these options '{self.timm}' has no blocks that could be shown part", key="options")
        self.image_size, self.patch_size = size, patch
        self.grid = size[0] // patch[0], size[1] // patch[1]
        self.prefix = self.model.num_prefix_tokens
        self.dim = self.token_dim = self.model.embed_dim
        position = sin_cos(self.grid, self.token_dim, key="options") if self.model.pos_embed is None else None
        self.register_buffer("_position", position, persistent=False)
        self.mask_token = new_mask_token(self.token_dim)

    @classmethod
    def adapts(cls, model: nn.Module) -> bool:
        """Whether this adapter is the one for such a timm model."""
        return isinstance(model, Beit)

    def forward(self, images: Tensor, mask: Mask | None = None) -> Tensor:
        """The latent [B, 1 + N, D] of images [B, C, H, W], the class token first.

        Hidden pixels are zeroed before anything sees them, so that no gradient can carry them, and the mask token
        takes the place of every hidden patch before positions. Under a soft mask patches are blended with it.
        """
        self._check(images, mask)
        if mask is not None and mask.visibility is None:
            images = self._without_hidden(images, mask)
        tokens, shared = self._embed(images, mask)
        for layer in self.model.blocks:
            tokens = layer(tokens, shared_rel_pos_bias=shared)
        return self.model.norm(tokens)  # type: ignore[no-any-return]

    def tokens(self, images: Tensor) -> Tensor:
        """[B, N, D]: embedded patches plus the model's own absolute position, or a fixed sin-cos one."""
        self._check(images)
        patches = self._embed(images)[0][:, self.prefix :]
        return patches if self._position is None else patches + self._position

    def inspect(self, images: Tensor, block: int = -1) -> tuple[Tensor, Tensor | None]:
        """What a block makes of whole images: features [B, 1 + N, D] and attention [B, heads, 1 + N, 1 + N].

        The last block's features carry the final norm, as the latent does. The attention is what the block's unfused
        module computes, relative positions included.
        """
        self._check(images)
        position = range(len(self.model.blocks))[block]
        seen: list[Tensor] = []
        tokens, shared = self._embed(images)
        for layer in self.model.blocks[:position]:
            tokens = layer(tokens, shared_rel_pos_bias=shared)
        layer = self.model.blocks[position]
        with unfused(layer.attn, seen):
            tokens = layer(tokens, shared_rel_pos_bias=shared)
        features = self.model.norm(tokens) if position == len(self.model.blocks) - 1 else tokens
        return features, seen[0].float()

    def attention(self, images: Tensor) -> Tensor:
        """[B, N] float32: the class token's attention to each patch in the last block, mean over heads."""
        _, attention = self.inspect(images)
        assert attention is not None
        return attention.mean(dim=1)[:, 0, self.prefix :]

    def no_weight_decay(self) -> set[str]:
        """Names of the parameters that timm would not decay, such as positions."""
        names = self.model.no_weight_decay()
        return {f"model.{name}" for name, _ in self.model.named_parameters() if name in names}

    # ------------------------------------------------------------------------------------------------------- the parts
    def _embed(self, images: Tensor, mask: Mask | None = None) -> tuple[Tensor, Tensor | None]:
        """[B, 1 + N, D] tokens, hidden ones replaced, and the relative positions that all blocks share, if they do."""
        patches = self.model.patch_embed(images)
        if mask is not None:
            patches = with_mask_token(patches, mask, self.mask_token)
        tokens = torch.cat([self.model.cls_token.expand(len(images), -1, -1), patches], dim=1)
        if self.model.pos_embed is not None:
            tokens = tokens + self.model.pos_embed
        shared = None if self.model.rel_pos_bias is None else self.model.rel_pos_bias()
        return self.model.pos_drop(tokens), shared
