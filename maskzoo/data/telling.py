"""What a survey of a folder has found, in words, and refusals of what it must not be read as."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Sequence

from maskzoo.data.naming import ANSWERS, IMAGES, MOST_NAMES, OF_ANOTHER, counted, in_numbers, slot_of, some
from maskzoo.data.survey import ARCHIVES, Place
from maskzoo.errors import DataError
from maskzoo.plain import printable


def mixed(place: Place, folders: Sequence[Place]) -> str:
    """The message that refuses images beside image folders."""
    return (
        f"'{place.path}' holds both loose images ({len(place.images):,}, '{place.images[0]}') and folders of images "
        f"({some([one.name for one in folders])}; {sum(one.count for one in folders):,}); a labelled set has folders "
        'only, an unlabelled one has none. Set `data.read_as` to "classes" to leave the loose ones out, or to '
        '"unlabelled" to take all'
    )


def no_images(top: Place, endings: Sequence[str]) -> str:
    """The message that refuses a folder without images, with what there is instead."""
    others = _total(place.passed for place in top.all())
    own = left_by_us(top)
    there = " and ".join([*([in_numbers(others)] if others else []), *own])
    advice = ""
    if any(name in others for name in ARCHIVES):
        advice = ". Unpack the archives" + ('; shards are read with data.use = "shards"' if others[".tar"] else "")
    elif any(name in others for name in (".parquet", ".arrow")):
        advice = '. A data set of Hugging Face is read with data.use = "timm" and data.source = "hfds/..."'
    return (
        f"'{top.path}' holds no images; these would be files that end in {', '.join(endings)}"
        + (f"; there are {there}" if there else "")
        + advice
    )


def _total(counts: Iterable[Counter[str]]) -> Counter[str]:
    total: Counter[str] = Counter()
    for one in counts:
        total.update(one)
    return total


def below(place: Place, top: Place) -> str:
    """The path of a folder from the top, in printable letters; empty for the top itself."""
    path = os.path.relpath(place.path, top.path)
    return "" if path == os.curdir else printable(path)


def left_by_us(top: Place) -> list[str]:
    """Runs, comparisons and pictures of MaskZoo, by where they are."""
    told = []
    for place in top.all():
        where = below(place, top)
        for kind, names in sorted(place.own.items()):
            ends = "" if kind == "picture" else "/"
            if len(names) > 1 and where:
                told.append(f"{where}/ ({len(names):,} {kind}s of MaskZoo)")
            else:
                paths = [os.path.join(where, name) + ends for name in names]
                told.append(f"{some(paths)} ({f'a {kind}' if len(names) == 1 else f'{kind}s'} of MaskZoo)")
    return told if len(told) <= MOST_NAMES else [*told[:MOST_NAMES], f"{len(told) - MOST_NAMES} more of MaskZoo's"]


def why_none(place: Place) -> str:
    """What there is in a folder without images."""
    if place.is_closed:
        return "cannot be listed"
    others = place.others()
    if not others:
        return "empty"
    endings = [printable(end)[:12] for end in sorted(others, key=lambda end: (-others[end], end)) if end]
    return " ".join(
        [counted(others.total(), "file"), ", ".join(endings[:3]) + (", ..." if endings[3:] else "")]
    ).strip()


def ours_alone(place: Place) -> bool:
    """Whether there is nothing in a folder but what MaskZoo has left."""
    return any(one.own for one in place.all()) and not place.others()


def refuse_answers(place: Place, folders: list[Place]) -> None:
    """Raise DataError for folders of images and of their masks, which are no classes."""
    names = {one.name.lower(): one.name for one in folders}
    images, answers = names.keys() & IMAGES, names.keys() & ANSWERS
    if images and answers:
        first = names[min(images)]
        raise DataError(
            f"'{place.path}' holds {some([one.name for one in folders])}, which look like images and their masks, and "
            f"no classes; name the images with `data.root` ('{os.path.join(place.path, first)}'), or set "
            '`data.read_as` to "classes" if these are classes'
        )


def image_folders(place: Place) -> list[Place]:
    """The folders in it that hold images at any depth."""
    return [one for one in place.folders if one.has_images]


def sorted_folders(place: Place) -> tuple[list[Place], list[Place], list[Place]]:
    """The image folders in a folder: called train, called as other splits in the order they are taken, and others."""
    folders = image_folders(place)
    slots = {id(one): slot_of(one.name) for one in folders}
    tests = [one for one in folders if (slots[id(one)] or 0) > 0]
    return (
        [one for one in folders if slots[id(one)] == 0],
        sorted(tests, key=lambda one: (slots[id(one)] or 0, one.name.lower(), one.name)),
        [one for one in folders if slots[id(one)] is None],
    )


def inmost(place: Place) -> Place:
    """The first folder below that holds more than one image folder, or images."""
    while not place.images and len(folders := image_folders(place)) == 1:
        place = folders[0]
    return place


def masks_among(files: Sequence[str]) -> list[str]:
    """A message where images are called as masks of others beside them: 1_mask.png of 1.png."""
    called = [(file, found[1]) for file in files if (found := OF_ANOTHER.fullmatch(os.path.splitext(file)[0].lower()))]
    if not called:
        return []
    stems = {os.path.splitext(file)[0].lower() for file in files}
    masks = [file for file, stem in called if stem in stems]
    if not masks:
        return []
    name = printable(os.path.basename(masks[0]))
    what = f"is {counted(1, 'image')}" if len(masks) == 1 else f"are {len(masks):,} images"
    return [f"among them {what} called as a mask of another beside it ('{name}'); move masks away"]
