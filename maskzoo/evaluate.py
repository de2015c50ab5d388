"""Evaluate what a run has learned, or any timm model: metrics that go into an `evaluation.json` and stay there."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import attrs
import torch
from rich.console import Console

from maskzoo.build import described, make_backbone
from maskzoo.data.labels import older_classes, why_unmeasurable
from maskzoo.data.pixels import STATISTICS
from maskzoo.data.remarks import remarks_of
from maskzoo.engine import choose_device
from maskzoo.errors import DataError, MaskZooError, RecipeError, StoppedError
from maskzoo.evaluation.features import MAX_BROKEN, Statistics, WholeImages
from maskzoo.evaluation.measure import measured
from maskzoo.evaluation.options import words_of
from maskzoo.flags import backbone_of
from maskzoo.folder import RunFolder
from maskzoo.listing import Listing
from maskzoo.measured import Measured, refuse_foreign
from maskzoo.metrics import printed
from maskzoo.protocols import Dataset, Pooling
from maskzoo.recipe import Recipe, Use, describe, make, parse, plain_of, put, read, weights_of
from maskzoo.registry import Registry, nearest
from maskzoo.seeds import stream_seed
from maskzoo.signals import Work, listening
from maskzoo.trained import open_run
from maskzoo.weights import load_weights


@attrs.frozen(eq=False)
class Subject:
    """What is evaluated, on what data, and where the figures go."""

    folder: Path
    backbone: Any  # an nn.Module and a Backbone
    objective: Any | None  # an nn.Module and an Objective, where there is one
    dataset: Dataset
    about: Mapping[str, Any]  # what tells its metrics from others: the step of a run, or the model and its weights
    statistics: Statistics  # mean and deviation by which its images are normalised, as where it has learnt
    classes: Sequence[str] | None = None  # that the objective has learnt
    workers: int | None = None  # that read images; None: as many as is usual for the device
    max_broken: float = MAX_BROKEN  # share of the images that may be unreadable


@attrs.frozen
class Wishes:
    """What the command line asks for."""

    evaluators: str | None = None  # names and short uses, with commas between
    data: Use | None = None
    pooling: Pooling = "mean"
    device: str = "auto"
    workers: int | None = None  # that read images; None: as many as is usual for the device
    settings: tuple[str, ...] = ()  # KEY=VALUE, for an evaluator, the data or the backbone


def evaluate_run(path: Path, wishes: Wishes, registry: Registry, console: Console) -> list[dict[str, Any]]:
    """Evaluate the newest good checkpoint of a run, by its own evaluators unless others are wished for."""
    run = open_run(path, registry)
    uses = list(run.recipe.evaluation) if wishes.evaluators is None else _listed(wishes.evaluators)
    learnt_from = plain_of(run.recipe)["data"]
    plain = {"data": learnt_from if wishes.data is None else wishes.data}
    evaluators = _configured(plain, uses, wishes.settings, registry, console if wishes.evaluators is None else None)
    dataset: Dataset = make(registry, "dataset", plain["data"], "data")
    for sentence in run.remarks:
        console.print(sentence, style="yellow", highlight=False, markup=False)
    if dataset.channels != run.backbone.channels:
        raise RecipeError(
            f"--data: images of '{dataset.name}' have {dataset.channels} channels, and the run's backbone takes "
            f"{run.backbone.channels}"
        )
    own: Any = dataset
    if plain["data"] != learnt_from:
        try:
            own = run.dataset()
        except MaskZooError:
            own = None
            sentence = "the data of the run are gone, so images are normalised as is usual for those evaluated on"
            console.print(sentence, style="yellow", highlight=False, markup=False)
    usual: Any = dataset if own is None else own
    subject = Subject(
        path,
        run.backbone,
        run.objective,
        dataset,
        {"step": run.step},
        (tuple(usual.mean), tuple(usual.std)),
        run.classes or (() if own is None else older_classes(own)),
        run.recipe.train.workers,
        run.recipe.train.max_broken,
    )
    return _evaluate(subject, evaluators, wishes, console)


def evaluate_backbone(
    name: str, weights: Path | None, pretrained: bool, out: Path, wishes: Wishes, registry: Registry, console: Console
) -> list[dict[str, Any]]:
    """Evaluate a backbone that no run has trained: with weights from a file, timm's, or the initial ones of seed 0."""
    if weights is not None and pretrained:
        raise RecipeError("--weights and --pretrained: the weights can come from one place only")
    if (out / "recipe.toml").exists():
        raise RecipeError(f"--out: '{out}' is a run, whose figures are its own; choose another folder")
    try:
        refuse_foreign(out / "evaluation.json")
    except DataError as problem:
        raise RecipeError(f"--out: {problem}; choose another folder") from None
    plain: dict[str, Any] = {
        "data": "digits" if wishes.data is None else wishes.data,
        "backbone": backbone_of(name, registry),
    }
    if weights is not None:
        plain["weights"] = str(weights)
    uses = ["knn"] if wishes.evaluators is None else _listed(wishes.evaluators)
    evaluators = _configured(plain, uses, wishes.settings, registry)
    if pretrained:
        plain["backbone"]["pretrained"] = True
    dataset: Dataset = make(registry, "dataset", plain["data"], "data")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(stream_seed(0, "model"))  # as a run of seed 0 would begin
        backbone: Any = make_backbone(plain["backbone"], dataset, registry)
    if weights is not None:
        for sentence in load_weights(backbone, weights_of(plain["weights"], "--weights"), "--weights"):
            console.print(sentence, highlight=False, markup=False)
    about = {"model": describe(backbone), "weights": plain.get("weights")}
    statistics = _statistics(backbone, dataset, weights, pretrained, registry)
    return _evaluate(Subject(out, backbone.eval(), None, dataset, about, statistics), evaluators, wishes, console)


def _statistics(
    backbone: Any, dataset: Dataset, weights: Path | None, pretrained: bool, registry: Registry
) -> Statistics:
    """Mean and deviation by which a model's images are normalised.

    timm's own, those of the run that has left the weights, or ImageNet's for any other file of weights.
    """
    found: Any = (dataset.mean, dataset.std)
    if pretrained:
        config = getattr(getattr(backbone, "model", None), "pretrained_cfg", {})
        found = config.get("mean", ()), config.get("std", ())
    elif weights is not None:
        run = next((path for path in (weights, weights.parent.parent) if (path / "recipe.toml").is_file()), None)
        try:
            data: Any = run and make(registry, "dataset", Recipe.from_plain(read(run / "recipe.toml")).data, "data")
        except MaskZooError:
            data = None
        found = (data.mean, data.std) if data else found if run else STATISTICS.get(backbone.channels, found)
    if len(found[0]) != backbone.channels:
        found = (dataset.mean, dataset.std)
    return tuple(found[0]), tuple(found[1])


def _listed(text: str) -> list[Use]:
    """--with: uses with commas between them, e.g. `knn:[5,20],{use="linear", solver="lbfgs"}`."""
    uses, depth, start = [], 0, 0
    for place, letter in enumerate(text + ","):
        depth += (letter in "[{(") - (letter in "]})")
        if letter == "," and depth <= 0:
            uses.append(text[start:place].strip())
            start = place + 1
    if depth:
        raise RecipeError(f"--with: the brackets of '{text}' do not match")
    if "" in uses:
        raise RecipeError(f"--with: expected names of evaluators with commas between them, got '{text}'")
    return [parse(use) if use.startswith("{") else use for use in uses]


def _configured(
    plain: dict[str, Any],
    uses: Sequence[Use],
    settings: Sequence[str],
    registry: Registry,
    told_of: Console | None = None,
) -> list[Any]:
    """The evaluators, after --set has changed their options and, in place, those of the data and the backbone.

    A setting of an evaluator that is asked for twice holds for both. With `told_of`, one that cannot be made, such as
    one whose plugin is gone, is said there and left out.
    """
    held = [{"evaluator": use} for use in uses]
    names = [str(use.get("use") if isinstance(use, Mapping) else use).split(":")[0] for use in uses]
    for setting in settings:
        key, equals, value = setting.partition("=")
        place, dot, option = key.strip().partition(".")
        if not equals or not dot:
            raise RecipeError(f"--set: expected EVALUATOR.OPTION=VALUE, e.g. linear.epochs=50, got '{setting}'")
        if place not in plain and place not in names:
            known = [*names, *plain]
            raise RecipeError(f"--set: no '{place}' is to be set here; {nearest(place, known)}")
        if place in plain:
            put(plain, f"{place}.{option}", parse(value.strip()))
        for name, one in zip(names, held, strict=True):
            if name == place:
                put(one, f"evaluator.{option}", parse(value.strip()))
    made = []
    for name, one in zip(names, held, strict=True):
        try:
            made.append(make(registry, "evaluator", one["evaluator"], f"--with {name}"))
        except MaskZooError as problem:
            if told_of is None:
                raise
            told_of.print(f"{name}: not measured: {problem}", style="yellow", highlight=False, markup=False)
    return made


# ----------------------------------------------------------------------------------------------------------- measuring
def _evaluate(subject: Subject, evaluators: Sequence[Any], wishes: Wishes, console: Console) -> list[dict[str, Any]]:
    """Measure, say and keep; what one evaluator cannot do is said, and the others still run.

    Raises MaskZooError in the end where not a single figure could be had.
    """
    told = remarks_of(subject.dataset, subject.backbone)
    for remark in told:
        console.print(remark, highlight=False, markup=False)
    device = choose_device(wishes.device)
    for module in (subject.backbone, subject.objective):
        if module is not None:
            module.to(device)
    backbone = subject.backbone
    height, width = (cells * pixels for cells, pixels in zip(backbone.grid, backbone.patch_size, strict=True))
    work = Work(waits="this part of the evaluation")
    encoder = WholeImages(
        backbone,
        subject.dataset,
        (height, width),
        pooling=wishes.pooling,
        device=device,
        objective=subject.objective,
        classes=subject.classes,
        statistics=subject.statistics,
        workers=subject.workers if wishes.workers is None else wishes.workers,
        max_broken=subject.max_broken,
        stopping=lambda: work.asked,
    )
    about = {**subject.about, "when": "later", "data": described(subject.dataset)}
    found: list[Measured] = []
    folder = RunFolder(subject.folder)
    stopped: StoppedError | None = None
    with _locked(folder), encoder.remembering(), listening(work):
        folder.evaluation()  # what cannot be read is said before hours are spent
        for evaluator in evaluators:
            try:
                encoder.refuse_if_stopping()
                new, problem = _measured(evaluator, encoder, subject, about)
            except StoppedError:
                before = "; what was measured before is kept" if found else ""
                stopped = StoppedError(f"while {evaluator.name} was measured{before}")
                break
            for sentence in encoder.unlabelled():
                if sentence not in told:
                    console.print(sentence, style="yellow", highlight=False, markup=False)
                    told.append(sentence)
            if broken := encoder.broken():
                sentence = f"{len(broken)} images cannot be read and are left out, e.g. {broken[0]}"
                console.print(f"{evaluator.name}: {sentence}", style="yellow", highlight=False, markup=False)
            if problem:
                console.print(
                    f"{evaluator.name}: not measured: {problem}", style="yellow", highlight=False, markup=False
                )
                continue
            for metric in (metric for one in new for metric in one.metrics if not math.isfinite(metric.value)):
                sentence = f"{evaluator.name}: {metric.name} is {metric.value}, no finite number; it is kept as null"
                console.print(sentence, style="yellow", highlight=False, markup=False)
            new = [attrs.evolve(one, left_out=len(broken)) for one in new]
            found += new
            with folder.writing():
                folder.add_evaluation(new)
    if not found:
        reason = "" if evaluators else ": there is no evaluator to run; name some, e.g. --with knn,linear"
        raise stopped or RecipeError(f"nothing could be measured{reason}")
    pooled = "mean of patch tokens" if wishes.pooling == "mean" else "class token"
    step = [f"step {subject.about['step']}"] if "step" in subject.about else []
    console.print(", ".join([subject.dataset.name, pooled, *step]), highlight=False, markup=False)
    table = Listing(("evaluator", "metric", "value"), {2})
    for one in found:
        for metric in one.metrics:
            table.add(one.told, metric.name, printed(metric.value, metric.unit))
    console.print(table)
    console.print(f"in {subject.folder / 'evaluation.json'}", highlight=False, markup=False)
    if stopped is not None:
        raise stopped
    return [one.plain for one in found]


def _measured(
    evaluator: Any, encoder: WholeImages, subject: Subject, about: Mapping[str, Any]
) -> tuple[list[Measured], str]:
    """What an evaluator has found, or why there is nothing."""
    lacking = _lacking(evaluator, subject)
    if lacking:
        return [], lacking
    try:
        with encoder.reading():
            found = measured(evaluator, encoder, subject.dataset, **about)
    except StoppedError:
        raise
    except Exception as problem:  # whatever a plugin, a device without memory or a dead worker has thrown
        return [], words_of(problem).removeprefix(f"{evaluator.name}: ")
    if not any(one.metrics for one in found):
        return [], "there is nothing for it to measure in this model and these data"
    return found, ""


def _lacking(evaluator: Any, subject: Subject) -> str:
    """What an evaluator needs and does not find here, in a sentence; empty where nothing is lacking."""
    needs: frozenset[str] = getattr(evaluator, "needs", frozenset())
    dataset, objective = subject.dataset, subject.objective
    if len(dataset.test) == 0:
        return f"data '{dataset.name}' have no test images"
    if "labels" in needs and (reason := why_unmeasurable(dataset)):
        return f"it needs labels, and {reason}"
    if "patch_loss" in needs and (objective is None or "patch_loss" not in objective.provides):
        who = "a backbone alone" if objective is None else f"the objective '{objective.name}'"
        return f"it needs something that rebuilds patches, and {who} rebuilds none"
    return ""


# ------------------------------------------------------------------------------------------------------------- keeping
@contextmanager
def _locked(folder: RunFolder) -> Iterator[None]:
    """The lock of a folder, which says what is the matter in words of this command."""
    with ExitStack() as stack:
        try:
            stack.enter_context(folder.locked())
        except RecipeError as problem:
            raise RecipeError(str(problem).removeprefix("--out: ")) from problem
        yield
