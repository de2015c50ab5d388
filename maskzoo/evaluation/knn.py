"""How well the labels of the nearest training images foretell those of the test images.

Shapes: Q test images, M training images, K classes, D channels, k neighbours.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import ClassVar, Literal

import attrs
import torch
from torch import Tensor
from torch.nn.functional import normalize

from maskzoo.evaluation.options import Images, an_amount, labelled_features
from maskzoo.metrics import Metric, accuracy
from maskzoo.protocols import Dataset, Encoder, Need, define

SIMILARITIES = 2**24  # held at once: 64 MiB
TRAINING = 2**16  # training images, of those at the most
Distance = Literal["cosine", "euclidean"]
Weighting = Literal["similarity", "plain"]

MOST_NEIGHBOURS = 10**6


@define
class KNearestNeighbours:
    """Accuracy of a vote of the nearest training images, which needs no training and no tuning.

    As given, votes are weighted by similarity (DINO). CL-MAE reports `metric = "euclidean"`, `weighting = "plain"`
    and `k = 5`. Several k are asked for as a list, and each is a measurement of its own.
    """

    name: ClassVar[str] = "knn"
    needs: ClassVar[frozenset[Need]] = frozenset({"labels"})

    k: int | tuple[int, ...] = 20  # neighbours that vote; each of several is a measurement of its own
    # of the similarity's weights; low: the nearest decide
    temperature: float = attrs.field(default=0.07, validator=attrs.validators.gt(0))
    images: Images = attrs.field(default=10_000, validator=an_amount)  # images of each split, at most
    metric: Distance = "cosine"  # what near means
    weighting: Weighting = "similarity"  # "plain": every neighbour has one vote

    def __attrs_post_init__(self) -> None:
        if not self._sizes or min(self._sizes) < 1 or len(set(self._sizes)) < len(self._sizes):
            raise ValueError(f"k: must be at least 1, and no number twice, got {self.k}")
        if max(self._sizes) > MOST_NEIGHBOURS:
            raise ValueError(f"k: must be at most {MOST_NEIGHBOURS:,}, got {self.k}")
        if self.metric == "euclidean" and self.weighting == "similarity":
            raise ValueError("weighting: votes are weighted by cosine similarity; with metric 'euclidean' use 'plain'")

    @property
    def _sizes(self) -> tuple[int, ...]:
        return (self.k,) if isinstance(self.k, int) else tuple(self.k)

    def __call__(self, encoder: Encoder, dataset: Dataset) -> Iterator[Metric]:
        """Yield "top1", the share of test images whose label is predicted, for each k as an option of its own.

        Nothing without labels or test images.
        """
        found = labelled_features(encoder, dataset, self.images)
        if found is None:
            return
        (train, labels), (test, truth) = found
        scores, neighbours = nearest(train, test, most=max(self._sizes), metric=self.metric, device=encoder.device)
        temperature = self.temperature if self.weighting == "similarity" else None
        for k in self._sizes:
            foretold = elected(scores[:, :k], labels[neighbours[:, :k]], temperature=temperature)
            yield accuracy(self.name, (foretold == truth).double().mean().item(), k=k)


def vote(train: Tensor, labels: Tensor, test: Tensor, *, k: int, temperature: float) -> Tensor:
    """The labels [Q] that the k nearest of `train` [M, D] with `labels` [M] give to `test` [Q, D].

    Near is a high cosine similarity s, and a vote weighs exp(s / temperature), as in Wu et al. 2018 (section 3.4) and
    DINO (Caron et al. 2021). No more than all M vote.
    """
    scores, neighbours = nearest(train, test, most=k)
    return elected(scores, labels[neighbours], temperature=temperature)


def nearest(
    train: Tensor, test: Tensor, *, most: int, metric: Distance = "cosine", device: torch.device | str = "cpu"
) -> tuple[Tensor, Tensor]:
    """How near the `most` (or all M) nearest of `train` [M, D] are to each of `test` [Q, D], and which, [Q, most] each.

    Nearest first. Near is the cosine similarity, or half of minus the squared distance, up to a constant of each test
    image. Both splits are compared piece by piece: no more than `SIMILARITIES` are held at once, and each training
    image goes to the device once.
    """
    most = min(most, len(train))
    rows = min(len(train), TRAINING)
    queries = max(1, SIMILARITIES // rows)
    middle = train.mean(dim=0) if metric == "euclidean" else torch.zeros(train.shape[1])

    def prepared(features: Tensor) -> Tensor:
        # Distances do not change with the origin, but what is left of large numbers' differences does.
        return normalize(features, dim=1) if metric == "cosine" else features - middle

    best: Sequence[tuple[Tensor, Tensor]] = [
        (torch.empty(len(some), 0), torch.empty(len(some), 0, dtype=torch.int64)) for some in torch.split(test, queries)
    ]
    for first in range(0, len(train), rows):
        block = prepared(train[first : first + rows]).to(device)
        lengths = block.square().sum(dim=1) / 2 if metric == "euclidean" else torch.zeros(len(block), device=device)
        news = []
        for some, (scores, places) in zip(torch.split(test, queries), best, strict=True):
            near, which = (prepared(some).to(device) @ block.T - lengths).topk(min(most, len(block)), dim=1)
            scores = torch.cat([scores, near.cpu()], dim=1)
            places = torch.cat([places, which.cpu() + first], dim=1)
            kept, order = scores.topk(min(most, scores.shape[1]), dim=1)
            news.append((kept, places.gather(1, order)))
        best = news
    return torch.cat([scores for scores, _ in best]), torch.cat([places for _, places in best])


def elected(scores: Tensor, labels: Tensor, *, temperature: float | None) -> Tensor:
    """The labels [Q] for which neighbours with `labels` [Q, k] vote, that are `scores` [Q, k] near, nearest first.

    A vote weighs exp(score / temperature); without a temperature all are equal, and the lowest label wins a tie.
    """
    classes = int(labels.max()) + 1
    chosen = []
    pieces = max(1, SIMILARITIES // classes)
    for near, named in zip(torch.split(scores, pieces), torch.split(labels, pieces), strict=True):
        # Less the highest, so that a low temperature does not overflow; that changes no vote's outcome.
        weights = torch.ones_like(near) if temperature is None else ((near - near[:, :1]) / temperature).exp()
        chosen.append(torch.zeros(len(near), classes).scatter_add_(1, named, weights).argmax(dim=1))
    return torch.cat(chosen)
