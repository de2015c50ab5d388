"""Objectives: what the model learns by."""

from __future__ import annotations

from maskzoo.hookspecs import hookimpl


@hookimpl
def maskzoo_objectives() -> list[type]:
    """The objectives that come with MaskZoo."""
    from maskzoo.objectives.distill import Distill
    from maskzoo.objectives.reconstruct import Reconstruct
    from maskzoo.objectives.supervised import Classify, MaskSub

    return [Reconstruct, Distill, Classify, MaskSub]
