"""What the registry makes of plugins, good, bad and in each other's way."""

from __future__ import annotations

import types
from collections.abc import Callable
from typing import Any

import attrs
import pytest

from maskzoo import PluginError, RecipeError, Registry, Strategy, define, hookimpl
from maskzoo.registry import KINDS, nearest


@attrs.frozen
class Distribution:
    name: str
    version: str


@attrs.define
class Point:
    """An entry point that loads what it is told to, and remembers that it was asked."""

    name: str
    loads: Any
    dist: Distribution
    asked: int = 0

    def load(self) -> Any:
        self.asked += 1
        if isinstance(self.loads, BaseException):
            raise self.loads
        return self.loads


def point(name: str, loads: Any, distribution: str, version: str = "1.0") -> Point:
    return Point(name, loads, Distribution(distribution, version))


def masker(called: str) -> type:
    @define
    class Masker(Strategy):
        """A masker."""

        name = called

    return Masker


def plugin(*classes: Any, hook: str = "maskzoo_strategies") -> types.ModuleType:
    """A module that offers these classes."""
    return implementing(**{hook: lambda: list(classes)})


def implementing(**hooks: Callable[[], Any]) -> types.ModuleType:
    module = types.ModuleType("some_plugin")
    for name, function in hooks.items():
        setattr(module, name, hookimpl(function))
    return module


RANDOM, THEIRS, OTHERS = masker("random"), masker("random"), masker("others")


# ------------------------------------------------------------------------------------------------------- who wins
@pytest.mark.parametrize("ours_first", [True, False])
def test_a_builtin_wins_over_a_third_party_and_the_clash_is_told(ours_first: bool):
    points = [point("random", plugin(RANDOM), "maskzoo", "0.1.0"), point("rand", plugin(THEIRS), "maskzoo-rand", "2.3")]
    registry = Registry(points if ours_first else reversed(points))
    assert registry.find("strategy", "random") is RANDOM
    assert registry.classes("strategy") == {"random": RANDOM}
    assert registry.owner("strategy", "random").distribution == "maskzoo"
    (sentence,) = registry.clashes()
    assert "strategy 'random'" in sentence
    assert "maskzoo-rand 2.3" in sentence
    assert "the built-in one is used" in sentence


def test_third_parties_are_not_loaded_for_a_builtin_name():
    theirs = point("theirs", ImportError("boom"), "elsewhere")
    registry = Registry([theirs, point("random", plugin(RANDOM), "maskzoo")])
    assert registry.find("strategy", "random") is RANDOM
    assert theirs.asked == 0


def test_a_plugin_is_loaded_once_however_often_one_asks():
    ours, theirs = point("random", plugin(RANDOM), "maskzoo"), point("others", plugin(OTHERS), "elsewhere")
    registry = Registry([ours, theirs])
    for _ in range(3):
        registry.find("strategy", "others")
        registry.classes("strategy")
        registry.clashes()
    assert (ours.asked, theirs.asked) == (1, 1)


def test_two_third_parties_with_one_name_are_an_error_only_when_the_name_is_used():
    registry = Registry(
        [
            point("a", plugin(masker("same"), OTHERS), "first-package", "1.2"),
            point("b", plugin(masker("same"), masker("own")), "second-package", "3.4"),
        ]
    )
    assert registry.find("strategy", "others") is OTHERS
    assert list(registry.classes("strategy")) == ["others", "own"]  # the doubtful one is left out
    with pytest.raises(PluginError) as caught:
        registry.find("strategy", "same")
    for words in ("strategy 'same'", "first-package 1.2", "second-package 3.4", "uninstall one"):
        assert words in str(caught.value)
    (sentence,) = registry.clashes()
    assert "first-package 1.2" in sentence
    assert "second-package 3.4" in sentence
    assert "using it is an error" in sentence


def test_one_entry_point_name_in_two_distributions_counts_twice():
    # pluggy's own loader skips the second without a word.
    first, second = masker("first"), masker("second")
    registry = Registry([point("masks", plugin(first), "one"), point("masks", plugin(second), "two")])
    assert registry.classes("strategy") == {"first": first, "second": second}
    assert [item.distribution for item in registry.plugins] == ["one", "two"]
    assert registry.clashes() == []


def test_one_name_for_things_of_two_kinds_is_no_clash():
    class Others:
        """A schedule."""

        name = "others"

        def __call__(self, progress: float) -> float:
            return progress

    registry = Registry(
        [point("a", plugin(OTHERS), "one"), point("b", plugin(Others, hook="maskzoo_schedules"), "two")]
    )
    assert registry.find("strategy", "others") is OTHERS
    assert registry.find("schedule", "others") is Others
    assert registry.clashes() == []


def test_one_distribution_that_offers_a_name_twice_is_named_with_both_entry_points():
    registry = Registry(
        [point("old", plugin(masker("same")), "package"), point("new", plugin(masker("same")), "package")]
    )
    with pytest.raises(PluginError, match=r"entry point 'new'.* and .*entry point 'old'"):
        registry.find("strategy", "same")


def test_the_owner_of_a_class_is_the_plugin_that_find_takes_it_from():
    registry = Registry([point("random", plugin(RANDOM), "maskzoo"), point("others", plugin(OTHERS), "elsewhere")])
    owner = registry.owner("strategy", "others")
    assert (owner.name, owner.distribution, owner.version, owner.ours) == ("others", "elsewhere", "1.0", False)
    assert registry.owner("strategy", "random").ours


def test_plugins_are_listed_ours_first():
    registry = Registry([point("others", plugin(OTHERS), "elsewhere"), point("random", plugin(RANDOM), "maskzoo")])
    assert [item.name for item in registry.plugins] == ["random", "others"]


# ------------------------------------------------------------------------------------------------------- broken ones
def broken(loads: Any) -> Registry:
    """A registry with two sound plugins and a third one."""
    return Registry(
        [
            point("bad", loads, "bad-package", "0.0.1"),
            point("random", plugin(RANDOM), "maskzoo"),
            point("others", plugin(OTHERS), "elsewhere"),
        ]
    )


def hooks_that_raise() -> types.ModuleType:
    def maskzoo_strategies() -> list[type]:
        raise ZeroDivisionError("no good")

    return implementing(maskzoo_strategies=maskzoo_strategies)


class Nameless(Strategy):
    """It has none."""


BROKEN = {
    "an import that fails": (ImportError("No module named 'numpi'"), "ImportError: No module named 'numpi'"),
    "a syntax error": (SyntaxError("invalid syntax"), "SyntaxError: invalid syntax"),
    "a module without that attribute": (AttributeError("no attribute 'plugin'"), "no attribute 'plugin'"),
    "a misspelt hook": (plugin(masker("lost"), hook="maskzoo_strategys"), "maskzoo_strategys"),
    "a hook that raises": (hooks_that_raise(), "ZeroDivisionError: no good"),
    "a class without a name": (plugin(Nameless), "maskzoo_strategies() must return classes with a `name`"),
    "an empty name": (plugin(masker("")), "classes with a `name`"),
    "a name that is no text": (plugin(masker(3)), "classes with a `name`"),
    "an instance for a class": (plugin(RANDOM()), "classes with a `name`"),
    "a name for a class": (plugin("random"), "classes with a `name`"),
    "a class for a list": (implementing(maskzoo_strategies=lambda: RANDOM), "not iterable"),
    "two classes of one name": (plugin(masker("twice"), masker("twice")), "names two classes 'twice'"),
    "a hook with arguments": (implementing(maskzoo_strategies=lambda config: [RANDOM]), "config"),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_a_broken_plugin_is_remembered_with_its_reason_and_hurts_nobody(kind: str):
    loads, reason = BROKEN[kind]
    registry = broken(loads)
    assert registry.find("strategy", "random") is RANDOM
    assert registry.find("strategy", "others") is OTHERS
    assert registry.classes("strategy") == {"others": OTHERS, "random": RANDOM}
    (bad,) = [item for item in registry.plugins if item.name == "bad"]
    assert bad.offers == []
    assert reason in bad.problem
    (sentence,) = registry.broken()
    assert sentence.startswith("bad-package 0.0.1 (entry point 'bad') could not be loaded: ")
    assert reason in sentence


def test_a_sound_offer_of_a_broken_plugin_is_not_used_either():
    registry = broken(plugin(masker("sound"), Nameless))
    with pytest.raises(RecipeError, match="no strategy named 'sound'"):
        registry.find("strategy", "sound")


def test_an_unknown_name_brings_the_broken_plugins_and_their_causes_to_light():
    registry = broken(ImportError("No module named 'numpi'"))
    with pytest.raises(RecipeError) as caught:
        registry.find("strategy", "fancy")
    assert "no strategy named 'fancy'" in str(caught.value)
    assert "bad-package 0.0.1 (entry point 'bad') could not be loaded: ImportError" in str(caught.value)
    assert "numpi" in str(caught.value)


def test_a_misspelt_hook_is_a_sentence_that_a_plugin_author_can_act_on():
    (sentence,) = broken(plugin(masker("lost"), hook="maskzoo_strategys")).broken()
    assert "unknown hook 'maskzoo_strategys'" in sentence


def test_a_builtin_that_is_broken_leaves_the_others_alone():
    registry = Registry([point("block", ImportError("boom"), "maskzoo"), point("random", plugin(RANDOM), "maskzoo")])
    assert registry.find("strategy", "random") is RANDOM
    with pytest.raises(RecipeError, match="could not be loaded: ImportError: boom"):
        registry.find("strategy", "block")


def test_a_plugin_that_ends_the_program_on_import_does_not_end_ours():
    registry = broken(SystemExit(1))
    assert registry.classes("strategy") == {"others": OTHERS, "random": RANDOM}


def test_a_hook_without_its_decorator_is_a_problem():
    module = types.ModuleType("some_plugin")
    module.maskzoo_strategies = lambda: [OTHERS]
    (sentence,) = Registry([point("bare", module, "bare-package")]).broken()
    assert "hookimpl" in sentence


def test_a_hook_that_returns_nothing_is_a_problem():
    assert broken(implementing(maskzoo_strategies=lambda: None)).broken()


# ------------------------------------------------------------------------------------------------------------- hints
def test_an_unknown_name_brings_the_nearest_known_one():
    registry = Registry([point("random", plugin(RANDOM, masker("block")), "maskzoo")])
    with pytest.raises(RecipeError, match=r"^no strategy named 'blok'; did you mean 'block'\?$"):
        registry.find("strategy", "blok")


def test_a_name_like_no_other_brings_all_known_ones():
    registry = Registry([point("random", plugin(RANDOM, masker("block")), "maskzoo")])
    with pytest.raises(RecipeError, match=r"^no strategy named 'xyz'; known: block, random$"):
        registry.find("strategy", "xyz")


def test_the_nearest_may_be_a_third_partys():
    registry = Registry([point("random", plugin(RANDOM), "maskzoo"), point("o", plugin(OTHERS), "elsewhere")])
    with pytest.raises(RecipeError, match="did you mean 'others'"):
        registry.find("strategy", "other")


def test_where_nothing_is_known_the_hint_says_so():
    assert nearest("x", []) == "none is known"
    with pytest.raises(RecipeError, match="none is known"):
        Registry([]).find("strategy", "random")


# ------------------------------------------------------------------------------------------------- what is installed
def test_everything_installed_with_maskzoo_loads_without_a_clash():
    registry = Registry()
    ours = [item for item in registry.plugins if item.ours]
    assert {item.name for item in ours} >= {"random", "block", "attmask", "clmae", "compose", "schedules", "datasets"}
    assert [item.problem for item in ours if item.problem] == []
    assert [sentence for sentence in registry.clashes() if "is an error" in sentence] == []


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_has_something_that_comes_with_maskzoo(kind: str):
    for name, cls in Registry().classes(kind).items():
        assert cls.name == name
        assert (cls.__doc__ or "").strip(), f"{kind} '{name}' says nothing of itself in `maskzoo list`"
