"""Ask an evaluator, and check what it says: by whom, under which options, in numbers and each once."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from numbers import Real
from typing import Any

import attrs
import torch

from maskzoo.blame import blaming, owner_of
from maskzoo.errors import PluginError
from maskzoo.measured import Measured, split
from maskzoo.metrics import Metric
from maskzoo.plain import json_text, printable
from maskzoo.protocols import Dataset, Encoder
from maskzoo.recipe import describe


def measured(
    evaluator: Any, encoder: Encoder, dataset: Dataset, asked: Mapping[str, Any] | None = None, **about: Any
) -> list[Measured]:
    """What an evaluator finds, with all that it is measured under; more than one where it was given a list of options.

    `asked` are its options as they were at first, where it has measured before: it may settle one while it measures.
    `about` says the rest of the setting (`when`, `step`, `data`, ...), as in `Measured`. PluginError says which
    evaluator yields what is no metric.
    """
    asked = describe(evaluator) if asked is None else asked
    given = _given(evaluator)
    metrics = list(_checked(evaluator, encoder, dataset))
    about = {"pooling": encoder.pooling, "normalisation": _statistics(encoder), **about}
    groups = list(split(describe(evaluator), metrics)) or [(dict(asked), [])]
    found = []
    for options, group in groups:
        before = {**asked, **{key: options[key] for metric in group for key in metric.options}}
        changed = frozenset(key for key in before if key != "use" and before[key] != given.get(key))
        found.append(Measured(options, group, changed=changed, **about))
    return found


def as_metric(yielded: Any) -> Metric:
    """A metric, or what an older plugin yields: a name and a number. TypeError and ValueError say why it is neither."""
    if isinstance(yielded, Metric):
        metric = yielded
    elif isinstance(yielded, tuple | list) and len(yielded) == 2:
        metric = Metric(*yielded)
    else:
        raise TypeError(f"yields a {type(yielded).__name__} where a Metric, or a name and a number, is expected")
    if not isinstance(metric.name, str) or not metric.name.strip():
        raise TypeError(f"calls a metric {metric.name!r}, which is no name")
    value: Any = metric.value
    if not isinstance(value, Real) and getattr(value, "shape", None) == () and hasattr(value, "item"):
        value = value.item()  # a tensor or an array of one number
    if not isinstance(value, Real) or isinstance(value, bool):
        shape = getattr(value, "shape", None)
        kind = type(value).__name__ + (f" of shape {list(shape)}" if shape is not None else "")
        raise TypeError(f"gives '{metric.name}' as a {kind}, and a number is expected")
    number = float(value)
    if metric.unit == "share" and metric.result and math.isfinite(number) and not 0 <= number <= 1:
        raise ValueError(f"gives '{metric.name}' as a share of {number:g}, and a share lies between 0 and 1")
    return attrs.evolve(metric, name=" ".join(printable(metric.name).split()), value=number)


def _checked(evaluator: Any, encoder: Encoder, dataset: Dataset) -> Iterator[Metric]:
    """The metrics of an evaluator, each once."""
    whose = f"evaluator '{evaluator.name}' ({owner_of(evaluator)})"
    seen: set[str] = set()
    with blaming(f"evaluator '{evaluator.name}'"):
        for one in _yielded(whose, evaluator(encoder, dataset)):
            try:
                metric = as_metric(one)
            except (TypeError, ValueError) as problem:
                raise PluginError(f"{whose} {problem}") from problem
            key = json_text([metric.name, metric.options])
            if key in seen:
                raise PluginError(f"{whose} yields '{metric.name}' twice; each metric needs a name of its own")
            seen.add(key)
            yield metric


def _yielded(whose: str, returned: Any) -> Iterable[Any]:
    """What an evaluator yields, if it yields; nothing where it returns nothing."""
    if returned is None:
        return ()
    if not isinstance(returned, Iterable) or isinstance(returned, str | Mapping | torch.Tensor):
        raise PluginError(f"{whose} returns a {type(returned).__name__}, and it should yield metrics")
    return returned


def _given(evaluator: Any) -> Mapping[str, Any]:
    """The options of the evaluator's class as they are unless somebody says otherwise."""
    cls = type(evaluator)
    given = {}
    for field in attrs.fields(cls) if attrs.has(cls) else ():
        default: Any = field.default
        if isinstance(default, attrs.Factory):  # type: ignore[arg-type]
            if default.takes_self:
                continue
            default = default.factory()
        given[field.name] = describe(default) if default is not attrs.NOTHING else None
    return given


def _statistics(encoder: Encoder) -> dict[str, list[float]]:
    """By which mean and deviation images are normalised."""
    mean, deviation = encoder.statistics
    return {"mean": list(mean), "std": list(deviation)}
