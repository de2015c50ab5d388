"""Images of any number of channels, of any range and with holes are seen in pictures; no picture ends a run."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import attrs
import numpy as np
import pytest
import torch
from helpers import REGISTRY, Images, noise_images, tiny_recipe, tiny_session
from PIL import Image
from torch import Tensor

from maskzoo import Mask, RecipeError, Sample
from maskzoo.bands import shown_channels, told_channels
from maskzoo.compare.strips import _tile
from maskzoo.data.folder import Folder
from maskzoo.gallery import Gallery
from maskzoo.objectives.reconstruct import Reconstruct
from maskzoo.pictures import HIDDEN, coloured, covered
from maskzoo.plain import read_lines
from maskzoo.preview import Wish, preview
from maskzoo.run import run
from maskzoo.terminal import Console
from maskzoo.views import INVALID, view_of


def levels(channels: int, low: float = 0.0, high: float = 1.0) -> Tensor:
    """[2, C, 8, 8] of noise."""
    generator = torch.Generator().manual_seed(channels)
    return torch.rand(2, channels, 8, 8, generator=generator) * (high - low) + low


@attrs.define(eq=False)
class Values(Images):
    """Images of 16 bits or of floating point, some of them with holes."""

    holes: Tensor | None = None  # [M, C, H, W] bool, True where a value was measured

    def __getitem__(self, index: int) -> Sample:
        extras = {} if self.holes is None else {"valid": self.holes[index]}
        return Sample(self.images[index], None, extras)


# --------------------------------------------------------------------------------------------------------- channels
@pytest.mark.parametrize("channels", range(1, 14))
def test_any_number_of_channels_is_shown_as_colour(channels: int):
    assert coloured(levels(channels)).shape == (2, 3, 8, 8)
    shown = shown_channels(channels)
    assert all(1 <= channel <= channels for channel in shown)
    assert len(set(shown)) == len(shown)
    assert bool(told_channels(shown, channels)) == (channels == 2 or channels > 4)


def test_grey_rgb_and_rgba_are_what_they_were():
    grey, rgb, rgba = levels(1), levels(3), levels(4)
    assert torch.equal(coloured(grey), grey.expand(-1, 3, -1, -1))
    assert torch.equal(coloured(rgb), rgb)
    assert torch.equal(coloured(rgba), rgba[:, :3])
    assert all(view_of(one, eight_bits=True) is None for one in (grey, rgb, rgba))


def test_two_channels_are_red_and_blue_and_grey_where_they_agree():
    two = levels(2)
    assert torch.equal(coloured(two), torch.stack([two[:, 0], two.mean(dim=1), two[:, 1]], dim=1))
    alike = levels(1).expand(-1, 2, -1, -1)
    red, green, blue = coloured(alike).unbind(dim=1)
    assert torch.allclose(red, green)
    assert torch.allclose(green, blue)


def test_a_data_set_may_say_which_channels_are_shown():
    twelve = levels(12)
    view = view_of(twelve, eight_bits=True, shown=(4, 3, 2))
    assert view is not None
    assert torch.equal(view(twelve), twelve[:, [3, 2, 1]])
    assert view.caption == "channels 4, 3 and 2 of 12 are shown as red, green and blue"
    for wrong in ((0, 1, 2), (1, 2, 13), (1, 2, 3, 4), ("red",)):
        with pytest.raises(ValueError, match="one to three of the channels 1 to 12"):
            view_of(twelve, eight_bits=True, shown=wrong)  # type: ignore[arg-type]


def test_a_report_shows_the_same_colours():
    for channels in (1, 2, 3, 4, 12):
        image = (levels(channels) * 255).round()
        tile = np.asarray(_tile(image[0].byte().numpy()))[::12, ::12]  # each pixel is enlarged to 12 x 12
        assert np.array_equal(tile, coloured(image)[0].round().byte().permute(1, 2, 0).numpy())


# ------------------------------------------------------------------------------------------------------------ levels
@pytest.mark.parametrize(("low", "high"), [(0.0, 0.06), (-3.0, 9.0), (200.0, 5000.0), (0.5, 0.5)])
@pytest.mark.parametrize("channels", [1, 2, 3, 12])
@pytest.mark.sampled(6)
def test_levels_of_any_range_fill_the_picture(channels: int, low: float, high: float):
    images = levels(channels, low, high)
    view = view_of(images, eight_bits=False)
    assert view is not None
    seen = view(images)
    assert seen.shape == (2, 3, 8, 8)
    assert 0 <= seen.min() <= seen.max() <= 1
    if high > low:
        assert seen.min() < 0.02
        assert seen.max() > 0.98
        assert 0.3 < seen.mean() < 0.7
    assert "percentile" in view.caption


def test_one_stretch_holds_for_all_rows_of_a_picture_and_outliers_do_not_matter():
    images = levels(1, 0.0, 0.06)
    images[0, 0, 0, 0] = 1000.0
    view = view_of(images, eight_bits=False)
    assert view is not None
    assert view(images).mean() > 0.3
    darker = view(images * 0.5)
    assert darker.mean() < 0.8 * view(images).mean(), "what is rebuilt too dark looks too dark"


def test_the_channels_of_a_photo_keep_their_balance():
    photo = levels(3) * torch.tensor([1.0, 0.5, 0.25]).view(1, 3, 1, 1)
    view = view_of(photo, eight_bits=False)
    assert view is not None
    red, green, blue = view(photo).mean(dim=(0, 2, 3)).tolist()
    assert red > 1.6 * green > 2.4 * blue


def test_pixels_that_were_not_measured_have_a_colour_of_their_own_and_no_say():
    images = levels(3, 0.0, 0.1)
    valid = torch.ones(2, 3, 8, 8, dtype=torch.bool)
    valid[:, 1, :2] = False
    images[:, 1, :2] = 500.0
    view = view_of(images, eight_bits=False, valid=valid)
    assert view is not None
    seen = view(images)
    assert torch.allclose(seen[:, :, :2].float(), torch.tensor(INVALID).view(1, 3, 1, 1))
    assert seen[:, :, 2:].mean() > 0.3
    assert "was not measured" in view.caption
    hidden = torch.zeros(2, 4, dtype=torch.bool)
    hidden[:, 0] = True
    under = covered(seen, Mask(hidden, 1), (2, 2), (4, 4))
    assert torch.allclose(under[:, :, :4, :4], torch.tensor(HIDDEN).view(1, 3, 1, 1)), "hidden patches cover all"


# ---------------------------------------------------------------------------------------------------------- in a run
CASES = {
    "two": noise_images(8, channels=2),
    "twelve": noise_images(8, channels=12),
    "16 bits": Values((torch.rand(8, 3, 32, 32) * 4095).to(torch.uint16)),
    "floats": Values(torch.randn(8, 2, 32, 32) * 40 + 7),
}


def moment_of(images: Images, tmp_path: Path, **options: Any) -> Gallery:
    session = tiny_session("random", images, train={"steps": 2, "batch_size": 4})
    gallery = Gallery(session, images, tmp_path / "masks", 1, **options)
    session.step = 1
    return gallery


@pytest.mark.parametrize("case", ["two", "twelve"])
def test_a_gallery_draws_and_keeps_what_it_shows(case: str, tmp_path: Path):
    gallery = moment_of(CASES[case], tmp_path)
    gallery.draw_if_due()
    gallery.draw_all(lambda message: pytest.fail(message))
    with np.load(tmp_path / "masks" / "step-00000001.npz") as kept:
        assert kept["images"].shape == kept["seen"].shape == kept["rebuilt"].shape == (8, 3, 32, 32)
        assert 60 < kept["images"].mean() < 195
    with Image.open(tmp_path / "masks" / "curriculum.png") as picture:
        assert picture.width > 500


def test_a_picture_that_cannot_be_drawn_is_told_and_ends_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def broken(*_: Any) -> None:
        raise RuntimeError("the expanded size\nof the tensor")

    monkeypatch.setattr(Reconstruct, "picture", broken)
    console = Console(file=io.StringIO(), width=400)
    recipe = tiny_recipe(train={"steps": 2, "batch_size": 4, "pictures": 2}, evaluation=[])
    run(recipe, REGISTRY, console, tmp_path / "run")
    (line,) = [one for one in read_lines(tmp_path / "run" / "warnings.txt") if "picture" in one]
    assert line == "pictures of this run cannot be drawn (the expanded size of the tensor); it goes on without them"
    assert len(list(read_lines(tmp_path / "run" / "metrics.jsonl"))) == 2


def test_a_data_set_that_names_channels_which_it_lacks_is_trained_on(tmp_path: Path):
    told: list[str] = []

    @attrs.define(eq=False)
    class Misnamed(Images):
        shown = (1, 2, 99)

    gallery = moment_of(Misnamed(noise_images(8, channels=12).images), tmp_path, say=told.append)
    gallery.draw_if_due()
    gallery.draw_all(told.append)
    (line,) = told
    assert "one to three of the channels 1 to 12" in line


OTHERS = {
    "16 bits": lambda noise: (noise * 4095).to(torch.uint16),  # 12 bits, as cameras of microscopes store them
    "floats": lambda noise: noise * 40 + 7,
    "twelve of 16 bits": lambda noise: (noise.repeat(1, 4, 1, 1) * 3000 + 200).to(torch.uint16),
}


@pytest.mark.parametrize("case", OTHERS)
@pytest.mark.sampled(1)
def test_a_gallery_stretches_what_is_not_of_8_bits(case: str, tmp_path: Path):
    images = Values(OTHERS[case](noise_images(8).images.float() / 255))
    gallery = moment_of(images, tmp_path, say=pytest.fail)
    gallery.draw_if_due()
    with np.load(tmp_path / "masks" / "step-00000001.npz") as kept:
        assert kept["images"].shape == (8, 3, 32, 32)
        assert 90 < kept["images"].mean() < 165
        assert kept["images"].std() > 50


def float_images(folder: Path, channels: int) -> Path:
    """Twelve arrays of floating point, each with a hole."""
    folder.mkdir(parents=True)
    random = np.random.default_rng(0)
    for number in range(12):
        values = random.normal(300, 80, (channels, 16, 16)).astype(np.float32)
        values[:, :4, :4] = np.nan
        np.save(folder / f"{number:02d}.npy", values)
    return folder


@pytest.mark.slow
def test_arrays_with_holes_are_seen_in_a_run_and_in_a_preview_of_it(tmp_path: Path):
    folder = float_images(tmp_path / "data", 12)
    recipe = tiny_recipe(
        data={"use": "folder", "root": str(folder), "channels": 12, "shown": [4, 3, 2]},
        train={"steps": 2, "batch_size": 4, "pictures": 2},
        evaluation=[],
    )
    run(recipe, REGISTRY, Console(file=io.StringIO(), width=400), tmp_path / "run")
    with np.load(tmp_path / "run" / "masks" / "step-00000000.npz") as kept:
        pink = (np.array(INVALID) * 255).round()
        assert np.array_equal(kept["images"][0, :, 1, 1], pink)
        assert not np.array_equal(kept["images"][0, :, 12, 12], pink)
    console = Console(file=io.StringIO(), width=400)
    wish = Wish(run=tmp_path / "run")
    preview([folder / "00.npy"], wish, tmp_path / "preview.png", REGISTRY, console)
    told = console.file.getvalue()
    assert "channels 4, 3 and 2 of 12 are shown as red, green and blue" in told
    assert "pink was not measured" in told


def test_channels_that_files_lack_cannot_be_shown(tmp_path: Path):
    folder = float_images(tmp_path / "data", 2)
    assert Folder(root=str(folder), shown=(2, 1)).shown == (2, 1)
    with pytest.raises(RecipeError, match="must be one to three of the channels 1 to 2") as caught:
        Folder(root=str(folder), shown=(3,))
    assert caught.value.key == "shown"
