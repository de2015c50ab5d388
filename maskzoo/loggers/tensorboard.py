"""Figures and pictures as TensorBoard's event files."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import attrs
import numpy
from PIL import Image

from maskzoo.bounds import between
from maskzoo.loggers.library import library
from maskzoo.protocols import define


@define
class TensorBoard:
    """Event files in the run's folder, under `tensorboard`: look at them with `tensorboard --logdir runs`.

    Of steps that a resumed run does again, the first version is hidden.
    """

    name: ClassVar[str] = "tensorboard"

    flush_seconds: int = attrs.field(default=30, validator=between(1, 10**6))  # what a killed run loses, at most
    _writer: Any = attrs.field(init=False, default=None)

    def __attrs_post_init__(self) -> None:
        self._library()

    def start(self, folder: Path, recipe: Mapping[str, Any], step: int) -> None:
        """Begin a file of events that replaces those at and after `step`, and show the recipe as a text."""
        self._writer = self._library().SummaryWriter(
            str(folder / "tensorboard"), purge_step=step, flush_secs=self.flush_seconds
        )
        indented = json.dumps(recipe, indent=2).replace("\n", "\n    ")  # four spaces make it code, in markdown
        self._writer.add_text("recipe", f"    {indented}", step)

    def log(self, figures: Mapping[str, float], step: int) -> None:
        """Add a point to the curve of each figure."""
        for name, value in figures.items():
            self._writer.add_scalar(name, value, step)

    def image(self, name: str, path: Path, step: int) -> None:
        """Add a picture under its name."""
        with Image.open(path) as picture:
            pixels = numpy.asarray(picture.convert("RGB"))  # [H, W, 3] uint8
        self._writer.add_image(name, pixels, step, dataformats="HWC")

    def close(self, failed: bool = False) -> None:
        """Write out what is left; TensorBoard does not tell runs that failed from others."""
        self._writer.close()

    def _library(self) -> Any:
        return library("torch.utils.tensorboard", "tensorboard")
