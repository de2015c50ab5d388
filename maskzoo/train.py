"""How a run trains, whichever masker and curriculum it has: read this file first.

One batch is `look` (gather what a strategy may see), the model's step (hide patches; the model learns to rebuild them;
the teacher follows), and, for strategies that learn against or along with the model, a step of the strategy's own
(hide softly; only the strategy learns). `train` yields figures; it never logs, prints or saves.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import attrs
import torch
from torch import Tensor, nn

from maskzoo.mask import Mask
from maskzoo.protocols import Batch, CurriculumSchedule, MaskingContext, MaskingStrategy, Objective, Outcome
from maskzoo.seeds import stream_seed
from maskzoo.teacher import Teacher


@attrs.define(eq=False)
class Session:
    """The live objects of a run: what `train` moves, and what a checkpoint saves."""

    recipe: Mapping[str, Any]  # resolved: plain values, every option written out
    objective: Objective
    strategy: MaskingStrategy
    teacher: Teacher | None
    optimizer: torch.optim.Optimizer
    strategy_optimizer: torch.optim.Optimizer | None  # of the learners that have a step of their own
    lr: CurriculumSchedule
    strategy_lr: CurriculumSchedule
    ratio: CurriculumSchedule
    curriculum: CurriculumSchedule
    decay: CurriculumSchedule  # of the teacher's average
    seed: int
    steps: int  # of the whole run
    steps_in_epoch: int
    device: torch.device
    least: int = 0  # patches to hide and to show at the least: 1 under a moving ratio
    step: int = 0  # the next one to do

    @property
    def progress(self) -> float:
        """0.0 at the first step, 1.0 at the last."""
        return self.step / max(1, self.steps - 1)


def train(session: Session, batches: Iterable[Batch]) -> Iterator[dict[str, float]]:
    """Train on the batches, from the session's step on, and yield the figures of each step."""
    model_step, strategy_step = ModelStep(session.objective, session.strategy), StrategyStep(session.strategy)
    model_step.train()
    strategy_step.train()
    for batch in batches:
        # Drop path and dropout draw from the global generator; seeded by step, a resumed run draws the same.
        torch.manual_seed(stream_seed(session.seed, "dropout", session.step))
        context = look(session, batch.to(session.device))
        lr = set_lr(session.optimizer, session.lr(context.progress))
        figures: dict[str, Tensor] = {}

        # The model's step.
        mask, outcome, loss = model_step(context)
        session.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        session.optimizer.step()
        if session.teacher is not None:
            session.teacher.follow(session.objective, session.decay(context.progress))  # type: ignore[arg-type]
        with torch.no_grad():
            for strategy, seen in session.strategy.active(context):
                strategy.after_step(seen, mask, outcome)
        figures |= {"loss": outcome.loss, **outcome.metrics}

        # The strategy's step: the same images, the same noise, the model as it has just become.
        if session.strategy_optimizer is not None:
            set_lr(session.strategy_optimizer, session.strategy_lr(context.progress))
            session.strategy_optimizer.zero_grad(set_to_none=True)
            with unchanged(session.objective):
                losses, metrics = strategy_step(context)
                for learner, learner_loss in losses:
                    learner_loss.backward(inputs=list(learner.parameters()))  # no gradient for the model
            session.strategy_optimizer.step()
            figures |= metrics

        moment = {"step": session.step, "epoch": session.step // session.steps_in_epoch, "progress": context.progress}
        dials = {"factor": context.factor, "ratio": context.ratio, "hidden": context.count, "lr": lr}
        session.step += 1
        yield {**moment, **fetched(figures), **dials}


def look(session: Session, batch: Batch) -> MaskingContext:
    """What the strategy may see of this batch, at this moment of training."""
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
        least=session.least,
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
        self.hide, self.active = strategy.mask, strategy.active

    def forward(self, context: MaskingContext) -> tuple[Mask, Outcome, Tensor]:
        """The mask, the outcome, and the loss [] to go down on."""
        mask = self.hide(context)
        outcome = self.objective(context.images, mask, context.labels, context.teacher)
        loss = outcome.loss
        for strategy, seen in self.active(context):
            if strategy.learning == "joint":
                loss = loss + strategy.loss(seen, mask, outcome)
        return mask, outcome, loss


class StrategyStep(nn.Module):
    """Hide softly, and let each "alternate" learner judge what the model makes of its mask alone."""

    def __init__(self, strategy: MaskingStrategy) -> None:
        super().__init__()
        self.learners = nn.ModuleList(  # registered, since they are what this step trains
            learner  # type: ignore[misc]  # a strategy that learns is an nn.Module
            for learner in strategy.learners()
            if learner.learning == "alternate"
        )
        self.active = strategy.active

    def forward(self, context: MaskingContext) -> tuple[list[tuple[MaskingStrategy, Tensor]], dict[str, Tensor]]:
        """A loss [] for each learner that is active now, and figures for the log."""
        losses: list[tuple[MaskingStrategy, Tensor]] = []
        figures: dict[str, Tensor] = {}
        for learner, seen in self.active(context):
            if learner.learning != "alternate":
                continue  # a composite may be on a part that does not learn: nothing is spent on it
            mask = learner.soft_mask(seen)
            outcome = context.student(context.images, mask, context.labels, context.teacher)
            losses.append((learner, learner.loss(seen, mask, outcome)))
            who = f"{learner.name}{seen.stream}"  # a composite may hold two of a name
            figures |= {f"{who}/{name}": value for name, value in outcome.metrics.items()}
            figures[f"{who}/loss"] = losses[-1][1]
        return losses, figures


@contextmanager
def unchanged(module: Any) -> Iterator[None]:
    """Put every buffer back afterwards: one train-mode forward moves the statistics of each BatchNorm."""
    before = [buffer.clone() for buffer in module.buffers()]
    yield
    with torch.no_grad():
        for buffer, saved in zip(module.buffers(), before, strict=True):
            buffer.copy_(saved)


def set_lr(optimizer: torch.optim.Optimizer, lr: float) -> float:
    """Set the learning rate of every group; `lr_scale` is where timm keeps a layer's decay."""
    for group in optimizer.param_groups:
        group["lr"] = lr * group.get("lr_scale", 1.0)
    return lr


def fetched(figures: Mapping[str, Tensor]) -> dict[str, float]:
    """Scalars from the device as numbers, in one transfer."""
    if not figures:
        return {}
    values = torch.stack([value.detach().float().reshape(()) for value in figures.values()]).tolist()
    return dict(zip(figures, values, strict=True))
