"""What the options and figures of evaluators have in common."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal

import attrs

from maskzoo.data.batches import loader_trouble
from maskzoo.errors import ContractError, MaskZooError
from maskzoo.protocols import Dataset
from maskzoo.recipe import describe

MOST = 3.4e38  # of what torch's float32 holds
Images = int | Literal["all"]  # how many of a split


def an_amount(evaluator: object, field: attrs.Attribute[Any], value: Images) -> None:
    """Refuse a number of images below 1."""
    if value != "all" and value < 1:
        raise ValueError(f"{field.name}: must be at least 1, or 'all', got {value}")


def several_above_zero(evaluator: object, field: attrs.Attribute[Any], values: tuple[float, ...]) -> None:
    """Refuse a list that is empty, or that holds something not above 0."""
    if not values or min(values) <= 0 or max(values) > MOST:
        raise ValueError(f"{field.name}: must be one or more numbers above 0, at most {MOST:g}, got {list(values)}")


def at_most(images: Images) -> int | None:
    """The number of images to take; None for all."""
    return None if images == "all" else images


def cosine(progress: float, warmup: float = 0.0) -> float:
    """The share of the highest rate at `progress` (0.0 to 1.0): a line up over `warmup`, then half a cosine to 0."""
    if progress < warmup:
        return progress / warmup
    return 0.5 * (1 + math.cos(math.pi * (progress - warmup) / (1 - warmup)))


def shown(name: str, value: float | None) -> str:
    """A figure as text: as percents where it is a share of images, which its name says."""
    if value is None or not math.isfinite(value):
        return "not a number"
    share = name.rsplit("/", 1)[-1].startswith("top1")
    return f"{value:.1%}" if share else f"{value:.4g}"


def classes_of(dataset: Dataset) -> int:
    """K, the number of classes; ContractError where there are none."""
    if dataset.classes is None:
        raise ContractError(f"data '{dataset.name}' have no classes")
    return len(dataset.classes)


def told(evaluator: Any) -> str:
    """An evaluator's name with the options that are not as given, by which one is told from another of that name."""
    fields = attrs.fields(type(evaluator)) if attrs.has(type(evaluator)) else ()
    changed = {field.name: getattr(evaluator, field.name) for field in fields if field.init}
    given = {field.name: field.default for field in fields}
    options = [f"{name} {describe(value)}" for name, value in changed.items() if value != given[name]]
    return " ".join([evaluator.name, *([f"({', '.join(options)})"] if options else [])])


def names_of(evaluators: Sequence[Any]) -> list[str]:
    """What to call the figures of each: by its name, and by its options too where another has that name."""
    names = [evaluator.name for evaluator in evaluators]
    return [told(one) if names.count(name) > 1 else name for one, name in zip(evaluators, names, strict=True)]


def words_of(problem: Exception) -> str:
    """A sentence on whatever an evaluator has raised."""
    if isinstance(problem, MaskZooError):
        return str(problem)
    return str(loader_trouble(problem) or f"{type(problem).__name__}: {(str(problem).splitlines() or [''])[0]}")
