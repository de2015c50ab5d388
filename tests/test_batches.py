from __future__ import annotations

import itertools
import multiprocessing
import os
import resource
import signal
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import attrs
import numpy as np
import pytest
import torch
from PIL import Image as PillowImage
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms import v2
from torchvision.tv_tensors import Mask

from maskzoo.data.batches import batches, steps_in_epoch
from maskzoo.data.folder import Folder
from maskzoo.data.labels import NoLabelsError
from maskzoo.data.prepare import prepare
from maskzoo.data.workers import loader_trouble
from maskzoo.errors import ContractError, DataError
from maskzoo.protocols import Batch, Sample, Stream
from maskzoo.seeds import stream_seed

# What a machine with few cores, or a Python that dislikes forks, has to say of workers.
pytestmark = pytest.mark.filterwarnings("ignore:This DataLoader will create", "ignore:.*multi-threaded.*fork")


@attrs.define(eq=False)
class Photos:
    """A split of images; what is in `broken` cannot be read."""

    images: Sequence[Tensor]
    broken: frozenset[int] = frozenset()
    extras: Sequence[Mapping[str, Tensor]] | None = None
    labelled: bool = True

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Sample:
        if index in self.broken:
            raise DataError(f"'{index}.jpg' cannot be decoded")
        extras = {} if self.extras is None else self.extras[index]
        return Sample(self.images[index], index % 3 if self.labelled else None, extras)


@attrs.define(eq=False)
class Album:
    """A data set of photos."""

    train: Any
    test: Any = None
    name: str = "album"
    channels: int = 3
    size: tuple[int, int] = (16, 16)
    classes: Sequence[str] | None = tuple(map(str, range(100)))
    flip: bool = True
    mean: Sequence[float] = (0.5, 0.4, 0.3)
    std: Sequence[float] = (0.2, 0.3, 0.4)


def noise(images: int = 10, height: int = 16, width: int = 16) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randint(0, 256, (3, height, width), dtype=torch.uint8, generator=generator) for _ in range(images)]


def album(images: int = 10, broken: Sequence[int] = ()) -> Album:
    return Album(Photos(noise(images), frozenset(broken)))


def some(dataset: Album, start: int = 0, steps: int = 4, **options: Any) -> list[Batch]:
    options = {"size": (16, 16), "batch_size": 4, "seed": 0} | options
    return list(batches(dataset, start=start, steps=steps, **options))


def same(first: Sequence[Batch], second: Sequence[Batch]) -> bool:
    return len(first) == len(second) and all(
        torch.equal(one.images, other.images)
        and torch.equal(one.index, other.index)
        and torch.equal(one.labels, other.labels)
        and list(one.broken) == list(other.broken)
        for one, other in zip(first, second, strict=True)
    )


# --------------------------------------------------------------------------------------------------------------- steps
def test_an_epoch_drops_the_last_partial_batch() -> None:
    assert steps_in_epoch(album(10), 4) == 2
    assert steps_in_epoch(album(10), 10) == 1


def test_a_batch_larger_than_the_data_set_is_refused_with_the_key() -> None:
    with pytest.raises(DataError, match=r"^recipe\.train\.batch_size: 11 is more than the 10 training images"):
        steps_in_epoch(album(10), 11)
    with pytest.raises(DataError, match="no training images"):
        batches(album(0), size=(16, 16), batch_size=1, seed=0, start=0, steps=1)


# ------------------------------------------------------------------------------------------------------------- prepare
def test_prepare_normalises_and_leaves_an_image_of_the_right_size_alone() -> None:
    image = noise()[0]
    prepared = prepare(image, (16, 16), (0.5, 0.4, 0.3), (0.2, 0.3, 0.4))
    assert prepared.dtype == torch.float32
    mean, std = torch.tensor([0.5, 0.4, 0.3])[:, None, None], torch.tensor([0.2, 0.3, 0.4])[:, None, None]
    assert torch.allclose(prepared * std + mean, image / 255, atol=1e-6)


@pytest.mark.parametrize("shape", [(40, 20), (20, 40), (7, 9), (16, 500), (1, 1), (300, 1)])
@pytest.mark.parametrize("size", [(16, 16), (8, 24)])
def test_prepare_brings_any_shape_to_size_and_keeps_the_middle(shape: tuple[int, int], size: tuple[int, int]) -> None:
    image = torch.zeros(3, *shape, dtype=torch.uint8)
    image[:, (shape[0] - 1) // 2 : shape[0] // 2 + 1, (shape[1] - 1) // 2 : shape[1] // 2 + 1] = 255
    prepared = prepare(image, size, (0.0,) * 3, (1.0,) * 3)
    assert prepared.shape == (3, *size)
    assert prepared[:, size[0] // 4 : -(size[0] // 4), size[1] // 4 : -(size[1] // 4)].max() > 0


def test_prepare_of_a_photo_is_close_to_resizing_its_shorter_side_and_cropping() -> None:
    ramp = torch.arange(90, dtype=torch.uint8).expand(3, 60, 90)
    ours = prepare(ramp, (20, 20), (0.0,) * 3, (1.0,) * 3)
    theirs = v2.functional.center_crop(v2.functional.resize(ramp, 20, v2.InterpolationMode.BICUBIC), [20, 20]) / 255
    assert (ours - theirs).abs().max() <= 2 / 255


# ------------------------------------------------------------------------------------------------------ reproducibility
@pytest.mark.parametrize("workers", [0, 1, 2, 3])
@pytest.mark.sampled(2)
def test_batches_are_the_same_for_any_number_of_workers_and_from_any_start(workers: int) -> None:
    dataset = album(11, broken=[3])
    whole = some(dataset, steps=7)
    assert same(some(dataset, steps=7, workers=workers), whole)
    for start in range(8) if workers == 0 else (1, 3):  # in the middle of the first and of the second epoch
        later = some(dataset, start=start, steps=7, workers=workers)
        # The sentence about a broken image comes once in every iterator.
        assert same([attrs.evolve(b, broken=()) for b in later], [attrs.evolve(b, broken=()) for b in whole[start:]])


def test_an_epoch_shows_each_image_at_most_once_and_epochs_differ() -> None:
    dataset = album(12)
    found = some(dataset, steps=6)
    first, second = (torch.cat([batch.index for batch in epoch]) for epoch in (found[:3], found[3:]))
    assert sorted(first.tolist()) == sorted(second.tolist()) == list(range(12))
    assert not torch.equal(first, second)
    pictures = [
        {int(i): image for b in epoch for i, image in zip(b.index, b.images, strict=True)}
        for epoch in (found[:3], found[3:])
    ]
    assert not any(torch.equal(pictures[0][index], pictures[1][index]) for index in range(12))


def test_another_seed_gives_other_batches() -> None:
    first, second = some(album(), seed=0, steps=1)[0], some(album(), seed=1, steps=1)[0]
    assert not torch.equal(first.index, second.index)


@pytest.mark.parametrize("workers", [0, 2])
def test_the_global_generators_stay_untouched(workers: int) -> None:
    before, before_numpy = torch.get_rng_state(), np.random.get_state()[1].copy()
    some(album(), workers=workers)
    assert torch.equal(torch.get_rng_state(), before)
    assert np.array_equal(np.random.get_state()[1], before_numpy)


def test_what_is_drawn_does_not_depend_on_the_global_generator() -> None:
    torch.manual_seed(1)
    first = some(album())
    torch.manual_seed(2)
    assert same(first, some(album()))


def test_no_steps_give_no_batches() -> None:
    assert some(album(), start=4, steps=4) == []


# ---------------------------------------------------------------------------------------- shares of a step's images
def gathered(dataset: Any, world: int, accumulate: int, **options: Any) -> list[Batch]:
    """The batches of all processes, put together step by step as their ranks and turns say."""
    by_rank = [some(dataset, rank=rank, world=world, accumulate=accumulate, **options) for rank in range(world)]
    turns = [attrs.evolve(joined(parts), broken=()) for parts in zip(*by_rank, strict=True)]
    return [joined(turns[first : first + accumulate]) for first in range(0, len(turns), accumulate)]


def joined(parts: Sequence[Batch]) -> Batch:
    return Batch(
        torch.cat([part.images for part in parts]),
        torch.cat([part.labels for part in parts]),
        torch.cat([part.index for part in parts]),
    )


@pytest.mark.parametrize(
    ("world", "accumulate", "workers"),
    [(1, 2, 0), (2, 1, 0), (2, 2, 0), (4, 2, 0), (8, 1, 0), (1, 2, 2), (2, 1, 2), (2, 2, 2)],
)
def test_shares_of_a_step_are_the_images_of_the_whole_with_the_same_crops(
    world: int, accumulate: int, workers: int
) -> None:
    dataset, options = album(30, broken=[7]), {"batch_size": 8, "start": 2, "steps": 7}
    whole = [attrs.evolve(batch, broken=()) for batch in some(dataset, **options)]
    assert same(gathered(dataset, world, accumulate, workers=workers, **options), whole)
    (first, *_) = some(dataset, rank=world - 1, world=world, accumulate=accumulate, **options)
    assert len(first.images) == 8 // world // accumulate


@pytest.mark.parametrize(("rank", "world", "accumulate"), [(0, 3, 1), (0, 1, 3), (0, 2, 4), (2, 2, 1), (0, 0, 1)])
def test_shares_that_are_not_equal_are_refused(rank: int, world: int, accumulate: int) -> None:
    with pytest.raises(ContractError, match="a batch of 4 cannot be cut into"):
        some(album(), rank=rank, world=world, accumulate=accumulate)


# ------------------------------------------------------------------------------------------------------------- streams
@attrs.define(eq=False)
class River:
    """A stream of grey images, each of which says by its value and its label which it is."""

    images: int
    shares: int = 4
    shorter: int = 0  # images that the last share lacks

    def __len__(self) -> int:
        return self.images

    def __getitem__(self, index: int) -> Sample:
        return next(itertools.islice(self.read(0, 0), index, None))

    def read(self, order: int, share: int) -> Iterator[Sample]:
        mine = torch.arange(self.images)[share :: self.shares]
        mixed = mine[torch.randperm(len(mine), generator=torch.Generator().manual_seed(order))]
        for value in mixed[: len(mixed) - self.shorter].tolist():
            yield Sample(torch.full((3, 16, 16), value, dtype=torch.uint8), value)


def river(images: int = 50, **options: Any) -> Any:
    assert isinstance(River(images), Stream)
    return Album(River(images, **options))


def test_an_epoch_of_a_stream_shows_each_image_at_most_once_and_epochs_differ() -> None:
    found = some(river(48), steps=12, batch_size=8)
    first, second = (torch.cat([batch.labels for batch in epoch]) for epoch in (found[:6], found[6:]))
    assert sorted(first.tolist()) == sorted(second.tolist()) == list(range(48))
    assert not torch.equal(first, second)
    assert sorted(torch.cat([batch.index for batch in found[:6]]).tolist()) == list(range(48))
    assert found[0].seconds > 0


@pytest.mark.parametrize("workers", [1, 2, 3, 4])
@pytest.mark.sampled(1)
def test_a_stream_is_the_same_for_any_number_of_workers_and_from_any_start(workers: int) -> None:
    whole = some(river(), steps=9, batch_size=12)
    for start in (0, 2, 5):
        assert same(some(river(), start=start, steps=9, batch_size=12, workers=workers), whole[start:])


@pytest.mark.parametrize(("world", "accumulate"), [(1, 2), (2, 1), (2, 2), (4, 2), (2, 4), (8, 1)])
@pytest.mark.parametrize("shares", [1, 2, 4, 8])
@pytest.mark.sampled(6)
def test_shares_of_a_step_of_a_stream_are_the_images_of_the_whole(world: int, accumulate: int, shares: int) -> None:
    options = {"batch_size": 16, "start": 1, "steps": 7}
    whole = some(river(60, shares=shares), **options)
    assert same(gathered(river(60, shares=shares), world, accumulate, **options), whole)
    if world == 2 and accumulate == 2:
        assert same(gathered(river(60, shares=shares), world, accumulate, workers=3, **options), whole)


@pytest.mark.slow
def test_each_worker_reads_shares_of_its_own_and_none_twice() -> None:
    opened = multiprocessing.get_context("fork").Value("i", 0)

    @attrs.define(eq=False)
    class Counted(River):
        def read(self, order: int, share: int) -> Iterator[Sample]:
            with opened.get_lock():
                opened.value += 1
            return River.read(self, order, share)

    for workers in (0, 2, 3, 9):
        opened.value = 0
        some(Album(Counted(64, shares=4)), steps=16, batch_size=8, workers=workers)
        assert opened.value == 2 * 4, workers  # two epochs, four shares


def test_a_stream_that_ends_too_early_is_told_of_with_its_numbers() -> None:
    for workers in (0, 2):
        with pytest.raises(DataError, match=r"share 0 of 4 .* ended after 10 images, but 48 images in all were promis"):
            some(river(48, shorter=2), steps=6, batch_size=8, workers=workers)


def test_shares_of_a_stream_that_do_not_fit_the_batch_are_refused_with_the_key() -> None:
    with pytest.raises(DataError, match=r"^recipe\.data\.shares: a batch of 6 images in 1 part cannot be read from 4"):
        some(river(), batch_size=6)
    with pytest.raises(DataError, match=r"^recipe\.data\.shares: a batch of 12 images in 3 equal parts .* from 4 "):
        some(river(), batch_size=12, world=3)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_stream_that_breaks_the_contract_is_told_what_it_is(workers: int) -> None:
    with pytest.raises(ContractError, match=r"float32 \[1, H, W\]"):
        some(attrs.evolve(river(), channels=1), workers=workers)


# ---------------------------------------------------------------------------------------------------- dead workers etc.
@attrs.define(eq=False)
class Treacherous:
    """A split that does something terrible to the process which looks an image up, if that is a worker."""

    terrible: str

    def __len__(self) -> int:
        return 64

    def __getitem__(self, index: int) -> Sample:
        if multiprocessing.parent_process() is not None:
            if self.terrible == "killed":
                os.kill(os.getpid(), signal.SIGKILL)
            if self.terrible == "no memory":  # a file that would be larger cannot be made, in shared memory neither
                resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100))
            if self.terrible == "bus":
                os.kill(os.getpid(), signal.SIGBUS)
        return Sample(torch.zeros(3, 16, 16, dtype=torch.uint8), 0)


@pytest.mark.parametrize(
    ("terrible", "said"),
    [
        ("killed", r"a worker process of the data loader has died .*recipe\.train\.workers.*--resume"),
        ("bus", r"recipe\.train\.workers.*/dev/shm"),  # torch tells of the signal, or of an end, whichever is first
        ("no memory", r"shared memory .* has run out .*recipe\.train\.workers.*/dev/shm"),
    ],
)
def test_a_worker_that_dies_is_told_of_with_what_to_do(terrible: str, said: str) -> None:
    with pytest.raises(DataError, match=said) as caught:
        some(Album(Treacherous(terrible)), workers=2)
    assert "\n" not in str(caught.value)


@pytest.mark.slow
def test_a_worker_that_is_killed_while_the_main_process_trains_is_told_of_too_and_none_lives_on() -> None:
    others = set(multiprocessing.active_children())
    source = batches(album(64), size=(16, 16), batch_size=4, seed=0, start=0, steps=10_000, workers=2)
    held = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})  # as a run holds it back from its workers
    next(source)
    signal.pthread_sigmask(signal.SIG_SETMASK, held)
    worker, other = set(multiprocessing.active_children()) - others

    def train() -> None:
        os.kill(worker.pid, signal.SIGKILL)
        for _ in range(500):
            time.sleep(0.01)

    with pytest.raises(RuntimeError) as caught:  # torch's, out of whatever goes on: no batch is being asked for
        train()
    assert "has died" in str(loader_trouble(caught.value))
    os.kill(other.pid, signal.SIGSTOP)  # as one that waits for ever for what the dead one held
    source.close()
    other.join(5)
    assert not other.is_alive()


def test_errors_that_are_not_the_loaders_are_left_alone() -> None:
    assert loader_trouble(RuntimeError("CUDA out of memory")) is None
    assert loader_trouble(ValueError("DataLoader worker (pid 3) exited unexpectedly")) is None
    assert loader_trouble(OSError(28, "No space left on device")) is None
    assert "ulimit" in str(loader_trouble(OSError(24, "Too many open files")))

    class Buggy(Photos):
        def __getitem__(self, index: int) -> Sample:
            raise RuntimeError("a bug")

    for workers in (0, 2):
        others = set(multiprocessing.active_children())
        with pytest.raises(RuntimeError, match="a bug"):
            some(Album(Buggy(noise())), workers=workers)
        assert set(multiprocessing.active_children()) <= others  # the error, which lives, does not keep workers alive


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("emptied", [False, True])
def test_a_folder_that_vanishes_is_told_of_once_instead_of_its_files(
    tmp_path: Path, workers: int, emptied: bool
) -> None:
    for number in range(40):
        path = tmp_path / "photos" / f"{number % 2}" / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        PillowImage.new("RGB", (16, 16)).save(path)
    dataset = Folder(root=str(tmp_path / "photos"))
    source = batches(dataset, size=(16, 16), batch_size=4, seed=0, start=0, steps=10_000, workers=workers)
    next(source)
    (tmp_path / "photos").rename(tmp_path / "elsewhere")
    if emptied:  # what an unmounted disk leaves
        (tmp_path / "photos").mkdir()
    with pytest.raises(DataError, match=r"^the folder '.*photos' (cannot be opened any more|is empty now)") as caught:
        list(source)
    assert ".png" not in str(caught.value)
    assert "--resume" in str(caught.value)


# -------------------------------------------------------------------------------------------------------- augmentation
@pytest.mark.parametrize("flip", [True, False])
def test_crops_are_those_of_torchvisions_transforms_under_the_images_own_seed(flip: bool) -> None:
    extras = {"depth": torch.rand(2, 30, 35), "parts": torch.arange(1050).reshape(1, 30, 35)}
    dataset = Album(Photos(noise(8, 30, 35), extras=[extras] * 8), mean=(0.0,) * 3, std=(1.0,) * 3)
    around = (3 / 4 * (16 / 12), 4 / 3 * (16 / 12))  # the shape of the target
    crop = v2.RandomResizedCrop((12, 16), (0.2, 1.0), around, v2.InterpolationMode.BICUBIC, antialias=True)
    transform = v2.Compose([crop, v2.RandomHorizontalFlip(0.5 if flip else 0.0)])
    (batch,) = some(dataset, batch_size=8, steps=1, seed=5, size=(12, 16), flip=flip)
    for place, index in enumerate(batch.index.tolist()):
        torch.manual_seed(stream_seed(5, "augment", 0, index))
        image, depth, parts = transform(
            tv_tensors.Image(dataset.train.images[index]), tv_tensors.Image(extras["depth"]), Mask(extras["parts"])
        )
        assert torch.equal(batch.images[place], image / 255)
        assert torch.equal(batch.extras["depth"][place], depth)
        assert torch.equal(batch.extras["parts"][place], parts)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_batch_tells_what_it_costs_the_loader_on_its_way_to_a_device_too(workers: int) -> None:
    for batch in some(album(), workers=workers):
        assert 0 < batch.seconds < 5
        assert batch.to(torch.device("cpu")).seconds == batch.seconds


def test_images_labels_and_index_belong_together() -> None:
    for batch in some(album(), scale=(1.0, 1.0), flip=False):
        assert batch.images.shape == (4, 3, 16, 16)
        assert (batch.images.dtype, batch.labels.dtype, batch.index.dtype) == (torch.float32, torch.int64, torch.int64)
        assert torch.equal(batch.labels, batch.index % 3)


def test_without_classes_there_are_no_labels() -> None:
    dataset = attrs.evolve(album(), classes=None)
    assert some(dataset, steps=1)[0].labels is None


def test_half_of_the_images_are_mirrored_where_the_data_set_allows_it_and_none_elsewhere() -> None:
    ramp = torch.arange(16, dtype=torch.uint8).mul(15).expand(3, 16, 16)
    dataset = Album(Photos([ramp] * 400))

    def mirrored(dataset: Album, flip: bool | None) -> float:
        (batch,) = some(dataset, steps=1, batch_size=400, flip=flip)
        return (batch.images[:, 0, 0, 0] > batch.images[:, 0, 0, -1]).float().mean().item()

    assert 0.4 < mirrored(dataset, None) < 0.6
    assert mirrored(dataset, False) == 0.0
    assert mirrored(attrs.evolve(dataset, flip=False), None) == 0.0
    assert mirrored(attrs.evolve(dataset, flip=False), True) > 0.4


def test_images_of_any_shape_and_size_share_a_batch() -> None:
    images = [noise(1, height, width)[0] for height, width in [(1, 1), (300, 20), (20, 300), (16, 16)]]
    (batch,) = some(Album(Photos(images)), steps=1, size=(24, 8))
    assert batch.images.shape == (4, 3, 24, 8)
    assert batch.images.isfinite().all()


def test_extras_are_cropped_and_mirrored_with_their_image() -> None:
    rows = torch.linspace(0, 255, 32)[:, None].expand(32, 32)
    columns = torch.linspace(0, 255, 32)[None].expand(32, 32)
    image = torch.stack([rows, columns, rows]).round().to(torch.uint8)
    extras = {
        "saliency": image[:2].float() / 255,  # [2, H, W]
        "depth": image[1].float() / 255,  # [H, W]
        "parts": image[1].to(torch.int64),
        "mask": Mask(image[1]),
        "inside": image[1] > 127,
    }
    dataset = Album(Photos([image] * 16, extras=[extras] * 16), mean=(0.0,) * 3, std=(1.0,) * 3)
    for batch in some(dataset, batch_size=16, steps=2):
        assert (batch.extras["saliency"] - batch.images[:, :2]).abs().max() < 0.05
        assert (batch.extras["depth"] - batch.images[:, 1]).abs().max() < 0.05
        assert batch.extras["depth"].shape == (16, 16, 16)
        assert batch.extras["parts"].dtype == torch.int64
        assert (batch.extras["parts"] / 255 - batch.images[:, 1]).abs().max() < 0.05
        assert type(batch.extras["mask"]) is Tensor
        assert set(batch.extras["mask"].unique().tolist()) <= set(image[1].unique().tolist())
        assert batch.extras["inside"].dtype == torch.bool


# ------------------------------------------------------------------------------------------------------- broken images
@pytest.mark.parametrize("workers", [0, 2])
def test_a_broken_image_is_replaced_by_the_next_and_told_of_once(workers: int) -> None:
    found = some(album(10, broken=[9]), steps=6, batch_size=5, workers=workers)
    assert [sentence for batch in found for sentence in batch.broken] == ["'9.jpg' cannot be decoded"]
    index = torch.cat([batch.index for batch in found])
    assert 9 not in index
    assert (index == 0).sum() == 6  # three times for itself, three for the one before it, which wraps around
    assert torch.equal(torch.cat([batch.labels for batch in found]), index % 3)


def test_an_image_and_the_one_it_stands_in_for_are_cropped_differently() -> None:
    (batch,) = some(album(10, broken=[4]), steps=1, batch_size=10)
    first, second = batch.images[batch.index == 5]
    assert not torch.equal(first, second)


@pytest.mark.parametrize("workers", [0, 2])
def test_too_many_broken_images_stop_the_run_with_a_clean_sentence(workers: int) -> None:
    with pytest.raises(DataError) as caught:
        some(album(10, broken=[0, 3, 5, 7]), steps=2, batch_size=10, workers=workers)
    message = str(caught.value)
    assert message.startswith("recipe.train.max_broken: 4 of 10 training images cannot be read")
    assert "0.1" in message
    assert message.count(".jpg") == 3
    assert "Traceback" not in message
    assert type(caught.value) is DataError


def test_exactly_the_share_that_is_allowed_is_allowed() -> None:
    dataset = album(100, broken=range(0, 58, 2))
    assert len(some(dataset, steps=1, batch_size=100, max_broken=0.29)) == 1
    with pytest.raises(DataError, match="29 of 100"):
        some(dataset, steps=1, batch_size=100, max_broken=0.28)


@pytest.mark.parametrize("workers", [0, 2])
def test_only_broken_images_are_given_up_on(workers: int) -> None:
    with pytest.raises(DataError, match="4 of 4 training images"):
        some(album(4, broken=range(4)), workers=workers)
    with pytest.raises(DataError, match=r"^100 training images in a row cannot be read: .*\.jpg"):
        some(album(200, broken=range(200)), batch_size=1, max_broken=1.0, workers=workers)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_split_that_breaks_the_contract_is_told_what_it_is(workers: int) -> None:
    grey = Album(Photos([torch.zeros(1, 16, 16, dtype=torch.uint8)] * 4))
    floats = Album(Photos([torch.zeros(3, 16, 16, dtype=torch.float64)] * 4))
    unlabelled = Album(Photos(noise(4), labelled=False))
    small = Album(Photos(noise(4), extras=[{"parts": torch.zeros(8, 8)}] * 4))
    uneven = Album(Photos(noise(4), extras=[{"parts": torch.zeros(16, 16)}] * 3 + [{}]))
    expected = {"uint8": [grey, floats], "'parts'": [small], "others lack": [uneven]}
    for match, dataset in itertools.chain.from_iterable(
        ((match, dataset) for dataset in datasets) for match, datasets in expected.items()
    ):
        with pytest.raises(ContractError, match=match) as caught:
            some(dataset, steps=1, workers=workers)
        assert "Traceback" not in str(caught.value)
    with pytest.raises(NoLabelsError, match="4 of 4 training images of a batch have no label"):
        some(unlabelled, steps=1, workers=workers, labels_needed=True)
    assert some(unlabelled, steps=1, workers=workers)[0].labels is None
