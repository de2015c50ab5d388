"""Image files in folders, labelled by the names of their folders or not at all."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar

import attrs
import torch

from maskzoo.bounds import MOST_SIDE
from maskzoo.data.pixels import EXTENSIONS, Reading, ReadsImages, opened
from maskzoo.errors import DataError, RecipeError
from maskzoo.plain import not_empty, quoted
from maskzoo.protocols import Sample, Split, Stream, define
from maskzoo.seeds import stream

PROBED = 32  # images that are asked for their size
USUAL_SIZE = (224, 224)


class SourceGoneError(DataError):
    """All images are out of reach, not one of them: there is no point in trying the next."""


@attrs.frozen(eq=False)
class ImageFiles:
    """A split of image files, decoded at each lookup; a file that cannot be decoded raises DataError, naming it."""

    files: Sequence[str]
    labels: Sequence[int] | None
    reading: Reading = attrs.field(factory=Reading)
    root: str | None = None  # the folder without which there are no files at all

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> Sample:
        try:
            pixels = self.reading.read(self.files[index])
        except DataError:
            if self.root is not None:
                check_still_there(self.root)
            raise
        return pixels.sample(None if self.labels is None else self.labels[index])

    def subset(self, positions: Sequence[int]) -> ImageFiles:
        """The images at `positions`."""
        labels = None if self.labels is None else [self.labels[position] for position in positions]
        return attrs.evolve(self, files=[self.files[position] for position in positions], labels=labels)


def a_size(dataset: object, field: attrs.Attribute[Any], value: int | tuple[int, int] | None) -> None:
    """Refuse a height or width, in pixels, that no image has."""
    sides = () if value is None else (value,) if isinstance(value, int) else value
    if any(not 1 <= side <= MOST_SIDE for side in sides):
        raise RecipeError(f"must be between 1 and {MOST_SIDE} pixels a side, got {quoted(value)}", key=field.name)


@define
class Folder(ReadsImages):
    """Your own images: a folder of class folders, or of unlabelled images, with or without train and test inside."""

    name: ClassVar[str] = "folder"

    # the folder of images, or of class folders, or of train/ and test/
    root: str = attrs.field(validator=not_empty)
    # height and width; unless given, the images' own if it is one, or 224
    size: int | tuple[int, int] | None = attrs.field(default=None, validator=a_size)
    flip: bool = True  # whether a mirrored image still shows the same

    def __attrs_post_init__(self) -> None:
        root = expanded(self.root)
        check_folder(root)
        train, test, classes = find_splits(root)
        reading = self.decide(train)
        self.train: Split = attrs.evolve(train, reading=reading)
        self.test: Split = attrs.evolve(test, reading=reading)
        self.classes: Sequence[str] | None = classes
        self.size = settled_size(self.size, train)


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
        raise DataError(f"'{path}' is a file; `data.root` must name a folder of images")


def expanded(root: str) -> Path:
    """A folder as it was named, with ~ as the user's own; RecipeError, for the key `root`, for nobody's."""
    try:
        return Path(root).expanduser()
    except RuntimeError as problem:  # ~ of a user that there is not
        raise RecipeError(f"'{root}': {problem}", key="root") from problem


def find_splits(root: Path) -> tuple[ImageFiles, ImageFiles, Sequence[str] | None]:
    """The training and test images under `root`, and their classes.

    They are what the folders train and test (or val, or validation) hold. Without a folder train, every tenth image
    of a labelled set is held out, always the same ones, and none of an unlabelled set. Raises DataError.
    """
    if not os.path.isdir(root / "train"):
        images, classes = find_images(root)
        if classes is None:
            return images, images.subset([]), None
        order = torch.randperm(len(images), generator=stream(0, "hold out")).tolist()
        held_out = len(images) // 10
        return images.subset(sorted(order[held_out:])), images.subset(sorted(order[:held_out])), classes

    train, classes = find_images(root / "train")
    for name in ("test", "val", "validation"):
        if (root / name).is_dir():
            test, test_classes = find_images(root / name, known=classes)
            if (classes is None) != (test_classes is None):
                labelled, loose = ("train", name) if test_classes is None else (name, "train")
                raise DataError(f"'{root / labelled}' has class folders, '{root / loose}' has none; make them alike")
            return train, test, classes
    return train, train.subset([]), classes


def find_images(folder: Path, known: Sequence[str] | None = None) -> tuple[ImageFiles, Sequence[str] | None]:
    """The images under `folder` and their classes: the names of the folders directly in it that hold images.

    Images directly in `folder` have no labels. Where classes are `known`, labels are positions among those. Raises
    DataError where there are no images, both loose and in folders, or a class that is not known.
    """
    try:
        entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
    except OSError as error:
        raise DataError(f"'{folder}' cannot be listed ({error.strerror}); make it readable") from error
    loose, folders = [], []
    for entry in entries:
        if entry.is_dir():
            folders.append(entry)
        elif is_image(entry.name):
            loose.append(entry.path)
    by_class = {entry.name: sorted(walk(entry.path)) for entry in folders if not entry.name.startswith(".")}
    by_class = {name: files for name, files in by_class.items() if files}
    if loose and by_class:
        raise DataError(
            f"'{folder}' holds both loose images ('{Path(loose[0]).name}') and folders of images "
            f"('{next(iter(by_class))}'); a labelled set has folders only, an unlabelled one has none"
        )
    if loose:
        return ImageFiles(loose, None, root=str(folder)), None
    if not by_class:
        raise DataError(f"'{folder}' holds no images; these would be files that end in {', '.join(EXTENSIONS)}")
    classes = list(by_class) if known is None else known
    strange = [name for name in by_class if name not in classes]
    if strange:
        raise DataError(
            f"'{folder}' has the class '{strange[0]}', which the training images do not have; "
            f"theirs are {', '.join(classes[:10])}{', ...' if len(classes) > 10 else ''}"
        )
    numbers = {name: number for number, name in enumerate(classes)}
    files = [file for paths in by_class.values() for file in paths]
    labels = [numbers[name] for name, paths in by_class.items() for _ in paths]
    return ImageFiles(files, labels, root=str(folder)), classes


def is_image(name: str) -> bool:
    """Whether a file of this name is one of the images; hidden files, such as those of macOS, are not."""
    return name.lower().endswith(EXTENSIONS) and not name.startswith(".")


def walk(folder: str) -> Iterator[str]:
    """The image files at any depth, in no particular order; links are followed, each real folder is seen once."""
    seen = set()
    for place, folders, names in os.walk(folder, onerror=_unlisted, followlinks=True):
        real = os.path.realpath(place)
        if real in seen:  # a link that leads back up
            folders.clear()
            continue
        seen.add(real)
        folders[:] = [name for name in folders if not name.startswith(".")]
        yield from (os.path.join(place, name) for name in names if is_image(name))


def _unlisted(error: OSError) -> None:
    """Images that are left out in silence would make the classes others."""
    raise DataError(f"'{error.filename}' cannot be listed ({error.strerror}); make it readable, or move it away")


def settled_size(size: int | tuple[int, int] | None, split: Split) -> tuple[int, int]:
    """Height and width to which a data set brings its images: as asked for, else their own if it is one, or 224."""
    return (size, size) if isinstance(size, int) else size or common_size(split) or USUAL_SIZE


def common_size(split: Split) -> tuple[int, int] | None:
    """The height and width that images evenly spread over the split share, if they do; unreadable ones are skipped.

    Nothing is known of a stream, of which that would mean reading all.
    """
    probed = 0 if isinstance(split, Stream) else min(PROBED, len(split))
    sizes = set()
    for number in range(probed):
        position = number * len(split) // probed
        try:
            if isinstance(split, ImageFiles):
                with opened(split.files[position]) as image:  # the header alone
                    sizes.add((image.height, image.width))
            else:
                height, width = split[position].image.shape[-2:]
                sizes.add((height, width))
        except DataError:  # its lookup will tell
            continue
    return sizes.pop() if len(sizes) == 1 else None
