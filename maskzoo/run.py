"""A run: what `train` yields becomes progress, metrics, pictures, checkpoints and an evaluation."""

from __future__ import annotations

import functools
import math
import multiprocessing
import time
import traceback
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, Literal

import attrs
from rich.console import Console

from maskzoo import checkpoint, processes
from maskzoo.alarms import Alarms, not_finite
from maskzoo.blame import blaming, plugin_error
from maskzoo.build import build
from maskzoo.data.batches import batches, steps_in_epoch
from maskzoo.data.remarks import remarks_of
from maskzoo.data.whole import usual_workers
from maskzoo.data.workers import loader_trouble
from maskzoo.defaults import settled
from maskzoo.diagnosis import first_bad
from maskzoo.display import display, phrase
from maskzoo.doubts import doubts_of
from maskzoo.engine import choose_device, keep_memory
from maskzoo.errors import ContractError, DataError, MaskZooError, PluginError, RecipeError, StoppedError
from maskzoo.evaluation.features import WholeImages
from maskzoo.folder import RunFolder
from maskzoo.gallery import Gallery, whole_images
from maskzoo.loggers.several import Loggers
from maskzoo.measuring import Measuring
from maskzoo.memory import PeakMemory
from maskzoo.norms import lone_value
from maskzoo.plain import json_text, named, replace
from maskzoo.probe import noise_batch
from maskzoo.protocols import Batch, Dataset
from maskzoo.provenance import clashes, facts
from maskzoo.recipe import Recipe, check_readable, describe, make
from maskzoo.registry import Registry
from maskzoo.signals import Work, as_typed, listening
from maskzoo.train import MODEL_FIGURES, Session, finite, train
from maskzoo.trained import origin_of

TRACEBACK_FILE = "traceback.txt"  # of a plugin's bug, in the run's folder
LOWER = 0.5  # what the rates are multiplied by when a run goes back


def run(
    recipe: Recipe,
    registry: Registry,
    console: Console,
    out: Path | None = None,
    *,
    resume: bool = False,
    stop_asked: Callable[[], bool] = lambda: False,
) -> Path:
    """Train by the recipe and leave everything in a folder, which is returned.

    With `resume`, go on from the newest good checkpoint in `out`, or from the beginning where there is none yet.
    Nothing that exists is overwritten otherwise. Under `torchrun` all processes call this; the first prints and writes.
    Raises MaskZooError for whatever the user can mend, and StoppedError when a signal ended the run between two steps.
    `stop_asked` tells of a signal that came before the run listened by itself.
    """
    if resume and out is None:
        raise RecipeError("--resume: say which run with --out")
    if out is not None:
        RunFolder(out).refuse_foreign(resume=resume)
    try:
        joined = processes.join(choose_device(recipe.train.device))
    except (ValueError, RuntimeError) as problem:
        raise RecipeError(
            f"the environment's WORLD_SIZE says that there are several processes, but they cannot find each other "
            f"({str(problem).splitlines()[0]}); start them with torchrun, or unset WORLD_SIZE"
        ) from problem
    try:
        return _run(recipe, registry, console if processes.first() else Console(quiet=True), out, resume, stop_asked)
    finally:
        if joined:
            processes.leave()


def _run(
    recipe: Recipe,
    registry: Registry,
    console: Console,
    out: Path | None,
    resume: bool,
    stop_asked: Callable[[], bool],
) -> Path:
    # One process of a machine first: a data set may have to be fetched and unpacked.
    dataset: Dataset = processes.first_on_machine(lambda: _dataset(recipe, registry, moved=resume))
    recipe = settled(recipe, len(dataset.train), processes.world() * recipe.train.accumulate)
    in_epoch = steps_in_epoch(dataset, recipe.train.batch)
    resuming = resume and out is not None and bool(checkpoint.found(RunFolder(out).checkpoints))
    try:
        session = build(
            recipe,
            dataset,
            registry,
            steps_in_epoch=in_epoch,
            resuming=resuming,
            trial=functools.partial(_trial_images, dataset),
        )
    except RecipeError as problem:
        if not resume or out is None or "no strategy named" not in str(problem):
            raise
        raise RecipeError(f"{problem}{origin_of(out, named(recipe.masking.strategy))}") from problem
    if session.device.type == "cpu":
        keep_memory()
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
    check_readable(session.recipe, registry)
    folder = RunFolder(out) if out is not None else RunFolder.claim(session)
    if resume:
        folder.refuse_another(session.recipe, registry)
    work = _work(session, folder, console)
    with folder.locked(), listening(work):
        session.stop_asked = session.stop_asked or stop_asked()
        with folder.writing():
            folder.look_again(session.recipe, registry, resume=resume)
            resumed = folder.open(session, console, registry, resume=resume)
            changed = folder.plugin_changes() if resumed else []
            known = {**facts(session, dataset, registry), "clashes": clashes(session.recipe, registry)}
            folder.describe(session, registry, {**known, "changed": changed} if changed else known)
        console.print(_summary(session, dataset, recipe, folder.path), highlight=False, markup=False)
        for remark in remarks_of(dataset, session.objective.backbone):
            console.print(remark, highlight=False, markup=False)
        if resumed:
            moment = f"step {session.step} of {session.steps}"
            finished = session.step == session.steps and folder.has_measured("after")
            console.print(f"already finished at {moment}" if finished else f"resumed at {moment}", highlight=False)

        for clause in changed:
            _say(folder, f"{clause}; the steps from {session.step} on are made by the code of now", console)
        for sentence in [*session.remarks, *known["clashes"], *doubts_of(session, recipe, registry)]:
            _say(folder, sentence, console)

        encoder = WholeImages(
            session.objective.backbone,
            dataset,
            session.image_size,
            device=session.device,
            objective=session.objective,
            classes=dataset.classes,
            workers=_workers(session, recipe),
            max_broken=recipe.train.max_broken,
            stopping=lambda: processes.any_of(session.stop_asked, session.device),
        )

        several = Loggers(loggers if processes.first() else [], lambda sentence: _say(folder, sentence, console))

        measuring = Measuring(evaluators, encoder, dataset, folder, lambda sentence: _say(folder, sentence, console))

        def measure(when: Literal["before", "after"]) -> None:
            waits, work.waits = work.waits, "this part of the evaluation"
            known = measuring.measure(when, session.step, console)
            work.waits = waits
            step = min(session.step, session.steps - 1)
            several.log({f"{when}/{name}": value for name, value in known.items()}, step)

        try:
            with several.following(folder.path, session.recipe, session.step):
                if session.step == 0:
                    measure("before")
                _train(session, dataset, recipe, folder, several, console)
                if session.step == session.steps and not folder.has_measured("after"):
                    measure("after")
        except StoppedError:
            processes.wait()  # the first that leaves makes torchrun end the others
            raise StoppedError(f"{_moment(session)}, while it was evaluated", work.resume()) from None
        if session.step < session.steps:
            processes.wait()
            raise StoppedError(_moment(session), work.resume())
        console.print(_closing(folder, measuring.told()), highlight=False, markup=False)
    return folder.path


def _dataset(recipe: Recipe, registry: Registry, *, moved: bool) -> Dataset:
    """The data of the recipe, whose folder may have `moved` since the run began."""
    try:
        made: Dataset = make(registry, "dataset", recipe.data, "recipe.data")
        return made
    except (DataError, RecipeError) as problem:
        data = recipe.data if isinstance(recipe.data, Mapping) else {}
        root = data.get("root", data.get("path"))
        if not moved or not isinstance(root, str) or Path(root).expanduser().exists():
            raise
        raise type(problem)(f"{problem}; if the data have moved, say where they are with --data") from problem


def _trial_images(dataset: Dataset, size: tuple[int, ...], count: int) -> Batch:
    """Training images on which a step is tried out, or noise where they cannot be read."""
    try:
        with blaming("recipe.data"):
            return whole_images(dataset, (size[0], size[1]), count)
    except DataError:
        return noise_batch(dataset.channels, size, count, labelled=dataset.classes is not None)


def _train(
    session: Session, dataset: Dataset, recipe: Recipe, folder: RunFolder, loggers: Loggers, console: Console
) -> None:
    """Consume the loop from the session's step to its last, going back where it leads nowhere."""

    def say(sentence: str) -> None:
        _say(folder, sentence, console)

    gallery = Gallery(session, dataset, folder.path / "masks", recipe.train.pictures, loggers.image, say)
    with folder.writing():
        gallery.draw_if_due()
    for again in range(recipe.train.go_back + 1):
        try:
            _consume(session, dataset, recipe, folder, gallery, loggers, console)
            break
        except _DivergedError as problem:
            last = checkpoint.found(folder.checkpoints)
            if again == recipe.train.go_back or not last:
                kept = f"the last good checkpoint is '{last[-1]}'" if last else "there is no checkpoint yet"
                raise MaskZooError(f"{problem}; {kept}; {problem.advice}") from None
            lower = session.lr_factor * LOWER
            folder.load_newest(session, console)
            session.lr_factor = lower
            _say(folder, f"{problem}; back to step {session.step}, with {lower:g} times the learning rate", console)
            with folder.writing():
                folder.forget(session, console)
    with folder.writing():
        gallery.draw_all(say)
        if session.step == session.steps:
            folder.tell_gaps(session.steps, console)


def _consume(
    session: Session,
    dataset: Dataset,
    recipe: Recipe,
    folder: RunFolder,
    gallery: Gallery,
    loggers: Loggers,
    console: Console,
) -> None:
    settings, workers = recipe.train, _workers(session, recipe)
    source = Source(_batches(session, dataset, recipe, workers), session.accumulate)
    every = settings.checkpoint_steps or session.steps_in_epoch
    alarms, skipped, due = Alarms(session.steps), 0, False
    memory = PeakMemory(session.device)
    with (
        folder.metrics() as metrics,
        display(session, console) as show,
        _no_lost_step(session, source, folder) as kept,
        closing(source),  # an error that is still being told must not keep the loader's workers alive
    ):
        started = time.perf_counter()
        for figures in train(session, source):
            seconds = time.perf_counter() - started
            for sentence in source.broken():
                _say(folder, sentence, console, "skipped")
            speeds = source.speeds(settings.batch, seconds)
            peak = memory.bytes
            took = speeds if peak is None else {**speeds, "peak_memory_bytes": peak}
            with folder.writing():
                metrics.write(json_text({**{n: _json(v) for n, v in figures.items()}, **took}))
            loggers.log({**figures, **took}, int(figures["step"]))
            show(figures, speeds["images_per_second"])
            skipped = skipped + 1 if figures["skipped"] else 0
            if skipped:
                _report_skipped(session, source, figures, skipped, settings.skip, folder, console)
            elif session.strategy.learners():
                for sentence in alarms.watch(figures):
                    _say(folder, sentence, console)
            ending = session.stopping or session.step == session.steps
            due = due or ending or session.step % every == 0
            with folder.writing():
                gallery.draw_if_due()
                if due and (ending or not skipped):  # weights that lead nowhere must not push out good ones
                    if metrics.keep():  # the lines before a checkpoint must outlive it
                        _say(folder, "metrics.jsonl had been removed, and was written again", console)
                    folder.save(session)
                    kept.step, due = session.step, False
            started = time.perf_counter()  # pictures and checkpoints are not the speed of training


def _workers(session: Session, recipe: Recipe) -> int:
    return usual_workers(session.device) if recipe.train.workers is None else recipe.train.workers


def _batches(session: Session, dataset: Dataset, recipe: Recipe, workers: int) -> Iterator[Batch]:
    settings = recipe.train
    return batches(
        dataset,
        size=session.image_size,
        batch_size=settings.batch,
        seed=session.seed,
        start=session.step,
        steps=session.steps,
        scale=recipe.augment.scale,
        flip=recipe.augment.flip,
        workers=workers,
        max_broken=settings.max_broken,
        pin_memory=session.device.type == "cuda",
        rank=processes.rank(),
        world=processes.world(),
        accumulate=session.accumulate,
        labels_needed="labels" in session.strategy.needs | session.objective.needs,
    )


class _DivergedError(Exception):
    """Too many steps in a row were not finite, beginning with the culprit."""

    def __init__(self, message: str, culprit: str) -> None:
        super().__init__(message)
        self.advice = (
            "look into that strategy, and into what it looks at: a score must be a finite number"
            if culprit.startswith("the scores")
            else "try a lower optimizer.lr, or optimizer.clip"
        )


def _report_skipped(
    session: Session,
    source: Source,
    figures: Mapping[str, float],
    skipped: int,
    most: int,
    folder: RunFolder,
    console: Console,
) -> None:
    """Say that a step was skipped, or that it was one too many."""
    last = int(figures["step"])
    bad = not_finite(figures)
    if skipped <= most:
        if skipped == 1:
            still = "the masker has not moved" if finite(figures, MODEL_FIGURES) else "nothing has moved"
            _say(folder, f"step {last} was skipped: {bad}; {still}", console)
        return
    culprit = first_bad(session, source.last)
    raise _DivergedError(
        f"steps {last - skipped + 1} to {last} were not finite ({bad}); the first that went bad is {culprit}", culprit
    )


class Source:
    """The batches of a run, with the time that they took and the images that could not be read."""

    def __init__(self, source: Iterator[Batch], kept: int) -> None:
        self.source, self.kept = source, kept
        self.last: list[Batch] = []  # the micro-batches of the step in hand
        self.others = set(multiprocessing.active_children())  # whatever runs besides the loader's workers
        self.waiting = False  # whether a batch is being waited for, so that no step is in hand
        self._broken: list[str] = []
        self._waited = self._loading = 0.0  # seconds

    def __iter__(self) -> Iterator[Batch]:
        while True:
            began = time.perf_counter()
            self.waiting = True
            batch = next(self.source, None)
            self.waiting = False
            self._waited += time.perf_counter() - began
            if batch is None:
                return
            self._loading += batch.seconds
            self._broken += batch.broken
            self.last = [*self.last, batch][-self.kept :]
            yield batch

    def close(self) -> None:
        """End the loader's workers, also where torch raises for a dead one while they are being ended."""
        try:
            if isinstance(self.source, Generator):
                self.source.close()
        finally:
            for worker in set(multiprocessing.active_children()) - self.others:
                worker.kill()

    def broken(self) -> list[str]:
        """A sentence for each image that had to be skipped since this was last asked."""
        broken, self._broken = self._broken, []
        return broken

    def speeds(self, images: int, seconds: float) -> dict[str, float]:
        """Images a second of the step in hand, which took so many seconds, and of its two halves alone.

        The loader's is that of all its workers at work, whether or not anybody waited for them.
        """
        halves = {"loader": self._loading, "step": seconds - self._waited}
        self._loading = self._waited = 0.0
        alone = {f"{half}_images_per_second": round(images / spent, 1) for half, spent in halves.items() if spent > 0}
        return {"images_per_second": round(images / seconds, 1), **alone}


@attrs.define
class _Kept:
    """The step of the last checkpoint."""

    step: int


@contextmanager
def _no_lost_step(session: Session, source: Source, folder: RunFolder) -> Iterator[_Kept]:
    """Keep what was reached when the data fail, provided that no step is in hand; raises DataError."""
    kept = _Kept(session.step)
    try:
        yield kept
    except Exception as problem:
        lone = lone_value(problem)
        trouble = problem if isinstance(problem, DataError) else loader_trouble(problem)
        bug = lone or (problem if isinstance(problem, ContractError | PluginError) else plugin_error(problem))
        if trouble is None and bug is not None:
            raise _bug_in_step(bug, problem, session, folder, kept) from problem
        if trouble is None:
            raise
        # Several processes would wait for each other in their step.
        if source.waiting and processes.world() == 1 and session.step > kept.step:
            folder.save(session)
        if trouble is problem:
            raise
        raise trouble from problem


def _bug_in_step(
    bug: MaskZooError, problem: Exception, session: Session, folder: RunFolder, kept: _Kept
) -> MaskZooError:
    """What to say of a plugin's bug during training; what was reached is kept, and the traceback in a file.

    A step that has moved the model and is not done leaves nothing to keep but the checkpoint before.
    """
    if processes.first():
        replace(folder.path / TRACEBACK_FILE, "".join(traceback.format_exception(problem)))
    if not session.moved and processes.world() == 1 and session.step > kept.step:
        folder.save(session)
    found = checkpoint.found(folder.checkpoints)
    left = f"; the last checkpoint is '{found[-1]}'" if found else ""
    return type(bug)(f"step {session.step}: {bug}{left}; the traceback is in '{folder.path / TRACEBACK_FILE}'")


def _work(session: Session, folder: RunFolder, console: Console) -> Work:
    """What SIGTERM, SIGINT and SIGUSR1 end after the step in hand."""

    def ask() -> None:
        session.stop_asked = True

    def kept() -> str:
        last = checkpoint.found(folder.checkpoints)
        step = int(last[-1].stem.removeprefix("step-")) if last else 0
        return f"the checkpoint after step {step} of {session.steps} is safe" if last else "there was no checkpoint yet"

    def resume() -> str | None:
        there = (folder.path / "recipe.toml").is_file()
        return as_typed(["train", "--out", str(folder.path), "--resume"]) if there else None

    return Work(ask, say=lambda words: console.print(words, highlight=False, markup=False), kept=kept, resume=resume)


def _moment(session: Session) -> str:
    return f"after step {session.step} of {session.steps}" if session.step else "before the first step"


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
        f"{session.steps} steps of {recipe.train.batch} images ({session.steps / session.steps_in_epoch:.4g} epochs), "
        f"seed {session.seed}, on {where} in {session.engine.precision}, into {path}\n"
        f"learning rate {phrase(session.recipe['optimizer']['lr'])}; {phrase(session.recipe['objective'])}"
    )


def _closing(folder: RunFolder, measured: Sequence[str]) -> str:
    lines = list(measured)
    speeds = {name.split("_")[0]: speed for name, speed in folder.usual_speeds().items()}
    if len(speeds) == 3:
        lines.append(
            f"{speeds['images']:,.0f} images/s; the loader alone {speeds['loader']:,.0f}, "
            f"the step alone {speeds['step']:,.0f}"
        )
    picture = folder.path / "masks" / "curriculum.png"
    lines.append(f"see {picture if picture.exists() else folder.path}")
    return "\n".join(lines)
