"""What a shard holds: where its images lie, their labels, and what belongs to none of them; gone through once and kept.

Shapes: M images.
"""

from __future__ import annotations

import hashlib
import json
import os
import tarfile
import threading
import zipfile
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path

import attrs
import numpy as np
from numpy.typing import NDArray

from maskzoo.data.labels import NO_LABEL
from maskzoo.data.places import Place
from maskzoo.errors import DataError
from maskzoo.plain import parse_json, printable, quoted

FORMAT = 2  # of what is kept; another one is gone through anew
ENDINGS = 50  # that are counted apart, of what is passed over
LETTERS = 40  # of an ending, or of the name of a member, that is kept


@attrs.frozen(eq=False)
class Contents:
    """What one shard holds."""

    table: NDArray[np.int64]  # [M, 3]: first byte, number of bytes and label of each image, NO_LABEL where none is
    passed: Mapping[str, int] = attrs.field(factory=dict)  # members that are neither image nor label, by their ending
    alone: int = 0  # labels without an image of their name
    example: str = ""  # the name of one of these


def contents(place: Place, file: str, image_key: tuple[str, ...], label_key: str) -> Contents:
    """The contents of a shard: its images end in one of `image_key`, and the labels are where `label_key` says.

    A large shard takes seconds to go through, so what was found is kept in the user's cache, under the shard's name,
    size and time of change, or what else its place says of that. Raises DataError for what is no whole, uncompressed
    tar file.
    """
    kept = None
    try:
        state = place.state(file)
        if state is not None:
            told = json.dumps([FORMAT, state, image_key, label_key])
            kept = cache_folder() / f"{hashlib.blake2b(told.encode(), digest_size=16).hexdigest()}.npz"
            if kept.is_file():
                return _read(kept, state[0])
    except (OSError, ValueError, TypeError, LookupError, EOFError, zipfile.BadZipFile, DataError):
        pass  # it can be gone through again; if the shard itself is the trouble, that will tell
    try:
        with place.opened(file) as content, tarfile.open(file, "r:", fileobj=content) as shard:
            found = _Pairs(shard, image_key, label_key).found()
    except (tarfile.TarError, OSError, EOFError) as error:
        raise DataError(
            f"'{file}' is no whole, uncompressed tar file ({error}); fetch it anew, or unpack it if it is a .tar.gz"
        ) from error
    if kept is not None:
        _keep(kept, found)
    return found


def cache_folder() -> Path:
    """Where it is kept what shards hold."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "maskzoo" / "shards"


# ------------------------------------------------------------------------------------------------------------- finding
class _Pairs:
    """Goes through a shard, and puts images and labels of one name together, wherever in it they lie.

    The files of a sample are usually neighbours, so that only what lacks its partner is remembered.
    """

    def __init__(self, shard: tarfile.TarFile, image_key: tuple[str, ...], label_key: str) -> None:
        self.shard, self.image_key = shard, image_key
        self.ending, _, self.field = label_key.partition(":")
        self.rows: list[tuple[int, int, int]] = []
        self.unlabelled: dict[str, int] = {}  # name -> row of the image
        self.labels: dict[str, int] = {}  # name -> label that waits for its image
        self.passed: Counter[str] = Counter()

    def found(self) -> Contents:
        """All that the shard holds."""
        for name, image, label in self._samples():
            if image is None:
                row = None if label is None else self.unlabelled.pop(name, None)
                if row is not None:
                    self.rows[row] = (*self.rows[row][:2], label or 0)
                elif label is not None:
                    self.labels[name] = label
                continue
            if label is None:
                label = self.labels.pop(name, None)
            if label is None and self.ending:
                self.unlabelled[name] = len(self.rows)
            self.rows.append((*image, NO_LABEL if label is None else label))
        table = np.array(self.rows, dtype=np.int64).reshape(-1, 3)
        example = next(iter(self.labels), "")[:LETTERS]
        return Contents(table, dict(self.passed), len(self.labels), f"{example}.{self.ending}" if example else "")

    def _samples(self) -> Iterator[tuple[str, tuple[int, int] | None, int | None]]:
        """Name, bytes of the image and label of neighbours of one name, which is what precedes the first dot."""
        current, image, label = "", None, None
        for member in self.shard:
            self.shard.members = []  # type: ignore[attr-defined]  # tarfile would keep them all
            if not member.isfile():
                continue
            folder, base = os.path.split(member.name)
            stem, _, ending = base.partition(".")
            name = os.path.join(folder, stem)
            if name != current:
                yield current, image, label
                current, image, label = name, None, None
            if ending.lower() in self.image_key:
                image = image or (member.offset_data, member.size)
            elif self.ending and ending.lower() == self.ending:
                label = self._label(member)
            elif stem:  # not the hidden files of a Mac
                counted = ending[:LETTERS].lower()
                self.passed[counted if counted in self.passed or len(self.passed) < ENDINGS else "..."] += 1
        yield current, image, label

    def _label(self, member: tarfile.TarInfo) -> int:
        """The class's number that a member's content is, or that its field is; NO_LABEL for any number below 0."""
        content, name = self.shard.extractfile(member), f"'{member.name}' in '{self.shard.name!s}'"
        held = b"" if content is None else content.read()
        try:
            value = parse_json(held, name)[self.field] if self.field else int(held)
        except DataError as error:
            raise DataError(f"{error}; correct `data.label_key`") from error
        except (LookupError, TypeError) as error:
            raise DataError(f"{name} has no field {quoted(self.field)}; correct `data.label_key`") from error
        except ValueError as error:
            text = quoted(printable(held[:LETTERS].decode("utf-8", "backslashreplace").strip()))
            raise DataError(
                f"{name} holds {text}, and a label is a class's number: 0, 1, 2 and so on (below 0: none); number the "
                "classes, or correct `data.label_key`"
            ) from error
        if value is None:
            return NO_LABEL
        if not isinstance(value, int) or isinstance(value, bool):
            raise DataError(f"{name} holds {value!r} instead of a class's number; correct `data.label_key`")
        return max(value, NO_LABEL)


# ------------------------------------------------------------------------------------------------------------- keeping
def _keep(kept: Path, found: Contents) -> None:
    try:
        kept.parent.mkdir(parents=True, exist_ok=True)
        beside = kept.with_name(f"{kept.stem}.{os.getpid()}.{threading.get_ident()}.part.npz")  # several begin at once
        about = json.dumps({"passed": found.passed, "alone": found.alone, "example": found.example})
        np.savez(beside, table=found.table, about=np.array(about))
        beside.replace(kept)
    except OSError:
        pass  # a full or read-only home costs the next run some seconds


def _read(kept: Path, size: int) -> Contents:
    """What was kept of a shard of so many bytes; ValueError, or what a damaged file raises, where it cannot be that."""
    with kept.open("rb") as file, np.load(file, allow_pickle=False) as held:
        table, about = held["table"], parse_json(str(held["about"]), f"'{kept}'")
    if not isinstance(table, np.ndarray) or table.dtype != np.int64 or table.ndim != 2 or table.shape[1] != 3:
        raise ValueError("it is something else")
    if len(table) and (table[:, :2].min() < 0 or table[:, 2].min() < NO_LABEL or table[:, :2].max() > size):
        raise ValueError("it lies outside the shard")
    passed = {str(ending): int(count) for ending, count in about["passed"].items()}
    return Contents(table, passed, int(about["alone"]), str(about["example"]))


# ------------------------------------------------------------------------------------------------------------- telling
def told(found: Mapping[str, Contents], image_key: tuple[str, ...], label_key: str) -> list[str]:
    """What there is to tell of the shards of a split, by their files."""
    alone = sum(one.alone for one in found.values())
    images = sum(len(one.table) for one in found.values())
    unlabelled = sum(int((one.table[:, 2] == NO_LABEL).sum()) for one in found.values())
    ending = label_key.partition(":")[0]
    lines = []
    if alone:
        example = next(one.example for one in found.values() if one.alone)
        count = f"{alone:,} members '{ending}' have" if alone > 1 else f"1 member '{ending}' has"
        lines.append(
            f"{count} no image of their name in the same shard, e.g. '{example}'"
            + (f", and {unlabelled:,} of {images:,} images have none" if unlabelled else "")
            + "; what belongs together has one name up to the first dot"
        )
    if passed := passed_over(found):
        lines.append(f"not used: {passed} (data.image_key = {', '.join(image_key)}; data.label_key = {label_key})")
    return lines


def passed_over(found: Mapping[str, Contents]) -> str:
    """The members that are neither images nor labels, in numbers; empty where there are none."""
    counts: Counter[str] = Counter()
    for one in found.values():
        counts.update(one.passed)
    most = [f"{count:,} member{'s' * (count != 1)} {_ending(ending)}" for ending, count in counts.most_common(5)]
    return ", ".join(most) + (f" and {len(counts) - 5} other endings" if len(counts) > 5 else "")


def _ending(ending: str) -> str:
    return f"'{ending}'" if ending else "without ending"
