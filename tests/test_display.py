"""Progress fits its terminal, and no number is cut."""

from __future__ import annotations

import io
import re

import pytest
from helpers import noise_images, tiny_session
from rich.console import Console

from maskzoo.display import ROOM, Line, display, duration

PARTS = {
    "step": "step 31250/400000",
    "loss": "loss 0.1234",
    "dial": "factor -0.25",
    "speed": "12,345 images/s",
    "left": "1 d 3:04:05 left",
}


def drawn(width: int) -> str:
    console = Console(file=io.StringIO(), width=width, force_terminal=True, color_system=None, legacy_windows=False)
    console.print(Line(400_000, 31_250, PARTS))
    return console.file.getvalue()


@pytest.mark.parametrize("width", range(10, 140, 3))
def test_a_line_holds_whole_parts_and_leaves_room(width: int):
    (line,) = drawn(width).splitlines()
    assert len(line.rstrip()) <= max(width - ROOM, min(width, len(PARTS["step"])))
    if width >= len(PARTS["step"]) + ROOM:
        bar = r"[━╸╺ ]+"
        words = [re.escape(part) for part in PARTS.values() if part in line]
        assert re.fullmatch(bar.join(words), line.rstrip()), line
    assert "…" not in line


@pytest.mark.parametrize(
    ("width", "there", "missing"),
    [
        (110, ["  ━", *PARTS.values()], []),
        (95, ["  ╸", *PARTS.values()], []),
        (85, [*PARTS.values()], ["━", "╸"]),
        (70, ["loss", "factor", "left"], ["━", "╸", "images/s"]),
        (60, ["loss", "left"], ["images/s", "factor"]),
        (45, ["step", "loss"], ["images/s", "factor", "left"]),
    ],
)
def test_the_bar_goes_before_anything_else(width: int, there: list[str], missing: list[str]):
    line = drawn(width)
    assert [word for word in there if word not in line] == []
    assert [word for word in missing if word in line] == []


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0.4, "0:00:00"), (3599.6, "1:00:00"), (90061, "1 d 1:01:01"), (1e30, "years"), (float("nan"), "years")],
)
def test_time_is_told_whatever_it_is(seconds: float, words: str):
    assert duration(seconds) == words


@pytest.mark.parametrize("terminal", [True, False])
def test_the_same_words_stand_on_a_terminal_and_in_a_log(terminal: bool):
    session = tiny_session("random", noise_images(count=8), train={"steps": 4})
    console = Console(file=io.StringIO(), width=110, force_terminal=terminal, color_system=None, legacy_windows=False)
    with display(session, console) as show:
        session.step = 1
        show({"epoch": 0.0, "loss": 0.5, "factor": 1.0, "ratio": 0.75}, 1234.0)
    said = console.file.getvalue()
    for words in ("step 1/4", "loss 0.5000", "ratio 0.75", "1,234 images/s", "0:00:00 left"):
        assert words in said
    assert ("epoch 1" in said) is not terminal
