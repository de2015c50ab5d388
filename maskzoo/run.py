"""A run: what `train` yields becomes progress, metrics, pictures, checkpoints and an evaluation."""

from __future__ import annotations

import json
import math
import os
import signal
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console

from maskzoo import checkpoint, processes
from maskzoo.alarms import Alarms
from maskzoo.build import build
from maskzoo.data.batches import batches, steps_in_epoch
from maskzoo.diagnosis import first_bad
from maskzoo.display import display
from maskzoo.engine import choose_device
from maskzoo.errors import DataError, MaskZooError, RecipeError, StoppedError
from maskzoo.evaluation.features import WholeImages
from maskzoo.folder import RunFolder, unused
from maskzoo.gallery import Gallery
from maskzoo.loggers.several import Loggers
from maskzoo.protocols import Batch, Dataset
from maskzoo.recipe import Recipe, describe, make
from maskzoo.registry import Registry
from maskzoo.train import Session, train

STOP_SIGNALS = ("SIGTERM", "SIGINT", "SIGUSR1")  # the last is what SLURM can be asked to send ahead of the time limit
LOWER = 0.5  # what the rates are multiplied by when a run goes back


def run(recipe: Recipe, registry: Registry, console: Console, out: Path | None = None, *, resume: bool = False) -> Path:
    """Train by the recipe and leave everything in a folder, which is returned.

    With `resume`, go on from the newest good checkpoint in `out`, or from the beginning where there is none yet.
    Nothing that exists is overwritten otherwise. Under `torchrun` all processes call this; the first prints and writes.
    Raises MaskZooError for whatever the user can mend, and StoppedError when a signal ended the run between two steps.
    """
    if out is not None and not resume and out.exists() and not unused(out):
        raise RecipeError(f"--out: '{out}' holds something already; choose another folder, or go on with --resume")
    if resume and out is None:
        raise RecipeError("--resume: say which run with --out")
    joined = processes.join(choose_device(recipe.train.device))
    try:
        return _run(recipe, registry, console if processes.first() else Console(quiet=True), out, resume=resume)
    finally:
        if joined:
            processes.leave()


def _run(recipe: Recipe, registry: Registry, console: Console, out: Path | None, *, resume: bool) -> Path:
    dataset: Dataset = make(registry, "dataset", recipe.data, "recipe.data")
    session = build(recipe, dataset, registry, steps_in_epoch=steps_in_epoch(dataset, recipe.train.batch_size))
    evaluators, loggers = (
        [make(registry, kind, use, f"recipe.{path}[{number}]") for number, use in enumerate(uses)]  # type: ignore[arg-type]
        for kind, path, uses in (
            ("evaluator", "evaluation", recipe.evaluation),
            ("logger", "train.loggers", recipe.train.loggers),
        )
    )
    session.recipe = {
        **session.recipe,
        "evaluation": [describe(evaluator) for evaluator in evaluators],
        "train": {**session.recipe["train"], "loggers": [describe(logger) for logger in loggers]},
    }
    folder = RunFolder(out) if out is not None else RunFolder.claim(session)
    if resume:
        folder.refuse_another(session.recipe)
    with folder.locked(), stopping_by_signal(session):
        resumed = folder.open(session, console, resume=resume)
        folder.describe(session, registry)
        console.print(_summary(session, dataset, recipe, folder.path), highlight=False, markup=False)
        if resumed:
            console.print(f"resumed at step {session.step} of {session.steps}", highlight=False)

        encoder = WholeImages(session.objective.backbone, dataset, session.image_size, device=session.device)

        several = Loggers(loggers if processes.first() else [], lambda sentence: _say(folder, sentence, console))

        def evaluate(when: str) -> None:
            figures = {
                f"{evaluator.name}/{name}": value
                for evaluator in evaluators
                for name, value in evaluator(encoder, dataset)
            }
            folder.add_evaluation(when, figures, evaluators)
            several.log(
                {f"{when}/{name}": value for name, value in figures.items()}, min(session.step, session.steps - 1)
            )

        with several.following(folder.path, session.recipe, session.step):
            if session.step == 0:
                evaluate("before")
            _train(session, dataset, recipe, folder, several, console)
            if session.step == session.steps and "after" not in folder.evaluation():
                evaluate("after")
        if session.step < session.steps:
            raise StoppedError(f"stopped by a signal after step {session.step} of {session.steps}; --resume goes on")
        console.print(_closing(folder, dataset, evaluators), highlight=False, markup=False)
    return folder.path


def _train(
    session: Session, dataset: Dataset, recipe: Recipe, folder: RunFolder, loggers: Loggers, console: Console
) -> None:
    """Consume the loop from the session's step to its last, going back where it leads nowhere."""
    gallery = Gallery(session, dataset, folder.path / "masks", recipe.train.pictures, loggers.image)
    gallery.draw_if_due()
    for again in range(recipe.train.go_back + 1):
        try:
            _consume(session, dataset, recipe, folder, gallery, loggers, console)
            break
        except _DivergedError as problem:
            last = checkpoint.found(folder.checkpoints)
            if again == recipe.train.go_back or not last:
                kept = f"the last good checkpoint is '{last[-1]}'" if last else "there is no checkpoint yet"
                raise MaskZooError(f"{problem}; {kept}; try a lower optimizer.lr, or optimizer.clip") from None
            lower = session.lr_factor * LOWER
            folder.load_newest(session, console)
            session.lr_factor = lower
            _say(folder, f"{problem}; back to step {session.step}, with {lower:g} times the learning rate", console)
            folder.forget(session.step)
    gallery.draw_all()


def _consume(
    session: Session,
    dataset: Dataset,
    recipe: Recipe,
    folder: RunFolder,
    gallery: Gallery,
    loggers: Loggers,
    console: Console,
) -> None:
    settings = recipe.train
    source = Watched(_batches(session, dataset, recipe), session.accumulate)
    every = settings.checkpoint_steps or session.steps_in_epoch
    alarms, skipped, saved = Alarms(session.steps), 0, session.step
    with folder.metrics() as metrics, display(session, console) as show, _no_lost_step(session, folder) as kept:
        started = time.perf_counter()
        for figures in train(session, source):
            seconds = time.perf_counter() - started
            for sentence in source.broken():
                _say(folder, sentence, console, "skipped")
            speed = settings.batch_size / seconds
            speeds = {"images_per_second": round(speed, 1), "data_seconds": round(source.seconds(), 6)}
            metrics.write(json.dumps({**{n: _json(v) for n, v in figures.items()}, **speeds}) + "\n")
            loggers.log({**figures, **speeds}, int(figures["step"]))
            show(figures, speed)
            skipped = skipped + 1 if figures["skipped"] else 0
            if skipped:
                _report_skipped(session, source, figures, skipped, settings.skip, folder, console)
            elif session.strategy.learners():
                for sentence in alarms.watch(figures):
                    _say(folder, sentence, console)
            gallery.draw_if_due()
            due = session.step % every == 0 or session.step == session.steps or session.stopping
            ending = session.stopping or session.step == session.steps
            if due and (ending or not skipped):  # weights that lead nowhere must not push out good ones
                metrics.flush()
                os.fsync(metrics.fileno())  # the lines before a checkpoint must outlive it
                checkpoint.save(session, folder.checkpoints)
                saved = session.step
            kept.step = saved
            started = time.perf_counter()  # pictures and checkpoints are not the speed of training


def _batches(session: Session, dataset: Dataset, recipe: Recipe) -> Iterator[Batch]:
    settings = recipe.train
    workers = settings.workers
    if workers is None:  # on a CPU the workers would take their time from the training itself
        workers = 0 if session.device.type == "cpu" else min(8, os.cpu_count() or 1)
    return batches(
        dataset,
        size=session.image_size,
        batch_size=settings.batch_size,
        seed=session.seed,
        start=session.step,
        steps=session.steps,
        scale=recipe.augment.scale,
        flip=recipe.augment.flip,
        workers=workers,
        max_broken=settings.max_broken,
        pin_memory=session.device.type == "cuda",
        **(
            {"rank": processes.rank(), "world": processes.world(), "accumulate": session.accumulate}
            if session.accumulate * processes.world() > 1
            else {}
        ),
    )


class _DivergedError(Exception):
    """Too many steps in a row were not finite."""


def _report_skipped(
    session: Session,
    source: Watched,
    figures: Mapping[str, float],
    skipped: int,
    most: int,
    folder: RunFolder,
    console: Console,
) -> None:
    """Say that a step was skipped, or that it was one too many."""
    last = int(figures["step"])
    bad = ", ".join(f"{name} is {value}" for name, value in figures.items() if not math.isfinite(value))
    if skipped <= most:
        if skipped == 1:
            _say(folder, f"step {last} was skipped: {bad}; nothing has moved", console)
        return
    culprit = first_bad(session, source.last)
    raise _DivergedError(
        f"steps {last - skipped + 1} to {last} were not finite ({bad}); the first that went bad is {culprit}"
    )


class Watched:
    """The batches of a run, with the time that they took and the images that could not be read."""

    def __init__(self, source: Iterator[Batch], kept: int) -> None:
        self.source, self.kept = source, kept
        self.last: list[Batch] = []  # the micro-batches of the step in hand
        self._broken: list[str] = []
        self._seconds = 0.0

    def __iter__(self) -> Iterator[Batch]:
        while True:
            began = time.perf_counter()
            batch = next(self.source, None)
            self._seconds += time.perf_counter() - began
            if batch is None:
                return
            self._broken += batch.broken
            self.last = [*self.last, batch][-self.kept :]
            yield batch

    def broken(self) -> list[str]:
        """A sentence for each image that had to be skipped since this was last asked."""
        broken, self._broken = self._broken, []
        return broken

    def seconds(self) -> float:
        """How long batches were waited for since this was last asked."""
        seconds, self._seconds = self._seconds, 0.0
        return seconds


@contextmanager
def _no_lost_step(session: Session, folder: RunFolder) -> Iterator[Any]:
    """Keep what was reached when the data fail between two steps, and say a full disk in a sentence."""

    class Kept:
        step = session.step

    try:
        yield Kept
    except DataError:
        if processes.world() == 1 and session.step > Kept.step:  # others would wait for us in their step
            checkpoint.save(session, folder.checkpoints)
        raise
    except OSError as problem:
        last = checkpoint.found(folder.checkpoints)
        whole = f"the last checkpoint, '{last[-1]}', is whole" if last else "there is no checkpoint yet"
        raise MaskZooError(f"'{folder.path}' cannot be written to: {problem}; {whole}") from problem


@contextmanager
def stopping_by_signal(session: Session) -> Iterator[None]:
    """Let SIGTERM, SIGINT and SIGUSR1 end the run after the step in hand; a second SIGINT ends it at once."""
    if threading.current_thread() is not threading.main_thread():
        yield  # only the main thread may listen
        return

    def ask(number: int, frame: Any) -> None:
        if session.stop_asked and number == signal.SIGINT:
            raise KeyboardInterrupt
        session.stop_asked = True

    before = {getattr(signal, name): signal.signal(getattr(signal, name), ask) for name in STOP_SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _say(folder: RunFolder, sentence: str, console: Console, kind: str = "warnings") -> None:
    if processes.first():
        folder.warn(sentence, console, kind)


def _json(value: float) -> float | None:
    return value if math.isfinite(value) else None  # JSON has no word for it


def _summary(session: Session, dataset: Dataset, recipe: Recipe, path: Path) -> str:
    backbone: Any = session.objective.backbone
    masking = session.recipe["masking"]
    millions = sum(parameter.numel() for parameter in backbone.parameters()) / 1e6
    height, width = session.image_size
    masker = masking["strategy"]["use"]
    if session.strategy.default_curriculum is not None:
        masker += f" under {masking['curriculum']['use']}"
    world = processes.world()
    where = f"{session.device}" if world == 1 else f"{world} processes ({'fsdp2' if session.engine.sharded else 'ddp'})"
    return (
        f"{masker}, {session.objective.name}, {session.recipe['backbone'].get('timm', backbone.name)} "
        f"({millions:.1f} M parameters) on {dataset.name}: {len(dataset.train)} images of {height} x {width}, "
        f"{' x '.join(str(side) for side in backbone.grid)} patches\n"
        f"{session.steps} steps of {recipe.train.batch_size} images, seed {session.seed}, on {where} in "
        f"{session.engine.precision}, into {path}"
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
