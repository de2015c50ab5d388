"""MaskZoo: composable masking strategies and curricula for masked image modelling."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from maskzoo import official as official
    from maskzoo.errors import ContractError as ContractError
    from maskzoo.errors import DataError as DataError
    from maskzoo.errors import MaskZooError as MaskZooError
    from maskzoo.errors import PluginError as PluginError
    from maskzoo.errors import RecipeError as RecipeError
    from maskzoo.hookspecs import hookimpl as hookimpl
    from maskzoo.mask import Mask as Mask
    from maskzoo.metrics import Metric as Metric
    from maskzoo.protocols import Backbone as Backbone
    from maskzoo.protocols import CurriculumSchedule as CurriculumSchedule
    from maskzoo.protocols import Dataset as Dataset
    from maskzoo.protocols import Encoder as Encoder
    from maskzoo.protocols import Evaluator as Evaluator
    from maskzoo.protocols import Logger as Logger
    from maskzoo.protocols import MaskingContext as MaskingContext
    from maskzoo.protocols import MaskingStrategy as MaskingStrategy
    from maskzoo.protocols import Objective as Objective
    from maskzoo.protocols import Outcome as Outcome
    from maskzoo.protocols import Part as Part
    from maskzoo.protocols import RankedStrategy as RankedStrategy
    from maskzoo.protocols import Sample as Sample
    from maskzoo.protocols import Split as Split
    from maskzoo.protocols import Strategy as Strategy
    from maskzoo.protocols import Stream as Stream
    from maskzoo.protocols import checked_scores as checked_scores
    from maskzoo.protocols import define as define
    from maskzoo.protocols import rounded_down as rounded_down
    from maskzoo.recipe import Recipe as Recipe
    from maskzoo.registry import Registry as Registry
    from maskzoo.teacher import Teacher as Teacher
    from maskzoo.train import Session as Session

__version__ = "0.1.0"

# Public name -> the module that holds it, imported when the name is first used: torch takes seconds.
_HOMES = {
    "official": "",
    "hookimpl": "hookspecs",
    "Mask": "mask",
    "Metric": "metrics",
    "Recipe": "recipe",
    "Registry": "registry",
    "Session": "train",
    "Teacher": "teacher",
    **dict.fromkeys(("ContractError", "DataError", "MaskZooError", "PluginError", "RecipeError"), "errors"),
    **dict.fromkeys(
        (
            "Backbone",
            "CurriculumSchedule",
            "Dataset",
            "Encoder",
            "Evaluator",
            "Logger",
            "MaskingContext",
            "MaskingStrategy",
            "Objective",
            "Outcome",
            "Part",
            "RankedStrategy",
            "Sample",
            "Split",
            "Strategy",
            "Stream",
            "checked_scores",
            "define",
            "rounded_down",
        ),
        "protocols",
    ),
}

__all__ = [  # pinned by a test against _HOMES
    "Backbone",
    "ContractError",
    "CurriculumSchedule",
    "DataError",
    "Dataset",
    "Encoder",
    "Evaluator",
    "Logger",
    "Mask",
    "MaskZooError",
    "MaskingContext",
    "MaskingStrategy",
    "Metric",
    "Objective",
    "Outcome",
    "Part",
    "PluginError",
    "RankedStrategy",
    "Recipe",
    "RecipeError",
    "Registry",
    "Sample",
    "Session",
    "Split",
    "Strategy",
    "Stream",
    "Teacher",
    "checked_scores",
    "define",
    "hookimpl",
    "official",
    "rounded_down",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'maskzoo' has no attribute '{name}'")
    home = _HOMES[name]
    value = getattr(import_module(f"maskzoo.{home}"), name) if home else import_module(f"maskzoo.{name}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
