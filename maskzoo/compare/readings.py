"""What a run has left in its folder, read without anything that made it."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import attrs

from maskzoo import measured
from maskzoo.errors import DataError
from maskzoo.measured import Measured
from maskzoo.metrics import Metric
from maskzoo.plain import is_number, named, parse_toml, read_json, read_lines, read_text, rooted, shown, step_line
from maskzoo.sources import changes

POINTS = 200  # of a curve, at most: the mean of as many steps each
CURVES = ("loss", "factor", "ratio")
STEP_OF_ITS_OWN = "strategy_grad_norm"  # which only a masker that learns has in metrics.jsonl


@attrs.frozen(eq=False)
class Reading:
    """A run as its files tell it, or a model that was evaluated and not trained here."""

    path: Path
    recipe: dict[str, Any]
    keys: dict[str, Any]  # the recipe, {dotted key: value}
    environment: dict[str, Any]
    finished: bool
    progress: float  # 0.0 to 1.0
    steps: int  # done so far
    before: list[Measured]  # by the run itself, before its first step
    measured: list[Measured]  # after training: by the run itself first, then by `maskzoo evaluate`
    problems: dict[str, str]  # why an evaluator of the run has measured nothing, by its name
    scores: dict[
        str, float | None
    ]  # what the run itself has measured; what a comparison shows, in one; None: no number
    curves: dict[str, list[tuple[float, float]]]  # name -> (step, value)
    speed: float | None  # images a second, the median over the steps
    seconds: float | None  # of training, without evaluation, pictures and checkpoints
    memory: int | None  # the most bytes held at once while it trained
    flops: float | None  # of one image in training, where a comparison has counted them
    model: str = ""  # what a model that was not trained here is called; empty for a run
    learns: bool = False  # whether its masker has learned something
    declared: dict[str, Metric] = attrs.field(factory=dict)  # what is declared about each score, in a comparison

    @property
    def trained(self) -> bool:
        """Whether it is a run, and no model that was evaluated alone."""
        return not self.model

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


def read(path: Path) -> list[Reading]:
    """The run in a folder, or the models whose figures `maskzoo evaluate --backbone` has left there.

    DataError says what is missing or damaged.
    """
    held = [] if (path / "recipe.toml").exists() else measured.entries(measured.read(path / "evaluation.json"))
    models: dict[str, list[Measured]] = {}
    for entry in held:
        if entry.model is not None:
            models.setdefault(repr((entry.model, entry.weights)), []).append(entry)
    return [_model(path, group) for group in models.values()] or [read_run(path)]


def read_run(path: Path) -> Reading:
    """The run in a folder; DataError says what is missing or damaged there."""
    try:
        recipe = parse_toml(read_text(path / "recipe.toml"), f"'{path}/recipe.toml'")
    except FileNotFoundError:
        raise DataError(f"'{path}' is no run: it has no recipe.toml") from None
    try:
        run = _run(path, recipe)
        _ = run.seed, run.masker, run.images, run.data  # whatever is asked of it later
    except (
        AttributeError,
        TypeError,
        ValueError,
        KeyError,
        OverflowError,
    ) as problem:  # files of the right format, and another form
        raise DataError(f"'{path}' cannot be read as a run: {type(problem).__name__}: {problem}") from None
    return run


def _run(path: Path, recipe: dict[str, Any]) -> Reading:
    evaluation = measured.read(path / "evaluation.json")
    held = measured.entries(evaluation)
    lines = list(_lines(path / "metrics.jsonl"))
    keys = shown(recipe)
    speeds = [line["images_per_second"] for line in lines if is_number(line.get("images_per_second"))]
    batch = keys.get("train.batch_size", 0)
    steps = int(lines[-1]["step"]) + 1 if lines else 0
    masker = named(recipe.get("masking", {}).get("strategy", "random"))
    home = rooted(recipe.get("data"))
    held = [attrs.evolve(entry, data=None) if entry.own or rooted(entry.data) == home else entry for entry in held]
    after = [entry for entry in held if entry.when == "after"]
    found = [*after, *(entry for entry in held if not entry.own and entry.step == steps)]
    known = {entry.use for entry in found if entry.metrics}
    return Reading(
        path=path,
        recipe=recipe,
        keys=keys,
        environment=_environment(path / "environment.json"),
        finished="after" in evaluation[measured.MOMENTS],
        progress=float(lines[-1].get("progress") or 0.0) if lines else 0.0,
        steps=steps,
        before=[entry for entry in held if entry.when == "before"],
        measured=found,
        problems={entry.use: entry.problem for entry in after if entry.problem and entry.use not in known},
        scores={f"{one.use}/{metric.name}": finite(metric.value) for one in after for metric in one.metrics},
        curves={name: curve for name in CURVES if (curve := _curve(lines, name))},
        speed=statistics.median(speeds) if speeds else None,
        seconds=math.fsum(batch / speed for speed in speeds if speed > 0) if speeds else None,
        memory=max(
            (int(line["peak_memory_bytes"]) for line in lines if is_number(line.get("peak_memory_bytes"))), default=None
        ),
        flops=_counted(path),
        learns=any(key == STEP_OF_ITS_OWN or key.startswith(f"{masker}/") for line in lines[:1] for key in line),
    )


def _stem(weights: Any) -> str:
    """The name of a file of weights, with the part of it that was taken if one was chosen."""
    if not isinstance(weights, Mapping):
        return Path(weights).stem
    return f"{Path(str(weights.get('file', '?'))).stem} {weights.get('part', '')}".rstrip()


def _model(path: Path, entries: Sequence[Measured]) -> Reading:
    """A model that was evaluated alone; one whose own data nobody knows."""
    model, weights = entries[0].model, entries[0].weights
    name = str(model.get("timm") or model.get("use") or "?")
    origin = _stem(weights) if weights else "pretrained" if model.get("pretrained") else "untrained"
    recipe = {"backbone": model}
    return Reading(
        path=path,
        recipe=recipe,
        keys=shown(recipe),
        environment={},
        finished=True,
        progress=1.0,
        steps=0,
        before=[],
        measured=list(entries),
        problems={},
        scores={},
        curves={},
        speed=None,
        seconds=None,
        memory=None,
        flops=None,
        model=f"{name} ({origin})",
    )


def _counted(path: Path) -> float | None:
    """The FLOPs that the comparison counted whose run this is."""
    out = path.absolute().parent.parent
    try:
        held = read_json(out / "plan.json")
        (cell,) = {run["cell"] for run in held["runs"] if (out / run["run"]).resolve() == path.resolve()}
        (flops,) = {row["flops"] for row in held["cells"] if row["name"] == cell}
    except (DataError, OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
    return float(flops) if is_number(flops) else None


def finite(value: float) -> float | None:
    """The value; None where it is no finite number."""
    return value if math.isfinite(value) else None


def gone(reading: Reading) -> list[str]:
    """A clause for each distribution whose plugins the run used and that is gone, or another version, by now."""
    clauses = []
    for entry in distributions(reading.environment):
        distribution, _, then = str(entry).rpartition(" ")
        try:
            now = version(distribution)
        except (PackageNotFoundError, ValueError):
            clauses.append(f"the plugin distribution '{distribution}' {then} is not installed any more")
            continue
        if now != then:
            clauses.append(f"the plugin distribution '{distribution}' was {then} then and is {now} now")
    return list(dict.fromkeys([*clauses, *changes(reading.environment)]))


def distributions(environment: Mapping[str, Any]) -> list[str]:
    """ "NAME VERSION" of each distribution whose plugins a run used; of an older run, of all that were installed."""
    used = environment.get("used")
    if not isinstance(used, list):
        return [str(plugin) for plugin in environment.get("plugins", [])]
    named = [one for one in used if isinstance(one, dict) and one.get("distribution")]
    return list(dict.fromkeys(f"{one['distribution']} {one.get('version', '')}".strip() for one in named))


def mixed(reading: Reading) -> list[str]:
    """What a run says of the plugins it used: names that two of them offered, and code that changed on the way."""
    held = [reading.environment.get(key) for key in ("clashes", "changed")]
    return [str(one) for some in held if isinstance(some, list) for one in some]


def _environment(path: Path) -> dict[str, Any]:
    """What a run stood on; what has not the form that we write is as if it were not there."""
    held = _json(path)
    versions, plugins = held.get("versions"), held.get("plugins")
    return {
        **held,
        "versions": versions if isinstance(versions, dict) else {},
        "plugins": plugins if isinstance(plugins, list) else [],
    }


def _json(path: Path) -> dict[str, Any]:
    """A table of a JSON file, empty where there is none; DataError where it is damaged."""
    held: dict[str, Any] = read_json(path, missing={}, finite=False)  # a metric that is no number is said, run by run
    return held


def _lines(path: Path) -> Iterator[dict[str, Any]]:
    """The steps of metrics.jsonl; a line that is no whole step was being written when the run was stopped."""
    yield from filter(None, map(step_line, read_lines(path)))


def _curve(lines: Sequence[Mapping[str, Any]], name: str) -> list[tuple[float, float]]:
    """(step, value), each the mean of as many steps as make no more than POINTS of them."""
    known = [(float(line["step"]), float(line[name])) for line in lines if is_number(line.get(name))]
    width = max(1, math.ceil(len(known) / POINTS))
    pieces = [known[start : start + width] for start in range(0, len(known), width)]
    return [
        (statistics.fmean(step for step, _ in piece), statistics.fmean(value for _, value in piece)) for piece in pieces
    ]
