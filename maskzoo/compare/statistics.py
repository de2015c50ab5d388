"""What a few seeds can say: means, intervals, and paired tests that were corrected for how many there are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import attrs
import numpy
from scipy import stats

LEVEL = 0.95  # of every interval
ALPHA = 1 - LEVEL
FEW = 3  # pairs up to which an interval is so wide that it has to be said
LEAST_PAIRS = 3  # below which a test has one degree of freedom or none, and nothing is called better by it


@attrs.frozen
class Summary:
    """One score of one cell over its seeds, in the score's own unit."""

    count: int
    mean: float
    deviation: float | None  # of the sample; None for a single seed
    low: float | None  # ends of the interval of the mean, by Student's t
    high: float | None

    @property
    def half(self) -> float | None:
        """Half the width of the interval."""
        return None if self.high is None else self.high - self.mean


@attrs.frozen
class Difference:
    """One cell less another over the seeds that both have; `p` of the paired t-test, None where it cannot be told."""

    pairs: int
    summary: Summary | None  # None without a pair
    p: float | None
    adjusted: float | None = None  # `p` after Holm's correction over the tests of one family

    @property
    def supported(self) -> bool:
        """Whether the test, corrected and of enough pairs, speaks for a difference at all."""
        return self.pairs >= LEAST_PAIRS and self.adjusted is not None and self.adjusted < ALPHA


def summarise(values: Sequence[float]) -> Summary:
    """Mean, standard deviation and interval of at least one value."""
    count, mean = len(values), float(numpy.mean(values))
    if count < 2:
        return Summary(count, mean, None, None, None)
    deviation = float(numpy.std(values, ddof=1))
    if deviation == 0:
        return Summary(count, mean, deviation, mean, mean)
    low, high = stats.t.interval(LEVEL, count - 1, loc=mean, scale=stats.sem(values))
    return Summary(count, mean, deviation, float(low), float(high))


def paired(ours: Mapping[int, float], theirs: Mapping[int, float]) -> Difference:
    """Ours less theirs, seed by seed, from {seed: score}."""
    seeds = sorted(ours.keys() & theirs.keys())
    if not seeds:
        return Difference(0, None, None)
    summary = summarise([ours[seed] - theirs[seed] for seed in seeds])
    if summary.deviation is None or summary.deviation <= 1e-12 * max(1.0, abs(summary.mean)):
        return Difference(len(seeds), summary, None)  # nothing to measure the difference against
    test = stats.ttest_rel([ours[seed] for seed in seeds], [theirs[seed] for seed in seeds])
    return Difference(len(seeds), summary, float(test.pvalue))


def holm(chances: Sequence[float]) -> list[float]:
    """p-values after Holm's step-down correction (Scandinavian Journal of Statistics 6, 1979), in their order."""
    adjusted, highest = [0.0] * len(chances), 0.0
    for rank, place in enumerate(sorted(range(len(chances)), key=lambda place: chances[place])):
        highest = max(highest, min(1.0, (len(chances) - rank) * chances[place]))
        adjusted[place] = highest
    return adjusted


def corrected(differences: Sequence[Difference]) -> list[Difference]:
    """A family of tests with Holm's correction; those that could not be made do not count."""
    chances = [difference.p for difference in differences if difference.p is not None]
    after = iter(holm(chances))
    return [one if one.p is None else attrs.evolve(one, adjusted=next(after)) for one in differences]


def best(cells: Mapping[str, Mapping[int, float]], *, lower: bool = False) -> str | None:
    """The cell that is better than every other one by a paired test, all pairs corrected; None if none is."""
    names = [name for name, scores in cells.items() if scores]
    if len(names) < 2:
        return None
    sign = -1 if lower else 1
    first = max(names, key=lambda name: sign * summarise(list(cells[name].values())).mean)
    pairs = [(one, other) for place, one in enumerate(names) for other in names[place + 1 :]]
    tests = corrected([paired(cells[one], cells[other]) for one, other in pairs])
    for (one, other), test in zip(pairs, tests, strict=True):
        if first in (one, other):
            lead = 0.0 if test.summary is None else sign * test.summary.mean * (1 if first == one else -1)
            if not (test.supported and lead > 0):
                return None
    return first
