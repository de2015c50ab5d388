"""Any timm Swin transformer, V1 or V2, with a learned token in place of what is hidden, as in SimMIM (2111.09886).

Shapes: B images, N mask units (one position of the last stage each), D channels, h x w tokens of the first stage.
"""

from __future__ import annotations

from typing import Any, ClassVar

import attrs
from timm.models.swin_transformer import SwinTransformer
from timm.models.swin_transformer_v2 import SwinTransformerV2
from torch import Tensor, nn

from maskzoo.backbones import skeleton
from maskzoo.backbones.adapter import NOT_HERE, TimmBackbone, by_unit, pair
from maskzoo.backbones.vit import new_mask_token, sin_cos, with_mask_token
from maskzoo.errors import RecipeError
from maskzoo.mask import Mask
from maskzoo.protocols import define

OWN_OPTIONS = {
    **NOT_HERE,
    "img_size": "image_size is an option of the backbone itself",
    "window_size": "it is an option of the backbone itself",
}


@define
class SwinBackbone(TimmBackbone):
    """A timm Swin transformer, V1 or V2: hidden units stay, as a learned mask token in place of each of their tokens.

    A mask unit is as large as a position of the last stage: 32 pixels for patches of 4 and four stages.
    """

    name: ClassVar[str] = "swin"

    timm: str = "swin_tiny_patch4_window7_224"  # name of the timm model
    window_size: int | None = attrs.field(  # tokens a side; None: windows keep their share of timm's own grid
        default=None, validator=attrs.validators.optional(attrs.validators.ge(1))
    )

    _position: ClassVar[Tensor]  # a buffer: positions for `tokens`, since the model itself adds none

    def __attrs_post_init__(self) -> None:
        usual = skeleton(self.timm)
        if not self.adapts(usual):
            raise RecipeError(
                f"'{self.timm}' is a {type(usual).__name__}; the backbone 'swin' takes timm's SwinTransformer and "
                "SwinTransformerV2",
                key="timm",
            )
        patch, stages = self._patch_and_stages(usual)
        unit = patch[0] * 2 ** (stages - 1), patch[1] * 2 ** (stages - 1)
        size = self._sized(unit)
        grid = size[0] // patch[0], size[1] // patch[1]
        self.model = self._create(OWN_OPTIONS, img_size=size, window_size=self._windows(usual, grid, stages))
        self.image_size, self.patch_size = size, unit
        self.grid = size[0] // unit[0], size[1] // unit[1]
        self.token_dim = self.model.feature_info[0]["num_chs"]
        self.dim = self.model.num_features
        self.register_buffer("_position", sin_cos(self.grid, self.token_dim, key="options"), persistent=False)
        self.mask_token = new_mask_token(self.token_dim)

    @classmethod
    def adapts(cls, model: nn.Module) -> bool:
        """Whether this adapter is the one for such a timm model."""
        return isinstance(model, SwinTransformer | SwinTransformerV2)

    def forward(self, images: Tensor, mask: Mask | None = None) -> Tensor:
        """The latent [B, N, D] of images [B, C, H, W]: the last stage after the final norm.

        Hidden pixels are zeroed before anything sees them, so that no gradient can carry them, and the mask token
        takes the place of every hidden token after the patch embedding. Under a soft mask tokens are blended with it.
        """
        self._check(images, mask)
        if mask is None:
            latent: Tensor = self.model.forward_features(images)
        else:
            latent = self.model.norm(self.model.layers(self._embed(images, mask)))
        return latent.flatten(1, 2)

    def tokens(self, images: Tensor) -> Tensor:
        """[B, N, token_dim]: the mean of a unit's embedded tokens, plus a fixed sin-cos position."""
        self._check(images)
        return by_unit(self.model.patch_embed(images), self.grid).mean(dim=2) + self._position

    def no_weight_decay(self) -> set[str]:
        """Names of the parameters that timm would not decay, such as relative positions."""
        names = self.model.no_weight_decay()
        return {f"model.{name}" for name, _ in self.model.named_parameters() if name in names}

    # ------------------------------------------------------------------------------------------------------- the parts
    def _embed(self, images: Tensor, mask: Mask) -> Tensor:
        """[B, h, w, token_dim]: embedded tokens, those of hidden units replaced."""
        if mask.visibility is None:
            images = self._without_hidden(images, mask)
        embedded = self.model.patch_embed(images)
        factors = [side // units for side, units in zip(embedded.shape[1:3], self.grid, strict=True)]
        tokens = with_mask_token(embedded.flatten(1, 2), mask.enlarge(self.grid, factors), self.mask_token)
        return tokens.view(embedded.shape)

    # -------------------------------------------------------------------------------------------------------- building
    def _patch_and_stages(self, usual: Any) -> tuple[tuple[int, int], int]:
        """Pixels of a patch and the number of stages, of the timm model as it comes or as `options` change it."""
        patch = self.options.get("patch_size", usual.patch_embed.patch_size)
        depths = self.options.get("depths", [len(stage.blocks) for stage in usual.layers])
        sides = [patch, patch] if isinstance(patch, int) else patch
        for name, numbers, length in (("patch_size", sides, 2), ("depths", depths, None)):
            listed = isinstance(numbers, list | tuple) and len(numbers) == (length or len(numbers) or 1)
            if not listed or any(not isinstance(number, int) or number < 1 for number in numbers):
                raise RecipeError(f"{name} takes positive whole numbers, got {self.options[name]!r}", key="options")
        return (sides[0], sides[1]), len(depths)

    def _windows(self, usual: Any, grid: tuple[int, int], stages: int) -> int | list[tuple[int, int]]:
        """Tokens of a window: what was asked for, or of each stage the share of the grid that it has in timm's own.

        That is what timm's `set_input_size` makes of them. Building them at once spares the weights an interpolation.
        """
        if self.window_size is not None:
            return self.window_size
        rows, columns = pair(usual.patch_embed.grid_size)
        windows = [stage.blocks[0].window_size for stage in usual.layers[:stages]]
        return [(max(1, high * grid[0] // rows), max(1, wide * grid[1] // columns)) for high, wide in windows]
