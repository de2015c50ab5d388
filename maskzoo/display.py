"""The progress of a run, on a terminal or in a log."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import attrs
from rich.console import Console, ConsoleOptions, RenderResult
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from maskzoo.pictures import signed
from maskzoo.train import Session

PLAIN_LINES = 20  # of progress in a run, where there is no terminal
GAP = 2  # columns between the parts of a line
ROOM = 4  # columns that stay free: a terminal echoes ^C, and a line that is full would be left standing
BAR = (8, 40)  # columns of a bar, at least and at most
DROPPED = ("speed", "dial", "left", "loss")  # what a narrow terminal does without, after the bar; never a part of it
LONGEST = 1e9  # seconds that are worth telling

Show = Callable[[Mapping[str, float], float], None]


def phrase(use: Mapping[str, Any]) -> str:
    """A use with its options, as a run says before it begins what it will train with."""
    options = (f"{name} {value:.4g}" if isinstance(value, float) else f"{name} {value}" for name, value in use.items())
    rest = ", ".join(option for option in options if not option.startswith("use "))
    return f"{use['use']} ({rest})" if rest else str(use["use"])


@contextmanager
def display(session: Session, console: Console) -> Iterator[Show]:
    """Progress: a moving line on a terminal, else some plain lines; yields a function of the figures and the speed."""
    if session.step == session.steps:
        yield lambda figures, speed: None  # of a run that is finished there is none
        return
    dial = session.strategy.default_curriculum is not None
    first, began = session.step, time.perf_counter()

    def parts(figures: Mapping[str, float], speed: float) -> dict[str, str]:
        seconds = (time.perf_counter() - began) / (session.step - first) * (session.steps - session.step)
        return {
            "step": f"step {session.step}/{session.steps}",
            "epoch": f"epoch {int(figures['epoch']) + 1}",
            "loss": f"loss {figures['loss']:.4f}",
            "dial": f"factor {signed(figures['factor'])}" if dial else f"ratio {figures['ratio']:.2f}",
            "speed": f"{speed:,.0f} images/s",
            "left": f"{duration(seconds)} left",
        }

    if console.is_terminal:
        line = Line(session.steps, session.step, {"step": f"step {session.step}/{session.steps}"})
        with Live(line, console=console, refresh_per_second=10) as live:

            def move(figures: Mapping[str, float], speed: float) -> None:
                known = parts(figures, speed)
                live.update(Line(session.steps, session.step, {n: known[n] for n in known if n != "epoch"}))

            yield move
        return

    every = max(1, math.ceil(session.steps / PLAIN_LINES))

    def say(figures: Mapping[str, float], speed: float) -> None:
        if session.step % every == 0 or session.step == session.steps or session.step == first + 1:
            console.print("  ".join(parts(figures, speed).values()), highlight=False, soft_wrap=True)

    yield say


@attrs.frozen
class Line:
    """One line of progress that fits any terminal: the bar goes first, then whole parts, and no number is cut."""

    steps: int
    step: int
    parts: Mapping[str, str]  # by name, in the order in which they stand

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Draw it."""
        width = options.max_width - ROOM
        kept = dict(self.parts)
        for name in DROPPED:
            if _width(list(kept.values())) > width:
                kept.pop(name, None)
        first, *others = kept.values()
        bar = min(BAR[1], width - _width(list(kept.values())) - GAP)
        if bar < BAR[0] or len(kept) < len(self.parts):
            yield Text((" " * GAP).join(kept.values()), no_wrap=True, overflow="crop")
            return
        row = Table.grid(padding=(0, GAP, 0, 0))
        row.add_row(first, ProgressBar(self.steps, self.step, width=bar), *others)
        yield row


def _width(parts: Sequence[str]) -> int:
    return sum(map(len, parts)) + GAP * (len(parts) - 1)


def duration(seconds: float) -> str:
    """Seconds as hours, minutes and seconds, and days where there are any."""
    if not seconds < LONGEST:
        return "years"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    return f"{f'{days} d ' if days else ''}{hours}:{minutes:02}:{rest:02}"
