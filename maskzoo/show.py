"""What `maskzoo show` prints: a class that can be named in a recipe, or the keys of a recipe."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, get_args, get_type_hints

import attrs
from rich.console import Group
from rich.markup import escape
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from maskzoo.meanings import Option, options_of
from maskzoo.recipe import Recipe, Use
from maskzoo.registry import Kind, Plugin, indefinite

ALIASES = {Use: "name or table"}
FACTS = (
    ("paper", "paper"),
    ("needs", "needs"),
    ("provides", "provides"),
    ("learns", "learning"),
    ("default curriculum", "default_curriculum"),
    ("default ratio", "default_ratio"),
)


@attrs.frozen
class Section:
    """A section of a recipe, with its keys by their whole path."""

    name: str  # empty for what stands at the top
    about: str
    keys: Sequence[Option]


def description(kind: Kind, cls: Any, plugin: Plugin | None) -> Group:
    """What there is to know of one class."""
    title = f"[bold]{escape(cls.name)}[/bold], {indefinite(kind)}"
    facts = Table(box=None, pad_edge=False, show_header=False)
    facts.add_column(overflow="fold")
    facts.add_column(overflow="fold")
    for name, attribute in FACTS:
        if words := _fact(getattr(cls, attribute, None)):
            facts.add_row(f"{name}  ", escape(words))
    options = options_of(cls)
    if kind == "strategy" and getattr(cls, "default_curriculum", None) is None:
        composed = any(option.name == "parts" for option in options)
        facts.add_row("default curriculum  ", "that of its parts" if composed else "none: no hardness")
    if plugin is not None:
        facts.add_row("from  ", escape(plugin.owner))
    return Group(title, escape(_prose(cls)), "", facts, "", *listed(options))


def listed(options: Sequence[Option], title: str = "options") -> Iterator[Any]:
    """The options, each with its meaning below it, so that nothing has to be cut on a narrow terminal."""
    yield f"[bold]{escape(title)}[/bold]" if options else "no options"
    for option in options:
        yield Padding(Text(option.line, overflow="fold"), (0, 0, 0, 2))
        if option.meaning:
            yield Padding(Text(option.meaning, style="dim", overflow="fold"), (0, 0, 0, 6))


def first_line(cls: type) -> str:
    """The first sentence of a class's docstring."""
    return (cls.__doc__ or "").strip().split("\n")[0]


# --------------------------------------------------------------------------------------------------------- the recipe
def sections() -> list[Section]:
    """Every key that a recipe has; those of plugins are told by their own names."""
    hints = get_type_hints(Recipe)
    tables = {name: one for name, wanted in hints.items() for one in (wanted, *get_args(wanted)) if attrs.has(one)}
    made = [Section("", _prose(Recipe), [one for one in options_of(Recipe, ALIASES) if one.name not in tables])]
    for name, cls in tables.items():
        keys = [attrs.evolve(one, name=f"{name}.{one.name}") for one in options_of(cls, ALIASES)]
        made.append(Section(name, _prose(cls), keys))
    return made


def keys_below(name: str) -> list[Section]:
    """The sections that `maskzoo show NAME` prints: all for `recipe`, or one, or a single key."""
    if name == "recipe":
        return sections()
    chosen = []
    for section in sections():
        keys = [key for key in section.keys if name in (section.name or None, key.name)]
        if keys:
            chosen.append(attrs.evolve(section, keys=keys))
    return chosen


def printed(section: Section) -> Group:
    """A section of a recipe, as it is printed."""
    return Group(*listed(section.keys, f"[{section.name}]" if section.name else "recipe"), Text(""))


def known_keys() -> list[str]:
    """All names that `keys_below` knows."""
    made = sections()
    keys = [key.name for section in made for key in section.keys]
    return ["recipe", *(section.name for section in made if section.name), *keys]


def _prose(cls: type) -> str:
    return "\n\n".join(" ".join(part.split()) for part in (inspect.getdoc(cls) or "").split("\n\n"))


def _fact(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, frozenset):
        return ", ".join(sorted(value)) or "nothing"
    if isinstance(value, Mapping):
        return ", ".join(f"{key} = {option!r}" for key, option in value.items())
    return value if isinstance(value, str) else ""
