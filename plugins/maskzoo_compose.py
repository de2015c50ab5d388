"""Strategies made of strategies, to any depth: a mixture, a union, a switch on the way."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, ClassVar, cast

import attrs
import torch
from torch import Tensor, nn

from maskzoo import (
    ContractError,
    CurriculumSchedule,
    Mask,
    MaskingContext,
    MaskingStrategy,
    MaskZooError,
    Objective,
    Outcome,
    Part,
    RecipeError,
    Strategy,
    checked_scores,
    define,
    hookimpl,
)


@define
class Composite(Strategy):
    """What all composites share: their needs are the union of their parts', and so are their learners.

    A part may carry a curriculum of its own; the others follow the factor that the composite is given.
    """

    # the maskers to compose, each a name or a table, with a curriculum of its own if wanted
    parts: nn.ModuleList = attrs.field(converter=Part.all_of)

    @property
    def members(self) -> list[Part]:
        """The parts, as what they are."""
        return cast(list[Part], list(self.parts))

    @property
    def needs(self) -> frozenset[Any]:  # type: ignore[override]  # a class variable of most
        """What any of the parts needs."""
        return frozenset().union(*(part.strategy.needs for part in self.members))

    def __attrs_post_init__(self) -> None:
        if not self.parts:
            raise ValueError("parts: a composite needs at least one")
        for position, part in enumerate(self.members):
            if getattr(type(part.strategy), "scores", None) in (None, Strategy.scores):
                raise ValueError(f"parts: [{position}] '{part.strategy.name}' has no scores, so it cannot be combined")
            if getattr(type(part.strategy), "mask", None) is not Strategy.mask:
                raise ValueError(
                    f"parts: [{position}] '{part.strategy.name}' has a mask() of its own, which '{self.name}' would "
                    "pass over, since it combines scores; use it alone, or let its scores() say what it hides"
                )
        learning = {learner.learning for learner in self.learners()}
        following = [part.strategy.default_curriculum for part in self.members if part.curriculum is None]
        # A composite is what its parts make it, so what other classes declare is here said of the instance.
        composite = cast(Any, self)
        # With learners of both kinds each is still trained in its own way; the mask must then carry a gradient.
        composite.learning = "joint" if "joint" in learning else "alternate" if "alternate" in learning else "no"
        # The first part that knows a curriculum, and has none of its own, speaks for the others.
        composite.default_curriculum = next((default for default in following if default is not None), None)
        self.check()

    def check(self) -> None:
        """Refuse options that do not fit the parts, with a ValueError."""

    def refuse_joint(self, reason: str) -> None:
        """Refuse learners whose loss joins the model's, where the mask's scores are not one part's alone."""
        joint = [learner.name for learner in self.learners() if learner.learning == "joint"]
        if joint and len(self.parts) > 1:
            raise ValueError(
                f"parts: '{joint[0]}' learns jointly with the model, by the scores of the mask, but in '{self.name}' "
                f"{reason}; use it alone, or as a part of a switch"
            )

    def setup(self, objective: Objective) -> None:
        """Set up every part."""
        for position, part in enumerate(self.members):
            try:
                part.strategy.setup(objective)
            except (MaskZooError, ValueError) as problem:
                raise RecipeError(str(problem), key=f"parts[{position}]") from problem

    def count(self, ratio: float, patches: int) -> int:
        """The count on which all parts agree. Raises ContractError where their roundings differ."""
        counts = [part.strategy.count(ratio, patches) for part in self.members]
        if len(set(counts)) > 1:
            listed = ", ".join(
                f"parts[{position}] '{part.strategy.name}' {count}"
                for position, (part, count) in enumerate(zip(self.members, counts, strict=True))
            )
            raise ContractError(
                f"the parts of '{self.name}' round differently: at ratio {ratio:g} of {patches} patches they hide "
                f"{listed}; {_agreement(self.members, ratio, patches)}"
            )
        return counts[0]

    def scores(self, context: MaskingContext) -> Tensor:
        """[B, N] float32: the parts' scores, combined."""
        playing = self.playing(context.progress)
        scores = {}
        for position, part in self._seen(context):
            strategy = self.members[position].strategy
            scores[position] = checked_scores(strategy, strategy.scores(part), part)
        return scores[playing[0]] if len(playing) == 1 else self.combine(context, scores)

    def playing(self, progress: float) -> list[int]:
        """The positions of the parts that have a say at this moment."""
        return list(range(len(self.parts)))

    def combine(self, context: MaskingContext, scores: Mapping[int, Tensor]) -> Tensor:
        """One [B, N] out of those of two or more parts, by position."""
        raise NotImplementedError

    def learners(self) -> list[MaskingStrategy]:
        """The learners among all parts."""
        return [learner for part in self.members for learner in part.strategy.learners()]

    def active(self, context: MaskingContext) -> list[tuple[MaskingStrategy, MaskingContext]]:
        """The plain strategies of all parts that have a say now."""
        return [pair for position, part in self._seen(context) for pair in self.members[position].strategy.active(part)]

    def soft_mask(self, context: MaskingContext) -> Mask:
        """None of its own: each learner is trained alone, on the whole batch."""
        raise ContractError(f"'{self.name}' has no soft mask of its own; its learners are in active()")

    def loss(self, context: MaskingContext, mask: Mask, outcome: Outcome) -> Tensor:
        """None of its own: each learner has its own."""
        raise ContractError(f"'{self.name}' has no loss of its own; its learners are in active()")

    def _seen(self, context: MaskingContext) -> Iterable[tuple[int, MaskingContext]]:
        return [
            (position, self.members[position].context(context, position)) for position in self.playing(context.progress)
        ]


@define
class Mix(Composite):
    """Each image draws one of the parts, by weights that may be schedules: a mixture of masks, not of scores."""

    name: ClassVar[str] = "mix"

    # how often each part is drawn, numbers or schedules; None: equally often; they need not sum to one
    weights: list[CurriculumSchedule] | None = None

    def check(self) -> None:
        """As many weights as parts, and no learner that would be given other parts' scores as its own."""
        self.refuse_joint("those of an image may be another part's")
        if self.weights is not None and len(self.weights) != len(self.parts):
            raise ValueError(f"weights: there are {len(self.parts)} parts, but {len(self.weights)} weights")

    def playing(self, progress: float) -> list[int]:
        """The parts of some weight."""
        playing = [position for position, weight in enumerate(self._weights(progress)) if weight > 0]
        if not playing:
            raise ContractError(f"all weights of '{self.name}' are zero at progress {progress:g}")
        return playing

    def combine(self, context: MaskingContext, scores: Mapping[int, Tensor]) -> Tensor:
        """Each image's row from the part it draws."""
        weights = torch.tensor(self._weights(context.progress)).clamp(min=0)[list(scores)]
        edges = (weights.cumsum(0) / weights.sum())[:-1].tolist()  # as numbers, which a GPU need not wait for
        noise = context.noise(1, name="mix")
        drawn = torch.stack([noise >= edge for edge in edges]).sum(dim=0)  # [B, 1]
        stacked = torch.stack(list(scores.values()), dim=1)  # [B, parts, N]
        return stacked.gather(1, drawn[..., None].expand(-1, -1, stacked.shape[2]))[:, 0]

    def _weights(self, progress: float) -> list[float]:
        if self.weights is None:
            return [1.0] * len(self.parts)
        return [weight(progress) for weight in self.weights]


@define
class Union(Composite):
    """Hide what any part would hide, each part's ranking read equally deep, down to where the union has the count.

    The parts share the count between them, so a part under a half-strength curriculum does not keep its half of it.
    """

    name: ClassVar[str] = "union"

    def check(self) -> None:
        """No learners that need a gradient through the ranks."""
        self.refuse_joint("those are ranks, which have no gradient")

    def combine(self, context: MaskingContext, scores: Mapping[int, Tensor]) -> Tensor:
        """For each patch its best rank in any part; scores of different parts have no common scale."""
        ranks = []
        for position, values in scores.items():
            by_noise = context.noise(name=f"union ties {position}").argsort(dim=1)
            order = by_noise.gather(1, values.detach().gather(1, by_noise).argsort(dim=1, stable=True))
            ranks.append(order.argsort(dim=1))  # [B, N], 0 = shown longest
        return torch.stack(ranks).amax(dim=0).float()


@define
class Switch(Composite):
    """One part after the other, changing at the given points of training."""

    name: ClassVar[str] = "switch"

    at: list[float] = attrs.field(factory=list)  # progress of each change, rising, one fewer than parts

    def check(self) -> None:
        """One change between each two parts, in order, inside training."""
        if len(self.at) != len(self.parts) - 1:
            raise ValueError(f"at: {len(self.parts)} parts need {len(self.parts) - 1} changes, got {len(self.at)}")
        if sorted(set(self.at)) != list(self.at) or any(not 0 < point < 1 for point in self.at):
            raise ValueError(f"at: must rise, between 0 and 1, got {list(self.at)}")

    def playing(self, progress: float) -> list[int]:
        """The one part whose turn it is."""
        return [sum(progress >= point for point in self.at)]


def _agreement(parts: list[Part], ratio: float, patches: int) -> str:
    """The nearest ratio that is a whole number of patches for every part, as advice."""
    for distance in range(patches):
        for hidden in (round(ratio * patches) + distance, round(ratio * patches) - distance):
            if not 0 < hidden < patches:
                continue
            for digits in (6, 12):  # the shortest that is a whole number of patches within `rounded_down`'s tolerance
                near = round(hidden / patches, digits)
                if {part.strategy.count(near, patches) for part in parts} == {hidden}:
                    return f"they agree at {near:.12g}"
    return "they agree nowhere"


@hookimpl
def maskzoo_strategies() -> list[type]:
    """The composites."""
    return [Mix, Union, Switch]
