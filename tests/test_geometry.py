"""Training and evaluation agree about shapes: what is round in an image is round in a batch, usually."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from helpers import Images, tiny_session
from torch import Tensor
from torchvision.transforms import v2

from maskzoo import Sample
from maskzoo.data.augment import Crops
from maskzoo.data.batches import batches
from maskzoo.data.prepare import Place, prepare
from maskzoo.evaluation.features import WholeImages
from maskzoo.train import train

SHAPES = [(64, 64), (32, 96), (96, 32), (60, 80), (40, 60), (20, 160), (200, 25), (1, 7)]
SIZES = [(16, 16), (16, 48), (48, 16), (24, 32), (64, 8)]


def drawn(crops: Crops, shape: tuple[int, int], number: int = 200) -> list[Place]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return [crops.draw(torch.empty(1, *shape)) for _ in range(number)]


@pytest.mark.parametrize("shape", [shape for shape in SHAPES if min(shape) > 1], ids=str)
@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.sampled(9)
def test_what_is_round_stays_so_in_the_middle_for_any_image_and_any_target(
    shape: tuple[int, int], size: tuple[int, int]
) -> None:
    many = [10 * side for side in shape]  # so that whole pixels hardly matter
    aspects = [
        (size[1] / place.width) / (size[0] / place.height)  # of a disc, width / height
        for place in drawn(Crops.of(size, (0.2, 1.0)), (many[0], many[1]), 400)
    ]
    # Where an image is a little wider than the target, its largest crops are torchvision's, and a little wider too.
    assert torch.tensor(aspects).median() == pytest.approx(1, abs=0.1)
    assert 0.73 < min(aspects) < 0.9
    assert 1.1 < max(aspects) < 1.37


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.sampled(8)
def test_every_crop_lies_in_the_image_and_any_part_of_it_is_reached(
    shape: tuple[int, int], size: tuple[int, int]
) -> None:
    crops, image = drawn(Crops.of(size, (0.2, 1.0)), shape), torch.empty(shape)
    assert all(min(place.height, place.width) >= 1 and min(place.top, place.left) >= 0 for place in crops)
    assert all(place.of(image).shape == (place.height, place.width) for place in crops)
    assert min(place.top for place in crops) <= shape[0] // 10
    assert min(place.left for place in crops) <= shape[1] // 10
    assert max(place.top + place.height for place in crops) >= shape[0] - shape[0] // 10
    assert max(place.left + place.width for place in crops) >= shape[1] - shape[1] // 10


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_an_image_of_the_targets_shape_is_seen_whole_at_scale_1(size: tuple[int, int]) -> None:
    shape = (20 * size[0], 20 * size[1])
    crops = drawn(Crops.of(size, (1.0, 1.0)), shape, 50)
    assert Place(0, 0, *shape) in crops
    assert all(place.height * place.width > 0.99 * shape[0] * shape[1] for place in crops)  # whole to a pixel or two


@pytest.mark.parametrize("shape", [(64, 64), (60, 80), (30, 24)], ids=str)
def test_crops_of_square_targets_are_torchvisions_where_an_image_is_nearly_square(shape: tuple[int, int]) -> None:
    crops, theirs = Crops.of((16, 16), (0.2, 1.0)), v2.RandomResizedCrop(16, scale=(0.2, 1.0))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        expected = [Place(**theirs.make_params([torch.empty(1, *shape)])) for _ in range(200)]
    assert drawn(crops, shape) == expected


def disc(height: int, width: int, radius: float) -> Tensor:
    rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    inside = (rows - (height - 1) / 2) ** 2 + (columns - (width - 1) / 2) ** 2 <= radius**2
    return torch.where(inside, 1.0, 0.0)[None]


def aspect(image: Tensor) -> float:
    """Width / height of the disc in an image, by how far its pixels lie from their middle."""
    weights = image[0].clamp(0, 1)
    rows, columns = torch.meshgrid(*(torch.arange(side).float() for side in weights.shape), indexing="ij")
    total = weights.sum()
    spread = [(weights * (place - (weights * place).sum() / total).square()).sum().sqrt() for place in (columns, rows)]
    return float(spread[0] / spread[1])


@pytest.mark.parametrize(("shape", "size"), [((32, 96), (32, 96)), ((32, 96), (32, 32)), ((90, 60), (24, 48))], ids=str)
def test_batches_and_whole_images_show_a_disc_in_the_same_shape(shape: tuple[int, int], size: tuple[int, int]) -> None:
    class Discs:
        name, channels, classes, flip, mean, std = "discs", 1, None, False, (0.0,), (1.0,)
        image = disc(*shape, 4)

        def __len__(self) -> int:
            return 200

        def __getitem__(self, index: int) -> Sample:
            return Sample(self.image)

        @property
        def train(self) -> Any:
            return self

    (batch,) = batches(Discs(), size=size, batch_size=200, seed=0, start=0, steps=1)
    whole = [image for image in batch.images if image[0, 0].max() < 0.1 and image[0, -1].max() < 0.1]
    whole = [image for image in whole if image[..., 0].max() < 0.1 and image[..., -1].max() < 0.1 and image.max() > 0.5]
    assert len(whole) > 40
    assert torch.tensor([aspect(image) for image in whole]).median() == pytest.approx(1, abs=0.08)
    assert aspect(prepare(Discs.image, size, (0.0,), (1.0,))) == pytest.approx(1, abs=0.05)


def rounds_and_wides(count: int, seed: int) -> Images:
    """Grey images of 32 x 96 with a disc or an ellipse of 14 : 5, in turns."""
    generator = torch.Generator().manual_seed(seed)
    rows, columns = torch.meshgrid(torch.arange(32), torch.arange(96), indexing="ij")
    images = torch.randint(20, 40, (count, 1, 32, 96), generator=generator)
    for number, image in enumerate(images):
        wide, high = (8, 8) if number % 2 else (14, 5)
        x, y = torch.randint(16, 80, (), generator=generator), torch.randint(10, 22, (), generator=generator)
        image[0, ((rows - y) / high) ** 2 + ((columns - x) / wide) ** 2 <= 1] = 220
    return Images(images.byte(), [number % 2 for number in range(count)], flip=True)


@pytest.mark.long
def test_shapes_that_differ_by_their_aspect_alone_are_learned_on_a_wide_target() -> None:
    shapes, tests = rounds_and_wides(400, 1), rounds_and_wides(100, 2)
    session = tiny_session(
        "random",
        shapes,
        objective="classify",
        masking={"ratio": 0.0},
        backbone={
            "timm": "vit_tiny_patch16_224",
            "patch_size": 8,
            "options": {"embed_dim": 48, "depth": 3, "num_heads": 3},
        },
        optimizer={"lr": 0.002},
        train={"steps": 140, "batch_size": 40},
    )
    for _ in train(session, batches(shapes, size=(32, 96), batch_size=40, seed=0, start=0, steps=140)):
        pass
    encoder = WholeImages(session.objective.backbone, shapes, (32, 96), objective=session.objective)
    scores, labels = encoder.predictions(tests)
    assert (scores.argmax(dim=1) == labels).float().mean() > 0.92  # 0.98; 0.83 with stretched crops
