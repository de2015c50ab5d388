"""A run as plain values: read from TOML, changed by the command line, checked, and turned into live objects.

Every error starts with the path of its key. A value that names a plugin is a *use*: `{ use = "linear", start = 0.5 }`,
or short `"linear:0.5:0.75"`, or, where a schedule is wanted, a bare number.
"""

from __future__ import annotations

import re
import tomllib
import types
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar, Union, get_args, get_origin

import attrs
import cattrs
import tomli_w
from cattrs.errors import (
    ClassValidationError,
    ForbiddenExtraKeysError,
    IterableValidationError,
    IterableValidationNote,
)
from cattrs.gen import make_dict_structure_fn
from torch import nn

from maskzoo.errors import MaskZooError, RecipeError
from maskzoo.protocols import CurriculumSchedule, Part
from maskzoo.registry import Kind, Registry, nearest

Use = str | float | Mapping[str, Any]
T = TypeVar("T")
positive = attrs.validators.gt(0)


@attrs.frozen
class OptimizerRecipe:
    """How parameters are moved: any of timm's optimizers."""

    use: str = "adamw"
    lr: Use = attrs.field(factory=lambda: {"use": "cosine", "start": 1.5e-3, "end": 0.0, "warmup": 0.05})  # absolute
    weight_decay: float = attrs.field(default=0.05, validator=attrs.validators.ge(0))  # not on vectors and biases
    betas: tuple[float, float] = (0.9, 0.95)
    options: Mapping[str, Any] = attrs.field(factory=dict)  # anything else for timm's create_optimizer_v2


@attrs.frozen
class MaskingRecipe:
    """What is hidden."""

    ratio: Use = 0.75  # the share of patches to hide, or a schedule of it
    strategy: Use = "random"
    curriculum: Use | None = None  # None: the strategy's own
    optimizer: OptimizerRecipe | None = None  # of a strategy that learns by itself; None: a copy of the model's


@attrs.frozen
class TeacherRecipe:
    """How fast the teacher follows, where something needs one."""

    decay: Use = attrs.field(factory=lambda: {"use": "cosine", "start": 0.996, "end": 1.0})


@attrs.frozen
class AugmentRecipe:
    """What happens to an image before it is masked."""

    scale: tuple[float, float] = (0.2, 1.0)  # share of the area that a random crop keeps
    flip: bool | None = None  # None: where the data allows it

    def __attrs_post_init__(self) -> None:
        if not 0 < self.scale[0] <= self.scale[1] <= 1:
            raise RecipeError(f"must be two shares of the area, 0 < low <= high <= 1, got {self.scale}", key="scale")


@attrs.frozen
class TrainRecipe:
    """How long, with what, and what is kept."""

    epochs: int = attrs.field(default=30, validator=positive)
    steps: int | None = attrs.field(default=None, validator=attrs.validators.optional(positive))  # overrides epochs
    batch_size: int = attrs.field(default=64, validator=positive)
    seed: int = 0
    device: str = "auto"  # cuda, mps or cpu, whichever is there first
    workers: int | None = attrs.field(default=None, validator=attrs.validators.optional(attrs.validators.ge(0)))
    checkpoint_steps: int | None = attrs.field(default=None, validator=attrs.validators.optional(positive))  # or epoch
    pictures: int = attrs.field(default=5, validator=attrs.validators.ge(0))  # moments of training that are drawn
    max_broken: float = 0.1  # share of the images that may be unreadable


@attrs.frozen
class Recipe:
    """Everything that decides a run."""

    data: Use = "digits"
    backbone: Use = attrs.field(
        factory=lambda: {
            "timm": "vit_tiny_patch16_224",
            "patch_size": "auto",
            "position": "sin-cos",
            "options": {"embed_dim": 96, "depth": 4, "num_heads": 3},
        }
    )
    objective: Use = attrs.field(
        factory=lambda: {"use": "reconstruct", "decoder_dim": 64, "decoder_depth": 2, "norm_pix": False}
    )
    masking: MaskingRecipe = attrs.field(factory=MaskingRecipe)
    optimizer: OptimizerRecipe = attrs.field(factory=OptimizerRecipe)
    teacher: TeacherRecipe = attrs.field(factory=TeacherRecipe)
    augment: AugmentRecipe = attrs.field(factory=AugmentRecipe)
    train: TrainRecipe = attrs.field(factory=TrainRecipe)
    evaluation: tuple[Use, ...] = ("knn",)

    @classmethod
    def from_plain(cls, plain: Mapping[str, Any]) -> Recipe:
        """The recipe that these plain values say; RecipeError names the path of whatever is wrong.

        What a plugin makes of its own options is checked when it is built, by `make`.
        """
        try:
            return _plain_converter().structure(plain, cls)
        except Exception as problem:
            raise RecipeError("\n".join(_sentences(problem, "recipe"))) from problem


def plain_of(recipe: Recipe) -> dict[str, Any]:
    """A recipe as plain values, without those that are None; `Recipe.from_plain` reads it back."""

    def fields(value: Any) -> Any:
        if not attrs.has(type(value)):
            return describe(value)
        held = {field.name: fields(getattr(value, field.name)) for field in attrs.fields(type(value))}
        return {name: plain for name, plain in held.items() if plain is not None}

    return fields(recipe)  # type: ignore[no-any-return]


# ------------------------------------------------------------------------------------------------------ files and keys
def read(path: Path) -> dict[str, Any]:
    """The plain values of a TOML file. Raises RecipeError where it is missing or is no TOML."""
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as problem:
        raise RecipeError(f"cannot read the recipe '{path}': {problem}") from None
    except tomllib.TOMLDecodeError as problem:
        raise RecipeError(f"'{path}' is not valid TOML: {problem}") from None


def write(plain: Mapping[str, Any]) -> str:
    """Plain values as TOML."""
    return tomli_w.dumps(plain)


def put(plain: dict[str, Any], key: str, value: Any) -> None:
    """Set a dotted key, e.g. `masking.strategy.parts[0].depth`, making tables on the way.

    A short use in the way becomes a table: after `masking.strategy = "clmae"` one may put `masking.strategy.depth`.
    """
    steps: list[str | int] = [
        int(step) if step.isdigit() else step for step in re.findall(r"[^.\[\]]+", key) if step.strip()
    ]
    if not steps:
        raise RecipeError(f"'{key}' is no key; write it like train.epochs")
    place: Any = plain
    for position, step in enumerate(steps[:-1]):
        where = ".".join(str(done) for done in steps[: position + 1])
        if isinstance(place, list):
            if not isinstance(step, int) or step >= len(place):
                raise RecipeError(f"recipe.{where}: there is no such item; there are {len(place)}")
        elif step not in place:
            place[step] = {}
        if isinstance(place[step], str):
            place[step] = {"use": place[step]}
        place = place[step]
        if not isinstance(place, dict | list):
            raise RecipeError(f"recipe.{where}: is a single value, so it has no '{steps[position + 1]}'")
    last = steps[-1]
    if isinstance(place, list) and (not isinstance(last, int) or last >= len(place)):
        raise RecipeError(f"recipe.{key}: there is no such item; there are {len(place)}")
    place[last] = value


def parse(text: str) -> Any:
    """A value as TOML writes it (numbers, true, lists, tables), or else the text itself."""
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text


# -------------------------------------------------------------------------------------------------------- live objects
def make(registry: Registry, kind: Kind, use: Use, path: str, **given: Any) -> Any:
    """The live object that a use names, its options checked against the attrs fields of its class.

    `given` fills options that the use leaves open. Raises RecipeError with the path of whatever is wrong.
    """
    try:
        return _Maker(registry).make(kind, use, **given)
    except Exception as problem:
        if isinstance(problem, MaskZooError) and not isinstance(problem, RecipeError):
            raise type(problem)(f"{path}: {problem}") from problem
        raise RecipeError("\n".join(_sentences(problem, path))) from problem


def describe(value: Any) -> Any:
    """A live object as the plain use that would make it again, with every option; None is left out."""
    if isinstance(value, Part):
        plain = describe(value.strategy)
        return plain if value.curriculum is None else {**plain, "curriculum": describe(value.curriculum)}
    if attrs.has(type(value)):
        named = {"use": type(value).name} if hasattr(type(value), "name") else {}
        fields = {field.name: describe(getattr(value, field.name)) for field in attrs.fields(type(value)) if field.init}
        return {**named, **{name: plain for name, plain in fields.items() if plain is not None}}
    if isinstance(value, Mapping):
        return {str(key): describe(item) for key, item in value.items() if item is not None}
    if isinstance(value, list | tuple | nn.ModuleList):
        return [describe(item) for item in value]
    if isinstance(getattr(type(value), "name", None), str):
        return {"use": type(value).name}  # a plugin without attrs fields has no options
    return value


class _Maker:
    """Makes live objects out of uses, to any depth; it lives as long as one call of `make`."""

    def __init__(self, registry: Registry) -> None:
        self.registry = registry
        self.converter = _plain_converter()
        self.converter.register_structure_hook(Part, lambda value, _: self._part(value))
        self.converter.register_structure_hook(nn.ModuleList, lambda value, _: self._parts(value))
        self.converter.register_structure_hook_func(_is_schedule, lambda value, _: self.make("schedule", value))

    def make(self, kind: Kind, use: Use, **given: Any) -> Any:
        table = self._table(kind, use)
        if not isinstance(table.get("use"), str):
            raise RecipeError(f"which {kind}? known: {', '.join(self.registry.classes(kind))}", key="use")
        try:
            cls = self.registry.find(kind, table.pop("use"))
        except RecipeError as problem:
            raise RecipeError(str(problem), key="use") from None
        if not attrs.has(cls):
            if table:
                raise RecipeError(f"'{cls.name}' has no options", key=next(iter(table)))  # type: ignore[attr-defined]
            return cls()
        accepted = {field.alias or field.name for field in attrs.fields(cls) if field.init}
        table = {**{name: value for name, value in given.items() if name in accepted}, **table}
        structure = make_dict_structure_fn(cls, self.converter, _cattrs_forbid_extra_keys=True)
        return structure(table, cls)

    def _table(self, kind: Kind, use: Use) -> dict[str, Any]:
        """A use in its long form; "linear:0:-0.5" gives values to the first options in their order."""
        if isinstance(use, Mapping):
            return dict(use)
        if isinstance(use, int | float) and not isinstance(use, bool) and kind == "schedule":
            return {"use": "constant", "value": float(use)}
        if not isinstance(use, str):
            raise RecipeError(f"expected a {kind}: a name, or a table with `use`, got {use!r}")
        name, *values = use.split(":")
        table: dict[str, Any] = {"use": name}
        if not values:
            return table
        try:
            cls = self.registry.find(kind, name)
        except RecipeError as problem:
            raise RecipeError(str(problem), key="use") from None
        options = [field.name for field in attrs.fields(cls) if field.init] if attrs.has(cls) else []
        if len(values) > len(options):
            raise RecipeError(f"'{use}' gives {len(values)} values, but '{name}' has {len(options)} options: {options}")
        return table | {option: parse(value) for option, value in zip(options, values, strict=False)}

    def _part(self, value: Any) -> Part:
        table = self._table("strategy", value)
        curriculum = table.pop("curriculum", None)
        strategy = self.make("strategy", table)
        if curriculum is None:
            return Part(strategy)
        try:
            return Part(strategy, self.make("schedule", curriculum))
        except Exception as problem:
            raise _At("curriculum", problem) from problem

    def _parts(self, value: Any) -> list[Part]:
        if not isinstance(value, list | tuple):
            raise RecipeError(f"expected a list of strategies, got {value!r}")
        return self.converter.structure(value, list[Part])


# --------------------------------------------------------------------------------------------- checking, and sentences
class _At(Exception):  # noqa: N818
    """Carries another problem, and the key below the current path where it sits."""

    def __init__(self, key: str, problem: BaseException) -> None:
        self.key, self.problem = key, problem


def _plain_converter() -> cattrs.Converter:
    """Values are taken as they are or refused: no "5" for 5, no 5.7 cut down to 5, no true for 1."""
    converter = cattrs.Converter(forbid_extra_keys=True)
    for kind, check in _SCALARS.items():
        converter.register_structure_hook(kind, check)
    converter.register_structure_hook_func(_is_union, lambda value, wanted: _one_of(converter, value, wanted))
    converter.register_structure_hook_func(_is_literal, _literal)
    return converter


def _scalar(wanted: type[T], accepted: tuple[type, ...], words: str) -> Callable[[Any, Any], T]:
    def check(value: Any, _: Any) -> T:
        if not isinstance(value, accepted) or (isinstance(value, bool) and wanted is not bool):
            raise RecipeError(f"expected {words}, got {value!r}")
        return wanted(value)  # type: ignore[call-arg]

    return check


_SCALARS: dict[Any, Callable[[Any, Any], Any]] = {
    bool: _scalar(bool, (bool,), "true or false"),
    int: _scalar(int, (int,), "a whole number"),
    float: _scalar(float, (int, float), "a number"),
    str: _scalar(str, (str,), "a text"),
}


def _is_union(wanted: Any) -> bool:
    return get_origin(wanted) in (Union, types.UnionType)


def _one_of(converter: cattrs.Converter, value: Any, wanted: Any) -> Any:
    """A value of a union: the first member that takes it. What a use looks like is checked when it is made."""
    if wanted in (Use, Use | None):
        return value
    members = [member for member in get_args(wanted) if member is not type(None)]
    if value is None and len(members) < len(get_args(wanted)):
        return None
    problems: list[Exception] = []
    for member in members:
        try:
            return converter.structure(value, member)
        except Exception as problem:
            problems.append(problem)
    if len(problems) == 1:
        raise problems[0]
    raise RecipeError("; or ".join(sentence for problem in problems for sentence in _sentences(problem, "")))


def _is_schedule(wanted: Any) -> bool:
    return wanted is CurriculumSchedule


def _is_literal(wanted: Any) -> bool:
    origin: Any = get_origin(wanted)  # for mypy, which takes it for a ParamSpec
    return origin is Literal


def _literal(value: Any, wanted: Any) -> Any:
    if value not in get_args(wanted):
        choices = ", ".join(repr(choice) for choice in get_args(wanted))
        raise RecipeError(f"expected one of {choices}, got {value!r}")
    return value


def _sentences(problem: BaseException, path: str) -> list[str]:
    """Whatever went wrong while structuring, as lines "path: sentence"."""
    if isinstance(problem, IterableValidationError | ClassValidationError):
        placed, other = problem.group_exceptions()
        lines = []
        for inner, note in placed:
            step = f"[{note.index}]" if isinstance(note, IterableValidationNote) else f".{note.name}"
            lines += _sentences(inner, path + step)
        for inner in other:
            lines += _sentences(inner, path)
        return lines
    if isinstance(problem, _At):
        return _sentences(problem.problem, f"{path}.{problem.key}")
    if isinstance(problem, ForbiddenExtraKeysError):
        known = [field.name for field in attrs.fields(problem.cl) if field.init]
        return [_line(f"{path}.{key}", f"no such key; {nearest(key, known)}") for key in sorted(problem.extra_fields)]
    if isinstance(problem, RecipeError):
        return [_line(f"{path}.{problem.key}" if problem.key else path, str(problem))]
    if isinstance(problem, KeyError):
        return [_line(path, "is required")]
    if isinstance(problem, AttributeError) or (isinstance(problem, TypeError) and "iterable" in str(problem)):
        return [_line(path, "expected a table or a list of other values")]
    return [_line(path, str(problem.args[0]) if problem.args else str(problem))]


def _line(path: str, sentence: str) -> str:
    return f"{path}: {sentence}" if path else sentence


def shown(plain: Any, path: str = "") -> dict[str, Any]:
    """Nested plain values as flat {dotted path: value}, to compare two recipes key by key."""
    if isinstance(plain, Mapping):
        items: Sequence[tuple[str, Any]] = [(f"{path}.{key}" if path else str(key), plain[key]) for key in plain]
    elif isinstance(plain, list | tuple) and any(isinstance(item, Mapping) for item in plain):
        items = [(f"{path}[{position}]", item) for position, item in enumerate(plain)]
    else:
        return {path: list(plain) if isinstance(plain, tuple) else plain}
    return {name: value for key, item in items for name, value in shown(item, key).items()}
