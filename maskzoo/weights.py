"""Weights that were learnt before, as the beginning of a run: of MaskZoo, of timm, or published with a paper."""

from __future__ import annotations

import os
import pickle
import re
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from timm.models import load_state_dict
from torch import Tensor

from maskzoo import checkpoint
from maskzoo.errors import RecipeError
from maskzoo.protocols import Backbone
from maskzoo.recipe import WeightsRecipe
from maskzoo.resizing import resized

LEFT_OUT = re.compile(r"(decoder|head|fc|fc_norm|classifier|mask_token)\b|decoder_|head_")  # not of an encoder


def load_weights(backbone: Backbone, weights: WeightsRecipe | Path, key: str = "recipe.weights") -> list[str]:
    """Put weights into a backbone, its positions resized where the images' size is another; what is to be told of it.

    They are of a run, one of its checkpoints, or a file of weights as timm and most papers' code save it; decoders and
    classifiers in it are left out. Raises RecipeError where it cannot be read, lacks something, or holds more.
    """
    model: Any = backbone
    path = Path(weights.file) if isinstance(weights, WeightsRecipe) else weights
    own = {name: value for name, value in model.state_dict().items() if not _fixed(model, name)}
    found = _read(path, key)
    if not any(name.startswith("model.") for name in found):
        found = {f"model.{name}": value for name, value in _stripped(found).items()}
    grid = weights.grid if isinstance(weights, WeightsRecipe) else None
    found, remarks = resized(model, found, path, key, grid=grid)
    found = {name: value for name, value in found.items() if not _fixed(model, name)}
    extra = [name for name in found if name not in own and not LEFT_OUT.match(name.removeprefix("model."))]
    missing = [name for name in own if name not in found and name.startswith("model.")]
    if missing or extra:
        told = [f"{what} {_some(names)}" for what, names in (("lacks", missing), ("holds besides", extra)) if names]
        raise RecipeError(f"{key}: '{path}' does not fit this backbone: it {' and '.join(told)}")
    wrong = [
        f"{name} {list(found[name].shape)}, not {list(value.shape)}"
        for name, value in own.items()
        if name in found and found[name].shape != value.shape
    ]
    if wrong:
        raise RecipeError(f"{key}: '{path}' does not fit this backbone: it holds {_some(wrong)}")
    model.load_state_dict({name: value for name, value in found.items() if name in own}, strict=False)
    return remarks


def _read(path: Path, key: str) -> dict[str, Tensor]:
    """The tensors of a backbone by name, read by code that runs nothing of the file's."""
    if re.match(r"\w+:/", str(path)):  # the file system has made one slash of two
        raise RecipeError(f"{key}: '{path}' is a URL, and nothing is fetched; download the file, and name it here")
    if os.path.isdir(path / "checkpoints"):
        checkpoints = checkpoint.found(path / "checkpoints")
        if not checkpoints:
            raise RecipeError(f"{key}: the run '{path}' has no checkpoint yet")
        return _of_backbone(checkpoint.newest_good(checkpoints)[1])
    if not os.path.exists(path):  # False also for a name that no file can have
        raise RecipeError(f"{key}: there is no '{path}'")
    if path.is_dir() and not (path / "shards").is_dir():
        raise RecipeError(f"{key}: the folder '{path}' is neither a run nor a checkpoint")
    if path.is_dir() or _is_ours(path):
        return _of_backbone(checkpoint.objective_of(path))
    try:
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                checkpoint.check_sums(archive)
        state: Mapping[str, Any] = load_state_dict(str(path), use_ema=False, weights_only=True)
    except Exception as problem:  # a file that is none fails in as many ways as there are formats
        reason = (str(problem).splitlines() or [type(problem).__name__])[0]
        if "weights_only" in reason or isinstance(problem, pickle.UnpicklingError):
            reason = "it is damaged, or holds more than tensors, numbers and texts"  # and is not to be run
        raise RecipeError(f"{key}: '{path}' cannot be read as a file of weights: {reason}") from problem
    return {name: value for name, value in state.items() if isinstance(value, Tensor)}


def _of_backbone(objective: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix("backbone."): value for name, value in objective.items() if name.startswith("backbone.")}


def _is_ours(path: Path) -> bool:
    if not zipfile.is_zipfile(path):
        return False
    try:
        state = torch.load(path, map_location="meta", weights_only=True)
        return {"step", "state", "recipe"} <= state.keys() and "objective" in state["state"]
    except Exception:  # a damaged file fails in as many ways as there are bytes
        return False


def _stripped(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Names without what trainers put before an encoder's."""
    for prefix in ("encoder.", "backbone."):
        if any(name.startswith(prefix) for name in state):
            return {name.removeprefix(prefix): value for name, value in state.items()}
    return dict(state)


def _fixed(backbone: Any, name: str) -> bool:
    """Whether it is a parameter that is not learnt, such as a table of positions: it follows from the sizes."""
    parameter = dict(backbone.named_parameters()).get(name)
    return parameter is not None and not parameter.requires_grad


def _some(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
