"""What the metrics of a comparison are called where people read them: as a paper does, and no two alike."""

from __future__ import annotations

import re

from maskzoo.compare.cells import Comparison


def titles(comparison: Comparison) -> dict[str, str]:
    """{score: its label}; where two have one label, the settings or the whole name of the score stand behind it."""
    made = {score: comparison.label(score) for score in comparison.scores}
    for distinguish in (_with_settings, _with_name):
        alike = {score for score, label in made.items() if list(made.values()).count(label) > 1}
        made |= {score: distinguish(score, comparison.label(score)) for score in alike}
    return made


def headed(comparison: Comparison, score: str, *, arrow: bool = True) -> str:
    """A label as the head of a column: "k-NN top-1 (%) ↑", the arrow where a direction is declared."""
    sign, better = comparison.unit(score)[2], comparison.better(score)
    way = {"higher": " \u2191", "lower": " \u2193"}.get(better or "", "") if arrow else ""
    return f"{titles(comparison)[score]}{f' ({sign})' if sign else ''}{way}"


def full_head(comparison: Comparison, score: str) -> str:
    """A label and the score's own name, which files and `--scores` know: "k-NN top-1, knn/top1 (%) ↑"."""
    head, title = headed(comparison, score), titles(comparison)[score]
    return head if score in title else head.replace(title, f"{title}, {score}", 1)


def chosen_scores(comparison: Comparison, text: str) -> list[str]:
    """The scores that "knn,linear" asks for, in that order, by evaluator, name or label; all where none of them is."""
    chosen = [score for wanted in _wanted(text) for score in comparison.scores if _means(comparison, wanted, score)]
    return list(dict.fromkeys(chosen)) or comparison.scores


def unknown_scores(comparison: Comparison, text: str) -> list[str]:
    """What was asked for, and not measured."""
    return [wanted for wanted in _wanted(text) if not any(_means(comparison, wanted, one) for one in comparison.scores)]


def _wanted(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]


def _means(comparison: Comparison, wanted: str, score: str) -> bool:
    evaluator = score.partition("/")[0]
    known = {score, evaluator, evaluator.partition(" ")[0], comparison.label(score), titles(comparison)[score]}
    return wanted.lower() in {name.lower() for name in known}


def _with_settings(score: str, label: str) -> str:
    settings = re.search(r"\(([^)]*)\)", score.partition("/")[0])
    return f"{label} ({settings[1]})" if settings else label


def _with_name(score: str, label: str) -> str:
    return f"{label}, {score}"
