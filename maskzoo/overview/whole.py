"""`maskzoo data`: one look at images, told on the terminal, and as a page and as a file for programs if asked for."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console

from maskzoo.errors import DataError, MaskZooError, RecipeError
from maskzoo.marks import is_run
from maskzoo.overview.drawing import draw_overview
from maskzoo.overview.looking import look
from maskzoo.overview.printing import print_overview
from maskzoo.overview.summary import MADE_BY, summary
from maskzoo.pictures import drawn_by
from maskzoo.plain import read_json, write_json
from maskzoo.protocols import Dataset
from maskzoo.recipe import Recipe, make
from maskzoo.registry import Registry


def recipe_of(source: str | None) -> tuple[Path | None, str | None]:
    """What is to be looked at: a recipe, also that of a run, or data by their folder or name."""
    if source is None:
        return None, None
    path = Path(source)
    try:
        if path.suffix == ".toml" and path.is_file():
            return path, None
        if path.is_dir() and is_run(path) and (path / "recipe.toml").is_file():
            return path / "recipe.toml", None
    except OSError:  # such as a name that is too long
        pass
    return None, source


def overview(
    recipe: Recipe,
    registry: Registry,
    console: Console,
    *,
    most: int | None,
    png: Path | None = None,
    json: Path | None = None,
) -> Mapping[str, Any]:
    """Look at the data of a recipe, at `most` images or at all, and tell what is there; also into files.

    Nothing about the data is changed. Raises RecipeError for data that no run would take, and for a file of `png` or
    `json` that is there and is none of this command; MaskZooError where it cannot be written.
    """
    _refuse_to_overwrite(png, json)
    dataset: Dataset = make(registry, "dataset", recipe.data, "recipe.data")
    with console.status("looking") as status:
        seen = look(dataset, most, lambda done, of: status.update(f"looking at {done} of {of} images"))
        told = summary(dataset, seen, recipe, registry)
    print_overview(told, console)
    for file in (png, json):
        if file is None:
            continue
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            if file is png:
                draw_overview(told, seen, file)
            else:
                write_json(file, told)
        except OSError as problem:
            raise MaskZooError(f"'{file}' cannot be written: {problem.strerror or problem}") from problem
        console.print(f"written: {file}", highlight=False, markup=False, soft_wrap=True)
    return told


def _refuse_to_overwrite(png: Path | None, json: Path | None) -> None:
    """Raise RecipeError where a file is there that this command has not written."""
    for option, file, ours in (("--png", png, _is_our_page), ("--json", json, _is_our_json)):
        try:
            there = file is not None and (file.exists() or file.is_symlink())
        except OSError as problem:  # such as a name that is too long
            raise MaskZooError(f"{option}: '{file}' cannot be written: {problem.strerror or problem}") from problem
        if there and file is not None and not ours(file):
            raise RecipeError(f"{option}: '{file}' exists, and was not written by this command; choose another name")


def _is_our_page(file: Path) -> bool:
    return drawn_by(file, MADE_BY)


def _is_our_json(file: Path) -> bool:
    try:
        return bool(read_json(file).get("made_by") == MADE_BY)
    except (DataError, OSError):
        return False
