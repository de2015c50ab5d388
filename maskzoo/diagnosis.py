"""Where in a network numbers stopped being finite: one step done again, with an ear at every module."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from maskzoo.protocols import Batch
from maskzoo.train import ModelStep, Session, look


def first_bad(session: Session, batches: Sequence[Batch]) -> str:
    """The first thing that is not finite in the model's step on these batches, the session's last; nothing is moved.

    In the order in which a step comes by them: weights, images, outputs of modules, the loss, gradients.
    """
    step = ModelStep(session.objective, session.strategy)
    for name, weight in step.named_parameters():
        if not _finite(weight):
            return f"the weights '{name}'"
    session.step -= 1  # the step that has just been done
    try:
        for place, batch in enumerate(batches):
            batch = batch.to(session.device)
            if not _finite(batch.images):
                return f"the images at {batch.index.tolist()[:8]} of the data set"
            bad: list[str] = []
            with _listening(step, bad), session.engine.autocast():
                _, _, loss, _ = step(look(session, batch, place))
            if bad:
                return f"the output of {bad[0]}"
            if not _finite(loss):
                return "the loss, though all outputs are finite"
            if session.engine.sharded:
                continue  # the gradients are nobody's alone
            loss.backward()
            for name, weight in reversed(list(step.named_parameters())):  # about the order of the backward pass
                if weight.grad is not None and not _finite(weight.grad):
                    return f"the gradient of '{name}'"
    finally:
        session.step += 1
        step.zero_grad(set_to_none=True)
    return "nothing of the model's step when it was done again"


@contextmanager
def _listening(module: nn.Module, bad: list[str]) -> Iterator[None]:
    """Note the modules whose output is not finite, in the order in which they end."""

    def listen(name: str) -> Any:
        def hook(module: nn.Module, inputs: Any, output: Any) -> None:
            if isinstance(output, Tensor) and not _finite(output):
                bad.append(f"'{name}' ({type(module).__name__})")

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
