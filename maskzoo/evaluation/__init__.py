"""What an encoder has learnt, in figures: one file an evaluator."""

from __future__ import annotations

from maskzoo.hookspecs import hookimpl


@hookimpl
def maskzoo_evaluators() -> list[type]:
    """The evaluators that come with MaskZoo."""
    from maskzoo.evaluation.attentive import AttentiveProbe
    from maskzoo.evaluation.classifier import Classifier
    from maskzoo.evaluation.fewshot import FewShot
    from maskzoo.evaluation.finetune import FineTune
    from maskzoo.evaluation.knn import KNearestNeighbours
    from maskzoo.evaluation.linear import LinearProbe
    from maskzoo.evaluation.reconstruction import Reconstruction

    return [KNearestNeighbours, LinearProbe, AttentiveProbe, FewShot, FineTune, Reconstruction, Classifier]
