"""Weights that were learnt before, as the beginning of a run: of MaskZoo, of timm, or published with a paper."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from maskzoo import checkpoint
from maskzoo.errors import RecipeError
from maskzoo.fitting import COMPUTED, Fit, Source, behind, chosen, counted, inner_of, some
from maskzoo.protocols import Backbone
from maskzoo.recipe import WeightsRecipe
from maskzoo.weightfile import in_folder, tables_of

WRAPPERS = re.compile(r"^((module|_orig_mod|_fsdp_wrapped_module)\.)+")  # of DDP, torch.compile and FSDP


def load_weights(backbone: Backbone, weights: WeightsRecipe | Path, key: str = "recipe.weights") -> list[str]:
    """Put weights into a backbone, its positions resized where the images' size is another; what is to be told of it.

    They are of a run, one of its checkpoints, or a file of weights as timm and most papers' code save it, at whatever
    place in it; decoders and classifiers in it are left out. Raises RecipeError where it cannot be read, lacks
    something or holds more, and where several places fit and none was chosen.
    """
    model: Any = backbone
    asked = weights if isinstance(weights, WeightsRecipe) else WeightsRecipe(str(weights))
    path = Path(asked.file)
    source = _source(path, key, asked.part)
    fit = chosen(model, source, asked, key)
    problem = _unusable(fit.state)
    if problem:
        raise RecipeError(f"{key}: '{path}' {problem}")
    told = [*source.remarks, *_told(model, fit, source), *fit.remarks]
    model.load_state_dict(dict(fit.state), strict=False)
    return told


# ------------------------------------------------------------------------------------------------------- where they are
def _source(path: Path, key: str, part: str | None) -> Source:
    """What is at a path, read by code that runs nothing of it."""
    if re.match(r"\w+:/", str(path)):  # the file system has made one slash of two
        url = str(path).replace(":/", "://", 1)
        raise RecipeError(f"{key}: '{url}' is a URL, and nothing is fetched; download the file, and name it here")
    if os.path.isdir(path / "checkpoints"):
        checkpoints = checkpoint.found(path / "checkpoints")
        if not checkpoints:
            raise RecipeError(f"{key}: the run '{path}' has no checkpoint yet")
        state, objective, problems = checkpoint.newest_good(checkpoints)
        remarks = [f"weights: {one}; taken from step {state['step']}" for one in problems]
        return _ours(path, state, objective, remarks)
    if not os.path.exists(path):  # False also for a name that no file can have
        raise RecipeError(f"{key}: there is no '{path}'")
    if path.is_dir() and not (path / "shards").is_dir():
        raise RecipeError(f"{key}: {in_folder(path)}")
    if path.is_dir():
        state = checkpoint.read(path)
        return _ours(path, state, checkpoint.objective_of(path, state))
    tables, content = tables_of(path, key, part)
    if {"step", "state", "recipe"} <= content.keys() and "objective" in content["state"]:
        return _ours(path, content, content["state"]["objective"])
    return Source(path, tables)


def _ours(path: Path, state: Mapping[str, Any], objective: Mapping[str, Tensor], remarks: Sequence[str] = ()) -> Source:
    tables = {"objective": objective}
    if isinstance(state["state"].get("teacher"), Mapping):
        tables["teacher"] = state["state"]["teacher"]
    recipe = state.get("recipe")
    made_by = recipe.get("backbone") if isinstance(recipe, Mapping) else None
    return Source(path, tables, True, made_by if isinstance(made_by, Mapping) else None, remarks)


def _unusable(state: Mapping[str, Tensor]) -> str:
    """What is wrong with the values; empty where nothing is."""
    odd = [
        name for name, value in state.items() if value.is_meta or value.is_quantized or value.layout != torch.strided
    ]
    if odd:
        return f"holds tensors without plain numbers (sparse, quantised or empty ones): {some(odd)}"
    whole = [name for name, value in state.items() if not value.is_floating_point() and not COMPUTED.match(name)]
    if whole:
        return f"holds {state[whole[0]].dtype} in {some(whole)}, and not the floating-point numbers that are trained"
    broken = [name for name, value in state.items() if not value.float().isfinite().all()]
    return f"has values that are not finite (NaN or infinite) in {some(broken)}" if broken else ""


# --------------------------------------------------------------------------------------------------------- what is told
def _told(backbone: Any, fit: Fit, source: Source) -> list[str]:
    """What was taken, where that is not plain, and each tensor that was left out, converted or is not there."""
    part, own, inner = fit.part, backbone.state_dict(), inner_of(backbone)
    unused = {name: value for name, value in part.tensors.items() if not _used(name, fit)}
    fixed = {name for name in unused if f"model.{name}" in own and f"model.{name}" not in inner} - {"pos_embed"}
    left = [name for name in unused if name in fixed or name.startswith("decoder") or behind(backbone, name)]
    others = [
        told
        for place, tensors in source.tables.items()
        if not source.ours and place != part.table
        for told in ([f"'{place}' ({counted(len(tensors))})"] if place else _grouped(list(tensors)))
    ]
    outside = [name for name in part.beside if name.removeprefix(part.prefix.removesuffix("model.")) not in fit.state]
    lines = [f"weights: taken from {part.told} of '{source.path}'"] if part.place and not source.ours else []
    groups = [*others, *_grouped(outside), *_grouped(left)]
    if groups:
        lines.append(
            f"weights: left out: {', '.join(groups[:6])}" + (f" and {len(groups) - 6} more" if len(groups) > 6 else "")
        )
    kinds = sorted({str(value.dtype) for value in fit.state.values() if value.is_floating_point()} - {"torch.float32"})
    if kinds:
        lines.append(f"weights: {', '.join(kinds).replace('torch.', '')} became float32")
    fresh = [name for name in own if name not in fit.state and (name in inner or not name.startswith("model."))]
    fresh = [name for name in fresh if not COMPUTED.match(name)]
    if fresh:
        lines.append(f"weights: not in the file, and newly initialised: {some(fresh)}")
    return lines


def _used(name: str, fit: Fit) -> bool:
    norm = f"model.{name}".replace("model.fc_norm.", "model.norm.")
    return name in fit.state or f"model.{name}" in fit.state or fit.state.get(norm) is fit.part.tensors[name]


def _grouped(names: Sequence[str]) -> list[str]:
    """Tensors by the first part of their names that is not of what wraps a network, with their number."""
    groups: dict[str, int] = {}
    for name in names:
        group = WRAPPERS.sub("", name).split(".")[0]
        groups[group] = groups.get(group, 0) + 1
    return [f"{group} ({counted(count)})" if count > 1 else group for group, count in groups.items()]
