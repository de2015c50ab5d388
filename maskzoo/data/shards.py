"""Images in WebDataset's shards, looked up where they lie in the tar files: on this machine or by a URL.

Shapes: M images.
"""

from __future__ import annotations

import hashlib
import io
import json
import math
import os
import re
import tarfile
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import IO, Any, ClassVar

import attrs
import numpy as np
from numpy.typing import NDArray

from maskzoo.bounds import MOST_CLASSES, MOST_SHARDS, between
from maskzoo.data.pixels import Reading, ReadsImages
from maskzoo.data.places import Place, Remote, place_of
from maskzoo.data.sizes import a_size, settle_size
from maskzoo.errors import DataError, RecipeError
from maskzoo.plain import MOST_BYTES, not_empty, parse_json, quoted
from maskzoo.protocols import Sample, Split, define

INFO_FILES = ("_info.json", "info.json")  # what the shards of timm's data sets come with
NO_LABEL = -1
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
    labels: NDArray[np.int64] | None  # [M]
    reading: Reading = attrs.field(factory=Reading)

    def __len__(self) -> int:
        return len(self.start)

    def __getitem__(self, index: int) -> Sample:
        pixels = self.reading.read(*self.stored(index))
        return pixels.sample(None if self.labels is None else int(self.labels[index]))

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
        train = self._split(place, find_shards(place, self.train_split, "train_split"))
        files = find_shards(place, self.test_split, "test_split") if self.test_split else []
        test = self._split(place, files)
        if both := set(train.files) & set(test.files):
            raise RecipeError(f"'{min(both)}' is among the training images too", key="test_split")
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
        with ThreadPoolExecutor(AT_ONCE if isinstance(place, Remote) else 1) as pool:
            found = list(pool.map(lambda file: members(place, file, tuple(self.image_key), self.label_key), files))
        table = np.concatenate([np.empty((0, 3), dtype=np.int64), *found])
        labels = table[:, 2]
        lacking = int((labels == NO_LABEL).sum())
        if 0 < lacking < len(labels):
            raise DataError(
                f"{lacking} of {len(labels)} images in '{files[0]}' and its like have no '{self.label_key}'"
            )
        if files and not len(table):
            raise DataError(
                f"'{files[0]}' and its like hold no images; these would be members that end in "
                f"{', '.join(self.image_key)} (`data.image_key`)"
            )
        return ImagesInShards(
            place=place,
            files=files,
            shard=np.repeat(np.arange(len(files), dtype=np.int32), [len(one) for one in found]),
            start=table[:, 0],
            size=table[:, 1],
            labels=None if lacking or not self.label_key else labels,
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


def members(place: Place, file: str, image_key: tuple[str, ...], label_key: str) -> NDArray[np.int64]:
    """[M, 3]: first byte, number of bytes and label of each image of a shard; NO_LABEL where there is none.

    A large shard takes seconds to go through, so what was found is kept in the user's cache, under the shard's name,
    size and time of change, or what else its place says of that. Raises DataError for what is no whole, uncompressed
    tar file.
    """
    kept = None
    try:
        state = place.state(file)
        if state is not None:
            told = json.dumps([state, image_key, label_key])
            kept = cache_folder() / f"{hashlib.blake2b(told.encode(), digest_size=16).hexdigest()}.npy"
            if kept.is_file():
                return _checked_index(np.load(kept, allow_pickle=False), state[0])
    except (OSError, ValueError, EOFError):
        pass  # it can be gone through again; if the shard itself is the trouble, that will tell
    try:
        with place.opened(file) as content, tarfile.open(file, "r:", fileobj=content) as shard:
            table = np.array(list(_found(shard, image_key, label_key)), dtype=np.int64).reshape(-1, 3)
    except (tarfile.TarError, OSError, EOFError) as error:
        raise DataError(
            f"'{file}' is no whole, uncompressed tar file ({error}); fetch it anew, or unpack it if it is a .tar.gz"
        ) from error
    if kept is not None:
        _keep(kept, table)
    return table


def _keep(kept: Path, table: NDArray[np.int64]) -> None:
    try:
        kept.parent.mkdir(parents=True, exist_ok=True)
        beside = kept.with_name(f"{kept.stem}.{os.getpid()}.{threading.get_ident()}.part.npy")  # several begin at once
        np.save(beside, table)
        beside.replace(kept)
    except OSError:
        pass  # a full or read-only home costs the next run some seconds


def _checked_index(kept: Any, size: int) -> NDArray[np.int64]:
    """What was kept of a shard of so many bytes; ValueError where it cannot be that."""
    if not isinstance(kept, np.ndarray) or kept.dtype != np.int64 or kept.ndim != 2 or kept.shape[1] != 3:
        raise ValueError("it is something else")
    if len(kept) and (kept[:, :2].min() < 0 or kept[:, 2].min() < NO_LABEL or kept[:, :2].max() > size):
        raise ValueError("it lies outside the shard")
    return kept


def cache_folder() -> Path:
    """Where it is kept what shards hold."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "maskzoo" / "shards"


def _found(shard: tarfile.TarFile, image_key: tuple[str, ...], label_key: str) -> Iterator[tuple[int, int, int]]:
    """First byte, number of bytes and label of each image; what belongs together has one name up to the first dot."""
    ending, _, field = label_key.partition(":")
    current, image, label = "", None, NO_LABEL
    for member in shard:
        shard.members = []  # type: ignore[attr-defined]  # tarfile would keep them all
        if not member.isfile():
            continue
        folder, base = os.path.split(member.name)
        stem, _, extension = base.partition(".")
        key = os.path.join(folder, stem)
        if key != current:
            if image is not None:
                yield *image, label
            current, image, label = key, None, NO_LABEL
        if extension.lower() in image_key:
            image = image or (member.offset_data, member.size)
        elif ending and extension.lower() == ending:
            content = shard.extractfile(member)
            label = _label(b"" if content is None else content.read(), field, f"'{member.name}' in '{shard.name!s}'")
    if image is not None:
        yield *image, label


def _label(content: bytes, field: str, name: str) -> int:
    """The class's number that a member's content is, or that this field of it is."""
    try:
        value = parse_json(content, name)[field] if field else int(content)
    except (DataError, ValueError, LookupError, TypeError) as error:
        raise DataError(f"{name} holds no class's number ({error!r}); correct `data.label_key`") from error
    if not isinstance(value, int) or value < 0:
        raise DataError(f"{name} holds {value!r} instead of a class's number, 0 or more; correct `data.label_key`")
    return value
