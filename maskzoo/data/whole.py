"""Whole images of a split, prepared for an encoder, batch by batch, by as many workers as one likes.

Shapes: B images in a batch, C channels.
"""

from __future__ import annotations

import os
from collections.abc import Generator, Mapping, Sequence
from contextlib import closing

import attrs
import torch
import torch.utils.data
from torch import Tensor

from maskzoo.data.augment import together
from maskzoo.data.folder import SourceGoneError
from maskzoo.data.labels import label_of
from maskzoo.data.prepare import prepare_sample
from maskzoo.data.workers import as_it_is, loaded
from maskzoo.errors import DataError, MaskZooError
from maskzoo.protocols import Sample, Split, Stream

MOST_WORKERS = 8  # unless more are asked for


def usual_workers(device: torch.device) -> int:
    """How many workers a loader has unless somebody says: none where they would take the time of the computation."""
    return 0 if device.type == "cpu" else min(MOST_WORKERS, os.cpu_count() or 1)


def whole_batches(
    split: Split,
    chosen: Sequence[int],
    *,
    size: tuple[int, int],
    mean: Sequence[float],
    std: Sequence[float],
    batch_size: int,
    workers: int = 0,
    max_broken: float = 1.0,
    classes: int | None = None,
) -> Generator[Whole, None, None]:
    """The images at the `chosen` positions in their order, prepared, with their labels.

    A label that is none of `classes` raises ContractError.
    Images that cannot be read are left out, and come as {position: sentence}; of a batch without any other there are
    no images (None). DataError if they are more than a share of `max_broken`, or all, if their source is gone, or if a
    worker dies. A stream is read in this process: each of several workers would have to read all of it.
    """
    places = [chosen[first : first + batch_size] for first in range(0, len(chosen), batch_size)]
    workers = 0 if isinstance(split, Stream) else min(workers, len(places))
    source = _Whole(split, size, tuple(mean), tuple(std), classes, shared=workers > 0)
    loader = torch.utils.data.DataLoader(
        source,
        sampler=places,
        batch_size=None,  # a request is a whole batch
        num_workers=workers,
        collate_fn=as_it_is,
        generator=torch.Generator(),  # otherwise the loader draws a seed, which nobody uses, from the global one
    )
    broken: dict[int, str] = {}
    with closing(loaded(loader)) as packs:
        for pack in packs:
            if pack.failure is not None:
                raise pack.failure
            broken |= pack.broken
            if len(broken) > max_broken * len(chosen) + 1e-9 or len(broken) == len(chosen):
                raise DataError(
                    f"{len(broken)} of {len(chosen)} images cannot be read, too many for what is measured to mean "
                    f"anything: {'; '.join(list(broken.values())[:3])}"
                )
            yield pack


@attrs.frozen(eq=False)
class Whole:
    """A batch on its way from a worker; an error travels as data, since torch would wrap it in its own words."""

    images: Tensor | None  # [B, C, *size]; None where not one could be read
    labels: list[int | None]
    broken: dict[int, str]  # position -> sentence
    valid: Tensor | None = None  # [B, C, *size] bool, which pixels were measured; None: all of them
    failure: MaskZooError | None = None  # what ends it all: the source is gone, or the data set breaks its contract


@attrs.frozen(eq=False)
class _Whole(torch.utils.data.Dataset[Whole]):
    """Batches of a split, by the positions of their images."""

    split: Split
    size: tuple[int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    classes: int | None  # None: not known
    shared: bool  # hand batches over in shared memory

    def __getitem__(self, places: Sequence[int]) -> Whole:
        images: list[Tensor] = []
        extras: list[Mapping[str, Tensor]] = []
        labels: list[int | None] = []
        broken: dict[int, str] = {}
        for place in places:
            try:
                sample = self.split[place]
                valid = {name: values for name, values in sample.extras.items() if name == "valid"}
                seen = Sample(sample.image, sample.label, valid)
                image, extra = prepare_sample(seen, self.size, self.mean, self.std, f"image {place}")
                label = label_of(sample.label, self.classes, f"image {place}")
            except SourceGoneError as error:
                return Whole(None, [], {}, failure=error)
            except DataError as error:
                broken[place] = str(error)
                continue
            except MaskZooError as error:
                return Whole(None, [], {}, failure=error)
            images.append(image)
            extras.append(extra)
            labels.append(label)
        if not images:
            return Whole(None, [], broken)
        stacked = torch.stack(images)
        marked = together(extras, images).get("valid")
        measured = None if marked is None else torch.stack(marked)
        if self.shared:
            # Here, and not in the thread of torch's queue, where an error would be printed and the batch never come.
            for values in (stacked, *([] if measured is None else [measured])):
                Tensor.share_memory_(values)  # type: ignore[no-untyped-call]
        return Whole(stacked, labels, broken, measured)
