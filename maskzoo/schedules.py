"""Schedules: found wherever they are held, set up, and asked for a number."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import attrs
from torch import Tensor, nn

from maskzoo.blame import owner_of
from maskzoo.errors import ContractError
from maskzoo.protocols import CurriculumSchedule, Part


def schedules_in(holder: Any) -> list[CurriculumSchedule]:
    """The schedules that a module and its parts hold as options, at any depth, those inside of others first."""
    seen: set[int] = set()
    return [one for module in holder.modules() for value in _held(module) for one in _inside(value, seen)]


def set_up(schedule: CurriculumSchedule, epochs: float, steps: int) -> None:
    """Tell a schedule, and those that it is made of, how long the run is; one without `setup` needs not know."""
    for one in _inside(schedule, set()):
        setup = getattr(one, "setup", None)
        if setup is not None:
            setup(epochs, steps)


def value_of(schedule: CurriculumSchedule, progress: float) -> float:
    """What a schedule says at `progress`. Raises ContractError where that is no number."""
    value: Any = schedule(progress)
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ContractError(
            f"schedule '{getattr(schedule, 'name', type(schedule).__name__)}' ({owner_of(type(schedule))}) gave "
            f"{_kind(value)} at progress {progress:g}; a schedule gives a number"
        )
    return value


def _held(module: nn.Module) -> list[Any]:
    return [module.curriculum] if isinstance(module, Part) else list(vars(module).values())


def _inside(value: Any, seen: set[int]) -> Iterator[CurriculumSchedule]:
    """The schedules in a value, innermost first. Modules are looked into by whoever looks at all modules."""
    if id(value) in seen or value is None or isinstance(value, nn.Module | Tensor | type | str | int | float):
        return
    seen.add(id(value))
    if isinstance(value, Mapping):
        for item in value.values():
            yield from _inside(item, seen)
    elif isinstance(value, list | tuple | set | frozenset):
        for item in value:
            yield from _inside(item, seen)
    elif attrs.has(type(value)) or callable(value):
        for item in _options(value):
            yield from _inside(item, seen)
        if callable(value) and isinstance(getattr(value, "name", None), str):
            yield value


def _options(value: Any) -> list[Any]:
    if attrs.has(type(value)):
        return [getattr(value, field.name, None) for field in attrs.fields(type(value))]
    return list(getattr(value, "__dict__", {}).values())


def _kind(value: Any) -> str:
    return "nothing (None)" if value is None else f"a {type(value).__name__}"
