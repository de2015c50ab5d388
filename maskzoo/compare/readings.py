"""What a run has left in its folder, read without anything that made it."""

from __future__ import annotations

import json
import math
import statistics
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import attrs

from maskzoo.errors import DataError
from maskzoo.plain import shown

POINTS = 200  # of a curve, at most: the mean of as many steps each
CURVES = ("loss", "factor", "ratio")


@attrs.frozen(eq=False)
class Reading:
    """A run as its files tell it."""

    path: Path
    recipe: dict[str, Any]
    keys: dict[str, Any]  # the recipe, {dotted key: value}
    environment: dict[str, Any]
    finished: bool
    progress: float  # 0.0 to 1.0
    steps: int  # done so far
    scores: dict[str, float | None]  # after training; None where it was no number
    settings: dict[str, Any]  # under which they were measured
    curves: dict[str, list[tuple[float, float]]]  # name -> (step, value)
    speed: float | None  # images a second, the median over the steps
    seconds: float | None  # of training, without evaluation, pictures and checkpoints

    @property
    def seed(self) -> int:
        """The seed of the run."""
        return int(self.keys.get("train.seed", 0))

    @property
    def masker(self) -> str:
        """The strategy's name."""
        return str(named(self.recipe.get("masking", {}).get("strategy", "random")))

    @property
    def data(self) -> dict[str, Any]:
        """The keys that say what it learnt from."""
        return {key: value for key, value in self.keys.items() if key.split(".")[0] == "data"}

    @property
    def images(self) -> int:
        """Images seen in training."""
        return self.steps * int(self.keys.get("train.batch_size", 0))

    @property
    def picture(self) -> Path | None:
        """The masks of the whole run in one picture, or else those of its last moment."""
        masks = self.path / "masks"
        drawn = [masks / "curriculum.png", *sorted(masks.glob("step-*.png"), reverse=True)]
        return next((path for path in drawn if path.is_file()), None)


def read_run(path: Path) -> Reading:
    """The run in a folder; DataError says what is missing or damaged there."""
    try:
        recipe = tomllib.loads((path / "recipe.toml").read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise DataError(f"'{path}' is no run: it has no recipe.toml") from None
    except (OSError, ValueError) as problem:
        raise DataError(f"'{path}/recipe.toml' cannot be read: {problem}") from None
    evaluation = _json(path / "evaluation.json")
    lines = list(_lines(path / "metrics.jsonl"))
    keys = shown(recipe)
    speeds = [line["images_per_second"] for line in lines if _number(line.get("images_per_second"))]
    batch = keys.get("train.batch_size", 0)
    after = evaluation.get("after")
    return Reading(
        path=path,
        recipe=recipe,
        keys=keys,
        environment=_json(path / "environment.json"),
        finished=isinstance(after, dict),
        progress=float(lines[-1].get("progress") or 0.0) if lines else 0.0,
        steps=int(lines[-1]["step"]) + 1 if lines else 0,
        scores={name: float(value) if _number(value) else None for name, value in (after or {}).items()},
        settings=evaluation.get("settings") or {},
        curves={name: curve for name in CURVES if (curve := _curve(lines, name))},
        speed=statistics.median(speeds) if speeds else None,
        seconds=math.fsum(batch / speed for speed in speeds if speed > 0) if speeds else None,
    )


def named(use: Any) -> Any:
    """The name in a use, whichever way it is written."""
    if isinstance(use, Mapping):
        use = use.get("use", "?")
    return use.split(":")[0] if isinstance(use, str) else use


def gone(reading: Reading) -> list[str]:
    """A clause for each distribution of plugins that the run had and that is gone, or another version, by now."""
    clauses = []
    for entry in reading.environment.get("plugins", []):
        distribution, _, then = str(entry).rpartition(" ")
        try:
            now = version(distribution)
        except (PackageNotFoundError, ValueError):
            clauses.append(f"the plugin distribution '{distribution}' {then} is not installed any more")
            continue
        if now != then:
            clauses.append(f"the plugin distribution '{distribution}' was {then} then and is {now} now")
    return clauses


def _json(path: Path) -> dict[str, Any]:
    """A table of a JSON file, empty where there is none; DataError where it is damaged."""
    try:
        held = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as problem:
        raise DataError(f"'{path}' cannot be read: {problem}") from None
    if not isinstance(held, dict):
        raise DataError(f"'{path}' cannot be read: expected a table of values")
    return held


def _lines(path: Path) -> Iterator[dict[str, Any]]:
    """The steps of metrics.jsonl; a line that is no whole step was being written when the run was stopped."""
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return
    for line in text.splitlines():
        try:
            step = json.loads(line)
        except ValueError:
            continue
        if isinstance(step, dict) and isinstance(step.get("step"), int):
            yield step


def _curve(lines: Sequence[Mapping[str, Any]], name: str) -> list[tuple[float, float]]:
    """(step, value), each the mean of as many steps as make no more than POINTS of them."""
    known = [(float(line["step"]), float(line[name])) for line in lines if _number(line.get(name))]
    width = max(1, math.ceil(len(known) / POINTS))
    pieces = [known[start : start + width] for start in range(0, len(known), width)]
    return [
        (statistics.fmean(step for step, _ in piece), statistics.fmean(value for _, value in piece)) for piece in pieces
    ]


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
