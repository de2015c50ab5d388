"""What happens to an image between its reader and the model: types, levels, places, and what a data set must give."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from typing import Any

import attrs
import pytest
import torch
from torch import Tensor

from maskzoo import ContractError, Sample
from maskzoo.data.batches import batches
from maskzoo.data.prepare import cut_extra, levels, middle, prepare, prepare_extra, prepare_sample
from maskzoo.data.whole import whole_batches
from maskzoo.protocols import Batch

VECTORS = torch.backends.cpu.get_cpu_capability() in ("AVX2", "AVX512")  # torch resizes uint8 in another way elsewhere
WHITE = {torch.uint8: 255, torch.uint16: 65535}


@attrs.define(eq=False)
class Pictures:
    """A data set of images in memory, and its own splits."""

    images: Sequence[Tensor]
    extras: Sequence[Mapping[str, Tensor]] = ()
    name: str = "pictures"
    classes: Any = None
    flip: bool = True
    mean: Sequence[float] = (0.5, 0.4, 0.3)
    std: Sequence[float] = (0.2, 0.3, 0.4)

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Sample:
        return Sample(self.images[index], None, self.extras[index] if self.extras else {})

    @property
    def train(self) -> Pictures:
        return self

    @property
    def channels(self) -> int:
        return len(self.mean)


def noise(count: int, height: int, width: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randint(0, 256, (3, height, width), dtype=torch.uint8, generator=generator) for _ in range(count)]


def some(dataset: Pictures, size: tuple[int, int] = (16, 16), **options: Any) -> list[Batch]:
    return list(batches(dataset, size=size, **{"batch_size": 4, "seed": 5, "start": 0, "steps": 3, **options}))


def digest(tensors: Sequence[Tensor]) -> str:
    made = hashlib.sha256()
    for tensor in tensors:
        made.update(tensor.numpy().tobytes())
    return made.hexdigest()[:16]


# --------------------------------------------------------------------------------------------------------- 8-bit images
@pytest.mark.skipif(not VECTORS, reason="torch rounds differently on this processor")
@pytest.mark.parametrize(
    ("shape", "size", "expected"),
    [
        ((16, 16), (16, 16), "27d1275c41718023"),
        ((30, 24), (16, 16), "a187a2e32eff8814"),
        ((12, 14), (24, 24), "25b5aea05164d846"),
    ],
)
def test_batches_of_8_bit_images_are_those_they_always_were(
    shape: tuple[int, int], size: tuple[int, int], expected: str
) -> None:
    assert digest([batch.images for batch in some(Pictures(noise(8, *shape)), size)]) == expected


@pytest.mark.skipif(not VECTORS, reason="torch rounds differently on this processor")
def test_whole_8_bit_images_are_prepared_as_they_always_were() -> None:
    mean, std = (0.5, 0.4, 0.3), (0.2, 0.3, 0.4)
    square = [prepare(image, (16, 16), mean, std) for image in noise(6, 30, 24)]
    wide = [prepare(image, (16, 24), mean, std) for image in noise(6, 20, 60)]
    assert digest([*square, *wide]) == "072fa40cb6817043"


# ---------------------------------------------------------------------------------------------------------- other types
def test_levels_are_shares_of_white_and_floating_point_as_it_is() -> None:
    assert levels(torch.tensor([0, 51, 255], dtype=torch.uint8)).tolist() == pytest.approx([0, 0.2, 1])
    assert levels(torch.tensor([0, 13107, 65535]).to(torch.uint16)).tolist() == pytest.approx([0, 0.2, 1])
    assert levels(torch.tensor([-1.5, 2.5])).tolist() == [-1.5, 2.5]
    with pytest.raises(ContractError, match="int64; the contract is uint8, uint16 or float32"):
        levels(torch.tensor([1]))


@pytest.mark.parametrize("kind", [torch.uint16, torch.float32], ids=str)
def test_other_types_are_cropped_and_flipped_as_8_bit_images_are(kind: torch.dtype) -> None:
    smooth = [torch.nn.functional.avg_pool2d(image.float(), 5).round().byte() for image in noise(8, 150, 120)]
    finer = [levels(image) if kind == torch.float32 else (image.int() * 257).to(kind) for image in smooth]
    for before, after in zip(some(Pictures(smooth)), some(Pictures(finer)), strict=True):
        assert torch.equal(before.index, after.index)
        assert after.images.dtype == torch.float32
        # 8 bits are rounded in each direction
        assert (before.images - after.images).abs().max() < 1.6 / 255 / 0.2


@pytest.mark.parametrize("kind", [torch.uint16, torch.float32], ids=str)
def test_no_step_of_a_finer_type_is_lost(kind: torch.dtype) -> None:
    steps = torch.arange(256).reshape(1, 16, 16)  # of 1 / 65535, in a band that 8 bits cannot divide
    image = (30000 + steps).to(torch.uint16) if kind == torch.uint16 else (30000 + steps).float() / 65535
    dataset = Pictures([image] * 4, mean=(0.0,), std=(1.0,))
    for whole in (prepare(image, (16, 16), (0.0,), (1.0,)), some(dataset, scale=(1.0, 1.0), flip=False)[0].images[0]):
        assert torch.equal((whole * 65535 - 30000).round().long(), steps)


def test_each_image_of_a_mixed_batch_counts_by_its_own_levels() -> None:
    grey = torch.full((3, 20, 20), 51)
    mixed = [grey.byte(), (grey * 257).to(torch.uint16), grey.float() / 255, grey.byte()]
    (batch,) = some(Pictures(mixed, mean=(0.0,) * 3, std=(1.0,) * 3), steps=1)
    torch.testing.assert_close(batch.images, torch.full((4, 3, 16, 16), 0.2))


def test_levels_that_end_do_so_after_resizing_too_and_those_of_floating_point_do_not() -> None:
    edge = torch.zeros(1, 8, 8)
    edge[..., 4:] = 1  # where a bicubic filter overshoots
    finer = prepare((edge * 65535).int().to(torch.uint16), (16, 16), (0.0,), (1.0,))
    assert (finer.min(), finer.max()) == (0, 1)
    assert prepare(edge, (16, 16), (0.0,), (1.0,)).max() > 1


# --------------------------------------------------------------------------------------------------------------- extras
@pytest.mark.parametrize("kind", [torch.int64, torch.uint8, torch.uint16, torch.bool], ids=str)
def test_whole_numbers_beside_an_image_are_carried_by_nearest_neighbour(kind: torch.dtype) -> None:
    parts = torch.randint(0, 2, (1, 9, 9), generator=torch.Generator().manual_seed(0)).to(kind)
    found = prepare_extra(parts, (5, 5))
    assert found.dtype == kind
    assert torch.equal(found, torch.nn.functional.interpolate(parts.float()[None], (5, 5))[0].to(kind))


def test_large_whole_numbers_beside_an_image_keep_every_digit() -> None:
    names = torch.arange(64).reshape(8, 8) + 2**53
    assert torch.equal(prepare_extra(names, (4, 4)), names[::2, ::2])


def test_other_numbers_beside_an_image_are_interpolated_in_training_and_evaluation_alike() -> None:
    ramp = torch.linspace(0, 1, 32).expand(1, 32, 32).contiguous()
    place = middle(32, 32, (8, 8))
    assert torch.equal(prepare_extra(ramp, (8, 8)), cut_extra(ramp, place, (8, 8)))
    assert len(prepare_extra(ramp, (64, 64)).unique()) > 32


# ------------------------------------------------------------------------------------------------------------- contract
@pytest.mark.parametrize(
    ("image", "valid", "expected"),
    [
        (torch.zeros(3, 8, 8, dtype=torch.int64), None, "is int64 [3, 8, 8]; the contract is uint8, uint16 or float32"),
        (torch.zeros(3, 8, 8, dtype=torch.float64), None, "is float64 [3, 8, 8]; the contract is uint8, uint16"),
        (
            torch.zeros(8, 8, 3),
            None,
            "float32 [3, H, W]: channels come first",
        ),
        (torch.zeros(8, 8), None, "is float32 [8, 8]; the contract is uint8, uint16 or float32 [3, H, W]"),
        ([[1, 2]], None, "is list []; the contract is uint8, uint16 or float32 [3, H, W]"),
        (torch.full((3, 8, 8), float("nan")), None, "NaN or infinite and not marked"),
        (torch.full((3, 8, 8), float("inf")), torch.zeros(3, 8, 8) < 1, "NaN or infinite and not marked"),
        (
            torch.zeros(3, 8, 8),
            torch.ones(1, 8, 8) > 0,
            "extra 'valid' of NAME is bool [1, 8, 8]; the contract",
        ),
        (torch.zeros(3, 8, 8), torch.ones(3, 8, 8), "extra 'valid' of NAME is float32 [3, 8, 8]; the contract is bool"),
    ],
)
def test_what_breaks_the_contract_is_told_it_in_training_and_evaluation(
    image: Any, valid: Tensor | None, expected: str
) -> None:
    extras = {} if valid is None else {"valid": valid}
    dataset = Pictures([image] * 4, [extras] * 4)
    with pytest.raises(ContractError) as trained:
        some(dataset)
    assert expected.replace("NAME", "training image") in re.sub(r"image \d", "image", str(trained.value))
    with pytest.raises(ContractError) as evaluated:
        list(whole_batches(dataset, [0, 1], size=(8, 8), mean=dataset.mean, std=dataset.std, batch_size=2))
    assert expected.replace("NAME", "image") in re.sub(r"image \d", "image", str(evaluated.value))


def test_pixels_that_are_not_finite_are_welcome_where_they_are_marked() -> None:
    image = torch.full((3, 8, 8), 0.5)
    image[1, 2, 2], image[0, 0, 0] = float("nan"), float("-inf")
    prepared, extras = prepare_sample(Sample(image, None, {"valid": image.isfinite()}), (8, 8), (0.5,) * 3, (1.0,) * 3)
    assert (prepared == 0).all()
    assert torch.equal(extras["valid"], image.isfinite())
