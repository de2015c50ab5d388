"""What an option is: its type and default in words, and its meaning, which is the comment beside it in the source.

A plugin's author writes nothing more than a comment behind (or above) the field. Where there is no source, or none
is wanted, `attrs.field(metadata={"help": "..."})` says it.
"""

from __future__ import annotations

import ast
import functools
import inspect
import io
import re
import sys
import textwrap
import tokenize
import types
from collections.abc import Mapping
from typing import Any, Literal, Union, get_args, get_origin

import attrs

NOT_MEANT = re.compile(r"\s*(type:|noqa|pragma:|ruff:|mypy:)")  # comments for tools
NAMED_TYPES = {"ModuleList": "list of strategies", "CurriculumSchedule": "schedule", "NoneType": "none", "Any": "any"}


@attrs.frozen
class Option:
    """One option of a class, in words."""

    name: str
    type: str
    default: str
    meaning: str  # empty where nothing says it

    @property
    def line(self) -> str:
        """Name, type and default."""
        return f"{self.name}  {self.type}  {self.default}"


def options_of(cls: type, aliases: Mapping[Any, str] | None = None) -> list[Option]:
    """The options of a class of attrs, in their order; `aliases` names types that are better not spelled out."""
    if not attrs.has(cls):
        return []
    return [
        Option(
            field.name, type_words(_resolved(cls, field), aliases), default_words(field.default), _meaning(cls, field)
        )
        for field in attrs.fields(cls)
        if field.init
    ]


def type_words(wanted: Any, aliases: Mapping[Any, str] | None = None) -> str:
    """A type as a recipe's author reads it: the values of a Literal, the items of a list."""
    if isinstance(wanted, str):
        return wanted
    for alias, words in (aliases or {}).items():
        rest = set(_members(wanted)) - set(_members(alias))
        if set(_members(alias)) <= set(_members(wanted)):
            return " | ".join([words, *(type_words(one, aliases) for one in rest)])
    origin: Any = get_origin(wanted)
    arguments = get_args(wanted)
    if origin is Literal:
        return " | ".join(f'"{value}"' if isinstance(value, str) else str(value) for value in arguments)
    if origin in (Union, types.UnionType):
        return " | ".join(type_words(one, aliases) for one in arguments)
    if origin is tuple and Ellipsis not in arguments:
        return f"[{', '.join(type_words(one, aliases) for one in arguments)}]"
    if origin in (list, tuple, set, frozenset) or (isinstance(origin, type) and origin.__name__ == "Sequence"):
        return f"list[{type_words(arguments[0], aliases)}]"
    if origin is not None and issubclass(origin, Mapping):
        return "table"
    if wanted in (dict, Mapping):
        return "table"
    name = getattr(wanted, "__name__", str(wanted))
    return NAMED_TYPES.get(name, name)


def default_words(default: Any) -> str:
    """A default as `show` prints it."""
    if default is attrs.NOTHING:
        return "required"
    if isinstance(default, attrs.Factory):  # type: ignore[arg-type]
        default = {} if default.takes_self else default.factory()
    return f"= {default!r}"


def _members(wanted: Any) -> tuple[Any, ...]:
    return get_args(wanted) if get_origin(wanted) in (Union, types.UnionType) else (wanted,)


def _resolved(cls: type, field: attrs.Attribute[Any]) -> Any:
    """The type of a field; where it is written as text, what that text means in the module that wrote it."""
    if not isinstance(field.type, str):
        return field.type
    owner = _owner(cls, field.name)
    known = {**vars(sys.modules[owner.__module__])} if owner.__module__ in sys.modules else {}
    try:
        return eval(field.type, known, dict(vars(owner)))  # an annotation of a plugin that has been imported anyway
    except Exception:  # names that it imports for type checkers alone
        return field.type


def _owner(cls: type, name: str) -> type:
    """The class that declares an option, which `cls` may have inherited."""
    return next((one for one in cls.__mro__ if name in vars(one).get("__annotations__", {})), cls)


def _meaning(cls: type, field: attrs.Attribute[Any]) -> str:
    told = field.metadata.get("help")
    return str(told) if told else _comments(_owner(cls, field.name)).get(field.name, "")


@functools.cache
def _comments(cls: type) -> Mapping[str, str]:
    """The comment at each field of a class: behind it, or else in the lines above it."""
    try:
        source = textwrap.dedent(inspect.getsource(cls))
        (body,) = [node.body for node in ast.parse(source).body if isinstance(node, ast.ClassDef)]
        tokens = list(tokenize.generate_tokens(io.StringIO(source).readline))
    except (OSError, TypeError, ValueError, SyntaxError, tokenize.TokenError):  # no source, or none that can be read
        return {}
    lines = {token.start[0]: token for token in tokens if token.type == tokenize.COMMENT}
    alone = {row for row, token in lines.items() if not token.line[: token.start[1]].strip()}
    found = {}
    for node in body:
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            rows = [row for row in range(node.lineno, (node.end_lineno or node.lineno) + 1) if row in lines]
            if not any(_plain(lines[row].string) for row in rows):
                first = node.lineno - 1
                while first in alone:
                    first -= 1
                rows = list(range(first + 1, node.lineno))
            found[node.target.id] = " ".join(filter(None, (_plain(lines[row].string) for row in rows)))
    return found


def _plain(comment: str) -> str:
    """A comment without its mark, and without what is meant for tools."""
    parts = re.split(r"(?:^|\s)#", comment)
    return " ".join(part.strip() for part in parts if part.strip() and not NOT_MEANT.match(part))
