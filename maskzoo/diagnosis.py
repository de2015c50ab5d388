"""Where in a network numbers stopped being finite: one step done again, with an ear at every module."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule

from maskzoo import processes
from maskzoo.protocols import Batch, MaskingContext
from maskzoo.train import LearnerStep, ModelStep, Session, alternate_learners, look

KINDS = ("the weights", "the images", "the output", "the loss", "the gradient")  # in the order of a step


def first_bad(session: Session, batches: Sequence[Batch]) -> str:
    """The first thing that is not finite in the session's last step, on these batches; nothing is moved.

    In the order in which a step comes by them: weights, images, outputs of modules, the loss, gradients; first the
    model's, then those of learners with a step of their own. All processes call this, and hear of the same.
    """
    session.step -= 1  # the step that has just been done
    step = ModelStep(session.objective, session.strategy)
    learners = alternate_learners(session.strategy)
    bad = [*_bad_weights("", step), *(name for one in learners for name in _bad_weights(f"{one.name}.", one))]
    try:
        for place, batch in enumerate(batches):
            batch = batch.to(session.device)
            if not _finite(batch.images):
                bad.append(f"the images at {batch.index.tolist()[:8]} of the data set")
            context = look(session, batch, place)
            bad += _bad_of(session, "", step, step, context)
            for learner, seen in session.strategy.active(context):
                if learner in learners:
                    own = LearnerStep(learner)
                    name = f"{learner.name}{seen.branch}."
                    bad += _bad_of(session, name, own.learner, own, seen)
    finally:
        session.step += 1
    # Nobody returns before the others, who would wait in whatever the processes do together. What one process made bad
    # reaches all through their gradients, so it is the earliest kind of thing that tells, not the first process.
    where = f" (in process {processes.rank()})" if processes.world() > 1 else ""
    for kind in KINDS:
        found = next((one for one in bad if one.startswith(kind)), None)
        heard = processes.first_heard(None if found is None else f"{found}{where}")
        if heard is not None:
            return heard
    return "nothing of that step when it was done again"


def _bad_weights(prefix: str, module: Any) -> list[str]:
    return [f"the weights '{prefix}{name}'" for name, weight in module.named_parameters() if not _finite(weight)]


def _bad_of(session: Session, prefix: str, module: nn.Module, step: nn.Module, context: MaskingContext) -> list[str]:
    """What is bad in a step: outputs of the module's parts, the loss, or else the gradients of the module's weights."""
    bad: list[str] = []
    with _listening(module, prefix, bad), session.engine.autocast():
        loss, _ = step(context)[-2:]
    if not _finite(loss):
        bad.append(f"the loss{f' of {prefix[:-1]}' if prefix else ''}, though all outputs are finite")
    if session.engine.sharded:  # the gradients are nobody's alone
        for part in session.objective.modules():  # type: ignore[attr-defined]
            if isinstance(part, FSDPModule):
                part.reshard()  # or what was gathered would outlive the weights that are loaded next
        return bad
    # Also where the loss is bad already: other processes may be waiting for this backward pass.
    trained = {name: weight for name, weight in module.named_parameters() if weight.requires_grad}
    gradients = torch.autograd.grad(loss, list(trained.values()), allow_unused=True)
    for name, gradient in reversed(list(zip(trained, gradients, strict=True))):  # about the order of the backward pass
        if gradient is not None and not _finite(gradient):
            bad.append(f"the gradient of '{prefix}{name}'")
    return bad


@contextmanager
def _listening(module: nn.Module, prefix: str, bad: list[str]) -> Iterator[None]:
    """Note the modules whose output is not finite, in the order in which they end."""

    def listen(name: str) -> Any:
        def hook(module: nn.Module, inputs: Any, output: Any) -> None:
            outputs = output if isinstance(output, tuple | list) else [output]
            if any(isinstance(value, Tensor) and not _finite(value) for value in outputs):
                bad.append(f"the output of '{prefix}{name}' ({type(module).__name__})")

        return hook

    handles = [part.register_forward_hook(listen(name)) for name, part in module.named_modules() if name]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _finite(values: Tensor) -> bool:
    values = values.to_local() if hasattr(values, "to_local") else values
    return not values.is_floating_point() or bool(torch.isfinite(values.detach()).all())
