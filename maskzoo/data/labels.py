"""Labels of images: the one check of a label, whether data have any to learn from, and what is to be told of them.

Shapes: M images, K classes.
"""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Sequence
from typing import Any, Literal

import attrs
import torch

from maskzoo.errors import ContractError, DataError
from maskzoo.plain import printable, quoted
from maskzoo.protocols import Dataset, Sample, Split, Stream

NO_LABEL = -1  # where labels are numbers; so are all below it
NAMED = 5  # classes that a message lists
SPLITS = {"train": "training", "test": "test"}


class NoLabelsError(DataError):
    """What needs labels finds none, or nothing that could be told apart by them."""


def label_of(label: Any, classes: int | None, name: str) -> int | None:
    """A label as a number from 0 to `classes` - 1; None where an image, `name` in a message, has none.

    Whole numbers of any kind are labels: Python's, numpy's, tensors of one element, 3.0. None, NaN and all numbers
    below 0 mean that there is none. True and False are labels of two classes. `classes` is None where their number is
    not known. Raises ContractError for anything else, and for a label that is too large.
    """
    value = _plain(label)
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return None
    odd = isinstance(value, bool) and classes not in (None, 2)
    if odd or not isinstance(value, int | float) or (isinstance(value, float) and not value.is_integer()):
        raise ContractError(f"{name} has the label {quoted(value)}, which is no class's number")
    number = int(value)
    if number < 0:
        return None
    if classes is not None and number >= classes:
        counted = f"there are {classes} classes, 0 to {classes - 1}" if classes > 1 else "there is one class, 0"
        raise ContractError(f"{name} has the label {number}, and {counted}")
    return number


def _plain(label: Any) -> Any:
    """A label as Python has it, where it is a single number of numpy or torch."""
    if not hasattr(label, "item"):
        return label
    try:
        return label.item()
    except (ValueError, RuntimeError):  # several numbers
        return label


# ------------------------------------------------------------------------------------------- what is there in the data
@attrs.frozen
class Counts:
    """How many images of a split have which label."""

    images: int
    by_class: Sequence[int]  # [K]

    @property
    def unlabelled(self) -> int:
        """Images without a label."""
        return self.images - sum(self.by_class)

    @property
    def shown(self) -> int:
        """Classes of which there is an image."""
        return sum(count > 0 for count in self.by_class)


def counts_of(split: Split, classes: int) -> Counts | None:
    """How many images of a split have which label; None where that is not known without reading them.

    A split that knows its labels has an attribute `labels`, [M] numbers, below 0 where an image has none.
    """
    held = None if isinstance(split, Stream) else getattr(split, "labels", None)
    if held is None:
        return None
    try:
        values = torch.as_tensor(held)
    except (TypeError, ValueError, RuntimeError):
        return None
    if values.dtype in (torch.bool, torch.uint64) or values.is_floating_point() or values.is_complex():
        return None
    if values.shape != (len(split),) or (len(values) and int(values.max()) >= classes):
        return None  # something else; a label that is too large is told when its image is read
    return Counts(len(values), torch.bincount(values[values >= 0].long(), minlength=classes).tolist())


def unlabelled(dataset: Dataset, split: Literal["train", "test"] = "train") -> int:
    """How many images of a split have no label, as far as that is known without reading them."""
    images: Split = getattr(dataset, split)
    if dataset.classes is None:
        return len(images)
    counts = counts_of(images, len(dataset.classes))
    return 0 if counts is None else counts.unlabelled


def is_labelled(dataset: Dataset) -> bool:
    """Whether the training images have labels by which something can be told apart: of two classes or more."""
    return not why_unlabelled(dataset)


def why_none(dataset: Dataset) -> str:
    """Why a data set without classes has none, as far as its `layout` knows: a single folder is no class."""
    return str(getattr(getattr(dataset, "layout", None), "why_unlabelled", ""))


def why_unlabelled(dataset: Dataset) -> str:
    """Why nothing can learn from the labels of the training images, as a clause; empty where it can.

    What is not known without reading images counts as labelled.
    """
    if dataset.classes is None:
        reason = why_none(dataset)
        return f"data '{dataset.name}' have none" + (f": {reason}" if reason else "")
    if len(dataset.classes) < 2:
        name = f" ('{printable(dataset.classes[0])}')" if dataset.classes else ""
        return f"data '{dataset.name}' have one class{name}, which is no label"
    counts = counts_of(dataset.train, len(dataset.classes))
    if counts is None or counts.shown > 1 or not counts.images:
        return ""
    if not counts.shown:
        return "the training images have no labels (-1)"
    only = max(range(len(counts.by_class)), key=counts.by_class.__getitem__)
    return (
        f"all training images that have a label are of one class ('{printable(dataset.classes[only])}'), which is no "
        "label"
    )


def why_unmeasurable(dataset: Dataset) -> str:
    """Why nothing can be measured by the labels of training and test images, as a clause; empty where it can."""
    reason = why_unlabelled(dataset)
    if reason or dataset.classes is None:
        return reason
    counts = counts_of(dataset.test, len(dataset.classes))
    if counts is not None and counts.images and not counts.shown:
        return "the test images have no labels (-1)"
    return ""


def without_label(count: int, images: int, kind: str) -> str:
    """A message on the "training" or "test" images that have no label."""
    return f"{count} of {images} {kind} images have no label; what is measured by labels leaves them out"


# ------------------------------------------------------------------------------------------------ labelled images alone
@attrs.frozen(eq=False)
class Part:
    """The images at some positions of a split."""

    split: Split
    positions: Sequence[int]

    def __len__(self) -> int:
        return len(self.positions)

    def __getitem__(self, index: int) -> Sample:
        return self.split[self.positions[index]]


class LabelledAlone:
    """A data set of which only those training images are left that are known to have a label."""

    def __init__(self, dataset: Dataset) -> None:
        self.dataset, self.train = dataset, dataset.train
        if unlabelled(dataset) and not isinstance(dataset.train, Stream):
            labels: Any = torch.as_tensor(dataset.train.labels)  # type: ignore[attr-defined]  # they were counted
            self.train = Part(dataset.train, (labels >= 0).nonzero()[:, 0].tolist())

    def __getattr__(self, name: str) -> Any:
        return getattr(self.dataset, name)


def label_remarks(dataset: Dataset) -> list[str]:
    """What is to be told of the labels of a data set: one class, images without, classes without."""
    if dataset.classes is None:
        return []
    if reason := why_unmeasurable(dataset):
        return [f"{reason}; nothing that needs labels is measured"]
    told = []
    for split, images in (("train", dataset.train), ("test", dataset.test)):
        counts = counts_of(images, len(dataset.classes))
        if counts is None or not counts.images:
            continue
        if counts.unlabelled:
            told.append(without_label(counts.unlabelled, counts.images, SPLITS[split]))
        if counts.shown < len(dataset.classes):
            lacking = [dataset.classes[number] for number, count in enumerate(counts.by_class) if not count]
            told.append(
                f"the {SPLITS[split]} images show {counts.shown} of {len(dataset.classes)} classes, "
                f"none of {listed(lacking)}"
            )
    return told


# ----------------------------------------------------------------------------------------------------- names of classes
def listed(names: Sequence[str]) -> str:
    """Some class names in words."""
    shown = ", ".join(f"'{printable(name)}'" for name in names[:NAMED])
    return f"{shown} and {len(names) - NAMED} more" if len(names) > NAMED else shown


def older_classes(dataset: Dataset) -> Sequence[str] | None:
    """The classes as a checkpoint numbers them that is older than the names in it: in the data set's order of then."""
    older: Sequence[str] | None = getattr(dataset, "older_classes", None)
    return dataset.classes if older is None else older


def composed(names: Sequence[str]) -> list[str]:
    """Names as they compare: accents composed, as one file system writes them and another does not."""
    return [unicodedata.normalize("NFC", name) for name in names]


def difference(one: Sequence[str], other: Sequence[str]) -> str:
    """The first difference of two lists of classes as a clause, `one` being there and `other` here; empty: none."""
    there, here = composed(one), composed(other)
    if there == here:
        return ""
    if len(there) != len(here):
        counts = f"{len(there)} classes there, {len(here)} here"
        strange = [name for name in here if name not in set(there)] or [name for name in there if name not in set(here)]
        side = "here" if strange and strange[0] in here else "there"
        return f"{counts}" + (f"; only {side}: {listed(strange)}" if strange else "")
    place = next(number for number, pair in enumerate(zip(there, here, strict=True)) if pair[0] != pair[1])
    return f"class {place} is '{printable(one[place])}' there and '{printable(other[place])}' here"


def numbers_by_name(learned: Sequence[str], names: Sequence[str]) -> list[int] | None:
    """For each of `names` its number among the `learned` classes; None where one is not among them, or stands twice."""
    numbers = {name: number for number, name in enumerate(composed(learned))}
    wanted = composed(names)
    if len(numbers) < len(learned) or len(set(wanted)) < len(wanted) or not numbers.keys() >= set(wanted):
        return None
    return [numbers[name] for name in wanted]
