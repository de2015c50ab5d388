"""Which figures of several runs are one score: what one evaluator measured under one setting, and no other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import PurePath
from typing import Any

import attrs

from maskzoo.compare.readings import Measured, Reading
from maskzoo.plain import named, shown


@attrs.define(eq=False)
class Setting:
    """One evaluator with its options, on one kind of data, by one pooling."""

    options: dict[str, Any]  # `use` among them
    data: Any  # None: a run's own
    pooling: str

    def takes(self, measured: Measured, data: Any) -> bool:
        """Whether that was measured so; an option that is written on one side only says nothing against it.

        An older version had fewer options, and what is None is not written everywhere.
        """
        known = self.options.keys() & measured.evaluator.keys()
        alike = all(self.options[key] == measured.evaluator[key] for key in known)
        return alike and self.data == data and self.pooling == measured.pooling


def with_scores(runs: Sequence[Reading]) -> list[Reading]:
    """The same readings, in whose `scores` one name means the same measurement in all of them.

    A figure is called EVALUATOR/FIGURE; the options stand behind the evaluator's name where two settings of it were
    used, other data and another pooling behind the figure's.
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
            setting = next((one for one in settings if one.takes(measured, data)), None)
            if setting is None:
                setting = Setting(dict(measured.evaluator), data, measured.pooling)
                settings.append(setting)
            else:
                setting.options |= measured.evaluator
            pairs.append((setting, measured))
        found.append(pairs)
    words = {id(setting): (_name(setting, settings), _where(setting, settings)) for setting in settings}
    scored = []
    for run, pairs in zip(runs, found, strict=True):
        own: dict[str, float | None] = {}
        later: dict[str, float | None] = {}  # where one setting was measured twice, the last time counts
        for setting, measured in pairs:
            name, where = words[id(setting)]
            for figure, value in measured.figures.items():
                (own if measured.own else later)[f"{name}/{figure}{where}" if figure else f"{name}{where}"] = value
        scores = own | {name: value for name, value in later.items() if name not in own}
        scored.append(attrs.evolve(run, scores=scores))
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
            name = " ".join(f"{key}={_value(value)}" for key, value in shown({"data": setting.data}).items())
        words = f" on {name}"
    return words if setting.pooling == "mean" else f"{words} ({setting.pooling} token)"


def data_name(data: Any) -> str:
    """What data are called: as their folder is, or as the plugin."""
    root = data.get("root") if isinstance(data, Mapping) else None
    return PurePath(root).name if isinstance(root, str) and PurePath(root).name else str(named(data))


def _name(setting: Setting, settings: Sequence[Setting]) -> str:
    """An evaluator's name, with the options that tell this setting from the others of that name and place."""
    use = str(setting.options.get("use", "?"))
    same = [one for one in settings if one.options.get("use") == setting.options.get("use")]
    alike = [shown(one.options) for one in same if (one.data, one.pooling) == (setting.data, setting.pooling)]
    mine = shown(setting.options)
    telling = [key for key in mine if len({repr(options.get(key)) for options in alike}) > 1]
    return f"{use} ({', '.join(f'{key} {_value(mine[key])}' for key in telling)})" if telling else use


def _value(value: Any) -> str:
    return (
        ",".join(map(str, value))
        if isinstance(value, list)
        else f"{value:g}"
        if isinstance(value, float)
        else str(value)
    )
