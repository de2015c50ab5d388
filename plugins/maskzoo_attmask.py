"""Attention-guided masking (AttMask, ECCV 2022)."""

from __future__ import annotations

from typing import ClassVar

import attrs
import torch
from torch import Tensor

from maskzoo import Mask, MaskingContext, RankedStrategy, checked_scores, define, hookimpl, rounded_down


@define
class AttMask(RankedStrategy):
    """Rank patches by the teacher's attention: an adversary hides what it looks at most, a partner the least.

    AttMask-High is the curriculum `adversary`, AttMask-Low is `partner`. With `hints`, an adversary shows a share of
    the most attended patches again, as AttMask-Hint does, and the count stays exact.
    """

    name: ClassVar[str] = "attmask"
    paper: ClassVar[str] = (
        "Kakogeorgiou et al., What to Hide from Your Students: Attention-Guided Masked Image Modeling, "
        "arXiv 2203.12719, ECCV 2022"
    )
    needs = frozenset({"teacher", "attention"})
    default_curriculum = "adversary"

    hints: float = attrs.field(  # share of all patches, the most attended, among which hints are drawn; the paper's 0.1
        default=0.0, validator=[attrs.validators.ge(0.0), attrs.validators.lt(1.0)]
    )

    def count(self, ratio: float, patches: int) -> int:
        """floor(N * ratio), as the published code rounds."""
        return rounded_down(patches * ratio)

    def hardness(self, context: MaskingContext) -> Tensor:
        """[B, N]: the attention of the teacher's last block to each patch."""
        assert context.teacher is not None, "declared in needs"
        with torch.no_grad():
            return context.teacher.backbone.attention(context.images)

    def scores(self, context: MaskingContext) -> Tensor:
        """[B, N]: by rank, with the hints below everything else, so that others are hidden in their place."""
        revealed = rounded_down(self.hints * context.ratio * context.patches)
        if revealed == 0 or context.factor >= 0:  # hints soften an adversary; a neutral stays uniform
            return super().scores(context)
        attention = checked_scores(self, self.hardness(context), context)
        eligible = rounded_down(self.hints * context.patches)
        most = Mask.hide_top(attention, eligible, ties=context.noise(name="hint ties"))
        drawn = Mask.hide_top(context.noise(name="hints") + most.hidden, revealed)
        # Out of the ranking, so that the next in rank are hidden in their place, and below all noise.
        scores = self.ranked(context, attention.masked_fill(drawn.hidden, torch.finfo(torch.float32).min))
        return scores.masked_fill(drawn.hidden, -1.0)


@hookimpl
def maskzoo_strategies() -> list[type]:
    """The one strategy of this file."""
    return [AttMask]
