"""What happens to an image between its reader and the model, wherever it goes: cut, filled, resized and normalised.

Shapes: B images, C channels, H height, W width. A *level* is what a pixel stands for, nominally from 0 to 1:
uint8 / 255, uint16 / 65535, float32 as it is.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import attrs
import torch
from torch import Tensor
from torchvision.transforms import InterpolationMode, v2

from maskzoo.errors import ContractError
from maskzoo.protocols import Sample

BICUBIC = InterpolationMode.BICUBIC
REACH = 2.0  # source pixels, at scale 1, on either side of a target pixel that a bicubic filter weighs
WHITE = {torch.uint8: 255, torch.uint16: 65535}  # of the types whose levels end
CONTRACT = "uint8, uint16 or float32"


@attrs.frozen
class Place:
    """A rectangle of an image, in pixels."""

    top: int
    left: int
    height: int
    width: int

    def of(self, values: Tensor) -> Tensor:
        """This part of `values` [*, H, W]."""
        return values[..., self.top : self.top + self.height, self.left : self.left + self.width]


def middle(height: int, width: int, size: tuple[int, int]) -> Place:
    """The largest part of an image, in its middle, that has the shape of `size`."""
    scale = max(size[0] / height, size[1] / width)
    kept = min(height, max(1, round(size[0] / scale))), min(width, max(1, round(size[1] / scale)))
    return Place(round((height - kept[0]) / 2), round((width - kept[1]) / 2), *kept)


# -------------------------------------------------------------------------------------------------------- whole images
def prepare(
    image: Tensor, size: tuple[int, int], mean: Sequence[float], std: Sequence[float], valid: Tensor | None = None
) -> Tensor:
    """A whole image [C, H, W] as float32 [C, *size], normalised; pixels that are not `valid` count as the mean.

    An image of another aspect ratio loses what is too much on both sides of its longer side.
    """
    place = middle(image.shape[-2], image.shape[-1], size)
    return normalised(cut_image(image, place, size, mean, valid), mean, std)


def prepare_extra(values: Tensor, size: tuple[int, int], name: str = "") -> Tensor:
    """Side data [*, H, W] of a whole image as [*, *size], of the same part of it as `prepare`; "valid" by its name."""
    return cut_extra(values, middle(values.shape[-2], values.shape[-1], size), size, name)


def prepare_sample(
    sample: Sample, size: tuple[int, int], mean: Sequence[float], std: Sequence[float], name: str = "an image"
) -> tuple[Tensor, dict[str, Tensor]]:
    """A sample's image as `prepare` makes it, and its extras. Raises ContractError, by `name`, as `check` does."""
    check(sample, len(mean), name)
    image = prepare(sample.image, size, mean, std, sample.extras.get("valid"))
    return image, {key: prepare_extra(values, size, key) for key, values in sample.extras.items()}


# --------------------------------------------------------------------------------------------------------- parts of it
def levels(image: Tensor) -> Tensor:
    """The levels, float32, of an image of any shape. Raises ContractError for a type that has none."""
    if image.dtype == torch.float32:
        return image
    if image.dtype not in WHITE:
        raise ContractError(f"an image is {_type(image)}; the contract is {CONTRACT}")
    return image.to(torch.float32).div_(WHITE[image.dtype])


def normalised(images: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """Images [*, C, H, W] as float32, each channel shifted and scaled by what is usual for it; the levels stay."""
    shift, spread = (torch.tensor(values, dtype=torch.float32)[:, None, None] for values in (mean, std))
    shifted = levels(images).sub(shift) if images.dtype == torch.float32 else levels(images).sub_(shift)
    return shifted.div_(spread)


def cut_image(
    image: Tensor, place: Place, size: tuple[int, int], mean: Sequence[float], valid: Tensor | None = None
) -> Tensor:
    """A part of an image [C, H, W] at `size`: uint8 as it came, everything else as levels in float32.

    Pixels that are not `valid` [C, H, W] are the channel's `mean` level before they are resized, so that nothing
    depends on what is stored in them. Levels that end do so after resizing too, where a bicubic filter overshoots.
    """
    part, ends = place.of(image.as_subclass(Tensor)), image.dtype in WHITE
    measured = None if valid is None else place.of(valid.as_subclass(Tensor))
    if measured is not None and not measured.all():
        part = torch.where(measured, levels(part), torch.tensor(mean, dtype=torch.float32)[:, None, None])
    elif part.dtype != torch.uint8:
        part = levels(part)
    # Straight to the kernel: on small images the dispatch of torchvision's transforms takes longer than it does.
    resized: Tensor = v2.functional.resize_image(part, list(size), interpolation=BICUBIC, antialias=True)
    return resized.clamp(0, 1) if ends and resized.dtype == torch.float32 else resized


def cut_extra(values: Tensor, place: Place, size: tuple[int, int], name: str = "") -> Tensor:
    """A part of side data [*, H, W] at `size`: whole numbers by nearest neighbour, others by interpolation.

    What is called "valid" says which pixels were measured: a resized one is valid if all that it is made of are.
    """
    part = place.of(values.as_subclass(Tensor))
    if name == "valid":
        return _valid(part, size)
    if part.is_floating_point():
        flat: Tensor = part.reshape(-1, *part.shape[-2:])
        flat = v2.functional.resize_image(flat, list(size), interpolation=BICUBIC, antialias=True)
        return flat.reshape(*part.shape[:-2], *size)
    down, across = (_nearest(old, new) for old, new in zip(part.shape[-2:], size, strict=True))
    return part[..., down[:, None], across]


def _nearest(old: int, new: int) -> Tensor:
    """[new] int64: the positions among `old` pixels whose values a side of `new` takes, as torch's "nearest" does.

    By index and not by torch, which would take large whole numbers through float32.
    """
    return (torch.arange(new, dtype=torch.float32) * torch.tensor(old / new)).long().clamp_(max=old - 1)


def _valid(valid: Tensor, size: tuple[int, int]) -> Tensor:
    """Which pixels [*, *size] of a resized image are made of valid ones alone, where `valid` is bool [*, H, W]."""
    bad = (~valid).to(torch.int32)
    for dimension, new in ((-2, size[0]), (-1, size[1])):
        if bad.shape[dimension] != new:
            first, last = _window(bad.shape[dimension], new)
            before = torch.nn.functional.pad(bad.cumsum(dimension), (1, 0) if dimension == -1 else (0, 0, 1, 0))
            bad = (before.index_select(dimension, last) > before.index_select(dimension, first)).to(torch.int32)
    return bad == 0


def _window(old: int, new: int) -> tuple[Tensor, Tensor]:
    """The first of `old` pixels, and the one after the last, that each of `new` is made of: [new] int64 each."""
    scale = old / new
    reach = REACH * max(1.0, scale)  # antialiasing widens the filter of what shrinks
    centre = (torch.arange(new, dtype=torch.float64) + 0.5) * scale
    first, last = (centre - reach + 0.5).floor().clamp_(min=0), (centre + reach + 0.5).floor().clamp_(max=old)
    return first.long(), last.long()


# -------------------------------------------------------------------------------------------------------- the contract
def check(sample: Sample, channels: int, name: str) -> None:
    """Raise ContractError, by the `name` of the image, unless a sample is what a data set has promised."""
    image: Any = sample.image
    wrong = not isinstance(image, Tensor) or image.dtype not in (*WHITE, torch.float32)
    if wrong or image.ndim != 3 or image.shape[0] != channels or 0 in image.shape:
        last = isinstance(image, Tensor) and image.ndim == 3 and image.shape[2] == channels != image.shape[0]
        raise ContractError(
            f"{name} is {_type(image)} {list(getattr(image, 'shape', []))}; the contract is {CONTRACT} "
            f"[{channels}, H, W]{': channels come first' if last else ''}"
        )
    for key, values in sample.extras.items():
        if values.shape[-2:] != image.shape[-2:]:
            raise ContractError(
                f"extra '{key}' of {name} is {list(values.shape)}; the contract is "
                f"[*, {image.shape[-2]}, {image.shape[-1]}], as large as the image"
            )
    valid = sample.extras.get("valid")
    if valid is not None and (valid.dtype != torch.bool or valid.shape != image.shape):
        raise ContractError(
            f"extra 'valid' of {name} is {_type(valid)} {list(valid.shape)}; the contract is bool "
            f"{list(image.shape)}, as the image, True where a pixel was measured"
        )
    if image.dtype == torch.float32 and not _finite(image, valid):
        raise ContractError(
            f"{name} has pixels that are NaN or infinite and not marked; the contract is that extras['valid'], bool "
            f"{list(image.shape)}, is False there"
        )


def _finite(image: Tensor, valid: Tensor | None) -> bool:
    if math.isfinite(image.sum().item()):  # the usual case, at the cost of one pass
        return True
    finite = image.isfinite()
    return bool((finite if valid is None else finite | ~valid).all())


def _type(value: Any) -> str:
    """A tensor's type without "torch.", or the name of what is no tensor."""
    return str(value.dtype).removeprefix("torch.") if isinstance(value, Tensor) else type(value).__name__
