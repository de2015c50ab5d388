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

from maskzoo.errors import ContractError
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
    fingerprint: str = ""  # of the training images, by which a resumed run knows them again
    least: int = 0  # patches to hide and to show at the least: 1 under a moving ratio
    step: int = 0  # the next one to do

    @property
    def progress(self) -> float:
        """0.0 at the first step, 1.0 at the last."""
        return self.step / max(1, self.steps - 1)


def train(session: Session, batches: Iterable[Batch]) -> Iterator[dict[str, float]]:
    """Train on the batches, from the session's step on, and yield the figures of each step.

    Torch's global generator is seeded anew at each step.
    """
    model_step, strategy_step = ModelStep(session.objective, session.strategy), StrategyStep(session.strategy)
    model_step.train()
    strategy_step.train()
    model_step.zero_grad(set_to_none=True)  # whatever somebody left there before
    strategy_step.zero_grad(set_to_none=True)
    trained = [parameter for parameter in strategy_step.parameters() if parameter.requires_grad]
    for batch in batches:
        # Drop path and dropout draw from the global generator; seeded by step, a resumed run draws the same.
        torch.manual_seed(stream_seed(session.seed, "dropout", session.step))
        context = look(session, batch.to(session.device))
        lr = set_lr(session.optimizer, session.lr(context.progress))

        # The model's step.
        mask, outcome, loss, figures = model_step(context)
        if mask.count not in (None, context.count):
            raise ContractError(f"strategy '{session.strategy.name}' hid {mask.count} patches, not {context.count}")
        loss.backward()
        session.optimizer.step()
        session.optimizer.zero_grad(set_to_none=True)
        if session.teacher is not None:
            session.teacher.follow(session.objective, session.decay(context.progress))  # type: ignore[arg-type]
        with torch.no_grad():
            for strategy, seen in session.strategy.active(context):
                strategy.after_step(seen, mask, outcome)
        del mask, outcome, loss  # their memory is wanted by what follows

        # The strategy's step: the same images, the same noise, the model as it has just become.
        if session.strategy_optimizer is not None:
            set_lr(session.strategy_optimizer, session.strategy_lr(context.progress))
            with unchanged(session.objective):
                strategy_loss, strategy_figures = strategy_step(context)
                if strategy_loss is not None:
                    strategy_loss.backward(inputs=trained)  # no gradient for the model
            session.strategy_optimizer.step()
            session.strategy_optimizer.zero_grad(set_to_none=True)
            figures |= strategy_figures

        moment = {"step": session.step, "epoch": session.step // session.steps_in_epoch, "progress": context.progress}
        dials = {"factor": context.factor, "ratio": context.ratio, "hidden": context.count, "lr": lr}
        session.step += 1
        yield {**moment, **fetched(figures), **moment, **dials}  # no figure may pass for one of ours


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

    def forward(self, context: MaskingContext) -> tuple[Mask, Outcome, Tensor, dict[str, Tensor]]:
        """The mask, the outcome, the loss [] to go down on, and figures for the log."""
        mask = self.hide(context)
        outcome = self.objective(context.images, mask, context.labels, context.teacher)
        figures = {"loss": outcome.loss.detach(), **outcome.metrics}
        loss = outcome.loss
        for strategy, seen in self.active(context):
            if strategy.learning == "joint":
                joint_loss, joint_figures = judged(strategy, seen, mask, outcome)
                loss = loss + joint_loss
                figures |= joint_figures
        return mask, outcome, loss, figures


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

    def forward(self, context: MaskingContext) -> tuple[Tensor | None, dict[str, Tensor]]:
        """The sum of the losses [] of the learners that are active now, if any is, and figures for the log.

        They share no parameters, so each gets the gradient of its own loss.
        """
        losses: list[Tensor] = []
        figures: dict[str, Tensor] = {}
        for learner, seen in self.active(context):
            if learner.learning != "alternate":
                continue  # a composite may be on a part that does not learn: nothing is spent on it
            mask = learner.soft_mask(seen)
            outcome = context.student(context.images, mask, context.labels, context.teacher)
            loss, its_figures = judged(learner, seen, mask, outcome)
            losses.append(loss)
            figures |= its_figures
        return (torch.stack(losses).sum() if losses else None), figures


def judged(
    learner: MaskingStrategy, context: MaskingContext, mask: Mask, outcome: Outcome
) -> tuple[Tensor, dict[str, Tensor]]:
    """A learner's loss [], and its terms for the log under the learner's name (and place, in a composite)."""
    outcome = attrs.evolve(outcome, metrics={})  # the objective's own figures are not the learner's
    loss = learner.loss(context, mask, outcome)
    terms = {**outcome.metrics, "loss": loss.detach()}
    return loss, {f"{learner.name}{context.stream}/{name}": value for name, value in terms.items()}


@contextmanager
def unchanged(module: Any) -> Iterator[None]:
    """Put every buffer back afterwards: one train-mode forward moves the statistics of each BatchNorm."""
    before = [buffer.clone() for buffer in module.buffers()]
    try:
        yield
    finally:
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
