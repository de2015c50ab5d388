"""What is printed on a terminal, or into a log: names out of files, recipes and plugins change nothing there."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import attrs
from rich import console as rich_console
from rich.console import ConsoleOptions, ConsoleRenderable, RenderableType, RenderHook, RenderResult
from rich.segment import Segment

from maskzoo.plain import printable


class Console(rich_console.Console):
    """Rich's console, which prints what it is given as `printable` shows it."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.push_render_hook(_Harmless())


class _Harmless(RenderHook):
    """Wraps whatever is about to be printed; rich takes care of some control characters, but not of ESC."""

    def process_renderables(self, renderables: list[ConsoleRenderable]) -> list[ConsoleRenderable]:
        return [_Cleaned(one) for one in renderables]


@attrs.frozen
class _Cleaned:
    """Something to print, with its letters made printable after rich has laid it out; rich's own controls stay."""

    content: RenderableType

    def __rich_console__(self, console: rich_console.Console, options: ConsoleOptions) -> RenderResult:
        yield from self._segments(console, options)

    def _segments(self, console: rich_console.Console, options: ConsoleOptions) -> Iterator[Segment]:
        for segment in console.render(self.content, options):
            if segment.control:
                yield segment
            else:
                yield Segment(printable(segment.text), segment.style)
