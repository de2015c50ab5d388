"""Which figures of several runs are one score: what one evaluator measured under one setting, and no other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import PurePath
from typing import Any

import attrs

from maskzoo.compare.readings import Measured, Reading, named
from maskzoo.plain import shown


@attrs.define(eq=False)
class Setting:
    """One evaluator with its options, on one kind of data, by one pooling."""

    options: dict[str, Any]  # `use` among them
    where: str  # what is said of data and pooling behind a figure's name; empty for what is usual

    def takes(self, measured: Measured, where: str) -> bool:
        """Whether that was measured so; an option that is written on one side only says nothing against it.

        An older version had fewer options, and what is None is not written everywhere.
        """
        known = self.options.keys() & measured.evaluator.keys()
        return self.where == where and all(self.options[key] == measured.evaluator[key] for key in known)


def with_scores(runs: Sequence[Reading]) -> list[Reading]:
    """The same readings, in whose `scores` one name means the same measurement in all of them.

    A figure is called EVALUATOR/FIGURE; the options stand behind the evaluator's name where two settings of it were
    used, other data and another pooling behind the figure's.
    """
    homes = [run.recipe.get("data") for run in runs if run.trained]
    settings: list[Setting] = []
    found: list[list[tuple[Setting, Measured]]] = []
    for run in runs:
        pairs = []
        for measured in run.measured:
            where = _where(measured, run, homes)
            setting = next((one for one in settings if one.takes(measured, where)), None)
            if setting is None:
                setting = Setting(dict(measured.evaluator), where)
                settings.append(setting)
            else:
                setting.options |= measured.evaluator
            pairs.append((setting, measured))
        found.append(pairs)
    names = {id(setting): _name(setting, settings) for setting in settings}
    scored = []
    for run, pairs in zip(runs, found, strict=True):
        scores: dict[str, float | None] = {}
        for setting, measured in pairs:
            for figure, value in measured.figures.items():
                name = f"{names[id(setting)]}/{figure}" if figure else names[id(setting)]
                scores.setdefault(f"{name}{setting.where}", value)
        scored.append(attrs.evolve(run, scores=scores))
    return scored


def _where(measured: Measured, run: Reading, homes: Sequence[Any]) -> str:
    """On which data, if those are not a run's own, and by which pooling, if it is not the usual one."""
    own = measured.data is None or (not run.trained and (not homes or measured.data in homes))
    words = "" if own else f" on {data_name(measured.data)}"
    return words if measured.pooling == "mean" else f"{words} ({measured.pooling} token)"


def data_name(data: Any) -> str:
    """What data are called: as their folder is, or as the plugin."""
    root = data.get("root") if isinstance(data, Mapping) else None
    return PurePath(root).name if isinstance(root, str) and PurePath(root).name else str(named(data))


def _name(setting: Setting, settings: Sequence[Setting]) -> str:
    """An evaluator's name, with the options that tell this setting from the others of that name and place."""
    use = str(setting.options.get("use", "?"))
    same = [one for one in settings if one.options.get("use") == setting.options.get("use")]
    alike = [shown(one.options) for one in same if one.where == setting.where]
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
