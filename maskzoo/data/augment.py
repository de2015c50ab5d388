"""One random crop and flip of each training image, drawn for its place in the epoch, and packed into batches.

Shapes: B images, C channels, H height, W width.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence

import attrs
import torch
from torch import Tensor
from torchvision.transforms import v2

from maskzoo.data.labels import NoLabelsError, label_of
from maskzoo.data.prepare import Place, check, cut_extra, cut_image, levels, normalised
from maskzoo.errors import ContractError, MaskZooError
from maskzoo.protocols import Batch, Sample
from maskzoo.seeds import stream_seed

SHAPES = (3 / 4, 4 / 3)  # of crops, width / height, around that of the target


@attrs.frozen(eq=False)
class Picked:
    """One augmented image, not normalised yet; or what kept it from being one."""

    image: Tensor  # [C, *size] uint8, or float32 levels
    index: int
    label: int | None
    extras: Mapping[str, Tensor]
    broken: Mapping[int, str]  # index -> sentence
    failure: MaskZooError | None = None


@attrs.frozen(eq=False)
class Packed:
    """A batch on its way from a worker; errors travel as data, since torch would wrap them in its own words."""

    batch: Batch | None
    broken: Mapping[int, str]
    failure: MaskZooError | None = None
    seconds: float = 0.0  # that making it took

    def pin_memory(self) -> Packed:
        """The same in page-locked memory; the loader calls this."""
        return self if self.batch is None else attrs.evolve(self, batch=_each(self.batch, Tensor.pin_memory))

    def handed_over(self, began: float, *, shared: bool) -> Packed:
        """The same, where the main process can see it, with the time that it took.

        Shared here, in the worker's own thread: torch would do it in the thread of a queue, where an error is printed,
        and the batch then waited for in vain.
        """
        batch = self.batch
        if batch is not None and shared:
            batch = _each(batch, Tensor.share_memory_)
        return attrs.evolve(self, batch=batch, seconds=time.perf_counter() - began)


def _each(batch: Batch, change: Callable[[Tensor], Tensor]) -> Batch:
    """A batch with all its tensors changed."""
    return Batch(
        images=change(batch.images),
        labels=None if batch.labels is None else change(batch.labels),
        index=change(batch.index),
        extras={name: change(values) for name, values in batch.extras.items()},
    )


@attrs.frozen(eq=False)
class Crops:
    """Random parts of images, `scale` of the area large, in the shape of the target or a little wider or higher.

    Each is brought to the target's size, so their shape varies around the target's own: what an image shows is as
    often widened as it is heightened, and evaluation, which cuts the target's shape out of the middle, agrees.
    """

    size: tuple[int, int]
    scale: tuple[float, float]
    shapes: tuple[float, float]  # the narrowest and the widest, width / height
    usual: v2.RandomResizedCrop

    @classmethod
    def of(cls, size: tuple[int, int], scale: tuple[float, float]) -> Crops:
        """Those of a target of this height and width."""
        own = size[1] / size[0]
        shapes = SHAPES[0] * own, SHAPES[1] * own
        return cls(size, scale, shapes, v2.RandomResizedCrop(size, scale=scale, ratio=shapes))

    def draw(self, image: Tensor) -> Place:
        """A part of an image [C, H, W], by the global generator.

        As torchvision draws it where the image's own shape is among those of the crops. It tries areas and shapes until
        one fits, and in an image much wider than the target only wide ones do. So there the shape is drawn first, and
        the area from as much of `scale` as fits.
        """
        height, width = image.shape[-2:]
        narrowest, widest = self.shapes
        if narrowest <= width / height <= widest:
            return Place(**self.usual.make_params([image]))
        drawn = torch.rand(4, generator=torch.default_generator).tolist()
        shape = math.exp(math.log(narrowest) + drawn[0] * (math.log(widest) - math.log(narrowest)))
        most = min(shape * height / width, width / (shape * height))  # share of the area of the largest such part
        least, largest = (min(share, most) for share in self.scale)
        area = (least + drawn[1] * (largest - least)) * height * width
        high = min(height, max(1, round(math.sqrt(area / shape))))
        wide = min(width, max(1, round(math.sqrt(area * shape))))
        return Place(int(drawn[2] * (height - high + 1)), int(drawn[3] * (width - wide + 1)), high, wide)


@attrs.frozen(eq=False)
class Augment:
    """Crops, mirrors and packs images by what (epoch, index) says."""

    seed: int
    crops: Crops
    flip: float  # how likely an image is mirrored
    channels: int
    classes: int | None  # None: no labels
    labels_needed: bool
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def pick(self, sample: Sample, epoch: int, index: int, found: int, broken: Mapping[int, str]) -> Picked:
        """The image that was `found` where that at `index` was asked for; ContractError if it is not as promised."""
        check(sample, self.channels, f"training image {found}")
        image, extras = self._augmented(sample, epoch, index)
        label = None
        if self.classes is not None:
            label = label_of(sample.label, self.classes, f"training image {found}")
        return Picked(image, found, label, extras, broken)

    def _augmented(self, sample: Sample, epoch: int, index: int) -> tuple[Tensor, Mapping[str, Tensor]]:
        """The sample's image and extras under one random crop and flip, drawn for the place that was asked for."""
        with torch.random.fork_rng(devices=[]):  # torchvision draws from the global generator, and nowhere else
            # The index asked for, not the one found: a stand-in differs from itself elsewhere in the epoch.
            torch.default_generator.manual_seed(stream_seed(self.seed, "augment", epoch, index))
            place = self.crops.draw(sample.image)
            mirrored = torch.rand(1, generator=torch.default_generator).item() < self.flip
        size = self.crops.size
        image = cut_image(sample.image, place, size, self.mean, sample.extras.get("valid"))
        extras = {name: cut_extra(values, place, size, name) for name, values in sample.extras.items()}
        if mirrored:
            image, extras = image.flip(-1), {name: values.flip(-1) for name, values in extras.items()}
        return image, extras

    def pack(self, picked: Sequence[Picked]) -> Packed:
        """Single images as a batch, normalised as a whole: that is where single images would lose time."""
        broken = {index: sentence for one in picked for index, sentence in one.broken.items()}
        failure = next((one.failure for one in picked if one.failure is not None), None)
        if failure is not None:
            return Packed(None, broken, failure)
        labels = [one.label for one in picked if one.label is not None]
        if len(labels) < len(picked):
            if self.labels_needed:
                return Packed(None, broken, _unlabelled(picked))
            labels = []
        images = [one.image for one in picked]
        if any(image.dtype != torch.uint8 for image in images):
            images = [levels(image) for image in images]
        try:
            extras = together([one.extras for one in picked], images)
        except ContractError as problem:
            return Packed(None, broken, problem)
        batch = Batch(
            images=normalised(torch.stack(images), self.mean, self.std),
            labels=torch.tensor(labels, dtype=torch.int64) if labels else None,
            index=torch.tensor([one.index for one in picked], dtype=torch.int64),
            extras={name: torch.stack(values) for name, values in extras.items()},
        )
        return Packed(batch, broken)


def _unlabelled(picked: Sequence[Picked]) -> NoLabelsError:
    lacking = [one.index for one in picked if one.label is None]
    return NoLabelsError(
        f"{len(lacking)} of {len(picked)} training images of a batch have no label, e.g. image {lacking[0]}, and what "
        "is trained learns from labels; leave such images out"
    )


def together(extras: Sequence[Mapping[str, Tensor]], images: Sequence[Tensor]) -> dict[str, list[Tensor]]:
    """The extras of several images, or batches, by name; where only some say what is valid, all of the others is.

    Raises ContractError where some lack any other.
    """
    if any("valid" in one for one in extras):
        extras = [
            one if "valid" in one else {**one, "valid": torch.ones(image.shape, dtype=torch.bool)}
            for one, image in zip(extras, images, strict=True)
        ]
    if any(one.keys() != extras[0].keys() for one in extras):
        raise ContractError("some training images have extras that others lack")
    return {name: [one[name] for one in extras] for name in extras[0]}
