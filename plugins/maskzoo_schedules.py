"""Curricula: numbers that move with the progress of training.

Progress is 0.0 at the first step and 1.0 at the last. `start`, `end` and what lies between are values of whatever
moves: the curriculum factor (+1 partner, 0 neutral, -1 adversary), the ratio, a learning rate, a weight.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from bisect import bisect_right
from itertools import pairwise
from typing import Any, ClassVar, Literal

import attrs

from maskzoo import ContractError, CurriculumSchedule, define, hookimpl, rounded_down

OF_FACTOR = {"default_of": "factor"}  # a default that is the factor's; of a ratio or a rate it has to be given


# ------------------------------------------------------------------------------------------------------------- options
def _finite(schedule: object, field: attrs.Attribute[Any], value: float) -> None:
    if not math.isfinite(value):
        raise ValueError(f"{field.name} is {value}, but it must be a finite number")


def _share(schedule: object, field: attrs.Attribute[Any], value: float) -> None:
    if not 0 <= value < 1:
        raise ValueError(f"{field.name} is {value}, but it is a share of training, from 0 to below 1")


def _partner(schedule: object, field: attrs.Attribute[Any], value: float) -> None:
    _finite(schedule, field, value)
    if value < 0:
        raise ValueError(f"{field.name} is {value}, but a partner's factor is not below 0")


def _adversary(schedule: object, field: attrs.Attribute[Any], value: float) -> None:
    _finite(schedule, field, value)
    if value > 0:
        raise ValueError(f"{field.name} is {value}, but an adversary's factor is not above 0")


MOST_CYCLES = 10**6  # more than a run has steps is a slip


def _at_least_one(schedule: object, field: attrs.Attribute[Any], value: int) -> None:
    if value < 1:
        raise ValueError(f"{field.name} is {value}, but it must be at least 1")
    if value > MOST_CYCLES:
        raise ValueError(f"{field.name} is {value}, but it must be at most {MOST_CYCLES}")


def _increasing(schedule: object, field: attrs.Attribute[Any], value: tuple[float, ...]) -> None:
    bounded = (0.0, *value, 1.0)
    if not value or not all(before < after for before, after in pairwise(bounded)):
        raise ValueError(f"{field.name} is {list(value)}, but it must be increasing numbers between 0 and 1")


def _one_of(*names: str) -> Any:
    def validate(schedule: object, field: attrs.Attribute[Any], value: str) -> None:
        if value not in names:
            raise ValueError(f"{field.name} is '{value}', but it must be {' or '.join(map(repr, names))}")

    return validate


# -------------------------------------------------------------------------------------------------------------- shapes
def _between(start: float, end: float, share: float) -> float:
    """The value at `share` in [0, 1] of the way: exactly `start` at 0 and `end` at 1, and never outside of them."""
    value = (1 - share) * start + share * end
    return min(max(value, min(start, end)), max(start, end))


def _eased(share: float, shape: Literal["linear", "cosine"]) -> float:
    """How far along a curve of that shape is at `share` in [0, 1] of its time."""
    return share if shape == "linear" else (1 - math.cos(math.pi * share)) / 2


def _through_neutral(
    start: float, end: float, share: float, shape: Literal["linear", "cosine"], plateau: float
) -> float:
    """From `start` through 0, where it stays for `plateau` of the time, to `end`."""
    if abs(share - 0.5) <= plateau / 2:
        return 0.0
    # The plateau is cut in where the curve crosses 0, and what moves is pressed into the rest of the time.
    moved = min(2 * min(share, 1 - share) / (1 - plateau), 1.0)  # 1 at the crossing
    height = 1 - moved if shape == "linear" else math.cos(math.pi / 2 * moved)
    return height * (start if share < 0.5 else end)


class Curve(CurriculumSchedule):
    """A curve that runs after a warm-up: a straight climb from 0 to where the curve starts."""

    warmup: float

    @abstractmethod
    def curve(self, share: float) -> float:
        """The value at `share` in [0, 1] of the time that is left after the warm-up."""

    def __call__(self, progress: float) -> float:
        """The value at `progress` in [0, 1]."""
        if progress < self.warmup:
            return self.curve(0.0) * (progress / self.warmup)
        return self.curve((progress - self.warmup) / (1 - self.warmup))


# ----------------------------------------------------------------------------------------------------------- schedules
@define
class Constant(CurriculumSchedule):
    """One value throughout."""

    name: ClassVar[str] = "constant"

    value: float = attrs.field(validator=_finite)  # the value throughout

    def __call__(self, progress: float) -> float:
        """`value`."""
        return self.value


@define
class Partner(CurriculumSchedule):
    """+1 throughout: hide what is easy."""

    name: ClassVar[str] = "partner"

    def __call__(self, progress: float) -> float:
        """1.0."""
        return 1.0


@define
class Neutral(CurriculumSchedule):
    """0 throughout: hide at random."""

    name: ClassVar[str] = "neutral"

    def __call__(self, progress: float) -> float:
        """0.0."""
        return 0.0


@define
class Adversary(CurriculumSchedule):
    """-1 throughout: hide what is hard."""

    name: ClassVar[str] = "adversary"

    def __call__(self, progress: float) -> float:
        """-1.0."""
        return -1.0


@define
class Linear(Curve):
    """A straight line from start to end."""

    name: ClassVar[str] = "linear"

    # value at the first step, after the warm-up
    start: float = attrs.field(default=1.0, validator=_finite, metadata=OF_FACTOR)
    # value at the last step
    end: float = attrs.field(default=-1.0, validator=_finite, metadata=OF_FACTOR)
    # share of training in which the value rises from 0 to its start
    warmup: float = attrs.field(default=0.0, validator=_share)

    def curve(self, share: float) -> float:
        """The value at `share` of the way."""
        return _between(self.start, self.end, share)


@define
class Cosine(Curve):
    """A cosine ramp from start to end: slow at both ends."""

    name: ClassVar[str] = "cosine"

    # value at the first step, after the warm-up
    start: float = attrs.field(default=1.0, validator=_finite, metadata=OF_FACTOR)
    # value at the last step
    end: float = attrs.field(default=-1.0, validator=_finite, metadata=OF_FACTOR)
    # share of training in which the value rises from 0 to its start
    warmup: float = attrs.field(default=0.0, validator=_share)

    def curve(self, share: float) -> float:
        """The value at `share` of the time."""
        return _between(self.start, self.end, _eased(share, "cosine"))


@define
class Step(Curve):
    """A staircase from start to end in equal jumps, one at each of the shares of training in `at`."""

    name: ClassVar[str] = "step"

    # value at the first step, after the warm-up
    start: float = attrs.field(default=1.0, validator=_finite, metadata=OF_FACTOR)
    # value at the last step
    end: float = attrs.field(default=-1.0, validator=_finite, metadata=OF_FACTOR)
    at: tuple[float, ...] = attrs.field(default=(0.5,), validator=_increasing)  # progress of each jump, rising
    # share of training in which the value rises from 0 to its start
    warmup: float = attrs.field(default=0.0, validator=_share)

    def curve(self, share: float) -> float:
        """The level at `share` of the time; a jump is made at its very moment."""
        return _between(self.start, self.end, bisect_right(self.at, share) / len(self.at))


@define
class Cyclic(Curve):
    """The way from start to end several times: falling back at once (sawtooth) or walking back (triangle)."""

    name: ClassVar[str] = "cyclic"

    # value at the first step, after the warm-up
    start: float = attrs.field(default=1.0, validator=_finite, metadata=OF_FACTOR)
    # value at the last step
    end: float = attrs.field(default=-1.0, validator=_finite, metadata=OF_FACTOR)
    cycles: int = attrs.field(default=4, validator=_at_least_one)  # times that it goes from start to end
    # how it gets back: at once, or as it came
    shape: Literal["sawtooth", "triangle"] = attrs.field(default="sawtooth", validator=_one_of("sawtooth", "triangle"))
    # share of training in which the value rises from 0 to its start
    warmup: float = attrs.field(default=0.0, validator=_share)

    def curve(self, share: float) -> float:
        """The value at `share` of the time; the last cycle ends at `end` (sawtooth) or at `start` (triangle)."""
        place = share * self.cycles
        phase = place - min(int(place), self.cycles - 1)  # 1 at the very end, where no other cycle begins
        return _between(self.start, self.end, phase if self.shape == "sawtooth" else 1 - abs(2 * phase - 1))


@define
class PartnerNeutralAdversary(Curve):
    """From partner through neutral, at half-time, to adversary: from easy to hard.

    Linear is a straight line; cosine is half a cosine wave. A plateau is the share of training, in the middle, during
    which the value is exactly 0: it is cut in where the curve crosses 0, so a cosine leaves start and reaches end
    slowly, but meets the plateau at full speed. Where start and end differ in size, each half keeps its own.
    """

    name: ClassVar[str] = "partner-neutral-adversary"

    start: float = attrs.field(default=1.0, validator=_partner)  # value at the first step, after the warm-up
    end: float = attrs.field(default=-1.0, validator=_adversary)  # value at the last step
    # straight lines, or half a cosine wave
    shape: Literal["linear", "cosine"] = attrs.field(default="linear", validator=_one_of("linear", "cosine"))
    plateau: float = attrs.field(default=0.0, validator=_share)  # share of training, in the middle, at 0
    # share of training in which the value rises from 0 to its start
    warmup: float = attrs.field(default=0.0, validator=_share)

    def curve(self, share: float) -> float:
        """The value at `share` of the time."""
        return _through_neutral(self.start, self.end, share, self.shape, self.plateau)


@define
class AdversaryNeutralPartner(Curve):
    """From adversary through neutral, at half-time, to partner: partner-neutral-adversary mirrored, hard to easy."""

    name: ClassVar[str] = "adversary-neutral-partner"

    start: float = attrs.field(default=-1.0, validator=_adversary)  # value at the first step, after the warm-up
    end: float = attrs.field(default=1.0, validator=_partner)  # value at the last step
    # straight lines, or half a cosine wave
    shape: Literal["linear", "cosine"] = attrs.field(default="linear", validator=_one_of("linear", "cosine"))
    plateau: float = attrs.field(default=0.0, validator=_share)  # share of training, in the middle, at 0
    # share of training in which the value rises from 0 to its start
    warmup: float = attrs.field(default=0.0, validator=_share)

    def curve(self, share: float) -> float:
        """The value at `share` of the time."""
        return _through_neutral(self.start, self.end, share, self.shape, self.plateau)


@define
class NeutralAdversary(Curve):
    """From neutral to adversary: from random to hard."""

    name: ClassVar[str] = "neutral-adversary"

    end: float = attrs.field(default=-1.0, validator=_adversary)  # value at the last step
    start: float = attrs.field(default=0.0, validator=_finite)  # value at the first step, after the warm-up
    # a straight line, or half a cosine wave
    shape: Literal["linear", "cosine"] = attrs.field(default="linear", validator=_one_of("linear", "cosine"))
    # share of training in which the value rises from 0 to its start
    warmup: float = attrs.field(default=0.0, validator=_share)

    def curve(self, share: float) -> float:
        """The value at `share` of the time."""
        return _between(self.start, self.end, _eased(share, self.shape))


@define
class ClmaeOfficial(CurriculumSchedule):
    """CL-MAE's published code: from +1 to -1 in a staircase of epochs, which steps over 0 at half-time.

    Epoch e of E has 1 - 2e / E in the first half and 1 - 2(e + 1) / E in the second. Source: arXiv 2308.16572.
    """

    name: ClassVar[str] = "clmae-official"

    def __attrs_post_init__(self) -> None:
        self._epochs, self._steps = 0.0, 0

    def setup(self, epochs: float, steps: int) -> None:
        """Take the number of epochs, the last perhaps not whole, and of steps in all of them."""
        self._epochs, self._steps = epochs, steps

    def __call__(self, progress: float) -> float:
        """The value of the epoch that `progress` in [0, 1] lies in. Raises ContractError before `setup`."""
        if not self._steps:
            raise ContractError(
                "schedule 'clmae-official' moves by epoch: call its setup(epochs, steps) before asking for a value"
            )
        epochs = -rounded_down(-self._epochs)  # rounded up
        epoch = rounded_down(round(progress * (self._steps - 1)) * self._epochs / self._steps)
        return 1 - 2 * epoch / epochs if 2 * epoch < epochs else 1 - 2 * (epoch + 1) / epochs


@hookimpl
def maskzoo_schedules() -> list[type]:
    """All of the curricula above."""
    return [
        Constant,
        Linear,
        Cosine,
        Step,
        Cyclic,
        Partner,
        Neutral,
        Adversary,
        PartnerNeutralAdversary,
        AdversaryNeutralPartner,
        NeutralAdversary,
        ClmaeOfficial,
    ]
