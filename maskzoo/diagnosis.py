"""Where in a network numbers stopped being finite: one step done again, with an ear at every module."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import attrs
import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule

from maskzoo import processes
from maskzoo.guard import Guard
from maskzoo.protocols import Batch, MaskingContext
from maskzoo.train import LearnerStep, ModelStep, Session, alternate_learners, look, seed_draws, unchanged

# In the order of a step; a score may come of an output, or an output of a score.
KINDS = (("the weights",), ("the images",), ("the scores", "the output"), ("the loss",), ("the gradient",))


def first_bad(session: Session, batches: Sequence[Batch]) -> str:
    """The first thing that is not finite in the session's last step, on these batches; nothing is moved.

    In the order in which a step comes by them: weights, images, scores and outputs of modules, the loss, gradients;
    first the model's, then those of learners with a step of their own. Everything is drawn as that step drew it. All
    processes call this, and hear of the same.
    """
    session.step -= 1  # the step that has just been done
    step = ModelStep(session.objective, session.strategy).train()
    learners = alternate_learners(session.strategy)
    bad = [*_bad_weights("", step), *(name for one in learners for name in _bad_weights(f"{one.name}.", one))]
    try:
        contexts = []
        for place, batch in enumerate(batches):
            batch = batch.to(session.device)
            if not _finite(batch.images):
                bad.append(f"the images at {batch.index.tolist()[:8]} of the data set")
            contexts.append(attrs.evolve(look(session, batch, place), guard=_Listener({}, {}, bad)))
        with unchanged(session.objective):
            for context in contexts:
                seed_draws(context, "model")
                with ExitStack() as ears:  # what hides for the model may be a network, which is no part of its step
                    for learner, seen in session.strategy.active(context):
                        if learner in learners:
                            ears.enter_context(_listening(learner, f"{learner.name}{seen.branch}.", bad))  # type: ignore[arg-type]
                    _note_bad(session, "", step, step, context, bad)
            for context in contexts if session.learners_move else []:
                seed_draws(context, "strategy")
                for learner, seen in session.strategy.active(context):
                    if learner in learners:
                        own = LearnerStep(learner).train()
                        _note_bad(session, f"{learner.name}{seen.branch}.", own.learner, own, seen, bad)
    finally:
        session.step += 1
    # Nobody returns before the others, who would wait in whatever the processes do together. What one process made bad
    # reaches all through their gradients, so it is the earliest kind of thing that tells, not the first process.
    where = f" (in process {processes.rank()})" if processes.world() > 1 else ""
    for kinds in KINDS:
        found = next((one for one in bad if one.startswith(kinds)), None)
        heard = processes.first_heard(None if found is None else f"{found}{where}")
        if heard is not None:
            return heard
    return "nothing of that step when it was done again"


def _bad_weights(prefix: str, module: Any) -> list[str]:
    return [f"the weights '{prefix}{name}'" for name, weight in module.named_parameters() if not _finite(weight)]


@attrs.define(eq=False)
class _Listener(Guard):
    """Notes whose scores are not finite when they are given, between the outputs that come before and after."""

    bad: list[str]

    def count(self, who: str, scores: Tensor) -> None:
        """Note them, now."""
        if not _finite(scores):
            self.bad.append(f"the scores of strategy '{who}'")


def _note_bad(
    session: Session, prefix: str, module: nn.Module, step: nn.Module, context: MaskingContext, bad: list[str]
) -> None:
    """What is bad in a step: scores, outputs of the module's parts, the loss, or else the gradients of its weights."""
    with _listening(module, prefix, bad), session.engine.autocast():
        loss, _ = step(context)[-2:]
    if not _finite(loss):
        bad.append(f"the loss{f' of {prefix[:-1]}' if prefix else ''}, though all outputs are finite")
    if session.engine.sharded:  # the gradients are nobody's alone
        for part in session.objective.modules():  # type: ignore[attr-defined]
            if isinstance(part, FSDPModule):
                part.reshard()  # or what was gathered would outlive the weights that are loaded next
        return
    # Also where the loss is bad already: other processes may be waiting for this backward pass.
    trained = {name: weight for name, weight in module.named_parameters() if weight.requires_grad}
    gradients = torch.autograd.grad(loss, list(trained.values()), allow_unused=True)
    for name, gradient in reversed(list(zip(trained, gradients, strict=True))):  # about the order of the backward pass
        if gradient is not None and not _finite(gradient):
            bad.append(f"the gradient of '{prefix}{name}'")


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
