"""CIFAR-10, from image folders or from its Python batches."""

from __future__ import annotations

import hashlib
import pickle
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

import attrs
import numpy as np
import torch

from maskzoo.data.digits import ImagesInMemory
from maskzoo.data.finding import find
from maskzoo.data.folder import found_splits
from maskzoo.errors import DataError
from maskzoo.plain import not_empty
from maskzoo.protocols import Split, define

CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
BATCHES = "cifar-10-batches-py"


@define
class Cifar10:
    """CIFAR-10: photos in ten classes, 50,000 to learn from and 10,000 to test on, 32 x 32 RGB pixels."""

    name: ClassVar[str] = "cifar10"

    # the folder of train/ and test/, or of the Python batches, or to download those into
    root: str | None = attrs.field(default=None, validator=not_empty)

    def __attrs_post_init__(self) -> None:
        self.train: Split
        self.test: Split
        self.train, self.test = find_cifar10(self.root)
        self.channels = 3
        self.size = (32, 32)
        self.classes: Sequence[str] | None = CLASSES
        self.flip = True
        self.mean: Sequence[float] = (0.4914, 0.4822, 0.4465)
        self.std: Sequence[float] = (0.2470, 0.2435, 0.2616)


def find_cifar10(root: str | None) -> tuple[Split, Split]:
    """The training and test images in `root` (or the folder data), downloaded if need be; DataError if that fails."""
    folder = Path("data" if root is None else root).expanduser()
    if folder.is_file():
        raise DataError(f"'{folder}' is a file; `data.root` names the folder that holds CIFAR-10")
    if all((folder / part / name).is_dir() for part in ("train", "test") for name in CLASSES):
        found = find(folder, "splits")
        if found.layout.classes == CLASSES:
            return found_splits(found)
    if root is not None and (folder / "train").is_dir():
        raise DataError(
            f"'{folder}' does not hold the class folders of CIFAR-10, and no others, in train and in test: "
            f"{', '.join(CLASSES)}; the data set 'folder' takes any classes"
        )
    names, test_names = _batch_names()
    for place in (folder / BATCHES, folder):
        if all((place / name).is_file() for name in (*names, *test_names)):
            return read_batches(place, names), read_batches(place, test_names)

    from torchvision.datasets import CIFAR10

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # NumPy's, on arrays pickled by Python 2
            CIFAR10(str(folder), download=True)
    except Exception as error:  # whatever network, disk or archive raise
        raise DataError(
            f"CIFAR-10 is neither in '{folder}' (train/ and test/ with class folders, or the Python batches) nor in "
            f"'{folder / BATCHES}', and downloading it into '{folder}' failed ({' '.join(str(error).split())}); "
            f"`data.root` names the folder that holds it"
        ) from error
    return read_batches(folder / BATCHES, names), read_batches(folder / BATCHES, test_names)


def read_batches(folder: Path, names: dict[str, str]) -> ImagesInMemory:
    """The images of the batch files `names` (name -> MD5). Raises DataError for a file that is not the original.

    A pickle can run any code, so none is opened before its checksum is that of the original, of the very bytes read.
    """
    images, labels = [], []
    for name, checksum in names.items():
        try:
            content = (folder / name).read_bytes()
        except OSError as error:
            raise DataError(f"'{folder / name}' cannot be read ({error.strerror}); fetch it anew") from error
        if hashlib.md5(content, usedforsecurity=False).hexdigest() != checksum:
            raise DataError(f"'{folder / name}' is not CIFAR-10's original file (its MD5 differs); fetch it anew")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # NumPy's, on arrays pickled by Python 2
            batch = pickle.loads(content, encoding="latin1")
        images.append(np.asarray(batch["data"], dtype=np.uint8).reshape(-1, 3, 32, 32))
        labels.extend(batch["labels"])
    return ImagesInMemory(torch.from_numpy(np.concatenate(images)), torch.tensor(labels, dtype=torch.int64))


def _batch_names() -> tuple[dict[str, str], dict[str, str]]:
    from torchvision.datasets import CIFAR10

    return dict(CIFAR10.train_list), dict(CIFAR10.test_list)
