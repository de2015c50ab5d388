"""What was measured of a model, as `evaluation.json` keeps it: one format for all who measure, read without torch.

{"measured": ["before", "after"],                  the moments at which a run has measured itself
 "evaluations": [{"evaluator": {"use": "knn", "k": 20, ...}, "changed": [], "when": "after", "step": 100,
                  "data": {...}, "pooling": "mean", "normalisation": {"mean": [...], "std": [...]},
                  "metrics": [{"name": "top1", "value": 0.87, "better": "higher", "unit": "share",
                               "label": "k-NN top-1"}]}]}
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import attrs

from maskzoo.errors import DataError
from maskzoo.metrics import Metric, declared
from maskzoo.plain import is_number, json_text, parse_json, read_json

ENTRIES, MOMENTS = "evaluations", "measured"  # the keys of the file
OWN = ("before", "after")  # moments at which a run measures itself
SECTIONS: Mapping[str, type] = {  # of the file, those of older versions among them
    **dict.fromkeys((ENTRIES, MOMENTS), list),
    **dict.fromkeys(("before", "after", "settings", "problems"), dict),
}
FOUND = ("metrics", "left_out", "problem", "changed")  # of an entry; all else is the setting it was measured under


@attrs.frozen(eq=False)
class Measured:
    """What one evaluator has found under one setting, or why it found nothing."""

    evaluator: Mapping[str, Any]  # its `use` and its options
    metrics: Sequence[Metric]
    when: str = "later"  # "before" or "after" training, "step N" on the way, or "later" by `maskzoo evaluate`
    step: int | None = None  # of the weights; None where that is not known
    data: Any = None  # as a recipe names them; None: what the run itself learned from
    pooling: str = "mean"
    normalisation: Any = None
    model: Any = None  # of weights that no run here has trained, with the file that they came from
    weights: Any = None  # as a recipe names it: a text, or a table that says more
    changed: frozenset[str] | None = None  # options that are not as given; None where an older version did not say
    left_out: int = 0  # images that could not be read
    problem: str = ""  # why nothing was measured

    @property
    def use(self) -> str:
        """The evaluator's name."""
        return str(self.evaluator.get("use", "?"))

    @property
    def own(self) -> bool:
        """Whether a run has measured this of itself."""
        return self.when in OWN

    @property
    def told(self) -> str:
        """The evaluator's name with the options that are not as given."""
        changed = [f"{key} {option(self.evaluator[key])}" for key in self.evaluator if key in (self.changed or ())]
        return f"{self.use} ({', '.join(changed)})" if changed else self.use

    @property
    def plain(self) -> dict[str, Any]:
        """The entry of the file."""
        about = {"model": self.model, "weights": self.weights} if self.model is not None else {}
        held: dict[str, Any] = {"evaluator": dict(self.evaluator)}
        held |= {} if self.changed is None else {"changed": sorted(self.changed)}
        held |= {"when": self.when, **({} if self.step is None else {"step": self.step}), **about, "data": self.data}
        held |= {"pooling": self.pooling, "normalisation": self.normalisation}
        held |= {"metrics": [metric.plain for metric in self.metrics]}
        held |= {"left_out": self.left_out} if self.left_out else {}
        return {**held, "problem": self.problem} if self.problem else held


def option(value: Any) -> str:
    """An option's value as a name shows it."""
    if isinstance(value, list | tuple):
        return ",".join(map(option, value))
    return f"{value:g}" if isinstance(value, float) else str(value)


def names_of(measured: Sequence[Measured]) -> list[str]:
    """What to call each: by its evaluator's name, and its options too where another has that name."""
    settings: dict[str, set[str]] = {}
    for one in measured:
        settings.setdefault(one.use, set()).add(_json(one.evaluator))
    return [one.told if len(settings[one.use]) > 1 else one.use for one in measured]


def alike(one: Measured, other: Measured) -> bool:
    """Whether both were measured under the same setting, of whichever weights at whichever moment."""
    settings = ((ours.evaluator, ours.data, ours.pooling, ours.normalisation) for ours in (one, other))
    # What an older version did not write down says nothing against it.
    return all(None in pair or _json(pair[0]) == _json(pair[1]) for pair in zip(*settings, strict=True))


def split(evaluator: Mapping[str, Any], metrics: Iterable[Metric]) -> Iterator[tuple[dict[str, Any], list[Metric]]]:
    """The metrics by the options that they were measured under, so that a list of k is as many measurements."""
    groups: dict[str, tuple[dict[str, Any], list[Metric]]] = {}
    for metric in metrics:
        settings = {**evaluator, **metric.options}
        groups.setdefault(_json(settings), (settings, []))[1].append(metric)
    yield from groups.values()


# ----------------------------------------------------------------------------------------------------------- the file
def read(path: Path, *, strict: bool = False) -> dict[str, Any]:
    """What an evaluation.json holds, in the format of today; without a file, nothing. DataError where it is damaged.

    Who writes it again reads it `strict`, so that nothing is lost that has not the form of a measurement.
    """
    held = read_json(path, missing={}, finite=False)  # a metric that is no number is said, run by run
    for key, kind in SECTIONS.items() if strict else ():
        if not isinstance(held.get(key, kind()), kind):
            raise DataError(f"'{path}' cannot be read: '{key}' is no {'list' if kind is list else 'table'}")
    try:
        return migrated(held)
    except (AttributeError, TypeError, ValueError) as problem:
        raise DataError(f"'{path}' cannot be read: it is of another format ({problem})") from None


def refuse_foreign(path: Path) -> None:
    """Raise DataError where there is an evaluation.json that holds something else than measurements."""
    held = read_json(path, missing=None, finite=False)
    listed = None if held is None else held.get(ENTRIES)
    ours = isinstance(listed, list) and held.keys() <= {ENTRIES, MOMENTS} and all(map(_entry, listed))
    if held is not None and not (ours and listed):
        raise DataError(f"'{path}' holds something else than measurements, and nothing is overwritten")


def entries(held: Mapping[str, Any]) -> list[Measured]:
    """The measurements of a file; what has not the form of one is passed over."""
    found = [_entry(entry) for entry in held.get(ENTRIES, [])]
    return [entry for entry in found if entry is not None]


def added(held: Mapping[str, Any], new: Sequence[Measured], moment: str = "") -> dict[str, Any]:
    """The file's table with new entries, each in the place of one with the same setting, else behind all."""
    kept = list(held.get(ENTRIES, []))
    for entry in (one.plain for one in new):
        places = [place for place, other in enumerate(kept) if _setting(other) == _setting(entry)]
        if places:
            kept[places[0]] = entry
        else:
            kept.append(entry)
    moments = list(held.get(MOMENTS, []))
    return {**held, MOMENTS: moments + [moment] * (bool(moment) and moment not in moments), ENTRIES: kept}


def without(held: Mapping[str, Any], moment: str) -> dict[str, Any]:
    """The file's table without what the run has measured of itself at a moment."""
    kept = [one for one in held.get(ENTRIES, []) if not (isinstance(one, dict) and one.get("when") == moment)]
    return {**held, MOMENTS: [one for one in held.get(MOMENTS, []) if one != moment], ENTRIES: kept}


def _setting(entry: Any) -> str:
    """All that decides what an entry has found."""
    return _json({key: value for key, value in entry.items() if key not in FOUND}) if isinstance(entry, dict) else ""


def _json(value: Any) -> str:
    """A value as it is read back from the file, for a comparison."""
    return json.dumps(parse_json(json_text({"": value}), "an entry", finite=False), sort_keys=True)


def _entry(entry: Any) -> Measured | None:
    if not isinstance(entry, dict) or not isinstance(entry.get("evaluator"), dict):
        return None
    metrics = entry.get("metrics")
    changed, step, left_out = entry.get("changed"), entry.get("step"), entry.get("left_out")
    model, weights = entry.get("model"), entry.get("weights")
    return Measured(
        entry["evaluator"],
        [one for one in map(_metric, metrics if isinstance(metrics, list) else []) if one is not None],
        when=str(entry.get("when", "later")),
        step=step if isinstance(step, int) else None,
        data=entry.get("data"),
        pooling=str(entry.get("pooling", "mean")),
        normalisation=entry.get("normalisation"),
        model=model if isinstance(model, dict) else None,
        weights=weights if weights is None or isinstance(weights, dict) else str(weights),
        changed=frozenset(map(str, changed)) if isinstance(changed, list) else None,
        left_out=left_out if isinstance(left_out, int) else 0,
        problem=str(entry.get("problem", "")),
    )


def _metric(held: Any) -> Metric | None:
    if not isinstance(held, dict) or not isinstance(held.get("name"), str):
        return None
    better, unit = held.get("better"), held.get("unit")
    return Metric(
        held["name"],
        _value(held.get("value")),
        better if better in ("higher", "lower") else None,
        "share" if unit == "share" else "",
        str(held.get("label", "")),
        held.get("result") is not False,
    )


def _value(value: Any) -> float:
    return float(value) if is_number(value) else math.nan


# ---------------------------------------------------------------------------------------------------- older versions
def migrated(held: Mapping[str, Any]) -> dict[str, Any]:
    """A file's table in the format of today.

    Once a run wrote {"before": {"knn/top1": 0.1}, "after": {...}, "settings": {...}, "problems": {...}}, and
    `maskzoo evaluate` entries with {"figures": {"top1": 0.1}}. What they say of no metric's direction is known for
    built-in evaluators alone.
    """
    older = {"before", "after", "settings", "problems"} & held.keys()
    listed = held.get(ENTRIES)
    found: list[Any] = [entry for one in listed for entry in _newer(one)] if isinstance(listed, list) else []
    moments = held.get(MOMENTS)
    done = [str(moment) for moment in moments] if isinstance(moments, list) else []
    for moment in (moment for moment in OWN if held.get(moment) is not None):
        measured = _owned(held[moment], held.get("settings") or {}, moment)
        if moment == "after":
            problems = (held.get("problems") or {}).items()
            measured += [Measured({"use": name}, (), moment, problem=str(words)) for name, words in problems]
        found += [one.plain for one in measured]
        done += [moment]
    kept = {key: value for key, value in held.items() if key not in older}
    return {**kept, MOMENTS: list(dict.fromkeys(done)), ENTRIES: found}


def _newer(entry: Any) -> list[Any]:
    """An entry of `maskzoo evaluate`; one of an older version may be several today."""
    if not isinstance(entry, dict) or "figures" not in entry or not isinstance(entry.get("evaluator"), dict):
        return [entry]
    figures, use = entry["figures"], str(entry["evaluator"].get("use", "?"))
    metrics = [declared(use, str(name), _value(value)) for name, value in dict(figures or {}).items()]
    rest = {key: value for key, value in entry.items() if key not in ("figures", "evaluator")}
    return [
        {"when": "later", **rest, "evaluator": evaluator, "metrics": [metric.plain for metric in group]}
        for evaluator, group in split(entry["evaluator"], metrics)
    ]


def _owned(figures: Mapping[str, Any], settings: Mapping[str, Any], moment: str) -> list[Measured]:
    """What a run had measured of itself: NAME/FIGURE, by the names of its evaluators."""
    uses = [use if isinstance(use, dict) else {"use": use} for use in settings.get("evaluators", [])]
    plain = [{key: value for key, value in use.items() if value is not None} for use in uses]
    names = settings.get("names") or [str(use.get("use")) for use in plain]
    known = dict(zip(names, plain, strict=False))
    groups: dict[str, list[Metric]] = {}
    for name, value in figures.items():
        owners = [owner for owner in known if name.startswith(f"{owner}/")]
        owner = max(owners, key=len) if owners else name.partition("/")[0]
        use = str(known.get(owner, {}).get("use", owner))
        groups.setdefault(owner, []).append(declared(use, name.removeprefix(owner).removeprefix("/"), _value(value)))
    return [
        Measured(evaluator, metrics, moment)
        for owner, found in groups.items()
        for evaluator, metrics in split(known.get(owner, {"use": owner}), found)
    ]
