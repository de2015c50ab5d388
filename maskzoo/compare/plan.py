"""Which runs a comparison is made of: cells times seeds, each with a recipe and a folder of its own."""

from __future__ import annotations

import hashlib
import itertools
import re
from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any

import attrs

from maskzoo import measured
from maskzoo.build import choose_curriculum, curriculum_path, points, refuse_meaningless
from maskzoo.compare.keeping import GENERATOR, begin, read_plan
from maskzoo.compare.report import folder_name
from maskzoo.cost import flops_per_image, shape_of, steps_of
from maskzoo.defaults import settled
from maskzoo.errors import DataError, MaskZooError, RecipeError
from maskzoo.listing import Listing
from maskzoo.plain import FREE_KEYS, named, rooted, same_place, shown, write_json
from maskzoo.recipe import Recipe, make, parse, plain_of, put, put_beside, read, write
from maskzoo.registry import Registry, nearest
from maskzoo.schedules import set_up

BUDGETS = ("epochs", "flops", "time")
CELL = re.compile(r"(?P<masker>[^+@]+)(\+(?P<schedule>[^@]+))?(@(?P<ratio>.+))?")
MOST_SEEDS = 10_000
POINTS = 1000  # of a run whose length is not known yet


@attrs.frozen
class Job:
    """One run of the comparison."""

    cell: str
    seed: int
    recipe: Path  # the recipe it is started with
    folder: Path

    @property
    def done(self) -> bool:
        """Whether it has finished, its evaluation too."""
        try:
            return "after" in measured.read(self.folder / "evaluation.json")[measured.MOMENTS]
        except DataError:
            return False


@attrs.frozen
class Row:
    """What a cell is, and what one of its runs takes."""

    name: str
    steps: int | None  # None where nobody knows how many images the data have
    images: int | None
    flops: float | None  # of an image in a step


@attrs.frozen
class Plan:
    """All that a comparison is to be made of."""

    out: Path
    rows: list[Row]
    jobs: list[Job]
    baseline: str
    equal: str
    asked: Mapping[str, Any] = attrs.field(factory=dict)  # the options of which it was made, where they are known

    @property
    def flops(self) -> dict[str, float]:
        """Of an image in a step, by cell, where they could be counted."""
        return {row.name: row.flops for row in self.rows if row.flops is not None}

    @property
    def paths(self) -> dict[Path, str]:
        """The folder of each run, and its cell."""
        return {job.folder: job.cell for job in self.jobs}


def plan(
    out: Path,
    base: Mapping[str, Any],
    registry: Registry,
    *,
    maskers: str | None = None,
    vary: Sequence[str] = (),
    seeds: str = "3",
    baseline: str | None = None,
    equal: str = "epochs",
    speed_of: Callable[[str, dict[str, Any]], float] | None = None,
    keep: bool = True,
    another: bool = False,
) -> Plan:
    """The plan from the recipe that all cells share, which is kept in `out` as plan.json and recipes/.

    `speed_of` measures the images a second of a cell, given a name for a folder and its recipe; None where that must
    not be done yet. Raises RecipeError where a cell cannot be trained, or where `out` holds runs of other recipes or,
    unless it is to be replaced, `another` comparison.
    """
    recipes = cells(base, maskers, vary)
    first = baseline or next(iter(recipes))
    if first not in recipes:
        raise RecipeError(f"--baseline: no cell is called '{first}'; {nearest(first, recipes)}")
    folders = _folders(list(recipes))
    rows = {name: _row(name, plain, registry) for name, plain in recipes.items()}
    _refuse_twins(recipes)
    if equal != "epochs":
        speeds: dict[str, float] = {}
        if equal == "time" and speed_of is not None:
            speeds = {name: speed_of(folders[name], plain) for name, plain in recipes.items()}
        rows = {name: _budgeted(row, rows[first], recipes[name], equal, speeds) for name, row in rows.items()}
    jobs, plains = [], []
    for seed, name in itertools.product(_seeds(seeds), recipes):  # whole sets first, wherever it is stopped
        where = f"{folders[name]}-s{seed}"
        jobs.append(Job(name, seed, out / "recipes" / f"{where}.toml", out / "runs" / where))
        plains.append(deepcopy(recipes[name]))
        put(plains[-1], "train.seed", seed)
        if "data" in plains[-1]:
            plains[-1]["data"] = rooted(plains[-1]["data"])  # wherever the comparison is gone on with
    for job, plain in zip(jobs, plains, strict=True):
        _refuse_another(job, plain)
    asked = {"maskers": maskers or "", "vary": list(vary), "seeds": seeds}
    made = Plan(out, list(rows.values()), jobs, first, equal, asked)
    return _kept(made, plains, another=another) if keep else made


def planned(out: Path) -> Plan:
    """The plan that is in a folder already. Raises RecipeError where there is none that can be read."""
    held = read_plan(out)
    if held is None:
        raise RecipeError(f"--out: '{out}' holds no plan; say what to compare with --maskers, or name runs")
    return Plan(
        out,
        [Row(*(cell.get(field.name) for field in attrs.fields(Row))) for cell in held["cells"]],
        [Job(one["cell"], one["seed"], out / one["recipe"], out / one["run"]) for one in held["runs"]],
        held["baseline"],
        held["equal"],
        asked if isinstance(asked := held.get("asked"), dict) else {},
    )


def cells(base: Mapping[str, Any], maskers: str | None, vary: Sequence[str]) -> dict[str, dict[str, Any]]:
    """{name of the cell: its recipe}: every masker with every combination of the values that vary."""
    sets: list[list[tuple[str, Any]]] = []
    for text in vary:
        key, equals, values = text.partition("=")
        if not equals or not values.strip():
            raise RecipeError(f"--vary: expected KEY=VALUE,VALUE,..., got '{text}'")
        if key.strip() == "train.seed":
            raise RecipeError("--vary: every cell has all seeds; say which with --seeds, e.g. --seeds 0,7")
        sets.append([(key.strip(), value) for value in _values(values)])
    own = named(base.get("masking", {}).get("strategy", "random"))
    made: dict[str, dict[str, Any]] = {}
    for masker in _split(maskers) if maskers is not None else [str(own)]:
        for chosen in itertools.product(*sets):
            name = " ".join([masker, *(f"{key}={value}" for key, value in chosen)])
            if name in made:
                raise RecipeError(f"--maskers: '{name}' is named twice")
            made[name] = _with_masker(base, masker)
            for key, value in chosen:
                put_beside(made[name], key, value)
    if not made:
        raise RecipeError("--maskers: name at least one, e.g. random,clmae")
    return made


def table(plan: Plan) -> Listing:
    """The plan with its cost, as `--dry-run` prints it."""
    printed = Listing(
        ("cell", "steps", "images", "GFLOPs an image", "FLOPs a run", "runs to do"), frozenset(range(1, 6))
    )
    for row in plan.rows:
        jobs = [job for job in plan.jobs if job.cell == row.name]
        total = None if row.flops is None or row.images is None else row.flops * row.images
        printed.add(
            row.name + (" (baseline)" if row.name == plan.baseline else ""),
            "?" if row.steps is None else f"{row.steps:,}",
            "?" if row.images is None else f"{row.images:,}",
            "?" if row.flops is None else f"{row.flops / 1e9:.3g}",
            "?" if total is None else f"{total:.3g}",
            f"{sum(not job.done for job in jobs)} of {len(jobs)}",
        )
    return printed


def _with_masker(base: Mapping[str, Any], text: str) -> dict[str, Any]:
    """The recipe with the masker, schedule and ratio of a cell.

    The masker that the recipe names itself keeps its options and its curriculum; any other comes with its own.
    """
    match = CELL.fullmatch(text)
    if match is None:
        raise RecipeError(f"--maskers: '{text}' is no cell; write it like clmae, attmask+adversary or random@0.6")
    plain = deepcopy(dict(base))
    masking = plain.setdefault("masking", {})
    if (
        masking.get("strategy", "random") != match["masker"]
        and named(masking.get("strategy", "random")) != match["masker"]
    ):
        masking["strategy"] = match["masker"]
        masking.pop("curriculum", None)
    for key in ("schedule", "ratio"):
        if match[key] is not None:
            masking["curriculum" if key == "schedule" else "ratio"] = parse(match[key])
    return plain


def _row(name: str, plain: Mapping[str, Any], registry: Registry) -> Row:
    """What a cell costs; RecipeError with its name where it could not be trained."""
    try:
        recipe = Recipe.from_plain(plain)
        strategy = make(registry, "strategy", recipe.masking.strategy, "recipe.masking.strategy")
        use = choose_curriculum(recipe.masking, strategy)
        curriculum = make(registry, "schedule", use, curriculum_path(recipe.masking, strategy))
        set_up(curriculum, recipe.train.epochs, POINTS)
        refuse_meaningless(curriculum, strategy, points(POINTS))
        shape = shape_of(recipe, registry)
        steps = steps_of(recipe, shape)
        try:
            flops = flops_per_image(recipe, registry, shape).total
        except DataError:  # it looks at side data that only a run has
            flops = None
        except MaskZooError:
            raise
        except Exception:  # a plugin's code on images without values: it may yet train
            flops = None
    except MaskZooError as problem:
        raise RecipeError(f"cell '{name}': {problem}") from problem
    batch = settled(recipe, len(shape.train)).train.batch
    return Row(name, steps, None if steps is None else steps * batch, flops)


def _budgeted(row: Row, first: Row, plain: dict[str, Any], equal: str, speeds: Mapping[str, float]) -> Row:
    """The row with as many steps as spend what the baseline spends, which go into its recipe too."""
    if first.images is None or row.images is None or row.steps is None:
        raise RecipeError(f"--equal {equal}: nobody knows how many images the data have; set train.steps")
    if row.name == first.name:
        return row
    if equal == "flops":
        if row.flops is None or first.flops is None:
            unknown = row if row.flops is None else first
            raise RecipeError(f"--equal flops: the FLOPs of '{unknown.name}' cannot be counted")
        share = first.flops / row.flops
    else:
        ours, theirs = speeds.get(row.name), speeds.get(first.name)
        if ours is None or theirs is None:
            return attrs.evolve(row, steps=None, images=None)
        share = ours / theirs
    batch = row.images // row.steps
    steps = max(1, round(first.images * share / batch))
    put(plain, "train.steps", steps)
    return attrs.evolve(row, steps=steps, images=steps * batch)


def _refuse_twins(recipes: Mapping[str, Mapping[str, Any]]) -> None:
    """Raise RecipeError where two cells are one recipe, whose difference would be nothing in every pair."""
    seen: dict[str, str] = {}
    for name, plain in recipes.items():
        written = repr(sorted(shown(plain_of(Recipe.from_plain(plain))).items()))
        if written in seen:
            raise RecipeError(f"--maskers: '{name}' is the same recipe as '{seen[written]}'")
        seen[written] = name


def _refuse_another(job: Job, plain: Mapping[str, Any]) -> None:
    """Raise RecipeError where the run was begun with another recipe than it is planned with now."""
    if not job.recipe.exists() or not (job.folder / "recipe.toml").exists():
        return
    there, here = (shown(plain_of(Recipe.from_plain(one))) for one in (read(job.recipe), plain))
    other = [
        f"{key} is {there.get(key)!r} there and {here.get(key)!r} here"
        for key in sorted(there.keys() | here.keys())
        if key.split("[")[0] not in FREE_KEYS and not same_place(key, there.get(key), here.get(key))
    ]
    if other:
        raise RecipeError(
            f"--out: the run '{job.folder}' was begun with another recipe: {'; '.join(other)}; choose another folder"
        )


def _kept(made: Plan, plains: Sequence[Mapping[str, Any]], *, another: bool) -> Plan:
    """The same plan, written down."""
    held = {
        "generator": GENERATOR,
        "baseline": made.baseline,
        "equal": made.equal,
        "asked": dict(made.asked),
        "cells": [attrs.asdict(row) for row in made.rows],
        "runs": [
            {
                "cell": job.cell,
                "seed": job.seed,
                "recipe": _below(job.recipe, made.out),
                "run": _below(job.folder, made.out),
            }
            for job in made.jobs
        ],
    }
    recipes = {_below(job.recipe, made.out): write(plain) for job, plain in zip(made.jobs, plains, strict=True)}
    try:
        begin(made.out, recipes, [job.folder for job in made.jobs], another=another)
        write_json(made.out / "plan.json", held)
    except OSError as problem:
        raise RecipeError(f"--out: '{made.out}' cannot be written to: {problem}") from problem
    return made


def _below(path: Path, folder: Path) -> str:
    return path.relative_to(folder).as_posix()


def _folders(names: Sequence[str]) -> dict[str, str]:
    """A folder's name for each cell, never one for two, not even where capitals do not count."""
    plain = {name: folder_name(name) for name in names}
    lower = [folder.lower() for folder in plain.values()]
    return {
        name: folder
        if lower.count(folder.lower()) == 1
        else f"{folder}-{hashlib.sha256(name.encode()).hexdigest()[:6]}"
        for name, folder in plain.items()
    }


def _seeds(text: str) -> list[int]:
    """`3` are the seeds 0, 1 and 2; `0,7` are those two."""
    try:
        given = [int(part) for part in text.split(",")]
    except ValueError:
        raise RecipeError(f"--seeds: expected a number of seeds, or a list like 0,7, got '{text}'") from None
    if "," not in text and given[0] > MOST_SEEDS:
        raise RecipeError(f"--seeds: '{text[:40]}' are too many, at most {MOST_SEEDS}; or name them, like 0,7")
    seeds = list(range(given[0])) if "," not in text else list(dict.fromkeys(given))
    if not seeds or min(seeds) < 0 or max(seeds) >= 2**63:
        raise RecipeError(f"--seeds: expected at least one seed, none below 0 and all below 2 ** 63, got '{text}'")
    return seeds


def _split(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]


def _values(text: str) -> list[Any]:
    """Values as TOML writes them in a list, or else texts with commas between them."""
    whole = parse(f"[{text}]")
    return whole if isinstance(whole, list) else [parse(part) for part in _split(text)]
