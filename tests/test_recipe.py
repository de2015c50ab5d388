"""Recipes as plain values: what is taken, what is refused and with which words, and what comes out again."""

from __future__ import annotations

import math
import tomllib
from pathlib import Path
from typing import Any

import pytest

from maskzoo import ContractError, Part, Recipe, RecipeError, Registry
from maskzoo.plain import shown
from maskzoo.recipe import describe, make, parse, plain_of, put, read, write

REGISTRY = Registry()
HERE = "recipe.masking.strategy"
# Options that a class cannot do without.
REQUIRED: dict[str, dict[str, Any]] = {
    "constant": {"value": 0.25},
    "mix": {"parts": ["random", {"use": "attmask", "hints": 0.25, "curriculum": "linear:0:-0.5"}], "weights": [1, 2.5]},
    "union": {"parts": [{"use": "mix", "parts": ["random", "block"]}, "clmae"]},
    "switch": {"parts": ["random", {"use": "clmae", "depth": 2}], "at": [0.5]},
}


def made(kind: str, use: Any, path: str = HERE) -> Any:
    return make(REGISTRY, kind, use, path)


def refusal(kind: str, use: Any, path: str = HERE) -> str:
    with pytest.raises(RecipeError) as caught:
        made(kind, use, path)
    return str(caught.value)


def refused_recipe(plain: Any) -> str:
    with pytest.raises(RecipeError) as caught:
        Recipe.from_plain(plain)
    return str(caught.value)


# ------------------------------------------------------------------------------------------------------- from_plain
def test_the_default_recipe_reads_itself_back():
    assert Recipe.from_plain(plain_of(Recipe())) == Recipe()
    assert Recipe.from_plain({}) == Recipe()
    assert Recipe.from_plain(tomllib.loads(write(plain_of(Recipe())))) == Recipe()


def test_a_recipe_with_every_section_reads_itself_back():
    plain = {
        "data": {"use": "folder", "root": "photos"},
        "masking": {"ratio": "linear:0.5:0.75", "strategy": "clmae", "optimizer": {"use": "sgd", "lr": 0.1}},
        "optimizer": {"betas": [0.8, 0.9], "options": {"eps": 1e-6}},
        "teacher": {"decay": 0.99},
        "augment": {"scale": [0.5, 1], "flip": False},
        "train": {"steps": 3, "workers": 0, "checkpoint_steps": 2},
        "evaluation": ["knn", {"use": "knn", "k": 5}],
    }
    recipe = Recipe.from_plain(plain)
    assert recipe.masking.optimizer.use == "sgd"
    assert recipe.augment.scale == (0.5, 1.0)
    assert Recipe.from_plain(tomllib.loads(write(plain_of(recipe)))) == recipe


def test_no_default_is_shared_between_recipes():
    Recipe().backbone["patch_size"] = 99
    assert Recipe().backbone["patch_size"] != 99


@pytest.mark.parametrize(
    ("plain", "sentence"),
    [
        ({"trian": {}}, "recipe.trian: no such key; did you mean 'train'?"),
        ({"train": {"epoch": 3}}, "recipe.train.epoch: no such key; did you mean 'epochs'?"),
        ({"masking": {"strategi": "clmae"}}, "recipe.masking.strategi: no such key; did you mean 'strategy'?"),
        (
            {"masking": {"optimizer": {"weight_deca": 0}}},
            "recipe.masking.optimizer.weight_deca: no such key; did you mean 'weight_decay'?",
        ),
        ({"augment": {"xyz": 1}}, "recipe.augment.xyz: no such key; known: scale, flip"),
    ],
)
def test_an_unknown_key_is_refused_with_its_path_and_the_nearest(plain: dict[str, Any], sentence: str):
    assert refused_recipe(plain) == sentence


@pytest.mark.parametrize(
    ("section", "key", "value", "sentence"),
    [
        ("train", "epochs", "5", "expected a whole number, got '5'"),
        ("train", "epochs", 5.7, "expected a whole number, got 5.7"),
        ("train", "epochs", 5.0, "expected a whole number, got 5.0"),
        ("train", "epochs", True, "expected a whole number, got True"),
        ("train", "epochs", [5], "expected a whole number, got [5]"),
        ("train", "steps", "5", "expected a whole number, got '5'"),
        ("train", "workers", 0.5, "expected a whole number, got 0.5"),
        ("train", "device", 0, "expected a text, got 0"),
        ("train", "max_broken", "all", "expected a number, got 'all'"),
        ("train", "max_broken", True, "expected a number, got True"),
        ("augment", "flip", 1, "expected true or false, got 1"),
        ("augment", "flip", "yes", "expected true or false, got 'yes'"),
        ("optimizer", "weight_decay", "0.05", "expected a number, got '0.05'"),
        ("optimizer", "use", 3, "expected a text, got 3"),
    ],
)
def test_a_value_of_another_type_is_refused_not_converted(section: str, key: str, value: Any, sentence: str):
    assert refused_recipe({section: {key: value}}) == f"recipe.{section}.{key}: {sentence}"


def test_a_whole_number_is_taken_where_a_number_is_wanted():
    taken = Recipe.from_plain({"optimizer": {"weight_decay": 0}}).optimizer.weight_decay
    assert taken == 0.0
    assert isinstance(taken, float)


def test_an_item_of_a_list_is_named_by_its_place():
    assert refused_recipe({"augment": {"scale": [0.5, "x"]}}) == "recipe.augment.scale[1]: expected a number, got 'x'"
    assert refused_recipe({"optimizer": {"betas": [True, 0.9]}}).startswith("recipe.optimizer.betas[0]: ")


def test_all_that_is_wrong_is_told_at_once_one_line_each():
    plain = {"train": {"epochs": 5.7, "steps": "5", "devise": "cpu"}, "masking": {"ration": 1}}
    assert sorted(refused_recipe(plain).splitlines()) == [
        "recipe.masking.ration: no such key; did you mean 'ratio'?",
        "recipe.train.devise: no such key; did you mean 'device'?",
        "recipe.train.epochs: expected a whole number, got 5.7",
        "recipe.train.steps: expected a whole number, got '5'",
    ]


@pytest.mark.parametrize("section", ["train", "masking", "optimizer", "augment", "teacher"])
@pytest.mark.parametrize("value", [3, "text", [1], True], ids=repr)
def test_a_section_that_is_no_table_is_refused_with_its_path(section: str, value: Any):
    assert refused_recipe({section: value}).startswith(f"recipe.{section}: expected a table")


def test_a_recipe_that_is_no_table_is_refused():
    assert refused_recipe(5).startswith("recipe: expected a table")


@pytest.mark.parametrize("scale", [[0.5, 0.2], [0, 1], [0.5, 1.5], [-1, 1], [math.nan, 1]], ids=str)
def test_a_crop_that_keeps_no_such_share_is_refused(scale: list[float]):
    assert refused_recipe({"augment": {"scale": scale}}).startswith("recipe.augment.scale: must be two shares")


OUT_OF_RANGE = [
    ("train", "epochs", 0),
    ("train", "epochs", -1),
    ("train", "steps", 0),
    ("train", "batch_size", 0),
    ("train", "workers", -1),
    ("train", "checkpoint_steps", 0),
    ("train", "pictures", -1),
    ("optimizer", "weight_decay", -0.1),
]


@pytest.mark.parametrize(("section", "key", "value"), OUT_OF_RANGE)
def test_a_number_out_of_range_is_refused_by_name(section: str, key: str, value: Any):
    sentence = refused_recipe({section: {key: value}})
    assert sentence.startswith(f"recipe.{section}")
    assert key in sentence
    assert str(value) in sentence


@pytest.mark.parametrize(("section", "key", "value"), OUT_OF_RANGE)
def test_a_number_out_of_range_is_refused_with_its_whole_path(section: str, key: str, value: Any):
    assert refused_recipe({section: {key: value}}).startswith(f"recipe.{section}.{key}: ")


@pytest.mark.parametrize("value", [-0.1, 1.5, math.nan])
def test_a_share_of_broken_images_beyond_none_and_all_is_refused(value: float):
    assert refused_recipe({"train": {"max_broken": value}}).startswith("recipe.train.max_broken: ")


@pytest.mark.parametrize("value", ["knn", {"use": "knn"}], ids=str)
def test_one_evaluator_that_is_not_in_a_list_is_refused(value: Any):
    assert refused_recipe({"evaluation": value}).startswith("recipe.evaluation: expected a list")


@pytest.mark.parametrize(("value", "got"), [(0.5, "0.5"), ([0.9], "[0.9]"), ([1, 1, 1], "[1, 1, 1]"), ("ab", "'ab'")])
def test_a_pair_that_is_none_is_refused_in_plain_words(value: Any, got: str):
    sentence = refused_recipe({"augment": {"scale": value}})
    assert sentence.startswith("recipe.augment.scale: expected 2 values")
    assert got in sentence
    assert len(sentence.splitlines()) == 1


def test_a_key_that_is_no_text_is_refused():
    refused_recipe({3: 4})


# ------------------------------------------------------------------------------------------------------------- files
def test_a_missing_file_and_one_that_is_no_toml_are_refused_by_name(tmp_path: Path):
    with pytest.raises(RecipeError, match=r"recipe '.*missing\.toml' is missing"):
        read(tmp_path / "missing.toml")
    with pytest.raises(RecipeError, match="cannot be read: it is a folder"):
        read(tmp_path)
    (tmp_path / "bad.toml").write_text("[train\nepochs = 3")
    with pytest.raises(RecipeError, match=r"'.*bad\.toml' is not valid TOML: .*line 1"):
        read(tmp_path / "bad.toml")
    (tmp_path / "latin.toml").write_bytes(b'data = "caf\xe9"')
    with pytest.raises(RecipeError, match=r"latin\.toml"):
        read(tmp_path / "latin.toml")


# --------------------------------------------------------------------------------------------------------------- put
@pytest.mark.parametrize(
    ("plain", "key", "becomes"),
    [
        ({}, "train.epochs", {"train": {"epochs": 9}}),
        ({"train": {"seed": 1}}, "train.epochs", {"train": {"seed": 1, "epochs": 9}}),
        ({"train": {"epochs": 1}}, "train.epochs", {"train": {"epochs": 9}}),
        ({}, "data", {"data": 9}),
        ({"a": [[1, 2], [3]]}, "a[0][1]", {"a": [[1, 9], [3]]}),
        ({"evaluation": ["knn"]}, "evaluation[0]", {"evaluation": [9]}),
        ({"evaluation": ["knn"]}, "evaluation[0].k", {"evaluation": [{"use": "knn", "k": 9}]}),
        ({"m": {"strategy": "clmae"}}, "m.strategy.depth", {"m": {"strategy": {"use": "clmae", "depth": 9}}}),
        (
            {"s": {"use": "mix", "parts": ["random", {"use": "clmae"}]}},
            "s.parts[1].depth",
            {"s": {"use": "mix", "parts": ["random", {"use": "clmae", "depth": 9}]}},
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_put_sets_a_key_and_makes_tables_on_the_way(plain: dict[str, Any], key: str, becomes: dict[str, Any]):
    put(plain, key, 9)
    assert plain == becomes


@pytest.mark.parametrize(
    ("plain", "key", "sentence"),
    [
        ({}, "", "'' is no key; write it like train.epochs"),
        ({}, "..", "'..' is no key; write it like train.epochs"),
        ({"a": 0.75}, "a.end", "recipe.a: is a single value, so it has no 'end'"),
        ({"a": {"b": True}}, "a.b.c", "recipe.a.b: is a single value, so it has no 'c'"),
        ({"a": ["x"]}, "a[1]", "recipe.a[1]: there is no such item; there are 1"),
        ({"a": ["x"]}, "a[-1]", "'a[-1]' is no key"),
        ({"a": ["x"]}, "a.b", "recipe.a: is a list, so its items are [0]"),
        ({"a": []}, "a[0].b", "there is no such item; there are 0"),
    ],
)
def test_put_refuses_what_has_no_place(plain: dict[str, Any], key: str, sentence: str):
    before = repr(plain)
    with pytest.raises(RecipeError) as caught:
        put(plain, key, 9)
    assert sentence in str(caught.value)
    assert repr(plain) == before


def test_put_names_an_item_of_a_list_as_it_was_written():
    with pytest.raises(RecipeError, match=r"^recipe\.a\[0\]: is a single value"):
        put({"a": [1]}, "a[0].b", 9)


@pytest.mark.parametrize("key", ["evaluation[0]", "masking.strategy.parts[0].use"])
def test_put_refuses_an_index_where_there_is_no_list(key: str):
    with pytest.raises(RecipeError, match="list"):
        put({}, key, "knn")


@pytest.mark.parametrize("key", ["a[0", "a]b", "train..epochs", ".train", "train."])
def test_put_refuses_a_key_that_is_not_well_formed(key: str):
    with pytest.raises(RecipeError, match="is no key"):
        put({"a": [1]}, key, 9)


def test_put_reaches_through_a_short_use_with_values():
    plain = {"ratio": "linear:0.5:0.75"}
    put(plain, "ratio.warmup", 0.25)
    assert describe(made("schedule", plain["ratio"])) == {"use": "linear", "start": 0.5, "end": 0.75, "warmup": 0.25}


# ------------------------------------------------------------------------------------------------------------- parse
@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("3", 3),
        ("-0.5", -0.5),
        ("1e-3", 1e-3),
        ("true", True),
        ("[0.2, 1]", [0.2, 1]),
        ('{ use = "linear", start = 0 }', {"use": "linear", "start": 0}),
        ('"5"', "5"),
        ("'x'", "x"),
        ("clmae", "clmae"),
        ("linear:0:-0.5", "linear:0:-0.5"),
        ("True", "True"),
        ("", ""),
        ("[", "["),
        ("/data/photos", "/data/photos"),
    ],
)
def test_parse_reads_toml_values_and_leaves_the_rest_as_text(text: str, value: Any):
    parsed = parse(text)
    assert parsed == value
    assert type(parsed) is type(value)


def test_parse_loses_nothing_of_a_text():
    assert parse("1\nseed = 2") == "1\nseed = 2"


# ------------------------------------------------------------------------------------------------------------- shown
def test_shown_gives_each_value_its_path():
    plain = {"a": {"b": 1, "c": {"d": "x"}}, "parts": [{"use": "random"}, {"use": "mix", "at": [0.5]}], "list": (1, 2)}
    assert shown(plain) == {
        "a.b": 1,
        "a.c.d": "x",
        "parts[0].use": "random",
        "parts[1].use": "mix",
        "parts[1].at": [0.5],
        "list": [1, 2],
    }


def test_shown_paths_can_be_put_back():
    plain = {"a": {"b": 1}, "parts": [{"use": "random"}, {"use": "mix", "at": [0.5]}]}
    for path in shown(plain):
        put(plain, path, "new")
    assert set(shown(plain).values()) == {"new"}


def test_shown_tells_a_list_of_uses_from_one_with_a_use_more():
    assert shown({"evaluation": ["knn"]}) != shown({"evaluation": ["knn", {"use": "knn"}]})
    assert shown({"a": {}}) == {}


# -------------------------------------------------------------------------------------------------------------- make
@pytest.mark.parametrize("kind", ["strategy", "schedule"])
def test_describing_what_was_made_makes_the_same_again(kind: str):
    for name, cls in REGISTRY.classes(kind).items():
        if not REGISTRY.owner(kind, name).ours:
            continue
        plain = describe(made(kind, {"use": name, **REQUIRED.get(name, {})}))
        through_toml = tomllib.loads(write({"it": plain}))["it"]
        assert through_toml == plain
        again = made(kind, through_toml)
        assert type(again) is cls
        assert describe(again) == plain, name


def test_a_description_holds_every_option_and_what_was_asked_for():
    plain = describe(made("strategy", {"use": "mix", **REQUIRED["mix"]}))
    assert plain["parts"][1] == {
        "use": "attmask",
        "hints": 0.25,
        "curriculum": {"use": "linear", "start": 0.0, "end": -0.5, "warmup": 0.0},
    }
    assert plain["weights"] == [{"use": "constant", "value": 1.0}, {"use": "constant", "value": 2.5}]


def test_a_short_use_gives_values_to_the_first_options_in_order():
    schedule = made("schedule", "linear:0:-0.5")
    assert (schedule.start, schedule.end, schedule.warmup) == (0.0, -0.5, 0.0)
    assert describe(made("schedule", "step:1:-1:[0.25, 0.75]"))["at"] == [0.25, 0.75]
    assert made("strategy", "attmask:0.5").hints == 0.5


@pytest.mark.parametrize("number", [0.5, 1, -1])
def test_a_bare_number_is_a_constant_schedule(number: float):
    assert describe(made("schedule", number)) == {"use": "constant", "value": float(number)}


def test_options_that_are_given_fill_what_a_use_leaves_open():
    assert make(REGISTRY, "schedule", "linear:0", HERE, end=0.25, nonsense=3).end == 0.25
    assert make(REGISTRY, "schedule", {"use": "linear", "end": 0.5}, HERE, end=0.25).end == 0.5


def test_making_leaves_the_use_as_it_was():
    use = {"use": "mix", "parts": [{"use": "attmask", "curriculum": "adversary"}, "random"]}
    before = repr(use)
    made("strategy", use)
    assert repr(use) == before


MIX = {"use": "mix"}


@pytest.mark.parametrize(
    ("kind", "use", "sentence"),
    [
        (
            "strategy",
            {**MIX, "parts": [{"use": "blok"}]},
            "recipe.masking.strategy.parts[0].use: no strategy named 'blok'; did you mean 'block'?",
        ),
        (
            "strategy",
            {**MIX, "parts": ["random", {**MIX, "parts": ["random", "blok"]}]},
            "recipe.masking.strategy.parts[1].parts[1].use: no strategy named 'blok'; did you mean 'block'?",
        ),
        (
            "strategy",
            {**MIX, "parts": [{**MIX, "parts": [{"use": "attmask", "hint": 1}]}]},
            "recipe.masking.strategy.parts[0].parts[0].hint: no such key; did you mean 'hints'?",
        ),
        (
            "strategy",
            {**MIX, "parts": ["random", {"use": "attmask", "curriculum": "adversry"}]},
            "recipe.masking.strategy.parts[1].curriculum.use: no schedule named 'adversry'; did you mean 'adversary'?",
        ),
        (
            "strategy",
            {**MIX, "parts": ["random", {"use": "attmask", "curriculum": {"use": "linear", "ed": 3}}]},
            "recipe.masking.strategy.parts[1].curriculum.ed: no such key; did you mean 'end'?",
        ),
        (
            "strategy",
            {**MIX, "parts": ["random", {"use": "random", "curriculum": "adversary"}]},
            "recipe.masking.strategy.parts[1].curriculum: strategy 'random' knows no hardness, so a curriculum means "
            "nothing to it",
        ),
        (
            "strategy",
            {**MIX, "parts": ["random", "block"], "weights": [1, {"use": "linear", "stat": 1}]},
            "recipe.masking.strategy.weights[1].stat: no such key; did you mean 'start'?",
        ),
        (
            "strategy",
            {**MIX, "parts": ["random", "block"], "weights": ["linear:0:1:0:3", 1]},
            "recipe.masking.strategy.weights[0]: 'linear:0:1:0:3' gives 4 values, but 'linear' has 3 options: "
            "['start', 'end', 'warmup']",
        ),
        ("strategy", MIX, "recipe.masking.strategy.parts: is required"),
        ("schedule", "constant", "recipe.masking.strategy.value: is required"),
        ("schedule", "linear:x", "recipe.masking.strategy.start: expected a number, got 'x'"),
        ("schedule", "linear:", "recipe.masking.strategy.start: expected a number, got ''"),
        ("schedule", {"use": "linear", "start": True}, "recipe.masking.strategy.start: expected a number, got True"),
        ("schedule", {"use": "cyclic", "cycles": 2.0}, "recipe.masking.strategy.cycles: expected a whole number"),
        ("schedule", {"use": "cyclic", "shape": "saw"}, "recipe.masking.strategy.shape: expected one of 'sawtooth', "),
        ("schedule", "lineal", "recipe.masking.strategy.use: no schedule named 'lineal'; did you mean 'linear'?"),
        ("schedule", "lineal:0:1", "recipe.masking.strategy.use: no schedule named 'lineal'; did you mean 'linear'?"),
        ("strategy", {"depth": 3}, "recipe.masking.strategy.use: which strategy? known: attmask, block, clmae"),
        ("strategy", {"use": 3}, "recipe.masking.strategy.use: which strategy? known: "),
        ("strategy", 3, "recipe.masking.strategy: expected a strategy: a name, or a table with `use`, got 3"),
        ("strategy", None, "recipe.masking.strategy: expected a strategy: a name, or a table with `use`, got None"),
        ("schedule", True, "recipe.masking.strategy: expected a schedule: a name, or a table with `use`, got True"),
        ("schedule", [1], "recipe.masking.strategy: expected a schedule: a name, or a table with `use`, got [1]"),
        ("strategy", {**MIX, "parts": []}, "recipe.masking.strategy.parts: a composite needs at least one"),
        (
            "strategy",
            {**MIX, "parts": [3]},
            "recipe.masking.strategy.parts[0]: expected a strategy: a name, or a table",
        ),
        ("strategy", {**MIX, "parts": "random"}, "recipe.masking.strategy.parts: expected a list"),
        (
            "strategy",
            {**MIX, "parts": {"use": "block"}},
            "recipe.masking.strategy.parts: expected a list",
        ),
    ],
)
def test_a_use_that_cannot_be_made_is_refused_with_path_and_reason(kind: str, use: Any, sentence: str):
    assert refusal(kind, use).startswith(sentence)
    assert len(refusal(kind, use).splitlines()) == 1


@pytest.mark.parametrize("name", ["random", "attmask"])
def test_a_curriculum_is_no_option_of_a_strategy_outside_a_composite(name: str):
    assert refusal("strategy", {"use": name, "curriculum": "adversary"}).startswith(f"{HERE}.curriculum: no such key")


def test_a_text_is_no_list_of_schedules():
    use = {**MIX, "parts": ["random", "block"], "weights": "12"}
    assert refusal("strategy", use).startswith(f"{HERE}.weights: expected a list")


@pytest.mark.parametrize(
    ("kind", "use", "key"),
    [
        ("strategy", {"use": "attmask", "hints": 5.0}, "hints"),
        ("schedule", {"use": "linear", "warmup": 1}, "warmup"),
        ("strategy", {**MIX, "parts": []}, "parts"),
        ("strategy", {"use": "switch", "parts": ["random", "block"]}, "at"),
    ],
    ids=["hints", "warmup", "parts", "at"],
)
def test_an_option_out_of_range_is_refused_with_its_whole_path(kind: str, use: Any, key: str):
    assert refusal(kind, use).startswith(f"{HERE}.{key}: ")


@pytest.mark.parametrize("kind", ["evaluator", "objective"])
def test_the_words_of_a_refusal_are_english(kind: str):
    assert f"expected an {kind}" in refusal(kind, 3)


@pytest.mark.parametrize(
    ("kind", "use", "words"),
    [("strategy", "attmask:0.5:1:2", "'attmask' has 1 options"), ("schedule", "partner:1", "'partner' has 0 options")],
)
def test_too_many_short_values_are_refused_with_what_there_is(kind: str, use: str, words: str):
    assert words in refusal(kind, use)


def test_a_part_takes_a_curriculum_only_if_its_strategy_knows_one():
    with pytest.raises(ContractError, match="knows no hardness"):
        Part(made("strategy", "random"), made("schedule", "adversary"))
    assert Part(made("strategy", "attmask"), made("schedule", "adversary")).curriculum(0.0) == -1.0


def test_an_error_that_is_not_about_the_recipe_keeps_its_kind_and_gets_the_path():
    class Clashing(Registry):
        def find(self, kind: str, name: str) -> type:
            raise ContractError("broken promise")

    with pytest.raises(ContractError, match=r"^recipe\.masking\.strategy: broken promise$"):
        make(Clashing([]), "strategy", "random", HERE)
