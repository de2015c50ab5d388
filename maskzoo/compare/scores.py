"""Which metrics of several runs are one score: what one evaluator measured under one setting, and no other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import PurePath
from typing import Any

import attrs

from maskzoo.compare.readings import Reading, finite
from maskzoo.measured import Measured, option
from maskzoo.metrics import Metric
from maskzoo.plain import named, shown


@attrs.define(eq=False)
class Setting:
    """One evaluator with its options, on one kind of data, by one pooling."""

    options: dict[str, Any]  # `use` among them
    changed: frozenset[str] | None  # options that are not as given; None where nobody has said
    data: Any  # None: a run's own
    pooling: str

    def takes(self, measured: Measured, data: Any) -> bool:
        """Whether that was measured so.

        What only one side writes down is an option that the other's older version did not have: it has to be as given.
        By which statistics images are normalised belongs to the model, as its weights do.
        """
        ours, theirs = self.options, measured.evaluator
        if (self.data, self.pooling) != (data, measured.pooling):
            return False
        newer = (ours.keys() - theirs.keys()) & (self.changed or frozenset())
        newer |= (theirs.keys() - ours.keys()) & (measured.changed or frozenset())
        return not newer and all(ours[key] == theirs[key] for key in ours.keys() & theirs.keys())

    def joined(self, measured: Measured) -> None:
        """Take in what that says about options which were not known here."""
        self.options |= measured.evaluator
        if measured.changed is not None:
            self.changed = (self.changed or frozenset()) | measured.changed


def with_scores(runs: Sequence[Reading]) -> list[Reading]:
    """The same readings, in whose `scores` one name means the same measurement in all of them.

    A score is called EVALUATOR/METRIC; the options stand behind the evaluator's name where two settings of it were
    used, other data and another pooling behind the metric's.
    """
    homes = [run.recipe.get("data") for run in runs if run.trained] or [
        measured.data for run in runs for measured in run.measured
    ]
    settings: list[Setting] = []
    found: list[list[tuple[Setting, Measured]]] = []
    for run in runs:
        pairs = []
        for measured in run.measured:
            data = None if _at_home(measured, run, homes) else measured.data
            taking = [one for one in settings if one.takes(measured, data)]
            same = [one for one in taking if one.options == measured.evaluator]
            if not taking:
                settings.append(Setting(dict(measured.evaluator), measured.changed, data, measured.pooling))
            setting = (same or taking or settings[-1:])[0]
            setting.joined(measured)
            pairs.append((setting, measured))
        found.append(pairs)
    words = {id(setting): (_telling(setting, settings), _where(setting, settings)) for setting in settings}
    scored = []
    for run, pairs in zip(runs, found, strict=True):
        own: dict[str, Metric] = {}
        later: dict[str, Metric] = {}  # where one setting was measured twice, the last time counts
        for setting, measured in pairs:
            telling, where = words[id(setting)]
            for metric in measured.metrics:
                name = "/".join(filter(None, (f"{measured.use}{telling}", metric.name))) + where
                label = f"{metric.label}{telling}{where}" if metric.label else name
                (own if measured.own else later)[name] = attrs.evolve(metric, label=label)
        metrics = own | {name: metric for name, metric in later.items() if name not in own}
        scores = {name: finite(metric.value) for name, metric in metrics.items()}
        scored.append(attrs.evolve(run, scores=scores, declared=metrics))
    return scored


def _at_home(measured: Measured, run: Reading, homes: Sequence[Any]) -> bool:
    """Whether it was measured on a run's own data; a model that was not trained here has those of all runs, if one."""
    if measured.data is None:
        return True
    return not run.trained and all(home == measured.data for home in homes)


def _where(setting: Setting, settings: Sequence[Setting]) -> str:
    """On which data, if those are not a run's own, and by which pooling, if it is not the usual one."""
    words = ""
    if setting.data is not None:
        name = data_name(setting.data)
        others = [one.data for one in settings if one.data is not None and one.data != setting.data]
        if any(data_name(other) == name for other in others):  # two folders called `val`
            name = " ".join(f"{key}={option(value)}" for key, value in shown({"data": setting.data}).items())
        words = f" on {name}"
    return words if setting.pooling == "mean" else f"{words} ({setting.pooling} token)"


def data_name(data: Any) -> str:
    """What data are called: as their folder is, or as the plugin."""
    root = data.get("root", data.get("path")) if isinstance(data, Mapping) else None
    return PurePath(root).name if isinstance(root, str) and PurePath(root).name else str(named(data))


def _telling(setting: Setting, settings: Sequence[Setting]) -> str:
    """The options that tell this setting of an evaluator from the others of that evaluator and place."""
    same = [one for one in settings if one.options.get("use") == setting.options.get("use")]
    alike = [shown(one.options) for one in same if (one.data, one.pooling) == (setting.data, setting.pooling)]
    mine = shown(setting.options)
    telling = [key for key in mine if len({repr(options.get(key)) for options in alike}) > 1]
    return f" ({', '.join(f'{key} {option(mine[key])}' for key in telling)})" if telling else ""
