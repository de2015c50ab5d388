"""A run that has been, as live objects again: rebuilt from its own recipe and its newest good checkpoint."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import attrs
import torch

from maskzoo import checkpoint
from maskzoo.backbones.adapter import without_fetching
from maskzoo.errors import MaskZooError, RecipeError
from maskzoo.protocols import Dataset
from maskzoo.recipe import Recipe, make, read
from maskzoo.registry import Registry


@attrs.frozen(eq=False)
class Trained:
    """What a run has left: its model and masker in eval mode on the CPU, and the recipe that made them."""

    path: Path
    recipe: Recipe
    objective: Any  # an nn.Module and an Objective
    strategy: Any  # an nn.Module and a MaskingStrategy
    step: int  # of the checkpoint
    registry: Registry
    damaged: Sequence[str] = ()  # a sentence for each newer checkpoint that could not be read

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
    recipe = Recipe.from_plain(read(path / "recipe.toml"))
    state, objective_state, damaged = checkpoint.newest_good(checkpoints)
    try:
        with torch.random.fork_rng(devices=[]), without_fetching():
            backbone: Any = make(registry, "backbone", recipe.backbone, "recipe.backbone")
            objective: Any = make(registry, "objective", recipe.objective, "recipe.objective")
            objective.setup(backbone)
            strategy: Any = make(registry, "strategy", recipe.masking.strategy, "recipe.masking.strategy")
            strategy.setup(objective)
        objective.load_state_dict(objective_state)
        strategy.load_state_dict(state["state"]["strategy"])
    except (MaskZooError, RuntimeError, KeyError) as problem:
        raise RecipeError(f"the run '{path}' cannot be rebuilt: {problem}") from problem
    return Trained(path, recipe, objective.eval(), strategy.eval(), state["step"], registry, damaged)
