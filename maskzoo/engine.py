"""Where and how a step is computed: device, precision, processes, memory. The loop reads the same for all."""

from __future__ import annotations

import ctypes
import functools
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, Literal

import attrs
import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule, fully_shard, register_fsdp_forward_method
from torch.nn.parallel import DistributedDataParallel
from torch.utils.checkpoint import checkpoint

from maskzoo import processes
from maskzoo.errors import ContractError, RecipeError

Precision = Literal["fp32", "bf16", "fp16"]
DTYPES: dict[Precision, torch.dtype] = {"bf16": torch.bfloat16, "fp16": torch.float16}
M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_MAX = -1, -2, -4  # of glibc's malloc.h
BACKBONE_METHODS = ("tokens", "inspect", "attention", "stages")  # what others call besides the backbone itself


@attrs.frozen
class Engine:
    """The device, the precision, and how several processes share the work."""

    device: torch.device
    precision: Precision = "fp32"
    sharded: bool = False  # FSDP2: the model's weights are spread over the processes; else each has them all (DDP)

    def autocast(self) -> AbstractContextManager[Any]:
        """Matrix products in the precision inside; what must be float32 says so itself.

        Without torch's cache of cast weights: each weight is cast once a forward pass anyway, and a cast that a
        strategy made without gradient must not serve the model's step.
        """
        if self.precision == "fp32":
            return nullcontext()
        return torch.autocast(self.device.type, DTYPES[self.precision], cache_enabled=False)

    def root(self, step: nn.Module) -> nn.Module:
        """The step as the module to call: its gradients become the mean over all processes."""
        if processes.world() == 1 or any(isinstance(module, FSDPModule) for module in step.modules()):
            return step
        return DistributedDataParallel(step, gradient_as_bucket_view=True)

    def shard(self, objective: Any) -> None:
        """Spread an objective's weights over the processes, block by block (FSDP2)."""
        for block in blocks_of(objective):
            fully_shard(block)
        fully_shard(objective.backbone)
        for method in BACKBONE_METHODS:  # FSDP gathers the weights for these calls too
            register_fsdp_forward_method(objective.backbone, method)
        fully_shard(objective)
        # Whoever is called first becomes the root, and a strategy may ask the backbone before the objective is asked.
        objective.begin = lambda: None
        for method in ("begin", "predict"):
            register_fsdp_forward_method(objective, method)
        objective.begin()
        objective.reshard()  # else the optimizer would be given what was gathered for that call

    def fetched(self, figures: Mapping[str, Tensor]) -> dict[str, float]:
        """Scalars from the device as numbers, in one transfer: the mean over all processes."""
        lists = [name for name, value in figures.items() if value.numel() != 1]
        if lists:
            raise ContractError(f"figures are single numbers, but '{lists[0]}' is {list(figures[lists[0]].shape)}")
        values = torch.stack([value.detach().to(self.device, torch.float32).reshape(()) for value in figures.values()])
        return dict(zip(figures, processes.average(values).tolist(), strict=True))


@contextmanager
def exchanging(root: nn.Module, now: bool) -> Iterator[None]:
    """Exchange gradients between the processes after the backward pass inside, or leave them for a later one to add."""
    if isinstance(root, DistributedDataParallel):
        with nullcontext() if now else root.no_sync():
            yield
        return
    if processes.world() == 1:  # nothing is sharded, so there is nothing to look for at every step
        yield
        return
    for module in root.modules():
        if isinstance(module, FSDPModule):
            module.set_requires_gradient_sync(now, recurse=False)
    yield


@attrs.define(eq=False)
class Mover:
    """Moves parameters down their gradient: clipped, and not at all where the gradient is not finite.

    With fp16 the loss is scaled up, so that small gradients do not vanish, and the scale follows what overflows.
    """

    optimizer: torch.optim.Optimizer
    clip: float | None = None  # the largest norm of the whole gradient
    scaler: torch.amp.GradScaler | None = None

    @property
    def parameters(self) -> list[Tensor]:
        """All that it moves."""
        return [parameter for group in self.optimizer.param_groups for parameter in group["params"]]

    def backward(self, loss: Tensor, inputs: Sequence[Tensor] | None = None) -> None:
        """Add the gradient of the loss [] to that of the parameters, or of some of them alone."""
        if self.scaler is not None:
            loss = self.scaler.scale(loss)
        torch.autograd.backward(loss, inputs=inputs)

    @torch.no_grad()
    def move(self, loss: Tensor | None = None) -> Tensor:
        """Move, forget the gradient, and return its norm [] before clipping.

        Nothing moves, and the norm is NaN, where it or the loss [] that it is the gradient of is not finite.
        """
        moved = [parameter for parameter in self.parameters if parameter.grad is not None]
        gradients = [parameter.grad for parameter in moved if parameter.grad is not None]
        if self.scaler is not None:
            self.scaler.unscale_(self.optimizer)
        norm = _whole(torch.nn.utils.get_total_norm(gradients))
        if self.clip is not None:
            torch.nn.utils.clip_grads_with_norm_(moved, self.clip, norm)
        # A gradient is the same in all processes, a loss is not, and all must do the same.
        sound = norm if loss is None else norm + processes.average(loss)
        if self.scaler is not None:
            if loss is None or bool(sound.isfinite() | ~norm.isfinite()):  # the norm is the scaler's own business
                self.scaler.step(self.optimizer)
            self.scaler.update()
        elif getattr(self.optimizer, "_step_supports_amp_scaling", False):
            # A fused optimizer looks by itself: nobody waits for the device.
            self.optimizer.found_inf = (~sound.isfinite()).float()  # type: ignore[attr-defined]
            self.optimizer.step()
        elif bool(sound.isfinite()):
            self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return torch.where(sound.isfinite(), norm, math.nan)

    def set_lr(self, lr: float) -> float:
        """Set the learning rate of every group; `lr_scale` is where timm keeps a layer's decay."""
        for group in self.optimizer.param_groups:
            group["lr"] = lr * group.get("lr_scale", 1.0)
        return lr

    def state_dict(self) -> dict[str, Any]:
        """The optimizer's state, and the scale's where there is one."""
        state: dict[str, Any] = self.optimizer.state_dict()
        return state if self.scaler is None else {**state, "scaler": self.scaler.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """The inverse of `state_dict`."""
        self.optimizer.load_state_dict({name: value for name, value in state.items() if name != "scaler"})
        if self.scaler is not None and "scaler" in state:
            self.scaler.load_state_dict(state["scaler"])


def _whole(norm: Tensor) -> Tensor:
    """The norm over all processes of gradients that are spread over them."""
    return norm.full_tensor() if hasattr(norm, "full_tensor") else norm


@torch.no_grad()
def average_statistics(module: nn.Module) -> None:
    """Give all processes the mean of the running averages of each BatchNorm, which has seen its own images alone."""
    if processes.world() == 1:
        return
    norms = [part for part in module.modules() if isinstance(part, nn.modules.batchnorm._BatchNorm)]
    kept = [values for norm in norms for values in (norm.running_mean, norm.running_var) if values is not None]
    if kept:
        together = processes.average(torch.cat(kept))  # one exchange for all
        for values, mean in zip(kept, torch.split(together, [len(values) for values in kept]), strict=True):
            values.copy_(mean)


def blocks_of(module: nn.Module) -> list[nn.Module]:
    """A network's blocks: the items of each list or sequence whose items share one class, the innermost only.

    They are what is compiled, recomputed and sharded one by one. A list of a single block counts too.
    """
    found: list[nn.Module] = []
    for row in module.modules():
        items = list(row.children())
        if not isinstance(row, nn.ModuleList | nn.Sequential) or len({type(item) for item in items}) != 1:
            continue
        if all(any(True for _ in item.parameters()) and any(True for _ in item.children()) for item in items):
            found += items
    return [block for block in found if not any(other is not block and other in found for other in block.modules())]


def recompute(module: nn.Module) -> None:
    """Keep no activations inside the blocks: they are computed again in the backward pass."""
    for block in blocks_of(module):
        block.forward = functools.partial(checkpoint, block.forward, use_reentrant=False)


def compile_blocks(module: nn.Module) -> None:
    """Compile each block in place, so that names in a checkpoint stay as they are."""
    for block in blocks_of(module):
        block.compile()


def keep_memory() -> None:
    """Ask glibc to keep the memory of one step for the next, where we compute on a CPU.

    It hands large blocks back to the system at once, and every page of them is then cleared anew: a tenth to a sixth of
    a step. Elsewhere this does nothing.
    """
    try:
        set_option = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):  # another C library
        return
    for option, value in ((M_MMAP_MAX, 0), (M_TRIM_THRESHOLD, -1), (M_TOP_PAD, 2**26)):
        set_option(option, value)


def choose_device(name: str) -> torch.device:
    """The device of that name, or the best there is for "auto"; among several processes each takes its own GPU."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        device = torch.device(name)
        if device.type == "cuda" and device.index is None:
            device = torch.device("cuda", processes.local_rank())
        torch.ones(1, device=device).item()
    except Exception as problem:  # each kind of device that torch knows of, and is not here, fails in a way of its own
        reason = (str(problem).splitlines() or [type(problem).__name__])[0]
        raise RecipeError(f"recipe.train.device: '{name}' cannot be used here: {reason}") from None
    return device


def choose_precision(name: Precision | Literal["auto"], device: torch.device) -> Precision:
    """The precision of that name; "auto" is bf16 where the processor or GPU computes in it, else fp32."""
    if name != "auto":
        return name
    return "bf16" if _has_bf16(device) else "fp32"


def _has_bf16(device: torch.device) -> bool:
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    if device.type == "cpu":
        features: Mapping[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()  # older torch cannot tell
        return bool(features.get("amx_bf16") or features.get("avx512_bf16"))
    return False


def refuse_unused(root: nn.Module) -> None:
    """Raise ContractError if a parameter got no gradient: other processes would wait for it for ever."""
    if not isinstance(root, DistributedDataParallel):
        return
    idle = [name for name, value in root.named_parameters() if value.requires_grad and value.grad is None]
    if idle:
        raise ContractError(
            f"{len(idle)} parameters took no part in the loss, e.g. '{idle[0].removeprefix('module.')}'; several "
            "processes cannot agree on a gradient that one of them lacks: leave the parameter out, or freeze it with "
            "requires_grad_(False)"
        )
