"""What the names of folders say: splits, classes, images and their masks; and names in a message."""

from __future__ import annotations

import os
import re
import unicodedata
from collections.abc import Mapping, Sequence

from maskzoo.plain import printable

TRAIN = {"train", "training"}
# in the order in which they are taken
TEST = (
    "test",
    "testing",
    "val",
    "valid",
    "validation",
    "dev",
    "eval",
    "evaluation",
)
# train2017, training_set, test-images, val_256
SPLIT = re.compile(rf"({'|'.join([*sorted(TRAIN), *TEST])})([-_ ]?(set|images?|imgs?|data|split|\d{{1,4}}))*")
# Names of folders that say nothing of what is in the images.
GENERIC = {"image", "images", "img", "imgs", "jpegimages", "photos", "pictures", "data", "dataset", "all", "unknown"}
GENERIC |= {"unlabelled", "unlabeled", "none"}
IMAGES = {"image", "images", "img", "imgs", "jpegimages", "imagestr", "input", "inputs", "photos", "rgb"}
ANSWERS = {
    *("mask", "masks", "label", "labels", "annotation", "annotations", "gt", "groundtruth", "ground_truth", "depth"),
    *("target", "targets", "segmentation", "segmentations", "segmentationclass", "segmentationobject", "labelstr"),
}
OF_ANOTHER = re.compile(r"(.+?)[-_ .](masks?|seg|segmentation|gt|label|annotation)([-_ ]?\d+)?")  # stems of masks
MOST_NAMES = 4  # that are listed of anything


def slot_of(name: str) -> int | None:
    """0 for a name of the training split, from 1 on for those of others, None for no split's."""
    found = SPLIT.fullmatch(name.lower())
    if found is None:
        return None
    return 0 if found[1] in TRAIN else 1 + TEST.index(found[1])


def says_nothing(name: str) -> bool:
    """Whether a folder's name says nothing of what is in its images."""
    return name.lower() in GENERIC or slot_of(name) is not None


def label_of_folder(name: str) -> str:
    """A folder's name as the name of a class: composed, and with the bytes that are no text escaped."""
    return unicodedata.normalize("NFC", os.fsencode(name).decode("utf-8", "backslashreplace"))


def in_numbers(others: Mapping[str, int]) -> str:
    """Files in numbers, by their endings."""
    ranked = sorted(others.items(), key=lambda item: (-item[1], item[0]))
    clauses = [
        f"{counted(count, 'file')} {printable(end)[:12] if end else 'without an ending'}"
        for end, count in ranked[:MOST_NAMES]
    ]
    rest = sum(count for _, count in ranked[MOST_NAMES:])
    return ", ".join([*clauses, *([f"{rest:,} others"] if rest else [])])


def counted(count: int, noun: str) -> str:
    """A number and its noun: 1 image, 2,000 images."""
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {noun}s"


def some(names: Sequence[str]) -> str:
    """Names with commas between, and how many more there are."""
    shown = [f"{name[:60]}..." if len(name) > 64 else name for name in map(printable, names)]
    if len(shown) <= MOST_NAMES + 1:
        return ", ".join(shown)
    return f"{', '.join(shown[:MOST_NAMES])} and {len(shown) - MOST_NAMES:,} more"
