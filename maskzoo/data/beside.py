"""Side data in files of their own: for each image one in another folder, by the same path, such as a map of its parts.

Shapes: C channels of an image, H height, W width.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

import attrs
import numpy as np
import torch
from numpy.typing import NDArray
from PIL import ImageOps
from torch import Tensor

from maskzoo.data.formats import EXTENSIONS, PICTURES, opened, orientation, stored
from maskzoo.errors import DataError, RecipeError
from maskzoo.plain import printable, quoted
from maskzoo.protocols import Sample

TURNED = "by its EXIF data"


@attrs.frozen(eq=False)
class Beside:
    """Which files lie beside images; what is missing is told where an image is looked up."""

    roots: tuple[str, ...]  # folders from which an image's path is taken, the first first
    folders: Mapping[str, str]  # name -> folder
    files: Mapping[str, Mapping[str, str]]  # name -> path of an image below the root, without its ending -> file

    @classmethod
    def of(cls, roots: Sequence[str], folders: Mapping[str, str], images: Sequence[str]) -> Beside:
        """What the folders hold beside images. RecipeError or DataError, with the key, for what cannot be used."""
        files = {}
        for name, folder in folders.items():
            _check(name, folder, images)
            files[name] = _listed(name, folder)
        return cls(tuple(dict.fromkeys(roots)), folders, files)

    def told(self, images: Sequence[str]) -> list[str]:
        """How many of the images lack something, in words. DataError where all do."""
        lines = []
        for name, folder in self.folders.items():
            lacking = [image for image in images if self._file(name, image) is None]
            if images and len(lacking) == len(images):
                example = os.path.relpath(images[0], self.roots[0])
                raise DataError(
                    f"recipe.data.extras.{name}: '{folder}' has nothing beside any of the images; for "
                    f"'{printable(example)}' it would be '{printable(os.path.splitext(example)[0])}.png' or the like"
                )
            if lacking:
                lines.append(
                    f"{len(lacking):,} of {len(images):,} images have no '{name}' in '{printable(folder)}' "
                    f"('{printable(lacking[0])}'): they are refused"
                )
        return lines

    def joined(self, sample: Sample, image: str) -> Sample:
        """The sample of an image file with what lies beside it. DataError where that is missing, or does not fit."""
        extras = dict(sample.extras)
        for name in self.folders:
            values = self._read(name, image, sample.image.shape[-2:])
            if name == "valid":
                values = _valid(values, sample.image, image)
                values = values & extras["valid"] if "valid" in extras else values
                if not values.any():
                    raise DataError(f"'{image}' has no valid pixel; remove it")
            extras[name] = values
        return Sample(sample.image, sample.label, extras)

    def _file(self, name: str, image: str) -> str | None:
        keys = (os.path.splitext(os.path.relpath(image, root))[0] for root in self.roots)
        return next((self.files[name][key] for key in keys if key in self.files[name]), None)

    def _read(self, name: str, image: str, size: Sequence[int]) -> Tensor:
        """[*, H, W]: whole numbers int64, others float32."""
        file = self._file(name, image)
        if file is None:
            raise DataError(f"'{image}' has no '{name}' in '{self.folders[name]}'; add it, or remove the image")
        values = torch.from_numpy(np.ascontiguousarray(_values(file)))
        if name != "valid" and not values.isfinite().all():  # which interpolation would spread
            raise DataError(f"'{file}' has values that are NaN or infinite; replace them")
        high, wide = values.shape[-2:]
        turned = _orientation_of(image)
        if (high, wide) != tuple(size):
            cause = f"; the image is turned {TURNED}, and this is not" if (wide, high) == tuple(size) else ""
            raise DataError(
                f"'{file}' is {wide} x {high} pixels, and its image '{image}' {size[1]} x {size[0]}{cause}; make them "
                "alike"
            )
        alike = turned == _orientation_of(file) or (turned > 4 and high != wide)
        if not alike:
            raise DataError(
                f"'{image}' is turned {TURNED}, and nothing tells whether '{file}' is of the image as it is stored or "
                "as it is shown; store the image turned, or write the same orientation into both"
            )
        return values if values.is_floating_point() else values.long()


def _check(name: str, folder: str, images: Sequence[str]) -> None:
    if not name.isidentifier():
        raise RecipeError(f"{quoted(name)} is no name; it must be like one of Python's", key="extras")
    if not os.path.isdir(folder):
        raise RecipeError(f"'{folder}' is no folder", key=f"extras.{name}")
    inside = os.path.join(os.path.realpath(folder), "")
    places = {os.path.dirname(image) for image in images}
    if any(os.path.join(os.path.realpath(place), "").startswith(inside) for place in places):
        raise RecipeError(
            f"files in '{folder}' are read as images of the data set; move it out of data.root",
            key=f"extras.{name}",
        )


def _listed(name: str, folder: str) -> dict[str, str]:
    """The files of a folder at any depth, by their paths below it without ending."""
    found: dict[str, str] = {}
    for place, folders, names in os.walk(folder, followlinks=True):
        folders[:] = [one for one in folders if not one.startswith(".")]
        for one in sorted(names):
            if one.startswith(".") or not one.lower().endswith(EXTENSIONS):
                continue
            file = os.path.join(place, one)
            key = os.path.splitext(os.path.relpath(file, folder))[0]
            if key in found:
                raise DataError(
                    f"recipe.data.extras.{name}: '{printable(found[key])}' and '{printable(file)}' would lie beside "
                    "the same image; keep one of them"
                )
            found[key] = file
    return found


def _values(file: str) -> NDArray[Any]:
    """The numbers in a file, [H, W] or [*, H, W]: of a picture with a palette the indices."""
    if file.lower().endswith(PICTURES):
        with opened(file) as image:
            if image.mode in ("P", "1"):
                return np.array(ImageOps.exif_transpose(image)).astype(np.int64)
    with stored(file) as found:
        if found.colours not in ("", "L"):
            raise DataError(f"'{file}' is in colour; side data are grey, or indices into a palette, or an array")
        values = found.values()
    values = values.astype(np.float32 if values.dtype.kind == "f" else np.int64)
    return values[..., 0] if values.shape[-1] == 1 else values.transpose(2, 0, 1)


def _valid(values: Tensor, image: Tensor, name: str) -> Tensor:
    """[C, H, W] bool: where the values are neither 0 nor NaN, those of one channel for all."""
    valid = (values != 0) & ~values.isnan()
    valid = valid[None] if valid.ndim == 2 else valid
    if valid.shape[0] not in (1, image.shape[0]):
        raise DataError(
            f"what is valid of '{name}' has {valid.shape[0]} channels, and the image {image.shape[0]}; give one, or all"
        )
    return valid.expand(image.shape)


def _orientation_of(file: str) -> int:
    """How a camera wants the picture in a file turned (1 to 8); 1 for an array."""
    if not file.lower().endswith(PICTURES) or file.lower().endswith((".tif", ".tiff")):
        return 1
    with opened(file) as image:
        return orientation(image)
