"""Images in WebDataset's shards on this machine, looked up where they lie in the tar files.

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
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar

import attrs
import numpy as np
from numpy.typing import NDArray

from maskzoo.bounds import MOST_CLASSES, MOST_SHARDS, between
from maskzoo.data.folder import a_size, check_folder, check_still_there, expanded, settled_size
from maskzoo.data.pixels import Reading, ReadsImages
from maskzoo.errors import DataError, RecipeError
from maskzoo.plain import not_empty, parse_json, quoted, read_json
from maskzoo.protocols import Sample, Split, define

INFO_FILES = ("_info.json", "info.json")  # what the shards of timm's data sets come with
NO_LABEL = -1


@attrs.frozen(eq=False)
class ImagesInShards:
    """A split of images in uncompressed tar files, read and decoded at each lookup.

    Nothing is held open between two lookups, so that any number of processes may share a split.
    """

    root: str
    files: Sequence[str]  # the shards
    shard: NDArray[np.int32]  # [M] which of the files an image is in
    start: NDArray[np.int64]  # [M] its first byte
    size: NDArray[np.int64]  # [M] how many bytes it has
    labels: NDArray[np.int64] | None  # [M]
    reading: Reading = attrs.field(factory=Reading)

    def __len__(self) -> int:
        return len(self.start)

    def __getitem__(self, index: int) -> Sample:
        file, start, size = self.files[self.shard[index]], int(self.start[index]), int(self.size[index])
        try:
            with open(file, "rb") as shard:
                shard.seek(start)
                content = shard.read(size)
        except OSError as error:
            check_still_there(self.root)
            raise DataError(f"shard '{file}' cannot be read ({error.strerror}); bring it back") from error
        name = f"the image at byte {start} of '{file}'"
        if len(content) < size:
            raise DataError(f"{name} is cut short; fetch the shard anew")
        pixels = self.reading.read(io.BytesIO(content), name)
        return pixels.sample(None if self.labels is None else int(self.labels[index]))


@define
class Shards(ReadsImages):
    """WebDataset's shards on this machine: tar files of images, each with its class's number beside it."""

    name: ClassVar[str] = "shards"

    # the folder of the tar files
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
        root = expanded(self.root)
        check_folder(root)
        train = self._split(root, find_shards(root, self.train_split, "train_split"))
        files = find_shards(root, self.test_split, "test_split") if self.test_split else []
        test = self._split(root, files)
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
        self.size = settled_size(self.size, train)

    def _split(self, root: Path, files: Sequence[Path]) -> ImagesInShards:
        found = [members(file, tuple(self.image_key), self.label_key) for file in files]
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
            root=str(root),
            files=[str(file) for file in files],
            shard=np.repeat(np.arange(len(files), dtype=np.int32), [len(one) for one in found]),
            start=table[:, 0],
            size=table[:, 1],
            labels=None if lacking or not self.label_key else labels,
        )


def find_shards(root: Path, split: str, key: str) -> list[Path]:
    """The shards that a split's name or a pattern means, in order; RecipeError, for the option `key`, if there is none.

    A pattern is one of the shell, in which {0000..0146} is a range of numbers.
    """
    for name in INFO_FILES:
        if (root / name).is_file():
            try:
                listed = read_json(root / name)["splits"].get(split)
                files = [] if listed is None else [root / file for file in listed["filenames"]]
            except (LookupError, TypeError, AttributeError) as error:
                raise DataError(f"'{root / name}' does not list splits and their files ({error!r})") from error
            if files:
                break
    else:
        files = []
        check_ranges(split, key)
        for pattern in _numbered(split):
            if any(sign in pattern for sign in "*?["):
                files += sorted(root.glob(pattern))
            elif pattern != split or os.path.isfile(root / pattern):  # False also for a name that no file can have
                files.append(root / pattern)
    if not files:
        raise RecipeError(f"no shard in '{root}' is meant by '{split}'; write a pattern such as train-*.tar", key=key)
    for file in files:
        if not os.path.isfile(file):
            raise DataError(f"the shard '{file}' is missing, of those that `data.{key}` names")
    return files


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


def members(file: Path, image_key: tuple[str, ...], label_key: str) -> NDArray[np.int64]:
    """[M, 3]: first byte, number of bytes and label of each image of a shard; NO_LABEL where there is none.

    A large shard takes seconds to go through, so what was found is kept in the user's cache, under the shard's name,
    size and time of change. Raises DataError for what is no whole, uncompressed tar file.
    """
    try:
        state = file.stat()
        told = [str(file.resolve()), state.st_size, state.st_mtime_ns, image_key, label_key]
        kept = cache_folder() / f"{hashlib.blake2b(json.dumps(told).encode(), digest_size=16).hexdigest()}.npy"
        if kept.is_file():
            return _checked_index(np.load(kept, allow_pickle=False), state.st_size)
    except (OSError, ValueError, EOFError):
        pass  # it can be gone through again; if the shard itself is the trouble, that will tell
    try:
        with tarfile.open(file, "r:") as shard:
            table = np.array(list(_found(shard, image_key, label_key)), dtype=np.int64).reshape(-1, 3)
    except (tarfile.TarError, OSError, EOFError) as error:
        raise DataError(
            f"'{file}' is no whole, uncompressed tar file ({error}); fetch it anew, or unpack it if it is a .tar.gz"
        ) from error
    try:
        kept.parent.mkdir(parents=True, exist_ok=True)
        beside = kept.with_name(f"{kept.stem}.{os.getpid()}.part.npy")  # several processes begin at once
        np.save(beside, table)
        beside.replace(kept)
    except OSError:
        pass  # a full or read-only home costs the next run some seconds
    return table


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
