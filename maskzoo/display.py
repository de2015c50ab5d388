"""The progress of a run, on a terminal or in a log."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from maskzoo.pictures import signed
from maskzoo.train import Session

PLAIN_LINES = 20  # of progress in a run, where there is no terminal


def phrase(use: Mapping[str, Any]) -> str:
    """A use with its options, as a run says before it begins what it will train with."""
    options = (f"{name} {value:.4g}" if isinstance(value, float) else f"{name} {value}" for name, value in use.items())
    rest = ", ".join(option for option in options if not option.startswith("use "))
    return f"{use['use']} ({rest})" if rest else str(use["use"])


@contextmanager
def display(session: Session, console: Console) -> Iterator[Any]:
    """Progress: a moving line on a terminal, else some plain lines; yields a function of the figures and the speed."""
    dial = session.strategy.default_curriculum is not None
    first, began = session.step, time.perf_counter()

    def words(figures: Mapping[str, float], speed: float) -> str:
        factor = f"factor {signed(figures['factor'])}" if dial else f"ratio {figures['ratio']:.2f}"
        return f"loss {figures['loss']:.4f}  {factor}  {speed:,.0f} images/s"

    if console.is_terminal:
        columns = (
            TextColumn("step {task.completed}/{task.total}"),
            BarColumn(bar_width=None),
            TextColumn("{task.fields[words]}"),
            TimeRemainingColumn(compact=True),
            TextColumn("left"),
        )
        with Progress(*columns, console=console) as progress:
            task = progress.add_task("train", total=session.steps, completed=session.step, words="")

            def show(figures: Mapping[str, float], speed: float) -> None:
                progress.update(task, completed=session.step, words=words(figures, speed))

            yield show
        return

    every = max(1, math.ceil(session.steps / PLAIN_LINES))

    def say(figures: Mapping[str, float], speed: float) -> None:
        if session.step % every == 0 or session.step == session.steps or session.step == first + 1:
            seconds = (time.perf_counter() - began) / (session.step - first) * (session.steps - session.step)
            left = timedelta(seconds=round(seconds))
            line = (
                f"step {session.step}/{session.steps}  epoch {figures['epoch']}  {words(figures, speed)}  {left} left"
            )
            console.print(line, highlight=False, soft_wrap=True)

    yield say
