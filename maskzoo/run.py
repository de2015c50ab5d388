"""A run and its folder: what `train` yields becomes progress, metrics, pictures, checkpoints and an evaluation."""

from __future__ import annotations

import itertools
import json
import math
import os
import platform
import shutil
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from importlib.metadata import version
from pathlib import Path
from typing import Any, TextIO

import attrs
import numpy
import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor

from maskzoo import checkpoint
from maskzoo.build import build
from maskzoo.data.batches import batches, prepare, prepare_extra, steps_in_epoch
from maskzoo.errors import DataError, MaskZooError, RecipeError
from maskzoo.evaluation.features import WholeImages, evaluating, evenly_spread
from maskzoo.pictures import Moment, covered, draw_curriculum, draw_moment, signed
from maskzoo.protocols import Batch, Dataset
from maskzoo.recipe import Recipe, describe, make, read, shown, write
from maskzoo.registry import Registry
from maskzoo.train import Session, look, train

SHOWN_IMAGES = 8
PLAIN_LINES = 20  # of progress in a run, where there is no terminal
# What may change between a run and its resumption: no figure depends on it, or, of the device, only their rounding.
FREE_KEYS = frozenset({"train.device", "train.workers", "train.pictures", "train.checkpoint_steps", "train.max_broken"})


def run(recipe: Recipe, registry: Registry, console: Console, out: Path | None = None, *, resume: bool = False) -> Path:
    """Train by the recipe and leave everything in a folder, which is returned.

    With `resume`, go on from the newest checkpoint in `out`, or from the beginning where there is none yet. Nothing
    that exists is overwritten otherwise. Raises MaskZooError for whatever the user can mend.
    """
    if out is not None and not resume and out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise RecipeError(f"--out: '{out}' holds something already; choose another folder, or go on with --resume")
    if resume and out is None:
        raise RecipeError("--resume: say which run with --out")
    dataset: Dataset = make(registry, "dataset", recipe.data, "recipe.data")
    session = build(recipe, dataset, registry, steps_in_epoch=steps_in_epoch(dataset, recipe.train.batch_size))
    evaluators = [
        make(registry, "evaluator", use, f"recipe.evaluation[{number}]") for number, use in enumerate(recipe.evaluation)
    ]
    session.recipe = {**session.recipe, "evaluation": [describe(evaluator) for evaluator in evaluators]}
    folder = RunFolder(out) if out is not None else RunFolder.claim(session)
    if resume:
        folder.refuse_another(session.recipe)
    resumed = folder.open(session, console, resume=resume)
    folder.describe(session, registry)
    console.print(_summary(session, dataset, recipe, folder.path), highlight=False, markup=False)
    if resumed:
        console.print(f"resumed at step {session.step} of {session.steps}", highlight=False)

    encoder = WholeImages(session.objective.backbone, dataset, _image_size(session), device=session.device)

    def evaluate(when: str) -> None:
        figures = {
            f"{evaluator.name}/{name}": value for evaluator in evaluators for name, value in evaluator(encoder, dataset)
        }
        folder.add_evaluation(when, figures, evaluators)

    if session.step == 0:
        evaluate("before")
    _train(session, dataset, recipe, folder, console)
    if "after" not in folder.evaluation():
        evaluate("after")
    console.print(_closing(folder, dataset, evaluators), highlight=False, markup=False)
    return folder.path


def _train(session: Session, dataset: Dataset, recipe: Recipe, folder: RunFolder, console: Console) -> None:
    """Consume the loop from the session's step to its last."""
    settings = recipe.train
    workers = settings.workers
    if workers is None:  # on a CPU the workers would take their time from the training itself
        workers = 0 if session.device.type == "cpu" else min(8, os.cpu_count() or 1)
    source = batches(
        dataset,
        size=_image_size(session),
        batch_size=settings.batch_size,
        seed=session.seed,
        start=session.step,
        steps=session.steps,
        scale=recipe.augment.scale,
        flip=recipe.augment.flip,
        workers=workers,
        max_broken=settings.max_broken,
        pin_memory=session.device.type == "cuda",
    )
    gallery = Gallery(session, dataset, folder.path / "masks", settings.pictures)
    every = settings.checkpoint_steps or session.steps_in_epoch
    gallery.draw_if_due()
    with folder.metrics() as metrics, display(session, console) as show:
        started = time.perf_counter()
        for figures in train(session, folder.watched(source, console)):
            speed = settings.batch_size / (time.perf_counter() - started)
            bad = [f"{name} is {value}" for name, value in figures.items() if not math.isfinite(value)]
            if bad:
                last = checkpoint.found(folder.checkpoints)
                kept = f"the last good checkpoint is '{last[-1]}'" if last else "there is no checkpoint yet"
                raise MaskZooError(f"at step {figures['step']} {', '.join(bad)}; {kept}")
            metrics.write(json.dumps({**figures, "images_per_second": round(speed, 1)}) + "\n")
            show(figures, speed)
            gallery.draw_if_due()
            if session.step % every == 0 or session.step == session.steps:
                metrics.flush()
                os.fsync(metrics.fileno())  # the lines before a checkpoint must outlive it
                checkpoint.save(session, folder.checkpoints)
            started = time.perf_counter()  # pictures and checkpoints are not the speed of training
    gallery.draw_all()


# -------------------------------------------------------------------------------------------------------- the folder
@attrs.frozen
class RunFolder:
    """`recipe.toml`, `environment.json`, `metrics.jsonl`, `evaluation.json`, `masks/` and `checkpoints/` of a run."""

    path: Path

    @property
    def checkpoints(self) -> Path:
        """Where the checkpoints are."""
        return self.path / "checkpoints"

    def refuse_another(self, recipe: Mapping[str, Any]) -> None:
        """Raise RecipeError if what is in this folder was made by another recipe, naming the keys that differ."""
        if not (self.path / "recipe.toml").exists():
            if self.path.exists() and (not self.path.is_dir() or any(self.path.iterdir())):
                raise RecipeError(f"--resume: '{self.path}' holds something, but no run")
            return
        there, here = shown(read(self.path / "recipe.toml")), shown(recipe)
        differing = [
            f"recipe.{key} is {there.get(key)!r} there and {here.get(key)!r} here"
            for key in sorted(there.keys() | here.keys())
            if key not in FREE_KEYS and there.get(key) != here.get(key)
        ]
        if differing:
            raise RecipeError(f"--resume: the run in '{self.path}' is of another recipe: {'; '.join(differing)}")

    @classmethod
    def claim(cls, session: Session) -> RunFolder:
        """A new folder runs/<masker>-<schedule>-<data>-s<seed>, with a number behind it where that is taken."""
        masking = session.recipe["masking"]
        parts = [masking["strategy"]["use"], masking["curriculum"]["use"], session.recipe["data"]["use"]]
        if session.strategy.default_curriculum is None:
            del parts[1]
        name = "-".join([*parts, f"s{session.seed}"])
        for number in itertools.count(1):
            path = Path("runs") / (name if number == 1 else f"{name}-{number}")
            try:
                path.mkdir(parents=True)  # two runs that start at once must not get one folder
            except FileExistsError:
                continue
            return cls(path)
        raise AssertionError("there is always another number")

    def open(self, session: Session, console: Console, *, resume: bool) -> bool:
        """Make the folder, or bring the session and the folder to the newest good checkpoint; True if there was one."""
        resumed = resume and self._load_newest(session, console)
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as problem:
            raise RecipeError(f"--out: '{self.path}' cannot be made: {problem}") from problem
        if resume:
            self._cut(session.step, finished=session.step == session.steps)
        return resumed

    def _load_newest(self, session: Session, console: Console) -> bool:
        """Load the newest checkpoint that can be read; the damaged ones stay where they are."""
        problems: list[RecipeError] = []
        for path in reversed(checkpoint.found(self.checkpoints)):
            try:
                state = checkpoint.read(path)
            except RecipeError as problem:
                problems.append(problem)
                continue
            for known in problems:
                console.print(f"{known}; going back to '{path}'", style="yellow", highlight=False, markup=False)
            checkpoint.load(session, state, path)
            return True
        if problems:
            raise problems[0]
        return False

    def _cut(self, step: int, *, finished: bool) -> None:
        """Forget what came at or after `step`, which is about to be done again."""
        metrics = self.path / "metrics.jsonl"
        if metrics.exists():
            kept = [line for line in metrics.read_text().splitlines() if _step_of(line) < step]
            _replace(metrics, "".join(f"{line}\n" for line in kept))
        if step == 0:
            shutil.rmtree(self.path / "masks", ignore_errors=True)
            (self.path / "evaluation.json").unlink(missing_ok=True)
        measured = self.evaluation()
        if not finished and measured.pop("after", None) is not None:
            _replace(self.path / "evaluation.json", json.dumps(measured, indent=2) + "\n")

    def describe(self, session: Session, registry: Registry) -> None:
        """Write the resolved recipe and what the run stands on; a resumed run keeps the recipe it began with."""
        if not (self.path / "recipe.toml").exists():
            _replace(self.path / "recipe.toml", write(session.recipe))
        environment = {
            "command": sys.argv,
            "device": str(session.device),
            "device_name": torch.cuda.get_device_name(session.device) if session.device.type == "cuda" else "",
            "python": platform.python_version(),
            "platform": platform.platform(),
            "threads": torch.get_num_threads(),
            "versions": {name: version(name) for name in ("maskzoo", "torch", "torchvision", "timm")},
            "plugins": sorted({f"{plugin.distribution} {plugin.version}" for plugin in registry.plugins}),
        }
        _replace(self.path / "environment.json", json.dumps(environment, indent=2) + "\n")

    @contextmanager
    def metrics(self) -> Iterator[TextIO]:
        """`metrics.jsonl`, to be appended to; a line a step."""
        with (self.path / "metrics.jsonl").open("a", buffering=1) as file:
            yield file

    def watched(self, source: Iterator[Batch], console: Console) -> Iterator[Batch]:
        """The batches, with a word about each image that had to be skipped, which `skipped.txt` keeps."""
        record = self.path / "skipped.txt"
        known = set(record.read_text().splitlines()) if record.exists() else set()
        for batch in source:
            for sentence in batch.broken:
                line = " ".join(sentence.split())
                if line not in known:
                    known.add(line)
                    with record.open("a") as file:
                        file.write(line + "\n")
                    console.print(
                        f"skipped: {line} ({len(known)} so far)", style="yellow", highlight=False, markup=False
                    )
            yield batch

    def evaluation(self) -> dict[str, Any]:
        """What has been measured so far."""
        path = self.path / "evaluation.json"
        return json.loads(path.read_text()) if path.exists() else {}

    def add_evaluation(self, when: str, figures: Mapping[str, float], evaluators: list[Any]) -> None:
        """Add figures under "before" or "after", with the settings that they were measured under."""
        settings = {
            "evaluators": [
                {"use": evaluator.name, **attrs.asdict(evaluator)} if attrs.has(type(evaluator)) else evaluator.name
                for evaluator in evaluators
            ],
            "features": "mean of patch tokens of the whole image, eval mode",
        }
        whole = {**self.evaluation(), "settings": settings, when: dict(figures)}
        _replace(self.path / "evaluation.json", json.dumps(whole, indent=2) + "\n")


def _replace(path: Path, text: str) -> None:
    beside = path.with_name(path.name + ".part")
    beside.write_text(text)
    beside.replace(path)


def _step_of(line: str) -> float:
    try:
        return int(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):
        return math.inf  # a line that was being written when the run was killed


# ------------------------------------------------------------------------------------------------------ what is seen
class Gallery:
    """The same images at several moments of training, as `masks/step-*.png` and, in one, `masks/curriculum.png`."""

    def __init__(self, session: Session, dataset: Dataset, folder: Path, moments: int) -> None:
        self.session, self.dataset, self.folder = session, dataset, folder
        last = session.steps - 1
        self.steps = {last} if moments == 1 else {round(n * last / max(1, moments - 1)) for n in range(moments)}
        self.note = ""
        if moments == 0:
            self.steps = set()
        else:
            self.batch = self._images()

    def draw_if_due(self) -> None:
        """Draw what the step about to be done would hide, if this is one of the moments."""
        if self.session.step in self.steps:
            moment = self._moment()
            self._keep(moment)
            draw_moment(moment, self._path(moment.step, ".png"), note=self.note)

    def draw_all(self) -> None:
        """Draw all moments of the run, those before a resumption too, in one picture."""
        moments = [self._kept(step) for step in sorted(self.steps) if self._path(step, ".npz").exists()]
        if not moments:
            return
        masking = self.session.recipe["masking"]
        title = f"{masking['strategy']['use']} on {self.dataset.name}"
        if moments[0].factor is not None:
            title += f", {masking['curriculum']['use']}"
        draw_curriculum(moments, self.folder / "curriculum.png", title)

    @torch.no_grad()
    def _moment(self) -> Moment:
        session = self.session
        players: Any = (session.objective, session.strategy)
        with evaluating(players[0]), evaluating(players[1]):
            context = look(session, self.batch.to(session.device))
            mask = session.strategy.mask(context)
            picture = session.objective.picture(context.images, mask)
        images = self._restored(context.images)
        rebuilt, self.note = (context.images, "") if picture is None else picture
        backbone = session.objective.backbone
        return Moment(
            step=session.step,
            factor=None if session.strategy.default_curriculum is None else context.factor,
            ratio=context.count / context.patches,
            images=images,
            seen=covered(images, mask, backbone.grid, backbone.patch_size),
            rebuilt=self._restored(rebuilt),
        )

    def _images(self) -> Batch:
        """Whole training images, with all that a strategy may look at."""
        split, size = self.dataset.train, _image_size(self.session)
        samples = {}
        for place in evenly_spread(len(split), SHOWN_IMAGES):
            try:
                samples[place] = split[place]
            except DataError:
                continue  # the gallery can do with one image less
        if not samples:
            raise DataError(f"none of the images of '{self.dataset.name}' that were to be drawn can be read")
        first = next(iter(samples.values()))
        labels = [sample.label for sample in samples.values() if sample.label is not None]
        return Batch(
            torch.stack([prepare(s.image, size, self.dataset.mean, self.dataset.std) for s in samples.values()]),
            torch.tensor(labels) if self.dataset.classes is not None else None,
            torch.tensor(list(samples)),
            {
                name: torch.stack([prepare_extra(sample.extras[name], size) for sample in samples.values()])
                for name in first.extras
            },
        )

    def _restored(self, images: Tensor) -> Tensor:
        """Normalised images back in [0, 1]."""
        mean = torch.tensor(self.dataset.mean, device=images.device).view(1, -1, 1, 1)
        std = torch.tensor(self.dataset.std, device=images.device).view(1, -1, 1, 1)
        return (images.float() * std + mean).clamp(0, 1)

    def _path(self, step: int, suffix: str) -> Path:
        return self.folder / f"step-{step:08d}{suffix}"

    def _keep(self, moment: Moment) -> None:
        """Keep the moment's images as numbers too: a resumed run draws them again, and so may anybody."""
        self.folder.mkdir(parents=True, exist_ok=True)
        kept: dict[str, Any] = {
            name: (getattr(moment, name) * 255).round().byte().cpu().numpy() for name in ("images", "seen", "rebuilt")
        }
        kept |= {"factor": math.nan if moment.factor is None else moment.factor, "ratio": moment.ratio}
        numpy.savez_compressed(self._path(moment.step, ".npz"), **kept)

    def _kept(self, step: int) -> Moment:
        with numpy.load(self._path(step, ".npz")) as kept:
            images = {name: torch.from_numpy(kept[name]).float() / 255 for name in ("images", "seen", "rebuilt")}
            factor = float(kept["factor"])
            return Moment(step, None if math.isnan(factor) else factor, float(kept["ratio"]), **images)


@contextmanager
def display(session: Session, console: Console) -> Iterator[Any]:
    """Progress: a moving line on a terminal, else some plain lines; yields a function of the figures and the speed."""
    dial = session.strategy.default_curriculum is not None
    first, began = session.step, time.perf_counter()

    def words(figures: Mapping[str, float], speed: float) -> str:
        factor = f"factor {signed(figures['factor'])}" if dial else f"ratio {figures['ratio']:.2f}"
        return f"loss {figures['loss']:.4f}  {factor}  {speed:,.0f} images/s"

    if console.is_terminal:
        columns = (
            TextColumn("step {task.completed}/{task.total}"),
            BarColumn(bar_width=None),
            TextColumn("{task.fields[words]}"),
            TimeRemainingColumn(compact=True),
            TextColumn("left"),
        )
        with Progress(*columns, console=console) as progress:
            task = progress.add_task("train", total=session.steps, completed=session.step, words="")

            def show(figures: Mapping[str, float], speed: float) -> None:
                progress.update(task, completed=session.step, words=words(figures, speed))

            yield show
        return

    every = max(1, math.ceil(session.steps / PLAIN_LINES))

    def say(figures: Mapping[str, float], speed: float) -> None:
        if session.step % every == 0 or session.step == session.steps or session.step == first + 1:
            seconds = (time.perf_counter() - began) / (session.step - first) * (session.steps - session.step)
            left = timedelta(seconds=round(seconds))
            line = (
                f"step {session.step}/{session.steps}  epoch {figures['epoch']}  {words(figures, speed)}  {left} left"
            )
            console.print(line, highlight=False, soft_wrap=True)

    yield say


def _image_size(session: Session) -> tuple[int, int]:
    grid, patch = session.objective.backbone.grid, session.objective.backbone.patch_size
    return grid[0] * patch[0], grid[1] * patch[1]


def _summary(session: Session, dataset: Dataset, recipe: Recipe, path: Path) -> str:
    backbone: Any = session.objective.backbone
    masking = session.recipe["masking"]
    millions = sum(parameter.numel() for parameter in backbone.parameters()) / 1e6
    height, width = _image_size(session)
    masker = masking["strategy"]["use"]
    if session.strategy.default_curriculum is not None:
        masker += f" under {masking['curriculum']['use']}"
    return (
        f"{masker}, {session.objective.name}, {session.recipe['backbone'].get('timm', backbone.name)} "
        f"({millions:.1f} M parameters) on {dataset.name}: {len(dataset.train)} images of {height} x {width}, "
        f"{' x '.join(str(side) for side in backbone.grid)} patches\n"
        f"{session.steps} steps of {recipe.train.batch_size} images, seed {session.seed}, on {session.device}, "
        f"into {path}"
    )


def _closing(folder: RunFolder, dataset: Dataset, evaluators: list[Any]) -> str:
    measured = folder.evaluation()
    lines = []
    for name, after in measured.get("after", {}).items():
        before = measured.get("before", {}).get(name)
        lines.append(f"{name}: {'?' if before is None else format(before, '.1%')} before, {after:.1%} after training")
    if not lines and evaluators:
        why = "there are no labels" if dataset.classes is None else "there are no test images"
        lines.append(f"not evaluated: {why}")
    picture = folder.path / "masks" / "curriculum.png"
    lines.append(f"see {picture if picture.exists() else folder.path}")
    return "\n".join(lines)
