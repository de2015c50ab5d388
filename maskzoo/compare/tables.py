"""The comparison as a table: its entries as text once, and then as Markdown and CSV."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Mapping, Sequence

import attrs

from maskzoo.compare.cells import UNTRAINED, Cell, Comparison, gap_text, mean_decimals, mean_text
from maskzoo.compare.names import full_head
from maskzoo.compare.statistics import FEW, Difference, Summary
from maskzoo.plain import printable

MEAN, SPREAD = "mean", "SD"
BUDGETS = {
    "epochs": "Every cell was trained for as long as its own recipe says.",
    "flops": "Every cell was trained for as many FLOPs as '{}'.",
    "time": "Every cell was trained for about the time of '{}', by a probe of its speed.",
}
FORMULA = tuple(
    "=+-@\t'\uff1d\uff0b\uff0d\uff20"
)  # how a text begins that a spreadsheet would compute, or our sign of one
NONE = "\u2013"  # an entry that there is not, and the dash between the ends of a range


@attrs.frozen
class Entry:
    """One entry of the table."""

    text: str
    bold: bool = False
    note: str = ""  # more about it, where there is room


@attrs.frozen
class Column:
    """One column of the table, an entry for each cell of the comparison."""

    head: str
    entries: list[Entry]
    score: str = ""  # what it belongs to
    numbers: bool = True


def columns(comparison: Comparison) -> list[Column]:
    """The whole table, column by column."""
    cells = comparison.cells
    names = [Entry(cell.name, note="baseline" if cell.name == comparison.baseline else "") for cell in cells]
    made = [
        Column("cell", names, numbers=False),
        Column("seeds", [Entry(_seeds(cell)) for cell in cells]),
    ]
    for score in comparison.scores:
        unit = comparison.unit(score)
        sign = unit[2]
        summaries, differences = comparison.summaries(score), comparison.differences(score)
        leader = comparison.best(score)
        means = [
            _mean(summaries[cell.name], unit, bold=cell.name == leader, runs=len(cell.runs))
            if cell.name in summaries
            else Entry(_without(cell, score), note="no value")
            for cell in cells
        ]
        made.append(Column(f"{MEAN} ({sign})" if sign else MEAN, means, score))
        made.append(Column(SPREAD, [_deviation(summaries.get(cell.name), unit) for cell in cells], score))
        if len(cells) > 1:
            tests = [(differences.get(cell.name), _untested(cell, comparison)) for cell in cells]
            made.append(Column("difference", [_gap(test, unit, none) for test, none in tests], score))
            chances = [
                _chance(test) if cell.name in summaries else Entry(NONE)
                for cell, (test, _) in zip(cells, tests, strict=True)
            ]
            made.append(Column("p (Holm)", chances, score))
    if comparison.flops:
        made.append(Column("GFLOPs an image", [_flops(comparison.flops.get(cell.name)) for cell in cells]))
    seen = [Entry(_same([run.images for run in cell.runs.values()]) if cell.trained else NONE) for cell in cells]
    made.append(Column("images seen", seen))
    made.append(Column("minutes", [Entry(_minutes(cell)) for cell in cells]))
    made.append(Column("peak memory (GiB)", [Entry(_memory(cell)) for cell in cells]))
    return made


def stacked(comparison: Comparison) -> list[tuple[str, list[Column]]]:
    """The table cut into pieces that are not too wide to be read: {title: columns}, one a score, and what it took."""
    table = columns(comparison)
    names, seeds = table[:2]
    pieces = [
        (score, [names, seeds, *(column for column in table if column.score == score)]) for score in comparison.scores
    ]
    costs = [
        _of_trained(column, comparison) for column in (names, *(column for column in table[2:] if not column.score))
    ]
    return [*pieces, ("what it took" if pieces else "no score, only what it took", costs)]


def _of_trained(column: Column, comparison: Comparison) -> Column:
    """A column without the rows of what was not trained here, which took nothing."""
    kept = [entry for entry, cell in zip(column.entries, comparison.cells, strict=True) if cell.trained]
    return attrs.evolve(column, entries=kept)


def markdown(comparison: Comparison) -> str:
    """The tables for a README, with what is needed to read them."""
    heads = {score: full_head(comparison, score) for score in comparison.scores}
    pieces = [_markdown(piece, heads) for _, piece in stacked(comparison)]
    notes = "\n\n".join(map(_inert, how_to_read(comparison)))
    remarks = "".join(f"- {_inert(remark)}\n" for remark in comparison.remarks)
    return "\n\n".join(pieces) + f"\n\n{notes}\n" + (f"\nRemarks:\n\n{remarks}" if remarks else "")


def _markdown(table: Sequence[Column], heads: Mapping[str, str]) -> str:
    means = (column.score if column.head.startswith(MEAN) else "" for column in table)
    lines = [
        "| "
        + " | ".join(_inert(heads.get(score, column.head)) for score, column in zip(means, table, strict=True))
        + " |",
        "|" + "|".join(" ---: " if column.numbers else " :--- " for column in table) + "|",
    ]
    for row in range(len(table[0].entries)):
        entries = [column.entries[row] for column in table]
        texts = [f"**{_inert(entry.text)}**" if entry.bold else _inert(entry.text) for entry in entries]
        lines.append("| " + " | ".join(texts) + " |")
    return "\n".join(lines)


def results_csv(comparison: Comparison) -> str:
    """One line a run: the raw scores, from which everything else can be computed again."""
    scores = comparison.scores
    costs = ["steps", "images", "images_per_second", "seconds", "peak_memory_bytes", "flops_per_image"]
    head = ["cell", "seed", "run", *scores, *costs, "device", "maskzoo"]
    rows: list[list[object]] = []
    for cell in comparison.cells:
        for seed, run in sorted(cell.runs.items()):
            device = run.environment.get("device_name") or run.environment.get("device", "")
            made_by = run.environment.get("versions", {}).get("maskzoo", "")
            measured = [run.scores.get(score) for score in scores]
            flops = comparison.flops.get(cell.name)
            took: list[object] = [run.steps, run.images, run.speed, run.seconds, run.memory, flops]
            if not run.trained:
                took = [None] * len(costs)
            seeded = run.trained or cell.name == UNTRAINED
            rows.append([cell.name, seed if seeded else None, run.path, *measured, *took, device, made_by])
    return _csv([head, *rows])


def statistics_csv(comparison: Comparison) -> str:
    """One line for each cell and score, unrounded and in the score's own unit."""
    head = [
        *("cell", "score", "seeds", "mean", "deviation", "low", "high", "baseline", "pairs", "difference"),
        *("difference_low", "difference_high", "p", "p_holm"),
    ]
    rows: list[list[object]] = []
    for score in comparison.scores:
        differences = comparison.differences(score)
        for name, one in comparison.summaries(score).items():
            row = [name, score, one.count, one.mean, one.deviation, one.low, one.high, comparison.baseline]
            test = differences.get(name)
            gap = None if test is None else test.summary
            if test is not None and gap is not None:
                row += [test.pairs, gap.mean, gap.low, gap.high, test.p, test.adjusted]
            rows.append(row + [None] * (len(head) - len(row)))
    return _csv([head, *rows])


def how_to_read(comparison: Comparison) -> list[str]:
    """Sentences on what the numbers are."""
    count = len(comparison.trained)
    sentences = [BUDGETS[comparison.equal].format(comparison.baseline)] if count else []
    if len(comparison.seeds) > 1:
        sentences.append("Entries are means over seeds with the half-width of their 95 % interval (Student's t).")
    if count > 1:
        sentences.append(
            f"Differences are to '{comparison.baseline}', seed by seed; p is that of a paired t-test after Holm's "
            f"correction over {'the one other cell' if count == 2 else 'all other cells that could be tested'}."
        )
        sentences.append(
            "Bold is what a paired test of at least three seeds supports as better than every other cell (Holm's "
            "correction over all pairs, 5 %)."
        )
    unknown = [score for score in comparison.scores if comparison.better(score) is None]
    if unknown:
        sentences.append(
            f"Which way is better is not declared for {', '.join(unknown)}, so no cell is called better by "
            f"{'it' if len(unknown) == 1 else 'them'}."
        )
    sentences += not_trained_here(comparison)
    if any(run.memory is not None for cell in comparison.trained for run in cell.runs.values()):
        sentences.append("Peak memory is that of torch's allocator on a GPU, elsewhere that of the whole process.")
    pairs = min((len(cell.runs) for cell in comparison.trained), default=0)
    if pairs < 2:
        sentences.append("Where a cell has one seed, there are not enough seeds to tell.")
    elif pairs <= FEW:
        sentences.append(f"With {pairs} seeds the intervals are wide, and only large differences can be shown.")
    return sentences


def not_trained_here(comparison: Comparison) -> list[str]:
    """A sentence on the cells that were evaluated and not trained here, if there are any."""
    others = [f"'{cell.name}'" for cell in comparison.cells if not cell.trained and cell.name != UNTRAINED]
    return [f"Evaluated, but not trained here, so in no test: {', '.join(others)}."] if others else []


def _inert(text: str) -> str:
    """A text as Markdown shows it, whatever is in it: no HTML, code, formula, link, picture or column of its own."""
    plain = " ".join(printable(text).split())
    plain = re.sub(r"[\\`*\[\]|~$]|(?<!\w)_|_(?!\w)", r"\\\g<0>", plain)
    plain = plain.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return re.sub(
        r"(?i)(?<=http)(s?):|(?<=ftp):|(?<=www)\.", lambda found: f"{found[1] or ''}&#{ord(found[0][-1])};", plain
    )


def _csv(rows: Sequence[Sequence[object]]) -> str:
    file = io.StringIO()
    csv.writer(file, lineterminator="\n").writerows([_no_formula(value) for value in row] for row in rows)
    return file.getvalue()


def _no_formula(value: object) -> object:
    """A value of a CSV file that no spreadsheet computes; numbers stay numbers.

    A text that begins with a sign of a formula, or with an apostrophe, has an apostrophe before it, which spreadsheets
    do not show; a program that reads the file takes one apostrophe away from whatever begins with one.
    """
    if value is None or isinstance(value, int | float):
        return value
    text = " ".join(printable(value).splitlines())
    return f"'{text}" if text[:1] in FORMULA or text.lstrip()[:1] in FORMULA else text


def _without(cell: Cell, score: str) -> str:
    """Why a cell has no value of a score, in a word."""
    if any(score in run.scores for run in cell.runs.values()):
        return "NaN"
    evaluator = score.partition("/")[0].partition(" ")[0]
    return "failed" if any(evaluator in run.problems for run in cell.runs.values()) else "unmeasured"


def _mean(summary: Summary, unit: tuple[float, int, str], *, bold: bool, runs: int) -> Entry:
    note = f"of {summary.count} of {runs} runs" if summary.count < runs else ""
    return Entry(mean_text(summary, unit), bold, note)


def _deviation(summary: Summary | None, unit: tuple[float, int, str]) -> Entry:
    if summary is None or summary.deviation is None:
        return Entry(NONE)
    return Entry(f"{summary.deviation * unit[0]:.{mean_decimals(summary, unit)}f}")


def _gap(test: Difference | None, unit: tuple[float, int, str], none: str) -> Entry:
    if test is None:
        return Entry(none)
    if test.summary is None:
        return Entry(NONE, note="no seed in common")
    return Entry(gap_text(test.summary, unit))


def _chance(test: Difference | None) -> Entry:
    if test is None:
        return Entry(NONE)
    if test.pairs == 0:
        return Entry("no seed in common")
    if test.pairs < 2:
        return Entry("not enough seeds to tell")
    if test.adjusted is None:
        gap = "result" if test.summary is None or test.summary.mean == 0 else "difference"
        return Entry(f"the same {gap} in every pair", note="no spread to test against")
    return Entry("< 0.001" if test.adjusted < 0.001 else f"{test.adjusted:.3f}")


def _flops(count: float | None) -> Entry:
    return Entry(NONE if count is None else f"{count / 1e9:.3g}")


def _same(values: Sequence[int]) -> str:
    low, high = min(values), max(values)
    return f"{low:,}" if low == high else f"{low:,}{NONE}{high:,}"


def _untested(cell: Cell, comparison: Comparison) -> str:
    """Why a cell is not tested against the baseline."""
    if cell.name == comparison.baseline:
        return "baseline"
    return "other data" if cell.trained else NONE if cell.name == UNTRAINED else "not trained here"


def _memory(cell: Cell) -> str:
    known = [run.memory / 2**30 for run in cell.runs.values() if run.memory is not None]
    return f"{max(known):.3g}" if known else NONE


def _seeds(cell: Cell) -> str:
    """How many seeds a cell has; what was not trained here has none, save the model before its training."""
    return str(len(cell.runs)) if cell.trained or cell.name == UNTRAINED else NONE


def _minutes(cell: Cell) -> str:
    known = [run.seconds / 60 for run in cell.runs.values() if run.seconds is not None]
    return f"{sum(known) / len(known):.1f}" if known else NONE
