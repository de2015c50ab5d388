"""How many patches a ratio hides: a share that is a whole number of them hides that number, whatever the rule."""

from __future__ import annotations

import math
from fractions import Fraction

import pytest
from helpers import strategy_of, tiny_session

from maskzoo import RecipeError, Registry, rounded_down

RULES = {name: cls for name, cls in Registry().classes("strategy").items() if name not in ("mix", "union", "switch")}
MOST = 400


@pytest.mark.parametrize("name", RULES)
def test_a_whole_number_of_patches_is_hidden_as_such(name: str):
    rule = RULES[name]()
    wrong = [
        (hidden, patches)
        for patches in range(1, MOST + 1)
        for hidden in range(patches + 1)
        if rule.count(hidden / patches, patches) != hidden
    ]
    assert wrong == []


@pytest.mark.parametrize(("ratio", "patches", "hidden"), [(0.8, 25, 20), (0.9, 100, 90), (0.9, 10, 9), (0.29, 100, 29)])
def test_decimal_ratios_hide_what_is_asked(ratio: float, patches: int, hidden: int):
    assert {rule().count(ratio, patches) for rule in RULES.values()} == {hidden}


@pytest.mark.slow
def test_where_no_whole_number_is_asked_the_papers_rounding_stays():
    for patches in range(1, MOST + 1):
        for percent in range(1, 100, 3):
            share = Fraction(percent, 100)
            assert RULES["random"]().count(percent / 100, patches) == patches - math.floor(patches * (1 - share))
            assert RULES["attmask"]().count(percent / 100, patches) == math.floor(patches * share)


@pytest.mark.parametrize("kind", ["mix", "union", "switch"])
def test_parts_agree_wherever_the_share_is_whole(kind: str):
    at = {"at": [0.5]} if kind == "switch" else {}
    strategy = strategy_of({"use": kind, "parts": ["random", "attmask"], **at})
    for patches in (10, 25, 49, 100, 196, 225):
        for hidden in range(1, patches):
            assert strategy.count(hidden / patches, patches) == hidden


def test_a_ratio_that_is_advised_for_parts_that_differ_is_one_where_they_agree():
    strategy = strategy_of({"use": "mix", "parts": ["random", "attmask"]})
    for patches in (9, 49, 64, 196, 343):
        for ratio in (0.111, 0.3391, 0.6661, 0.9049):
            with pytest.raises(Exception, match="they agree at") as raised:
                strategy.count(ratio, patches)
            advised = float(str(raised.value).rsplit(" ", 1)[1])
            assert 0 < strategy.count(advised, patches) < patches
            assert abs(advised - ratio) <= 1 / patches


@pytest.mark.slow
def test_a_ratio_that_leaves_one_patch_trains():
    session = tiny_session(masking={"ratio": 63 / 64})
    assert session.strategy.count(63 / 64, 64) == 63
    with pytest.raises(RecipeError, match="hides everything"):
        tiny_session(masking={"ratio": 0.99})


def test_epochs_that_are_barely_more_than_whole_are_whole():
    official = Registry().find("schedule", "clmae-official")()
    official.setup(0.1 * 30, 90)  # 3.0000000000000004 epochs
    assert official(1.0) == -1.0


def test_a_floor_is_that_of_the_product_meant():
    assert [rounded_down(value) for value in (25 * (1 - 0.8), 4.5, 4.9999, 0.0, 7.0)] == [5, 4, 4, 0, 7]
    assert rounded_down(2 - 1e-8) == 1


def test_a_rank_takes_the_share_meant():
    taken = strategy_of("attmask")._taken
    assert taken(type("Context", (), {"factor": -0.29, "count": 100})) == 29
