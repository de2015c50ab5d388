"""What a comparison has found, as sentences that a rule makes of its tests."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal, get_args

import attrs

from maskzoo.compare.cells import UNTRAINED, Comparison, gap_text, mean_text
from maskzoo.compare.names import titles
from maskzoo.compare.statistics import LEAST_PAIRS, Difference, corrected, paired
from maskzoo.metrics import Better

LISTED = 3  # names that a sentence has room for
Verdict = Literal["better", "worse", "differs", "same", "constant", "unclear", "few", "apart"]


def verdict(test: Difference, better: Better | None) -> Verdict:
    """What a corrected test says of a cell: "differs" where no direction is declared, "apart" without a common seed.

    "few" where there are fewer than LEAST_PAIRS pairs; "same" where the result is the same in every pair, "constant"
    where the difference is, so that there is no spread to test it against.
    """
    if test.summary is None:
        return "apart"
    if test.pairs < LEAST_PAIRS:
        return "few"
    if test.adjusted is None:
        return "constant" if test.summary.mean else "same"
    if not test.supported:
        return "unclear"
    if better is None:
        return "differs"
    return "better" if (test.summary.mean > 0) == (better == "higher") else "worse"


@attrs.frozen
class Found:
    """The tests of one metric, and how its values are printed."""

    label: str
    better: Better | None
    unit: tuple[float, int, str]  # of `Comparison.unit`; "%" for shares, whose differences are in points
    baseline: str
    tests: Mapping[str, Difference]  # each cell less the baseline
    # Each cell, the baseline too, less the initial model.
    untrained: Mapping[str, Difference] = attrs.field(factory=dict)
    elsewhere: Sequence[str] = ()  # cells that learned from other data, which no test compares

    def names(self, wanted: Verdict) -> list[str]:
        """The cells of that verdict, the largest difference first where a test supports one."""
        names = [name for name, test in self.tests.items() if verdict(test, self.better) == wanted]
        return sorted(names, key=self._size, reverse=True) if wanted in ("better", "worse", "differs") else names

    def _size(self, name: str) -> float:
        summary = self.tests[name].summary
        return 0.0 if summary is None else abs(summary.mean)

    def gap(self, name: str, *, bare: bool = False) -> str:
        """A cell's difference with its interval; `bare`: without its sign."""
        summary = self.tests[name].summary
        assert summary is not None, "only asked of cells that could be tested"
        return gap_text(summary, self.unit, bare=bare)

    @property
    def points(self) -> str:
        """What a difference is in."""
        return " points" if self.unit[2] == "%" else ""


def findings(comparison: Comparison) -> list[str]:
    """A sentence for each metric, first of one whose direction is declared; one sentence where nothing can be found."""
    scores = sorted(comparison.scores, key=lambda score: comparison.better(score) is None)
    if not comparison.trained:
        return ["Nothing was trained here, so nothing is tested."]
    if not scores:
        return ["Nothing was measured, so nothing is found."]
    if len(comparison.trained) == 1:
        return [_of_one(comparison, scores[0])]
    first, *others = [found_in(comparison, score) for score in scores]
    groups: dict[str, list[Found]] = {}
    for found in others:  # what is said of several metrics alike is said once
        groups.setdefault(sentence(attrs.evolve(found, label="")), []).append(found)
    merged = [attrs.evolve(same[0], label=listed([one.label for one in same], most=99)) for same in groups.values()]
    return [sentence(found) for found in (first, *merged)]


def found_in(comparison: Comparison, score: str) -> Found:
    """The tests of one metric of a comparison."""
    tests = comparison.differences(score)
    return Found(
        label=titles(comparison)[score],
        better=comparison.better(score),
        unit=comparison.unit(score),
        baseline=comparison.baseline,
        tests=tests,
        untrained=against_untrained(comparison, score),
        elsewhere=[cell.name for cell in comparison.trained if cell.name not in {*tests, comparison.baseline}],
    )


def against_untrained(comparison: Comparison, score: str) -> dict[str, Difference]:
    """Each cell of runs less the same model before its first step, seed by seed, with Holm's correction over the cells.

    Empty where a seed does not mean the same initial model in all cells, or where the model was not measured then.
    """
    begun = next((cell.values(score) for cell in comparison.cells if cell.name == UNTRAINED), {})
    cells = [cell for cell in comparison.trained if begun.keys() & cell.values(score).keys()]
    tests = corrected([paired(cell.values(score), begun) for cell in cells])
    return {cell.name: test for cell, test in zip(cells, tests, strict=True)}


def sentence(found: Found) -> str:
    """What was found by one metric."""
    clauses = [*_against_baseline(found), *_against_untrained(found)]
    return f"{_capital('; '.join(clauses))}."


def _against_baseline(found: Found) -> list[str]:
    by, base = f"by {found.label}", found.baseline
    if not found.tests:
        return [f"no cell can be tested against {base} {by}"]
    groups = {wanted: found.names(wanted) for wanted in get_args(Verdict)}
    few, apart = groups["few"], groups["apart"]
    if len(apart) == len(found.tests):
        return [f"no cell has a seed in common with {base} {by}, so nothing is tested"]
    if len(few) + len(apart) == len(found.tests):
        pairs = max(test.pairs for test in found.tests.values())
        return [f"too few seeds to tell whether any cell differs from {base} {by}: {pairs} of at least {LEAST_PAIRS}"]
    clauses = []
    if groups["better"]:
        clauses.append(_moved(found, groups["better"], f"better than {base}", f" ({found.label})"))
    elif groups["worse"]:
        clauses.append(f"no cell is better than {base} {by}")
    if groups["worse"]:
        clauses.append(_moved(found, groups["worse"], "worse", ""))
    if groups["differs"]:
        clauses.append(
            f"{_gaps(found, groups['differs'])} {_verb(groups['differs'], 'differs', 'differ')} from {base} {by}"
        )
        clauses.append("which way is better is not declared")
    if groups["unclear"]:
        seeds = min(found.tests[name].pairs for name in groups["unclear"])
        others = f"{listed(groups['unclear'])} {_verb(groups['unclear'], 'does', 'do')} not differ"
        clauses.append(
            f"{others if clauses else f'no cell differs from {base} {by}'}, as far as {seeds} seeds can show"
        )
    if same := groups["same"]:
        first = "" if clauses else f" {by}"
        clauses.append(f"{listed(same)} {_verb(same, 'has', 'have')} the result of {base} in every pair{first}")
    if groups["constant"]:
        first = "" if clauses else f" {by}"
        clauses.append(
            f"{_gaps(found, groups['constant'])} cannot be tested{first}: the difference is the same in every pair"
        )
    if few:
        clauses.append(f"{listed(few)} {_verb(few, 'has', 'have')} too few seeds to tell")
    if apart:
        clauses.append(f"{listed(apart)} {_verb(apart, 'has', 'have')} no seed in common with {base}")
    if found.elsewhere:
        others = f"{listed(found.elsewhere)} learned from other data"
        clauses.append(f"{others} and {_verb(found.elsewhere, 'is', 'are')} not tested")
    return clauses


def _against_untrained(found: Found) -> list[str]:
    """Whether training has helped at all."""
    if found.better is None or not found.untrained:
        return []
    means = {name: test.summary.mean for name, test in found.untrained.items() if test.summary is not None}
    sign = 1 if found.better == "higher" else -1
    verdicts = {name: verdict(test, found.better) for name, test in found.untrained.items()}
    better, worse = ([name for name, one in verdicts.items() if one == wanted] for wanted in ("better", "worse"))
    if not better and all(one in ("few", "apart") for one in verdicts.values()):
        ahead = any(sign * mean > 0 for mean in means.values())
        return [] if ahead else ["no cell has a better mean than the untrained model"]
    if not better:
        below = f", and {listed(worse)} {_verb(worse, 'is', 'are')} worse" if worse else ""
        return [f"none is shown to be better than the untrained model{below}"]
    if len(better) == len(verdicts):
        return [f"{'all are' if len(better) > 1 else 'it is'} better than the untrained model"]
    return [f"only {listed(better)} {_verb(better, 'is', 'are')} shown to be better than the untrained model"]


def _of_one(comparison: Comparison, score: str) -> str:
    """A comparison of one cell says how good it is."""
    (cell,) = comparison.trained
    found = found_in(comparison, score)
    summary = comparison.summaries(score).get(cell.name)
    if summary is None:
        return f"Only {cell.name} was trained, and it was not measured by {found.label}."
    value = mean_text(summary, found.unit, interval=summary.count >= LEAST_PAIRS)
    clauses = [f"only {cell.name} was trained: {found.label} {value}{' %' if found.unit[2] == '%' else ''}"]
    clauses += [
        clause.replace("none is", "it is not").replace("no cell has", "it has not")
        for clause in _against_untrained(found)
    ]
    return f"{_capital('; '.join(clauses))}."


def _moved(found: Found, names: Sequence[str], how: str, after: str) -> str:
    """ "edges is worse by 1.2 ± 0.4 points", or "edges (-1.2 ± 0.4 points) and block (-2.0 ± 0.1 points) are worse"."""
    if len(names) == 1:
        return f"{names[0]} is {how} by {found.gap(names[0], bare=True)}{found.points}{after}"
    return f"{_gaps(found, names)} are {how}{after}"


def _gaps(found: Found, names: Sequence[str]) -> str:
    return listed([f"{name} ({found.gap(name)}{found.points})" for name in names])


def listed(names: Sequence[str], most: int = LISTED) -> str:
    """Names as a sentence has them: all of a few, else the first and how many others."""
    if len(names) > most + 1:
        return f"{', '.join(names[:most])} and {len(names) - most} others"
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)


def _verb(names: Sequence[str], one: str, several: str) -> str:
    return one if len(names) == 1 else several


def _capital(text: str) -> str:
    """The sentence with a capital letter, unless it begins with the name of a cell."""
    begins = ("no ", "too ", "only ", "none ")
    return text[0].upper() + text[1:] if text.startswith(begins) else text
