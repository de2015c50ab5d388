"""Norms that need more than one value of a channel, and steps that would leave them one.

BatchNorm takes the deviation over the visible places of all images of a micro-batch, of which there may be a single
one: one image, of which one unit is left. torch raises for it, in the middle of a run if the ratio moves.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import attrs
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.instancenorm import _InstanceNorm

from maskzoo.errors import ContractError

TORCH_SAYS = ("Expected more than 1 value per channel", "Expected more than 1 spatial element")


@attrs.frozen
class Lone:
    """A norm that would see a single value of a channel."""

    name: str  # of the module
    kind: str  # its class
    by_image: bool  # whether it looks at each image alone, so that a larger batch would not help

    @property
    def told(self) -> str:
        """What is wrong, without what to do about it."""
        return f"the norm '{self.name}' ({self.kind}) would see a single value of a channel, which has no deviation"


def needs_several(*modules: nn.Module | None, images: int) -> bool:
    """Whether a norm inside could see a single value where a step has so many images."""
    kinds = (_InstanceNorm,) if images > 1 else (_InstanceNorm, _BatchNorm, nn.GroupNorm)
    return any(isinstance(part, kinds) for module in modules if module is not None for part in module.modules())


@contextmanager
def watching(*modules: nn.Module, tried: int, images: int) -> Iterator[list[Lone]]:
    """Note the norms that would see a single value if the `tried` images of a forward pass were `images`.

    Copies of the modules that are made inside are watched as well.
    """
    found: list[Lone] = []
    handles = []
    for module in modules:
        for name, part in module.named_modules():
            if isinstance(part, _BatchNorm | nn.GroupNorm | _InstanceNorm):
                handles.append(part.register_forward_pre_hook(_noting(found, name, images / tried)))
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()


def _noting(found: list[Lone], name: str, share: float) -> Any:
    """A hook that notes a module with too few values; a function, so that copies of a module share the list."""

    def note(module: Any, inputs: tuple[Tensor, ...]) -> None:
        values = inputs[0]
        places = math.prod(values.shape[2:])
        if isinstance(module, _InstanceNorm):
            lone = places < 2 and (module.training or not module.track_running_stats)
        elif isinstance(module, nn.GroupNorm):
            lone = values.shape[0] * share * (values.shape[1] // module.num_groups) * places < 2
        else:
            batch = module.training or module.running_mean is None
            lone = batch and values.shape[0] * share * places < 2
        if lone:
            found.append(Lone(name, type(module).__name__, isinstance(module, _InstanceNorm)))

    return note


def lone_value(problem: BaseException) -> ContractError | None:
    """What torch says of a norm over a single value, as a message; None for everything else."""
    if not isinstance(problem, ValueError) or not str(problem).startswith(TORCH_SAYS):
        return None
    return ContractError(
        f"a norm sees a single value of a channel, which has no deviation ({str(problem).rstrip('.')}); take more "
        "images in a micro-batch (train.batch_size, train.accumulate), or hide less (masking.ratio)"
    )


@contextmanager
def telling_lone_values() -> Iterator[None]:
    """Raise ContractError for what torch says of a norm over a single value."""
    try:
        yield
    except ValueError as problem:
        told = lone_value(problem)
        if told is None:
            raise
        raise told from problem
