"""What a run measures of itself, before its first step and after its last."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, Literal

import attrs
from rich.console import Console

from maskzoo import processes
from maskzoo.errors import StoppedError
from maskzoo.evaluation.features import WholeImages
from maskzoo.evaluation.options import names_of, shown, words_of
from maskzoo.folder import RunFolder
from maskzoo.protocols import Dataset


@attrs.define(eq=False)
class Measuring:
    """The evaluators of a run, and where their figures go."""

    evaluators: Sequence[Any]
    encoder: WholeImages
    dataset: Dataset
    folder: RunFolder
    say: Callable[[str], None]  # a sentence that is kept
    names: list[str] = attrs.field(init=False)  # made once: an evaluator may settle an option while it measures

    def __attrs_post_init__(self) -> None:
        self.names = names_of(self.evaluators)

    def measure(self, when: Literal["before", "after"], console: Console) -> dict[str, float]:
        """Measure, keep and return the figures that are numbers.

        What an evaluator cannot measure raises before training, in time to be mended; after it the others still
        measure, and the sentence is kept. Of several processes none may go on without the others, so there it raises.
        """
        figures: dict[str, float] = {}
        problems: dict[str, str] = {}
        with self.encoder.remembering(), console.status(f"{', '.join(self.names)} {when} training"):
            for whose, evaluator in zip(self.names, self.evaluators, strict=True):
                try:
                    with self.encoder.reading():
                        found = {
                            f"{whose}/{name}": float(value) for name, value in evaluator(self.encoder, self.dataset)
                        }
                except StoppedError:
                    raise
                except Exception as problem:  # of a plugin, a device without memory, a dead worker
                    if when == "before" or processes.world() > 1:
                        raise
                    problems[whose] = words_of(problem)
                    self.say(f"{whose} was not measured after training: {problems[whose]}")
                else:
                    figures |= found
        if broken := self.encoder.broken():
            self.say(f"{len(broken)} images cannot be read and are left out of what is measured, e.g. {broken[0]}")
        known = {name: value for name, value in figures.items() if math.isfinite(value)}
        for name in figures.keys() - known.keys():
            self.say(f"{name} is {figures[name]} {when} training, no finite number; it is kept as null")
        with self.folder.writing():
            kept = {name: known.get(name) for name in figures}
            self.folder.add_evaluation(when, kept, self.evaluators, self.names, problems)
        return known

    def told(self) -> list[str]:
        """What was measured, a line each."""
        measured = self.folder.evaluation()
        before, problems = measured.get("before", {}), measured.get("problems", {})
        lines = []
        for name, after in measured.get("after", {}).items():
            known = shown(name, before[name]) if name in before else "?"
            lines.append(f"{name}: {known} before, {shown(name, after)} after training")
        lines += [f"{whose}: not measured: {problem}" for whose, problem in problems.items()]
        if not lines and self.evaluators:
            why = "there are no labels" if self.dataset.classes is None else "there are no test images"
            lines.append(f"not evaluated: {why}")
        return lines
