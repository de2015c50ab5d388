"""Random masking (MAE, CVPR 2022)."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor

from maskzoo import MaskingContext, Strategy, define, hookimpl


@define
class Random(Strategy):
    """Hide patches drawn uniformly at random, anew for every image."""

    name: ClassVar[str] = "random"
    paper: ClassVar[str] = "He et al., Masked Autoencoders Are Scalable Vision Learners, arXiv 2111.06377, CVPR 2022"

    def scores(self, context: MaskingContext) -> Tensor:
        """Noise [B, N]."""
        return context.noise()


@hookimpl
def maskzoo_strategies() -> list[type]:
    """Random masking."""
    return [Random]
