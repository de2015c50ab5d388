"""What timm's reader of folders does not say: files that it passes over, classes that it drops, output of ours."""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Mapping, Sequence
from typing import Any

from timm.data.readers.img_extensions import get_img_extensions

from maskzoo.data.naming import counted, in_numbers, label_of_folder, some
from maskzoo.data.survey import MOST_LOOKED_INTO, survey
from maskzoo.errors import DataError
from maskzoo.marks import is_our_folder, is_our_picture
from maskzoo.plain import printable


def both_spellings(classes: Mapping[str, int]) -> dict[str, int]:
    """The numbers of classes by their names, with accents composed and decomposed, as other systems write them."""
    forms = ((unicodedata.normalize(form, name), number) for name, number in classes.items() for form in ("NFC", "NFD"))
    return {**dict(forms), **classes}


def looked_over(reader: Any, root: str, known: Mapping[str, int] | None) -> list[str]:
    """Messages on what this reader of a folder of timm's has taken and left out.

    Raises DataError where it takes what MaskZoo has left for images, and where test images are of classes that are not
    `known`, which timm drops.
    """
    refuse_ours([str(path) for path, *_ in reader.samples], root)
    place = survey(str(reader.root), sorted(get_img_extensions()))
    if known:
        strange = {one.name: len(one.images) for one in place.all() if one.images and one.name not in known}
        strange.pop(place.name, None)
        if strange:
            raise DataError(
                f"'{reader.root}' has {some(['class ' + repr(label_of_folder(name)) for name in sorted(strange)])} "
                f"({counted(sum(strange.values()), 'image')}), which the training images do not have"
            )
    if others := place.others():
        read = ", ".join(sorted(get_img_extensions()))
        return [f"timm reads {read} in '{printable(reader.root)}'; not used: {in_numbers(others)}"]
    return []


def refuse_ours(files: Sequence[str], root: str) -> None:
    """Raise DataError where what MaskZoo left below a folder is among the images."""
    if (ours := first_of_ours(files, root)) is not None:
        raise DataError(
            f"timm reads '{ours}' as an image, which MaskZoo has left in '{root}'; move it away, or read the images "
            'with data.use = "folder", which knows such files'
        )


def first_of_ours(files: Sequence[str], root: str) -> str | None:
    """The first of the files below a folder that a run or a comparison of MaskZoo holds, or that is a picture of ours.

    Of too many PNG files, those alone are looked into that are called so, as in a survey.
    """
    known: dict[str, bool] = {}
    many = sum(file.lower().endswith(".png") for file in files) > MOST_LOOKED_INTO
    for file in files:
        if _lies_in_ours(os.path.dirname(file), os.path.normpath(root), known):
            return file
        name = os.path.basename(file).lower()
        if name.endswith(".png") and ("preview" in name or not many) and is_our_picture(file):
            return file
    return None


def _lies_in_ours(folder: str, root: str, known: dict[str, bool]) -> bool:
    if folder not in known:
        above = os.path.dirname(folder)
        below = os.path.normpath(folder) != root and above != folder
        known[folder] = below and (bool(is_our_folder(folder)) or _lies_in_ours(above, root, known))
    return known[folder]
