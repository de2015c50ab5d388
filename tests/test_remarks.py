"""What a data set tells about itself: printed in the first lines of a command, and kept in the run."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest
from helpers import tiny_recipe

from maskzoo import ContractError, Registry, define
from maskzoo.cost import cost_table
from maskzoo.data.digits import Digits
from maskzoo.data.remarks import remarks_of
from maskzoo.evaluate import Wishes, evaluate_run
from maskzoo.plain import read_json
from maskzoo.registry import Kind
from maskzoo.run import run
from maskzoo.terminal import Console


@define
class Talkative(Digits):
    """Digits that have something to tell."""

    name = "digits"

    def __attrs_post_init__(self) -> None:
        super().__attrs_post_init__()
        self.remarks = ["7 files .txt\nare not used", "7 files .txt are not used", "", "caf\udce9"]


TOLD = ["7 files .txt are not used", "caf\\xe9"]


class Talking(Registry):
    """A registry in which the digits have something to tell."""

    def find(self, kind: Kind, name: str) -> type:
        return Talkative if (kind, name) == ("dataset", "digits") else super().find(kind, name)


def test_remarks_are_lines_for_people_and_none_is_told_twice():
    assert remarks_of(Talkative()) == TOLD
    assert remarks_of(Digits()) == []


@pytest.mark.parametrize("wrong", ["a text", 3, [1], None])
def test_remarks_of_another_form_are_a_mistake_of_the_data_set(wrong: Any):
    dataset = Digits()
    dataset.remarks = wrong
    with pytest.raises(ContractError, match="'digits': remarks must be a sequence of texts"):
        remarks_of(dataset)


def test_cost_tells_what_the_data_set_tells():
    assert cost_table(tiny_recipe(), Talking()).remarks[:2] == TOLD


@pytest.mark.slow
def test_a_run_and_its_evaluation_print_remarks_once_and_the_run_keeps_them(tmp_path: Path):
    file, registry = io.StringIO(), Talking()
    run(tiny_recipe(evaluation=["knn"]), registry, Console(file=file), tmp_path / "run")
    assert file.getvalue().count("\n".join(TOLD) + "\n") == 1
    assert read_json(tmp_path / "run" / "environment.json")["remarks"] == TOLD
    file.truncate(0)
    evaluate_run(tmp_path / "run", Wishes(), registry, Console(file=file))
    assert file.getvalue().count("\n".join(TOLD) + "\n") == 1
