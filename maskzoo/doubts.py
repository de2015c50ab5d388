"""What looks like a mistake in a run and may be none: said when it begins, and kept in warnings.txt."""

from __future__ import annotations

from collections.abc import Iterator
from types import FunctionType
from typing import Any

from maskzoo.blame import titled
from maskzoo.build import points
from maskzoo.offers import doubts
from maskzoo.protocols import Part, RankedStrategy, Strategy
from maskzoo.recipe import Recipe, TeacherRecipe, describe, make
from maskzoo.registry import Registry
from maskzoo.train import Session, alternate_learners


def doubts_of(session: Session, recipe: Recipe, registry: Registry) -> list[str]:
    """A sentence for each learner that would never learn, and for each key of the recipe that has no effect."""
    strategy: Any = session.strategy
    plain = [one for one in strategy.modules() if isinstance(one, Strategy) and not _parts_of(one)]
    found = [sentence for one in plain for sentence in _of_strategy(one, session)]
    return list(dict.fromkeys([*found, *_without_effect(session, recipe, registry)]))


def _of_strategy(strategy: Any, session: Session) -> Iterator[str]:
    who = titled("strategy", strategy)
    for sentence in doubts("strategy", type(strategy)):
        yield f"{who}: {sentence}"
    trained = sum(one.numel() for one in strategy.parameters() if one.requires_grad)
    written = _overrides(strategy, "loss")
    if strategy.learning == "no" and (trained or written):
        has = " and ".join([*([f"{trained:,} parameters"] if trained else []), *(["a loss()"] if written else [])])
        yield (
            f"{who} has {has}, and learning = 'no', so it never learns; set learning = 'joint' or 'alternate', or "
            "requires_grad_(False) where that is meant"
        )
    if strategy.learning == "no" or strategy.default_curriculum is not None or not _names(strategy, "factor"):
        return
    if not any(session.curriculum(progress) for progress in points(session.steps)):
        yield (
            f"{who} looks at context.factor, which is 0 at every step, since its default_curriculum is None; set "
            "default_curriculum to take part in a curriculum"
        )


def _without_effect(session: Session, recipe: Recipe, registry: Registry) -> Iterator[str]:
    alternate, learners = alternate_learners(session.strategy), session.strategy.learners()
    if not alternate:
        why = (
            f"'{learners[0].name}' learns in the model's step, by the model's optimizer"
            if learners
            else f"strategy '{session.strategy.name}' learns nothing"
        )
        if recipe.masking.optimizer is not None:
            yield f"recipe.masking.optimizer has no effect: {why}"
        if recipe.masking.strategy_every != 1:
            yield f"recipe.masking.strategy_every has no effect: {why}"
    if session.teacher is None and _teacher_given(session, registry):
        yield "recipe.teacher.decay has no effect: nothing here needs a teacher"


def _teacher_given(session: Session, registry: Registry) -> bool:
    """Whether the decay is another than the default; a resolved recipe has it written out."""
    usual = describe(make(registry, "schedule", TeacherRecipe().decay, "recipe.teacher.decay"))
    return bool(describe(session.decay) != usual)


def _parts_of(strategy: Any) -> bool:
    return any(isinstance(one, Part) for one in strategy.modules())


def _overrides(strategy: Any, method: str) -> bool:
    return getattr(type(strategy), method, None) is not getattr(Strategy, method)


def _names(strategy: Any, word: str) -> bool:
    """Whether the code of a strategy's own methods names an attribute."""
    own = [cls for cls in type(strategy).__mro__ if cls not in (*RankedStrategy.__mro__,)]
    functions = [value for cls in own for value in vars(cls).values() if isinstance(value, FunctionType)]
    return any(word in function.__code__.co_names for function in functions)
