"""What the options and figures of evaluators have in common."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any, Literal

import attrs
from torch import Tensor

from maskzoo.blame import plugin_error
from maskzoo.blame import words_of as in_one_line
from maskzoo.data.labels import NoLabelsError, listed, why_unmeasurable
from maskzoo.data.workers import loader_trouble
from maskzoo.errors import ContractError, MaskZooError
from maskzoo.protocols import Dataset, Encoder

MOST = 3.4e38  # of what torch's float32 holds
Images = int | Literal["all"]  # how many of a split


def an_amount(evaluator: object, field: attrs.Attribute[Any], value: Images) -> None:
    """Refuse a number of images below 1."""
    if value != "all" and value < 1:
        raise ValueError(f"{field.name}: must be at least 1, or 'all', got {value}")


def several_above_zero(evaluator: object, field: attrs.Attribute[Any], values: tuple[float, ...]) -> None:
    """Refuse a list that is empty, or that holds something not above 0."""
    if not values or min(values) < 1 / MOST or max(values) > MOST:
        raise ValueError(f"{field.name}: must be one or more numbers above 0, at most {MOST:g}, got {list(values)}")


def at_most(images: Images) -> int | None:
    """The number of images to take; None for all."""
    return None if images == "all" else images


def cosine(progress: float, warmup: float = 0.0) -> float:
    """The share of the highest rate at `progress` (0.0 to 1.0): a line up over `warmup`, then half a cosine to 0."""
    if progress < warmup:
        return progress / warmup
    return 0.5 * (1 + math.cos(math.pi * (progress - warmup) / (1 - warmup)))


def classes_of(dataset: Dataset) -> int:
    """K, the number of classes; ContractError where there are none."""
    if dataset.classes is None:
        raise ContractError(f"data '{dataset.name}' have no classes")
    return len(dataset.classes)


def labelled_features(
    encoder: Encoder, dataset: Dataset, images: Images
) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]] | None:
    """Features [M, D] and labels [M] of the training images, and those of the test images, `images` of each at most.

    Of those that have a label. None for data without classes, or without images of either sort. NoLabelsError where no
    image has a label, or the training images are of one class: all would be right then.
    """
    if dataset.classes is None or len(dataset.train) == 0 or len(dataset.test) == 0:
        return None
    if reason := why_unmeasurable(dataset):
        raise NoLabelsError(reason)
    train, labels = encoder.features(dataset.train, at_most(images))
    if labels is None:
        raise NoLabelsError("the training images have no labels (-1)")
    refuse_one_class(labels.tolist(), dataset)
    test, truth = encoder.features(dataset.test, at_most(images))
    if truth is None:
        raise NoLabelsError("the test images have no labels (-1)")
    return (train, labels), (test, truth)


def lacking_labels(evaluator: Any, dataset: Dataset) -> str:
    """Why an evaluator that needs labels cannot use those of these data, as a clause; empty where it can.

    That there are none at all, as the data themselves say, is not its matter.
    """
    needs: frozenset[str] = getattr(evaluator, "needs", frozenset())
    return why_unmeasurable(dataset) if "labels" in needs and dataset.classes is not None else ""


def refuse_one_class(labels: Iterable[int], dataset: Dataset) -> None:
    """Raise NoLabelsError where the labels of training images are all of one class."""
    shown = set(labels)
    if len(shown) == 1:
        name = listed([(dataset.classes or ())[shown.pop()]])
        raise NoLabelsError(f"the training images that are looked at are of one class ({name}), which is no label")


def named(evaluators: Sequence[Any]) -> list[str]:
    """The evaluators' names, each once."""
    return list(dict.fromkeys(str(evaluator.name) for evaluator in evaluators))


def words_of(problem: Exception) -> str:
    """A sentence on whatever an evaluator has raised."""
    if isinstance(problem, MaskZooError):
        return str(problem)
    return str(loader_trouble(problem) or plugin_error(problem) or in_one_line(problem))
