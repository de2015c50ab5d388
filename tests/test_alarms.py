"""What is said of a masker that has collapsed, and that nothing is said of one that has not."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from maskzoo import Mask
from maskzoo.alarms import WARM_UP_STEPS, WINDOW, Alarms, spread

STEPS = 400
SOUND = {"mask/spread": 0.9, "own/chance": 0.7, "own/contrast": 0.4, "ratio": 0.75}


def random_masks(images: int, patches: int, hidden: int, seed: int) -> Tensor:
    """[B, N] bool, each row with as many hidden."""
    scores = torch.rand(images, patches, generator=torch.Generator().manual_seed(seed))
    return Mask.hide_top(scores, hidden).hidden


def said(*stretches: tuple[int, dict[str, float]], steps: int = STEPS, start: int = 0) -> list[tuple[int, str]]:
    """What is said in a run of stretches of (steps, figures), with the steps at which it is."""
    alarms, sentences, step = Alarms(steps), [], start
    for length, figures in stretches:
        for step in range(start, start + length):
            sentences += [(step, sentence) for sentence in alarms.watch({"step": step, **SOUND, **figures})]
        start += length
    return sentences


# -------------------------------------------------------------------------------------------------------------- spread
@given(images=st.integers(8, 32), patches=st.integers(4, 64), share=st.floats(0.01, 0.99), seed=st.integers(0, 2**16))
@settings(max_examples=25, deadline=None)
@pytest.mark.slow
def test_random_masks_never_set_off_an_alarm(images: int, patches: int, share: float, seed: int):
    hidden = min(max(1, round(share * patches)), patches - 1)
    alarms = Alarms(WARM_UP_STEPS)
    for step in range(WARM_UP_STEPS):
        value = float(spread(random_masks(images, patches, hidden, seed + step)))
        assert alarms.watch({"step": step, "ratio": hidden / patches, "mask/spread": value}) == []


@given(images=st.integers(2, 32), patches=st.integers(2, 64), seed=st.integers(0, 2**16))
@settings(deadline=None)
def test_one_mask_for_all_images_has_no_spread(images: int, patches: int, seed: int):
    hidden = random_masks(1, patches, max(1, patches // 2), seed).expand(images, patches)
    assert float(spread(hidden)) == pytest.approx(0.0, abs=1e-6)


@pytest.mark.parametrize("images", [2, 3, 8, 64])
@pytest.mark.parametrize("hidden", [1, 4, 12, 15])
@pytest.mark.sampled(5)
def test_random_masks_have_a_spread_of_one_on_average(images: int, hidden: int):
    values = [float(spread(random_masks(images, 16, hidden, seed))) for seed in range(400)]
    mean = sum(values) / len(values)
    error = (sum((value - mean) ** 2 for value in values) / len(values) / len(values)) ** 0.5
    assert abs(mean - 1) < 5 * error + 1e-6


def test_halfway_masks_have_a_spread_in_between():
    fixed, drawn = random_masks(1, 64, 48, seed=0).expand(256, 64), random_masks(256, 64, 48, seed=1)
    half = torch.cat([fixed[:, :32], drawn[:, 32:]], dim=1)
    assert 0.35 < float(spread(half)) < 0.65


@pytest.mark.parametrize("value", [True, False])
def test_where_masks_cannot_differ_the_spread_is_one(value: bool):
    assert float(spread(torch.full((4, 16), value))) == 1.0


def test_spread_is_a_scalar_that_takes_counts_that_differ_by_image():
    ragged = torch.tensor([[True, False, False], [True, True, False], [False, False, True]])
    assert spread(ragged).shape == ()
    assert 0 < float(spread(ragged)) < 2


# -------------------------------------------------------------------------------------------------------------- alarms
def test_a_constant_mask_sets_off_an_alarm_that_names_figure_value_and_steps():
    ((step, sentence),) = said((STEPS, {"mask/spread": 0.0}))
    assert step == WARM_UP_STEPS - 1
    assert sentence.startswith(f"mask/spread is 0.000 on average over steps {step - WINDOW + 1} to {step} ")
    assert "the same mask" in sentence
    assert "try" in sentence


def test_scores_that_are_stuck_set_off_an_alarm():
    ((_, sentence),) = said((STEPS, {"own/contrast": 0.004}))
    assert sentence.startswith("own/contrast is 0.004 on average over steps ")
    assert "the same for all patches" in sentence


@pytest.mark.parametrize("chance", [0.3, 0.04])
def test_chances_far_from_the_ratio_set_off_an_alarm(chance: float):
    ((_, sentence),) = said((STEPS, {"own/chance": chance}))
    assert sentence.startswith(f"own/chance is {chance:.3f} on average over steps ")
    assert "where 0.75 of the patches are hidden" in sentence


def test_a_sound_run_is_told_nothing():
    assert said((STEPS, {})) == []


def test_each_learner_of_a_composite_is_watched():
    figures = {"own/1/chance": 0.2, "own/1/contrast": 0.001}
    assert [sentence.split()[0] for _, sentence in said((STEPS, figures))] == ["own/1/chance", "own/1/contrast"]


def test_a_figure_of_the_same_ending_that_is_no_learners_is_left_alone():
    assert said((STEPS, {"theirs/contrast": 0.0, "others/chance": 0.0})) == []


def test_an_alarm_is_raised_again_only_after_its_figure_had_recovered():
    bad, middling, good = ({"mask/spread": value} for value in (0.02, 0.07, 0.9))
    assert len(said((STEPS, bad))) == 1
    assert len(said((150, bad), (100, middling), (150, bad))) == 1
    again = said((150, bad), (100, good), (150, bad))
    assert len(again) == 2
    assert again[1][0] > 250


def test_one_strange_step_is_no_alarm():
    assert said((200, {}), (1, {"mask/spread": 0.0, "own/contrast": 0.0, "own/chance": 0.0}), (100, {})) == []


def test_a_moving_ratio_is_followed():
    alarms = Alarms(STEPS)
    for step in range(STEPS):
        ratio = 0.05 + 0.9 * step / STEPS
        assert alarms.watch({**SOUND, "step": step, "ratio": ratio, "own/chance": ratio - 0.1}) == []


def test_nothing_is_judged_during_the_warm_up():
    assert said((WARM_UP_STEPS - 1, {"mask/spread": 0.0})) == []
    assert said((499, {"mask/spread": 0.0}), steps=5000) == []
    assert len(said((500, {"mask/spread": 0.0}), steps=5000)) == 1


def test_a_resumed_run_is_judged_once_enough_of_it_was_seen():
    ((step, _),) = said((100, {"mask/spread": 0.0}), start=300)
    assert step == 300 + WINDOW - 1


def test_a_run_that_goes_back_is_judged_by_the_steps_since():
    alarms = Alarms(STEPS)
    for step in range(200):
        assert alarms.watch({**SOUND, "step": step, "own/contrast": 0.011}) == []
    told = [alarms.watch({**SOUND, "step": step, "own/contrast": 0.0}) for step in range(150, 250)]
    (place,) = [place for place, sentences in enumerate(told) if sentences]
    assert f"over steps 150 to {150 + WINDOW - 1}:" in told[place][0]


def test_a_batch_of_one_has_no_spread_and_sets_off_nothing():
    alone = {"own/chance": 0.7, "own/contrast": 0.4, "ratio": 0.75}
    alarms = Alarms(STEPS)
    assert [alarms.watch({"step": step, **alone}) for step in range(STEPS)] == [[]] * STEPS


def test_learners_that_move_every_other_step_are_judged_by_the_steps_they_made():
    alarms, sentences = Alarms(STEPS), []
    for step in range(STEPS):
        own = {"own/chance": 0.7, "own/contrast": 0.0} if step % 2 == 0 else {}
        sentences += alarms.watch({"step": step, "ratio": 0.75, **own})
    (sentence,) = sentences
    assert "over steps 0 to 98:" in sentence or "over steps 2 to 100:" in sentence


def test_figures_of_a_skipped_step_are_passed_over():
    nothing = dict.fromkeys(("mask/spread", "own/chance", "own/contrast"), math.nan)
    assert said((STEPS, nothing)) == []
    assert len(said((120, {"own/contrast": 0.0}), (1, nothing), (120, {"own/contrast": 0.0}))) == 1
