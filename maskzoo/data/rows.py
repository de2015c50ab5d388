"""What a table says of images: which image each row names, its class and its split.

Shapes: M images, K classes, R rows.
"""

from __future__ import annotations

import math
import os
import re
import unicodedata
from collections.abc import Sequence
from typing import Any

import attrs

from maskzoo.data.labels import NO_LABEL
from maskzoo.data.naming import counted, slot_of, some
from maskzoo.data.tables import Table, refused
from maskzoo.plain import printable, quoted

MISSING = ("", "nan", "NaN", "<NA>")  # as Python, numpy and pandas write what is not there
NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?")


@attrs.frozen(eq=False)
class Rows:
    """What a table says of M images."""

    name: str
    labels: Sequence[int]  # [M] numbers of classes, NO_LABEL for none
    classes: Sequence[str]  # [K]
    has_row: Sequence[bool]  # [M]
    slots: Sequence[int | None] | None  # [M] the split of each image, see `slot_of`; None without such a column
    notes: Sequence[str]  # what is to be told of rows that name no image, and the like


class _Images:
    """The images of a folder, to be found by the names that rows give them."""

    def __init__(self, files: Sequence[str], root: str, table: Table) -> None:
        self.paths = [_slashes(os.path.relpath(file, root)) for file in files]
        self.root = _slashes(os.path.abspath(root))
        self.by_path = {path: number for number, path in enumerate(self.paths)}
        self.by_name: dict[str, list[int]] = {}
        for number, path in enumerate(self.paths):
            name = path.rpartition("/")[2].casefold()
            for key in {name, os.path.splitext(name)[0]}:
                self.by_name.setdefault(key, []).append(number)
        self.beside = _slashes(os.path.relpath(os.path.dirname(os.path.abspath(table.path)), os.path.abspath(root)))

    def named(self, name: str, slot: int | None, dropped: str = "") -> list[int]:
        """The positions of the images that a row may mean; several where that cannot be known."""
        name = _slashes(name)
        name = os.path.normpath(name.removeprefix(self.root + "/").removeprefix(dropped))
        for wanted in (name, os.path.normpath(f"{self.beside}/{name}")):
            if wanted in self.by_path:
                return [self.by_path[wanted]]
        places = self.by_name.get(name.rpartition("/")[2].casefold(), ())
        if not places and re.fullmatch(r"\d+\.0", name):  # a number, as a table program writes it
            return self.named(name[:-2], slot)
        found = [number for number in places if _fits(self.paths[number], name)]
        for better in (
            [number for number in found if _same_letters(self.paths[number], name)],
            [number for number in found if _has_ending(self.paths[number], name)],
            [number for number in found if slot is not None and slot in map(slot_of, self.paths[number].split("/"))],
        ):
            found = better or found
        return found


def _slashes(path: str) -> str:
    """A path as it compares: Windows' separators as others', accents composed."""
    return unicodedata.normalize("NFC", path.replace("\\", "/"))


def _fits(path: str, name: str) -> bool:
    """Whether a path ends as the name of a row, in small or capital letters, with or without ending."""
    path, name = f"/{path.casefold()}", f"/{name.casefold()}"
    return path.endswith(name) or os.path.splitext(path)[0].endswith(name)


def _same_letters(path: str, name: str) -> bool:
    return f"/{path}".endswith(f"/{name}") or f"/{os.path.splitext(path)[0]}".endswith(f"/{name}")


def _has_ending(path: str, name: str) -> bool:
    return path.casefold().endswith(name.casefold())


def rows_of(table: Table, files: Sequence[str], root: str) -> Rows:
    """What a table says of the image files below a root.

    Raises DataError for a row that fits two images, for two rows of an image that differ, for values that are neither
    classes nor splits, and where no row names an image.
    """
    images = _Images(files, root, table)
    own_slot = slot_of(re.split(r"[-_. ]", table.name)[0])
    slots = None if table.splits is None else _slots(table, table.splits)
    row_slots = [own_slot] * len(table.labels) if slots is None else slots
    column, found, dropped = _found(table, images, row_slots)
    names = table.files[column]
    row_of: dict[int, int] = {}
    lost = []
    texts = _classes_of(table)
    for row, places in enumerate(found):
        if not places:
            lost.append(names[row] or f"row {row + 1}, which is empty")
            continue
        if len(places) > 1:
            two = " and ".join(f"'{printable(images.paths[place])}'" for place in places[:2])
            raise refused(
                f"'{printable(names[row])}' in '{table.name}' fits several images, {two}; write their paths from "
                "data.root, or name the folder of the images with data.root"
            )
        first = row_of.setdefault(places[0], row)
        for what, values in (("labels", texts), ("splits", row_slots)):
            if values[first] != values[row]:
                pair = (table.labels if what == "labels" else table.splits or ())[first :: row - first or 1][:2]
                raise refused(
                    f"'{table.name}' has two rows of '{printable(images.paths[places[0]])}' with different {what} "
                    f"({' and '.join(quoted(one) for one in pair)}); keep one of them"
                )
    notes = [f"the paths in {table.name} are read without '{printable(dropped)}'"] if dropped else []
    if lost:
        notes.append(f"{counted(len(lost), 'row')} of {table.name} name no image that is there ({some(lost[:1])})")
    return _numbered(table, [row_of.get(place) for place in range(len(files))], texts, slots, notes)


def _found(table: Table, images: _Images, slots: Sequence[int | None]) -> tuple[str, list[list[int]], str]:
    """The column that names images, the positions that each row may mean, and what was dropped from all paths."""
    for column, names in table.files.items():
        folders = [_slashes(name).split("/")[:-1] for name in names if name]
        shared = _shared(folders)
        for count in range(len(shared) + 1):  # folders above the root, perhaps of another computer
            dropped = "".join(f"{one}/" for one in shared[:count])
            found = [images.named(name, slot, dropped) if name else [] for name, slot in zip(names, slots, strict=True)]
            if any(found):
                return column, found, dropped
    column, names = next(iter(table.files.items()))
    raise refused(
        f"no row of '{table.name}' names an image: its column '{printable(column)}' has {some(names[:2])}, and the "
        f"images are called {some(images.paths[:2])}"
    )


def _shared(folders: list[list[str]]) -> list[str]:
    """The folders with which all of these paths begin."""
    first, last = min(folders, default=[]), max(folders, default=[])
    same = [one == two for one, two in zip(first, last, strict=False)]
    return first[: same.index(False)] if False in same else first[: len(same)]


def _slots(table: Table, splits: Sequence[str]) -> list[int | None]:
    """The split of each row as a number, None where it has none."""
    slots = []
    for value in splits:
        slot = slot_of(value)
        if slot is None and value not in MISSING:
            raise refused(f"'{table.name}' has the split {quoted(value)}; splits are called train, val and test")
        slots.append(slot)
    return slots


def _classes_of(table: Table) -> list[str | int | None]:
    """The class of each row: a whole number where all labels are numbers, otherwise a name; None for no label."""
    texts = [None if one in MISSING else unicodedata.normalize("NFC", one) for one in table.labels]
    there = [one for one in texts if one is not None]
    if not there:
        raise refused(f"the column '{table.label_column}' of '{table.name}' has no label in any row")
    if not all(NUMBER.fullmatch(one) for one in there):
        return list(texts)
    if odd := [one for one in there if not (math.isfinite(float(one)) and float(one).is_integer())]:
        raise refused(
            f"the column '{table.label_column}' of '{table.name}' holds {quoted(odd[0])}; classes are names or whole "
            "numbers"
        )
    numbers = [
        None if one is None else int(one) if re.fullmatch(r"[+-]?\d+", one) else int(float(one)) for one in texts
    ]
    return [None if one is None or one < 0 else one for one in numbers]


def _numbered(
    table: Table,
    row_of: Sequence[int | None],
    texts: Sequence[str | int | None],
    slots: Sequence[int | None] | None,
    notes: list[str],
) -> Rows:
    """The rows by image, the classes numbered in their order."""
    said = [None if row is None else texts[row] for row in row_of]
    there: set[Any] = {one for one in said if one is not None}
    if not there:
        raise refused(f"'{table.name}' has no label for any image that is there")
    classes = sorted(there)
    numbers = {one: number for number, one in enumerate(classes)}
    labelled = sum(one is not None for one in said)
    if len(classes) == labelled > 2:
        notes = [*notes, f"each image has a class of its own in the column '{table.label_column}'; is it the label?"]
    return Rows(
        name=table.name,
        labels=[NO_LABEL if one is None else numbers[one] for one in said],
        classes=[str(one) for one in classes],
        has_row=[row is not None for row in row_of],
        slots=None if slots is None else [None if row is None else slots[row] for row in row_of],
        notes=notes,
    )
