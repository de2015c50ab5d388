"""How well the labels of the nearest training images foretell those of the test images.

Shapes: B test images at a time, M training images, K classes, D channels, k neighbours.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar, Literal

import attrs
import torch
from torch import Tensor
from torch.nn.functional import normalize

from maskzoo.protocols import Dataset, Encoder, define

SIMILARITIES = 2**24  # held at once: 64 MiB


@define
class KNearestNeighbours:
    """Accuracy of a vote of the nearest training images, which needs no training and no tuning."""

    name: ClassVar[str] = "knn"

    k: int = attrs.field(default=20, validator=attrs.validators.ge(1))  # neighbours that vote
    temperature: float = attrs.field(default=0.07, validator=attrs.validators.gt(0))  # low: the nearest decide
    images: int | Literal["all"] = 10_000  # of each split, at most

    def __attrs_post_init__(self) -> None:
        if self.images != "all" and self.images < 1:
            raise ValueError(f"images: must be at least 1, or 'all', got {self.images}")

    def __call__(self, encoder: Encoder, dataset: Dataset) -> Iterator[tuple[str, float]]:
        """Yield ("top1", the share of test images whose label is foretold); nothing without labels or test images."""
        if dataset.classes is None or len(dataset.train) == 0 or len(dataset.test) == 0:
            return
        most = None if self.images == "all" else self.images
        train, labels = encoder.features(dataset.train, most)
        test, truth = encoder.features(dataset.test, most)
        if labels is None or truth is None:
            return
        foretold = vote(train, labels, test, k=self.k, temperature=self.temperature)
        yield "top1", (foretold == truth).to(torch.float64).mean().item()


def vote(train: Tensor, labels: Tensor, test: Tensor, *, k: int, temperature: float) -> Tensor:
    """The labels [.] that the k nearest of `train` [M, D] with `labels` [M] give to `test` [., D].

    Near is a high cosine similarity s, and a vote weighs exp(s / temperature), as in Wu et al. 2018 (section 3.4) and
    DINO (Caron et al. 2021). No more than all M vote.
    """
    k = min(k, len(train))
    train, test = normalize(train, dim=1), normalize(test, dim=1)
    classes = int(labels.max()) + 1
    chosen = []
    for some in torch.split(test, max(1, SIMILARITIES // len(train))):
        nearest, neighbours = (some @ train.T).topk(k, dim=1)
        # Less the highest, so that a low temperature does not overflow; that changes no vote's outcome.
        weights = ((nearest - nearest[:, :1]) / temperature).exp()
        votes = torch.zeros(len(some), classes).scatter_add_(1, labels[neighbours], weights)
        chosen.append(votes.argmax(dim=1))
    return torch.cat(chosen)
