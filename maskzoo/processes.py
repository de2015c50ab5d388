"""The processes that train together: who is who, and what they tell each other.

`torchrun` starts them; without it there is one process, and nothing here communicates.
Shapes: B images of this process.
"""

from __future__ import annotations

import gc
import os
from collections.abc import Callable
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from maskzoo.errors import MaskZooError, RecipeError

Made = TypeVar("Made")


def join(device: torch.device) -> bool:
    """Join the processes that `torchrun` started along with this one; True if there are several and we had not yet.

    Raises RuntimeError or ValueError where they cannot find each other.
    """
    if dist.is_initialized() or int(os.environ.get("WORLD_SIZE", "1")) < 2:
        return False
    if device.type == "cuda":
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    return True


def leave() -> None:
    """Take leave of the others."""
    if dist.is_initialized():
        gc.collect()  # models in cycles hold the group, whose threads would be ended by the interpreter, with an abort
        dist.destroy_process_group()


def rank() -> int:
    """The number of this process, from 0."""
    return dist.get_rank() if dist.is_initialized() else 0


def world() -> int:
    """How many processes train together."""
    return dist.get_world_size() if dist.is_initialized() else 1


def local_rank() -> int:
    """The number of this process on its machine, which is the number of its GPU."""
    return int(os.environ.get("LOCAL_RANK", "0"))


def first() -> bool:
    """Whether this process is the one that prints and writes."""
    return rank() == 0


def wait() -> None:
    """Wait until all have come here."""
    if world() > 1:
        dist.barrier()


def first_on_machine(make: Callable[[], Made]) -> Made:
    """What `make` gives, made by one process of each machine before the others make theirs.

    Raises in all processes what it raises in one, a MaskZooError as such.
    """
    if world() == 1:
        return make()
    made, problem, ours = None, None, None
    for turn in (local_rank() == 0, local_rank() != 0):
        if turn:
            try:
                made = make()
            except MaskZooError as failure:
                problem, ours = str(failure), failure
        heard = first_heard(problem)
        if heard is not None:
            raise ours or RecipeError(heard)
    return made  # type: ignore[return-value]


def gather(values: Tensor) -> Tensor:
    """`values` [B, ...] of all processes as [B * world, ...], in the order of ranks, with gradient."""
    if world() == 1:
        return values
    gathered: Tensor = _Gather.apply(values)
    return gathered


class _Gather(torch.autograd.Function):
    """What torch.distributed offers for this is renamed with every other release."""

    @staticmethod
    def forward(context: Any, values: Tensor) -> Tensor:
        parts = [torch.empty_like(values, memory_format=torch.contiguous_format) for _ in range(world())]
        dist.all_gather(parts, values.contiguous())
        return torch.cat(parts)

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> Tensor:
        """Each process's loss may depend on our rows, so their gradients are added."""
        gradient = gradient.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(gradient)
        return gradient.tensor_split(world())[rank()]


def total(value: Tensor) -> Tensor:
    """The sum of `value` over all processes, with gradient."""
    if world() == 1:
        return value
    return gather(value.reshape(1)).sum()


def average(values: Tensor) -> Tensor:
    """The mean of `values` over all processes, without gradient; itself for a single process."""
    if world() == 1:
        return values
    values = values.clone()
    dist.all_reduce(values)
    return values / world()


def any_of(asked: bool, device: torch.device) -> bool:
    """Whether it is so in any process; all of them have to call this."""
    if world() == 1:
        return asked
    found = torch.full((), float(asked), device=device)
    dist.all_reduce(found, dist.ReduceOp.MAX)
    return found.item() > 0


def told(words: str | None) -> str | None:
    """What the first process says, to all."""
    if world() == 1:
        return words
    said: list[str | None] = [words]
    dist.broadcast_object_list(said, src=0)
    return said[0]


def first_heard(words: str | None) -> str | None:
    """What the lowest process that has anything to say says, to all; None if nobody has."""
    if world() == 1:
        return words
    said: list[str | None] = [None] * world()
    dist.all_gather_object(said, words)
    return next((one for one in said if one is not None), None)
