"""The one table of what a folder of images is: splits, classes, or images without labels; and what is not used.

An image folder is one that holds images at any depth. Splits are called train (training, train2017, training_set, ...)
and test, val or their like, in capitals too.

| in the folder                                                    | is read as                                      |
|------------------------------------------------------------------|-------------------------------------------------|
| images, and no image folder                                      | images without labels                           |
| one image folder: with images directly in it / with folders      | images without labels / what that folder is     |
| image folders, none of them called train                         | a class each; every tenth image is held out     |
| image folders called train, test, val and their like alone       | splits; refused where there is no train         |
| train and image folders that are no splits:                      |                                                 |
| - a class of train is a class of test too                        | splits; the others are not used                 |
| - no other split, and train is built as the others are           | a class each, which is told                     |
| - otherwise                                                      | refused: it can be read in two ways             |
| images, and image folders                                        | refused; but images beside splits are not used  |
| image folders called images and masks, or their like             | refused                                         |
| image folders, and one in which no file is taken that may be one | refused                                         |

`read_as` decides where the table refuses. The training split is read by the same table; test images come from the first
of test, val, ... that has the labels of training, or that has images where training has no labels.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence

import attrs

from maskzoo.data.division import divided, held_out
from maskzoo.data.layout import Found, Layout, ReadAs
from maskzoo.data.naming import counted, in_numbers, label_of_folder, says_nothing, slot_of, some
from maskzoo.data.pixels import EXTENSIONS
from maskzoo.data.survey import Place, ending, survey
from maskzoo.data.tables import Table, label_tables
from maskzoo.data.telling import (
    below,
    image_folders,
    inmost,
    left_by_us,
    masks_among,
    mixed,
    no_images,
    ours_alone,
    refuse_answers,
    sorted_folders,
    why_none,
)
from maskzoo.errors import DataError
from maskzoo.marks import is_our_folder
from maskzoo.plain import printable


@attrs.define(eq=False)
class _Part:
    """The images of one split, or of all."""

    place: Place  # where they are: the folder of class folders, or of unlabelled images
    files: list[str]
    labels: list[int] | None = None
    classes: list[str] | None = None
    spelled: Mapping[str, str] = attrs.field(factory=dict)  # class -> its folder's name, which may be decomposed


def find(
    root: str | os.PathLike[str],
    read_as: ReadAs | None = None,
    endings: Sequence[str] | None = None,
    labels: Table | None = None,
    *,
    labelled_only: bool = False,
) -> Found:
    """The images below a folder, read as the table says, or as is asked for. Raises DataError where it says nothing.

    Images are the files with these `endings`; unless given, with all that can be read. With `labels`, theirs are in
    that table, and folders tell splits alone; `labelled_only` leaves out training images that have none.
    """
    path = os.fspath(root)
    if kind := is_our_folder(path):
        raise DataError(f"'{path}' is a {kind} of MaskZoo, no folder of images; name the folder that the images are in")
    place = survey(path, endings or EXTENSIONS, arrays_beside=endings is None)
    reader = _Reader(place, read_as, endings or EXTENSIONS)
    return reader.found() if labels is None else reader.found_by(labels, labelled_only=labelled_only)


class _Reader:
    """Reads a folder by the table, and remembers what it took, what it put aside, and why."""

    def __init__(self, top: Place, read_as: ReadAs | None, endings: Sequence[str]) -> None:
        self.top, self.read_as, self.endings = top, read_as, endings
        self.notes: list[str] = []
        self.single = ""  # the only folder of training images
        self.taken: set[int] = set()  # the ids of folders whose images are all used
        self.aside: dict[int, str] = {}  # of folders that are not used, and why

    def found(self) -> Found:
        """What the table says of the folder."""
        if not self.top.has_images:
            raise DataError(no_images(self.top, self.endings))
        if self.read_as == "unlabelled":
            return self._whole(self._unlabelled(self.top))
        place = self.top
        while True:
            trains, tests, others = sorted_folders(place)
            if self.read_as != "classes" and trains and self._are_splits(place, trains, tests, others):
                return self._splits(trains[0], tests, others)
            if tests and not others and self.read_as is None:
                _refuse_empty_training(place, tests)
            folders = [*trains, *tests, *others]
            if len(folders) != 1 or place.images or folders[0].images:
                break
            self._refuse_lost(place)
            place = folders[0]
        if self.read_as == "splits":
            raise DataError(f"'{place.path}' has no folder 'train', and `data.read_as` says that it has splits")
        if len(tests) > 1 and not others and self.read_as is None:
            raise DataError(
                f"'{place.path}' holds {some([one.name for one in tests])}, and no 'train'; name one of them with "
                "`data.root`, call one 'train', or set `data.read_as` to \"classes\" if these are classes"
            )
        return self._whole(self._part(place))

    # ----------------------------------------------------------------------------------------------------------- table
    def found_by(self, table: Table, *, labelled_only: bool) -> Found:
        """All images by the labels of a table, and by its splits, or those of folders."""
        if not self.top.has_images:
            raise DataError(no_images(self.top, self.endings))
        for place in self.top.all():
            if place.real == os.path.dirname(os.path.realpath(table.path)):
                place.passed[ending(os.path.basename(table.path))] -= 1  # it is used
        given = divided(self.top, self.read_as, table, labelled_only=labelled_only)
        self.notes += given.notes
        self.taken, self.aside = set(given.taken), dict(given.aside)
        part = _Part(given.train_place, given.files, list(given.rows.labels), list(given.rows.classes))
        test = _subset(part, given.test)
        test.place = given.test_place
        reading: ReadAs = "classes" if given.held_out else "splits"
        found = self._told(reading, _subset(part, given.train), test, held_out=given.held_out)
        return attrs.evolve(
            found, layout=attrs.evolve(found.layout, labelled_by=table.name, test_split=given.test_split)
        )

    # ---------------------------------------------------------------------------------------------------------- splits
    def _are_splits(self, place: Place, trains: list[Place], tests: list[Place], others: list[Place]) -> bool:
        """Whether a folder train is a split; DataError where that cannot be known."""
        if len(trains) > 1:
            raise DataError(
                f"'{place.path}' holds {some([one.name for one in trains])}, each of which could be the training "
                "images; name one of them with `data.root`, or rename the others"
            )
        if self.read_as == "splits" or not others:
            return True
        train = trains[0]
        inner = {label_of_folder(one.name) for one in image_folders(train)}
        if any(inner & {label_of_folder(one.name) for one in image_folders(test)} for test in tests):
            return True
        like_others = not inner or all(
            image_folders(one) and not inner & {label_of_folder(two.name) for two in image_folders(one)}
            for one in others
        )
        if not tests and like_others:
            self.notes.append(
                f"the folder '{printable(train.name)}' is read as a class, since {some([one.name for one in others])} "
                'beside it hold images too; if it is the training split, set `data.read_as` to "splits"'
            )
            return False
        raise DataError(
            f"'{place.path}' can be read in two ways: '{train.name}' is the training split, and the images in "
            f'{some([one.name for one in others])} are not used (`data.read_as` = "splits"), or each of its '
            f'{len(others) + len(tests) + 1} folders is a class (`data.read_as` = "classes"); say which'
        )

    def _splits(self, train: Place, tests: list[Place], others: list[Place]) -> Found:
        for other in others:
            self.aside[id(other)] = f"{counted(other.count, 'image')} beside the splits"
        part = self._part(train)
        return self._told("splits", part, self._test(part, tests), held_out=False)

    def _test(self, train: _Part, tests: list[Place]) -> _Part | None:
        """The test images: of the first of these folders that suits the training images."""
        taken: _Part | None = None
        strange: DataError | None = None
        for place in tests:
            number = counted(place.count, "image")
            if taken is not None:
                self.aside[id(place)] = f"{number}; one test split is used"
            elif train.classes is None:
                taken = self._unlabelled(inmost(place))
            else:
                try:
                    taken = self._labelled(place, train)
                    why = "without labels"
                except _StrangeError as problem:
                    strange, why = strange or problem, "of other classes"
                if taken is None:
                    self.aside[id(place)] = f"{number} {why}"
        if taken is None and strange is not None:
            raise strange
        return taken

    def _labelled(self, place: Place, train: _Part) -> _Part | None:
        """The test images of a split by the classes of training; None where they have no labels."""
        start = place
        while True:
            folders, known = image_folders(place), set(train.classes or ())
            if any(label_of_folder(one.name) in known for one in folders):
                if place.images:
                    raise DataError(mixed(place, folders))
                return self._by_class(place, folders, train)
            if place.images:
                return None
            if len(folders) > 1 or (folders[0].images and not says_nothing(folders[0].name)):
                return self._by_class(start, image_folders(start), train)
            place = folders[0]

    # ---------------------------------------------------------------------------------------------------------- images
    def _part(self, place: Place) -> _Part:
        """The images of a folder without splits, by classes or without labels."""
        start, folders = place, image_folders(place)
        while True:
            if folders:
                self._refuse_lost(place)
            if place.images and folders and place is start and self.read_as != "classes":
                raise DataError(mixed(place, folders))
            if len(folders) != 1 or place.images:
                break
            place, folders = folders[0], image_folders(folders[0])
            if place.images:
                self.single = printable(place.name)
                folders = []
        if len(folders) < 2:
            if self.read_as == "classes":
                raise DataError(
                    f"'{start.path}' has no two folders of images, and `data.read_as` says that its folders are classes"
                )
            return self._unlabelled(place)
        if self.read_as is None:
            refuse_answers(place, folders)
        return self._by_class(place, folders)

    def _unlabelled(self, place: Place) -> _Part:
        """All images in and below a folder."""
        self.taken.add(id(place))
        return _Part(place, place.files())

    def _by_class(self, place: Place, folders: list[Place], train: _Part | None = None) -> _Part:
        """Images labelled by their folders; those of a test split by the classes of training."""
        self._refuse_lost(place)
        names = [label_of_folder(one.name) for one in folders]
        twice = [name for name, count in Counter(names).items() if count > 1]
        if twice:
            raise DataError(
                f"'{place.path}' has {names.count(twice[0])} folders called '{twice[0]}', which differ only in how "
                "letters are encoded (composed or decomposed accents); merge them"
            )
        spelled = {name: one.name for name, one in zip(names, folders, strict=True)}
        classes = names
        if train is not None:
            classes = list(train.classes or ())
            if strange := [name for name in names if name not in train.spelled]:
                raise _StrangeError.of(place, strange[0], classes, any(name in train.spelled for name in names))
            if other := [name for name in names if train.spelled[name] != spelled[name]]:
                self.notes.append(
                    f"the class {some(other)} is encoded in two ways, with composed and with decomposed accents, and "
                    "taken as one"
                )
        numbers = {name: number for number, name in enumerate(classes)}
        files: list[str] = []
        labels: list[int] = []
        for name, one in zip(names, folders, strict=True):
            inside = one.files()
            files += inside
            labels += [numbers[name]] * len(inside)
        self.taken |= {id(one) for one in folders}
        return _Part(place, files, labels, classes, spelled)

    def _refuse_lost(self, place: Place) -> None:
        """Raise DataError for a folder beside image folders that cannot be listed, or whose files may be images."""
        for one in place.folders:
            for inner in one.all():
                inner.refuse_closed()
            if one.lost:
                raise DataError(
                    f"the folder '{one.path}' holds {in_numbers(one.others())}, and none that ends as an image does "
                    f"({', '.join(self.endings)}); convert or rename them, name their ending in `data.endings`, or "
                    "move the folder away"
                )

    # --------------------------------------------------------------------------------------------------------- telling
    def _whole(self, part: _Part) -> Found:
        """All images as one set, every tenth held out where they have labels."""
        if part.labels is None:
            return self._told("unlabelled", part, None, held_out=False)
        train, test = (_subset(part, positions) for positions in held_out(part.labels))
        return self._told("classes", train, test, held_out=True)

    def _told(self, reading: ReadAs, train: _Part, test: _Part | None, *, held_out: bool) -> Found:
        test = test or _Part(train.place, [], None if train.labels is None else [])
        tables = label_tables(self.top.path, train.place.path) if train.classes is None else ()
        layout = Layout(
            root=self.top.path,
            reading=reading,
            train=len(train.files),
            test=len(test.files),
            classes=None if train.classes is None else tuple(train.classes),
            counts=_counts(train, test),
            train_folder=below(train.place, self.top),
            test_folder="" if held_out or not test.files else below(test.place, self.top),
            held_out=held_out,
            unused=(*self._unused(reading), *left_by_us(self.top)),
            why_unlabelled=f"there is only one folder, '{self.single}'" if self.single else "",
            notes=(*self.notes, *masks_among([*train.files, *test.files]), *tables),
        )
        return Found(layout, train.files, test.files, train.labels, test.labels, train.place.path, test.place.path)

    def _unused(self, reading: ReadAs) -> Iterator[str]:
        """What is there and was not taken, with its reason."""
        others: Counter[str] = Counter()
        hidden, loose, aside, empty, dangling = 0, 0, [], [], []
        waiting = [(self.top, id(self.top) in self.taken)]
        while waiting:
            place, taken = waiting.pop()
            others += place.passed
            hidden += place.hidden
            dangling += [os.path.join(below(place, self.top), name) for name in place.dangling]
            loose += 0 if taken else len(place.images)
            for one in place.folders:
                inside = taken or id(one) in self.taken
                if id(one) in self.aside:
                    aside.append(f"{below(one, self.top)}/ ({self.aside[id(one)]})")
                elif inside or one.has_images:
                    waiting.append((one, inside))
                elif not ours_alone(one):
                    empty.append(f"{below(one, self.top)}/ ({why_none(one)})")
        if others:
            yield in_numbers(others)
        if hidden:
            yield f"{counted(hidden, 'image')} with a name that begins with a dot"
        if loose:
            yield f"{counted(loose, 'image')} beside the {'splits' if reading == 'splits' else 'class folders'}"
        yield from sorted(aside)
        if dangling:
            yield f"{'link that leads' if len(dangling) == 1 else 'links that lead'} nowhere: {some(dangling)}"
        if empty:
            yield f"{'folder' if len(empty) == 1 else 'folders'} {some(sorted(empty))}"


def _refuse_empty_training(place: Place, tests: Sequence[Place]) -> None:
    """Raise DataError for test images beside a folder for training images that has none."""
    for one in place.folders:
        one.refuse_closed()
        if slot_of(one.name) == 0:
            raise DataError(
                f"'{place.path}' holds {some([test.name for test in tests])}, and no images in '{one.name}'; fill it, "
                "or name the folder to train on with `data.root`"
            )


class _StrangeError(DataError):
    """Test images of classes that training lacks altogether."""

    @staticmethod
    def of(place: Place, name: str, classes: Sequence[str], partly: bool) -> DataError:
        """The error for a class that training lacks; a plain DataError where others are known."""
        return (DataError if partly else _StrangeError)(
            f"'{place.path}' has the class '{name}', which the training images do not have; "
            f"theirs are {', '.join(classes[:10])}{', ...' if len(classes) > 10 else ''}"
        )


def _subset(part: _Part, positions: Sequence[int]) -> _Part:
    labels = None if part.labels is None else [part.labels[position] for position in positions]
    return _Part(part.place, [part.files[position] for position in positions], labels, part.classes)


def _counts(train: _Part, test: _Part) -> dict[str, tuple[int, int]]:
    if train.classes is None:
        return {}
    here, there = Counter(train.labels or ()), Counter(test.labels or ())
    return {name: (here[number], there[number]) for number, name in enumerate(train.classes)}
