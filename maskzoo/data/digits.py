"""The small data set that needs no file and no network, and the split of images in memory that it is made of."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import attrs
import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import interpolate

from maskzoo.bounds import MOST_SIDE, between
from maskzoo.protocols import Sample, Split, define


@attrs.frozen(eq=False)
class ImagesInMemory:
    """A split whose images [M, C, H, W] uint8 and labels [M] int64 are held in memory."""

    images: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Sample:
        return Sample(self.images[index], int(self.labels[index]))


@define
class Digits:
    """Handwritten digits from scikit-learn, 1,437 to learn from and 360 to test on, enlarged from 8 x 8 grey pixels."""

    name: ClassVar[str] = "digits"

    upsample: int = attrs.field(default=32, validator=between(8, MOST_SIDE))  # height and width in pixels

    def __attrs_post_init__(self) -> None:
        from sklearn.datasets import load_digits
        from sklearn.model_selection import train_test_split

        digits = load_digits()
        small = torch.from_numpy(digits.images).to(torch.float32)[:, None] * (255 / 16)
        large = interpolate(small, size=(self.upsample, self.upsample), mode="bicubic")
        images = large.round().clamp(0, 255).to(torch.uint8)  # bicubic overshoots
        labels = torch.from_numpy(digits.target).to(torch.int64)
        kept, held_out = train_test_split(np.arange(len(labels)), test_size=360, random_state=0, stratify=digits.target)
        kept, held_out = torch.from_numpy(np.sort(kept)), torch.from_numpy(np.sort(held_out))

        self.train: Split = ImagesInMemory(images[kept], labels[kept])
        self.test: Split = ImagesInMemory(images[held_out], labels[held_out])
        self.channels = 1
        self.size = (self.upsample, self.upsample)
        self.classes: Sequence[str] | None = [str(digit) for digit in range(10)]
        self.flip = False
        pixels = images[kept].to(torch.float64) / 255
        self.mean: Sequence[float] = (round(pixels.mean().item(), 4),)
        self.std: Sequence[float] = (round(pixels.std().item(), 4),)
