"""What a class must be that a plugin offers: its name, its kind, its declarations and its methods.

What is wrong with a class is said before anything of a run is made, with the distribution, version, file and line.
"""

from __future__ import annotations

import dataclasses
import inspect
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Literal, get_args

import attrs

from maskzoo.blame import owner_of
from maskzoo.errors import DataError, PluginError
from maskzoo.plain import parse_toml
from maskzoo.words import indefinite, likely, nearest

Kind = Literal["strategy", "schedule", "backbone", "objective", "dataset", "evaluator", "logger"]
KINDS: tuple[Kind, ...] = get_args(Kind)
HOOKS: dict[Kind, str] = {
    "strategy": "maskzoo_strategies",
    "schedule": "maskzoo_schedules",
    "backbone": "maskzoo_backbones",
    "objective": "maskzoo_objectives",
    "dataset": "maskzoo_datasets",
    "evaluator": "maskzoo_evaluators",
    "logger": "maskzoo_loggers",
}
NAME = re.compile(r"[A-Za-z0-9]([A-Za-z0-9_.-]{0,62}[A-Za-z0-9_])?")
RESERVED = {"use": "names the plugin itself", "curriculum": "belongs to a part of a composite"}
MARKS: dict[Kind, tuple[str, ...]] = {  # methods by which a class is known, whatever hook offers it
    "strategy": ("scores", "hardness", "soft_mask"),
    "backbone": ("inspect", "tokens"),
    "objective": ("picture", "predict"),
    "logger": ("log", "close"),
}
CALLS: dict[Kind, dict[str, tuple[str, ...]]] = {  # how the methods are called
    "strategy": {
        "setup": ("objective",),
        "count": ("ratio", "patches"),
        "scores": ("context",),
        "hardness": ("context",),
        "mask": ("context",),
        "soft_mask": ("context",),
        "loss": ("context", "mask", "outcome"),
        "after_step": ("context", "mask", "outcome"),
    },
    "schedule": {"__call__": ("progress",), "setup": ("epochs", "steps")},
    "evaluator": {"__call__": ("encoder", "dataset")},
    "objective": {"setup": ("backbone",), "picture": ("images", "mask"), "predict": ("images",)},
    "logger": {
        "start": ("folder", "recipe", "step"),
        "log": ("figures", "step"),
        "image": ("name", "path", "step"),
        "close": ("failed",),
    },
}
REQUIRED: dict[Kind, tuple[str, ...]] = {
    "schedule": ("__call__",),
    "evaluator": ("__call__",),
    "objective": ("setup",),
    "strategy": ("setup", "count", "scores", "mask", "learners", "active", "after_step"),
}
BASES: dict[Kind, str] = {
    "strategy": "subclass maskzoo.Strategy, or maskzoo.RankedStrategy, which have all but the scores",
    "backbone": "subclass torch.nn.Module, and see maskzoo.Backbone",
    "objective": "subclass torch.nn.Module, and see maskzoo.Objective",
}


# ------------------------------------------------------------------------------------------------------------ at load
def refuse_offer(kind: Kind, cls: type) -> None:
    """Raise PluginError for a class that cannot be registered: of an unusable name, another kind, reserved options."""
    name: str = cls.name  # type: ignore[attr-defined]  # looked at before
    if not NAME.fullmatch(name) or not _is_text(name):
        raise PluginError(
            f"{HOOKS[kind]}() names {cls.__qualname__} '{name[:80]}', which cannot be used on the command line or in a "
            "folder's name; a name is at most 64 letters, digits, '-', '_' and '.', beginning with a letter or digit, "
            "and no number"
        )
    other = known_kind(cls)
    if other not in (None, kind):
        assert other is not None
        raise PluginError(
            f"{HOOKS[kind]}() returned {cls.__qualname__}, which is {indefinite(other)} by its methods; offer it in "
            f"{HOOKS[other]}()"
        )
    fields = [field.name for field in attrs.fields(cls) if field.init] if attrs.has(cls) else []
    for option, why in RESERVED.items():
        if option in fields and (option == "use" or kind == "strategy"):
            raise PluginError(f"{cls.__qualname__} has an option '{option}', which in a recipe {why}; rename it")


def known_kind(cls: type) -> Kind | None:
    """What a class is by its methods; None where they do not tell."""
    for kind, marks in MARKS.items():
        known = [callable(getattr(cls, mark, None)) for mark in marks]
        if any(known) if kind == "strategy" else all(known):
            return kind
    return None


def _is_text(name: str) -> bool:
    """Whether the command line would take a name for a text, and not for a number or true."""
    try:
        parse_toml(f"value = {name}", name)
    except DataError:
        return True
    return False


# -------------------------------------------------------------------------------------------- before anything is made
def refuse_half_written(kind: Kind, cls: type) -> None:
    """Raise PluginError for a class that breaks its contract in a way that shows before it is made."""
    for sentence in faults(kind, cls):
        raise PluginError(f"{kind} '{getattr(cls, 'name', cls.__qualname__)}': {owner_of(cls)}: {sentence}")


def faults(kind: Kind, cls: type) -> Iterator[str]:
    """What is wrong with a class, a sentence each, the gravest first."""
    module = kind in BASES
    if module and not _is_module(cls):
        yield f"class {cls.__qualname__} is no torch.nn.Module; {BASES[kind]}"
        return
    lacking = [name for name in REQUIRED.get(kind, ()) if not callable(getattr(cls, name, None))]
    if lacking:
        yield f"class {cls.__qualname__} has no {lacking[0]}{_meant(cls, lacking[0])}; {_remedy(kind, lacking[0])}"
        return
    if module and (dataclasses.is_dataclass(cls) or cls.__hash__ is None):
        decorator = "@dataclass" if dataclasses.is_dataclass(cls) else "@attrs.define"
        yield f"class {cls.__qualname__} is decorated with {decorator}, and a module needs maskzoo.define"
        return
    if kind == "strategy" and not _keeps_parameters(cls):
        yield (
            f"class {cls.__qualname__} overrides nn.Module's __setattr__, so its parameters would be lost; decorate it "
            "with maskzoo.define"
        )
        return
    if kind == "strategy":
        yield from _unwritten(cls)
    yield from wrong_declarations(kind, cls)
    for name, values in CALLS.get(kind, {}).items():
        bound = isinstance(inspect.getattr_static(cls, name, None), staticmethod)  # it is not given itself
        if not _takes(getattr(cls, name, None), len(values) + (not bound)):
            yield f"{name}{inspect.signature(getattr(cls, name))} cannot be called as {name}({', '.join(values)})"


def wrong_declarations(kind: Kind, made: Any) -> Iterator[str]:
    """What is wrong with what a class or an object declares: `needs`, `provides`, `learning`."""
    from maskzoo.protocols import Learning, Need  # torch, which whoever offers a class may not need

    for name in ("needs", "provides"):
        value: Any = getattr(made, name, frozenset())
        if isinstance(value, property):
            continue
        if isinstance(value, str) or not isinstance(value, set | frozenset):
            listed = ", ".join(repr(one) for one in ([value] if isinstance(value, str) else _listed(value)))
            yield f"{name} = {value!r} is no set of names; write {name} = frozenset({{{listed}}})"
            continue
        for one in sorted(value - set(get_args(Need)), key=str):
            if not isinstance(one, str) or likely(one, get_args(Need)):
                yield f"{name} = {_written(value)}: {nearest(str(one), get_args(Need))}"
    learning = getattr(made, "learning", "no")
    if kind == "strategy" and not isinstance(learning, property) and learning not in get_args(Learning):
        yield f"learning = {learning!r}: {nearest(str(learning), get_args(Learning))}"


def _unwritten(cls: type) -> Iterator[str]:
    """The method that a strategy must write and has not, or has misspelt."""
    from maskzoo.protocols import RankedStrategy, Strategy

    def inherited(name: str, base: type) -> bool:
        return getattr(cls, name, None) is getattr(base, name)

    if not inherited("mask", Strategy):
        return
    if issubclass(cls, RankedStrategy) and inherited("scores", RankedStrategy):
        if inherited("hardness", RankedStrategy):
            yield f"class {cls.__qualname__} has no hardness{_meant(cls, 'hardness')}; write hardness(context) [B, N]"
    elif inherited("scores", Strategy):
        yield f"class {cls.__qualname__} has no scores{_meant(cls, 'scores')}; write scores(context) [B, N]"
    learning = getattr(cls, "learning", "no")
    if learning in ("joint", "alternate") and inherited("loss", Strategy):
        yield (
            f"class {cls.__qualname__} learns (learning = '{learning}') and has no loss{_meant(cls, 'loss')}; write "
            "loss(context, mask, outcome)"
        )


def _meant(cls: type, name: str) -> str:
    """A hint at a method whose name is like the one that is missing."""
    from maskzoo.protocols import RankedStrategy

    own = [other for other in dir(cls) if callable(getattr(cls, other)) and not hasattr(RankedStrategy, other)]
    found = likely(name, [other for other in own if not other.startswith("__")])
    return f"() (is {found}() meant?)" if found else "()"


def _remedy(kind: Kind, name: str) -> str:
    if kind in BASES:
        return BASES[kind]
    values = CALLS.get(kind, {}).get(name, ())
    return f"write {name}({', '.join(('self', *values))})"


def _is_module(cls: type) -> bool:
    from torch import nn

    return issubclass(cls, nn.Module)


def _keeps_parameters(cls: type) -> bool:
    """Whether nn.Module sees what is assigned to an instance."""
    from torch import nn

    kept: Any = nn.Module.__setattr__
    return cls.__setattr__ is kept


def _takes(method: Any, count: int) -> bool:
    """Whether a method can be called with so many values, itself among them."""
    if not callable(method) or not inspect.isfunction(method):
        return True
    try:
        inspect.signature(method).bind(*[None] * count)
    except TypeError:
        return False
    except ValueError:
        return True
    return True


def _listed(value: Any) -> list[Any]:
    return list(value) if isinstance(value, list | tuple) else []


def _written(value: set[Any] | frozenset[Any]) -> str:
    return "{" + ", ".join(sorted(repr(one) for one in value)) + "}"


# ------------------------------------------------------------------------------------------------------------- doubts
def doubts(kind: Kind, cls: type) -> Iterator[str]:
    """What looks like a mistake in a class, and may be none."""
    if kind not in ("strategy", "schedule", "evaluator") or "__attrs_attrs__" in vars(cls):
        return
    from maskzoo.protocols import DECLARATIONS

    held: Mapping[str, Any] = vars(cls).get("__annotations__", {})
    meant = [
        name
        for name, wanted in held.items()
        if name in vars(cls) and name not in DECLARATIONS and "ClassVar" not in str(wanted)
    ]
    if meant:
        yield (
            f"'{meant[0]}' of class {cls.__qualname__} looks like an option and is none, since the class is not "
            f"decorated with {'maskzoo.define' if kind == 'strategy' else 'attrs.define'}"
        )


def read_hook(hook: str, call: Callable[[], list[Any]]) -> list[Any]:
    """The classes that a hook returns. Raises PluginError where it returns something else than a list of them."""
    classes = []
    for returned in call():
        if isinstance(returned, type):
            raise PluginError(
                f"{hook}() must return a list of classes, and a class is not iterable: return [{returned.__qualname__}]"
            )
        if isinstance(returned, str | bytes | Mapping) or not hasattr(returned, "__iter__"):
            raise PluginError(f"{hook}() must return a list of classes, got {returned!r}, which is none")
        classes += list(returned)
    return classes
