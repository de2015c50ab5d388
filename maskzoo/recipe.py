"""A run as plain values: read from TOML, changed by the command line, checked, and turned into live objects.

Every error starts with the path of its key. A value that names a plugin is a *use*: `{ use = "linear", start = 0.5 }`,
or short `"linear:0.5:0.75"`, or, where a schedule is wanted, a bare number.
"""

from __future__ import annotations

import functools
import math
import re
import types
from collections.abc import Callable, Collection, Iterator, Mapping
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
    StructureHandlerNotFoundError,
)
from cattrs.gen import make_dict_structure_fn
from torch import nn

from maskzoo.blame import distribution_of, owner_of, plugin_error, refuses
from maskzoo.bounds import MOST_EPOCHS, MOST_IMAGES, MOST_SIDE, MOST_STEPS, MOST_WORKERS, between
from maskzoo.errors import ContractError, DataError, MaskZooError, PluginError, RecipeError
from maskzoo.offers import refuse_half_written, wrong_declarations
from maskzoo.plain import (
    DATA_PLACES,
    FREE_KEYS,
    is_utf8,
    named,
    not_empty,
    parse_toml,
    printable,
    quoted,
    read_toml,
    same,
    same_place,
    shown,
)
from maskzoo.protocols import CurriculumSchedule, Part
from maskzoo.registry import Kind, Registry, indefinite, nearest

Use = str | float | Mapping[str, Any]
T = TypeVar("T")
MOST_NESTED = 50  # tables and lists within each other
LONGEST_KEY = 120  # letters of a key's path in a message
positive = attrs.validators.gt(0)
IN_SHORT = {"recipe.weights": "file"}  # what a text alone is in a table; elsewhere it is `use`
KIND_OF_KEY: Mapping[str, Kind] = {  # what is named at a key of a recipe; elsewhere it is a schedule
    "data": "dataset",
    "backbone": "backbone",
    "objective": "objective",
    "strategy": "strategy",
    "evaluation": "evaluator",
    "loggers": "logger",
}


def _shares(recipe: object, field: attrs.Attribute[Any], values: tuple[float, ...] | None) -> None:
    """Refuse shares of moving averages outside [0, 1)."""
    if any(not 0 <= value < 1 for value in values or ()):
        raise ValueError(f"{field.name}: must each be at least 0 and less than 1, got {quoted(values)}")


@attrs.frozen
class OptimizerRecipe:
    """How parameters are moved: any of timm's optimizers."""

    use: str = "adamw"  # name of one of timm's optimizers
    # absolute rate, a number or a schedule; open: cosine from 1.5e-4 per 256 images to 0, warm-up 0.05
    lr: Use | None = None
    # of weights; not of vectors and biases
    weight_decay: float = attrs.field(default=0.05, validator=between(0, 1e6))
    # of optimizers that have them; open: (0.9, 0.95), or the optimizer's own where it takes three
    betas: tuple[float, ...] | None = attrs.field(default=None, validator=_shares)
    layer_decay: float | None = attrs.field(  # rate of each layer of the backbone to that of the next; None: all alike
        default=None, validator=attrs.validators.optional(attrs.validators.and_(positive, attrs.validators.le(1.0)))
    )
    clip: float | None = attrs.field(  # the largest norm of the whole gradient; None: no limit
        default=None, validator=attrs.validators.optional(attrs.validators.and_(positive, attrs.validators.le(1e30)))
    )
    options: Mapping[str, Any] = attrs.field(factory=dict)  # anything else for timm's create_optimizer_v2


@attrs.frozen
class MaskingRecipe:
    """What is hidden."""

    ratio: Use | None = None  # share of patches to hide, a number or a schedule; None: the objective's own
    strategy: Use = "random"  # the masker
    curriculum: Use | None = None  # schedule of the factor, +1 partner to -1 adversary; None: the masker's own
    # table like [optimizer], for a masker with a step of its own; None: the model's
    optimizer: OptimizerRecipe | None = None
    # steps of the model to one of such a strategy
    strategy_every: int = attrs.field(default=1, validator=between(1, MOST_STEPS))


@attrs.frozen
class TeacherRecipe:
    """How fast the teacher follows, where something needs one."""

    # share that an EMA teacher keeps of itself per step, a number or a schedule
    decay: Use = attrs.field(factory=lambda: {"use": "cosine", "start": 0.996, "end": 1.0})


@attrs.frozen
class AugmentRecipe:
    """What happens to an image before it is masked."""

    scale: tuple[float, float] = (0.2, 1.0)  # share of the area that a random crop keeps
    flip: bool | None = None  # whether images are mirrored at random; None: where the data set allows it

    def __attrs_post_init__(self) -> None:
        if not 0 < self.scale[0] <= self.scale[1] <= 1:
            raise RecipeError(f"must be two shares of the area, 0 < low <= high <= 1, got {self.scale}", key="scale")


@attrs.frozen
class TrainRecipe:
    """How long, with what, and what is kept."""

    epochs: int = attrs.field(default=100, validator=between(1, MOST_EPOCHS))  # passes over the training images
    # optimizer steps of the run; overrides epochs
    steps: int | None = attrs.field(default=None, validator=attrs.validators.optional(between(1, MOST_STEPS)))
    batch_size: int | None = (
        attrs.field(  # of all processes and micro-batches; None: a quarter of the images, at most 256
            default=None, validator=attrs.validators.optional(between(1, MOST_IMAGES))
        )
    )
    # micro-batches of a step: less memory, same batch
    accumulate: int = attrs.field(default=1, validator=between(1, MOST_IMAGES))
    # random seed of weights, data order, crops and masks
    seed: int = attrs.field(default=0, validator=[attrs.validators.ge(0), attrs.validators.lt(2**63)])
    device: str = "auto"  # auto, cuda, mps or cpu; auto: whichever of these is there first
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"  # auto: bf16 where the hardware has it, else fp32
    compile: bool = False  # whether the networks' blocks go through torch.compile
    recompute: bool = False  # whether blocks recompute activations in the backward pass: less memory, more time
    parallel: Literal["ddp", "fsdp2"] = "ddp"  # with several processes: a whole model in each, or spread over them
    # processes that load images; None: as many as is usual for the device
    workers: int | None = attrs.field(default=None, validator=attrs.validators.optional(between(0, MOST_WORKERS)))
    # steps between checkpoints; None: an epoch
    checkpoint_steps: int | None = attrs.field(
        default=None, validator=attrs.validators.optional(between(1, MOST_STEPS))
    )
    skip: int = attrs.field(  # steps in a row whose loss or gradient is not finite, before the run goes back or stops
        default=10, validator=between(0, MOST_STEPS)
    )
    go_back: int = attrs.field(  # times that a diverged run returns to its last checkpoint, each time at half the rate
        default=2, validator=between(0, 1000)
    )
    loggers: tuple[Use, ...] = ()  # trackers that metrics also go to, e.g. "tensorboard"
    # moments of training at which masks are drawn
    pictures: int = attrs.field(default=5, validator=between(0, 1000))
    max_broken: float = attrs.field(  # share of the images that may be unreadable
        default=0.1, validator=[attrs.validators.ge(0.0), attrs.validators.le(1.0)]
    )

    @property
    def batch(self) -> int:
        """The batch size of a settled recipe. Raises RecipeError where it is still open (see `maskzoo.defaults`)."""
        if self.batch_size is None:
            raise RecipeError("is open, and depends on the number of images", key="train.batch_size")
        return self.batch_size


def _two_sides(recipe: object, field: attrs.Attribute[Any], sides: tuple[int, int] | None) -> None:
    """Refuse a grid without rows or columns, or with more than images have."""
    if sides is not None and not all(0 < side <= MOST_SIDE for side in sides):
        raise ValueError(f"{field.name}: must be rows and columns, from 1 to {MOST_SIDE}, got {quoted(list(sides))}")


@attrs.frozen
class WeightsRecipe:
    """From which weights the backbone starts; a text alone is the file."""

    # a run, a checkpoint or a weights file; `weights = "FILE"` says the same
    file: str = attrs.field(validator=not_empty)
    # where in the file the backbone's weights are, e.g. "target_encoder"; None: the only place that fits
    part: str | None = attrs.field(default=None, validator=not_empty)
    # rows and columns of the file's table of positions; None: as the file tells
    grid: tuple[int, int] | None = attrs.field(default=None, validator=_two_sides)
    # "adapt": weights for 3 channels become some for the data's, as timm makes them; None: they are refused
    channels: Literal["adapt"] | None = None


@attrs.frozen
class Recipe:
    """Everything that decides a run."""

    data: Use = "digits"  # the data set
    backbone: Use = attrs.field(  # the encoder: a timm model or a registered backbone
        factory=lambda: {
            "timm": "vit_small_patch16_224",
            "patch_size": "auto",
            "position": "sin-cos",
            "init": "mae",
        }
    )
    weights: WeightsRecipe | None = None
    objective: Use = "reconstruct"  # what the model learns by
    masking: MaskingRecipe = attrs.field(factory=MaskingRecipe)
    optimizer: OptimizerRecipe = attrs.field(factory=OptimizerRecipe)
    teacher: TeacherRecipe = attrs.field(factory=TeacherRecipe)
    augment: AugmentRecipe = attrs.field(factory=AugmentRecipe)
    train: TrainRecipe = attrs.field(factory=TrainRecipe)
    evaluation: tuple[Use, ...] = ("knn", "classifier")  # evaluators that run before and after training

    @classmethod
    def from_plain(cls, plain: Mapping[str, Any]) -> Recipe:
        """The recipe that these plain values say; RecipeError names the path of whatever is wrong.

        What a plugin makes of its own options is checked when it is built, by `make`.
        """
        try:
            _refuse_unwritable(plain)
            return _plain_converter().structure(_of_today(plain), cls)
        except Exception as problem:
            raise RecipeError("\n".join(_sentences(problem, "recipe"))) from problem


def _refuse_unwritable(value: Any, key: str = "", depth: int = 0, *, finite: bool = False) -> None:
    """Refuse what a TOML file cannot hold, or no reader of one takes, since a run's recipe is kept in a file.

    With `finite`, refuse NaN and infinite numbers too, which no option means.
    """
    problem = ""
    if depth > MOST_NESTED:
        raise RecipeError(f"tables and lists are nested more than {MOST_NESTED} deep", key=key[:LONGEST_KEY])
    if isinstance(value, Mapping):
        for name, item in value.items():
            _refuse_unwritable(str(name), key, depth)
            _refuse_unwritable(item, f"{key}.{name}" if key else str(name), depth + 1, finite=finite)
    elif isinstance(value, list | tuple):
        for position, item in enumerate(value):
            _refuse_unwritable(item, f"{key}[{position}]", depth + 1, finite=finite)
    elif isinstance(value, int) and not -(2**63) <= value < 2**63:
        problem = f"a whole number has at most 64 bits, got {quoted(value)}"
    elif finite and isinstance(value, float) and not math.isfinite(value):
        problem = f"must be a finite number, got {value}"
    elif isinstance(value, str) and "\0" in value:
        problem = f"a text has no NUL characters, got {quoted(value)}"
    elif isinstance(value, str) and not is_utf8(value):
        problem = (
            f"'{printable(value)}' is not UTF-8, and a recipe holds nothing else; rename what is called so, or name a "
            "link to it (ln -s)"
        )
    if problem:
        raise RecipeError(problem, key=key)


def _of_today(plain: Mapping[str, Any]) -> Mapping[str, Any]:
    """Plain values in which what an older MaskZoo called otherwise has its name of today.

    The objective `reconstruct` had norm_pix in place of a target.
    """
    objective = plain.get("objective") if isinstance(plain, Mapping) else None
    if not isinstance(objective, Mapping) or "norm_pix" not in objective:
        return plain
    named, norm_pix = str(objective.get("use")).split(":")[0], objective["norm_pix"]
    if named != "reconstruct":
        return plain
    if "target" in objective or not isinstance(norm_pix, bool):
        raise RecipeError('is called target now, which is "norm_pixels" or "pixels"', key="objective.norm_pix")
    rest = {name: value for name, value in objective.items() if name != "norm_pix"}
    return {**plain, "objective": {**rest, "target": "norm_pixels" if norm_pix else "pixels"}}


def plain_of(recipe: Recipe) -> dict[str, Any]:
    """A recipe as plain values, without those that are None; `Recipe.from_plain` reads it back."""

    def fields(value: Any) -> Any:
        if not attrs.has(type(value)):
            return describe(value)
        held = {field.name: fields(getattr(value, field.name)) for field in attrs.fields(type(value))}
        held = {name: plain for name, plain in held.items() if plain is not None}
        return held["file"] if isinstance(value, WeightsRecipe) and held.keys() == {"file"} else held

    return fields(recipe)  # type: ignore[no-any-return]


def completed(plain: Any, registry: Registry, kind: Kind = "schedule") -> Any:
    """A resolved recipe of an older MaskZoo, with the options that its plugins have got since at their defaults."""
    if isinstance(plain, list | tuple):
        return [completed(item, registry, kind) for item in plain]
    if not isinstance(plain, Mapping):
        return plain
    cls = registry.classes(kind).get(str(plain.get("use")))
    fields = attrs.fields(cls) if cls is not None and attrs.has(cls) else ()
    newer = [field for field in fields if field.init and field.default is not attrs.NOTHING and field.name not in plain]
    defaults = {
        field.name: describe(field.default.factory() if hasattr(field.default, "factory") else field.default)
        for field in newer
        if not getattr(field.default, "takes_self", False)
    }
    before: Any = getattr(cls, "before", dict)  # what options that depend on others would have been
    defaults |= {name: value for name, value in before(plain).items() if name not in plain}
    held = {
        name: completed(item, registry, kind if name == "parts" else KIND_OF_KEY.get(name, "schedule"))
        for name, item in plain.items()
    }
    return {**defaults, **held}


def differing(
    stored: Mapping[str, Any], recipe: Mapping[str, Any], registry: Registry, *, moved: bool = False
) -> list[str]:
    """A clause for each key in which a stored recipe and a session's differ, and that may not change midway.

    A folder of data may have `moved` where something else knows its images again, as a checkpoint does.
    """
    # Through Recipe, so that a key which is newer than that run has its default there; so have plugins' options,
    # save those that are None here and so not written.
    plain, here = plain_of(Recipe.from_plain(stored)), shown(recipe)
    known = shown(plain)
    there = {key: value for key, value in shown(completed(plain, registry)).items() if key in known or key in here}
    return [
        f"recipe.{key} is {quoted(there.get(key))} there and {quoted(here.get(key))} here"
        for key in sorted(there.keys() | here.keys())
        if key.split("[")[0] not in FREE_KEYS
        and not same_place(key, there.get(key), here.get(key))
        and not (moved and key in DATA_PLACES)
    ]


# ------------------------------------------------------------------------------------------------------ files and keys
def read(path: Path) -> dict[str, Any]:
    """The plain values of a TOML file. Raises RecipeError where it is missing or is no TOML."""
    try:
        return read_toml(path)
    except DataError as problem:
        raise RecipeError(f"the recipe {problem}") from None


def write(plain: Mapping[str, Any]) -> str:
    """Plain values as TOML."""
    return tomli_w.dumps(plain)


def put(plain: dict[str, Any], key: str, value: Any) -> None:
    """Set a dotted key, e.g. `masking.strategy.parts[0].depth`, making tables on the way.

    A short use in the way becomes a table: after `masking.strategy = "clmae"` one may put `masking.strategy.depth`.
    """
    if not re.fullmatch(r"[\w-]+(\.[\w-]+|\[\d+\])*", key):
        raise RecipeError(f"'{key}' is no key; write it like train.epochs, or masking.strategy.parts[0].use")
    names = [int(index) if index else name for name, index in re.findall(r"([\w-]+)|\[(\d+)\]", key)]
    place: Any = plain
    where = "recipe"
    for position, name in enumerate(names):
        if isinstance(name, int) != isinstance(place, list):
            what = "a list, so its items are [0], [1], ..." if isinstance(place, list) else "no list"
            raise RecipeError(f"{where}: is {what}")
        if isinstance(name, int) and name >= len(place):
            raise RecipeError(f"{where}[{name}]: there is no such item; there are {len(place)}")
        where += f"[{name}]" if isinstance(name, int) else f".{name}"
        if position == len(names) - 1:
            place[name] = value
            return
        if not isinstance(name, int):
            place.setdefault(name, {})
        if isinstance(place[name], str):
            place[name] = {IN_SHORT.get(where, "use"): place[name]}
        place = place[name]
        if not isinstance(place, dict | list):
            raise RecipeError(f"{where}: is a single value, so it has no '{names[position + 1]}'")


def put_beside(plain: dict[str, Any], key: str, value: Any) -> None:
    """Set a dotted key of a recipe, beside the defaults of the section that it lies in where that is left open.

    `linear.epochs` is an option of the recipe's evaluator of that name, as in `maskzoo evaluate`.
    """
    defaults = plain_of(Recipe())
    names = [index or name for name, index in re.findall(r"([\w-]+)|\[(\d+)\]", key)]
    if names and names[0] not in defaults and len(names) > 1:
        listed = plain.get("evaluation", defaults["evaluation"])
        found = (
            [place for place, use in enumerate(listed) if named(use) == names[0]] if isinstance(listed, list) else []
        )
        for number in found:
            plain["evaluation"] = listed
            put(plain, f"evaluation[{number}]{key.removeprefix(names[0])}", value)
        if found:
            return
    place: Any = plain
    for name in names[:-1]:  # the key itself is about to be set
        if not isinstance(place, dict) or not isinstance(defaults, Mapping):
            break
        if name not in place and name in defaults:
            place[name] = defaults[name]
        place, defaults = place.get(name), defaults.get(name, {})
    put(plain, key, value)


def long_form(registry: Registry, kind: Kind, use: Use) -> dict[str, Any]:
    """A use as a table: "linear:0:-0.5" gives values to the first options of its class. Raises RecipeError."""
    return _Maker(registry).long_form(kind, use)


def suits(value: Any, wanted: Any) -> bool:
    """Whether an option of this type could be given such a value; a range that its class checks is not looked at."""
    try:
        _plain_converter().structure(value, wanted)
    except StructureHandlerNotFoundError:  # a schedule, or parts, which are looked at when they are made
        return True
    except _Items as problem:
        return not any(isinstance(one, RecipeError) for one in problem.problems.values())
    except Exception:  # cattrs raises its own, and whatever the type does
        return False
    return True


def parse(text: str, where: str = "the value") -> Any:
    """A value as TOML writes it (numbers, true, lists, tables), or else the text itself.

    Raises DataError, beginning with `where`, for a number beyond 64 bits, and for what is nested too deeply.
    """
    try:
        table = parse_toml(f"value = {text}", where)
    except DataError as problem:
        if " is not valid TOML" not in str(problem):
            raise
        return text
    return table["value"] if len(table) == 1 else text


# -------------------------------------------------------------------------------------------------------- live objects
def make(registry: Registry, kind: Kind, use: Use, path: str, **given: Any) -> Any:
    """The live object that a use names, its options checked against the attrs fields of its class.

    `given` fills options that the use leaves open. Raises RecipeError with the path of whatever is wrong.
    """
    return _at(path, lambda: _Maker(registry).make(kind, use, **given))


def weights_of(plain: Any, path: str) -> WeightsRecipe:
    """A file of weights as a recipe names it, by a text or a table. RecipeError begins with the path of its key."""
    made: WeightsRecipe = _at(path, lambda: _plain_converter().structure(plain, WeightsRecipe))
    return made


def check_readable(plain: Mapping[str, Any], registry: Registry) -> None:
    """Raise PluginError where a resolved recipe, written to a file and read back, is not the same or cannot be made.

    It is what a run is resumed, evaluated and repeated by. Nothing is made but what is part of something else.
    """
    try:
        back = parse_toml(write(plain), "the resolved recipe")
        again = plain_of(Recipe.from_plain(back))
    except (MaskZooError, TypeError, ValueError) as problem:
        raise PluginError(f"the run could not be opened again by its own recipe: {problem}") from problem
    there, here = shown(again), shown(plain)
    for key in sorted(there.keys() | here.keys()):
        if not same(there.get(key), here.get(key)):
            raise PluginError(
                f"the run could not be opened again by its own recipe: recipe.{key} is {quoted(here.get(key))}, and "
                f"{quoted(there.get(key))} when it is read back"
            )
    uses: list[tuple[str, Kind, Any]] = [
        (name, KIND_OF_KEY[name], back[name]) for name in ("data", "backbone", "objective") if name in back
    ]
    uses += [("masking.strategy", "strategy", back["masking"]["strategy"])]
    uses += [(f"evaluation[{number}]", "evaluator", use) for number, use in enumerate(back["evaluation"])]
    uses += [(f"train.loggers[{number}]", "logger", use) for number, use in enumerate(back["train"]["loggers"])]
    for path, kind, use in uses:
        if not (kind == "dataset" and set(use) == {"use"}):  # it may have been made by hand, and be in no registry
            try:
                _at(f"recipe.{path}", functools.partial(_Maker(registry, making=False).structured, kind, use))
            except RecipeError as problem:
                owner = distribution_of(registry.find(kind, use["use"]))
                raise PluginError(
                    f"{problem}; the run could not be opened again: {owner or 'MaskZoo'} has changed its own option"
                ) from problem


def _at(path: str, call: Callable[[], Any]) -> Any:
    """What a call of a _Maker gives; what is wrong begins with the key's path."""
    try:
        return call()
    except Exception as problem:
        leaves = list(_leaves(problem, path))
        for _, leaf in leaves:
            if isinstance(leaf, _OurBug):
                raise leaf.problem from None
        if isinstance(problem, MaskZooError) and not isinstance(problem, RecipeError):
            told = str(problem)
            told = told if told.startswith("recipe.") else f"{path}: {told}"  # some begin with their key
            raise type(problem)(told) from (problem.__cause__ or problem)
        sentence = "\n".join(_sentences(problem, path))
        for _, leaf in leaves:
            if isinstance(leaf, PluginError):
                raise PluginError(sentence) from (leaf.__cause__ or leaf)
        raise RecipeError(sentence) from problem


def make_dial(registry: Registry, use: Use, path: str) -> Any:
    """A schedule of anything but the factor (a ratio, a rate, a decay), whose ends have to be given.

    Raises RecipeError with the path of whatever is wrong.
    """
    return _at(path, lambda: _Maker(registry).dial(use))


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
    if isinstance(value, Path):
        return str(value)
    if value is not None and not isinstance(value, bool | int | float | str):
        raise ContractError(
            f"a recipe cannot hold a {type(value).__name__}; options are numbers, texts, lists, tables and plugins"
        )
    return value


class _Maker:
    """Makes live objects out of uses, to any depth; it lives as long as one call of `make`.

    Unless it is `making`, options are checked, and what is inside of them stays plain.
    """

    def __init__(self, registry: Registry, *, making: bool = True) -> None:
        self.registry = registry
        self.converter = _plain_converter()
        part, parts, schedule = (self._part, self._parts, self.dial) if making else (self._checked_part,) * 3
        self.converter.register_structure_hook(Part, lambda value, _: part(value))
        self.converter.register_structure_hook(nn.ModuleList, lambda value, _: parts(value))
        self.converter.register_structure_hook_func(_is_schedule, lambda value, _: schedule(value))

    def make(self, kind: Kind, use: Use, **given: Any) -> Any:
        cls, values = self.structured(kind, use, **given)
        made = _constructed(cls, values)
        for sentence in wrong_declarations(kind, made):
            raise PluginError(f"{kind} '{cls.name}': {owner_of(cls)}: {sentence}")  # type: ignore[attr-defined]
        self._refuse_unreadable(made, values.keys() - given.keys())
        return made

    def structured(self, kind: Kind, use: Use, **given: Any) -> tuple[type, dict[str, Any]]:
        """The class that a use names, and the values of its options, each of its type, by the name of the option."""
        table = self.long_form(kind, use)
        if not isinstance(table.get("use"), str):
            raise RecipeError(f"which {kind}? known: {', '.join(self.registry.classes(kind))}", key="use")
        cls = self._find(kind, table.pop("use"))
        refuse_half_written(kind, cls)
        fields = options_of(cls)
        if table and not attrs.has(cls):
            raise RecipeError(f"'{cls.name}' has no options", key=next(iter(table)))  # type: ignore[attr-defined]
        table = {**{name: value for name, value in given.items() if name in fields}, **table}
        values: dict[str, Any] = {}
        problems: dict[str, BaseException] = {}
        for name, field in fields.items():
            self._refuse_unknown_type(cls, field)
            if name not in table:
                if field.default is attrs.NOTHING:
                    problems[name] = RecipeError("is required")
                continue
            try:
                values[name] = self.converter.structure(table[name], field.type or Any)
                # A class may mean NaN or infinity by its own default, which a resolved recipe then says.
                _refuse_unwritable(table[name], finite=not same(table[name], field.default))
            except Exception as problem:
                problems[name] = problem
        for name in sorted(str(key) for key in table.keys() - fields.keys()):
            problems[name] = RecipeError(f"no such key; {nearest(name, fields)}")
        if problems:
            raise _Keys(problems)
        return cls, values

    def _refuse_unknown_type(self, cls: type, field: Any) -> None:
        """Raise PluginError for an option of a type that no recipe can hold."""
        for wanted in _types_in(field.type):
            try:
                self.converter.get_structure_hook(wanted)
            except StructureHandlerNotFoundError:
                raise _At(
                    field.name,
                    PluginError(
                        f"{owner_of(cls)}: no recipe can hold an option of type {getattr(wanted, '__name__', wanted)}; "
                        "options are numbers, texts, lists, tables and schedules"
                    ),
                ) from None

    def _refuse_unreadable(self, made: Any, given: Collection[str]) -> None:
        """Raise where an option, written to a recipe and read back, is not the same: a run could not be opened again.

        PluginError for a default of the class, RecipeError for a value that the recipe has `given`.
        """
        reader = _Maker(self.registry, making=False)
        for name, field in options_of(type(made)).items():
            value = getattr(made, field.name)
            problem = _unreadable(value, field, reader.converter)
            if problem and name in given:
                raise RecipeError(problem, key=name)
            if problem:
                raise _At(name, PluginError(f"{owner_of(type(made))}: {problem}; mend the default"))

    def _checked_part(self, value: Any) -> Any:
        return value

    def dial(self, use: Use) -> Any:
        """A schedule of anything but the factor, such as a ratio, a rate or a weight.

        Raises RecipeError where it leaves an option open whose default is the factor's.
        """
        table = self.long_form("schedule", use)
        cls = self.registry.classes("schedule").get(str(table.get("use")))
        fields = attrs.fields(cls) if cls is not None and attrs.has(cls) else ()
        missing = [one for one in fields if one.metadata.get("default_of") == "factor" and one.name not in table]
        if missing and table.keys() <= {"use", *(field.name for field in fields)}:  # another key is refused as such
            names = " and ".join(field.name for field in missing)
            given = ", ".join(f"{field.default:g}" for field in missing)
            raise RecipeError(
                f"{quoted(use)} leaves {names} open, whose default ({given}) is meant for a curriculum; give both, "
                f"e.g. {table['use']}:0.5:0.75"
            )
        return self.make("schedule", use)

    def long_form(self, kind: Kind, use: Use) -> dict[str, Any]:
        """A use in its long form; "linear:0:-0.5" gives values to the first options in their order."""
        if isinstance(use, Mapping):
            named = use.get("use")
            if isinstance(named, str) and ":" in named:  # a short use to which more options were added
                return {**self.long_form(kind, named), **use, "use": named.split(":")[0]}
            return dict(use)
        if isinstance(use, int | float) and not isinstance(use, bool) and kind == "schedule":
            return {"use": "constant", "value": float(use)}
        if not isinstance(use, str):
            raise RecipeError(f"expected {indefinite(kind)}: a name, or a table with `use`, got {quoted(use)}")
        name, *values = re.split(":(?!//)", use)  # a URL is one value
        table: dict[str, Any] = {"use": name}
        if not values:
            return table
        cls = self._find(kind, name)
        fields = attrs.fields(cls) if attrs.has(cls) else ()
        options = [field.name for field in fields if field.init and not field.kw_only]
        if len(values) > len(options):
            raise RecipeError(f"'{use}' gives {len(values)} values, but '{name}' has {len(options)} options: {options}")
        return table | {option: parse(value) for option, value in zip(options, values, strict=False)}

    def _find(self, kind: Kind, name: str) -> type:
        try:
            return self.registry.find(kind, name)
        except RecipeError as problem:
            hint = "; a number would do too" if kind == "schedule" and "did you mean" not in str(problem) else ""
            raise RecipeError(f"{problem}{hint}", key="use") from None

    def _part(self, value: Any) -> Part:
        table = self.long_form("strategy", value)
        curriculum = table.pop("curriculum", None)
        strategy = self.make("strategy", table)
        if curriculum is None:
            return Part(strategy)
        try:
            return Part(strategy, self.make("schedule", curriculum))
        except Exception as problem:
            raise _At("curriculum", problem) from problem

    def _parts(self, value: Any) -> list[Part]:
        return self.converter.structure(value, list[Part])


# --------------------------------------------------------------------------------------------- checking, and sentences
class _At(Exception):  # noqa: N818
    """Carries another problem, and the key below the current path where it sits."""

    def __init__(self, key: str, problem: BaseException) -> None:
        self.key, self.problem = key, problem


class _Items(Exception):  # noqa: N818
    """What was wrong with some items of a list, by their position."""

    def __init__(self, problems: Mapping[int, BaseException]) -> None:
        self.problems = problems


class _Keys(Exception):  # noqa: N818
    """What was wrong with some keys of a table."""

    def __init__(self, problems: Mapping[str, BaseException]) -> None:
        self.problems = problems


class _OurBug(Exception):  # noqa: N818
    """Carries what a class of MaskZoo has raised and nobody has foreseen: no message, but a traceback."""

    def __init__(self, problem: BaseException) -> None:
        self.problem = problem


def options_of(cls: type) -> dict[str, Any]:
    """The options of a class, attrs' fields by name, typed. Raises PluginError where types cannot be read."""
    if not attrs.has(cls):
        return {}
    try:
        attrs.resolve_types(cls)
    except (NameError, TypeError, AttributeError) as problem:
        raise PluginError(f"{owner_of(cls)}: the types of its options cannot be read: {problem}") from problem
    return {field.name: field for field in attrs.fields(cls) if field.init}


def _constructed(cls: type, values: Mapping[str, Any]) -> Any:
    """The object with these options; what its own code raises is told from the refusal of a value."""
    names = {field.name: field.alias or field.name for field in attrs.fields(cls)} if attrs.has(cls) else {}
    try:
        return cls(**{names[name]: value for name, value in values.items()})
    except MaskZooError:
        raise
    except Exception as problem:
        if refuses(problem):
            key, sentence = _placed(problem, cls)
            words = sentence or (str(problem.args[0]) if problem.args else str(problem))
            raise RecipeError(words, key=key) from problem
        raise plugin_error(problem) or _OurBug(problem) from problem


def _types_in(wanted: Any) -> Iterator[Any]:
    """A type, and those inside of it that cattrs does not look at before it is given a value."""
    if _is_union(wanted) or _is_list(wanted) or _is_table(wanted):
        for inner in get_args(wanted):
            if inner not in (Ellipsis, type(None)):
                yield from _types_in(inner)
    elif wanted is not None:
        yield wanted


def _unreadable(value: Any, field: Any, converter: cattrs.Converter) -> str:
    """Why an option's value is not the same after it was written to a recipe and read back; empty where it is."""
    if _is_schedule(field.type) and not callable(value):
        return f"{quoted(value)} is no schedule; a default is one, e.g. attrs.field(factory=lambda: Constant(0.5))"
    try:
        plain = describe(value)
    except ContractError as problem:
        return str(problem)
    if plain is None:
        lost = field.default is not None and field.default is not attrs.NOTHING and not _is_factory(field.default)
        return f"it is None, which a recipe cannot say, and its default is {quoted(field.default)}" if lost else ""
    try:
        back = parse_toml(write({"value": plain}), "the option")["value"]
        again = describe(converter.structure(back, field.type or Any))
    except Exception as problem:
        return "; ".join(_sentences(problem, "")) or str(problem)
    return "" if same(again, plain) else f"{quoted(plain)} reads as {quoted(again)} where a recipe is read back"


def _is_factory(default: Any) -> bool:
    return hasattr(default, "factory")


def _plain_converter() -> cattrs.Converter:
    """Values are taken as they are or refused: no "5" for 5, no 5.7 cut down to 5, no true for 1."""
    converter = cattrs.Converter(forbid_extra_keys=True)
    for kind, check in _SCALARS.items():
        converter.register_structure_hook(kind, check)
    converter.register_structure_hook_func(_is_union, lambda value, wanted: _one_of(converter, value, wanted))
    converter.register_structure_hook_func(_is_literal, _literal)
    converter.register_structure_hook_func(_is_list, lambda value, wanted: _items(converter, value, wanted))
    converter.register_structure_hook_func(_is_table, lambda value, wanted: _table_of(converter, value, wanted))
    converter.register_structure_hook(Path, lambda value, _: Path(converter.structure(value, str)))
    weights = make_dict_structure_fn(WeightsRecipe, converter, _cattrs_forbid_extra_keys=True)
    converter.register_structure_hook(WeightsRecipe, lambda value, wanted: _weights(value, wanted, weights))
    return converter


def _weights(value: Any, wanted: Any, of_table: Callable[[Any, Any], WeightsRecipe]) -> WeightsRecipe:
    """A file of weights, or a table that says more of it."""
    if isinstance(value, str) and value.strip():
        _refuse_unwritable(value)
        return WeightsRecipe(value)
    if isinstance(value, str):
        raise RecipeError("is empty; give a value, or leave it out")
    if not isinstance(value, Mapping):
        raise RecipeError(f"expected a text or a table, got {quoted(value)}")
    return of_table(value, wanted)


def _scalar(wanted: type[T], accepted: tuple[type, ...], words: str) -> Callable[[Any, Any], T]:
    def check(value: Any, _: Any) -> T:
        if not isinstance(value, accepted) or (isinstance(value, bool) and wanted is not bool):
            raise RecipeError(f"expected {words}, got {quoted(value)}")
        _refuse_unwritable(value)
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
    expected = [
        re.fullmatch(r"expected (.*), got .*", sentence) for one in problems for sentence in _sentences(one, "")
    ]
    raise RecipeError(f"expected {' or '.join(match[1] for match in expected if match)}, got {quoted(value)}")


def _is_list(wanted: Any) -> bool:
    return get_origin(wanted) in (list, tuple)


def _items(converter: cattrs.Converter, value: Any, wanted: Any) -> Any:
    """A list or a tuple of values; a text is not taken for the list of its letters."""
    origin: Any = get_origin(wanted)
    kinds = list(get_args(wanted))
    fixed = origin is tuple and Ellipsis not in kinds
    if not isinstance(value, list | tuple) or (fixed and len(value) != len(kinds)):
        raise RecipeError(f"expected {f'{len(kinds)} values' if fixed else 'a list'}, got {quoted(value)}")
    made, problems = [], {}
    for position, (item, kind) in enumerate(zip(value, kinds if fixed else [kinds[0]] * len(value), strict=True)):
        try:
            made.append(converter.structure(item, kind))
        except Exception as problem:
            problems[position] = problem
    if problems:
        raise _Items(problems)
    return origin(made)


def _is_table(wanted: Any) -> bool:
    return get_origin(wanted) in (dict, Mapping)


def _table_of(converter: cattrs.Converter, value: Any, wanted: Any) -> Any:
    """A table of values."""
    if not isinstance(value, Mapping):
        raise RecipeError(f"expected a table, got {quoted(value)}")
    kind, inner = get_args(wanted)
    made, problems = {}, {}
    for key, item in value.items():
        try:
            made[converter.structure(key, kind)] = converter.structure(item, inner)
        except Exception as problem:
            problems[str(key)] = problem
    if problems:
        raise _Keys(problems)
    return made


def _is_schedule(wanted: Any) -> bool:
    return wanted is CurriculumSchedule


def _is_literal(wanted: Any) -> bool:
    origin: Any = get_origin(wanted)  # for mypy, which takes it for a ParamSpec
    return origin is Literal


def _literal(value: Any, wanted: Any) -> Any:
    if value not in get_args(wanted):
        choices = ", ".join(repr(choice) for choice in get_args(wanted))
        raise RecipeError(f"expected one of {choices}, got {quoted(value)}")
    return value


def _leaves(problem: BaseException, path: str) -> Iterator[tuple[str, BaseException]]:
    """The single problems in one of several, each with its path."""
    if isinstance(problem, IterableValidationError | ClassValidationError):
        placed, other = problem.group_exceptions()
        for inner, note in placed:
            step = f"[{note.index}]" if isinstance(note, IterableValidationNote) else f".{note.name}"
            yield from _leaves(inner, path + step)
        for inner in other:
            key, sentence = _placed(inner, getattr(problem, "cl", None))
            yield from [(f"{path}.{key}", RecipeError(sentence))] if key else _leaves(inner, path)
    elif isinstance(problem, _Items):
        for index, item in problem.problems.items():
            yield from _leaves(item, f"{path}[{index}]")
    elif isinstance(problem, _Keys):
        for key, value in problem.problems.items():
            yield from _leaves(value, f"{path}.{key}" if path else key)
    elif isinstance(problem, _At):
        yield from _leaves(problem.problem, f"{path}.{problem.key}")
    else:
        yield path, problem


def _sentences(problem: BaseException, path: str) -> list[str]:
    """Whatever went wrong while structuring, as lines "path: sentence"."""
    return [line for place, leaf in _leaves(problem, path) for line in _of_leaf(leaf, place)]


def _of_leaf(problem: BaseException, path: str) -> list[str]:
    """A single problem, as lines "path: sentence"."""
    if isinstance(problem, ForbiddenExtraKeysError):
        known = [field.name for field in attrs.fields(problem.cl) if field.init]
        extra = sorted(str(key) for key in problem.extra_fields)
        return [_line(f"{path}.{key}", f"no such key; {nearest(key, known)}") for key in extra]
    if isinstance(problem, RecipeError):
        return [_line(f"{path}.{problem.key}" if problem.key else path, str(problem))]
    if isinstance(problem, KeyError):
        return [_line(path, "is required")]
    if isinstance(problem, AttributeError) or (isinstance(problem, TypeError) and "iterable" in str(problem)):
        return [_line(path, "expected a table or a list of other values")]
    if isinstance(problem, OSError):
        place = f": '{problem.filename}'" if problem.filename else ""
        return [_line(path, f"{problem.strerror or problem}{place}")]
    return [_line(path, str(problem.args[0]) if problem.args else str(problem))]


def _placed(problem: BaseException, cls: type | None) -> tuple[str, str]:
    """The option that a ValueError of a class is about, if it says so, and what is wrong with it.

    attrs says "'depth' must be >= 1: 0"; other classes say "at: must rise" or "warmup is 1.0, but ...".
    """
    if isinstance(problem, ValueError) and cls is not None and attrs.has(cls) and problem.args:
        names = [field.name for field in attrs.fields(cls)]
        if match := re.fullmatch(r"'(\w+)' (must .*): (.*)", str(problem.args[0])):
            return match[1], f"{match[2]}, got {match[3]}"
        if (match := re.fullmatch(r"(\w+):? (.*)", str(problem.args[0]))) and match[1] in names:
            return match[1], match[2]
    return "", ""


def _line(path: str, sentence: str) -> str:
    if len(path) > LONGEST_KEY:
        path = f"{path[:LONGEST_KEY]}..."
    return f"{path}: {sentence}" if path else sentence
