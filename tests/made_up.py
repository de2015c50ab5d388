"""Maskers that a test makes up, in a registry beside the built-in ones and in a tiny run."""

from __future__ import annotations

from importlib.metadata import entry_points
from types import ModuleType
from typing import Any

import attrs
from helpers import noise_images, tiny_recipe

from maskzoo import Registry, Session, hookimpl
from maskzoo.build import build


@attrs.frozen
class Distribution:
    name: str = "made-up"
    version: str = "0.1"


@attrs.frozen
class Point:
    """What the registry uses of an entry point."""

    classes: tuple[type, ...]
    name: str = "made_up"
    dist: Distribution = Distribution()

    def load(self) -> ModuleType:
        module = ModuleType(self.name)
        module.maskzoo_strategies = hookimpl(lambda: list(self.classes), specname="maskzoo_strategies")  # type: ignore[attr-defined]
        return module


def registry_with(*strategies: type) -> Registry:
    """The built-in plugins, and these classes of strategies as somebody else's."""
    return Registry([*entry_points(group="maskzoo"), Point(strategies)])  # type: ignore[list-item]


def session_with(strategies: list[type], use: Any, dataset: Any = None, **sections: Any) -> Session:
    """A tiny session, as `tiny_session` makes it, whose recipe may name these classes."""
    dataset = noise_images() if dataset is None else dataset
    return build(tiny_recipe(use, **sections), dataset, registry_with(*strategies), steps_in_epoch=4)
