"""Image files in folders, labelled by the names of their folders or not at all."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import attrs

from maskzoo.data.beside import Beside
from maskzoo.data.finding import find
from maskzoo.data.labels import NO_LABEL
from maskzoo.data.layout import READINGS, Found, Layout, ReadAs
from maskzoo.data.pixels import EXTENSIONS, Reading, ReadsImages
from maskzoo.data.sizes import Size, a_size, settle_size
from maskzoo.data.survey import ARCHIVES, begins_like_an_image
from maskzoo.data.tables import Table, read_table, table_path
from maskzoo.errors import DataError, RecipeError
from maskzoo.plain import not_empty, quoted
from maskzoo.protocols import Sample, Split, define


class SourceGoneError(DataError):
    """All images are out of reach, not one of them: there is no point in trying the next."""


@attrs.frozen(eq=False)
class ImageFiles:
    """A split of image files, decoded at each lookup; a file that cannot be decoded raises DataError, naming it."""

    files: Sequence[str]
    labels: Sequence[int] | None
    reading: Reading = attrs.field(factory=Reading)
    root: str | None = None  # the folder without which there are no files at all
    beside: Beside | None = None  # what lies beside the images
    fingerprint: str | None = None  # by which they are known again, where labels do not follow from the files' names

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> Sample:
        try:
            pixels = self.reading.read(self.files[index])
            label = None if self.labels is None or self.labels[index] == NO_LABEL else self.labels[index]
            sample = pixels.sample(label)
            return sample if self.beside is None else self.beside.joined(sample, self.files[index])
        except DataError:
            if self.root is not None:
                check_still_there(self.root)
            raise

    def size_at(self, index: int) -> Size:
        """Height and width of an image, upright, by its header."""
        return self.reading.size(*self.stored(index))

    def stored(self, index: int) -> tuple[str, str]:
        """The file of an image; it has a name of its own."""
        return self.files[index], ""

    def subset(self, positions: Sequence[int]) -> ImageFiles:
        """The images at `positions`."""
        labels = None if self.labels is None else [self.labels[position] for position in positions]
        return attrs.evolve(
            self, files=[self.files[position] for position in positions], labels=labels, fingerprint=None
        )


def endings_of_files(dataset: object, field: attrs.Attribute[Any], value: tuple[str, ...] | None) -> None:
    """Refuse what no file's name ends in, beginning with a dot."""
    if value is not None and (not value or not all(one.startswith(".") and len(one) > 1 for one in value)):
        raise RecipeError(
            f'must be endings with their dot, such as [".tif", ".png"], got {quoted(value)}', key=field.name
        )


@define
class Folder(ReadsImages):
    """Your own images: a folder of class folders, or of unlabelled images, with or without train and test inside."""

    name: ClassVar[str] = "folder"

    # the folder of images, or of class folders, or of train/ and test/
    root: str = attrs.field(validator=not_empty)
    # height and width; unless given, the images' own if it is one, or 224
    size: int | tuple[int, int] | None = attrs.field(default=None, validator=a_size)
    flip: bool = True  # whether a mirrored image still shows the same
    # what the folders are: "splits", "classes", or "unlabelled" (all images at any depth); unless given, what they look
    # like
    read_as: ReadAs | None = attrs.field(
        default=None, validator=attrs.validators.optional(attrs.validators.in_(READINGS))
    )
    # of the files that are images, such as ".tif"; unless given, all that can be read, arrays (.npy, .npz, .h5) only
    # where there are no pictures
    endings: tuple[str, ...] | None = attrs.field(default=None, validator=endings_of_files)
    # folders of files beside the images, at the same paths, by name: {parts = "FOLDER"}; "valid" is which pixels were
    # measured (not 0)
    extras: dict[str, str] = attrs.field(factory=dict)
    # a table with the labels, .csv or .parquet, such as "labels.csv": a path from the root, or an absolute one
    labels: str | None = attrs.field(default=None, validator=attrs.validators.optional(not_empty))
    # its columns with the files and with the labels; unless given, those called file, filename, path, image or id, and
    # label, class, target or category
    label_columns: tuple[str, str] | None = None
    # whether training images to which that table gives no label are left out
    labelled_only: bool = False

    def __attrs_post_init__(self) -> None:
        root = expanded(self.root)
        check_folder(root)
        endings = None if self.endings is None else [one.lower() for one in self.endings]
        found = find(root, self.read_as, endings, self._table(root), labelled_only=self.labelled_only)
        self.layout: Layout = found.layout
        self.remarks: Sequence[str] = found.layout.lines()
        train, test = found_splits(found)
        if self.extras:
            train, test = self._with_extras(root, train, test)
        reading = self.decide(train)
        self.train: Split = attrs.evolve(train, reading=reading)
        self.test: Split = attrs.evolve(test, reading=reading)
        self.classes: Sequence[str] | None = found.classes
        settle_size(self, self.train)

    def _table(self, root: Path) -> Table | None:
        """The table with the labels, if there is to be one."""
        if self.labels is None:
            for key in ("label_columns", "labelled_only"):
                if getattr(self, key):
                    raise RecipeError("is for the table in data.labels, which is not given", key=key)
            return None
        if self.read_as == "classes":
            raise RecipeError('"classes" takes labels from folders, and data.labels from a table', key="read_as")
        if self.labels.startswith("~"):
            self.labels = str(expanded(self.labels, "labels"))
        inside = os.path.join(os.path.abspath(root), "")
        if self.labels.startswith(inside):  # it moves with the images
            self.labels = self.labels.removeprefix(inside)
        return read_table(table_path(root, self.labels), self.label_columns)

    def _with_extras(self, root: Path, train: ImageFiles, test: ImageFiles) -> tuple[ImageFiles, ImageFiles]:
        """The splits, each image with what lies beside it; tells how many have nothing."""
        self.extras = {name: str(expanded(folder).absolute()) for name, folder in self.extras.items()}
        files = [*train.files, *test.files]
        tops = {os.fspath(split.root) for split in (train, test) if split.root is not None and len(split)}
        roots = [os.fspath(root), *(tops if len(tops) == 1 else ())]  # of several, one path would mean several images
        beside = Beside.of(roots, self.extras, files)
        self.remarks = [*self.remarks, *beside.told(files)]
        return attrs.evolve(train, beside=beside), attrs.evolve(test, beside=beside)


def check_still_there(root: str | os.PathLike[str]) -> None:
    """Raise SourceGoneError if a folder that held images is gone, or as empty as one whose disk was unmounted."""
    try:
        with os.scandir(root) as entries:
            if next(entries, None) is not None:
                return
        what = "is empty now"
    except OSError as error:
        what = f"cannot be opened any more ({error.strerror})"
    raise SourceGoneError(
        f"the folder '{root}' {what}, though it held images when the run began; bring it back (is its disk mounted?) "
        "and go on with --resume"
    )


def check_folder(path: Path) -> None:
    """Raise DataError unless `path` is a folder."""
    try:
        path.stat()
    except FileNotFoundError:
        raise DataError(f"'{path}' does not exist; `data.root` must name a folder of images") from None
    except OSError as error:  # such as a name that is too long, a link to itself, a folder that is not ours to see
        raise DataError(f"'{path}' cannot be opened ({error.strerror}); `data.root` must name a folder") from error
    if not path.is_dir():
        what, todo = "a file", ""
        if path.name.lower().endswith(ARCHIVES):
            what, todo = "an archive", ", so unpack it"
            if path.suffix.lower() == ".tar":
                todo += ', or name its folder with data.use = "shards" if it holds a shard of WebDataset'
        elif path.name.lower().endswith(EXTENSIONS) or begins_like_an_image(str(path)):
            what = "a single image"
        raise DataError(f"'{path}' is {what}; `data.root` must name a folder of images{todo}")


def expanded(root: str, key: str = "root") -> Path:
    """A path as it was named, with ~ as the user's own; RecipeError, for its key, for nobody's."""
    try:
        return Path(root).expanduser()
    except RuntimeError as problem:  # ~ of a user that there is not
        raise RecipeError(f"'{root}': {problem}", key=key) from problem


def found_splits(found: Found) -> tuple[ImageFiles, ImageFiles]:
    """The training and the test images that a layout tells."""
    return (
        ImageFiles(found.train, found.train_labels, root=found.train_root, fingerprint=_fingerprint(found)),
        ImageFiles(found.test, found.test_labels, root=found.test_root),
    )


def _fingerprint(found: Found) -> str | None:
    """By what training images and their labels are known again, where these are in a table; None where not."""
    if not found.layout.labelled_by:
        return None
    digest = hashlib.blake2b("\n".join(found.classes or ()).encode(), digest_size=8)
    for file, label in zip(found.train, found.train_labels or (), strict=True):
        digest.update(os.fsencode(f"\n{label} {os.path.relpath(file, found.layout.root)}"))
    return digest.hexdigest()
