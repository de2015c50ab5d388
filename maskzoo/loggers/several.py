"""The loggers of one run, held together so that none of them can hurt it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from maskzoo.blame import plugin_error
from maskzoo.errors import RecipeError
from maskzoo.protocols import Logger


class Loggers:
    """Several loggers as one; whichever raises is left out from then on, with one sentence to `say`.

    They stand outside the run: a full disk or a lost network must not end what took days, and `metrics.jsonl` has
    every figure anyway.
    """

    def __init__(self, loggers: Sequence[Logger], say: Callable[[str], None]) -> None:
        self.loggers, self.say = loggers, say
        self._going: list[Logger] = []
        self._run: tuple[Path, Mapping[str, Any]]
        self._step = 0

    @contextmanager
    def following(self, folder: Path, recipe: Mapping[str, Any], step: int) -> Iterator[Loggers]:
        """Start them, and close them however the run ends. Raises RecipeError where one refuses the recipe.

        Where the run goes back to an earlier step, they are closed, and started again from there.
        """
        self._run, self._step = (folder, recipe), step
        try:
            for number, logger in enumerate(self.loggers):
                try:
                    self._start(logger)
                except RecipeError as problem:
                    raise RecipeError(f"recipe.train.loggers[{number}]: {problem}") from problem
            yield self
        except BaseException:
            self._close(failed=True)
            raise
        self._close(failed=False)

    def log(self, figures: Mapping[str, float], step: int) -> None:
        """Log those figures of a step that are finite; the step itself is not one of them."""
        self._reach(step)
        finite = {
            name: float(value)
            for name, value in figures.items()
            if name != "step" and value is not None and math.isfinite(value)
        }
        self._each(lambda logger: logger.log(dict(finite), step))

    def image(self, name: str, path: Path, step: int) -> None:
        """Log a picture, a PNG file, under a name."""
        self._reach(step)
        self._each(lambda logger: logger.image(name, path, step))

    def _reach(self, step: int) -> None:
        """Start again if the run has gone back: most libraries take steps in ascending order alone."""
        back, self._step = step < self._step, step
        if back:
            for logger in self._close(failed=False):
                try:
                    self._start(logger)
                except RecipeError as problem:  # too late to refuse anything
                    self._leave_out(logger, problem)

    def _start(self, logger: Logger) -> None:
        folder, recipe = self._run
        try:
            logger.start(folder, recipe, self._step)
        except RecipeError:
            raise
        except Exception as problem:
            self._leave_out(logger, problem)
        else:
            self._going.append(logger)

    def _close(self, *, failed: bool) -> list[Logger]:
        """Close those still going; the ones for which that went well."""
        self._each(lambda logger: logger.close(failed))
        closed, self._going = self._going, []
        return closed

    def _each(self, action: Callable[[Logger], None]) -> None:
        for logger in list(self._going):
            try:
                action(logger)
            except Exception as problem:
                self._going.remove(logger)
                self._leave_out(logger, problem)

    def _leave_out(self, logger: Logger, problem: Exception) -> None:
        why = " ".join(str(plugin_error(problem) or f"{type(problem).__name__}: {problem}").split())
        self.say(f"logger '{logger.name}' failed at step {self._step} and is left out from here on: {why}")
