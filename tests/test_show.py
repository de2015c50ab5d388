"""What `maskzoo show` and `--help` print: every option with its type, default and meaning, on any terminal."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import attrs
import click
import pytest
from click.testing import CliRunner, Result

from maskzoo import Recipe, Registry
from maskzoo.cli import main
from maskzoo.meanings import options_of, type_words
from maskzoo.recipe import plain_of
from maskzoo.registry import KINDS
from maskzoo.show import known_keys, sections

REGISTRY = Registry()


def maskzoo(*arguments: str, columns: int = 100) -> Result:
    return CliRunner().invoke(main, list(arguments), env={"COLUMNS": str(columns)}, prog_name="maskzoo")


def written(folder: Path, code: str) -> ModuleType:
    """A plugin's module, from a file as pip would install it."""
    path = folder / "somebodys_plugin.py"
    path.write_text(code)
    spec: Any = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module
    spec.loader.exec_module(module)
    return module


# ---------------------------------------------------------------------------------------------------------- meanings
@pytest.mark.parametrize("kind", KINDS)
def test_every_built_in_option_says_what_it_means(kind: Any):
    silent = [
        f"{name}.{option.name}"
        for name, cls in REGISTRY.classes(kind).items()
        for option in options_of(cls)
        if not option.meaning
    ]
    assert not silent


def test_every_key_of_a_recipe_says_what_it_means():
    assert not [key.name for section in sections() for key in section.keys if not key.meaning]


def test_no_type_is_the_name_of_an_alias():
    kinds = {"int", "float", "str", "bool", "none", "table", "schedule", "any", "name or table", "list of strategies"}
    for kind in KINDS:
        for cls in REGISTRY.classes(kind).values():
            for option in options_of(cls):
                words = option.type.replace("list[", "").replace("[", "").replace("]", "").replace(",", " |")
                for word in words.split(" | "):
                    assert word.strip() in kinds or word.startswith('"') or word.strip().isdigit(), (cls, option)


PLUGIN = '''
from typing import Literal, TypeAlias
import attrs
from maskzoo import RankedStrategy, define

Direction: TypeAlias = Literal["up", "down"]


@define
class Base(RankedStrategy):
    """Any."""
    name = "base"
    inherited: float = 0.5  # where it starts


@define
class Mine(Base):
    """Mine."""
    name = "mine"
    direction: Direction = "up"  # where it looks
    sizes: list[int] = attrs.field(  # of the windows  # noqa: E501
        factory=lambda: [1, 2]
    )
    # How far it
    # looks.
    reach: int | None = None
    told: str = attrs.field(default="#x", metadata={"help": "as the plugin says"})
    silent: bool = False  # type: ignore[misc]
'''


@pytest.mark.parametrize("head", ["", "from __future__ import annotations\n"], ids=["plain", "from the future"])
def test_a_plugins_types_and_comments_are_read_however_it_writes_them(tmp_path: Path, head: str):
    found = {option.name: option for option in options_of(written(tmp_path, head + PLUGIN).Mine)}
    assert {name: option.type for name, option in found.items()} == {
        "inherited": "float",
        "direction": '"up" | "down"',
        "sizes": "list[int]",
        "reach": "int | none",
        "told": "str",
        "silent": "bool",
    }
    assert {name: option.meaning for name, option in found.items()} == {
        "inherited": "where it starts",
        "direction": "where it looks",
        "sizes": "of the windows",
        "reach": "How far it looks.",
        "told": "as the plugin says",
        "silent": "",
    }
    assert found["sizes"].default == "= [1, 2]"


def test_a_class_without_source_and_a_type_that_nobody_knows_are_shown_all_the_same():
    made = attrs.make_class("Made", {"size": attrs.field(default=3, type=int)})
    assert [(option.line, option.meaning) for option in options_of(made)] == [("size  int  = 3", "")]

    @attrs.define
    class Odd:
        thing: Nowhere = None  # type: ignore[name-defined]  # noqa: F821

    assert options_of(Odd)[0].type == "Nowhere"


@pytest.mark.parametrize(
    ("wanted", "words"),
    [
        (tuple[float, float], "[float, float]"),
        (tuple[int, ...], "list[int]"),
        (dict[str, int], "table"),
        (int | tuple[int, int] | None, "int | [int, int] | none"),
    ],
    ids=str,
)
def test_types_in_words(wanted: Any, words: str):
    assert type_words(wanted) == words


# ------------------------------------------------------------------------------------------------------------ recipe
def test_show_recipe_lists_every_key():
    output = maskzoo("show", "recipe").output
    for section, value in plain_of(Recipe()).items():
        keys = [f"{section}.{key}" for key in value] if isinstance(value, dict) and section != "backbone" else [section]
        for key in keys:
            assert f"  {key}  " in output, key
    assert "train.steps  int | none  = None" in output


def test_show_of_a_section_and_of_a_key():
    assert "train.epochs  int  = 100" in maskzoo("show", "train").output
    assert "optimizer.use" not in maskzoo("show", "train").output
    one = maskzoo("show", "train.epochs").output
    assert "passes over the training images" in one
    assert "train.seed" not in one


def test_a_misspelt_key_is_refused_with_the_nearest():
    result = maskzoo("show", "train.epoch")
    assert result.exit_code == 2
    assert "did you mean 'train.epochs'?" in result.stderr


@pytest.mark.parametrize("columns", [40, 60, 80])
@pytest.mark.parametrize("arguments", [["show", "recipe"], ["show", "knn"], ["show", "block"], ["list", "strategies"]])
def test_nothing_is_cut_on_a_narrow_terminal(arguments: list[str], columns: int):
    output = maskzoo(*arguments, columns=columns).output
    assert "…" not in output
    assert max(map(len, output.splitlines())) <= columns


# -------------------------------------------------------------------------------------------------------------- help
def options_in_help(command: str) -> set[str]:
    words = maskzoo(command, "--help").output.replace(",", " ").split()
    return {word for word in words if word.startswith("--")}


def test_help_of_compare_shows_what_it_takes_and_not_what_it_refuses():
    shown = options_in_help("compare")
    assert {"--maskers", "--seeds", "--ratio"} <= shown
    assert not {"--masker", "--seed", "--schedule"} & shown


def test_every_option_that_is_shown_says_something():
    for name, command in main.commands.items():
        for parameter in command.params:
            if isinstance(parameter, click.Option) and not parameter.hidden:
                assert parameter.help, (name, parameter.name)


def test_curriculum_is_schedule():
    context = main.commands["train"].make_context("train", ["--curriculum", "adversary"])
    assert context.params["schedule"] == "adversary"


def test_every_section_of_a_recipe_has_a_name_of_its_own():
    assert len(known_keys()) == len(set(known_keys()))


# ------------------------------------------------------------------------------------------------------ empty texts
EMPTY = [
    (name, parameter)
    for name, command in main.commands.items()
    for parameter in command.params
    if not getattr(parameter, "is_flag", False) and not isinstance(parameter.type, click.Choice)
]


@pytest.mark.parametrize(("name", "parameter"), EMPTY, ids=lambda value: getattr(value, "name", value))
@pytest.mark.parametrize("text", ["", " "])
def test_an_empty_text_is_refused_by_every_option(name: str, parameter: click.Parameter, text: str):
    option = parameter.opts[0] if isinstance(parameter, click.Option) else None
    result = maskzoo(name, *([option, text] if option else [text] * (2 if name == "export" else 1)))
    assert result.exit_code == 2
    assert result.stderr.startswith(f"Error: {option or str(parameter.name).upper()}: is empty") or name == "export"
