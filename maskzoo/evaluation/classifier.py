"""How well the model's own classifier does, where it learns by labels.

Shapes: M test images, K classes.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar

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
        if encoder.classes is not None and list(encoder.classes) != list(dataset.classes):
            raise ContractError("classifier: the classes of these data are not those that it has learnt")
        foretold = encoder.predictions(dataset.test)
        if foretold is None:
            return
        scores, labels = foretold  # [M, K], [M]
        if scores.shape[1] != len(dataset.classes):
            raise ContractError(f"classifier: it has learnt {scores.shape[1]} classes, not {len(dataset.classes)}")
        yield accuracy(self.name, (scores.argmax(dim=1) == labels).double().mean().item())
