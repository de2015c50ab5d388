"""A step on two images before anything is measured or trained: what a plugin does wrong in one shows at once.

The step is the loop's own, on copies of what is trained, so that nothing of it remains.
"""

from __future__ import annotations

import copy
import random
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import attrs
import numpy
import torch
from torch import Tensor, nn

from maskzoo.blame import at_fault, names_used, owner_of, plugin_error, titled
from maskzoo.checks import checked_active
from maskzoo.engine import Engine
from maskzoo.errors import ContractError, PluginError
from maskzoo.protocols import Batch, MaskingContext
from maskzoo.train import LearnerStep, ModelStep, alternate_learners

PROBED = 2  # images; a loss over pairs of images needs two
ROUNDING = 1e-3  # of half precision
LOOKS = 11  # moments of the run at which it is seen who would take part
ABSENT = {  # what is None where it was not asked for -> the names by which a plugin would have looked at it
    "teacher": {"teacher"},
    "labels": {"labels"},
    "attention": {"inspect", "attention"},
    "patch_loss": {"patch_loss"},
}


def try_out(
    objective: Any, strategy: Any, teacher: Any, engine: Engine, context_at: Callable[[float], MaskingContext]
) -> None:
    """Take a step of each kind that the run will take. Raises PluginError or ContractError for what goes wrong.

    `context_at` gives what the strategy sees at a moment of training, for `objective` and `teacher`. Parameters,
    buffers, other attributes, random states and gradients are afterwards what they were; `after_step` is not called.
    """
    with _undisturbed():
        try:
            players = copy.deepcopy((objective, strategy, teacher))
        except Exception:  # something in it cannot be copied, such as a lock; then what it had is put back
            with _put_back(objective, strategy):
                _step(objective, strategy, teacher, engine, context_at)
        else:
            _step(*players, engine, context_at)


def _step(
    objective: Any, strategy: Any, teacher: Any, engine: Engine, context_at: Callable[[float], MaskingContext]
) -> None:
    reached: set[Any] = set()
    for progress in _moments(strategy, context_at):
        context = attrs.evolve(
            context_at(progress),
            student=objective,
            teacher=None if teacher is None else teacher.module,
        )
        with explaining(strategy, objective, context):
            context = context.counted_by(strategy)
            with engine.autocast():
                loss = ModelStep(objective, strategy).train()(context)[2]
            reached |= _reached([objective, *strategy.learners()], loss)
            for learner, seen in strategy.active(context):
                if learner in alternate_learners(strategy):
                    with engine.autocast():
                        loss, _ = LearnerStep(learner).train()(seen)
                        _check_chances(learner, seen)
                    reached |= _reached([learner], loss)
    refuse_unreached(objective, strategy, reached)


@torch.no_grad()
def _check_chances(learner: Any, context: MaskingContext) -> None:
    """Raise ContractError where an "alternate" learner's soft mask hides by less than nothing, or more than all."""
    visibility = learner.soft_mask(context).visibility
    if visibility is None:
        return
    low, high = (1 - visibility).aminmax()
    if low < -ROUNDING or high > 1 + ROUNDING:
        raise ContractError(
            f"{titled('strategy', learner)} gave scores between {low:.3g} and {high:.3g}; those of a learner with a "
            "step of its own are chances of hiding, in [0, 1], e.g. of a sigmoid"
        )


@contextmanager
def explaining(strategy: Any, objective: Any, context: MaskingContext) -> Iterator[None]:
    """Say whose bug it is that something inside raises, and which need may not have been declared."""
    try:
        yield
    except (Exception, SystemExit) as problem:
        place = at_fault(problem)
        if isinstance(problem, ContractError) and place and place.split(" (")[0] not in str(problem):
            raise ContractError(f"{place}: {problem}") from problem  # what ours refuse, called by a plugin
        bug = plugin_error(problem)
        if bug is None:
            raise
        raise PluginError(f"{bug}{_undeclared(problem, strategy, objective, context)}") from problem


def refuse_unreached(objective: Any, strategy: Any, reached: Iterable[Any]) -> None:
    """Raise ContractError for a learner, or an objective, none of whose parameters took part in any loss."""
    learners = [(learner, "strategy") for learner in strategy.learners()]
    for module, kind in [(objective, "objective"), *learners]:
        if module not in reached and any(one.requires_grad for one in module.parameters()):
            joined = getattr(module, "learning", "") == "joint"
            what = "neither its loss nor the model's depends" if joined else "its loss does not depend"
            raise ContractError(
                f"{kind} '{module.name}' ({owner_of(type(module))}): {what} on any of its parameters, so it would "
                "never learn"
            )


def reached_by_gradient(modules: Iterable[Any]) -> set[Any]:
    """Those of the modules of which a parameter has a gradient."""
    return {module for module in modules if any(one.grad is not None for one in module.parameters())}


def _reached(modules: list[Any], loss: Tensor) -> set[Any]:
    """Those of the modules on a parameter of which the loss depends."""
    trained = {one: module for module in modules for one in module.parameters() if one.requires_grad}
    if not trained:
        return set()
    gradients = torch.autograd.grad(loss, list(trained), allow_unused=True)
    return {module for module, grad in zip(trained.values(), gradients, strict=True) if grad is not None}


def _moments(strategy: Any, context_at: Callable[[float], MaskingContext]) -> list[float]:
    """Moments of training at which other strategies take part, or take patches by rank otherwise."""
    known: dict[Any, float] = {}
    progresses = [number / (LOOKS - 1) for number in range(LOOKS)]
    strongest = max(progresses, key=lambda progress: abs(context_at(progress).factor))
    for progress in (strongest, *progresses):
        context = context_at(progress)
        with explaining(strategy, context.student, context):
            context = context.counted_by(strategy)
            playing = checked_active(strategy, context)
        ranked = tuple((id(one), _by_rank(seen)) for one, seen in playing)
        known.setdefault(ranked, progress)
    return list(known.values())


def _by_rank(context: MaskingContext) -> int:
    """-1, 0 or 1: whether patches are taken by rank, and from which end."""
    taken = abs(context.factor) * context.count >= 1
    return 0 if not taken else 1 if context.factor > 0 else -1


def _undeclared(problem: BaseException, strategy: Any, objective: Any, context: MaskingContext) -> str:
    """A hint at the need that a plugin has not declared, where it met a None."""
    if not isinstance(problem, AttributeError | TypeError) or "NoneType" not in str(problem):
        return ""
    used = names_used(problem)
    declared = strategy.needs | objective.needs
    there = {"teacher": context.teacher is not None, "labels": context.labels is not None}
    for need, names in ABSENT.items():
        if names & used and need not in declared and not there.get(need, False):
            return f"; there is none unless it is asked for: declare needs = frozenset({{'{need}'}})"
    return ""


# ------------------------------------------------------------------------------------------------------ without a trace
@contextmanager
def _undisturbed() -> Iterator[None]:
    """Leave every generator of random numbers as it was."""
    python, other = random.getstate(), numpy.random.get_state()
    devices = list(range(torch.cuda.device_count())) if torch.cuda.is_available() else []
    try:
        with torch.random.fork_rng(devices=devices):
            yield
    finally:
        random.setstate(python)
        numpy.random.set_state(other)


@contextmanager
def _put_back(*modules: nn.Module) -> Iterator[None]:
    """Put back the values, gradients, modes and plain attributes of modules."""
    parts = [part for module in modules for part in module.modules()]
    tensors = [tensor for module in modules for tensor in (*module.parameters(), *module.buffers())]
    values = [tensor.detach().clone() for tensor in tensors]
    kept: list[Mapping[str, Any]] = [dict(vars(part)) for part in parts]
    try:
        yield
    finally:
        for part, before in zip(parts, kept, strict=True):
            vars(part).clear()
            vars(part).update(before)
        with torch.no_grad():
            for tensor, value in zip(tensors, values, strict=True):
                tensor.copy_(value)
                tensor.grad = None


def noise_batch(channels: int, size: tuple[int, ...], count: int, *, labelled: bool) -> Batch:
    """Images of noise [B, C, *size], the same each time, where no real ones can be had."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(count, channels, *size, generator=generator)
    return Batch(images, torch.zeros(count, dtype=torch.int64) if labelled else None, torch.arange(count))
