"""What a survey of a folder has found, in words, and refusals of what it must not be read as."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence

from maskzoo.data.naming import ANSWERS, IMAGES, MOST_NAMES, in_numbers, ours_in_numbers, some
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
    own = _total(place.own for place in top.all())
    there = " and ".join([*([in_numbers(others)] if others else []), *([ours_in_numbers(own)] if own else [])])
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


def left_by_us(top: Place) -> Iterator[str]:
    """Runs, comparisons and pictures of MaskZoo, by where they are."""
    found: dict[str, Counter[str]] = {}
    for place in top.all():
        if place.own:
            found[below(place, top)] = place.own
    for where, kinds in list(found.items())[:MOST_NAMES]:
        yield ours_in_numbers(kinds) + (f" in {where}/" if where else "")
    if len(found) > MOST_NAMES:
        yield f"more of MaskZoo's in {len(found) - MOST_NAMES} other folders"


def why_none(place: Place) -> str:
    """What there is in a folder without images."""
    return "cannot be listed" if place.is_closed else in_numbers(others) if (others := place.others()) else "empty"


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


def inmost(place: Place) -> Place:
    """The first folder below that holds more than one image folder, or images."""
    while not place.images and len(folders := image_folders(place)) == 1:
        place = folders[0]
    return place
