"""Runs gathered into cells, the rows of the table: those of one recipe, whatever their seed."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import attrs

from maskzoo.compare.readings import Reading, gone, named, read_run
from maskzoo.compare.statistics import Difference, Summary, best, corrected, paired, summarise
from maskzoo.errors import DataError, RecipeError
from maskzoo.plain import FREE_KEYS

# Keys that decide no figure: where and how a run was done, and what it kept.
ASIDE = FREE_KEYS | {"train.seed"}
LOWER_IS_BETTER = ("loss", "error", "nll", "ece", "rmse", "mse", "fid", "seconds")  # how such a score's name begins
PERCENT = ("top1", "top5", "accuracy", "miou")  # how the name of a share begins
NO_SCORES = ("penalty", "rate")  # what an evaluator has chosen, not what it has measured


@attrs.frozen(eq=False)
class Cell:
    """The runs of one recipe, by seed."""

    name: str
    runs: dict[int, Reading]

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
        return [name for name in names if name.partition("/")[2] not in NO_SCORES and not name.endswith(" +-")]

    @property
    def seeds(self) -> list[int]:
        """All seeds that any cell has."""
        return sorted({seed for cell in self.cells for seed in cell.runs})

    def cell(self, name: str) -> Cell:
        """The cell of that name."""
        return next(cell for cell in self.cells if cell.name == name)

    def summaries(self, score: str) -> dict[str, Summary]:
        """By cell, where it has the score at all."""
        held = {cell.name: list(cell.values(score).values()) for cell in self.cells}
        return {name: summarise(values) for name, values in held.items() if values}

    def differences(self, score: str) -> dict[str, Difference]:
        """Each cell less the baseline, Holm's correction over the cells; of those alone that had the same data."""
        base = self.cell(self.baseline)
        others = [cell for cell in self.cells if cell is not base and cell.first.data == base.first.data]
        tests = corrected([paired(cell.values(score), base.values(score)) for cell in others])
        return {cell.name: test for cell, test in zip(others, tests, strict=True)}

    def best(self, score: str) -> str | None:
        """The cell that is better than all others, if the tests support that."""
        if len({tuple(sorted(map(str, cell.first.data.items()))) for cell in self.cells}) > 1:
            return None
        return best({cell.name: cell.values(score) for cell in self.cells}, lower=lower_is_better(score))

    def differing(self) -> list[str]:
        """The keys of the recipes in which the cells differ."""
        return differing([cell.first for cell in self.cells])


def lower_is_better(score: str) -> bool:
    """Whether a small value of this score is a good one, by its name."""
    return _figure(score).startswith(LOWER_IS_BETTER)


def unit(score: str) -> tuple[float, int, str]:
    """What a score is multiplied by to be printed, its decimals, and its sign: shares are printed in percent."""
    return (100.0, 1, "%") if _figure(score).startswith(PERCENT) else (1.0, 3, "")


def _figure(score: str) -> str:
    """What an evaluator calls its figure: of "knn/top1", the latter."""
    return (score.partition("/")[2] or score).lower()


def differing(runs: Sequence[Reading]) -> list[str]:
    """The keys in which recipes differ, those aside that decide no figure."""
    keys = dict.fromkeys(key for run in runs for key in run.keys)
    return [key for key in keys if key not in ASIDE and len({repr(run.keys.get(key)) for run in runs}) > 1]


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
    runs = []
    for path in paths:
        try:
            run = read_run(path)
        except DataError as problem:
            remarks.append(f"{problem}; it is left out")
            continue
        if run.finished:
            runs.append(run)
        else:
            remarks.append(f"'{path}' never finished (it has come {run.progress:.0%} of its way); it is left out")
    if not runs:
        raise RecipeError("there is no finished run to compare; " + ("; ".join(remarks) or "name some"))
    given = isinstance(paths, Mapping)
    names = {run.path: paths[run.path] for run in runs} if isinstance(paths, Mapping) else names_of(runs)
    cells: dict[str, Cell] = {name: Cell(name, {}) for name in dict.fromkeys(paths.values())} if given else {}  # type: ignore[union-attr]
    for run in runs:
        cell = cells.setdefault(names[run.path], Cell(names[run.path], {}))
        if run.seed in cell.runs:
            first = cell.runs[run.seed].path
            remarks.append(f"'{run.path}' has the recipe and the seed of '{first}'; the first of the two is shown")
            continue
        cell.runs[run.seed] = run
    remarks += [f"no run of '{name}' has finished; it is left out" for name, cell in cells.items() if not cell.runs]
    whole = [cell for cell in cells.values() if cell.runs]
    known = [cell.name for cell in whole]
    if baseline is not None and baseline not in cells:
        raise RecipeError(f"--baseline: no cell is called '{baseline}'; they are {', '.join(known)}")
    if (baseline or next(iter(cells))) not in known:
        remarks.append(f"the baseline, '{baseline or next(iter(cells))}', is not there; '{known[0]}' takes its place")
        baseline = known[0]
    comparison = Comparison(whole, baseline or known[0], equal, flops or {}, remarks)
    remarks += _about_scores(comparison) + _about_runs(comparison)
    return comparison


def names_of(runs: Sequence[Reading]) -> dict[Path, str]:
    """A name for each run's cell: its masker, and as much of what else differs as it takes to tell them apart."""
    keys = differing(runs)
    groups: dict[str, list[Reading]] = {}
    for run in runs:
        groups.setdefault(repr([run.keys.get(key) for key in keys]), []).append(run)
    firsts = [group[0] for group in groups.values()]
    names: dict[Path, str] = {}
    for group in groups.values():
        alike = [run for run in firsts if run.masker == group[0].masker]
        name = group[0].masker + "".join(_shown(group[0], key) for key in _telling(alike))
        names |= {run.path: name for run in group}
    return names


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
    """A sentence for each score that a run lacks, or that is no number."""
    sentences = []
    for cell in comparison.cells:
        for run in cell.runs.values():
            if not run.scores:
                asked = [named(use) for use in run.recipe.get("evaluation", [])]
                why = (
                    f"{', '.join(map(str, asked))} found no labels in its data" if asked else "its recipe asks for none"
                )
                sentences.append(f"'{run.path}' has no score: {why}")
                continue
            for score in comparison.scores:
                if score not in run.scores:
                    sentences.append(f"'{run.path}' has no {score}: it was not measured there, or there are no labels")
                elif run.scores[score] is None:
                    sentences.append(f"{score} of '{run.path}' is not a number; it is left out of the mean")
    return sentences


def _about_runs(comparison: Comparison) -> list[str]:
    """What makes runs hard to compare, or to do again."""
    sentences = []
    runs = [run for cell in comparison.cells for run in cell.runs.values()]
    if len({repr(sorted(run.data.items())) for run in runs}) > 1:
        kinds = ", ".join(sorted({str(named(run.recipe.get("data", "?"))) for run in runs}))
        sentences.append(
            f"the runs are of different data ({kinds}): scores on different data cannot be compared, so no test is "
            "made between them"
        )
    if len({repr(run.settings) for run in runs if run.settings}) > 1:
        sentences.append("the scores were not all measured under the same settings of the evaluators")
    for words, made in (
        (
            "on different devices",
            {str(run.environment.get("device_name") or run.environment.get("device")) for run in runs},
        ),
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
    seeds = set(comparison.seeds)
    for cell in comparison.cells:
        if missing := seeds - cell.runs.keys():
            listed = ", ".join(map(str, sorted(missing)))
            sentences.append(f"'{cell.name}' lacks {'seed' if len(missing) == 1 else 'seeds'} {listed}")
    return sentences


def signed(value: float, decimals: int) -> str:
    """A difference with its sign; what rounds to nothing has none."""
    text = f"{value:+.{decimals}f}"
    return text[1:] if math.isclose(float(text), 0.0) else text


def plain_value(value: Any) -> str:
    """A value of a recipe as a reader would write it."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, list):
        return f"[{', '.join(map(plain_value, value))}]"
    return f"{value:g}" if isinstance(value, float) else str(value)
