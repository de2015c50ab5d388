"""How well the model's own classifier does, where it learns by labels.

Shapes: M test images, K classes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import ClassVar

import torch

from maskzoo.data.labels import difference, numbers_by_name
from maskzoo.errors import ContractError
from maskzoo.metrics import Metric, accuracy
from maskzoo.protocols import Dataset, Encoder, Need, define


@define
class Classifier:
    """Accuracy of the classifier that was trained with the encoder; nothing where the objective has none."""

    name: ClassVar[str] = "classifier"
    needs: ClassVar[frozenset[Need]] = frozenset({"labels"})

    def __call__(self, encoder: Encoder, dataset: Dataset) -> Iterator[Metric]:
        """Yield "top1", the share of test images told right; ContractError for other classes than it has learnt."""
        if dataset.classes is None or len(dataset.test) == 0:
            return
        if encoder.classes is not None and not encoder.classes:
            raise ContractError("classifier: which classes it has learnt is not known, since the run's data are gone")
        order = list(range(len(dataset.classes)))  # the number that each class had where it was learned
        if encoder.classes is not None:
            order = same_classes(encoder.classes, dataset.classes)
        foretold = encoder.predictions(dataset.test)
        if foretold is None:
            return
        scores, labels = foretold  # [M, K], [M]
        if scores.shape[1] != len(dataset.classes):
            raise ContractError(f"classifier: it has learnt {scores.shape[1]} classes, not {len(dataset.classes)}")
        truth = torch.tensor(order)[labels]
        yield accuracy(self.name, (scores.argmax(dim=1) == truth).double().mean().item())


def same_classes(learned: Sequence[str], names: Sequence[str]) -> list[int]:
    """For each of `names` its number among the `learned` classes, which are the same in any order.

    Raises ContractError where they are others.
    """
    other = difference(learned, names)
    if not other:
        return list(range(len(names)))
    order = numbers_by_name(learned, names) if len(learned) == len(names) else None
    if order is None:
        raise ContractError(f"classifier: the classes of these data are not those that it has learnt: {other}")
    return order
