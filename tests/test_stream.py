"""A loop of one's own around `MaskingContext`: every batch has its own draws, and a step can be repeated."""

from __future__ import annotations

import pytest
import torch
from helpers import random_images, strategy_of, tiny_objective

from maskzoo import ContractError, MaskingContext, Registry

OBJECTIVE = tiny_objective()
IMAGES = random_images()


@pytest.mark.parametrize("name", ["random", "block", "attmask", "pooled-query"])
def test_two_batches_of_a_loop_get_different_masks(name: str):
    masker = strategy_of(name, OBJECTIVE)
    contexts = MaskingContext.stream(OBJECTIVE, seed=3)
    first, second = (masker.mask(contexts.next(IMAGES, 0.5, factor=-0.5)).hidden for _ in range(2))
    assert not first.equal(second)
    again = masker.mask(MaskingContext.of(OBJECTIVE, IMAGES, 0.5, step=1, seed=3, factor=-0.5)).hidden
    assert again.equal(second)


def test_a_stream_may_begin_where_another_stopped_and_depends_on_its_seed():
    whole, later = MaskingContext.stream(OBJECTIVE), MaskingContext.stream(OBJECTIVE, step=2)
    draws = [whole.next(IMAGES, 0.5).noise() for _ in range(3)]
    assert later.next(IMAGES, 0.5).noise().equal(draws[2])
    assert (whole.step, later.step) == (3, 3)
    assert not MaskingContext.stream(OBJECTIVE, seed=1).next(IMAGES, 0.5).noise().equal(draws[0])


def test_a_stream_passes_on_what_a_masker_may_look_at():
    labels, extras, teacher = torch.arange(6), {"parts": torch.zeros(6, 1)}, tiny_objective()
    more = {"labels": labels, "index": labels, "extras": extras, "teacher": teacher}
    context = MaskingContext.stream(OBJECTIVE).next(IMAGES, 0.25, factor=0.5, progress=0.75, **more)
    assert (context.ratio, context.factor, context.progress, context.count) == (0.25, 0.5, 0.75, 16)
    assert context.labels is labels
    assert context.index is labels
    assert context.extras["parts"] is extras["parts"]
    assert context.teacher is teacher
    assert MaskingContext.stream(OBJECTIVE).next(IMAGES, 0.25).teacher is OBJECTIVE


def test_a_context_without_a_step_says_why_one_is_needed():
    with pytest.raises(TypeError, match=r"step=.*every batch would hide the same patches.*MaskingContext\.stream"):
        MaskingContext.of(OBJECTIVE, IMAGES, 0.5)  # type: ignore[call-arg]


@pytest.mark.parametrize("kind", ["strategies", "masker", "Strategy"])
def test_a_kind_that_does_not_exist_is_told_which_do(kind: str):
    for ask in (lambda: Registry().find(kind, "attmask"), lambda: Registry().classes(kind)):
        with pytest.raises(ContractError, match=rf"'{kind}' is not a kind.*strategy, schedule, backbone"):
            ask()
