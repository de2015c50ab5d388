"""A table for a terminal of any width, of which nothing is ever cut."""

from __future__ import annotations

from collections.abc import Sequence

import attrs
from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, RenderResult
from rich.table import Table
from rich.text import Text

GAP = 2  # columns between two entries
NOTHING = ("", "\u2013")  # entries that say nothing


@attrs.frozen
class Fitted:
    """Rows under heads; where the terminal is too narrow for them, a few lines for each row instead."""

    heads: Sequence[str]
    rows: Sequence[Sequence[Text]]  # the first entry of each is its name
    texts: frozenset[int] = frozenset({0})  # the columns that are no numbers

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """What rich prints."""
        columns = range(len(self.heads))
        widths = [max(cell_len(self.heads[at]), *(row[at].cell_len for row in self.rows)) for at in columns]
        if sum(widths) + GAP * (len(widths) - 1) > options.max_width:
            yield from self._stacked(options.max_width)
            return
        table = Table(box=None, pad_edge=False, padding=(0, GAP, 0, 0))
        for at, head in enumerate(self.heads):
            table.add_column(Text(head), justify="left" if at in self.texts else "right", no_wrap=True)
        for row in self.rows:
            table.add_row(*row)
        yield table

    def _stacked(self, width: int) -> RenderResult:
        for name, *entries in self.rows:
            yield Text(name.plain, style="bold", overflow="fold")
            line = Text("  ")
            for head, entry in zip(self.heads[1:], entries, strict=True):
                if entry.plain in NOTHING:
                    continue
                part = Text.assemble(f"{head} ", entry)
                if line.cell_len > GAP and line.cell_len + part.cell_len + GAP > width:
                    yield line
                    line = Text("  ")
                line = Text.assemble(line, part) if line.cell_len <= GAP else Text.assemble(line, "  ", part)
            if line.cell_len > GAP:
                line.overflow = "fold"
                yield line
