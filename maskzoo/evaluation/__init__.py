"""What an encoder has learnt, in figures: one file an evaluator."""

from __future__ import annotations

from maskzoo.hookspecs import hookimpl


@hookimpl
def maskzoo_evaluators() -> list[type]:
    """The evaluators that come with MaskZoo."""
    from maskzoo.evaluation.classifier import Classifier
    from maskzoo.evaluation.knn import KNearestNeighbours

    return [KNearestNeighbours, Classifier]
