"""Tables for terminals and logs of any width: text is wrapped, a number is never cut in two."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Sequence

import attrs
from rich.console import Console, ConsoleOptions, RenderResult
from rich.segment import Segment
from rich.text import Text

from maskzoo.plain import printable

GAP = 2  # spaces between columns
# Where text may be wrapped: behind a space, and around signs that join words, but nowhere inside a number.
BREAK = re.compile(r"(?<=\s)(?=\S)|(?<=\w[/,;:_.-])(?=[A-Za-z])|(?<=\w)(?=@\w)|(?<=[A-Za-z])(?=\+[A-Za-z])")


@attrs.define(eq=False)
class Listing:
    """Rows under heads; where they do not fit beside each other, row by row with a line for each column."""

    heads: Sequence[str] = ()  # none: rows without heads
    numbers: frozenset[int] | set[int] = frozenset()  # columns that are set to the right and never wrapped
    rows: list[list[Text]] = attrs.field(factory=list)
    notes: list[str] = attrs.field(factory=list)  # footnotes, a number each
    remarks: list[str] = attrs.field(factory=list)  # what stands below without a number

    def add(self, *cells: str | Text) -> None:
        """Add a row, whose cells are plain text or styled."""
        self.rows.append([cell if isinstance(cell, Text) else Text(printable(cell)) for cell in cells])

    def noted(self, note: str) -> str:
        """The mark of a footnote, which is printed once below."""
        if note not in self.notes:
            self.notes.append(note)
        return f"[{self.notes.index(note) + 1}]"

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        widths = self._widths(options.max_width)
        lines = self._stacked(options.max_width) if widths is None else self._beside(widths)
        for line in lines:
            line.rstrip()
            yield from line.render(console)
            yield Segment.line()
        below = [*(f"[{number}] {note}" for number, note in enumerate(self.notes, start=1)), *self.remarks]
        for note in below:
            for line in _wrapped(Text(note, style="dim"), options.max_width, indent=4):
                yield from line.render(console)
                yield Segment.line()

    def _columns(self) -> list[list[Text]]:
        """All entries column by column, heads first."""
        heads = [Text(head, style="bold") for head in self.heads]
        table = [heads, *self.rows] if heads else self.rows
        count = max(map(len, table), default=0)
        return [[row[place] if place < len(row) else Text() for row in table] for place in range(count)]

    def _widths(self, width: int) -> list[int] | None:
        """The width of each column; None where they do not fit beside each other."""
        columns = self._columns()
        wished = [max(entry.cell_len for entry in column) for column in columns]
        least = []
        for place, column in enumerate(columns):
            whole = 1 if self.heads else 0  # numbers are not wrapped, their heads are
            pieces = [piece for entry in column[: whole if place in self.numbers else None] for piece in _pieces(entry)]
            pieces += column[whole:] if place in self.numbers else []
            least.append(max((piece.cell_len for piece in pieces), default=0))
        spare = width - GAP * (len(columns) - 1) - sum(least)
        if spare < 0:
            return None
        while spare and least != wished:  # to who lacks most
            place = max(range(len(columns)), key=lambda place: wished[place] - least[place])
            least[place] += 1
            spare -= 1
        return least

    def _beside(self, widths: Sequence[int]) -> Iterator[Text]:
        columns = self._columns()
        for row in range(len(columns[0]) if columns else 0):
            cells = [_wrapped(column[row], width) for column, width in zip(columns, widths, strict=True)]
            height = max(map(len, cells))
            if row == 0 and self.heads:  # heads stand on their numbers
                cells = [[Text()] * (height - len(cell)) + cell for cell in cells]
            for number in range(height):
                line = Text()
                for place, (cell, width) in enumerate(zip(cells, widths, strict=True)):
                    entry = cell[number] if number < len(cell) else Text()
                    space = " " * (width - entry.cell_len)
                    line.append(" " * GAP if place else "")
                    line.append_text(Text(space) + entry if place in self.numbers else entry + Text(space))
                yield line

    def _stacked(self, width: int) -> Iterator[Text]:
        for row in self.rows:
            first, *others = row
            yield from _wrapped(first, width)
            for place, entry in enumerate(others, start=1):
                if not entry.plain.strip():
                    continue
                head = Text(f"  {self.heads[place]}  ", style="dim") if self.heads else Text("    ")
                if head.cell_len + entry.cell_len <= width or not self.heads:
                    yield from _wrapped(head + entry, width, indent=4)
                else:
                    yield from _wrapped(head, width, indent=4)
                    yield from _wrapped(Text("    ") + entry, width, indent=4)


def _pieces(text: Text) -> list[Text]:
    """The parts of a text between which it may be wrapped, without the spaces behind them."""
    cuts = [0, *(found.start() for found in BREAK.finditer(text.plain)), len(text.plain)]
    pieces = [text[start:end] for start, end in itertools.pairwise(cuts) if end > start]
    for piece in pieces:
        piece.rstrip()
    return pieces


def _wrapped(text: Text, width: int, indent: int = 0) -> list[Text]:
    """The lines of a text; a piece that is wider than that stays whole. All but the first are indented."""
    cuts = [0, *(found.start() for found in BREAK.finditer(text.plain)), len(text.plain)]
    lines: list[Text] = []
    start = 0
    for last, end in itertools.pairwise(cuts):
        line = text[start:end]
        line.rstrip()
        if line.cell_len + (indent if lines else 0) > width and last > start:
            lines.append(text[start:last])
            start = last
    lines.append(text[start:])
    for line in lines:
        line.rstrip()
    return [lines[0], *(Text(" " * indent) + line for line in lines[1:])]
