"""The report of a comparison: one page that needs nothing else, tables for papers, and what each run was made of."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from maskzoo.compare.cells import UNTRAINED, Comparison, gather
from maskzoo.compare.citations import bibtex
from maskzoo.compare.latex import latex
from maskzoo.compare.names import chosen_scores, unknown_scores
from maskzoo.compare.page import page
from maskzoo.compare.strips import strips
from maskzoo.compare.tables import SPREAD, Column, columns, markdown, results_csv, statistics_csv
from maskzoo.errors import MaskZooError, RecipeError
from maskzoo.plain import printable

PUBLISHED = frozenset(  # of environment.json; what is not named here may say who somebody is, and stays with the run
    (
        *(
            "generator",
            "date",
            "processes",
            "device",
            "device_name",
            "cpu",
            "python",
            "platform",
            "threads",
            "precision",
        ),
        *("versions", "plugins", "used", "images", "classes", "image_size", "parameters", "steps", "curriculum"),
    )
)
KEPT = ("recipe.toml", "environment.json", "evaluation.json")  # of each run, from which it can be done again


def report(
    out: Path,
    paths: Mapping[Path, str] | Sequence[Path],
    baseline: str | None = None,
    *,
    equal: str = "epochs",
    flops: Mapping[str, float] | None = None,
    remarks: Iterable[str] = (),
    asked: Mapping[str, Any] | None = None,
    with_command: bool = False,
    scores: str = "",
) -> Comparison:
    """Compare the runs in these folders and leave the report in `out`; a mapping names the cell of each.

    `asked` are the options of the plan, for the page; `with_command` keeps beside each recipe also what was typed, by
    whom and where (it may hold passwords). `scores` chooses those of table.tex; what was never measured is a remark.

    Raises RecipeError where there is nothing to compare, and MaskZooError where `out` cannot be written to.
    """
    comparison = gather(paths, baseline, equal=equal, flops=flops)
    comparison.remarks[:0] = remarks
    known = ", ".join(comparison.scores) or "no scores"
    unknown = unknown_scores(comparison, scores)
    comparison.remarks.extend(f"--scores: nothing was measured by '{name}'; there are {known}" for name in unknown)
    try:
        _write(out, comparison, asked, scores, with_command=with_command)
    except OSError as problem:
        raise MaskZooError(f"the report cannot be written to '{out}': {problem}") from problem
    return comparison


def report_on(
    out: Path,
    runs: Sequence[Path],
    baseline: str | None,
    console: Console,
    *,
    scores: str = "",
    with_command: bool = False,
) -> None:
    """Report on runs that are there, and say what was found."""
    refuse_foreign(out)
    tell(report(out, runs, baseline, scores=scores, with_command=with_command), out, console, scores)


def refuse_foreign(out: Path) -> None:
    """Raise RecipeError where a folder holds something, but no comparison."""
    if not out.exists():
        return
    names = {path.name for path in out.iterdir()} if out.is_dir() else {"no folder"}
    a_run = {"recipe.toml", "metrics.jsonl"} & names
    if a_run or not (names <= {"lock", "probes"} or {"plan.json", "report.html"} & names):
        raise RecipeError(f"--out: '{out}' holds something else already; choose another folder")


def tell(comparison: Comparison, out: Path, console: Console, scores: str = "") -> None:
    """Print the tables of the chosen scores, what must be said about them, and where the rest is."""
    table = [column for column in columns(comparison) if column.head != SPREAD]
    for score in chosen_scores(comparison, scores):  # what it took is in the report
        shown = [*table[:2], *(column for column in table if column.score == score)]
        printed = Table(box=None, pad_edge=False)
        console.print(f"\n{score}", style="bold", highlight=False, markup=False)
        for column in shown:
            printed.add_column(Text(_head(column)), justify="right" if column.numbers else "left", no_wrap=True)
        for row in range(len(comparison.cells)):
            entries = [column.entries[row] for column in shown]
            printed.add_row(*(Text(entry.text, style="bold" if entry.bold else "") for entry in entries))
        console.print(printed)
    for remark in comparison.remarks:
        console.print(remark, style="yellow", highlight=False, markup=False)
    console.print(f"see {out / 'report.html'}", highlight=False, markup=False)


def _write(
    out: Path, comparison: Comparison, asked: Mapping[str, Any] | None, scores: str, *, with_command: bool
) -> None:
    from maskzoo.compare.figures import draw_all  # late, for matplotlib takes its time

    out.mkdir(parents=True, exist_ok=True)
    pictures = strips(comparison)  # first, for what cannot be read is a remark
    sources = _keep_sources(out / "sources", comparison, with_command=with_command)
    drawn = draw_all(comparison, out / "figures")
    texts = {
        "results.csv": results_csv(comparison),
        "statistics.csv": statistics_csv(comparison),
        "table.md": markdown(comparison),
        "table.tex": latex(comparison, chosen_scores(comparison, scores)),
        "references.bib": bibtex(comparison),
        "report.html": page(comparison, drawn, pictures, sources, out, asked),
    }
    for name, text in texts.items():
        (out / name).write_text(printable(text), encoding="utf-8")


def folder_name(name: str) -> str:
    """A name that any file system takes; not necessarily another one for another name."""
    return re.sub(r"[^A-Za-z0-9._+=@-]+", "-", name).strip("-.")[:80] or "cell"


def _keep_sources(folder: Path, comparison: Comparison, *, with_command: bool) -> dict[tuple[str, int], str]:
    """A copy of what each run was made of: recipe, seed, versions and the distributions of its plugins.

    {(cell, seed): the name of its folder}.
    """
    taken: set[str] = set()
    names: dict[tuple[str, int], str] = {}
    beside = folder.with_name(folder.name + ".part")  # the runs may be those that are kept there already
    shutil.rmtree(beside, ignore_errors=True)
    beside.mkdir()
    for cell in comparison.cells:
        for seed, run in sorted(cell.runs.items()):
            if cell.name == UNTRAINED:
                continue
            behind = f"-s{seed}" if cell.trained else ""
            name, number = f"{folder_name(cell.name)}{behind}", 2
            while name.lower() in taken:
                name, number = f"{folder_name(cell.name)}-{number}{behind}", number + 1
            taken.add(name.lower())
            names[cell.name, seed] = name
            (beside / name).mkdir()
            for file in KEPT:
                if not (run.path / file).is_file():
                    continue
                if file == "environment.json" and not with_command and run.environment.keys() - PUBLISHED:
                    _publish(run.environment, beside / name / file)
                else:
                    shutil.copyfile(run.path / file, beside / name / file)
    shutil.rmtree(folder, ignore_errors=True)
    beside.replace(folder)
    return names


def _publish(environment: Mapping[str, Any], file: Path) -> None:
    """What a run stood on, for others: without who started it, where, and what was typed."""
    kept = {name: value for name, value in environment.items() if name in PUBLISHED}
    file.write_text(json.dumps(kept, indent=2) + "\n", encoding="utf-8")


def _head(column: Column) -> str:
    """The head of a column; the score itself is named above the table already."""
    return (
        column.head.replace(column.score, "mean", 1)
        if column.score and column.head.startswith(column.score)
        else column.head
    )
