"""The comparison as a LaTeX float that fits a page, and text that LaTeX takes whatever it is."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence

from maskzoo.compare.cells import Comparison, signed
from maskzoo.compare.tables import BUDGETS, NONE, Column, Entry, columns, not_trained_here

STAR = "$^{*}$"
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
}


def latex(comparison: Comparison) -> str:
    r"""The table as a float that fits a page and compiles wherever `\usepackage{booktabs}` stands.

    For each score the mean with its interval, and the difference to the baseline with a star where a test supports it;
    what a page has no room for is in statistics.csv. More than ABREAST scores go into several floats.
    """
    scores = comparison.scores
    pieces = [scores[first : first + ABREAST] for first in range(0, len(scores), ABREAST)] or [[]]
    floats = [_float(comparison, piece, costs=number == 0) for number, piece in enumerate(pieces)]
    return "% Needs \\usepackage{booktabs}.\n" + "\n".join(floats)


def _float(comparison: Comparison, scores: Sequence[str], *, costs: bool) -> str:
    """One float, with these scores side by side, and what it took."""
    table = columns(comparison)
    alike = len({len(cell.runs) for cell in comparison.trained}) <= 1
    lead = [column for column in table[:2] if column.head != "seeds" or not alike]
    tail = [column for column in table[2:] if not column.score and column.head in PRINTED_COSTS and costs]
    groups = [_group(comparison, [column for column in table if column.score == score]) for score in scores]
    evaluators, figures, rules = [""] * len(lead), [""] * len(lead), []
    lower = [escaped(column.head) for column in lead]
    for head, group in groups:
        evaluator, _, figure = head.partition("/")
        for row, text in ((evaluators, evaluator), (figures, figure)):
            row.append(rf"\multicolumn{{{len(group)}}}{{c}}{{{escaped(text)}}}")
        rules.append(rf"\cmidrule(lr){{{len(lower) + 1}-{len(lower) + len(group)}}}")
        lower += ["mean", r"$\Delta$"][: len(group)]
    evaluators += [""] * len(tail)
    figures += [""] * len(tail)
    lower += [PRINTED_COSTS[column.head] for column in tail]
    texts = [
        *([_latex_entry(entry) for entry in column.entries] for column in lead),
        *(text for _, group in groups for text in group),
        *([_latex_entry(entry) for entry in column.entries] for column in tail),
    ]
    heads = [*(" & ".join(row) + r" \\" for row in (evaluators, figures)), " ".join(rules)] if groups else []
    rows = [" & ".join(row) + r" \\" for row in zip(*texts, strict=True)]
    inside = [r"\toprule", *heads, " & ".join(lower) + r" \\", r"\midrule", *rows, r"\bottomrule"]
    return "\n".join(
        [
            r"\begin{table}",
            r"  \centering",
            rf"  \caption{{{quoted(escaped(' '.join(_caption(comparison))))}}}",
            r"  \smallskip",
            r"  \footnotesize",
            r"  \setlength{\tabcolsep}{2.5pt}",
            rf"  \begin{{tabular}}{{@{{}}{'l' + 'r' * (len(lower) - 1)}@{{}}}}",
            *(f"    {line}" for line in inside),
            r"  \end{tabular}",
            r"\end{table}",
            "",
        ]
    )


def _group(comparison: Comparison, columns: Sequence[Column]) -> tuple[str, list[list[str]]]:
    """The head of a score, its means, and the differences with a star where the test supports one."""
    means = [_latex_entry(entry) for entry in columns[0].entries]
    tests = comparison.differences(columns[0].score)
    if len(comparison.cells) == 1:
        return columns[0].head, [means]
    factor, decimals, _ = comparison.unit(columns[0].score)
    gaps = []
    for cell in comparison.cells:
        test = tests.get(cell.name)
        gap = None if test is None else test.summary
        shown = Entry(NONE if gap is None else signed(gap.mean * factor, decimals))
        gaps.append(_latex_entry(shown) + STAR * (test is not None and test.supported))
    return columns[0].head, [means, gaps]


def _caption(comparison: Comparison) -> list[str]:
    """What a reader of the paper has to know, in a few sentences."""
    trained = comparison.trained
    others = len(comparison.differences(comparison.scores[0])) if comparison.scores else 0
    seeds = [len(cell.runs) for cell in trained]
    sentences = []
    if max(seeds, default=0) > 1:
        number = f"{seeds[0]} seeds" if len(set(seeds)) == 1 else "the seeds"
        sentences.append(f"Means over {number} with the half-width of their 95 % interval (Student's t).")
    elif trained:
        sentences.append("One seed: not enough to tell.")
    if others:
        sentences.append(
            f"Differences are to '{comparison.baseline}', seed by seed; a star where a paired t-test supports one at "
            f"5 % after Holm's correction over {others} {'cell' if others == 1 else 'cells'}; bold where a cell is "
            "better than every other, so tested. GFLOPs are those of an image in training, min the minutes of a run."
        )
    return [
        *sentences,
        BUDGETS[comparison.equal].format(comparison.baseline) if trained else "",
        *not_trained_here(comparison),
    ]


def escaped(text: str) -> str:
    """Text as LaTeX sets it, special signs and all."""
    return "".join(LATEX.get(sign) or (sign if sign.isascii() else _ascii(sign)) for sign in text)


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
