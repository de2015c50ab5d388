"""The way from a data set to augmented batches, the same for any number of workers and processes and from any step on.

Shapes: B images, C channels, H height, W width.
"""

from __future__ import annotations

import atexit
import errno
import itertools
import multiprocessing
import multiprocessing.util  # whose exit hook must be there before ours
import signal
import threading
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, nullcontext, suppress
from typing import Any, TypeVar, cast
from weakref import WeakSet

import attrs
import torch
import torch.utils.data
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms import InterpolationMode, v2

from maskzoo.data.folder import SourceGoneError
from maskzoo.errors import ContractError, DataError, MaskZooError
from maskzoo.protocols import Batch, Dataset, Sample, Split, Stream
from maskzoo.seeds import stream, stream_seed
from maskzoo.signals import restore, signals_held

T = TypeVar("T")
BICUBIC = InterpolationMode.BICUBIC
LOOKUP_TRIES = 100  # broken images in a row
SHUTDOWN = 2.0  # seconds that workers have to end by themselves


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
    rank: int = 0,
    world: int = 1,
    accumulate: int = 1,
    statistics: tuple[Sequence[float], Sequence[float]] | None = None,
) -> Generator[Batch, None, None]:
    """This process's part of steps `start` to `steps` - 1: random crops (area in `scale`), mirrored or not, normalised.

    `batch_size` is that of all `world` processes together. Each step comes in `accumulate` batches: its images, in
    their order, are cut into `accumulate` * `world` equal shares, and batch a of process `rank` is share
    a * `world` + `rank`. Which images those are and how they are cropped depends on neither, nor on `workers`.
    `flip` overrules the data set's, and `statistics` its mean and deviation. An image that cannot be read is
    replaced by the next one and reported once, in `Batch.broken`, by the process that met it. Raises DataError when
    those that this process met exceed the share `max_broken` of the training images, and when a worker dies;
    ContractError where the shares would not be equal.
    """
    if world < 1 or accumulate < 1 or not 0 <= rank < world or batch_size % (world * accumulate):
        raise ContractError(
            f"a batch of {batch_size} cannot be cut into {accumulate} x {world} equal shares, for process {rank}"
        )
    per_epoch = steps_in_epoch(dataset, batch_size)
    split = dataset.train
    augment = _Augment(
        seed=seed,
        crop=v2.RandomResizedCrop(size, scale=scale, interpolation=BICUBIC, antialias=True),
        size=size,
        flip=0.5 if (dataset.flip if flip is None else flip) else 0.0,
        channels=dataset.channels,
        labelled=dataset.classes is not None,
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
    packs: Generator[_Packed, None, None] = loaded(loader)
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


def _joined(pieces: Generator[_Packed, None, None], count: int, *, pinned: bool) -> Generator[_Packed, None, None]:
    """Whole batches from `count` pieces each."""
    while some := list(itertools.islice(pieces, count)):
        seconds = sum(piece.seconds for piece in some)
        found = [piece.batch for piece in some if piece.batch is not None]
        failure = next((piece.failure for piece in some if piece.failure is not None), None)
        if failure is None and any(batch.extras.keys() != found[0].extras.keys() for batch in found):
            failure = ContractError("some training images have extras that others lack")
        if failure is not None:
            yield _Packed(None, {}, failure)
            return
        labels = [batch.labels for batch in found if batch.labels is not None]
        joined = Batch(
            images=torch.cat([batch.images for batch in found]),
            labels=torch.cat(labels) if labels else None,
            index=torch.cat([batch.index for batch in found]),
            extras={name: torch.cat([batch.extras[name] for batch in found]) for name in found[0].extras},
        )
        whole = _Packed(joined, {}, seconds=seconds)
        yield whole.pin_memory() if pinned else whole


def _checked(
    packs: Generator[_Packed, None, None], images: int, max_broken: float, makers: int
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


# ------------------------------------------------------------------------------------------------- troubles of workers
def loader_trouble(error: BaseException) -> DataError | None:
    """What to tell of an error that torch raises for a loader's worker, or None where it is about something else.

    A dead worker is not always noticed where its batch is asked for: torch raises in whatever the main process happens
    to be doing, so whoever trains on batches asks here too.
    """
    if not isinstance(error, RuntimeError | OSError):
        return None
    told = [error, *([error.__cause__] if isinstance(error.__cause__, RuntimeError) else [])]  # by which signal
    text = " ".join("; ".join(str(one) for one in told).split())
    torchs_file = "/torch_" in text or "shared memory" in text
    if "Bus error" in text or (torchs_file and ("unable to" in text or "No space left" in text)):
        return DataError(
            f"the shared memory through which the loader's workers hand over their batches has run out ({text}); lower "
            "recipe.train.workers or recipe.train.batch_size, or enlarge /dev/shm (for a container: --shm-size)"
        )
    if (isinstance(error, OSError) and error.errno == errno.EMFILE) or "Too many open files" in text:
        return DataError(
            f"the loader's workers have more files open than the system allows ({text}); raise the limit (ulimit -n) "
            "or lower recipe.train.workers"
        )
    if "DataLoader worker" in text and ("killed by signal" in text or "exited unexpectedly" in text):
        return _dead_worker(text)
    return None


def _dead_worker(text: str) -> DataError:
    return DataError(
        f"a worker process of the data loader has died ({text}); most often the system has killed it because memory "
        "ran out: lower recipe.train.workers or recipe.train.batch_size, or free memory, and go on with --resume; "
        "after a bus error it was shared memory: enlarge /dev/shm (for a container: --shm-size)"
    )


def loaded(loader: torch.utils.data.DataLoader[T]) -> Generator[T, None, None]:
    """What the loader gives; DataError where a worker dies or shared memory runs out. No worker outlives it."""
    opened = _loaded(loader)
    _open.add(opened)
    return opened


_open: WeakSet[Generator[Any, None, None]] = WeakSet()


@atexit.register  # after multiprocessing's, which is imported above, so before it
def _close_all() -> None:
    """End the workers that an error keeps alive to the last: they hold SIGTERM back, and Python would wait for ever."""
    for opened in list(_open):
        with suppress(ValueError, RuntimeError):  # it is at work in a thread of its own
            opened.close()


def _loaded(loader: torch.utils.data.DataLoader[T]) -> Generator[T, None, None]:
    others = set(multiprocessing.active_children())
    iterator: Iterator[T] | None = None
    try:
        with signals_held() if loader.num_workers else nullcontext():  # its workers are started here
            iterator = iter(loader)
        yield from iterator
    except Exception as error:
        if loader.num_workers:
            _forget_frames(error)
        trouble = loader_trouble(error)
        if trouble is None and loader.num_workers and isinstance(error, ConnectionError | EOFError):
            trouble = _dead_worker(f"{type(error).__name__}: {error}".removesuffix(": "))
        if trouble is None:
            raise
        raise trouble from error
    finally:
        with _no_word_of_dead_workers():
            workers = set(multiprocessing.active_children()) - others
            with _killed_after(SHUTDOWN, workers):
                del iterator  # torch asks them to end, and waits for each
            for worker in workers:
                # After the death of one the others may wait for ever, deaf to SIGTERM, and the program's end for them.
                worker.kill()


@contextmanager
def _killed_after(seconds: float, workers: Iterable[multiprocessing.process.BaseProcess]) -> Iterator[None]:
    """Kill workers that are still there after a while inside: one that is in the middle of a long read hears nothing.

    Not at once: one that dies while it holds a lock of torch's would keep torch waiting for ever.
    """

    def kill() -> None:
        for worker in workers:
            worker.kill()

    timer = threading.Timer(seconds, kill)
    timer.daemon = True
    if workers:
        timer.start()
    try:
        yield
    finally:
        timer.cancel()


@contextmanager
def _no_word_of_dead_workers() -> Iterator[None]:
    """Keep torch, which listens for the ends of processes, from raising for a worker while they are being ended."""
    if threading.current_thread() is not threading.main_thread():
        yield  # it listens in the main thread alone
        return
    before = signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    try:
        yield
    finally:
        restore(signal.SIGCHLD, before)


def _forget_frames(error: BaseException | None) -> None:
    """Drop torch's frames from an error: they hold the loader, so the workers would live on as long as the error.

    What happened in a worker is in the error's words. Left to the collector of cycles, each worker takes 5 s to end.
    """
    while error is not None:
        error.__traceback__ = None
        error = error.__cause__ or error.__context__


# ------------------------------------------------------------------------------------------------- what the workers do
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
    seconds: float = 0.0  # that making it took

    def pin_memory(self) -> _Packed:
        """The same in page-locked memory; the loader calls this."""
        return self if self.batch is None else attrs.evolve(self, batch=_each(self.batch, Tensor.pin_memory))

    def handed_over(self, began: float, *, shared: bool) -> _Packed:
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


def as_it_is(packed: Any) -> Any:
    """What a loader is to make of a request's answer."""
    return packed


@attrs.frozen(eq=False)
class _Augment:
    """Crops, mirrors and packs images by what (epoch, index) says."""

    seed: int
    crop: v2.RandomResizedCrop
    size: tuple[int, int]
    flip: float  # how likely an image is mirrored
    channels: int
    labelled: bool
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def pick(self, sample: Sample, epoch: int, index: int, found: int, broken: Mapping[int, str]) -> _Picked:
        """The image that was `found` where that at `index` was asked for; ContractError if it is not as promised."""
        self._check(sample, found)
        image, extras = self._augmented(sample, epoch, index)
        return _Picked(image, found, sample.label if self.labelled else None, extras, broken)

    def _augmented(self, sample: Sample, epoch: int, index: int) -> tuple[Tensor, Mapping[str, Tensor]]:
        """The sample's image and extras under one random crop and flip, drawn for the place that was asked for."""
        image = sample.image.as_subclass(Tensor)
        with torch.random.fork_rng(devices=[]):  # torchvision draws from the global generator, and nowhere else
            # The index asked for, not the one found: a stand-in differs from itself elsewhere in the epoch.
            torch.default_generator.manual_seed(stream_seed(self.seed, "augment", epoch, index))
            place = self.crop.make_params([image])
            mirrored = torch.rand(1, generator=torch.default_generator).item() < self.flip
        # Straight to the kernels: on small images the dispatch of torchvision's transforms takes longer than they do.
        functional = v2.functional
        image = functional.resized_crop_image(
            image, **place, size=list(self.size), interpolation=BICUBIC, antialias=True
        )
        extras = {}
        for name, values in sample.extras.items():
            flat = values.as_subclass(Tensor).reshape(-1, *values.shape[-2:])
            if values.is_floating_point():
                flat = functional.resized_crop_image(
                    flat, **place, size=list(self.size), interpolation=BICUBIC, antialias=True
                )
            else:
                flat = functional.resized_crop_mask(flat, **place, size=list(self.size))
            flat = functional.horizontal_flip_image(flat) if mirrored else flat
            extras[name] = flat.reshape(*values.shape[:-2], *self.size)
        return functional.horizontal_flip_image(image) if mirrored else image, extras

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

    def pack(self, picked: Sequence[_Picked]) -> _Packed:
        """Single images as a batch, normalised as a whole: that is where single images would lose time."""
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


@attrs.frozen(eq=False)
class _LookedUp(torch.utils.data.Dataset[_Packed]):
    """Batches of a split, by the (epoch, index) of their images."""

    split: Split
    augment: _Augment
    shared: bool  # hand batches over in shared memory

    def __getitem__(self, places: Sequence[tuple[int, int]]) -> _Packed:
        began = time.perf_counter()
        picked = []
        for epoch, index in places:
            picked.append(self._picked(epoch, index))
            if isinstance(picked[-1].failure, SourceGoneError):
                break
        return self.augment.pack(picked).handed_over(began, shared=self.shared)

    def _picked(self, epoch: int, index: int) -> _Picked:
        broken: dict[int, str] = {}
        try:
            sample, found = self._lookup(index, broken)
            return self.augment.pick(sample, epoch, index, found, broken)
        except MaskZooError as error:
            return _Picked(torch.empty(0), index, None, {}, broken, failure=error)

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
class _Streamed(torch.utils.data.Dataset[_Packed]):
    """Pieces of batches of a stream, by (epoch, share, place); a share is read on from where the last piece ended.

    Whoever is asked for another place reads up to it first, so that no figure depends on who is asked for what.
    """

    split: Stream
    augment: _Augment
    count: int  # images in a piece
    shared: bool
    _open: dict[int, tuple[int, int, Iterator[Sample]]] = attrs.field(factory=dict, init=False)  # epoch, place, images

    def __getitem__(self, request: tuple[int, int, int]) -> _Packed:
        began = time.perf_counter()
        epoch, share, first = request
        each = len(self.split) // self.split.shares
        picked = []
        try:
            for place, sample in enumerate(self._samples(epoch, share, first), start=first):
                index = share * each + place
                picked.append(self.augment.pick(sample, epoch, index, index, {}))
        except MaskZooError as error:
            return _Packed(None, {}, failure=error)
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


def _normalised(images: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """Images uint8 [B, C, H, W] as float32, each channel shifted and scaled by what is usual for it."""
    shift, spread = (torch.tensor(values, dtype=torch.float32)[:, None, None] for values in (mean, std))
    return images.to(torch.float32).div_(255).sub_(shift).div_(spread)
