"""What evaluators measure, as they declare it; without torch, so that reports can read it too."""

from __future__ import annotations

import math
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
DIGITS = 4  # significant ones of a printed number that is no share


@attrs.frozen
class Metric:
    """One measured value. A value whose direction is not declared is shown, but no cell is called better by it."""

    name: str  # short, unique among what the evaluator yields under the same `options`
    value: float
    better: Better | None = None  # which way is better; None: unknown, or neither
    unit: Unit = ""  # "share": of 1, printed in percent
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
    """A metric of which only the evaluator's name is known: files of older versions. Built-in evaluators are known."""
    interval = name.endswith(" +-")
    if use in ACCURATE and name.startswith("top1"):
        label = "" if interval else f"{ACCURATE[use]} top-1"
        return Metric(name, value, None if interval else "higher", "share", label, not interval)
    if use == "reconstruction" and name == "loss on fixed masks":
        return Metric(name, value, "lower", "", name)
    return Metric(name, value, result=(use, name) not in {("linear", "rate"), ("linear", "penalty")})


def decimals(value: float, unit: Unit = "") -> int:
    """Decimals with which a value is printed, in percent where it is a share: DIGITS significant ones, at most 9."""
    if unit == "share":
        return 1
    if value == 0 or not math.isfinite(value):
        return DIGITS - 1
    return min(9, max(0, DIGITS - 1 - math.floor(math.log10(abs(value)))))


def printed(value: float | None, unit: Unit = "") -> str:
    """A value as text, alike wherever it is printed: shares in percent, other numbers to DIGITS significant digits."""
    if value is None or not math.isfinite(value):
        return "not a number"
    if unit == "share":
        return f"{value:.1%}"
    return f"{value:.{decimals(value)}f}"
