"""Warnings that a masker which learns has collapsed, drawn from the figures of its steps.

Shapes: B images, N patches.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterator, Mapping

import attrs
import torch
from torch import Tensor

SPREAD, CHANCE, CONTRAST = "mask/spread", "/chance", "/contrast"  # figures, and the ends of a learner's
BAD_SCORES = "/bad_scores"  # the end of a strategy's: how many of its scores were not finite, in a step where some were
# Over how many steps a figure is averaged: one batch of 8 images says little, and 50 of them end within a minute.
WINDOW = 50
# Until then nothing is judged: the learning rate is still rising, and every masker starts undecided.
WARM_UP_STEPS = 100
WARM_UP_SHARE = 0.1  # of the run
# Masks of two images then differ in a twentieth of the patches in which random ones would: in 4 of 196 at ratio 0.75.
SAME_MASKS, MASKS_DIFFER = 0.05, 0.1
# The mean chance of sound runs of CL-MAE on digits lay up to 0.19 off after the warm-up, since other terms of the loss
# pull at it too; without the term that keeps it, 0.34.
OFF_RATIO, ON_RATIO = 0.3, 0.25
# In the same runs it was 0.19 before training and never lower, and 0.3 to 0.5 after the warm-up.
STUCK_SCORES, SCORES_DIFFER = 0.01, 0.02


def spread(hidden: Tensor) -> Tensor:
    """How much hard masks [B, N] bool differ between images []: 0, all are the same; 1, as different as random ones.

    The variance over images, its bias corrected, in the mean over patches, divided by that of a draw with the share
    that is hidden. It is 1 where masks cannot differ, since nothing or everything is hidden. B must be 2 or more.
    """
    values = hidden.float()
    share = values.mean()
    possible = share * (1 - share)
    return torch.where(possible > 0, values.var(dim=0).mean() / possible.clamp(min=1e-12), 1.0)


def not_finite(figures: Mapping[str, float]) -> str:
    """What was not finite in a step, in words: scores by the strategy that gave them, and then figures by name."""
    bad = {name.removesuffix(BAD_SCORES): n for name, n in figures.items() if name.endswith(BAD_SCORES) and n > 0}
    # What a composite makes of its parts' scores is their fault.
    branches = {who: who.partition("/")[1:] for who in bad}
    told = [
        f"{count:.0f} scores of strategy '{who}' are not finite"
        if count > 1
        else f"a score of strategy '{who}' is not finite"
        for who, count in bad.items()
        if not any("".join(other).startswith("".join(branches[who]) + "/") for other in branches.values())
    ]
    return ", ".join([*told, *(f"{name} is {value}" for name, value in figures.items() if not math.isfinite(value))])


@attrs.frozen
class Watched:
    """One thing that is watched: a figure's mean, or how far it is from the ratio, and what to say of it."""

    figure: str
    bad: float  # from here on it is an alarm,
    sound: float  # and from here on it is over; in between nothing changes
    sentence: str

    def alarming(self, value: float) -> bool:
        """Whether a mean is bad."""
        return value < self.bad if self.bad < self.sound else value > self.bad

    def recovered(self, value: float) -> bool:
        """Whether a mean is sound again."""
        return value > self.sound if self.bad < self.sound else value < self.sound


@attrs.define
class Alarms:
    """Watches the figures of a run whose strategy learns, for maskers that have collapsed.

    Each alarm is raised once, and again only after its figure had recovered. Figures are averaged over 50 steps, and
    judged after the warm-up alone: 100 steps, or a tenth of the run if that is longer.
    """

    steps: int  # of the whole run
    _recent: dict[str, deque[tuple[int, float, float]]] = attrs.field(factory=dict, init=False)  # step, value, ratio
    _raised: set[str] = attrs.field(factory=set, init=False)

    def watch(self, figures: Mapping[str, float]) -> list[str]:
        """One sentence for each alarm that these figures of a step, `step` and `ratio` among them, set off."""
        step, ratio = int(figures["step"]), figures["ratio"]
        sentences = []
        for watched in _watched(figures):
            value = figures[watched.figure]
            if not math.isfinite(value):
                continue  # a step that was skipped
            recent = self._recent.setdefault(watched.figure, deque(maxlen=WINDOW))
            if recent and step <= recent[-1][0]:
                recent.clear()  # the run has gone back to an earlier step
            recent.append((step, value, ratio))
            if len(recent) == WINDOW and step + 1 >= max(WARM_UP_STEPS, WARM_UP_SHARE * self.steps):
                sentences += self._judged(watched, recent)
        return sentences

    def _judged(self, watched: Watched, recent: deque[tuple[int, float, float]]) -> list[str]:
        """The sentence, if the means of recent steps are bad and were not so before."""
        value = sum(value for _, value, _ in recent) / len(recent)
        ratio = sum(ratio for _, _, ratio in recent) / len(recent)
        measure = abs(value - ratio) if watched.figure.endswith(CHANCE) else value
        if watched.recovered(measure):
            self._raised.discard(watched.figure)
        if not watched.alarming(measure) or watched.figure in self._raised:
            return []
        self._raised.add(watched.figure)
        where = f"{watched.figure} is {value:.3f} on average over steps {recent[0][0]} to {recent[-1][0]}"
        return [f"{where}{watched.sentence.format(ratio=f'{ratio:.2f}')}"]


def _watched(figures: Mapping[str, float]) -> Iterator[Watched]:
    """What there is to watch among these figures; a learner is known by having both a chance and a contrast."""
    if SPREAD in figures:
        yield Watched(
            SPREAD,
            SAME_MASKS,
            MASKS_DIFFER,
            " (1: as different as random masks): all images get nearly the same mask, so the masker no longer looks at "
            "them; try more weight on what keeps its masks apart, or a lower learning rate of the masker",
        )
    for figure in figures:
        learner = figure.removesuffix(CHANCE)
        if learner == figure or learner + CONTRAST not in figures:
            continue
        yield Watched(
            figure,
            OFF_RATIO,
            ON_RATIO,
            " where {ratio} of the patches are hidden: the soft masks that it learns by are unlike the hard ones that "
            "the model gets; try more weight on what keeps its chances at the ratio",
        )
        yield Watched(
            learner + CONTRAST,
            STUCK_SCORES,
            SCORES_DIFFER,
            ": its chances are the same for all patches, so the masks are no better than random; try another learning "
            "rate of the masker, or less weight on what keeps its chances at the ratio",
        )
