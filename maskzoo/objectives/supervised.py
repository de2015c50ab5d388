"""Learning from labels: from what a mask leaves of an image, or with a masked view beside the whole one (MaskSub).

Shapes: B images, C channels, H height, W width, N patches, V visible, P prefix tokens, D channels of the latent,
K classes.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import ClassVar, Literal

import attrs
import torch
from timm.data import Mixup
from timm.data.mixup import mixup_target
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy
from torch.nn.modules.batchnorm import _BatchNorm

from maskzoo.bounds import MOST_CLASSES, between
from maskzoo.errors import ContractError, RecipeError
from maskzoo.mask import Mask
from maskzoo.protocols import Backbone, Need, Objective, Outcome, define
from maskzoo.seeds import numpy_seeded, stream_seed

a_share = [attrs.validators.ge(0.0), attrs.validators.le(1.0)]


@define
class Classify(nn.Module):
    """Tell the class of an image from what the mask leaves of it; at ratio 0 that is plain supervised training."""

    name: ClassVar[str] = "classify"
    provides: ClassVar[frozenset[Need]] = frozenset()
    needs: ClassVar[frozenset[Need]] = frozenset({"labels"})
    default_ratio: ClassVar[float] = 0.5
    least_hidden: ClassVar[int] = 0

    loss: Literal["cross-entropy", "binary"] = "cross-entropy"  # "binary": each class for itself, as DeiT III and RSB
    smoothing: float = attrs.field(default=0.0, validator=a_share)  # of the labels
    mixup: float = attrs.field(default=0.0, validator=between(0, 1000))  # alpha of timm's; 0: none
    cutmix: float = attrs.field(default=0.0, validator=between(0, 1000))  # alpha of timm's; 0: none
    mix_probability: float = attrs.field(default=1.0, validator=a_share)  # that a batch is mixed at all
    cutmix_probability: float = attrs.field(default=0.5, validator=a_share)  # that it is cutmix, where both are on
    pooling: Literal["mean", "class"] = "mean"  # of the visible patches, or the class token
    classes: int = attrs.field(default=0, validator=between(0, MOST_CLASSES))  # a run takes it from its data

    def __attrs_pre_init__(self) -> None:
        super().__init__()

    def __attrs_post_init__(self) -> None:
        if self.loss == "binary" and self.smoothing:
            raise RecipeError(
                "the binary loss takes every class with a share of the label for true, so its labels cannot be "
                "smoothed; leave it at 0",
                key="smoothing",
            )

    def setup(self, backbone: Backbone) -> None:
        """Take the backbone and build the classifier on top."""
        if self.classes == 0:
            raise RecipeError("it needs labels, and the data have none", key="classes")
        if self.pooling == "class" and backbone.prefix == 0:
            raise RecipeError("this backbone has no class token; 'mean' takes its patches", key="pooling")
        self.backbone = backbone
        self.head = nn.Linear(backbone.dim, self.classes)
        nn.init.trunc_normal_(self.head.weight, std=0.02)
        nn.init.zeros_(self.head.bias)

    def forward(
        self, images: Tensor, mask: Mask, labels: Tensor | None = None, teacher: Objective | None = None
    ) -> Outcome:
        """The loss of the labels [B], foretold from the masked images [B, C, H, W].

        In training mode the batch is mixed, if the options say so, before anything is hidden.
        """
        images, target = self._mixed(images, labels)
        latent = self.backbone(images, mask)
        logits = self._logits(latent)
        return Outcome(loss=self._main_loss(logits, target), latent=latent, metrics=self._accuracy(logits, target))

    def predict(self, images: Tensor) -> Tensor:
        """Scores of the classes [B, K] float32 of whole images [B, C, H, W]."""
        return self._logits(self.backbone(images))

    def picture(self, images: Tensor, mask: Mask) -> None:
        """Nothing is rebuilt."""
        return

    # ------------------------------------------------------------------------------------------------------- the parts
    def _logits(self, latent: Tensor) -> Tensor:
        """[B, K] float32 of a latent [B, P + V or N, D]."""
        pooled = latent[:, 0] if self.pooling == "class" else latent[:, self.backbone.prefix :].mean(dim=1)
        logits: Tensor = self.head(pooled)
        return logits.float()

    def _mixed(self, images: Tensor, labels: Tensor | None) -> tuple[Tensor, Tensor]:
        """The images, mixed by timm's mixup or cutmix in training mode, and the share of each class in them [B, K]."""
        if labels is None:
            raise ContractError(f"objective '{self.name}' needs labels [B], and there are none")
        if not self.training or not (self.mixup or self.cutmix):
            smoothing = self.smoothing if self.training else 0.0
            return images, mixup_target(labels, self.classes, 1.0, smoothing)
        if len(images) % 2:
            raise ContractError(
                f"mixup and cutmix mix the images of a batch in pairs, and {len(images)} are not even; choose another "
                "recipe.train.batch_size or accumulate"
            )
        mix = Mixup(
            mixup_alpha=self.mixup,
            cutmix_alpha=self.cutmix,
            prob=self.mix_probability,
            switch_prob=self.cutmix_probability,
            label_smoothing=self.smoothing,
            num_classes=self.classes,
        )
        # timm draws from numpy's generator; torch's was seeded for this very batch.
        with numpy_seeded(stream_seed(torch.initial_seed(), "mixup")):
            mixed, target = mix(images.clone(), labels)  # in place, and a strategy may look at the images again
        return mixed, target

    def _main_loss(self, logits: Tensor, target: Tensor) -> Tensor:
        """The recipe's own loss [] of logits [B, K] and the share of each class in the image [B, K]."""
        if self.loss == "binary":
            return binary_cross_entropy_with_logits(logits, (target > 0).to(logits.dtype))
        return cross_entropy(logits, target)

    @staticmethod
    def _accuracy(logits: Tensor, target: Tensor) -> dict[str, Tensor]:
        """The share of images of which the likeliest class is that of the larger part of the image."""
        return {"accuracy": (logits.argmax(dim=1) == target.argmax(dim=1)).float().mean()}


@define
class MaskSub(Classify):
    """Learn from the whole image by its label, and from a masked view by what was said of the whole one (MaskSub)."""

    name: ClassVar[str] = "masksub"
    paper: ClassVar[str] = (
        "Heo et al., Masking meets Supervision: A Strong Learning Alliance, arXiv 2306.11339, CVPR 2025"
    )

    masked_statistics: bool = True  # whether BatchNorm's running averages see the masked images too, as published
    inverted: bool = False  # hide what the mask shows: at ratio 0.5 on 7 x 7 units what the published ResNet code does

    def forward(
        self, images: Tensor, mask: Mask, labels: Tensor | None = None, teacher: Objective | None = None
    ) -> Outcome:
        """Half the loss of the labels on whole images, half that of what was said of them on the masked view.

        The target of the second half is the softmax (cross-entropy) or sigmoid (binary) of the first half's logits,
        without gradient. Both see the same mixed batch. The latent is that of the masked view.
        """
        images, target = self._mixed(images, labels)
        whole = self._logits(self.backbone(images))
        seen = mask.inverted() if self.inverted else mask
        with nullcontext() if self.masked_statistics else statistics_kept(self):
            latent = self.backbone(images, seen)
        part = self._logits(latent)
        main, sub = self._main_loss(whole, target), self._sub_loss(part, whole.detach())
        metrics = {"main": main.detach(), "sub": sub.detach(), **self._accuracy(whole, target)}
        return Outcome(loss=0.5 * main + 0.5 * sub, latent=latent, metrics=metrics)

    def _sub_loss(self, logits: Tensor, whole: Tensor) -> Tensor:
        """The loss [] of the masked view's logits [B, K] against what the whole image's say."""
        if self.loss == "binary":
            return binary_cross_entropy_with_logits(logits, whole.sigmoid())
        return cross_entropy(logits, whole.softmax(dim=1))


@contextmanager
def statistics_kept(module: nn.Module) -> Iterator[None]:
    """Let the running averages of every BatchNorm inside be, while it normalises by the batch as in training."""
    norms = [part for part in module.modules() if isinstance(part, _BatchNorm)]
    before = [(norm.momentum, norm.num_batches_tracked) for norm in norms]
    for norm in norms:
        norm.momentum = 0.0
        if norm.num_batches_tracked is not None:
            norm.num_batches_tracked = norm.num_batches_tracked.clone()
    try:
        yield
    finally:
        for norm, (momentum, tracked) in zip(norms, before, strict=True):
            norm.momentum, norm.num_batches_tracked = momentum, tracked
