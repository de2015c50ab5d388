"""A run that cannot be opened again is refused before it is trained."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
from dark import registry_with
from helpers import tiny_session

from maskzoo import ContractError, MaskZooError, PluginError, RecipeError
from maskzoo.plain import rooted, same, same_place
from maskzoo.recipe import check_readable, describe, make

HERE = "recipe.masking.strategy"


def masker_with(options: str) -> str:
    return f"""
@define
class Bad(Strategy):
    name = "dark"
{options}
    def scores(self, context):
        return context.noise()
"""


def made(options: str, **values):
    registry, _ = registry_with(masker_with(options))
    return make(registry, "strategy", {"use": "dark", **values}, HERE)


UNREADABLE = {
    "a text for a whole number": ("    x: int = 'a'", "whole number"),
    "a number for a whole number": ("    x: int = 3.5", "whole number"),
    "true for a whole number": ("    x: int = True", "whole number"),
    "a text for a list": ("    x: list[int] = 'abc'", "list"),
    "a list of texts for one of numbers": ("    x: list[float] = attrs.field(factory=lambda: ['a'])", "number"),
    "too few values": ("    x: tuple[int, int] = (1,)", "2 values"),
    "another choice": ("    x: Literal['a', 'b'] = 'c'", "one of 'a', 'b'"),
    "a table of texts for one of numbers": ("    x: dict[str, int] = attrs.field(factory=lambda: {'a': 'b'})", "whole"),
    "a table whose keys are numbers": ("    x: dict[int, int] = attrs.field(factory=lambda: {1: 2})", "whole number"),
    "a name of a schedule": ("    x: CurriculumSchedule = 'adversary'", "schedule"),
    "a set": ("    x: Any = attrs.field(factory=set)", "cannot hold a set"),
    "a tensor": ("    x: Any = attrs.field(factory=lambda: torch.zeros(2))", "cannot hold a Tensor"),
    "a number of numpy": ("    x: Any = np.float32(3)", "cannot hold a float32"),
    "a function": ("    x: Any = attrs.field(default=len)", "cannot hold"),
    "none in a list": ("    x: Any = attrs.field(factory=lambda: [None])", ""),
    "a type that no recipe holds": ("    x: torch.Tensor = None", "type Tensor"),
    "a function's type": ("    x: Callable = len", "type"),
    "a type of torch": ("    x: torch.dtype | None = None", "type dtype"),
    "a type that is not there": ("    x: 'Missing' = 3", "Missing"),
}


@pytest.mark.parametrize("kind", UNREADABLE)
def test_a_default_that_its_own_type_refuses_is_the_plugins_and_told_before_training(kind: str):
    options, words = UNREADABLE[kind]
    with pytest.raises(PluginError) as caught:
        made(options)
    assert words in str(caught.value)
    assert "maskzoo-dark 0.1 (maskzoo_dark" in str(caught.value)
    assert str(caught.value).startswith(f"{HERE}.x: ") or "Missing" in words


READABLE = {
    "NaN": "    x: float = math.nan",
    "a path": "    x: Path = Path('a/b')",
    "no path": "    x: Path | None = None",
    "a whole number for a number": "    x: float = 1",
    "a tuple for a list": "    x: list[int] = (1, 2)",
    "schedules in a table": "    x: dict[str, CurriculumSchedule] = attrs.field(factory=dict)",
    "schedules in lists in a table": "    x: dict[str, list[CurriculumSchedule]] = attrs.field(factory=dict)",
    "anything in a table": "    x: dict[str, Any] = attrs.field(factory=lambda: {'a': [1, 'b'], 'c': {'d': 2.5}})",
    "control characters": "    x: str = 'a\\x07\\n'",
}


@pytest.mark.parametrize("kind", READABLE)
def test_a_sound_option_is_described_and_read_back(kind: str):
    options = READABLE[kind].replace("math.nan", "float('nan')")
    registry, _ = registry_with(masker_with(options))
    first = make(registry, "strategy", "dark", HERE)
    again = make(registry, "strategy", describe(first), HERE)
    assert same(describe(first), describe(again))
    assert type(again.x) is type(first.x) or kind == "a tuple for a list" or kind == "a whole number for a number"


def test_schedules_in_a_table_are_made_and_described():
    strategy = made("    x: dict[str, CurriculumSchedule]", x={"a": "linear:0:1", "b": 0.5})
    assert strategy.x["a"](0.5) == 0.5
    assert describe(strategy)["x"]["b"] == {"use": "constant", "value": 0.5}
    with pytest.raises(RecipeError, match=r"strategy\.x\.a\.use: no schedule named 'liner'"):
        made("    x: dict[str, CurriculumSchedule]", x={"a": "liner"})


@pytest.mark.slow
def test_a_value_that_the_recipe_gives_stays_the_users():
    for options, value in (("    x: int = 1", "a"), ("    x: Path | None = None", 3), ("    x: dict[str, int]", [1])):
        with pytest.raises(RecipeError, match=r"strategy\.x: expected"):
            made(options, x=value)


def test_an_option_called_use_is_refused_at_load():
    registry, _ = registry_with(masker_with("    use: str = 'a'"))
    with pytest.raises(RecipeError, match="option 'use'"):
        registry.find("strategy", "dark")


def test_a_mandatory_option_after_a_default_is_named():
    with pytest.raises(ContractError, match="option 'y' has no default") as caught:
        registry_with(masker_with("    x: int = 3\n    y: int\n"))
    assert "Attribute(" not in str(caught.value)


def test_options_that_setup_spoils_are_found_in_the_resolved_recipe():
    registry, _ = registry_with(masker_with("    x: int = 1"))
    session = tiny_session()
    strategy = make(registry, "strategy", "dark", HERE)
    strategy.x = "three"
    whole = {**session.recipe, "data": "digits", "evaluation": []}
    whole["train"] = {**whole["train"], "loggers": []}
    plain = {**whole, "masking": {**whole["masking"], "strategy": describe(strategy)}}
    with pytest.raises(PluginError, match=r"strategy\.x: expected a whole number.*maskzoo-dark 0\.1"):
        check_readable(plain, registry)
    strategy.x = 3
    check_readable({**whole, "masking": {**whole["masking"], "strategy": describe(strategy)}}, registry)


def test_nan_is_the_same_as_nan_and_a_folder_as_itself(tmp_path: Path, monkeypatch):
    assert same({"a": [math.nan, 1]}, {"a": (math.nan, 1)})
    assert not same({"a": math.nan}, {"a": 1.0})
    monkeypatch.chdir(tmp_path)
    assert same_place("data.root", "photos", str(tmp_path / "photos"))
    assert not same_place("data.root", "photos", "other")
    assert rooted({"use": "folder", "root": "photos"})["root"] == str(tmp_path / "photos")
    assert rooted({"use": "shards", "root": "s3://bucket"})["root"] == "s3://bucket"


BROKEN_CONSTRUCTORS = {
    "an attribute that is not there": "self.nothing.x",
    "a key that is not there": "{}['k']",
    "a division": "1 / 0",
    "values to unpack": "(lambda x: None)(*[1, 2])",
    "a text for a number": "int('many')",
    "what torch refuses": "torch.nn.Linear(-1, 2)",
}


@pytest.mark.parametrize("kind", BROKEN_CONSTRUCTORS)
def test_what_a_constructor_raises_by_mistake_is_the_plugins(kind: str):
    with pytest.raises(PluginError) as caught:
        made(f"    x: int = 1\n    def __attrs_post_init__(self):\n        {BROKEN_CONSTRUCTORS[kind]}\n")
    assert str(caught.value).startswith(f"{HERE}: maskzoo-dark 0.1 (maskzoo_dark")
    assert "table or a list" not in str(caught.value)
    assert "required" not in str(caught.value)


@pytest.mark.parametrize(
    "options",
    [
        "    x: int = attrs.field(default=3, validator=attrs.validators.gt(5))",
        "    x: int = 3\n    def __attrs_post_init__(self):\n        raise ValueError('x: must be more')\n",
        "    x: Any = attrs.field(default=3, validator=attrs.validators.instance_of(str))",
    ],
)
def test_what_a_plugin_refuses_on_purpose_stays_the_users(options: str):
    with pytest.raises(MaskZooError) as caught:
        made(options)
    assert not isinstance(caught.value, PluginError)
    assert str(caught.value).startswith(HERE)


def test_a_bug_in_a_part_is_the_plugins_too():
    registry, _ = registry_with(masker_with("    def __attrs_post_init__(self):\n        self.nothing.x\n"))
    with pytest.raises(PluginError, match=r"strategy\.parts\[1\]: maskzoo-dark 0\.1"):
        make(registry, "strategy", {"use": "mix", "parts": ["random", "dark"]}, HERE)
