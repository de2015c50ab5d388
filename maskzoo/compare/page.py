"""The report as one HTML page that loads nothing: what was found, how, on what, by which command, and whom to cite."""

from __future__ import annotations

import html
import os
import re
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import tomli_w

from maskzoo.compare.cells import UNTRAINED, Cell, Comparison, plain_value
from maskzoo.compare.citations import citations, foreign
from maskzoo.compare.facts import command, evaluators, shared, without_home
from maskzoo.compare.findings import findings
from maskzoo.compare.names import headed
from maskzoo.compare.readings import Reading
from maskzoo.compare.scores import data_name
from maskzoo.compare.strips import Strip
from maskzoo.compare.tables import Column, Entry, how_to_read, stacked

if TYPE_CHECKING:
    from maskzoo.compare.figures import Drawn

MASKERS_OWN = ("masking.", "teacher.", "train.epochs", "train.steps")  # keys on which neither weights nor crops hang
MINUS = "\u2212"
PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="generator" content="MaskZoo comparison">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>
:root {{ color-scheme: light; --ink: #1f2430; --soft: #5d6470; --rule: #d9dce2; --shade: #f5f6f8; }}
* {{ box-sizing: border-box; }}
body {{ margin: 0 auto; max-width: 74rem; padding: 2.5rem 1.5rem 4rem; background: #fff; color: var(--ink);
  font: 16px/1.55 "Source Sans 3", "Segoe UI", "Helvetica Neue", Arial, sans-serif; }}
h1 {{ font-size: 1.55rem; line-height: 1.3; margin: 0 0 .6rem; font-weight: 650; max-width: 56rem; text-wrap: pretty; }}
h2 {{ font-size: 1.15rem; margin: 2.8rem 0 .7rem; font-weight: 650; }}
h3 {{ font-size: 1rem; margin: 1.4rem 0 .3rem; font-weight: 600; }}
p {{ max-width: 50rem; margin: .5rem 0; }}
p.lead, p.note, li, figcaption {{ color: var(--soft); }}
p.note, figcaption {{ font-size: .88rem; }}
a {{ color: #0b5b99; }}
.wide {{ overflow-x: auto; }}
table {{ border-collapse: collapse; font-size: .92rem; font-variant-numeric: tabular-nums; margin: .6rem 0; }}
caption {{ caption-side: top; text-align: left; font-weight: 600; padding-bottom: .4rem; white-space: nowrap; }}
th, td {{ padding: .38rem .8rem; text-align: right; white-space: nowrap; vertical-align: top; }}
th:first-child, td:first-child {{ padding-left: 0; }}
th {{ font-weight: 600; color: var(--soft); border-bottom: 1px solid var(--ink); vertical-align: bottom; }}
td {{ border-bottom: 1px solid var(--rule); }}
tbody tr:last-child td {{ border-bottom: 1px solid var(--ink); }}
th.text, td.text {{ text-align: left; }}
td.keys {{ white-space: normal; overflow-wrap: anywhere; min-width: 7rem; }}
td.what {{ white-space: normal; overflow-wrap: anywhere; min-width: 14rem; max-width: 52rem; }}
small {{ display: block; color: var(--soft); font-size: .78rem; line-height: 1.2; font-weight: 400; }}
code, pre {{ font: .86em ui-monospace, "SF Mono", Menlo, Consolas, monospace; }}
pre {{ background: var(--shade); padding: .8rem 1rem; overflow-x: auto; border-radius: 4px; line-height: 1.45; }}
pre.wrap {{ white-space: pre-wrap; overflow-wrap: anywhere; }}
details {{ margin: .35rem 0; }}
summary {{ cursor: pointer; }}
figure {{ margin: 1rem 0 1.8rem; }}
figure svg, figure img {{ max-width: 100%; height: auto; display: block; }}
figcaption {{ max-width: 50rem; margin-top: .3rem; }}
.pair {{ display: grid; grid-template-columns: repeat(auto-fit, minmax(min(30rem, 100%), 1fr)); gap: 1rem 2rem; }}
.pair figure {{ margin: .4rem 0; }}
.moments {{ display: flex; gap: .9rem; overflow-x: auto; padding-bottom: .3rem; }}
.moments figure {{ flex: 1 0 8.5rem; max-width: 13rem; margin: .2rem 0; }}
.moments img {{ width: 100%; image-rendering: pixelated; }}
.moments figcaption {{ font-size: .85rem; margin-top: .2rem; }}
@media (max-width: 44rem) {{ .wide svg {{ max-width: none; }} }}
@media print {{ body {{ padding: 0; }} figure, table {{ break-inside: avoid; }} }}
</style>
</head>
<body>
{body}
</body>
</html>
"""


def page(
    comparison: Comparison,
    drawn: Sequence[Drawn],
    strips: Sequence[Strip] = (),
    sources: Mapping[tuple[str, int], str] | None = None,
    out: Path = Path(),
    asked: Mapping[str, Any] | None = None,
) -> str:
    """The whole report: `drawn` are the figures, `strips` the masks, `sources` the names of the folders in sources/.

    Paths are said from `out`, where the page is to be; `asked` are the options of the plan, as far as they are known;
    None where there was no plan.
    """
    first, *others = findings(comparison)
    leading = [figure for figure in drawn if figure.leads]
    curves = [figure for figure in drawn if not figure.leads]
    parts = [
        f"<h1>{text(first)}</h1>",
        *(f"<p>{text(other)}</p>" for other in others),
        f'<p class="lead">{text(_title(comparison))}. {text(_lead(comparison))}</p>',
        *map(_figure, leading),
        "<h2>Results</h2>",
        *(_table(comparison, shown, title) for title, shown in stacked(comparison)),
        f'<p class="note">{text(" ".join(how_to_read(comparison)))}</p>',
        *_remarks(comparison),
        *_trained(comparison),
        *(
            ["<h2>Scores, costs and curves</h2>", '<div class="pair">', *map(_figure, curves), "</div>"]
            if curves
            else []
        ),
        *_masks(strips),
        *_changes(comparison),
        *_origins(comparison, sources or {}, out),
        *_again(comparison, asked),
        *_references(comparison),
    ]
    return PAGE.format(title=text(_title(comparison)), body="\n".join(part for part in parts if part))


def text(words: object) -> str:
    """Words as HTML shows them, whatever is in them."""
    return html.escape(without_home(str(words)))


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
    data = data_name(comparison.cell(comparison.baseline).first.recipe.get("data", "?"))
    budget = {
        "epochs": "what each recipe says",
        "flops": "equal training FLOPs",
        "time": "equal training time",
    }.get(comparison.equal, comparison.equal)
    alike = all(key.startswith(MASKERS_OWN) for key in comparison.differing())
    paired = " A seed gives every cell the same initial weights, batches and crops." if alike else ""
    return (
        f"{count} {'run' if count == 1 else 'runs'} of {backbone} on '{data}' by the objective "
        f"{keys.get('objective.use') or keys.get('objective', '?')}, "
        f"{'seed' if len(seeds) == 1 else 'seeds'} {', '.join(map(str, seeds))}. Budget: {budget}. "
        f"Baseline: {comparison.baseline}.{paired}"
    )


def _figure(drawn: Drawn) -> str:
    caption = f"<strong>{text(drawn.title)}.</strong> {text(drawn.caption)}"
    return f'<figure><div class="wide">{drawn.svg}</div><figcaption>{caption}</figcaption></figure>'


def _table(comparison: Comparison, shown: Sequence[Column], title: str) -> str:
    """A table of one score under its label, or of what training took."""
    score = title in comparison.scores
    heads = "".join(
        f'<th scope="col"{"" if column.numbers else " class=text"}>{text(column.head)}</th>' for column in shown
    )
    rows = []
    for row in range(len(shown[0].entries)):
        entries = "".join(
            f"<td{'' if column.numbers else ' class=text'}>{_entry(column.entries[row])}</td>" for column in shown
        )
        rows.append(f"<tr>{entries}</tr>")
    words = f"{text(headed(comparison, title))}<small>{text(title)}</small>" if score else text(title)
    return (
        f'<div class="wide"><table><caption>{words}</caption><thead><tr>{heads}</tr></thead>'
        f"<tbody>{''.join(rows)}</tbody></table></div>"
    )


def _entry(entry: Entry) -> str:
    words = text(entry.text.replace("-", MINUS, 1) if re.match(r"-\d", entry.text) else entry.text)
    words = f"<strong>{words}</strong>" if entry.bold else words
    return words + (f"<small>{text(entry.note)}</small>" if entry.note else "")


def _remarks(comparison: Comparison) -> list[str]:
    if not comparison.remarks:
        return []
    items = "".join(f"<li>{text(remark)}</li>" for remark in comparison.remarks)
    return ["<h2>Remarks</h2>", f"<ul>{items}</ul>"]


def _trained(comparison: Comparison) -> list[str]:
    """What all cells share, and how they were measured."""
    parts = []
    if rows := shared(comparison):
        parts += ["<h2>What all cells share</h2>", _two_columns(rows)]
    if measured := evaluators(comparison):
        note = "Whole images in eval mode, none of them augmented, unless an evaluator says otherwise."
        parts += ["<h3>How it was measured</h3>", f'<p class="note">{note}</p>', _two_columns(measured)]
    return parts


def _two_columns(rows: Sequence[tuple[str, str]]) -> str:
    body = "".join(
        f'<tr><td class="text">{text(what)}</td><td class="text what">{text(value)}</td></tr>' for what, value in rows
    )
    return f'<div class="wide"><table><tbody>{body}</tbody></table></div>'


def _masks(strips: Sequence[Strip]) -> list[str]:
    """A row for each cell, from the first moment of training to the last."""
    if not strips:
        return []
    parts = [
        "<h2>Masks</h2>",
        '<p class="note">The same training images under each masker at moments of training, from the first step to the '
        "last; dark is hidden.</p>",
    ]
    for strip in strips:
        about = f"masks of {strip.cell}, seed {strip.seed}"
        parts.append(f"<h3>{text(strip.cell)}, seed {strip.seed}</h3>")
        pictures = "".join(
            f'<figure><img alt="{text(f"{about}: {words}" if words else about)}" src="data:image/png;base64,{data}">'
            f"{f'<figcaption>{text(words)}</figcaption>' if words else ''}</figure>"
            for words, data in strip.pictures
        )
        parts.append(pictures if strip.whole else f'<div class="moments">{pictures}</div>')
    return parts


def _changes(comparison: Comparison) -> list[str]:
    """What each recipe changed, and the recipes themselves."""
    parts = []
    cells = comparison.trained
    if keys := [key for key in comparison.differing() if any(_value_of(cell, key) for cell in cells)]:
        heads = "".join(f'<th class="text" scope="col">{text(cell.name)}</th>' for cell in comparison.trained)
        rows = "".join(
            f'<tr><td class="text"><code>{text(key)}</code></td>'
            + "".join(f'<td class="text keys">{text(_value_of(cell, key))}</td>' for cell in comparison.trained)
            + "</tr>"
            for key in keys
        )
        parts += [
            '<p class="note">Every key that is not the same in all cells; an empty entry means that a recipe has no '
            "such key. All other keys are the same.</p>",
            f'<div class="wide"><table><thead><tr><th class="text">key</th>{heads}</tr></thead><tbody>{rows}</tbody>'
            "</table></div>",
        ]
    for cell in comparison.trained:
        recipe = tomli_w.dumps(cell.first.recipe)
        parts.append(
            f"<details><summary>The whole recipe of {text(cell.name)}, seed {cell.first.seed}</summary>"
            f"<pre>{text(recipe)}</pre></details>"
        )
    return ["<h2>What each recipe changed</h2>", *parts] if parts else []


def _value_of(cell: Cell, key: str) -> str:
    """A value as a recipe has it; a masker without a curriculum has none, whatever stands in its place."""
    if key.startswith("masking.curriculum") and cell.first.environment.get("curriculum") is False:
        return "none" if key == "masking.curriculum.use" else ""
    return plain_value(cell.first.keys.get(key))


def _origins(comparison: Comparison, sources: Mapping[tuple[str, int], str], out: Path) -> list[str]:
    """Where each run is, and what it was made by."""
    rows = []
    for cell in comparison.cells:
        if cell.name == UNTRAINED:
            continue
        for seed, run in sorted(cell.runs.items()):
            name = sources.get((cell.name, seed))
            held = f'<a href="sources/{quote(name)}/recipe.toml">{html.escape(name)}</a>' if name else ""
            rows.append(
                f'<tr><td class="text">{text(cell.name)}</td><td>{seed if cell.trained else ""}</td>'
                f'<td class="text keys"><code>{text(from_here(run.path, out))}</code></td>'
                f'<td class="text keys">{held}</td><td class="text keys">{text(_made_by(run))}</td></tr>'
            )
    return [
        "<h2>Every run</h2>",
        '<p class="note">Beside this page, <code>sources/</code> holds the recipe and the environment of each run; '
        "<code>maskzoo train recipe.toml</code> does one again. <code>results.csv</code> has the score of each run, "
        "<code>statistics.csv</code> what the tables round.</p>",
        '<div class="wide"><table><thead><tr><th class="text">cell</th><th>seed</th><th class="text">run</th>'
        f'<th class="text">recipe</th><th class="text">produced with</th></tr></thead><tbody>{"".join(rows)}</tbody>'
        "</table></div>",
    ]


def from_here(path: Path, out: Path) -> str:
    """A path from the report's folder, where they have a folder in common that says something; else as it is."""
    whole, here = os.path.abspath(path), os.path.abspath(out)
    beside = os.path.dirname(here)
    if os.path.commonpath([whole, beside]) == beside and beside != os.path.sep:
        return os.path.relpath(whole, here)
    return os.fspath(path)


def _made_by(run: Reading) -> str:
    versions = run.environment.get("versions", {})
    device = run.environment.get("device_name") or run.environment.get("device", "")
    parts = [
        *(f"{name} {versions[name]}" for name in ("maskzoo", "torch", "timm") if name in versions),
        *foreign(run),
        device,
    ]
    return ", ".join(str(part) for part in parts if part)


def _again(comparison: Comparison, asked: Mapping[str, Any] | None) -> list[str]:
    """How the comparison can be done again."""
    if not comparison.trained:
        return []
    if asked is None:
        words = "The report is of runs that were there already:"
        line = f"maskzoo compare RUN ... --baseline {shlex.quote(comparison.baseline)}"
    else:
        words = "The plan of this comparison, with what all cells share (above) as its recipe:"
        known = {"seeds": ",".join(map(str, comparison.seeds)) + "," * (len(comparison.seeds) == 1)}
        line = command({**known, **asked, "baseline": comparison.baseline, "equal": comparison.equal})
    return ["<h2>To do it again</h2>", f'<p class="note">{words}</p>', f'<pre class="wrap">{text(line)}</pre>']


def _references(comparison: Comparison) -> list[str]:
    """Whom to cite; as BibTeX beside the page."""
    found = citations(comparison)
    if not found:
        return []
    items = []
    for one in found:
        link = f', <a href="https://arxiv.org/abs/{one.arxiv}">arXiv</a>' if one.arxiv else ""
        items.append(f"<li>{text(one.text)} ({text(', '.join(one.plugins))}){link}</li>")
    note = "Where the plugins of these runs come from; <code>references.bib</code> has it for LaTeX."
    return ["<h2>References</h2>", f'<p class="note">{note}</p>', f"<ol>{''.join(items)}</ol>"]
