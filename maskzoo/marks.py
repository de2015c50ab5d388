"""How a folder that a run has written is told from anybody else's, and what in it may be removed."""

from __future__ import annotations

import os
import re
from pathlib import Path

from maskzoo.errors import DataError
from maskzoo.plain import LEFTOVER, read_json, read_text

GENERATOR = "MaskZoo run"  # the mark in environment.json
OLDER = {"command", "process", "host", "versions"}  # of environment.json, before it had a mark
CHECKPOINT = re.compile(r"step-\d{8,}(\.pt)?")
PICTURE = re.compile(r"step-\d{8,}\.(png|npz)|curriculum\.png")
COMPARISON = "MaskZoo comparison"  # the mark in comparison.json, and of the page
PICTURE_MARK = b"Software\x00MaskZoo"  # in the first bytes of a PNG that a command drew
# One of these is in each folder of a run or a comparison.
OUR_FILES = frozenset({"environment.json", "checkpoints", "recipe.toml", "lock", "comparison.json", "report.html"})
AT_ONCE = frozenset({"lock", "recipe.toml.part"})  # left by a run that was killed at once; the latter by an older one


def unused(path: Path) -> bool:
    """Whether this is a folder without anything in it; a run that was killed at once may have left a lock."""
    return path.is_dir() and _holds_only(path, AT_ONCE)


def is_run(path: Path) -> bool:
    """Whether a run has been in this folder: it has left its environment, or a checkpoint, or nothing but a recipe.

    A recipe alone, beside what somebody else has put there, may be a copy.
    """
    if not path.is_dir():
        return False
    checkpoints = path / "checkpoints"
    if checkpoints.is_dir() and any(CHECKPOINT.fullmatch(one.name) for one in checkpoints.iterdir()):
        return True
    try:
        environment = read_json(path / "environment.json", missing={})
    except DataError:
        return False
    versions = environment.get("versions")
    older = environment.keys() >= OLDER and isinstance(versions, dict) and "maskzoo" in versions
    return environment.get("generator") == GENERATOR or older or _holds_only(path, AT_ONCE | {"recipe.toml"})


def is_comparison(path: Path) -> bool:
    """Whether a comparison has been written into this folder, also by an older MaskZoo, which left a page alone."""
    try:
        if (path / "comparison.json").is_file():
            return bool(read_json(path / "comparison.json").get("generator") == COMPARISON)
        page = path / "report.html"
        return page.is_file() and f'content="{COMPARISON}"' in read_text(page)
    except (DataError, OSError):
        return False


def is_our_folder(path: str | os.PathLike[str]) -> str:
    """What MaskZoo has made this folder: a "run" or a "comparison"; empty if nothing of the kind."""
    place = Path(path)
    try:
        if not unused(place) and is_run(place):
            return "run"
        return "comparison" if is_comparison(place) else ""
    except OSError:  # such as a folder that must not be looked into
        return ""


def is_our_picture(file: str | os.PathLike[str]) -> bool:
    """Whether a PNG file was drawn by a command of MaskZoo."""
    try:
        if not os.path.isfile(file):
            return False
        with open(file, "rb") as opened:
            return PICTURE_MARK in opened.read(256)
    except OSError:
        return False


def remove_pictures(folder: Path) -> None:
    """Remove the pictures that a run draws, and the folder where nothing else is in it; OSError where that fails."""
    if folder.is_symlink() or not folder.is_dir():
        return  # somebody has put it elsewhere; what is in it is drawn over
    for one in list(folder.iterdir()):
        if (PICTURE.fullmatch(one.name) or LEFTOVER.fullmatch(one.name)) and not one.is_dir():
            one.unlink()
    if not any(folder.iterdir()):
        folder.rmdir()


def _holds_only(path: Path, names: frozenset[str]) -> bool:
    return all(one.name in names or LEFTOVER.fullmatch(one.name) for one in path.iterdir())
