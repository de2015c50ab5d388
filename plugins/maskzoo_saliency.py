"""Hiding by saliency, for encoders without an attention from one place to every unit: pooled-query attention.

The query is the mean feature of an image, as a global average pooling would hand it to a classifier, and what it asks
is how alike each unit is. No published masker; it is AttMask's idea where a class token does not exist.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor
from torch.nn.functional import normalize

from maskzoo import MaskingContext, RankedStrategy, define, hookimpl


@define
class PooledQuery(RankedStrategy):
    """Rank patches by how much the teacher's features there agree with the image's mean feature, on any backbone."""

    name: ClassVar[str] = "pooled-query"
    needs = frozenset({"teacher", "features"})
    default_curriculum = "adversary"

    def hardness(self, context: MaskingContext) -> Tensor:
        """[B, N]: the cosine of the angle between the teacher's feature of a patch and the mean of them all."""
        assert context.teacher is not None, "declared in needs"
        backbone = context.teacher.backbone
        with torch.no_grad():
            features, _ = backbone.inspect(context.images)  # [B, P + N, D]
        patches = normalize(features[:, backbone.prefix :].float(), dim=2)
        return (patches * patches.mean(dim=1, keepdim=True)).sum(dim=2)


@hookimpl
def maskzoo_strategies() -> list[type]:
    """The one strategy of this file."""
    return [PooledQuery]
