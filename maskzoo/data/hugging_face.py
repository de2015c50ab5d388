"""Data sets of Hugging Face: from the Hub by name, or from a folder that the library `datasets` has written or reads.

Shapes: M images.
"""

from __future__ import annotations

import hashlib
import io
import logging
import os
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, ClassVar

import attrs
import numpy as np
import torch
from numpy.typing import NDArray

from maskzoo.bounds import MOST_CLASSES
from maskzoo.data.folder import check_still_there
from maskzoo.data.library import library
from maskzoo.data.looking import places_of
from maskzoo.data.pixels import PICTURES, Reading, ReadsImages
from maskzoo.data.sizes import a_size, settle_size
from maskzoo.errors import DataError, RecipeError
from maskzoo.plain import not_empty, quoted
from maskzoo.protocols import Sample, Split, define
from maskzoo.seeds import stream

NAME = re.compile(r"\w[\w.-]*(/\w[\w.-]*)?")  # of a data set on the Hub
TEST_SPLITS = ("test", "validation", "valid", "val", "dev", "eval")  # in the order in which they are taken
IMAGE_NAMES = ("image", "img", "jpg", "jpeg", "png", "webp", "tif", "tiff", "pixel_values", "pixels")
LABEL_NAMES = ("label", "labels", "cls", "class")
ARRAYS = ("Array2D", "Array3D")
NO_LABEL = -1
FINGERPRINTED = 32  # images whose bytes are among what a data set is known again by
MOST_NAMED = 8  # columns, splits or classes in a message
LOUD = ("datasets", "huggingface_hub", "fsspec", "httpx")  # libraries that log what is said here in one message


@attrs.frozen(eq=False)
class ImagesInTable:
    """A split of images in a column of an Arrow table, decoded at each lookup; a broken one raises DataError."""

    table: Any  # a datasets.Dataset of the images' column alone, not decoded
    column: str
    rows: NDArray[np.int64]  # [M] of the table
    labels: NDArray[np.int64] | None  # [M]
    place: str  # the data set and its split, for messages
    folder: str | None = None  # without which there are no images at all
    reading: Reading = attrs.field(factory=Reading)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Sample:
        file, name = self.stored(index)
        label = None if self.labels is None or self.labels[index] == NO_LABEL else int(self.labels[index])
        return self.reading.read(file, name).sample(label)

    def stored(self, index: int) -> tuple[str | IO[bytes], str]:
        """The file of an image, or its content, and what to call it. Raises DataError where there is none."""
        row = int(self.rows[index])
        content, path = self._held(row)
        if isinstance(content, np.ndarray):  # whose axes and kind of number the reader of such files knows
            held = io.BytesIO()
            np.save(held, content, allow_pickle=False)
            content = held.getvalue()
        name = f"row {row} of {self.place}" + (f" ('{os.path.basename(path)}')" if path else "")
        if content is not None:
            return io.BytesIO(content), name
        if not path:
            raise DataError(f"{name} has no image; remove the row")
        if "://" in path:  # a foreign table decides on no place that is fetched from
            raise DataError(f"{name} is a place elsewhere instead of an image; save the data set with its images")
        if self.folder is not None and not os.path.exists(path):
            check_still_there(self.folder)
        return path, name

    def size_at(self, index: int) -> tuple[int, int]:
        """Height and width of an image, upright, by its header."""
        return self.reading.size(*self.stored(index))

    def _held(self, row: int) -> tuple[Any, str | None]:
        """The bytes, or the array, and the path that the column holds in a row."""
        try:
            held = self.table[row][self.column]
        except Exception as error:  # whatever Arrow raises for files that are gone or damaged
            raise DataError(f"row {row} of {self.place} cannot be read ({error}); fetch it anew") from error
        return (held.get("bytes"), held.get("path")) if isinstance(held, Mapping) else (held, None)

    def subset(self, positions: Sequence[int]) -> ImagesInTable:
        """The images at `positions`."""
        labels = None if self.labels is None else self.labels[positions]
        return attrs.evolve(self, rows=self.rows[positions], labels=labels)

    @property
    def labelled(self) -> bool:
        """Whether any image has a label."""
        return self.labels is not None and bool((self.labels != NO_LABEL).any())

    @property
    def fingerprint(self) -> str:
        """What the images are known again by, wherever they lie: all labels, and the bytes of some of the images."""
        hashed = hashlib.blake2b(digest_size=8)
        hashed.update(b"" if self.labels is None else np.ascontiguousarray(self.labels).tobytes())
        for place in places_of(len(self), FINGERPRINTED):
            content, path = self._held(int(self.rows[place]))
            hashed.update(os.path.basename(path or "").encode() if content is None else bytes(content))
        return hashed.hexdigest()


@define
class HuggingFace(ReadsImages):
    """A data set of Hugging Face, by its name on the Hub or in a folder: saved to disk, parquet, Arrow or images."""

    name: ClassVar[str] = "hf"

    # the name on the Hub, such as uoft-cs/cifar10, or a folder on this machine
    path: str = attrs.field(validator=not_empty)
    # which one, of a data set that has several configurations
    config: str | None = attrs.field(default=None, validator=not_empty)
    train_split: str = attrs.field(default="train", validator=not_empty)  # name of the training split
    # name of the test split; empty: none; None: test or validation, whichever has labels, or else a tenth of the images
    test_split: str | None = None
    # column of the images; None: the one that holds images
    image_column: str | None = attrs.field(default=None, validator=not_empty)
    label_column: str | None = None  # column of the labels; empty: none; None: the one that holds classes
    # height and width; unless given, the images' own if it is one, or 224
    size: int | tuple[int, int] | None = attrs.field(default=None, validator=a_size)
    flip: bool = True  # whether a mirrored image still shows the same

    def __attrs_post_init__(self) -> None:
        self.remarks: Sequence[str] = []
        folder = folder_of(self.path)
        if folder is not None:
            self.path = folder  # absolute: a relative one means something else in each folder
        splits = splits_of(self.path, self.config, folder)
        check_split(self.train_split, splits, "train_split")
        table = splits[self.train_split]
        self.image_column = image_column(table.features, self.image_column)
        asked, self.label_column = self.label_column, label_column(table.features, self.label_column)
        if asked is None and not self.label_column and len(table.features) > 1:
            self._tell(
                f"no column of '{self.path}' is taken for labels; {listed(table.features)}, and "
                "data.label_column chooses one that holds whole numbers or texts"
            )
        names = class_names(table, self.label_column) if self.label_column else []
        self.classes: Sequence[str] | None = names or None
        if self.label_column and not names:
            self._tell(f"the column '{self.label_column}' of '{self.path}' has no labels but those below 0, for none")
        if folder is not None and (unused := unused_files(folder, splits)):
            self._tell(unused)
        train, test = self._test(splits, self._split(splits, self.train_split, folder), folder)
        reading = self.decide(train)
        self.train: Split = attrs.evolve(train, reading=reading)
        self.test: Split = attrs.evolve(test, reading=reading)
        settle_size(self, self.train)

    def _split(self, splits: Mapping[str, Any], name: str, folder: str | None) -> ImagesInTable:
        """The images of a split, with labels where any of them has one."""
        table, column = splits[name], self.image_column
        if column not in table.features:
            raise RecipeError(f"the split '{name}' has no column '{column}'; {listed(table.features)}")
        labels, place = None, f"the split '{name}' of '{self.path}'"
        if self.classes is not None:
            labels = labels_of(table, str(self.label_column), self.classes, place)
        feature, alone = table.features[column], table.select_columns([column]).with_format(None)
        if type(feature).__name__ in ARRAYS:
            alone = alone.with_format("numpy", dtype=np.dtype(feature.dtype))  # else whole numbers become int64
        if type(feature).__name__ == "Image":
            alone = alone.cast_column(column, library("datasets", "maskzoo[data]").Image(decode=False))
        return ImagesInTable(alone, str(column), np.arange(len(table)), labels, place, folder)

    def _test(
        self, splits: Mapping[str, Any], train: ImagesInTable, folder: str | None
    ) -> tuple[ImagesInTable, ImagesInTable]:
        """The training and the test images, which are those of another split, or held out as a folder's are."""
        if self.test_split:
            check_split(self.test_split, splits, "test_split")
            if self.test_split == self.train_split:
                raise RecipeError("the test images would be the training images", key="test_split")
            return train, self._split(splits, self.test_split, folder)
        if self.test_split is not None:
            return train, train.subset([])
        there = [name for name in TEST_SPLITS if name in splits and name != self.train_split]
        tests = {name: self._split(splits, name, folder) for name in there}
        labelled = [name for name, test in tests.items() if test.labelled]
        if train.labelled and labelled and labelled[0] != there[0]:
            self._tell(
                f"the split '{there[0]}' of '{self.path}' has no labels, so '{labelled[0]}' holds the test images"
            )
        if there:
            self.test_split = (labelled if train.labelled and labelled else there)[0]
            return train, tests[self.test_split]
        if not train.labelled:
            return train, train.subset([])
        order = torch.randperm(len(train), generator=stream(0, "hold out")).tolist()
        held_out = len(train) // 10
        return train.subset(sorted(order[held_out:])), train.subset(sorted(order[:held_out]))


# ------------------------------------------------------------------------------------------------------------- opening
def folder_of(path: str) -> str | None:
    """The absolute path of a folder; None for a name on the Hub. Raises RecipeError where it can be neither."""
    try:
        place = Path(path).expanduser()
        if place.is_dir():
            return os.path.abspath(place)
        file = place.exists()
    except (OSError, ValueError, RuntimeError):  # such as a name that is too long, or ~ of a user that there is not
        file = False
    if file:
        raise RecipeError(f"'{path}' is a file; name the folder that it is in", key="path")
    if not NAME.fullmatch(path):
        raise RecipeError(
            f"{quoted(path)} is neither a folder nor a name on the Hub, such as uoft-cs/cifar10", key="path"
        )
    return None


def splits_of(path: str, config: str | None, folder: str | None) -> Mapping[str, Any]:
    """The splits of a data set by name; DataError, RecipeError for whatever the library raises.

    Programs that come with a data set are never run.
    """
    datasets = library("datasets", "maskzoo[data]")
    if config is not None and folder is not None and saved(Path(folder)):
        raise RecipeError(f"'{path}' was saved with one configuration alone; leave it out", key="config")
    older = int(datasets.__version__.partition(".")[0]) < 4  # which would run them if it were asked to
    safe = {"trust_remote_code": False} if older else {}
    try:
        with quiet(datasets):
            if folder is not None and saved(Path(folder)):
                found = datasets.load_from_disk(folder)
            else:
                found = datasets.load_dataset(path, config, **safe)
    except Exception as error:  # nearly everything: errors of files, networks, formats and names
        raise _refused(path, folder, error) from error
    return dict(found) if isinstance(found, Mapping) else {"train": found}


def saved(folder: Path) -> bool:
    """Whether the library has saved a data set, or one of several splits, in a folder."""
    return (folder / "dataset_dict.json").is_file() or (folder / "state.json").is_file()


def _refused(path: str, folder: str | None, error: Exception) -> DataError | RecipeError:
    """What could not be opened, in a message."""
    words = " ".join(str(error).split()) or type(error).__name__
    if "onfig name is missing" in words or "BuilderConfig" in words:
        there = re.search(r"\[(.*?)\]", words)
        return RecipeError(f"say which; '{path}' has {there[1] if there else words}", key="config")
    if folder is not None:
        return DataError(f"'{path}' cannot be read as a data set of Hugging Face: {words}")
    offline = isinstance(error, ConnectionError) or "offline" in words.lower() or "Couldn't reach" in words
    if offline:
        return DataError(
            f"'{path}' cannot be fetched, since the Hugging Face Hub cannot be reached, and it is not in the cache of "
            "this machine; fetch it where there is a network (datasets.load_dataset), save it with save_to_disk, and "
            "name that folder"
        )
    return DataError(f"'{path}' cannot be fetched from the Hugging Face Hub: {words}")


@contextmanager
def quiet(datasets: Any) -> Iterator[None]:
    """Without the libraries' own lines about tries and progress, which belong to no log of a run."""
    levels = {name: logging.getLogger(name).level for name in LOUD}
    shown = not datasets.are_progress_bars_disabled()
    try:
        for name in LOUD:
            logging.getLogger(name).setLevel(logging.CRITICAL)
        datasets.disable_progress_bars()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)
        if shown:
            datasets.enable_progress_bars()


def unused_files(folder: str, splits: Mapping[str, Any]) -> str:
    """What to tell of image files in a folder that the library has read as images and not taken; empty: nothing."""
    used = sum(len(table) for table in splits.values())
    there = 0
    for _, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        there += sum(name.lower().endswith(PICTURES) and not name.startswith(".") for name in files)
    if there <= used:
        return ""
    names = ", ".join(f"'{name}'" for name in splits)
    return (
        f"of {there:,} image files in '{folder}' the library `datasets` takes {used:,}, as the splits {names}; --data "
        "with the folder alone reads them by their classes"
    )


# ------------------------------------------------------------------------------------------------- splits and columns
def check_split(name: str, splits: Mapping[str, Any], key: str) -> None:
    """Raise RecipeError unless there is a split of this name with rows in it."""
    if name not in splits:
        there = ", ".join(f"'{split}' ({len(table):,})" for split, table in list(splits.items())[:MOST_NAMED])
        raise RecipeError(f"there is no split '{name}'; there are {there}", key=key)
    if not len(splits[name]):
        raise RecipeError(f"the split '{name}' is empty", key=key)


def listed(features: Mapping[str, Any]) -> str:
    """The columns of a table, in words."""
    names = [f"'{name}' ({kind_of(feature)})" for name, feature in features.items()]
    return f"its columns are {', '.join(names[:MOST_NAMED])}{', ...' if len(names) > MOST_NAMED else ''}"


def kind_of(feature: Any) -> str:
    """What a column holds, in a word or two."""
    if type(feature).__name__ == "ClassLabel":
        return f"{feature.num_classes} classes"
    return str(getattr(feature, "dtype", None) if type(feature).__name__ == "Value" else type(feature).__name__).lower()


def holds_images(feature: Any) -> bool:
    """Whether a column holds images, or arrays or the bytes of files that may be images."""
    if isinstance(feature, Mapping):  # as parquet has them without the library's own notes
        return set(feature) == {"bytes", "path"}
    return type(feature).__name__ in ("Image", *ARRAYS) or getattr(feature, "dtype", None) in ("binary", "large_binary")


def image_column(features: Mapping[str, Any], asked: str | None) -> str:
    """The column of the images: the one that was asked for, or the one there is. Raises RecipeError."""
    if asked is not None:
        if asked not in features:
            raise RecipeError(f"there is no column '{asked}'; {listed(features)}", key="image_column")
        if not holds_images(features[asked]):
            raise RecipeError(
                f"the column '{asked}' holds no images ({kind_of(features[asked])}); {listed(features)}",
                key="image_column",
            )
        return asked
    there = [name for name, feature in features.items() if type(feature).__name__ == "Image"]
    there = there or [name for name, feature in features.items() if holds_images(feature)]
    if not there:
        raise RecipeError(f"no column holds images; {listed(features)}", key="image_column")
    named = [name for name in there if name.lower() in IMAGE_NAMES]
    if len(there) > 1 and len(named) != 1:
        raise RecipeError(f"several columns hold images ({', '.join(there)}); say which", key="image_column")
    return named[0] if named else there[0]


def label_column(features: Mapping[str, Any], asked: str | None) -> str:
    """The column of the labels: the one that was asked for, or the one there is; empty: none. Raises RecipeError."""
    if asked is not None:
        if asked and asked not in features:
            raise RecipeError(f"there is no column '{asked}'; {listed(features)}", key="label_column")
        return asked
    there = [name for name, feature in features.items() if type(feature).__name__ == "ClassLabel"]
    named = [name for name in there or features if name.lower() in LABEL_NAMES]
    if not there:  # numbers or names whose table of classes was not saved
        there = [name for name in named if is_label(features[name])]
    if len(there) > 1 and len(named) != 1:
        raise RecipeError(
            f'several columns hold classes ({", ".join(there)}); say which, or "" for no labels', key="label_column"
        )
    return next((name for name in there if name in named), there[0] if there else "")


def is_label(feature: Any) -> bool:
    """Whether a column holds whole numbers or texts."""
    dtype = str(getattr(feature, "dtype", ""))
    return type(feature).__name__ == "Value" and (dtype in ("string", "large_string") or "int" in dtype)


# -------------------------------------------------------------------------------------------------------------- labels
def values_of(table: Any, column: str) -> Any:
    """A whole column, as an array of Arrow."""
    try:
        return table.select_columns([column]).with_format("arrow")[:][column]
    except Exception as error:
        raise DataError(f"the column '{column}' cannot be read ({error}); fetch the data set anew") from error


def class_names(table: Any, column: str) -> list[str]:
    """The classes by number: their own names, the texts of the column in order, or the numbers up to the largest."""
    feature = table.features[column]
    if type(feature).__name__ == "ClassLabel":
        return [str(name) for name in feature.names]
    if not is_label(feature):
        raise RecipeError(
            f"the column '{column}' holds no classes ({kind_of(feature)}), which are whole numbers or texts",
            key="label_column",
        )
    values = [value for value in values_of(table, column).unique().to_pylist() if value is not None]
    if values and isinstance(values[0], str):
        return sorted(values)
    if (count := max(values, default=NO_LABEL) + 1) > MOST_CLASSES:
        raise RecipeError(
            f"the column '{column}' has a label of {count - 1}, which is no class's number", key="label_column"
        )
    return [str(number) for number in range(count)]


def labels_of(table: Any, column: str, classes: Sequence[str], place: str) -> NDArray[np.int64]:
    """[M] the number of each row's class, NO_LABEL for none; DataError, naming the row, for one that is unknown."""
    if column not in table.features:  # as in test images whose labels are kept secret
        return np.full(len(table), NO_LABEL, dtype=np.int64)
    values = values_of(table, column)
    if str(values.type) in ("string", "large_string"):
        numbers = {name: number for number, name in enumerate(classes)}
        found = [NO_LABEL if value is None else numbers.get(value, len(classes)) for value in values.to_pylist()]
        labels = np.array(found, dtype=np.int64)
    else:
        labels = values.fill_null(NO_LABEL).to_numpy().astype(np.int64)
    labels = np.maximum(labels, NO_LABEL)  # any number below 0 stands for none
    if len(labels) and int(labels.max()) >= len(classes):
        row = int((labels >= len(classes)).argmax())
        raise DataError(
            f"row {row} of {place} has the label {quoted(values[row].as_py())} in the column '{column}', which is none "
            f"of the {len(classes)} classes"
        )
    return labels
