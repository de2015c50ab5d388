"""What a plugin's methods have returned, checked where the loop takes it.

Shapes: B images, N patches.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from maskzoo.blame import owner_of
from maskzoo.errors import ContractError
from maskzoo.mask import Mask
from maskzoo.protocols import MaskingContext, Outcome


def checked_mask(strategy: Any, method: str, mask: object, context: MaskingContext) -> Mask:
    """The mask that a strategy's method has returned. Raises ContractError where it is none for these images."""
    where = f"strategy '{strategy.name}' ({_owner(strategy, method)})"
    if not isinstance(mask, Mask):
        raise ContractError(f"{where} returned {kind_of(mask)} from {method}(); a maskzoo.Mask is needed")
    expected, device = [context.images.shape[0], context.patches], context.images.device
    if list(mask.hidden.shape) != expected or mask.hidden.device != device:
        raise ContractError(
            f"{where} returned a mask {list(mask.hidden.shape)} on {mask.hidden.device} from {method}(); these images "
            f"have {expected} patches on {device}"
        )
    if mask.count not in (None, context.count):
        raise ContractError(
            f"strategy '{strategy.name}' hid {mask.count} patches, not {context.count} ({_owner(strategy, method)})"
        )
    return mask


def checked_active(strategy: Any, context: MaskingContext) -> list[tuple[Any, MaskingContext]]:
    """The strategies in play, each with its context. Raises ContractError where active() returned anything else."""
    playing: Any = strategy.active(context)
    pairs = isinstance(playing, list | tuple) and all(isinstance(one, tuple) and len(one) == 2 for one in playing)
    if not pairs or not all(isinstance(seen, MaskingContext) for _, seen in playing):
        raise ContractError(
            f"strategy '{strategy.name}' ({_owner(strategy, 'active')}) returned {kind_of(playing)} from active(); a "
            "list of (strategy, context) is needed"
        )
    return list(playing)


def checked_outcome(objective: Any, outcome: object) -> Outcome:
    """What an objective has returned. Raises ContractError where that is no outcome with a loss [] and its graph."""
    where = f"objective '{objective.name}' ({_owner(objective, 'forward')})"
    if not isinstance(outcome, Outcome):
        raise ContractError(f"{where} returned {kind_of(outcome)}; a maskzoo.Outcome is needed")
    _check_loss(where, "an outcome whose loss is", outcome.loss, graph=True)
    _check_metrics(where, outcome.metrics)
    return outcome


def checked_loss(learner: Any, loss: object, metrics: Mapping[str, object]) -> Tensor:
    """The loss [] of a learner. Raises ContractError where it is none, or an "alternate" learner's has no graph."""
    where = f"strategy '{learner.name}' ({_owner(learner, 'loss')})"
    checked = _check_loss(where, "as its loss", loss, graph=learner.learning == "alternate")
    _check_metrics(where, metrics)
    return checked


def kind_of(value: object) -> str:
    """A value in words, for messages."""
    if value is None:
        return "nothing (None)"
    if isinstance(value, Tensor):
        return f"a tensor {value.dtype} {list(value.shape)}"
    return f"a {type(value).__name__}"


def _check_loss(where: str, what: str, loss: object, *, graph: bool) -> Tensor:
    if not isinstance(loss, Tensor) or loss.numel() != 1 or not loss.is_floating_point():
        hint = ", e.g. its mean" if isinstance(loss, Tensor) and loss.numel() > 1 else ""
        raise ContractError(f"{where} returned {what} {kind_of(loss)}; a floating-point tensor [] is needed{hint}")
    if graph and torch.is_grad_enabled() and not loss.requires_grad:
        raise ContractError(
            f"{where} returned {what} a tensor without a graph, so nothing learns from it; is it detached, made under "
            "no_grad, or of something that no parameter takes part in?"
        )
    return loss


def _check_metrics(where: str, metrics: Mapping[str, object]) -> None:
    for name, value in metrics.items():
        if not isinstance(value, Tensor) or value.numel() != 1:
            raise ContractError(f"{where} put {kind_of(value)} into outcome.metrics['{name}']; a tensor [] is needed")


def _owner(made: Any, method: str) -> str:
    """Where the method is written, or else the class."""
    function = getattr(type(made), method, None)
    own = function is not None and getattr(function, "__module__", "").split(".")[0] not in ("maskzoo", "torch")
    return owner_of(function if own and hasattr(function, "__code__") else type(made))
