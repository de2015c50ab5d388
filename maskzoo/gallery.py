"""The same images at several moments of a run: what its masks hide, and what the model rebuilds.

Shapes: B images, C channels, H height, W width.
"""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import attrs
import numpy
import torch
from torch import Tensor

from maskzoo import processes
from maskzoo.data.augment import together
from maskzoo.data.labels import label_of
from maskzoo.data.prepare import prepare_sample
from maskzoo.errors import DataError, MaskZooError
from maskzoo.evaluation.features import evaluating, some_of
from maskzoo.pictures import Moment, coloured, covered, draw_curriculum, draw_moment
from maskzoo.plain import read_bytes, replace
from maskzoo.protocols import Batch, Dataset
from maskzoo.train import Session, look
from maskzoo.views import View, view_of

SHOWN_IMAGES = 8
SHOWN = ("images", "seen", "rebuilt")  # of a moment; the last only where something is rebuilt


def whole_images(dataset: Dataset, size: tuple[int, int], count: int) -> Batch:
    """Whole training images, with all that a strategy may look at. Raises DataError where none can be read."""
    split = dataset.train
    samples, problem = {}, None
    for place in some_of(split, count):
        try:
            samples[place] = split[place]
        except DataError as error:
            problem = problem or error  # the gallery can do with one image less
    if not samples:
        raise DataError(
            f"none of the images of '{dataset.name}' that were looked at can be read: {problem}"
        ) from problem
    known = None if dataset.classes is None else len(dataset.classes)
    names = {place: f"training image {place}" for place in samples}
    prepared = [prepare_sample(s, size, dataset.mean, dataset.std, names[place]) for place, s in samples.items()]
    images = [image for image, _ in prepared]
    extras = together([side for _, side in prepared], images)
    told = [label_of(sample.label, known, names[place]) for place, sample in samples.items()]
    labels = [label for label in told if label is not None]
    return Batch(
        torch.stack(images),
        torch.tensor(labels) if known is not None and len(labels) == len(told) else None,
        torch.tensor(list(samples)),
        {name: torch.stack(values) for name, values in extras.items()},
    )


class Gallery:
    """The same images at several moments of training, as `masks/step-*.png` and, in one, `masks/curriculum.png`."""

    def __init__(
        self,
        session: Session,
        dataset: Dataset,
        folder: Path,
        moments: int,
        drawn: Callable[[str, Path, int], None] = lambda name, path, step: None,  # told of each picture
        say: Callable[[str], None] = lambda message: None,  # told of pictures that cannot be drawn
    ) -> None:
        self.session, self.dataset, self.folder, self.drawn, self.say = session, dataset, folder, drawn, say
        self.view: View | None = None  # None: images are shown as they are
        last = session.steps - 1
        self.steps = {last} if moments == 1 else {round(n * last / max(1, moments - 1)) for n in range(moments)}
        self.note = ""
        if moments == 0:
            self.steps = set()
        else:
            with self._going_on():
                self.steps, steps = set(), self.steps  # none are drawn where the images cannot be had
                self.batch = whole_images(dataset, session.image_size, SHOWN_IMAGES)
                self.view = self._view()
                self.steps = steps

    @contextmanager
    def _going_on(self) -> Iterator[None]:
        """Say what goes wrong inside, since no picture is worth a run; errors that have a message of their own pass."""
        try:
            yield
        except (MaskZooError, OSError):
            raise
        except Exception as problem:  # whatever images, libraries and plugins do
            words = " ".join(str(problem).split()) or type(problem).__name__
            self.say(f"pictures of this run cannot be drawn ({words}); it goes on without them")

    def _view(self) -> View | None:
        """How the images are seen, decided once by what they are: by their type, their channels and their levels."""
        first = self.dataset.train[int(self.batch.index[0])].image
        valid = self.batch.extras.get("valid")
        return view_of(
            self._levels(self.batch.images),
            eight_bits=first.dtype == torch.uint8,
            valid=None if valid is None else valid.bool(),
            shown=getattr(self.dataset, "shown", None),
        )

    def draw_if_due(self) -> None:
        """Draw what the step about to be done would hide, if this is one of the moments."""
        if self.session.step not in self.steps:
            return
        moment = self._moment()
        with self._going_on():
            self._draw(moment)

    def _draw(self, moment: Moment) -> None:
        if processes.first():
            self._keep(moment)
            draw_moment(moment, self._path(moment.step, ".png"), note=self.note)
            self.drawn("masks", self._path(moment.step, ".png"), moment.step)

    def draw_all(self, say: Callable[[str], None]) -> None:
        """Draw all moments of the run, those before a resumption too, in one picture.

        One that cannot be read is left out, and `say` is told.
        """
        if not processes.first():
            return
        moments: list[Moment] = []
        for step in sorted(self.steps):
            if not self._path(step, ".npz").exists():
                continue
            try:
                moments.append(self._kept(step))
            except Exception as problem:  # a damaged archive fails in as many ways as there are bytes
                why = (str(problem).splitlines() or [""])[0] or type(problem).__name__
                say(f"'{self._path(step, '.npz')}' cannot be read ({why}), so the picture of the run leaves it out")
        if not moments:
            return
        with self._going_on():
            self._draw_all(moments)

    def _draw_all(self, moments: Sequence[Moment]) -> None:
        masking = self.session.recipe["masking"]
        title = f"{masking['strategy']['use']} on {self.dataset.name}"
        if moments[0].factor is not None:
            title += f", {masking['curriculum']['use']}"
        note = "" if self.view is None else self.view.caption
        draw_curriculum(moments, self.folder / "curriculum.png", title, note)
        self.drawn("curriculum", self.folder / "curriculum.png", self.session.step)

    @torch.no_grad()
    def _moment(self) -> Moment:
        session = self.session
        players: Any = (session.objective, session.strategy)
        with evaluating(players[0]), evaluating(players[1]):
            # The same images in every process, so the same masks: this is the whole batch, no share of it.
            context = attrs.evolve(look(session, self.batch.to(session.device)), share=0, shares=1)
            mask = session.strategy.mask(context)
            context.guard.refuse_changed("strategy", session.strategy)
            picture = None
            with self._going_on():
                picture = session.objective.picture(context.images, mask)
            context.guard.refuse_changed("objective", session.objective)
        images = self._seen(context.images)
        rebuilt, note = (None, "") if picture is None else picture
        self.note = "; ".join(one for one in (note, "" if self.view is None else self.view.caption) if one)
        backbone = session.objective.backbone
        return Moment(
            step=session.step,
            factor=None if session.strategy.default_curriculum is None else context.factor,
            ratio=context.count / context.patches,
            images=images,
            seen=covered(images, mask, backbone.grid, backbone.patch_size),
            rebuilt=None if rebuilt is None else self._seen(rebuilt),
        )

    def _levels(self, images: Tensor) -> Tensor:
        """The levels [B, C, H, W] of normalised images."""
        mean = torch.tensor(self.dataset.mean, device=images.device).view(1, -1, 1, 1)
        std = torch.tensor(self.dataset.std, device=images.device).view(1, -1, 1, 1)
        return images.float() * std + mean

    def _seen(self, images: Tensor) -> Tensor:
        """Normalised images in [0, 1]: ordinary ones with all their channels, others as colour."""
        levels = self._levels(images)
        return (levels if self.view is None else self.view(levels)).clamp(0, 1)

    def _path(self, step: int, suffix: str) -> Path:
        return self.folder / f"step-{step:08d}{suffix}"

    def _keep(self, moment: Moment) -> None:
        """Keep the moment's images as numbers too: a resumed run draws them again, and so may anybody."""
        self.folder.mkdir(parents=True, exist_ok=True)
        kept: dict[str, Any] = {
            name: (images * 255).round().byte().cpu().numpy()
            for name in SHOWN
            if (images := getattr(moment, name)) is not None
        }
        kept |= {"factor": math.nan if moment.factor is None else moment.factor, "ratio": moment.ratio}
        archive = io.BytesIO()
        numpy.savez_compressed(archive, **kept)
        replace(self._path(moment.step, ".npz"), archive.getvalue())

    def _kept(self, step: int) -> Moment:
        with numpy.load(io.BytesIO(read_bytes(self._path(step, ".npz"))), allow_pickle=False) as kept:
            images = {name: torch.from_numpy(kept[name]).float() / 255 for name in SHOWN if name in kept}
            like = (len(self.batch.images), 3, *self.session.image_size)
            if any(one.shape != like for one in (coloured(images["images"]), images["seen"])):
                raise ValueError("its images are of another size")
            factor = float(kept["factor"])
            return Moment(step, None if math.isnan(factor) else factor, float(kept["ratio"]), **images)
