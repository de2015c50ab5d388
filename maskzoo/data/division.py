"""Which images of a folder are for training and which for testing, where their labels are in a table."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence

import attrs
import torch

from maskzoo.data.labels import NO_LABEL
from maskzoo.data.layout import ReadAs
from maskzoo.data.naming import TEST, counted, some
from maskzoo.data.rows import Rows, rows_of
from maskzoo.data.survey import Place
from maskzoo.data.tables import Table, refused
from maskzoo.data.telling import image_folders, inmost, refuse_answers, sorted_folders
from maskzoo.errors import DataError
from maskzoo.plain import printable
from maskzoo.seeds import stream

HELD_OUT = 10  # every tenth image is


@attrs.define(eq=False)
class Division:
    """Positions of training and of test images among the files, and what is told of it."""

    files: list[str]
    rows: Rows
    train: list[int]
    test: list[int]
    train_place: Place
    test_place: Place
    held_out: bool = False
    test_split: str = ""  # what the test images are called in the table, where it has splits
    taken: Sequence[int] = ()  # the ids of folders whose images are all used
    aside: Mapping[int, str] = attrs.field(factory=dict)  # of folders that are not used, and why
    notes: list[str] = attrs.field(factory=list)


def held_out(labels: Sequence[int] | None) -> tuple[list[int], list[int]]:
    """Positions of training images, and of every tenth that has a label, held out for testing."""
    labels = labels or ()
    labelled = [number for number, label in enumerate(labels) if label != NO_LABEL]
    order = torch.randperm(len(labelled), generator=stream(0, "hold out")).tolist()
    test = sorted(labelled[one] for one in order[: len(labelled) // HELD_OUT])
    aside = set(test)
    return [number for number in range(len(labels)) if number not in aside], test


def divided(top: Place, read_as: ReadAs | None, table: Table, *, labelled_only: bool = False) -> Division:
    """The images below a folder, by the splits of a table, or of folders; otherwise every tenth is held out.

    With `labelled_only`, training images without a label are left out.
    Raises DataError for folders of masks, which are no images, and where the table does not fit the images.
    """
    place = top if read_as == "unlabelled" else inmost(top)
    if read_as is None:
        _refuse_masks(place, table)
    files = top.files()
    rows = rows_of(table, files, top.path)
    trains, tests, others = sorted_folders(place)
    if read_as == "splits" and rows.slots is None and len(trains) != 1:
        raise DataError(
            f"'{place.path}' has no one folder 'train', and '{table.name}' no column 'split'; `data.read_as` says that "
            "there are splits"
        )
    if rows.slots is not None:
        given = _by_column(files, rows, top)
    elif read_as != "unlabelled" and len(trains) == 1 and (tests or not others):
        given = _by_folders(files, rows, trains[0], tests, others)
    else:
        given = Division(files, rows, *held_out(rows.labels), top, top, held_out=True, taken=[id(top)])
    lacking = [files[number] for number in sorted([*given.train, *given.test]) if not rows.has_row[number]]
    given.notes = [*rows.notes, *given.notes]
    bare = [number for number in given.train if rows.labels[number] == NO_LABEL]
    if labelled_only and bare:
        given.notes.append(f"not used: {counted(len(bare), 'training image')} without a label in {rows.name}")
        given.train = [number for number in given.train if rows.labels[number] != NO_LABEL]
    elif lacking:
        example = printable(os.path.relpath(lacking[0], top.path))
        given.notes.append(
            f"{counted(len(lacking), 'image')} {'has' if len(lacking) == 1 else 'have'} no row in {rows.name} "
            f"('{example}'), and so no label; data.labelled_only = true leaves them out"
        )
    return given


def _refuse_masks(place: Place, table: Table) -> None:
    """Raise DataError for folders of images and of their masks, of which none has a row."""
    try:
        refuse_answers(place, image_folders(place))
    except DataError:
        there = some([one.name for one in image_folders(place)])
        path = printable(os.path.abspath(table.path))
        raise DataError(
            f"'{place.path}' holds {there}, which look like images and their masks; name the folder of the images with "
            f'data.root, and the table with data.labels = "{path}", or set data.read_as to "unlabelled" if all are '
            "images"
        ) from None


def _by_folders(files: list[str], rows: Rows, train: Place, tests: list[Place], others: list[Place]) -> Division:
    """Training images of one folder, and test images of the first other that has labels, or held out."""
    numbers = {file: number for number, file in enumerate(files)}
    inside = [numbers[file] for file in train.files()]
    aside = {id(one): f"{counted(one.count, 'image')} beside the splits" for one in others}
    taken: Place | None = None
    for place in tests:
        labelled = any(rows.labels[numbers[file]] != NO_LABEL for file in place.files())
        if labelled and taken is None:
            taken = place
        else:
            why = "; one test split is used" if labelled else " without labels"
            aside[id(place)] = counted(place.count, "image") + why
    if taken is None:
        rest, held = held_out([rows.labels[number] for number in inside])
        rest, held = [inside[one] for one in rest], [inside[one] for one in held]
        return Division(files, rows, rest, held, train, train, held_out=True, taken=[id(train)], aside=aside)
    test = [numbers[file] for file in taken.files()]
    return Division(files, rows, inside, test, train, taken, taken=[id(train), id(taken)], aside=aside)


def _by_column(files: list[str], rows: Rows, top: Place) -> Division:
    """The splits of the table: test images are those of the first of test, val, ... that has labels."""
    places: dict[int | None, list[int]] = {}
    for number, slot in enumerate(rows.slots or ()):
        places.setdefault(slot, []).append(number)
    if not places.get(0):
        raise refused(f"no image that is there is of the split 'train' in '{rows.name}'")
    taken: int | None = None
    told = []
    for slot in sorted(one for one in places if one):
        count, labelled = len(places[slot]), any(rows.labels[number] != NO_LABEL for number in places[slot])
        if labelled and taken is None:
            taken = slot
        else:
            why = "one test split is used" if labelled else "they have no labels"
            told.append(f"not used: {counted(count, 'image')} of the split '{TEST[slot - 1]}' in {rows.name}; {why}")
    if None in places:
        told.append(f"not used: {counted(len(places[None]), 'image')} without a split in {rows.name}")
    test = [] if taken is None else places[taken]
    split = "" if taken is None else f"split '{TEST[taken - 1]}' of {rows.name}"
    return Division(files, rows, places[0], test, top, top, test_split=split, taken=[id(top)], notes=told)
