"""Images in WebDataset's shards, looked up where they lie in the tar files: on this machine or by a URL.

Shapes: M images.
"""

from __future__ import annotations

import io
import math
import re
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import IO, ClassVar

import attrs
import numpy as np
from numpy.typing import NDArray

from maskzoo.bounds import MOST_CLASSES, MOST_SHARDS, between
from maskzoo.data.contents import contents, passed_over, told
from maskzoo.data.labels import NO_LABEL
from maskzoo.data.pixels import Reading, ReadsImages
from maskzoo.data.places import Place, Remote, place_of
from maskzoo.data.sizes import a_size, settle_size
from maskzoo.errors import DataError, RecipeError
from maskzoo.plain import MOST_BYTES, not_empty, parse_json, quoted
from maskzoo.protocols import Sample, Split, define

INFO_FILES = ("_info.json", "info.json")  # what the shards of timm's data sets come with
AT_ONCE = 8  # shards that are gone through side by side where each is fetched for it


@attrs.frozen(eq=False)
class ImagesInShards:
    """A split of images in uncompressed tar files, read and decoded at each lookup.

    Nothing is held open between two lookups, so that any number of processes may share a split.
    """

    place: Place
    files: Sequence[str]  # the shards
    shard: NDArray[np.int32]  # [M] which of the files an image is in
    start: NDArray[np.int64]  # [M] its first byte
    size: NDArray[np.int64]  # [M] how many bytes it has
    labels: NDArray[np.int64] | None  # [M], NO_LABEL where an image has none; None: nowhere is any
    reading: Reading = attrs.field(factory=Reading)

    def __len__(self) -> int:
        return len(self.start)

    def __getitem__(self, index: int) -> Sample:
        pixels = self.reading.read(*self.stored(index))
        label = NO_LABEL if self.labels is None else int(self.labels[index])
        return pixels.sample(None if label == NO_LABEL else label)

    @property
    def labelled(self) -> bool:
        """Whether any image has a label."""
        return self.labels is not None and bool((self.labels != NO_LABEL).any())

    def stored(self, index: int) -> tuple[IO[bytes], str]:
        """The bytes of an image, and where they lie."""
        file, start, size = self.files[self.shard[index]], int(self.start[index]), int(self.size[index])
        content = self.place.read(file, start, size)
        name = f"the image at byte {start} of '{file}'"
        if len(content) < size:
            raise DataError(f"{name} is cut short; fetch the shard anew")
        return io.BytesIO(content), name


@define
class Shards(ReadsImages):
    """WebDataset's shards: tar files of images in a folder or at a URL, each with its class's number beside it."""

    name: ClassVar[str] = "shards"

    # the folder of the tar files, or a URL that fsspec reads, such as s3://bucket/folder
    root: str = attrs.field(validator=not_empty)
    train_split: str = "train-*.tar"  # a pattern, also like train-{0000..0146}.tar, or a split's name in _info.json
    test_split: str = ""  # the same for the test images; empty: none
    image_key: tuple[str, ...] = ("jpg", "jpeg", "png", "webp")  # endings of the members that are images
    label_key: str = "cls"  # the ending of the member that holds the number; "json:field" for a field of one in JSON
    # number of classes; None: as many as the labels show
    class_count: int | None = attrs.field(default=None, validator=attrs.validators.optional(between(1, MOST_CLASSES)))
    # height and width; unless given, the images' own if it is one, or 224
    size: int | tuple[int, int] | None = attrs.field(default=None, validator=a_size)
    flip: bool = True  # whether a mirrored image still shows the same

    def __attrs_post_init__(self) -> None:
        place = place_of(self.root)
        self.remarks: Sequence[str] = []
        train = self._split(place, find_shards(place, self.train_split, "train_split"))
        files = find_shards(place, self.test_split, "test_split") if self.test_split else []
        test = self._split(place, files)
        if both := set(train.files) & set(test.files):
            raise RecipeError(f"'{min(both)}' is among the training images too", key="test_split")
        if not train.labelled:
            train, test = (attrs.evolve(split, labels=None) for split in (train, test))
        reading = self.decide(train)
        self.train: Split = attrs.evolve(train, reading=reading)
        self.test: Split = attrs.evolve(test, reading=reading)
        self.classes: Sequence[str] | None = None
        if train.labels is not None:
            if self.class_count is None:
                self.class_count = int(train.labels.max()) + 1
            self.classes = [str(number) for number in range(self.class_count)]
            for split in (train, test):
                if split.labels is not None and len(split) and int(split.labels.max()) >= self.class_count:
                    raise RecipeError(
                        f"there is the label {int(split.labels.max())}, so there are more than {self.class_count} "
                        "classes",
                        key="class_count",
                    )
        settle_size(self, self.train)

    def _split(self, place: Place, files: Sequence[str]) -> ImagesInShards:
        keys = tuple(one.lower().removeprefix(".") for one in self.image_key)
        with ThreadPoolExecutor(AT_ONCE if isinstance(place, Remote) else 1) as pool:
            each = list(pool.map(lambda file: contents(place, file, keys, self.label_key), files))
        found = dict(zip(files, each, strict=True))
        table = np.concatenate([np.empty((0, 3), dtype=np.int64), *(one.table for one in each)])
        if files and not len(table):
            passed = passed_over(found)
            raise DataError(
                f"'{files[0]}' and its like hold no images; these would be members that end in {', '.join(keys)} "
                "(`data.image_key`), after the first dot of their name" + (f"; there are {passed}" if passed else "")
            )
        self.remarks = [*self.remarks, *told(found, keys, self.label_key)]
        labels = table[:, 2]
        return ImagesInShards(
            place=place,
            files=files,
            shard=np.repeat(np.arange(len(files), dtype=np.int32), [len(one.table) for one in each]),
            start=table[:, 0],
            size=table[:, 1],
            labels=labels,
        )


def find_shards(place: Place, split: str, key: str) -> list[str]:
    """The shards that a split's name or a pattern means, in order; RecipeError, for the option `key`, if there is none.

    A pattern is one of the shell, in which {0000..0146} is a range of numbers.
    """
    named = _listed(place, split)
    files: list[str] = []
    if not named:
        check_ranges(split, key)
        for pattern in _numbered(split):
            if any(sign in pattern for sign in "*?["):
                files += place.found(pattern)
            elif pattern != split or place.is_file(place.at(pattern)):
                named.append(place.at(pattern))
    if not files and not named:
        raise RecipeError(
            f"no shard in '{place.root}' is meant by '{split}'; write a pattern such as train-*.tar", key=key
        )
    with ThreadPoolExecutor(AT_ONCE) as pool:
        for file, there in zip(named, pool.map(place.is_file, named), strict=True):
            if not there:
                raise DataError(f"the shard '{file}' is missing, of those that `data.{key}` names")
    return files + named


def _listed(place: Place, split: str) -> list[str]:
    """The shards that a file beside them lists for a split of this name."""
    for name in INFO_FILES:
        file = place.at(name)
        if not place.is_file(file):
            continue
        try:
            if (size := place.size(file)) > MOST_BYTES:
                raise DataError(f"'{file}' cannot be read: it is larger than {MOST_BYTES // 2**20} MiB")
            listed = parse_json(place.read(file, 0, size), f"'{file}'")["splits"].get(split)
            files = [] if listed is None else [place.at(str(one)) for one in listed["filenames"]]
        except (LookupError, TypeError, AttributeError) as error:
            raise DataError(f"'{file}' does not list splits and their files ({error!r})") from error
        if files:
            return files
    return []


def check_ranges(pattern: str, key: str) -> None:
    """Raise RecipeError where the ranges of numbers in a pattern stand for more shards than there can be."""
    ranges = re.findall(r"\{(\d{1,30})\.\.(\d{1,30})[^}]*\}", pattern)
    count = math.prod(max(0, int(last) - int(first) + 1) for first, last in ranges)
    if count > MOST_SHARDS or re.search(r"\d{31}", pattern):
        raise RecipeError(f"{quoted(pattern)} stands for more than {MOST_SHARDS:,} shards", key=key)


def _numbered(pattern: str) -> Iterator[str]:
    """The texts that a pattern with ranges {0000..0146} stands for."""
    found = re.search(r"\{(\d+)\.\.(\d+)\}", pattern)
    if found is None:
        yield pattern
        return
    for number in range(int(found[1]), int(found[2]) + 1):
        head, tail = pattern[: found.start()], pattern[found.end() :]
        yield from _numbered(f"{head}{number:0{len(found[1])}d}{tail}")
