"""What no step may be built on: scores that are not finite, and inputs that were changed in place.

Neither check waits for the device: scores are counted there, and torch counts the changes of a tensor.
Shapes: B images, N patches.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import attrs
import torch
from torch import Tensor

from maskzoo.blame import titled
from maskzoo.errors import ContractError


@attrs.define(eq=False)
class Guard:
    """Watches one batch: its inputs as they came, and the scores that strategies gave for it."""

    _inputs: Mapping[str, Tensor]
    _marks: Mapping[str, Any]
    bad_scores: dict[str, Tensor] = attrs.field(factory=dict, init=False)  # how many [], by who gave them

    @classmethod
    def over(cls, inputs: Mapping[str, Any]) -> Guard:
        """A guard over a batch's inputs, by their names in a context."""
        there = {name: values for name, values in inputs.items() if isinstance(values, Tensor)}
        return cls(there, {name: _mark(values) for name, values in there.items()})

    def count(self, who: str, scores: Tensor) -> None:
        """Count the scores [B, N] that are NaN or infinite; `who` gave them."""
        bad = (~scores.detach().isfinite()).sum()
        self.bad_scores[who] = self.bad_scores[who] + bad if who in self.bad_scores else bad

    def doubt(self) -> Tensor:
        """0 [] where all scores so far were finite, else NaN: added to a loss, it is a loss that is not finite."""
        total = sum(self.bad_scores.values(), start=torch.zeros(()))
        return torch.where(total > 0, math.nan, 0.0)

    def refuse_bad_scores(self) -> None:
        """Raise ContractError where a score was not finite; this waits for the device."""
        for who, bad in self.bad_scores.items():
            if bad:
                raise ContractError(f"{int(bad)} scores of strategy '{who}' are not finite, and so rank nothing")

    def refuse_changed(self, kind: str, culprit: Any) -> None:
        """Raise ContractError where an input is no longer what came in; the culprit is the last that was given it.

        What writes to the memory behind torch's back (`.data`, `.numpy()`) is not noticed.
        """
        name = self.changed()
        if name is not None:
            raise ContractError(
                f"{titled(kind, culprit)} changed context.{name} in place, which all others look at and the model "
                f"learns from; change a copy (context.{name}.clone()), or write x = x - y instead of x -= y"
            )

    def changed(self) -> str | None:
        """The name of the first input that is no longer what came in, if there is one."""
        return next((name for name, values in self._inputs.items() if not _same(values, self._marks[name])), None)


def _mark(values: Tensor) -> Any:
    """What changes when a tensor is written to, also through a view; of one made in inference mode a copy."""
    return values.clone() if values.is_inference() else (values._version, values.data_ptr())


def _same(values: Tensor, mark: Any) -> bool:
    if not isinstance(mark, Tensor):
        return bool(mark == (values._version, values.data_ptr()))
    return bool(((values == mark) | ((values != values) & (mark != mark))).all())  # NaN is the same NaN
