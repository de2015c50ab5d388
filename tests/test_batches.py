from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import attrs
import numpy as np
import pytest
import torch
from torch import Tensor
from torchvision.transforms import v2
from torchvision.tv_tensors import Mask

from maskzoo.data.batches import batches, prepare, steps_in_epoch
from maskzoo.errors import ContractError, DataError
from maskzoo.protocols import Batch, Sample

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
    classes: Sequence[str] | None = ("a", "b", "c")
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
@pytest.mark.parametrize("workers", [0, 2])
def test_batches_are_the_same_for_any_number_of_workers_and_from_any_start(workers: int) -> None:
    dataset = album(11, broken=[3])
    whole = some(dataset, steps=7)
    assert same(some(dataset, steps=7, workers=workers), whole)
    for start in range(8):
        later = some(dataset, start=start, steps=7, workers=workers if start in (0, 3) else 0)
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


# -------------------------------------------------------------------------------------------------------- augmentation
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
    floats = Album(Photos([torch.zeros(3, 16, 16)] * 4))
    unlabelled = Album(Photos(noise(4), labelled=False))
    small = Album(Photos(noise(4), extras=[{"parts": torch.zeros(8, 8)}] * 4))
    uneven = Album(Photos(noise(4), extras=[{"parts": torch.zeros(16, 16)}] * 3 + [{}]))
    expected = {"uint8": [grey, floats], "label": [unlabelled], "'parts'": [small], "others lack": [uneven]}
    for match, dataset in itertools.chain.from_iterable(
        ((match, dataset) for dataset in datasets) for match, datasets in expected.items()
    ):
        with pytest.raises(ContractError, match=match) as caught:
            some(dataset, steps=1, workers=workers)
        assert "Traceback" not in str(caught.value)
