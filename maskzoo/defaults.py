"""What a recipe leaves open, settled by how many images there are; and the recipes that come with MaskZoo."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.resources import files
from typing import Any

import attrs

from maskzoo.plain import parse_toml
from maskzoo.recipe import Recipe, Use

MOST = 256  # images of a batch
BASE_LR = 1.5e-4  # for each 256 images of a batch, with the warm-up below: as MAE (arXiv 2111.06377)
WARMUP = 0.05  # MAE's 40 of 800 epochs


def settled(recipe: Recipe, images: int, shares: int = 1) -> Recipe:
    """The recipe with a batch size and learning rates, where it leaves them open.

    A batch is a quarter of the training `images` (0: unknown), at most 256, cut to a multiple of `shares`, its
    processes times micro-batches. The rate is a cosine from 1.5e-4 for each 256 images of the batch to 0, after a
    warm-up; a table without `use` changes single options of that. A masker's own rate is the model's.
    """
    batch = recipe.train.batch_size
    if batch is None:
        quarter = max(1, min(MOST, images // 4)) if images else MOST
        batch = max(1, quarter // shares) * shares
    usual = {"use": "cosine", "start": BASE_LR * batch / 256, "end": 0.0, "warmup": WARMUP}
    lr = _filled(recipe.optimizer.lr, usual)
    masking = recipe.masking
    if masking.optimizer is not None:
        own = _filled(masking.optimizer.lr, lr)
        masking = attrs.evolve(masking, optimizer=attrs.evolve(masking.optimizer, lr=own))
    return attrs.evolve(
        recipe,
        masking=masking,
        optimizer=attrs.evolve(recipe.optimizer, lr=lr),
        train=attrs.evolve(recipe.train, batch_size=batch),
    )


def _filled(given: Use | None, usual: Use) -> Use:
    """What is given, or what is usual, or the usual with the options that a table without `use` names."""
    if given is None:
        return usual
    if isinstance(given, Mapping) and "use" not in given and isinstance(usual, Mapping):
        return {**usual, **given}
    return given


def packaged(name: str) -> dict[str, Any]:
    """The plain values of a recipe that comes with MaskZoo."""
    return parse_toml(
        (files("maskzoo") / "recipes" / f"{name}.toml").read_text(encoding="utf-8"), f"the recipe '{name}'"
    )
