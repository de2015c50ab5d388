"""What a run measures of itself, before its first step and after its last."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import attrs
from rich.console import Console

from maskzoo import processes
from maskzoo.build import described
from maskzoo.data.labels import NoLabelsError
from maskzoo.errors import StoppedError
from maskzoo.evaluation.features import WholeImages
from maskzoo.evaluation.measure import measured
from maskzoo.evaluation.options import lacking_labels, named, words_of
from maskzoo.folder import RunFolder
from maskzoo.measured import Measured, alike, entries, names_of
from maskzoo.metrics import Metric, printed
from maskzoo.protocols import Dataset
from maskzoo.recipe import describe

Moment = Literal["before", "after"]


@attrs.define(eq=False)
class Measuring:
    """The evaluators of a run, and where their metrics go."""

    evaluators: Sequence[Any]
    encoder: WholeImages
    dataset: Dataset
    folder: RunFolder
    say: Callable[[str], None]  # a sentence that is kept
    asked: list[dict[str, Any]] = attrs.field(init=False)  # the evaluators' options; one may be settled later

    def __attrs_post_init__(self) -> None:
        self.asked = [describe(evaluator) for evaluator in self.evaluators]

    def measure(self, when: Moment, step: int, console: Console) -> dict[str, float]:
        """Measure the weights of this step, keep what was found, and return what is a number by EVALUATOR/METRIC.

        What an evaluator cannot measure raises before training, in time to be mended; after it the others still
        measure, and the sentence is kept. Of several processes none may go on without the others, so there it raises.
        """
        found: list[Measured] = []
        broken: dict[str, None] = {}
        names = ", ".join(named(self.evaluators))
        with self.encoder.remembering(), console.status(f"{names} {when} training"):
            for evaluator, asked in zip(self.evaluators, self.asked, strict=True):
                new = self._found(evaluator, asked, when, step)
                for sentence in self.encoder.unlabelled():
                    self.say(sentence)
                unread = self.encoder.broken()
                broken |= dict.fromkeys(unread)
                found += [attrs.evolve(one, left_out=len(unread)) for one in new]
        if broken:
            self.say(
                f"{len(broken)} images cannot be read and are left out of what is measured, e.g. {next(iter(broken))}"
            )
        values = {
            f"{name}/{metric.name}": metric.value
            for name, one in zip(names_of(found), found, strict=True)
            for metric in one.metrics
        }
        for name, value in values.items():
            if not math.isfinite(value):
                self.say(f"{name} is {value} {when} training, no finite number; it is kept as null")
        with self.folder.writing():
            self.folder.add_evaluation(found, when)
        return {name: value for name, value in values.items() if math.isfinite(value)}

    def _found(self, evaluator: Any, asked: Mapping[str, Any], when: Moment, step: int) -> list[Measured]:
        """What one evaluator has found, or an entry that says why it could not measure."""
        about = {"when": when, "step": step, "data": described(self.dataset)}
        if lacking := lacking_labels(evaluator, self.dataset):
            return [Measured(asked, (), problem=lacking, **about)]
        try:
            with self.encoder.reading():
                return measured(evaluator, self.encoder, self.dataset, asked, **about)
        except StoppedError:
            raise
        except NoLabelsError as problem:  # found while reading, so that all processes find it
            return [Measured(asked, (), problem=str(problem), **about)]
        except Exception as problem:  # of a plugin, a device without memory, a dead worker
            if when == "before" or processes.world() > 1:
                raise
            words = words_of(problem)
            self.say(f"{evaluator.name} was not measured after training: {words}")
            return [Measured(asked, (), problem=words, **about)]

    def told(self) -> list[str]:
        """What was measured, a line each."""
        held = entries(self.folder.evaluation())
        before, after = ([one for one in held if one.when == when] for when in ("before", "after"))
        lines = []
        for name, one in zip(names_of(after), after, strict=True):
            first = next((other for other in before if alike(one, other)), None)
            lines += [f"{name}/{metric.name}: {_change(first, metric)}" for metric in one.metrics if metric.result]
        lines += [f"{one.use}: not measured: {one.problem}" for one in after if one.problem]
        if not lines and self.evaluators:
            why = "there are no labels" if self.dataset.classes is None else "there are no test images"
            lines.append(f"not evaluated: {why}")
        return lines


def _change(before: Measured | None, metric: Metric) -> str:
    """A metric before and after training, and whether training has made it worse."""
    first = next((one for one in before.metrics if one.name == metric.name), None) if before is not None else None
    known = "?" if first is None else printed(first.value, first.unit)
    words = f"{known} before, {printed(metric.value, metric.unit)} after training"
    if first is None or metric.better is None:
        return words
    gain = (metric.value - first.value) * (1 if metric.better == "higher" else -1)
    return f"{words} (worse than before)" if gain < 0 else words
