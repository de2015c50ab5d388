"""Histograms of oriented gradients: beside scikit-image's, and where the answer is known.

Shapes: B images, C channels, N patches.
"""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from skimage.feature import hog as skimage_hog
from torch import Tensor

from maskzoo.objectives.hog import BINS, cell_of, features, hog


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def ramp(angle: float, size: int = 32) -> Tensor:
    """[1, 1, size, size]: an image whose gradient has this direction, in degrees, everywhere."""
    place = torch.arange(size, dtype=torch.float32)
    across, down = math.cos(math.radians(angle)), math.sin(math.radians(angle))
    return (across * place[None, :] + down * place[:, None])[None, None]


def of_cells(images: Tensor, patch: tuple[int, int], cell: tuple[int, int]) -> Tensor:
    """[B, rows, columns, C, 9] of all cells of an image, from `hog` by patch."""
    batch, channels, height, width = images.shape
    found = hog(images, patch)
    inside = patch[0] // cell[0], patch[1] // cell[1]
    found = found.view(batch, height // patch[0], width // patch[1], *inside, channels, BINS)
    return found.transpose(2, 3).reshape(batch, height // cell[0], width // cell[1], channels, BINS)


@pytest.mark.parametrize(
    ("size", "patch", "cell"),
    [
        ((48, 32), (16, 16), (8, 8)),
        ((16, 24), (8, 8), (8, 8)),
        ((12, 16), (4, 4), (4, 4)),
        ((24, 36), (12, 12), (6, 6)),
        ((28, 28), (14, 14), (7, 7)),
        ((64, 32), (32, 16), (8, 8)),
        ((24, 20), (12, 10), (6, 5)),
        ((6, 9), (2, 3), (2, 3)),
        ((11, 22), (11, 11), (1, 1)),
    ],
)
def test_each_channel_of_each_cell_has_the_histogram_of_scikit_image(
    size: tuple[int, int], patch: tuple[int, int], cell: tuple[int, int]
):
    images = noise(2, 3, *size)
    assert cell_of(patch) == cell
    found = of_cells(images, patch, cell)
    for image, channel in np.ndindex(2, 3):
        expected = skimage_hog(
            images[image, channel].double().numpy(),
            orientations=BINS,
            pixels_per_cell=cell,
            cells_per_block=(1, 1),
            block_norm="L2",
            feature_vector=False,
        )
        np.testing.assert_allclose(found[image, :, :, channel].numpy(), expected[:, :, 0, 0], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("angle", [*range(0, 360, 10), 0.001, -0.001, 179.99])
def test_an_edge_votes_for_the_bin_of_its_angle_alone(angle: float):
    found = of_cells(ramp(angle), (16, 16), (8, 8))[0, 1:3, 1:3, 0]  # away from the border, where a gradient is cut
    if round(angle % 20, 6) == 0 and angle % 180:  # on the line between two bins rounding decides
        pair = [int(angle % 180 // 20) - 1, int(angle % 180 // 20)]
        torch.testing.assert_close(found[..., pair].square().sum(dim=-1), torch.ones(2, 2))
        return
    expected = torch.zeros(BINS)
    expected[int(angle % 180 // 20)] = 1.0
    torch.testing.assert_close(found, expected.expand(2, 2, BINS))


@pytest.mark.parametrize("falling", [False, True])
def test_vertical_and_horizontal_edges_have_one_bin_each_whichever_side_is_bright(falling: bool):
    step = torch.zeros(1, 1, 16, 16)
    step[..., 4:12] = -3.0 if falling else 3.0
    upright = of_cells(step, (8, 8), (8, 8))[0, ..., 0, :]
    lying = of_cells(step.transpose(2, 3), (8, 8), (8, 8))[0, ..., 0, :]
    torch.testing.assert_close(upright, torch.eye(BINS)[0].expand(2, 2, BINS))
    torch.testing.assert_close(lying, torch.eye(BINS)[4].expand(2, 2, BINS))


def test_a_flat_cell_has_no_histogram_and_others_are_of_length_one():
    images = noise(1, 2, 32, 32)
    images[:, :, 8:24, 8:24] = 0.7
    found = of_cells(images, (16, 16), (8, 8))
    length = found.norm(dim=-1)
    assert found.isfinite().all()
    assert length[0, 0].allclose(torch.ones(4, 2), atol=1e-4)
    flat = noise(1, 2, 32, 32)
    flat[:, :, 7:17, 7:17] = 0.7  # a cell and the pixels around it
    assert (of_cells(flat, (16, 16), (8, 8))[0, 1, 1] == 0).all()


def test_scale_and_mean_of_a_channel_hardly_matter():
    images = noise(2, 3, 32, 32)
    scale, mean = torch.tensor([0.2, 1.0, 5.0]).view(3, 1, 1), torch.tensor([-2.0, 0.0, 1.0]).view(3, 1, 1)
    torch.testing.assert_close(hog(images * scale + mean, (16, 16)), hog(images, (16, 16)), rtol=1e-2, atol=1e-3)


def test_the_values_of_a_patch_are_in_the_order_row_column_channel_bin():
    quiet = torch.zeros(1, 2, 32, 48)
    for row, column, channel in np.ndindex(4, 6, 2):
        images = quiet.clone()
        images[0, channel, row * 8 + 2 : row * 8 + 6, column * 8 + 2 : column * 8 + 6] = 1.0
        (image, patch, _), *_ = places = hog(images, (16, 16)).nonzero().tolist()
        assert {place[1] for place in places} == {patch} == {row // 2 * 3 + column // 2}
        begin = ((row % 2 * 2 + column % 2) * 2 + channel) * BINS
        assert image == 0
        assert {begin, begin + 4} <= {place[2] for place in places} <= set(range(begin, begin + BINS))


@pytest.mark.parametrize("channels", [1, 3, 4])
@pytest.mark.parametrize("patch", [(4, 4), (8, 16), (5, 7), (1, 1), (2, 3)])
def test_any_patch_and_number_of_channels_has_its_number_of_features(channels: int, patch: tuple[int, int]):
    images = noise(2, channels, 3 * patch[0], 2 * patch[1]).bfloat16()
    found = hog(images, patch)
    assert found.shape == (2, 6, features(channels, patch))
    assert found.dtype == torch.float32
    assert found.isfinite().all()


def test_images_of_a_batch_do_not_mix():
    images = noise(4, 3, 32, 32)
    whole = hog(images, (16, 16))
    assert torch.equal(torch.cat([hog(image[None], (16, 16)) for image in images]), whole)
