"""Images that are arrays: NumPy's .npy and .npz (never pickled), and data sets of HDF5.

Shapes: an image is [H, W], [S, H, W] or [H, W, S] for S bands.
"""

from __future__ import annotations

import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import IO, Any

import numpy as np
from numpy.lib import format as numpy_format
from numpy.typing import NDArray

from maskzoo.data.stored import Stored, reader, refuse_absurd
from maskzoo.errors import DataError

MOST_BANDS = 64  # of an array whose axes nothing but their lengths tells apart


@contextmanager
def npy(file: IO[bytes], name: str, array: str, bands: int) -> Iterator[Stored]:
    """The array of a .npy file."""
    yield _of_numpy(file, name, bands)


@contextmanager
def npz(file: IO[bytes], name: str, array: str, bands: int) -> Iterator[Stored]:
    """The only array of a .npz file, or that of the name."""
    with zipfile.ZipFile(file) as archive:
        members = {info.filename.removesuffix(".npy"): info for info in archive.infolist()}
        info = members[_chosen(members, array, name)]
        with archive.open(info) as member:
            yield _of_numpy(member, name, bands)


@contextmanager
def hdf5(file: IO[bytes], name: str, array: str, bands: int) -> Iterator[Stored]:
    """The only data set of an HDF5 file, or that of the name; what it links to in other files is not followed."""
    h5py = reader("h5py", name, "an HDF5 file")
    with h5py.File(file, "r") as holder:
        found: dict[str, Any] = {}
        holder.visititems(lambda path, item: found.update({path: item}) if isinstance(item, h5py.Dataset) else None)
        item = found[_chosen(found, array.strip("/"), name)]
        if item.is_virtual or item.external:
            raise DataError(f"{name} keeps its numbers in other files; copy them into it")
        yield _image(tuple(item.shape or ()), item.dtype, lambda: np.asarray(item[()]), name, bands)


def _chosen(members: Mapping[str, Any], array: str, name: str) -> str:
    """Which of the arrays in a file is the image."""
    listed = ", ".join(f"'{member}'" for member in list(members)[:8]) or "none"
    if array and array not in members:
        raise DataError(f"{name} has no array '{array}' (`data.array`); it holds {listed}")
    if not array and len(members) != 1:
        raise DataError(f"{name} holds {len(members)} arrays ({listed}); say which with data.array")
    return array or next(iter(members))


def _of_numpy(file: IO[bytes], name: str, bands: int) -> Stored:
    version = numpy_format.read_magic(file)
    if version not in ((1, 0), (2, 0)):
        raise DataError(f"{name} is of version {version[0]}.{version[1]} of NumPy's format, which no numbers need")
    header = numpy_format.read_array_header_1_0 if version == (1, 0) else numpy_format.read_array_header_2_0
    shape, fortran, kind = header(file)

    def load() -> NDArray[Any]:
        wanted = int(np.prod(shape, dtype=np.int64)) * kind.itemsize
        content = file.read(wanted)
        if len(content) < wanted:
            raise DataError(f"{name} is cut short: {len(content):,} of {wanted:,} bytes are there; fetch it anew")
        return np.frombuffer(content, dtype=kind).reshape(shape, order="F" if fortran else "C")

    if kind.hasobject:
        raise DataError(f"{name} holds pickled objects, which are never read; save an array of numbers")
    return _image(shape, kind, load, name, bands)


def _image(shape: tuple[int, ...], kind: Any, load: Callable[[], NDArray[Any]], name: str, bands: int) -> Stored:
    """An array of that shape as an image."""
    axis = _axis_of_bands(shape, bands, name)
    height, width = shape[:2] if axis != 0 else shape[1:]
    count = 1 if axis is None else shape[axis]
    kind = np.dtype(kind)
    refuse_absurd((height, width, count), kind, name)

    def values() -> NDArray[Any]:
        found = load()
        found = found.astype(kind.newbyteorder("="), copy=False)
        return found[..., None] if axis is None else np.moveaxis(found, axis, -1)

    return Stored(height, width, count, kind.newbyteorder("=").name, values)


def _axis_of_bands(shape: tuple[int, ...], bands: int, name: str) -> int | None:
    """Which axis is that of the bands: the one of as many values as there are bands, else the clearly shortest.

    Else the one that leaves a square, since most small arrays of many bands are square.
    """
    if len(shape) == 2:
        return None
    if len(shape) != 3:
        raise DataError(f"{name} has the shape {list(shape)}; an image is [H, W], [bands, H, W] or [H, W, bands]")
    first, last = shape[0], shape[2]
    if bands and (first == bands) != (last == bands):
        return 0 if first == bands else 2
    least, other = sorted((first, last))
    if least <= MOST_BANDS and (2 * least <= other) and (2 * least <= shape[1] or least <= 4):
        return 0 if first == least else 2
    if first != last and shape[1] in (first, last) and (last if shape[1] == first else first) <= MOST_BANDS:
        return 0 if shape[1] == last else 2  # a square image
    raise DataError(
        f"{name} has the shape {list(shape)}, of which either end may be the bands; say how many there are with "
        "data.channels, or store [bands, H, W]"
    )
