"""What counts as a label, for every source, and what is done where labels are lacking."""

from __future__ import annotations

import math
import re
from typing import Any

import attrs
import numpy as np
import pytest
import torch
from helpers import Images, noise_images

from maskzoo.data.labels import NO_LABEL, is_labelled, label_of, label_remarks, why_unlabelled, why_unmeasurable
from maskzoo.errors import ContractError


@attrs.define(eq=False)
class Labelled:
    """A data set whose splits have these labels; `classes` are numbered unless given."""

    labels: list[Any]
    tested: list[Any]
    count: int = 3
    name = "made-up"

    @property
    def train(self) -> Images:
        return Images(noise_images(len(self.labels), 3, 8, 8).images, self.labels)

    @property
    def test(self) -> Images:
        return Images(noise_images(len(self.tested), 3, 8, 8).images, self.tested)

    @property
    def classes(self) -> list[str]:
        return [f"kind {number}" for number in range(self.count)]


@pytest.mark.parametrize(
    ("label", "number"),
    [
        *((one, 2) for one in (2, 2.0, np.int64(2), np.uint8(2), np.float32(2), torch.tensor(2), torch.tensor([2]))),
        *((one, None) for one in (None, -1, -100, -1.0, np.int64(-1), torch.tensor(-1), math.nan, np.float64("nan"))),
        (np.array(1), 1),
        (np.array([1]), 1),
        (0, 0),
    ],
)
def test_whole_numbers_of_any_kind_are_labels_and_negative_ones_are_none(label: Any, number: int | None) -> None:
    found = label_of(label, 3, "image 7")
    assert found == number
    assert type(found) in (int, type(None))


@pytest.mark.parametrize("label", ["cat", "2", 2.5, math.inf, [1], np.array([1, 2]), torch.tensor([0.0, 1.0]), True])
def test_what_is_no_number_of_a_class_is_refused_with_the_image(label: Any) -> None:
    with pytest.raises(ContractError, match=r"image 7 has the label .*, which is no class's number"):
        label_of(label, 3, "image 7")


@pytest.mark.parametrize("label", [3, 4.0, np.int64(1000), torch.tensor(3)])
def test_a_label_that_is_too_large_is_told_with_image_label_and_number_of_classes(label: Any) -> None:
    with pytest.raises(ContractError, match=rf"image 7 has the label {int(label)}, and there are 3 classes, 0 to 2"):
        label_of(label, 3, "image 7")


def test_true_and_false_are_labels_of_two_classes() -> None:
    assert (label_of(True, 2, "image 7"), label_of(np.False_, 2, "image 7")) == (1, 0)


@pytest.mark.parametrize(
    ("labels", "tested", "count", "reason"),
    [
        ([0, 1, 2], [0, 1, 2], 3, ""),
        ([0, 0, 0], [0, 0, 0], 1, r"one class \('kind 0'\), which is no label"),
        ([2, 2, NO_LABEL], [2, 1, 0], 3, r"all training images .* one class \('kind 2'\)"),
        ([-1, -1], [0, 1], 3, r"the training images have no labels \(-1\)"),
        ([0, 1], [-1, -2], 3, r"the test images have no labels \(-1\)"),
    ],
)
def test_one_class_and_minus_one_are_no_labels(labels: list[int], tested: list[int], count: int, reason: str) -> None:
    dataset = Labelled(labels, tested, count)
    found = why_unmeasurable(dataset)
    assert bool(found) == bool(reason)
    assert re.search(reason, found)
    assert is_labelled(dataset) == (not reason or tested[0] < 0)
    assert any(re.search(reason, told) for told in label_remarks(dataset)) == bool(reason)


def test_images_and_classes_that_are_lacking_are_counted_and_told() -> None:
    dataset = Labelled([0, 1, -1, 1], [1, 1], 4)
    assert why_unlabelled(dataset) == ""
    first, second, third = label_remarks(dataset)
    assert first.startswith("1 of 4 training images have no label")
    assert second == "the training images show 2 of 4 classes, none of 'kind 2', 'kind 3'"
    assert third == "the test images show 1 of 4 classes, none of 'kind 0', 'kind 2', 'kind 3'"
