"""Which part of a file of weights is a backbone's: found by names and shapes, at whatever place it lies.

A place is the key of a table of tensors, and what their names have in front, with points between.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import attrs
from timm.models import adapt_input_conv
from torch import Tensor

from maskzoo.errors import MaskZooError, RecipeError
from maskzoo.recipe import WeightsRecipe
from maskzoo.resizing import resized

# What is not of an encoder, or is behind it and never run here.
LEFT_OUT = re.compile(
    r"(decoder|\w*heads?|fc|fc_norm|attn_pool|classifier|last_linear|mask_token|masked_embed|pre_logits|pooler|projector"
    r"|predictor|prototypes|logit_scale|logit_bias|queue|queue_ptr)\b|(decoder|head|pred|proj)_"
)
COMPUTED = re.compile(r".*\b(relative_position_index|relative_coords_table|attn_mask|num_batches_tracked)$")
NEAR = 0.5  # share of the backbone's tensors that a table has at least, if it may be the one that is meant
RELATIVE = "relative_position_bias_table"
ALMOST = 0.8  # that it has where what it lacks says more than why it cannot be resized
WRAPPED = re.compile(r"(\.(module|_orig_mod|_fsdp_wrapped_module))+$")  # by DDP, torch.compile and FSDP
CHUNKED = re.compile(r"^blocks\.\d+\.(\d+)\.")  # blocks in chunks, numbered through
EMA = re.compile(r"(^|[._])ema($|[._])")


@attrs.frozen(eq=False)
class Source:
    """What a path holds: tables of tensors by their place."""

    path: Path
    tables: Mapping[str, Mapping[str, Tensor]]
    ours: bool = False  # whether a run of MaskZoo has left it
    recipe: Mapping[str, Any] | None = None  # of the backbone, where a run tells
    remarks: Sequence[str] = ()


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
        return f"{name} ({sized(self.tensors)})"


@attrs.frozen(eq=False)
class Fit:
    """What a part is to a backbone: its tensors by the backbone's names, or why it is none."""

    part: Part
    state: Mapping[str, Tensor] = attrs.field(factory=dict)
    remarks: Sequence[str] = ()
    problem: str = ""
    near: float = 0.0  # share of the backbone's tensors that it has
    open: bool = False  # whether it is the backbone's, but for sizes that nothing tells


def chosen(backbone: Any, source: Source, asked: WeightsRecipe, key: str) -> Fit:
    """The part that fits the backbone; RecipeError where there is none, or more than one and none was asked for."""
    wanted = asked.part or ("objective.backbone" if source.ours else None)
    fits = [_fit(backbone, part, source, asked, key) for part in _parts(backbone, source.tables, wanted)]
    good = _without_outer([fit for fit in fits if not fit.problem or fit.open])
    if len(good) > 1:
        plain = [fit for fit in good if not EMA.search(fit.part.place)]
        good = plain if len(plain) == 1 and not asked.part else good
    if len(good) == 1 and not good[0].problem:
        return good[0]
    if len(good) == 1:
        raise RecipeError(f"{key}: {good[0].problem}")
    if good:
        listed = ", ".join(fit.part.told for fit in good)
        first = min(good, key=lambda fit: "decoder" in fit.part.name)
        key_of = f"weights.part = {first.part.name!r}"
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
    """Every place that has tensors enough to be the backbone's, and is, or lies in, the place that is wanted."""
    least = NEAR * len(inner_of(backbone))
    for table, tensors in tables.items():
        counts = Counter({"": len(tensors)})
        counts.update(name[: place + 1] for name in tensors for place, letter in enumerate(name) if letter == ".")
        for prefix in sorted(counts, key=lambda one: (one.count("."), one)):
            place = ".".join(filter(None, (table, prefix.removesuffix("."))))
            if counts[prefix] >= least and (wanted is None or _is_in(place, wanted)):
                held = {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
                rest = {name: value for name, value in tensors.items() if not name.startswith(prefix)}
                yield Part(place, table, prefix, held, rest)


def _is_in(place: str, wanted: str) -> bool:
    """Whether a place is the wanted one or in it; the keys in front of what is wanted need not be said."""
    return f".{wanted.strip('.')}." in f".{place}."


# ---------------------------------------------------------------------------------------------------- whether they fit
def inner_of(backbone: Any) -> dict[str, Tensor]:
    """The tensors that a file has to bring, by name: the timm model's that are trained, or all of another backbone."""
    fixed = {name for name, parameter in backbone.named_parameters() if not parameter.requires_grad}
    state = {name: value for name, value in backbone.state_dict().items() if name not in fixed}
    inner = {name: value for name, value in state.items() if name.startswith("model.")}
    return inner or state


def _fit(backbone: Any, part: Part, source: Source, asked: WeightsRecipe, key: str) -> Fit:
    """What a part's tensors are by the backbone's names and sizes, or what of it does not fit."""
    own, inner, remarks = backbone.state_dict(), inner_of(backbone), list[str]()
    given = _by_own_names(own, part)
    near = len(given.keys() & inner.keys()) / len(inner)
    try:
        if hasattr(backbone, "model"):
            given, remarks = resized(backbone, given, source.path, key, grid=asked.grid, recipe=source.recipe)
            given = _norm_in_place(given, inner)
            if asked.channels == "adapt":
                given, more = _adapted(backbone, given, own)
                remarks = [*remarks, *more]
    except Exception as problem:  # timm's own functions, given the names or sizes of another network
        given = _norm_in_place(given, inner)
        lacking, besides = _missing(given, inner), _extra(backbone, given, own)
        words = str(problem).removeprefix(f"{key}: ")
        if (lacking or besides) and near >= ALMOST:
            words = _names_told(lacking, besides)
        elif not isinstance(problem, MaskZooError):
            words = f"it cannot be resized: {type(problem).__name__}: {problem}"
        unsized = isinstance(problem, RecipeError) and not lacking and not besides and _same_shapes(given, inner)
        return Fit(part, problem=words, near=near, open=unsized)
    near = len(given.keys() & inner.keys()) / len(inner)
    extra, missing = _extra(backbone, given, own), _missing(given, inner)
    fixed = {name for name in own if name.startswith("model.")} - inner.keys()
    found = {name: value for name, value in given.items() if name in own and name not in fixed}
    wrong = [
        f"{name} {list(value.shape)}, not {list(own[name].shape)}"
        for name, value in found.items()
        if value.shape != own[name].shape
    ]
    if missing or extra:
        return Fit(part, problem=_names_told(missing, extra), near=near)
    return Fit(part, found, remarks, f"it holds {some(wrong)}" if wrong else "", near)


def _missing(given: Mapping[str, Tensor], inner: Mapping[str, Tensor]) -> list[str]:
    return [name for name in inner if name not in given and not COMPUTED.match(name)]


def _extra(backbone: Any, given: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> list[str]:
    return [name for name in given if name not in own and not behind(backbone, name)]


def _names_told(missing: Sequence[str], extra: Sequence[str]) -> str:
    told = [f"{what} {some(names)}" for what, names in (("lacks", missing), ("holds besides", extra)) if names]
    return f"it {' and '.join(told)}"


def _same_shapes(given: Mapping[str, Tensor], inner: Mapping[str, Tensor]) -> bool:
    """Whether the tensors that do not depend on the size of images, which the norms are, have the backbone's shapes."""
    return all(given[name].shape == inner[name].shape for name in inner if name in given and inner[name].ndim == 1)


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
    """The tensors by one name a block: of DINOv2 without its chunks, of BEiT with what its blocks share in each."""
    if not any(CHUNKED.match(name.removeprefix("model.")) for name in own):
        tensors = {CHUNKED.sub(r"blocks.\1.", name): value for name, value in tensors.items()}
    shared = tensors.get(f"rel_pos_bias.{RELATIVE}")
    each = [name for name in own if re.fullmatch(rf"model\.blocks\.\d+\.attn\.{RELATIVE}", name)]
    if shared is None or not each or f"model.rel_pos_bias.{RELATIVE}" in own:
        return dict(tensors)
    rest = {name: value for name, value in tensors.items() if not name.startswith("rel_pos_bias.")}
    return rest | {name.removeprefix("model."): shared for name in each}


def _norm_in_place(given: Mapping[str, Tensor], inner: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors, with the norm that timm has behind its pooling where the adapter has put it: before."""
    moved = {name: name.replace(".fc_norm.", ".norm.") for name in given if name.startswith("model.fc_norm.")}
    if any(target not in inner or target in given for target in moved.values()):
        return dict(given)
    return {moved.get(name, name): value for name, value in given.items()}


def _adapted(
    backbone: Any, given: Mapping[str, Tensor], own: Mapping[str, Tensor]
) -> tuple[dict[str, Tensor], list[str]]:
    """The tensors, with the first convolutions for 3 channels made into some for the backbone's, as timm makes them."""
    first = (getattr(backbone.model, "pretrained_cfg", None) or {}).get("first_conv") or ()
    names = [f"model.{name}.weight" for name in ((first,) if isinstance(first, str) else first)]
    changed = {
        name: adapt_input_conv(backbone.channels, given[name])
        for name in names
        if name in given and given[name].ndim == 4 and given[name].shape[1] == 3 != own[name].shape[1]
    }
    way = "summed" if backbone.channels == 1 else "repeated and scaled"
    told = [f"weights: those of 3 channels are {way} for {backbone.channels}: {some(list(changed))}"] if changed else []
    return {**given, **changed}, told


def behind(backbone: Any, name: str) -> bool:
    """Whether a tensor is of no part that is ever run here: a classifier, a pooling, a decoder; or can be computed."""
    name = name.removeprefix("model.")
    told = getattr(getattr(backbone, "model", None), "pretrained_cfg", None) or {}
    classifiers = told.get("classifier") or ()
    heads = (classifiers,) if isinstance(classifiers, str) else tuple(classifiers)
    return bool(LEFT_OUT.match(name) or COMPUTED.match(name)) or any(name.startswith(f"{head}.") for head in heads)


# --------------------------------------------------------------------------------------------------- where nothing does
def _no_fit(backbone: Any, source: Source, fits: Sequence[Fit], wanted: str | None) -> str:
    """Why nothing in a file is the backbone's: what the nearest part lacks, or what there is in place of it."""
    held = [Part(place, place, "", tensors) for place, tensors in source.tables.items()]
    best = max(fits, key=lambda fit: fit.near, default=None)
    inner = {name.removeprefix("model."): value for name, value in inner_of(backbone).items()}
    if best is not None and best.near >= NEAR:
        problem = best.problem.replace("it ", f"its part '{best.part.name}' ", 1) if best.part.place else best.problem
        if not problem.startswith("it"):
            return problem
        theirs, ours = _looks(best.part.tensors), _looks(inner)
        seems = f"; it seems to be of {theirs}, and the backbone is of {ours}" if theirs != ours else ""
        return f"'{source.path}' does not fit this backbone: {problem}{seems}{_advice(best)}"
    told = "; ".join(f"{part.told}: {_looks(part.tensors)}, first {some(list(part.tensors))}" for part in held[:4])
    more = f"; and {len(held) - 4} more" if len(held) > 4 else ""
    what = f"no part '{wanted}' that fits" if wanted else "nothing that fits"
    needs = f"{sized(inner)}: {_looks(inner)}, first {some(list(inner))}"
    says = f"'{source.path}' holds {what} this backbone. It holds {told}{more}"
    return f"{says}. The backbone wants {needs}{_others(source)}"


def _advice(fit: Fit) -> str:
    if fit.problem in ("it lacks model.cls_token", "it lacks model.cls_token, model.pos_embed"):
        return "; backbone.options.class_token = false makes a backbone without a class token"
    if found := re.search(r"\[\d+, 3, (\d+, \d+)\], not \[\d+, (?!3,)(\d+), \1\]", fit.problem):
        return f"; weights.channels = 'adapt' makes weights for {found[2]} channels of those for 3, as timm does"
    return ""


def _others(source: Source) -> str:
    """What to do about the names of a library that are not read."""
    names = [name for tensors in source.tables.values() for name in tensors]
    if any(re.search(r"embeddings\.patch_embeddings\.|attention\.attention\.query\.", name) for name in names):
        return ". Its names are those of transformers, and timm's are wanted; timm has many of the same weights"
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
        told.append(f"blocks or stages: {max(numbers) + 1}")
    return ", ".join(told) or "no images"


def sized(tensors: Mapping[str, Tensor]) -> str:
    """How many tensors and numbers there are, in words."""
    numbers = sum(value.numel() for value in tensors.values())
    return f"{counted(len(tensors))}, {f'{numbers / 1e6:.3g} M' if numbers >= 1e5 else f'{numbers:,}'} numbers"


def counted(tensors: int) -> str:
    """A number of tensors, in words."""
    return "1 tensor" if tensors == 1 else f"{tensors} tensors"


def some(names: Sequence[str]) -> str:
    """The first of some names, and how many more there are."""
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
