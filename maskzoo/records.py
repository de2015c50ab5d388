"""`metrics.jsonl`, a line a step: written so that no line is lost, and looked through for what is missing."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

import attrs

from maskzoo.plain import read_lines, replace, step_line

SPANS = 6  # of steps that are named


@attrs.define(eq=False)
class Record:
    """The file of a run that is being trained, open to be appended to; with no path, nowhere."""

    path: Path | None
    _file: BinaryIO | None = None

    @classmethod
    @contextmanager
    def opened(cls, path: Path | None) -> Iterator[Record]:
        """Open it; OSError where it cannot be."""
        record = cls(path)
        record._open()
        try:
            yield record
        finally:
            with suppress(OSError):  # the disk is full: said already, where the line was written
                record._close()

    def write(self, line: str) -> None:
        """Add a line; OSError where that fails."""
        if self._file is not None:
            self._file.write(line.encode() + b"\n")
            self._file.flush()

    def keep(self) -> bool:
        """Have the lines outlive a power cut; True where somebody had removed the file, which is there again."""
        if self._file is None or self.path is None:
            return False
        os.fsync(self._file.fileno())
        removed = not self.path.exists()
        if removed:  # what it held lives as long as it is open
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._file.seek(0)
            replace(self.path, self._file.read())
        if removed or not os.path.samestat(os.fstat(self._file.fileno()), self.path.stat()):
            self._close()
            self._open()
        return removed

    def _open(self) -> None:
        self._file = None if self.path is None else self.path.open("a+b")

    def _close(self) -> None:
        if self._file is not None:
            self._file.close()


def steps_in(path: Path) -> list[int]:
    """The steps that the lines of a file tell of, in their order; DataError where it is something else than a file."""
    return [int(told["step"]) for told in map(step_line, read_lines(path)) if told is not None]


def gaps(steps: Sequence[int], wanted: int) -> str:
    """What is wrong with lines of these steps, where each of the first `wanted` should be there once, in order."""
    if list(steps) == list(range(wanted)):
        return ""
    clauses = []
    there: set[int] = set()
    doubled: set[int] = set()
    for step in steps:
        (doubled if step in there else there).add(step)
    if missing := [step for step in range(wanted) if step not in there]:
        clauses.append(f"lacks {_spans(missing)}")
    if doubled:
        clauses.append(f"has {_spans(sorted(doubled))} more than once")
    if late := sorted({step for before, step in itertools.pairwise(steps) if step < before}):
        clauses.append(f"has {_spans(late)} behind later ones")
    return ", ".join(clauses)


def _spans(steps: Sequence[int]) -> str:
    """Steps in words: "steps 3 to 5 and 9"."""
    spans: list[list[int]] = []
    for step in steps:
        if spans and step == spans[-1][1] + 1:
            spans[-1][1] = step
        else:
            spans.append([step, step])
    words = [str(first) if first == last else f"{first} to {last}" for first, last in spans[:SPANS]]
    if len(spans) > SPANS:
        words.append(f"{sum(last - first + 1 for first, last in spans[SPANS:])} more")
    listed = words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"
    return f"{'step' if len(steps) == 1 else 'steps'} {listed}"
