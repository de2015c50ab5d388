"""Any timm Hiera, shown its visible mask units alone (arXiv 2306.00989).

Shapes: B images, N mask units (one token of the last stage each), V visible, t tokens of a unit, D channels.
"""

from __future__ import annotations

import math
from typing import Any, ClassVar

from timm.models.hiera import Hiera
from torch import Tensor, nn

from maskzoo.backbones import skeleton
from maskzoo.backbones.adapter import NOT_HERE, TimmBackbone, by_unit
from maskzoo.errors import RecipeError
from maskzoo.mask import Mask
from maskzoo.protocols import define

ONE_TOKEN = "a mask unit is one token of the last stage, as timm builds it"
OWN_OPTIONS = {
    **NOT_HERE,
    "img_size": "image_size is an option of the backbone itself",
    "q_pool": ONE_TOKEN,
    "q_stride": ONE_TOKEN,
    "mask_unit_size": ONE_TOKEN,
    "sep_pos_embed": "it is for video",
}


@define
class HieraBackbone(TimmBackbone):
    """A timm Hiera: hidden mask units are dropped.

    Under a hard mask the pixels of hidden units are zeroed, since the patch embedding overlaps, and their tokens are
    dropped after the position is added; the mask must hide equally many units of each image. Under a soft mask every
    unit goes in, its tokens scaled by its visibility after the position is added.
    """

    name: ClassVar[str] = "hiera"
    dense: ClassVar[bool] = False

    timm: str = "hiera_tiny_224"  # name of the timm model

    def __attrs_post_init__(self) -> None:
        usual = skeleton(self.timm)
        if not self.adapts(usual):
            raise RecipeError(
                f"'{self.timm}' is a {type(usual).__name__}; the backbone 'hiera' takes timm's Hiera", key="timm"
            )
        unit = self._unit(usual)
        size = self._sized(unit)
        self.model = self._create(OWN_OPTIONS, img_size=size)
        if self._unit(self.model) != unit or self.model.q_pool != len(self.model.stage_ends) - 1:
            raise RecipeError(f"with these options '{self.timm}' has other mask units; {ONE_TOKEN}", key="options")
        self.image_size, self.patch_size = size, unit
        self.grid = size[0] // unit[0], size[1] // unit[1]
        self.token_dim = self.model.blocks[0].dim
        self.dim = self.model.num_features
        tokens = [math.prod(self.model.mask_unit_size) // math.prod(self.model.q_stride) ** i for i in range(4)]
        widths = [self.model.blocks[end].dim_out for end in self.model.stage_ends]
        self.stage_dims = tuple(  # type: ignore[misc]
            count * width for count, width in zip(tokens, widths, strict=True)
        )

    @classmethod
    def adapts(cls, model: nn.Module) -> bool:
        """Whether this adapter is the one for such a timm model."""
        return isinstance(model, Hiera)

    def forward(self, images: Tensor, mask: Mask | None = None) -> Tensor:
        """The latent of images [B, C, H, W] after the final norm: [B, V, D] under a hard mask, else [B, N, D]."""
        tokens = self._embed(images, mask)
        for block in self.model.blocks:
            tokens = block(tokens)
        return self.model.head.norm(tokens)  # type: ignore[no-any-return]

    def stages(self, images: Tensor, mask: Mask | None = None) -> list[Tensor]:
        """What each stage makes of each unit, [B, V or N, t * D], the last one after the final norm: the latent.

        A unit's tokens, 64, 16, 4 and 1 of them, follow each other along its rows.
        """
        tokens = self._embed(images, mask)
        ends: list[Tensor] = []
        for number, block in enumerate(self.model.blocks):
            tokens = block(tokens)
            if number in self.model.stage_ends:
                by_row = self.model.reroll(tokens, number, mask=True)  # [B, V or N, h, w, D]; timm: any mask, by unit
                ends.append(by_row.flatten(2))
        return [*ends[:-1], self.model.head.norm(ends[-1])]

    def tokens(self, images: Tensor) -> Tensor:
        """[B, N, token_dim]: the mean of a unit's embedded tokens plus position."""
        return by_unit(self._placed(images), self.grid).mean(dim=2)

    def no_weight_decay(self) -> set[str]:
        """The positions; timm's own list leaves out some and stumbles over others."""
        return {f"model.{name}" for name, _ in self.model.named_parameters() if name.startswith("pos_embed")}

    # ------------------------------------------------------------------------------------------------------- the parts
    def _placed(self, images: Tensor) -> Tensor:
        """[B, h, w, D]: embedded tokens plus position."""
        self._check(images)
        tokens = self.model._pos_embed(self.model.patch_embed(images))
        return tokens.unflatten(1, tuple(self.model.tokens_spatial_shape))  # type: ignore[no-any-return]

    def _embed(self, images: Tensor, mask: Mask | None) -> Tensor:
        """What the first block sees, [B, t * V or t * N, D], in timm's order: all first tokens of the units, then all
        second ones, and so on, so that pooling is over whole stretches.
        """
        if mask is not None:
            self._check(images, mask)
        if mask is None or mask.visibility is not None:
            tokens = self._placed(images)
            if mask is not None:
                finer = mask.enlarge(self.grid, self.model.mask_unit_size)
                tokens = tokens * finer.visibility.view(*tokens.shape[:3], 1)  # type: ignore[union-attr]
            return self.model.unroll(tokens.flatten(1, 2))  # type: ignore[no-any-return]
        tokens = self.model.unroll(self._placed(self._without_hidden(images, mask)).flatten(1, 2))
        by_place = tokens.unflatten(1, (self.model.mu_size, -1))  # [B, t, N, D]
        return mask.keep(by_place.transpose(1, 2)).transpose(1, 2).flatten(1, 2)

    # -------------------------------------------------------------------------------------------------------- building
    @staticmethod
    def _unit(model: Any) -> tuple[int, int]:
        """Pixels of a mask unit."""
        height, width = (
            stride * tokens for stride, tokens in zip(model.patch_stride, model.mask_unit_size, strict=True)
        )
        return height, width
