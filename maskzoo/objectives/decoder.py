"""The transformer decoder of objectives that foretell something of every hidden patch.

Shapes: B images, N patches, V visible, P prefix tokens, D channels of the encoder, E channels of the decoder, T values
foretold of a patch.
"""

from __future__ import annotations

from functools import partial
from typing import ClassVar

import attrs
import torch
from timm.models.vision_transformer import Block
from torch import Tensor, nn

from maskzoo.backbones.vit import sin_cos
from maskzoo.bounds import MOST_BLOCKS, MOST_WIDTH, between, refuse_beyond_memory
from maskzoo.errors import RecipeError
from maskzoo.mask import Mask
from maskzoo.protocols import Backbone, Need, define


@define
class DecodingObjective(nn.Module):
    """Subclass this for an objective with MAE's decoder: call `_build_decoder` in `setup`, and `_decode`."""

    name: ClassVar[str]
    provides: ClassVar[frozenset[Need]] = frozenset({"patch_loss"})
    needs: ClassVar[frozenset[Need]] = frozenset()
    default_ratio: ClassVar[float] = 0.75
    least_hidden: ClassVar[int] = 1  # a patch to rebuild

    # width of the decoder, a multiple of 4
    decoder_dim: int = attrs.field(default=512, validator=between(4, MOST_WIDTH))
    decoder_depth: int = attrs.field(default=8, validator=between(0, MOST_BLOCKS))  # transformer blocks of the decoder
    decoder_heads: int | None = attrs.field(  # None: about one for each 32 channels, as MAE's 16 for 512
        default=None, validator=attrs.validators.optional(between(1, MOST_WIDTH))
    )
    # width of the decoder's MLPs over its own
    mlp_ratio: float = attrs.field(default=4.0, validator=between(1 / 1000, 1000))

    backbone: ClassVar[Backbone]  # a module
    mask_token: ClassVar[nn.Parameter | None]
    decoder_pos_embed: ClassVar[Tensor]  # a buffer

    def __attrs_pre_init__(self) -> None:
        super().__init__()

    def __attrs_post_init__(self) -> None:
        if self.decoder_dim % 4:
            raise RecipeError(f"sin-cos positions need a multiple of 4, got {self.decoder_dim}", key="decoder_dim")
        if self.decoder_heads is None:
            most = max(1, self.decoder_dim // 32)
            self.decoder_heads = next(heads for heads in range(most, 0, -1) if self.decoder_dim % heads == 0)
        if self.decoder_dim % self.decoder_heads:
            raise RecipeError(
                f"{self.decoder_heads} heads do not divide the decoder's {self.decoder_dim} channels",
                key="decoder_heads",
            )

    def predict(self, images: Tensor) -> None:
        """It foretells no class."""
        return

    def _build_decoder(self, backbone: Backbone, values: int) -> None:
        """Build the decoder to `values` (T) a patch; the names of its parameters are those of published MAE weights."""
        each = (4 + 2 * self.mlp_ratio) * self.decoder_dim**2
        refuse_beyond_memory(self.decoder_depth * each, "this decoder", "decoder_dim")
        norm = partial(nn.LayerNorm, eps=1e-6)
        block = partial(Block, mlp_ratio=self.mlp_ratio, qkv_bias=True, norm_layer=norm)
        self.decoder_embed = nn.Linear(backbone.dim, self.decoder_dim)
        # A dense encoder leaves no gap to fill, and a parameter without a part in the loss would hold up DDP.
        token = None if backbone.dense else nn.Parameter(torch.zeros(1, 1, self.decoder_dim))
        self.register_parameter("mask_token", token)
        self.decoder_blocks = nn.ModuleList(
            block(self.decoder_dim, self.decoder_heads) for _ in range(self.decoder_depth)
        )
        self.decoder_norm = norm(self.decoder_dim)
        self.decoder_pred = nn.Linear(self.decoder_dim, values)
        prefix = torch.zeros(backbone.prefix, self.decoder_dim)  # prefix tokens have no place in the image
        self.register_buffer(
            "decoder_pos_embed", torch.cat([prefix, sin_cos(tuple(backbone.grid), self.decoder_dim)])[None]
        )
        if token is not None:
            nn.init.normal_(token, std=0.02)
        for layer in (self.decoder_embed, self.decoder_blocks, self.decoder_pred):
            layer.apply(initialise)

    def _decode(self, latent: Tensor, mask: Mask) -> tuple[Tensor, Tensor]:
        """The decoder's input [B, P + N, E], and what it foretells of all patches [B, N, T] float32.

        The latent is [B, P + V, D], or [B, P + N, D] of a dense encoder or under a soft mask, where no mask token is
        used.
        """
        tokens = self.decoder_embed(latent)  # [B, P + V or N, E]
        prefix, patches = tokens[:, : self.backbone.prefix], tokens[:, self.backbone.prefix :]
        if self.mask_token is not None:
            patches = mask.restore(patches, self.mask_token)
        decoder_input = torch.cat([prefix, patches], dim=1) + self.decoder_pos_embed  # [B, P + N, E]
        decoded = decoder_input
        for block in self.decoder_blocks:
            decoded = block(decoded)
        prediction = self.decoder_pred(self.decoder_norm(decoded))[:, self.backbone.prefix :]
        return decoder_input, prediction.float()


def initialise(module: nn.Module) -> None:
    """Initial weights of linear maps as MAE draws them."""
    if isinstance(module, nn.Linear):
        nn.init.xavier_uniform_(module.weight)
        nn.init.zeros_(module.bias)
