"""How a folder of images was read, for a program and in words."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Literal

import attrs

from maskzoo.data.naming import counted, some
from maskzoo.plain import printable

ReadAs = Literal["splits", "classes", "unlabelled"]
READINGS: tuple[ReadAs, ...] = ("splits", "classes", "unlabelled")


@attrs.frozen
class Layout:
    """How a folder was read."""

    root: str
    reading: ReadAs
    train: int  # images
    test: int
    classes: tuple[str, ...] | None
    counts: Mapping[str, tuple[int, int]] = attrs.field(factory=dict)  # training and test images of each class
    train_folder: str = ""  # below the root, where it is not the root itself
    test_folder: str = ""
    held_out: bool = False  # whether the test images are some of those that were found
    unused: tuple[str, ...] = ()  # what is there and is not used, in numbers, each with its reason
    labelled_by: str = ""  # the name of the table that has the labels, where they are not those of folders
    test_split: str = ""  # what the test images are called in that table, where it has splits
    why_unlabelled: str = ""  # where it has no labels, though there are folders
    notes: tuple[str, ...] = ()  # what was decided where another might have read it otherwise

    def lines(self) -> list[str]:
        """The layout in words: what is read, what is not, and what was decided."""
        name = printable(os.path.basename(os.path.abspath(self.root)) or self.root)
        told = [f"data {name}: {self._labels()}, {self._images()}"]
        if self.unused:
            told.append(f"not used: {'; '.join(self.unused)}")
        return [*told, *self.notes]

    def _labels(self) -> str:
        if self.classes is None:
            return "no labels" + (f" ({self.why_unlabelled})" if self.why_unlabelled else "")
        noun = "class" if len(self.classes) == 1 else "classes"
        classes = f"{len(self.classes):,} {noun} ({some(self.classes)})"
        return f"{classes} of {self.labelled_by}" if self.labelled_by else classes

    def _images(self) -> str:
        where = f" in {printable(self.train_folder)}/" if self.train_folder else ""
        if self.held_out and not self.test:
            return f"{counted(self.train, 'training image')}{where}, too few to hold every tenth out for testing"
        if self.held_out:
            return f"{self.train:,} training and {counted(self.test, 'test image')} (every tenth held out){where}"
        trained = counted(self.train, "training image") + where
        if self.test_split:
            return f"{trained}, {counted(self.test, 'test image')} ({self.test_split})"
        if not self.test_folder:
            return f"{trained}, no test images"
        return f"{trained}, {counted(self.test, 'test image')} in {self.test_folder}/"


@attrs.frozen(eq=False)
class Found:
    """The images of a folder, and how it was read."""

    layout: Layout
    train: list[str]  # paths
    test: list[str]
    train_labels: list[int] | None
    test_labels: list[int] | None
    train_root: str  # the folders without which there are no such images
    test_root: str

    @property
    def classes(self) -> list[str] | None:
        """The names of the classes, by number; None without labels."""
        return None if self.layout.classes is None else list(self.layout.classes)
