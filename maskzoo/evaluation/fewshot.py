"""How well a few labelled images of each class tell the classes: logistic regression on frozen features.

Shapes: M images, D channels, K classes.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import ClassVar

import attrs
import torch
from torch import Tensor

from maskzoo.bounds import between
from maskzoo.errors import ContractError
from maskzoo.evaluation.linear import logistic, moments
from maskzoo.evaluation.options import MOST, Images, an_amount, classes_of, labelled_features
from maskzoo.metrics import Metric, accuracy, interval
from maskzoo.protocols import Dataset, Encoder, Need, define
from maskzoo.seeds import stream


@define
class FewShot:
    """Accuracy with 1, 5 and 10 labelled images a class: the mean over several draws, and its 95 % interval.

    A draw hangs on its number alone, so that two encoders learn from the same images and may be compared in pairs; the
    images of a smaller number are among those of a larger one. Features are standardised by the mean and deviation of
    all training images, which needs no label.
    """

    name: ClassVar[str] = "fewshot"
    needs: ClassVar[frozenset[Need]] = frozenset({"labels"})

    shots: tuple[int, ...] = (1, 5, 10)  # labelled images per class
    # draws of labelled images, whose mean is reported
    draws: int = attrs.field(default=5, validator=between(1, 10_000))
    penalty: float = attrs.field(default=1.0, validator=between(1 / MOST, MOST))  # the inverse of scikit-learn's C
    images: Images = attrs.field(default="all", validator=an_amount)  # images of each split, at most
    # random seed of the evaluation's own draws
    seed: int = attrs.field(default=0, validator=attrs.validators.ge(0))

    def __attrs_post_init__(self) -> None:
        if not self.shots or min(self.shots) < 1:
            raise ValueError(f"shots: must be one or more numbers of images, at least 1, got {list(self.shots)}")

    def __call__(self, encoder: Encoder, dataset: Dataset) -> Iterator[Metric]:
        """Yield "top1", the mean share told right, and, of several draws, "top1 +-", half the width of its interval.

        Each number of images is an option of its own. Nothing without labels or test images.

        Raises ContractError where a class has fewer images than are asked for.
        """
        found = labelled_features(encoder, dataset, self.images)
        if found is None:
            return
        (train, labels), (test, truth) = found
        self._check(labels, dataset)
        mean, deviation = moments(train)
        asked = (test - mean) / deviation
        for shots in self.shots:
            accuracies = []
            for draw in range(self.draws):
                chosen = drawn(labels, shots, self.seed, draw)
                told = logistic((train[chosen] - mean) / deviation, labels[chosen], asked, self.penalty)
                accuracies.append((told == truth).double().mean().item())
            yield accuracy(self.name, sum(accuracies) / len(accuracies), shots=[shots])
            if self.draws > 1:
                yield interval(half_width(accuracies), shots=[shots])

    def _check(self, labels: Tensor, dataset: Dataset) -> None:
        counts = torch.bincount(labels, minlength=classes_of(dataset)).tolist()
        there = [number for number, count in enumerate(counts) if count]  # a class without any is no question of shots
        fewest = min(there, key=counts.__getitem__)
        if counts[fewest] < max(self.shots):
            names = dataset.classes or ()
            raise ContractError(
                f"fewshot: class '{names[fewest]}' has {counts[fewest]} of the {len(labels)} training images, and "
                f"{max(self.shots)} are asked for; ask for fewer shots, or look at more images"
            )


def drawn(labels: Tensor, shots: int, seed: int, draw: int) -> Tensor:
    """The positions [shots * K] of that many images of each class; a draw's first ones are the same for any number."""
    order = torch.randperm(len(labels), generator=stream(seed, "few shots", draw))
    shuffled = labels[order]
    return torch.cat([order[(shuffled == label).nonzero()[:shots, 0]] for label in sorted(set(labels.tolist()))])


def half_width(values: list[float], level: float = 0.95) -> float:
    """Half the width of Student's interval of the mean of these values."""
    from scipy.stats import t

    spread = torch.tensor(values, dtype=torch.float64).std().item()
    return float(t.ppf(0.5 + level / 2, len(values) - 1)) * spread / math.sqrt(len(values))
