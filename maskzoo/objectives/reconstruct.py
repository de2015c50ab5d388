"""Rebuild the pixels of hidden patches from the visible ones (MAE, arXiv 2111.06377).

Shapes: B images, N patches, V visible, P prefix tokens, D channels of the encoder, E channels of the decoder.
"""

from __future__ import annotations

import math
from functools import partial
from typing import ClassVar

import attrs
import torch
from timm.models.vision_transformer import Block
from torch import Tensor, nn

from maskzoo.backbones.vit import sin_cos
from maskzoo.errors import RecipeError
from maskzoo.mask import Mask
from maskzoo.protocols import Backbone, Need, Objective, Outcome, define


@define
class Reconstruct(nn.Module):
    """Rebuild the pixels of hidden patches with a small transformer decoder, as MAE does."""

    name: ClassVar[str] = "reconstruct"
    provides: ClassVar[frozenset[Need]] = frozenset({"patch_loss"})
    needs: ClassVar[frozenset[Need]] = frozenset()

    decoder_dim: int = attrs.field(default=512, validator=attrs.validators.ge(4))
    decoder_depth: int = attrs.field(default=8, validator=attrs.validators.ge(0))
    decoder_heads: int | None = attrs.field(  # None: about one for each 32 channels, as MAE's 16 for 512
        default=None, validator=attrs.validators.optional(attrs.validators.ge(1))
    )
    mlp_ratio: float = attrs.field(default=4.0, validator=attrs.validators.gt(0))
    norm_pix: bool = True  # the target is each patch normalised by its own mean and variance

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

    def setup(self, backbone: Backbone) -> None:
        """Take the backbone and build the decoder; the names of its parameters are those of published MAE weights."""
        self.backbone = backbone
        norm = partial(nn.LayerNorm, eps=1e-6)
        block = partial(Block, mlp_ratio=self.mlp_ratio, qkv_bias=True, norm_layer=norm)
        pixels = backbone.channels * math.prod(backbone.patch_size)
        if self.norm_pix and pixels == 1:
            raise RecipeError("a patch of a single value has no contrast to normalise by", key="norm_pix")
        self.decoder_embed = nn.Linear(backbone.dim, self.decoder_dim)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, self.decoder_dim))
        self.decoder_blocks = nn.ModuleList(
            block(self.decoder_dim, self.decoder_heads) for _ in range(self.decoder_depth)
        )
        self.decoder_norm = norm(self.decoder_dim)
        self.decoder_pred = nn.Linear(self.decoder_dim, pixels)
        prefix = torch.zeros(backbone.prefix, self.decoder_dim)  # prefix tokens have no place in the image
        self.register_buffer(
            "decoder_pos_embed", torch.cat([prefix, sin_cos(tuple(backbone.grid), self.decoder_dim)])[None]
        )
        nn.init.normal_(self.mask_token, std=0.02)
        for layer in (self.decoder_embed, self.decoder_blocks, self.decoder_pred):
            layer.apply(_initialise)

    def forward(
        self, images: Tensor, mask: Mask, labels: Tensor | None = None, teacher: Objective | None = None
    ) -> Outcome:
        """Encode what is visible, rebuild all patches, and score them by the mask's weights.

        `prediction` is [B, N, patch pixels * C], pixels in the order row, column, channel. Under a soft mask all N
        patches come from the encoder, and no mask token is used.
        """
        latent = self.backbone(images, mask)
        tokens = self.decoder_embed(latent)  # [B, P + V or N, E]
        prefix, patches = tokens[:, : self.backbone.prefix], tokens[:, self.backbone.prefix :]
        whole = torch.cat([prefix, mask.restore(patches, self.mask_token)], dim=1)  # [B, P + N, E]
        decoder_input = whole + self.decoder_pos_embed
        decoded = decoder_input
        for block in self.decoder_blocks:
            decoded = block(decoded)
        prediction = self.decoder_pred(self.decoder_norm(decoded))[:, self.backbone.prefix :].float()
        patch_loss = (prediction - self.target(images)).square().mean(dim=2)  # [B, N]
        return Outcome(
            loss=mask.mean(patch_loss),
            latent=latent,
            patch_loss=patch_loss,
            decoder_input=decoder_input,
            prediction=prediction,
        )

    def target(self, images: Tensor) -> Tensor:
        """[B, N, patch pixels * C] float32: what the prediction is compared with."""
        patches = patchify(images.float(), self.backbone.patch_size)
        if not self.norm_pix:
            return patches
        mean, deviation = _moments(patches)
        return (patches - mean) / deviation

    def picture(self, images: Tensor, mask: Mask) -> tuple[Tensor, str]:
        """[B, C, H, W]: the images with their hidden patches rebuilt, and a word of warning if there is need of one."""
        prediction = self(images, mask).prediction
        patches = patchify(images.float(), self.backbone.patch_size)
        note = ""
        if self.norm_pix:
            mean, deviation = _moments(patches)
            prediction = prediction * deviation + mean
            note = "rebuilt patches borrow their true mean and contrast, which the model does not predict (norm_pix)"
        rebuilt = unpatchify(mask.cover(patches, prediction), self.backbone.grid, self.backbone.patch_size)
        return rebuilt, note


def patchify(images: Tensor, patch: tuple[int, ...]) -> Tensor:
    """Images [B, C, H, W] as patches [B, N, h * w * C], pixels in the order row, column, channel."""
    height, width = patch
    batch, channels, rows, columns = images.shape
    cut = images.reshape(batch, channels, rows // height, height, columns // width, width)
    return cut.permute(0, 2, 4, 3, 5, 1).reshape(batch, -1, height * width * channels)


def unpatchify(patches: Tensor, grid: tuple[int, ...], patch: tuple[int, ...]) -> Tensor:
    """The inverse of `patchify`: patches [B, N, h * w * C] on a grid as images [B, C, H, W]."""
    (rows, columns), (height, width) = grid, patch
    cut = patches.reshape(patches.shape[0], rows, columns, height, width, -1)
    return cut.permute(0, 5, 1, 3, 2, 4).reshape(patches.shape[0], -1, rows * height, columns * width)


def _moments(patches: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of each patch, [B, N, 1] each, as MAE takes them (unbiased, plus 1e-6)."""
    return patches.mean(dim=2, keepdim=True), (patches.var(dim=2, keepdim=True) + 1e-6).sqrt()


def _initialise(module: nn.Module) -> None:
    if isinstance(module, nn.Linear):
        nn.init.xavier_uniform_(module.weight)
        nn.init.zeros_(module.bias)
