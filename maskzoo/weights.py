"""Weights that were learnt before, as the beginning of a run: of MaskZoo, of timm, or published with a paper."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import attrs
import torch
from torch import Tensor

from maskzoo import checkpoint
from maskzoo.errors import MaskZooError, RecipeError
from maskzoo.protocols import Backbone
from maskzoo.recipe import WeightsRecipe
from maskzoo.resizing import resized
from maskzoo.weightfile import in_folder, tables_of

# What is not of an encoder, or is behind it and never run here.
LEFT_OUT = re.compile(
    r"(decoder|head|fc|fc_norm|attn_pool|classifier|last_linear|lm_head|mask_token|masked_embed|pre_logits|pooler|projector"
    r"|predictor|prototypes)\b|(decoder|head|pred|proj)_|(\w+\.)*(projection|prediction)_head\b"
)
COMPUTED = re.compile(r".*\b(relative_position_index|relative_coords_table|attn_mask|num_batches_tracked)$")
NEAR = 0.5  # share of the backbone's tensors that a table has at least, if it may be the one that is meant
RELATIVE = "relative_position_bias_table"
ALMOST = 0.8  # that it has where what it lacks says more than why it cannot be resized
WRAPPED = re.compile(r"(\.(module|_orig_mod|_fsdp_wrapped_module))+$")  # by DDP, torch.compile and FSDP
EMA = re.compile(r"(^|[._])ema($|[._])")


@attrs.frozen(eq=False)
class Part:
    """Tensors that lie together in a file, by their names there."""

    place: str  # keys and prefixes with points between; "" for a whole file
    table: str  # the keys alone
    prefix: str  # of the names in that table
    tensors: Mapping[str, Tensor]  # by what is behind the prefix
    beside: Mapping[str, Tensor] = attrs.field(factory=dict)  # in the same table, but not below this place

    @property
    def name(self) -> str:
        """The place by which a user can choose it: without what wraps a whole network."""
        return WRAPPED.sub("", self.place) or self.place

    @property
    def told(self) -> str:
        """What it is called in a message, and how large it is."""
        name = repr(self.name) if self.place else "the file as a whole"
        return f"{name} ({_sized(self.tensors)})"


@attrs.frozen(eq=False)
class Fit:
    """What a part is to a backbone: its tensors by the backbone's names, or why it is none."""

    part: Part
    state: Mapping[str, Tensor] = attrs.field(factory=dict)
    remarks: Sequence[str] = ()
    problem: str = ""
    near: float = 0.0  # share of the backbone's tensors that it has


def load_weights(backbone: Backbone, weights: WeightsRecipe | Path, key: str = "recipe.weights") -> list[str]:
    """Put weights into a backbone, its positions resized where the images' size is another; what is to be told of it.

    They are of a run, one of its checkpoints, or a file of weights as timm and most papers' code save it, at whatever
    place in it; decoders and classifiers in it are left out. Raises RecipeError where it cannot be read, lacks
    something or holds more, and where several places fit and none was chosen.
    """
    model: Any = backbone
    asked = weights if isinstance(weights, WeightsRecipe) else WeightsRecipe(str(weights))
    path = Path(asked.file)
    source = _source(path, key, asked.part)
    fit = _chosen(model, source, asked, key)
    problem = _unusable(fit.state)
    if problem:
        raise RecipeError(f"{key}: '{path}' {problem}")
    told = [*source.remarks, *_told(model, fit, source), *fit.remarks]
    model.load_state_dict(dict(fit.state), strict=False)
    return told


# ------------------------------------------------------------------------------------------------------- where they are
@attrs.frozen(eq=False)
class Source:
    """What a path holds: tables of tensors by their place."""

    path: Path
    tables: Mapping[str, Mapping[str, Tensor]]
    ours: bool = False  # whether a run of MaskZoo has left it
    recipe: Mapping[str, Any] | None = None  # of the backbone, where a run tells
    remarks: Sequence[str] = ()


def _source(path: Path, key: str, part: str | None) -> Source:
    """What is at a path, read by code that runs nothing of it."""
    if re.match(r"\w+:/", str(path)):  # the file system has made one slash of two
        raise RecipeError(f"{key}: '{path}' is a URL, and nothing is fetched; download the file, and name it here")
    if os.path.isdir(path / "checkpoints"):
        checkpoints = checkpoint.found(path / "checkpoints")
        if not checkpoints:
            raise RecipeError(f"{key}: the run '{path}' has no checkpoint yet")
        state, objective, problems = checkpoint.newest_good(checkpoints)
        remarks = [f"weights: {one}; taken from step {state['step']}" for one in problems]
        return _ours(path, state, objective, remarks)
    if not os.path.exists(path):  # False also for a name that no file can have
        raise RecipeError(f"{key}: there is no '{path}'")
    if path.is_dir() and not (path / "shards").is_dir():
        raise RecipeError(f"{key}: {in_folder(path)}")
    if path.is_dir():
        state = checkpoint.read(path)
        return _ours(path, state, checkpoint.objective_of(path, state))
    tables, content = tables_of(path, key, part)
    if {"step", "state", "recipe"} <= content.keys() and "objective" in content["state"]:
        return _ours(path, content, content["state"]["objective"])
    return Source(path, tables)


def _ours(path: Path, state: Mapping[str, Any], objective: Mapping[str, Tensor], remarks: Sequence[str] = ()) -> Source:
    tables = {"objective": objective}
    if isinstance(state["state"].get("teacher"), Mapping):
        tables["teacher"] = state["state"]["teacher"]
    recipe = state.get("recipe")
    made_by = recipe.get("backbone") if isinstance(recipe, Mapping) else None
    return Source(path, tables, True, made_by if isinstance(made_by, Mapping) else None, remarks)


def _chosen(backbone: Any, source: Source, asked: WeightsRecipe, key: str) -> Fit:
    """The part that fits the backbone; RecipeError where there is none, or more than one and none was asked for."""
    wanted = asked.part or ("objective" if source.ours else None)
    fits = [_fit(backbone, part, source, asked, key) for part in _parts(backbone, source.tables, wanted)]
    good = _without_outer([fit for fit in fits if not fit.problem])
    if len(good) > 1:
        plain = [fit for fit in good if not EMA.search(fit.part.place)]
        good = plain if len(plain) == 1 and not asked.part else good
    if len(good) == 1:
        return good[0]
    if good:
        listed = ", ".join(fit.part.told for fit in good)
        key_of = f"weights.part = {good[0].part.name!r}"
        raise RecipeError(f"{key}: '{source.path}' holds {listed}; say which, e.g. {key_of}")
    raise RecipeError(f"{key}: {_no_fit(backbone, source, fits, wanted)}")


def _without_outer(fits: Sequence[Fit]) -> list[Fit]:
    """Those that do not merely hold another one: where `encoder` fits, the table that it lies in is no other part."""
    places = [fit.part.place for fit in fits]
    return [
        fit for fit in fits if not any(place != fit.part.place and _below(place, fit.part.place) for place in places)
    ]


def _below(place: str, outer: str) -> bool:
    return place == outer or not outer or place.startswith(f"{outer}.")


def _parts(backbone: Any, tables: Mapping[str, Mapping[str, Tensor]], wanted: str | None) -> Iterator[Part]:
    """Every place in a file that has tensors enough to be the backbone's, and is, or lies in, the place that is wanted.

    A place is the key of a table, and what the names in it have in front.
    """
    least = NEAR * len(_inner(backbone))
    for table, tensors in tables.items():
        prefixes = {name[: place + 1] for name in tensors for place, letter in enumerate(name) if letter == "."}
        for prefix in sorted({"", *prefixes}, key=lambda one: (one.count("."), one)):
            place = ".".join(filter(None, (table, prefix.removesuffix("."))))
            held = {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
            if len(held) >= least and (wanted is None or _is_in(place, wanted)):
                rest = {name: value for name, value in tensors.items() if not name.startswith(prefix)}
                yield Part(place, table, prefix, held, rest)


def _is_in(place: str, wanted: str) -> bool:
    """Whether a place is the wanted one or in it; the keys in front of what is wanted need not be said."""
    return f".{wanted}." in f".{place}."


# ---------------------------------------------------------------------------------------------------- whether they fit
def _inner(backbone: Any) -> dict[str, Tensor]:
    """The tensors that a file has to bring, by name: the timm model's that are trained, or all of another backbone."""
    fixed = {name for name, parameter in backbone.named_parameters() if not parameter.requires_grad}
    state = {name: value for name, value in backbone.state_dict().items() if name not in fixed}
    inner = {name: value for name, value in state.items() if name.startswith("model.")}
    return inner or state


def _fit(backbone: Any, part: Part, source: Source, asked: WeightsRecipe, key: str) -> Fit:
    """What a part's tensors are by the backbone's names and sizes, or what of it does not fit."""
    own, inner, remarks = backbone.state_dict(), _inner(backbone), list[str]()
    given = _by_own_names(own, part)
    near = len(given.keys() & inner.keys()) / len(inner)
    try:
        if hasattr(backbone, "model"):
            given, remarks = resized(backbone, given, source.path, key, grid=asked.grid, recipe=source.recipe)
            given, more = _norm_in_place(given, inner)
            remarks = [*remarks, *more]
    except Exception as problem:  # timm's own functions, given the names or sizes of another network
        lacking = [name for name in inner if name not in given and not COMPUTED.match(name)]
        words = str(problem).removeprefix(f"{key}: ")
        if lacking and near >= ALMOST:
            words = f"it lacks {_some(lacking)}"
        elif not isinstance(problem, MaskZooError):
            words = f"it cannot be resized: {type(problem).__name__}: {problem}"
        return Fit(part, problem=words, near=near)
    near = len(given.keys() & inner.keys()) / len(inner)
    extra = [name for name in given if name not in own and not _behind(backbone, name)]
    missing = [name for name in inner if name not in given and not COMPUTED.match(name)]
    fixed = {name for name in own if name.startswith("model.")} - inner.keys()
    found = {name: value for name, value in given.items() if name in own and name not in fixed}
    wrong = [
        f"{name} {list(value.shape)}, not {list(own[name].shape)}"
        for name, value in found.items()
        if value.shape != own[name].shape
    ]
    if missing or extra:
        told = [f"{what} {_some(names)}" for what, names in (("lacks", missing), ("holds besides", extra)) if names]
        return Fit(part, problem=f"it {' and '.join(told)}", near=near)
    return Fit(part, found, remarks, f"it holds {_some(wrong)}" if wrong else "", near)


def _by_own_names(own: Mapping[str, Tensor], part: Part) -> dict[str, Tensor]:
    """A part's tensors by the names that the backbone has for them, without a decoder's."""
    tensors = {name: value for name, value in part.tensors.items() if not name.startswith("decoder")}
    timm = any(name.startswith("model.") for name in own)
    if timm and not any(name.startswith("model.") for name in tensors):
        tensors = {f"model.{name}": value for name, value in _expanded(own, tensors).items()}
    outer = part.prefix.removesuffix("model.")
    if outer != part.prefix:  # a whole backbone of MaskZoo's, which has more than the timm model
        beside = {name.removeprefix(outer): value for name, value in part.beside.items() if name.startswith(outer)}
        fitting = {name for name in beside if name in own and own[name].shape == beside[name].shape}
        tensors |= {name: beside[name] for name in fitting}
    return tensors


def _expanded(own: Mapping[str, Tensor], tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors, with the positions that all blocks of a BEiT share while it is pretrained in each of its blocks."""
    shared = tensors.get(f"rel_pos_bias.{RELATIVE}")
    each = [name for name in own if re.fullmatch(rf"model\.blocks\.\d+\.attn\.{RELATIVE}", name)]
    if shared is None or not each or f"model.rel_pos_bias.{RELATIVE}" in own:
        return dict(tensors)
    rest = {name: value for name, value in tensors.items() if not name.startswith("rel_pos_bias.")}
    return rest | {name.removeprefix("model."): shared for name in each}


def _norm_in_place(given: Mapping[str, Tensor], inner: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], list[str]]:
    """The tensors, with the norm that timm has behind its pooling where the adapter has put it: before."""
    moved = {name: name.replace("model.fc_norm.", "model.norm.") for name in given if name.startswith("model.fc_norm.")}
    if not moved or any(target not in inner or target in given for target in moved.values()):
        return dict(given), []
    return {moved.get(name, name): value for name, value in given.items()}, []


def _behind(backbone: Any, name: str) -> bool:
    """Whether a tensor is of no part that is ever run here: a classifier, a pooling, a decoder; or can be computed."""
    name = name.removeprefix("model.")
    told = getattr(getattr(backbone, "model", None), "pretrained_cfg", None) or {}
    classifiers = told.get("classifier") or ()
    heads = (classifiers,) if isinstance(classifiers, str) else tuple(classifiers)
    return bool(LEFT_OUT.match(name) or COMPUTED.match(name)) or any(name.startswith(f"{head}.") for head in heads)


def _unusable(state: Mapping[str, Tensor]) -> str:
    """What is wrong with the values; empty where nothing is."""
    whole = [name for name, value in state.items() if not value.is_floating_point() and not COMPUTED.match(name)]
    if whole:
        return f"holds {state[whole[0]].dtype} in {_some(whole)}, and not the floating-point numbers that are trained"
    broken = [name for name, value in state.items() if value.is_floating_point() and not value.isfinite().all()]
    return f"has values that are not finite (NaN or infinite) in {_some(broken)}" if broken else ""


# --------------------------------------------------------------------------------------------------------- what is told
def _told(backbone: Any, fit: Fit, source: Source) -> list[str]:
    """What was taken, where that is not plain, and each tensor that was left out, converted or is not there."""
    part, own, inner = fit.part, backbone.state_dict(), _inner(backbone)
    unused = {name: value for name, value in part.tensors.items() if not _used(name, fit)}
    fixed = {name for name in unused if f"model.{name}" in own and f"model.{name}" not in inner}
    equal = {name for name in fixed if _equal(unused[name], own[f"model.{name}"])}
    left = [name for name in unused if name in fixed - equal or name.startswith("decoder") or _behind(backbone, name)]
    others = [
        f"'{place}' ({len(tensors)} tensors)"
        for place, tensors in source.tables.items()
        if not source.ours and place != part.table and tensors
    ]
    outside = [name for name in part.beside if name.removeprefix(part.prefix.removesuffix("model.")) not in fit.state]
    lines = [f"weights: taken from {part.told} of '{source.path}'"] if part.place and not source.ours else []
    groups = [*others, *_grouped(outside), *_grouped(left)]
    if groups:
        lines.append(
            f"weights: left out: {', '.join(groups[:6])}" + (f" and {len(groups) - 6} more" if len(groups) > 6 else "")
        )
    kinds = sorted({str(value.dtype) for value in fit.state.values() if value.is_floating_point()} - {"torch.float32"})
    if kinds:
        lines.append(f"weights: {', '.join(kinds).replace('torch.', '')} became float32")
    fresh = [name for name in own if name not in fit.state and (name in inner or not name.startswith("model."))]
    fresh = [name for name in fresh if not COMPUTED.match(name)]
    if fresh:
        lines.append(f"weights: not in the file, and newly initialised: {_some(fresh)}")
    return lines


def _used(name: str, fit: Fit) -> bool:
    norm = f"model.{name}".replace("model.fc_norm.", "model.norm.")
    return name in fit.state or f"model.{name}" in fit.state or fit.state.get(norm) is fit.part.tensors[name]


def _equal(one: Tensor, other: Tensor) -> bool:
    return one.shape == other.shape and bool(torch.allclose(one.float(), other.float(), atol=1e-3))


def _grouped(names: Sequence[str]) -> list[str]:
    """Tensors by the first part of their names, with their number."""
    groups: dict[str, int] = {}
    for name in names:
        group = name.split(".")[0]
        groups[group] = groups.get(group, 0) + 1
    return [f"{group} ({count} tensors)" if count > 1 else group for group, count in groups.items()]


def _no_fit(backbone: Any, source: Source, fits: Sequence[Fit], wanted: str | None) -> str:
    """Why nothing in a file is the backbone's: what the nearest part lacks, or what there is in place of it."""
    held = [Part(place, place, "", tensors) for place, tensors in source.tables.items()]
    best = max(fits, key=lambda fit: fit.near, default=None)
    inner = {name.removeprefix("model."): value for name, value in _inner(backbone).items()}
    if best is not None and best.near >= NEAR:
        problem = best.problem.replace("it ", f"its part '{best.part.name}' ", 1) if best.part.place else best.problem
        if not problem.startswith("it"):
            return problem
        theirs, ours = _looks(best.part.tensors), _looks(inner)
        seems = f"; it seems to be of {theirs}, and the backbone is of {ours}" if theirs != ours else ""
        return f"'{source.path}' does not fit this backbone: {problem}{seems}{_advice(best)}"
    told = "; ".join(f"{part.told}: {_looks(part.tensors)}, first {_some(list(part.tensors))}" for part in held[:4])
    more = f"; and {len(held) - 4} more" if len(held) > 4 else ""
    what = f"no part '{wanted}' that fits" if wanted else "nothing that fits"
    needs = f"{_sized(inner)}: {_looks(inner)}, first {_some(list(inner))}"
    return f"'{source.path}' holds {what} this backbone. It holds {told}{more}. The backbone wants {needs}"


def _advice(fit: Fit) -> str:
    if "lacks model.cls_token" in fit.problem:
        return "; backbone.options.class_token = false makes a backbone without a class token"
    return ""


def _looks(tensors: Mapping[str, Tensor]) -> str:
    """What kind of network tensors seem to be of, as far as their names and shapes tell."""
    told = []
    first = next((value for value in tensors.values() if value.ndim == 4), None)
    if first is not None:
        told.append(f"width {first.shape[0]}, {first.shape[1]} channels, {first.shape[2]} x {first.shape[3]} pixels")
    numbers = [
        int(found[1])
        for name in tensors
        if (found := re.search(r"(?:^|\.)\w*(?:blocks|layers?|stages)\.(\d+)\.", name))
    ]
    if numbers:
        told.append(f"{max(numbers) + 1} blocks or stages")
    return ", ".join(told) or "no images"


def _sized(tensors: Mapping[str, Tensor]) -> str:
    numbers = sum(value.numel() for value in tensors.values())
    return f"{len(tensors)} tensors, {numbers / 1e6:.2g} M numbers"


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
