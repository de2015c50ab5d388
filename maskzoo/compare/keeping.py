"""What a comparison writes into its folder, and how it knows again what it has written there.

A folder is a comparison's by `comparison.json` alone, which lists every file of the report and of the plan; a plan or
a page of an older MaskZoo is known by its form. Files that are not listed belong to others.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from maskzoo.errors import DataError, RecipeError
from maskzoo.marks import COMPARISON, is_run, unused
from maskzoo.plain import LEFTOVER, is_number, read_json, read_text, replace, write_json

RECORD = "comparison.json"
GENERATOR = COMPARISON
META = f'<meta name="generator" content="{GENERATOR}">'
NAME = r"[A-Za-z0-9_+=@-][A-Za-z0-9._+=@-]*"  # a file's or folder's, as `folder_name` makes it
REPORT = re.compile(rf"{NAME}|figures/[^/]+|sources/{NAME}/{NAME}")
RECIPE, RUN = re.compile(rf"recipes/{NAME}"), re.compile(rf"runs/{NAME}")
OTHER = "choose another folder with --out"


def refuse_foreign(out: Path) -> None:
    """Raise RecipeError where a folder holds something, but no comparison."""
    if not out.exists():
        return
    names = {path.name for path in out.iterdir() if not LEFTOVER.fullmatch(path.name)} if out.is_dir() else {"."}
    a_run = "recipe.toml" in names or "metrics.jsonl" in names
    if not a_run and names <= {"lock", "probes"} and _are_runs(out / "probes"):
        return
    if a_run or not _is_ours(out):
        raise RecipeError(f"--out: '{out}' holds something else already, and no comparison; {OTHER}")


def read_plan(out: Path) -> dict[str, Any] | None:
    """The content of plan.json, None where there is none; RecipeError where it is not one of ours.

    Every run and recipe that it names lies below `out`, whatever links there are.
    """
    path = out / "plan.json"
    held: dict[str, Any] | None = read_json(path, missing=None)
    if held is None:
        return None
    wrong = _wrong(held, out)
    if wrong:
        raise RecipeError(f"'{path}' cannot be read as the plan of a comparison: {wrong}; {OTHER}")
    return held


def begin(out: Path, recipes: Mapping[str, str], runs: Sequence[Path], *, another: bool = False) -> None:
    """Mark a folder as a comparison's and write the recipes of its plan, whose names are relative to it.

    RecipeError, before anything is written, where one would replace a file that is not a comparison's, or where the
    folder is that of `another` comparison, unless that is asked for.
    """
    record, plan = _record(out), read_plan(out)
    known = {*record["recipes"], *(one["recipe"] for one in (plan or {}).get("runs", []))}
    for name, text in recipes.items():
        path = _inside(out, name)
        if path.exists() and name not in known and read_text(path) != text:
            raise RecipeError(f"--out: '{path}' is not of a comparison, and nothing is overwritten; {OTHER}")
    refuse_others(out, runs, another=another)
    out.mkdir(parents=True, exist_ok=True)
    _inside(out, "recipes").mkdir(exist_ok=True)
    listed = {"recipes": sorted({*record["recipes"], *recipes}), "runs": [] if another else record["runs"]}
    write_json(out / RECORD, {**record, **listed})
    for name, text in recipes.items():
        replace(out / name, text)


def keep(out: Path, contents: Mapping[str, str | bytes], runs: Sequence[Path], *, another: bool = False) -> None:
    """Write the files of a report, whose names are relative to its folder, and remove those of the report before.

    RecipeError as of `begin`.
    """
    record = _record(out)
    known = set(record["files"])
    if not known and _is_older(out):
        known = set(contents)
    for name in contents:
        if _inside(out, name).exists() and name not in known:
            raise RecipeError(f"--out: '{out / name}' is not of a comparison, and nothing is overwritten; {OTHER}")
    outdated = [_inside(out, name) for name in sorted(known - contents.keys())]
    refuse_others(out, runs, another=another)
    out.mkdir(parents=True, exist_ok=True)
    record["runs"] = [_seen_from(out, run) for run in runs]
    write_json(out / RECORD, {**record, "files": sorted(known | contents.keys())})  # ahead of them
    for name, content in contents.items():
        (out / name).parent.mkdir(parents=True, exist_ok=True)
        replace(out / name, content)
    for path in outdated:
        path.unlink(missing_ok=True)
        with suppress(OSError):  # there is something else in it
            path.parent.rmdir()
    write_json(out / RECORD, {**record, "files": sorted(contents)})


def refuse_others(out: Path, runs: Iterable[Path], *, another: bool = False) -> None:
    """Raise RecipeError where the report that is there tells of runs which one on these would leave out.

    Runs that are gone by now do not count, nor does anything where `another` comparison is to be replaced.
    """
    here = {_seen_from(out, run) for run in runs}
    if another or any(run.startswith("sources/") for run in here):
        return
    left_out = [run for run in _record(out)["runs"] if run not in here and (out / run).is_dir()]
    if left_out:
        some = ", ".join(f"'{run}'" for run in left_out[:3]) + (" and others" if len(left_out) > 3 else "")
        raise RecipeError(
            f"--out: '{out}' holds another comparison, of {some}; {OTHER}, name these runs too, or replace it with "
            "--replace"
        )


def _seen_from(out: Path, run: Path) -> str:
    return Path(os.path.relpath(run.resolve(), out.resolve())).as_posix()


def _is_ours(out: Path) -> bool:
    try:
        return (_record(out)["generator"] == GENERATOR and (out / RECORD).exists()) or _is_older(out)
    except RecipeError:
        return False


def _is_older(out: Path) -> bool:
    """Whether a folder without our record has a page with our mark or, without any page, a plan of ours."""
    if (out / RECORD).exists():
        return False
    try:
        if (out / "report.html").exists():
            return META in read_text(out / "report.html")
        return read_plan(out) is not None
    except (DataError, RecipeError):
        return False


def _record(out: Path) -> dict[str, Any]:
    """The record of a folder, an empty one where there is none; RecipeError where it is not one of ours."""
    empty = {"generator": GENERATOR, "files": [], "recipes": [], "runs": []}
    try:
        held: dict[str, Any] = read_json(out / RECORD, missing=empty)
    except DataError as problem:
        raise RecipeError(f"--out: {problem}; {OTHER}") from None
    lists = [held.get(name) for name in ("files", "recipes", "runs")]
    texts = all(isinstance(one, list) and all(isinstance(item, str) for item in one) for one in lists)
    if held.get("generator") != GENERATOR or not texts:
        raise RecipeError(f"--out: '{out / RECORD}' is not of a comparison, and nothing is overwritten; {OTHER}")
    strange = [name for name in held["files"] if not REPORT.fullmatch(name)]
    strange += [name for name in held["recipes"] if not RECIPE.fullmatch(name)]
    if strange:
        raise RecipeError(f"--out: '{out / RECORD}' lists '{strange[0]}', which no comparison writes; {OTHER}")
    return {name: held[name] for name in empty}


def _wrong(plan: Mapping[str, Any], out: Path) -> str:
    """What keeps a table from being a plan of ours; empty where nothing does."""
    cells, runs = plan.get("cells"), plan.get("runs")
    if not {"baseline", "equal", "cells", "runs"} <= plan.keys() or not isinstance(cells, list):
        return "expected baseline, equal, cells and runs"
    if not isinstance(runs, list) or not isinstance(plan["baseline"], str) or not isinstance(plan["equal"], str):
        return "expected a list of runs, and the names of a baseline and a budget"
    for number, cell in enumerate(cells):
        numbers = [cell.get(name) for name in ("steps", "images", "flops")] if isinstance(cell, dict) else [""]
        if not all(value is None or is_number(value) for value in numbers) or not isinstance(cell.get("name"), str):
            return f"cells[{number}] has no name, steps, images and flops"
    names = {cell["name"] for cell in cells}
    for number, run in enumerate(runs):
        if not isinstance(run, dict) or run.get("cell") not in names or not isinstance(run.get("seed"), int):
            return f"runs[{number}] has no cell of the plan and no seed"
        for key, form in (("recipe", RECIPE), ("run", RUN)):
            if not isinstance(run.get(key), str) or not form.fullmatch(run[key]):
                return f"runs[{number}].{key} is {run.get(key)!r}, which is not directly below {key}s/"
            try:
                _inside(out, run[key])
            except RecipeError as problem:
                return str(problem).removeprefix("--out: ").removesuffix(f"; {OTHER}")
    return ""


def _inside(out: Path, name: str) -> Path:
    """The path of a file of ours; RecipeError where a link leads elsewhere."""
    path = out / name
    if not path.resolve().is_relative_to(out.resolve()):
        raise RecipeError(f"--out: '{path}' is a link to something outside; {OTHER}")
    return path


def _are_runs(folder: Path) -> bool:
    return not folder.exists() or (folder.is_dir() and all(is_run(one) or unused(one) for one in folder.iterdir()))
