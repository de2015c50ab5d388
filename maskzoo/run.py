"""A run and its folder: what `train` yields becomes progress, metrics, pictures, checkpoints and an evaluation."""

from __future__ import annotations

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
from maskzoo.data.batches import batches, prepare, steps_in_epoch
from maskzoo.errors import DataError, MaskZooError, RecipeError
from maskzoo.evaluation.features import WholeImages, evenly_spread
from maskzoo.pictures import Moment, covered, draw_curriculum, draw_moment, signed
from maskzoo.protocols import Batch, Dataset
from maskzoo.recipe import Recipe, make, read, shown, write
from maskzoo.registry import Registry
from maskzoo.train import Session, look, train

SHOWN_IMAGES = 8
PLAIN_LINES = 20  # of progress in a run, where there is no terminal
# What may change between a run and its resumption, since no figure depends on it.
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
    folder = RunFolder(out if out is not None else _free_name(session))
    if resume:
        folder.refuse_another(session.recipe)
    evaluators = [
        make(registry, "evaluator", use, f"recipe.evaluation[{number}]") for number, use in enumerate(recipe.evaluation)
    ]
    resumed = folder.open(session, resume=resume)
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
    console.print(_closing(folder, dataset), highlight=False, markup=False)
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
            now = time.perf_counter()
            speed = settings.batch_size / (now - started)
            started = now
            metrics.write(json.dumps({**figures, "images_per_second": round(speed, 1)}) + "\n")
            show(figures, speed)
            if not math.isfinite(figures["loss"]):
                last = checkpoint.found(folder.checkpoints)
                kept = f"the last good checkpoint is '{last[-1]}'" if last else "there is no checkpoint yet"
                raise MaskZooError(f"the loss is {figures['loss']} at step {figures['step']}; {kept}")
            gallery.draw_if_due()
            if session.step % every == 0 or session.step == session.steps:
                metrics.flush()
                os.fsync(metrics.fileno())  # the lines before a checkpoint must outlive it
                checkpoint.save(session, folder.checkpoints)
                started = time.perf_counter()
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

    def open(self, session: Session, *, resume: bool) -> bool:
        """Make the folder, or bring the session and the folder to the newest checkpoint; True if there was one."""
        newest = checkpoint.found(self.checkpoints)[-1:] if resume else []
        for path in newest:
            checkpoint.load(session, path)
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as problem:
            raise RecipeError(f"--out: '{self.path}' cannot be made: {problem}") from problem
        if resume:
            self._cut(session.step)
        return bool(newest)

    def _cut(self, step: int) -> None:
        """Forget what came at or after `step`, which is about to be done again."""
        metrics = self.path / "metrics.jsonl"
        if metrics.exists():
            kept = [line for line in metrics.read_text().splitlines() if _step_of(line) < step]
            _replace(metrics, "".join(f"{line}\n" for line in kept))
        if step == 0:
            shutil.rmtree(self.path / "masks", ignore_errors=True)
            (self.path / "evaluation.json").unlink(missing_ok=True)

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


def _free_name(session: Session) -> Path:
    """runs/<masker>-<schedule>-<data>-s<seed>, with a number behind it where that is taken."""
    masking = session.recipe["masking"]
    parts = [masking["strategy"]["use"], masking["curriculum"]["use"], session.recipe["data"]["use"]]
    if session.strategy.default_curriculum is None:
        del parts[1]
    base = Path("runs") / "-".join([*parts, f"s{session.seed}"])
    names = [base, *(base.with_name(f"{base.name}-{number}") for number in range(2, 10_000))]
    return next(name for name in names if not name.exists())


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
        modules: list[Any] = [session.objective, session.strategy]
        modes = [module.training for module in modules]
        for module in modules:
            module.eval()
        context = look(session, self.batch.to(session.device))
        mask = session.strategy.mask(context)
        picture = session.objective.picture(context.images, mask)
        for module, mode in zip(modules, modes, strict=True):
            module.train(mode)
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
        split = self.dataset.test if len(self.dataset.test) else self.dataset.train
        prepared, places = [], []
        for place in evenly_spread(len(split), SHOWN_IMAGES):
            try:
                image = split[place].image
            except DataError:
                continue  # the gallery can do with one image less
            prepared.append(prepare(image, _image_size(self.session), self.dataset.mean, self.dataset.std))
            places.append(place)
        if not prepared:
            raise DataError(f"none of the images of '{self.dataset.name}' that were to be drawn can be read")
        return Batch(torch.stack(prepared), None, torch.tensor(places))

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


def _closing(folder: RunFolder, dataset: Dataset) -> str:
    measured = folder.evaluation()
    lines = []
    for name, after in measured.get("after", {}).items():
        before = measured.get("before", {}).get(name)
        lines.append(f"{name}: {'?' if before is None else format(before, '.1%')} before, {after:.1%} after training")
    if not lines:
        why = "there are no labels" if dataset.classes is None else "there is nothing to measure on"
        lines.append(f"not evaluated: {why}")
    lines.append(f"see {folder.path}/masks/curriculum.png")
    return "\n".join(lines)
