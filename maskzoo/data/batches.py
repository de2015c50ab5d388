"""The way from a data set to augmented batches, the same for any number of workers and processes and from any step on.

Shapes: B images, C channels, H height, W width.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import closing

import attrs
import torch
import torch.utils.data
from torch import Tensor

from maskzoo.data.augment import Augment, Crops, Packed, Picked, together
from maskzoo.data.folder import SourceGoneError
from maskzoo.data.workers import as_it_is, loaded
from maskzoo.errors import ContractError, DataError, MaskZooError
from maskzoo.protocols import Batch, Dataset, Sample, Split, Stream
from maskzoo.seeds import stream, stream_seed

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
    rank: int = 0,
    world: int = 1,
    accumulate: int = 1,
    statistics: tuple[Sequence[float], Sequence[float]] | None = None,
    labels_needed: bool = False,
) -> Generator[Batch, None, None]:
    """This process's part of steps `start` to `steps` - 1: random crops (area in `scale`), mirrored or not, normalised.

    `batch_size` is that of all `world` processes together. Each step comes in `accumulate` batches: its images, in
    their order, are cut into `accumulate` * `world` equal shares, and batch a of process `rank` is share
    a * `world` + `rank`. Which images those are and how they are cropped depends on neither, nor on `workers`.
    `flip` overrules the data set's, and `statistics` its mean and deviation. An image that cannot be read is
    replaced by the next one and reported once, in `Batch.broken`, by the process that met it. Raises DataError when
    those that this process met exceed the share `max_broken` of the training images, and when a worker dies;
    ContractError where the shares would not be equal. A batch of which an image has no label has none;
    where `labels_needed`, that raises NoLabelsError.
    """
    if world < 1 or accumulate < 1 or not 0 <= rank < world or batch_size % (world * accumulate):
        raise ContractError(
            f"a batch of {batch_size} cannot be cut into {accumulate} x {world} equal shares, for process {rank}"
        )
    per_epoch = steps_in_epoch(dataset, batch_size)
    split = dataset.train
    augment = Augment(
        seed=seed,
        crops=Crops.of(size, scale),
        flip=0.5 if (dataset.flip if flip is None else flip) else 0.0,
        channels=dataset.channels,
        classes=None if dataset.classes is None else len(dataset.classes),
        labels_needed=labels_needed,
        mean=tuple(dataset.mean if statistics is None else statistics[0]),
        std=tuple(dataset.std if statistics is None else statistics[1]),
    )
    plan: Iterable[object]
    source: _LookedUp | _Streamed
    pieces, prefetched = 1, 2  # of a batch, and how many of those each worker prepares in advance
    if isinstance(split, Stream):
        parts = _Parts.of(batch_size, world, accumulate, split)
        pieces = parts.pieces
        prefetched = 2 * pieces
        workers = parts.useful_workers(workers)
        source = _Streamed(split, augment, count=parts.rows, shared=workers > 0)
        plan = parts.plan(per_epoch, rank=rank, start=start, steps=steps)
    else:
        source = _LookedUp(split, augment, shared=workers > 0)
        plan = _plan(
            len(split), batch_size, per_epoch, seed=seed, start=start, steps=steps, shares=(rank, world, accumulate)
        )
    pinned = pin_memory and torch.cuda.is_available()
    loader = torch.utils.data.DataLoader(
        source,
        sampler=plan,
        batch_size=None,  # a request is a whole batch
        num_workers=workers,
        prefetch_factor=prefetched if workers else None,
        collate_fn=as_it_is,
        pin_memory=pinned and pieces == 1,
        generator=torch.Generator(),  # otherwise the loader draws a seed, which nobody uses, from the global one
    )
    packs: Generator[Packed, None, None] = loaded(loader)
    if pieces > 1:
        packs = _joined(packs, pieces, pinned=pinned)
    return _checked(packs, len(split), max_broken, max(1, workers))


def _plan(
    images: int, batch_size: int, per_epoch: int, *, seed: int, start: int, steps: int, shares: tuple[int, int, int]
) -> Iterator[list[tuple[int, int]]]:
    """The (epoch, index) of the images of each of this process's batches; `shares` are its rank, world, accumulate."""
    rank, world, accumulate = shares
    rows = batch_size // (world * accumulate)
    for step in range(start, steps):
        epoch, position = divmod(step, per_epoch)
        if step == start or position == 0:
            order = torch.randperm(images, generator=stream(seed, "order", epoch))
        for part in range(accumulate):
            first = position * batch_size + (part * world + rank) * rows
            yield [(epoch, index) for index in order[first : first + rows].tolist()]


@attrs.frozen
class _Parts:
    """How a step is put together from the shares of a stream.

    The images of a step come from all shares, in equal runs, one share after the other. A piece is what one share gives
    to one batch; it is the same whoever reads it.
    """

    stream_shares: int
    world: int
    accumulate: int
    units: int  # pieces in a step, of all processes
    rows: int  # images in a piece

    @classmethod
    def of(cls, batch_size: int, world: int, accumulate: int, split: Stream) -> _Parts:
        """The parts of a batch; DataError where they would not be equal."""
        batches, shares = world * accumulate, split.shares
        if batch_size % shares or (batches % shares and shares % batches):
            raise DataError(
                f"recipe.data.shares: a batch of {batch_size} images in {batches} "
                f"{'part' if batches == 1 else 'equal parts'} cannot be read from {shares} shares alike; take a number "
                f"that divides the batch, and that divides {batches} or is a multiple of it"
            )
        units = max(batches, shares)
        return cls(shares, world, accumulate, units, batch_size // units)

    @property
    def pieces(self) -> int:
        """How many make a batch."""
        return self.units // (self.world * self.accumulate)

    def useful_workers(self, workers: int) -> int:
        """As many of the workers as leave each with shares of its own: the loader deals pieces out in turns."""
        here = self.pieces * self.accumulate
        return max((number for number in range(1, min(workers, here) + 1) if here % number == 0), default=0)

    def plan(self, per_epoch: int, *, rank: int, start: int, steps: int) -> Iterator[tuple[int, int, int]]:
        """(epoch, share, place of the first image in it) of each piece of this process."""
        by_share = self.units // self.stream_shares
        for step in range(start, steps):
            epoch, position = divmod(step, per_epoch)
            for part in range(self.accumulate):
                first = (part * self.world + rank) * self.pieces
                for unit in range(first, first + self.pieces):
                    share, run = divmod(unit, by_share)
                    yield epoch, share, (position * by_share + run) * self.rows


def _joined(pieces: Generator[Packed, None, None], count: int, *, pinned: bool) -> Generator[Packed, None, None]:
    """Whole batches from `count` pieces each."""
    while some := list(itertools.islice(pieces, count)):
        seconds = sum(piece.seconds for piece in some)
        found = [piece.batch for piece in some if piece.batch is not None]
        failure = next((piece.failure for piece in some if piece.failure is not None), None)
        extras: dict[str, list[Tensor]] = {}
        if failure is None:
            try:
                extras = together([batch.extras for batch in found], [batch.images for batch in found])
            except ContractError as problem:
                failure = problem
        if failure is not None:
            yield Packed(None, {}, failure)
            return
        labels = [batch.labels for batch in found if batch.labels is not None]
        labels = labels if len(labels) == len(found) else []
        joined = Batch(
            images=torch.cat([batch.images for batch in found]),
            labels=torch.cat(labels) if labels else None,
            index=torch.cat([batch.index for batch in found]),
            extras={name: torch.cat(values) for name, values in extras.items()},
        )
        whole = Packed(joined, {}, seconds=seconds)
        yield whole.pin_memory() if pinned else whole


def _checked(
    packs: Generator[Packed, None, None], images: int, max_broken: float, makers: int
) -> Generator[Batch, None, None]:
    """The loader's batches; broken images are counted here since each worker sees only some of them."""
    seen: dict[int, str] = {}
    with closing(packs):  # an error ends the workers now, not when its traceback is forgotten
        for packed in packs:
            if isinstance(packed.failure, SourceGoneError):
                raise packed.failure
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
            yield attrs.evolve(packed.batch, broken=tuple(news.values()), seconds=packed.seconds / makers)


# ------------------------------------------------------------------------------------------------- what the workers do
@attrs.frozen(eq=False)
class _LookedUp(torch.utils.data.Dataset[Packed]):
    """Batches of a split, by the (epoch, index) of their images."""

    split: Split
    augment: Augment
    shared: bool  # hand batches over in shared memory

    def __getitem__(self, places: Sequence[tuple[int, int]]) -> Packed:
        began = time.perf_counter()
        picked = []
        for epoch, index in places:
            picked.append(self._picked(epoch, index))
            if isinstance(picked[-1].failure, SourceGoneError):
                break
        return self.augment.pack(picked).handed_over(began, shared=self.shared)

    def _picked(self, epoch: int, index: int) -> Picked:
        broken: dict[int, str] = {}
        try:
            sample, found = self._lookup(index, broken)
            return self.augment.pick(sample, epoch, index, found, broken)
        except MaskZooError as error:
            return Picked(torch.empty(0), index, None, {}, broken, failure=error)

    def _lookup(self, index: int, broken: dict[int, str]) -> tuple[Sample, int]:
        """The image at `index`, or the first after it that can be read, and where it was; notes the `broken` ones."""
        images = len(self.split)
        for offset in range(min(LOOKUP_TRIES, images)):
            candidate = (index + offset) % images
            try:
                return self.split[candidate], candidate
            except SourceGoneError:
                raise
            except DataError as error:
                broken[candidate] = str(error)
        named = "; ".join(list(broken.values())[:3])
        raise DataError(f"{len(broken)} training images in a row cannot be read: {named}")


@attrs.frozen(eq=False)
class _Streamed(torch.utils.data.Dataset[Packed]):
    """Pieces of batches of a stream, by (epoch, share, place); a share is read on from where the last piece ended.

    Whoever is asked for another place reads up to it first, so that no figure depends on who is asked for what.
    """

    split: Stream
    augment: Augment
    count: int  # images in a piece
    shared: bool
    _open: dict[int, tuple[int, int, Iterator[Sample]]] = attrs.field(factory=dict, init=False)  # epoch, place, images

    def __getitem__(self, request: tuple[int, int, int]) -> Packed:
        began = time.perf_counter()
        epoch, share, first = request
        each = len(self.split) // self.split.shares
        picked = []
        try:
            for place, sample in enumerate(self._samples(epoch, share, first), start=first):
                index = share * each + place
                picked.append(self.augment.pick(sample, epoch, index, index, {}))
        except MaskZooError as error:
            return Packed(None, {}, failure=error)
        return self.augment.pack(picked).handed_over(began, shared=self.shared)

    def _samples(self, epoch: int, share: int, first: int) -> Iterator[Sample]:
        opened, place, images = self._open.pop(share, (-1, 0, iter(())))
        if opened != epoch or place > first:
            images, place = self.split.read(stream_seed(self.augment.seed, "order", epoch), share), 0
        for _ in range(first - place):
            next(images, None)
        for done in range(self.count):
            sample = next(images, None)
            if sample is None:
                raise DataError(
                    f"share {share} of {self.split.shares} of the stream ended after {first + done} images, but "
                    f"{len(self.split)} images in all were promised; correct that number"
                )
            yield sample
        self._open[share] = epoch, first + self.count, images
