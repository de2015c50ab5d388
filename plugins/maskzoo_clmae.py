"""A learnable masker that turns from partner to adversary (CL-MAE, WACV 2024).

Shapes: B images, N patches, D channels of the encoder's tokens.
"""

from __future__ import annotations

import math
from functools import partial
from typing import ClassVar, Literal

import attrs
import torch
from timm.models.vision_transformer import Block
from torch import Tensor, nn

from maskzoo import Mask, MaskingContext, Objective, Outcome, Strategy, define, hookimpl

DIVERSITY_SCALE = 0.1  # of the distance between two masks
PDIST_DEVICES = ("cpu", "cuda", "meta", "xpu")  # torch has pdist for no other


@define
class CLMAE(Strategy):
    """A small transformer learns which patches to hide: first those that help the model, in the end those that harm it.

    Its loss is the model's reconstruction loss times the curriculum factor, plus a term that makes its chances binary,
    one that keeps the ratio, and one that keeps the masks of different images apart.
    """

    name: ClassVar[str] = "clmae"
    paper: ClassVar[str] = "Madan et al., CL-MAE: Curriculum-Learned Masked Autoencoders, arXiv 2308.16572, WACV 2024"
    needs = frozenset({"patch_loss"})
    learning = "alternate"
    default_curriculum = "partner-neutral-adversary"

    # transformer blocks of the masker
    depth: int = attrs.field(default=5, validator=[attrs.validators.ge(0), attrs.validators.le(1000)])
    # attention heads of the masker
    heads: int = attrs.field(default=4, validator=[attrs.validators.ge(1), attrs.validators.le(65_536)])
    # width of its MLPs over that of its tokens
    mlp_ratio: float = attrs.field(default=4.0, validator=[attrs.validators.gt(0), attrs.validators.le(1000)])
    # weight of the loss that makes chances binary
    binary_weight: float = attrs.field(default=1.0, validator=attrs.validators.ge(0))
    binary_width: float = attrs.field(default=0.12, validator=attrs.validators.gt(0))  # sigma about a chance of 1/2
    # weight of the loss that keeps the share of hidden patches at the ratio
    kl_weight: float = attrs.field(default=0.1, validator=attrs.validators.ge(0))
    kl_reduction: Literal["sum", "mean"] = "sum"  # over the batch; the published code sums
    # weight of the loss that makes masks differ from image to image
    diversity_weight: float = attrs.field(default=2.0, validator=attrs.validators.ge(0))

    def setup(self, objective: Objective) -> None:
        """Build the network; the names of its parameters are those of published weights."""
        dim, patches = objective.backbone.token_dim, math.prod(objective.backbone.grid)
        if dim % self.heads:
            raise ValueError(f"{self.heads} heads do not divide the {dim} channels of the encoder's tokens")
        norm = partial(nn.LayerNorm, eps=1e-5)
        self.cls_token = nn.Parameter(torch.empty(1, 1, dim).normal_(std=0.02))
        self.blocks = nn.ModuleList(
            Block(dim, self.heads, mlp_ratio=self.mlp_ratio, qkv_bias=True, norm_layer=norm) for _ in range(self.depth)
        )
        self.mlp_head = nn.Sequential(norm(dim), nn.Linear(dim, patches))
        for layer in self.modules():
            if isinstance(layer, nn.Linear):
                nn.init.xavier_uniform_(layer.weight)
                nn.init.zeros_(layer.bias)

    def scores(self, context: MaskingContext) -> Tensor:
        """[B, N] float32: the chance of hiding each patch; all are near 1/2 before training."""
        with torch.no_grad():  # the tokens are the model's; the masker learns behind them
            tokens = context.student.backbone.tokens(context.images)
        tokens = torch.cat([self.cls_token.expand(len(tokens), -1, -1), tokens], dim=1)
        for block in self.blocks:
            tokens = block(tokens)
        logits: Tensor = self.mlp_head(tokens[:, 0])  # of keeping
        return torch.sigmoid(-logits.float())

    def terms(self, context: MaskingContext, mask: Mask, outcome: Outcome) -> dict[str, Tensor]:
        """The four terms of the loss [], weighted, the reconstruction not yet multiplied by the factor."""
        assert mask.visibility is not None, "a learner's own step has a soft mask"
        keep = context.gather(mask.visibility)
        patch = 1.0 / context.patches  # a moving ratio may begin at nothing, of which there is no logarithm
        target = min(max(1.0 - context.ratio, patch), 1.0 - patch)
        return {
            "reconstruction": outcome.loss,
            "binary": self.binary_weight * binary_loss(keep, self.binary_width),
            "kl": self.kl_weight * kl_loss(keep, target, self.kl_reduction),
            "diversity": self.diversity_weight * diversity_loss(keep),
        }

    def loss(self, context: MaskingContext, mask: Mask, outcome: Outcome) -> Tensor:
        """factor * reconstruction + binary + kl + diversity; the terms are logged."""
        terms = self.terms(context, mask, outcome)
        outcome.metrics |= {name: term.detach() for name, term in terms.items()}
        return context.factor * terms["reconstruction"] + terms["binary"] + terms["kl"] + terms["diversity"]


def binary_loss(keep: Tensor, width: float) -> Tensor:
    """Mean of a Gaussian bump about 1/2, of the given width, over chances [B, N]: undecided patches cost most.

    The bump is divided by its normal density's peak, as published, so that at 1/2 it is width * sqrt(2 pi): 0.3008.
    """
    bump = torch.exp(-((keep - 0.5) ** 2) / (2 * width**2))
    return bump.mean() * width * math.sqrt(2 * math.pi)


def kl_loss(keep: Tensor, target: float, reduction: Literal["sum", "mean"]) -> Tensor:
    """KL divergence between each image's mean chance of keeping, of [B, N], and the target share."""
    share = keep.mean(dim=1).clamp(1e-6, 1 - 1e-6)
    divergence = share * torch.log(share / target) + (1 - share) * torch.log((1 - share) / (1 - target))
    return divergence.sum() if reduction == "sum" else divergence.mean()


def diversity_loss(keep: Tensor) -> Tensor:
    """Mean over pairs of images of exp(-0.1 * distance) between their chances [B, N]; zero for a single image."""
    if len(keep) < 2:
        return keep.new_zeros(())
    # pdist's gradient is zero between identical rows, where that of a root of squares is not a number.
    there = keep.float() if keep.device.type in PDIST_DEVICES else keep.float().cpu()
    return torch.exp(-DIVERSITY_SCALE * torch.pdist(there)).mean().to(keep.device)


@hookimpl
def maskzoo_strategies() -> list[type]:
    """The one strategy of this file."""
    return [CLMAE]
