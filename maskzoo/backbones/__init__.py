"""Backbones: thin adapters that let a timm model be shown part of an image."""

from __future__ import annotations

import functools
import re
from typing import Any

from maskzoo.errors import RecipeError
from maskzoo.hookspecs import hookimpl
from maskzoo.registry import nearest


@hookimpl
def maskzoo_backbones() -> list[type]:
    """The adapters that come with MaskZoo."""
    from maskzoo.backbones.beit import BeitBackbone
    from maskzoo.backbones.cnn import CnnBackbone
    from maskzoo.backbones.hiera import HieraBackbone
    from maskzoo.backbones.swin import SwinBackbone
    from maskzoo.backbones.vit import VitBackbone

    return [VitBackbone, SwinBackbone, BeitBackbone, HieraBackbone, CnnBackbone]


@functools.cache
def skeleton(name: str) -> Any:
    """A timm model without weights, to see what it is and of what size. Raises RecipeError for an unknown name."""
    import timm
    import torch

    known = timm.list_models()
    if re.match(r"[\w-]+:", name):  # of timm's: local-dir: reads a folder, hf-hub: fetches what a model is
        raise RecipeError(
            f"'{name}' is a place, and a model is named as timm.list_models() names it; give its weights as "
            "recipe.weights (--weights FOLDER/model.safetensors)",
            key="timm",
        )
    if name.split(".")[0] not in known:
        hint = nearest(name, known)
        hint = hint if hint.startswith("did") else "timm.list_models() lists them"
        raise RecipeError(f"no timm model named '{name}'; {hint}", key="timm")
    try:
        with torch.device("meta"):
            return timm.create_model(name, num_classes=0)
    except RuntimeError as problem:
        raise RecipeError(f"timm cannot build '{name}': {problem}", key="timm") from problem
