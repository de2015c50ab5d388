"""What evaluators measure, as they declare it; without torch, so that reports can read it too."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any, Literal

import attrs

Better = Literal["higher", "lower"]
Unit = Literal["share", ""]
ACCURATE: Mapping[str, str] = {  # built-in evaluators of accuracy, with what a paper calls each
    "knn": "k-NN",
    "linear": "linear probe",
    "attentive": "attentive probe",
    "fewshot": "few-shot",
    "finetune": "fine-tuned",
    "classifier": "classifier",
}
MOST = 9  # decimals of any number
DIGITS = 4  # of a printed number that is no share, a zero before the point among them


@attrs.frozen
class Metric:
    """One measured value. A value whose direction is not declared is shown, but no cell is called better by it."""

    name: str  # short, unique among what the evaluator yields under the same `options`
    value: float
    better: Better | None = attrs.field(  # which way is better; None: unknown, or neither
        default=None, validator=attrs.validators.in_((None, "higher", "lower"))
    )
    unit: Unit = attrs.field(  # "share": of 1, printed in percent
        default="", validator=attrs.validators.in_(("", "share"))
    )
    label: str = ""  # as a paper would call it, e.g. "k-NN top-1"; without it, evaluator/name
    result: bool = True  # False: a chosen hyper-parameter, or an interval of another metric; kept, but not compared
    options: Mapping[str, Any] = attrs.field(factory=dict)  # the evaluator's own for this metric, where it has several

    @property
    def plain(self) -> dict[str, Any]:
        """All but the options as it stands in `evaluation.json`; a value that is no finite number is None there."""
        told = {"better": self.better, "unit": self.unit, "label": self.label}
        held: dict[str, Any] = {"name": self.name, "value": self.value if math.isfinite(self.value) else None, **told}
        return held if self.result else {**held, "result": False}


def declared(use: str, name: str, value: float) -> Metric:
    """What files of older versions call a metric of an evaluator; known are those of the built-in evaluators alone."""
    several = re.fullmatch(r"(top1) \((?:k=(\d+)|(\d+) a class)\)( \+-)?", name)
    options: dict[str, Any] = {}
    if several and (use, bool(several[2])) in {("knn", True), ("fewshot", False)}:
        options = {"k": int(several[2])} if several[2] else {"shots": [int(several[3])]}
        name = several[1] + (several[4] or "")
    if use in ACCURATE and name in ("top1", "top1 +-"):
        return accuracy(use, value, **options) if name == "top1" else interval(value, **options)
    if use == "reconstruction" and name == "loss on fixed masks":
        return Metric(name, value, "lower", label="reconstruction loss")
    return Metric(name, value, result=(use, name) not in {("linear", "rate"), ("linear", "penalty")})


def accuracy(use: str, value: float, **options: Any) -> Metric:
    """The share of test images whose class a built-in evaluator tells."""
    return Metric("top1", value, "higher", "share", f"{ACCURATE[use]} top-1", options=options)


def interval(value: float, **options: Any) -> Metric:
    """Half the width of the 95 % interval of an accuracy; no result of its own."""
    return Metric("top1 +-", value, None, "share", result=False, options=options)


def decimals(value: float, unit: Unit = "") -> int:
    """Decimals with which a value is printed, in percent where it is a share: 1.234, 0.823 and 0.0482."""
    if unit == "share":
        return 1
    if value == 0 or not math.isfinite(value):
        return DIGITS - 1
    size = math.floor(math.log10(abs(value)))
    return min(MOST, max(0, DIGITS - 1 - (size if size >= 0 else size + 1)))


def enough(least: int, digits: int, *values: float) -> int:
    """Decimals, `least` of them or more, with which the largest of some numbers has so many significant digits.

    A number that nine decimals do not show is noise of the arithmetic, for which `least` is enough.
    """
    size = max((abs(value) for value in values if math.isfinite(value)), default=0.0)
    if size == 0:
        return least
    first = -math.floor(math.log10(size))  # the decimal of the first significant digit
    return least if first > MOST else min(MOST, max(least, first + digits - 1))


def printed(value: float | None, unit: Unit = "") -> str:
    """A value as text, alike wherever it is printed: shares in percent, other numbers to DIGITS digits."""
    if value is None or not math.isfinite(value):
        return "not a number"
    if unit == "share":
        return f"{value:.1%}"
    return f"{value:.{decimals(value)}f}"
