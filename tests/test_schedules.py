"""What the built-in curricula say at each moment of training."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import attrs
import maskzoo_schedules
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from maskzoo import ContractError, CurriculumSchedule

ALL: dict[str, Any] = {cls.name: cls for cls in maskzoo_schedules.maskzoo_schedules()}  # type: ignore[attr-defined]
MOVING = sorted(name for name, cls in ALL.items() if "end" in attrs.fields_dict(cls))
THROUGH_NEUTRAL = ["adversary-neutral-partner", "partner-neutral-adversary"]
TIMES = [step / 1000 for step in range(1001)]

values = st.floats(-10, 10)
shares = st.floats(0, 0.99)
moments = st.floats(0, 1)
patient = settings(deadline=None)  # an example may take long on a busy machine


@st.composite
def schedules(draw: st.DrawFn) -> Any:
    """Any moving schedule with any options that it accepts."""
    cls = ALL[draw(st.sampled_from(MOVING))]
    signs = {"partner": st.floats(0, 10), "adversary": st.floats(-10, 0)}
    first, _, last = cls.name.split("-") if cls.name in THROUGH_NEUTRAL else ("", "", cls.name.split("-")[-1])
    options = {
        "start": signs.get(first, values),
        "end": signs.get(last, values),
        "warmup": shares,
        "plateau": shares,
        "cycles": st.integers(1, 9),
        "at": st.sets(st.floats(0, 1, exclude_min=True, exclude_max=True), min_size=1, max_size=5)
        .map(sorted)
        .map(tuple),
        "shape": st.sampled_from(["sawtooth", "triangle"] if cls.name == "cyclic" else ["linear", "cosine"]),
    }
    return cls(**{name: draw(options[name]) for name in attrs.fields_dict(cls)})


def test_every_schedule_keeps_the_contract_and_carries_a_sentence_for_users() -> None:
    assert set(ALL) == {
        "adversary",
        "adversary-neutral-partner",
        "clmae-official",
        "constant",
        "cosine",
        "cyclic",
        "linear",
        "neutral",
        "neutral-adversary",
        "partner",
        "partner-neutral-adversary",
        "step",
    }
    for cls in ALL.values():
        schedule = cls(0.5) if cls.name == "constant" else cls()
        assert isinstance(schedule, CurriculumSchedule)
        assert cls.__doc__.splitlines()[0].endswith((".", ":"))
        schedule.setup(epochs=3, steps=30)
        assert isinstance(schedule(0.3), float)


def test_options_come_in_the_order_of_their_use_on_the_command_line() -> None:
    options = {name: list(attrs.fields_dict(cls)) for name, cls in ALL.items()}
    assert options == {
        "constant": ["value"],
        "linear": ["start", "end", "warmup"],
        "cosine": ["start", "end", "warmup"],
        "step": ["start", "end", "at", "warmup"],
        "cyclic": ["start", "end", "cycles", "shape", "warmup"],
        "partner": [],
        "neutral": [],
        "adversary": [],
        "partner-neutral-adversary": ["start", "end", "shape", "plateau", "warmup"],
        "adversary-neutral-partner": ["start", "end", "shape", "plateau", "warmup"],
        "neutral-adversary": ["end", "start", "shape", "warmup"],
        "clmae-official": [],
    }


@patient
@given(schedules(), moments)
def test_a_schedule_is_finite_and_stays_between_its_start_and_its_end(schedule: Any, progress: float) -> None:
    value = schedule(progress)
    bounds = [schedule.start, schedule.end] + ([0.0] if schedule.warmup else [])
    assert math.isfinite(value)
    assert min(bounds) <= value <= max(bounds)


@patient
@given(schedules(), st.floats(0.01, 0.9))
def test_a_warm_up_climbs_in_a_straight_line_from_zero_to_the_start_of_the_curve(schedule: Any, warmup: float) -> None:
    warmed, cold = attrs.evolve(schedule, warmup=warmup), attrs.evolve(schedule, warmup=0.0)
    assert warmed(0.0) == 0
    assert warmed(warmup / 2) == pytest.approx(schedule.start / 2)
    assert warmed(warmup) == cold(0.0) == schedule.start
    assert warmed(1.0) == cold(1.0)


@patient
@given(schedules())
def test_every_schedule_but_the_cyclic_ends_at_its_end_and_never_turns_back(schedule: Any) -> None:
    if schedule.name == "cyclic":
        return
    cold = attrs.evolve(schedule, warmup=0.0)
    values = [cold(time) for time in TIMES[::10]]
    assert values[0] == cold.start
    assert values[-1] == cold.end
    direction = 1 if cold.end >= cold.start else -1
    steps = [direction * (after - before) for before, after in pairwise(values)]
    assert min(steps) >= -1e-12


def test_constants_are_constant() -> None:
    constants = {"partner": 1.0, "neutral": 0.0, "adversary": -1.0}
    for name, value in constants.items():
        assert {ALL[name]()(time) for time in TIMES} == {value}
    assert {ALL["constant"](0.25)(time) for time in TIMES} == {0.25}


def test_a_constant_needs_its_value() -> None:
    with pytest.raises(TypeError, match="value"):
        ALL["constant"]()


def test_linear_and_cosine_take_known_values() -> None:
    assert ALL["linear"](0, -0.5)(0.5) == -0.25
    assert ALL["linear"](1.5e-4, 0.0, 0.05)(0.025) == pytest.approx(0.75e-4)
    assert ALL["cosine"](2, 1)(0.25) == pytest.approx(1.5 + math.sqrt(0.5) / 2)
    assert ALL["cosine"](2, 1)(0.5) == pytest.approx(1.5)
    assert ALL["cosine"](1.5e-4, 0.0)(1.0) == 0.0


def test_a_staircase_has_even_levels_and_jumps_at_its_moments() -> None:
    stairs = ALL["step"](1, -1, (0.2, 0.5))
    assert [stairs(time) for time in (0, 0.199, 0.2, 0.499, 0.5, 1)] == [1, 1, 0, 0, -1, -1]
    assert [ALL["step"]()(time) for time in (0, 0.49, 0.5, 1)] == [1, 1, -1, -1]
    assert len({ALL["step"](0, 1, (0.1, 0.2, 0.3, 0.4, 0.5))(time) for time in TIMES}) == 6


def test_a_sawtooth_falls_back_at_once_and_ends_at_its_end() -> None:
    saw = ALL["cyclic"](0, 1, 4)
    assert [saw(time) for time in (0, 0.125, 0.25, 0.375, 0.5, 0.75, 0.875, 1)] == [0, 0.5, 0, 0.5, 0, 0, 0.5, 1]
    assert saw(math.nextafter(0.25, 0)) == pytest.approx(1)


def test_a_triangle_walks_back_and_ends_at_its_start() -> None:
    triangle = ALL["cyclic"](-1, 1, 2, "triangle")
    assert [triangle(time) for time in (0, 0.125, 0.25, 0.375, 0.5, 0.75, 1)] == [-1, 0, 1, 0, -1, 1, -1]


@pytest.mark.parametrize("name", THROUGH_NEUTRAL)
@pytest.mark.parametrize("shape", ["linear", "cosine"])
@pytest.mark.parametrize("plateau", [0.0, 0.1, 0.5, 0.99])
def test_neutral_is_met_exactly_at_half_time_and_held_for_the_plateau(name: str, shape: str, plateau: float) -> None:
    schedule = ALL[name](shape=shape, plateau=plateau)
    assert schedule(0.5) == 0
    assert sum(schedule(time) == 0 for time in TIMES) == pytest.approx(1000 * plateau + 1, abs=2)
    assert schedule(0.5 - plateau / 2 - 1e-4) * schedule(0.5 + plateau / 2 + 1e-4) < 0


def test_partner_neutral_adversary_is_a_straight_line_or_one_half_cosine() -> None:
    schedule, mirrored = ALL["partner-neutral-adversary"](), ALL["adversary-neutral-partner"]()
    assert [schedule(time) for time in (0, 0.5, 1)] == [1, 0, -1]
    for time in TIMES:
        assert schedule(time) == pytest.approx(1 - 2 * time, abs=1e-12)
        assert mirrored(time) == -schedule(time)
        assert ALL["partner-neutral-adversary"](shape="cosine")(time) == pytest.approx(math.cos(math.pi * time))


def test_a_plateau_squeezes_the_two_moving_stretches() -> None:
    schedule = ALL["partner-neutral-adversary"](start=0.8, end=-0.4, plateau=0.2)
    assert [schedule(time) for time in (0, 0.2, 0.4, 0.5, 0.6, 0.8, 1)] == pytest.approx(
        [0.8, 0.4, 0, 0, 0, -0.2, -0.4]
    )


def test_neutral_adversary_goes_from_random_to_hard() -> None:
    assert [ALL["neutral-adversary"]()(time) for time in (0, 0.25, 1)] == [0, -0.25, -1]
    assert ALL["neutral-adversary"](-0.5, shape="cosine")(0.5) == pytest.approx(-0.25)


@pytest.mark.parametrize(
    ("epochs", "table"),
    [
        (200, {0: 1.0, 1: 0.99, 99: 0.01, 100: -0.01, 199: -1.0}),
        (800, {0: 1.0, 399: 0.0025, 400: -0.0025, 799: -1.0}),
    ],
)
def test_the_official_staircase_of_clmae_steps_over_zero(epochs: int, table: dict[int, float]) -> None:
    schedule, steps_in_epoch = ALL["clmae-official"](), 7
    steps = epochs * steps_in_epoch
    schedule.setup(epochs, steps)
    values = [schedule(step / (steps - 1)) for step in range(steps)]
    assert 0.0 not in values
    for epoch in range(epochs):
        assert len(set(values[epoch * steps_in_epoch : (epoch + 1) * steps_in_epoch])) == 1, epoch
    assert {epoch: values[epoch * steps_in_epoch] for epoch in table} == pytest.approx(table)
    assert len(set(values)) == epochs


def test_the_official_staircase_asks_to_be_set_up_first() -> None:
    with pytest.raises(ContractError, match="setup"):
        ALL["clmae-official"]()(0.5)


def test_the_official_staircase_takes_a_run_of_one_step() -> None:
    schedule = ALL["clmae-official"]()
    schedule.setup(epochs=1, steps=1)
    assert schedule(0.0) == 1.0


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("linear", {"warmup": 1.0}),
        ("linear", {"warmup": -0.1}),
        ("linear", {"warmup": math.nan}),
        ("linear", {"start": math.inf}),
        ("constant", {"value": math.nan}),
        ("cyclic", {"cycles": 0}),
        ("cyclic", {"shape": "sinus"}),
        ("step", {"at": ()}),
        ("step", {"at": (0.5, 0.5)}),
        ("step", {"at": (0.6, 0.4)}),
        ("step", {"at": (0.0,)}),
        ("step", {"at": (1.0,)}),
        ("partner-neutral-adversary", {"plateau": 1.0}),
        ("partner-neutral-adversary", {"shape": "cubic"}),
        ("partner-neutral-adversary", {"start": -0.5}),
        ("adversary-neutral-partner", {"start": 0.5}),
        ("neutral-adversary", {"end": 1.0}),
    ],
)
def test_an_impossible_option_is_refused_in_a_sentence_that_names_it(name: str, options: dict[str, Any]) -> None:
    (option,) = options
    with pytest.raises(ValueError, match=f"^{option} is .*, but "):
        ALL[name](**options)
