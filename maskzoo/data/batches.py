"""The way from a data set to augmented batches, the same for any number of workers and from any step on.

Shapes: B images, C channels, H height, W width.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import cast

import attrs
import torch
import torch.utils.data
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms import InterpolationMode, v2

from maskzoo.errors import ContractError, DataError, MaskZooError
from maskzoo.protocols import Batch, Dataset, Sample, Split
from maskzoo.seeds import stream, stream_seed

BICUBIC = InterpolationMode.BICUBIC
LOOKUP_TRIES = 100  # broken images in a row


def steps_in_epoch(dataset: Dataset, batch_size: int) -> int:
    """The whole batches in the training images; DataError if there is not even one."""
    images = len(dataset.train)
    if images == 0:
        raise DataError(f"data set '{dataset.name}' has no training images")
    if batch_size > images:
        raise DataError(
            f"recipe.train.batch_size: {batch_size} is more than the {images} training images of data set "
            f"'{dataset.name}'; at most {images} would be right"
        )
    return images // batch_size


def prepare(image: Tensor, size: tuple[int, int], mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """A whole image uint8 [C, H, W] as float32 [C, *size], normalised.

    An image of another aspect ratio loses what is too much on both sides of its longer side.
    """
    return _normalised(_middle(image, size)[None], mean, std)[0]


def prepare_extra(values: Tensor, size: tuple[int, int]) -> Tensor:
    """Side data [*, H, W] of a whole image as [*, *size], of the same part of it as `prepare`, by nearest neighbour."""
    flat = values.reshape(-1, *values.shape[-2:])
    return _middle(tv_tensors.Mask(flat), size).as_subclass(Tensor).reshape(*values.shape[:-2], *size)


def _middle(image: Tensor, size: tuple[int, int]) -> Tensor:
    height, width = image.shape[-2:]
    scale = max(size[0] / height, size[1] / width)
    kept = min(height, max(1, round(size[0] / scale))), min(width, max(1, round(size[1] / scale)))
    middle = v2.functional.center_crop(image, list(kept))
    if kept != tuple(size):
        middle = v2.functional.resize(middle, list(size), interpolation=BICUBIC, antialias=True)
    return cast(Tensor, middle)


def batches(
    dataset: Dataset,
    *,
    size: tuple[int, int],
    batch_size: int,
    seed: int,
    start: int,
    steps: int,
    scale: tuple[float, float] = (0.2, 1.0),
    flip: bool | None = None,
    workers: int = 0,
    max_broken: float = 0.1,
    pin_memory: bool = False,
) -> Iterator[Batch]:
    """The batches of steps `start` to `steps` - 1, each a random crop (area in `scale`), mirrored or not, normalised.

    `flip` overrules the data set's. An image that cannot be read is replaced by the next one and reported once, in
    `Batch.broken`. Raises DataError when their share of the training images exceeds `max_broken`.
    """
    per_epoch = steps_in_epoch(dataset, batch_size)
    loader = torch.utils.data.DataLoader(
        _Augmented(
            dataset.train,
            seed=seed,
            transform=v2.Compose(
                [
                    v2.RandomResizedCrop(size, scale=scale, interpolation=BICUBIC, antialias=True),
                    v2.RandomHorizontalFlip(0.5 if (dataset.flip if flip is None else flip) else 0.0),
                ]
            ),
            channels=dataset.channels,
            labelled=dataset.classes is not None,
        ),
        batch_sampler=_plan(len(dataset.train), batch_size, per_epoch, seed=seed, start=start, steps=steps),
        num_workers=workers,
        collate_fn=_Collate(tuple(dataset.mean), tuple(dataset.std)),
        pin_memory=pin_memory and torch.cuda.is_available(),
        generator=torch.Generator(),  # otherwise the loader draws a seed, which nobody uses, from the global one
    )
    return _checked(loader, len(dataset.train), max_broken)


def _plan(
    images: int, batch_size: int, per_epoch: int, *, seed: int, start: int, steps: int
) -> Iterator[list[tuple[int, int]]]:
    """The (epoch, index) of the images of each step."""
    for step in range(start, steps):
        epoch, position = divmod(step, per_epoch)
        if step == start or position == 0:
            order = torch.randperm(images, generator=stream(seed, "order", epoch))
        yield [(epoch, index) for index in order[position * batch_size : (position + 1) * batch_size].tolist()]


def _checked(loader: torch.utils.data.DataLoader[_Picked], images: int, max_broken: float) -> Iterator[Batch]:
    """The loader's batches; broken images are counted here since each worker sees only some of them."""
    seen: dict[int, str] = {}
    for packed in loader:
        news = {index: sentence for index, sentence in packed.broken.items() if index not in seen}
        seen.update(news)
        if len(seen) > max_broken * images + 1e-9:  # 0.29 * 100 is 28.999999999999996
            named = "; ".join(list(seen.values())[:3])
            raise DataError(
                f"recipe.train.max_broken: {len(seen)} of {images} training images cannot be read, "
                f"more than the share of {max_broken:g} that is allowed: {named}"
            )
        if packed.failure is not None:
            raise packed.failure
        assert packed.batch is not None
        yield attrs.evolve(packed.batch, broken=tuple(news.values()))


@attrs.frozen(eq=False)
class _Picked:
    """One augmented image, not normalised yet; or what kept it from being one."""

    image: Tensor  # [C, *size] uint8
    index: int
    label: int | None
    extras: Mapping[str, Tensor]
    broken: Mapping[int, str]  # index -> sentence
    failure: MaskZooError | None = None


@attrs.frozen(eq=False)
class _Packed:
    """A batch on its way from a worker; errors travel as data, since torch would wrap them in its own words."""

    batch: Batch | None
    broken: Mapping[int, str]
    failure: MaskZooError | None = None

    def pin_memory(self) -> _Packed:
        """The same in page-locked memory; the loader calls this."""
        if self.batch is None:
            return self
        batch = self.batch
        pinned = Batch(
            images=batch.images.pin_memory(),
            labels=None if batch.labels is None else batch.labels.pin_memory(),
            index=batch.index.pin_memory(),
            extras={name: values.pin_memory() for name, values in batch.extras.items()},
        )
        return attrs.evolve(self, batch=pinned)


@attrs.frozen(eq=False)
class _Augmented(torch.utils.data.Dataset[_Picked]):
    """The training images, cropped and mirrored by what (epoch, index) says."""

    split: Split
    seed: int
    transform: v2.Transform
    channels: int
    labelled: bool

    def __getitem__(self, place: tuple[int, int]) -> _Picked:
        epoch, index = place
        broken: dict[int, str] = {}
        try:
            sample, found = self._lookup(index, broken)
            self._check(sample, found)
            image, extras = self._augmented(sample, epoch, index)
            return _Picked(image, found, sample.label if self.labelled else None, extras, broken)
        except MaskZooError as error:
            return _Picked(torch.empty(0), index, None, {}, broken, failure=error)

    def _augmented(self, sample: Sample, epoch: int, index: int) -> tuple[Tensor, Mapping[str, Tensor]]:
        """The sample's image and extras under one random crop and flip, drawn for the place that was asked for."""
        image = tv_tensors.Image(sample.image)
        extras = {
            name: (tv_tensors.Image if values.is_floating_point() else tv_tensors.Mask)(values)
            for name, values in sample.extras.items()
        }
        with torch.random.fork_rng(devices=[]):  # torchvision draws from the global generator, and nowhere else
            # The index asked for, not the one found: a stand-in differs from itself elsewhere in the epoch.
            torch.default_generator.manual_seed(stream_seed(self.seed, "augment", epoch, index))
            image, extras = self.transform(image, extras)
        size = image.shape[-2:]
        return (
            image.as_subclass(Tensor),
            {  # reshaped, since [H, W] has become [1, H, W]
                name: values.as_subclass(Tensor).reshape(*sample.extras[name].shape[:-2], *size)
                for name, values in extras.items()
            },
        )

    def _lookup(self, index: int, broken: dict[int, str]) -> tuple[Sample, int]:
        """The image at `index`, or the first after it that can be read, and where it was; notes the `broken` ones."""
        images = len(self.split)
        for offset in range(min(LOOKUP_TRIES, images)):
            candidate = (index + offset) % images
            try:
                return self.split[candidate], candidate
            except DataError as error:
                broken[candidate] = str(error)
        named = "; ".join(list(broken.values())[:3])
        raise DataError(f"{len(broken)} training images in a row cannot be read: {named}")

    def _check(self, sample: Sample, index: int) -> None:
        image = sample.image
        if image.dtype != torch.uint8 or image.ndim != 3 or image.shape[0] != self.channels:
            raise ContractError(
                f"training image {index} is {image.dtype} {list(image.shape)}; the contract is uint8 "
                f"[{self.channels}, H, W]"
            )
        for name, values in sample.extras.items():
            if values.shape[-2:] != image.shape[-2:]:
                raise ContractError(
                    f"extra '{name}' of training image {index} is {list(values.shape)}; the contract is "
                    f"[*, {image.shape[-2]}, {image.shape[-1]}], as large as the image"
                )
        if self.labelled and sample.label is None:
            raise ContractError(f"training image {index} has no label, but the data set has classes")


@attrs.frozen(eq=False)
class _Collate:
    """Turns single images into a batch, normalised as a whole: that is where single images would lose time."""

    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __call__(self, picked: list[_Picked]) -> _Packed:
        broken = {index: sentence for one in picked for index, sentence in one.broken.items()}
        failure = next((one.failure for one in picked if one.failure is not None), None)
        if failure is not None:
            return _Packed(None, broken, failure)
        labels = [one.label for one in picked if one.label is not None]
        if any(one.extras.keys() != picked[0].extras.keys() for one in picked):
            return _Packed(None, broken, ContractError("some training images have extras that others lack"))
        batch = Batch(
            images=_normalised(torch.stack([one.image for one in picked]), self.mean, self.std),
            labels=torch.tensor(labels, dtype=torch.int64) if labels else None,
            index=torch.tensor([one.index for one in picked], dtype=torch.int64),
            extras={name: torch.stack([one.extras[name] for one in picked]) for name in picked[0].extras},
        )
        return _Packed(batch, broken)


def _normalised(images: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """Images uint8 [B, C, H, W] as float32, each channel shifted and scaled by what is usual for it."""
    shift, spread = (torch.tensor(values, dtype=torch.float32)[:, None, None] for values in (mean, std))
    return images.to(torch.float32).div_(255).sub_(shift).div_(spread)
