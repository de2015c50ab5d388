"""The comparison as a LaTeX float that fits a page, and text that LaTeX takes whatever it is."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence

import attrs

from maskzoo.compare.cells import Comparison, gap_text
from maskzoo.compare.facts import shared
from maskzoo.compare.findings import verdict
from maskzoo.compare.names import headed
from maskzoo.compare.scores import data_name
from maskzoo.compare.statistics import LEAST_PAIRS
from maskzoo.compare.tables import BUDGETS, NONE, Column, Entry, columns, not_trained_here
from maskzoo.plain import printable

STAR = "$^{*}$"
NAME, FOLDED = 26, "9em"  # letters of a name on one line, and the width of a column of longer ones
HEAD = 18  # letters of a head on one line
ABREAST = 3  # scores side by side in a float
PRINTED_COSTS = {"GFLOPs an image": "GFLOPs", "minutes": "min"}  # for which a paper has room
LATEX = {
    "\\": r"\textbackslash{}",
    **{sign: f"\\{sign}" for sign in "&%$#_{}"},
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    '"': "''",
    "±": r"$\pm$",
    NONE: "--",
    "\u0394": r"$\Delta$",
    "\u2191": r"$\uparrow$",
    "\u2193": r"$\downarrow$",
}


def latex(comparison: Comparison, scores: Sequence[str] | None = None) -> str:
    r"""The table as a float that fits a page and compiles wherever `\usepackage{booktabs}` stands.

    For each score the mean with its interval, and the difference to the baseline with a star where a test supports that
    it is better; what a page has no room for is in statistics.csv. `scores` chooses and orders them; more than ABREAST
    go into several floats. A float of several scores spans both columns of a paper that has two.
    """
    chosen = comparison.scores if scores is None else list(scores)
    pieces = [chosen[first : first + ABREAST] for first in range(0, len(chosen), ABREAST)] or [[]]
    floats = [_float(comparison, piece, number) for number, piece in enumerate(pieces)]
    return "% Needs \\usepackage{booktabs}.\n" + "\n".join(floats)


def _float(comparison: Comparison, scores: Sequence[str], number: int) -> str:
    """One float, with these scores side by side, and, in the first one, what training took."""
    table = columns(comparison)
    alike = len({len(cell.runs) for cell in comparison.trained}) <= 1
    lead = [column for column in table[:2] if column.head != "seeds" or not alike]
    tail = [column for column in table[2:] if not column.score and column.head in PRINTED_COSTS and number == 0]
    groups = [_group(comparison, [column for column in table if column.score == score]) for score in scores]
    heads = [_broken(headed(comparison, score)) for score in scores]
    rows_of_heads = [[""] * len(lead) for _ in range(max(map(len, heads), default=0))]
    lower, rules = [escaped(column.head) for column in lead], []
    for head, group in zip(heads, groups, strict=True):
        for row, words in zip(rows_of_heads, [""] * (len(rows_of_heads) - len(head)) + head, strict=True):
            row.append(rf"\multicolumn{{{len(group)}}}{{c}}{{{escaped(words)}}}")
        rules.append(rf"\cmidrule(lr){{{len(lower) + 1}-{len(lower) + len(group)}}}")
        lower += ["mean", r"$\Delta$"][: len(group)]
    for row in rows_of_heads:
        row += [""] * len(tail)
    lower += [PRINTED_COSTS[column.head] for column in tail]
    texts = [
        *([_latex_entry(entry) for entry in column.entries] for column in lead),
        *(text for group in groups for text in group),
        *([_latex_entry(entry) for entry in column.entries] for column in tail),
    ]
    if long := max(len(entry.text) for entry in table[0].entries) > NAME:
        texts[0] = [_foldable(name) for name in texts[0]]
    above = [*(" & ".join(row) + r" \\" for row in rows_of_heads), " ".join(rules)] if groups else []
    rows = [" & ".join(row) + r" \\" for row in zip(*texts, strict=True)]
    inside = [r"\toprule", *above, " & ".join(lower) + r" \\", r"\midrule", *rows, r"\bottomrule"]
    caption = " ".join(part for part in _caption(comparison, scores, number) if part)
    environment = "table*" if len(scores) > 1 else "table"
    names = rf"p{{{FOLDED}}}" if long else "l"
    return "\n".join(
        [
            rf"\begin{{{environment}}}",
            r"  \centering",
            rf"  \caption{{{quoted(escaped(caption))}}}",
            rf"  \label{{{_label(comparison, number)}}}",
            r"  \smallskip",
            r"  \footnotesize",
            r"  \setlength{\tabcolsep}{2.5pt}",
            rf"  \begin{{tabular}}{{@{{}}{names}{'r' * (len(lower) - 1)}@{{}}}}",
            *(f"    {line}" for line in inside),
            r"  \end{tabular}",
            rf"\end{{{environment}}}",
            "",
        ]
    )


def _group(comparison: Comparison, columns: Sequence[Column]) -> list[list[str]]:
    """The means of a score, and the differences with a star where the test supports that a cell is better."""
    score = columns[0].score
    tests, better = comparison.differences(score), comparison.better(score)
    enough = all(test.pairs >= LEAST_PAIRS for test in tests.values())
    means = [_latex_entry(attrs.evolve(entry, bold=entry.bold and enough)) for entry in columns[0].entries]
    if len(comparison.cells) == 1:
        return [means]
    unit = comparison.unit(score)
    gaps = []
    for cell in comparison.cells:
        test = tests.get(cell.name)
        gap = None if test is None else test.summary
        shown = Entry(NONE if gap is None else gap_text(gap, unit, interval=False))
        gaps.append(_latex_entry(shown) + STAR * (test is not None and verdict(test, better) == "better"))
    return [means, gaps]


def _broken(head: str) -> list[str]:
    """A head on one line, or on two where it is wider than its columns."""
    spaces = [
        found.start()
        for found in re.finditer(r" (?!\(%\)|[\u2191\u2193])", head)
        if head.count("(", 0, found.start()) == head.count(")", 0, found.start())
    ]
    if len(head) <= HEAD or not spaces:
        return [head]
    middle = min(spaces, key=lambda place: abs(place - len(head) / 2))
    return [head[:middle], head[middle + 1 :]]


def _foldable(name: str) -> str:
    """A long name that may go on in the next line, also where it has no space."""
    return r"\raggedright " + re.sub(r"(\.(?!\d)|[=+:,/]|\\_)(?=\S)", r"\1\\allowbreak{}", name)


def _label(comparison: Comparison, number: int) -> str:
    """A label by which a paper can refer to the float."""
    data = data_name(comparison.cell(comparison.baseline).first.recipe.get("data", ""))
    words = re.sub(r"[^a-z0-9]+", "-", data.lower()).strip("-")
    return "-".join(["tab:maskzoo", *([words] if words else []), *([str(number + 1)] if number else [])])


def _caption(comparison: Comparison, scores: Sequence[str], place: int) -> list[str]:
    """What a reader of the paper has to know, in a few sentences."""
    trained = comparison.trained
    others = len(comparison.differences(scores[0])) if scores else 0
    seeds = [len(cell.runs) for cell in trained]
    sentences = [_subject(comparison)] if trained else []
    if max(seeds, default=0) > 1:
        number = f"{seeds[0]} seeds" if len(set(seeds)) == 1 else "the seeds"
        sentences.append(f"Means over {number} with the half-width of their 95 % interval (Student's t).")
    elif trained:
        sentences.append("One seed: not enough to tell.")
    if others:
        sentences.append(
            f"\u0394: difference to '{comparison.baseline}', seed by seed; a star where a cell is better by a paired "
            f"t-test at 5 % after Holm's correction over {others} {'cell' if others == 1 else 'cells'} (from "
            f"{LEAST_PAIRS} pairs on); bold where it is better than every other, so tested."
        )
    if comparison.flops and place == 0:
        sentences.append("GFLOPs are those of an image in training.")
    if trained and place == 0:
        sentences.append("min: the minutes of a run.")
    return [
        *sentences,
        BUDGETS[comparison.equal].format(comparison.baseline) if trained else "",
        *not_trained_here(comparison),
    ]


def _subject(comparison: Comparison) -> str:
    """What was trained on what, for how long, as far as that is one thing."""
    run = comparison.cell(comparison.baseline).first
    facts = dict(shared(comparison))
    backbone = str(run.keys.get("backbone.timm") or run.keys.get("backbone.use") or run.keys.get("backbone", "?"))
    words = f"{backbone} trained on '{data_name(run.recipe.get('data', '?'))}'"
    epochs, steps = (facts.get(name, "").split(" ")[0] for name in ("epochs", "optimizer steps"))
    if re.fullmatch(r"[1-9][\d.]*", epochs):
        words += f" for {epochs} {'epoch' if epochs == '1' else 'epochs'}"
    elif re.fullmatch(r"[\d,]+", steps):
        words += f" for {steps} {'step' if steps == '1' else 'steps'}"
    objective = run.keys.get("objective.use") or run.keys.get("objective")
    return f"{words} (objective: {objective})." if objective else f"{words}."


def escaped(text: str) -> str:
    """Text as LaTeX sets it, special signs and all, on one line."""
    plain = " ".join(printable(text).split())
    return "".join(LATEX.get(sign) or (sign if sign.isascii() else _ascii(sign)) for sign in plain)


def _ascii(sign: str) -> str:
    """A sign as pdfLaTeX takes it without any package: its letter without accents, or its number."""
    plain = unicodedata.normalize("NFD", sign).encode("ascii", "ignore").decode()
    return "".join(LATEX.get(letter, letter) for letter in plain) or f"U+{ord(sign):04X}"


def quoted(text: str) -> str:
    """Text with opening quotation marks as LaTeX writes them."""
    return re.sub(r"(?<!\w)'(?=\S)", "`", text)


def _latex_entry(entry: Entry) -> str:
    text = escaped(entry.text)
    text = f"$-${text[1:]}" if re.match(r"-\d", text) else text
    return f"\\textbf{{{text}}}" if entry.bold else text
