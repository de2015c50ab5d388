"""What lies below a folder: its images, its other files by their endings, and what MaskZoo itself has left there."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

import attrs

from maskzoo.errors import DataError
from maskzoo.marks import OUR_FILES, is_our_folder, is_our_picture

MOST_FOLDERS = 2**20  # more of them are links that lead in circles
MOST_LOOKED_INTO = 20_000  # PNG files that are asked whether they are pictures of ours
EXAMPLES = 4  # files of each folder that are looked into, where none is an image by its name
# What systems, archives and editors leave behind; hidden names, which begin with a dot, are never looked at.
JUNK_FILES = {"thumbs.db", "ehthumbs.db", "desktop.ini", "icon\r"}
JUNK_FOLDERS = {
    *("__macosx", "@eadir", "#recycle", "$recycle.bin", "lost+found", "system volume information", "__pycache__"),
}
# Endings of what lies beside images: texts, tables, annotations, programs, weights and archives.
BESIDE = {
    *(".txt", ".md", ".rst", ".pdf", ".html", ".htm", ".log", ".doc", ".docx", ".odt", ".rtf", ".tex", ".bib", ".url"),
    *(".csv", ".tsv", ".json", ".jsonl", ".xml", ".yaml", ".yml", ".toml", ".ini", ".cfg", ".xls", ".xlsx", ".ods"),
    *(".parquet", ".arrow", ".feather", ".db", ".sqlite", ".lock", ".md5", ".sha1", ".sha256", ".names", ".lst"),
    *(".py", ".ipynb", ".sh", ".bat", ".ps1", ".m", ".r", ".js", ".css", ".c", ".cpp", ".h", ".java"),
    *(".pt", ".pth", ".ckpt", ".safetensors", ".onnx", ".zip", ".tar", ".tgz", ".gz", ".bz2", ".xz", ".7z", ".rar"),
    "",
}
# Arrays that may be images, and lie beside pictures as features, statistics or labels of theirs.
ARRAYS = (".npy", ".npz", ".h5", ".hdf5")
MANY_ARRAYS = 10  # times as many of them as of pictures: these are the images, and the pictures something else
ARCHIVES = (".zip", ".tar", ".tgz", ".tar.gz", ".tar.bz2", ".tar.xz", ".7z", ".rar")
BEGINNINGS = (
    b"\xff\xd8\xff",
    b"\x89PNG\r\n\x1a\n",
    b"GIF87a",
    b"GIF89a",
    b"II*\0",
    b"MM\0*",
    b"\0\0\0\x0cjP  \r\n\x87\n",
)


@attrs.define(eq=False)
class Place:
    """A folder as it was found."""

    path: str
    name: str
    real: str  # without links
    images: list[str] = attrs.field(factory=list)  # names of the images directly in it, in order
    folders: list[Place] = attrs.field(factory=list)  # in the order of their names
    passed: Counter[str] = attrs.field(factory=Counter)  # other files directly in it, by their endings
    examples: list[str] = attrs.field(factory=list)  # paths of some of those
    dangling: list[str] = attrs.field(factory=list)  # names of links that lead nowhere, and are called as no image
    hidden: int = 0  # images whose names begin with a dot
    own: dict[str, list[str]] = attrs.field(factory=dict)  # names of what MaskZoo has left directly in it, by kind
    closed: str = ""  # why it cannot be listed

    def all(self) -> Iterator[Place]:
        """This folder and those below, each real folder once."""
        seen, waiting = set(), [self]
        while waiting:
            place = waiting.pop()
            if place.real in seen:
                continue
            seen.add(place.real)
            yield place
            waiting += reversed(place.folders)

    def files(self) -> list[str]:
        """The paths of all images in and below it, in order. Raises DataError where a folder cannot be listed."""
        found = []
        for place in self.all():
            place.refuse_closed()
            found += [os.path.join(place.path, name) for name in place.images]
        return sorted(found)

    def refuse_closed(self) -> None:
        """Raise DataError if it cannot be listed: images that are left out would make the classes others."""
        if self.closed:
            raise DataError(f"'{self.path}' cannot be listed ({self.closed}); make it readable, or move it away")

    @property
    def count(self) -> int:
        """How many images there are in and below it."""
        return sum(len(place.images) for place in self.all())

    @property
    def has_images(self) -> bool:
        """Whether there are any."""
        return any(place.images for place in self.all())

    @property
    def is_closed(self) -> bool:
        """Whether it, or something below, cannot be listed."""
        return any(place.closed for place in self.all())

    def others(self) -> Counter[str]:
        """All other files in and below it, by their endings."""
        total: Counter[str] = Counter()
        for place in self.all():
            total.update(place.passed)
        return total

    @property
    def lost(self) -> bool:
        """Whether it has no image, and a file that may well be one: by its ending, or by how it begins."""
        if self.has_images:
            return False
        return any(end not in BESIDE and os.path.splitext(end)[0] not in BESIDE for end in self.others()) or any(
            begins_like_an_image(file) for place in self.all() for file in place.examples
        )


def survey(root: str, endings: Sequence[str], *, arrays_beside: bool = False) -> Place:
    """What lies below a folder; images are the files with these `endings`. Raises DataError where it cannot be listed.

    With `arrays_beside`, arrays are no images where there are pictures, unless they are many more. Links are followed,
    but not those that lead back up. Folders that cannot be listed are marked `closed`.
    """
    top = Place(root, os.path.basename(os.path.abspath(root)), os.path.realpath(root))
    over = [str(path) for path in (Path(top.real), *Path(top.real).parents)]
    # each with the folder that it is in, and the real paths of all above it
    waiting: list[tuple[Place, Place | None, frozenset[str]]] = [(top, None, frozenset(over))]
    found: list[Place] = []
    while waiting:
        place, outer, above = waiting.pop()
        if len(found) >= MOST_FOLDERS:
            raise DataError(f"'{root}' has more than {MOST_FOLDERS:,} folders; do links in it lead in circles?")
        entries = _entries(place)
        if outer is not None:
            if kind := _ours(place, entries):
                outer.own.setdefault(kind, []).append(place.name)
                continue
            outer.folders.append(place)
        found.append(place)
        inner = [one for one in _sorted_out(place, entries, tuple(endings)) if one.real not in above]
        waiting += [(one, place, above | {one.real}) for one in reversed(inner)]
    top.refuse_closed()
    _leave_out_our_pictures(found)
    if arrays_beside:
        _choose_pictures_or_arrays(found)
    return top


def _entries(place: Place) -> list[os.DirEntry[str]]:
    """What is in a folder, by name; nothing where it cannot be listed, which is entered."""
    try:
        with os.scandir(place.path) as entries:
            return sorted(entries, key=lambda entry: entry.name)
    except OSError as error:
        place.closed = error.strerror or str(error)
        return []


def _ours(place: Place, entries: Sequence[os.DirEntry[str]]) -> str:
    """What MaskZoo has made this folder, see `is_our_folder`; only such as have a file of ours are asked."""
    return is_our_folder(place.path) if any(entry.name in OUR_FILES for entry in entries) else ""


def _sorted_out(place: Place, entries: Sequence[os.DirEntry[str]], endings: tuple[str, ...]) -> list[Place]:
    """Enter the files of a folder, and give the folders in it."""
    folders = []
    for entry in entries:
        name, lower = entry.name, entry.name.lower()
        if _is_folder(entry):
            if not name.startswith(".") and lower not in JUNK_FOLDERS:
                real = os.path.realpath(entry.path) if entry.is_symlink() else os.path.join(place.real, name)
                folders.append(Place(entry.path, name, real))
        elif name.startswith("."):
            place.hidden += lower.endswith(endings) and not name.startswith("._")
        elif _is_image(entry, endings):
            place.images.append(name)
        elif entry.is_symlink() and not os.path.exists(entry.path):
            place.dangling.append(name)
        elif lower not in JUNK_FILES:
            place.passed[ending(lower)] += 1
            if len(place.examples) < EXAMPLES:
                place.examples.append(entry.path)
    return folders


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False


def _is_image(entry: os.DirEntry[str], endings: tuple[str, ...]) -> bool:
    """Whether it is an image by its ending or, where it has none, by how it begins.

    A link that leads nowhere is one, so that it is told when it is read; a pipe is not, since a reader would wait.
    """
    if entry.name.lower().endswith(endings):
        return entry.is_symlink() or entry.is_file()
    return "." not in entry.name and begins_like_an_image(entry.path)


def ending(name: str) -> str:
    """The ending of a file's name in small letters, with its dot: `.txt`, `.tar.gz`; empty where there is none."""
    stem, last = os.path.splitext(name.lower())
    if last in (".gz", ".bz2", ".xz") and "." in stem:
        last = os.path.splitext(stem)[1] + last
    return last if len(last) > 1 else ""


def begins_like_an_image(file: str) -> bool:
    """Whether a regular file begins as a JPEG, PNG, GIF, TIFF, WebP, AVIF, HEIC or JPEG 2000 does."""
    if not os.path.isfile(file):
        return False
    try:
        with open(file, "rb") as opened:
            head = opened.read(16)
    except OSError:
        return False
    return head.startswith(BEGINNINGS) or (head[:4] == b"RIFF" and head[8:12] == b"WEBP") or head[4:8] == b"ftyp"


def _choose_pictures_or_arrays(found: Sequence[Place]) -> None:
    """Leave either the pictures or the arrays as images, and pass over the others."""
    arrays = sum(name.lower().endswith(ARRAYS) for place in found for name in place.images)
    pictures = sum(len(place.images) for place in found) - arrays
    if not arrays or not pictures:
        return
    taken = arrays > MANY_ARRAYS * pictures
    for place in found:
        sorts: dict[bool, list[str]] = {True: [], False: []}
        for name in place.images:
            sorts[name.lower().endswith(ARRAYS)].append(name)
        place.images = sorts[taken]
        place.passed.update(ending(name) for name in sorts[not taken])


def _leave_out_our_pictures(found: Sequence[Place]) -> None:
    """Take pictures that MaskZoo drew out of the images; of too many PNG files, those alone that are called so."""
    many = sum(name.lower().endswith(".png") for place in found for name in place.images) > MOST_LOOKED_INTO
    for place in found:
        candidates = [name for name in place.images if name.lower().endswith(".png")]
        if many:
            candidates = [name for name in candidates if "preview" in name.lower()]
        ours = [name for name in candidates if is_our_picture(os.path.join(place.path, name))]
        if ours:
            kept = set(place.images) - set(ours)
            place.images = [name for name in place.images if name in kept]
            place.own["picture"] = ours
