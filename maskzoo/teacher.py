"""A moving average of the model, for strategies and objectives that look through calmer eyes."""

from __future__ import annotations

import copy

import torch
from torch import nn
from torch_ema import ExponentialMovingAverage


class Teacher(nn.Module):
    """A copy of a module whose parameters are a moving average of the module's; always in eval mode, never trained."""

    def __init__(self, student: nn.Module) -> None:
        super().__init__()
        self.module = copy.deepcopy(student).requires_grad_(False).eval()
        # use_num_updates would cap the decay at (1 + n) / (10 + n) and overrule a schedule.
        self._average = ExponentialMovingAverage(self.module.parameters(), decay=1.0, use_num_updates=False)
        self.eval()

    @torch.no_grad()
    def follow(self, student: nn.Module, decay: float) -> None:
        """Move every parameter towards the student's: decay * old + (1 - decay) * new. Buffers are copied."""
        self._average.decay = decay
        # The averages are kept in the copy itself, so that it is always runnable and there is one set of weights.
        # They are looked up anew, since moving a module to a device, or copying it, gives its parameters new storage.
        self._average.shadow_params = [parameter.detach() for parameter in self.module.parameters()]
        self._average.update(student.parameters())
        for mine, theirs in zip(self.module.buffers(), student.buffers(), strict=True):
            mine.copy_(theirs)

    def train(self, mode: bool = True) -> Teacher:
        """Stay in eval mode, whatever is asked."""
        return super().train(False)
