"""The report of a comparison: one page that needs nothing else, tables for papers, and what each run was made of."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from rich.console import Console
from rich.text import Text

from maskzoo.compare.cells import UNTRAINED, Comparison, gather
from maskzoo.compare.citations import bibtex
from maskzoo.compare.keeping import keep, refuse_foreign
from maskzoo.compare.latex import latex
from maskzoo.compare.names import chosen_scores, full_head, unknown_scores
from maskzoo.compare.page import page
from maskzoo.compare.strips import strips
from maskzoo.compare.tables import SPREAD, Entry, columns, markdown, results_csv, statistics_csv
from maskzoo.errors import MaskZooError
from maskzoo.listing import Listing
from maskzoo.plain import json_text, printable, read_bytes

PUBLISHED = frozenset(  # of environment.json; what is not named here may identify a person, and stays with the run
    (
        *("generator", "date", "processes", "device", "device_name", "cpu", "python", "platform", "threads"),
        *("precision", "versions", "plugins", "used", "images", "classes", "image_size", "parameters", "steps"),
        *("curriculum", "clashes", "changed"),
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
    another: bool = False,
) -> Comparison:
    """Compare the runs in these folders and leave the report in `out`; a mapping names the cell of each.

    `asked` are the options of the plan, for the page; `with_command` keeps beside each recipe also what was typed, by
    whom and where (it may hold passwords). `scores` chooses those of table.tex; what was never measured is a remark.

    Raises RecipeError where there is nothing to compare or where `out` holds files of others, or another
    comparison and `another` is not to be replaced, and MaskZooError where `out` cannot be written to.
    """
    comparison = gather(paths, baseline, equal=equal, flops=flops)
    comparison.remarks[:0] = remarks
    known = ", ".join(comparison.scores) or "no scores"
    unknown = unknown_scores(comparison, scores)
    comparison.remarks.extend(f"--scores: nothing was measured by '{name}'; there are {known}" for name in unknown)
    try:
        files = _files(out, comparison, asked, scores, with_command=with_command)
        keep(out, files, list(paths), another=another)
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
    another: bool = False,
) -> None:
    """Report on runs that are there, and say what was found; see `report`."""
    refuse_foreign(out)
    made = report(out, runs, baseline, scores=scores, with_command=with_command, another=another)
    tell(made, out, console, scores)


def tell(comparison: Comparison, out: Path, console: Console, scores: str = "") -> None:
    """Print the tables of the chosen scores, what must be said about them, and where the rest is."""
    table = [column for column in columns(comparison) if column.head != SPREAD]
    for score in chosen_scores(comparison, scores):  # what it took is in the report
        shown = [*table[:2], *(column for column in table if column.score == score)]
        numbers = frozenset(place for place, column in enumerate(shown) if column.numbers)
        printed = Listing([column.head for column in shown], numbers)
        console.print(f"\n{printable(full_head(comparison, score))}", style="bold", highlight=False, markup=False)
        for row in range(len(comparison.cells)):
            printed.add(*(_printed(column.entries[row], printed) for column in shown))
        console.print(printed)
    for remark in comparison.remarks:
        console.print(remark, style="yellow", highlight=False, markup=False)
    console.print(f"see {out / 'report.html'}", highlight=False, markup=False)


def _printed(entry: Entry, table: Listing) -> Text:
    """An entry as a terminal shows it: what is said in more than two words stands below, as a footnote."""
    long = len(entry.text.split()) > 2 and not any(letter.isdigit() for letter in entry.text)
    return Text(table.noted(entry.text) if long else printable(entry.text), style="bold" if entry.bold else "")


def _files(
    out: Path, comparison: Comparison, asked: Mapping[str, Any] | None, scores: str, *, with_command: bool
) -> dict[str, str | bytes]:
    """The files of the report, by their names below its folder."""
    from maskzoo.compare.figures import draw_all  # late, for matplotlib takes its time

    pictures = strips(comparison)  # first, for what cannot be read is a remark
    sources, copies = _sources(comparison, with_command=with_command)
    with TemporaryDirectory() as folder:
        drawn = draw_all(comparison, Path(folder))
        figures = {f"figures/{path.name}": path.read_bytes() for path in sorted(Path(folder).iterdir())}
    texts = {
        "results.csv": results_csv(comparison),
        "statistics.csv": statistics_csv(comparison),
        "table.md": markdown(comparison),
        "table.tex": latex(comparison, chosen_scores(comparison, scores)),
        "references.bib": bibtex(comparison),
        "report.html": page(comparison, drawn, pictures, sources, out, asked),
    }
    return {**copies, **figures, **{name: printable(text) for name, text in texts.items()}}


def folder_name(name: str) -> str:
    """A name that any file system takes; not necessarily another one for another name."""
    return re.sub(r"[^A-Za-z0-9._+=@-]+", "-", name).strip("-.")[:80] or "cell"


def _sources(
    comparison: Comparison, *, with_command: bool
) -> tuple[dict[tuple[str, int], str], dict[str, str | bytes]]:
    """What each run was made of: recipe, seed, versions and the distributions of its plugins.

    {(cell, seed): the name of its folder}, and the files by their names.
    """
    names: dict[tuple[str, int], str] = {}
    files: dict[str, str | bytes] = {}
    taken: set[str] = set()
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
            for file in KEPT:
                if not (run.path / file).is_file():
                    continue
                public = file != "environment.json" or with_command or not run.environment.keys() - PUBLISHED
                files[f"sources/{name}/{file}"] = read_bytes(run.path / file) if public else _published(run.environment)
    return names, files


def _published(environment: Mapping[str, Any]) -> str:
    """What a run stood on, for others: without who started it, where, and what was typed."""
    kept = {name: value for name, value in environment.items() if name in PUBLISHED}
    return json_text(kept, indent=2) + "\n"
