"""The report of a comparison: one page that needs nothing else, tables for papers, and what each run was made of."""

from __future__ import annotations

import base64
import html
import os
import re
import shutil
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from maskzoo.compare.cells import UNTRAINED, Comparison, gather, plain_value
from maskzoo.compare.latex import latex
from maskzoo.compare.readings import Reading
from maskzoo.compare.scores import data_name
from maskzoo.compare.tables import (
    SPREAD,
    Column,
    Entry,
    columns,
    how_to_read,
    markdown,
    results_csv,
    stacked,
    statistics_csv,
)
from maskzoo.errors import MaskZooError, RecipeError
from maskzoo.plain import printable

MASKERS_OWN = ("masking.", "teacher.", "train.epochs", "train.steps")  # keys on which neither weights nor crops hang
KEPT = ("recipe.toml", "environment.json", "evaluation.json")  # of each run, from which it can be done again
MINUS = "\u2212"
PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>
:root {{ color-scheme: light; --ink: #1f2430; --soft: #5d6470; --rule: #d9dce2; --shade: #f5f6f8; }}
* {{ box-sizing: border-box; }}
body {{ margin: 0 auto; max-width: 70rem; padding: 2.5rem 1.5rem 4rem; background: #fff; color: var(--ink);
  font: 16px/1.55 "Source Sans 3", "Segoe UI", "Helvetica Neue", Arial, sans-serif; }}
h1 {{ font-size: 1.7rem; line-height: 1.25; margin: 0 0 .3rem; font-weight: 650; }}
h2 {{ font-size: 1.15rem; margin: 2.8rem 0 .7rem; font-weight: 650; }}
h3 {{ font-size: 1rem; margin: 1.6rem 0 .4rem; font-weight: 600; }}
p {{ max-width: 46rem; margin: .5rem 0; }}
p.lead, p.note, li, figcaption {{ color: var(--soft); }}
p.note, figcaption {{ font-size: .88rem; }}
.wide {{ overflow-x: auto; }}
table {{ border-collapse: collapse; font-size: .92rem; font-variant-numeric: tabular-nums; margin: .6rem 0; }}
caption {{ caption-side: top; text-align: left; font-weight: 600; padding-bottom: .4rem; }}
th, td {{ padding: .38rem .8rem; text-align: right; white-space: nowrap; }}
th:first-child, td:first-child {{ padding-left: 0; }}
th {{ font-weight: 600; color: var(--soft); border-bottom: 1px solid var(--ink); }}
td {{ border-bottom: 1px solid var(--rule); }}
tbody tr:last-child td {{ border-bottom: 1px solid var(--ink); }}
th.text, td.text {{ text-align: left; }}
td.keys {{ white-space: normal; overflow-wrap: anywhere; }}
small {{ display: block; color: var(--soft); font-size: .78rem; line-height: 1.2; font-weight: 400; }}
code {{ font: .86em ui-monospace, "SF Mono", Menlo, Consolas, monospace; }}
figure {{ margin: 1rem 0 1.8rem; }}
figure svg, figure img {{ max-width: 100%; height: auto; display: block; }}
.pair {{ display: grid; grid-template-columns: repeat(auto-fit, minmax(30rem, 1fr)); gap: 1rem 2rem; }}
@media (max-width: 36rem) {{ .pair {{ grid-template-columns: 1fr; }} }}
@media print {{ body {{ padding: 0; }} figure, table {{ break-inside: avoid; }} }}
</style>
</head>
<body>
{body}
</body>
</html>
"""


def report(
    out: Path,
    paths: Mapping[Path, str] | Sequence[Path],
    baseline: str | None = None,
    *,
    equal: str = "epochs",
    flops: Mapping[str, float] | None = None,
    remarks: Iterable[str] = (),
) -> Comparison:
    """Compare the runs in these folders and leave the report in `out`; a mapping names the cell of each.

    Raises RecipeError where there is nothing to compare, and MaskZooError where `out` cannot be written to.
    """
    comparison = gather(paths, baseline, equal=equal, flops=flops)
    comparison.remarks[:0] = remarks
    try:
        _write(out, comparison)
    except OSError as problem:
        raise MaskZooError(f"the report cannot be written to '{out}': {problem}") from problem
    return comparison


def report_on(out: Path, runs: Sequence[Path], baseline: str | None, console: Console) -> None:
    """Report on runs that are there, and say what was found."""
    refuse_foreign(out)
    tell(report(out, runs, baseline), out, console)


def refuse_foreign(out: Path) -> None:
    """Raise RecipeError where a folder holds something, but no comparison."""
    if not out.exists():
        return
    names = {path.name for path in out.iterdir()} if out.is_dir() else {"no folder"}
    a_run = {"recipe.toml", "metrics.jsonl"} & names
    if a_run or not (names <= {"lock", "probes"} or {"plan.json", "report.html"} & names):
        raise RecipeError(f"--out: '{out}' holds something else already; choose another folder")


def tell(comparison: Comparison, out: Path, console: Console) -> None:
    """Print the table, what must be said about it, and where the rest is."""
    table = [column for column in columns(comparison) if column.head != SPREAD]
    for score in comparison.scores:  # what it took is in the report
        shown = [*table[:2], *(column for column in table if column.score == score)]
        printed = Table(box=None, pad_edge=False)
        console.print(f"\n{score}", style="bold", highlight=False, markup=False)
        for column in shown:
            printed.add_column(Text(_head(column, score)), justify="right" if column.numbers else "left", no_wrap=True)
        for row in range(len(comparison.cells)):
            entries = [column.entries[row] for column in shown]
            printed.add_row(*(Text(entry.text, style="bold" if entry.bold else "") for entry in entries))
        console.print(printed)
    for remark in comparison.remarks:
        console.print(remark, style="yellow", highlight=False, markup=False)
    console.print(f"see {out / 'report.html'}", highlight=False, markup=False)


def _write(out: Path, comparison: Comparison) -> None:
    out.mkdir(parents=True, exist_ok=True)
    _keep_sources(out / "sources", comparison)
    (out / "results.csv").write_text(printable(results_csv(comparison)), encoding="utf-8")
    (out / "statistics.csv").write_text(printable(statistics_csv(comparison)), encoding="utf-8")
    (out / "table.md").write_text(printable(markdown(comparison)), encoding="utf-8")
    (out / "table.tex").write_text(printable(latex(comparison)), encoding="utf-8")
    from maskzoo.compare.figures import draw_all  # late, for matplotlib takes its time

    drawn = draw_all(comparison, out / "figures")
    (out / "report.html").write_text(printable(page(comparison, drawn)), encoding="utf-8")


def folder_name(name: str) -> str:
    """A name that any file system takes; not necessarily another one for another name."""
    return re.sub(r"[^A-Za-z0-9._+=@-]+", "-", name).strip("-.")[:80] or "cell"


def _keep_sources(folder: Path, comparison: Comparison) -> None:
    """A copy of what each run was made of: recipe, seed, versions and the distributions of its plugins."""
    taken: set[str] = set()
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
            (beside / name).mkdir()
            for file in KEPT:
                if (run.path / file).is_file():
                    shutil.copyfile(run.path / file, beside / name / file)
    shutil.rmtree(folder, ignore_errors=True)
    beside.replace(folder)


def page(comparison: Comparison, drawn: Mapping[str, str]) -> str:
    """The whole report as one HTML page; `drawn` is {title: SVG}."""
    parts = [
        f"<h1>{html.escape(_title(comparison))}</h1>",
        f'<p class="lead">{html.escape(_lead(comparison))}</p>',
        "<h2>Results</h2>",
        *_results(comparison),
        f'<p class="note">{html.escape(" ".join(how_to_read(comparison)))}</p>',
        *_remarks(comparison),
        "<h2>Curves</h2>" if drawn else "",
        '<div class="pair">',
        *(f"<figure><figcaption>{html.escape(title)}</figcaption>{svg}</figure>" for title, svg in drawn.items()),
        "</div>",
        *_galleries(comparison),
        *_changes(comparison),
        *_origins(comparison),
    ]
    return PAGE.format(title=html.escape(_title(comparison)), body="\n".join(part for part in parts if part))


def _title(comparison: Comparison) -> str:
    names = [cell.name for cell in comparison.cells if cell.name != UNTRAINED]
    if len(names) == 1:
        return f"{names[0]} by itself"
    return f"{', '.join(names[:-1])} and {names[-1]} compared" if len(names) <= 5 else f"{len(names)} cells compared"


def _lead(comparison: Comparison) -> str:
    keys = comparison.cell(comparison.baseline).first.keys
    count, seeds = sum(len(cell.runs) for cell in comparison.trained), comparison.seeds
    if not count:
        return "Models that were evaluated, and not trained here."
    backbone = keys.get("backbone.timm") or keys.get("backbone.use") or keys.get("backbone", "?")
    options = [f"{key.split('.')[2]} {plain_value(keys[key])}" for key in keys if key.startswith("backbone.options.")]
    options += [f"patch_size {plain_value(keys['backbone.patch_size'])}"] if "backbone.patch_size" in keys else []
    told = f" ({', '.join(options)})" if options else ""
    data = data_name(comparison.cell(comparison.baseline).first.recipe.get("data", "?"))
    budget = {
        "epochs": "what each recipe says",
        "flops": "equal training FLOPs",
        "time": "equal training time",
    }.get(comparison.equal, comparison.equal)
    alike = all(key.startswith(MASKERS_OWN) for key in comparison.differing())
    paired = " A seed gives every cell the same initial weights, batches and crops." if alike else ""
    return (
        f"{count} runs of {backbone}{told} on '{data}' by the objective "
        f"{keys.get('objective.use') or keys.get('objective', '?')}, "
        f"{'seed' if len(seeds) == 1 else 'seeds'} {', '.join(map(str, seeds))}. Budget: {budget}. "
        f"Baseline: {comparison.baseline}.{paired}"
    )


def _results(comparison: Comparison) -> list[str]:
    """A table for each score, so that none of them is too wide to be read, and one of what it took."""
    return [_table(shown, title) for title, shown in stacked(comparison)]


def _table(shown: Sequence[Column], title: str) -> str:
    heads = "".join(
        f'<th scope="col"{"" if column.numbers else " class=text"}>{html.escape(_head(column, title))}</th>'
        for column in shown
    )
    rows = []
    for row in range(len(shown[0].entries)):
        entries = "".join(
            f"<td{'' if column.numbers else ' class=text'}>{_entry(column.entries[row])}</td>" for column in shown
        )
        rows.append(f"<tr>{entries}</tr>")
    return (
        f'<div class="wide"><table><caption>{html.escape(title)}</caption><thead><tr>{heads}</tr></thead>'
        f"<tbody>{''.join(rows)}</tbody></table></div>"
    )


def _head(column: Column, title: str) -> str:
    """The head of a column; the score itself is named above the table already."""
    return column.head.replace(title, "mean", 1) if column.score and column.head.startswith(title) else column.head


def _entry(entry: Entry) -> str:
    text = html.escape(entry.text.replace("-", MINUS, 1) if re.match(r"-\d", entry.text) else entry.text)
    text = f"<strong>{text}</strong>" if entry.bold else text
    return text + (f"<small>{html.escape(entry.note)}</small>" if entry.note else "")


def _remarks(comparison: Comparison) -> list[str]:
    if not comparison.remarks:
        return []
    items = "".join(f"<li>{html.escape(remark)}</li>" for remark in comparison.remarks)
    return ["<h2>Remarks</h2>", f"<ul>{items}</ul>"]


def _galleries(comparison: Comparison) -> list[str]:
    """The masks of one run of each cell: of a seed that all have, so that the images are the same."""
    common = set.intersection(*(set(cell.runs) for cell in comparison.trained)) if comparison.trained else set()
    parts = []
    for cell in comparison.trained:
        run = cell.runs[min(common)] if common else cell.first
        picture = run.picture
        if picture is None:
            continue
        try:
            data = base64.b64encode(picture.read_bytes()).decode("ascii")
        except OSError as problem:
            comparison.remarks.append(f"'{picture}' cannot be read: {problem}")
            continue
        parts.append(
            f"<figure><figcaption>{html.escape(cell.name)}, seed {run.seed}</figcaption>"
            f'<img alt="masks of {html.escape(cell.name)} over training" src="data:image/png;base64,{data}"></figure>'
        )
    words = '<p class="note">The same images under each masker, from the first step to the last; dark is hidden.</p>'
    return ["<h2>Masks</h2>", words, '<div class="pair">', *parts, "</div>"] if parts else []


def _changes(comparison: Comparison) -> list[str]:
    """What each recipe changed: the keys in which the cells differ."""
    keys = comparison.differing()
    if not keys:
        return []
    heads = "".join(f'<th class="text" scope="col">{html.escape(cell.name)}</th>' for cell in comparison.trained)
    rows = "".join(
        f'<tr><td class="text"><code>{html.escape(key)}</code></td>'
        + "".join(
            f'<td class="text keys">{html.escape(plain_value(cell.first.keys.get(key)))}</td>'
            for cell in comparison.trained
        )
        + "</tr>"
        for key in keys
    )
    return [
        "<h2>What each recipe changed</h2>",
        '<p class="note">Every key that is not the same in all cells; an empty entry means that a recipe has no such '
        "key. All other keys are the same.</p>",
        f'<div class="wide"><table><thead><tr><th class="text">key</th>{heads}</tr></thead><tbody>{rows}</tbody>'
        "</table></div>",
    ]


def _origins(comparison: Comparison) -> list[str]:
    """Where each run is, and what it was made by."""
    rows = "".join(
        f'<tr><td class="text">{html.escape(cell.name)}</td><td>{seed if cell.trained else ""}</td>'
        f'<td class="text keys"><code>{html.escape(os.fspath(run.path))}</code></td>'
        f'<td class="text keys">{html.escape(_made_by(run))}</td></tr>'
        for cell in comparison.cells
        if cell.name != UNTRAINED
        for seed, run in sorted(cell.runs.items())
    )
    return [
        "<h2>Every run</h2>",
        '<p class="note">Beside this page, <code>sources/</code> holds the recipe and the environment of each run; '
        "<code>maskzoo train recipe.toml</code> does one again. <code>results.csv</code> has the score of each run, "
        "<code>statistics.csv</code> what the tables round.</p>",
        '<div class="wide"><table><thead><tr><th class="text">cell</th><th>seed</th><th class="text">run</th>'
        f'<th class="text">made by</th></tr></thead><tbody>{rows}</tbody></table></div>',
    ]


def _made_by(run: Reading) -> str:
    versions = run.environment.get("versions", {})
    plugins = [plugin for plugin in run.environment.get("plugins", []) if not str(plugin).startswith("maskzoo ")]
    device = run.environment.get("device_name") or run.environment.get("device", "")
    parts = [
        *(f"{name} {versions[name]}" for name in ("maskzoo", "torch", "timm") if name in versions),
        *plugins,
        device,
    ]
    return ", ".join(str(part) for part in parts if part)
