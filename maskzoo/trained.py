"""A run that has been, as live objects again: rebuilt from its own recipe and its newest good checkpoint."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import attrs
import torch
from torch import nn

from maskzoo import checkpoint
from maskzoo.backbones.adapter import without_fetching
from maskzoo.backbones.sizes import any_size
from maskzoo.build import set_up_module
from maskzoo.errors import DataError, MaskZooError, RecipeError
from maskzoo.plain import named, read_json
from maskzoo.protocols import Dataset
from maskzoo.recipe import Recipe, differing, make, read
from maskzoo.registry import Registry


@attrs.frozen(eq=False, slots=False)
class Trained:
    """What a run has left: its model and masker in eval mode on the CPU, and the recipe that made them.

    The masker is built when it is first asked for, since an encoder is evaluated and exported without one.
    """

    path: Path
    recipe: Recipe
    objective: Any  # an nn.Module and an Objective
    _strategy: Any  # an nn.Module and a MaskingStrategy, or the function that builds it
    step: int  # of the checkpoint
    registry: Registry
    remarks: Sequence[str] = ()  # of newer checkpoints that cannot be read, and of a recipe.toml that was edited
    classes: Sequence[str] | None = None  # of its data, by number, as the checkpoint has them; None: it has none

    @functools.cached_property
    def strategy(self) -> Any:
        """The masker, an nn.Module and a MaskingStrategy. RecipeError where its plugin is gone or broken."""
        return self._strategy if isinstance(self._strategy, nn.Module) else self._strategy()

    @property
    def backbone(self) -> Any:
        """The encoder, an nn.Module and a Backbone."""
        return self.objective.backbone

    @property
    def image_size(self) -> tuple[int, int]:
        """Height and width of the images that the backbone takes."""
        grid, patch = self.backbone.grid, self.backbone.patch_size
        return grid[0] * patch[0], grid[1] * patch[1]

    def dataset(self) -> Dataset:
        """The data that it learnt from; RecipeError or DataError where they are gone."""
        data: Dataset = make(self.registry, "dataset", self.recipe.data, "recipe.data")
        return data


def open_run(path: Path, registry: Registry) -> Trained:
    """Rebuild what the run in a folder has learnt; nothing of its data is needed.

    Raises RecipeError where the folder is no run, has no checkpoint, or needs a plugin that is not here.
    """
    if not (path / "recipe.toml").is_file():
        raise RecipeError(f"'{path}' is no run: it has no recipe.toml")
    checkpoints = checkpoint.found(path / "checkpoints")
    if not checkpoints:
        raise RecipeError(f"the run '{path}' has no checkpoint yet; it has not come far enough")
    beside = read(path / "recipe.toml")
    state, objective_state, damaged = checkpoint.newest_good(checkpoints)
    plain, edited = _made_by(path, state, beside, registry)
    remarks = [*(f"{one}; going back to step {state['step']}" for one in damaged), *edited]
    recipe = Recipe.from_plain(plain)
    try:
        with torch.random.fork_rng(devices=[]), without_fetching(), any_size():
            backbone: Any = make(registry, "backbone", recipe.backbone, "recipe.backbone")
            objective: Any = make(registry, "objective", recipe.objective, "recipe.objective")
            set_up_module("recipe.objective", objective, backbone)
        objective.load_state_dict(objective_state)
        strategy_state = state["state"]["strategy"]
    except (MaskZooError, RuntimeError, KeyError) as problem:
        raise RecipeError(f"the run '{path}' cannot be rebuilt: {problem}") from problem
    masker = functools.partial(_masker, path, recipe, objective, strategy_state, registry)
    classes = checkpoint.classes_of(state)
    return Trained(path, recipe, objective.eval(), masker, state["step"], registry, remarks, classes)


def _made_by(
    path: Path, state: Mapping[str, Any], beside: Mapping[str, Any], registry: Registry
) -> tuple[Mapping[str, Any], list[str]]:
    """The recipe that a checkpoint was made by, and a message where the recipe.toml beside it says something else.

    Where the data lie is what recipe.toml says, since they may have moved.
    """
    held = state.get("recipe")
    if not isinstance(held, Mapping):
        return beside, []
    data = beside.get("data")
    if isinstance(data, Mapping) and isinstance(held.get("data"), Mapping):
        places = {name: data[name] for name in ("root", "path") if name in data}
        held = {**held, "data": {**held["data"], **places}}
    try:
        other = differing(beside, held, registry)
    except MaskZooError as problem:
        other = [str(problem)]
    if not other:
        return held, []
    clauses = "; ".join(other).replace(" there and ", " there, and ").replace(" here", " in the checkpoint")
    said = f"'{path / 'recipe.toml'}' was edited ({clauses}); the model is that of the recipe in the checkpoint"
    return held, [said]


def _masker(path: Path, recipe: Recipe, objective: Any, state: Mapping[str, Any], registry: Registry) -> Any:
    """The masker of a run, in eval mode."""
    try:
        with torch.random.fork_rng(devices=[]), without_fetching():
            made: Any = make(registry, "strategy", recipe.masking.strategy, "recipe.masking.strategy")
            set_up_module("recipe.masking.strategy", made, objective)
        made.load_state_dict(state)
    except (MaskZooError, RuntimeError, KeyError) as problem:
        origin = origin_of(path, named(recipe.masking.strategy))
        raise RecipeError(f"the masker of the run '{path}' cannot be rebuilt: {problem}{origin}") from problem
    return made.eval()


def origin_of(path: Path, masker: str) -> str:
    """From which distribution a run had its masker, as its environment.json says."""
    try:
        environment = read_json(path / "environment.json", missing={})
    except DataError:
        return ""
    used = environment.get("used") if isinstance(environment, dict) else None
    for one in used if isinstance(used, list) else []:
        if isinstance(one, dict) and (one.get("kind"), one.get("name")) == ("strategy", masker):
            return f"; the run had '{masker}' from {one.get('distribution')} {one.get('version')}"
    return ""
