"""Fashion-MNIST, read from its IDX files."""

from __future__ import annotations

import gzip
import math
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

import attrs
import numpy as np
import torch
from torch import Tensor

from maskzoo.data.digits import ImagesInMemory
from maskzoo.errors import DataError
from maskzoo.plain import not_empty
from maskzoo.protocols import Split, define

SYSTEM_FOLDER = Path("/usr/share/datasets/fashion-mnist")  # of Debian's package dataset-fashion-mnist
CLASSES = (
    "T-shirt/top",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
)
UNSIGNED_BYTES = 0x08  # the type code of an IDX file's values


@define
class FashionMnist:
    """Zalando's clothes in ten classes, 60,000 to learn from and 10,000 to test on, 28 x 28 grey pixels."""

    name: ClassVar[str] = "fashion-mnist"

    # the folder of the IDX files, or the one to download them into
    root: str | None = attrs.field(default=None, validator=not_empty)

    def __attrs_post_init__(self) -> None:
        folder = find_folder(self.root)
        self.train: Split = read_split(folder, "train")
        self.test: Split = read_split(folder, "t10k")
        self.channels = 1
        self.size = (28, 28)
        self.classes: Sequence[str] | None = CLASSES
        self.flip = True
        self.mean: Sequence[float] = (0.2860,)
        self.std: Sequence[float] = (0.3530,)


def find_folder(root: str | None) -> Path:
    """The folder of the IDX files: in `root`, on this system, or downloaded. Raises DataError if all of that fails."""
    download_into = Path("data" if root is None else root).expanduser()
    if download_into.is_file():
        raise DataError(f"'{download_into}' is a file; `data.root` names the folder of Fashion-MNIST's IDX files")
    folders = [download_into, download_into / "FashionMNIST" / "raw", SYSTEM_FOLDER]
    for folder in folders:
        if all(find_file(folder, part, kind) for part in ("train", "t10k") for kind in ("images", "labels")):
            return folder

    from torchvision.datasets import FashionMNIST

    try:
        FashionMNIST(str(download_into), download=True)
    except Exception as error:  # whatever network, disk or archive raise
        places = ", ".join(f"'{folder}'" for folder in folders)
        raise DataError(
            f"Fashion-MNIST is not in {places}, and downloading it into '{download_into}' failed "
            f"({' '.join(str(error).split())}); `data.root` names the folder that holds its IDX files"
        ) from error
    return folders[1]


def find_file(folder: Path, part: str, kind: str) -> Path | None:
    """The file of "images" or "labels" of the part "train" or "t10k", packed or not; None if there is none."""
    name = f"{part}-{kind}-idx{3 if kind == 'images' else 1}-ubyte"
    for path in (folder / name, folder / f"{name}.gz"):
        if path.is_file():
            return path
    return None


def read_split(folder: Path, part: str) -> ImagesInMemory:
    """The images and labels of "train" or "t10k". Raises DataError, naming the file, where they cannot be."""
    images_file, labels_file = find_file(folder, part, "images"), find_file(folder, part, "labels")
    if images_file is None or labels_file is None:
        raise DataError(f"'{folder}' lacks images or labels of Fashion-MNIST's part '{part}'")
    images, labels = read_idx(images_file, dimensions=3), read_idx(labels_file, dimensions=1)
    if len(images) != len(labels):
        raise DataError(f"'{labels_file}' has {len(labels)} labels, but '{images_file}' has {len(images)} images")
    if len(labels) and int(labels.max()) >= len(CLASSES):
        raise DataError(f"'{labels_file}' has the label {int(labels.max())}, but there are {len(CLASSES)} classes")
    return ImagesInMemory(images[:, None], labels.to(torch.int64))


def read_idx(path: Path, dimensions: int) -> Tensor:
    """The bytes of an IDX file, gzipped or not, as a uint8 tensor. Raises DataError if the file is broken.

    The format: two zero bytes, the type of the values, the number of dimensions, each dimension's length as a
    big-endian int32, then the values, last dimension fastest (the MNIST page of LeCun, Cortes and Burges).
    """
    try:
        content = path.read_bytes()
        if content[:2] == b"\x1f\x8b":
            content = gzip.decompress(content)
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"'{path}' cannot be read ({error}); fetch it anew") from error
    start = 4 + 4 * dimensions
    if len(content) < start or content[:4] != bytes((0, 0, UNSIGNED_BYTES, dimensions)):
        raise DataError(f"'{path}' is no IDX file of bytes in {dimensions} dimensions; fetch it anew")
    shape = [int(length) for length in np.frombuffer(content, dtype=">u4", count=dimensions, offset=4)]
    if len(content) - start != math.prod(shape):
        raise DataError(
            f"'{path}' announces {math.prod(shape)} values, but holds {len(content) - start}; fetch it anew"
        )
    return torch.from_numpy(np.frombuffer(content, dtype=np.uint8, offset=start).reshape(shape).copy())
