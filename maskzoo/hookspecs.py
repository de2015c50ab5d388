"""What a plugin may offer: each hook returns classes, and each class carries the `name` that recipes use.

A plugin is a module (or object) named by an entry point of the group `maskzoo`. It implements any of these hooks with
`@maskzoo.hookimpl`; all are called when the names are first needed, never at import of `maskzoo`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pluggy

if TYPE_CHECKING:
    from maskzoo.protocols import Backbone, CurriculumSchedule, Dataset, Evaluator, Logger, MaskingStrategy, Objective

hookspec = pluggy.HookspecMarker("maskzoo")
hookimpl = pluggy.HookimplMarker("maskzoo")


@hookspec
def maskzoo_strategies() -> list[type[MaskingStrategy]]:  # type: ignore[empty-body]
    """Masking strategies, for `masking.strategy` and `--masker`."""


@hookspec
def maskzoo_schedules() -> list[type[CurriculumSchedule]]:  # type: ignore[empty-body]
    """Schedules, for `masking.curriculum`, `--schedule` and wherever a recipe takes a number that may move."""


@hookspec
def maskzoo_backbones() -> list[type[Backbone]]:  # type: ignore[empty-body]
    """Backbone adapters, for `backbone.use`."""


@hookspec
def maskzoo_objectives() -> list[type[Objective]]:  # type: ignore[empty-body]
    """Objectives, for `objective.use` and `--objective`."""


@hookspec
def maskzoo_datasets() -> list[type[Dataset]]:  # type: ignore[empty-body]
    """Data sets, for `data.use` and `--data`."""


@hookspec
def maskzoo_evaluators() -> list[type[Evaluator]]:  # type: ignore[empty-body]
    """Evaluators, for `evaluation.use`."""


@hookspec
def maskzoo_loggers() -> list[type[Logger]]:  # type: ignore[empty-body]
    """Loggers, for `train.loggers`."""
