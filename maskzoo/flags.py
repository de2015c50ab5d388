"""What the options of the command line make of a recipe, for every command that takes a recipe.

A name that the recipe has already changes nothing: its options stay. Another backbone or objective takes over the
options that its class has too; another masker takes over none, since the same word means something else there, as in
a comparison. `note` says which were left out.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Any, get_type_hints

import attrs

from maskzoo.build import adapter_of
from maskzoo.defaults import packaged
from maskzoo.errors import MaskZooError, RecipeError
from maskzoo.marks import unused
from maskzoo.plain import named
from maskzoo.recipe import Recipe, long_form, parse, plain_of, put, put_beside, read, suits
from maskzoo.registry import KINDS, Kind, Registry, nearest

Note = Callable[[str], None]
BASE = "digits"  # the recipe of those who name none
PLACES: Mapping[Kind, str] = {  # where a recipe has the options of each kind
    "strategy": "masking.strategy",
    "schedule": "masking.curriculum",
    "backbone": "backbone",
    "objective": "objective",
    "dataset": "data",
    "evaluator": "evaluation[0]",
    "logger": "train.loggers[0]",
}
PLAIN_KEYS = {  # options that set a key as it is
    "weights": "weights",
    "epochs": "train.epochs",
    "batch_size": "train.batch_size",
    "seed": "train.seed",
    "device": "train.device",
}


def changed(
    recipe: Path | None,
    registry: Registry,
    settings: tuple[str, ...],
    *,
    note: Note = lambda sentence: None,
    **changes: Any,
) -> dict[str, Any]:
    """The plain values of a recipe file with the command line's changes on top, `settings` (KEY=VALUE) last.

    Without a file, and where neither data, backbone nor objective are others than its own, they are those of the
    shipped recipe `digits`; else the defaults of the classes.
    """
    given = {name: value for name, value in changes.items() if value is not None}
    plain = read(recipe) if recipe is not None else _usual(given)
    if "data" in given:
        plain["data"] = _with_data(plain.get("data"), data_of(given["data"], registry), registry)
    if "backbone" in given:
        plain["backbone"] = _with_backbone(plain.get("backbone"), given["backbone"], registry, note)
    if "objective" in given:
        old = plain.get("objective", Recipe().objective)
        plain["objective"] = _with_use(old, given["objective"], "objective", registry, note)
    if {"masker", "schedule", "ratio"} & given.keys():
        _change_masking(plain, given, registry, note)
    for name, key in PLAIN_KEYS.items():
        if name in given:
            put(plain, key, given[name])
    for setting in settings:
        _set(plain, setting, registry)
    return plain


def data_of(text: str, registry: Registry) -> Any:
    """--data: the name of a data set, also with its first options (hf:NAME, shards:URL), or a folder of images."""
    known = registry.classes("dataset")
    if text in known:
        return text
    if os.path.isdir(text):  # False also for a name that no file can have
        return {"use": "folder", "root": text}
    if named(text) in known:
        return long_form(registry, "dataset", text)
    raise RecipeError(f"recipe.data: '{text}' is neither a folder nor a data set; {nearest(text, known)}")


def backbone_of(name: str, registry: Registry) -> dict[str, Any]:
    """--backbone: the name of a registered backbone, or of a timm model."""
    return {"use": name} if name in registry.classes("backbone") else {"timm": name}


def refuse_unknown(out: Path, changes: Mapping[str, Any]) -> None:
    """Refuse to resume what is not there where nothing says what else to train: the folder's name may be misspelt."""
    told = [name for name, value in changes.items() if name != "device" and value not in (None, ())]
    if told or (out / "recipe.toml").exists():
        return
    if out.exists() and not unused(out):
        return  # which is refused with what is there
    runs = [str(path.parent) for place in (out.parent, Path("runs")) for path in place.glob("*/recipe.toml")]
    close = get_close_matches(str(out), runs, n=1, cutoff=0.0)
    hint = f"the nearest run is '{close[0]}'" if close else "give a recipe or options, and it is begun there"
    raise RecipeError(f"--resume: there is no run in '{out}' (--out); {hint}")


# ---------------------------------------------------------------------------------------------------------- one option
def _usual(given: Mapping[str, Any]) -> dict[str, Any]:
    """What is trained without a recipe; the digits recipe's backbone is no timm model as it stands, but a tiny one."""
    plain = packaged(BASE)
    same = all(named(plain[name]) == named(given[name]) for name in ("data", "objective") if name in given)
    return plain if same and "backbone" not in given else {}


def _with_data(old: Any, new: Any, registry: Registry) -> Any:
    """The new data, with the options of the old where both are of one data set; a folder's own are its root alone."""
    if old is None or named(old) != named(new):
        return new
    both = {**_table(registry, "dataset", old), **_table(registry, "dataset", new)}
    return both if both.keys() - {"use"} else new


def _with_backbone(old: Any, name: str, registry: Registry, note: Note) -> dict[str, Any]:
    """The backbone of that name, with how images are cut and whatever else its adapter knows too."""
    new = backbone_of(name, registry)
    if old is None:
        return new
    before = {"use": old} if isinstance(old, str) else dict(old) if isinstance(old, Mapping) else {}
    if "timm" not in before and named(before) not in registry.classes("backbone"):
        before["timm"] = before.pop("use", None)
    try:
        adapter = str(new.get("use") or adapter_of(name, registry))
        own = before.get("use") or adapter_of(str(before.get("timm")), registry)
    except MaskZooError:  # which will show again, with its path, where the backbone is made
        return new
    if name == before.get("timm") or ("use" in new and adapter == own):
        return {**before, **new}
    held = {key: value for key, value in before.items() if key not in ("use", "timm", "options")}
    kept = _known(held, registry.find("backbone", adapter))
    dropped = [key for key in before if key not in ("use", "timm") and key not in kept]
    _say_dropped(note, "backbone", name, dropped)
    return {**new, **kept}


def _with_use(old: Any, new: str, kind: Kind, registry: Registry, note: Note) -> Any:
    """What the option names, with the options that the recipe's own has in common with it."""
    if old is None or named(new) not in registry.classes(kind):
        return new
    before, after = _table(registry, kind, old), _table(registry, kind, new)
    if named(old) == named(new):
        return {**before, **after} if isinstance(old, Mapping) or ":" in str(old) else new
    held = {key: value for key, value in before.items() if key not in ("use", *after)}
    kept = {} if kind == "strategy" else _known(held, registry.find(kind, str(named(new))))
    _say_dropped(note, kind, str(named(new)), [key for key in held if key not in kept])
    return {**after, **kept} if kept else new


def _change_masking(plain: dict[str, Any], given: Mapping[str, Any], registry: Registry, note: Note) -> None:
    """Put the masker, its schedule and its ratio into the recipe; a curriculum stays where the masker can follow it."""
    masking = plain.setdefault("masking", {})
    if not isinstance(masking, dict):
        raise RecipeError("recipe.masking: expected a table or a list of other values")
    if "masker" in given:
        own = masking.get("strategy", "random")
        masking["strategy"] = _with_use(own, given["masker"], "strategy", registry, note)
        cls: Any = registry.classes("strategy").get(str(named(given["masker"])))
        if "curriculum" in masking and "schedule" not in given and not _follows(cls):
            masking.pop("curriculum")
            note(f"--masker {given['masker']}: it follows no curriculum, so the recipe's is left out")
    for option, key in (("schedule", "curriculum"), ("ratio", "ratio")):
        if option in given:
            value = parse(given[option], f"--{option}: the value")
            masking[key] = _same_schedule(masking.get(key), value, registry)


def _follows(cls: Any) -> bool:
    """Whether a class of strategies may follow a curriculum: of a composite its parts decide."""
    if cls is None or getattr(cls, "default_curriculum", None) is not None:
        return True
    return attrs.has(cls) and any(field.name == "parts" for field in attrs.fields(cls))


def _same_schedule(old: Any, new: Any, registry: Registry) -> Any:
    """The new schedule, with the options of the old where both are of one name; those of another mean other things."""
    if not isinstance(new, str) or not isinstance(old, str | Mapping) or named(old) != named(new):
        return new
    if new not in registry.classes("schedule") and named(new) not in registry.classes("schedule"):
        return new
    return {**_table(registry, "schedule", old), **_table(registry, "schedule", new)}


def _set(plain: dict[str, Any], setting: str, registry: Registry) -> None:
    """--set KEY=VALUE."""
    key, equals, value = (part.strip() for part in setting.partition("="))
    if not equals:
        raise RecipeError(f"--set: expected KEY=VALUE, got '{setting}'")
    section, dot, option = key.partition(".")
    listed = plain.get("evaluation", Recipe().evaluation)
    own = {*plain_of(Recipe()), "weights", *map(named, listed if isinstance(listed, list | tuple) else ())}
    if dot and section not in own:
        for kind in sorted(KINDS, key=lambda kind: kind != "evaluator"):  # `linear` is a schedule too
            if section in registry.classes(kind):
                known = f"; the recipe has no such evaluator, add it with --set 'evaluation=[\"{section}\"]'"
                hint = known if kind == "evaluator" else f"; the options of a {kind} are at {PLACES[kind]}.{option}"
                raise RecipeError(f"--set {key}: no such key{hint}")
    put_beside(plain, key, parse(value, f"recipe.{key}: the value"))


# ------------------------------------------------------------------------------------------------------------- helpers
def _table(registry: Registry, kind: Kind, use: Any) -> dict[str, Any]:
    """A use in its long form, or as it is where that cannot be had: what is wrong is said where it is made."""
    try:
        return long_form(registry, kind, use)
    except (MaskZooError, TypeError):
        return dict(use) if isinstance(use, Mapping) else {"use": named(use)}


def _known(held: Mapping[str, Any], cls: type) -> dict[str, Any]:
    """Those of the options that the class has too, and would take."""
    if not attrs.has(cls):
        return {}
    fields = {field.name for field in attrs.fields(cls) if field.init}
    try:
        hints = get_type_hints(cls)
    except Exception:  # names that a plugin imports for type checkers alone
        return {key: value for key, value in held.items() if key in fields}
    return {key: value for key, value in held.items() if key in fields and suits(value, hints.get(key, Any))}


def _say_dropped(note: Note, kind: Kind, name: str, dropped: list[str]) -> None:
    if dropped:
        option = "masker" if kind == "strategy" else kind
        keys = ", ".join(f"{PLACES[kind].split('.')[-1]}.{key}" for key in dropped)
        note(f"--{option} {name}: left out what belongs to the recipe's own {option}: {keys}")
