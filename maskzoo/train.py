"""How a run trains, whichever masker and curriculum it has: read this file first.

One step is `look` (gather what a strategy may see), the model's step (hide patches; the model learns to rebuild them),
for strategies that learn against or along with the model a step of the strategy's own (hide softly; only the strategy
learns), and then, if all was finite, the teacher follows. `train` yields figures; it never logs, prints or saves.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import islice
from typing import Any

import attrs
import torch
from torch import Tensor, nn

from maskzoo.alarms import BAD_SCORES, spread
from maskzoo.checks import checked_loss, checked_mask, checked_outcome
from maskzoo.engine import Engine, Mover, average_statistics, exchanging, refuse_unused
from maskzoo.mask import Mask
from maskzoo.processes import gather, rank, world
from maskzoo.protocols import Batch, CurriculumSchedule, MaskingContext, MaskingStrategy, Objective, Outcome, Strategy
from maskzoo.seeds import stream_seed
from maskzoo.teacher import Teacher

MODEL_FIGURES = ("loss", "grad_norm")  # where one is not finite, the model has not moved
STRATEGY_FIGURES = ("strategy_grad_norm",)


@attrs.define(eq=False)
class Session:
    """The live objects of a run: what `train` moves, and what a checkpoint saves."""

    recipe: Mapping[str, Any]  # resolved: plain values, every option written out
    engine: Engine
    objective: Objective
    strategy: MaskingStrategy
    teacher: Teacher | None
    mover: Mover
    strategy_mover: Mover | None  # of the learners that have a step of their own
    lr: CurriculumSchedule
    strategy_lr: CurriculumSchedule
    ratio: CurriculumSchedule
    curriculum: CurriculumSchedule
    decay: CurriculumSchedule  # of the teacher's average
    seed: int
    steps: int  # of the whole run
    steps_in_epoch: int
    fingerprint: str = ""  # of the training images, by which a resumed run knows them again
    classes: Sequence[str] | None = None  # of the data, by number; None without labels
    renumbered: bool = False  # whether checkpoints without names of classes may mean other numbers
    least_hidden: int = 0  # patches to hide and to show at the least, where a moving ratio might leave none
    least_shown: int = 0
    accumulate: int = 1  # micro-batches of a step, in this process
    strategy_every: int = 1  # steps from one step of the learners to the next
    remarks: Sequence[str] = ()  # on the weights that it started from
    step: int = 0  # the next one to do
    lr_factor: float = 1.0  # of both rates: less than 1 after a run has gone back from figures that were not finite
    moved: bool = False  # whether the step in hand has moved the model, so that no state is whole before it is done
    stop_asked: bool = False  # whether somebody asked this process for an end after the step in hand
    stopping: bool = False  # whether any process was asked

    @property
    def progress(self) -> float:
        """0.0 at the first step, 1.0 at the last."""
        return self.step / max(1, self.steps - 1)

    @property
    def learners_move(self) -> bool:
        """Whether those that learn by a step of their own take one now."""
        return self.strategy_mover is not None and self.step % self.strategy_every == 0

    @property
    def image_size(self) -> tuple[int, int]:
        """Height and width of the images that the backbone takes."""
        grid, patch = self.objective.backbone.grid, self.objective.backbone.patch_size
        return grid[0] * patch[0], grid[1] * patch[1]

    @property
    def device(self) -> torch.device:
        """Where the steps are computed."""
        return self.engine.device


def train(session: Session, batches: Iterable[Batch]) -> Iterator[dict[str, float]]:
    """Train on the batches, `accumulate` of them a step, from the session's step on; yield the figures of each step.

    Where the loss or gradient of the model's step is not finite, or a score of the mask, nothing moves; where that of a
    strategy's step is not, the strategy does not; the figure `skipped` is then 1. All figures are means over the
    processes. Ends early where any process has `stop_asked`. Seeds torch's global generator anew for each batch.
    Raises ContractError where a plugin has changed a batch in place.
    """
    engine = session.engine
    model_step = engine.root(ModelStep(session.objective, session.strategy))
    learner_steps = {learner: engine.root(LearnerStep(learner)) for learner in alternate_learners(session.strategy)}
    for root in (model_step, *learner_steps.values()):
        root.train()
        root.zero_grad(set_to_none=True)  # whatever somebody left there before
    source = iter(batches)
    while micro_batches := list(islice(source, session.accumulate)):
        contexts = [look(session, batch.to(engine.device), place) for place, batch in enumerate(micro_batches)]
        now = contexts[0]
        figures = Figures()
        lr = session.mover.set_lr(session.lr(now.progress) * session.lr_factor)
        before = Buffers(session.objective)
        try:
            made = move_model(session, model_step, contexts, figures)
        finally:
            if not session.moved:
                before.restore()  # so that what a plugin's bug leaves is the state before this step
        if session.strategy_mover is not None and session.learners_move:
            session.strategy_mover.set_lr(session.strategy_lr(now.progress) * session.lr_factor)
            move_learners(session, learner_steps, contexts, figures)

        # The one moment of a step at which we wait for the device, and for the other processes.
        asked = torch.full((), float(session.stop_asked), device=engine.device)
        bad = bad_scores(contexts)
        known = engine.fetched({**figures.means(), **bad, "stop asked": asked})
        session.stopping = known.pop("stop asked") > 0
        known = {name: value for name, value in known.items() if name not in bad or value}  # seldom there
        if finite(known, MODEL_FIGURES):
            average_statistics(session.objective)  # type: ignore[arg-type]  # a module
            follow(session, now.progress, made)
        else:
            before.restore()  # the statistics of a BatchNorm have seen what was not finite
        moment = {"step": session.step, "epoch": session.step // session.steps_in_epoch, "progress": now.progress}
        dials = {"factor": now.factor, "ratio": now.ratio, "hidden": now.count, "lr": lr}
        skipped = {"skipped": 0.0 if finite(known, MODEL_FIGURES + STRATEGY_FIGURES) else 1.0}
        session.step, session.moved = session.step + 1, False
        yield {**moment, **known, **moment, **dials, **skipped}  # no figure may pass for one of ours
        if session.stopping:
            return


def move_model(
    session: Session, model_step: nn.Module, contexts: Sequence[MaskingContext], figures: Figures
) -> list[tuple[MaskingContext, Mask, Outcome]]:
    """The model's step: hide patches, rebuild, go down; what was made of each micro-batch, without its graph."""
    made, losses = [], []
    for context in contexts:
        seed_draws(context, "model")
        with exchanging(model_step, now=context is contexts[-1]):
            with session.engine.autocast():
                mask, outcome, loss, terms = model_step(context)
            session.mover.backward(loss / len(contexts))
        figures.add(terms)
        losses.append(loss.detach())  # with that of joint learners
        if any(listens(strategy) for strategy, _ in session.strategy.active(context)):
            made.append((context, detached(mask), detached(outcome)))  # kept until it is known that the step was taken
        del mask, outcome, loss  # their memory is wanted by what follows
    refuse_unused(model_step)
    session.moved = True
    figures.add({"grad_norm": session.mover.move(torch.stack(losses).sum() + doubt(contexts))})
    return made


def move_learners(
    session: Session,
    learner_steps: Mapping[MaskingStrategy, nn.Module],
    contexts: Sequence[MaskingContext],
    figures: Figures,
) -> None:
    """The learners' step: the same images, the same noise, the model as it has just become, and left as it is."""
    assert session.strategy_mover is not None
    losses, moved = [], set()
    with unchanged(session.objective):
        for context in contexts:
            seed_draws(context, "strategy")
            for learner, seen in session.strategy.active(context):
                if learner not in learner_steps:
                    continue  # a composite may be on a part that does not learn: nothing is spent on it
                root = learner_steps[learner]
                with exchanging(root, now=context is contexts[-1]):
                    with session.engine.autocast():
                        loss, terms = root(seen)
                    trained = [parameter for parameter in root.parameters() if parameter.requires_grad]
                    session.strategy_mover.backward(loss / len(contexts), inputs=trained)  # none for the model
                figures.add(terms)
                losses.append(loss.detach())
                moved.add(root)
    if losses:
        for root in moved:
            refuse_unused(root)
        # Not finite where the model's step was not: then its masker rests as well.
        sound = torch.stack(losses).sum() + 0 * figures.mean("grad_norm") + doubt(contexts)
        figures.add({"strategy_grad_norm": session.strategy_mover.move(sound)})


@torch.no_grad()
def follow(session: Session, progress: float, made: Sequence[tuple[MaskingContext, Mask, Outcome]]) -> None:
    """What follows a step that was taken: the teacher's average, and the strategies' own averages and tables."""
    if session.teacher is not None:
        session.teacher.follow(session.objective, session.decay(progress))  # type: ignore[arg-type]
    for context, mask, outcome in made:
        for strategy, seen in session.strategy.active(context):
            strategy.after_step(seen, mask, outcome)
            seen.guard.refuse_changed("strategy", strategy)


def look(session: Session, batch: Batch, place: int = 0) -> MaskingContext:
    """What the strategy may see of this batch, at this moment of training; it is number `place` of the step."""
    progress = session.progress
    return MaskingContext(
        images=batch.images,
        labels=batch.labels,
        index=batch.index,
        extras=batch.extras,
        ratio=session.ratio(progress),
        count=0,
        factor=session.curriculum(progress),
        progress=progress,
        student=session.objective,
        teacher=None if session.teacher is None else session.teacher.module,  # type: ignore[arg-type]
        grid=tuple(session.objective.backbone.grid),
        seed=session.seed,
        step=session.step,
        least_hidden=session.least_hidden,
        least_shown=session.least_shown,
        share=place * world() + rank(),
        shares=session.accumulate * world(),
    ).counted_by(session.strategy)


class ModelStep(nn.Module):
    """Hide patches and let the objective make of it what it can; the loss of "joint" learners is added.

    One module, so that whatever wraps it (a distributed engine, a compiler) sees the whole step.
    """

    def __init__(self, objective: Objective, strategy: MaskingStrategy) -> None:
        super().__init__()
        self.objective = objective
        self.joint = nn.ModuleList(  # registered, since the model's optimizer moves them; the others are not
            learner  # type: ignore[misc]  # a strategy that learns is an nn.Module
            for learner in strategy.learners()
            if learner.learning == "joint"
        )
        self.hide: Callable[[MaskingContext], Mask] = partial(chosen, strategy, strategy.mask)
        self.active = strategy.active

    def forward(self, context: MaskingContext) -> tuple[Mask, Outcome, Tensor, dict[str, Tensor]]:
        """The mask, the outcome, the loss [] to go down on, and figures for the log."""
        mask = self.hide(context)
        made = self.objective(context.images, mask, context.labels, context.teacher)
        outcome = checked_outcome(self.objective, made)
        context.guard.refuse_changed("objective", self.objective)
        figures = {"loss": outcome.loss.detach(), **outcome.metrics}
        hidden = gather(mask.hidden.byte())  # [B * world, N]
        if len(hidden) > 1:
            figures["mask/spread"] = spread(hidden)
        loss = outcome.loss
        for strategy, seen in self.active(context):
            if strategy.learning == "joint":
                joint_loss, joint_figures = judged(strategy, seen, mask, outcome)
                loss = loss + joint_loss
                figures |= joint_figures
        return mask, outcome, loss, figures


class LearnerStep(nn.Module):
    """Hide softly, and let one "alternate" learner judge what the model makes of its mask."""

    def __init__(self, learner: MaskingStrategy) -> None:
        super().__init__()
        self.learner: Any = learner  # registered, since it is what this step trains; a strategy that learns is a module

    def forward(self, context: MaskingContext) -> tuple[Tensor, dict[str, Tensor]]:
        """The learner's loss [], and figures for the log."""
        mask = chosen(self.learner, self.learner.soft_mask, context)
        outcome = context.student(context.images, mask, context.labels, context.teacher)
        context.guard.refuse_changed("objective", context.student)
        loss, figures = judged(self.learner, context, mask, outcome)
        chances = mask.weights.detach()  # [B, N], of hiding
        own = f"{self.learner.name}{context.branch}"
        return loss, {**figures, f"{own}/chance": chances.mean(), f"{own}/contrast": chances.std(dim=1).mean()}


def alternate_learners(strategy: MaskingStrategy) -> list[MaskingStrategy]:
    """Those that have a step of their own."""
    return [learner for learner in strategy.learners() if learner.learning == "alternate"]


def chosen(strategy: MaskingStrategy, choose: Callable[[MaskingContext], Mask], context: MaskingContext) -> Mask:
    """The mask that a strategy chooses by its `choose`; that of one with a way of its own is watched as any other.

    Pixels that were not measured, of which `extras["valid"]` tells, weigh nothing from here on.
    """
    mask = checked_mask(strategy, getattr(choose, "__name__", "mask"), choose(context), context)
    context.guard.refuse_changed("strategy", strategy)
    if mask.scores is not None and getattr(choose, "__func__", None) not in (Strategy.mask, Strategy.soft_mask):
        context.guard.count(f"{strategy.name}{context.branch}", mask.scores)
    valid = context.extras.get("valid")
    return mask if valid is None else mask.over(valid, context.grid)


def judged(
    learner: MaskingStrategy, context: MaskingContext, mask: Mask, outcome: Outcome
) -> tuple[Tensor, dict[str, Tensor]]:
    """A learner's loss [], and its terms for the log under the learner's name (and place, in a composite)."""
    outcome = attrs.evolve(outcome, metrics={})  # the objective's own figures are not the learner's
    loss = checked_loss(learner, learner.loss(context, mask, outcome), outcome.metrics)
    context.guard.refuse_changed("strategy", learner)
    terms = {**outcome.metrics, "loss": loss.detach()}
    return loss, {f"{learner.name}{context.branch}/{name}": value for name, value in terms.items()}


def bad_scores(contexts: Sequence[MaskingContext]) -> dict[str, Tensor]:
    """How many scores of each strategy were not finite in a step, of all processes, as figures that are means."""
    figures: dict[str, Tensor] = {}
    for context in contexts:
        for who, count in context.guard.bad_scores.items():
            name = f"{who}{BAD_SCORES}"
            figures[name] = figures.get(name, 0) + count * world()
    return figures


def doubt(contexts: Sequence[MaskingContext]) -> Tensor:
    """What makes a loss of what is not finite: 0 [] where all scores of a step were, else NaN."""
    return torch.stack([context.guard.doubt() for context in contexts]).sum()


class Buffers:
    """The buffers of a module as they are now: each train-mode forward moves the statistics of a BatchNorm."""

    def __init__(self, module: Any) -> None:
        self._buffers = list(module.buffers())
        self._values = [buffer.clone() for buffer in self._buffers]

    @torch.no_grad()
    def restore(self) -> None:
        """Put them back."""
        for buffer, value in zip(self._buffers, self._values, strict=True):
            buffer.copy_(value)


@contextmanager
def unchanged(module: Any) -> Iterator[None]:
    """Put every buffer back afterwards."""
    before = Buffers(module)
    try:
        yield
    finally:
        before.restore()


class Figures:
    """Figures of the log, each the mean over the micro-batches of a step."""

    def __init__(self) -> None:
        self._sums: dict[str, Tensor] = {}
        self._counts: dict[str, int] = {}

    def add(self, figures: Mapping[str, Tensor]) -> None:
        """Add those of one more micro-batch."""
        for name, value in figures.items():
            self._sums[name] = self._sums[name] + value.detach() if name in self._sums else value.detach()
            self._counts[name] = self._counts.get(name, 0) + 1

    def means(self) -> dict[str, Tensor]:
        """The means, in the order in which they came."""
        return {name: self.mean(name) for name in self._sums}

    def mean(self, name: str) -> Tensor:
        """The mean of one of them."""
        return self._sums[name] / self._counts[name]


def listens(strategy: MaskingStrategy) -> bool:
    """Whether it has an `after_step` of its own, for which what was made must be kept."""
    return getattr(strategy.after_step, "__func__", None) is not Strategy.after_step


def finite(figures: Mapping[str, float], names: Sequence[str]) -> bool:
    """Whether those of the figures that are there are finite."""
    return all(math.isfinite(figures.get(name, 0.0)) for name in names)


def detached(made: Any) -> Any:
    """A mask or an outcome without the graphs that its tensors hang on."""

    def free(value: Any) -> Any:
        if isinstance(value, dict):
            return {name: free(item) for name, item in value.items()}
        return value.detach() if isinstance(value, Tensor) else value

    return attrs.evolve(made, **{name: free(value) for name, value in attrs.asdict(made, recurse=False).items()})


def seed_draws(context: MaskingContext, whose: str) -> None:
    """Drop path and dropout draw from the global generator; seeded by step and share, a resumed run draws the same."""
    torch.manual_seed(stream_seed(context.seed, "dropout", context.step, context.share, whose))
