"""Runs gathered into cells, the rows of the table: those of one recipe, whatever their seed."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import attrs

from maskzoo.compare.readings import Reading, gone, mixed, read, read_run
from maskzoo.compare.scores import with_scores
from maskzoo.compare.statistics import Difference, Summary, best, corrected, paired, summarise
from maskzoo.errors import DataError, RecipeError
from maskzoo.metrics import Better, Metric, decimals, enough
from maskzoo.plain import FREE_KEYS, named

# Keys that decide no figure: where and how a run was done, and what it kept.
ASIDE = FREE_KEYS | {"train.seed"}
MEASURED = r"evaluation\b"  # how a key begins that says what was measured: a score's own name says that
UNTRAINED = "before training"  # the name of a row
SIGNIFICANT = 3  # digits that the mean of a raw metric has at least, however large the others are
NAMED = 3  # runs that a remark names before it counts


@attrs.frozen(eq=False)
class Cell:
    """The runs of one recipe, by seed; or one model that was evaluated and not trained here."""

    name: str
    runs: dict[int, Reading]

    @property
    def trained(self) -> bool:
        """Whether it is of runs, which have seeds, a budget and a recipe."""
        return self.first.trained

    @property
    def first(self) -> Reading:
        """The run of the lowest seed, which speaks for the recipe of all."""
        return self.runs[min(self.runs)]

    def values(self, score: str) -> dict[int, float]:
        """{seed: score} of the runs that have it."""
        found = {seed: run.scores.get(score) for seed, run in sorted(self.runs.items())}
        return {seed: value for seed, value in found.items() if value is not None}


@attrs.frozen(eq=False)
class Comparison:
    """Cells side by side, with what must be said about them."""

    cells: list[Cell]
    baseline: str
    equal: str = "epochs"  # what was made equal: epochs, flops or time
    flops: Mapping[str, float] = attrs.field(factory=dict)  # of one image in training, by cell, where known
    remarks: list[str] = attrs.field(factory=list)

    @property
    def scores(self) -> list[str]:
        """The names of everything that any run was measured by, in the order in which they came."""
        names = dict.fromkeys(name for cell in self.cells for run in cell.runs.values() for name in run.scores)
        return [name for name in names if self.metric(name).result]

    def metric(self, score: str) -> Metric:
        """What is declared about a score: what all agree on who declare anything; its value says nothing."""
        runs = (run for cell in self.cells for run in cell.runs.values())
        known = [run.declared[score] for run in runs if score in run.declared]
        ways, units = ({getattr(one, key) for one in known} - {none} for key, none in (("better", None), ("unit", "")))
        return attrs.evolve(
            next((one for one in known if one.label != score), known[0]),
            better=ways.pop() if len(ways) == 1 else None,
            unit=units.pop() if len(units) == 1 else "",
            result=any(one.result for one in known),
        )

    def better(self, score: str) -> Better | None:
        """Which way is better; None where no evaluator has declared it, so that no cell is better by it."""
        return self.metric(score).better

    def label(self, score: str) -> str:
        """What a paper calls the score, e.g. "k-NN top-1"; the score's own name where nothing is declared."""
        return self.metric(score).label

    def unit(self, score: str) -> tuple[float, int, str]:
        """What a score is multiplied by to be printed, its decimals, and its sign: shares are printed in percent."""
        if self.metric(score).unit == "share":
            return 100.0, decimals(0.0, "share"), "%"
        values = [value for cell in self.cells for value in cell.values(score).values()]
        return 1.0, decimals(max(map(abs, values), default=0.0)), ""

    @property
    def trained(self) -> list[Cell]:
        """The cells of runs."""
        return [cell for cell in self.cells if cell.trained]

    @property
    def seeds(self) -> list[int]:
        """All seeds that any cell of runs has."""
        return sorted({seed for cell in self.trained for seed in cell.runs})

    def cell(self, name: str) -> Cell:
        """The cell of that name."""
        return next(cell for cell in self.cells if cell.name == name)

    def summaries(self, score: str) -> dict[str, Summary]:
        """By cell, where it has the score at all."""
        held = {cell.name: list(cell.values(score).values()) for cell in self.cells}
        return {name: summarise(values) for name, values in held.items() if values}

    def differences(self, score: str) -> dict[str, Difference]:
        """Each cell less the baseline, Holm's correction over the cells; of runs alone, that had the same data."""
        base = self.cell(self.baseline)
        others = [cell for cell in self.trained if cell is not base and cell.first.data == base.first.data]
        tests = corrected([paired(cell.values(score), base.values(score)) for cell in others])
        return {cell.name: test for cell, test in zip(others, tests, strict=True)}

    def best(self, score: str) -> str | None:
        """The cell of runs that is better than all others, if the tests support that."""
        direction = self.better(score)
        if direction is None or len({tuple(sorted(map(str, cell.first.data.items()))) for cell in self.trained}) > 1:
            return None
        return best({cell.name: cell.values(score) for cell in self.trained}, lower=direction == "lower")

    def differing(self) -> list[str]:
        """The keys of the recipes in which the cells differ."""
        return differing([cell.first for cell in self.trained])


def differing(runs: Sequence[Reading]) -> list[str]:
    """The keys in which recipes differ, those aside that decide no figure."""
    keys = dict.fromkeys(key for run in runs for key in run.keys)
    deciding = [key for key in keys if key.split("[")[0] not in ASIDE and not re.match(MEASURED, key)]
    return [key for key in deciding if len({repr(run.keys.get(key)) for run in runs}) > 1]


def gather(
    paths: Mapping[Path, str] | Sequence[Path],
    baseline: str | None = None,
    *,
    equal: str = "epochs",
    flops: Mapping[str, float] | None = None,
) -> Comparison:
    """The comparison of the runs in these folders; a mapping names the cell of each.

    What is wrong with a run becomes a remark, and the rest is compared. Raises RecipeError where nothing is left, or
    where no cell is called like the baseline.
    """
    remarks: list[str] = []
    runs: list[Reading] = []
    given = isinstance(paths, Mapping)
    for path in paths:
        try:
            found = [read_run(path)] if given else read(path)
        except DataError as problem:
            remarks.append(f"{problem}; it is left out")
            continue
        for run in found:
            if run.finished:
                runs.append(run)
            else:
                remarks.append(f"'{path}' never finished (it has come {run.progress:.0%} of its way); it is left out")
    if not runs:
        raise RecipeError("there is no finished run to compare; " + ("; ".join(remarks) or "name some"))
    runs, beginnings = _scored(runs)
    if not beginnings and any(run.before for run in runs):
        remarks.append("before training a seed does not give all runs the same figures, so there is no row of those")
    names = [paths[run.path] for run in runs] if isinstance(paths, Mapping) else names_of(runs)
    cells: dict[str, Cell] = {name: Cell(name, {}) for name in dict.fromkeys(paths.values())} if given else {}  # type: ignore[union-attr]
    for run, name in zip(runs, names, strict=True):
        cell = cells.setdefault(name, Cell(name, {}))
        if run.seed in cell.runs:
            first = cell.runs[run.seed].path
            remarks.append(f"'{run.path}' has the recipe and the seed of '{first}'; the first of the two is shown")
            continue
        cell.runs[run.seed] = run
    for cell in cells.values():
        remarks += _of_one_recipe(cell)
    remarks += [f"no run of '{name}' has finished; it is left out" for name, cell in cells.items() if not cell.runs]
    whole = [*([Cell(UNTRAINED, beginnings)] if beginnings else []), *(cell for cell in cells.values() if cell.runs)]
    base, word = _baseline(baseline, cells, whole, given=given)
    remarks += word
    counted = {cell.name: cell.first.flops for cell in whole if cell.first.flops is not None}
    comparison = Comparison(whole, base, equal, {**counted, **(flops or {})}, remarks)
    remarks += _about_scores(comparison) + _about_runs(comparison)
    return comparison


def _of_one_recipe(cell: Cell) -> list[str]:
    """Take the runs out of a cell that are not of the recipe of its first one, with a sentence for each."""
    sentences = []
    for seed, run in sorted(cell.runs.items())[1:]:
        keys = differing([cell.first, run])
        if keys:
            del cell.runs[seed]
            sentences.append(
                f"'{run.path}' is not of the recipe of '{cell.first.path}' ({', '.join(keys[:3])} "
                f"{'differs' if len(keys) == 1 else 'differ'}), so it is no run of '{cell.name}'; it is left out"
            )
    return sentences


def _scored(runs: Sequence[Reading]) -> tuple[list[Reading], dict[int, Reading]]:
    """The runs with the scores that a comparison shows, and {seed: the model before its first step}.

    The latter only where a seed means the same initial model in all runs, so that it can stand for all of them.
    """
    nothing: dict[str, Any] = {"curves": {}, "steps": 0, "speed": None, "seconds": None, "memory": None, "flops": None}
    begun = [attrs.evolve(run, model=UNTRAINED, measured=run.before, **nothing) for run in runs if run.before]
    scored = with_scores([*runs, *begun])
    beginnings: dict[int, Reading] = {}
    for run in scored[len(runs) :]:
        if beginnings.setdefault(run.seed, run).scores != run.scores:
            return scored[: len(runs)], {}
    return scored[: len(runs)], dict(sorted(beginnings.items()))


def _baseline(
    wished: str | None, cells: Mapping[str, Cell], whole: Sequence[Cell], *, given: bool
) -> tuple[str, list[str]]:
    """The name of the cell that the others are compared with, and what must be said about that.

    Unless one is asked for, it is the first of the cells that were `given`, or the plainest of those found.
    """
    known = [cell.name for cell in whole if cell.name != UNTRAINED]
    if wished is not None and wished not in cells:
        raise RecipeError(f"--baseline: no cell is called '{wished}'; they are {', '.join(known)}")
    if wished in known and not cells[wished].trained and any(cell.trained for cell in whole):
        raise RecipeError(f"--baseline: '{wished}' was not trained here, so that no run has a seed in common with it")
    trained = [cell for cell in whole if cell.trained]
    usual = min(trained, key=plainness).name if trained else known[0]
    named = next((name for name, cell in cells.items() if not cell.runs or cell.trained), usual)
    first = wished or (named if given else usual)
    if first not in known:
        return usual, [f"the baseline, '{first}', is not there; '{usual}' takes its place"]
    return first, []


def plainness(cell: Cell) -> tuple[int, ...]:
    """How far a cell is from hiding at random without a curriculum: the plainest of several is their baseline.

    `random` comes first, what learns nothing before what learns, a constant factor before one that moves, the fewest
    options before more; among equals the first that was given.
    """
    keys, curves = cell.first.keys, cell.first.curves
    factors = [value for _, value in curves.get("factor", [])]
    masking = [key for key, value in keys.items() if key.startswith("masking.strategy") and value is not None]
    return cell.first.masker != "random", cell.first.learns, len(set(factors)) > 1, any(factors), len(masking)


def names_of(runs: Sequence[Reading]) -> list[str]:
    """A name for each run's cell: its masker, and as much of what else differs as it takes to tell them apart."""
    trained = [run for run in runs if run.trained]
    keys = differing(trained)
    groups: dict[str, list[Reading]] = {}
    for run in trained:
        groups.setdefault(repr([run.keys.get(key) for key in keys]), []).append(run)
    firsts = [group[0] for group in groups.values()]
    names: dict[int, str] = {}
    for group in groups.values():
        alike = [run for run in firsts if run.masker == group[0].masker]
        name = group[0].masker + "".join(_shown(group[0], key) for key in _telling(alike))
        names |= {id(run): name for run in group}
    taken: list[str] = []
    for run in runs:
        if not run.trained:
            same = taken.count(run.model)
            names[id(run)] = f"{run.model} {same + 1}" if same else run.model
            taken.append(run.model)
    return [names[id(run)] for run in runs]


def _telling(runs: Sequence[Reading]) -> list[str]:
    """The first few of the differing keys that together tell the runs apart."""
    chosen: list[str] = []
    count = min(1, len(runs))
    for key in sorted(differing(runs), key=lambda key: not key.endswith(".use")):
        told = len({repr([run.keys.get(one) for one in [*chosen, key]]) for run in runs})
        if told > count:
            chosen.append(key)
            count = told
    return chosen


def _shown(run: Reading, key: str) -> str:
    value = run.keys.get(key)
    if key == "masking.curriculum.use":
        return f"+{value}"
    if key == "masking.ratio.value":
        return f"@{value}"
    return f" {key}={'none' if value is None else value}"


def _about_scores(comparison: Comparison) -> list[str]:
    """A sentence for each score that runs lack, or that is no number there."""
    lacking: dict[str, list[Reading]] = {}  # by what is said of one run, which stands for `{}`
    several: dict[str, str] = {}  # the same of several
    measured = 0

    def said(run: Reading, one: str, more: str) -> None:
        lacking.setdefault(one, []).append(run)
        several[one] = more

    for run in (run for cell in comparison.cells for run in cell.runs.values()):
        if run.model == UNTRAINED:
            continue  # what is evaluated later, is evaluated after training
        measured += 1
        if not run.scores and not run.trained:
            said(run, f"{{}} has no metric of {run.model}", f"have no metric of {run.model}")
            continue
        for whose, words in run.problems.items():
            end = f"no score of {whose}: {words}; maskzoo evaluate measures it again"
            said(run, f"{{}} has {end}", f"have {end}")
        if run.problems:
            continue
        if not run.scores:
            asked = [named(use) for use in run.recipe.get("evaluation", [])]
            why = f"{', '.join(map(str, asked))} found nothing to measure" if asked else "its recipe asks for none"
            said(run, f"{{}} has no score: {why}", f"have no score: {why}")
            continue
        for score in comparison.scores:
            if score not in run.scores:
                end = f"no {score}: it was not measured there, or there are no labels"
                said(run, f"{{}} has {end}", f"have {end}")
            elif run.scores[score] is None:
                end = f"{score} of {{}} is not a number; it is left out of the mean"
                said(run, end, f"have no number as {score}, which is left out of their means")
    sentences = []
    for one, runs in lacking.items():
        paths = [f"'{run.path}'" for run in runs]
        more = f" and {len(paths) - NAMED} more" if len(paths) > NAMED else ""
        listed = f"{', '.join(paths[:NAMED])}{more}"
        whole = f"{len(paths)} of {measured} runs {several[one]} ({listed})"
        sentences.append(one.replace("{}", paths[0]) if len(paths) == 1 else whole)
    return sentences


def _about_runs(comparison: Comparison) -> list[str]:
    """What makes runs hard to compare, or to do again."""
    sentences = []
    runs = [run for cell in comparison.trained for run in cell.runs.values()]
    if len({repr(sorted(run.data.items())) for run in runs}) > 1:
        kinds = ", ".join(sorted({str(named(run.recipe.get("data", "?"))) for run in runs}))
        sentences.append(
            f"the runs are of different data ({kinds}): scores on different data cannot be compared, so no test is "
            "made between them"
        )
    for words, made in (
        (
            "on different devices",
            {str(run.environment.get("device_name") or run.environment.get("device")) for run in runs},
        ),
        ("with different numbers of threads", {str(run.environment.get("threads")) for run in runs}),
        ("by different versions of MaskZoo", {str(run.environment.get("versions", {}).get("maskzoo")) for run in runs}),
        ("by different versions of torch", {str(run.environment.get("versions", {}).get("torch")) for run in runs}),
    ):
        if len(made) > 1:
            sentences.append(f"the runs were made {words}: {', '.join(sorted(made))}")
    lacking: dict[str, list[str]] = {}
    for run in runs:
        for clause in gone(run):
            lacking.setdefault(clause, []).append(f"'{run.path}'")
    sentences += [
        f"{clause}: {', '.join(paths)} can be shown, but perhaps not done again" for clause, paths in lacking.items()
    ]
    told: dict[str, list[str]] = {}
    for run in runs:
        for clause in mixed(run):
            told.setdefault(clause, []).append(f"'{run.path}'")
    sentences += [f"{clause} (when {', '.join(paths)} was trained)" for clause, paths in told.items()]
    seeds = set(comparison.seeds)
    for cell in comparison.trained:
        if missing := seeds - cell.runs.keys():
            listed = ", ".join(map(str, sorted(missing)))
            sentences.append(f"'{cell.name}' lacks {'seed' if len(missing) == 1 else 'seeds'} {listed}")
    return sentences


def signed(value: float, decimals: int) -> str:
    """A difference with its sign; what rounds to nothing has none."""
    text = f"{value:+.{decimals}f}"
    return text[1:] if math.isclose(float(text), 0.0) else text


def mean_text(summary: Summary, unit: tuple[float, int, str], *, interval: bool = True) -> str:
    """A mean as text, e.g. "55.1 ± 0.7", in the unit of `Comparison.unit`; of a raw metric three digits at least."""
    factor, _, _ = unit
    places = mean_decimals(summary, unit)
    text = f"{summary.mean * factor:.{places}f}"
    return f"{text} ± {summary.half * factor:.{places}f}" if interval and summary.half is not None else text


def mean_decimals(summary: Summary, unit: tuple[float, int, str]) -> int:
    """With how many decimals a mean, its interval and its deviation are printed."""
    _, places, sign = unit
    return places if sign else enough(places, SIGNIFICANT, summary.mean, summary.half or 0.0)


def gap_text(summary: Summary, unit: tuple[float, int, str], *, interval: bool = True, bare: bool = False) -> str:
    """A difference as text, e.g. "+3.9 ± 0.4"; `bare`: without its sign. A small one of a raw metric keeps a digit."""
    factor, places, sign = unit
    places = places if sign else enough(places, 1, summary.mean, summary.half or 0.0)
    mean = summary.mean * factor
    text = f"{abs(mean):.{places}f}" if bare else signed(mean, places)
    return f"{text} ± {summary.half * factor:.{places}f}" if interval and summary.half is not None else text


def plain_value(value: Any) -> str:
    """A value of a recipe as a reader would write it."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, list):
        return f"[{', '.join(map(plain_value, value))}]"
    return f"{value:g}" if isinstance(value, float) else str(value)
