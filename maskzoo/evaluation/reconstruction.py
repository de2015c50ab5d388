"""How well a model rebuilds patches that are hidden by the same masks for every model.

Shapes: B images, M images, N patches.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import closing
from typing import Any, ClassVar

import attrs
import torch

from maskzoo.errors import ContractError
from maskzoo.evaluation.features import evaluating, some_of
from maskzoo.evaluation.options import Images, an_amount, at_most
from maskzoo.mask import Mask
from maskzoo.metrics import Metric
from maskzoo.protocols import Dataset, Encoder, Need, define, visible_rounded_down
from maskzoo.seeds import stream


@define
class Reconstruction:
    """The objective's own loss of test images under fixed random masks: the one loss that maskers may be compared by.

    The loss in a run's log is that of the run's own masks, and a masker that hides what is easy lowers it. Between
    objectives, targets or data these losses cannot be compared either. Nothing where the objective rebuilds nothing,
    or compares with a teacher, which is another one in each run.
    """

    name: ClassVar[str] = "reconstruction"
    needs: ClassVar[frozenset[Need]] = frozenset({"patch_loss"})

    ratio: float = attrs.field(  # share of the patches to hide, rounded as MAE does
        default=0.75, validator=[attrs.validators.gt(0), attrs.validators.lt(1)]
    )
    images: Images = attrs.field(default=10_000, validator=an_amount)  # of the test images, at most

    def __call__(self, encoder: Encoder, dataset: Dataset) -> Iterator[Metric]:
        """Yield "loss on fixed masks", the mean over the hidden patches of all images."""
        objective: Any = encoder.objective
        if objective is None or "patch_loss" not in objective.provides or "teacher" in objective.needs:
            return
        if len(dataset.test) == 0:
            return
        patches = math.prod(encoder.backbone.grid)
        count = visible_rounded_down(self.ratio, patches)
        if count == patches:
            raise ContractError(f"reconstruction: a ratio of {self.ratio:g} hides all {patches} patches")
        generator = stream(0, "fixed masks")  # of no run's seed: the same for all
        total, images = 0.0, 0.0
        with closing(encoder.batches_with_valid(dataset.test, some_of(dataset.test, at_most(self.images)))) as source:
            for some, valid in source:
                noise = torch.rand(len(some), patches, generator=generator).to(encoder.device)
                with evaluating(objective, encoder.refuse_if_stopping), torch.no_grad():
                    mask = Mask.hide_top(noise, count)
                    if valid is not None:
                        mask = mask.over(valid.to(encoder.device), encoder.backbone.grid)
                    loss = objective(some.to(encoder.device), mask).loss
                weight = mask.weights.double().sum().item() / count  # images, if all that is hidden was measured
                total += loss.item() * weight
                images += weight
        if images == 0:
            raise ContractError("reconstruction: no hidden patch has a pixel that was measured (extras['valid'])")
        yield Metric("loss on fixed masks", total / images, "lower", label="reconstruction loss")
